"""A source that is a sequence of PNG pictures: a zip that a stranger sent, or a folder of the user's own.

The pictures are strung together, their bytes untouched, to one video file that every later step opens like any other.
No name in a zip ever becomes a path: members are read by this module and written nowhere under their own names.
"""

import hashlib
import io
import os
import re
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from math import gcd, lcm
from pathlib import Path, PurePosixPath
from typing import IO, Protocol, cast

import av
import numpy as np
from av.container import OutputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from worker.contract.failure import FailureCode, JobFailureError
from worker.contract.job import JobOptions
from worker.contract.storage import publishing
from worker.settings import VideoLimits
from worker.video.frames import RgbFrame
from worker.video.pictures import PngHeader, check_png, largest_png_bytes, png_header
from worker.video.png_sequence import FACTS_NAME, TIMES_NAME, SequenceFacts, read_facts
from worker.video.source import size_limit_option
from worker.video.values import FrameTable, shown

DEFAULT_FRAME_RATE = Fraction(25)

_ZIP_STARTS = (b"PK\x03\x04", b"PK\x05\x06")
_ENCRYPTED = 1
# All that Python's reader is known to raise over a damaged or hostile zip.
_ZIP_TROUBLE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, OverflowError, NotImplementedError)
_MAX_DIRECTORY_BYTES = 128 * 1024 * 1024
"""Of a zip's list of members, which is held in memory: about a million."""
_READ_BYTES = 1024 * 1024
_MAX_TIMES_BYTES = 64 * 1024 * 1024
_CLUTTER = {"thumbs.db", "desktop.ini"}
_V2_TIMES = re.compile(r"#\s*time(stamp|code) format v2", re.IGNORECASE)
_DECIMAL_TIME = re.compile(r"-?\d{1,12}(\.\d{1,9})?")
_USUAL_TICKS = 1000
_MAX_CHAPTER_SECONDS = 10**6
_MAX_TICKS = 2**31 - 1
"""Of a mov file: its ticks per second, and the ticks that one picture may last."""


def is_picture_sequence(source: Path) -> bool:
    """Say whether the source is pictures: a folder, or a zip by its first bytes."""
    if source.is_dir():
        return True
    with source.open("rb") as file:
        return file.read(4) in _ZIP_STARTS


def take_in(
    source: Path,
    pictures: Path,
    options: JobOptions,
    limits: VideoLimits,
    on_progress: Callable[[], None] = lambda: None,
) -> Path:
    """Return the file to open as the video: `source` itself, or for a sequence of pictures `pictures`.

    That is made on the first call, whole or not at all. Raises `JobFailureError` for what is no sequence, or too
    much of one. `on_progress` is called for every picture read; it may stop the work by raising.
    """
    if not is_picture_sequence(source):
        if options.frame_rate is not None:
            raise JobFailureError(
                FailureCode.INVALID_OPTION, "a frame rate is for a sequence of pictures: a video has its own times"
            )
        return source
    if not pictures.exists():
        with _opened(source) as files, publishing(pictures) as partial:
            _string_together(files, partial, options, limits, on_progress)
    return pictures


def sha256_of_folder(folder: Path) -> str:
    """Return one digest of all files of a sequence, names and contents."""
    digest = hashlib.sha256()
    files = _FolderFiles(folder)
    for name in sorted(files.sizes):
        with files.open(name) as file:
            of_one = hashlib.sha256()
            while part := file.read(_READ_BYTES):
                of_one.update(part)
        digest.update(f"{of_one.hexdigest()}  {name}\n".encode())
    return digest.hexdigest()


# --- the files of a sequence ------------------------------------------------------------------------------------------


class _Files(Protocol):
    """What a zip and a folder have in common."""

    sizes: dict[str, int]
    """Bytes of every file, unpacked, by its name as in the zip; hidden files are left out."""

    def open(self, name: str) -> IO[bytes]: ...


