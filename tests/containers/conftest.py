"""The house of docker-compose.yml, really built and really started, on a machine that can pull no public image.

What is real: the engine (Debian's dockerd, one of our own that nothing else uses), the Dockerfile and both its
targets, docker-compose.yml, Redis, Prometheus with its configuration, the network between them.
What stands in: the base image is Debian itself, made by debootstrap; the redis and prometheus images are Debian's
packages under the names and tags that docker-compose.yml asks for. Grafana is no Debian package and is left out.
"""

import ast
import json
import logging
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

import pytest
import yaml

logger = logging.getLogger(__name__)

REPOSITORY = Path(__file__).parents[2]
BASE_IMAGE = "debian-python:debootstrap"
SERVICES = ("redis", "gateway", "courier", "worker", "prometheus")

Value = TypeVar("Value")

STAND_INS = {
    "redis": """
        RUN apt-get update -qq && apt-get install -qq -y --no-install-recommends redis-server \
         && install --directory --owner redis --group redis /data
        USER redis
        WORKDIR /data
        CMD ["redis-server"]
    """,
    "prometheus": """
        RUN apt-get update -qq && apt-get install -qq -y --no-install-recommends prometheus \
         && install --directory --owner nobody --group nogroup /prometheus
        USER nobody
        ENTRYPOINT ["prometheus"]
    """,
}


@dataclass(frozen=True)
class Docker:
    """Debian's client, talking to our engine."""

    environment: dict[str, str]

    def __call__(self, *arguments: str, stdin: str | None = None) -> str:
        return _run(["docker", *arguments], self.environment, stdin)


@dataclass(frozen=True)
class House:
    """The started services. `compose` is docker-compose with the project and the files given."""

    docker: Docker
    compose: Callable[..., str]
    gateway_url: str
    prometheus_url: str

    def inspect(self, service: str) -> dict[str, Any]:
        container: dict[str, Any] = json.loads(self.docker("inspect", self.compose("ps", "-q", service).strip()))[0]
        return container


@pytest.fixture(scope="session")
def workshop() -> Iterator[Path]:
    """A folder in memory, 3 GB in the end: a disk takes minutes to write and then delete so much."""
    with tempfile.TemporaryDirectory(prefix="vsr-containers-") as folder:
        _run(["mount", "-t", "tmpfs", "-o", "size=20g,mode=0755", "vsr-containers", folder], dict(os.environ))
        try:
            yield Path(folder)
        finally:
            _run(["umount", "--recursive", folder], dict(os.environ))


@pytest.fixture(scope="session")
def docker(workshop: Path) -> Iterator[Docker]:
    engine = workshop / "engine"
    engine.mkdir()
    address = f"unix://{engine / 'docker.sock'}"
    client = Docker(
        {
            **os.environ,
            # Debian's client: another one earlier on PATH may lack the BuildKit plugin.
            "PATH": f"/usr/bin:/usr/sbin:{os.environ['PATH']}",
            "DOCKER_HOST": address,
            "DOCKER_CONFIG": str(engine / "client"),
            "DOCKER_BUILDKIT": "1",
            "COMPOSE_DOCKER_CLI_BUILD": "1",
        }
    )
    with (engine / "dockerd.log").open("w") as log:
        process = subprocess.Popen(
            [
                *("dockerd", "--host", address, "--pidfile", engine / "pid"),
                *("--data-root", engine / "data", "--exec-root", engine / "run"),
                # Leave the machine's own network as it is: no default bridge, no firewall rules, no forwarding.
                # Compose's networks and the published ports work without.
                *("--bridge=none", "--iptables=false", "--ip-forward=false"),
            ],
            env=client.environment,
            stdout=log,
            stderr=log,
        )
    try:
        state = poll(lambda: _engine_state(process, client), until=lambda state: state != "starting")
        assert state == "up", f"dockerd is {state}\n{(engine / 'dockerd.log').read_text()[-4000:]}"
        yield client
    finally:
        began = time.monotonic()
        process.terminate()
        process.wait()
        logger.info("%.1f s: stop dockerd", time.monotonic() - began)


@pytest.fixture(scope="session")
def base_image(docker: Docker, workshop: Path) -> str:
    """Debian with its own, externally managed Python, and with what pip needs to reach its index from this machine."""
    root = workshop / "debian"
    packages = "ca-certificates,python3,python3-venv"
    _run(["debootstrap", "--variant=minbase", f"--include={packages}", "bookworm", str(root)], docker.environment)
    pip = _pip_configuration()
    lines = ["[global]"]
    if "index-url" in pip:
        lines.append(f"index-url = {pip['index-url']}")
    if "cert" in pip:
        shutil.copyfile(pip["cert"], root / "etc/pip-certificates.pem")
        lines.append("cert = /etc/pip-certificates.pem")
    (root / "etc/pip.conf").write_text("\n".join(lines) + "\n")
    archive = workshop / "debian.tar"
    _run(["tar", "--directory", str(root), "--create", "--file", str(archive), "."], docker.environment)
    shutil.rmtree(root)
    docker("import", str(archive), BASE_IMAGE)
    archive.unlink()
    return BASE_IMAGE


