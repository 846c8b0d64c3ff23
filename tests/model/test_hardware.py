"""What /proc/cpuinfo tells, on processors that are not at hand."""

from pathlib import Path

import pytest

from model.hardware import cpu_name, multiplies_bfloat16

INTEL = "processor\t: 0\nmodel name\t: Intel(R) Xeon(R) Platinum 8480+\nflags\t\t: fpu avx512_bf16 amx_bf16\n"
OLD = "processor\t: 0\nmodel name\t: Intel(R) Core(TM) i5\nflags\t\t: fpu avx2\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd bf16\n"


@pytest.mark.parametrize(("content", "has_instructions"), [(INTEL, True), (ARM, True), (OLD, False)])
def test_instructions_for_bfloat16_are_known_by_the_flags(
    content: str, has_instructions: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(content)
    monkeypatch.setattr("model.hardware._CPU_INFO", tmp_path / "cpuinfo")

    assert multiplies_bfloat16() == has_instructions


def test_a_processor_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpuinfo").write_text(INTEL)
    monkeypatch.setattr("model.hardware._CPU_INFO", tmp_path / "cpuinfo")

    assert cpu_name() == "Intel(R) Xeon(R) Platinum 8480+"


def test_where_there_is_no_cpuinfo_nothing_is_taken_for_granted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model.hardware._CPU_INFO", tmp_path / "none")

    assert not multiplies_bfloat16()
    assert cpu_name()
