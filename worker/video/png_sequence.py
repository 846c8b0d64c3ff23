"""A result that is a sequence of pictures: a zip of PNG files, with everything beside them that PNG has no place for.

    frame-000001.png ...    the pictures, in the order of display, exactly as they were encoded
    timestamps.txt          when each is shown, as other tools read it (mkvmerge's "timestamp format v2", milliseconds)
    sequence.json           the same times exactly, and what else is known: `SequenceFacts`

The pictures are stored, not deflated: PNG is already. Dates and attributes are fixed: the same pictures give the same
bytes. The archive's comment is the mark of its making (`worker/video/tag.py`).
"""

import os
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Literal

import av
from av.container import InputContainer
from pydantic import Field, ValidationError

from worker.contract.failure import FailureCode, JobFailureError
from worker.contract.storage import fsync_folder
from worker.video.mux import UpscaledVideo, kept_chapters, kept_metadata
from worker.video.packets import is_end_mark
from worker.video.pictures import check_png
from worker.video.values import Colour, ContentLight, Crop, FrameTable, Frozen, MasteringDisplay, Rational

_FRAME_DIGITS = 6
TIMES_NAME, FACTS_NAME = "timestamps.txt", "sequence.json"
_TIMES_HEADER = "# timestamp format v2"
_OUR_NAMES = re.compile(rf"frame-\d{{{_FRAME_DIGITS},}}\.png|{re.escape(TIMES_NAME)}|{re.escape(FACTS_NAME)}")
_THE_PAST = (1980, 1, 1, 0, 0, 0)
"""The earliest date that a zip can hold."""
_PLAIN_FILE = 0o100644 << 16
_UNIX = 3


Int32 = Annotated[int, Field(ge=-(2**31), lt=2**31)]


class Chapter(Frozen):
    """A part of the video with a name."""

    start: Rational = Field(description="Seconds.")
    end: Rational
    metadata: dict[str, str]


class SequenceFacts(Frozen):
    """`sequence.json`: what the pictures themselves cannot say."""

    format: Literal["twostep-vsr picture sequence"] = "twostep-vsr picture sequence"
    version: Literal[1] = 1
    made_by: str = Field(description="The mark that stands for the source, the options and the weights.")
    width: int
    height: int
    time_base: Rational = Field(description="Seconds: the unit of `pts` and `last_duration`.")
    pts: tuple[int, ...] = Field(min_length=1, description="When each picture is shown, in the order of the pictures.")
    last_duration: int
    average_rate: Rational
    sample_aspect_ratio: Rational | None
    display_matrix: tuple[int, ...] | None = Field(
        description="How players shall turn or mirror it: FFmpeg's 9 integers."
    )
    colour: Colour = Field(description="Of the pictures; ITU-T H.273 code points.")
    crop: Crop | None
    mastering_display: MasteringDisplay | None
    content_light: ContentLight | None
    metadata: dict[str, str]
    chapters: tuple[Chapter, ...]

    def table(self) -> FrameTable:
        """The pictures' times as other modules know them."""
        return FrameTable(
            pts=self.pts, stamps=None, crc32=(), time_base=self.time_base, last_duration=self.last_duration
        )


def picture_name(number: int, count: int) -> str:
    """Return the name of picture `number`, counted from 0, of `count`: they sort as they are shown."""
    return f"frame-{number + 1:0{max(_FRAME_DIGITS, len(str(count)))}d}.png"


def write_zip(
    target: Path,
    source: InputContainer,
    upscaled: UpscaledVideo,
    tag: str,
    on_progress: Callable[[], None] = lambda: None,
) -> None:
    """Write the segments' pictures to `target`, one at a time. `source` gives its metadata and chapters."""
    count = len(upscaled.table)
    facts = _facts(source, upscaled, tag)
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        archive.comment = tag.encode()
        archive.writestr(_entry(TIMES_NAME), _times_text(upscaled.table))
        archive.writestr(_entry(FACTS_NAME), facts.model_dump_json(indent=1) + "\n")
        for number, picture in enumerate(_pictures(upscaled.segments)):
            on_progress()
            archive.writestr(_entry(picture_name(number, count)), picture)


