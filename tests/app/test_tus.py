"""A resumable upload loses nothing that it told of, and is a file only when whole."""

import base64
import hashlib
import os
import socket
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from urllib.parse import urljoin

import httpx2
import pytest

from app.uploads import sweep_old_uploads
from tests.app.conftest import RunningGateway, StartGateway, wait_until
from tests.app.test_uploads import _answer, _connection

MEBIBYTE = 1024 * 1024
VERSION = {"Tus-Resumable": "1.0.0"}
CHUNK = VERSION | {"Content-Type": "application/offset+octet-stream"}


def begin(gateway: RunningGateway, length: int, **headers: str) -> str:
    """The path of a new upload."""
    answer = gateway.http.post("/v1/uploads", headers=VERSION | {"Upload-Length": str(length)} | headers)
    assert answer.status_code == 201, answer.text
    return urljoin("/v1/uploads", answer.headers["Location"])


def patch(gateway: RunningGateway, path: str, offset: int, content: bytes, **headers: str) -> httpx2.Response:
    return gateway.http.patch(path, headers=CHUNK | {"Upload-Offset": str(offset)} | headers, content=content)


def offset_of(gateway: RunningGateway, path: str) -> int:
    answer = gateway.http.head(path, headers=VERSION)
    assert answer.status_code == 200
    return int(answer.headers["Upload-Offset"])


def half_sent(gateway: RunningGateway, path: str, content: bytes, announced: int, **headers: str) -> socket.socket:
    """A connection over which a PATCH is under way and goes no further."""
    told = CHUNK | {"Host": "localhost", "Upload-Offset": "0", "Content-Length": str(announced)} | headers
    head = f"PATCH {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in told.items())
    client = _connection(gateway)
    client.sendall(head.encode() + b"\r\n" + content)
    return client


def on_disk(gateway: RunningGateway, path: str) -> int:
    """Bytes of the unfinished upload in the storage."""
    key = hashlib.sha256(path.rpartition("/")[2].encode()).hexdigest()
    return (gateway.storage.uploads / f"{key}.tus").stat().st_size


# --- from the beginning to a job --------------------------------------------------------------------------------------


def test_an_upload_in_pieces_becomes_a_job(gateway: RunningGateway) -> None:
    # Given
    content = os.urandom(3 * MEBIBYTE + 17)
    path = begin(gateway, len(content), **{"Upload-Metadata": "filename Y2xpcC5tcDQ=,note"})

    # When it is sent in two pieces
    first = patch(gateway, path, 0, content[:1_000_000])
    offset = offset_of(gateway, path)
    second = patch(gateway, path, offset, content[offset:])

    # Then every answer tells how far it is
    assert (first.status_code, first.headers["Upload-Offset"], offset) == (204, "1000000", 1_000_000)
    assert (second.status_code, second.headers["Upload-Offset"]) == (204, str(len(content)))
    assert second.headers["Tus-Resumable"] == "1.0.0"
    # And the id makes a job of it
    answer = gateway.http.post("/v1/jobs", json={"upload_id": path.rpartition("/")[2]})
    assert answer.status_code == 202
    assert answer.json()["source"]["sha256"] == hashlib.sha256(content).hexdigest()
    assert gateway.storage.folder(answer.json()["id"]).source.read_bytes() == content


def test_the_first_bytes_may_come_with_the_beginning(gateway: RunningGateway) -> None:
    # When the whole file comes with the POST
    answer = gateway.http.post("/v1/uploads", headers=CHUNK | {"Upload-Length": "3"}, content=b"abc")

    # Then it is finished
    upload_id = answer.headers["Location"].rpartition("/")[2]
    assert (answer.status_code, answer.headers["Upload-Offset"]) == (201, "3")
    assert gateway.http.post("/v1/jobs", json={"upload_id": upload_id}).status_code == 202


def test_an_unfinished_upload_is_no_file_yet(gateway: RunningGateway) -> None:
    path = begin(gateway, 4)
    patch(gateway, path, 0, b"abc")

    answer = gateway.http.post("/v1/jobs", json={"upload_id": path.rpartition("/")[2]})

    assert (answer.status_code, answer.json()["code"]) == (404, "upload_not_found")


