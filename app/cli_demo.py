"""`vsr demo`: a clip through the whole service, on a free port, in a folder of its own; only the result stays."""

import os
import signal
import sys
import tempfile
import threading
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli_options import (
    DeviceOption,
    JsonOption,
    OverwriteOption,
    PresetOption,
    examples,
    refuse_to_replace,
    refuse_unwritable,
)
from app.terminal import ProgressLine, print_json, print_note, print_result
from worker.contract.logs import configure_logging
from worker.contract.settings import LogSettings, RedisSettings, StorageSettings

if TYPE_CHECKING:
    from app.client import Progress
    from app.schemas import Job

demo_cli = typer.Typer()

_EXAMPLE = Path(__file__).parents[1] / "examples" / "clip.mp4"
# Also where there is no GPU nobody shall wait for long.
_QUICKEST_PRESET = "compact"
_WORDS = {"queued": "waiting for the worker, which loads the networks"}
# Ports that a service of this machine may have already.
_ANY_FREE_PORT = {"VSR_METRICS_PORT": "0", "VSR_COURIER_METRICS_PORT": "0"}


@demo_cli.command(epilog=examples("vsr demo", "vsr demo holiday.mov --preset aligned", "vsr demo --stop --json"))
def demo(
    clip: Annotated[
        Path | None, typer.Argument(metavar="[CLIP]", help="Default: the example, two seconds.", show_default=False)
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Default: CLIP with _2x in its name.")] = None,
    preset: PresetOption = _QUICKEST_PRESET,
    device: DeviceOption = None,
    overwrite: OverwriteOption = False,
    stop: Annotated[bool, typer.Option("--stop", help="End the service when the clip is done.")] = False,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open the page where there is a screen.")
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Show the service at work: start all of it, send a clip through, and open its page. Ctrl-C ends it."""
    from app.house import serve_house
    from app.settings import GatewaySettings

    source = clip or _EXAMPLE
    if not source.is_file():
        raise typer.BadParameter(f"{source}: there is no such file", param_hint="CLIP")
    out = output or Path(f"{source.stem}_2x.mp4")
    refuse_unwritable(out)
    refuse_to_replace(out, source, overwrite=overwrite)
    # Of its own, whatever the environment says of another service: no keys, no Redis but its own.
    gateway = GatewaySettings.model_validate(
        {"host": "127.0.0.1", "port": 0, "api_keys": [], "api_keys_file": None, "gateway_metrics_port": None}
    )
    os.environ.update(_ANY_FREE_PORT)
    log_settings = LogSettings(log_format="console", log_level="ERROR")
    configure_logging(log_settings.log_format, log_settings.log_level)
    worker_arguments = ["--preset", preset, *(["--device", device] if device else [])]
    journey = _Journey(source, out, preset, quiet=as_json, stop=stop or as_json)

    def begin(url: str) -> None:
        print_note(f"the whole service runs: gateway, Redis and a worker. Its page: {url}/")
        if browser and not as_json:
            _open_page(f"{url}/")
        journey.begin(url)

    with tempfile.TemporaryDirectory(prefix="vsr-demo-") as folder:
        storage = StorageSettings(storage_dir=Path(folder))
        serve_house(gateway, RedisSettings(redis_url=None), storage, log_settings, worker_arguments, begin)
    if journey.error:
        raise journey.error
    if as_json and journey.job:
        print_json({"url": journey.url, "output": str(out), "job": journey.job.model_dump(mode="json")})


class _Journey:
    """The clip's, in a thread beside the service, which has the main one for its signals."""

    def __init__(self, source: Path, out: Path, preset: str, *, quiet: bool, stop: bool) -> None:
        self._source = source
        self._out = out
        self._preset = preset
        self._quiet = quiet
        self._stop = stop
        self.url = ""
        self.job: Job | None = None
        self.error: BaseException | None = None

    def begin(self, url: str) -> None:
        self.url = url
        threading.Thread(target=self._run, name="demo", daemon=True).start()

    def _run(self) -> None:
        try:
            self._go()
        except BaseException as error:  # noqa: BLE001  # the command raises it, once the service has ended
            self.error = error
        finally:
            if self._stop or self.error:
                os.kill(os.getpid(), signal.SIGTERM)

    def _go(self) -> None:
        from app.client import Client

        with ProgressLine("uploading", quiet=self._quiet) as line, Client(self.url) as client:

            def show(progress: "Progress") -> None:
                if progress.step == "running":
                    line.update(progress.done, progress.total, label="upscaling")
                else:
                    line.update(0, None, label=_WORDS.get(progress.step, progress.step))

            self.job = client.upscale(self._source, self._out, show, preset=self._preset)
        if self.job.result and not self._quiet:
            result = self.job.result
            print_result(f"{self._out}: {result.width}x{result.height}, {result.frames} frames")
        if not self._stop:
            print_note(f"the service goes on at {self.url}/ (Ctrl-C ends it, and removes its folder)")


def _open_page(url: str) -> None:
    """Only where it gets a window: a browser for text would take the terminal."""
    has_screen = sys.platform in ("darwin", "win32") or "DISPLAY" in os.environ or "WAYLAND_DISPLAY" in os.environ
    if has_screen and sys.stderr.isatty():
        webbrowser.open(url)
