"""The mark that a finished file carries about its own making, where each container has a place for it."""

import zipfile
from pathlib import Path

import av

from worker.contract.job import Container

_TAG_START = "twostep-vsr "
# What FFmpeg writes as the encoder in mp4; in mov, where only Apple's list of keys is read back, a key of that list.
_MP4_KEY = "encoding_tool"
# Matroska's official tag for this. Its own "encoder" names the muxer, and FFmpeg lets nobody else write it.
_MATROSKA_KEY = "ENCODER_SETTINGS"
_KEYS_READ = ("encoding_tool", "encoder", "encoder_settings")


def tag_text(identity: str) -> str:
    return f"{_TAG_START}{identity}"


def tag_metadata(container: Container, tag: str) -> dict[str, str]:
    """Return the container metadata that carries `tag`."""
    return {_MP4_KEY if container in (Container.MP4, Container.MOV) else _MATROSKA_KEY: tag}


def read_tag(path: Path) -> str | None:
    """Return the tag of a file that this project made, None for any other file."""
    if zipfile.is_zipfile(path):
        return _read_comment(path)
    try:
        with av.open(
            str(path),
            "r",
            options={"format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm", "protocol_whitelist": "file"},
            metadata_errors="replace",
        ) as container:
            metadata = {key.lower(): value for key, value in container.metadata.items()}
    except (av.FFmpegError, ValueError, IndexError):
        return None
    values = [metadata.get(key, "") for key in _KEYS_READ]
    return next((value for value in values if value.startswith(_TAG_START)), None)


def _read_comment(path: Path) -> str | None:
    """A zip of pictures carries its mark as the archive's comment."""
    try:
        with zipfile.ZipFile(path) as archive:
            comment = archive.comment.decode()
    except (zipfile.BadZipFile, UnicodeDecodeError):
        return None
    return comment if comment.startswith(_TAG_START) else None