def test_a_finished_upload_still_tells_its_offset(gateway: RunningGateway) -> None:
    # Given a client that never got the last answer
    path = begin(gateway, 3, **{"Upload-Metadata": "filename YQ=="})
    patch(gateway, path, 0, b"abc")

    # When it asks
    answer = gateway.http.head(path, headers=VERSION)

    # Then
    assert {name: answer.headers[name] for name in ("Upload-Offset", "Upload-Length", "Upload-Metadata")} == {
        "Upload-Offset": "3",
        "Upload-Length": "3",
        "Upload-Metadata": "filename YQ==",
    }
    assert answer.headers["Cache-Control"] == "no-store"
    assert patch(gateway, path, 3, b"").status_code == 204


def test_the_place_of_an_upload_holds_behind_a_proxy_with_a_prefix(gateway: RunningGateway) -> None:
    answer = gateway.http.post("/v1/uploads", headers=VERSION | {"Upload-Length": "3"})

    place = urljoin("https://example.org/vsr/v1/uploads", answer.headers["Location"])

    assert place.startswith("https://example.org/vsr/v1/uploads/")


def test_what_is_spoken_here_can_be_asked(start_gateway: StartGateway) -> None:
    answer = start_gateway(max_upload_bytes=1234).http.options("/v1/uploads")

    assert answer.status_code == 204
    assert answer.headers["Tus-Version"] == "1.0.0"
    assert answer.headers["Tus-Max-Size"] == "1234"
    assert answer.headers["Allow"] == "OPTIONS, POST"
    assert set(answer.headers["Tus-Extension"].split(",")) == {
        "creation",
        "creation-with-upload",
        "termination",
        "expiration",
        "checksum",
    }
    # And pages of other sites may not use it
    assert not [name for name in answer.headers if name.lower().startswith("access-control")]


def test_a_client_that_knows_no_patch_says_so_in_a_header(gateway: RunningGateway) -> None:
    path = begin(gateway, 3)

    headers = CHUNK | {"Upload-Offset": "0", "X-HTTP-Method-Override": "PATCH"}
    answer = gateway.http.post(path, headers=headers, content=b"abc")

    assert (answer.status_code, answer.headers["Upload-Offset"]) == (204, "3")


# --- interrupted ------------------------------------------------------------------------------------------------------


def test_what_arrived_before_a_cut_is_kept(gateway: RunningGateway) -> None:
    # Given a connection that is cut in the middle
    content = os.urandom(3_000_000)
    path = begin(gateway, len(content))
    client = half_sent(gateway, path, content[:2_500_001], announced=len(content))
    wait_until(lambda: on_disk(gateway, path) > MEBIBYTE)
    client.close()

    # When the client asks, and goes on from there
    offset = offset_of(gateway, path)
    answer = patch(gateway, path, offset, content[offset:])

    # Then nothing was lost that had arrived, nothing came twice
    assert offset > MEBIBYTE
    assert answer.headers["Upload-Offset"] == str(len(content))
    (stored,) = gateway.storage.uploads.glob(f"*.{hashlib.sha256(content).hexdigest()}")
    assert stored.read_bytes() == content


def test_who_comes_back_takes_over_from_a_connection_that_is_dead(gateway: RunningGateway) -> None:
    # Given a connection that went silent without an end, as when a phone changes networks
    content = os.urandom(2 * MEBIBYTE)
    path = begin(gateway, len(content))
    silent = half_sent(gateway, path, content[: MEBIBYTE + 5], announced=len(content))
    wait_until(lambda: on_disk(gateway, path) >= MEBIBYTE)

    # When its client comes back
    offset = offset_of(gateway, path)
    answer = patch(gateway, path, offset, content[offset:])

    # Then the old connection is told, and the upload is whole
    assert offset >= MEBIBYTE
    assert answer.status_code == 204
    status, problem = _answer(silent)
    assert (status, problem["code"]) == (409, "upload_taken_over")
    silent.close()
    assert list(gateway.storage.uploads.glob(f"*.{hashlib.sha256(content).hexdigest()}"))


