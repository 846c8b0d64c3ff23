"""The checkpoints in the repository: whole, small, documented, and better than plain enlargement."""

import numpy as np
import pytest
import skimage.data
import torch
from torch import Tensor

from model.checkpoints import SHIPPED_WEIGHTS_DIR, list_checkpoints, verify_checkpoint
from model.data import shrink
from model.evaluation.baselines import bicubic, lanczos
from model.metrics import psnr_y
from model.presets import PRESETS, load_upscaler

MAX_BYTES = 20_000_000


def moving_cat(frames: int) -> Tensor:
    """(T, 3, 112, 160) uint8: scikit-image's cat, which no training material shows, panned by one pixel a frame.

    Halved first, as the training material is, so that the camera's own blur and compression vanish.
    """
    cat = torch.from_numpy(np.array(skimage.data.chelsea())).permute(2, 0, 1).unsqueeze(0)
    small = shrink(cat)[0]
    return torch.stack([small[:, 20:132, 20 + t : 180 + t] for t in range(frames)])


SHIPPED = ["aligned", "balanced", "compact"]


def test_every_shipped_checkpoint_is_whole_small_and_has_a_card() -> None:
    shipped = list_checkpoints(None)

    assert [info.name for info in shipped] == SHIPPED
    for info in shipped:
        assert verify_checkpoint(info.path) == info
        assert info.size_bytes <= MAX_BYTES
        assert info.sha256 in (SHIPPED_WEIGHTS_DIR / f"{info.name}.md").read_text()


@pytest.mark.parametrize("preset", SHIPPED)
def test_a_shipped_preset_is_its_checkpoint(preset: str) -> None:
    (info,) = [info for info in list_checkpoints(None) if info.name == preset]

    upscaler = load_upscaler(preset, torch.device("cpu"), None)

    assert (info.hat, info.unet) == (PRESETS[preset].hat, PRESETS[preset].unet)
    assert not any(module.training for module in upscaler.modules())


@pytest.mark.parametrize("preset", SHIPPED)
def test_the_two_steps_beat_plain_enlargement_and_hat_alone(preset: str) -> None:
    # given frames of a picture that was never trained on
    truth = moving_cat(frames=5).float() / 255
    lr = shrink(moving_cat(frames=5)).float() / 255
    upscaler = load_upscaler(preset, torch.device("cpu"), None)

    # when every method enlarges those with two neighbours
    with torch.inference_mode():
        results = {
            "bicubic": bicubic(lr[1:4]),
            "Lanczos": lanczos(lr[1:4]),
            "HAT alone": upscaler.enlarge(lr[1:4]),
            "two steps": upscaler(lr[0:3], lr[1:4], lr[2:5]),
            "no neighbours": upscaler(lr[1:4], lr[1:4], lr[1:4]),
            # Of the same size, and of another shot.
            "foreign neighbours": upscaler(1 - lr[1:4].flip(-1), lr[1:4], 1 - lr[1:4].flip(-2)),
        }
    db = {name: float(psnr_y(output.clamp(0, 1), truth[1:4], border_px=4).mean()) for name, output in results.items()}

    # then the order is as promised, and where the neighbours enter aligned they give a good part of it
    assert db["two steps"] > db["HAT alone"] > db["Lanczos"] > db["bicubic"]
    if PRESETS[preset].unet.fusion == "aligned":
        assert db["two steps"] > db["no neighbours"] + 0.3
    # and what is not of the scene is left out of it
    assert db["foreign neighbours"] > db["HAT alone"] - 0.3


@pytest.mark.parametrize("preset", SHIPPED)
@pytest.mark.parametrize("colour", [(0.0, 0.0, 0.0), (0.5, 0.5, 0.5), (1.0, 1.0, 1.0), (0.97, 0.68, 0.97)])
def test_a_plain_surface_stays_plain(preset: str, colour: tuple[float, float, float]) -> None:
    upscaler = load_upscaler(preset, torch.device("cpu"), None)
    frame = torch.tensor(colour).view(1, 3, 1, 1).expand(1, 3, 24, 32).contiguous()

    with torch.inference_mode():
        output = upscaler(frame, frame, frame)

    assert float((output - frame[..., :1, :1]).abs().max()) < 0.01 / 255
