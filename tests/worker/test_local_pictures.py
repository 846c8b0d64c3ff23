"""`vsr upscale` with pictures: into a zip or a folder, from a zip or a folder."""

import zipfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from worker.contract.failure import FailureCode, JobFailureError
from worker.contract.job import Container, JobOptions, Progress
from worker.local import Outcome, OutputExistsError, default_output, upscale_file
from worker.settings import VideoLimits, WorkerSettings
from worker.upscaler import FrameBatch, Upscaler
from worker.video.alpha import enlarge_alpha
from worker.video.pictures import read_png

MakeVideo = Callable[..., Path]
Run = Callable[..., Outcome]
NTSC = Fraction(1001, 30000)


class InterruptedUpscaler:
    """Repeats pixels until it has seen so many batches; then the user presses Ctrl-C."""

    fingerprint = "pixel-repeater"
    tile_px = None

    def __init__(self, batches: int) -> None:
        self.batches = batches

    def __call__(self, previous_lr: FrameBatch, center_lr: FrameBatch, next_lr: FrameBatch) -> FrameBatch:
        if self.batches == 0:
            raise KeyboardInterrupt
        self.batches -= 1
        return center_lr.repeat(2, axis=1).repeat(2, axis=2)


@pytest.fixture
def run(pixel_repeater: Upscaler) -> Run:
    """Upscale a file with the pixel repeater or another upscaler, in segments of six frames."""

    def upscale(
        source: Path,
        output: Path,
        options: JobOptions | None = None,
        *,
        upscaler: Upscaler = pixel_repeater,
        overwrite: bool = False,
        unpacked: bool = False,
        on_progress: Callable[[Progress], None] = lambda progress: None,
    ) -> Outcome:
        return upscale_file(
            source,
            output,
            options or JobOptions(),
            settings=WorkerSettings(batch_frames=2, segment_frames=6),
            limits=VideoLimits(),
            load_upscaler=lambda preset: upscaler,
            overwrite=overwrite,
            unpacked=unpacked,
            on_progress=on_progress,
        )

    return upscale


@pytest.fixture
def clip(make_video: MakeVideo) -> Path:
    """Lossless RGB of a rate and with a gap that no decimal holds."""
    return make_video(
        "clip.mov",
        frames=12,
        time_base=Fraction(1, 30000),
        pts=[1001 * number + (30030 if number > 6 else 0) for number in range(12)],
        codec="png",
        options={},
        pixel_format="rgb24",
    )


def write_png(path: Path, picture: np.ndarray, pixel_format: str = "rgb24") -> Path:
    encoder = av.CodecContext.create("png", "w")
    frame = av.VideoFrame.from_ndarray(picture, pixel_format)
    encoder.width, encoder.height, encoder.pix_fmt = frame.width, frame.height, pixel_format
    encoder.time_base = Fraction(1, 25)
    path.write_bytes(b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode(None)]))
    return path


def numbered_folder(folder: Path, count: int = 12) -> Path:
    folder.mkdir()
    for number in range(count):
        write_png(folder / f"{number}.png", np.random.default_rng(number).integers(0, 255, (24, 32, 3), dtype=np.uint8))
    return folder


def pictures(folder: Path) -> list[np.ndarray]:
    return [read_png(path, 100_000) for path in sorted(folder.glob("*.png"), key=lambda path: (len(path.name), path))]


def repeated(picture: np.ndarray) -> np.ndarray:
    return picture.repeat(2, axis=0).repeat(2, axis=1)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_folder_s_default_output_is_a_folder_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "frames").mkdir()
    assert default_output(tmp_path / "frames") == tmp_path / "frames_2x"
    monkeypatch.chdir(tmp_path / "frames")
    assert default_output(Path()) == tmp_path / "frames_2x"
    assert default_output(Path("frames.zip")) == Path("frames_2x.zip")


