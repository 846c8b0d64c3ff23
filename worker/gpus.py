"""The NVIDIA GPUs of this machine, asked from the driver: the supervisor must know them without importing torch."""

from contextlib import suppress
from dataclasses import dataclass

import pynvml


@dataclass(frozen=True)
class GpuFigures:
    index: int
    memory_used_bytes: int
    memory_total_bytes: int
    utilization_ratio: float


def gpu_uuids() -> list[str]:
    """One per GPU, in the driver's order, as CUDA_VISIBLE_DEVICES takes them. Empty where there is no NVIDIA driver."""
    return [pynvml.nvmlDeviceGetUUID(handle) for handle in _handles()]


def gpu_figures() -> list[GpuFigures]:
    """Memory and load of each GPU; without those that do not tell, as a GPU cut into slices (MIG) may not."""
    figures = []
    for index, handle in enumerate(_handles()):
        with suppress(pynvml.NVMLError):
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            busy_percent = pynvml.nvmlDeviceGetUtilizationRates(handle).gpu
            figures.append(GpuFigures(index, memory.used, memory.total, busy_percent / 100))
    return figures


def _handles() -> list[object]:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:  # no driver, or one that does not answer: for us, no GPU
        return []
    return [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
