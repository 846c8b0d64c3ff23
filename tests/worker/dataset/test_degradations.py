"""Degradations do what they are called, in their ranges, drawn from a seed, and leave the colours where they are."""

import math

import pytest
import torch
from torch import Tensor

from worker.contract.failure import FailureCode, JobFailureError
from worker.dataset.degradations import KINDS, parse_condition

USUAL = ["h264:crf=18-34", "hevc:crf=20-36", "vp9:crf=24-45", "jpeg:quality=30-95", "noise:sigma=1-10", "chroma:420"]


def moving(frames: int = 6, height: int = 48, width: int = 64) -> Tensor:
    """(T, 3, H, W) uint8: coloured waves that move."""
    t, y, x = torch.meshgrid(torch.arange(frames), torch.arange(height), torch.arange(width), indexing="ij")
    waves = [torch.sin((x - 2 * t) / 5 + y / 9), torch.cos((x + y - t) / 7), torch.sin(y / 6 - t / 3)]
    return ((torch.stack(waves, dim=1) * 0.45 + 0.5) * 255).to(torch.uint8)


def psnr_db(one: Tensor, other: Tensor) -> float:
    return 10 * math.log10(255**2 / float((one.float() - other.float()).square().mean()))


def drawn(condition: str, sequence: str = "a", seed: int = 0) -> tuple[Tensor, str]:
    return parse_condition(condition).apply(moving(), sequence, seed)


@pytest.mark.parametrize("condition", [*USUAL, "chroma:422", "noise:sigma=1-5+h264:crf=20-32"])
def test_the_same_seed_and_sequence_give_the_same_frames_and_others_give_others(condition: str) -> None:
    first, again = drawn(condition), drawn(condition)

    assert first[0].shape == moving().shape
    assert first[0].dtype is torch.uint8
    assert torch.equal(first[0], again[0])
    assert first[1] == again[1]
    if not condition.startswith("chroma"):
        others = [drawn(condition, sequence, seed)[1] for sequence in "bcd" for seed in (0, 1)]
        assert len(set(others)) > 1


def test_conditions_of_one_sequence_are_drawn_independently() -> None:
    values = [[drawn(name, sequence)[1] for sequence in "abcdef"] for name in ("h264:crf=0-51", "h264:crf=1-51")]

    assert values[0] != values[1]


@pytest.mark.parametrize("condition", USUAL[:5])
def test_parameters_cover_their_range_and_stay_in_it(condition: str) -> None:
    low, high = (float(end) for end in condition.partition("=")[2].split("-"))
    frames = moving(frames=1, height=8, width=8)

    values = [float(parse_condition(condition).apply(frames, f"{n}", 0)[1].partition("=")[2]) for n in range(100)]

    assert low <= min(values) < low + (high - low) / 5
    assert high - (high - low) / 5 < max(values) <= high
    assert all(value.is_integer() for value in values) == (not condition.startswith("noise"))


def test_one_value_is_a_range_of_one() -> None:
    assert {drawn("h264:crf=28", sequence)[1] for sequence in "abc"} == {"crf=28"}


def test_every_step_of_a_series_is_applied_and_told() -> None:
    # given a noise that no codec would make, at a quality at which the codec keeps it
    noisy, said = drawn("noise:sigma=20+h264:crf=1")

    assert said == "sigma=20+crf=1"
    assert 22 < psnr_db(noisy, moving()) < 27  # 20 log10(255 / 20) is 22.1; 4:2:0 takes most of the chroma's noise


def test_noise_has_the_spread_it_is_called_by_and_differs_between_frames() -> None:
    grey = torch.full((4, 3, 64, 64), 128, dtype=torch.uint8)

    noisy, _ = parse_condition("noise:sigma=5").apply(grey, "a", 0)

    difference = noisy.float() - 128
    assert float(difference.std()) == pytest.approx(5, rel=0.02)
    assert abs(float(difference.mean())) < 0.1
    assert abs(float((difference[0] * difference[1]).mean())) < 0.5


@pytest.mark.parametrize("kind", ["h264", "hevc", "vp9", "jpeg"])
def test_what_is_called_worse_is_worse(kind: str) -> None:
    parameter = KINDS[kind].parameter
    better, usual, worse = (20, 30, 40) if parameter == "crf" else (95, 60, 20)

    quality = [psnr_db(drawn(f"{kind}:{parameter}={value}")[0], moving()) for value in (better, usual, worse)]

    assert quality[0] > quality[1] + 1 > quality[2] + 2


@pytest.mark.parametrize("condition", ["h264:crf=1", "hevc:crf=1", "vp9:crf=1", "jpeg:quality=100", "chroma:420"])
def test_colours_and_places_do_not_shift(condition: str) -> None:
    # given frames of one colour each, and moving ones
    colours = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [0, 0, 0], [97, 33, 180]])
    flat = colours.to(torch.uint8)[:, :, None, None].expand(-1, -1, 64, 80).contiguous()

    flat_after, _ = parse_condition(condition).apply(flat, "a", 0)
    moving_after, _ = drawn(condition)

    assert int((flat_after.int() - flat.int()).abs().max()) <= 3
    # A shift by one pixel, or chroma by half a one, costs far more.
    assert psnr_db(moving_after, moving()) > 38
    shifted = moving_after.roll(1, dims=-1)[..., 1:]
    assert psnr_db(moving_after[..., 1:], moving()[..., 1:]) > psnr_db(shifted, moving()[..., 1:]) + 10


@pytest.mark.parametrize(("height", "width"), [(8, 8), (33, 47), (16, 130), (72, 65)])
@pytest.mark.parametrize("condition", ["h264:crf=20", "hevc:crf=20", "vp9:crf=20", "jpeg:quality=90", "chroma:420"])
def test_small_and_odd_frames_keep_their_size_and_place(condition: str, height: int, width: int) -> None:
    frames = moving(frames=3, height=height, width=width)

    after, _ = parse_condition(condition).apply(frames, "a", 0)

    assert after.shape == frames.shape
    assert psnr_db(after, frames) > 30


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("vhs:crf=3", "there is no 'vhs': choose from h264, hevc, vp9, jpeg, noise, chroma"),
        ("h264", r"expected h264:crf=A-B or h264:crf=A"),
        ("h264:quality=3", "expected h264:crf=A-B"),
        ("h264:crf=a-b", "expected h264:crf=A-B"),
        ("h264:crf=", "expected h264:crf=A-B"),
        ("h264:crf=30-20", "crf lies between 0 and 51, the lower end first"),
        ("h264:crf=20-52", "crf lies between 0 and 51"),
        ("vp9:crf=64", "crf lies between 0 and 63"),
        ("jpeg:quality=0-50", "quality lies between 1 and 100"),
        ("noise:sigma=nan", "sigma lies between 0 and 50"),
        ("h264:crf=20.5", "crf is a whole number"),
        ("chroma:411", "chroma is one of 420, 422"),
        ("noise:sigma=1-5+", "there is no ''"),
        ("", "there is no ''"),
    ],
)
def test_what_is_not_understood_is_refused_with_what_is(text: str, reason: str) -> None:
    with pytest.raises(JobFailureError, match=reason) as caught:
        parse_condition(text)
    assert caught.value.code is FailureCode.INVALID_OPTION
