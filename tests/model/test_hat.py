"""HAT against the published key lists and the reference's numbers."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from model.hat import HAT, HATConfig, overlapping_position_index

GOLDEN = Path(__file__).parents[3] / "shared" / "golden"


def recipe_weights(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of the golden files' README, drawn key by key."""
    weights = dict(state)
    for key, tensor in state.items():
        if not tensor.is_floating_point():
            continue
        r = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(zlib.crc32(key.encode())))
        if tensor.ndim == 1 and key.endswith("weight"):
            weights[key] = 1 + 0.1 * r
        elif tensor.ndim >= 2:
            weights[key] = 0.5 * r if "relative_position_bias_table" in key else r / tensor[0].numel() ** 0.5
        else:
            weights[key] = 0.05 * r
    return weights


def recipe_input(height: int, width: int) -> torch.Tensor:
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    channels = [0.5 + 0.5 * torch.sin(12 * x + 7 * y**2), 0.5 + 0.5 * torch.cos(9 * y - 5 * x * y), torch.sqrt(x * y)]
    noise = torch.rand((3, height, width), generator=torch.Generator().manual_seed(0))
    return (torch.stack(channels) + 0.1 * noise).clamp(0, 1).unsqueeze(0)


@pytest.mark.parametrize("name", ["tiny", "hat_s"])
def test_the_outputs_are_the_reference_implementations(name: str) -> None:
    golden = np.load(GOLDEN / f"{name}.npz")
    hat = HAT(HATConfig(**json.loads(str(golden["config"])))).eval()
    hat.load_state_dict(recipe_weights(hat.state_dict()))

    with torch.no_grad():
        output = hat(recipe_input(int(golden["height"]), int(golden["width"])))

    assert sum(p.numel() for p in hat.parameters()) == int(golden["params"])
    assert float((output - torch.from_numpy(golden["output"])).abs().max()) < 1e-4
