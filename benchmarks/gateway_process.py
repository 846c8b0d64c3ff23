"""A gateway in a process of its own, with its own Redis and storage, for whoever wants to kill or to measure it."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.request import urlopen

from app.embedded_redis import EmbeddedRedis
from worker.contract.storage import JobStorage

_START_SECONDS = 60.0
_REPOSITORY = Path(__file__).parents[1]


class GatewayProcess:
    """Running within the context; on the same port again after `kill` and `start`."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.storage = JobStorage(folder / "storage")
        self.redis = EmbeddedRedis(folder / "redis")
        self._log = folder / "gateway.log"
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port: int = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._environment = os.environ | {
            "PYTHONPATH": str(_REPOSITORY),
            "VSR_REDIS_URL": self.redis.url,
            "VSR_STORAGE_DIR": str(self.storage.root),
            "VSR_MIN_FREE_BYTES": "0",
            "VSR_LOG_LEVEL": "WARNING",
            **settings,
        }

    def __enter__(self) -> Self:
        self.redis.start()
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.process.terminate()
        self.process.wait(_START_SECONDS)
        self.redis.stop()

    def start(self) -> None:
        """Returns when it takes requests."""
        command = [sys.executable, "-m", "app.cli", "gateway", "--port", str(self.port)]
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(command, env=self._environment, stderr=log)
        deadline = time.monotonic() + _START_SECONDS
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the gateway did not start: {self._log.read_text()[-2000:]}")
            time.sleep(0.02)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def _answers(self) -> bool:
        try:
            with urlopen(f"{self.url}/healthz", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False
