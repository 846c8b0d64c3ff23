"""The cookie by which a browser shows its key, where it can send no header."""

import socket
from collections.abc import Mapping
from urllib.parse import urlsplit

import httpx2
import pytest

from app.keys import cookie_value, key_in_cookie
from tests.app.conftest import StartGateway

KEY = "first-key; ü"


def open_session(http: httpx2.Client, **headers: str) -> httpx2.Response:
    return http.put("/v1/session", json={"key": KEY}, headers=headers)


def test_the_cookie_is_the_key_wherever_no_header_can_be_sent(start_gateway: StartGateway) -> None:
    # Given a browser that has no session yet
    gateway = start_gateway(api_keys=KEY)
    assert gateway.http.get("/v1/session").json() == {"needs_key": True, "authenticated": False}
    assert gateway.http.get("/v1/jobs").status_code == 401

    # When it opens one
    opened = open_session(gateway.http)

    # Then it is let in
    assert (opened.status_code, opened.content) == (204, b"")
    assert gateway.http.get("/v1/session").json() == {"needs_key": True, "authenticated": True}
    assert gateway.http.get("/v1/jobs").status_code == 200
    # And no script, no other site and no other path get at the cookie, which is not kept on a disk
    name, _, rest = opened.headers["Set-Cookie"].partition("=")
    assert (name, rest.partition("; ")[2]) == ("vsr_session", "HttpOnly; SameSite=strict")
    [cookie] = gateway.http.cookies.jar
    assert (cookie.path, cookie.expires) == ("/v1", None)


def test_a_closed_session_is_over(start_gateway: StartGateway) -> None:
    gateway = start_gateway(api_keys=KEY)
    open_session(gateway.http)

    closed = [gateway.http.delete("/v1/session").status_code for _ in range(2)]

    assert closed == [204, 204]
    assert gateway.http.get("/v1/session").json()["authenticated"] is False


def test_behind_https_the_cookie_is_sent_over_https_alone(start_gateway: StartGateway) -> None:
    # A proxy on this machine says so.
    opened = open_session(start_gateway(api_keys=KEY).http, **{"X-Forwarded-Proto": "https"})

    assert "; Secure" in opened.headers["Set-Cookie"]


def test_without_keys_nobody_needs_a_session(start_gateway: StartGateway) -> None:
    gateway = start_gateway()

    assert gateway.http.get("/v1/session").json() == {"needs_key": False, "authenticated": True}
    assert open_session(gateway.http).status_code == 401
    # And a page of another site learns that it is not let in.
    foreign = gateway.http.get("/v1/session", headers={"Origin": "https://evil.example"})
    assert foreign.json() == {"needs_key": False, "authenticated": False}


@pytest.mark.parametrize(
    ("headers", "gets_in"),
    [
        ({}, False),
        ({"Origin": "{own}"}, True),
        ({"Origin": "https://evil.example"}, False),
        ({"Origin": "null"}, False),
        ({"Sec-Fetch-Site": "same-origin"}, True),
        # The proxy in between may call us by another name than the page knows.
        ({"Sec-Fetch-Site": "same-origin", "Origin": "https://vsr.example"}, True),
        ({"Sec-Fetch-Site": "same-site", "Origin": "{own}"}, False),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "{own}"}, False),
        ({"Sec-Fetch-Site": "none"}, False),
        # With the key itself nobody asks who sent it.
        ({"X-API-Key": "program", "Origin": "https://evil.example"}, True),
    ],
)
def test_by_the_cookie_only_the_own_page_changes_anything(
    start_gateway: StartGateway, headers: Mapping[str, str], gets_in: bool
) -> None:
    # Given
    gateway = start_gateway(api_keys=f"{KEY},program")
    open_session(gateway.http)
    sent = {name: value.format(own=gateway.url) for name, value in headers.items()}

    for method, path in (("POST", "/cancel"), ("DELETE", "")):
        # When
        answer = gateway.http.request(method, f"/v1/jobs/{'0' * 20}{path}", headers=sent)
        # Then
        assert answer.status_code == (404 if gets_in else 401)
    # And looking is always possible
    assert gateway.http.get("/v1/jobs", headers=sent).status_code == 200


def test_a_wrong_key_is_not_made_good_by_the_cookie(start_gateway: StartGateway) -> None:
    gateway = start_gateway(api_keys=KEY)
    open_session(gateway.http)

    assert gateway.http.get("/v1/jobs", headers={"X-API-Key": "wrong"}).status_code == 401


@pytest.mark.parametrize("cookie", ["", "%", "wrong", "_w", cookie_value("wrong"), cookie_value(KEY) + "AAAA"])
def test_another_cookie_opens_nothing(start_gateway: StartGateway, cookie: str) -> None:
    gateway = start_gateway(api_keys=KEY)

    answer = gateway.http.get("/v1/jobs", headers={"Cookie": f"vsr_session={cookie}"})

    assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")


@pytest.mark.parametrize("key", ["k", "ke", "key", "key!", "ü;\n\x00 ,=", "k" * 1024])
def test_any_key_fits_into_a_cookie(key: str) -> None:
    value = cookie_value(key)

    assert key_in_cookie(value) == key
    assert value.replace("-", "").replace("_", "").isalnum()


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"[]", b'{"key": ""}', b'{"key": 7}', b'{"key": "hunter2", "more": 1}', b"{" + b" " * 5000]
)
def test_what_is_no_key_is_refused_and_not_repeated(start_gateway: StartGateway, body: bytes) -> None:
    answer = start_gateway(api_keys=KEY).http.put("/v1/session", content=body)

    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert "hunter2" not in answer.text


def test_a_page_of_another_site_opens_and_closes_no_session(start_gateway: StartGateway) -> None:
    gateway = start_gateway(api_keys=KEY)

    opened = open_session(gateway.http, Origin="https://evil.example")
    closed = gateway.http.delete("/v1/session", headers={"Origin": "https://evil.example"})

    for answer in (opened, closed):
        assert (answer.status_code, "Set-Cookie" in answer.headers) == (401, False)


def test_a_slow_stranger_keeps_no_place(start_gateway: StartGateway) -> None:
    # Given
    gateway = start_gateway(api_keys=KEY, head_timeout_seconds=0.3)

    # When only half of the body comes
    with socket.create_connection(urlsplit(gateway.url).netloc.split(":")) as connection:
        connection.sendall(b"PUT /v1/session HTTP/1.1\r\nHost: x\r\nContent-Length: 20\r\n\r\n{")
        answer = connection.recv(1000)

    # Then
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert open_session(gateway.http).status_code == 204
