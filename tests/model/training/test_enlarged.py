"""HAT's outputs on disk: what HAT would give, computed once, and never trusted blindly."""

import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model.data import Dataset, SequenceEntry
from model.hat import HAT
from model.sampling import TripletSampler
from model.training.config import CannotWriteError, TrainingError
from model.training.enlarged import EnlargedCache
from model.unet import ConditionalUNet
from model.upscaler import TwoStepUpscaler

CPU = torch.device("cpu")


@pytest.fixture
def dataset(two_conditions_folder: Path) -> Dataset:
    return Dataset.open(two_conditions_folder)


def nearest(lr: Tensor) -> Tensor:
    """A HAT whose output is known: every pixel four times."""
    return F.interpolate(lr, scale_factor=2)


class Counting:
    """Enlarges, and says how often it was asked; dies when asked once more than `limit`."""

    def __init__(self, limit: int | None = None) -> None:
        self.calls = 0
        self.limit = limit

    def __call__(self, lr: Tensor) -> Tensor:
        if self.calls == self.limit:
            raise KeyboardInterrupt
        self.calls += 1
        return nearest(lr)


def filled(cache: EnlargedCache, dataset: Dataset, enlarge: Callable[[Tensor], Tensor] = nearest) -> EnlargedCache:
    cache.fill(dataset, dataset.split("train"), ["clean", "dark"], enlarge, CPU)
    return cache


def test_a_cached_frame_is_what_hat_makes_of_the_whole_frame(
    dataset: Dataset, tmp_path: Path, hat: HAT, unet: ConditionalUNet
) -> None:
    # given the frames of a real HAT
    upscaler = TwoStepUpscaler(hat, unet)
    cache = filled(EnlargedCache(tmp_path / "cache", "0" * 64, None), dataset, upscaler.enlarge)

    for entry in dataset.split("train"):
        for condition in ("clean", "dark"):
            for t in (1, 2, 3):
                # when one is read back
                frame = cache.frame(entry, condition, t)

                # then it is HAT's, to within half a step of float16
                expected = upscaler.enlarge(dataset.read(entry)[condition][t : t + 1].float() / 255)[0]
                assert frame.dtype == torch.float32
                assert float((frame - expected).abs().max()) < 2**-11


def test_a_patch_comes_with_the_same_place_of_its_enlarged_frame_however_it_is_turned(
    dataset: Dataset, tmp_path: Path
) -> None:
    # given a cache in which each pixel is four times the low-resolution one
    cache = filled(EnlargedCache(tmp_path, "0" * 64, None), dataset)
    sampler = TripletSampler(dataset, 8, 0, conditions={"clean": 0.5, "dark": 0.5}, enlarged=cache)

    # when patches are drawn, turned and mirrored
    batch = sampler.batch(32)

    # then each enlarged patch is that of its centre
    assert batch.center_sr is not None
    assert float((batch.center_sr - nearest(batch.center_lr)).abs().max()) < 2**-11


@pytest.mark.parametrize(
    ("parts", "centers"), [(None, [1, 2, 3]), (1, [2]), (2, [1, 3]), (3, [1, 2, 3]), (9, [1, 2, 3])]
)
def test_the_cached_centers_are_evenly_spread(dataset: Dataset, parts: int | None, centers: list[int]) -> None:
    cache = EnlargedCache(Path("unused"), "0" * 64, parts)

    assert list(cache.centers(dataset.entries[0])) == centers


def test_eight_of_the_papers_23_centers_leave_no_gap_longer_than_two(dataset: Dataset) -> None:
    entry = SequenceEntry(**{**vars(dataset.entries[0]), "frames": 25})

    centers = list(EnlargedCache(Path("unused"), "0" * 64, 8).centers(entry))

    assert len(centers) == 8
    assert {after - before for before, after in pairwise(centers)} <= {2, 3}


