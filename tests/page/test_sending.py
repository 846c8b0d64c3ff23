"""Uploads that are disturbed: none is sent twice, none goes on unseen, none is taken from another tab."""

import json
from pathlib import Path

import httpx2
import pytest
from playwright.sync_api import APIResponse, Page, Request, Route, expect

from tests.end_to_end.conftest import wait_for
from tests.page.conftest import OpenPage, Service, card_of, choose, start
from tests.page.front import Front

SUBMISSIONS = "**/v1/jobs"  # lists are asked for with a query

LEFT_BY_A_CLOSED_PAGE = """async () => {
  const headers = { "Tus-Resumable": "1.0.0", "Upload-Length": "1" };
  const answer = await fetch("v1/uploads", { method: "POST", headers });
  localStorage.setItem("tus::of-a-closed-page::1", JSON.stringify({
    size: 1, metadata: { filename: "closed.mp4" }, uploadUrl: new URL(answer.headers.get("Location"), answer.url).href,
  }));
}"""
WITHOUT_LOCKS = "Object.defineProperty(Navigator.prototype, 'locks', { value: undefined })"
WITHOUT_STORAGE = """Object.defineProperty(window, "localStorage", {
  get() { throw new DOMException("Access is denied for this document.", "SecurityError"); },
})"""


class Told:
    """The requests of a page, as "POST /v1/uploads"."""

    def __init__(self, page: Page) -> None:
        self._requests: list[Request] = []
        page.on("request", lambda request: self._requests.append(request))

    def count(self, method: str, path: str) -> int:
        """Those whose address ends so."""
        return len([one for one in self._requests if one.method == method and one.url.endswith(path)])


def lose_the_answer(route: Route) -> None:
    """The request has arrived, and the page does not hear so."""
    assert route.fetch().status == 202
    route.abort()


def jobs_of(service: Service) -> list[dict[str, object]]:
    jobs: list[dict[str, object]] = httpx2.get(f"{service.url}/v1/jobs").json()["jobs"]
    return jobs


def test_a_video_whose_job_was_made_but_not_confirmed_is_not_sent_again_when_the_connection_is_back(
    emptied: Service, open_page: OpenPage, short_clip: Path
) -> None:
    # Given a video that is a job, of which the answer got lost
    page = open_page(emptied.url)
    told = Told(page)

    page.route(SUBMISSIONS, lose_the_answer, times=1)
    start(page, short_clip)
    expect(card_of(page, short_clip)).to_contain_text("Connection lost")

    # When the browser says that it is back, before the page asks again by itself
    page.evaluate("window.dispatchEvent(new Event('online'))")

    # Then the job is found, and there is no other
    expect(card_of(page, short_clip)).to_contain_text("Done today")
    assert told.count("POST", "/v1/uploads") == 1
    assert len(jobs_of(emptied)) == 1


def test_a_job_that_was_made_as_the_page_was_closed_is_not_left_over(
    emptied: Service, open_page: OpenPage, short_clip: Path
) -> None:
    # Given a page that was closed before it heard of its job
    page = open_page(emptied.url)
    page.on("dialog", lambda dialog: dialog.accept())
    page.route(SUBMISSIONS, lose_the_answer)
    start(page, short_clip)
    expect(card_of(page, short_clip)).to_contain_text("Connection lost")

    # When it is opened again
    page.reload()

    # Then there is the job, and nothing to be sent
    expect(card_of(page, short_clip)).to_contain_text("Done today")
    page.wait_for_function("!Object.keys(localStorage).some((key) => key.startsWith('tus::'))")
    expect(page.locator("#left-over li")).to_have_count(0)


def test_trying_again_after_a_refused_job_asks_for_the_job_and_sends_nothing_again(
    emptied: Service, open_page: OpenPage, short_clip: Path
) -> None:
    # Given a video that is a job, and a proxy that made something else of the answer
    page = open_page(emptied.url)
    told = Told(page)

    def spoil_the_answer(route: Route) -> None:
        assert route.fetch().status == 202
        route.fulfill(status=500, body="a proxy's page")

    page.route(SUBMISSIONS, spoil_the_answer, times=1)
    start(page, short_clip)
    expect(card_of(page, short_clip)).to_contain_text("Not sent")

    # When it is tried again
    card_of(page, short_clip).get_by_role("button", name="Try again").click()

    # Then
    expect(card_of(page, short_clip)).to_contain_text("Done today")
    assert told.count("POST", "/v1/uploads") == 1
    assert len(jobs_of(emptied)) == 1


def test_a_job_that_is_just_being_made_is_asked_for_until_it_is_there(
    emptied: Service, open_page: OpenPage, short_clip: Path
) -> None:
    # Given a service that is still at work on the first request for the job
    page = open_page(emptied.url)
    told = Told(page)

    def be_at_work(route: Route) -> None:
        problem = {"status": 409, "code": "idempotency_conflict", "detail": "It is being worked on."}
        route.fulfill(status=409, body=json.dumps(problem), headers={"Retry-After": "1"})

    page.route(SUBMISSIONS, be_at_work, times=1)

    # When it is started
    start(page, short_clip)

    # Then nobody need try again
    expect(card_of(page, short_clip)).to_contain_text("Done today")
    assert told.count("POST", "/v1/jobs") == 2