@pytest.fixture(scope="session")
def house(docker: Docker, base_image: str, workshop: Path) -> Iterator[House]:
    services = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text())["services"]
    for service, steps in STAND_INS.items():
        recipe = f"FROM {base_image}\n{steps}"
        docker("build", "--quiet", "--network=host", "--tag", services[service]["image"], "-", stdin=recipe)

    ports = {"VSR_PORT": str(_free_port()), "PROMETHEUS_PORT": str(_free_port())}
    password = secrets.token_hex(16)
    with _find_links_over_http() as find_links:
        # Without a bridge that reaches out, a build shares this machine's network: hence `network: host`, and hence the
        # wheels' address on loopback.
        build = {"network": "host", "args": {"BASE_IMAGE": base_image, "PIP_FIND_LINKS": find_links}}
        override = workshop / "override.yml"
        override.write_text(json.dumps({"services": {"gateway": {"build": build}, "worker": {"build": build}}}))
        command = [
            *("docker-compose", "--project-name", f"vsr{secrets.token_hex(4)}"),
            *("--project-directory", str(REPOSITORY)),
            *("--file", str(REPOSITORY / "docker-compose.yml"), "--file", str(override)),
        ]
        environment = {**docker.environment, **ports, "VSR_REDIS_PASSWORD": password}

        def compose(*arguments: str) -> str:
            return _run([*command, *arguments], environment)

        compose("build", "gateway", "worker")

    started = House(
        docker=docker,
        compose=compose,
        gateway_url=f"http://127.0.0.1:{ports['VSR_PORT']}",
        prometheus_url=f"http://127.0.0.1:{ports['PROMETHEUS_PORT']}",
    )
    try:
        compose("up", "--detach", "--no-build", *SERVICES)
        for service in ("redis", "gateway", "courier", "worker"):
            read_health = partial(_health, started, service)
            health = poll(read_health, until=lambda health: health != "starting", timeout_seconds=90)
            assert health == "healthy", f"{service} is {health}\n{compose('logs', '--no-color', '--tail=60')}"
        yield started
    finally:
        compose("down", "--volumes", "--timeout=20")


def poll(read: Callable[[], Value], until: Callable[[Value], bool], timeout_seconds: float = 60) -> Value:
    """The first value that `until` accepts; after `timeout_seconds` the last one, for the caller to reject by name."""
    deadline = time.monotonic() + timeout_seconds
    while not until(value := read()) and time.monotonic() < deadline:
        time.sleep(0.25)
    return value


def _health(house: House, service: str) -> str:
    state = house.inspect(service)["State"]
    return str(state["Health"]["Status"] if state["Status"] == "running" else state["Status"])


def _engine_state(process: subprocess.Popen[bytes], docker: Docker) -> str:
    if process.poll() is not None:
        return f"gone with exit code {process.returncode}"
    asked = subprocess.run(["docker", "version"], env=docker.environment, capture_output=True, check=False)
    return "up" if asked.returncode == 0 else "starting"


def _run(command: list[str], environment: dict[str, str], stdin: str | None = None) -> str:
    """Standard output of a command that must succeed; if it does not, the end of all that it said."""
    began = time.monotonic()
    # The program is looked up in PATH of `environment`.
    done = subprocess.run(command, env=environment, input=stdin, capture_output=True, text=True, check=False)
    logger.info("%.1f s: %s", time.monotonic() - began, " ".join(command)[-100:])
    said = (done.stdout + done.stderr)[-6000:]
    assert done.returncode == 0, f"{' '.join(command)}: exit code {done.returncode}\n{said}"
    return done.stdout


def _pip_configuration() -> dict[str, str]:
    """What pip on this machine is told by its files and, stronger, by the environment."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    pairs = [line.split("=", 1) for line in listed.splitlines() if "=" in line]
    return {
        key.removeprefix(origin): ast.literal_eval(value)
        for origin in ("global.", ":env:.")
        for key, value in pairs
        if key.startswith(origin)
    }


@contextmanager
def _find_links_over_http() -> Iterator[str]:
    """The machine's find-links for a build that cannot see its folders: each folder is served on loopback meanwhile."""
    with ExitStack() as servers:
        addresses = []
        for link in _pip_configuration().get("find-links", "").split():
            folder = Path(link.removeprefix("file://"))
            addresses.append(servers.enter_context(_served(folder)) if folder.is_dir() else link)
        yield " ".join(addresses)


@contextmanager
def _served(folder: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
