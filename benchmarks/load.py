"""Two hundred uploads at once, bad networks among them: what it costs the gateway, and who else has to wait.

    .venv/bin/python benchmarks/load.py --uploads 200 --megabytes 20

Brings its own Redis, storage and gateway; no worker. Of ten uploads seven go as fast as they can (in turn as raw PUT,
form and tus), one is slow, one is cut off in the middle, and one sends half and then says nothing for ever. Meanwhile
a process of its own asks for a job, again and again. The clients hand over the file with sendfile, which costs them
little; still they share the processors with the gateway.

Before that, alone: one large upload, against a plain copy with fsync into the same folder, and against a bare program
that takes the same bytes from a connection, writes and syncs them, in turns. Busy neighbours fall into the seconds, but
not into the processor time.
"""

import argparse
import hashlib
import http.client
import multiprocessing
import os
import select
import socket
import statistics
import struct
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.synchronize import Event
from pathlib import Path

import httpx2

if __name__ == "__main__":  # run as a script, this folder's neighbours are not on the path
    sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.gateway_process import GatewayProcess

MEGABYTE = 1_000_000
SLOW_SECONDS = 20.0
POLL_SECONDS = 0.02
SETTLE_SECONDS = 3.0
FORM_HEAD = b'--xyz\r\nContent-Disposition: form-data; name="file"; filename="clip.mp4"\r\n\r\n'
FORM_TAIL = b"\r\n--xyz--\r\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--uploads", type=int, default=200)
    parser.add_argument("--megabytes", type=int, default=20, help="Size of each.")
    parser.add_argument("--large-megabytes", type=int, default=512, help="Size of the one that runs alone.")
    parser.add_argument("--tries", type=int, default=5, help="Of the one that runs alone; the median counts.")
    parser.add_argument("--folder", type=Path, help="On the disk to measure; default: the temporary folder's.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        with GatewayProcess(folder) as gateway:
            measure_alone(gateway, random_file(folder / "large", options.large_megabytes), options.tries)
        with GatewayProcess(folder / "crowd") as gateway:
            measure_crowd(gateway, random_file(folder / "small", options.megabytes), options.uploads)


# --- one alone --------------------------------------------------------------------------------------------------------


def measure_alone(gateway: GatewayProcess, source: Path, tries: int) -> None:
    size = source.stat().st_size
    copy = gateway.storage.root / "copy"
    ways: dict[str, Callable[[], None]] = {
        "plain copy and fsync": lambda: copy_durably(source, copy),
        "bare receiver": lambda: receive_barely(source, copy),
        "raw PUT": lambda: put(gateway.port, source),
        "form": lambda: form(gateway.port, source),
        "tus": lambda: tus(gateway.port, source),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    processor_seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(tries):
        for way, work in ways.items():
            before = processor_time(gateway)
            seconds[way].append(timed(work))
            processor_seconds[way].append(processor_time(gateway) - before)
            empty(gateway.storage.uploads)
    print(f"one upload of {size / MEGABYTE:.0f} MB alone, median of {tries}; load average {os.getloadavg()[0]:.1f}")
    plain = statistics.median(seconds["plain copy and fsync"])
    for way, measured in seconds.items():
        median = statistics.median(measured)
        per_gigabyte = statistics.median(processor_seconds[way]) / size * 1e9
        print(
            f"  {way:<22} {size / MEGABYTE / median:6.0f} MB/s   {100 * plain / median:4.0f} % of the copy"
            f"   {per_gigabyte:.2f} s of the gateway's processor time per GB"
        )


def receive_barely(source: Path, target: Path) -> None:
    """The same bytes over a connection into a program that does nothing but write and sync them."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        receiver = multiprocessing.get_context("fork").Process(target=take_one, args=(listener, target))
        receiver.start()
        with socket.create_connection(listener.getsockname()) as connection, source.open("rb") as file:
            connection.sendfile(file)
            connection.shutdown(socket.SHUT_WR)
            connection.recv(1)
        receiver.join()


def take_one(listener: socket.socket, target: Path) -> None:
    connection, _ = listener.accept()
    buffer = memoryview(bytearray(1024 * 1024))
    with connection, target.open("wb", buffering=0) as file:
        while size := connection.recv_into(buffer):
            file.write(buffer[:size])
        os.fsync(file.fileno())
        connection.send(b"1")
    target.unlink()


def copy_durably(source: Path, target: Path) -> None:
    with source.open("rb") as file, target.open("wb") as copy:
        left = os.fstat(file.fileno()).st_size
        while left:
            # As cp does, but through memory: a copy that only shares blocks would be no measure.
            left -= os.sendfile(copy.fileno(), file.fileno(), None, left)
        os.fsync(copy.fileno())
    target.unlink()


# --- the crowd --------------------------------------------------------------------------------------------------------


def measure_crowd(gateway: GatewayProcess, source: Path, uploads: int) -> None:
    size = source.stat().st_size
    job_id = httpx2.post(f"{gateway.url}/v1/jobs", files={"file": ("clip.mp4", b"no video")}).json()["id"]
    idle = latencies_while(gateway, job_id, lambda: time.sleep(SETTLE_SECONDS))
    copied = timed(lambda: [copy_durably(source, gateway.storage.root / "copy") for _ in range(uploads // 10)])
    base_mib, load_before = memory_mib(gateway), os.getloadavg()[0]
    before, received_before = written_bytes(gateway), received_bytes(gateway)
    ended: Counter[str] = Counter()
    good_seconds: list[float] = []
    all_sent = threading.Event()

    def client(number: int) -> None:
        """One upload, good or bad by its number."""
        kind = number % 10
        if kind == 7:
            ended["slow: " + outcome(lambda: slow(gateway.port, source))] += 1
        elif kind == 8:
            cut_off(gateway.port, source)
            ended["cut off"] += 1
        elif kind == 9:
            never_ending(gateway.port, source, all_sent)
            ended["never ended"] += 1
        else:
            send = (put, form, tus)[number % 3]
            ended["good: " + outcome(lambda: send(gateway.port, source))] += 1
            good_seconds.append(time.monotonic() - began)

    def crowd() -> None:
        with ThreadPoolExecutor(uploads) as pool:
            running = [pool.submit(client, number) for number in range(uploads)]
            for number, one in enumerate(running):
                if number % 10 < 8:
                    one.result()
            all_sent.set()

    began = time.monotonic()
    busy = latencies_while(gateway, job_id, crowd)
    good_bytes = size * len(good_seconds)
    received = received_bytes(gateway) - received_before
    written = {name: value - before[name] for name, value in written_bytes(gateway).items()}
    time.sleep(SETTLE_SECONDS)
    names = [path.name for path in gateway.storage.uploads.iterdir()]
    digest = hashlib.file_digest(source.open("rb"), "sha256").hexdigest()
    whole = sum(digest in name for name in names)

    plain = uploads // 10 * size / copied
    print(f"\n{uploads} uploads of {size / MEGABYTE:.0f} MB at once; load average before {load_before:.1f}")
    for how, number in sorted(ended.items()):
        print(f"  {how:<32} {number}")
    print(f"  whole uploads in storage         {whole}")
    print(f"  half received ones left          {sum(name.endswith('.part') for name in names)}")
    print(f"plain copies of the same           {plain / MEGABYTE:.0f} MB/s")
    rate = good_bytes / max(good_seconds)
    print(f"good uploads, to the last 2xx      {rate / MEGABYTE:.0f} MB/s, {100 * rate / plain:.0f} % of the copies")
    print(f"gateway's memory                   {base_mib:.0f} MiB before, peak {peak_memory_mib(gateway):.0f} MiB")
    print(f"received                           {received / MEGABYTE:.0f} MB")
    for name, value in written.items():
        print(f"  {name:<32} {value / MEGABYTE:.0f} MB, {value / received:.3f} per byte received")
    for name, measured in (("idle", idle), ("meanwhile", busy)):
        print(f"GET /v1/jobs/{{id}} {name:<16} {described(measured)}")


def outcome(send: Callable[[], None]) -> str:
    try:
        send()
    except (OSError, http.client.HTTPException, AssertionError) as error:
        return f"{type(error).__name__}: {error}"[:60]
    return "2xx"


def slow(port: int, source: Path) -> None:
    """Over `SLOW_SECONDS`."""
    size = source.stat().st_size
    with connected(port) as connection, source.open("rb") as file:
        begin(connection, "PUT", f"/v1/uploads/{os.urandom(8).hex()}", size)
        for piece in iter(lambda: file.read(size // 100 + 1), b""):
            connection.send(piece)
            time.sleep(SLOW_SECONDS / 100)
        expect(connection, 201)


def cut_off(port: int, source: Path) -> None:
    """With a reset, as by a network that is gone."""
    size = source.stat().st_size
    with connected(port) as connection, source.open("rb") as file:
        begin(connection, "PUT", f"/v1/uploads/{os.urandom(8).hex()}", size)
        send_file(connection, file.fileno(), size // 2)
        assert connection.sock is not None
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def never_ending(port: int, source: Path, until: threading.Event) -> None:
    size = source.stat().st_size
    with connected(port) as connection, source.open("rb") as file:
        begin(connection, "PUT", f"/v1/uploads/{os.urandom(8).hex()}", size)
        send_file(connection, file.fileno(), size // 2)
        until.wait()


def put(port: int, source: Path) -> None:
    with connected(port) as connection, source.open("rb") as file:
        begin(connection, "PUT", f"/v1/uploads/{os.urandom(8).hex()}", source.stat().st_size)
        send_file(connection, file.fileno(), source.stat().st_size)
        expect(connection, 201)


def form(port: int, source: Path) -> None:
    """With an option that is refused after the file, so that the upload is measured and no job is left."""
    tail = b'\r\n--xyz\r\nContent-Disposition: form-data; name="crf"\r\n\r\nnone' + FORM_TAIL
    size = source.stat().st_size
    with connected(port) as connection, source.open("rb") as file:
        headers = {"Content-Type": "multipart/form-data; boundary=xyz"}
        begin(connection, "POST", "/v1/jobs", len(FORM_HEAD) + size + len(tail), **headers)
        connection.send(FORM_HEAD)
        send_file(connection, file.fileno(), size)
        connection.send(tail)
        expect(connection, 422)


def tus(port: int, source: Path) -> None:
    size = source.stat().st_size
    version = {"Tus-Resumable": "1.0.0"}
    with connected(port) as connection, source.open("rb") as file:
        connection.request("POST", "/v1/uploads", headers=version | {"Upload-Length": str(size)})
        place = expect(connection, 201)["location"]
        headers = version | {"Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"}
        begin(connection, "PATCH", f"/v1/{place}", size, **headers)
        send_file(connection, file.fileno(), size)
        expect(connection, 204)


# --- HTTP, as cheap for the client as can be --------------------------------------------------------------------------


def connected(port: int) -> "_Connection":
    return _Connection("127.0.0.1", port, timeout=600)


class _Connection(http.client.HTTPConnection):
    def __enter__(self) -> "_Connection":
        self.connect()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def begin(connection: http.client.HTTPConnection, method: str, path: str, size: int, **headers: str) -> None:
    connection.putrequest(method, path)
    for name, value in ({"Content-Length": str(size)} | headers).items():
        connection.putheader(name, value)
    connection.endheaders()


def send_file(connection: http.client.HTTPConnection, file: int, size: int) -> None:
    assert connection.sock is not None
    sent = 0
    while sent < size:
        try:
            sent += os.sendfile(connection.sock.fileno(), file, sent, size - sent)
        except BlockingIOError:  # a socket with a time limit does not block
            wait_for_room(connection.sock)


def wait_for_room(connection: socket.socket) -> None:
    poll = select.poll()
    poll.register(connection, select.POLLOUT)
    poll.poll()


def expect(connection: http.client.HTTPConnection, status: int) -> dict[str, str]:
    answer = connection.getresponse()
    body = answer.read()
    assert answer.status == status, f"{answer.status} {body[:200]!r}"
    return {name.lower(): value for name, value in answer.getheaders()}


# --- what is measured -------------------------------------------------------------------------------------------------


def latencies_while(gateway: GatewayProcess, job_id: str, work: Callable[[], object]) -> list[float]:
    """Seconds of each `GET /v1/jobs/{id}` while `work` goes on, asked by a process of its own."""
    spawn = multiprocessing.get_context("spawn")
    stop, answers = spawn.Event(), spawn.SimpleQueue()
    poller = spawn.Process(target=poll_job, args=(gateway.port, job_id, stop, answers))
    poller.start()
    answers.get()  # it has begun
    work()
    stop.set()
    measured: list[float] = answers.get()
    poller.join()
    return measured


def poll_job(port: int, job_id: str, stop: Event, answers: "multiprocessing.SimpleQueue[list[float]]") -> None:
    measured: list[float] = []
    with connected(port) as connection:
        answers.put([])
        while not stop.is_set():
            asked_at = time.perf_counter()
            connection.request("GET", f"/v1/jobs/{job_id}")
            expect(connection, 200)
            measured.append(time.perf_counter() - asked_at)
            time.sleep(POLL_SECONDS)
    answers.put(measured)


def described(seconds: list[float]) -> str:
    shares = statistics.quantiles(seconds, n=100)
    milliseconds = [1000 * value for value in (shares[49], shares[98], max(seconds))]
    return "p50 {:.1f} ms, p99 {:.1f} ms, max {:.1f} ms".format(*milliseconds) + f"  ({len(seconds)} requests)"


def timed(work: Callable[[], object]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def processor_time(gateway: GatewayProcess) -> float:
    fields = Path(f"/proc/{gateway.process.pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_mib(gateway: GatewayProcess, name: str = "VmRSS") -> float:
    lines = Path(f"/proc/{gateway.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def peak_memory_mib(gateway: GatewayProcess) -> float:
    return memory_mib(gateway, "VmHWM")


def written_bytes(gateway: GatewayProcess) -> dict[str, int]:
    lines = Path(f"/proc/{gateway.process.pid}/io").read_text().splitlines()
    counted = {line.partition(":")[0]: int(line.partition(":")[2]) for line in lines}
    return {"written by system calls": counted["wchar"], "made dirty on disk": counted["write_bytes"]}


def received_bytes(gateway: GatewayProcess) -> float:
    """Of files, as the gateway counts them."""
    lines = httpx2.get(f"{gateway.url}/metrics").text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("vsr_upload_bytes_total "))


def random_file(path: Path, megabytes: int) -> Path:
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as file:
        for _ in range(megabytes):
            file.write(os.urandom(MEGABYTE))
        os.fsync(file.fileno())
    return path


def empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


if __name__ == "__main__":
    main()
