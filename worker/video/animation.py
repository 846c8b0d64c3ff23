"""What animated pictures say of themselves that no video can hold: how often they are played."""

import re
from pathlib import Path

_HEAD_BYTES = 64 * 1024
"""Both formats say it before the first picture; colour profiles may lie before that."""
_GIF_LOOPS = re.compile(rb"\x21\xff\x0b(?:NETSCAPE2\.0|ANIMEXTS1\.0)\x03\x01(..)", re.DOTALL)
_APNG_CONTROL = re.compile(rb"\0\0\0\x08acTL.{4}(.{4})", re.DOTALL)


def animation_note(source: Path, format_name: str) -> str | None:
    """Return what a reader of the report should know of a GIF or APNG; None where it is played once, and for video."""
    if format_name not in ("gif", "apng"):
        return None
    with source.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if format_name == "gif":
        found = _GIF_LOOPS.search(head)
        # GIF counts the repetitions, APNG the times.
        times = 1 if found is None else int.from_bytes(found[1], "little") + 1 if any(found[1]) else 0
    else:
        found = _APNG_CONTROL.search(head)
        times = 1 if found is None else int.from_bytes(found[1], "big")
    if times == 1:
        return None
    often = f"{times} times" if times else "over and over"
    return f"the source is an animation that plays {often}: a video plays once, players can be told to repeat it"
