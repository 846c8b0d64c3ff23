"""The shape of pixels in Matroska and WebM: the display size in the header.

FFmpeg's muxer takes it from a field of the stream that PyAV cannot set. So it is put into the finished file: the header
grows into the space that the muxer leaves free before it, and nothing behind it moves. Names are those of RFC 9559.
"""

import math
import zlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from worker.video.values import Crop, Picture

_SEGMENT, _SEEK_HEAD, _VOID, _INFO, _TRACKS = 0x18538067, 0x114D9B74, 0xEC, 0x1549A966, 0x1654AE6B
_SEEK, _SEEK_ID, _SEEK_POSITION = 0x4DBB, 0x53AB, 0x53AC
_TRACK_ENTRY, _TRACK_NUMBER, _VIDEO, _CRC_32 = 0xAE, 0xD7, 0xE0, 0xBF
_DISPLAY_WIDTH, _DISPLAY_HEIGHT, _DISPLAY_UNIT = 0x54B0, 0x54BA, 0x54B2
_HEADER_READ_BYTES = 4 * 1024 * 1024
_LONGEST_ELEMENT_HEAD_BYTES = 12


class _Element(NamedTuple):
    name: int
    begin: int
    content: int
    end: int


def write_aspect_ratio(path: Path, track_number: int, picture: Picture) -> bool:
    """Give the video track its display size; return False, with the file as it was, where there is no room for it."""
    with path.open("r+b") as file:
        head = file.read(_HEADER_READ_BYTES)
        segment = next(element for element in _elements(head, 0, len(head)) if element.name == _SEGMENT)
        children = list(_elements(head, segment.content, len(head)))[:4]
        if [child.name for child in children] != [_SEEK_HEAD, _VOID, _INFO, _TRACKS] or children[-1].end > len(head):
            return False
        seek_head, void, info, tracks = children
        new_tracks = _with_display_size(head, tracks, track_number, _display_size(picture))
        growth = len(new_tracks) - (tracks.end - tracks.begin)
        void_bytes = void.end - void.begin - growth
        if void_bytes < _LONGEST_ELEMENT_HEAD_BYTES:
            return False
        file.seek(segment.content)
        file.write(_moved(head, seek_head, growth))
        file.write(_element(_VOID, bytes(void_bytes - len(_element(_VOID, b"")))))
        file.write(head[info.begin : info.end] + new_tracks)
    return True


def _display_size(picture: Picture) -> bytes:
    """Return the size in whole pixels that has exactly the right shape and is next to the picture's own."""
    crop = picture.crop or Crop(left=0, right=0, top=0, bottom=0)
    height = picture.height - crop.top - crop.bottom
    shape = Fraction(picture.width - crop.left - crop.right, height) * (picture.sample_aspect_ratio or 1)
    times = max(1, round(height / shape.denominator))
    sizes = ((_DISPLAY_WIDTH, times * shape.numerator), (_DISPLAY_HEIGHT, times * shape.denominator))
    return b"".join(_element(name, value.to_bytes(4, "big")) for name, value in sizes)


def _with_display_size(head: bytes, tracks: _Element, track_number: int, display_size: bytes) -> bytes:
    entries = []
    for entry in _elements(head, tracks.content, tracks.end):
        parts = list(_elements(head, entry.content, entry.end)) if entry.name == _TRACK_ENTRY else []
        numbers = [int.from_bytes(head[part.content : part.end]) for part in parts if part.name == _TRACK_NUMBER]
        if numbers != [track_number]:
            entries.append((entry.name, head[entry.begin : entry.end]))
            continue
        content = b"".join(
            _with(head, part, display_size) if part.name == _VIDEO else head[part.begin : part.end] for part in parts
        )
        entries.append((entry.name, _element(_TRACK_ENTRY, content)))
    return _element(_TRACKS, _checked(entries))


def _with(head: bytes, video: _Element, display_size: bytes) -> bytes:
    kept = [
        head[part.begin : part.end]
        for part in _elements(head, video.content, video.end)
        if part.name not in (_DISPLAY_UNIT, _DISPLAY_WIDTH, _DISPLAY_HEIGHT)
    ]
    return _element(_VIDEO, b"".join(kept) + display_size)


def _moved(head: bytes, seek_head: _Element, growth: int) -> bytes:
    """Return the table of contents, as long as before, with what lies before the clusters moved to the front."""
    content = bytearray(head[seek_head.content : seek_head.end])
    entries = []
    for seek in _elements(content, 0, len(content)):
        parts = {part.name: part for part in _elements(content, seek.content, seek.end)} if seek.name == _SEEK else {}
        if parts and int.from_bytes(content[parts[_SEEK_ID].content : parts[_SEEK_ID].end]) in (_INFO, _TRACKS):
            place = slice(parts[_SEEK_POSITION].content, parts[_SEEK_POSITION].end)
            position = int.from_bytes(content[place]) - growth
            content[place] = position.to_bytes(place.stop - place.start, "big")
        entries.append((seek.name, bytes(content[seek.begin : seek.end])))
    return head[seek_head.begin : seek_head.content] + _checked(entries)


def _checked(entries: list[tuple[int, bytes]]) -> bytes:
    """Return the entries joined; a checksum, which comes first where there is one, is made anew."""
    content = b"".join(entry for name, entry in entries if name != _CRC_32)
    if entries[0][0] != _CRC_32:
        return content
    checksum = zlib.crc32(content).to_bytes(4, "little")
    return b"\xbf\x84" + checksum + content


def _elements(data: bytes | bytearray, begin: int, end: int) -> Iterator[_Element]:
    while begin < end - 1:
        name_bytes = 9 - data[begin].bit_length()
        at = begin + name_bytes
        size_bytes = 9 - data[at].bit_length()
        size = int.from_bytes(data[at : at + size_bytes]) & ((1 << 7 * size_bytes) - 1)
        content = at + size_bytes
        yield _Element(int.from_bytes(data[begin:at]), begin, content, content + size)
        begin = content + size


def _element(name: int, content: bytes) -> bytes:
    """One element: its name, its size in as few bytes as do, its content."""
    name_bytes = name.to_bytes(math.ceil(name.bit_length() / 8), "big")
    size_bytes = next(count for count in range(1, 9) if len(content) < (1 << 7 * count) - 1)
    return name_bytes + (1 << 7 * size_bytes | len(content)).to_bytes(size_bytes, "big") + content
