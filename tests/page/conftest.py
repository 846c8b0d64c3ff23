"""A real Chromium before a real service: gateway, worker, Redis, all started by `vsr serve`."""

import json
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import av
import httpx2
import pytest
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from tests.end_to_end.conftest import wait_for, write_moving_video
from tests.end_to_end.test_serve import serving
from tests.page.front import Front

CHROMIUM = shutil.which("chromium")
PATIENCE_MS = 60_000
DESKTOP = {"width": 1280, "height": 900}
PHONE = {"width": 390, "height": 844}
KEY = "a-key-for-the-page-only"

expect.set_options(timeout=PATIENCE_MS)


@dataclass
class Service:
    url: str
    log: Path

    @property
    def port(self) -> int:
        port = urlsplit(self.url).port
        assert port is not None
        return port

    def kill_worker(self) -> None:
        """The worker process, as the kernel does when memory is short. Its supervisor lives on."""
        events = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        pid = next(event["pid"] for event in reversed(events) if event.get("event") == "worker_process_started")
        os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("page")
    with serving(folder / "data", VSR_CPU_THREADS="1") as (url, _):
        yield Service(url, folder / "serve.log")


@pytest.fixture(scope="module")
def service_with_key(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("page-with-key")
    with serving(folder / "data", VSR_CPU_THREADS="1", VSR_API_KEYS=KEY) as (url, _):
        yield Service(url, folder / "serve.log")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Of a module and not of the session: as long as Playwright lives, its thread has a running event loop."""
    if CHROMIUM is None:
        pytest.skip("needs Debian's chromium, as .ci/run has it")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


OpenPage = Callable[..., Page]


@pytest.fixture
def open_page(browser: Browser) -> Iterator[OpenPage]:
    """Open an address as a visitor of one's own; keyword arguments are those of a browser context."""
    with ExitStack() as stack:

        def opened(url: str, **settings: object) -> Page:
            context = browser.new_context(**({"viewport": DESKTOP} | settings))  # type: ignore[arg-type]
            stack.callback(context.close)
            context.set_default_timeout(PATIENCE_MS)
            page = context.new_page()
            page.on("pageerror", lambda error: pytest.fail(f"the page's script failed: {error}"))
            page.goto(url)
            page.wait_for_selector("html[data-ready]")
            return page

        yield opened


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clips")


@pytest.fixture(scope="session")
def short_clip(clips: Path) -> Path:
    """Four seconds, one segment."""
    return write_moving_video(clips / "short.mp4", frames=24)


@pytest.fixture(scope="session")
def long_clip(clips: Path) -> Path:
    """Ten segments, of which each takes a while."""
    return write_moving_video(clips / "long.mp4", frames=240, width=128, height=96)


@pytest.fixture(scope="session")
def old_clip(clips: Path, short_clip: Path) -> Path:
    """The short one as MPEG-4 part 2 in AVI, which no browser plays."""
    path = clips / "old.avi"
    with av.open(str(short_clip)) as source, av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=6)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for frame in source.decode(video=0):
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="session")
def heavy_clip(clips: Path, short_clip: Path) -> Path:
    """The short one, with six megabytes of a box that players skip: an upload that can be caught in the middle."""
    path = clips / "heavy.mp4"
    padding_bytes = 6_000_000
    path.write_bytes(short_clip.read_bytes() + padding_bytes.to_bytes(4, "big") + b"free" + bytes(padding_bytes - 8))
    return path


@pytest.fixture
def emptied(service: Service) -> Service:
    """Without jobs: what one test has sent is no other test's business."""
    for job in httpx2.get(f"{service.url}/v1/jobs", params={"limit": 100}).json()["jobs"]:
        httpx2.delete(service.url + job["links"]["self"]).raise_for_status()
    return service


@pytest.fixture
def front(emptied: Service) -> Iterator[Front]:
    front = Front(emptied.port, prefix="/of/the/house")
    with front.running():
        yield front


def choose(page: Page, *files: Path) -> None:
    page.set_input_files("#files", list(files))
    expect(page.get_by_role("heading", name="Ready to start")).to_be_visible()


def start(page: Page, *files: Path) -> None:
    choose(page, *files)
    page.get_by_role("button", name=re.compile("^Start")).click()


def card_of(page: Page, file: Path) -> Locator:
    return page.locator(".card", has=page.get_by_role("heading", name=file.name))


def until(page: Page, expression: str) -> None:
    """Until it is true in the page. Asked from here: the page's policy lets nobody poll from inside."""
    wait_for(expression, lambda: page.evaluate(expression))
