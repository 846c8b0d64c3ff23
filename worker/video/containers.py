"""Which container can hold what. The muxers themselves are asked, by a dry run in memory; no table has to be kept."""

import io
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
from av.codec.context import CodecContext
from av.container import InputContainer, OutputContainer
from av.stream import Discard, Disposition, Stream

from worker.contract.job import Container, VideoCodec
from worker.video.source import open_source
from worker.video.values import Survey

FORMATS = {
    Container.MP4: "mp4",
    Container.MOV: "mov",
    Container.MKV: "matroska",
    Container.WEBM: "webm",
    Container.ZIP: "mov",
}
"""Our names to FFmpeg's muxers. A zip is none: pictures lie in a mov until they are packed."""


def has_edit_lists(container: Container) -> bool:
    """Say whether the container can hold packets that the viewer shall not see or hear."""
    return container in (Container.MP4, Container.MOV)


def holds_codec(container: Container, codec: VideoCodec) -> bool:
    """Say whether the result can be this codec in this container."""
    if Container.ZIP is container or codec is VideoCodec.PNG:
        return container is Container.ZIP and codec is VideoCodec.PNG
    try:
        with in_memory(container) as output:
            output.add_mux_stream(codec.value, width=64, height=64, time_base=Fraction(1, 1000))
            output.start_encoding()
    except av.InvalidDataError:
        return True  # Matroska misses the encoder's header, and so knows the codec
    except (av.ArgumentError, ValueError):
        return False
    return True


def own_container(survey: Survey, source_suffix: str) -> Container | None:
    """Return the container that the source itself has, or None if we do not write it.

    mp4 and mov, and mkv and webm, are each one family to FFmpeg. Inside a family the name's suffix decides, as it is
    what the user sees; without a telling suffix the file's own brand does.
    """
    suffix = source_suffix.lower().lstrip(".")
    if Container.ZIP.value in survey.format_names:
        return Container.ZIP
    if "mp4" in survey.format_names:
        return Container.MOV if suffix == "mov" or (suffix != "mp4" and survey.is_quicktime) else Container.MP4
    if "matroska" in survey.format_names:
        return Container.WEBM if suffix == "webm" or (suffix != "mkv" and survey.is_webm) else Container.MKV
    return None


def copy_problems(source: Path, survey: Survey, container: Container, max_pixels: int) -> dict[int, str | None]:
    """Return for every other stream of the source why `container` cannot hold it, or None where it can."""
    with open_source(source, max_pixels) as opened:
        return {other.index: _copy_problem(opened, opened.streams[other.index], container) for other in survey.others}


def chapter_tracks(source: Path, max_pixels: int) -> set[int]:
    """Return the text tracks of the mp4 family that hold its chapters' titles. FFmpeg has read and set them aside."""
    with open_source(source, max_pixels) as opened:
        return {stream.index for stream in opened.streams if stream.type == "data" and stream.discard == Discard.all}


def _copy_problem(source: InputContainer, stream: Stream, container: Container) -> str | None:
    if container is Container.ZIP:
        return "a zip of pictures cannot hold it"
    if stream.disposition & Disposition.attached_pic and container is Container.MKV:
        return None  # kept as an attachment, which is how Matroska keeps pictures
    if stream.disposition & Disposition.attached_pic and container is Container.WEBM:
        return "webm cannot hold pictures"
    if stream.type == "attachment":
        return None if container is Container.MKV else f"{container} cannot hold attachments"
    if cast("CodecContext | None", stream.codec_context) is None and stream.type not in ("data", "attachment"):
        return "its codec is unknown"
    if stream.type == "data" and container in (Container.MKV, Container.WEBM):
        return f"{container} cannot hold data streams"
    try:
        with in_memory(container) as output:
            output.add_stream_from_template(stream)
            output.start_encoding()
    except (av.FFmpegError, ValueError):
        return f"{container} cannot hold {stream.codec_context.codec.canonical_name if stream.codec_context else 'it'}"
    return None


def in_memory(container: Container) -> OutputContainer:
    """Open a file that is written nowhere, to try what its muxer takes."""
    return av.open(io.BytesIO(), "w", format=FORMATS[container])
