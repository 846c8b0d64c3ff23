"""Whether each encoder really works here: one frame in, by the way that results are made, and one out again."""

import tempfile
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.codeccontext import VideoCodecContext

from worker.contract.job import VideoCodec
from worker.video.codecs import CODECS
from worker.video.encode import encode_frames
from worker.video.frames import Frame
from worker.video.values import Colour, Encoding, Picture

_WIDTH, _HEIGHT = 256, 144
_BT709_LIMITED = Colour(matrix=1, range=1, primaries=1, transfer=1, conversion="bt709", chroma_location="unspecified")


def failing_encoders() -> Mapping[VideoCodec, str]:
    """What is wrong with each codec that cannot be made here."""
    failing = {}
    for codec in CODECS:
        try:
            with tempfile.TemporaryDirectory(prefix="vsr-codec-") as folder:
                file = _encoded(codec, Path(folder))
                with av.open(str(file)) as container:
                    _check([frame for frame in container.decode(video=0)])
        except (av.FFmpegError, ValueError) as error:
            failing[codec] = str(error)
    return failing


def nvidia_engines() -> Mapping[str, str | None]:
    """NVENC and NVDEC: None, or why it does not work. To be asked where there is a GPU."""
    tries = {"NVENC": ("h264_nvenc", "h264"), "NVDEC": ("libx264", "h264_cuvid")}
    found: dict[str, str | None] = {}
    for engine, (encoder, decoder) in tries.items():
        try:
            _there_and_back(encoder, decoder)
            found[engine] = None
        except (av.FFmpegError, ValueError) as error:
            found[engine] = str(error)
    return found


def _encoded(codec: VideoCodec, folder: Path) -> Path:
    pixel_format = CODECS[codec].pixel_formats[0]
    picture = Picture(
        width=_WIDTH,
        height=_HEIGHT,
        pixel_format=pixel_format,
        bit_depth=10 if "10le" in pixel_format else 8,
        colour=_BT709_LIMITED,
        sample_aspect_ratio=None,
        display_matrix=None,
        field_order="progressive",
    )
    encoding = Encoding(
        codec=codec,
        crf=CODECS[codec].crf.get("balanced"),
        encoder_preset="medium",
        average_rate=Fraction(25),
        time_base=Fraction(1, 25),
    )
    file = folder / f"frame{CODECS[codec].segment_suffix}"
    for _ in encode_frames([Frame(_slope())], [0], picture, encoding, file, made_by="vsr doctor"):
        pass
    return file


def _there_and_back(encoder_name: str, decoder_name: str) -> None:
    encoder = av.CodecContext.create(encoder_name, "w")
    assert isinstance(encoder, VideoCodecContext)
    encoder.width, encoder.height, encoder.pix_fmt = _WIDTH, _HEIGHT, "yuv420p"
    encoder.time_base, encoder.framerate = Fraction(1, 25), Fraction(25)
    frame = av.VideoFrame.from_ndarray(_slope(), format="rgb24").reformat(format="yuv420p")
    frame.pts, frame.time_base = 0, encoder.time_base
    packets = [*encoder.encode(frame), *encoder.encode(None)]
    decoder = av.CodecContext.create(decoder_name, "r")
    assert isinstance(decoder, VideoCodecContext)
    _check([one for packet in (*packets, None) for one in decoder.decode(packet)])


def _slope() -> "np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]":
    """From black to white: (H, W, 3), as `Frame` has its pictures."""
    return np.ascontiguousarray(
        np.broadcast_to(np.linspace(0, 255, _WIDTH, dtype=np.uint8)[None, :, None], (_HEIGHT, _WIDTH, 3))
    )


def _check(frames: list[av.VideoFrame]) -> None:
    sizes = [(frame.width, frame.height) for frame in frames]
    if sizes != [(_WIDTH, _HEIGHT)]:
        raise ValueError(f"one frame of {_WIDTH}x{_HEIGHT} went in, and {sizes or 'none'} came out")
