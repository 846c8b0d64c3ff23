"""What figures and trainings are made on, and what it can do."""

import platform
import re
from pathlib import Path

_CPU_INFO = Path("/proc/cpuinfo")


def cpu_name() -> str:
    """As /proc/cpuinfo has it, or as Python knows it."""
    named = re.search(r"^model name\s*:\s*(.*)$", _cpu_info(), re.MULTILINE)
    return named[1] if named else platform.processor() or platform.machine()


def multiplies_bfloat16() -> bool:
    """Whether the processor has instructions for products of bfloat16, as Linux tells; elsewhere nobody is asked."""
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", _cpu_info(), re.MULTILINE)
    return flags is not None and not {"avx512_bf16", "bf16"}.isdisjoint(flags[1].split())


def _cpu_info() -> str:
    return _CPU_INFO.read_text() if _CPU_INFO.is_file() else ""
