"""Damaged videos, by number: the same number always gives the same bytes.

Real containers, generated here or shared, are cut, flipped and spliced; and playlists, under any name, point at a file
that is not theirs.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

REPOSITORY = Path(__file__).parents[2]
SHARED_CLIPS = REPOSITORY.parent / "shared" / "data" / "clips"

# Container by its suffix, FFmpeg's name where the suffix does not say it, encoder, pixel format.
_KINDS = (
    ("mp4", None, "libx264", "yuv420p"),
    ("mov", None, "qtrle", "argb"),
    ("mkv", None, "libx265", "yuv420p10le"),
    ("webm", None, "libvpx-vp9", "yuv420p"),
    ("avi", None, "mpeg4", "yuv420p"),
    ("asf", None, "wmv2", "yuv420p"),
    ("flv", None, "flv1", "yuv420p"),
    ("ts", "mpegts", "mpeg2video", "yuv420p"),
    ("mpg", "mpeg", "mpeg1video", "yuv420p"),
    ("mxf", "mxf", "mpeg2video", "yuv420p"),
    ("nut", "nut", "ffv1", "yuv444p"),
    ("ogv", "ogg", "libtheora", "yuv420p"),
    ("wtv", "wtv", "mpeg2video", "yuv420p"),
    ("rm", "rm", "rv20", "yuv420p"),
    ("gif", "gif", "gif", "rgb8"),
    ("apng", "apng", "apng", "rgba"),
    ("y4m", "yuv4mpegpipe", "wrapped_avframe", "yuv420p"),
    ("ivf", "ivf", "libvpx", "yuv420p"),
    ("obu", "obu", "libsvtav1", "yuv420p"),
    ("h264", "h264", "libx264", "yuv420p"),
    ("hevc", "hevc", "libx265", "yuv420p"),
    ("m4v", "m4v", "mpeg4", "yuv420p"),
    ("h263", "h263", "h263", "yuv420p"),
    ("h261", "h261", "h261", "yuv420p"),
    ("mjpeg", "mjpeg", "mjpeg", "yuvj420p"),
    ("mpjpeg", "mpjpeg", "mjpeg", "yuvj420p"),
    ("vc2", "dirac", "vc2", "yuv422p"),
)
_FRAMES = 8
_OPTIONS = {
    "libx265": {"x265-params": "log-level=none:pools=none"},
    "libsvtav1": {"preset": "12", "svtav1-params": "lp=1"},
    "libvpx": {"deadline": "realtime", "cpu-used": "8"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8"},
}

PLAYLISTS = {
    "concat": b"ffconcat version 1.0\nfile %s\n",
    "bare concat": b"file %s\n",
    "hls": b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n%s\n#EXT-X-ENDLIST\n",
    "hls by url": b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://%s\n#EXT-X-ENDLIST\n",
    "dash": b'<?xml version="1.0"?>\n<MPD type="static" mediaPresentationDuration="PT1S"><Period><AdaptationSet>'
    b'<Representation id="0" bandwidth="1"><BaseURL>%s</BaseURL></Representation></AdaptationSet></Period></MPD>',
    "sdp": b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=%s\nc=IN IP4 127.0.0.1\nt=0 0\n"
    b"m=video 9 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
}


@dataclass(frozen=True)
class Sample:
    """One file to be tried."""

    name: str
    content: bytes


def write_seeds(folder: Path) -> list[Path]:
    """One short video of every container that FFmpeg here can write and we read."""
    return [path for kind in _KINDS if (path := _write_seed(folder, *kind)) is not None]


def _write_seed(folder: Path, suffix: str, form: str | None, codec: str, pixel_format: str) -> Path | None:
    path = folder / f"seed.{suffix}"
    width, height = (352, 288) if codec in ("h261", "h263", "vc2") else (64, 48)
    try:
        with av.open(str(path), "w", format=form) as container:
            stream = container.add_stream(codec, rate=25, options=_OPTIONS.get(codec, {}))
            stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
            picture = np.random.default_rng(7).integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8)
            for number in range(_FRAMES):
                moved = np.ascontiguousarray(np.roll(picture.repeat(8, 0).repeat(8, 1), number * 3, axis=1))
                container.mux(stream.encode(av.VideoFrame.from_ndarray(moved, "rgb24")))
            container.mux(stream.encode(None))
    except (av.FFmpegError, ValueError):  # this build of FFmpeg has no such encoder
        path.unlink(missing_ok=True)
        return None
    return path


def samples(seeds: list[Path], count: int, seed: int) -> Iterator[Sample]:
    """Yield `count` damaged files of all seeds in turn."""
    contents = [(path.name, path.read_bytes()) for path in seeds]
    for number in range(count):
        random_source = random.Random(f"{seed}:{number}")
        name, content = contents[number % len(contents)]
        how = random_source.choice(("cut", "flip", "flip head", "splice", "zero", "repeat"))
        yield Sample(f"{number:05d} {how} {name}", _damaged(how, content, contents, random_source))


def _damaged(how: str, content: bytes, all_contents: list[tuple[str, bytes]], chance: random.Random) -> bytes:
    if how == "cut":
        return content[: chance.randrange(len(content))]
    if how in ("flip", "flip head"):
        reach = len(content) if how == "flip" else min(len(content), 1024)
        damaged = bytearray(content)
        for _ in range(chance.choice((1, 2, 8, 64))):
            damaged[chance.randrange(reach)] ^= 1 << chance.randrange(8)
        return bytes(damaged)
    begin, end = sorted((chance.randrange(len(content)), chance.randrange(len(content))))
    if how == "splice":
        other = chance.choice(all_contents)[1]
        there = chance.randrange(len(other))
        return content[:begin] + other[there : there + end - begin] + content[end:]
    if how == "zero":
        return content[:begin] + bytes(end - begin) + content[end:]
    return content[:end] + content[begin:]