def test_a_gateway_killed_before_the_last_step_finishes_when_asked(gateway: RunningGateway) -> None:
    # Given all bytes on disk, and no finished upload
    path = begin(gateway, 3)
    key = hashlib.sha256(path.rpartition("/")[2].encode()).hexdigest()
    (gateway.storage.uploads / f"{key}.tus").write_bytes(b"abc")

    # When
    offset = offset_of(gateway, path)

    # Then
    assert offset == 3
    assert gateway.http.post("/v1/jobs", json={"upload_id": path.rpartition("/")[2]}).status_code == 202


def test_an_upload_outlives_its_gateway(gateway: RunningGateway, start_gateway: StartGateway) -> None:
    # Given one that began at another gateway on the same storage
    path = begin(gateway, 6)
    patch(gateway, path, 0, b"abc")

    # When it goes on at the next
    answer = patch(start_gateway(), path, 3, b"def")

    # Then
    assert (answer.status_code, answer.headers["Upload-Offset"]) == (204, "6")


def test_a_chunk_that_stalls_is_given_up_and_kept(start_gateway: StartGateway) -> None:
    # Given
    gateway = start_gateway(upload_idle_timeout_seconds=0.2)
    path = begin(gateway, 100)

    # When a client falls silent
    with half_sent(gateway, path, b"abc", announced=100) as client:
        status, problem = _answer(client)

    # Then
    assert (status, problem["code"]) == (408, "upload_stalled")
    assert offset_of(gateway, path) == 3


# --- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["POST", "HEAD", "PATCH", "DELETE"])
def test_a_request_in_another_version_is_told_ours(gateway: RunningGateway, method: str) -> None:
    path = begin(gateway, 3)
    headers = CHUNK | {"Tus-Resumable": "0.2.2", "Upload-Length": "3", "Upload-Offset": "0"}

    answer = gateway.http.request(method, "/v1/uploads" if method == "POST" else path, headers=headers)

    assert (answer.status_code, answer.headers["Tus-Version"]) == (412, "1.0.0")
    assert method == "HEAD" or answer.json()["code"] == "unsupported_tus_version"
    assert on_disk(gateway, path) == 0


REFUSED_BEGINNINGS: dict[str, tuple[dict[str, str], bytes, int, str]] = {
    "no length": ({}, b"", 422, "invalid_request"),
    "a length that is none": ({"Upload-Length": "many"}, b"", 422, "invalid_request"),
    "a negative length": ({"Upload-Length": "-1"}, b"", 422, "invalid_request"),
    "an empty file": ({"Upload-Length": "0"}, b"", 422, "empty_file"),
    "too large": ({"Upload-Length": "1001"}, b"", 413, "upload_too_large"),
    "absurdly large": ({"Upload-Length": "9" * 400}, b"", 413, "upload_too_large"),
    "more than announced": ({"Upload-Length": "3"}, b"abcd", 413, "upload_overrun"),
    "metadata that is none": ({"Upload-Length": "3", "Upload-Metadata": "filename ?"}, b"", 422, "invalid_request"),
    "a body of another kind": (
        {"Upload-Length": "3", "Content-Type": "video/mp4"},
        b"a",
        415,
        "unsupported_media_type",
    ),
    "an unknown checksum": ({"Upload-Length": "3", "Upload-Checksum": "crc32 AA=="}, b"a", 400, "unsupported_checksum"),
    "no base64": ({"Upload-Length": "3", "Upload-Checksum": "sha1 ?"}, b"a", 400, "unsupported_checksum"),
}


@pytest.mark.parametrize("name", REFUSED_BEGINNINGS)
def test_a_wrong_beginning_is_refused_and_leaves_nothing(start_gateway: StartGateway, name: str) -> None:
    gateway = start_gateway(max_upload_bytes=1000)
    headers, content, status, code = REFUSED_BEGINNINGS[name]

    answer = gateway.http.post("/v1/uploads", headers=CHUNK | headers, content=content)

    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert gateway.files() == []


def test_bytes_for_another_offset_are_refused_with_the_right_one(gateway: RunningGateway) -> None:
    path = begin(gateway, 10)
    patch(gateway, path, 0, b"abc")

    for wrong in (0, 2, 4, 10):
        answer = patch(gateway, path, wrong, b"def")
        assert (answer.status_code, answer.json()["code"]) == (409, "upload_offset")
        assert answer.headers["Upload-Offset"] == "3"
    assert on_disk(gateway, path) == 3


