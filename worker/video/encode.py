"""RGB frames into one segment file. The same frames give the same bytes, with any number of cores."""

import io
import os
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import av
from av.container import OutputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from worker.contract.failure import FailureCode, JobFailureError
from worker.contract.job import VideoCodec
from worker.video.codecs import CODECS
from worker.video.colour import FromRgb
from worker.video.encoder_options import parsed_encoder_options
from worker.video.frames import Frame
from worker.video.side_data import av1_mastering_display, h26x_mastering_display
from worker.video.values import Encoding, Picture

ENCODER_THREADS = 2
"""Part of the result, not of the machine: x264 gives other bytes for other numbers of threads."""

SEGMENT_NUMBERS = Fraction(1, 1000)
"""The time base of Matroska segments, in which packets carry the number of their frame instead of its time."""

# Above 10, SVT-AV1 4.1 makes files that do not decode (measured: 128x96, crf 1 to 5; lossless with any content).
_SVT_PRESETS = {"ultrafast": 10, "veryfast": 10, "faster": 10, "fast": 9, "medium": 8, "slow": 6, "veryslow": 4}
_VPX_SPEEDS = {"ultrafast": 8, "veryfast": 5, "faster": 4, "fast": 3, "medium": 2, "slow": 1, "veryslow": 0}
# The last vector extension that all current x86 servers share. Above it, encoders choose other code by processor, and
# with AVX-512 one x264 run in six gave other bytes for the same frames.
SAME_CODE_EVERYWHERE = ["asm=avx2"] if platform.machine() in ("x86_64", "AMD64") else []
_MAX_GOP_FRAMES = 240
_X265_DELAY_FRAMES = 2


def encode_frames(
    frames: Iterable[Frame], pts: Sequence[int], picture: Picture, encoding: Encoding, target: Path, made_by: str
) -> Iterator[int]:
    """Encode `frames`, to be shown at `pts`, into a file at `target`; yield the number of frames taken so far.

    The file is complete when the generator ends. It starts with a key frame and refers to nothing outside itself, so
    segments can be put one behind the other. `made_by` is kept in it, as `segment_maker` reads it.
    """
    from_rgb = FromRgb(picture)
    encoding = _for_frames(encoding, len(pts))
    codec = CODECS[encoding.codec]
    numbers = {shown_at - pts[0]: number for number, shown_at in enumerate(pts)}
    # bitexact keeps versions and dates out of the file.
    with av.open(str(target), "w", format=codec.segment_format, container_options={"fflags": "+bitexact"}) as container:
        container.metadata["title"] = made_by
        stream = _add_stream(container, picture, encoding)

        def write(packets: "Iterable[av.Packet[VideoStream]]") -> None:
            for packet in packets:
                if codec.segment_format == "matroska":
                    # Its clock is too coarse for the frames' times, which are put back when the segments are joined.
                    # Codecs kept in it put out frames in the order of display.
                    packet.pts = packet.dts = numbers[packet.pts or 0]
                    packet.duration, packet.time_base = 1, SEGMENT_NUMBERS
                container.mux_one(packet)

        for number, (shown_at, picture_of_frame) in enumerate(zip(pts, frames, strict=True)):
            frame = _tagged(from_rgb(picture_of_frame), picture)
            frame.pts = shown_at - pts[0]
            frame.time_base = encoding.time_base
            write(stream.encode(frame))
            yield number + 1
        write(stream.encode(None))


def _for_frames(encoding: Encoding, frames: int) -> Encoding:
    """`encoding`, without B-frames where x265 cannot have them.

    Its decoding times begin two frames before the first, by a measure that it takes at the third. Of fewer frames it
    puts out what lies in memory: another file each time, or one that the muxer refuses (x265 4.2).
    """
    if encoding.codec is not VideoCodec.HEVC or frames > _X265_DELAY_FRAMES:
        return encoding
    chosen = [encoding.encoder_options] if encoding.encoder_options else []
    return encoding.model_copy(update={"encoder_options": ":".join([*chosen, "bframes=0"])})


def segment_suffix(encoding: Encoding) -> str:
    """The suffix of the file that `encode_frames` writes: of a container that holds what this codec makes."""
    return CODECS[encoding.codec].segment_suffix


def check_encoder(picture: Picture, encoding: Encoding) -> None:
    """Raise `JobFailureError(UNSUPPORTED_OUTPUT)` if the encoder does not take this picture; tried in memory."""
    with_options = f" with the encoder options {encoding.encoder_options}" if encoding.encoder_options else ""
    refusal = JobFailureError(
        FailureCode.UNSUPPORTED_OUTPUT,
        f"the {encoding.codec} encoder does not take {picture.width}x{picture.height}{with_options}: "
        f"choose another codec{', or other options' if with_options else ''}",
    )
    if min(picture.width, picture.height) < CODECS[encoding.codec].min_side_px:
        raise refusal
    try:
        with av.open(io.BytesIO(), "w", format=CODECS[encoding.codec].segment_format) as container:
            _add_stream(container, picture, encoding)
            container.start_encoding()
    except (av.FFmpegError, ValueError) as error:
        raise refusal from error


def _add_stream(container: OutputContainer, picture: Picture, encoding: Encoding) -> VideoStream:
    stream = container.add_stream(CODECS[encoding.codec].encoder, rate=encoding.average_rate)
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
    options = _encoder_options(picture, encoding)
    if colour.chroma_location != "unspecified":
        options["chroma_sample_location"] = colour.chroma_location
    context.thread_count = ENCODER_THREADS
    context.options = options
    return stream


