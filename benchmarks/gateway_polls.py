"""How many times a second one core of a gateway answers `GET /v1/jobs/{id}`, and how soon at 500 times a second.

    .venv/bin/python benchmarks/gateway_polls.py --seconds 10 --rounds 3

Brings its own Redis, storage and gateway; no worker. The gateway has the first core to itself; Redis and the clients,
who keep their connections and read no more of an answer than where it ends, share the others. The job is waiting, then
running, then has succeeded; states take turns, round after round. First as fast as the connections can (each asks
again when it has its answer), then at a given rate, where an answer's time counts from the moment at which it should
have been asked for.
"""

import argparse
import os
import select
import socket
import statistics
import sys
import tempfile
import time
from collections import defaultdict, deque
from itertools import count
from pathlib import Path

import httpx2
from redis import Redis

if __name__ == "__main__":  # run as a script, this folder's neighbours are not on the path
    sys.path.insert(0, str(Path(__file__).parents[1]))

from app.keys import new_key
from benchmarks.gateway_process import GatewayProcess
from worker.contract.job import Container, ResultInfo, SourceInfo, StreamInfo
from worker.contract.registry import JobRegistry

SOURCE = SourceInfo(
    container="mov,mp4,m4a,3gp,3g2,mj2",
    width=1280,
    height=720,
    frames=2400,
    duration_seconds=100.0,
    frame_rate="24/1",
    pixel_format="yuv420p",
    streams=[
        StreamInfo(index=0, type="video", codec="h264"),
        StreamInfo(index=1, type="audio", codec="aac", language="eng"),
    ],
)
RESULT = ResultInfo(container=Container.MP4, width=2560, height=1440, frames=2400, size_bytes=1, sha256="0" * 64)
WARM_UP_SECONDS = 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="Of each measurement.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--rate", type=float, default=500.0, help="Polls per second of the second measurement.")
    parser.add_argument("--log-level", default="INFO", help="The gateway's: at INFO it logs every poll, as usual.")
    options = parser.parse_args()

    first_core, *others = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, others or {first_core})
    key = new_key()
    with (
        tempfile.TemporaryDirectory() as name,
        GatewayProcess(Path(name), VSR_API_KEYS=key, VSR_LOG_LEVEL=options.log_level) as gateway,
    ):
        pin(gateway.process.pid, first_core)
        states = jobs_by_state(gateway, key)
        speeds: dict[str, list[tuple[float, float]]] = defaultdict(list)
        seconds: dict[str, list[float]] = defaultdict(list)
        for _ in range(options.rounds):
            for state, job_id in states.items():
                with Pollers(gateway.port, job_id, key, options.connections) as pollers:
                    pollers.ask_all_the_time(WARM_UP_SECONDS)
                    before = processor_seconds(gateway.process.pid)
                    answered = pollers.ask_all_the_time(options.seconds)
                    spent = processor_seconds(gateway.process.pid) - before
                    speeds[state].append((answered / options.seconds, spent / answered))
                    seconds[state] += pollers.ask_at_rate(options.rate, options.seconds)

    print(f"gateway on one core, {options.connections} connections, load average {os.getloadavg()[0]:.1f}")
    print(f"| job | polls/s (all rounds) | processor ms per poll | at {options.rate:g}/s: p50, p99, max ms |")
    print("| --- | --- | --- | --- |")
    for state, measured in speeds.items():
        rates = [rate for rate, _ in measured]
        cost = statistics.median(cost for _, cost in measured)
        late = sorted(seconds[state])
        print(
            f"| {state} | {statistics.median(rates):.0f} ({', '.join(f'{rate:.0f}' for rate in rates)}) "
            f"| {1e3 * cost:.2f} "
            f"| {1e3 * statistics.median(late):.1f}, {1e3 * late[int(0.99 * len(late))]:.1f}, {1e3 * late[-1]:.1f} |"
        )


def jobs_by_state(gateway: GatewayProcess, key: str) -> dict[str, str]:
    """A waiting, a running and a succeeded job, as workers would leave them."""
    registry = JobRegistry(Redis.from_url(gateway.redis.url), gateway.storage)
    with httpx2.Client(base_url=gateway.url, headers={"X-API-Key": key}) as client:
        ids = [
            client.post("/v1/jobs", files={"file": ("clip.mp4", b"no video")}).raise_for_status().json()["id"]
            for _ in range(3)
        ]
    waiting, running, succeeded = ids
    for job_id in (running, succeeded):
        registry.start(job_id, SOURCE)
        registry.start_rendering(job_id, SOURCE.frames, 25, {})
        registry.note_rendering(job_id, 1, None)
        registry.finish_segment(job_id, 0, 96, 25)
        registry.note_segment_progress(job_id, 1, 7)
    registry.succeed(succeeded, RESULT)
    return {"waiting": waiting, "running": running, "succeeded": succeeded}


class Pollers:
    """Connections that ask for one job, driven from here."""

    def __init__(self, port: int, job_id: str, key: str, connections: int) -> None:
        self._question = f"GET /v1/jobs/{job_id} HTTP/1.1\r\nHost: 127.0.0.1\r\nX-API-Key: {key}\r\n\r\n".encode()
        self._poll = select.epoll()
        self._sockets: dict[int, socket.socket] = {}
        for _ in range(connections):
            connection = socket.create_connection(("127.0.0.1", port))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._sockets[connection.fileno()] = connection
            self._poll.register(connection, select.EPOLLIN)

    def __enter__(self) -> "Pollers":
        return self

    def __exit__(self, *error: object) -> None:
        self._poll.close()
        for connection in self._sockets.values():
            connection.close()

    def ask_all_the_time(self, seconds: float) -> int:
        """Number of answers."""
        until = time.monotonic() + seconds
        for number in self._sockets:
            self._ask(number)
        asking, answers = len(self._sockets), 0
        while asking:
            for number, _ in self._poll.poll():
                self._take(number)
                if time.monotonic() < until:
                    answers += 1
                    self._ask(number)
                else:
                    asking -= 1
        return answers

    def ask_at_rate(self, rate: float, seconds: float) -> list[float]:
        """How long each answer took from the moment at which it was due to be asked for."""
        began = time.monotonic()
        due = (began + number / rate for number in count())
        next_due = next(due)
        idle, since, took = deque(self._sockets), dict[int, float](), list[float]()
        while next_due < began + seconds or since:
            while idle and next_due < began + seconds and next_due <= time.monotonic():
                number = idle.popleft()  # in turn: one that says nothing for long is closed
                since[number], next_due = next_due, next(due)
                self._ask(number)
            # With all connections busy, or nothing due any more, only an answer can change that.
            pause = max(0.0, next_due - time.monotonic()) if idle and next_due < began + seconds else None
            for number, _ in self._poll.poll(pause):
                self._take(number)
                took.append(time.monotonic() - since.pop(number))
                idle.append(number)
        return took

    def _ask(self, number: int) -> None:
        self._sockets[number].sendall(self._question)

    def _take(self, number: int) -> None:
        """Read one answer whole."""
        connection = self._sockets[number]
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += self._receive(connection)
        head, _, body = answer.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise SystemExit(answer.decode())
        size = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        while len(body) < size:
            body += self._receive(connection)

    def _receive(self, connection: socket.socket) -> bytes:
        received = connection.recv(65536)
        if not received:
            raise SystemExit("the gateway closed a connection")
        return received


def pin(pid: int, core: int) -> None:
    """Every thread of a process; those that it will start go where their starter is."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), {core})


def processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