def test_interrupted_caching_goes_on_where_it_was(dataset: Dataset, tmp_path: Path) -> None:
    # given caching that dies in the middle of the third of six files
    cache = EnlargedCache(tmp_path, "0" * 64, None)
    with pytest.raises(KeyboardInterrupt):
        filled(cache, dataset, Counting(limit=7))

    # when it is started again
    again = Counting()
    seen: list[tuple[int, int]] = []
    cache.fill(dataset, dataset.split("train"), ["clean", "dark"], again, CPU, lambda *now: seen.append(now))

    # then the two whole files are not made again, and a third time there is nothing to do
    assert again.calls == 12
    assert seen == [(3, 12), (6, 12), (9, 12), (12, 12)]
    filled(cache, dataset, Counting(limit=0))


def test_a_file_that_was_cut_off_is_made_anew(dataset: Dataset, tmp_path: Path) -> None:
    # given a cache with one file that lost its end
    cache = filled(EnlargedCache(tmp_path, "0" * 64, None), dataset)
    path = cache.path(dataset.split("train")[0], "clean")
    path.write_bytes(path.read_bytes()[:-100])

    # when it is filled again
    again = Counting()
    filled(cache, dataset, again)

    # then that one is made again
    assert again.calls == 3


def test_a_file_with_other_bytes_is_refused_with_the_way_out(dataset: Dataset, tmp_path: Path) -> None:
    # given a cache with one bit turned
    cache = filled(EnlargedCache(tmp_path, "0" * 64, None), dataset)
    entry = dataset.split("train")[0]
    path = cache.path(entry, "clean")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)

    # when it is read, then it says so
    with pytest.raises(
        TrainingError, match=r"safetensors is damaged .*: remove it, and the same command makes it anew"
    ):
        cache.frame(entry, "clean", 1)


def test_more_centers_than_before_are_computed(dataset: Dataset, tmp_path: Path) -> None:
    filled(EnlargedCache(tmp_path, "0" * 64, 1), dataset)
    again = Counting()

    cache = filled(EnlargedCache(tmp_path, "0" * 64, None), dataset, again)

    assert again.calls == 18
    assert cache.frame(dataset.split("train")[0], "dark", 3).shape == (3, 48, 48)


def test_a_run_finds_its_frames_though_another_has_cached_more_since(dataset: Dataset, tmp_path: Path) -> None:
    # given a cache of the middle frames, one of which has been read
    few = filled(EnlargedCache(tmp_path, "0" * 64, 1), dataset)
    entry = dataset.split("train")[0]
    middle = few.frame(entry, "clean", 2)

    # when another run caches all, and this one reads on
    filled(EnlargedCache(tmp_path, "0" * 64, None), dataset)

    # then it gets the same frame, and a frame that is not there is named
    assert torch.equal(few.frame(entry, "clean", 2), middle)
    with pytest.raises(TrainingError, match="frame 4 is not in it"):
        few.frame(entry, "clean", 4)


def test_a_folder_that_cannot_be_written_is_named_and_one_that_cannot_be_read_is_not_mistaken_for_it(
    dataset: Dataset, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        CannotWriteError, match=r"cannot write into .*file.*: Not a directory; the frames cached so far"
    ):
        filled(EnlargedCache(tmp_path / "file" / "cache", "0" * 64, None), dataset)

    def fail(lr: Tensor) -> Tensor:
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        filled(EnlargedCache(tmp_path / "cache", "0" * 64, None), dataset, fail)


def test_another_hat_has_frames_of_its_own(dataset: Dataset, tmp_path: Path) -> None:
    filled(EnlargedCache(tmp_path, "0" * 64, None), dataset)
    again = Counting()

    filled(EnlargedCache(tmp_path, "1" * 64, None), dataset, again)

    assert again.calls == 18


def test_a_disk_without_room_is_noticed_before_anything_is_computed(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a disk with less than the quarter of a megabyte that is needed
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100_000))

    # when it is filled, then one line says what is missing
    with pytest.raises(TrainingError, match=r"HAT's outputs need 0\.2 MB in .*, where 0\.1 MB are free"):
        filled(EnlargedCache(tmp_path, "0" * 64, None), dataset, Counting(limit=0))
