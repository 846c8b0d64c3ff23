"""What figures and trainings are made on: without it they say little."""

import platform
from pathlib import Path


def cpu_name() -> str:
    """As /proc/cpuinfo has it, or as Python knows it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
