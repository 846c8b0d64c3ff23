"""Why a GPU cannot be used: which of the driver, the container's toolkit, a flag, torch or the architecture it is.

CUDA itself says little more than "no". The machine says the rest: what is on the bus, in /dev and /proc, in the
environment, and what torch was built for.
"""

import ctypes
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pynvml
import torch

_PCI_DEVICES = Path("/sys/bus/pci/devices")
_NVIDIA_VENDOR = "0x10de"
_PCI_DISPLAY_CLASS = "0x03"
_DRIVER_VERSION_FILE = Path("/proc/driver/nvidia/version")
# For people: the first driver of each generation of CUDA that torch is built for.
_FIRST_DRIVERS = {12: "525", 13: "580"}


@dataclass(frozen=True)
class Gpu:
    name: str
    capability: tuple[int, int]
    """Its architecture, as CUDA counts: (9, 0) is Hopper."""

    @property
    def architecture(self) -> str:
        return f"sm_{self.capability[0]}{self.capability[1]}"


@dataclass(frozen=True)
class GpuFacts:
    """All that the answer depends on."""

    on_the_bus: int = 0
    """NVIDIA's display devices; also those that were not given to this container."""
    kernel_driver: str | None = None
    """The version of NVIDIA's kernel module, where one is loaded."""
    has_driver_library: bool = False
    """libcuda, which comes with the driver, can be loaded."""
    device_files: int = 0
    """/dev/nvidia0 and so on: what this process may talk to."""
    driver_cuda_major: int | None = None
    """The newest CUDA that the driver knows."""
    gpus: tuple[Gpu, ...] = ()
    """As the driver tells them, whatever CUDA_VISIBLE_DEVICES hides."""
    usable_gpus: int = 0
    """As torch sees them."""
    torch_version: str = ""
    torch_cuda: str | None = None
    """The CUDA that torch was built with; None: without any."""
    torch_architectures: tuple[str, ...] = ()
    """sm_90: code for it; compute_90: code that the driver can translate for that and what came later."""
    in_container: bool = False
    cuda_visible_devices: str | None = None
    """None: not set, all may be used."""


@dataclass(frozen=True)
class Obstacle:
    """The first thing that keeps a GPU from being used; behind it there may be more."""

    kind: Literal["torch", "flag", "driver", "toolkit", "architecture", "gpu"]
    says: str
    fix: str

    def __str__(self) -> str:
        return f"{self.says}; {self.fix}"


def obstacle(facts: GpuFacts) -> Obstacle | None:
    """What keeps the first GPU from being used; None: nothing that the facts tell."""
    if facts.torch_cuda is None:
        return Obstacle(
            "torch",
            f"this torch ({facts.torch_version}) is built without CUDA",
            "install the usual build: pip install --force-reinstall torch==2.13.0",
        )
    hidden = facts.cuda_visible_devices is not None and facts.cuda_visible_devices.strip() in ("", "-1")
    if hidden:
        return Obstacle("flag", "CUDA_VISIBLE_DEVICES is set and names no GPU", "unset it, or name one: 0")
    return (
        _driver_obstacle(facts)
        or _version_obstacle(facts, facts.torch_cuda)
        or _selection_obstacle(facts)
        or _architecture_obstacle(facts)
    )


def _driver_obstacle(facts: GpuFacts) -> Obstacle | None:
    if facts.gpus:
        return None
    if facts.kernel_driver is None:
        if not facts.on_the_bus and not facts.device_files:
            return Obstacle(
                "gpu",
                "there is no NVIDIA GPU in this machine, and no driver for one",
                "use --device cpu, or another machine",
            )
        where = "on the host, outside this container" if facts.in_container else "here"
        return Obstacle("driver", "there is an NVIDIA GPU, but its driver is not loaded", f"install it {where}")
    if facts.in_container and not facts.device_files:
        return Obstacle(
            "flag",
            f"the host has a driver ({facts.kernel_driver}), but this container was started without a GPU",
            "start it with docker run --gpus all, or docker compose --profile gpu up",
        )
    if facts.in_container and not facts.has_driver_library:
        return Obstacle(
            "toolkit",
            "this container has the GPU's devices, but not the driver's libraries",
            "install the NVIDIA Container Toolkit on the host (nvidia-ctk runtime configure), which brings them in, "
            "and use --gpus all instead of --device",
        )
    if not facts.has_driver_library:
        return Obstacle(
            "driver",
            f"the driver's kernel module ({facts.kernel_driver}) is loaded, but its libraries (libcuda) are missing",
            "install the driver's package for computing, of the same version",
        )
    return Obstacle(
        "driver",
        f"the driver ({facts.kernel_driver}) does not answer",
        "see whether nvidia-smi does; after an update of the driver the machine must be restarted",
    )


