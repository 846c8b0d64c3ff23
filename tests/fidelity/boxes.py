"""Bytes that no muxer of Debian's writes and no prober of it shows: read and written by hand."""

import struct
from pathlib import Path

_PARENTS = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd")


def box(path: Path, kind: bytes) -> bytes | None:
    """The content of the first box of a kind in a QuickTime file, None where there is none."""
    content = path.read_bytes()
    place = content.find(kind, content.index(b"moov"))
    if place < 0:
        return None
    [size] = struct.unpack_from(">I", content, place - 4)
    return content[place + 4 : place - 4 + size]


def insert_into_sample_entry(path: Path, codec: bytes, child: bytes) -> None:
    """Put one more box (its kind and content) at the end of the first track's description of its samples.

    The index must lie behind the samples, as FFmpeg writes it: then no sample moves.
    """
    content = bytearray(path.read_bytes())
    assert content.index(b"mdat") < content.index(b"moov")
    child = struct.pack(">I", len(child) + 4) + child
    start = content.index(b"moov")
    entry = content.index(codec, content.index(b"stsd", start))
    [entry_size] = struct.unpack_from(">I", content, entry - 4)
    content[entry - 4 + entry_size : entry - 4 + entry_size] = child
    for kind in (*_PARENTS, codec):
        start = content.index(kind, start)
        [size] = struct.unpack_from(">I", content, start - 4)
        struct.pack_into(">I", content, start - 4, size + len(child))
    path.write_bytes(content)


def matroska_unsigned(path: Path, name: bytes) -> int:
    """The number in the first element of this name in the tracks of a Matroska file; 0 where there is none."""
    content = path.read_bytes()
    tracks = content[content.index(b"\x16\x54\xae\x6b") : content.index(b"\x1f\x43\xb6\x75")]
    place = tracks.find(name)
    if place < 0:
        return 0
    size = tracks[place + 2] & 0x7F
    return int.from_bytes(tracks[place + 3 : place + 3 + size], "big")
