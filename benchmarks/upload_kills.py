"""SIGKILL the gateway among uploads of all three kinds, at seeded random moments, and count what its 202s were worth.

    .venv/bin/python benchmarks/upload_kills.py --uploads 50 --kills 10 --seed 0

Brings its own Redis, storage and gateway; no worker. Every client tries until it has its 202: a raw PUT and a form
send the file again, tus goes on where HEAD says. `POST /v1/jobs` carries an Idempotency-Key, as a client's must that
repeats.
"""

import argparse
import hashlib
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urljoin

import httpx2
from redis import Redis

if __name__ == "__main__":  # run as a script, this folder's neighbours are not on the path
    sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.gateway_process import GatewayProcess
from worker.contract.queue import TaskKind, TaskQueue, task_id
from worker.contract.registry import JobRegistry

KINDS = ("raw PUT", "form", "tus")
PIECE_BYTES = 64 * 1024
# Long enough that kills fall into uploads, not between them.
UPLOAD_SECONDS = 1.5
GIVE_UP_SECONDS = 900.0
TUS = {"Tus-Resumable": "1.0.0"}


@dataclass
class Outcome:
    kind: str
    sha256: str
    size_bytes: int
    job_id: str = ""
    attempts: int = 0
    sent_bytes: int = 0


@dataclass
class Count:
    """What is there in the end, beside what was promised."""

    begun_unheard: int = 0
    """Resumable uploads that were begun when the answer was cut off: nobody knows of them, and they expire."""

    kills: int = 0
    uploads: list[Outcome] = field(default_factory=list)
    lost: list[Outcome] = field(default_factory=list)
    damaged: list[Outcome] = field(default_factory=list)
    not_queued: list[Outcome] = field(default_factory=list)
    """No task of theirs is in the queue, or Redis does not list them: they would wait for ever, or unseen."""

    jobs_nobody_was_promised: int = 0
    left_behind: list[str] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        return not (self.lost or self.damaged or self.not_queued or self.jobs_nobody_was_promised or self.left_behind)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--uploads", type=int, default=50)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        count = drill(Path(folder), options.uploads, options.kills, options.seed)
    print(f"kills                        {count.kills} (seed {options.seed})")
    print(f"202s                         {len(count.uploads)}")
    print(f"  whose job is lost          {len(count.lost)}")
    print(f"  whose source is damaged    {len(count.damaged)}")
    print(f"  whose job is not queued    {len(count.not_queued)}")
    print(f"jobs that nobody has         {count.jobs_nobody_was_promised}")
    print(f"files left behind            {len(count.left_behind)}")
    for name in count.left_behind:
        print(f"  {name}")
    print(f"begun, the answer cut off    {count.begun_unheard} (they expire)")
    for kind in KINDS:
        of_kind = [upload for upload in count.uploads if upload.kind == kind]
        attempts = sum(upload.attempts for upload in of_kind)
        sent = sum(upload.sent_bytes for upload in of_kind) / sum(upload.size_bytes for upload in of_kind)
        print(f"{kind:<8} {len(of_kind):3} uploads, {attempts:3} attempts, {sent:.2f} bytes sent per byte")
    if not count.is_clean:
        raise SystemExit(1)


def drill(folder: Path, uploads: int, kills: int, seed: int) -> Count:
    """Upload, kill and start again; then compare promises with what is there."""
    chance = random.Random(seed)
    count = Count()
    with GatewayProcess(folder) as gateway, ThreadPoolExecutor(uploads) as pool:
        clients = [
            _Client(gateway.url, KINDS[number % 3], random.Random(f"{seed}/{number}")) for number in range(uploads)
        ]
        running = [pool.submit(client.upload) for client in clients]
        for _ in range(kills):
            time.sleep(chance.uniform(0.1, UPLOAD_SECONDS))
            if all(one.done() for one in running):
                break
            gateway.kill()
            count.kills += 1
            gateway.start()
        count.uploads = [one.result() for one in running]
        # Again, so that what the last kill left is swept, too.
        gateway.kill()
        gateway.start()
        for upload in count.uploads:
            answer = httpx2.get(f"{gateway.url}/v1/jobs/{upload.job_id}")
            source = gateway.storage.folder(upload.job_id).source
            if answer.status_code != 200 or not source.exists():
                count.lost.append(upload)
            elif hashlib.sha256(source.read_bytes()).hexdigest() != upload.sha256:
                count.damaged.append(upload)
        with Redis.from_url(gateway.redis.url) as redis:
            # No worker is there: what was accepted must all be waiting.
            queued = set(TaskQueue(redis).rq.job_ids)
            listed = JobRegistry(redis, gateway.storage).indexed_ids()
        for upload in count.uploads:
            if task_id(TaskKind.PLAN, upload.job_id) not in queued or upload.job_id not in listed:
                count.not_queued.append(upload)
        promised = {upload.job_id for upload in count.uploads}
        count.jobs_nobody_was_promised = len(set(gateway.storage.job_ids()) - promised)
        kept = {gateway.storage.folder(job_id).path / name for job_id in promised for name in ("job.json", "source")}
        count.left_behind = [
            str(path.relative_to(gateway.storage.root))
            for path in gateway.storage.root.rglob("*")
            # The description of a finished resumable upload stays until it expires, so that HEAD can tell it.
            if path.is_file() and path not in kept and path.suffix not in (".json", ".tus")
        ]
        count.begun_unheard = len(list(gateway.storage.uploads.glob("*.tus")))
    return count


