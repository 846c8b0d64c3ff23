"""Keys are known by their digests, come from the environment and from a file, and open what is their own alone."""

import hashlib
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
from pydantic import SecretStr, ValidationError

from app.gateway import create_app
from app.keys import ApiKeys, KeysError, digest_text, keys_file_line, new_key, read_keys_file
from app.settings import GatewaySettings
from tests.app.conftest import RunningGateway, StartGateway
from worker.contract.settings import RedisSettings, StorageSettings

KEY, OTHER_KEY = "first-key", "second-key"
DIGEST = f"sha256:{hashlib.sha256(KEY.encode()).hexdigest()}"


def as_key(key: str) -> dict[str, str]:
    return {"X-API-Key": key}


def test_a_key_is_known_by_its_digest_however_it_was_given() -> None:
    plain, digest, capitals = (
        ApiKeys(GatewaySettings.model_validate({"api_keys": given}).api_keys)
        for given in (KEY, DIGEST, DIGEST.replace(DIGEST[7:], DIGEST[7:].upper()))
    )

    for keys in (plain, digest, capitals):
        found = keys.find(KEY)
        assert found is not None
        assert found.id == DIGEST.removeprefix("sha256:")[:12]
        assert keys.find(DIGEST) is None  # who has read the digest does not have the key
        assert keys.find("") is None
        assert KEY not in repr(vars(keys))


def test_a_damaged_digest_is_refused_without_repeating_it() -> None:
    with pytest.raises(ValidationError) as caught:
        GatewaySettings.model_validate({"api_keys": f"{KEY},sha256:c0ffee"})

    assert "64 hexadecimal digits" in str(caught.value)
    assert KEY not in str(caught.value)
    assert "c0ffee" not in str(caught.value)


def test_the_keys_file_has_a_name_and_a_digest_or_key_per_line(tmp_path: Path) -> None:
    # Given
    file = tmp_path / "keys"
    file.write_text(f"# ours\n\nstudio {DIGEST}\n  home\t{OTHER_KEY}   # of the cellar\n")

    # When
    keys = ApiKeys([], file)

    # Then
    assert [(one.name if (one := keys.find(key)) else None) for key in (KEY, OTHER_KEY, "x")] == [
        "studio",
        "home",
        None,
    ]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("studio", "a name, then a digest or key"),
        ("studio secret word", "a name, then a digest or key"),
        ("stüdio secret", "a name has letters"),
        ("studio sha256:beef", "64 hexadecimal digits"),
    ],
)
def test_a_line_that_cannot_be_understood_is_named_by_its_number_alone(tmp_path: Path, line: str, reason: str) -> None:
    (tmp_path / "keys").write_text(f"# first\n{line}\n")

    with pytest.raises(KeysError, match=reason) as caught:
        read_keys_file(tmp_path / "keys")

    assert "line 2" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "beef" not in str(caught.value)


