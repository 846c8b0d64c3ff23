"""`vsr doctor`: what it finds, on real servers, folders and ports, and what its report does not tell."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import SecretStr
from redis import Redis
from typer.testing import CliRunner

from app.cli import cli
from app.cli_doctor import bug_report, without_secrets
from app.examination import examine_port, examine_redis, examine_storage
from app.exit_codes import ExitCode
from tests.app.conftest import RunningGateway
from worker.contract.finding import Level, missing, ok
from worker.contract.settings import RedisSettings, StorageSettings


def test_a_redis_of_its_own_is_started_and_asked() -> None:
    [found] = examine_redis(RedisSettings(redis_url=None))
    assert (found.part, found.level) == ("redis", Level.OK)
    assert "starts and answers" in found.says


def test_a_redis_that_is_named_is_asked_whether_it_keeps_things(redis: Redis, redis_url: str) -> None:
    settings = RedisSettings(redis_url=SecretStr(redis_url))
    assert [found.level for found in examine_redis(settings)] == [Level.OK]
    redis.config_set("maxmemory-policy", "allkeys-lru")
    try:
        [forgets] = examine_redis(settings)
    finally:
        redis.config_set("maxmemory-policy", "noeviction")
    assert (forgets.level, forgets.fix) == (Level.WARNING, "set maxmemory-policy noeviction")


@pytest.mark.parametrize(
    "url", ["redis://me:hunter22@127.0.0.1:1/0", "nonsense:hunter22", "redis://:hunter22[x@db:6379"]
)
def test_a_redis_that_does_not_answer_is_missing_and_its_password_is_not_told(url: str) -> None:
    [found] = examine_redis(RedisSettings(redis_url=SecretStr(url)))
    assert found.level is Level.MISSING
    assert found.fix
    assert "hunter22" not in f"{found.says} {found.fix}"


def test_a_storage_folder_that_is_not_there_yet_is_examined_and_left_so(tmp_path: Path) -> None:
    found = list(examine_storage(StorageSettings(storage_dir=tmp_path / "a" / "b")))
    assert [(one.part, one.level) for one in found] == [("storage", Level.OK), ("fsync", Level.OK)]
    assert list(tmp_path.iterdir()) == []


def test_a_storage_folder_that_cannot_be_used_says_why(tmp_path: Path) -> None:
    [nowhere] = examine_storage(StorageSettings(storage_dir=Path("/proc/nowhere")))
    full, _ = examine_storage(StorageSettings(storage_dir=tmp_path, min_free_bytes=10**18))
    assert nowhere.level is full.level is Level.MISSING
    assert "less than VSR_MIN_FREE_BYTES" in full.says


def test_a_port_is_free_or_ours_or_taken(gateway: RunningGateway) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = examine_port("port", "127.0.0.1", other.getsockname()[1], "VSR_PORT")
        port = other.getsockname()[1]
    free = examine_port("port", "127.0.0.1", port, "VSR_PORT")
    ours = examine_port("port", "127.0.0.1", int(gateway.url.rpartition(":")[2]), "VSR_PORT")

    assert (taken.level, taken.fix) == (Level.MISSING, "choose another by VSR_PORT")
    assert (free.level, ours.level) == (Level.OK, Level.OK)
    assert ours.says.endswith("this service is running there")


def test_the_report_is_markdown_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given
    monkeypatch.setenv("VSR_API_KEYS", "studio-key")
    monkeypatch.setenv("VSR_WEBHOOK_SECRET", "whsec_of-the-service")
    monkeypatch.setenv("VSR_REDIS_URL", "redis://me:hunter22@redis.example:6379/0")
    monkeypatch.setenv("VSR_PORT", "8000")
    findings = [
        ok("storage", f"{Path.home()}/data: writable | locked"),
        missing("redis", "Redis.example does not answer (TimeoutError)", "start it"),
        missing("redis", "redis://you:hunter23@other does not take studio-key or whsec_of-the-service", "start it"),
    ]

    # When
    report = without_secrets(bug_report(findings, {"python": "3.11"}))

    # Then
    assert "| ok | storage | ~/data: writable / locked |" in report
    assert "set in the environment: VSR_API_KEYS, VSR_PORT, VSR_REDIS_URL, VSR_WEBHOOK_SECRET" in report
    for secret in ("studio-key", "whsec_of", "hunter22", "hunter23", "redis.example", str(Path.home())):
        assert secret not in report.lower()
    assert "| missing | redis | *** does not answer (TimeoutError) |" in report
    assert "redis://***@other" in report


@pytest.mark.parametrize("address", ["redis://redis:6379/0", "redis://:p[x@db:6379", "unix:///run/redis.sock"])
def test_an_address_that_names_no_host_of_somebodys_takes_no_words_out_of_the_report(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VSR_REDIS_URL", address)
    assert "| ok | redis | redis answers |" in without_secrets(bug_report([ok("redis", "redis answers")], {}))


def test_a_setting_that_cannot_be_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VSR_PORT", "high")
    done = CliRunner().invoke(cli, ["doctor", "--json"])
    assert done.exit_code == ExitCode.SYSTEM
    [setting] = [one for one in json.loads(done.stdout)["findings"] if one["part"] == "settings"]
    assert setting["fix"] == "correct or unset VSR_PORT"


def test_a_whole_machine_is_examined_in_one_command(tmp_path: Path) -> None:
    # Given
    environment = os.environ | {"VSR_STORAGE_DIR": str(tmp_path), "VSR_PORT": "0", "VSR_COURIER_METRICS_PORT": "0"}
    environment |= {"VSR_METRICS_PORT": "0", "CUDA_VISIBLE_DEVICES": ""}

    def doctor(*words: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "app.cli", "doctor", *words]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    # When
    well, told, lacking = doctor(), json.loads(doctor("--json").stdout), doctor("--report", "--device", "cuda")

    # Then
    assert well.returncode == ExitCode.OK, well.stdout
    assert well.stdout.endswith(("all is well\n", "to look at\n"))
    assert told["is_well"]
    parts = {finding["part"] for finding in told["findings"]}
    assert parts >= {"gpu", "torch", "codecs", "weights", "processor", "cage", "redis", "storage", "fsync", "port"}
    assert all(finding["fix"] for finding in told["findings"] if finding["level"] != "ok")
    assert lacking.returncode == ExitCode.SYSTEM
    assert "| missing | gpu | VSR_DEVICE=cuda, but" in lacking.stdout
    assert (well.stderr, lacking.stderr) == ("", "")