class _FolderFiles:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.sizes: dict[str, int] = {}
        for path in folder.iterdir():
            if _is_hidden(path.name):
                continue
            if not path.is_file():
                raise _no_picture(path.name)
            self.sizes[path.name] = path.stat().st_size

    def open(self, name: str) -> IO[bytes]:
        return (self._folder / name).open("rb")


class _ZipFiles:
    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        members = [member for member in archive.infolist() if not member.is_dir() and not _is_hidden(member.filename)]
        name, times = Counter(member.filename for member in members).most_common(1)[0] if members else ("", 0)
        if times > 1:
            raise _refused(f"it holds {shown(name)} {times} times")
        for member in members:
            if member.flag_bits & _ENCRYPTED:
                raise _refused(f"{shown(member.filename)} is encrypted: pack it without a password")
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise _refused(f"{shown(member.filename)} is packed in an unusual way: use deflate, or none")
        self.sizes = {member.filename: member.file_size for member in members}

    def open(self, name: str) -> IO[bytes]:
        return self._archive.open(name)


class _BoundedFile(io.FileIO):
    """A zip says itself where its list of members lies, and how long it is: not outside, and not beyond memory."""

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > _MAX_DIRECTORY_BYTES:
            raise _refused("its list of files is too long")
        return super().read(size)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        try:
            return super().seek(offset, whence)
        except OSError as error:
            if whence != os.SEEK_SET:
                raise  # Python's reader asks so whether the file is long enough
            raise zipfile.BadZipFile("it points outside of itself") from error


@contextmanager
def _opened(source: Path) -> Iterator[_Files]:
    if source.is_dir():
        yield _FolderFiles(source)
        return
    with _BoundedFile(source) as file:
        try:
            archive = zipfile.ZipFile(cast(IO[bytes], file))
        except _ZIP_TROUBLE as error:
            raise _refused("it is damaged or cut off") from error
        with archive:
            yield _ZipFiles(archive)


@contextmanager
def _reading(files: _Files, name: str) -> Iterator[IO[bytes]]:
    try:
        with files.open(name) as file:
            yield file
    except _ZIP_TROUBLE as error:
        raise JobFailureError(FailureCode.CORRUPT_FRAME, f"{shown(name)} in the zip is damaged: {error}") from error


def _is_hidden(name: str) -> bool:
    """What systems add unasked: .DS_Store, __MACOSX/, Thumbs.db."""
    parts = name.replace("\\", "/").split("/")
    return parts[0] == "__MACOSX" or any(part.startswith(".") for part in parts) or parts[-1].lower() in _CLUTTER


# --- from files to a video --------------------------------------------------------------------------------------------


def _string_together(
    files: _Files, target: Path, options: JobOptions, limits: VideoLimits, on_progress: Callable[[], None]
) -> None:
    names = _pictures_in_order(files, limits)
    facts, times = _facts_and_times(files, len(names), options.frame_rate)
    headers: list[PngHeader] = []
    for name in names:
        on_progress()
        headers.append(check_png(_read_picture(files, name, headers[:1], limits), shown(name)))
    shape = _Shape.of(headers)
    with av.open(
        str(target),
        "w",
        format="mov",
        container_options={
            "fflags": "+bitexact",
            "movflags": "+use_metadata_tags",
            "movie_timescale": str(_ticks_per_second(facts, times)),
        },
    ) as container:
        stream = _add_stream(container, headers[0], facts, times)
        ends = [*times.pts[1:], times.pts[-1] + times.last_duration]
        for number, name in enumerate(names):
            on_progress()
            content = _read_picture(files, name, headers[:1], limits)
            if shape.mixed:
                content = shape.bring_to(content, shown(name), limits)
            packet = Packet(content)
            packet.stream, packet.time_base = stream, times.time_base
            packet.pts = packet.dts = times.pts[number]
            packet.duration = ends[number] - times.pts[number]
            packet.is_keyframe = True
            container.mux_one(packet)


