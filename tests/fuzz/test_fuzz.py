"""A short form of benchmarks/fuzz.py: nothing that a file holds harms the worker, and every refusal has a code."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuzz.corpus import PLAYLISTS, Sample, samples, write_seeds
from tests.fuzz.trial import Tally, living_children, try_sample
from tests.worker.conftest import write_video
from worker.cage import Cages
from worker.settings import VideoLimits, WorkerSettings

FILES = 150
SEED = 20261123
LIMITS = VideoLimits(max_frames=1000)


@pytest.fixture
def cages() -> Iterator[Cages]:
    opened = Cages(WorkerSettings(), LIMITS)
    yield opened
    opened.shut()


def test_damaged_files_of_every_container_are_read_or_refused_with_a_code(cages: Cages, tmp_path: Path) -> None:
    # Given 150 files, cut, flipped and spliced; they share one cage, whose process is replaced whenever it ends
    seeds_folder, folder = tmp_path / "seeds", tmp_path / "job"
    seeds_folder.mkdir()
    seeds = write_seeds(seeds_folder)
    assert len(seeds) >= 15
    tally = Tally()
    # When they are planned and decoded
    for sample in samples(seeds, FILES, SEED):
        try_sample(sample, cages, folder, LIMITS, tally)
    # Then no mistake of ours has come to light, nothing hung, and nothing is left
    assert tally.bugs == []
    assert tally.over_10_seconds == []
    assert tally.leftovers == []
    assert sum(tally.outcomes.values()) == FILES
    assert tally.outcomes["accepted"] > 0
    cages.shut()
    assert living_children() == set()


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "m3u8", "ts"])
@pytest.mark.parametrize("kind", PLAYLISTS)
def test_a_playlist_under_any_name_is_refused(kind: str, suffix: str, cages: Cages, tmp_path: Path) -> None:
    # Given a neighbour's video, and a small file that points at it
    neighbour = write_video(tmp_path / "neighbour.mp4", frames=3)
    pointing = PLAYLISTS[kind] % str(neighbour).encode()
    tally = Tally()
    # When that is taken for a video, then nothing opens
    try_sample(Sample(f"{kind}.{suffix}", pointing), cages, tmp_path / "job", LIMITS, tally)
    assert set(tally.outcomes) <= {"playlist_refused", "not_a_video"}, tally


def test_a_43_byte_mp4_does_not_open_a_neighbours_file(cages: Cages, tmp_path: Path) -> None:
    (tmp_path / "job").mkdir()
    write_video(tmp_path / "job" / "neighbours.mp4", frames=3)
    content = b"ffconcat version 1.0\nfile 'neighbours.mp4'\n"
    assert len(content) == 43
    tally = Tally()
    try_sample(Sample("x.mp4", content), cages, tmp_path / "job", LIMITS, tally)
    assert dict(tally.outcomes) == {"playlist_refused": 1}
