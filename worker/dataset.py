"""`vsr prepare`: videos in, a data set of frame sequences out.

Sources are video files, folders of them, or a folder with an `index.csv` that names one ready-made sequence per line
with its split, source and licence.
"""

import csv
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model.data import FRAMES_PER_SEQUENCE, SCALE, DatasetError, DecodedSequence, SequenceEntry, write_dataset
from worker.settings import VideoLimits
from worker.video.colour import RgbFrame
from worker.video.decode import decode_frames
from worker.video.survey import survey

VIDEO_SUFFIXES = {".mp4", ".mkv", ".mov", ".webm", ".avi", ".m4v", ".mpg", ".wmv", ".ts"}
INDEX = "index.csv"
_INDEX_COLUMNS = {"file", "split", "source", "licence"}
_SPLITS = ("train", "val", "test", "")


def prepare(
    sources: list[Path],
    folder: Path,
    *,
    seed: int = 0,
    sequences_per_video: int = 1,
    limits: VideoLimits | None = None,
    on_progress: Callable[[int, str], None] | None = None,
) -> list[SequenceEntry]:
    """Decode `sources`, write the data set into `folder` and return its manifest's entries.

    `on_progress(done, name)` is called after each sequence. Raises DatasetError for a source that holds no sequence,
    and JobFailureError for a video that cannot be decoded or is over the limits, by default those of the worker.
    """
    video_limits = limits or VideoLimits()

    def counted() -> Iterator[DecodedSequence]:
        done = 0
        for source in sources:
            for sequence in sequences_of(source, sequences_per_video, video_limits):
                yield sequence
                done += 1
                if on_progress is not None:
                    on_progress(done, sequence.name)

    return list(write_dataset(counted(), folder, seed).entries)


def sequences_of(source: Path, sequences_per_video: int, limits: VideoLimits) -> Iterator[DecodedSequence]:
    """Yield the sequences of one source, in a fixed order. Of a video, its first runs of 25 frames."""
    if (source / INDEX).is_file():
        yield from _indexed_sequences(source, limits)
        return
    if not source.exists():
        raise DatasetError(f"{source} does not exist")
    inside = sorted(path for path in source.rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES)
    videos = [source] if source.is_file() else inside
    if not videos:
        raise DatasetError(f"no video and no {INDEX} in {source}")
    for video in videos:
        for number, hr in enumerate(decode_sequences(video, sequences_per_video, limits)):
            yield DecodedSequence(f"{video.name}#{number}", video.name, "unknown", None, hr)


def _indexed_sequences(folder: Path, limits: VideoLimits) -> Iterator[DecodedSequence]:
    with (folder / INDEX).open(newline="") as lines:
        rows = csv.DictReader(lines)
        if missing := _INDEX_COLUMNS - set(rows.fieldnames or ()):
            raise DatasetError(f"{folder / INDEX} lacks the columns {', '.join(sorted(missing))}")
        for row in rows:
            # An empty split is dealt out, as for videos without an index.
            if row["split"] not in _SPLITS:
                raise DatasetError(
                    f"{folder / INDEX} puts {row['file']} into {row['split']!r}, which is none of train, val and test"
                )
            runs = list(decode_sequences(folder / row["file"], 1, limits))
            if not runs:
                raise DatasetError(f"{row['file']} has fewer than {FRAMES_PER_SEQUENCE} frames")
            yield DecodedSequence(row["file"], row["source"], row["licence"], row["split"], runs[0])


def decode_sequences(video: Path, limit: int, limits: VideoLimits) -> Iterator[Tensor]:
    """Yield up to `limit` runs of 25 consecutive frames, (25, 3, H, W) uint8 RGB with even sides; a rest is dropped."""
    video = video.absolute()  # FFmpeg takes what stands before a colon for a protocol, unless it begins with a slash
    found = survey(video, limits)
    runs = min(limit, len(found.frames) // FRAMES_PER_SEQUENCE)
    frames = decode_frames(
        video,
        found.stream_index,
        found.picture,
        found.frames,
        0,
        runs * FRAMES_PER_SEQUENCE,
        max_pixels=limits.max_pixels,
    )
    for _ in range(runs):
        rgb = torch.stack([_eight_bits(next(frames)) for _ in range(FRAMES_PER_SEQUENCE)]).permute(0, 3, 1, 2)
        yield rgb[..., : rgb.shape[-2] // SCALE * SCALE, : rgb.shape[-1] // SCALE * SCALE].contiguous()


def _eight_bits(frame: RgbFrame) -> Tensor:
    """Deeper video comes as 16 bits, of which the upper eight are kept."""
    return torch.from_numpy((frame >> 8).astype(np.uint8) if frame.dtype == np.uint16 else frame)
