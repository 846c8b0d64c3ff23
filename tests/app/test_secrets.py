"""Keys and passwords are in no line of any log, in no dump of the settings and in no error, whatever goes wrong."""

import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx2
import pytest
import structlog
from pydantic import SecretStr, ValidationError
from redis import Redis
from redis.exceptions import RedisError

from app.embedded_redis import find_server
from app.keys import cookie_value
from app.settings import ClientSettings, CourierSettings, GatewaySettings
from tests.app.conftest import wait_until
from worker.contract.logs import configure_logging
from worker.contract.settings import RedisSettings, StorageSettings
from worker.settings import WorkerSettings, as_environment

PASSWORD, WEBHOOK_SECRET = "hunter-redis-0123456789", "hunter-webhook-0123456789"
KEYS = {"plain": "hunter-key-a", "client": "hunter-key-b", "file": "hunter-key-c", "wrong": "hunter-key-d"}


@contextmanager
def redis_with_password(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    folder.mkdir(exist_ok=True)
    (folder / "redis.conf").write_text(
        f'bind 127.0.0.1\nport {port}\nrequirepass {PASSWORD}\nappendonly yes\nsave ""\ndir {folder}\n'
    )
    server = subprocess.Popen([find_server(), str(folder / "redis.conf")], stdout=subprocess.DEVNULL)
    try:
        with Redis(port=port, password=PASSWORD) as client:
            wait_until(lambda: _answers(client))
        yield server
    finally:
        server.kill()
        server.wait()


def _answers(client: Redis) -> bool:
    try:
        return bool(client.ping())
    except RedisError:
        return False


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_no_log_of_a_run_with_all_kinds_of_trouble_has_a_secret_in_it(tmp_path: Path, log_format: str) -> None:
    # Given a gateway, a courier and a worker with every secret that there is, and all that they ever log
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    (tmp_path / "keys").write_text(f"home {KEYS['file']}\n")
    environment = os.environ | {
        "VSR_REDIS_URL": f"redis://:{PASSWORD}@127.0.0.1:{port}/0",
        "VSR_STORAGE_DIR": str(tmp_path / "storage"),
        "VSR_MIN_FREE_BYTES": "0",
        "VSR_API_KEYS": KEYS["plain"],
        "VSR_API_KEY": KEYS["client"],
        "VSR_API_KEYS_FILE": str(tmp_path / "keys"),
        "VSR_WEBHOOK_SECRET": WEBHOOK_SECRET,
        "VSR_ALLOW_LOOPBACK_TARGETS": "true",
        "VSR_LOG_FORMAT": log_format,
        "VSR_LOG_LEVEL": "DEBUG",
        "VSR_PORT": "0",
        "VSR_METRICS_PORT": "0",
        "VSR_COURIER_METRICS_PORT": "0",
        "VSR_PRESET": "repeat-pixels",
        "VSR_DEVICE": "cpu",
        "VSR_JANITOR_SECONDS": "0.2",
    }
    log = tmp_path / "log"
    with ExitStack() as stack, log.open("wb") as output:
        redis = stack.enter_context(redis_with_password(tmp_path / "redis", port))
        processes = [
            subprocess.Popen([sys.executable, "-m", *command], env=environment, stdout=output, stderr=output)
            for command in (("app.cli", "gateway"), ("app.cli", "courier"), ("worker.supervisor", "1"))
        ]
        stack.callback(_end, processes)
        url = _address_in(log)

        # When they are used rightly and wrongly
        with httpx2.Client(base_url=url, timeout=30, trust_env=False) as http:
            for key in KEYS.values():
                for headers in ({"X-API-Key": key}, {"Authorization": f"Bearer {key}"}):
                    http.get("/v1/jobs", headers=headers)
                    http.get(f"/v1/jobs?key={key}", headers=headers | {"Origin": "https://evil.example"})
                    http.put("/v1/uploads/a", content=b"x", headers=headers)
                for body in ({"key": key}, {"key": key, "more": key}, [key]):
                    http.put("/v1/session", json=body)
                http.get("/v1/jobs/x", headers={"Cookie": f"vsr_session={cookie_value(key)}"})
                http.cookies.clear()
            submitted = http.post(
                "/v1/jobs",
                files={"file": ("a.mp4", b"no video")},
                data={"webhook_url": "http://127.0.0.1:9/hook"},
                headers={"X-API-Key": KEYS["plain"]},
            )
            assert submitted.status_code == 202
            place, key = submitted.headers["Location"], {"X-API-Key": KEYS["plain"]}
            wait_until(lambda: http.get(place, headers=key).json()["status"] == "failed", timeout_seconds=120)
            # the keys file is damaged, Redis holds what nobody expects, refuses the password and is then away
            (tmp_path / "keys").write_text(f"home {KEYS['file']} {KEYS['wrong']}\n")
            http.get("/v1/jobs", headers=key)
            with Redis(port=port, password=PASSWORD) as client:
                for index in client.scan_iter("vsr:owner:*:jobs"):
                    client.set(index, "not an index")
                answers = [http.get("/v1/jobs", headers=key)]
                client.config_set("requirepass", "another")
                client.execute_command("CLIENT", "KILL", "TYPE", "normal")
            answers.append(http.get("/v1/jobs", headers=key))
            redis.kill()
            answers.append(http.get("/v1/jobs", headers=key))
        wait_until(lambda: "redis_unreachable" in log.read_text())

    # Then all of them said something, and none of the secrets, also not to the client
    lines = log.read_text(errors="replace")
    told = "".join(answer.text for answer in answers)
    assert [answer.status_code for answer in answers] == [500, 503, 503]
    for word in ("job accepted", "supervisor", "courier", "the changed keys file is not used", "Traceback"):
        assert word in lines, f"{word!r} was to be logged"
    in_a_cookie = cookie_value("hunter")
    assert [line for line in lines.splitlines() if "hunter" in line or in_a_cookie in line] == []
    assert "hunter" not in told


def _address_in(log: Path) -> str:
    said = "the gateway is listening at "
    wait_until(lambda: said in log.read_text(), timeout_seconds=60)
    return log.read_text().partition(said)[2].split()[0].rstrip('",')


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.send_signal(signal.SIGTERM)
    for process in processes:
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def test_no_dump_of_the_settings_has_a_secret_in_it() -> None:
    # Given
    groups = [
        GatewaySettings.model_validate({"api_keys": "hunter-1,hunter-2", "webhook_secret": WEBHOOK_SECRET}),
        CourierSettings(webhook_secret=SecretStr(WEBHOOK_SECRET)),
        ClientSettings(api_key=SecretStr("hunter-3")),
        RedisSettings(redis_url=SecretStr(f"redis://:{PASSWORD}@localhost")),
        StorageSettings(),
        WorkerSettings(),
    ]

    # When
    dumps = [dump for one in groups for dump in (repr(one), str(one), str(one.model_dump()), one.model_dump_json())]

    # Then
    assert "hunter" not in "".join(dumps)


@pytest.mark.parametrize(
    ("group", "values"),
    [
        (GatewaySettings, {"api_keys": "hunter-1,sha256:hunter-2"}),
        (GatewaySettings, {"api_keys": ["hunter-1", 7]}),
        (GatewaySettings, {"api_keys": {"hunter-1": 1}}),
        (GatewaySettings, {"api_keys": "hunter-1", "port": "hunter-2"}),
        (GatewaySettings, {"webhook_secret": "hunter"}),
        (CourierSettings, {"webhook_secret": "whsec_hunter"}),
        (ClientSettings, {"api_key": ["hunter-1"]}),
        (RedisSettings, {"redis_url": [f"redis://:{PASSWORD}@localhost"]}),
    ],
)
def test_no_mistake_in_the_settings_is_told_with_a_secret(group: type[GatewaySettings], values: object) -> None:
    with pytest.raises(ValidationError) as caught:
        group.model_validate(values)

    assert "hunter" not in str(caught.value) + repr(caught.value)


def test_the_processes_that_open_videos_are_not_told_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VSR_API_KEYS", "VSR_API_KEY", "VSR_API_KEYS_FILE", "VSR_WEBHOOK_SECRET"):
        monkeypatch.setenv(name, "hunter")

    assert "hunter" not in as_environment(WorkerSettings()).values()


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_traceback_does_not_show_what_the_variables_held(log_format: str, capsys: pytest.CaptureFixture[str]) -> None:
    # Given
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    configure_logging("json" if log_format == "json" else "console")
    key = "hunter-key"

    # When
    try:
        raise RuntimeError(f"no answer from redis://:{PASSWORD}@db, where {len(key)} letters were")
    except RuntimeError:
        structlog.get_logger("ours").exception("it failed", url=f"redis://db?password={PASSWORD}&db=0")
        logging.getLogger("theirs").exception("it failed")
    finally:
        output = capsys.readouterr().err
        root.handlers[:], root.level = handlers, level

    # Then
    assert "RuntimeError" in output
    assert "hunter" not in output
