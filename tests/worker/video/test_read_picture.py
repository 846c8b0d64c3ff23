"""What lies in and beside the picture: colours that change, HDR, transparency, captions."""

import subprocess
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from worker.contract.failure import FailureCode, JobFailureError
from worker.settings import VideoLimits
from worker.video.survey import survey
from worker.video.values import ContentLight, MasteringDisplay

MakeVideo = Callable[..., Path]
LIMITS = VideoLimits()
BT709, BT601 = (1, 1, 1, 1), (6, 1, 6, 6)


@pytest.mark.parametrize("suffix", ["mkv", "mp4", "ts"])
def test_hdr_metadata_is_read(make_video: MakeVideo, suffix: str) -> None:
    # given HDR10 video, mastered on a display with DCI-P3 primaries
    display = "G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,50)"
    params = f"log-level=error:hdr10=1:repeat-headers=1:master-display={display}:max-cll=1000,400"
    source = make_video(
        f"hdr.{suffix}",
        time_base=Fraction(1, {"mkv": 1000, "mp4": 12800, "ts": 90000}[suffix]),
        codec="libx265",
        options={"preset": "ultrafast", "x265-params": params},
        pixel_format="yuv420p10le",
        colour=(9, 1, 9, 16),
    )

    facts = survey(source, LIMITS)

    assert facts.picture.mastering_display == MasteringDisplay(
        primaries=(
            (Fraction(34000, 50000), Fraction(16000, 50000)),
            (Fraction(13250, 50000), Fraction(34500, 50000)),
            (Fraction(7500, 50000), Fraction(3000, 50000)),
        ),
        white_point=(Fraction(15635, 50000), Fraction(16450, 50000)),
        min_luminance=Fraction(50, 10000),
        max_luminance=Fraction(1000),
    )
    assert facts.picture.content_light == ContentLight(max_content=1000, max_frame_average=400)
    assert facts.cannot_keep == ()


def joined(make_video: MakeVideo, first: dict[str, object], second: dict[str, object]) -> Path:
    """A transport stream that goes over from one encoding to another after 20 frames."""
    common = {"time_base": Fraction(1, 90000), "frames": 20}
    before = make_video("before.ts", **common, **first)
    behind = make_video("behind.ts", **common, pts=[72000 + 3600 * number for number in range(20)], **second)
    source = before.with_name("joined.ts")
    source.write_bytes(before.read_bytes() + behind.read_bytes())
    return source


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"colour": BT601}, {"colour": BT709}),
        ({"colour": BT709}, {"colour": (1, 2, 1, 1)}),
        ({"colour": (9, 1, 9, 14)}, {"colour": (9, 1, 9, 18)}),
        ({}, {"colour": BT709}),
        ({"pixel_format": "yuv420p"}, {"pixel_format": "yuv422p"}),
    ],
    ids=["matrix", "range", "transfer", "matrix of untagged video", "pixel format"],
)
def test_colours_that_change_midway_are_refused_with_the_time(
    make_video: MakeVideo, first: dict[str, object], second: dict[str, object]
) -> None:
    with pytest.raises(JobFailureError) as failure:
        survey(joined(make_video, first, second), LIMITS)

    assert failure.value.code is FailureCode.UNSUPPORTED_SOURCE
    assert "at frame 20 (" in failure.value.message


def test_tags_that_come_late_and_change_nothing_are_taken(make_video: MakeVideo) -> None:
    # given low-resolution video without tags, which players take for BT.601, and then with the tags of it
    facts = survey(joined(make_video, {}, {"colour": BT601}), LIMITS)

    assert (facts.picture.colour.matrix, facts.picture.colour.primaries) == (6, 6)
    assert facts.picture.colour.conversion == "bt601"
    assert facts.notes[0] == "the first 20 frames lack colour tags that the later ones have"


@pytest.mark.parametrize("transparent", [True, False])
def test_a_gif_is_transparent_if_a_pixel_of_it_is(tmp_path: Path, transparent: bool) -> None:
    # given a moving square on a ground with or without colour
    source = tmp_path / "square.gif"
    pixels = np.zeros((12, 32, 32, 4), np.uint8)
    for number, frame in enumerate(pixels):
        frame[8:20, number : number + 12] = (200, 40, 90, 255)
    pixels[..., 3] |= 0 if transparent else 255
    raw = ["-f", "rawvideo", "-pix_fmt", "rgba", "-s", "32x32", "-r", "10", "-i", "-"]
    palette = ["-vf", "split[a][b];[a]palettegen[p];[b][p]paletteuse"]
    subprocess.run(["ffmpeg", "-v", "error", *raw, *palette, source], input=pixels.tobytes(), check=True)

    facts = survey(source, LIMITS)

    assert (len(facts.frames), facts.picture.has_alpha) == (12, transparent)


@pytest.mark.parametrize(
    ("codec", "pixel_format", "has_alpha"),
    [("ffv1", "yuva420p", True), ("png", "rgba", True), ("png", "ya8", True), ("ffv1", "bgr0", False)],
)
def test_a_format_with_transparency_has_it(
    make_video: MakeVideo, codec: str, pixel_format: str, has_alpha: bool
) -> None:
    suffix = "mov" if codec == "png" else "mkv"
    source = make_video(f"a.{suffix}", time_base=Fraction(1, 1000), codec=codec, options={}, pixel_format=pixel_format)

    assert survey(source, LIMITS).picture.has_alpha is has_alpha


@pytest.mark.parametrize(("caption", "lost"), [((0x94, 0x20), True), ((0x80, 0x80), False)], ids=["said", "silent"])
def test_captions_inside_the_picture_are_named_if_they_say_something(
    make_video: MakeVideo, caption: tuple[int, int], lost: bool
) -> None:
    # given H.264 with a message of CEA-608 bytes before every picture
    plain = make_video("plain.mp4")
    source = plain.with_name("captioned.mp4")
    content = bytes([0xB5, 0x00, 0x31, *b"GA94", 0x03, 0x41, 0xFF, 0xFC, *caption, 0xFF])
    message = bytes([0x06, 0x04, len(content), *content, 0x80])
    with av.open(str(plain)) as whole, av.open(str(source), "w") as captioned:
        stream = captioned.add_stream_from_template(whole.streams.video[0])
        for packet in whole.demux(video=0):
            if packet.size:
                with_message = av.Packet(len(message).to_bytes(4, "big") + message + bytes(packet))
                with_message.pts, with_message.dts, with_message.time_base = packet.pts, packet.dts, packet.time_base
                with_message.is_keyframe, with_message.stream = packet.is_keyframe, stream
                captioned.mux(with_message)

    words = ("closed captions inside the picture (CEA-608/708)",)
    assert survey(source, LIMITS).cannot_keep == (words if lost else ())


def test_stereoscopic_video_is_named(make_video: MakeVideo) -> None:
    plain = make_video("plain.mkv", time_base=Fraction(1, 1000))
    source = plain.with_name("stereo.mkv")
    mark = ["-c", "copy", "-metadata:s:v", "stereo_mode=left_right"]
    subprocess.run(["ffmpeg", "-v", "error", "-i", plain, *mark, source], check=True)

    assert survey(source, LIMITS).cannot_keep == ("the mark of stereoscopic (3D) video",)
