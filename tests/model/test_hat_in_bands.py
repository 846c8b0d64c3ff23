"""HAT in bands against HAT as a whole: the same numbers, whatever the band, the kernel and the number of threads."""

from dataclasses import replace
from importlib.metadata import version

import pytest
import torch
from torch import nn

from model.hat import HAT, HATConfig
from model.hat_in_bands import (
    BandAttention,
    HATInBands,
    attend_by_torch,
    band_attention,
    bands,
    release_attention_memory,
)
from model.openvino_attention import _compiled, attend_in_band

KERNELS = {"torch": attend_by_torch, "openvino": attend_in_band}
LARGE_WINDOWS = HATConfig(
    embed_dim=24, depths=(2, 2), num_heads=(2, 2), window_size=16, compress_ratio=4, squeeze_factor=4, num_feat=8
)


def hat_of(config: HATConfig) -> HAT:
    """A network of which every part shows in the result: a fresh one hardly changes the picture."""
    torch.manual_seed(0)
    hat = HAT(replace(config, conv_scale=0.5)).eval()
    for parameter in hat.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        else:
            nn.init.normal_(parameter, mean=0.5, std=0.25)
    return hat


@pytest.fixture(params=["small windows", "large windows"])
def hat(request: pytest.FixtureRequest, small_hat_config: HATConfig) -> HAT:
    return hat_of(small_hat_config if request.param == "small windows" else LARGE_WINDOWS)


@pytest.fixture(params=KERNELS)
def attend(request: pytest.FixtureRequest) -> BandAttention:
    return KERNELS[request.param]


def in_bands(hat: HAT, dtype: torch.dtype, attend: BandAttention) -> HATInBands:
    return HATInBands(hat, dtype, attend, "of this test")


@pytest.mark.parametrize(("height", "width"), [(1, 1), (9, 70), (16, 16), (40, 24), (33, 90)])
def test_the_numbers_are_those_of_the_whole_frame(hat: HAT, attend: BandAttention, height: int, width: int) -> None:
    frames = torch.rand(2, 3, height, width)

    with torch.no_grad():
        whole = hat(frames)
    result = in_bands(hat, torch.float32, attend)(frames)

    assert result.dtype == torch.float32
    assert float((result - whole).abs().max()) < 1e-5


@pytest.mark.parametrize("pixels", [1, 700])
def test_how_many_rows_a_band_has_changes_nothing_to_speak_of(
    hat: HAT, attend: BandAttention, pixels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a frame of several rows of windows
    frame = torch.rand(1, 3, 64, 48)
    at_once = in_bands(hat, torch.float32, attend)(frame)

    # when fewer of them are taken at a time
    monkeypatch.setattr("model.hat_in_bands.BAND_PIXELS", pixels)
    monkeypatch.setattr("model.hat_in_bands.CONVOLUTION_BAND_PIXELS", pixels)
    assert len(list(bands(frame[0].permute(1, 2, 0), hat.config.window_size))) > 1
    in_small_bands = in_bands(hat, torch.float32, attend)(frame)

    # then only the order of sums differs
    assert float((at_once - in_small_bands).abs().max()) < 1e-5


def test_products_in_bfloat16_are_nearly_the_same(hat: HAT, attend: BandAttention) -> None:
    frame = torch.rand(1, 3, 40, 56)

    with torch.no_grad():
        whole = hat(frame)
    result = in_bands(hat, torch.bfloat16, attend)(frame)

    assert result.dtype == torch.float32
    error = (result - whole).abs()
    assert 0 < float(error.max()) < float(whole.std()) / 50


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_frame_is_the_same_alone_and_in_any_batch(hat: HAT, attend: BandAttention, dtype: torch.dtype) -> None:
    network, frames = in_bands(hat, dtype, attend), torch.rand(3, 3, 24, 40)

    together = network(frames)

    for frame, result in zip(torch.split(frames, 1), torch.split(together, 1), strict=True):
        assert torch.equal(network(frame), result)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_weights_that_change_are_used_at_once(hat: HAT, dtype: torch.dtype) -> None:
    # given a network that has converted its weights
    network, frame = in_bands(hat, dtype, attend_by_torch), torch.rand(1, 3, 16, 32)
    before = network(frame)

    # when others are loaded
    torch.manual_seed(1)
    hat.load_state_dict(HAT(hat.config).state_dict())
    after = network(frame)

    # then the result is that of a fresh network with them
    assert not torch.equal(before, after)
    assert torch.equal(after, in_bands(hat, dtype, attend_by_torch)(frame))


def test_a_frame_is_not_changed(hat: HAT, attend: BandAttention) -> None:
    frame = torch.rand(1, 3, 16, 16)
    before = frame.clone()

    in_bands(hat, torch.float32, attend)(frame)

    assert torch.equal(frame, before)


def test_large_windows_go_to_openvino_where_it_is_installed_and_to_torch_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert band_attention(16) == (attend_in_band, f"openvino{version('openvino')}")
    assert band_attention(8) == (attend_by_torch, "torch")

    monkeypatch.setattr("model.hat_in_bands.find_spec", lambda name: None)

    assert band_attention(16) == (attend_by_torch, "torch")


def test_a_scale_that_takes_two_stages_is_refused(small_hat_config: HATConfig) -> None:
    with pytest.raises(ValueError, match="upscales by 2 or 3, not by 4"):
        in_bands(HAT(replace(small_hat_config, upscale=4)), torch.float32, attend_by_torch)


def test_a_scale_of_three_is_that_of_the_whole_frame(small_hat_config: HATConfig) -> None:
    hat = hat_of(replace(small_hat_config, upscale=3))
    frame = torch.rand(1, 3, 40, 48)

    with torch.no_grad():
        whole = hat(frame)

    assert float((in_bands(hat, torch.float32, attend_by_torch)(frame) - whole).abs().max()) < 1e-5


def test_kernels_begin_anew_after_their_memory_was_given_back() -> None:
    # given kernels that have worked
    torch.manual_seed(0)
    network, frame = in_bands(HAT(LARGE_WINDOWS).eval(), torch.float32, attend_in_band), torch.rand(1, 3, 32, 32)
    before = network(frame)
    assert _compiled.cache_info().currsize > 0

    # when their memory is given back
    release_attention_memory()

    # then nothing is left of it, and they work as before
    assert _compiled.cache_info().currsize == 0
    assert torch.equal(network(frame), before)


def test_every_kind_of_band_is_compiled_once() -> None:
    # given a frame with whole and last bands of every kind of attention
    network, frame = in_bands(hat_of(LARGE_WINDOWS), torch.float32, attend_in_band), torch.rand(1, 3, 112, 48)
    release_attention_memory()
    before = _compiled.cache_info().misses

    # when it passes twice, in layers that take turns
    network(frame)
    network(frame)

    # then no kernel was forgotten in between
    kinds = _compiled.cache_info().currsize
    assert kinds == 6
    assert _compiled.cache_info().misses - before == kinds
