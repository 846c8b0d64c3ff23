"""`vsr doctor`: what is there, what is missing, and how to mend it. Part of the composition root."""

import os
import platform
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer
from pydantic import ValidationError

from app.cli_options import DeviceOption, JsonOption, examples
from app.exit_codes import ExitCode
from app.terminal import print_json, print_result, print_table
from worker.contract.finding import Finding, Level, missing, ok, warning
from worker.contract.settings import RedisSettings, StorageSettings

doctor_cli = typer.Typer()

_PACKAGES = ("twostep-vsr", "torch", "av", "fastapi", "redis", "rq")
_WORKER_PACKAGES = ("torch", "av", "numpy", "safetensors", "pynvml")
_SECRET_NAMES = re.compile(r"KEY|SECRET|PASSWORD|TOKEN|URL")
# Of user and password in an address.
_CREDENTIALS = re.compile(r"(?<=://)[^/\s@]+@")
# Hosts that everybody has: the last is what the report calls a part, and many a container.
_COMMON_HOSTS = {"localhost", "127.0.0.1", "::1", "redis"}


@doctor_cli.command(
    epilog=examples("vsr doctor", "vsr doctor --json", "vsr doctor --report > report.md", "vsr doctor --device cuda")
)
def doctor(
    device: DeviceOption = None,
    report: Annotated[
        bool, typer.Option("--report", help="Print a bug report to fill in: Markdown, without secrets.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Examine this machine: GPU, codecs, Redis, storage, weights, protections, ports. Ends with 5 if anything lacks."""
    findings = list(_examine(device))
    if as_json:
        print_json(
            {"is_well": not _lacking(findings), "versions": _versions(), "findings": [_plain(f) for f in findings]}
        )
    elif report:
        sys.stdout.write(without_secrets(bug_report(findings, _versions())))
    else:
        _show(findings)
    if _lacking(findings):
        raise typer.Exit(ExitCode.SYSTEM)


def _examine(device: str | None) -> Iterator[Finding]:
    """Part after part; one that cannot even be examined is a finding too."""
    yield ok("vsr", f"{version('twostep-vsr')} on Python {platform.python_version()}, {platform.platform()}")
    for part, examine in (
        ("worker", lambda: _examine_worker(device)),
        ("service", _examine_service),
    ):
        yield from _guarded(part, examine)


def _guarded(part: str, examine: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    try:
        yield from examine()
    except ValidationError as error:
        first = error.errors()[0]
        name = f"VSR_{'_'.join(str(place) for place in first['loc']).upper()}"
        yield missing("settings", f"{name}: {first['msg']}", f"correct or unset {name}")
    except (ImportError, OSError) as error:
        yield missing(part, f"cannot be examined: {error}", "install it again: pip install -e '.[worker]'")


def _examine_worker(device: str | None) -> Iterator[Finding]:
    lacking = [name for name in _WORKER_PACKAGES if find_spec(name) is None]
    if lacking:
        yield warning(
            "worker",
            f"not installed ({', '.join(lacking)}): this machine can be a gateway or a client, and upscale nothing",
            "pip install -e '.[worker]'",
        )
        return
    from worker.examination import (
        examine_cage,
        examine_codecs,
        examine_gpu,
        examine_processor,
        examine_weights,
    )
    from worker.gpu_facts import look_for_gpus
    from worker.settings import VideoLimits, WorkerSettings

    settings = WorkerSettings.model_validate({"device": device} if device else {})
    yield from _guarded("gpu", lambda: examine_gpu(look_for_gpus(), settings))
    yield from _guarded("codecs", examine_codecs)
    yield from _guarded("weights", lambda: examine_weights(settings.weights_dir))
    yield from _guarded("processor", examine_processor)
    yield from _guarded("cage", lambda: examine_cage(settings, VideoLimits()))
    from app.examination import examine_port

    yield examine_port("worker metrics", settings.metrics_host, settings.metrics_port, "VSR_METRICS_PORT")


def _examine_service() -> Iterator[Finding]:
    from app.examination import examine_port, examine_redis, examine_storage
    from app.settings import CourierSettings, GatewaySettings

    yield from _guarded("redis", lambda: examine_redis(RedisSettings()))
    yield from _guarded("storage", lambda: examine_storage(StorageSettings()))
    gateway, courier = GatewaySettings(), CourierSettings()
    yield examine_port("port", gateway.host, gateway.port, "VSR_PORT")
    if gateway.gateway_metrics_port is not None:
        host, port = gateway.gateway_metrics_host, gateway.gateway_metrics_port
        yield examine_port("gateway metrics", host, port, "VSR_GATEWAY_METRICS_PORT")
    host, port = courier.courier_metrics_host, courier.courier_metrics_port
    yield examine_port("courier metrics", host, port, "VSR_COURIER_METRICS_PORT")


def _lacking(findings: Iterable[Finding]) -> bool:
    return any(finding.level is Level.MISSING for finding in findings)


def _plain(finding: Finding) -> dict[str, str | None]:
    return {"part": finding.part, "level": finding.level, "says": finding.says, "fix": finding.fix}


def _show(findings: list[Finding]) -> None:
    print_table(
        ["", "part", "what is there, and what to do"],
        [[one.level, one.part, f"{one.says}\n-> {one.fix}" if one.fix else one.says] for one in findings],
    )
    counts = {level: sum(one.level is level for one in findings) for level in (Level.WARNING, Level.MISSING)}
    print_result(
        "all is well"
        if not any(counts.values())
        else f"{counts[Level.MISSING]} missing, {counts[Level.WARNING]} to look at"
    )


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "system": platform.platform()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def bug_report(findings: Iterable[Finding], versions: dict[str, str]) -> str:
    """What an issue needs, in Markdown; the first three parts are for the user to write."""
    lines = ["## What happened", "", "", "## What should have happened", "", "", "## How to make it happen again", ""]
    lines += ["The command or request, the service's log of it, and if possible the video.", ""]
    lines += ["## This machine (`vsr doctor --report`)", ""]
    lines += [f"- {name}: {what}" for name, what in versions.items()]
    names = sorted(name for name in os.environ if name.startswith("VSR_"))
    lines += [f"- set in the environment: {', '.join(names) or 'nothing'}", ""]
    lines += ["| | part | what is there |", "| --- | --- | --- |"]
    lines += [f"| {one.level} | {one.part} | {one.says.replace('|', '/')} |" for one in findings]
    return "\n".join(lines) + "\n"


def without_secrets(text: str) -> str:
    """Without what keys, passwords and addresses are set to, hosts of these, and the user's name in paths."""
    for name, value in os.environ.items():
        if name.startswith("VSR_") and _SECRET_NAMES.search(name) and len(value) > 3:
            text = text.replace(value, "***")
            if host := _host_of(value):
                text = re.sub(rf"(?<![\w.-]){re.escape(host)}(?![\w-])", "***", text, flags=re.IGNORECASE)
    text = _CREDENTIALS.sub("***@", text)
    return text.replace(str(Path.home()), "~") if len(str(Path.home())) > 1 else text


def _host_of(address: str) -> str | None:
    """None: it names none, or one that tells nothing."""
    try:
        host = urlsplit(address).hostname
    except ValueError:
        return None
    return None if host in _COMMON_HOSTS else host
