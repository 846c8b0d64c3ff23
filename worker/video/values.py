"""The words that the video modules speak: plain frozen values, with time as integers and rationals throughout."""

from fractions import Fraction
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

from worker.contract.job import VideoCodec

Rational = Annotated[
    Fraction,
    BeforeValidator(Fraction),
    PlainSerializer(lambda value: f"{value.numerator}/{value.denominator}", return_type=str),
]
"""A fraction that JSON holds exactly, as "30000/1001"."""


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)


class Colour(Frozen):
    """How the numbers of a picture become colours: the code points of ITU-T H.273, as in FFmpeg. 2: unknown."""

    matrix: int
    range: int = Field(description="0 unknown, 1 limited, 2 full")
    primaries: int
    transfer: int
    conversion: str = Field(
        description="FFmpeg's name of the matrix to convert with: the tagged one, or what players take when untagged."
    )
    chroma_location: str = Field(
        description='Where chroma samples lie: "left", "center", "topleft", ...; "unspecified"'
    )


class Picture(Frozen):
    """The shape of every frame of one video stream, as stored (before any display rotation)."""

    width: int
    height: int
    pixel_format: str
    bit_depth: int
    colour: Colour
    sample_aspect_ratio: Rational | None
    display_matrix: tuple[int, ...] | None = Field(description="Nine integers, 16.16 and 2.30 fixed point, or None.")
    interlaced: bool


class FrameTable(Frozen):
    """Every frame of a video stream in the order of display, so that any later decoding can be proven the same."""

    pts: tuple[int, ...] = Field(description="Presentation times in `time_base` units, strictly increasing.")
    stamps: tuple[int, ...] | None = Field(
        description="What the decoder stamps the frames with, where a container (ASF) makes that differ from `pts`."
    )
    crc32: tuple[int, ...] = Field(description="zlib.crc32 over the visible bytes of all planes.")
    time_base: Rational
    last_duration: int = Field(description="Duration of the last frame in `time_base` units.")

    def __len__(self) -> int:
        return len(self.pts)

    def stamp(self, frame: int) -> int:
        return self.pts[frame] if self.stamps is None else self.stamps[frame]

    def seconds(self, frame: int) -> float:
        return float(self.pts[frame] * self.time_base)


class Encoding(Frozen):
    """Everything that decides the bytes of an encoded segment, beside its frames."""

    codec: VideoCodec
    crf: int
    encoder_preset: str
    average_rate: Rational = Field(description="Frames per second, for rate control only; times come from the frames.")
    time_base: Rational


class OtherStream(Frozen):
    """A stream of the source that is not upscaled."""

    index: int
    type: str
    codec: str | None
    language: str | None = None
    attached_picture: bool = False


class Survey(Frozen):
    """All that one reading of the source told."""

    format_names: tuple[str, ...] = Field(description='FFmpeg\'s names for the container, as ("matroska", "webm").')
    is_quicktime: bool = Field(description="The mp4 family's QuickTime brand: a .mov file.")
    is_webm: bool = Field(description="The Matroska family's WebM document type.")
    stream_index: int
    codec: str
    picture: Picture
    frames: FrameTable
    average_rate: Rational
    others: tuple[OtherStream, ...]
    notes: tuple[str, ...] = Field(description="What a reader of the report should know about the source.")
