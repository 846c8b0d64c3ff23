"""The two steps together: what is promised of shapes, ranges and determinism, and what is refused."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from model.hat import HAT
from model.hat_in_bands import HATInBands
from model.presets import PRESETS, random_upscaler
from model.unet import ConditionalUNet
from model.upscaler import DeviceUnavailableError, TwoStepUpscaler, resolve_device, resolve_precision


def frames(batch: int, height: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    previous_lr, center_lr, next_lr = torch.rand(
        3, batch, 3, height, width, generator=torch.Generator().manual_seed(seed)
    )
    return previous_lr, center_lr, next_lr


@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 30), (16, 24), (23, 41)])
def test_any_size_comes_back_doubled_in_float32_and_in_range(
    upscaler: TwoStepUpscaler, height: int, width: int
) -> None:
    with torch.inference_mode():
        output = upscaler(*frames(2, height, width))

    assert output.shape == (2, 3, 2 * height, 2 * width)
    assert output.dtype == torch.float32
    assert 0 <= float(output.min()) <= float(output.max()) <= 1


def test_a_run_repeated_gives_the_same_bits(upscaler: TwoStepUpscaler) -> None:
    triplet = frames(3, 30, 41)

    with torch.inference_mode():
        first = upscaler(*triplet)
        again = upscaler(*triplet)
        rebuilt = random_upscaler(PRESETS["tiny-random"])(*triplet)

    assert torch.equal(first, again)
    assert torch.equal(first, rebuilt)


@pytest.mark.parametrize(("batch", "height", "width"), [(2, 90, 160), (4, 72, 96), (1, 48, 64), (2, 8, 8)])
@pytest.mark.parametrize("preset", ["tiny-random", "compact", "aligned"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_number_of_threads_changes_nothing(
    precision: str, preset: str, batch: int, height: int, width: int
) -> None:
    # A worker resumes, or shares, what another with more or fewer cores began.
    upscaler = random_upscaler(PRESETS[preset])
    upscaler.use_precision(precision)
    triplet = frames(batch, height, width)
    threads_before = torch.get_num_threads()

    results = []
    for threads in (1, 2, 3, 16):
        torch.set_num_threads(threads)
        with torch.inference_mode():
            results.append(upscaler(*triplet))
    torch.set_num_threads(threads_before)

    for result in results[1:]:
        assert torch.equal(results[0], result)


@pytest.mark.parametrize("threads", [1, 2, 3, 16])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_attention_by_openvino_does_not_depend_on_the_number_of_threads(precision: str, threads: int) -> None:
    # given a network of large windows
    torch.manual_seed(0)
    config = replace(PRESETS["tiny-random"].hat, window_size=16, depths=(2,), num_heads=(2,))
    upscaler = TwoStepUpscaler(HAT(config), random_upscaler(PRESETS["tiny-random"]).unet)
    upscaler.use_precision(precision)
    assert "-openvino" in upscaler.arithmetic
    center_lr = frames(1, 90, 160)[1]

    # when it works with one thread, and with several
    threads_before = torch.get_num_threads()
    results = []
    for count in (1, threads):
        torch.set_num_threads(count)
        results.append(upscaler.enlarge(center_lr))
    torch.set_num_threads(threads_before)

    assert torch.equal(*results)


@pytest.mark.parametrize("preset", ["tiny-random", "compact", "aligned"])
def test_a_frame_does_not_depend_on_what_else_is_in_the_batch(preset: str) -> None:
    # given two batches of one shape that share a frame, in two places
    upscaler = random_upscaler(PRESETS[preset])
    one, other = frames(4, 30, 41, seed=1), frames(4, 30, 41, seed=2)
    for mine, theirs in zip(one, other, strict=True):
        theirs[3] = mine[1]

    with torch.inference_mode():
        result, elsewhere = upscaler(*one), upscaler(*other)

    assert torch.equal(result[1], elsewhere[3])
    assert not torch.equal(result[0], elsewhere[0])


def test_each_frame_of_the_triplet_leaves_its_mark(upscaler: TwoStepUpscaler) -> None:
    previous_lr, center_lr, next_lr = frames(1, 24, 24)

    with torch.inference_mode():
        output = upscaler(previous_lr, center_lr, next_lr)
        for wrong in (
            upscaler(next_lr, center_lr, previous_lr),
            upscaler(center_lr, center_lr, next_lr),
            upscaler(previous_lr, center_lr, center_lr),
        ):
            # visible after rounding to 8 bits
            assert float((output - wrong).abs().mean()) > 1 / 255


def test_hat_runs_once_per_frame(upscaler: TwoStepUpscaler, monkeypatch: pytest.MonkeyPatch) -> None:
    # given a count of the frames that enter HAT
    seen: list[Tensor] = []
    enlarge = HATInBands.__call__

    def count_and_enlarge(bands: HATInBands, lr: Tensor) -> Tensor:
        seen.append(lr)
        return enlarge(bands, lr)

    monkeypatch.setattr(HATInBands, "__call__", count_and_enlarge)
    triplet = frames(5, 16, 16)

    with torch.inference_mode():
        upscaler(*triplet)

    # then it was the centres, once
    assert len(seen) == 1
    assert torch.equal(seen[0], triplet[1])


def test_hat_stays_frozen_and_in_evaluation_while_the_unet_trains(upscaler: TwoStepUpscaler) -> None:
    before = {key: tensor.clone() for key, tensor in upscaler.hat.state_dict().items()}
    optimizer = torch.optim.Adam([p for p in upscaler.parameters() if p.requires_grad], lr=0.1)

    upscaler.train()
    torch.autograd.backward(upscaler(*frames(1, 16, 16)).mean())
    optimizer.step()

    assert upscaler.unet.training
    assert not upscaler.hat.training
    assert all(torch.equal(before[key], tensor) for key, tensor in upscaler.hat.state_dict().items())
    assert all(parameter.grad is None for parameter in upscaler.hat.parameters())


@pytest.mark.parametrize(
    ("place", "wrong", "message"),
    [
        (0, torch.rand(3, 16, 16), "previous_lr has 3 dimensions, expected 4"),
        (1, torch.rand(1, 1, 16, 16), "center_lr has 1 channels, expected 3"),
        (2, torch.rand(1, 3, 16, 16).double(), "next_lr is torch.float64, expected torch.float32"),
        (0, torch.zeros(1, 3, 16, 16, dtype=torch.uint8), "previous_lr is torch.uint8, expected torch.float32"),
        (2, torch.rand(1, 3, 16, 17), r"next_lr has the shape \(1, 3, 16, 17\), center_lr has \(1, 3, 16, 16\)"),
        (1, torch.zeros(1, 3, 0, 16), r"center_lr has the shape \(1, 3, 0, 16\)"),
        (1, torch.full((1, 3, 16, 16), 255.0), "center_lr ranges from 255 to 255, expected 0 to 1"),
        (1, torch.full((1, 3, 16, 16), -0.5), "center_lr ranges from -0.5 to -0.5, expected 0 to 1"),
        (0, torch.full((1, 3, 16, 16), math.nan), "previous_lr ranges from nan to nan, expected 0 to 1"),
    ],
)
def test_what_it_would_misread_is_refused_with_both_numbers(
    upscaler: TwoStepUpscaler, place: int, wrong: Tensor, message: str
) -> None:
    triplet = list(frames(1, 16, 16))
    triplet[place] = wrong

    with pytest.raises(ValueError, match=message):
        upscaler(*triplet)


def test_a_hat_of_another_scale_is_refused(unet: ConditionalUNet) -> None:
    with pytest.raises(ValueError, match="upscales by 4, the second step needs 2"):
        TwoStepUpscaler(HAT(replace(PRESETS["tiny-random"].hat, upscale=4)), unet)


def test_one_tile_that_holds_the_frame_changes_nothing(upscaler: TwoStepUpscaler) -> None:
    triplet = frames(2, 24, 40)

    with torch.inference_mode():
        whole = upscaler(*triplet)
        upscaler.use_tiles(64)
        tiled = upscaler(*triplet)

    assert torch.equal(whole, tiled)


@pytest.mark.parametrize(("preset", "overlap_px"), [("compact", 32), ("aligned", 64)])
def test_tiles_see_as_far_as_the_second_step_needs_where_nobody_says_how_far(preset: str, overlap_px: int) -> None:
    upscaler = random_upscaler(PRESETS[preset])

    upscaler.use_tiles(64)

    assert (upscaler.tile_px, upscaler.tile_overlap_px) == (64, overlap_px)


def test_tiles_with_enough_overlap_come_close_to_the_whole_frame(upscaler: TwoStepUpscaler) -> None:
    triplet = frames(1, 70, 90)

    with torch.inference_mode():
        whole = upscaler(*triplet)
        upscaler.use_tiles(32, tile_overlap_px=32)
        tiled = upscaler(*triplet)
        upscaler.use_tiles(None)

        # not equal: channel attention averages over all it is given
        assert tiled.shape == whole.shape
        assert float((tiled - whole).abs().mean()) < 1 / 255
        assert torch.equal(upscaler(*triplet), whole)


@pytest.mark.parametrize(
    ("tile_px", "tile_overlap_px", "message"),
    [
        (60, 32, "tile_px is 60, which is not a multiple of 8"),
        (64, 12, "tile_overlap_px is 12"),
        (0, 8, "tile_px is 0"),
    ],
)
def test_tiles_off_the_window_grid_are_refused(
    upscaler: TwoStepUpscaler, tile_px: int, tile_overlap_px: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        upscaler.use_tiles(tile_px, tile_overlap_px)


def test_the_cpu_is_there_when_asked_for() -> None:
    assert resolve_device("cpu") == torch.device("cpu")


def test_auto_takes_what_is_there() -> None:
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_cuda_is_used_or_refused_by_name_never_replaced() -> None:
    if torch.cuda.is_available():
        assert resolve_device("cuda").type == "cuda"
    else:
        with pytest.raises(DeviceUnavailableError, match="cuda was asked for, but"):
            resolve_device("cuda")


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(ValueError, match="not 'gpu'"):
        resolve_device("gpu")


def test_a_precision_nobody_knows_is_refused(upscaler: TwoStepUpscaler) -> None:
    with pytest.raises(ValueError, match="precision must be 'auto', 'float32' or 'bfloat16', not 'int8'"):
        upscaler.use_precision("int8")


@pytest.mark.parametrize(("has_instructions", "chosen"), [(True, torch.bfloat16), (False, torch.float32)])
def test_bfloat16_is_chosen_where_the_processor_has_instructions_for_it(
    has_instructions: bool, chosen: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model.upscaler.multiplies_bfloat16", lambda: has_instructions)

    assert resolve_precision("auto", torch.device("cpu")) == chosen
    assert resolve_precision("auto", torch.device("cuda")) == torch.bfloat16
    assert resolve_precision("float32", torch.device("cuda")) == torch.float32


def test_the_arithmetic_names_what_decides_on_bits(upscaler: TwoStepUpscaler) -> None:
    names = []
    for precision in ("float32", "bfloat16"):
        upscaler.use_precision(precision)
        names.append(upscaler.arithmetic)

    assert names == ["cpu-f32-torch", "cpu-bf16-torch"]
