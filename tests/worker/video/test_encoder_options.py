"""Encoder options of a stranger: those that are let through work, all others are refused with the reason."""

import io
from fractions import Fraction

import av
import av.logging
import pytest

from worker.contract.failure import FailureCode, JobFailureError
from worker.contract.job import VideoCodec
from worker.video.codecs import CODECS
from worker.video.encoder_options import ALLOWED, Numbers, parsed_encoder_options

VALUES = [
    (codec, name, value)
    for codec, options in ALLOWED.items()
    for name, kind in options.items()
    for value in ([f"{kind.low:g}", f"{kind.high:g}"] if isinstance(kind, Numbers) else kind.words)
]
PARAMS = {VideoCodec.H264: "x264-params", VideoCodec.HEVC: "x265-params", VideoCodec.AV1: "svtav1-params"}


@pytest.mark.parametrize("codec", list(ALLOWED))
def test_every_value_that_is_let_through_is_known_to_its_encoder(codec: VideoCodec) -> None:
    complaints = []
    for name, value in [(name, value) for of, name, value in VALUES if of is codec]:
        assert parsed_encoder_options(codec, f"{name}={value}") == {name: value}
        own = name if codec not in PARAMS or (name == "tune" and codec is not VideoCodec.AV1) else PARAMS[codec]
        options = {own: value if own == name else f"{name}={value}"}
        complaints += [f"{name}={value}: {text}" for text in opening_complaints(codec, options)]
    assert complaints == []


def opening_complaints(codec: VideoCodec, options: dict[str, str]) -> list[str]:
    """Open the encoder and return what it says of its options, and whether it refuses."""
    form = CODECS[codec].segment_format
    with av.logging.Capture(local=False) as logged, av.open(io.BytesIO(), "w", format=form) as container:
        av.logging.set_level(av.logging.WARNING)
        stream = container.add_stream(CODECS[codec].encoder, rate=Fraction(25))
        stream.width, stream.height = 256, 128
        stream.pix_fmt = CODECS[codec].pixel_formats[0]
        stream.codec_context.options = options
        try:
            container.start_encoding()
        except av.FFmpegError as error:
            return [str(error)]
        finally:
            av.logging.set_level(None)
    return [text for _, _, text in logged if any(word in text for word in ("rror parsing", "nknown", "nvalid"))]


@pytest.mark.parametrize(
    ("codec", "text", "reason"),
    [
        (VideoCodec.H264, "keyint=10", "segments are encoded one by one"),
        (VideoCodec.HEVC, "no-open-gop=1", "segments are encoded one by one"),
        (VideoCodec.H264, "bitrate=900", "use quality or crf"),
        (VideoCodec.AV1, "rc=1", "use quality or crf"),
        (VideoCodec.H264, "threads=8", "must not depend on the machine"),
        (VideoCodec.AV1, "lp=8", "must not depend on the machine"),
        (VideoCodec.VP9, "row-mt=1", "must not depend on the machine"),
        (VideoCodec.H264, "stats=evil", "it names a file"),
        (VideoCodec.HEVC, "csv=evil", "it names a file"),
        (VideoCodec.HEVC, "dolby-vision-rpu=evil", "it names a file"),
        (VideoCodec.H264, "colorprim=bt709", "from the source's facts"),
        (VideoCodec.H264, "crf=10", "there is an option for it"),
        (VideoCodec.H264, "frobnicate=1", "not known to be harmless to h264"),
        (VideoCodec.PRORES, "tune=film", r"known are: none"),
        (VideoCodec.H264, "aq-mode=9", "takes whole numbers from 0 to 3, not 9"),
        (VideoCodec.H264, "psy-rd=foo", "takes numbers from 0 to 10, at most 2 of them, not foo"),
        (VideoCodec.H264, "deblock=1,1,1", "at most 2"),
        (VideoCodec.H264, "tune=zerolatency", "takes film, animation"),
        (VideoCodec.HEVC, "bframes=1.5", "takes whole numbers"),
        (VideoCodec.H264, "tune=film:stats=evil", "encoder option stats is refused"),
    ],
)
def test_other_options_are_refused_with_the_reason(codec: VideoCodec, text: str, reason: str) -> None:
    with pytest.raises(JobFailureError, match=reason) as failure:
        parsed_encoder_options(codec, text)
    assert failure.value.code is FailureCode.INVALID_OPTION


def test_several_options_are_taken_together() -> None:
    assert parsed_encoder_options(VideoCodec.H264, "tune=film:aq-mode=3:deblock=-1,-1") == {
        "tune": "film",
        "aq-mode": "3",
        "deblock": "-1,-1",
    }
