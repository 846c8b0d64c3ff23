"""Data sets on disk: split by source, shrunk right, checked when read; and patches whose parts fit together."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model.data import (
    DatasetError,
    DecodedSequence,
    SequenceEntry,
    TripletSampler,
    read_manifest,
    read_sequence,
    shrink,
    split_by_source,
    write_dataset,
)


def entry(source: str, split: str = "") -> SequenceEntry:
    return SequenceEntry("name", "file", split, source, "CC0", 25, 64, 64, "")


def test_a_source_lies_in_one_split_and_eight_of_ten_train() -> None:
    entries = [entry(f"video-{n % 20}") for n in range(100)]

    divided = split_by_source(entries, seed=0)

    splits_of = {source: {e.split for e in divided if e.source == source} for source in {e.source for e in divided}}
    assert all(len(splits) == 1 for splits in splits_of.values())
    assert [sum(splits == {name} for splits in splits_of.values()) for name in ("train", "val", "test")] == [16, 2, 2]


def test_the_split_depends_on_the_seed_alone() -> None:
    entries = [entry(f"video-{n}") for n in range(30)]

    assert split_by_source(entries, seed=1) == split_by_source(entries, seed=1)
    assert split_by_source(entries, seed=1) != split_by_source(entries, seed=2)


def test_a_split_that_the_material_names_is_kept() -> None:
    assert split_by_source([entry("a", "val"), entry("b", "train")], seed=0) == [entry("a", "val"), entry("b", "train")]


def test_shrinking_keeps_constant_colours_and_has_no_overshoot_beyond_eight_bits() -> None:
    flat, edge = torch.full((1, 3, 16, 16), 77, dtype=torch.uint8), torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    edge[..., 8:] = 255

    assert torch.equal(shrink(flat), torch.full((1, 3, 8, 8), 77, dtype=torch.uint8))
    assert set(shrink(edge)[0, 0, 0].tolist()) >= {0, 255}


def test_shrinking_is_antialiased() -> None:
    # given stripes too fine for half the size
    stripes = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    stripes[..., ::2] = 200

    # then they become their mean, not stripes of another width
    assert float((shrink(stripes)[..., 4:-4].float() - 100).abs().max()) <= 1


def test_a_data_set_is_read_back_as_written(data_folder: Path) -> None:
    entries = read_manifest(data_folder)

    lr, hr = read_sequence(data_folder, entries[1])

    assert [e.split for e in entries] == ["val"] + 5 * ["train"]
    assert (lr.shape, hr.shape) == ((5, 3, 24, 24), (5, 3, 48, 48))
    assert torch.equal(lr, shrink(hr))


def test_a_damaged_sequence_is_refused(data_folder: Path) -> None:
    first = read_manifest(data_folder)[0]
    content = bytearray((data_folder / first.file).read_bytes())
    content[-1] ^= 1
    (data_folder / first.file).write_bytes(content)

    with pytest.raises(DatasetError, match=r"00000\.safetensors is damaged"):
        read_sequence(data_folder, first)


def test_a_missing_sequence_is_refused(data_folder: Path) -> None:
    first = read_manifest(data_folder)[0]
    (data_folder / first.file).unlink()

    with pytest.raises(DatasetError, match=r"00000\.safetensors is missing"):
        read_sequence(data_folder, first)


def test_a_folder_without_a_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"no manifest\.json"):
        read_manifest(tmp_path)


def test_a_data_set_of_another_scale_is_refused(data_folder: Path) -> None:
    manifest = json.loads((data_folder / "manifest.json").read_text())
    (data_folder / "manifest.json").write_text(json.dumps(manifest | {"scale": 4}))

    with pytest.raises(DatasetError, match="made for scale 4, expected 2"):
        read_manifest(data_folder)


def test_nothing_to_write_is_an_error_and_leaves_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no sequence"):
        write_dataset([], tmp_path, seed=0)
    assert not (tmp_path / "manifest.json").exists()


def test_an_odd_size_is_refused(tmp_path: Path) -> None:
    odd = DecodedSequence("odd.mp4", "odd", "CC0", None, torch.zeros(3, 3, 15, 16, dtype=torch.uint8))

    with pytest.raises(DatasetError, match="16x15 is not a multiple of 2"):
        write_dataset([odd], tmp_path, seed=0)


def sequence_that_tells_place_and_time(frames: int = 5, side: int = 32) -> tuple[Tensor, Tensor]:
    """Low resolution: the red channel is the time, green x, blue y; high resolution is each pixel twice as large."""
    t, y, x = torch.meshgrid(torch.arange(frames), torch.arange(side), torch.arange(side), indexing="ij")
    lr = torch.stack([t, x, y], dim=1).to(torch.uint8)
    return lr, F.interpolate(lr, scale_factor=2, mode="nearest")


def test_the_patches_of_a_triplet_show_one_place_at_consecutive_times() -> None:
    sampler = TripletSampler([sequence_that_tells_place_and_time()], patch_px=8, seed=0)

    batch = sampler.batch(200)

    previous_lr, center_lr, next_lr = ((t * 255).round() for t in (batch.previous_lr, batch.center_lr, batch.next_lr))
    for neighbour in (previous_lr, next_lr):
        assert torch.equal(neighbour[:, 1:], center_lr[:, 1:])
    steps = (next_lr - center_lr)[:, 0, 0, 0]
    assert torch.equal((center_lr - previous_lr)[:, 0, 0, 0], steps)
    assert set(steps.tolist()) == {1.0, -1.0}  # forwards and backwards
    assert set(center_lr[:, 0, 0, 0].tolist()) == {1.0, 2.0, 3.0}


def test_the_target_is_the_same_place_and_time_as_the_centre() -> None:
    sampler = TripletSampler([sequence_that_tells_place_and_time()], patch_px=8, seed=0)

    batch = sampler.batch(50)

    assert torch.equal(F.interpolate(batch.center_lr, scale_factor=2, mode="nearest"), batch.target)


def test_a_sampler_goes_on_from_the_state_of_its_generator() -> None:
    # given a sampler stopped after one batch
    sequences = [sequence_that_tells_place_and_time()]
    sampler = TripletSampler(sequences, patch_px=8, seed=0)
    sampler.batch(3)
    state = sampler.generator.get_state()
    expected = sampler.batch(3)

    # when another one takes over its state
    successor = TripletSampler(sequences, patch_px=8, seed=99)
    successor.generator.set_state(state)

    assert torch.equal(successor.batch(3).center_lr, expected.center_lr)


def test_patches_larger_than_every_frame_are_refused() -> None:
    with pytest.raises(DatasetError, match="at least 33x33"):
        TripletSampler([sequence_that_tells_place_and_time()], patch_px=33, seed=0)
