"""`vsr prepare`: videos in, a data set of frame sequences out.

Sources are video files, folders of them, or a folder with an `index.csv` that names one ready-made sequence per line
with its split, source and licence.
"""

import csv
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import av.filter
import numpy as np
import torch
from torch import Tensor

from model.data import FRAMES_PER_SEQUENCE, SCALE, DatasetError, DecodedSequence, SequenceEntry, write_dataset

VIDEO_SUFFIXES = {".mp4", ".mkv", ".mov", ".webm", ".avi", ".m4v", ".mpg", ".wmv", ".ts"}
INDEX = "index.csv"


def prepare(
    sources: list[Path],
    folder: Path,
    *,
    seed: int = 0,
    sequences_per_video: int = 1,
    on_progress: Callable[[int, str], None] | None = None,
) -> list[SequenceEntry]:
    """Decode `sources`, write the data set into `folder` and return its manifest's entries.

    `on_progress(done, name)` is called after each sequence. Raises DatasetError for a source that holds no sequence.
    """

    def counted() -> Iterator[DecodedSequence]:
        done = 0
        for source in sources:
            for sequence in sequences_of(source, sequences_per_video):
                yield sequence
                done += 1
                if on_progress is not None:
                    on_progress(done, sequence.name)

    return write_dataset(counted(), folder, seed)


def sequences_of(source: Path, sequences_per_video: int) -> Iterator[DecodedSequence]:
    """The sequences of one source, in a fixed order."""
    if (source / INDEX).is_file():
        yield from _indexed_sequences(source)
    elif source.is_dir():
        videos = sorted(path for path in source.rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES)
        if not videos:
            raise DatasetError(f"no video and no {INDEX} in {source}")
        for video in videos:
            yield from _video_sequences(video, sequences_per_video)
    elif source.is_file():
        yield from _video_sequences(source, sequences_per_video)
    else:
        raise DatasetError(f"{source} does not exist")


def _indexed_sequences(folder: Path) -> Iterator[DecodedSequence]:
    with (folder / INDEX).open(newline="") as lines:
        for row in csv.DictReader(lines):
            frames = next(decode_sequences(folder / row["file"], FRAMES_PER_SEQUENCE), None)
            if frames is None:
                raise DatasetError(f"{row['file']} has fewer than {FRAMES_PER_SEQUENCE} frames")
            yield DecodedSequence(row["file"], row["source"], row["licence"], row["split"], frames)


def _video_sequences(video: Path, limit: int) -> Iterator[DecodedSequence]:
    """The first `limit` runs of 25 frames. A video too short for one gives none."""
    for number, frames in zip(range(limit), decode_sequences(video, FRAMES_PER_SEQUENCE), strict=False):
        yield DecodedSequence(f"{video.name}#{number}", video.name, "unknown", None, frames)


def decode_sequences(path: Path, length: int) -> Iterator[Tensor]:
    """Runs of `length` consecutive frames, (length, 3, H, W) uint8 RGB, sides made even; a shorter rest is dropped."""
    try:
        with av.open(str(path), format=None, options={"protocol_whitelist": "file"}) as container:
            if not container.streams.video:
                raise DatasetError(f"{path} has no video stream")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            run: list[Tensor] = []
            graph: av.filter.Graph | None = None
            for frame in container.decode(stream):
                if graph is None:
                    graph = _accurate_rgb(frame)
                graph.push(frame)
                rgb = torch.from_numpy(np.ascontiguousarray(graph.vpull().to_ndarray(format="rgb24"))).permute(2, 0, 1)
                run.append(rgb[:, : rgb.shape[1] // SCALE * SCALE, : rgb.shape[2] // SCALE * SCALE])
                if len(run) == length:
                    yield torch.stack(run)
                    run = []
    except av.FFmpegError as error:
        raise DatasetError(f"{path} cannot be decoded: {error}") from error


def _accurate_rgb(frame: av.VideoFrame) -> av.filter.Graph:
    """A filter graph to RGB without the fast chroma interpolation of `to_ndarray`, off by about a grey level."""
    graph = av.filter.Graph()
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base or Fraction(1, 1)
    )
    scale = graph.add("scale", "flags=lanczos+accurate_rnd+full_chroma_int+full_chroma_inp")
    rgb = graph.add("format", "rgb24")
    sink = graph.add("buffersink")
    graph.link_nodes(source, scale, rgb, sink).configure()
    return graph