def _pictures_in_order(files: _Files, limits: VideoLimits) -> list[str]:
    pictures = [name for name in files.sizes if _base_name(name) not in (FACTS_NAME, TIMES_NAME)]
    for name in pictures:
        if not name.lower().endswith(".png"):
            raise _no_picture(name)
    if not pictures:
        raise JobFailureError(FailureCode.NO_FRAMES, "there are no PNG pictures in it")
    if len(pictures) > limits.max_frames:
        raise JobFailureError(
            FailureCode.LIMIT_EXCEEDED, f"there are {len(pictures)} pictures; the limit is {limits.max_frames}"
        )
    folders = sorted({str(PurePosixPath(name.replace("\\", "/")).parent) for name in files.sizes})
    if len(folders) > 1:
        raise _refused(f"its files lie in several folders ({shown(folders[0])}, {shown(folders[1])}): use one")
    unpacked_bytes = sum(files.sizes.values())
    if unpacked_bytes > limits.max_unpacked_bytes:
        raise JobFailureError(
            FailureCode.LIMIT_EXCEEDED,
            f"the pictures are {unpacked_bytes} bytes; the limit is {limits.max_unpacked_bytes}",
        )
    return sorted(pictures, key=_natural_order)


def _read_picture(files: _Files, name: str, first: Sequence[PngHeader], limits: VideoLimits) -> bytes:
    """Read one picture, and no more bytes than one of its size can need, whatever the zip says of it."""
    with _reading(files, name) as file:
        start = file.read(33)
        header = png_header(start, shown(name))
        size = (header.width, header.height)
        if first and size != (first[0].width, first[0].height):
            raise JobFailureError(
                FailureCode.UNSUPPORTED_SOURCE,
                f"{shown(name)} is {size[0]}x{size[1]}, the pictures before it {first[0].width}x{first[0].height}: "
                "all pictures of a sequence must have one size",
            )
        if (
            header.width > limits.max_width
            or header.height > limits.max_height
            or header.width * header.height > limits.max_pixels
        ):
            raise JobFailureError(
                FailureCode.LIMIT_EXCEEDED,
                f"{shown(name)} is {size[0]}x{size[1]}; the limit is {limits.max_width}x{limits.max_height} "
                f"and {limits.max_pixels} pixels",
            )
        most = largest_png_bytes(header)
        content = start + file.read(most + 1 - len(start))
    if len(content) > most:
        raise JobFailureError(
            FailureCode.LIMIT_EXCEEDED, f"{shown(name)} has more than {most} bytes, for {size[0]}x{size[1]} pixels"
        )
    return content


def _add_stream(
    container: OutputContainer, header: PngHeader, facts: SequenceFacts | None, times: FrameTable
) -> VideoStream:
    if facts is not None:
        container.metadata.update(_plain_text(facts.metadata))
        container.set_chapters(_chapters(facts, _ticks_per_second(facts, times)))
    stream = container.add_stream("png", rate=_average_rate(times))
    assert isinstance(stream, VideoStream)
    # What is in the packets is seen when they are decoded; this only describes the track.
    stream.width, stream.height, stream.pix_fmt = header.width, header.height, "rgb24"
    stream.time_base = Fraction(1, times.time_base.denominator)
    if facts is not None and facts.sample_aspect_ratio:
        stream.codec_context.sample_aspect_ratio = facts.sample_aspect_ratio
    if facts is not None and facts.display_matrix is not None:
        stream.set_display_matrix(facts.display_matrix)
    return stream


def _chapters(facts: SequenceFacts, ticks_per_second: int) -> "list[av.container.core.Chapter]":
    """As FFmpeg takes them; those of a negative or absurd time are nobody's."""
    return [
        {
            "id": number,
            "start": round(chapter.start * ticks_per_second),
            "end": round(chapter.end * ticks_per_second),
            "time_base": Fraction(1, ticks_per_second),
            "metadata": _plain_text(chapter.metadata),
        }
        for number, chapter in enumerate(facts.chapters)
        if 0 <= chapter.start <= chapter.end < _MAX_CHAPTER_SECONDS
    ]


