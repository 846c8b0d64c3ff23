"""What networks cost, against the published figure and against sums written out."""

import pytest
import torch
from torch import Tensor, nn

from model.evaluation.complexity import measure_costs, median_milliseconds, multiply_adds, parameters
from model.evaluation.contenders import preset_contender
from model.hat import HAT, HATConfig
from model.unet import ConditionalUNet


def test_the_published_hat_has_its_published_size_and_multiply_adds() -> None:
    with torch.device("meta"):
        hat = HAT(HATConfig())

    assert parameters(hat) == pytest.approx(20.6e6, rel=0.01)
    assert multiply_adds(hat, (1, 3, 64, 64)) == pytest.approx(102e9, rel=0.01)


def test_attention_is_counted() -> None:
    # given a small HAT of two blocks, 8 channels and 2 squeezed ones
    hat = HAT(HATConfig(embed_dim=8, depths=(2,), num_heads=(1,), window_size=8, squeeze_factor=4, num_feat=4))

    # then each pixel meets the 64 of its window in both blocks and the 144 around it, for its weights and its values
    attention = 16 * 16 * 2 * 8 * (2 * 64 + 12 * 12)
    channel_attention = 2 * (8 * 2 + 2 * 8)
    layers = sum_over_layers(hat, torch.zeros(1, 3, 16, 16))
    assert multiply_adds(hat, (1, 3, 16, 16)) == layers + attention + channel_attention


def test_the_multiply_adds_of_a_unet_are_those_of_its_layers(unet: ConditionalUNet) -> None:
    sr, lr = torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 16, 16)

    assert multiply_adds(unet, sr.shape, lr.shape, lr.shape) == sum_over_layers(unet, sr, lr, lr)


def test_counting_leaves_the_network_as_it_was(hat: HAT) -> None:
    lr = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        before = hat(lr)
        multiply_adds(hat, (1, 3, 16, 16))

        assert torch.equal(hat(lr), before)


def test_a_time_is_taken_after_one_call_to_warm_up() -> None:
    calls: list[None] = []

    def work() -> Tensor:
        calls.append(None)
        return torch.zeros(1)

    assert median_milliseconds(work, torch.device("cpu"), repetitions=3) >= 0
    assert len(calls) == 4


def test_every_method_has_a_cost_and_the_two_steps_hold_both_networks() -> None:
    tiny = preset_contender("tiny-random", None)

    costs = measure_costs([tiny], width=16, height=12, repetitions=1, device=torch.device("cpu"))

    assert [cost.method.kind for cost in costs] == ["plain", "plain", "plain", "hat", "two-step"]
    hat, both = costs[-2:]
    assert tiny.unet is not None
    assert both.parameters - hat.parameters == parameters(tiny.unet)
    assert both.multiply_adds is not None
    assert hat.multiply_adds is not None
    assert 0 < hat.multiply_adds < both.multiply_adds
    assert all(cost.milliseconds is not None and cost.milliseconds > 0 for cost in costs)


def test_without_repetitions_nothing_is_timed() -> None:
    costs = measure_costs(
        [preset_contender("tiny-random", None)], width=16, height=12, repetitions=0, device=torch.device("cpu")
    )

    assert {cost.milliseconds for cost in costs} == {None}


def sum_over_layers(network: nn.Module, *inputs: Tensor) -> int:
    """Multiply-adds of convolutions and linear layers from the shapes that pass through them."""
    total = 0

    def count(layer: nn.Module, _: object, output: Tensor) -> None:
        nonlocal total
        if isinstance(layer, nn.ConvTranspose2d):  # kernel and stride 2: each output pixel comes from one pixel
            total += output.numel() * layer.in_channels
        elif isinstance(layer, nn.Conv2d | nn.Linear):
            total += output.numel() * layer.weight[0].numel()

    handles = [layer.register_forward_hook(count) for layer in network.modules()]
    with torch.enable_grad():  # Where linear layers are called as what they are.
        network(*inputs)
    for handle in handles:
        handle.remove()
    return total
