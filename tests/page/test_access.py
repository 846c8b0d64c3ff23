"""For whoever has no mouse, sees little, hears the page read aloud, holds a phone, or wants nothing to move."""

import json
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import FileChooser, Page, expect

from tests.end_to_end.conftest import wait_for
from tests.page.conftest import DESKTOP, PHONE, OpenPage, Service, card_of, choose, start

LOOKS = [
    pytest.param({"viewport": DESKTOP, "color_scheme": "light"}, id="desktop-light"),
    pytest.param({"viewport": DESKTOP, "color_scheme": "dark"}, id="desktop-dark"),
    pytest.param({"viewport": PHONE, "color_scheme": "light", "has_touch": True, "is_mobile": True}, id="phone-light"),
    pytest.param({"viewport": PHONE, "color_scheme": "dark", "has_touch": True, "is_mobile": True}, id="phone-dark"),
]

FOCUSED_WORDS = "document.querySelector('body :focus')?.ariaLabel ?? document.querySelector('body :focus')?.innerText"


def findings(page: Page) -> list[str]:
    """What axe-core has against the page as it stands, by all of its rules."""
    found = Axe().run(page).response["violations"]
    return [f"{one['id']}: {node['html']} {node['failureSummary']}" for one in found for node in one["nodes"]]


def overflow_px(page: Page) -> int:
    """By how much the page is wider than the screen."""
    return int(page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))


@pytest.mark.parametrize("look", LOOKS)
def test_axe_finds_nothing_wherever_one_is(
    emptied: Service, open_page: OpenPage, short_clip: Path, tmp_path: Path, look: dict[str, object]
) -> None:
    # Given every state of the page, one after the other, and no colour on its way to another
    page = open_page(emptied.url, **look, reduced_motion="reduce")
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"nothing" * 100)
    found: dict[str, list[str]] = {"empty": findings(page)}
    wide: dict[str, int] = {"empty": overflow_px(page)}

    def look_at(state: str) -> None:
        found[state], wide[state] = findings(page), overflow_px(page)

    choose(page, short_clip, broken)
    for summary in ("Other networks", "More choices"):
        page.get_by_text(summary).click()
    look_at("chosen")
    page.get_by_role("button", name="Start 2 videos").click()
    expect(card_of(page, short_clip)).to_be_visible()
    look_at("under way")
    card = card_of(page, short_clip)
    expect(card).to_contain_text("Done today")
    expect(card_of(page, broken).locator(".todo")).to_be_visible()
    look_at("done and failed")
    card.get_by_role("button", name="Compare").click()
    expect(card.get_by_role("button", name="Play")).to_be_visible()
    look_at("compared")
    card.get_by_role("button", name="What was kept").click()
    expect(card.locator(".report")).to_be_visible()
    look_at("report")
    card.get_by_role("button", name="Delete").click()
    look_at("question")

    # Then
    assert {state: these for state, these in found.items() if these} == {}
    assert {state: by for state, by in wide.items() if by > 0} == {}


def test_axe_finds_nothing_at_the_door(service_with_key: Service, open_page: OpenPage) -> None:
    page = open_page(service_with_key.url)

    assert findings(page) == []


def test_all_of_it_goes_without_a_mouse(emptied: Service, open_page: OpenPage, short_clip: Path) -> None:
    # Given someone who has a keyboard only
    page = open_page(emptied.url)
    choosers: list[FileChooser] = []
    page.on("filechooser", lambda chooser: choosers.append(chooser))
    keys = page.keyboard

    def go_to(name: str) -> None:
        """By the Tab key alone."""
        for _ in range(60):
            keys.press("Tab")
            if name in (page.evaluate(FOCUSED_WORDS) or ""):
                return
        pytest.fail(f"the Tab key does not lead to {name}")

    # When a video is chosen, started, and waited for
    go_to("Choose videos")
    keys.press("Enter")
    wait_for("the browser's own dialog", lambda: page.evaluate("true") and choosers)
    choosers[0].set_files(short_clip)
    expect(page.get_by_role("heading", name="Ready to start")).to_be_focused()
    go_to("Start")
    keys.press("Enter")
    expect(page.get_by_role("heading", name="Your videos")).to_be_focused()
    card = card_of(page, short_clip)
    expect(card).to_contain_text("Done today")

    # And compared: the divider is moved, the picture is played, stepped, magnified and moved
    go_to("Compare")
    keys.press("Enter")
    expect(card.get_by_role("button", name="Play")).to_be_visible()
    go_to("Divider")
    divider = card.get_by_role("slider", name="Divider between before and after")
    for _ in range(5):
        keys.press("ArrowRight")
    expect(divider).to_have_value("55")
    keys.press(" ")
    expect(card.get_by_role("button", name="Pause")).to_be_visible()
    keys.press(" ")
    time_before = float(card.get_by_role("slider", name="Time").input_value())
    keys.press(".")
    expect(card.get_by_role("slider", name="Time")).not_to_have_value(str(time_before))
    for _ in range(3):
        keys.press("+")
    expect(card.get_by_label("4 : 1")).to_be_checked()
    left_before = page.evaluate("document.querySelector('.stage').style.getPropertyValue('--left')")
    page.set_viewport_size({"width": 400, "height": 700})
    keys.press("Shift+ArrowRight")
    assert page.evaluate("document.querySelector('.stage').style.getPropertyValue('--left')") != left_before

    # And deleted
    go_to("Delete")
    keys.press("Enter")
    expect(page.get_by_role("dialog").get_by_role("button", name="No, go back")).to_be_focused()
    keys.press("Tab")
    keys.press("Enter")

    # Then it is gone, and the focus is not lost
    expect(card).to_have_count(0)
    expect(page.get_by_role("heading", name="Your videos")).to_be_focused()


def test_a_screen_reader_is_told_of_turns_and_not_of_every_percent(
    emptied: Service, open_page: OpenPage, short_clip: Path
) -> None:
    # Given what it would read aloud
    page = open_page(emptied.url)
    page.evaluate(
        """() => {
          window.told = [];
          const announcer = document.getElementById("announcer");
          new MutationObserver(() => window.told.push(announcer.textContent)).observe(announcer, { childList: true });
        }"""
    )

    # When a video comes and goes through
    start(page, short_clip)
    expect(card_of(page, short_clip)).to_contain_text("Done today")
    expect(page.locator("#announcer")).to_contain_text("can be downloaded")

    # Then
    told = " ".join(json.loads(page.evaluate("JSON.stringify(window.told)")))
    for words in ("1 video ready to start.", "short.mp4 has arrived.", "short.mp4 is done and can be downloaded."):
        assert told.count(words) == 1, told
    assert "%" not in told
    assert "frames" not in told


def test_nothing_moves_where_that_was_asked_for(emptied: Service, open_page: OpenPage, long_clip: Path) -> None:
    # Given
    page = open_page(emptied.url, reduced_motion="reduce")

    # When bars run and buttons change
    start(page, long_clip)
    expect(card_of(page, long_clip).locator(".figures")).to_contain_text("of 10 segments")
    page.get_by_role("button", name="Choose videos").hover()

    # Then
    assert page.evaluate("document.getAnimations().length") == 0