def _ticks_per_second(facts: SequenceFacts | None, times: FrameTable) -> int:
    """Fine enough that pictures and chapters begin exactly where they began."""
    chapters = (
        [time for chapter in facts.chapters for time in (chapter.start, chapter.end)] if facts is not None else []
    )
    exact = lcm(_USUAL_TICKS, times.time_base.denominator, *(time.denominator for time in chapters))
    return exact if exact <= _MAX_TICKS else times.time_base.denominator


def _plain_text(metadata: dict[str, str]) -> dict[str, str]:
    return {key: text for key, text in metadata.items() if "\0" not in key + text}


def _average_rate(times: FrameTable) -> Fraction:
    ticks = times.pts[-1] + times.last_duration - times.pts[0]
    return (len(times) / (ticks * times.time_base)).limit_denominator(1001) or Fraction(1)


@dataclass(frozen=True)
class _Shape:
    """The pixel format of all pictures of a video. Programs write a sequence's black pictures as grey, and such."""

    mixed: bool
    deep: bool
    grey: bool
    transparent: bool

    @classmethod
    def of(cls, headers: Sequence[PngHeader]) -> "_Shape":
        return cls(
            mixed=len({header.pixel_format for header in headers}) > 1,
            deep=any(header.bit_depth > 8 for header in headers),
            grey=all(header.colour_type in (0, 4) for header in headers),
            transparent=any(header.has_transparency for header in headers),
        )

    def bring_to(self, content: bytes, name: str, limits: VideoLimits) -> bytes:
        """Write the picture anew in the format that holds them all; not a bit of any pixel is lost."""
        decoder = av.CodecContext.create("png", "r")
        decoder.thread_count = 1
        decoder.options = {"max_pixels": size_limit_option(limits.max_pixels)}
        try:
            before = [*decoder.decode(Packet(content)), *decoder.decode(None)][0]
        except (av.FFmpegError, ValueError, IndexError) as error:
            raise JobFailureError(FailureCode.CORRUPT_FRAME, f"{name} cannot be decoded: {error}") from error
        deep = max(component.bits for component in before.format.components) > 8
        # uint8 or uint16, by the pixel format
        pixels: RgbFrame = before.reformat(format="rgba64le" if deep else "rgba").to_ndarray()  # type: ignore[assignment]
        if self.deep and not deep:
            pixels = pixels.astype(np.uint16) * np.uint16(257)
        if self.grey and not self.transparent:
            pixels, pixel_format = pixels[..., 0], "gray16be" if self.deep else "gray"
        elif self.transparent:
            pixel_format = "rgba64be" if self.deep else "rgba"
        else:
            pixels, pixel_format = pixels[..., :3], "rgb48be" if self.deep else "rgb24"
        after = VideoFrame.from_ndarray(pixels, pixel_format)
        encoder = av.CodecContext.create("png", "w")
        encoder.width, encoder.height, encoder.pix_fmt = after.width, after.height, after.format.name
        encoder.time_base, encoder.thread_count = Fraction(1, 25), 1
        for tag in ("colorspace", "color_range", "color_primaries", "color_trc"):
            setattr(after, tag, getattr(before, tag))
            setattr(encoder, tag, getattr(before, tag))
        return b"".join(bytes(packet) for packet in [*encoder.encode(after), *encoder.encode(None)])


# --- times ------------------------------------------------------------------------------------------------------------


def _facts_and_times(files: _Files, count: int, frame_rate: str | None) -> tuple[SequenceFacts | None, FrameTable]:
    """Return what lies beside the pictures if it is ours, and when they are shown.

    A frame rate that the user names goes before the times in the sequence, and these before the usual rate.
    """
    beside = {_base_name(name): name for name in files.sizes}
    facts = read_facts(_read_text(files, beside[FACTS_NAME])) if FACTS_NAME in beside else None
    if FACTS_NAME in beside and facts is None:
        raise _no_picture(beside[FACTS_NAME])
    if frame_rate is not None:
        return facts, _even_times(count, Fraction(frame_rate))
    if facts is not None:
        times, told_by = facts.table(), FACTS_NAME
    elif TIMES_NAME in beside:
        times, told_by = _times_of_text(_read_text(files, beside[TIMES_NAME])), TIMES_NAME
    else:
        return None, _even_times(count, DEFAULT_FRAME_RATE)
    return facts, _checked(times, told_by, count)


