"""A Blu-ray subtitle (PGS, .sup) of one white rectangle, made by hand: FFmpeg writes none.

As in the patent US 2009/0185789 A1: every segment is "PG", two times of 90 kHz, a type, a size and its content.
"""

import struct
from pathlib import Path

_PALETTE, _OBJECT, _COMPOSITION, _WINDOW, _END = 0x14, 0x15, 0x16, 0x17, 0x80
_WIDTH, _HEIGHT = 16, 4


def write_pgs(path: Path, shown: list[tuple[float, float]], screen: tuple[int, int]) -> Path:
    """Show the rectangle from the first to the second of each two times, in seconds."""
    content = b""
    for number, (start, end) in enumerate(shown):
        for seconds, objects, state in ((start, 1, 0x80), (end, 0, 0)):
            composition = struct.pack(">HHBHBBBB", *screen, 0x10, 2 * number + (objects == 0), state, 0, 0, objects)
            if objects:
                composition += struct.pack(">HBBHH", 0, 0, 0, 8, 8)
            window = struct.pack(">BBHHHH", 1, 0, 8, 8, _WIDTH, _HEIGHT)
            segments = [(_COMPOSITION, composition), (_WINDOW, window)]
            if objects:
                segments += [(_PALETTE, struct.pack(">BBBBBBB", 0, 0, 1, 235, 128, 128, 255)), (_OBJECT, _rectangle())]
            segments.append((_END, b""))
            content += b"".join(
                b"PG" + struct.pack(">IIBH", round(seconds * 90000), 0, kind, len(body)) + body
                for kind, body in segments
            )
    path.write_bytes(content)
    return path


def _rectangle() -> bytes:
    # A run of colour 1: a zero, then 10 and the length in six bits, then the colour; a line ends with two zeros.
    line = bytes([0, 0x80 | _WIDTH, 1, 0, 0])
    runs = line * _HEIGHT
    return (
        struct.pack(">HBB", 0, 0, 0xC0)
        + (len(runs) + 4).to_bytes(3, "big")
        + struct.pack(">HH", _WIDTH, _HEIGHT)
        + runs
    )