def stop(page: Page, file: Path) -> None:
    page.get_by_role("button", name=f"Stop the upload of {file.name}").click()


def test_a_stop_before_the_first_byte_is_a_stop(
    emptied: Service, open_page: OpenPage, short_clip: Path, old_clip: Path
) -> None:
    # Given a video that waits for a part of the page
    page = open_page(emptied.url)
    told = Told(page)
    held: list[Route] = []
    page.route("**/tus.min.js", lambda route: held.append(route))
    start(page, short_clip)
    wait_for("the library is asked for", lambda: page.evaluate("true") and held)

    # When it is stopped, and the part comes
    stop(page, short_clip)
    held[0].continue_()

    # Then another video is the only one that is sent
    start(page, old_clip)
    expect(card_of(page, old_clip)).to_contain_text("Done today")
    assert told.count("POST", "/v1/uploads") == 1
    assert len(jobs_of(emptied)) == 1


def test_a_stop_at_any_moment_of_the_beginning_is_a_stop(
    emptied: Service, open_page: OpenPage, short_clip: Path, old_clip: Path
) -> None:
    # Given a page that has all of its parts
    page = open_page(emptied.url)
    told = Told(page)
    start(page, old_clip)
    expect(card_of(page, old_clip)).to_contain_text("Done today")

    # When a video is started and stopped, each time a step of the script later
    for steps in range(0, 24, 2):
        choose(page, short_clip)
        page.evaluate(
            """async (steps) => {
              document.querySelector(".start .primary").click();
              for (let step = 0; step < steps; step += 1) await null;
              document.querySelector(".upload button[aria-label^=Stop]").click();
            }""",
            steps,
        )
        expect(page.locator(".upload")).to_have_count(0)

    # Then nothing of it is sent, and what comes after it is
    start(page, old_clip)
    expect(page.locator("#jobs .card", has_text="Done today")).to_have_count(2)
    assert len(jobs_of(emptied)) == 2
    assert told.count("POST", "/v1/jobs") == 2


def test_a_job_that_comes_about_after_the_stop_is_deleted(
    emptied: Service, open_page: OpenPage, short_clip: Path
) -> None:
    # Given a video that is a job, of which the answer is still under way
    page = open_page(emptied.url)
    under_way: list[tuple[Route, APIResponse]] = []
    page.route(
        SUBMISSIONS,
        lambda route: under_way.append((route, route.fetch())) if route.request.method == "POST" else route.continue_(),
    )
    start(page, short_clip)
    wait_for("the job is made", lambda: page.evaluate("true") and under_way)
    assert len(jobs_of(emptied)) == 1

    # When it is stopped, and the answer comes
    stop(page, short_clip)
    route, answer = under_way[0]
    route.fulfill(response=answer)

    # Then there is no job, here or there
    wait_for("the job is deleted", lambda: page.evaluate("true") and not jobs_of(emptied))
    expect(page.locator(".card")).to_have_count(0)


@pytest.mark.parametrize("browser_lacks", ["", WITHOUT_LOCKS], ids=["with locks", "without locks, as over plain http"])
def test_another_tab_leaves_a_running_upload_alone(
    front: Front, open_page: OpenPage, heavy_clip: Path, browser_lacks: str
) -> None:
    # Given an upload under way, and one that a closed page has left
    page = open_page(front.url)
    page.on("dialog", lambda dialog: dialog.accept())
    page.context.add_init_script(browser_lacks)
    page.reload()
    page.evaluate(LEFT_BY_A_CLOSED_PAGE)
    front.upload_bytes_per_second = 1_000_000
    start(page, heavy_clip)
    expect(card_of(page, heavy_clip).locator(".figures")).to_contain_text("left")

    # When the page is opened in another tab too
    other = page.context.new_page()
    other.goto(front.url)

    # Then only the closed page's is said to be left over
    expect(other.locator("#left-over")).to_contain_text("closed.mp4 was not sent to its end")
    expect(other.locator("#left-over li")).to_have_count(1)

    # And the same file, started there, is an upload of its own
    start(other, heavy_clip)
    front.upload_bytes_per_second = None
    for tab in (page, other):
        expect(card_of(tab, heavy_clip)).to_contain_text("Done today")
    assert len(httpx2.get(f"{front.url}v1/jobs").json()["jobs"]) == 2
    begun = [line for line in front.requests if line.startswith("POST") and "/v1/uploads " in line]
    assert len(begun) == 3  # with the closed page's


def test_a_video_can_be_sent_where_the_browser_denies_its_storage(
    emptied: Service, open_page: OpenPage, short_clip: Path
) -> None:
    # Given
    page = open_page(emptied.url)
    page.context.add_init_script(WITHOUT_STORAGE)
    page.reload()

    # When
    start(page, short_clip)

    # Then
    expect(card_of(page, short_clip)).to_contain_text("Done today")