def test_bytes_past_the_announced_length_are_refused_unread(gateway: RunningGateway) -> None:
    path = begin(gateway, 3)

    answer = patch(gateway, path, 0, b"abcd")

    assert (answer.status_code, answer.json()["code"], answer.json()["length_bytes"]) == (413, "upload_overrun", 3)
    assert on_disk(gateway, path) == 0


def test_a_body_of_unknown_length_is_cut_at_the_announced_one(gateway: RunningGateway) -> None:
    # Given a chunked body that is too long
    path = begin(gateway, MEBIBYTE)

    def content() -> Iterator[bytes]:
        for _ in range(3):
            yield b"x" * (MEBIBYTE - 1)

    # When
    answer = gateway.http.patch(path, headers=CHUNK | {"Upload-Offset": "0"}, content=content())

    # Then
    assert (answer.status_code, answer.json()["code"]) == (413, "upload_overrun")
    assert on_disk(gateway, path) < MEBIBYTE


def test_a_chunk_of_another_media_type_is_refused(gateway: RunningGateway) -> None:
    path = begin(gateway, 3)

    answer = patch(gateway, path, 0, b"abc", **{"Content-Type": "video/mp4"})

    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type")
    assert on_disk(gateway, path) == 0


@pytest.mark.parametrize("method", ["HEAD", "PATCH", "DELETE"])
def test_an_upload_that_is_not_there_is_not_found(gateway: RunningGateway, method: str) -> None:
    answer = gateway.http.request(method, "/v1/uploads/nothing", headers=CHUNK | {"Upload-Offset": "0"})

    assert answer.status_code == 404
    assert "Upload-Offset" not in answer.headers
    assert gateway.files() == []


def test_an_id_that_could_be_a_path_is_refused(gateway: RunningGateway) -> None:
    for upload_id in ("a" * 65, "a.b", "%2e%2e", "a%2Fb", "ü", "a%00"):
        for method in ("HEAD", "PATCH", "DELETE"):
            answer = gateway.http.request(method, f"/v1/uploads/{upload_id}", headers=CHUNK | {"Upload-Offset": "0"})

            assert answer.status_code in (404, 405, 422)
    assert gateway.files() == []


def test_without_a_valid_key_not_a_byte_is_written(start_gateway: StartGateway) -> None:
    # Given an upload of somebody with a key
    gateway = start_gateway(api_keys="right-key")
    gateway.http.headers["X-API-Key"] = "right-key"
    path = begin(gateway, 1000)
    before = gateway.files()

    # When a stranger begins one, and announces bytes for this one
    stranger = {"X-API-Key": "wrong"}
    begun = gateway.http.post("/v1/uploads", headers=CHUNK | {"Upload-Length": "3"} | stranger, content=b"abc")
    with half_sent(gateway, path, b"", announced=1000, **stranger) as client:
        status, problem = _answer(client)

    # Then it is refused before the body
    assert (begun.status_code, status, problem["code"]) == (401, 401, "unauthorized")
    assert gateway.files() == before


def test_an_upload_belongs_to_its_key(start_gateway: StartGateway) -> None:
    # Given two keys, and an upload of the first
    gateway = start_gateway(api_keys="one-key,other-key")
    gateway.http.headers["X-API-Key"] = "one-key"
    path = begin(gateway, 6)
    patch(gateway, path, 0, b"abc")

    # When the other key tries everything
    other = {"X-API-Key": "other-key"}
    answers = [
        gateway.http.head(path, headers=VERSION | other),
        patch(gateway, path, 3, b"def", **other),
        gateway.http.delete(path, headers=VERSION | other),
        gateway.http.post("/v1/jobs", json={"upload_id": path.rpartition("/")[2]}, headers=other),
    ]

    # Then for it there is nothing
    assert [answer.status_code for answer in answers] == [404, 404, 404, 404]
    assert offset_of(gateway, path) == 3


def test_a_full_disk_is_named_before_the_first_byte(start_gateway: StartGateway) -> None:
    gateway = start_gateway(min_free_bytes=2**62)

    answer = gateway.http.post("/v1/uploads", headers=VERSION | {"Upload-Length": "3"})

    assert (answer.status_code, answer.json()["code"]) == (507, "out_of_disk")
    assert gateway.files() == []


