"""How much memory there is for frames: so that the first way that a job is rendered is one that fits."""

import re
import resource
from collections.abc import Iterator
from pathlib import Path

import torch

_OWN_CGROUPS = Path("/proc/self/cgroup")
_CGROUPS = Path("/sys/fs/cgroup")
_UNLIMITED_FROM = 1 << 60  # cgroups of version 1 say so in pages, which is a little less than 2**63


def free_bytes(device: torch.device) -> int | None:
    """Memory that can still be had on `device`: the least of what the machine has and all limits leave. None: unknown.

    Other processes may take of it at any time: no promise.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    return min(_free_by_each_limit(), default=None)


def _free_by_each_limit() -> Iterator[int]:
    available = _number_in(Path("/proc/meminfo"), r"^MemAvailable:\s+(\d+) kB$")
    if available is not None:
        yield available * 1024
    size = _number_in(Path("/proc/self/status"), r"^VmSize:\s+(\d+) kB$")
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY and size is not None:
        yield max(0, limit - size * 1024)
    yield from _free_in_cgroups()


def _free_in_cgroups() -> Iterator[int]:
    """Of version 2 and version 1, in this process's own and in all around it. A container sees its own at the root."""
    try:
        lines = _OWN_CGROUPS.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            root, limit_name = _CGROUPS, "memory.max"
            usage_name, file_cache = "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            root, limit_name = _CGROUPS / "memory", "memory.limit_in_bytes"
            usage_name, file_cache = "memory.usage_in_bytes", "total_inactive_file"
        else:
            continue
        own = root / path.strip("/")
        for folder in (own, *(parent for parent in own.parents if parent.is_relative_to(root))):
            limit, usage = (_number_in(folder / name, r"^(\d+)$") for name in (limit_name, usage_name))
            if limit is not None and usage is not None and limit < _UNLIMITED_FROM:
                # The kernel drops old copies of files before it lets a process go without.
                cached = _number_in(folder / "memory.stat", rf"^{file_cache} (\d+)$") or 0
                yield max(0, limit - usage + cached)


def _number_in(path: Path, pattern: str) -> int | None:
    try:
        found = re.search(pattern, path.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) if found else None
