"""Training losses: functions of two (B, 3, H, W) tensors with data range [0, 1], each the mean over all elements.

Equations are those of Masuda et al.
"""

import torch.nn.functional as F
from torch import Tensor

from model.unet import EncodedFrames

# The largest weight that equation 11 gives to either of its two encoder terms; both together always weigh this much.
ENCODER_WEIGHT = 0.1


def mse(output: Tensor, target: Tensor) -> Tensor:
    """Mean squared error."""
    return F.mse_loss(output, target)


def mae(output: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error."""
    return F.l1_loss(output, target)


def mae_ssim(output: Tensor, target: Tensor, alpha: float, data_range: float = 1.0) -> Tensor:
    """`alpha * MAE + (1 - alpha) * (1 - SSIM)` (equations 7 and 8).

    `data_range` belongs in SSIM's two constants and is 1.0, the range that the tensors have. The paper's published code
    passes 255: its constants then drown everything else, SSIM is nearly 1 whatever the picture, and Table II is close
    to plain MAE at every alpha.
    """
    # Here, not above: serving never needs torchmetrics and does not install it.
    from torchmetrics.functional.image import structural_similarity_index_measure

    ssim = structural_similarity_index_measure(output, target, data_range=data_range)
    assert isinstance(ssim, Tensor)
    return alpha * mae(output, target) + (1 - alpha) * (1 - ssim)


def encoder_loss(output: Tensor, target: Tensor, encoded: EncodedFrames, alpha: float) -> Tensor:
    """`MAE + alpha * MAE(F_LQ[t+1], F_HQ[t]) + (0.1 - alpha) * MAE(F_HQ[t], F_LQ[t-1])` (equation 11), alpha 0 to 0.1.

    The F are the three encoders' features at the bottleneck, before they are fused: neighbours and centre are drawn
    towards each other. Only the paper's fusion has them.
    """
    if not 0 <= alpha <= ENCODER_WEIGHT:
        raise ValueError(f"alpha is {alpha}: the encoder loss takes 0 to {ENCODER_WEIGHT}")
    left, right = encoded.sides
    # Under autocast the features are bfloat16, in which a mean over so many would be coarse.
    previous, center, following = (features.float() for features in (left, encoded.center, right))
    drawn_to_next = alpha * mae(following, center)
    drawn_to_previous = (ENCODER_WEIGHT - alpha) * mae(center, previous)
    return mae(output, target) + drawn_to_next + drawn_to_previous
