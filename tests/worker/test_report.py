"""The report: what it says of the result is read from the result, and a promise that is not kept fails the job."""

import hashlib
import struct
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

import worker.assemble
from tests.worker.conftest import WINDOWS_MEDIA
from worker.assemble import assemble, network_name
from worker.contract.failure import FailureCode, JobFailureError
from worker.contract.job import Container, JobOptions
from worker.contract.report import PropertyReport, Report, StreamReport
from worker.plan import Plan, sha256_of_file
from worker.report import timestamp_report
from worker.upscaler import PixelRepeater
from worker.video.check_picture import check_picture
from worker.video.frames import RgbFrame
from worker.video.values import Colour, ContentLight, Crop, MasteringDisplay, Picture
from worker.video.verify import Timing

MakeVideo = Callable[..., Path]
Upscale = Callable[..., tuple[Path, Report, Plan]]
Render = Callable[..., tuple[Plan, list[Path]]]
MKV = JobOptions(container=Container.MKV, encoder_preset="ultrafast")
UPRIGHT = (65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
NINETY_DEGREES = (0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)

PROMISED = Picture(
    width=128,
    height=96,
    pixel_format="yuv420p10le",
    bit_depth=10,
    colour=Colour(matrix=9, range=1, primaries=9, transfer=16, conversion="bt2020", chroma_location="left"),
    sample_aspect_ratio=Fraction(4, 3),
    display_matrix=NINETY_DEGREES,
    field_order="progressive",
    crop=Crop(left=8, right=8, top=0, bottom=0),
    mastering_display=MasteringDisplay(
        primaries=(
            (Fraction(34, 50), Fraction(8, 25)),
            (Fraction(1, 4), Fraction(2, 3)),
            (Fraction(1, 7), Fraction(1, 16)),
        ),
        white_point=(Fraction(3127, 10000), Fraction(329, 1000)),
        min_luminance=Fraction(1, 200),
        max_luminance=Fraction(1000),
    ),
    content_light=ContentLight(max_content=1000, max_frame_average=400),
)


def the(report: Report, name: str) -> PropertyReport:
    return next(line for line in report.properties if line.name == name)


def stream(report: Report, kind: str) -> StreamReport:
    return next(one for one in report.streams if one.type == kind)


def test_a_picture_that_is_as_promised_has_nothing_wrong_and_nothing_lost() -> None:
    assert check_picture(PROMISED, PROMISED) == ((), ())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"width": 126}, "126x96 instead of 128x96"),
        ({"pixel_format": "yuv422p10le"}, "4:2:2 instead of 4:2:0"),
        ({"pixel_format": "yuv420p", "bit_depth": 8}, "8 bits instead of 10"),
        ({"has_alpha": True}, "transparency"),
        ({"field_order": "top_first"}, "top_first instead of progressive"),
        ({"colour": {"range": 2}}, "full range is True"),
        ({"colour": {"conversion": "bt709", "matrix": 1}}, "bt709 instead of bt2020"),
        ({"colour": {"primaries": 1}}, "primaries are tagged 1 instead of 9"),
        ({"colour": {"transfer": 2}}, "transfer are tagged 2 instead of 16"),
        ({"display_matrix": None}, "rotation is None"),
        ({"crop": None}, "clean aperture is none"),
        ({"mastering_display": None}, "mastering display is None"),
        ({"content_light": None}, "content light is None"),
        ({"content_light": ContentLight(max_content=1000, max_frame_average=401)}, "content light"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_picture_that_would_be_shown_otherwise_is_wrong(change: dict[str, Any], words: str) -> None:
    if isinstance(change.get("colour"), dict):
        change = {"colour": PROMISED.colour.model_copy(update=change["colour"])}
    wrong, _ = check_picture(PROMISED.model_copy(update=change), PROMISED)
    assert len(wrong) == 1
    assert words in wrong[0]


def test_a_codec_may_round_the_mastering_display_to_its_own_units() -> None:
    display = PROMISED.mastering_display
    assert display is not None
    rounded = display.model_copy(update={"max_luminance": Fraction(10_000_001, 10_000)})
    assert check_picture(PROMISED.model_copy(update={"mastering_display": rounded}), PROMISED) == ((), ())
    darker = display.model_copy(update={"max_luminance": Fraction(900)})
    assert check_picture(PROMISED.model_copy(update={"mastering_display": darker}), PROMISED)[0]


def test_what_a_container_rounds_away_is_named_not_failed() -> None:
    square = PROMISED.model_copy(update={"sample_aspect_ratio": None})
    assert check_picture(square, PROMISED) == (
        (),
        ("the pixels' aspect ratio 4/3 cannot be stored: they become square",),
    )


def test_both_sides_are_told_of_a_file_that_is_kept_whole(make_video: MakeVideo, upscale: Upscale) -> None:
    # given a film with all sorts of things
    source = make_video(
        "film.mkv",
        time_base=Fraction(1, 1000),
        frames=30,
        audio_tracks=2,
        subtitle_codec="subrip",
        attachment=b"not really a font",
        chapters=3,
        metadata={"title": "A film"},
        colour=(1, 1, 1, 1),
        sample_aspect_ratio=Fraction(4, 3),
    )
    result, report, plan = upscale(source, segment_frames=10)

    # then both files are described
    assert (report.source.width, report.source.height) == (64, 48)
    assert (report.result.width, report.result.height) == (128, 96)
    assert (report.source.sha256, report.source.size_bytes) == (sha256_of_file(source), source.stat().st_size)
    assert (report.result.sha256, report.result.size_bytes) == (sha256_of_file(result), result.stat().st_size)
    # and no property is changed but the size
    assert {line.outcome for line in report.properties if line.name != "frame_size"} == {"kept"}
    assert (the(report, "colour_matrix").source, the(report, "sample_aspect_ratio").result) == ("bt709", "4/3")
    assert (report.source.chapters, report.result.chapters) == (3, 3)
    # and each stream has its like in the result
    for one in report.streams[1:]:
        assert one.outcome == "copied"
        assert one.result is not None
        assert (one.result.language, one.result.packets, one.result.sha256) == (one.language, one.packets, one.sha256)
    assert [one.language for one in report.streams[1:3]] == ["eng", "deu"]
    # and there is nothing to say in one line
    assert report.changes == ()
    assert (report.frames.source, report.frames.result, report.timestamps.exact) == (30, 30, True)
    assert set(report.stage_seconds) == {"plan", "decode", "infer", "wait", "encode", "check", "assemble"}
    infer, wait = report.stage_seconds["infer"], report.stage_seconds["wait"]
    assert report.device_busy == pytest.approx(infer / (infer + wait), abs=0.001)
    assert report.frames_per_second is not None
    one_after_the_other = sum(report.stage_seconds[stage] for stage in ("plan", "infer", "wait", "assemble"))
    assert 30 / report.frames_per_second == pytest.approx(one_after_the_other, rel=0.01)
    assert report.quality.frames_compared == 2 * len(plan.segments)
    assert report.network == network_name(PixelRepeater().fingerprint)
    assert report.quality.segments_without_figures == 0


def test_sound_and_picture_are_compared_at_start_middle_and_end(make_video: MakeVideo, upscale: Upscale) -> None:
    source = make_video("late.mp4", frames=30, audio_tracks=1, audio_start_seconds=Fraction(1, 10))
    _, report, _ = upscale(source, MKV, segment_frames=10)
    assert [offset.at for offset in report.sound_offsets] == ["start", "middle", "end"]
    for offset in report.sound_offsets:
        assert abs(offset.result_seconds - offset.source_seconds) <= 0.001


@pytest.mark.parametrize("container", [Container.MKV, Container.MOV, Container.WEBM])
def test_converted_sound_is_compared_by_what_is_heard(
    make_video: MakeVideo, upscale: Upscale, container: Container
) -> None:
    source = make_video("old.wmv", frames=30, **WINDOWS_MEDIA)
    _, report, _ = upscale(source, JobOptions(container=container, encoder_preset="ultrafast"))
    assert [offset.at for offset in report.sound_offsets] == ["start", "middle", "end"]
    assert stream(report, "audio").outcome == "converted"
    assert "audio stream 1 (wmav2) converted" in report.changes


def test_what_was_dropped_with_consent_is_listed(make_video: MakeVideo, upscale: Upscale) -> None:
    source = make_video("film.mkv", time_base=Fraction(1, 1000), subtitle_codec="subrip", audio_tracks=1)
    options = JobOptions(container=Container.MP4, encoder_preset="ultrafast", drop_unsupported=True)
    _, report, plan = upscale(source, options)
    assert report.losses == plan.losses
    assert len(report.losses) == 1
    subtitle = stream(report, "subtitle")
    assert (subtitle.outcome, subtitle.result) == ("dropped", None)
    assert "mp4 cannot hold subrip" in (subtitle.why or "")
    assert "subtitle stream 2 (subrip) dropped" in report.changes


def test_rotation_is_told_in_words(make_video: MakeVideo, upscale: Upscale) -> None:
    _, report, _ = upscale(make_video("sideways.mp4", rotation=-90, frames=5))
    assert the(report, "rotation") == PropertyReport(
        name="rotation", source="90 degrees clockwise", result="90 degrees clockwise", outcome="kept"
    )


def test_rounded_times_are_no_longer_called_exact(make_video: MakeVideo, upscale: Upscale) -> None:
    source = make_video(
        "ntsc.mp4", frames=30, pts=[1001 * number for number in range(30)], time_base=Fraction(1, 30000)
    )
    _, report, _ = upscale(source, MKV)
    assert not report.timestamps.exact
    assert 0 < report.timestamps.largest_rounding_seconds <= 0.0005
    assert "rounded" in report.timestamps.words
    assert any("rounded" in change for change in report.changes)
    assert the(report, "time_base").outcome == "converted"


def test_a_start_that_a_container_shifts_is_told_and_not_called_exact() -> None:
    shifted = timestamp_report(Timing(shift=Fraction(1, 5), rounding=Fraction(0)))
    assert (shifted.exact, shifted.largest_rounding_seconds, shifted.shift_seconds) == (False, 0, 0.2)
    assert shifted.words.startswith("at the source's own distances; all streams alike start 200.000 ms later")


def test_scene_cuts_are_listed_with_their_times(make_video: MakeVideo, upscale: Upscale) -> None:
    def two_shots(number: int, width: int, height: int) -> RgbFrame:
        rows, columns = np.mgrid[0:height, 0:width]
        if number < 12:
            return np.stack([rows * 2, columns, rows], axis=-1).astype(np.uint8)
        return np.stack([255 - columns, 200 - rows, columns * 2 + 60], axis=-1).astype(np.uint8)

    _, report, _ = upscale(make_video("shots.mp4", frames=30, picture=two_shots), segment_frames=10)
    assert [(cut.frame, cut.seconds) for cut in report.scene_cuts] == [(12, 0.48)]


def test_segments_without_figures_are_counted_not_missed(make_video: MakeVideo, render: Render, tmp_path: Path) -> None:
    plan, segments = render(make_video("long.mp4", frames=40), segment_frames=10)
    segments[1].with_suffix(".json").unlink()
    segments[2].with_suffix(".json").write_text("{}")
    report = assemble(plan, tmp_path / "long.mp4", segments, tmp_path / "result.mp4")
    assert report.quality.segments_without_figures == 2
    assert report.quality.frames_compared == 4


# --- results that are not what they should be -------------------------------------------------------------------------


def remuxed(
    path: Path,
    *,
    sound_later_seconds: Fraction = Fraction(0),
    rotated: bool = True,
    stream_metadata: Mapping[str, str] | None = None,
    with_chapters: bool = True,
    without: tuple[str, int] | None = None,
    other_byte_in: tuple[str, int] | None = None,
    late: tuple[str, int] | None = None,
) -> None:
    """Copy a finished file packet by packet, with one fault.

    `without`, `other_byte_in` and `late` name a packet by the type of its stream and its number there.
    """
    copy = path.with_name("spoiled")
    with av.open(str(path)) as source, av.open(str(copy), "w", format=source.format.name.split(",")[0]) as target:
        streams = {}
        target.metadata.update(source.metadata)
        for original in source.streams:
            streams[original.index] = target.add_stream_from_template(original, opaque=True)
            streams[original.index].metadata.update(stream_metadata or original.metadata)
            if original.type == "video":
                streams[original.index].set_display_matrix(NINETY_DEGREES if rotated else UPRIGHT)
        target.set_chapters(source.chapters() if with_chapters else [])
        numbers: Counter[str] = Counter()
        for packet in source.demux():
            if packet.dts is None:
                continue
            name = (packet.stream.type, numbers[packet.stream.type])
            numbers[packet.stream.type] += 1
            if name == without:
                continue
            if name == other_byte_in:
                memoryview(packet)[-1] ^= 1
            if name == late:
                packet.pts = packet.dts = packet.dts + round(Fraction(1, 100) / packet.time_base)
            if packet.stream.type == "audio":
                later = round(sound_later_seconds / packet.time_base)
                packet.pts, packet.dts = (packet.pts or 0) + later, packet.dts + later
            packet.stream = streams[packet.stream_index]
            target.mux(packet)
    copy.replace(path)


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Have every finished file remuxed with a fault before it is checked."""
    write = worker.assemble.write_result

    def spoil_with(**fault: Any) -> None:  # noqa: ANN401
        def write_and_spoil(target: Path, *arguments: Any) -> None:  # noqa: ANN401
            write(target, *arguments)
            remuxed(target, **fault)

        monkeypatch.setattr(worker.assemble, "write_result", write_and_spoil)

    return spoil_with


DURATION_OF_8_BYTES = b"\x44\x89\x88"
"""Matroska's element, in milliseconds as a double."""


def rotated_film(make_video: MakeVideo, suffix: str) -> Path:
    return make_video(
        f"film.{suffix}", frames=20, audio_tracks=1, rotation=-90, time_base=Fraction(1, 1000), metadata={"title": "A"}
    )


def test_a_copy_without_a_fault_passes(make_video: MakeVideo, upscale: Upscale, spoil: Callable[..., None]) -> None:
    spoil()
    _, report, _ = upscale(rotated_film(make_video, "mkv"))
    assert report.changes == ()


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"sound_later_seconds": Fraction(2, 1000)}, "of the audio stream 1 is off by"),
        ({"rotated": False}, "rotation is"),
        ({"other_byte_in": ("audio", 3)}, "the audio stream 1 is not what it was"),
        ({"without": ("audio", 3)}, "the audio stream 1 is not what it was"),
        ({"late": ("audio", 3)}, "packet 3 of the audio stream 1 is off by 0.010"),
        ({"without": ("video", 19)}, "19 frames are there instead of 20"),
        ({"late": ("video", 19)}, "frame 19 is at"),
    ],
    ids=["late sound", "no rotation", "other sound", "lost sound", "late packet", "lost frame", "late frame"],
)
def test_a_file_that_breaks_a_promise_fails_its_check_and_is_not_published(
    make_video: MakeVideo, upscale: Upscale, spoil: Callable[..., None], fault: dict[str, Any], words: str
) -> None:
    spoil(**fault)
    source = rotated_film(make_video, "mkv")
    with pytest.raises(JobFailureError, match=words) as failure:
        upscale(source)
    assert failure.value.code is FailureCode.VERIFICATION_FAILED
    assert not (source.parent / "work" / "film_2x.mkv").exists()


