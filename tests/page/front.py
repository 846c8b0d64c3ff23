"""What stands before the gateway: a proxy that takes a prefix away, is slow on request, and can be cut off."""

import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

PIECE_BYTES = 16 * 1024


class Front:
    """One request per connection. Of its head only the path is changed; all else is passed on as it comes."""

    def __init__(self, target_port: int, prefix: str = "") -> None:
        self._target_port = target_port
        self._prefix = prefix
        self._pairs: list[socket.socket] = []
        self._is_cut = False
        self.upload_bytes_per_second: float | None = None
        self.requests: list[str] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        with socket.create_server(("127.0.0.1", 0)) as self._listener:
            # Else the kernel takes megabytes off the browser's hands, which for it are then sent.
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, PIECE_BYTES)
            self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}{self._prefix}/"
            thread = threading.Thread(target=self._accept)
            thread.start()
            try:
                yield
            finally:
                self.cut()
                self._listener.shutdown(socket.SHUT_RDWR)
                thread.join()

    def cut(self) -> None:
        """End every connection, and take no other until `mend`."""
        self._is_cut = True
        for end in self._pairs:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        self._is_cut = False

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._is_cut:
                client.close()
                continue
            threading.Thread(target=self._serve, args=[client], daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with suppress(OSError), client, socket.create_connection(("127.0.0.1", self._target_port)) as server:
            self._pairs += [client, server]
            head, rest = self._head_of(client)
            server.sendall(head + rest)
            back = threading.Thread(target=self._pass, args=[server, client, None], daemon=True)
            back.start()
            self._pass(client, server, lambda: self.upload_bytes_per_second)
            back.join()

    def _head_of(self, client: socket.socket) -> tuple[bytes, bytes]:
        received = b""
        while b"\r\n\r\n" not in received:
            piece = client.recv(PIECE_BYTES)
            if not piece:
                raise OSError("it left")
            received += piece
        head, _, rest = received.partition(b"\r\n\r\n")
        self.requests.append(head.partition(b"\r\n")[0].decode())
        prefix = re.escape(self._prefix.encode())
        head = re.sub(rb"^(\w+) " + prefix, rb"\1 ", head, count=1)
        head = re.sub(rb"\r\nConnection:[^\r]*", b"", head, flags=re.IGNORECASE)
        return head + b"\r\nConnection: close\r\n\r\n", rest

    def _pass(self, source: socket.socket, target: socket.socket, speed: object) -> None:
        with suppress(OSError):
            while piece := source.recv(PIECE_BYTES):
                target.sendall(piece)
                if callable(speed) and (bytes_per_second := speed()):
                    time.sleep(len(piece) / bytes_per_second)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)
