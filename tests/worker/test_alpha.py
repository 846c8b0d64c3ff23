"""Transparency from a source to a result: every frame's colours and transparency, or the user's word that it may go."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from worker.contract.failure import FailureCode, JobFailureError
from worker.contract.job import Container, JobOptions, VideoCodec
from worker.contract.report import Report
from worker.plan import Plan
from worker.video.alpha import enlarge_alpha

Rgba = npt.NDArray[np.uint8]
Upscale = Callable[..., tuple[Path, Report, Plan]]
FRAMES, WIDTH, HEIGHT = 8, 66, 50
LOSSLESS = JobOptions(quality="lossless", encoder_preset="ultrafast")


def picture(number: int) -> Rgba:
    """Smooth colours that move; a window of full, a wedge of rising and a frame of no opacity, that move too."""
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    colours = np.stack([40 + 2 * rows + 5 * number, 60 + 2 * columns, 200 - rows - columns], axis=-1)
    alpha = np.zeros((HEIGHT, WIDTH))
    alpha[8:40, 8:58] = (columns[8:40, 8:58] - 8) * 5
    alpha[12:24, 10 + number : 30 + number] = 255
    return np.concatenate([colours, alpha[..., np.newaxis]], axis=-1).clip(0, 255).astype(np.uint8)


def write_video(path: Path, codec: str, pixel_format: str, **options: str) -> Path:
    with av.open(str(path), "w") as container:
        video = container.add_stream(codec, rate=25)
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, pixel_format
        video.codec_context.options = options
        if codec.startswith("libvpx"):
            video.metadata["alpha_mode"] = "1"
        for number in range(FRAMES):
            frame = av.VideoFrame.from_ndarray(picture(number), "rgba").reformat(format=pixel_format)
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
    return path


def write_vp9(folder: Path) -> Path:
    return write_video(folder / "source.webm", "libvpx-vp9", "yuva420p", **{"lossless": "1", "auto-alt-ref": "0"})


def write_vp8(folder: Path) -> Path:
    return write_video(folder / "source.webm", "libvpx", "yuva420p", **{"crf": "4", "b": "2M", "auto-alt-ref": "0"})


def write_prores(folder: Path) -> Path:
    return write_video(folder / "source.mov", "prores_ks", "yuva444p10le", profile="4444", alpha_bits="16")


def write_png(folder: Path) -> Path:
    return write_video(folder / "source.mov", "png", "rgba")


def write_deep_png(folder: Path) -> Path:
    return write_video(folder / "source.mov", "png", "rgba64be")


def write_ffv1(folder: Path) -> Path:
    return write_video(folder / "source.mkv", "ffv1", "yuva444p")


def write_apng(folder: Path) -> Path:
    first, *others = (Image.fromarray(picture(number)) for number in range(FRAMES))
    first.save(folder / "source.png", save_all=True, append_images=others, duration=40, loop=0, disposal=1, blend=0)
    return folder / "source.png"


def decoded(path: Path) -> list[tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
    """Every frame as colours and transparency, 0 to 1, with nothing of ours."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        decoder = {"vp8": "libvpx", "vp9": "libvpx-vp9"}.get(stream.codec_context.name)
        if decoder is None:
            frames = list(container.decode(stream))
        else:
            library = av.CodecContext.create(decoder, "r")
            frames = [frame for packet in container.demux(stream) for frame in library.decode(packet)]
    return [of_yuva420p(frame) if frame.format.name == "yuva420p" else of_others(frame) for frame in frames]


def of_others(frame: av.VideoFrame) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    deep = max(component.bits for component in frame.format.components) > 8
    pixels = frame.reformat(format="rgba64le" if deep else "rgba").to_ndarray() / (65535 if deep else 255)
    return pixels[..., :3], pixels[..., 3]


def of_yuva420p(frame: av.VideoFrame) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """BT.601, limited range, by its equations: swscale's quick way has wrong colours at the edges of such frames."""
    planes = []
    for plane in frame.planes:
        samples = np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, -1)[:, : plane.width].astype(float)
        if plane.width < frame.width:
            samples = samples.repeat(2, axis=0).repeat(2, axis=1)[: frame.height, : frame.width]
        planes.append(samples)
    luma, blue, red = (planes[0] - 16) / 219, (planes[1] - 128) / 224, (planes[2] - 128) / 224
    green = luma - 0.344136 * blue - 0.714136 * red
    return np.stack([luma + 1.402 * red, green, luma + 1.772 * blue], axis=-1).clip(0, 1), planes[3] / 255


