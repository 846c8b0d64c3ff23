"""What a worker needs of this machine, examined for `vsr doctor`: GPU, codecs, cage, processor and memory, weights."""

import os
import platform
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import torch

from model.checkpoints import CheckpointError, list_checkpoints, verify_checkpoint
from worker.cage import protections_in_force
from worker.confinement import PROTECTIONS, YES
from worker.contract.finding import Finding, missing, ok, warning
from worker.contract.job import VideoCodec
from worker.cpu_environment import CPU_ENVIRONMENT
from worker.free_memory import free_bytes
from worker.gpu_facts import GpuFacts, obstacle
from worker.settings import VideoLimits, WorkerSettings
from worker.video.try_codecs import failing_encoders, nvidia_engines

# Networks, two copies of torch (worker and spare) and a ring of frames: below, only small videos get through.
_LITTLE_MEMORY_BYTES = 2 * 1024**3


def examine_gpu(facts: GpuFacts, settings: WorkerSettings) -> Iterator[Finding]:
    """The GPU, its driver, and torch's build for it. Without a GPU jobs run on the CPU, unless one is asked for."""
    found = obstacle(facts)
    built_for = f"CUDA {facts.torch_cuda}" if facts.torch_cuda else "the CPU alone"
    yield ok("torch", f"{facts.torch_version}, built for {built_for}")
    if facts.kernel_driver:
        knows = f", knows CUDA up to {facts.driver_cuda_major}" if facts.driver_cuda_major else ""
        yield ok("driver", f"NVIDIA {facts.kernel_driver}{knows}")
    if settings.device == "cpu":
        yield ok("gpu", "not asked for (VSR_DEVICE=cpu)")
    elif found is None:
        names = ", ".join(f"{gpu.name} ({gpu.architecture})" for gpu in facts.gpus)
        yield ok("gpu", f"{facts.usable_gpus} usable: {names}")
        for engine, why in nvidia_engines().items():
            yield ok(
                engine.lower(), f"does not work ({why}), which is no loss: codecs run on the CPU" if why else "works"
            )
    elif settings.device == "cuda":
        yield missing("gpu", f"VSR_DEVICE=cuda, but {found.says}", found.fix)
    elif facts.on_the_bus or facts.kernel_driver or facts.device_files:
        yield warning("gpu", f"jobs run on the CPU: {found.says}", found.fix)
    else:
        yield ok("gpu", "none: jobs run on the CPU")


def examine_codecs() -> Iterator[Finding]:
    """Every encoder, by one frame that is encoded and decoded again."""
    failing = failing_encoders()
    working = [codec for codec in VideoCodec if codec not in failing]
    if working:
        yield ok("codecs", f"{', '.join(working)}: a frame was encoded and decoded (PyAV {version('av')})")
    for codec, why in failing.items():
        yield missing(f"codec {codec}", why, "install PyAV's wheel again: pip install --force-reinstall 'av>=18.1,<19'")


def examine_cage(settings: WorkerSettings, limits: VideoLimits) -> Iterator[Finding]:
    """What strangers' videos are kept from, tried in a process that is confined as those are that read them."""
    in_force = protections_in_force(settings, limits)
    lacking = {name: in_force[name] for name in PROTECTIONS if in_force[name] != YES}
    if not lacking:
        yield ok("cage", f"all in force: {', '.join(PROTECTIONS)}")
        return
    says = "not in force: " + "; ".join(f"{name} {why}" for name, why in lacking.items())
    if settings.cage == "required":
        yield missing("cage", f"VSR_CAGE=required, but {says}", "use a newer kernel, or allow it in the container")
    elif settings.cage == "off":
        yield warning("cage", "off: a video can reach what a worker can", "unset VSR_CAGE, unless you trust all videos")
    else:
        yield warning("cage", says, "use a newer kernel (Linux 6.12 has all), or allow it in the container's profile")


def examine_processor() -> Iterator[Finding]:
    """Cores, memory, and what glibc and OpenMP are told for the networks to be fast."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    yield ok("processor", f"{cores} cores for this process, {platform.machine()}")
    free = free_bytes(torch.device("cpu"))
    if free is not None and free < _LITTLE_MEMORY_BYTES:
        says = f"{free / 1e9:.1f} GB free: only small videos get through"
        yield warning("memory", says, "free some, raise the container's limit, or work in tiles (VSR_TILE_PX=128)")
    elif free is not None:
        yield ok("memory", f"{free / 1e9:.1f} GB free")
    own = {name: os.environ[name] for name, value in CPU_ENVIRONMENT.items() if os.environ.get(name, value) != value}
    if own:
        says = "set otherwise than measured to be fast: " + ", ".join(f"{name}={value}" for name, value in own.items())
        yield warning("allocator", says, f"unset {' '.join(own)}: workers set them themselves")
    elif platform.libc_ver()[0] != "glibc":
        yield warning("allocator", "not glibc: CPU workers run at half their speed", "use a system with glibc")
    else:
        yield ok("allocator", "glibc and OpenMP are set by the workers themselves")


def examine_weights(weights_dir: Path) -> Iterator[Finding]:
    """Every weight file whole, by its checksum."""
    try:
        passports = list_checkpoints(weights_dir.expanduser())
    except CheckpointError as error:
        yield missing("weights", str(error), "remove the file, or import it again: vsr weights import")
        return
    whole = []
    for passport in passports:
        try:
            whole.append(verify_checkpoint(passport.path).name)
        except CheckpointError as error:
            yield missing(f"weights {passport.name}", str(error), "git checkout model/weights, or import them again")
    if whole:
        yield ok("weights", f"{', '.join(whole)}: whole, checksums compared")
    else:
        yield missing("weights", "there are none", "git checkout model/weights")
