"""The user's name for a file: for display and for the download's name, never for a path of ours."""

import re
import unicodedata
from urllib.parse import quote

from worker.contract.job import Container

FALLBACK_NAME = "video"
# Most file systems allow 255 bytes; this leaves room for a suffix and a browser's " (1)".
_MAX_BYTES = 200
# What Windows forbids; a client anywhere must be able to save the file.
_FORBIDDEN = re.compile(r'[<>:"|?*]')


def clean_file_name(name: str) -> str:
    """A single harmless file name: no folders, no control or direction characters, at most 200 bytes; never empty."""
    name = unicodedata.normalize("NFC", name.replace("\\", "/").rpartition("/")[2])
    # Categories C*: control, format (such as right-to-left override), surrogate, unassigned.
    name = "".join(" " if character.isspace() else character for character in name)
    name = "".join(character for character in name if not unicodedata.category(character).startswith("C"))
    name = _FORBIDDEN.sub("_", name)
    stem, dot, suffix = name.rpartition(".")
    if dot and stem and len(suffix.encode()) <= 10:
        name = _shortened(stem, _MAX_BYTES - len(suffix.encode()) - 1) + dot + suffix
    else:
        name = _shortened(name, _MAX_BYTES)
    return name.strip(" .") or FALLBACK_NAME


def result_file_name(source_name: str, container: Container) -> str:
    """`holiday.mov` becomes `holiday_2x.mp4`."""
    stem, dot, _ = source_name.rpartition(".")
    return f"{stem if dot and stem else source_name}_2x.{container}"


def attachment(name: str) -> str:
    """Content-Disposition after RFC 6266: a plain name for old clients, the true one in `filename*`."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    plain = re.sub(r'["\\%;]', "_", plain).strip() or FALLBACK_NAME
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"


def _shortened(text: str, max_bytes: int) -> str:
    return text.encode()[:max_bytes].decode(errors="ignore")
