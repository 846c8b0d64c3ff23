"""Photograph the page: page-desktop.png (light, before and after) and page-phone.png (dark, while it renders).

    .venv/bin/python docs/images/page_pictures.py CLIP.mp4 OTHER.mp4 --out docs/images

Starts the whole service with the default preset in a temporary folder, sends both videos through the page in Debian's
Chromium, and looks when the first is done and the second is under way. Choose clips without faces.
"""

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

PATIENCE_MS = 3_600_000
DESKTOP = {"width": 1280, "height": 1160}
PHONE = {"width": 390, "height": 844}


@contextmanager
def service(folder: Path) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    settings = {"VSR_STORAGE_DIR": str(folder), "VSR_METRICS_PORT": "0", "VSR_COURIER_METRICS_PORT": "0"}
    command = [sys.executable, "-m", "app.cli", "serve", "--port", str(port)]
    process = subprocess.Popen(command, env=os.environ | settings, stderr=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}/"
        while not is_ready(url):
            time.sleep(0.5)
        yield url
    finally:
        process.terminate()
        process.wait()


def is_ready(url: str) -> bool:
    try:
        with urlopen(f"{url}readyz") as answer:  # noqa: S310
            return b'"workers":0' not in answer.read()
    except OSError:
        return False


def opened(page: Page, url: str) -> Page:
    page.set_default_timeout(PATIENCE_MS)
    page.goto(url)
    page.wait_for_selector("html[data-ready]")
    return page


def send(page: Page, clip: Path) -> None:
    page.set_input_files("#files", clip)
    expect(page.locator(".chosen .picture img")).to_be_visible()
    page.get_by_role("button", name="Start").click()


def photograph(page: Page, path: Path) -> None:
    """With 256 colours: a third of the bytes, and for a page of text and one picture enough."""
    page.screenshot(path=path)
    with Image.open(path) as picture:
        few = picture.convert("RGB").quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.FLOYDSTEINBERG)
    few.save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clip", type=Path, help="is compared")
    parser.add_argument("other", type=Path, help="is under way, and should take a while")
    parser.add_argument("--out", type=Path, required=True, help="folder")
    arguments = parser.parse_args()
    expect.set_options(timeout=PATIENCE_MS)

    with tempfile.TemporaryDirectory() as folder, service(Path(folder)) as url, sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path="/usr/bin/chromium")
        desktop = opened(chromium.new_page(viewport=DESKTOP, color_scheme="light"), url)
        send(desktop, arguments.clip)
        card = desktop.locator(".card", has=desktop.get_by_role("heading", name=arguments.clip.name))
        expect(card).to_contain_text("Done today")

        send(desktop, arguments.other)
        rendering = desktop.locator(".card.running .figures", has_text="left")
        expect(rendering).to_be_visible()
        card.get_by_role("button", name="Compare").click()
        expect(card.get_by_role("button", name="Play")).to_be_visible()
        card.get_by_role("slider", name="Time").fill("1")
        desktop.wait_for_timeout(1000)
        desktop.get_by_role("heading", name="Your videos").scroll_into_view_if_needed()
        desktop.evaluate("scrollTo(0, document.getElementById('videos').getBoundingClientRect().top + scrollY - 40)")
        photograph(desktop, arguments.out / "page-desktop.png")

        phone = chromium.new_context(
            viewport=PHONE, color_scheme="dark", has_touch=True, is_mobile=True, device_scale_factor=2
        )
        small = opened(phone.new_page(), url)
        expect(small.locator(".card.running .figures", has_text="left")).to_be_visible()
        photograph(small, arguments.out / "page-phone.png")
        chromium.close()


if __name__ == "__main__":
    main()
