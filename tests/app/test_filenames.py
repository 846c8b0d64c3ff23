"""A user's file name is cleaned for display and download, and is never a path."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.filenames import attachment, clean_file_name, result_file_name
from worker.contract.job import Container


@pytest.mark.parametrize(
    ("name", "cleaned"),
    [
        ("holiday.mov", "holiday.mov"),
        ("/tmp/a/holiday.mov", "holiday.mov"),
        ("C:\\clips\\holiday.mov", "holiday.mov"),
        ("..", "video"),
        ("", "video"),
        (".mp4", "mp4"),
        ("two\nlines.mp4", "two lines.mp4"),
        ("e\u0301te\u0301.mp4", "été.mp4"),
        ("abc\u202etxt.exe", "abctxt.exe"),
        ("what?.mp4", "what_.mp4"),
        ("x" * 300 + ".mp4", "x" * 196 + ".mp4"),
        ("é" * 300, "é" * 100),
    ],
)
def test_a_name_is_reduced_to_a_harmless_one(name: str, cleaned: str) -> None:
    assert clean_file_name(name) == cleaned


def test_the_result_is_named_after_the_source() -> None:
    assert result_file_name("holiday.final.mov", Container.MP4) == "holiday.final_2x.mp4"
    assert result_file_name("video", Container.MKV) == "video_2x.mkv"


@given(st.text())
def test_any_name_gives_a_file_name_and_a_header_that_hold(name: str) -> None:
    # When
    cleaned = clean_file_name(name)
    header = attachment(result_file_name(cleaned, Container.MP4))

    # Then the name is one path component that any system takes
    assert 0 < len(cleaned.encode()) <= 200
    assert cleaned not in (".", "..")
    assert cleaned.isprintable()
    assert not set(cleaned) & set('/\\<>:"|?*')
    assert clean_file_name(cleaned) == cleaned
    # And the header is one line of ASCII with two quotes
    assert header.isascii()
    assert header.isprintable()
    assert header.count('"') == 2
