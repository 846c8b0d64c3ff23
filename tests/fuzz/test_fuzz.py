"""A short form of benchmarks/fuzz.py: nothing that a file holds harms the worker, and every refusal has a code."""

from collections.abc import Iterator
from pathlib import Path

import av
import pytest

from tests.fuzz.corpus import PLAYLISTS, Sample, samples, write_seeds
from tests.fuzz.trial import OPTIONS, Tally, living_children, try_sample
from tests.worker.conftest import write_video
from worker.cage import Cages
from worker.contract.failure import FailureCode, JobFailureError
from worker.plan import Plan, make_plan
from worker.settings import VideoLimits, WorkerSettings

FILES = 150
SEED = 20261123
LIMITS = VideoLimits(max_frames=1000)
SUFFIXES = ("", ".mp4", ".mkv", ".m3u8", ".ts")


@pytest.fixture
def cages() -> Iterator[Cages]:
    opened = Cages(WorkerSettings(), LIMITS)
    yield opened
    opened.shut()


def test_damaged_files_of_every_container_are_read_or_refused_with_a_code(cages: Cages, tmp_path: Path) -> None:
    before = living_children()
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
    assert living_children() <= before  # which other tests have, as the server of Redis


# These FFmpeg follows to the neighbour's file, if it is let.
FOLLOWED = {("concat", suffix) for suffix in SUFFIXES} | {("hls", ".m3u8"), ("hls by url", ".m3u8")}


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("kind", PLAYLISTS)
def test_a_playlist_under_any_name_is_refused_in_a_cage_and_without(
    kind: str, suffix: str, cages: Cages, tmp_path: Path
) -> None:
    # Given a small file that points at a video beside it, in the folder where a cage may read everything
    folder = tmp_path / "job"
    folder.mkdir()
    neighbour = write_video(folder / "neighbour.ts", frames=3)
    source = folder / f"source{suffix}"
    source.write_bytes(PLAYLISTS[kind] % (str(neighbour) if "url" in kind else neighbour.name).encode())
    assert ((kind, suffix) in FOLLOWED) == opens_somehow(source)
    # When that is taken for a video
    uncaged = Cages(WorkerSettings(cage="off"), LIMITS)
    for decoding in (cages.of(folder), uncaged.of(folder)):
        # Then nothing opens
        with pytest.raises(JobFailureError) as caught:
            decoding.call(make_plan, source, OPTIONS, LIMITS, returns=Plan, on_progress=lambda: None)
        assert caught.value.code in (FailureCode.PLAYLIST_REFUSED, FailureCode.NOT_A_VIDEO)


def opens_somehow(source: Path) -> bool:
    """Whether FFmpeg, told nothing, finds frames."""
    try:
        with av.open(str(source)) as container:
            return any(True for _ in container.decode(video=0))
    except (av.FFmpegError, IndexError):
        return False


def test_a_43_byte_mp4_does_not_open_a_neighbours_file(cages: Cages, tmp_path: Path) -> None:
    (tmp_path / "job").mkdir()
    write_video(tmp_path / "job" / "neighbours.mp4", frames=3)
    content = b"ffconcat version 1.0\nfile 'neighbours.mp4'\n"
    assert len(content) == 43
    tally = Tally()
    try_sample(Sample("x.mp4", content), cages, tmp_path / "job", LIMITS, tally)
    assert dict(tally.outcomes) == {"playlist_refused": 1}