def test_a_video_becomes_pictures_in_a_zip_with_its_exact_times(clip: Path, run: Run, tmp_path: Path) -> None:
    outcome = run(clip, tmp_path / "frames.zip")
    assert outcome.report is not None
    assert outcome.report.frames.result == 12
    assert outcome.report.timestamps.exact
    with av.open(str(clip)) as container:
        before = [(frame.pts * frame.time_base, frame.to_ndarray()) for frame in container.decode(video=0)]
    (tmp_path / "out").mkdir()
    with zipfile.ZipFile(tmp_path / "frames.zip") as archive:
        archive.extractall(tmp_path / "out")
    after = pictures(tmp_path / "out")
    assert len(after) == 12
    for (_, picture), large in zip(before, after, strict=True):
        assert np.array_equal(large, repeated(picture))
    # and what reads them back finds the times
    back = run(tmp_path / "frames.zip", tmp_path / "back.mov", JobOptions(codec="prores"))
    with av.open(str(back.output)) as container:
        assert [frame.pts * frame.time_base for frame in container.decode(video=0)] == [time for time, _ in before]


def test_a_video_becomes_a_folder_of_the_same_pictures(clip: Path, run: Run, tmp_path: Path) -> None:
    run(clip, tmp_path / "frames.zip")
    outcome = run(clip, tmp_path / "frames", unpacked=True)
    assert outcome.output == tmp_path / "frames"
    with zipfile.ZipFile(tmp_path / "frames.zip") as archive:
        assert names(tmp_path / "frames") == set(archive.namelist())
        for name in archive.namelist():
            assert (tmp_path / "frames" / name).read_bytes() == archive.read(name)
    assert names(tmp_path) == {"clip.mov", "frames.zip", "frames"}


@pytest.mark.parametrize("packed", [True, False])
def test_pictures_become_pictures(run: Run, tmp_path: Path, packed: bool) -> None:
    source = numbered_folder(tmp_path / "frames")
    before = pictures(source)
    if packed:
        with zipfile.ZipFile(tmp_path / "frames.zip", "w") as archive:
            for path in source.iterdir():
                archive.write(path, f"frames/{path.name}")
        source = tmp_path / "frames.zip"
    output = default_output(source)
    outcome = run(source, output, unpacked=not packed)
    if packed:
        (tmp_path / "out").mkdir()
        with zipfile.ZipFile(output) as archive:
            archive.extractall(tmp_path / "out")
    for small, large in zip(before, pictures(tmp_path / "out" if packed else output), strict=True):
        assert np.array_equal(large, repeated(small))
    assert outcome.report is not None
    assert outcome.report.source.container == "zip"


@pytest.mark.parametrize(
    ("pixel_format", "channels", "dtype"),
    [
        ("gray", 1, np.uint8),
        ("rgba", 4, np.uint8),
        ("gray16be", 1, np.uint16),
        ("rgb48be", 3, np.uint16),
        ("rgba64be", 4, np.uint16),
    ],
)
def test_pictures_of_every_kind_become_pictures_of_that_kind(
    run: Run, tmp_path: Path, pixel_format: str, channels: int, dtype: type
) -> None:
    (tmp_path / "frames").mkdir()
    full = int(np.iinfo(dtype).max)
    shape = (24, 32, channels) if channels > 1 else (24, 32)
    before = [np.random.default_rng(n).integers(0, full, shape, dtype=dtype, endpoint=True) for n in range(3)]
    for number, picture in enumerate(before):
        write_png(tmp_path / "frames" / f"{number}.png", picture, pixel_format)
    outcome = run(tmp_path / "frames", tmp_path / "out", unpacked=True)
    assert outcome.report is not None
    assert outcome.report.losses == ()
    for number, picture in enumerate(before):
        with av.open(str(tmp_path / "out" / f"frame-{number + 1:06d}.png")) as opened:
            frame = next(opened.decode(video=0))
        assert frame.format.name == pixel_format
        after = frame.to_ndarray()
        if channels == 4:
            assert np.array_equal(after[..., 3], enlarge_alpha(np.ascontiguousarray(picture[..., 3]), 2))
            after, picture = after[..., :3], picture[..., :3]
        assert np.array_equal(after, repeated(picture))


