"""The page's files as the gateway hands them out. What the page does is in tests/page."""

import gzip
import re
from pathlib import Path

import pytest

import app.page
from tests.app.conftest import RunningGateway, StartGateway

STATIC = Path(app.page.__file__).parent / "static"
FILES = sorted(str(path.relative_to(STATIC)) for path in STATIC.rglob("*") if path.is_file())
MOST_COMPRESSED_BYTES = 300_000
MEDIA_TYPES = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".mjs": "text/javascript",
    ".svg": "image/svg+xml",
    ".woff2": "font/woff2",
}


def test_the_front_door_is_the_page(gateway: RunningGateway) -> None:
    answer = gateway.http.get("/")

    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert answer.text == (STATIC / "index.html").read_text()
    assert (answer.headers["X-Content-Type-Options"], answer.headers["Referrer-Policy"]) == ("nosniff", "no-referrer")


@pytest.mark.parametrize("name", FILES)
def test_every_file_is_served_as_what_it_is_and_is_not_sent_twice(gateway: RunningGateway, name: str) -> None:
    # Given
    suffix = Path(name).suffix

    # When it is asked for, and asked for again by a browser that has it
    answer = gateway.http.get(f"/page/{name}")
    again = gateway.http.get(f"/page/{name}", headers={"If-None-Match": answer.headers["ETag"]})

    # Then
    assert answer.content == (STATIC / name).read_bytes()
    if suffix in MEDIA_TYPES:
        assert answer.headers["Content-Type"].partition(";")[0] == MEDIA_TYPES[suffix]
    assert (again.status_code, again.content) == (304, b"")


def test_what_has_its_version_in_its_path_is_kept_for_ever_and_the_rest_is_asked_about(gateway: RunningGateway) -> None:
    kept = {name: gateway.http.get(f"/page/{name}").headers["Cache-Control"] for name in FILES}

    for name, cache_control in kept.items():
        expected = "public, max-age=31536000, immutable" if name.startswith("vendor/") else "no-cache"
        assert cache_control == expected, name


def test_the_page_runs_its_own_scripts_only(gateway: RunningGateway) -> None:
    # When
    answer = gateway.http.get("/")

    # Then the browser is told so
    policy = dict(part.split(" ", 1) for part in answer.headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    # And the page needs no more: no script and no style between its lines
    assert re.search(r"<script(?![^>]* src=)|<style|style=| on[a-z]+=", answer.text) is None


@pytest.mark.parametrize("name", [name for name in FILES if not name.startswith("vendor/")])
def test_nothing_of_ours_names_another_host_or_an_address_from_the_root(name: str) -> None:
    """Behind a proxy's prefix, and without a network, it works as well."""
    text = (STATIC / name).read_text()

    addresses = re.findall(r"""(?:href|src|action)="([^"]*)"|url\("([^"]*)"\)|(?:import|from)\s*\(?"([^"]*)\"""", text)
    for address in ("".join(one) for one in addresses):
        assert not re.match(r"/|[a-z]+:", address), address
    assert [host for host in re.findall(r"https?://[^\s\"]+", text) if host != "http://www.w3.org/2000/svg"] == []


def test_every_module_that_the_page_begins_with_is_asked_for_at_once() -> None:
    # Given what is imported from the first module on
    found, waiting = set[str](), ["main.js"]
    while waiting:
        name = waiting.pop()
        imported = re.findall(r'^import .* from "\./([^"]+)"', (STATIC / "modules" / name).read_text(), re.MULTILINE)
        waiting += [one for one in imported if one not in found]
        found |= set(imported)

    # Then the browser is told of it before it has read a script
    told = re.findall(r'modulepreload" href="page/modules/([^"]+)"', (STATIC / "index.html").read_text())
    assert sorted(told) == sorted(found)


def test_a_stranger_gets_the_page_but_no_jobs(start_gateway: StartGateway) -> None:
    # Given a service with keys
    gateway = start_gateway(api_keys=["a-key-of-this-service"])

    # Then whoever has none can open the page, to sign in there
    assert gateway.http.get("/").status_code == 200
    assert gateway.http.get("/page/modules/main.js").status_code == 200
    assert gateway.http.get("/v1/jobs").status_code == 401


@pytest.mark.parametrize(
    "path", ["/page/../gateway.py", "/page/%2e%2e/gateway.py", "/page/nothing.js", "/page/modules"]
)
def test_nothing_but_the_pages_files_is_there(gateway: RunningGateway, path: str) -> None:
    answer = gateway.http.get(path)

    assert answer.status_code == 404
    assert answer.headers["Content-Type"] == "application/problem+json"


def test_all_of_it_weighs_less_than_a_photograph(gateway: RunningGateway) -> None:
    # When a browser asks for everything that it may ever need
    headers = {"Accept-Encoding": "gzip"}
    sent = {}
    for name in (name for name in FILES if Path(name).suffix not in (".md", "")):
        with gateway.http.stream("GET", f"/page/{name}", headers=headers) as answer:
            raw = b"".join(answer.iter_raw())
        sent[name] = len(raw)
        # And what can be compressed is
        if Path(name).suffix in (".js", ".mjs", ".css", ".html") and (STATIC / name).stat().st_size > 1000:
            assert gzip.decompress(raw) == (STATIC / name).read_bytes(), name

    # Then
    assert sum(sent.values()) < MOST_COMPRESSED_BYTES, sent