def _tagged(frame: VideoFrame, picture: Picture) -> VideoFrame:
    """ProRes and PNG write what the frames say of their colours, the others what the encoder was told."""
    colour = picture.colour
    frame.colorspace, frame.color_range = colour.matrix, colour.range
    frame.color_primaries, frame.color_trc = colour.primaries, colour.transfer
    return frame


def _encoder_options(picture: Picture, encoding: Encoding) -> dict[str, str]:
    chosen = parsed_encoder_options(encoding.codec, encoding.encoder_options)
    match encoding.codec:
        case VideoCodec.H264:
            return _x264_options(picture, encoding, chosen)
        case VideoCodec.HEVC:
            return _x265_options(picture, encoding, chosen)
        case VideoCodec.AV1:
            return _svt_av1_options(picture, encoding, chosen)
        case VideoCodec.VP9:
            return chosen | _vpx_options(picture, encoding)
        case VideoCodec.FFV1:
            # Version 3 has slices, each with a checksum, and every frame stands for itself.
            return chosen | {"level": "3", "g": "1", "slices": "4", "slicecrc": "1", "flags": "+bitexact"}
        case VideoCodec.PRORES:
            return _prores_options(picture, encoding)
        case VideoCodec.PNG:
            return {"pred": "mixed", "flags": "+bitexact"} | chosen


def _x264_options(picture: Picture, encoding: Encoding, chosen: Mapping[str, str]) -> dict[str, str]:
    # stitchable: headers that do not depend on the content, so that segments share them.
    params = ["stitchable=1", "open-gop=0", *SAME_CODE_EVERYWHERE]
    if picture.mastering_display is not None:
        params.append(f"mastering-display={h26x_mastering_display(picture.mastering_display)}")
    if picture.content_light is not None:
        params.append(f"cll={picture.content_light.max_content},{picture.content_light.max_frame_average}")
    rate = {"qp": "0"} if encoding.quality == "lossless" else {"crf": str(encoding.crf)}
    return rate | {"preset": encoding.encoder_preset} | _tune_and_params("x264-params", params, chosen)


def _x265_options(picture: Picture, encoding: Encoding, chosen: Mapping[str, str]) -> dict[str, str]:
    params = [f"pools={ENCODER_THREADS}", "frame-threads=1", "open-gop=0", "log-level=error", *SAME_CODE_EVERYWHERE]
    if picture.mastering_display is not None:
        params.append(f"master-display={h26x_mastering_display(picture.mastering_display)}")
    if picture.content_light is not None:
        params.append(f"max-cll={picture.content_light.max_content},{picture.content_light.max_frame_average}")
    if encoding.quality == "lossless":
        params.append("lossless=1")
    rate = {} if encoding.crf is None else {"crf": str(encoding.crf)}
    return rate | {"preset": encoding.encoder_preset} | _tune_and_params("x265-params", params, chosen)


def _svt_av1_options(picture: Picture, encoding: Encoding, chosen: Mapping[str, str]) -> dict[str, str]:
    # SVT-AV1 prints its settings to stderr, over any progress bar, unless this says: errors only.
    os.environ.setdefault("SVT_LOG", "1")
    params = [f"lp={ENCODER_THREADS}", *SAME_CODE_EVERYWHERE]
    if picture.mastering_display is not None:
        params.append(f"mastering-display={av1_mastering_display(picture.mastering_display)}")
    if picture.content_light is not None:
        params.append(f"content-light={picture.content_light.max_content},{picture.content_light.max_frame_average}")
    params += [f"{name}={value}" for name, value in chosen.items()]
    return {
        "crf": str(encoding.crf),
        "preset": str(_SVT_PRESETS[encoding.encoder_preset]),
        "svtav1-params": ":".join(params),
    }


def _tune_and_params(name: str, params: Sequence[str], chosen: Mapping[str, str]) -> dict[str, str]:
    """x264 and x265 take `tune` together with the preset, everything else in one option of their own."""
    own = ":".join([*params, *(f"{key}={value}" for key, value in chosen.items() if key != "tune")])
    return {"tune": chosen["tune"], name: own} if "tune" in chosen else {name: own}


def _vpx_options(picture: Picture, encoding: Encoding) -> dict[str, str]:
    options = {
        "deadline": "good",
        "cpu-used": str(_VPX_SPEEDS[encoding.encoder_preset]),
        "row-mt": "0",
        "tile-columns": "1",  # the threads' work, and part of the result
        "b": "0",
    }
    if picture.has_alpha:
        options["auto-alt-ref"] = "0"  # as the second picture, of transparency, must keep in step with the first
    if encoding.quality == "lossless":
        return options | {"lossless": "1"}
    return options | {"crf": str(encoding.crf)}


def _prores_options(picture: Picture, encoding: Encoding) -> dict[str, str]:
    four_by_four = picture.pixel_format != "yuv422p10le"
    profile = {
        "small": "4444" if four_by_four else "lt",
        "balanced": "4444" if four_by_four else "standard",
        "high": "4444xq" if four_by_four else "hq",
    }[encoding.quality]
    # Apple's own mark, without which some players refuse.
    options = {"profile": profile, "vendor": "apl0", "flags": "+bitexact"}
    if picture.has_alpha:
        options["alpha_bits"] = "16"
    return options
