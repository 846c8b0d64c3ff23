"""What glibc and the OpenMP library must be told before a process starts, for the networks to be fast on a CPU.

Measured with `compact` on 320x180 frames, two cores (benchmarks/results): 2.2 frames/s with sleeping threads and the
default allocator, 4.2 with this; beside another busy process of two threads 1.8, where spinning threads gave 0.6.
"""

import os
import sys

CPU_ENVIRONMENT = {
    # A thread that waits for the others spins for microseconds, then sleeps. Spinning longer, it takes the core from
    # the very thread it waits for as soon as anything else runs here; sleeping at once costs a third of the speed.
    "GOMP_SPINCOUNT": "1000",
    # Keep freed memory for the next layer, which wants as much. By default glibc returns every large block to the
    # system at once and pays for fetching it again, page by page.
    "MALLOC_MMAP_THRESHOLD_": str(4 * 1024**3),
    "MALLOC_TRIM_THRESHOLD_": str(8 * 1024**3),
    "MALLOC_TOP_PAD_": str(256 * 1024**2),
}


def restart_with_cpu_environment() -> None:
    """Start this very command anew in the same process, unless all is set already. What the user has set stays."""
    if sys.platform != "linux" or os.environ.keys() >= CPU_ENVIRONMENT.keys():
        return
    command = [sys.executable, *sys.orig_argv[1:]]
    os.execve(sys.executable, command, CPU_ENVIRONMENT | os.environ)  # noqa: S606  # no shell is what we want