def _version_obstacle(facts: GpuFacts, torch_cuda: str) -> Obstacle | None:
    wanted = int(torch_cuda.partition(".")[0])
    if facts.driver_cuda_major is None or facts.driver_cuda_major >= wanted:
        return None
    at_least = f" ({_FIRST_DRIVERS[wanted]} or newer)" if wanted in _FIRST_DRIVERS else ""
    return Obstacle(
        "driver",
        f"the driver ({facts.kernel_driver}) knows CUDA up to {facts.driver_cuda_major}, this torch is built for "
        f"{torch_cuda}",
        f"install a newer driver{at_least}, or the build of torch==2.13.0 for CUDA {facts.driver_cuda_major}",
    )


def _selection_obstacle(facts: GpuFacts) -> Obstacle | None:
    if facts.usable_gpus or facts.cuda_visible_devices is None:
        return None
    return Obstacle(
        "flag",
        f"CUDA_VISIBLE_DEVICES={facts.cuda_visible_devices} names none of the {len(facts.gpus)} GPUs here",
        "unset it, or name one: 0",
    )


def _architecture_obstacle(facts: GpuFacts) -> Obstacle | None:
    unknown = [gpu for gpu in facts.gpus if not _has_code_for(gpu.capability, facts.torch_architectures)]
    # Where the user has chosen among several, which one is meant is not known here; nor is what torch does not tell.
    if not unknown or len(unknown) < len(facts.gpus) or not facts.torch_architectures:
        return None
    gpu = unknown[0]
    return Obstacle(
        "architecture",
        f"this torch ({facts.torch_version}) has no code for {gpu.name} ({gpu.architecture}), only for "
        f"{', '.join(facts.torch_architectures)}",
        "install a build of torch==2.13.0 that has: older GPUs need one for an older CUDA",
    )


def _has_code_for(capability: tuple[int, int], architectures: Sequence[str]) -> bool:
    """Code of the same generation runs on later ones of it; code to translate on everything later."""
    for name in architectures:
        found = re.fullmatch(r"(sm|compute)_(\d+)(\d)[af]?", name)
        if found:
            built_for = (int(found[2]), int(found[3]))
            same_generation = built_for[0] == capability[0] or found[1] == "compute"
            if same_generation and built_for <= capability:
                return True
    return False


def look_for_gpus() -> GpuFacts:
    """The facts of this machine."""
    driver_cuda_major, gpus = _told_by_driver()
    return GpuFacts(
        on_the_bus=_on_the_bus(),
        kernel_driver=_kernel_driver(),
        has_driver_library=_has_driver_library(),
        device_files=len(list(Path("/dev").glob("nvidia[0-9]*"))),
        driver_cuda_major=driver_cuda_major,
        gpus=gpus,
        usable_gpus=torch.cuda.device_count(),
        torch_version=str(torch.__version__),
        torch_cuda=torch.version.cuda,
        torch_architectures=tuple(torch.cuda.get_arch_list()),
        in_container=_is_in_container(),
        cuda_visible_devices=os.environ.get("CUDA_VISIBLE_DEVICES"),
    )


def _on_the_bus() -> int:
    count = 0
    for device in _PCI_DEVICES.glob("*"):
        with suppress(OSError):
            is_nvidia = (device / "vendor").read_text().strip() == _NVIDIA_VENDOR
            count += is_nvidia and (device / "class").read_text().startswith(_PCI_DISPLAY_CLASS)
    return count


def _kernel_driver() -> str | None:
    try:
        found = re.search(r"\b(\d+\.\d+(\.\d+)?)\b", _DRIVER_VERSION_FILE.read_text())
    except OSError:
        return None
    return found[1] if found else "of unknown version"


def _has_driver_library() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def _told_by_driver() -> tuple[int | None, tuple[Gpu, ...]]:
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        gpus = tuple(
            Gpu(pynvml.nvmlDeviceGetName(handle), tuple(pynvml.nvmlDeviceGetCudaComputeCapability(handle)))
            for handle in handles
        )
        return pynvml.nvmlSystemGetCudaDriverVersion_v2() // 1000, gpus
    except pynvml.NVMLError:
        return None, ()


def _is_in_container() -> bool:
    marks = (Path("/.dockerenv"), Path("/run/.containerenv"))
    return any(mark.exists() for mark in marks) or "container" in os.environ or "KUBERNETES_SERVICE_HOST" in os.environ
