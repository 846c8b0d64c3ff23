"""The plain enlargements are what they are called."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from model.evaluation.baselines import bicubic, lanczos, nearest


@pytest.mark.parametrize(("ours", "name"), [(nearest, "NEAREST"), (bicubic, "BICUBIC"), (lanczos, "LANCZOS")])
def test_plain_enlargements_are_those_of_pillow(ours: Callable[[Tensor], Tensor], name: str) -> None:
    # given a smooth picture, for Pillow clips to 8 bits between rows and columns
    y, x = torch.meshgrid(torch.arange(24), torch.arange(20), indexing="ij")
    picture = (127 + 60 * torch.sin(x / 3 + y / 5)).round().clamp(0, 255)
    frame = picture.expand(1, 3, 24, 20) / 255

    # when both enlarge it
    image = Image.fromarray(picture.to(torch.uint8).numpy()).resize((40, 48), getattr(Image.Resampling, name))
    expected = torch.from_numpy(np.array(image)).float()
    enlarged = ours(frame)[0, 1] * 255

    # then they agree to the rounding, the rim aside, which every library treats in its own way
    assert enlarged.shape == expected.shape
    assert float((enlarged - expected)[6:-6, 6:-6].abs().max()) < 1.5
