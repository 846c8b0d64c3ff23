"""A small data centre of real processes: Redis, a gateway, and hosts that each run a supervisor with its workers.

Everything that can die in one can be killed, frozen and brought back here by itself.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self
from urllib.error import URLError
from urllib.request import urlopen

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from app.embedded_redis import EmbeddedRedis
from worker.contract.storage import JobStorage

GIVE_UP_SECONDS = 45.0
# A folder whose sitecustomize.py lets faults in that no signal can make.
DOOR = str(Path(__file__).with_name("doors"))
_SAMPLE_SECONDS = 0.01


class NeverHappenedError(Exception):
    """What was waited for did not come."""


def wait_for(what: str, condition: Callable[[], object], seconds: float = GIVE_UP_SECONDS) -> float:
    """Poll until `condition` is true; return the seconds it took."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > seconds:
            raise NeverHappenedError(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.005)
    return time.monotonic() - began


class Host:
    """A supervisor and its worker processes; with it dies all that runs on the machine."""

    def __init__(self, number: int, workers: int, environment: dict[str, str], logs: Path) -> None:
        self.number = number
        self._workers = workers
        self._environment = environment
        self._logs = logs
        self._lives = 0
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, clock_seconds: float = 0) -> None:
        """`clock_seconds`: how far ahead its clock is (below zero: behind)."""
        self._lives += 1
        environment = self._environment
        if clock_seconds:
            environment = environment | {"PYTHONPATH": DOOR, "VSR_TEST_CLOCK_SECONDS": str(clock_seconds)}
        with (self._logs / f"host-{self.number}-life-{self._lives}.jsonl").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "worker.supervisor", str(self._workers)],
                env=environment,
                stderr=log,
                start_new_session=True,
            )

    def signal(self, number: signal.Signals) -> None:
        """To everything on this machine, the supervisor first."""
        assert self.process is not None
        for pid in [self.process.pid, *descendants_of(self.process.pid)]:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def stop(self) -> float:
        """By SIGTERM; return the seconds it took."""
        assert self.process is not None
        began = time.monotonic()
        self.process.terminate()
        self.process.wait(60)
        return time.monotonic() - began

    def pids(self) -> set[int]:
        """The processes under the supervisor."""
        return set(descendants_of(self.process.pid)) if self.process else set()