def test_a_palette_keeps_its_transparent_colours(run: Run, tmp_path: Path) -> None:
    # given pictures with a palette, of which one colour is transparent, as Pillow writes them
    (tmp_path / "frames").mkdir()
    for number in range(2):
        image = Image.fromarray(np.full((24, 32), number, np.uint8), "P")
        image.putpalette([200, 10, 20, 30, 40, 50])
        image.save(tmp_path / "frames" / f"{number}.png", transparency=1)
    run(tmp_path / "frames", tmp_path / "out", unpacked=True)
    for number, expected in enumerate([(200, 10, 20, 255), (30, 40, 50, 0)]):
        with Image.open(tmp_path / "out" / f"frame-{number + 1:06d}.png") as image:
            assert (np.asarray(image.convert("RGBA")) == expected).all()


def test_title_and_chapters_come_through_pictures_and_back(make_video: MakeVideo, run: Run, tmp_path: Path) -> None:
    source = make_video("film.mp4", frames=30, chapters=3, metadata={"title": "A film"})
    run(source, tmp_path / "frames.zip")
    back = run(tmp_path / "frames.zip", tmp_path / "back.mkv", JobOptions(codec="h264", encoder_preset="ultrafast"))
    with av.open(str(back.output)) as container:
        assert container.metadata["title"] == "A film"
        found = [(part["start"] * part["time_base"], part["metadata"]["title"]) for part in container.chapters()]
    assert found == [(Fraction(number, 10), f"Chapter {number}") for number in range(3)]


def test_pictures_become_a_video_at_the_rate_that_the_user_says(run: Run, tmp_path: Path) -> None:
    source = numbered_folder(tmp_path / "frames")
    outcome = run(source, tmp_path / "film.mp4", JobOptions(frame_rate="24000/1001", encoder_preset="ultrafast"))
    with av.open(str(outcome.output)) as container:
        assert [frame.pts * frame.time_base for frame in container.decode(video=0)] == [
            number * Fraction(1001, 24000) for number in range(12)
        ]


@pytest.mark.parametrize("unpacked", [False, True])
def test_a_second_run_finds_the_pictures_finished(clip: Path, run: Run, tmp_path: Path, unpacked: bool) -> None:
    output = tmp_path / ("frames" if unpacked else "frames.zip")
    run(clip, output, unpacked=unpacked)
    before = output.stat().st_mtime_ns
    # a folder that is there says what it is
    assert run(clip, output).already_done
    assert output.stat().st_mtime_ns == before


def test_a_folder_that_lost_a_picture_is_not_finished(clip: Path, run: Run, tmp_path: Path) -> None:
    run(clip, tmp_path / "frames", unpacked=True)
    (tmp_path / "frames" / "frame-000003.png").unlink()
    with pytest.raises(OutputExistsError, match="was not made by vsr"):
        run(clip, tmp_path / "frames")
    assert not run(clip, tmp_path / "frames", overwrite=True).already_done
    assert (tmp_path / "frames" / "frame-000003.png").exists()


def test_an_empty_folder_is_filled(clip: Path, run: Run, tmp_path: Path) -> None:
    (tmp_path / "frames").mkdir()
    run(clip, tmp_path / "frames")
    assert len(names(tmp_path / "frames")) == 14


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_with_other_files_is_left_alone(clip: Path, run: Run, tmp_path: Path, overwrite: bool) -> None:
    run(clip, tmp_path / "frames", unpacked=True)
    (tmp_path / "frames" / "notes.txt").write_text("mine")
    before = names(tmp_path / "frames")
    with pytest.raises(OutputExistsError, match=r"holds other files \(notes.txt\)"):
        run(clip, tmp_path / "frames", JobOptions(frame_rate=None), overwrite=overwrite)
    assert names(tmp_path / "frames") == before


def test_pictures_of_another_source_are_replaced_only_when_asked(
    clip: Path, make_video: MakeVideo, run: Run, tmp_path: Path
) -> None:
    other = make_video("other.mov", frames=3, codec="png", options={}, pixel_format="rgb24")
    run(clip, tmp_path / "frames", unpacked=True)
    with pytest.raises(OutputExistsError, match="was made from another source"):
        run(other, tmp_path / "frames")
    run(other, tmp_path / "frames", overwrite=True)
    assert len(pictures(tmp_path / "frames")) == 3
    assert names(tmp_path) == {"clip.mov", "other.mov", "frames"}


