"""What the compose file must never lose, whatever else changes in it. Its schema is checked by .ci/run."""

from pathlib import Path
from typing import Any

import pytest
import yaml

OURS = ("gateway", "courier", "worker", "worker-gpu")


@pytest.fixture(scope="module")
def compose(repository: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((repository / "docker-compose.yml").read_text())
    return loaded


def test_every_port_is_published_on_loopback_only(compose: dict[str, Any]) -> None:
    ports = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert len(ports) == 3
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_redis_keeps_every_task_on_disk_and_forgets_none(compose: dict[str, Any]) -> None:
    redis = compose["services"]["redis"]
    for option in ("--appendonly yes", "--appendfsync everysec", "--maxmemory-policy noeviction"):
        assert option in redis["command"]
    assert redis["volumes"] == ["redis:/data"]


def test_redis_asks_for_the_password_that_ours_have(compose: dict[str, Any]) -> None:
    password = compose["services"]["redis"]["environment"]["REDISCLI_AUTH"]
    assert password.startswith("${VSR_REDIS_PASSWORD:-")
    assert f"--requirepass {password}" in compose["services"]["redis"]["command"]
    for service in OURS:
        assert compose["services"][service]["environment"]["VSR_REDIS_URL"] == f"redis://:{password}@redis:6379/0"


def test_redis_and_the_workers_are_on_a_network_with_no_way_out(compose: dict[str, Any]) -> None:
    assert compose["networks"]["back"]["internal"] is True
    for service in ("redis", "worker", "worker-gpu"):
        assert list(compose["services"][service]["networks"]) == ["back"]


def test_only_the_courier_calls_other_hosts_and_only_with_what_it_needs(compose: dict[str, Any]) -> None:
    courier = compose["services"]["courier"]
    assert courier["image"] == compose["services"]["gateway"]["image"]  # no torch, no av
    assert courier["command"] == ["courier"]
    assert "VSR_API_KEYS" not in courier["environment"]
    assert "ports" not in courier
    for service in ("worker", "worker-gpu"):
        assert "VSR_WEBHOOK_SECRET" not in compose["services"][service]["environment"]


def test_gateway_and_workers_share_the_storage(compose: dict[str, Any]) -> None:
    assert all("storage:/data" in compose["services"][service]["volumes"] for service in OURS)


def test_the_gpu_worker_never_falls_back_to_the_cpu_and_waits_for_its_profile(compose: dict[str, Any]) -> None:
    gpu = compose["services"]["worker-gpu"]
    assert gpu["profiles"] == ["gpu"]
    assert gpu["environment"]["VSR_DEVICE"] == "cuda"
    assert "video" in gpu["environment"]["NVIDIA_DRIVER_CAPABILITIES"]
    assert gpu["deploy"]["resources"]["reservations"]["devices"][0]["driver"] == "nvidia"


def test_our_services_run_without_privileges_on_a_read_only_system(compose: dict[str, Any]) -> None:
    for service in OURS:
        assert compose["services"][service]["read_only"] is True
        assert compose["services"][service]["cap_drop"] == ["ALL"]
        assert compose["services"][service]["security_opt"] == ["no-new-privileges:true"]


def test_images_that_are_not_ours_are_pinned_to_a_full_version(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        if name not in OURS:
            tag = service["image"].partition(":")[2].removeprefix("v").partition("-")[0]
            assert [part.isdigit() for part in tag.split(".")] == [True] * 3, service["image"]


def test_an_old_docker_compose_reads_the_file(compose: dict[str, Any]) -> None:
    # 1.29 refuses a top-level `name`.
    assert "name" not in compose


def test_gateway_and_workers_have_time_to_stop_by_themselves(compose: dict[str, Any]) -> None:
    assert all("stop_grace_period" in compose["services"][service] for service in OURS)
