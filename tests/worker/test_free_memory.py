"""What is free is the least that any limit leaves."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from worker import free_memory
from worker.free_memory import free_bytes

CPU = torch.device("cpu")
MIB = 1024**2


def test_a_machine_without_limits_has_what_its_kernel_says() -> None:
    free = free_bytes(CPU)
    assert free is not None
    assert 0 < free < 1 << 50


def test_a_limit_of_the_address_space_counts() -> None:
    # Given a process that may take 64 MiB more than it has
    script = f"""
import re, resource
import torch
from pathlib import Path
from worker.free_memory import free_bytes
size = int(re.search("VmSize:\\\\s+(\\\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (size + {64 * MIB}, -1))
print(free_bytes(torch.device("cpu")))
"""
    free = int(subprocess.check_output([sys.executable, "-c", script], text=True))
    assert 0 < free <= 64 * MIB


@pytest.mark.parametrize(
    ("line", "folder", "limit", "usage", "file_cache"),
    [
        ("0::/job/worker", "", "memory.max", "memory.current", "inactive_file"),
        ("4:cpu,memory:/job/worker", "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ],
)
def test_the_narrowest_of_all_cgroups_around_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, folder: str, limit: str, usage: str, file_cache: str
) -> None:
    # Given a process without a limit of its own, in a group that has 10 MiB left and 5 MiB of what it could forget
    (tmp_path / "cgroup").write_text(f"2:devices:/\n{line}\n")
    group = tmp_path / folder / "job"
    (group / "worker").mkdir(parents=True)
    (group / limit).write_text(f"{30 * MIB}\n")
    (group / usage).write_text(f"{20 * MIB}\n")
    (group / "memory.stat").write_text(f"inactive_anon 7\n{file_cache} {5 * MIB}\n")
    (group / "worker" / limit).write_text("max\n" if limit == "memory.max" else f"{2**63 - 4096}\n")
    (group / "worker" / usage).write_text(f"{20 * MIB}\n")
    monkeypatch.setattr(free_memory, "_OWN_CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(free_memory, "_CGROUPS", tmp_path)

    # When / then
    assert free_bytes(CPU) == 15 * MIB
