"""One row of the matrix: a property of videos, the writer of a video that has it, and the checker of the result."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.fidelity.witness import Witness
from worker.contract.job import JobOptions

SEGMENT_FRAMES = 8


def options(**chosen: object) -> JobOptions:
    """The pixel repeater, quick and without loss, unless something else is `chosen`."""
    usual = {"preset": "repeat-pixels", "encoder_preset": "ultrafast", "quality": "lossless"}
    return JobOptions.model_validate(usual | chosen)


@dataclass(frozen=True)
class Upscaled:
    """What the product made of a source, as the witness finds both."""

    source: Witness
    result: Witness
    report: dict[str, Any]

    @property
    def report_texts(self) -> list[str]:
        """Everything that the report says in words."""
        return list(_texts(self.report))


@dataclass(frozen=True)
class Row:
    write: Callable[[Path], Path]
    """Writes a video into a folder, makes sure that it has the property, and returns its path."""
    check: Callable[[Upscaled], None] = lambda upscaled: None
    """What is asked of the result beyond `comparison.assert_kept`."""
    suffix: str = ""
    """Of the result; empty: the source's own."""
    options: JobOptions = field(default_factory=options)
    changes: Mapping[str, object] = field(default_factory=dict)
    """Facts of the video stream in ffprobe's words that may not stay, with what they become."""
    outcomes: Mapping[int, str] = field(default_factory=dict)
    """What becomes of the source's other streams, by index, where they are not copied."""
    within_levels: float = 1.0
    """How far flat colours may be off, in levels of the coarser of both depths."""
    compare_as: str | None = None
    """A pixel format to compare in, where the result has another than the source."""
    compares_picture: bool = True
    """Whether the result shows the source's own pixels; if not, `check` compares it with what it shall show."""
    video_index: int | None = None
    """Of the video stream that is upscaled, where it is not the first marked as default."""
    name: str = ""

    @property
    def id(self) -> str:
        return self.name or self.write.__name__.removeprefix("write_")


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