def test_a_changed_file_counts_at_once_and_a_damaged_or_missing_one_changes_nothing(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    # Given a gateway with a file of one key
    file = tmp_path / "keys"
    file.write_text(f"studio {KEY}\n")
    http = start_gateway(api_keys_file=file).http

    def who_gets_in() -> list[int]:
        return [http.get("/v1/jobs", headers=as_key(key)).status_code for key in (KEY, OTHER_KEY)]

    assert who_gets_in() == [200, 401]

    # When another is added, then the first removed, then the file damaged, then gone, then empty
    seen = []
    for content in (f"studio {KEY}\nhome {digest_text(OTHER_KEY)}\n", f"home {OTHER_KEY}\n", "home\n", None, ""):
        if content is None:
            file.unlink()
        else:
            (tmp_path / "new").write_text(content)
            (tmp_path / "new").rename(file)
        seen.append(who_gets_in())

    # Then
    assert seen == [[200, 200], [401, 200], [401, 200], [401, 200], [401, 401]]


def test_a_file_without_keys_lets_nobody_in(start_gateway: StartGateway, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("# soon\n")

    assert start_gateway(api_keys_file=tmp_path / "keys").http.get("/v1/jobs").status_code == 401


def test_vsr_keys_new_makes_a_key_and_its_line_for_the_file(tmp_path: Path) -> None:
    # When
    made = subprocess.run(
        [sys.executable, "-m", "app.cli", "keys", "new", "studio"], capture_output=True, text=True, check=True
    )

    # Then the line opens to the key, and does not hold it
    key, line = made.stdout.splitlines()
    (tmp_path / "keys").write_text(line + "\n")
    found = ApiKeys([], tmp_path / "keys").find(key)
    assert found is not None
    assert found.name == "studio"
    assert key not in line + made.stderr
    assert key.startswith("vsr_")
    assert len({new_key() for _ in range(100)}) == 100
    with pytest.raises(KeysError):
        keys_file_line("two words", key)


# --- whose job it is --------------------------------------------------------------------------------------------------


@pytest.fixture
def shared(start_gateway: StartGateway) -> RunningGateway:
    """A gateway with two keys."""
    return start_gateway(api_keys=f"{KEY},{OTHER_KEY}")


def submit(gateway: RunningGateway, key: str, **headers: str) -> httpx2.Response:
    files = {"file": ("clip.mp4", b"abc")}
    return gateway.http.post("/v1/jobs", files=files, headers=as_key(key) | headers)


def routes_of_a_job() -> list[tuple[str, str]]:
    """Every one that the service has: method, and what follows the job's id."""
    app = create_app(
        GatewaySettings(),
        RedisSettings(redis_url=SecretStr("unix:///never/called")),
        StorageSettings(storage_dir=Path("never-written")),
    )
    documented = [
        (method.upper(), path.removeprefix("/v1/jobs/{job_id}"))
        for path, methods in app.openapi()["paths"].items()
        if path.startswith("/v1/jobs/{job_id}")
        for method in methods
    ]
    return sorted({*documented, ("HEAD", "/result")})


def test_the_routes_of_a_job_are_found() -> None:
    assert {("GET", ""), ("POST", "/retry"), ("GET", "/webhook"), ("POST", "/webhook/replay")} < {*routes_of_a_job()}


@pytest.mark.parametrize(("method", "path"), routes_of_a_job())
@pytest.mark.parametrize("end", ["succeeded", "canceled"])
def test_a_job_of_another_key_is_not_there_and_stays_as_it_is(
    start_gateway: StartGateway, method: str, path: str, end: str
) -> None:
    # Given a finished job of the first key, which tells somebody of its end
    shared = start_gateway(api_keys=f"{KEY},{OTHER_KEY}", webhook_secret="a secret of more than twenty-four letters")
    fields = {"webhook_url": "https://hooks.example.com/vsr"}
    files = {"file": ("clip.mp4", b"abc")}
    job = shared.http.post("/v1/jobs", files=files, data=fields, headers=as_key(KEY)).json()
    if end == "succeeded":
        shared.finish_job(job["id"], b"result")
    else:
        shared.registry.cancel(job["id"])
    before, files_before = shared.registry.get(job["id"]), shared.files()

    # When the other key asks for it, and for one that there is not
    answer = shared.http.request(method, f"/v1/jobs/{job['id']}{path}", headers=as_key(OTHER_KEY))
    nothing = shared.http.request(method, f"/v1/jobs/{'0' * 20}{path}", headers=as_key(OTHER_KEY))

    # Then both answers are the same, but for the id, and nothing has happened
    assert (answer.status_code, nothing.status_code) == (404, 404)
    if method != "HEAD":
        told, of_nothing = answer.json(), nothing.json()
        assert told["detail"].replace(job["id"], "0" * 20) == of_nothing["detail"]
        assert told["code"] == of_nothing["code"] == "job_not_found"
    assert shared.registry.get(job["id"]) == before
    assert shared.files() == files_before
    assert shared.http.get(f"/v1/jobs/{job['id']}", headers=as_key(KEY)).json()["status"] == end


def test_lists_hold_ones_own_jobs_page_by_page_and_the_place_in_the_queue_counts_all(shared: RunningGateway) -> None:
    # Given jobs of both keys by turns, and one of an earlier time without keys
    shared.add_job()
    own: dict[str, list[str]] = {KEY: [], OTHER_KEY: []}
    for key in (KEY, OTHER_KEY) * 3:
        own[key].append(submit(shared, key).json()["id"])
    shared.http.post(f"/v1/jobs/{own[KEY][0]}/cancel", headers=as_key(KEY))

    def listed(key: str, **query: str) -> list[list[str]]:
        pages, cursor = [], {}
        while True:
            page = shared.http.get("/v1/jobs", params={"limit": 2, **query, **cursor}, headers=as_key(key)).json()
            pages.append([job["id"] for job in page["jobs"]])
            if page["next_cursor"] is None:
                return pages
            cursor = {"cursor": page["next_cursor"]}

    # When Redis is as it was, and when it has been emptied and the index rebuilt
    for _ in range(2):
        # Then
        assert listed(KEY) == [own[KEY][:0:-1], [own[KEY][0]]]
        assert listed(OTHER_KEY) == [own[OTHER_KEY][:0:-1], [own[OTHER_KEY][0]]]
        assert listed(KEY, status="canceled") == [[own[KEY][0]]]
        last = shared.http.get(f"/v1/jobs/{own[OTHER_KEY][-1]}", headers=as_key(OTHER_KEY)).json()
        assert last["queue_position"] == 6
        shared.redis.flushall()
        for job_id in shared.storage.job_ids():  # as the reconciler does
            shared.registry.change(job_id, lambda current: current)


def test_deleted_jobs_leave_no_trace_in_the_index_of_their_key(shared: RunningGateway) -> None:
    job = submit(shared, KEY).json()

    shared.http.delete(f"/v1/jobs/{job['id']}", headers=as_key(KEY))

    assert not [key for key in shared.redis.scan_iter() if b"owner" in key]


def test_a_job_that_ends_while_it_is_deleted_is_in_no_list(shared: RunningGateway) -> None:
    # Given jobs that workers finish and fail while their owner deletes them
    jobs = [submit(shared, KEY).json()["id"] for _ in range(12)]

    # When
    with ThreadPoolExecutor(4) as pool:
        for job_id in jobs:
            pool.submit(shared.registry.cancel, job_id)
            pool.submit(shared.http.delete, f"/v1/jobs/{job_id}", headers=as_key(KEY))

    # Then
    assert shared.http.get("/v1/jobs", headers=as_key(KEY)).json()["jobs"] == []
    assert shared.storage.job_ids() == []
    assert not [key for key in shared.redis.scan_iter() if b"owner" in key]


def test_upload_ids_are_a_keys_own(shared: RunningGateway) -> None:
    # Given an upload of the same id by each key
    for key, content in ((KEY, b"first"), (OTHER_KEY, b"second")):
        shared.http.put("/v1/uploads/clip", content=content, headers=as_key(key))

    # When the other makes a job of it, twice, and then the first
    answers = [
        shared.http.post("/v1/jobs", json={"upload_id": "clip"}, headers=as_key(key))
        for key in (OTHER_KEY, OTHER_KEY, KEY)
    ]

    # Then each had its own
    assert [answer.status_code for answer in answers] == [202, 404, 202]
    sources = [shared.storage.folder(answers[index].json()["id"]).source.read_bytes() for index in (0, 2)]
    assert sources == [b"second", b"first"]


def test_idempotency_keys_are_a_keys_own(shared: RunningGateway) -> None:
    answers = [submit(shared, key, **{"Idempotency-Key": "once"}) for key in (KEY, OTHER_KEY, KEY, OTHER_KEY)]

    ids = [answer.json()["id"] for answer in answers]
    assert [answer.status_code for answer in answers] == [202] * 4
    assert ids[0] == ids[2] != ids[1] == ids[3]


def test_a_removed_key_leaves_its_jobs_in_storage_and_nobody_sees_them(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    # Given
    (tmp_path / "keys").write_text(f"studio {KEY}\nhome {OTHER_KEY}\n")
    gateway = start_gateway(api_keys_file=tmp_path / "keys")
    job = submit(gateway, KEY).json()

    # When
    (tmp_path / "keys").write_text(f"home {OTHER_KEY}\n")

    # Then
    assert gateway.http.get(f"/v1/jobs/{job['id']}", headers=as_key(KEY)).status_code == 401
    assert gateway.http.get(f"/v1/jobs/{job['id']}", headers=as_key(OTHER_KEY)).status_code == 404
    assert gateway.storage.job_ids() == [job["id"]]


def test_without_keys_everything_is_everybodys(gateway: RunningGateway) -> None:
    # Given a job of a key that was once configured, and one without
    owned, free = gateway.add_job(owner="0" * 12), gateway.add_job()

    # When
    listed = gateway.http.get("/v1/jobs").json()["jobs"]

    # Then
    assert {job["id"] for job in listed} == {owned.id, free.id}
    assert gateway.http.get(f"/v1/jobs/{owned.id}").status_code == 200


def test_a_record_of_before_there_were_owners_is_still_read(gateway: RunningGateway) -> None:
    # Given
    job = gateway.add_job()
    file = gateway.storage.folder(job.id).record
    content = json.loads(file.read_bytes())
    del content["owner"]
    file.write_text(json.dumps(content))
    gateway.redis.flushall()

    # Then
    assert gateway.http.get(f"/v1/jobs/{job.id}").json()["status"] == "queued"
    assert gateway.storage.read_record(job.id) == job
