"""What `vsr doctor` finds of a worker's needs."""

from dataclasses import replace
from pathlib import Path

import pytest

from model.checkpoints import SHIPPED_WEIGHTS_DIR
from tests.worker.test_gpu_facts import NOTHING_TOLD, WELL
from worker.contract.finding import Finding, Level
from worker.contract.job import VideoCodec
from worker.examination import examine_cage, examine_codecs, examine_gpu, examine_processor, examine_weights
from worker.settings import VideoLimits, WorkerSettings
from worker.video.codecs import CODECS


def named(part: str, findings: list[Finding]) -> Finding:
    [found] = [finding for finding in findings if finding.part == part]
    return found


@pytest.mark.parametrize(("device", "level"), [("auto", Level.WARNING), ("cuda", Level.MISSING), ("cpu", Level.OK)])
def test_a_gpu_that_cannot_be_used_matters_as_much_as_it_is_wanted(device: str, level: Level) -> None:
    settings = WorkerSettings.model_validate({"device": device})
    without_flag = replace(NOTHING_TOLD, in_container=True, device_files=0)
    found = named("gpu", list(examine_gpu(without_flag, settings)))
    assert found.level is level
    assert device == "cpu" or "docker run --gpus all" in (found.fix or "")


def test_a_machine_without_a_gpu_is_well() -> None:
    bare = replace(NOTHING_TOLD, on_the_bus=0, kernel_driver=None, device_files=0)
    assert named("gpu", list(examine_gpu(bare, WorkerSettings(device="auto")))).says == "none: jobs run on the CPU"


def test_a_gpu_is_named_and_so_is_what_its_codec_chips_do() -> None:
    findings = list(examine_gpu(WELL, WorkerSettings(device="auto")))
    assert named("gpu", findings).says == "1 usable: NVIDIA H100 (sm_90)"
    assert {finding.part for finding in findings} >= {"nvenc", "nvdec", "driver"}


def test_each_encoder_is_tried_and_one_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [finding.level for finding in examine_codecs()] == [Level.OK]
    monkeypatch.setitem(CODECS, VideoCodec.VP9, replace(CODECS[VideoCodec.VP9], encoder="libnone"))
    working, failing = examine_codecs()
    assert (failing.part, failing.level) == ("codec vp9", Level.MISSING)
    assert "vp9" not in working.says


@pytest.mark.parametrize(("cage", "levels"), [("best-effort", {Level.OK, Level.WARNING}), ("off", {Level.WARNING})])
def test_what_the_cage_has_is_tried(cage: str, levels: set[Level]) -> None:
    [found] = examine_cage(WorkerSettings.model_validate({"cage": cage}), VideoLimits())
    assert found.level in levels


def test_an_allocator_that_the_user_has_set_otherwise_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOMP_SPINCOUNT", "1000")
    assert named("allocator", list(examine_processor())).level is Level.OK
    monkeypatch.setenv("GOMP_SPINCOUNT", "0")
    found = named("allocator", list(examine_processor()))
    assert (found.level, found.fix) == (Level.WARNING, "unset GOMP_SPINCOUNT: workers set them themselves")


def test_weights_are_read_whole_and_a_damaged_file_is_named(tmp_path: Path) -> None:
    # Given a file of which one byte is another
    content = bytearray((SHIPPED_WEIGHTS_DIR / "compact.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "mine.safetensors").write_bytes(content)

    # When
    damaged, whole = examine_weights(tmp_path)

    # Then
    assert (damaged.part, damaged.level) == ("weights mine", Level.MISSING)
    assert whole.says.startswith("aligned, balanced, compact: whole")