def enlarged(alpha: npt.NDArray[Any], *, deep: bool) -> npt.NDArray[Any]:
    full, dtype = (65535, np.uint16) if deep else (255, np.uint8)
    return enlarge_alpha((alpha * full).round().astype(dtype), 2) / full


@pytest.mark.parametrize(
    ("write", "codec", "pixel_format", "colour_levels", "alpha_levels"),
    [
        (write_vp9, VideoCodec.VP9, "yuva420p", 12, 1),
        (write_vp8, VideoCodec.VP9, "yuva420p", 12, 1),
        (write_ffv1, VideoCodec.FFV1, "yuva444p", 2, 0),
        (write_png, VideoCodec.FFV1, "bgra", 0, 0),
        (write_deep_png, VideoCodec.FFV1, "gbrap16le", 0, 0.1),
        (write_apng, VideoCodec.FFV1, "bgra", 0, 0),
    ],
)
def test_colours_and_transparency_of_every_frame_come_through(
    tmp_path: Path,
    upscale: Upscale,
    write: Callable[[Path], Path],
    codec: VideoCodec,
    pixel_format: str,
    colour_levels: float,
    alpha_levels: float,
) -> None:
    # given a video with transparency, and what it shows
    source = write(tmp_path)
    before = decoded(source)
    assert len(before) == FRAMES
    # when it is upscaled in several segments, without loss, to what is chosen for it
    container = Container.WEBM if source.suffix == ".webm" else Container.MKV
    result, report, plan = upscale(source, LOSSLESS.model_copy(update={"container": container}), segment_frames=3)
    # then that holds transparency, and nothing is lost
    assert (plan.encoding.codec, plan.picture.pixel_format, plan.picture.has_alpha) == (codec, pixel_format, True)
    assert (plan.losses, report.losses, report.lost_in_container) == ((), (), ())
    assert len(plan.segments) > 1
    # and each frame shows the same colours, of which every pixel is four, and the transparency beside them by Lanczos
    after = decoded(result)
    assert len(after) == FRAMES
    for (colours, alpha), (large_colours, large_alpha) in zip(before, after, strict=True):
        difference = np.abs(large_colours - colours.repeat(2, axis=0).repeat(2, axis=1)) * 255
        assert np.quantile(difference, 0.99) <= colour_levels
        assert np.abs(large_alpha - enlarged(alpha, deep=plan.picture.bit_depth > 8)).max() * 255 <= alpha_levels


def test_prores_keeps_its_transparency_in_prores(tmp_path: Path, upscale: Upscale) -> None:
    source = write_prores(tmp_path)
    before = decoded(source)
    result, report, plan = upscale(source, JobOptions(quality="high"), segment_frames=3)
    assert (plan.container, plan.encoding.codec) == (Container.MOV, VideoCodec.PRORES)
    assert plan.picture.pixel_format == "yuva444p10le"
    assert report.losses == ()
    for (colours, alpha), (large_colours, large_alpha) in zip(before, decoded(result), strict=True):
        assert np.abs(large_colours - colours.repeat(2, axis=0).repeat(2, axis=1)).mean() * 255 < 2
        assert np.abs(large_alpha - enlarged(alpha, deep=True)).max() * 255 <= 0.26  # a level of ten bits


@pytest.mark.parametrize("container", [Container.MP4, Container.MKV])
def test_transparency_that_the_result_cannot_hold_needs_consent_and_is_named(
    tmp_path: Path, upscale: Upscale, container: Container
) -> None:
    source = write_png(tmp_path)
    options = JobOptions(container=container, codec=VideoCodec.H264, encoder_preset="ultrafast")
    with pytest.raises(JobFailureError, match="would lose: transparency") as failure:
        upscale(source, options)
    assert failure.value.code is FailureCode.WOULD_LOSE
    result, report, plan = upscale(source, options.model_copy(update={"drop_unsupported": True}))
    assert not plan.picture.has_alpha
    assert any("transparency" in loss for loss in report.losses)
    with av.open(str(result)) as opened:
        assert len(list(opened.decode(video=0))) == FRAMES


