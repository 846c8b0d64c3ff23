"""The transparency of VP8 and VP9, which FFmpeg's own decoders do not see."""

import subprocess
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest
from av.packet import PacketSideData, packet_sidedata_type_from_literal

from worker.video.alpha_blocks import alpha_blocks
from worker.video.source import frame_crc32, main_video_stream, open_source

MAX_PIXELS = 100_000


def write_webm(
    path: Path, codec: str, *, pixel_format: str = "yuva420p", marked: bool = True, frames: int = 12
) -> Path:
    """A colour that grows with the number of the frame, and a wedge of transparency that moves with it."""
    with av.open(str(path), "w", format="webm") as container:
        video = container.add_stream(codec, rate=25)
        video.width, video.height, video.pix_fmt = 70, 46, pixel_format
        video.codec_context.options = {"crf": "10", "b": "0", "auto-alt-ref": "0"}
        if marked:
            video.metadata["alpha_mode"] = "1"
        for number in range(frames):
            picture = np.zeros((46, 70, 4), np.uint8)
            picture[..., 0] = number * 20
            picture[..., 3] = (np.arange(70) * 3 + number * 10) % 256
            frame = av.VideoFrame.from_ndarray(picture, "rgba").reformat(format=pixel_format)
            frame.pts, frame.time_base = number * 40, Fraction(1, 1000)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
    return path


def decoded(path: Path) -> Iterator[av.VideoFrame]:
    with open_source(path, MAX_PIXELS) as container:
        stream = main_video_stream(container, MAX_PIXELS)
        packets = list(container.demux(stream))
        alpha = alpha_blocks(stream, packets[0])
        for packet in packets:
            if alpha is not None:
                alpha.feed(packet)
            for frame in packet.decode():
                yield alpha.join(frame) if alpha is not None else frame


@pytest.mark.parametrize("codec", ["libvpx", "libvpx-vp9"])
def test_frames_are_those_of_the_codec_s_own_library(tmp_path: Path, codec: str) -> None:
    path = write_webm(tmp_path / "clip.webm", codec)
    # given what libvpx itself makes of the file
    with av.open(str(path)) as container:
        library = av.CodecContext.create(codec, "r")
        expected = [frame for packet in container.demux(video=0) for frame in library.decode(packet)]
    # then picture and transparency are the same, bit for bit, at the same times
    frames = list(decoded(path))
    assert len(frames) == 12
    assert [frame.format.name for frame in frames] == ["yuva420p"] * 12
    assert [frame_crc32(frame) for frame in frames] == [frame_crc32(frame) for frame in expected]
    for field in ("pts", "time_base", "duration", "color_range", "color_primaries", "color_trc"):
        assert [getattr(frame, field) for frame in frames] == [getattr(frame, field) for frame in expected], field


def test_debian_s_ffmpeg_sees_the_same_transparency(tmp_path: Path) -> None:
    path = write_webm(tmp_path / "clip.webm", "libvpx-vp9")
    as_planes = ["-vf", "alphaextract", "-pix_fmt", "gray", "-f", "rawvideo", "-"]
    command = ["ffmpeg", "-v", "error", "-c:v", "libvpx-vp9", "-i", path, *as_planes]
    output = subprocess.run(command, check=True, capture_output=True).stdout
    expected = np.frombuffer(output, np.uint8).reshape(12, 46, 70)
    assert np.array_equal(np.stack([transparency(frame) for frame in decoded(path)]), expected)


@pytest.mark.parametrize(("pixel_format", "marked"), [("yuv420p", True), ("yuv420p", False)])
def test_video_without_transparency_stays_without(tmp_path: Path, pixel_format: str, marked: bool) -> None:
    # given a file whose mark may be a leftover, as FFmpeg copies it when it drops the transparency
    path = write_webm(tmp_path / "clip.webm", "libvpx-vp9", pixel_format=pixel_format, marked=marked)
    assert {frame.format.name for frame in decoded(path)} == {"yuv420p"}


def test_a_frame_whose_transparency_is_missing_is_opaque(tmp_path: Path) -> None:
    # given a file of which the second half lost its transparency
    whole = write_webm(tmp_path / "whole.webm", "libvpx-vp9")
    with av.open(str(whole)) as source, av.open(str(tmp_path / "half.webm"), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        stream.metadata["alpha_mode"] = "1"
        for number, packet in enumerate(source.demux(video=0)):
            if packet.size == 0:
                continue
            kept = packet
            if number >= 6:
                kept = av.Packet(bytes(packet))
                kept.pts, kept.dts, kept.time_base = packet.pts, packet.dts, packet.time_base
                kept.is_keyframe = packet.is_keyframe
            kept.stream = stream
            target.mux(kept)
    # then its frames are shown, as browsers do
    before, after = list(decoded(whole)), list(decoded(tmp_path / "half.webm"))
    assert len(after) == 12
    for number in range(12):
        if number < 6:
            assert frame_crc32(after[number]) == frame_crc32(before[number])
        else:
            assert (transparency(after[number]) == 255).all()


def test_transparency_over_the_size_limit_is_not_decoded(tmp_path: Path) -> None:
    # given a small picture beside which lies the transparency of a larger one than allowed
    with av.open(str(tmp_path / "large.webm"), "w") as container:
        video = container.add_stream("libvpx-vp9", rate=25)
        video.width, video.height, video.pix_fmt = 800, 600, "yuv420p"
        large = [*video.encode(av.VideoFrame(800, 600, "yuv420p")), *video.encode(None)][0]
    block = (1).to_bytes(8, "big") + bytes(large)
    beside = PacketSideData(packet_sidedata_type_from_literal("matroska_block_additional"), len(block))
    beside.update(block)
    with open_source(write_webm(tmp_path / "small.webm", "libvpx-vp9", frames=1), MAX_PIXELS) as source:
        stream = main_video_stream(source, MAX_PIXELS)
        packet = next(source.demux(stream))
        alpha = alpha_blocks(stream, packet)
        assert alpha is not None
        packet.set_sidedata(beside)
        # then it is the decoder that refuses it, before there is such a picture
        with pytest.raises(av.FFmpegError):
            alpha.feed(packet)


def transparency(frame: av.VideoFrame) -> npt.NDArray[np.uint8]:
    plane = frame.planes[3]
    return np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[: frame.height, : frame.width]
