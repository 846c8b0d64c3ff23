"""Evaluation compares like with like: the same frames for every method, and controls that are controls."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.checkpoints import CheckpointError
from model.data import Dataset, DatasetError, DecodedSequence, SequenceEntry, shrink, write_dataset
from model.evaluation import scores as evaluation
from model.evaluation.contenders import Contender, preset_contender
from model.evaluation.scores import (
    SequenceScores,
    centers_of,
    evaluate,
    fit,
    foreign_entry,
    foreign_neighbours,
    per_frame,
    triplets,
)

CPU = torch.device("cpu")


@pytest.fixture
def tiny() -> Contender:
    return preset_contender("tiny-random", None)


def waves(frames: int, height: int, width: int, speed_px: float) -> Tensor:
    """(T, 3, H, W) uint8: smooth waves that move to the right by `speed_px` a frame."""
    t, y, x = torch.meshgrid(torch.arange(frames), torch.arange(height), torch.arange(width), indexing="ij")
    light = torch.sin((x - speed_px * t) * 0.4) * torch.cos(y * 0.3)
    return ((light * 0.4 + 0.5) * 255).to(torch.uint8).unsqueeze(1).repeat(1, 3, 1, 1)


def dataset_of(folder: Path, **sequences: Tensor) -> Dataset:
    """Held out, each of a source of its own; its second condition is darker."""
    write_dataset(
        [
            DecodedSequence(f"waves/{name}", f"source-{name}", "CC0", "val", hr, {"dark": shrink(hr) // 2})
            for name, hr in sequences.items()
        ],
        folder,
        seed=0,
    )
    return Dataset.open(folder)


def rows_of(scores: list[SequenceScores], kind: str, condition: str = "clean") -> list[SequenceScores]:
    return [row for row in scores if (row.method.kind, row.condition) == (kind, condition)]


def test_every_method_is_scored_on_every_sequence_under_every_condition(tmp_path: Path, tiny: Contender) -> None:
    dataset = dataset_of(tmp_path, one=waves(5, 40, 32, 1), two=waves(5, 32, 32, 2))
    progress: list[tuple[int, int]] = []

    scores = evaluate(dataset, [tiny], on_progress=lambda *done: progress.append(done))

    methods = 3 + 1 + 3 + 1  # plain, HAT alone, two steps with its controls, truth
    assert len(scores) == 2 * 2 * methods
    assert {row.frames for row in scores} == {3}  # five frames have three triplets
    assert {row.group for row in scores} == {"waves"}
    assert progress == [(1, 2), (2, 2)]
    for row in scores:
        if row.method.kind != "truth":
            assert row.psnr_y_db is not None
            assert 5 < row.psnr_y_db < 100
            assert row.ssim_y is not None
            assert 0 < row.ssim_y <= 1


def test_the_truth_has_no_psnr_and_flickers_no_more_than_the_video(tmp_path: Path, tiny: Contender) -> None:
    # given one video that stands still and one whose light flickers
    still = waves(5, 40, 40, 0)
    flickering = (still.int() + 20 * (torch.arange(5) % 2).view(5, 1, 1, 1)).to(torch.uint8)

    scores = evaluate(dataset_of(tmp_path, still=still, flickering=flickering), [tiny])

    one, other = rows_of(scores, "truth")
    assert (one.psnr_y_db, one.ssim_y, one.dtssd) == (None, None, 0)
    assert one.warping_error == pytest.approx(0, abs=1e-9)
    assert other.warping_error is not None
    assert other.warping_error > 0.001
    # A still video enlarged frame by frame is still too.
    assert all(row.dtssd == 0 for row in scores if row.sequence == "waves/still" and row.method.kind == "hat")


def test_sequences_are_static_or_moving_by_their_mean_motion(tmp_path: Path, tiny: Contender) -> None:
    # 2 px per frame at high resolution are 1 at low resolution, above the threshold of a half.
    scores = evaluate(dataset_of(tmp_path, still=waves(4, 64, 64, 0), moving=waves(4, 64, 64, 2)), [tiny])

    still, moving = rows_of(scores, "truth")
    assert (still.motion_px, still.moving) == (0, False)
    assert moving.motion_px == pytest.approx(1, abs=0.3)
    assert moving.moving


def test_neighbours_matter_to_the_scores_where_they_differ(tmp_path: Path, tiny: Contender) -> None:
    scores = evaluate(dataset_of(tmp_path, still=waves(4, 40, 40, 0), moving=waves(4, 40, 40, 3)), [tiny])

    psnrs = {
        kind: [row.psnr_y_db for row in rows_of(scores, kind)]
        for kind in ("two-step", "no-neighbours", "foreign-neighbours")
    }
    assert psnrs["two-step"][0] == psnrs["no-neighbours"][0]  # nothing moves: the neighbours are the frame itself
    assert psnrs["two-step"][1] != psnrs["no-neighbours"][1]
    assert psnrs["two-step"] != psnrs["foreign-neighbours"]


def test_a_long_sequence_in_pieces_has_the_scores_of_the_whole(
    tmp_path: Path, tiny: Contender, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = dataset_of(tmp_path, one=waves(7, 40, 40, 1))
    whole = evaluate(dataset, [tiny])

    # when two of its five frames go through at a time
    monkeypatch.setattr(evaluation, "PIXELS_AT_A_TIME", 2 * 20 * 20)
    pieces = evaluate(dataset, [tiny])

    for one, other in zip(whole, pieces, strict=True):
        per_pair = ("warping_error", "dtssd", "motion_px")
        for name in per_pair if one.method.kind == "truth" else (*per_pair, "psnr_y_db", "psnr_rgb_db", "ssim_y"):
            assert getattr(one, name) == pytest.approx(getattr(other, name), rel=1e-3, abs=1e-6)


def test_a_single_frame_has_no_flicker(tmp_path: Path, tiny: Contender) -> None:
    scores = evaluate(dataset_of(tmp_path, one=waves(5, 32, 32, 1)), [tiny], frames_per_sequence=1)

    assert {row.frames for row in scores} == {1}
    assert {(row.warping_error, row.dtssd) for row in scores} == {(None, None)}


def test_only_the_conditions_that_were_asked_for_are_scored(tmp_path: Path, tiny: Contender) -> None:
    dataset = dataset_of(tmp_path, one=waves(4, 32, 32, 1))

    scores = evaluate(dataset, [tiny], conditions=["dark"])

    assert {row.condition for row in scores} == {"dark"}


def test_what_cannot_be_scored_is_refused_with_its_reason(tmp_path: Path, tiny: Contender) -> None:
    dataset = dataset_of(tmp_path / "good", one=waves(4, 32, 32, 1))
    small = dataset_of(tmp_path / "small", one=waves(4, 32, 16, 1))
    short = dataset_of(tmp_path / "short", one=waves(2, 32, 32, 1))

    with pytest.raises(DatasetError, match="no sequence in the split 'test', only in val"):
        evaluate(dataset, [tiny], split="test")
    with pytest.raises(DatasetError, match="no condition 'h264', only clean, dark"):
        evaluate(dataset, [tiny], conditions=["h264"])
    with pytest.raises(DatasetError, match="16x32 px is too small to be scored"):
        evaluate(small, [tiny])
    with pytest.raises(DatasetError, match="takes 3 frames, it has 2"):
        evaluate(short, [tiny])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_networks_that_make_no_numbers_are_refused_by_name(tmp_path: Path, tiny: Contender, value: float) -> None:
    # given a U-Net whose training went wrong
    assert tiny.unet is not None
    torch.nn.init.constant_(tiny.unet.head.weight, value)

    # then it is not scored by the frames that it left whole
    with pytest.raises(
        CheckpointError, match=r"two steps, residual \(tiny-random\): .* waves/one is not made of numbers"
    ):
        evaluate(dataset_of(tmp_path, one=waves(4, 32, 32, 1)), [tiny])


@pytest.mark.parametrize(
    ("count", "expected"), [(None, [1, 2, 3, 4, 5]), (9, [1, 2, 3, 4, 5]), (3, [2, 3, 4]), (1, [3])]
)
def test_frames_are_a_run_in_the_middle(count: int | None, expected: list[int], tmp_path: Path) -> None:
    entry = dataset_of(tmp_path, one=waves(7, 32, 32, 1)).entries[0]

    assert list(centers_of(entry, count)) == expected


def test_a_frame_that_is_equal_to_the_truth_counts_a_hundred_decibels() -> None:
    picture = torch.rand(1, 3, 32, 32)

    assert per_frame(picture, picture)[0].tolist() == pytest.approx([100, 100, 1])


def test_foreign_neighbours_are_of_the_next_other_source() -> None:
    def entry(name: str, source: str) -> SequenceEntry:
        return SequenceEntry(name, "shard", 0, 0, "val", source, "CC0", 5, 32, 32, "")

    entries = [entry("a0", "a"), entry("a1", "a"), entry("b0", "b"), entry("c0", "c")]

    strangers = [foreign_entry(entries, one) for one in entries]

    assert [one and one.name for one in strangers] == ["b0", "b0", "c0", "a0"]
    assert foreign_entry(entries[:2], entries[0]) is None


def test_foreign_neighbours_are_frames_of_the_other_video(tmp_path: Path) -> None:
    # given another video that is larger and shorter
    dataset = dataset_of(tmp_path, ours=waves(6, 32, 40, 1), theirs=waves(4, 48, 48, 3))
    ours, theirs = (dataset.read(entry) for entry in dataset.entries)
    like = triplets(ours, "clean", range(1, 5), CPU)

    strangers = foreign_neighbours(theirs, "clean", range(1, 5), like)

    # then its middle is cut out, and its frames are counted around its end
    middle = theirs["clean"][:, :, 4:20, 2:22].float() / 255
    assert torch.equal(strangers.previous_lr, middle[[0, 1, 0, 1]])
    assert torch.equal(strangers.next_lr, middle[[2, 3, 2, 3]])
    assert strangers.previous_lr.shape == like.previous_lr.shape


def test_a_smaller_video_is_enlarged_to_fit() -> None:
    assert fit(torch.full((2, 3, 10, 30), 0.25), 20, 24).shape == (2, 3, 20, 24)
    assert float((fit(torch.full((2, 3, 10, 30), 0.25), 20, 24) - 0.25).abs().max()) < 1e-6


def test_names_without_a_folder_have_no_group(tmp_path: Path) -> None:
    entry = dataset_of(tmp_path, one=waves(4, 32, 32, 1)).entries[0]

    assert evaluation.group_of(entry) == "waves"
    assert evaluation.group_of(replace(entry, name="clip.mp4#0")) == ""
