"""Before and after: together to the frame, divided by any hand, magnified to the pixel; also before all is done."""

import re
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.page.conftest import PHONE, OpenPage, Service, card_of, choose, start, until

FRAME_SECONDS = 1 / 6


@pytest.fixture
def compared(emptied: Service, open_page: OpenPage, short_clip: Path) -> Page:
    """A finished video beside its source."""
    page = open_page(emptied.url)
    start(page, short_clip)
    card = card_of(page, short_clip)
    card.get_by_role("button", name="Compare").click()
    expect(card.get_by_role("button", name="Play")).to_be_visible()
    return page


def times(page: Page) -> list[float]:
    """Where the source and the result are, in seconds."""
    return [float(time) for time in page.evaluate("[...document.querySelectorAll('video')].map((v) => v.currentTime)")]


def share_of_before(stage: Locator) -> float:
    return float(stage.evaluate("(stage) => parseFloat(stage.style.getPropertyValue('--split'))"))


def test_both_play_together_and_stop_at_the_same_frame(compared: Page) -> None:
    # When they are played for a while
    compared.get_by_role("button", name="Play").click()
    until(compared, "document.querySelector('.layer.after video').currentTime > 1.5")
    playing = times(compared)
    compared.get_by_role("button", name="Pause").click()
    until(compared, "[...document.querySelectorAll('video')].every((v) => v.paused && !v.seeking)")

    # Then they were never more than a frame apart, and stand at the same place
    before, after = playing
    assert abs(before - after) < FRAME_SECONDS
    before, after = times(compared)
    assert abs(before - after) < 1e-3


def test_a_place_that_is_chosen_is_shown_by_both(compared: Page) -> None:
    compared.get_by_role("slider", name="Time").fill("2.5")
    until(compared, "[...document.querySelectorAll('video')].every((v) => !v.seeking)")

    assert times(compared) == pytest.approx([2.5, 2.5])


def test_the_divider_follows_the_mouse(compared: Page) -> None:
    # Given
    stage = compared.locator(".stage")
    box = stage.bounding_box()
    assert box is not None

    # When it is dragged to a quarter
    compared.mouse.move(box["x"] + box["width"] / 2, box["y"] + 50)
    compared.mouse.down()
    compared.mouse.move(box["x"] + box["width"] / 4, box["y"] + 80, steps=4)
    compared.mouse.up()
    compared.mouse.move(box["x"] + box["width"] * 0.9, box["y"] + 80)

    # Then it is there, and stays there; and the keys go on from it
    assert share_of_before(stage) == pytest.approx(25, abs=1)
    compared.keyboard.press("ArrowRight")
    assert share_of_before(stage) == pytest.approx(26, abs=1)


def test_the_divider_follows_a_finger(emptied: Service, open_page: OpenPage, short_clip: Path) -> None:
    # Given
    page = open_page(emptied.url, viewport=PHONE, has_touch=True, is_mobile=True)
    start(page, short_clip)
    card_of(page, short_clip).get_by_role("button", name="Compare").tap()
    expect(page.get_by_role("button", name="Play")).to_be_visible()
    stage = page.locator(".stage")
    stage.scroll_into_view_if_needed()
    box = stage.bounding_box()
    assert box is not None

    # When a finger drags it, as the browser's own input
    touch = page.context.new_cdp_session(page)
    for kind, share in (("touchStart", 0.5), ("touchMove", 0.6), ("touchMove", 0.8), ("touchEnd", None)):
        points = [] if share is None else [{"x": box["x"] + box["width"] * share, "y": box["y"] + 60}]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    # Then
    assert share_of_before(stage) == pytest.approx(80, abs=2)


def test_one_pixel_of_the_result_can_be_one_or_four_of_the_screen(compared: Page) -> None:
    # Given a result of 128 x 96
    after = compared.locator(".layer.after video")

    for zoom, width in (("1 : 1", 128), ("2 : 1", 256), ("4 : 1", 512)):
        # When
        compared.get_by_label(zoom).check()

        # Then both lie over each other at that size, and large pixels are squares
        box, below = after.bounding_box(), compared.locator(".layer.before video").bounding_box()
        assert box is not None
        assert box == below
        assert box["width"] == pytest.approx(width)
        assert after.evaluate("(video) => getComputedStyle(video).imageRendering") == (
            "auto" if zoom == "1 : 1" else "pixelated"
        )


def test_what_is_finished_can_be_watched_while_the_rest_renders(
    emptied: Service, open_page: OpenPage, long_clip: Path
) -> None:
    # Given a video under way
    page = open_page(emptied.url)
    start(page, long_clip)
    card = card_of(page, long_clip)

    # When what is finished of it is watched
    card.get_by_role("button", name="Watch").click()
    card.get_by_role("button", name="Play").click()
    until(page, "document.querySelector('.layer.after video')?.currentTime > 1")

    # Then it was not finished when that could be seen, beside its source
    expect(card.locator(".clock")).to_have_text(re.compile(r"0:0\d / 0:[0-3]\d finished"))
    before, after = times(page)
    assert abs(before - after) < FRAME_SECONDS

    # And when it is, the finished video takes its place, where one was
    expect(card).to_contain_text("Done today")
    expect(card.locator(".clock")).to_have_text(re.compile(r"0:\d\d / 0:40$"))
    assert times(page)[1] > 0.9


def test_two_seconds_come_before_everything_else(emptied: Service, open_page: OpenPage, long_clip: Path) -> None:
    # Given a video that has only begun
    page = open_page(emptied.url)
    start(page, long_clip)
    card = card_of(page, long_clip)

    # When two seconds from its end are asked for
    card.get_by_role("button", name="Two-second preview").click()
    card.get_by_label("From where").fill("30")
    card.get_by_role("button", name="Make these two seconds").click()

    # Then they are there long before all is done, and beside them the same two of the source
    expect(card.get_by_role("button", name="Play")).to_be_visible()
    before, after = times(page)[-2:]
    assert before - after == pytest.approx(30, abs=FRAME_SECONDS)
    assert card.locator(".clock").last.inner_text().endswith("/ 0:02")


def test_a_format_that_is_not_watched_in_browsers_says_so(
    emptied: Service, open_page: OpenPage, long_clip: Path
) -> None:
    # Given a video that is to become one for archives
    page = open_page(emptied.url)
    choose(page, long_clip)
    page.get_by_label("Format").select_option("ffv1")
    page.get_by_role("button", name="Start").click()
    card = card_of(page, long_clip)

    # When it is watched all the same
    card.get_by_role("button", name="Watch").click()

    # Then single pictures of what is finished are there
    expect(card.locator(".said")).to_contain_text("single pictures")
    expect(card.locator(".layer img")).to_have_count(2)


def test_a_source_that_browsers_do_not_play_is_no_reason_not_to_see_the_result(
    emptied: Service, open_page: OpenPage, old_clip: Path
) -> None:
    # Given a video of a kind that this browser does not play
    page = open_page(emptied.url)
    start(page, old_clip)
    card = card_of(page, old_clip)

    # When the result is looked at
    card.get_by_role("button", name="Compare").click()

    # Then it plays; and the two can be compared in single pictures
    card.get_by_role("button", name="Play").click()
    until(page, "document.querySelector('.layer.after video').currentTime > 0.5")
    card.get_by_role("button", name="Compare single pictures").click()
    expect(card.locator(".layer img")).to_have_count(2)
    expect(card.locator(".layer video")).to_have_count(0)