class Cluster:
    """Use as a context manager. `settings` are environment variables of every process."""

    def __init__(
        self, folder: Path, *, hosts: int = 2, workers: int = 1, storage: Path | None = None, **settings: str
    ) -> None:
        self.folder = folder
        self.logs = folder / "logs"
        self.logs.mkdir(parents=True)
        self.redis_server = EmbeddedRedis(folder / "redis")
        self.storage = JobStorage(storage or folder / "storage")
        self.storage.prepare()
        self._environment = os.environ | {
            "VSR_REDIS_URL": self.redis_server.url,
            "VSR_STORAGE_DIR": str(self.storage.root),
            "VSR_PRESET": "tiny-random",
            "VSR_ENABLE_TEST_PRESETS": "true",
            "VSR_DEVICE": "cpu",
            "VSR_METRICS_PORT": "0",
            "VSR_RECONCILE_SECONDS": "2",
            "VSR_CPU_THREADS": "1",
            "VSR_SEGMENT_FRAMES": "24",
            "VSR_UPLOAD_IDLE_TIMEOUT_SECONDS": "5",
            "OMP_NUM_THREADS": "1",
            **settings,
        }
        self.hosts = [Host(number, workers, self._environment, self.logs) for number in range(hosts)]
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self._port: int = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}"
        self._gateway: subprocess.Popen[bytes] | None = None
        self.redis = Redis.from_url(self.redis_server.url, socket_timeout=2, retry=Retry(NoBackoff(), 0))
        self.watched = WatchedTasks(self.redis_server.url)

    def __enter__(self) -> Self:
        self.redis_server.start()
        self.watched.start()
        self.start_gateway()
        for host in self.hosts:
            host.start()
        self.wait_for_workers()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for host in self.hosts:
            if host.process and host.process.poll() is None:
                host.signal(signal.SIGCONT)
                host.signal(signal.SIGKILL)
                host.process.wait()
        self.kill_gateway()
        self.watched.stop()
        self.redis.close()
        self.redis_server.stop()

    # --- the gateway --------------------------------------------------------------------------------------------

    def start_gateway(self) -> None:
        vsr = Path(sys.executable).with_name("vsr")
        with (self.logs / "gateway.jsonl").open("ab") as log:
            self._gateway = subprocess.Popen(
                [vsr, "gateway", "--port", str(self._port)], env=self._environment, stderr=log, start_new_session=True
            )
        wait_for("the gateway", self._gateway_answers)

    def kill_gateway(self) -> None:
        if self._gateway:
            self._gateway.kill()
            self._gateway.wait()

    def _gateway_answers(self) -> bool:
        try:
            with urlopen(f"{self.url}/healthz", timeout=5) as answer:
                return bool(answer.status == 200)
        except (URLError, ConnectionError, TimeoutError):
            return False

    # --- Redis --------------------------------------------------------------------------------------------------

    def kill_redis(self) -> None:
        assert self.redis_server.pid is not None
        os.kill(self.redis_server.pid, signal.SIGKILL)
        self.redis_server.wait()

    def start_redis(self) -> None:
        """On what the killed one had written."""
        self.redis_server.start()

    # --- workers ------------------------------------------------------------------------------------------------

    def wait_for_workers(self) -> None:
        """Until every host has taken up work."""
        for host in self.hosts:
            wait_for("the workers", lambda host=host: self.workers_on(host))  # type: ignore[misc]

    def workers(self) -> dict[str, int]:
        """Name to process id of the workers that wait for tasks or are at one."""
        found = {}
        with suppress(RedisError):
            for key in self.redis.smembers("rq:workers"):
                if pid := self.redis.hget(key, "pid"):
                    found[key.decode().removeprefix("rq:worker:")] = int(pid)
        return found

    def workers_on(self, host: Host) -> dict[str, int]:
        here = host.pids()
        return {name: pid for name, pid in self.workers().items() if pid in here}

    def is_finished(self, task: str) -> bool:
        """Whether the segment of this task counts as done."""
        job_id, _, index = task.rpartition("-segment-")
        with suppress(RedisError):
            return bool(self.redis.sismember(f"vsr:segments:{job_id}", str(int(index))))
        return False

    def under_way(self) -> dict[str, tuple[str, int]]:
        """Execution to the name and pid of the worker at it."""
        found = {}
        with suppress(RedisError):
            running = {item.decode() for item in self.redis.zrange("rq:wip:vsr", 0, -1)}
            for name, pid in self.workers().items():
                for item in self.redis.smembers(f"rq:worker:{name}:executions"):
                    if item.decode() in running:
                        found[item.decode()] = (name, pid)
        return found

    def events(self) -> Iterator[dict[str, object]]:
        """Everything that all hosts have logged, in all their lives."""
        for log in sorted(self.logs.glob("host-*.jsonl")):
            for line in log.read_text(errors="replace").splitlines():
                with suppress(json.JSONDecodeError):  # cut short by a kill
                    if isinstance(event := json.loads(line), dict):
                        yield event


class Repetition(NamedTuple):
    """A segment that was begun, and again later; moments of `time.monotonic`."""

    task: str
    before: float
    again: float


class WatchedTasks:
    """Looks at the list of running tasks a hundred times a second: when was which begun, and how often?"""

    def __init__(self, redis_url: str) -> None:
        self._redis = Redis.from_url(redis_url, socket_timeout=1, retry=Retry(NoBackoff(), 0))
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.begun: dict[str, dict[str, float]] = {}
        """Task to its executions, each with the time when it was first seen."""

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()
        self._redis.close()

    def begun_since(self, task: str, moment: float) -> bool:
        return any(seen > moment for seen in list(self.begun.get(task, {}).values()))

    def repetitions(self, found_finished: Counter[str]) -> Iterator[Repetition]:
        """Yield every beginning of a segment that had been begun before.

        `found_finished`: how many of a task's executions, the last ones, had nothing left to do.
        """
        for task, executions in list(self.begun.items()):
            if "-segment-" in task:
                moments = sorted(executions.values())
                redone = moments[: len(moments) - found_finished[task]]
                yield from (Repetition(task, before, again) for before, again in pairwise(redone))

    def _run(self) -> None:
        while not self._stopped.wait(_SAMPLE_SECONDS):
            with suppress(RedisError):
                for item in self._redis.zrange("rq:wip:vsr", 0, -1):
                    execution = item.decode()
                    task = task_of(execution)
                    self.begun.setdefault(task, {}).setdefault(execution, time.monotonic())


def task_of(execution: str) -> str:
    return execution.rpartition(":")[0]


def descendants_of(pid: int) -> list[int]:
    """Workers are their template's children, and what reads a video is a worker's."""
    try:
        children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [one for child in children for one in (child, *descendants_of(child))]
