"""The same frames give the same bytes: what resuming, several workers and the service's results stand on."""

import hashlib
import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from worker.contract.failure import JobFailureError
from worker.contract.job import Container, JobOptions, VideoCodec
from worker.video.codecs import CODECS
from worker.video.colour import FromRgb, conversion_matrix, encoded_picture
from worker.video.encode import check_encoder, encode_frames, segment_suffix
from worker.video.frames import Frame
from worker.video.source import frame_crc32
from worker.video.values import Colour, Encoding, Picture

Render = Callable[..., Any]


@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv422p10le"])
@pytest.mark.parametrize("quality", ["balanced", "lossless"])
@pytest.mark.parametrize("codec", list(VideoCodec))
def test_a_segment_has_the_same_bytes_again_and_on_one_core(
    make_video: Callable[..., Path], render: Render, codec: VideoCodec, quality: str, pixel_format: str
) -> None:
    # given a segment, rendered twice on all cores
    source = make_video("clip.mkv", time_base=Fraction(1, 1000), frames=24, pixel_format=pixel_format, width=160)
    container = Container.ZIP if codec is VideoCodec.PNG else None
    if CODECS[codec].lossless == "never" and quality == "lossless":
        quality = "high"
    options = JobOptions(
        codec=codec, container=container, quality=quality, encoder_preset="faster", drop_unsupported=True
    )
    digests = set()
    cores = os.sched_getaffinity(0)
    for allowed in (cores, cores, {min(cores)}):
        os.sched_setaffinity(0, allowed)
        try:
            _, [segment] = render(source, options)
        finally:
            os.sched_setaffinity(0, cores)
        digests.add(hashlib.sha256(segment.read_bytes()).hexdigest())
        segment.unlink()
    # then it is the same, and on a single core too
    assert len(digests) == 1


LOSSLESS = [codec for codec, facts in CODECS.items() if facts.lossless != "never"]


@pytest.mark.parametrize("codec", LOSSLESS)
def test_a_lossless_segment_holds_the_very_samples(tmp_path: Path, codec: VideoCodec) -> None:
    # given noise, which no lossy codec keeps
    noise = np.random.default_rng(0).integers(0, 256, (5, 96, 128, 3), np.uint8)
    picture, _ = encoded_picture(source_picture("yuv420p"), 2, codec, Container.MKV)
    # when it is encoded losslessly
    encoding = an_encoding(codec, quality="lossless")
    segment = tmp_path / f"segment{segment_suffix(encoding)}"
    list(encode_frames([Frame(rgb) for rgb in noise], range(5), picture, encoding, segment, "test"))
    # then the decoder gives what the encoder was given
    from_rgb = FromRgb(picture)
    with av.open(str(segment)) as container:
        for rgb, decoded in zip(noise, container.decode(video=0), strict=True):
            assert decoded.format.name == picture.pixel_format
            assert frame_crc32(decoded) == frame_crc32(from_rgb(Frame(rgb)))


@pytest.mark.parametrize("size", [(2, 2), (64, 64), (64, 130), (66, 66), (66, 130)])
def test_small_pictures_in_hevc_are_the_same_every_time_or_refused(tmp_path: Path, size: tuple[int, int]) -> None:
    width, height = size
    picture = encoded_picture(source_picture("yuv420p"), 2, VideoCodec.HEVC, Container.MKV)[0].model_copy(
        update={"width": width, "height": height}
    )
    encoding = an_encoding(VideoCodec.HEVC)
    try:
        check_encoder(picture, encoding)
    except JobFailureError:
        assert min(size) <= 64
        return
    frames = np.random.default_rng(0).integers(0, 256, (25, height, width, 3), np.uint8)
    digests = set()
    for _ in range(5):
        segment = tmp_path / "segment.mp4"
        list(encode_frames([Frame(rgb) for rgb in frames], range(25), picture, encoding, segment, "test"))
        digests.add(hashlib.sha256(segment.read_bytes()).hexdigest())
    assert len(digests) == 1


@pytest.mark.parametrize("frames", [1, 2])
def test_hevc_of_fewer_frames_than_it_reorders_is_the_same_every_time(tmp_path: Path, frames: int) -> None:
    # Given x265, which has no decoding times for so few, unless it is told not to reorder them
    picture, encoding = (
        source_picture("yuv420p").model_copy(update={"width": 256, "height": 144}),
        an_encoding(VideoCodec.HEVC),
    )
    grey = Frame(np.full((144, 256, 3), 127, dtype=np.uint8))
    made = set()

    # When
    for number in range(12):
        file = tmp_path / f"{number}.mp4"
        assert (
            list(encode_frames([grey] * frames, range(frames), picture, encoding, file, made_by="test"))[-1] == frames
        )
        made.add(file.read_bytes())

    # Then
    assert len(made) == 1
    with av.open(str(file)) as container:
        assert [(packet.pts, packet.dts) for packet in container.demux(video=0) if packet.size] == [
            (number * 512, number * 512) for number in range(frames)
        ]


def source_picture(pixel_format: str) -> Picture:
    return Picture(
        width=64,
        height=48,
        pixel_format=pixel_format,
        bit_depth=8,
        colour=Colour(
            matrix=1, range=1, primaries=1, transfer=1, conversion=conversion_matrix(1, 48), chroma_location="left"
        ),
        sample_aspect_ratio=None,
        display_matrix=None,
        field_order="progressive",
    )


def an_encoding(codec: VideoCodec, *, quality: Any = "balanced") -> Encoding:  # noqa: ANN401
    return Encoding(
        codec=codec,
        crf=CODECS[codec].crf.get(quality),
        quality=quality,
        encoder_preset="faster",
        average_rate=Fraction(25),
        time_base=Fraction(1, 25),
    )
