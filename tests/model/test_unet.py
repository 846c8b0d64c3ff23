"""The U-Net's geometry, its two output forms, and what it sees."""

import json
from typing import Literal

import pytest
import torch

from model.unet import ConditionalUNet, UNetConfig


def test_the_paper_network_has_the_papers_geometry() -> None:
    # given the defaults, without memory for their weights
    with torch.device("meta"):
        unet = ConditionalUNet(UNetConfig()).eval()

        # when the paper's sizes go through the encoders
        *_, left = unet.phi_left(torch.empty(1, 3, 64, 64))
        *skips, center = unet.psi_encoder(torch.empty(1, 3, 128, 128))
        output = unet.psi_decoder(center, skips)

    # then four and five halvings meet at H/16 with 1024 channels, and five doublings lead back
    assert left.shape == center.shape == (1, 1024, 4, 4)
    assert [skip.shape[1] for skip in skips] == [64, 128, 256, 512, 1024]
    assert len(unet.phi_left.blocks) - 1 == len(unet.phi_right.blocks) - 1 == 4
    assert len(unet.psi_encoder.blocks) - 1 == len(unet.psi_decoder.doublings) == 5
    assert output.shape == (1, 64, 128, 128)


def test_the_sides_have_their_own_weights() -> None:
    unet = ConditionalUNet(UNetConfig(width=4, levels=2))

    left, right = (next(encoder.parameters()) for encoder in (unet.phi_left, unet.phi_right))

    assert left is not right
    assert not torch.equal(left, right)


FUSIONS: list[Literal["bottleneck", "aligned"]] = ["bottleneck", "aligned"]


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("pixel_unshuffle", [1, 2])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 20), (16, 16), (17, 33)])
def test_a_frame_of_any_size_keeps_its_size(
    fusion: Literal["bottleneck", "aligned"], pixel_unshuffle: int, height: int, width: int
) -> None:
    config = UNetConfig(width=4, levels=3, pixel_unshuffle=pixel_unshuffle, fusion=fusion)
    unet = ConditionalUNet(config).eval()
    center_sr, neighbour = torch.rand(2, 3, 2 * height, 2 * width), torch.rand(2, 3, height, width)

    with torch.no_grad():
        output = unet(center_sr, neighbour, neighbour)

    assert output.shape == center_sr.shape


def test_an_untrained_residual_changes_nothing() -> None:
    unet = ConditionalUNet(UNetConfig(width=4, levels=2, output="residual")).eval()
    center_sr = torch.rand(1, 3, 16, 24)

    with torch.no_grad():
        output = unet(center_sr, torch.rand(1, 3, 8, 12), torch.rand(1, 3, 8, 12))

    assert torch.equal(output, center_sr)


def test_an_untrained_direct_network_draws_its_own_picture() -> None:
    unet = ConditionalUNet(UNetConfig(width=4, levels=2, output="direct")).eval()
    center_sr = torch.rand(1, 3, 16, 24)

    with torch.no_grad():
        output = unet(center_sr, torch.rand(1, 3, 8, 12), torch.rand(1, 3, 8, 12))

    assert not torch.allclose(output, center_sr, atol=0.1)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_each_neighbour_has_its_own_influence(fusion: Literal["bottleneck", "aligned"]) -> None:
    torch.manual_seed(0)
    unet = ConditionalUNet(UNetConfig(width=8, levels=2, batch_norm=False, fusion=fusion)).eval()
    center_sr, first, second = torch.rand(1, 3, 16, 16), torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8)

    with torch.no_grad():
        output = unet(center_sr, first, second)

        assert not torch.equal(unet(center_sr, second, first), output)
        assert not torch.equal(unet(center_sr, first, first), output)
        assert not torch.equal(unet(center_sr, second, second), output)


def test_every_parameter_learns_after_the_first_step_of_the_residual() -> None:
    torch.manual_seed(0)
    unet = ConditionalUNet(UNetConfig(width=4, levels=2, output="residual"))
    torch.nn.init.normal_(unet.head.weight)

    unet(torch.rand(2, 3, 16, 16), torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8)).square().mean().backward()

    assert [name for name, p in unet.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("fields", [{"width": 0}, {"levels": 1}, {"pixel_unshuffle": 0}, {"output": "both"}])
def test_a_configuration_that_cannot_be_built_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=str(next(iter(fields.values())))):
        UNetConfig(**fields)  # type: ignore[arg-type]


def test_a_configuration_survives_json() -> None:
    config = UNetConfig(width=16, levels=3, pixel_unshuffle=2, output="residual", batch_norm=False)

    assert UNetConfig(**json.loads(json.dumps(config.to_json_fields()))) == config