@pytest.mark.parametrize("unpacked", [False, True])
def test_an_interrupted_run_from_pictures_to_pictures_goes_on_to_the_same_bytes(
    run: Run, tmp_path: Path, unpacked: bool
) -> None:
    # given an undisturbed result, and a run that Ctrl-C ends in its second segment
    source = numbered_folder(tmp_path / "frames")
    run(source, tmp_path / "undisturbed.zip")
    output = tmp_path / ("out" if unpacked else "out.zip")
    with pytest.raises(KeyboardInterrupt):
        run(source, output, upscaler=InterruptedUpscaler(batches=4), unpacked=unpacked)
    assert not output.exists()
    workspace = tmp_path / f"{output.name}.vsr-work"
    assert (workspace / "pictures.mov").exists()
    # when it is run again, though what was made of the pictures is lost
    (workspace / "pictures.mov").unlink()
    outcome = run(source, output, unpacked=unpacked)
    # then it starts behind the finished segment, and gives the same
    assert outcome.resumed_segments == 1
    if unpacked:
        with zipfile.ZipFile(tmp_path / "undisturbed.zip") as archive:
            for name in archive.namelist():
                assert (output / name).read_bytes() == archive.read(name)
    else:
        assert output.read_bytes() == (tmp_path / "undisturbed.zip").read_bytes()
    assert not workspace.exists()


def test_a_run_that_was_killed_while_it_unpacked_goes_on(clip: Path, run: Run, tmp_path: Path) -> None:
    run(clip, tmp_path / "undisturbed", unpacked=True)
    with pytest.raises(KeyboardInterrupt):
        run(clip, tmp_path / "frames", upscaler=InterruptedUpscaler(batches=4), unpacked=True)
    half_done = tmp_path / "frames.vsr-work" / "unpacked"
    half_done.mkdir()
    (half_done / "frame-000001.png").write_bytes(b"half a pic")
    run(clip, tmp_path / "frames", unpacked=True)
    assert names(tmp_path / "frames") == names(tmp_path / "undisturbed")


def test_sound_beside_pictures_needs_consent(make_video: MakeVideo, run: Run, tmp_path: Path) -> None:
    source = make_video("clip.mp4", audio_tracks=1)
    with pytest.raises(JobFailureError, match="audio stream 1") as failure:
        run(source, tmp_path / "frames.zip")
    assert failure.value.code is FailureCode.WOULD_LOSE
    outcome = run(source, tmp_path / "frames.zip", JobOptions(drop_unsupported=True))
    assert outcome.report is not None
    assert any("audio stream 1" in loss for loss in outcome.report.losses)


def test_a_result_in_the_source_s_own_folder_is_refused(run: Run, tmp_path: Path) -> None:
    source = numbered_folder(tmp_path / "frames")
    with pytest.raises(JobFailureError, match="lies in the folder of the source"):
        run(source, source / "result.mp4")
    with pytest.raises(OutputExistsError, match="the source itself"):
        run(source, source, overwrite=True)
    assert len(names(source)) == 12


def test_a_refused_sequence_leaves_nothing_behind(run: Run, tmp_path: Path) -> None:
    source = numbered_folder(tmp_path / "frames", 2)
    (source / "notes.txt").write_text("mine")
    with pytest.raises(JobFailureError, match=r"notes.txt is not a PNG picture"):
        run(source, tmp_path / "film.mkv")
    assert names(tmp_path) == {"frames"}


def test_a_file_is_no_folder_for_pictures(clip: Path, run: Run, tmp_path: Path) -> None:
    (tmp_path / "frames").write_text("mine")
    with pytest.raises(OutputExistsError, match="is a file"):
        run(clip, tmp_path / "frames", unpacked=True, overwrite=True)
    assert (tmp_path / "frames").read_text() == "mine"


def test_pictures_have_no_other_container_than_a_zip(run: Run, clip: Path, tmp_path: Path) -> None:
    with pytest.raises(JobFailureError, match="cannot hold") as failure:
        run(clip, tmp_path / "frames.zip", JobOptions(codec="h264"))
    assert failure.value.code is FailureCode.UNSUPPORTED_OUTPUT
    assert Container.ZIP.media_type == "application/zip"