def test_a_video_whose_transparency_is_opaque_all_over_keeps_it(tmp_path: Path, upscale: Upscale) -> None:
    # given ProRes with an alpha channel in which nothing is transparent: editors rely on it being there
    with av.open(str(tmp_path / "source.mov"), "w") as container:
        video = container.add_stream("prores_ks", rate=25)
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuva444p10le"
        video.codec_context.options = {"profile": "4444", "alpha_bits": "16"}
        opaque = picture(0)
        opaque[..., 3] = 255
        for number in range(3):
            frame = av.VideoFrame.from_ndarray(opaque, "rgba").reformat(format="yuva444p10le")
            # swscale leaves some pixels half transparent now and then, where the width is no multiple of 16
            plane = frame.planes[3]
            plane.update(np.full(plane.buffer_size // 2, 1023, np.uint16).tobytes())
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
    result, _, plan = upscale(tmp_path / "source.mov", JobOptions())
    assert plan.picture.has_alpha
    for _, alpha in decoded(result):
        assert (alpha > 0.999).all()


# --- animated pictures ------------------------------------------------------------------------------------------------


def write_gif(path: Path, pictures: list[Image.Image], **options: Any) -> Path:  # noqa: ANN401
    pictures[0].save(path, save_all=True, append_images=pictures[1:], **options)
    return path


def dots(*, transparent: bool) -> list[Image.Image]:
    """A palette of four colours; a square that moves over ground of the last one, which may be transparent."""
    frames = []
    for number in range(5):
        pixels = np.full((20, 30), 3, np.uint8)
        pixels[4:12, 2 + 4 * number : 10 + 4 * number] = number % 3
        image = Image.fromarray(pixels, "P")
        image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 90, 80, 70])
        if transparent:
            image.info["transparency"] = 3
        frames.append(image)
    return frames


@pytest.mark.filterwarnings("ignore:.*mode.*:DeprecationWarning")
@pytest.mark.parametrize(
    ("transparent", "disposal"),
    [(True, 0), (True, 1), (True, 2), (True, 3), (False, 0), (False, 1), (False, 2)],
    # Not (False, 3): FFmpeg puts the background colour where nothing was before the first picture.
)
def test_a_gif_shows_what_other_readers_show_at_its_times(
    tmp_path: Path, upscale: Upscale, transparent: bool, disposal: int
) -> None:
    # given a GIF of frames that last differently and are put away in one of GIF's ways, as Pillow shows it
    options = {"transparency": 3} if transparent else {}
    source = write_gif(
        tmp_path / "source.gif",
        dots(transparent=transparent),
        duration=[40, 100, 20, 500, 60],
        loop=0,
        disposal=disposal,
        optimize=False,
        **options,
    )
    shown, starts, now = [], [], 0
    with Image.open(source) as opened:
        for number in range(opened.n_frames):
            opened.seek(number)
            shown.append(np.asarray(opened.convert("RGBA")))
            starts.append(Fraction(now, 1000))
            now += opened.info["duration"]
    # when it is upscaled
    result, report, plan = upscale(source, JobOptions(), segment_frames=2)
    # then the result holds transparency only if there is any, and shows the same at the same times
    assert plan.container is Container.MKV
    assert plan.picture.has_alpha == transparent
    assert report.losses == ()
    with av.open(str(result)) as container:
        times = [frame.pts * frame.time_base for frame in container.decode(video=0)]
    assert times == starts
    for small, (colours, alpha) in zip(shown, decoded(result), strict=True):
        large = small.repeat(2, axis=0).repeat(2, axis=1)
        if not transparent:
            assert (alpha == 1).all()
            assert np.abs(colours * 255 - large[..., :3]).mean() < 6
        else:
            assert np.array_equal(
                (alpha * 255).round().astype(np.uint8), enlarge_alpha(np.ascontiguousarray(small[..., 3]), 2)
            )
            seen = large[..., 3] == 255
            assert np.array_equal((colours * 255).round()[seen], large[..., :3][seen])


def test_a_gif_of_one_picture_is_enough(tmp_path: Path, upscale: Upscale) -> None:
    source = write_gif(tmp_path / "source.gif", dots(transparent=True)[:1], transparency=3)
    result, report, _ = upscale(source, JobOptions())
    assert report.frames.result == 1
    assert len(decoded(result)) == 1
