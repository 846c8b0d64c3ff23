"""The report as people see it, and its one line."""

import pytest

from app.report_page import print_report
from worker.contract.report import (
    FileFacts,
    FramePlace,
    FrameReport,
    PropertyReport,
    QualityReport,
    Report,
    SeamReport,
    SoundOffset,
    StreamFacts,
    StreamReport,
    TimestampReport,
)

FACTS = FileFacts(
    container="mp4",
    size_bytes=1000,
    sha256="0" * 64,
    duration_seconds=1.2,
    frames=30,
    frame_rate="25/1",
    time_base="1/12800",
    codec="h264",
    width=64,
    height=48,
    pixel_format="yuv420p",
    bit_depth=8,
    transparency=False,
    sample_aspect_ratio=None,
    clean_aperture=None,
    rotation=None,
    display_matrix=None,
    field_order="progressive",
    colour_range=None,
    colour_matrix=None,
    colour_primaries=None,
    colour_transfer=None,
    chroma_location="left",
    mastering_display=None,
    content_light=None,
    chapters=0,
)
VIDEO = StreamReport(
    index=0, codec="h264", type="video", outcome="upscaled", why="2x", result=StreamFacts(index=0, codec="h264")
)


def report_of(*, streams: tuple[StreamReport, ...] = (), **changes: object) -> Report:
    """Where everything was kept, but for `changes`."""
    kept = Report(
        source=FACTS,
        result=FACTS.model_copy(update={"width": 128, "height": 96}),
        properties=(
            PropertyReport(name="frame_size", source="64x48", result="128x96", outcome="upscaled", why="2x"),
            PropertyReport(name="codec", source="h264", result="h264", outcome="kept"),
        ),
        streams=(VIDEO, *streams),
        frames=FrameReport(source=30, result=30),
        timestamps=TimestampReport(
            exact=True, largest_rounding_seconds=0, shift_seconds=0, words="exact: every frame at its own time"
        ),
        sound_offsets=(SoundOffset(stream=1, at="start", source_seconds=0.02, result_seconds=0.0205),),
        scene_cuts=(),
        losses=(),
        notes=(),
        quality=QualityReport(
            frames_compared=4,
            psnr_db=41.5,
            worst_psnr_db=40.25,
            worst_frame=FramePlace(frame=12, seconds=0.48),
            tile_borders=None,
            segment_borders=SeamReport(seams=2, at_seams=0.2, elsewhere=0.2, ratio=1.0),
        ),
        stage_seconds={"decode": 0.5, "infer": 8.0},
        frames_per_second=3.5,
        tag="twostep-vsr 0",
    )
    return kept.model_copy(update=changes)


def test_where_everything_was_kept_the_one_line_is_empty() -> None:
    assert report_of().changes == ()


def test_the_one_line_names_whatever_was_not_simply_kept() -> None:
    report = report_of(
        streams=(
            StreamReport(index=1, codec="wmav2", type="audio", outcome="converted", why="as flac"),
            StreamReport(index=2, codec="subrip", type="subtitle", outcome="dropped"),
            StreamReport(index=3, codec="aac", type="audio", outcome="copied"),
        ),
        properties=(
            PropertyReport(name="field_order", source="top_first", result="progressive", outcome="converted"),
            PropertyReport(name="transparency", source="yes", result=None, outcome="dropped"),
            PropertyReport(name="time_base", source="1/90000", result="1/1000", outcome="converted"),
        ),
        frames=FrameReport(source=30, result=30, concealed=(FramePlace(frame=3, seconds=0.12),)),
        lost_in_container=("mkv has no place for the title",),
    )
    assert report.changes == (
        "field order top_first -> progressive",
        "transparency yes -> none",
        "audio stream 1 (wmav2) converted",
        "subtitle stream 2 (subrip) dropped",
        "1 frame concealed",
        "mkv has no place for the title",
    )


def test_the_page_shows_both_sides_and_the_figures(capsys: pytest.CaptureFixture[str]) -> None:
    sound = StreamReport(
        index=1,
        codec="aac",
        type="audio",
        language="deu",
        outcome="copied",
        packets=58,
        result=StreamFacts(index=1, codec="aac", language="deu", packets=58),
    )
    print_report(report_of(streams=(sound,), losses=("a subtitle",), scene_cuts=(FramePlace(frame=9, seconds=0.36),)))
    page = capsys.readouterr().out
    for words in (
        "30 frames in, 30 out; times exact: every frame at its own time; sound against picture within 0.500 ms",
        "64x48",
        "128x96",
        "aac deu",
        "58 packets, the same bytes",
        "lost, as agreed: a subtitle",
        "scene cuts: frame 9 (0.360 s)",
        "4 frames are 41.5 dB from it (worst 40.2 dB, frame 12)",
        "seams between segments 1.00 times",
        "speed: 3.50 frames/s: decode 0.50 s, infer 8.00 s",
    ):
        assert words in page


def test_a_title_from_a_strangers_file_steers_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    title = "\x1b[31mred[/red] [bold]\x07"
    sound = StreamReport(index=1, codec="aac", type="audio", title=title, outcome="copied")
    print_report(report_of(streams=(sound,), notes=(title,)))
    page = capsys.readouterr().out
    assert "\x1b" not in page
    assert "\x07" not in page
    assert "?[31mred[/red] [bold]?" in page


def test_a_report_survives_its_json() -> None:
    report = report_of()
    assert Report.model_validate_json(report.model_dump_json()) == report
