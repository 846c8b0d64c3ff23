"""A GPU that cannot be used: what is said to be missing, for machines that are only described."""

from dataclasses import replace

import pytest
import torch

from worker.contract.failure import FailureCode, JobFailureError
from worker.gpu_facts import Gpu, GpuFacts, look_for_gpus, obstacle
from worker.loaded_models import usable_device

H100 = Gpu("NVIDIA H100", (9, 0))
WELL = GpuFacts(
    on_the_bus=1,
    kernel_driver="580.65.06",
    has_driver_library=True,
    device_files=1,
    driver_cuda_major=13,
    gpus=(H100,),
    usable_gpus=1,
    torch_version="2.13.0",
    torch_cuda="13.0",
    torch_architectures=("sm_80", "sm_90", "sm_100", "compute_120"),
)
NOTHING_TOLD = replace(WELL, gpus=(), usable_gpus=0, driver_cuda_major=None)


def test_nothing_stands_between_a_healthy_machine_and_its_gpu() -> None:
    assert obstacle(WELL) is None
    assert obstacle(replace(WELL, cuda_visible_devices="0")) is None
    assert obstacle(replace(WELL, torch_architectures=())) is None


@pytest.mark.parametrize(
    ("facts", "kind", "words"),
    [
        (replace(WELL, torch_cuda=None, torch_version="2.13.0+cpu"), "torch", "2.13.0+cpu) is built without CUDA"),
        (replace(WELL, usable_gpus=0, cuda_visible_devices=""), "flag", "names no GPU"),
        (replace(WELL, usable_gpus=0, cuda_visible_devices="3"), "flag", "CUDA_VISIBLE_DEVICES=3 names none of the 1"),
        (replace(NOTHING_TOLD, on_the_bus=0, kernel_driver=None, device_files=0), "gpu", "no NVIDIA GPU"),
        (replace(NOTHING_TOLD, kernel_driver=None), "driver", "install it here"),
        (replace(NOTHING_TOLD, kernel_driver=None, in_container=True), "driver", "install it on the host"),
        (replace(NOTHING_TOLD, in_container=True, device_files=0), "flag", "docker run --gpus all"),
        (replace(NOTHING_TOLD, in_container=True, has_driver_library=False), "toolkit", "NVIDIA Container Toolkit"),
        (replace(NOTHING_TOLD, has_driver_library=False), "driver", "libcuda"),
        (NOTHING_TOLD, "driver", "does not answer"),
        (replace(WELL, driver_cuda_major=12, kernel_driver="550.54"), "driver", "CUDA up to 12, this torch is built"),
        (
            replace(WELL, gpus=(Gpu("GeForce GTX 1080", (6, 1)),)),
            "architecture",
            "no code for GeForce GTX 1080 (sm_61)",
        ),
    ],
)
def test_what_is_missing_is_named_with_what_to_do(facts: GpuFacts, kind: str, words: str) -> None:
    found = obstacle(facts)
    assert found is not None
    assert found.kind == kind
    assert words in str(found)


@pytest.mark.parametrize(
    ("capability", "is_known"),
    [((8, 0), True), ((8, 9), True), ((9, 0), True), ((12, 1), True), ((13, 0), True), ((7, 5), False)],
)
def test_code_runs_on_later_gpus_of_its_generation_and_what_can_be_translated_on_all_later(
    capability: tuple[int, int], is_known: bool
) -> None:
    assert (obstacle(replace(WELL, gpus=(Gpu("GPU", capability),))) is None) == is_known


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_worker_that_was_to_use_a_gpu_says_what_is_missing() -> None:
    without_flag = replace(NOTHING_TOLD, in_container=True, device_files=0)
    with pytest.raises(JobFailureError, match="started without a GPU; start it with docker run --gpus all") as failure:
        usable_device("cuda", look=lambda: without_flag)
    assert failure.value.code is FailureCode.DEVICE_UNAVAILABLE


def test_a_gpu_that_torch_has_no_code_for_is_left_alone_by_auto_and_refused_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Given what torch itself calls usable
    monkeypatch.setattr("worker.loaded_models.resolve_device", lambda name: torch.device("cuda", 0))
    old = replace(WELL, gpus=(Gpu("Tesla P100", (6, 0)),))

    # Then
    assert usable_device("auto", look=lambda: old) == torch.device("cpu")
    assert usable_device("auto", look=lambda: WELL) == torch.device("cuda", 0)
    with pytest.raises(JobFailureError, match="Tesla P100"):
        usable_device("cuda", look=lambda: old)


def test_a_gpu_that_torch_can_use_is_used_though_the_driver_tells_nothing_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Given a container in which NVML is missing
    monkeypatch.setattr("worker.loaded_models.resolve_device", lambda name: torch.device("cuda", 0))
    silent = replace(WELL, gpus=())

    # Then
    for name in ("auto", "cuda"):
        assert usable_device(name, look=lambda: silent) == torch.device("cuda", 0)


def test_the_facts_of_this_machine_can_be_told() -> None:
    facts = look_for_gpus()
    assert facts.torch_version == str(torch.__version__)
    if torch.cuda.is_available():
        assert obstacle(facts) is None
    else:
        assert obstacle(facts) is not None
