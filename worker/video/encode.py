"""RGB frames into one segment file. The same frames give the same bytes, with any number of cores."""

import io
import os
import platform
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
from av.container import OutputContainer
from av.video.stream import VideoStream

from worker.contract.failure import FailureCode, JobFailureError
from worker.contract.job import VideoCodec
from worker.video.colour import FromRgb
from worker.video.frames import Frame
from worker.video.values import Encoding, Picture

ENCODER_THREADS = 2
"""Part of the result, not of the machine: x264 gives other bytes for other numbers of threads."""

_ENCODERS = {VideoCodec.H264: "libx264", VideoCodec.HEVC: "libx265", VideoCodec.AV1: "libsvtav1"}
_SVT_PRESETS = {"ultrafast": 12, "veryfast": 11, "faster": 10, "fast": 9, "medium": 8, "slow": 6, "veryslow": 4}
# The last vector extension that all current x86 servers share. Above it, encoders choose other code by processor, and
# with AVX-512 one x264 run in six gave other bytes for the same frames.
SAME_CODE_EVERYWHERE = ["asm=avx2"] if platform.machine() in ("x86_64", "AMD64") else []
_MAX_GOP_FRAMES = 240
_MIN_AV1_SIDE = 32  # SVT-AV1 accepts less, then waits for ever on 16x128 and the like


def encode_frames(
    frames: Iterable[Frame], pts: Sequence[int], picture: Picture, encoding: Encoding, target: Path, made_by: str
) -> Iterator[int]:
    """Encode `frames`, to be shown at `pts`, into a file at `target`; yield the number of frames taken so far.

    The file is complete when the generator ends. It starts with a key frame and refers to nothing outside itself, so
    segments can be put one behind the other. `made_by` is kept in it, as `made_by` reads it.
    """
    from_rgb = FromRgb(picture)
    # bitexact keeps versions and dates out of the file.
    with av.open(str(target), "w", format="mp4", container_options={"fflags": "+bitexact"}) as container:
        container.metadata["encoding_tool"] = made_by
        stream = _add_stream(container, picture, encoding)
        for number, (shown_at, picture_of_frame) in enumerate(zip(pts, frames, strict=True)):
            frame = from_rgb(picture_of_frame)
            frame.pts = shown_at - pts[0]
            frame.time_base = encoding.time_base
            container.mux(stream.encode(frame))
            yield number + 1
        container.mux(stream.encode(None))


def segment_suffix(encoding: Encoding) -> str:
    """The suffix of the file that `encode_frames` writes: of a container that holds what this codec makes."""
    return ".mp4"


def check_encoder(picture: Picture, encoding: Encoding) -> None:
    """Raise `JobFailureError(UNSUPPORTED_OUTPUT)` if the encoder does not take this picture; tried in memory."""
    refusal = JobFailureError(
        FailureCode.UNSUPPORTED_OUTPUT,
        f"the {encoding.codec} encoder does not take {picture.width}x{picture.height}: choose another codec",
    )
    if encoding.codec is VideoCodec.AV1 and min(picture.width, picture.height) < _MIN_AV1_SIDE:
        raise refusal
    try:
        with av.open(io.BytesIO(), "w", format="mp4") as container:
            _add_stream(container, picture, encoding)
            container.start_encoding()
    except (av.FFmpegError, ValueError) as error:
        raise refusal from error


def _add_stream(container: OutputContainer, picture: Picture, encoding: Encoding) -> VideoStream:
    stream = container.add_stream(_ENCODERS[encoding.codec], rate=encoding.average_rate)
    assert isinstance(stream, VideoStream)
    stream.width, stream.height, stream.pix_fmt = picture.width, picture.height, picture.pixel_format
    # A muxer's time base is one over something; the encoder keeps the source's own.
    stream.time_base = Fraction(1, encoding.time_base.denominator)
    context = stream.codec_context
    context.time_base = encoding.time_base
    context.sample_aspect_ratio = picture.sample_aspect_ratio or Fraction(0)
    context.gop_size = _MAX_GOP_FRAMES
    colour = picture.colour
    context.colorspace, context.color_range = colour.matrix, colour.range
    context.color_primaries, context.color_trc = colour.primaries, colour.transfer
    options = _encoder_options(encoding)
    if colour.chroma_location != "unspecified":
        options["chroma_sample_location"] = colour.chroma_location
    context.thread_count = ENCODER_THREADS
    context.options = options
    return stream


def _encoder_options(encoding: Encoding) -> dict[str, str]:
    options = {"crf": str(encoding.crf), "preset": encoding.encoder_preset}
    match encoding.codec:
        case VideoCodec.H264:
            # stitchable: headers that do not depend on the content, so that segments share them.
            options["x264-params"] = ":".join(["stitchable=1", "open-gop=0", *SAME_CODE_EVERYWHERE])
        case VideoCodec.HEVC:
            options["x265-params"] = ":".join(
                [f"pools={ENCODER_THREADS}", "frame-threads=1", "open-gop=0", "log-level=error", *SAME_CODE_EVERYWHERE]
            )
        case VideoCodec.AV1:
            options["preset"] = str(_SVT_PRESETS[encoding.encoder_preset])
            options["svtav1-params"] = ":".join([f"lp={ENCODER_THREADS}", *SAME_CODE_EVERYWHERE])
            # SVT-AV1 prints its settings to stderr, over any progress bar, unless this says: errors only.
            os.environ.setdefault("SVT_LOG", "1")
    return options
