"""Keys: who gets in, and what stays open."""

import hashlib
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr

from app.gateway import create_app
from app.settings import GatewaySettings
from tests.app.conftest import StartGateway
from worker.contract.settings import RedisSettings, StorageSettings

PROTECTED = [
    ("PUT", "/v1/uploads/a"),
    ("POST", "/v1/jobs"),
    ("GET", "/v1/jobs"),
    ("GET", "/v1/jobs/zzz"),
    ("DELETE", f"/v1/jobs/{'0' * 20}"),
    ("POST", f"/v1/jobs/{'0' * 20}/cancel"),
    ("POST", f"/v1/jobs/{'0' * 20}/retry"),
    ("GET", f"/v1/jobs/{'0' * 20}/events"),
    ("GET", f"/v1/jobs/{'0' * 20}/stream.m3u8"),
    ("GET", f"/v1/jobs/{'0' * 20}/stream/00000.m4s"),
    ("GET", f"/v1/jobs/{'0' * 20}/thumbnail"),
    ("GET", f"/v1/jobs/{'0' * 20}/source"),
    ("POST", f"/v1/jobs/{'0' * 20}/preview"),
    ("GET", f"/v1/jobs/{'0' * 20}/preview"),
    ("POST", "/v1/estimate"),
    ("GET", f"/v1/jobs/{'0' * 20}/result"),
    ("GET", f"/v1/jobs/{'0' * 20}/report"),
    ("GET", "/v1/models"),
    ("GET", "/metrics"),
]


def test_every_call_needs_a_key_and_takes_it_in_both_ways(start_gateway: StartGateway) -> None:
    # Given
    http = start_gateway(api_keys="first-key, second-key").http

    for method, path in PROTECTED:
        # When
        without = http.request(method, path)
        wrong = http.request(method, path, headers={"X-API-Key": "first-ke"})
        empty = http.request(method, path, headers={"X-API-Key": ""})
        right = http.request(method, path, headers={"X-API-Key": "first-key"})
        bearer = http.request(method, path, headers={"Authorization": "Bearer second-key"})

        # Then
        for refused in (without, wrong, empty):
            assert (refused.status_code, refused.json()["code"]) == (401, "unauthorized")
            assert refused.headers["WWW-Authenticate"] == "Bearer"
        assert right.status_code != 401
        assert bearer.status_code != 401


def test_health_and_the_description_are_open(start_gateway: StartGateway) -> None:
    http = start_gateway(api_keys="first-key").http

    for path in ("/healthz", "/readyz", "/docs", "/openapi.json"):
        assert http.get(path).status_code == 200


def test_without_keys_a_client_on_this_machine_gets_in(start_gateway: StartGateway) -> None:
    assert start_gateway().http.get("/v1/jobs").status_code == 200


@pytest.mark.parametrize(
    ("address", "allow_anonymous", "gets_in"),
    [
        ("127.0.0.1", False, True),
        ("::1", False, True),
        ("10.0.0.7", False, False),
        ("8.8.8.8", False, False),
        ("10.0.0.7", True, True),
    ],
)
def test_without_keys_another_machine_does_not_get_in_unless_it_is_allowed(
    tmp_path: Path, redis_url: str, address: str, allow_anonymous: bool, gets_in: bool
) -> None:
    # Given an application that some other server than ours exposes
    app = create_app(
        GatewaySettings(allow_anonymous=allow_anonymous),
        RedisSettings(redis_url=SecretStr(redis_url)),
        StorageSettings(storage_dir=tmp_path),
    )

    # When a client comes from that address
    with TestClient(app, base_url="http://127.0.0.1:8000", client=(address, 1234)) as http:
        answer = http.get("/v1/jobs")

    # Then
    assert answer.status_code == (200 if gets_in else 401)


@pytest.mark.parametrize(
    ("headers", "gets_in"),
    [
        ({"Host": "localhost:8000"}, True),
        ({"Host": "[::1]:8000"}, True),
        ({"Host": "127.0.0.1:8000", "Origin": "http://127.0.0.1:8000"}, True),
        ({"Host": "127.0.0.1:8000", "Origin": "http://127.0.0.1:9999"}, False),
        ({"Host": "127.0.0.1:8000", "Origin": "https://evil.example"}, False),
        ({"Host": "127.0.0.1:8000", "Origin": "null"}, False),
        ({"Host": "evil.example"}, False),
        ({"Host": "127.0.0.1.evil.example"}, False),
    ],
)
def test_without_keys_a_page_of_another_site_does_not_get_in_through_the_users_browser(
    start_gateway: StartGateway, headers: dict[str, str], gets_in: bool
) -> None:
    answer = start_gateway().http.get("/v1/jobs", headers=headers)

    assert answer.status_code == (200 if gets_in else 401)


def test_not_even_where_strangers_are_let_in_on_purpose(start_gateway: StartGateway) -> None:
    # Given a gateway in a container, behind a port that is published on loopback only
    http = start_gateway(allow_anonymous=True).http

    # When a program calls it, a page of another site does, and one whose own name leads to this machine
    by_program = http.get("/v1/jobs", headers={"Host": "localhost:8000"})
    by_foreign_page = http.get("/v1/jobs", headers={"Host": "127.0.0.1:8000", "Origin": "https://evil.example"})
    by_rebound_page = http.get("/v1/jobs", headers={"Host": "evil.example", "Origin": "http://evil.example"})
    by_monitoring = [http.get(path, headers={"Host": "gateway:8000"}) for path in ("/healthz", "/readyz")]

    # Then
    answers = (by_program, by_foreign_page, by_rebound_page, *by_monitoring)
    assert [answer.status_code for answer in answers] == [200, 401, 401, 200, 200]


@pytest.mark.parametrize(
    ("settings", "gets_in"),
    [
        ({"allow_anonymous": True, "allowed_hosts": "gateway, VSR.example"}, True),
        ({"allow_anonymous": True, "allowed_hosts": "*"}, True),
        ({"allow_anonymous": True, "allowed_hosts": "gateway"}, False),
        ({"allow_anonymous": False, "allowed_hosts": "vsr.example"}, False),
    ],
)
def test_strangers_may_call_it_by_the_names_that_are_allowed(
    start_gateway: StartGateway, settings: dict[str, object], gets_in: bool
) -> None:
    http = start_gateway(**settings).http

    answer = http.get("/v1/jobs", headers={"Host": "vsr.example", "Origin": "http://vsr.example"})

    assert answer.status_code == (200 if gets_in else 401)


def test_keys_are_never_shown() -> None:
    settings = GatewaySettings.model_validate({"api_keys": "hunter2,hunter3"})

    assert "hunter" not in repr(settings) + str(settings) + settings.model_dump_json()
    # Nor are they known: what is kept of a key is its digest.
    digests = [f"sha256:{hashlib.sha256(key).hexdigest()}" for key in (b"hunter2", b"hunter3")]
    assert [key.get_secret_value() for key in settings.api_keys] == digests
