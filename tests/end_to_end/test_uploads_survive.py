"""Uploads through a bad network and a dying gateway: whole in the end, or not there."""

import asyncio
import hashlib
import io
import random
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx2
import pytest
from tusclient.client import TusClient

from app.client import AsyncClient, Client
from benchmarks.gateway_process import GatewayProcess
from benchmarks.upload_kills import drill

CUTS = 10
KILLS_AT_CUTS = (3, 7)
SEED = 0
CONTENT_BYTES = 8_000_000


class CuttingProxy:
    """A network that cuts the first connections that send the file, each after a random number of bytes."""

    def __init__(self, target_port: int, cuts: int, chance: random.Random, before_cut: Callable[[int], None]) -> None:
        """`before_cut` is called with the number of the cut, from 1, while the connection still stands."""
        self._target_port = target_port
        self._cuts = cuts
        self._chance = chance
        self._before_cut = before_cut
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        self.cuts_done = 0
        self.passed_bytes = 0

    @contextmanager
    def running(self) -> Iterator[None]:
        thread = threading.Thread(target=self._accept)
        thread.start()
        try:
            yield
        finally:
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            thread.join()
            for client in self._open:
                with suppress(OSError):  # closed
                    client.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # closed
                return
            self._open.append(client)
            threading.Thread(target=self._connect, args=(client,)).start()

    def _connect(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self._target_port)) as server:
            self._pass_on(client, server)

    def _pass_on(self, client: socket.socket, server: socket.socket) -> None:
        """The requests of one connection, until one that sends bytes of the file is cut."""
        back = threading.Thread(target=pass_back, args=(server, client))
        back.start()
        is_cut, budget = False, 2 * CONTENT_BYTES
        piece = client.recv(65536)
        while piece and budget:
            if piece.startswith(b"PATCH") and self.cuts_done < self._cuts:
                is_cut, budget = True, self._chance.randrange(CONTENT_BYTES // CUTS)
            piece = piece[:budget]
            server.sendall(piece)
            budget -= len(piece)
            self.passed_bytes += len(piece)
            piece = client.recv(65536)
        if is_cut:
            self.cuts_done += 1
            self._before_cut(self.cuts_done)
        for end in (client, server):
            with suppress(OSError):  # closed from the other side
                end.shutdown(socket.SHUT_RDWR)
        back.join()


def pass_back(server: socket.socket, client: socket.socket) -> None:
    with suppress(OSError):  # cut
        while piece := server.recv(65536):
            client.sendall(piece)


def upload_with_tuspy(url: str, path: Path) -> str:
    """A client of the protocol that is not ours."""
    client = TusClient(f"{url}/v1/uploads")
    uploader = client.uploader(file_stream=io.BytesIO(path.read_bytes()), retries=2 * CUTS, retry_delay=0)
    uploader.upload()
    job: str = httpx2.post(f"{url}/v1/jobs", json={"upload_id": uploader.url.rpartition("/")[2]}).json()["id"]
    return job


def upload_with_ours(url: str, path: Path) -> str:
    with Client(url) as client:
        return client.jobs.create(path).id


def upload_with_ours_in_an_event_loop(url: str, path: Path) -> str:
    async def upload() -> str:
        async with AsyncClient(url) as client:
            return (await client.jobs.create(path)).id

    return asyncio.run(upload())


@pytest.mark.parametrize(
    "upload", [upload_with_tuspy, upload_with_ours, upload_with_ours_in_an_event_loop], ids=["tuspy", "sync", "async"]
)
def test_an_upload_cut_at_ten_random_places_arrives_whole(tmp_path: Path, upload: Callable[[str, Path], str]) -> None:
    # Given a network that cuts ten times, and a gateway that is killed at two of the cuts
    chance = random.Random(SEED)
    content = chance.randbytes(CONTENT_BYTES)
    source = tmp_path / "clip.mp4"
    source.write_bytes(content)
    with GatewayProcess(tmp_path) as gateway:

        def kill_at_some(cut: int) -> None:
            if cut in KILLS_AT_CUTS:
                gateway.kill()
                gateway.start()

        proxy = CuttingProxy(gateway.port, CUTS, chance, kill_at_some)
        with proxy.running():
            # When a client uploads through it
            job_id = upload(f"http://127.0.0.1:{proxy.port}", source)

        # Then the same bytes are there, and it went on each time and did not begin anew
        arrived = gateway.storage.folder(job_id).source.read_bytes()
        assert hashlib.sha256(arrived).digest() == hashlib.sha256(content).digest()
        assert proxy.cuts_done == CUTS
        assert proxy.passed_bytes < 2 * CONTENT_BYTES


def test_what_a_killed_gateway_had_accepted_is_whole_and_nothing_else_stays(tmp_path: Path) -> None:
    # When a gateway is killed among uploads of all three kinds
    count = drill(tmp_path, uploads=10, kills=3, seed=SEED)

    # Then
    assert count.kills == 3
    assert len(count.uploads) == 10
    assert count.not_queued == []
    assert (count.lost, count.damaged, count.jobs_nobody_was_promised, count.left_behind) == ([], [], 0, [])
