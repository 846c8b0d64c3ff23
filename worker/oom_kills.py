"""How often the kernel has ended a process of this machine, or of this container, because memory was short."""

import re
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

_COUNT = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)
# The kernel counts when it sends the signal; a process that holds much memory takes a moment to be gone.
_DYING_SECONDS = 1.0


def oom_kills() -> int:
    """A count that only rises. Of this process's own cgroup where that says, else of the machine; 0 where neither."""
    for path in (*_files_of_cgroup(), Path("/proc/vmstat")):
        try:
            if found := _COUNT.search(path.read_text()):
                return int(found[1])
        except OSError:
            continue
    return 0


class OomWatch:
    """Tells deaths by shortness of memory from plain SIGKILLs: only a kill of this very moment explains a death.

    The count is of the whole machine or container: most of what it counts may be other programs.
    """

    def __init__(self, count: Callable[[], int] = oom_kills) -> None:
        self._count = count
        self._last_count = count()
        self._unexplained: deque[float] = deque()
        """When the kills happened that no death was put down to."""

    def look(self) -> None:
        """To be called often: what happened between two looks has the time of the second."""
        count, moment = self._count(), time.monotonic()
        self._unexplained.extend([moment] * (count - self._last_count))
        self._last_count = count
        while self._unexplained and moment - self._unexplained[0] > _DYING_SECONDS:
            self._unexplained.popleft()

    def explains_a_death(self) -> bool:
        """Whether a process found dead by SIGKILL died of it. Each kill explains one death."""
        self.look()
        if not self._unexplained:
            return False
        self._unexplained.popleft()
        return True


def _files_of_cgroup() -> list[Path]:
    """In version 2 and version 1 of cgroups. A container sees its own at the root."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    files = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        folder = path.strip("/")
        if not controllers:
            files += [Path("/sys/fs/cgroup") / name / "memory.events" for name in (folder, "")]
        elif "memory" in controllers.split(","):
            files += [Path("/sys/fs/cgroup/memory") / name / "memory.oom_control" for name in (folder, "")]
    return files
