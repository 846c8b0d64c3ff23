"""Patches whose parts fit together, drawn alike by any number of ranks."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model.data import Dataset, DatasetError, DecodedSequence, SequenceEntry, shrink, write_dataset
from model.sampling import TripletSampler


def telling_place_and_time(frames: int, side: int) -> Tensor:
    """(T, 3, 2 * side, 2 * side): red is 8 * t; green and blue are x and y of the low-resolution pixel."""
    t, y, x = torch.meshgrid(torch.arange(frames), torch.arange(side), torch.arange(side), indexing="ij")
    lr = torch.stack([8 * t, x, y], dim=1).to(torch.uint8)
    return F.interpolate(lr, scale_factor=2, mode="nearest")


@pytest.fixture
def telling(tmp_path: Path) -> Dataset:
    """A data set whose every pixel tells its place and time; in the condition "inverted" also, the other way round."""
    hr = telling_place_and_time(frames=5, side=16)
    lr = hr[:, :, ::2, ::2].contiguous()
    sequence = DecodedSequence("telling", "telling", "CC0", "train", hr, {"exact": lr, "inverted": 255 - lr})
    return write_dataset([sequence], tmp_path / "telling", seed=0)


class PixelsRepeated:
    """An enlargement that tells which frame, condition and place it shows."""

    def __init__(self, dataset: Dataset, centers: Sequence[int]) -> None:
        self.dataset = dataset
        self.kept = centers

    def frame(self, entry: SequenceEntry, condition: str, t: int) -> Tensor:
        lr = self.dataset.read(entry)[condition][t : t + 1].float() / 255
        return F.interpolate(lr, scale_factor=2, mode="nearest")[0]

    def centers(self, entry: SequenceEntry) -> Sequence[int]:
        return self.kept


def test_the_patches_of_a_triplet_show_one_place_at_consecutive_times(telling: Dataset) -> None:
    batch = TripletSampler(telling, patch_px=8, seed=0, conditions={"exact": 1.0}).batch(100)

    previous_lr, center_lr, next_lr = ((t * 255).round() for t in (batch.previous_lr, batch.center_lr, batch.next_lr))
    for neighbour in (previous_lr, next_lr):
        assert torch.equal(neighbour[:, 1:], center_lr[:, 1:])
    steps = (next_lr - center_lr)[:, 0, 0, 0]
    assert torch.equal((center_lr - previous_lr)[:, 0, 0, 0], steps)
    assert set(steps.tolist()) == {8.0, -8.0}  # forwards and backwards
    assert set(center_lr[:, 0, 0, 0].tolist()) == {8.0, 16.0, 24.0}


def test_the_target_is_the_same_place_and_time_as_the_centre(telling: Dataset) -> None:
    batch = TripletSampler(telling, patch_px=8, seed=0, conditions={"exact": 1.0}).batch(50)

    assert torch.equal(F.interpolate(batch.center_lr, scale_factor=2, mode="nearest"), batch.target)
    assert batch.center_sr is None


def test_patches_are_flipped_and_turned_every_way(telling: Dataset) -> None:
    batch = TripletSampler(telling, patch_px=8, seed=0, conditions={"exact": 1.0}).batch(200)

    # In which directions x and y grow: eight ways.
    corner = (batch.center_lr * 255).round()
    along = corner[:, 1:, 0, 1] - corner[:, 1:, 0, 0]
    down = corner[:, 1:, 1, 0] - corner[:, 1:, 0, 0]
    assert len({tuple(way) for way in torch.cat([along, down], dim=1).tolist()}) == 8


def test_cached_enlargements_are_cropped_flipped_and_turned_like_the_rest(telling: Dataset) -> None:
    enlarged = PixelsRepeated(telling, centers=[3])

    batch = TripletSampler(
        telling, patch_px=8, seed=0, conditions={"exact": 0.5, "inverted": 0.5}, enlarged=enlarged
    ).batch(100)

    assert batch.center_sr is not None
    assert batch.center_sr.dtype is torch.float32
    assert torch.equal(F.interpolate(batch.center_lr, scale_factor=2, mode="nearest"), batch.center_sr)
    # and only frames that are cached are drawn: the third, red 24, or 231 inverted
    assert set((batch.center_lr[:, 0] * 255).round().unique().tolist()) == {24.0, 231.0}


def test_conditions_are_drawn_in_their_proportion_with_the_clean_target(telling: Dataset) -> None:
    batch = TripletSampler(telling, patch_px=8, seed=0, conditions={"exact": 3, "inverted": 1}).batch(400)

    inverted = (batch.center_lr[:, 0, 0, 0] * 255).round() > 128
    assert 70 < int(inverted.sum()) < 130
    assert float(batch.target[:, 0].max() * 255) < 128


def test_clean_frames_are_what_is_drawn_where_nothing_is_said(telling: Dataset) -> None:
    batch = TripletSampler(telling, patch_px=16, seed=0).batch(1)

    clean = shrink(telling_place_and_time(frames=5, side=16))
    reds = {round(red) for red in clean.float().mean(dim=(2, 3))[1:4, 0].tolist()}
    assert round(float(batch.center_lr[0, 0].mean() * 255)) in reds


def test_a_sampler_goes_on_from_the_state_of_its_generator(data_folder: Path) -> None:
    # given a sampler stopped after one batch
    dataset = Dataset.open(data_folder)
    sampler = TripletSampler(dataset, patch_px=8, seed=0)
    sampler.batch(3)
    state = sampler.generator.get_state()
    expected = sampler.batch(3)

    # when another one takes over its state
    successor = TripletSampler(dataset, patch_px=8, seed=99)
    successor.generator.set_state(state)

    assert torch.equal(successor.batch(3).center_lr, expected.center_lr)


def test_two_ranks_together_draw_what_one_would(data_folder: Path) -> None:
    dataset = Dataset.open(data_folder)
    alone = TripletSampler(dataset, patch_px=8, seed=3)
    first, second = (TripletSampler(dataset, patch_px=8, seed=3, rank=rank, ranks=2) for rank in range(2))

    for _ in range(3):
        whole, left, right = alone.batch(6), first.batch(6), second.batch(6)
        assert len(left.target) == len(right.target) == 3
        assert torch.equal(torch.cat([left.next_lr, right.next_lr]), whole.next_lr)
        assert torch.equal(torch.cat([left.target, right.target]), whole.target)


def test_a_batch_that_cannot_be_shared_is_refused(data_folder: Path) -> None:
    sampler = TripletSampler(Dataset.open(data_folder), patch_px=8, seed=0, ranks=4)

    with pytest.raises(ValueError, match="a batch of 6 cannot be shared by 4 ranks"):
        sampler.batch(6)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"patch_px": 25}, "no sequence of the split 'train' has three frames of at least 25x25"),
        ({"conditions": {"vhs": 1.0}}, "no condition 'vhs', only clean"),
        ({"conditions": {"clean": 0.0}}, "shares"),
        ({"conditions": {"clean": -1.0}}, "shares"),
        ({"conditions": {"clean": float("nan")}}, "shares"),
        ({"conditions": {"clean": float("inf")}}, "shares"),
        ({"split": "test"}, "no sequence in the split 'test'"),
    ],
)
def test_what_cannot_be_drawn_is_refused(data_folder: Path, how: dict[str, object], said: str) -> None:
    with pytest.raises(DatasetError, match=said):
        TripletSampler(Dataset.open(data_folder), **({"patch_px": 8, "seed": 0} | how))  # type: ignore[arg-type]


def test_held_out_sequences_are_never_drawn(data_folder: Path) -> None:
    dataset = Dataset.open(data_folder)

    sampler = TripletSampler(dataset, patch_px=8, seed=0)

    assert {entry.split for entry in dataset.entries} == {"train", "val"}
    assert [entry.name for entry in sampler.entries] == [e.name for e in dataset.entries if e.split == "train"]


def test_patches_alone_have_the_current_frame_on_both_sides(telling: Dataset) -> None:
    alone = TripletSampler(telling, patch_px=8, seed=0, conditions={"exact": 1.0}, alone_share=1.0).batch(20)

    assert torch.equal(alone.previous_lr, alone.center_lr)
    assert torch.equal(alone.next_lr, alone.center_lr)


def test_foreign_neighbours_come_from_another_sequence_and_the_centre_stays(tmp_path: Path) -> None:
    # given a dark sequence and a bright one
    shades = {"dark": 10, "bright": 200}
    sequences = [
        DecodedSequence(name, name, "CC0", "train", torch.full((5, 3, 32, 32), shade, dtype=torch.uint8))
        for name, shade in shades.items()
    ]
    dataset = write_dataset(sequences, tmp_path / "shades", seed=0)

    # when every patch has neighbours of a sequence drawn anew
    batch = TripletSampler(dataset, patch_px=8, seed=0, foreign_share=1.0).batch(64)

    # then about half of them are of the other one, and the centre is always that of its target
    previous, center, following = (
        frames.mean(dim=(1, 2, 3)) for frames in (batch.previous_lr, batch.center_lr, batch.next_lr)
    )
    assert torch.equal(previous, following)
    assert 16 < int((previous != center).sum()) < 48
    assert torch.allclose(center, batch.target.mean(dim=(1, 2, 3)))