def test_another_method_is_told_the_ones_there_are(gateway: RunningGateway) -> None:
    of_all = gateway.http.get("/v1/uploads")
    of_one = gateway.http.get("/v1/uploads/some")

    assert (of_all.status_code, of_all.headers["Allow"]) == (405, "OPTIONS, POST")
    assert (of_one.status_code, of_one.headers["Allow"]) == (405, "DELETE, HEAD, PATCH, PUT")


# --- checksums --------------------------------------------------------------------------------------------------------


def checksum(content: bytes, algorithm: str = "sha1") -> dict[str, str]:
    digest = hashlib.new(algorithm, content).digest()
    return {"Upload-Checksum": f"{algorithm} {base64.b64encode(digest).decode()}"}


@pytest.mark.parametrize("algorithm", ["sha1", "sha256"])
def test_a_chunk_with_its_checksum_is_taken_and_a_damaged_one_is_not(gateway: RunningGateway, algorithm: str) -> None:
    path = begin(gateway, 6)

    good = patch(gateway, path, 0, b"abc", **checksum(b"abc", algorithm))
    damaged = patch(gateway, path, 3, b"dXf", **checksum(b"def", algorithm))

    assert good.status_code == 204
    assert (damaged.status_code, damaged.json()["code"]) == (460, "checksum_mismatch")
    assert offset_of(gateway, path) == 3
    assert patch(gateway, path, 3, b"def", **checksum(b"def", algorithm)).headers["Upload-Offset"] == "6"


def test_of_a_chunk_that_is_cut_before_it_could_be_checked_nothing_stays(gateway: RunningGateway) -> None:
    # Given
    content = os.urandom(2 * MEBIBYTE)
    path = begin(gateway, len(content))
    client = half_sent(gateway, path, content[: MEBIBYTE + 1], announced=len(content), **checksum(content))
    wait_until(lambda: on_disk(gateway, path) >= MEBIBYTE)

    # When
    client.close()

    # Then
    assert offset_of(gateway, path) == 0


# --- given up, expired ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", [0, 2, 3])
def test_an_upload_that_is_given_up_is_gone(gateway: RunningGateway, sent: int) -> None:
    path = begin(gateway, 3)
    patch(gateway, path, 0, b"abc"[:sent])

    answer = gateway.http.delete(path, headers=VERSION)

    assert answer.status_code == 204
    assert gateway.http.head(path, headers=VERSION).status_code == 404
    assert gateway.files() == []


def test_an_unfinished_upload_expires_when_it_said_it_would(start_gateway: StartGateway) -> None:
    # Given an upload that is told to live for an hour
    gateway = start_gateway(upload_retention_seconds=3600)
    path = begin(gateway, 6)
    answer = patch(gateway, path, 0, b"abc")
    expires_at = parsedate_to_datetime(answer.headers["Upload-Expires"])
    lives_on = expires_at - parsedate_to_datetime(answer.headers["Date"])
    assert 3590 < lives_on.total_seconds() < 3610

    # When it is swept before that time, and after
    sweep_old_uploads(gateway.storage, lambda file: time.time() - file.stat().st_mtime > 3600)
    before = offset_of(gateway, path)
    sweep_old_uploads(gateway.storage, lambda file: True)
    sweep_old_uploads(gateway.storage, lambda file: True)

    # Then
    assert before == 3
    assert gateway.http.head(path, headers=VERSION).status_code == 404
    assert gateway.files() == []


def test_an_upload_under_way_is_not_swept(gateway: RunningGateway) -> None:
    # Given
    path = begin(gateway, 2 * MEBIBYTE)
    client = half_sent(gateway, path, b"x" * (MEBIBYTE + 1), announced=2 * MEBIBYTE)
    wait_until(lambda: on_disk(gateway, path) >= MEBIBYTE)

    # When
    sweep_old_uploads(gateway.storage, lambda file: True)

    # Then it completes
    client.sendall(b"x" * (MEBIBYTE - 1))
    response = client.recv(65536)
    client.close()
    assert response.startswith(b"HTTP/1.1 204 ")
    assert gateway.http.post("/v1/jobs", json={"upload_id": path.rpartition("/")[2]}).status_code == 202
