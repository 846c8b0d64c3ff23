"""What browsers make of the API itself: its page, and the session that stands for a key."""

from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx2
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser

from tests.page.conftest import DESKTOP, KEY, PHONE, Service
from tests.page.front import Front


@pytest.fixture
def front_with_key(service_with_key: Service) -> Iterator[Front]:
    """A proxy that takes a prefix away, of which the gateway knows nothing."""
    front = Front(service_with_key.port, prefix="/of/the/house")
    with front.running():
        yield front


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_the_documentation_reads_well_and_asks_no_other_host(
    front_with_key: Front, browser: Browser, viewport: dict[str, int], scheme: str
) -> None:
    # Given the page of the API, behind a prefix and without a key
    context = browser.new_context(viewport=viewport, color_scheme=scheme)  # type: ignore[arg-type]
    page = context.new_page()
    asked: list[str] = []
    failed: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("requestfailed", lambda request: failed.append(request.url))
    page.on("console", lambda message: failed.append(message.text))
    page.goto(f"{front_with_key.url}docs")

    # When everything on it is unfolded
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")

    # Then nothing is wider than the screen, axe finds nothing, and nothing was asked in vain or elsewhere
    assert page.evaluate("document.documentElement.scrollWidth") == viewport["width"]
    assert [finding["id"] for finding in Axe().run(page).response["violations"]] == []
    assert failed == []
    assert all(url.startswith(front_with_key.url) for url in asked)
    context.close()


def test_a_session_is_of_the_prefix_and_opens_streams_that_can_send_no_header(
    front_with_key: Front, service_with_key: Service, browser: Browser
) -> None:
    # Given a job, and a browser that has shown its key
    with httpx2.Client(base_url=service_with_key.url, headers={"X-API-Key": KEY}) as http:
        http.put("/v1/uploads/a", content=b"no video").raise_for_status()
        job_id = http.post("/v1/jobs", json={"upload_id": "a"}).json()["id"]
    page = browser.new_page()
    page.goto(f"{front_with_key.url}docs")
    opening = (
        "(key) => fetch('v1/session', {method: 'PUT', body: JSON.stringify({key})}).then((answer) => answer.status)"
    )
    assert page.evaluate(opening, "wrong") == 401
    assert page.evaluate(opening, KEY) == 204

    # When an EventSource follows the job
    following = """(url) => new Promise((resolve, reject) => {
        const source = new EventSource(url);
        source.onerror = () => reject(source.readyState);
        source.addEventListener('status', (event) => { source.close(); resolve(JSON.parse(event.data).id); });
    })"""

    # Then it hears of it
    assert page.evaluate(following, f"v1/jobs/{job_id}/events") == job_id
    # And the cookie goes where the API is and nowhere else, and no script sees it
    [cookie] = page.context.cookies(f"{front_with_key.url}v1/jobs")
    assert (cookie["name"], cookie["path"]) == ("vsr_session", f"{urlsplit(front_with_key.url).path}v1")
    assert (cookie["httpOnly"], cookie["sameSite"], cookie["expires"]) == (True, "Strict", -1)
    assert page.evaluate("document.cookie") == ""
    page.close()
