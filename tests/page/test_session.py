"""Keys at the page's door: one sign-in each, and nothing of whoever was there before."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, Route, expect

from tests.end_to_end.test_serve import serving
from tests.page.conftest import KEY, OpenPage, Service, card_of, start

ANOTHER_KEY = "another-key-for-the-page-only"


@pytest.fixture(scope="module")
def service_of_two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("page-of-two")
    with serving(folder / "data", VSR_CPU_THREADS="1", VSR_API_KEYS=f"{KEY},{ANOTHER_KEY}") as (url, _):
        yield Service(url, folder / "serve.log")


def sign_in(page: Page, key: str) -> None:
    page.get_by_role("textbox", name="Key").fill(key)
    page.get_by_role("button", name="Sign in").click()


def test_a_key_is_sent_once_however_often_the_service_did_not_answer(
    service_of_two: Service, open_page: OpenPage
) -> None:
    # Given a page that was opened while the service did not answer yet
    page = open_page(service_of_two.url)
    asked: list[str] = []

    def be_away_at_first(route: Route) -> None:
        asked.append(route.request.method)
        if len(asked) == 1:
            route.abort()
        else:
            route.continue_()

    page.route("**/v1/session", be_away_at_first)
    page.reload()
    expect(page.get_by_role("button", name="Sign in")).to_be_visible()

    # When
    sign_in(page, KEY)

    # Then
    expect(page.get_by_role("button", name="Choose videos")).to_be_visible()
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("button", name="Sign in")).to_be_visible()
    assert (asked.count("PUT"), asked.count("DELETE")) == (1, 1)


def test_whoever_signs_in_next_sees_nothing_of_the_one_before(
    service_of_two: Service, open_page: OpenPage, short_clip: Path
) -> None:
    # Given someone's video, and a key that is withdrawn while the page is open
    page = open_page(service_of_two.url)
    sign_in(page, KEY)
    start(page, short_clip)
    expect(card_of(page, short_clip)).to_contain_text("Done today")
    page.context.clear_cookies()
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")

    # When someone else signs in
    sign_in(page, ANOTHER_KEY)

    # Then
    expect(page.get_by_text("Nothing here yet")).to_be_visible()
    expect(page.locator(".card")).to_have_count(0)


def test_signing_out_forgets_the_names_of_unfinished_uploads(service_of_two: Service, open_page: OpenPage) -> None:
    # Given an upload that a closed page has left
    page = open_page(service_of_two.url)
    sign_in(page, KEY)
    page.evaluate(
        """localStorage.setItem("tus::of-a-closed-page::1", JSON.stringify({
          size: 1, metadata: { filename: "closed.mp4" }, uploadUrl: `${location.href}v1/uploads/of-a-closed-page`,
        }))"""
    )

    # When
    page.get_by_role("button", name="Sign out").click()

    # Then
    expect(page.get_by_role("button", name="Sign in")).to_be_visible()
    assert "closed.mp4" not in page.evaluate("JSON.stringify(localStorage)")
