"""What Debian's ffprobe and ffmpeg say about a file. Nothing here is shared with the product, which uses PyAV."""

import json
import math
import subprocess
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Channel = npt.NDArray[np.int32]

# Untagged and tagged YUV alike are converted as told, never by swscale's fast path.
ACCURATE = "bicubic+accurate_rnd+full_chroma_int+full_chroma_inp+bitexact"


def ffmpeg(*arguments: str | Path, stdin: bytes | None = None, quiet: bool = True) -> bytes:
    """Run ffmpeg and return its standard output; what it says on standard error fails the test where `quiet`."""
    command = ["ffmpeg", "-v", "error", "-nostdin" if stdin is None else "-y", "-y", *map(str, arguments)]
    done = subprocess.run(command, input=stdin, capture_output=True, check=False)
    complaint = done.stderr.decode(errors="replace")
    assert done.returncode == 0, f"{' '.join(command)}\n{complaint}"
    assert not (quiet and complaint), f"{' '.join(command)}\n{complaint}"
    return done.stdout


@dataclass(frozen=True)
class Packet:
    pts: Fraction | None
    dts: Fraction | None
    duration: Fraction
    sha256: str
    is_hidden: bool
    """Behind or before an edit list: not to be shown or heard."""
    is_key: bool
    place: int
    """Of its first byte in the file."""
    size: int


@dataclass
class Stream:
    """One stream as ffprobe shows it; `facts` is its own JSON."""

    facts: dict[str, Any]
    packets: list[Packet] = field(default_factory=list)
    frames: list[dict[str, Any]] = field(default_factory=list)

    @property
    def index(self) -> int:
        return int(self.facts["index"])

    @property
    def kind(self) -> str:
        """video, audio, subtitle, data, attachment, or picture."""
        if self.facts.get("disposition", {}).get("attached_pic"):
            return "picture"
        return str(self.facts.get("codec_type", "data"))

    @property
    def time_base(self) -> Fraction:
        return Fraction(self.facts["time_base"])

    @property
    def tags(self) -> dict[str, str]:
        return dict(self.facts.get("tags", {}))

    @property
    def dispositions(self) -> set[str]:
        return {name for name, is_set in self.facts.get("disposition", {}).items() if is_set}

    @property
    def visible_packets(self) -> list[Packet]:
        return [packet for packet in self.packets if not packet.is_hidden]

    @property
    def frame_times(self) -> list[Fraction]:
        """In seconds, exactly. AVI and ASF may say nothing of the last frame: then it follows on."""
        ticks: list[int] = []
        for frame in self.frames:
            told = frame.get("best_effort_timestamp")
            ticks.append(int(told) if told is not None else 2 * ticks[-1] - ticks[-2])
        return [tick * self.time_base for tick in ticks]

    def side_data(self, name: str) -> dict[str, Any] | None:
        """Of the stream, or else of its first frame."""
        items = [*self.facts.get("side_data_list", []), *self.frames[0].get("side_data_list", [])]
        return next((item for item in items if item["side_data_type"] == name), None)


class Witness:
    """A file as it is found, with the video stream that is upscaled, or was, as `video`."""

    def __init__(self, path: Path, video_index: int | None = None) -> None:
        self.path = path
        told = _ffprobe(path, path.stat().st_mtime_ns)
        self.complaints: str = told["complaints"]
        """What ffprobe had to say against it while it decoded every frame of every stream."""
        self.format: dict[str, Any] = told["format"]
        self.chapters: list[dict[str, Any]] = told["chapters"]
        self.streams = [Stream(facts) for facts in told["streams"]]
        for item in told["packets_and_frames"]:
            stream = self.streams[int(item["stream_index"])] if "stream_index" in item else None
            if item["type"] == "packet" and stream is not None:
                stream.packets.append(_packet(item, stream.time_base))
            elif item["type"] == "frame" and stream is not None:
                stream.frames.append(item)
        videos = self.of_kind("video")
        self.video = next(
            (stream for stream in videos if stream.index == video_index),
            next((stream for stream in videos if "default" in stream.dispositions), videos[0]),
        )

    def of_kind(self, *kinds: str) -> list[Stream]:
        return [stream for stream in self.streams if stream.kind in kinds]

    @property
    def tags(self) -> dict[str, str]:
        return dict(self.format.get("tags", {}))

    @cached_property
    def pixels(self) -> "Pixels":
        """All frames of the video as they are, decoded whole; a word of complaint from the decoder fails the test."""
        return decode(self.path, self.video)


