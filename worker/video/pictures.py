"""PNG files: what they say of themselves, and their pixels, under the rules for strangers' files (`source.py`)."""

import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import av

from worker.contract.failure import FailureCode, JobFailureError
from worker.video.colour import ToRgb
from worker.video.frames import RgbFrame
from worker.video.source import size_limit_option
from worker.video.values import Colour, Picture

_RGB_MATRIX, _UNKNOWN, _FULL_RANGE = 0, 2, 2

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_IHDR_BYTES = 13
_PALETTE = 3
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Of each colour type: grey, RGB, palette, grey and alpha, RGBA."""
_MAX_OTHER_BYTES = 8 * 1024 * 1024
"""What a file may hold beside its pixels: colour profiles, texts, a preview."""


@dataclass(frozen=True)
class PngHeader:
    """What a PNG file says of itself before its pixels."""

    width: int
    height: int
    bit_depth: int
    colour_type: int
    """0 grey, 2 RGB, 3 palette, 4 grey and alpha, 6 RGBA."""
    has_transparency: bool
    """Of its own, or as one colour or entries of the palette that are (tRNS)."""

    @property
    def pixel_format(self) -> tuple[int, int, bool]:
        """Equal for files that decoders give the same pixel format."""
        if self.colour_type == _PALETTE:
            return 8, _PALETTE, False  # whatever the colours in it
        return self.bit_depth, self.colour_type, self.has_transparency


def png_header(start: bytes, name: str) -> PngHeader:
    """Read the header at the start of a PNG file; transparency is known only to `check_png`.

    Raises `JobFailureError(NOT_A_VIDEO)` for what does not begin like a PNG file.
    """
    if start[:8] != _SIGNATURE or start[8:16] != _IHDR_BYTES.to_bytes(4, "big") + b"IHDR" or len(start) < 33:
        raise JobFailureError(FailureCode.NOT_A_VIDEO, f"{name} is not a PNG picture")
    width, height = int.from_bytes(start[16:20], "big"), int.from_bytes(start[20:24], "big")
    bit_depth, colour_type = start[24], start[25]
    if width == 0 or height == 0 or colour_type not in _CHANNELS or bit_depth not in (1, 2, 4, 8, 16):
        raise JobFailureError(FailureCode.NOT_A_VIDEO, f"{name} is not a PNG picture: its header makes no sense")
    return PngHeader(width, height, bit_depth, colour_type, colour_type in (4, 6))


def largest_png_bytes(header: PngHeader) -> int:
    """Return the most that a PNG file of this header can need: its pixels not compressed at all, and the rest."""
    raw_bytes = header.height * (1 + (header.width * header.bit_depth * _CHANNELS[header.colour_type] + 7) // 8)
    return raw_bytes + raw_bytes // 8 + _MAX_OTHER_BYTES


def check_png(content: bytes, name: str) -> PngHeader:
    """Go through the file from its first chunk to its last, and compare all checksums. Pixels are not decoded.

    Raises `JobFailureError`: `NOT_A_VIDEO` for what is no PNG file, `CORRUPT_FRAME` for one that is damaged or cut off.
    """
    header = png_header(content[:33], name)
    check_compressed_chunks(content, name)
    place = len(_SIGNATURE)
    kind = b""
    transparent = header.has_transparency
    view = memoryview(content)
    while kind != b"IEND":
        length = int.from_bytes(view[place : place + 4], "big")
        kind = bytes(view[place + 4 : place + 8])
        end = place + 8 + length
        if end + 4 > len(content):
            raise JobFailureError(FailureCode.CORRUPT_FRAME, f"{name} is cut off")
        if zlib.crc32(view[place + 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
            raise JobFailureError(FailureCode.CORRUPT_FRAME, f"{name} is damaged: a checksum in it is wrong")
        transparent |= kind == b"tRNS"
        place = end + 4
    return PngHeader(header.width, header.height, header.bit_depth, header.colour_type, transparent)


def check_compressed_chunks(content: bytes, name: str) -> None:
    """Raise `JobFailureError(LIMIT_EXCEEDED)` for texts and profiles that would fill the memory once unpacked.

    FFmpeg unpacks them whole before it looks at a pixel, and knows no limit. `content` is a PNG file, or the chunks of
    one alone, as APNG has them; where its structure ends, that is the end.
    """
    view = memoryview(content)
    place = len(_SIGNATURE) if content.startswith(_SIGNATURE) else 0
    left = _MAX_OTHER_BYTES
    while place + 8 <= len(content):
        end = place + 8 + int.from_bytes(view[place : place + 4], "big")
        if bytes(view[place + 4 : place + 8]) in (b"zTXt", b"iCCP"):
            # A name, a zero, a zero for the only way of packing, and what is packed.
            packed = bytes(view[place + 8 : end]).partition(b"\0")[2][1:]
            with suppress(zlib.error):  # which stops FFmpeg as well
                left -= len(zlib.decompressobj().decompress(packed, left + 1))
            if left < 0:
                raise JobFailureError(
                    FailureCode.LIMIT_EXCEEDED,
                    f"{name} holds texts or a profile of more than {_MAX_OTHER_BYTES} bytes, unpacked",
                )
        place = end + 4


def read_png(path: Path, max_pixels: int) -> RgbFrame:
    """The picture as (H, W, 3): uint8, or uint16 where the file is deeper; transparency is dropped.

    Raises `JobFailureError(NOT_A_VIDEO)` for what is no PNG or is larger than `max_pixels`.
    """
    limit = size_limit_option(max_pixels)
    try:
        with av.open(
            str(path.absolute()), "r", format="png_pipe", options={"protocol_whitelist": "file", "max_pixels": limit}
        ) as container:
            container.streams.video[0].codec_context.options = {"max_pixels": limit}
            frame = next(container.decode(video=0))
    except (av.FFmpegError, ValueError, StopIteration) as error:
        raise JobFailureError(
            FailureCode.NOT_A_VIDEO, f"{path.name} is not a PNG of at most {max_pixels} pixels that can be read"
        ) from error
    picture = Picture(
        width=frame.width,
        height=frame.height,
        pixel_format=frame.format.name,
        bit_depth=max(component.bits for component in frame.format.components),
        colour=Colour(
            matrix=_RGB_MATRIX,
            range=_FULL_RANGE,
            primaries=_UNKNOWN,
            transfer=_UNKNOWN,
            conversion="",
            chroma_location="unspecified",
        ),
        sample_aspect_ratio=None,
        display_matrix=None,
        field_order="progressive",
    )
    return ToRgb(picture)(frame).rgb
