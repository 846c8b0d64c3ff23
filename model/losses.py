"""Training losses: functions of two (B, 3, H, W) tensors with data range [0, 1], each the mean over all elements.

Equations are those of Masuda et al.
"""

import torch.nn.functional as F
from torch import Tensor


def mse(output: Tensor, target: Tensor) -> Tensor:
    """Mean squared error."""
    return F.mse_loss(output, target)


def mae(output: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error."""
    return F.l1_loss(output, target)


def mae_ssim(output: Tensor, target: Tensor, alpha: float) -> Tensor:
    """`alpha * MAE + (1 - alpha) * (1 - SSIM)` (equations 7 and 8).

    SSIM with the data range 1.0 that the tensors have. The paper's code passes 255, which makes the term almost vanish.
    """
    # Here, not above: serving never needs torchmetrics and does not install it.
    from torchmetrics.functional.image import structural_similarity_index_measure

    ssim = structural_similarity_index_measure(output, target, data_range=1.0)
    assert isinstance(ssim, Tensor)
    return alpha * mae(output, target) + (1 - alpha) * (1 - ssim)