class Pixels:
    """Decoded frames of one pixel format, as ffmpeg's rawvideo gives them."""

    def __init__(self, raw: bytes, pixel_format: str, width: int, height: int) -> None:
        self.pixel_format, self.width, self.height = pixel_format, width, height
        layout = _LAYOUTS[pixel_format.removesuffix("le")]
        self.depth = layout.depth
        self._shapes = layout.shapes(width, height)
        self.edge_px = 2 * max(2, *layout.chroma_step) + 1
        """Bicubic filters of chroma look so far."""
        samples = np.frombuffer(raw, np.uint16 if layout.depth > 8 else np.uint8)
        frame_samples = sum(math.prod(shape) for shape in self._shapes)
        assert len(samples) % frame_samples == 0, f"{len(samples)} samples are no whole frames of {frame_samples}"
        self._frames = samples.reshape(-1, frame_samples)

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, number: int) -> list[Channel]:
        """The channels of one frame, each (height, width): chroma of fewer samples is repeated to that size."""
        channels: list[Channel] = []
        offset = 0
        for shape in self._shapes:
            size = math.prod(shape)
            plane = self._frames[number, offset : offset + size].reshape(shape).astype(np.int32)
            offset += size
            for channel in [plane] if plane.ndim == 2 else np.moveaxis(plane, -1, 0):
                step_y, step_x = -(-self.height // channel.shape[0]), -(-self.width // channel.shape[1])
                rows, columns = np.arange(self.height) // step_y, np.arange(self.width) // step_x
                channels.append(channel[np.ix_(rows, columns)])
        return channels


class _Layout(NamedTuple):
    """How rawvideo lays out one pixel format: planes, or samples side by side."""

    depth: int
    planes: int
    chroma_step: tuple[int, int] = (1, 1)
    """Luma samples per chroma sample, across and down."""
    side_by_side: int = 1

    def shapes(self, width: int, height: int) -> list[tuple[int, ...]]:
        if self.side_by_side > 1:
            return [(height, width, self.side_by_side)]
        across, down = self.chroma_step
        chroma = (-(-height // down), -(-width // across))
        return [chroma if number in (1, 2) and self.planes >= 3 else (height, width) for number in range(self.planes)]


def _layouts() -> dict[str, _Layout]:
    layouts = {"rgb24": _Layout(8, 1, side_by_side=3), "rgb48": _Layout(16, 1, side_by_side=3)}
    layouts |= {name: _Layout(8, 1, side_by_side=4) for name in ("rgba", "bgra", "argb", "abgr", "bgr0", "0rgb")}
    layouts |= {"rgba64": _Layout(16, 1, side_by_side=4), "bgr24": _Layout(8, 1, side_by_side=3)}
    for depth, suffix in ((8, ""), (10, "10"), (12, "12"), (16, "16")):
        layouts["gray" + suffix] = _Layout(depth, 1)
        layouts["gbrp" + suffix] = _Layout(depth, 3)
        layouts["gbrap" + suffix] = _Layout(depth, 4)
        for name, step in {"420": (2, 2), "422": (2, 1), "444": (1, 1), "440": (1, 2), "411": (4, 1)}.items():
            for prefix, planes in (("yuv", 3), ("yuvj", 3), ("yuva", 4)):
                layouts[f"{prefix}{name}p{suffix}"] = _Layout(depth, planes, step)
    return layouts


_LAYOUTS = _layouts()


def decode(
    path: Path, stream: Stream, pixel_format: str | None = None, *, filters: str = "", decoder: str | None = None
) -> Pixels:
    """Decode one video stream whole, upright or not as stored, into its own or another pixel format."""
    wanted = pixel_format or str(stream.facts["pix_fmt"])
    raw = ffmpeg(
        *(("-c:v", decoder) if decoder else ()),
        *("-noautorotate", "-i", path, "-map", f"0:{stream.index}", "-fps_mode", "passthrough"),
        *(("-vf", filters) if filters else ()),
        *("-enc_time_base", "-1", "-sws_flags", ACCURATE, "-f", "rawvideo", "-pix_fmt", wanted, "-"),
    )
    return Pixels(raw, wanted, int(stream.facts["width"]), int(stream.facts["height"]))


def stream_sha256(path: Path, stream: Stream) -> str:
    """The digest over all packets of a stream, as they lie in the file."""
    told = ffmpeg("-i", path, "-map", f"0:{stream.index}", "-c", "copy", "-f", "streamhash", "-hash", "sha256", "-")
    return told.decode().strip().rpartition("=")[2]


def packet_sha256(path: Path, stream: Stream, bitstream_filter: str) -> list[str]:
    """The digest of every packet of a stream of sound, once it has gone through one of FFmpeg's bitstream filters."""
    told = ffmpeg(
        *("-i", path, "-map", f"0:{stream.index}", "-c", "copy", "-bsf:a", bitstream_filter),
        *("-f", "framehash", "-hash", "sha256", "-"),
    )
    lines = [line for line in told.decode().splitlines() if not line.startswith("#")]
    return [line.split(",")[5].strip() for line in lines]


@lru_cache(maxsize=4)
def _ffprobe(path: Path, modified_at_ns: int) -> dict[str, Any]:
    """Asked of a source by its writer, and soon again."""
    command = [
        "ffprobe",
        "-v",
        "error",
        "-show_streams",
        "-show_format",
        "-show_chapters",
        "-show_packets",
        "-show_frames",
    ]
    command += ["-show_data_hash", "sha256", "-of", "json", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    told: dict[str, Any] = json.loads(done.stdout)
    told["complaints"] = done.stderr
    return told


def _packet(item: dict[str, Any], time_base: Fraction) -> Packet:
    pts, dts = (int(item[name]) * time_base if name in item else None for name in ("pts", "dts"))
    return Packet(
        pts=pts,
        dts=dts,
        duration=int(item.get("duration", 0)) * time_base,
        sha256=item["data_hash"].removeprefix("SHA256:"),
        is_hidden="D" in item["flags"],
        is_key="K" in item["flags"],
        place=int(item.get("pos", -1)),
        size=int(item["size"]),
    )
