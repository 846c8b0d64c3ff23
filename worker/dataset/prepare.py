"""`vsr prepare`: videos in, a data set of frame sequences out.

What there is to take is found in `worker/dataset/sources.py`, what becomes of a video in `worker/dataset/sequences.py`,
and how it is written in `model/data.py`. Here they meet: videos are decoded by several processes, one video at a time,
and written by this one in the order in which they were found, so that the bytes do not depend on how many helped.
"""

import errno
import hashlib
import json
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch

from model.data import MANIFEST, SCALE, SHARD_BYTES, Dataset, DatasetWriter, PackedSequence, Skipped
from worker.contract.failure import FailureCode, JobFailureError
from worker.dataset.degradations import parse_condition
from worker.dataset.sequences import MIN_SIDE_PX, Fit, Framing, SequenceRecipe, make_sequences
from worker.dataset.sources import SourceVideo, find_sources
from worker.settings import VideoLimits

Made = tuple[list[PackedSequence], list[Skipped]]

# Finished videos that may wait for a slower one before them, per process.
_VIDEOS_AHEAD = 4


def prepare(
    sources: list[Path],
    folder: Path,
    *,
    seed: int = 0,
    size_px: int | None = None,
    fit: Fit | None = None,
    conditions: list[str] | None = None,
    sequences_per_video: int = 1,
    workers: int = 1,
    shard_bytes: int = SHARD_BYTES,
    limits: VideoLimits | None = None,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> Dataset:
    """Decode `sources`, write the data set into `folder` and return it.

    Killed and called again with the same arguments, it goes on, and ends with the same bytes; called once more, it
    returns what is there. `size_px` and `fit` are those of `Framing`, `conditions` those of `degradations.py` beside.
    `on_progress(done, total, name)` is called after each video.

    Videos that cannot be used are listed in the data set's `skipped`. Raises DatasetError when a source holds no video
    at all or nothing was usable, and JobFailureError for options that are not understood and for a full disk.
    """
    if size_px is not None and (size_px < MIN_SIDE_PX or size_px % SCALE):
        raise JobFailureError(
            FailureCode.INVALID_OPTION, f"the size has to be an even number from {MIN_SIDE_PX} on, not {size_px}"
        )
    if size_px is not None and fit == "keep":
        raise JobFailureError(FailureCode.INVALID_OPTION, "keep means no other size: leave out one of the two")
    names = list(dict.fromkeys(conditions or []))
    recipe = SequenceRecipe(
        seed, Framing(fit, size_px), tuple(parse_condition(name) for name in names), sequences_per_video
    )
    videos, missing = find_sources(sources)
    described = {
        "size_px": size_px,
        "fit": fit,
        "sequences_per_video": sequences_per_video,
        "shard_bytes": shard_bytes,
        "sources": len(videos),
        "sources_sha256": _fingerprint(videos),
    }
    if (folder / MANIFEST).exists():
        finished = Dataset.open(folder)
        if (finished.seed, list(finished.conditions[1:]), finished.recipe) == (seed, names, described):
            return finished
    work = partial(make_sequences, recipe=recipe, limits=limits or VideoLimits())
    try:
        with DatasetWriter(folder, seed=seed, conditions=names, recipe=described, shard_bytes=shard_bytes) as writer:
            if writer.commits == 0:
                writer.commit([], missing)
            # The first commit told what is missing, each other is a video's.
            todo = videos[writer.commits - 1 :]
            for video, (sequences, skipped) in zip(todo, _in_order(work, todo, workers), strict=True):
                writer.commit(sequences, skipped)
                if on_progress is not None:
                    on_progress(writer.commits - 1, len(videos), video.name)
            return writer.finish()
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise JobFailureError(
            FailureCode.OUT_OF_DISK,
            f"the disk of {folder} is full; what was finished stays: make room and give the same command again",
        ) from error


def _in_order(work: Callable[[SourceVideo], Made], videos: list[SourceVideo], workers: int) -> Iterator[Made]:
    """Do the work, in this process or several others, and yield what comes out in the order of `videos`."""
    if workers == 1:
        yield from map(work, videos)
        return
    # spawn: forking a process that has run torch's or FFmpeg's threads may hang.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, max(1, len(videos))), context, _begin_process)
    waiting: deque[Future[Made]] = deque()
    done = 0
    try:
        for number, video in enumerate(videos):
            with _interrupts_later():
                waiting.append(pool.submit(work, video))
            while len(waiting) >= _VIDEOS_AHEAD * workers or (waiting and number == len(videos) - 1):
                yield waiting.popleft().result()
                done += 1
    except BrokenProcessPool as error:
        raise JobFailureError(
            FailureCode.WORKER_LOST,
            f"a process that read videos from {videos[done].name} on died, perhaps of too little memory: "
            "the same command goes on there; try fewer --workers",
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _interrupts_later() -> Iterator[None]:
    """Hold a Ctrl-C back meanwhile: a helper that is started here is born deaf to it, before it can say so itself."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin_process() -> None:
    """One thread: there are as many processes as cores. It ends with the parent, without a word.

    A Ctrl-C is the parent's to hear, which then waits for the videos in hand: a helper ended while it sends a result
    would leave half of it in the pipe, and the parent reading for ever.
    """
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _fingerprint(videos: list[SourceVideo]) -> str:
    """A checksum of what was found: the names, what is said of them, and the sizes of the files. Not where they lie."""
    lines = [
        [video.name, video.source, video.licence, video.split, video.kind, video.ready_made, _size_bytes(video.path)]
        for video in videos
    ]
    return hashlib.sha256(json.dumps(lines).encode()).hexdigest()


def _size_bytes(path: Path) -> int:
    """0 for what is not there, and for a folder the sum of its files."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.iterdir())
    return path.stat().st_size if path.exists() else 0
