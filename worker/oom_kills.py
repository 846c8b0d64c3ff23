"""How often the kernel has ended a process of this machine, or of this container, because memory was short."""

import re
from pathlib import Path

_COUNT = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)


def oom_kills() -> int:
    """A count that only rises. Of this process's own cgroup where that says, else of the machine; 0 where neither."""
    for path in (*_files_of_cgroup(), Path("/proc/vmstat")):
        try:
            if found := _COUNT.search(path.read_text()):
                return int(found[1])
        except OSError:
            continue
    return 0


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
