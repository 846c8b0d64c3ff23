"""A video that lies elsewhere, and somebody who wants to know: fetched and told, though the courier is killed."""

import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx2
import pytest

from app.client import verify_webhook
from tests.end_to_end.conftest import OPTIONS, PRESET, wait_for, write_moving_video
from tests.end_to_end.test_serve import serving

SECRET = "a secret of more than twenty-four letters"


class Elsewhere:
    """Another host: gives a file, slowly at first, and hears webhooks."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.downloads = 0
        self.half_sent = threading.Event()
        self.may_go_on = threading.Event()
        self.heard: list[tuple[dict[str, str], bytes]] = []


@contextmanager
def other_host(content: bytes) -> Iterator[tuple[Elsewhere, str]]:
    elsewhere = Elsewhere(content)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            elsewhere.downloads += 1
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
            elsewhere.half_sent.set()
            elsewhere.may_go_on.wait(60)
            self.wfile.write(content[len(content) // 2 :])

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            elsewhere.heard.append((dict(self.headers), body))
            self.send_response(204)
            self.end_headers()

        def handle(self) -> None:
            try:
                super().handle()
            except ConnectionError:  # a killed courier hangs up without a word
                return

        def log_message(self, *arguments: object) -> None:
            """Not into the test's output."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield elsewhere, f"http://127.0.0.1:{server.server_port}"
    finally:
        elsewhere.may_go_on.set()
        server.shutdown()
        thread.join()
        server.server_close()


def courier_pid(storage: Path) -> int | None:
    for process in Path("/proc").glob("[0-9]*"):
        try:
            is_courier = (process / "cmdline").read_bytes().endswith(b"app.cli\0courier\0")
            if is_courier and str(storage).encode() in (process / "environ").read_bytes():
                return int(process.name)
        except OSError:  # ended meanwhile
            continue
    return None


def test_a_video_that_lies_elsewhere_is_fetched_upscaled_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a service that may call this machine, and a video on another host of it
    monkeypatch.setenv("VSR_ALLOW_SOURCE_URL", "true")
    monkeypatch.setenv("VSR_ALLOW_LOOPBACK_TARGETS", "true")
    monkeypatch.setenv("VSR_WEBHOOK_SECRET", SECRET)
    monkeypatch.setenv("VSR_COURIER_CLAIM_SECONDS", "2")
    source = write_moving_video(tmp_path / "clip.mp4", frames=24)
    with other_host(source.read_bytes()) as (elsewhere, host), serving(tmp_path / "data") as (url, _):
        job = httpx2.post(
            f"{url}/v1/jobs",
            json={
                "source_url": f"{host}/clip.mp4?token=hidden",
                "webhook_url": f"{host}/hook",
                "preset": PRESET,
                "encoder_preset": OPTIONS.encoder_preset,
            },
        ).json()

        # When the courier is killed in the middle of the download
        assert elsewhere.half_sent.wait(60)
        killed = courier_pid(tmp_path / "data")
        assert killed is not None
        os.kill(killed, signal.SIGKILL)
        elsewhere.may_go_on.set()

        # Then another takes its place, and the job its course
        wait_for("the webhook", lambda: elsewhere.heard)
        assert courier_pid(tmp_path / "data") not in (None, killed)
        ended = httpx2.get(f"{url}{job['links']['self']}").json()
        assert (ended["status"], ended["error"], ended["source"]["size_bytes"]) == (
            "succeeded",
            None,
            source.stat().st_size,
        )
        wait_for("the note of it", lambda: not httpx2.get(f"{url}{job['links']['webhook']}").json()["pending"])
    headers, body = elsewhere.heard[0]
    told = verify_webhook(headers, body, SECRET)
    assert (told["type"], told["data"]["id"]) == ("job.succeeded", job["id"])
    assert told["data"]["result"]["sha256"] == ended["result"]["sha256"]
    assert elsewhere.downloads == 2
    log = (tmp_path / "serve.log").read_text()
    assert SECRET not in log
    assert "hidden" not in log + json.dumps(ended)
    assert "crashed" not in log
