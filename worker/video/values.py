"""The words that the video modules speak: plain frozen values, with time as integers and rationals throughout."""

import re
from fractions import Fraction
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

from worker.contract.job import VideoCodec

_FRACTION_TEXT = re.compile(r"-?\d{1,30}/[1-9]\d{0,29}")


def _fraction(value: object) -> Fraction:
    """Take text in one form only: `Fraction` would compute "1e999999999" for hours."""
    if isinstance(value, (Fraction, int)):
        return Fraction(value)
    if isinstance(value, str) and _FRACTION_TEXT.fullmatch(value):
        return Fraction(value)
    raise ValueError("not a fraction like 30000/1001")


Rational = Annotated[
    Fraction,
    BeforeValidator(_fraction),
    PlainSerializer(lambda value: f"{value.numerator}/{value.denominator}", return_type=str),
]
"""A fraction that JSON holds exactly, as "30000/1001"."""


MAX_LANGUAGE_LETTERS = 35
"""What BCP 47 (RFC 5646, 4.4.1) advises to have room for; FFmpeg hands on whatever the file holds, megabytes too."""
_MAX_STREAMS = 4096
"""FFmpeg itself opens no more than a thousand."""

Name = Annotated[str, Field(max_length=64)]
"""FFmpeg's for a codec or format. A plan comes from a process that met a stranger's file, and parts of it go far."""
Words = Annotated[str, Field(max_length=2000)]


def shown(text: str) -> str:
    """Return a stranger's text as a message can hold it: printable, and at most 80 letters."""
    printable = "".join(letter if letter.isprintable() else "?" for letter in text[:81])
    return shortened(printable, 80)


def shortened(text: str, letters: int) -> str:
    return text if len(text) <= letters else f"{text[: letters - 3]}..."


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


class Crop(Frozen):
    """The clean aperture: how many pixels at each edge of the stored picture are not meant to be seen."""

    left: int
    right: int
    top: int
    bottom: int


class MasteringDisplay(Frozen):
    """SMPTE ST 2086: the display that HDR video was graded on. CIE 1931 coordinates, and candelas per square metre."""

    primaries: tuple[tuple[Rational, Rational], tuple[Rational, Rational], tuple[Rational, Rational]] | None = Field(
        description="x and y of red, green and blue."
    )
    white_point: tuple[Rational, Rational] | None
    min_luminance: Rational | None
    max_luminance: Rational | None


class ContentLight(Frozen):
    """CTA-861.3: the brightest pixel and the brightest frame on average, in candelas per square metre."""

    max_content: int
    max_frame_average: int


class Picture(Frozen):
    """The shape of every frame of one video stream, as stored (before any display rotation)."""

    width: int
    height: int
    pixel_format: Name
    bit_depth: int
    colour: Colour
    sample_aspect_ratio: Rational | None
    display_matrix: tuple[int, ...] | None = Field(description="Nine integers, 16.16 and 2.30 fixed point, or None.")
    field_order: Literal["progressive", "top_first", "bottom_first"] = Field(
        description="Not progressive: each frame is woven of fields of two times, this one being the first."
    )
    has_alpha: bool = False
    crop: Crop | None = None
    mastering_display: MasteringDisplay | None = None
    content_light: ContentLight | None = None


class FrameTable(Frozen):
    """Every frame of a video stream in the order of display, so that any later decoding can be proven the same."""

    pts: tuple[int, ...] = Field(description="Presentation times in `time_base` units, strictly increasing.")
    stamps: tuple[int, ...] | None = Field(
        description="What the decoder stamps the frames with, where a container (ASF) makes that differ from `pts`."
    )
    crc32: tuple[int, ...] = Field(description="zlib.crc32 over the visible bytes of all planes.")
    time_base: Rational
    last_duration: int = Field(description="Duration of the last frame in `time_base` units.")
    concealed: tuple[int, ...] = Field(
        (), description="Frames that could not be decoded, by number: there is something else in their place."
    )

    taken_as_it_comes: bool = Field(
        False, description="What is damaged was concealed, and decoded by one thread: so it comes out the same again."
    )
    progressive: tuple[int, ...] = Field(
        (), description="Frames, by number, that are whole pictures in a video of fields: not deinterlaced."
    )

    def __len__(self) -> int:
        return len(self.pts)

    def stamp(self, frame: int) -> int:
        return self.pts[frame] if self.stamps is None else self.stamps[frame]

    def seconds(self, frame: int) -> float:
        return float(self.pts[frame] * self.time_base)


class Encoding(Frozen):
    """Everything that decides the bytes of an encoded segment, beside its frames."""

    codec: VideoCodec
    crf: int | None = Field(description="None: the codec has no such number, or the result is lossless.")
    encoder_preset: str
    quality: Literal["small", "balanced", "high", "lossless"] = "balanced"
    encoder_options: str = Field("", description="The user's own, checked: as JobOptions has them.")
    average_rate: Rational = Field(description="Frames per second, for rate control only; times come from the frames.")
    time_base: Rational


class OtherStream(Frozen):
    """A stream of the source that is not upscaled."""

    index: int
    type: Name
    codec: Name | None
    language: Annotated[str, Field(max_length=MAX_LANGUAGE_LETTERS)] | None = None
    attached_picture: bool = False


class Survey(Frozen):
    """All that one reading of the source told."""

    format_names: tuple[Name, ...] = Field(
        max_length=64, description='FFmpeg\'s names for the container, as ("matroska", "webm").'
    )
    is_quicktime: bool = Field(description="The mp4 family's QuickTime brand: a .mov file.")
    is_webm: bool = Field(description="The Matroska family's WebM document type.")
    stream_index: int
    codec: Name
    picture: Picture
    frames: FrameTable
    average_rate: Rational
    others: tuple[OtherStream, ...] = Field(max_length=_MAX_STREAMS)
    cuts: tuple[int, ...] = Field((), description="Frames that begin another shot, by number; the first frame is none.")
    cannot_keep: tuple[Words, ...] = Field(
        (),
        max_length=_MAX_STREAMS,
        description="What the source holds and no result can, in words: the user has to agree before any work.",
    )
    notes: tuple[Words, ...] = Field(
        max_length=_MAX_STREAMS, description="What a reader of the report should know about the source."
    )