class _Client:
    """One file, and the patience to get it there."""

    def __init__(self, url: str, kind: str, chance: random.Random) -> None:
        self._url = url
        self._chance = chance
        self._content = chance.randbytes(chance.randrange(200_000, 4_000_000))
        self._name = f"{chance.getrandbits(64):x}"
        # Where the upload is known to be.
        self._place: str | None = None
        self._outcome = Outcome(kind, hashlib.sha256(self._content).hexdigest(), len(self._content))

    def upload(self) -> Outcome:
        send: Callable[[httpx2.Client], str] = {"raw PUT": self._put, "form": self._form, "tus": self._tus}[
            self._outcome.kind
        ]
        deadline = time.monotonic() + GIVE_UP_SECONDS
        with httpx2.Client(base_url=self._url, timeout=30) as http:
            while time.monotonic() < deadline:
                self._outcome.attempts += 1
                try:
                    self._outcome.job_id = send(http)
                    return self._outcome
                except (httpx2.TransportError, _TryLaterError):  # the gateway was killed
                    time.sleep(0.5)
        raise SystemExit(f"a {self._outcome.kind} upload had no 202 within {GIVE_UP_SECONDS:.0f} s")

    def _put(self, http: httpx2.Client) -> str:
        if self._place is None:
            headers = {"Content-Length": str(len(self._content))}
            place = f"/v1/uploads/{self._name}"
            _expect(201, http.put(place, content=self._pieces(self._content), headers=headers))
            self._place = place
        return self._submit(http, self._name)

    def _form(self, http: httpx2.Client) -> str:
        head = b'--xyz\r\nContent-Disposition: form-data; name="file"; filename="clip.mp4"\r\n\r\n'
        body = head + self._content + b"\r\n--xyz--\r\n"
        headers = {
            "Content-Type": "multipart/form-data; boundary=xyz",
            "Content-Length": str(len(body)),
            "Idempotency-Key": self._name,
        }
        return str(_expect(202, http.post("/v1/jobs", content=self._pieces(body), headers=headers)).json()["id"])

    def _tus(self, http: httpx2.Client) -> str:
        if self._place is None:
            headers = TUS | {"Upload-Length": str(len(self._content))}
            begun = _expect(201, http.post("/v1/uploads", headers=headers))
            self._place = urljoin("/v1/uploads", begun.headers["Location"])
        # Once it is a job there is no upload any more: then only the 202 was missing.
        known = http.head(self._place, headers=TUS)
        if known.status_code != 404:
            offset = int(_expect(200, known).headers["Upload-Offset"])
            if offset < len(self._content):
                rest = self._content[offset:]
                headers = TUS | {
                    "Upload-Offset": str(offset),
                    "Content-Type": "application/offset+octet-stream",
                    "Content-Length": str(len(rest)),
                }
                _expect(204, http.patch(self._place, content=self._pieces(rest), headers=headers))
        return self._submit(http, self._place.rpartition("/")[2])

    def _submit(self, http: httpx2.Client, upload_id: str) -> str:
        headers = {"Idempotency-Key": self._name}
        return str(_expect(202, http.post("/v1/jobs", json={"upload_id": upload_id}, headers=headers)).json()["id"])

    def _pieces(self, body: bytes) -> Iterator[bytes]:
        """Over about `UPLOAD_SECONDS`, so that the kills find it under way."""
        pieces = [body[begin : begin + PIECE_BYTES] for begin in range(0, len(body), PIECE_BYTES)]
        for piece in pieces:
            time.sleep(self._chance.uniform(0, 2 * UPLOAD_SECONDS / len(pieces)))
            self._outcome.sent_bytes += len(piece)
            yield piece


class _TryLaterError(Exception):
    """The service asks for patience: what a killed gateway held is held until it runs out."""


def _expect(status: int, answer: httpx2.Response) -> httpx2.Response:
    if "Retry-After" in answer.headers:
        raise _TryLaterError
    if answer.status_code != status:
        raise SystemExit(f"{answer.request.method} {answer.request.url}: {answer.status_code} {answer.text}")
    return answer


if __name__ == "__main__":
    main()