def test_converted_sound_that_comes_late_fails_the_check(
    make_video: MakeVideo, upscale: Upscale, spoil: Callable[..., None]
) -> None:
    spoil(sound_later_seconds=Fraction(5, 1000), rotated=False)
    source = make_video("old.wmv", frames=30, **WINDOWS_MEDIA)
    with pytest.raises(
        JobFailureError, match=r"sound of stream 1 is \+[45]\.\d+ ms off against the picture at the start"
    ):
        upscale(source, MKV)


def test_a_file_that_announces_another_length_fails_its_check(
    make_video: MakeVideo, upscale: Upscale, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a finished Matroska file whose header says an hour
    write = worker.assemble.write_result

    def write_and_boast(target: Path, *arguments: Any) -> None:  # noqa: ANN401
        write(target, *arguments)
        content = target.read_bytes()
        at = content.index(DURATION_OF_8_BYTES) + len(DURATION_OF_8_BYTES)
        target.write_bytes(content[:at] + struct.pack(">d", 3_600_000.0) + content[at + 8 :])

    monkeypatch.setattr(worker.assemble, "write_result", write_and_boast)
    with pytest.raises(JobFailureError, match=r"the file announces 3600\.000 s"):
        upscale(rotated_film(make_video, "mkv"))


def test_a_variable_rate_with_b_frames_at_a_cut_off_end_announces_what_it_can(
    make_video: MakeVideo, upscale: Upscale
) -> None:
    # given frames of which the last but one stays long, so that an mp4 adds up other durations than are seen
    source = make_video("cut.mp4", frames=6, pts=[2250, 5850, 9450, 13050, 16650, 31050], time_base=Fraction(1, 90000))
    result, report, _ = upscale(source, JobOptions(encoder_preset="medium"))
    assert report.timestamps.exact
    assert result.exists()


def test_a_zip_of_other_pictures_fails_its_check(
    make_video: MakeVideo, upscale: Upscale, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given an archive in which two pictures have changed places
    write = worker.assemble.write_zip

    def write_and_swap(target: Path, *arguments: Any) -> None:  # noqa: ANN401
        write(target, *arguments)
        with zipfile.ZipFile(target) as archive:
            files = [(name, archive.read(name)) for name in archive.namelist()]
        (one, first), (other, second) = files[-2:]
        with zipfile.ZipFile(target, "w") as archive:
            for name, content in [*files[:-2], (one, second), (other, first)]:
                archive.writestr(name, content)

    monkeypatch.setattr(worker.assemble, "write_zip", write_and_swap)

    # then it is not published
    with pytest.raises(JobFailureError, match="is not what was encoded") as failure:
        upscale(make_video("clip.mkv", time_base=Fraction(1, 1000), frames=4), JobOptions(container=Container.ZIP))
    assert failure.value.code is FailureCode.VERIFICATION_FAILED


def test_lost_chapters_are_named(make_video: MakeVideo, upscale: Upscale, spoil: Callable[..., None]) -> None:
    spoil(with_chapters=False)
    _, report, _ = upscale(make_video("film.mkv", time_base=Fraction(1, 1000), frames=20, chapters=2, rotation=-90))
    assert "the container holds 0 of 2 chapters" in report.lost_in_container


def test_words_that_the_file_no_longer_says_are_named(
    make_video: MakeVideo, upscale: Upscale, spoil: Callable[..., None]
) -> None:
    spoil(stream_metadata={"language": "fra"})
    _, report, _ = upscale(rotated_film(make_video, "mkv"))
    assert "mkv has no place for the language 'eng' of the audio stream 1" in report.lost_in_container
    assert stream(report, "audio").language == "eng"
    found = stream(report, "audio").result
    assert found is not None
    assert found.language == "fra"
    assert report.changes


def test_hashing_shows_progress_for_every_few_megabytes(tmp_path: Path) -> None:
    # Given a file that is read in three pieces
    content = bytes(range(256)) * 40_000
    (tmp_path / "large").write_bytes(content)
    signs: list[None] = []
    # When it is hashed
    digest = sha256_of_file(tmp_path / "large", lambda: signs.append(None))
    # Then it is its digest, and each piece was a sign
    assert digest == hashlib.sha256(content).hexdigest()
    assert len(signs) == 3
