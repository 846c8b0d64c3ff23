"""Uploads through a bad network and a dying gateway: whole in the end, or not there."""

import hashlib
import io
import random
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx2
from tusclient.client import TusClient

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

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # closed
                return
            with client, socket.create_connection(("127.0.0.1", self._target_port)) as server:
                self._pass_on(client, server)

    def _pass_on(self, client: socket.socket, server: socket.socket) -> None:
        """One request: the client under test makes a new connection for each."""
        back = threading.Thread(target=pass_back, args=(server, client))
        back.start()
        piece = client.recv(65536)
        is_cut = piece.startswith(b"PATCH") and self.cuts_done < self._cuts
        budget = self._chance.randrange(CONTENT_BYTES // CUTS) if is_cut else 2 * CONTENT_BYTES
        while piece and budget:
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


def test_an_upload_cut_at_ten_random_places_arrives_whole(tmp_path: Path) -> None:
    # Given a network that cuts ten times, and a gateway that is killed at two of the cuts
    chance = random.Random(SEED)
    content = chance.randbytes(CONTENT_BYTES)
    with GatewayProcess(tmp_path) as gateway:

        def kill_at_some(cut: int) -> None:
            if cut in KILLS_AT_CUTS:
                gateway.kill()
                gateway.start()

        proxy = CuttingProxy(gateway.port, CUTS, chance, kill_at_some)
        with proxy.running():
            # When a client of the protocol, not ours, uploads through it
            client = TusClient(f"http://127.0.0.1:{proxy.port}/v1/uploads")
            uploader = client.uploader(file_stream=io.BytesIO(content), retries=2 * CUTS, retry_delay=0)
            uploader.upload()
        upload_id = uploader.url.rpartition("/")[2]
        answer = httpx2.post(f"{gateway.url}/v1/jobs", json={"upload_id": upload_id})

        # Then the same bytes are there, and it went on each time and did not begin anew
        assert answer.status_code == 202
        assert answer.json()["source"]["sha256"] == hashlib.sha256(content).hexdigest()
        source = gateway.storage.folder(answer.json()["id"]).source
        assert hashlib.sha256(source.read_bytes()).digest() == hashlib.sha256(content).digest()
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
