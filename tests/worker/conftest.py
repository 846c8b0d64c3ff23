"""Videos generated for one property each, the upscaler that hides no error, and an independent look at files."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest

from worker.assemble import assemble
from worker.contract.job import JobOptions
from worker.contract.report import Report
from worker.contract.storage import JobFolder
from worker.pipeline import render_segment
from worker.plan import Plan, make_plan
from worker.settings import VideoLimits
from worker.upscaler import PixelRepeater, Upscaler

RgbImage = npt.NDArray[np.uint8]
FAST = JobOptions(encoder_preset="ultrafast")

REPOSITORY = Path(__file__).parents[2]
SHARED_CLIPS = REPOSITORY.parent / "shared" / "data" / "clips"


WINDOWS_MEDIA: dict[str, object] = {
    "time_base": Fraction(1, 1000),
    "codec": "wmv2",
    "options": {"qscale": "3"},
    "audio_tracks": 1,
    "audio_codec": "wmav2",
}
"""Properties of a video whose sound no container of ours holds."""


@dataclass
class VideoSpec:
    """One generated video; every default is the plainest choice."""

    frames: int = 12
    width: int = 64
    height: int = 48
    time_base: Fraction = Fraction(1, 12800)
    pts: Sequence[int] | None = None
    """None: 25 frames per second from zero."""
    codec: str = "libx264"
    options: dict[str, str] = field(default_factory=lambda: {"preset": "ultrafast", "crf": "12"})
    pixel_format: str = "yuv420p"
    colour: tuple[int, int, int, int] | None = None
    """Matrix, range, primaries, transfer."""
    sample_aspect_ratio: Fraction | None = None
    rotation: int | None = None
    audio_tracks: int = 0
    audio_codec: str = "aac"
    audio_start_seconds: Fraction = Fraction(0)
    subtitle_codec: str | None = None
    chapters: int = 0
    attachment: bytes | None = None
    cover: bool = False
    metadata: dict[str, str] = field(default_factory=dict)
    muxer_options: dict[str, str] = field(default_factory=dict)
    picture: Callable[[int, int, int], RgbImage] | None = None

    def times(self) -> Sequence[int]:
        step = round(Fraction(1, 25) / self.time_base)
        return self.pts if self.pts is not None else [number * step for number in range(self.frames)]


def numbered_picture(number: int, width: int, height: int) -> RgbImage:
    """A gradient, and a bright bar whose place says the number of the frame."""
    rows, columns = np.mgrid[0:height, 0:width]
    picture = np.stack([rows * 255 // height, columns * 255 // width, (rows + columns) % 256], axis=-1).astype(np.uint8)
    left = number * 5 % (width - 4) if width > 4 else 0
    picture[height // 4 : height // 2, left : left + 4] = 255
    return picture


def write_video(path: Path, **properties: object) -> Path:
    """Write a `VideoSpec` to `path`, whose suffix says the container."""
    spec = VideoSpec(**properties)
    with av.open(str(path), "w", options=spec.muxer_options) as container:
        container.metadata.update(spec.metadata)
        video = _add_video(container, spec)
        sounds = [_add_sound(container, spec, number) for number in range(spec.audio_tracks)]
        subtitles = container.add_mux_stream(spec.subtitle_codec) if spec.subtitle_codec else None
        if spec.attachment is not None:
            container.add_attachment("font.ttf", "font/ttf", spec.attachment)
        cover = container.add_stream("mjpeg", rate=1) if spec.cover else None
        if cover is not None:
            cover.width, cover.height, cover.pix_fmt = 32, 32, "yuvj420p"
            cover.disposition = av.stream.Disposition.attached_pic
        if spec.chapters:
            container.set_chapters(
                [
                    {
                        "id": number,
                        "start": number * 100,
                        "end": number * 100 + 100,
                        "time_base": Fraction(1, 1000),
                        "metadata": {"title": f"Chapter {number}"},
                    }
                    for number in range(spec.chapters)
                ]
            )
        if cover is not None:
            image = av.VideoFrame.from_ndarray(numbered_picture(0, 32, 32), "rgb24")
            container.mux(cover.encode(image))
            container.mux(cover.encode(None))
        picture = spec.picture or numbered_picture
        times = spec.times()
        for number, pts in enumerate(times):
            frame = av.VideoFrame.from_ndarray(picture(number, spec.width, spec.height), "rgb24")
            frame.pts, frame.time_base = pts, spec.time_base
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        seconds = (times[-1] - times[0]) * spec.time_base + Fraction(1, 25) if times else Fraction(1)
        for number, sound in enumerate(sounds):
            _encode_sound(container, sound, spec.audio_start_seconds, seconds, pitch=440 * (number + 1))
        if subtitles is not None:
            for number in range(2):
                text = f"line {number}".encode()
                packet = av.Packet(len(text).to_bytes(2, "big") + text if spec.subtitle_codec == "mov_text" else text)
                packet.stream, packet.time_base = subtitles, Fraction(1, 1000)
                packet.pts = packet.dts = number * 100
                packet.duration = 100
                packet.is_keyframe = True
                container.mux(packet)
    return path


def _add_video(container: av.container.OutputContainer, spec: VideoSpec) -> av.VideoStream:
    video = container.add_stream(spec.codec, rate=25)
    video.width, video.height, video.pix_fmt = spec.width, spec.height, spec.pixel_format
    video.time_base = spec.time_base
    video.codec_context.time_base = spec.time_base
    video.codec_context.options = spec.options
    if spec.colour:
        context = video.codec_context
        context.colorspace, context.color_range, context.color_primaries, context.color_trc = spec.colour
    if spec.sample_aspect_ratio:
        video.codec_context.sample_aspect_ratio = spec.sample_aspect_ratio
    if spec.rotation:
        video.set_display_rotation(spec.rotation)
    return video


def _add_sound(container: av.container.OutputContainer, spec: VideoSpec, number: int) -> av.AudioStream:
    sound = container.add_stream(spec.audio_codec, rate=48000)
    sound.bit_rate = 128_000
    sound.metadata["language"] = ("eng", "deu", "fra")[number]
    return sound


def _encode_sound(
    container: av.container.OutputContainer, sound: av.AudioStream, start: Fraction, seconds: Fraction, pitch: int
) -> None:
    samples = np.arange(int(seconds * 48000))
    wave = (np.sin(samples * (2 * np.pi * pitch / 48000)) * 8000).astype(np.int16)
    for begin in range(0, len(wave), 1024):
        part = wave[begin : begin + 1024]
        stereo = np.repeat(part, 2)[np.newaxis]
        frame = av.AudioFrame.from_ndarray(stereo, format="s16", layout="stereo")
        frame.sample_rate, frame.time_base = 48000, Fraction(1, 48000)
        frame.pts = begin + int(start * 48000)
        container.mux(sound.encode(frame))
    container.mux(sound.encode(None))


@dataclass
class SeenStream:
    """A stream as this independent reader finds it."""

    type: str
    codec: str | None
    times: list[Fraction]
    payload_md5: str
    language: str | None
    disposition: int


@dataclass
class SeenFile:
    streams: list[SeenStream]
    frame_times: list[Fraction]
    frames: list[av.VideoFrame]
    metadata: dict[str, str]
    chapters: list[tuple[Fraction, str]]

    def of_type(self, kind: str) -> list[SeenStream]:
        return [stream for stream in self.streams if stream.type == kind]


def look_at(path: Path, *, video: int = 0) -> SeenFile:
    """Read a file with nothing of ours: packets of every stream, and the decoded frames of one video stream."""
    with av.open(str(path)) as container:
        packets: dict[int, list[Any]] = {stream.index: [] for stream in container.streams}
        for packet in container.demux():
            if packet.size or packet.dts is not None:
                packets[packet.stream_index].append(packet)
        streams = [
            SeenStream(
                type=stream.type,
                codec=stream.codec_context.codec.canonical_name if stream.codec_context else None,
                times=[packet.pts * packet.time_base for packet in packets[stream.index] if packet.pts is not None],
                payload_md5=hashlib.md5(
                    stream.data
                    if isinstance(stream, av.stream.AttachmentStream)
                    else b"".join(bytes(packet) for packet in packets[stream.index])
                ).hexdigest(),
                language=stream.language,
                disposition=int(stream.disposition),
            )
            for stream in container.streams
        ]
        metadata = {key.lower(): value for key, value in container.metadata.items()}
        chapters = [
            (item["start"] * item["time_base"], item["metadata"].get("title", "")) for item in container.chapters()
        ]
    with av.open(str(path)) as container:
        frames = list(container.decode(video=video))
        times = [frame.pts * frame.time_base for frame in frames]
    return SeenFile(streams, times, frames, metadata, chapters)


def upscale_in_segments(
    source: Path,
    folder: Path,
    options: JobOptions = FAST,
    *,
    upscaler: Upscaler | None = None,
    segment_frames: int | None = None,
    only: Iterable[int] | None = None,
) -> tuple[Plan, list[Path]]:
    """Plan `source` and render its segments (or `only` some) into `folder`."""
    folder.mkdir(exist_ok=True)
    plan = make_plan(source, options, VideoLimits(), source.suffix, segment_frames=segment_frames)
    paths = [folder / plan.segment_file(JobFolder(folder), segment.index).name for segment in plan.segments]
    for index in range(len(paths)) if only is None else only:
        render_segment(
            plan,
            index,
            source,
            paths[index],
            upscaler or PixelRepeater(),
            batch_frames=4,
            figures=paths[index].with_suffix(".json"),
        )
    return plan, paths


def upscale_whole(source: Path, folder: Path, options: JobOptions = FAST, **how: Any) -> tuple[Path, Report, Plan]:  # noqa: ANN401
    """Plan, render and assemble `source` into a new file in `folder`."""
    plan, segments = upscale_in_segments(source, folder, options, **how)
    result = folder / f"{source.stem}_2x.{plan.container}"
    return result, assemble(plan, source, segments, result), plan


@pytest.fixture
def make_video(tmp_path: Path) -> Callable[..., Path]:
    """Write a generated video of the given name and `VideoSpec` properties."""
    return lambda name, **properties: write_video(tmp_path / name, **properties)


@pytest.fixture
def look() -> Callable[..., SeenFile]:
    return look_at


@pytest.fixture
def upscale(tmp_path: Path) -> Callable[..., tuple[Path, Report, Plan]]:
    """Upscale a whole file with the pixel repeater; returns the result, its report and its plan."""
    folder = tmp_path / "work"
    return lambda source, *args, **how: upscale_whole(source, folder, *args, **how)


@pytest.fixture
def render(tmp_path: Path) -> Callable[..., tuple[Plan, list[Path]]]:
    """Plan a file and render its segments with the pixel repeater; returns the plan and the segments' paths."""
    folder = tmp_path / "work"
    return lambda source, *args, **how: upscale_in_segments(source, folder, *args, **how)


@pytest.fixture
def pixel_repeater() -> PixelRepeater:
    return PixelRepeater()


@pytest.fixture(scope="session")
def real_clips() -> list[Path]:
    """Real videos: the shared ones where they lie beside the checkout, else the example in the repository."""
    return sorted(SHARED_CLIPS.iterdir()) if SHARED_CLIPS.is_dir() else sorted((REPOSITORY / "examples").glob("*.mp4"))