def check_zip(target: Path, upscaled: UpscaledVideo, on_progress: Callable[[], None] = lambda: None) -> None:
    """Read the finished archive back: every picture whole, of its size, as it was encoded, at its time.

    Raises `JobFailureError(VERIFICATION_FAILED)` for any difference. The times are exact: nothing is rounded.
    """
    table, shape = upscaled.table, (upscaled.picture.width, upscaled.picture.height)
    encoded = _pictures(upscaled.segments)
    with zipfile.ZipFile(target) as archive:
        expected = [TIMES_NAME, FACTS_NAME, *(picture_name(number, len(table)) for number in range(len(table)))]
        names = archive.namelist()
        if names != expected:
            raise _failure(f"{len(names)} files are there instead of {len(expected)}, or under other names")
        facts = SequenceFacts.model_validate_json(archive.read(FACTS_NAME))
        if (facts.pts, facts.time_base, facts.last_duration) != (table.pts, table.time_base, table.last_duration):
            raise _failure(f"{FACTS_NAME} holds other times")
        if archive.read(TIMES_NAME).decode() != _times_text(table):
            raise _failure(f"{TIMES_NAME} holds other times")
        for name in expected[2:]:
            on_progress()
            content = archive.read(name)
            header = check_png(content, name)
            if (header.width, header.height) != shape:
                raise _failure(f"{name} is {header.width}x{header.height} instead of {shape[0]}x{shape[1]}")
            if content != next(encoded, None):
                raise _failure(f"{name} is not what was encoded")


def unpack(archive_path: Path, folder: Path) -> None:
    """Write the files of an archive that `write_zip` made into `folder`, which must be empty. Durable on return."""
    with zipfile.ZipFile(archive_path) as archive:
        for name in archive.namelist():
            # Ours are plain names; anything else would be a bug, and must not become a path.
            assert _OUR_NAMES.fullmatch(name), name
            with archive.open(name) as packed, (folder / name).open("wb") as file:
                shutil.copyfileobj(packed, file)
                os.fsync(file.fileno())
    fsync_folder(folder)


def files_of_others(folder: Path) -> list[str]:
    """Return the names of what is in `folder` and is nothing that `unpack` writes."""
    return sorted(path.name for path in folder.iterdir() if not _OUR_NAMES.fullmatch(path.name))


def read_folder_tag(folder: Path) -> str | None:
    """Return the mark of a folder that `unpack` filled, None where files of it are missing or it is none of ours."""
    try:
        facts = read_facts((folder / FACTS_NAME).read_bytes())
    except FileNotFoundError:
        return None
    if facts is None:
        return None
    count = len(facts.pts)
    whole = all((folder / picture_name(number, count)).is_file() for number in range(count))
    return facts.made_by if whole else None


def read_facts(content: bytes) -> SequenceFacts | None:
    """Return what a `sequence.json` says, of whoever sent it; None for a file of this name that is not ours."""
    try:
        facts = SequenceFacts.model_validate_json(content)
    except ValidationError:
        return None
    aspect_ratio = facts.sample_aspect_ratio
    if aspect_ratio is not None and not (aspect_ratio > 0 and max(aspect_ratio.as_integer_ratio()) < 2**31):
        return None
    return facts


def _pictures(segments: Sequence[Path]) -> Iterator[bytes]:
    """Yield the PNG files that the segments' packets are, in the order of display: none refers to another."""
    for path in segments:
        with av.open(str(path), "r") as container:
            for packet in container.demux(0):
                if not is_end_mark(packet):
                    yield bytes(packet)


def _facts(source: InputContainer, upscaled: UpscaledVideo, tag: str) -> SequenceFacts:
    table, picture = upscaled.table, upscaled.picture
    chapters = []
    for chapter in kept_chapters(source, upscaled.until):
        unit = chapter["time_base"] or Fraction(1)
        chapters.append(
            Chapter(start=chapter["start"] * unit, end=chapter["end"] * unit, metadata=dict(chapter["metadata"]))
        )
    return SequenceFacts(
        made_by=tag,
        width=picture.width,
        height=picture.height,
        time_base=table.time_base,
        pts=table.pts,
        last_duration=table.last_duration,
        average_rate=upscaled.encoding.average_rate,
        sample_aspect_ratio=picture.sample_aspect_ratio,
        display_matrix=picture.display_matrix,
        colour=picture.colour,
        crop=picture.crop,
        mastering_display=picture.mastering_display,
        content_light=picture.content_light,
        metadata=kept_metadata(source.metadata),
        chapters=tuple(chapters),
    )


def _times_text(table: FrameTable) -> str:
    """Milliseconds to the nanosecond, which is what tools that read this format keep."""
    lines = (_decimal(time * table.time_base * 1000) for time in table.pts)
    return "\n".join([_TIMES_HEADER, *lines]) + "\n"


def _decimal(value: Fraction) -> str:
    """The nearest decimal with six places, without zeros at its end."""
    scaled = round(value * 10**6)
    sign, (whole, rest) = "-" if scaled < 0 else "", divmod(abs(scaled), 10**6)
    return f"{sign}{whole}.{rest:06d}".rstrip("0").rstrip(".")


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, _THE_PAST)
    entry.create_system = _UNIX
    entry.external_attr = _PLAIN_FILE
    return entry


def _failure(what: str) -> JobFailureError:
    return JobFailureError(FailureCode.VERIFICATION_FAILED, f"the finished pictures did not pass their check: {what}")