def _even_times(count: int, rate: Fraction) -> FrameTable:
    return FrameTable(pts=tuple(range(count)), stamps=None, crc32=(), time_base=1 / rate, last_duration=1)


def _times_of_text(content: bytes) -> FrameTable:
    """Read mkvmerge's "timestamp format v2": a line of milliseconds for each picture."""
    lines = [line.strip() for line in content.decode("ascii", errors="replace").splitlines()]
    if not lines or not _V2_TIMES.fullmatch(lines[0]):
        raise _bad_times(f"{TIMES_NAME} does not begin with '# timestamp format v2'")
    told = [line for line in lines[1:] if line and not line.startswith("#")]
    for number, line in enumerate(told):
        if not _DECIMAL_TIME.fullmatch(line):
            raise _bad_times(f"{TIMES_NAME} has no milliseconds for picture {number}")
    unit = Fraction(1, 10**12)
    ticks = [int(Fraction(line) / 1000 / unit) for line in told]
    # As coarse a unit as holds them all.
    step = gcd(*ticks) or 1
    pts = tuple(tick // step for tick in ticks)
    last_duration = pts[-1] - pts[-2] if len(pts) > 1 else max(1, round(1 / DEFAULT_FRAME_RATE / (unit * step)))
    return FrameTable(pts=pts, stamps=None, crc32=(), time_base=unit * step, last_duration=last_duration)


def _checked(times: FrameTable, told_by: str, count: int) -> FrameTable:
    """Raise `JobFailureError(BAD_TIMESTAMPS)` for times that are not the pictures', or that no video can have."""
    pts = times.pts
    if len(pts) != count:
        raise _bad_times(f"{told_by} has times for {len(pts)} pictures, and there are {count}")
    ends = [*pts[1:], pts[-1] + times.last_duration]
    durations = [end - start for start, end in zip(pts, ends, strict=True)]
    if min(durations) <= 0 or times.time_base <= 0:
        raise _bad_times(f"the times in {told_by} do not rise at picture {durations.index(min(durations))}")
    if pts[0] < 0:
        raise _bad_times(f"the times in {told_by} begin before zero")
    ticks_of_mov = times.time_base.numerator * max(durations)
    if ticks_of_mov > _MAX_TICKS or times.time_base.denominator > _MAX_TICKS or pts[-1] > 2**53:
        raise _bad_times(f"the times in {told_by} are too fine for pictures that last so long")
    return times


def _read_text(files: _Files, name: str) -> bytes:
    if files.sizes[name] > _MAX_TIMES_BYTES:
        raise _refused(f"{shown(name)} is too long")
    with _reading(files, name) as file:
        return file.read(_MAX_TIMES_BYTES)


# --- names and refusals -----------------------------------------------------------------------------------------------


def _natural_order(name: str) -> tuple[tuple[object, ...], str]:
    """Sort frame-2 before frame-10: numbers by their value, what is between them by its letters."""
    parts: list[object] = list(re.split(r"([0-9]+)", name.lower().removesuffix(".png")))
    for place in range(1, len(parts), 2):
        digits = str(parts[place]).lstrip("0")
        parts[place] = (len(digits), digits)
    return tuple(parts), name


def _base_name(name: str) -> str:
    return name.replace("\\", "/").rsplit("/", 1)[-1]


def _no_picture(name: str) -> JobFailureError:
    return JobFailureError(
        FailureCode.NOT_A_VIDEO,
        f"{shown(name)} is not a PNG picture: a sequence of pictures holds nothing else",
    )


def _refused(why: str) -> JobFailureError:
    return JobFailureError(FailureCode.NOT_A_VIDEO, f"the zip cannot be read: {why}")


def _bad_times(what: str) -> JobFailureError:
    return JobFailureError(
        FailureCode.BAD_TIMESTAMPS, f"{what}: remove that file, or say a frame rate (frame_rate, --frame-rate)"
    )
