"""A report says what was measured: means by hand, the worst case by its name, the same numbers in all its forms."""

import json
import math
from dataclasses import replace

import pytest
import torch

from model.data import Dataset
from model.evaluation.complexity import Cost
from model.evaluation.contenders import NEAREST, Contender, Method, hat_alone, preset_contender, two_steps
from model.evaluation.report import Provenance, Report, Table, groups_of, make_report, provenance_of
from model.evaluation.scores import SequenceScores

PROVENANCE = Provenance(
    "vsr evaluate x",
    "c0ffee",
    "2026-11-23",
    "2.13",
    "a machine",
    "cpu",
    2,
    "x",
    "abc",
    "val",
    None,
    {"tiny-random": "d"},
)


@pytest.fixture
def tiny() -> Contender:
    return preset_contender("tiny-random", None)


def row(sequence: str, method: Method, psnr_db: float, frames: int = 3, motion_px: float = 0.0) -> SequenceScores:
    return SequenceScores(
        sequence,
        "s",
        sequence.split("/")[0],
        "clean",
        method,
        frames,
        motion_px,
        psnr_db,
        psnr_db - 1,
        0.9,
        0.001,
        0.01,
    )


@pytest.fixture
def report(tiny: Contender) -> Report:
    """Two sequences: in the first two steps gain 1 dB over HAT and 0.5 over the control, in the second they lose."""
    scores = []
    for sequence, frames, motion_px, gain_db in (("a/good", 3, 0.0, 1.0), ("b/bad", 9, 2.0, -0.2)):
        for method, psnr_db in (
            (NEAREST, 20.0),
            (hat_alone(tiny), 30.0),
            (two_steps(tiny, "two-step"), 30.0 + gain_db),
            (two_steps(tiny, "no-neighbours"), 30.0 + gain_db / 2),
        ):
            scores.append(row(sequence, method, psnr_db, frames, motion_px))
    costs = [Cost(hat_alone(tiny), 64, 36, 1_500_000, 2_000_000_000, 12.34)]
    return make_report(PROVENANCE, scores, costs, [tiny])


def test_means_are_weighted_by_frames_and_pairs(report: Report) -> None:
    means = {(row.group, row.method.kind): row for row in report.means}

    # given 3 frames and 9, means are those of 12
    assert means["all", "two-step"].psnr_y_db == pytest.approx((3 * 31.0 + 9 * 29.8) / 12)
    assert (means["all", "two-step"].sequences, means["all", "two-step"].frames) == (2, 12)
    assert means["a", "hat"].psnr_rgb_db == 29
    assert means["moving", "two-step"].psnr_y_db == pytest.approx(29.8)


def test_the_worst_sequence_is_named_and_counted_against_the_floor(report: Report) -> None:
    gains = {gain.group: gain for gain in report.gains}

    assert gains["all"].psnr_y_db == pytest.approx((3 * 1.0 - 9 * 0.2) / 12)
    assert gains["all"].psnr_y_db_by_neighbours == pytest.approx((3 * 0.5 - 9 * 0.1) / 12)
    assert (gains["all"].worst_sequence, gains["all"].below_floor) == ("b/bad", 1)
    assert gains["all"].worst_psnr_y_db == pytest.approx(-0.2)
    assert (gains["static"].worst_sequence, gains["static"].below_floor) == ("a/good", 0)
    assert gains["all"].psnr_y_db_over_foreign is None  # there was no other video
    assert (
        "1 of 2 sequences lie more than 0.05 dB below HAT alone; the worst is b/bad, -0.200 dB" in report.to_markdown()
    )


def test_two_steps_are_compared_with_a_trained_control_sequence_by_sequence(tiny: Contender) -> None:
    # given a control that is better on the second of two equally long sequences
    control = replace(tiny, label="control", is_control=True)
    scores = []
    for sequence, control_db in (("a/x", 29.0), ("a/y", 31.5)):
        for method, psnr_db in (
            (hat_alone(tiny), 30.0),
            (two_steps(tiny, "two-step"), 31.0),
            (two_steps(tiny, "no-neighbours"), 30.5),
            (two_steps(control, "trained-control"), control_db),
        ):
            scores.append(row(sequence, method, psnr_db))

    report = make_report(PROVENANCE, scores, [], [tiny, control])

    (over_all, static) = report.control_gains
    assert (over_all.group, over_all.networks, over_all.control) == ("all", "tiny-random", "control")
    assert over_all.psnr_y_db == pytest.approx((2.0 - 0.5) / 2)
    assert (over_all.worst_sequence, over_all.worst_psnr_y_db) == ("a/y", pytest.approx(-0.5))
    assert static.group == "static"
    assert [gain.networks for gain in report.gains] == 2 * ["tiny-random"]  # a control is not a contender
    assert "| all (tiny-random over control) | 2 | +0.750 | +0.750 | -0.500 |" in report.to_markdown()


def test_kinds_of_material_are_groups_where_there_are_several() -> None:
    one, other = (row(name, NEAREST, 20, motion_px=2) for name in ("a/x", "b/x"))
    plain = replace(one, group="")

    assert list(groups_of([one, other])) == ["all", "a", "b", "moving"]
    assert list(groups_of([one, one])) == ["all", "moving"]
    assert list(groups_of([one, plain])) == ["all", "moving"]


@pytest.mark.parametrize("name", ["all", "static", "moving"])
def test_a_folder_that_is_called_as_a_group_of_ours_is_told_apart(name: str) -> None:
    one, other = row(f"{name}/x", NEAREST, 20, motion_px=2), row("b/x", NEAREST, 30)

    groups = groups_of([one, other])

    assert (groups["all"], groups["static"], groups["moving"]) == ([one, other], [other], [one])
    assert (groups[f"{name}/"], groups["b"]) == ([one], [other])


def test_a_name_with_a_bar_stays_in_its_cell() -> None:
    lines = Table("title", ("method", "dB"), [("HAT alone (a|b)", "20.00")]).to_markdown().splitlines()

    assert lines[-1] == r"| HAT alone (a\|b) | 20.00 |"


def test_the_numbers_of_the_json_are_those_of_the_tables(report: Report) -> None:
    content = json.loads(report.to_json())
    markdown = report.to_markdown()

    assert content["provenance"]["manifest_sha256"] == "abc"
    assert len(content["sequences"]) == 8
    for mean in content["means"]:
        title = f"### clean, {mean['group']}: {mean['sequences']} sequences, {mean['frames']} frames"
        table = markdown[markdown.index(title) :].split("###")[1]
        line = next(line for line in table.splitlines() if line.startswith(f"| {mean['method']} |"))
        assert line.split("|")[2:-1] == [
            f" {mean['psnr_y_db']:.2f} ",
            f" {mean['psnr_rgb_db']:.2f} ",
            f" {mean['ssim_y']:.4f} ",
            f" {1000 * mean['warping_error']:.3f} ",
            f" {255 * mean['dtssd']:.3f} ",
        ]
    for gain in content["gains"]:
        assert f"| {gain['group']} (tiny-random) | {gain['sequences']} | {gain['psnr_y_db']:+.3f} |" in markdown
    assert "| HAT alone (tiny-random) | 1.50 | 2.0 | 12.3 |" in markdown


def test_a_report_tells_what_it_was_made_with(tiny: Contender, data_folder: object) -> None:
    dataset = Dataset.open(str(data_folder))

    about = provenance_of(
        dataset,
        [tiny],
        command="vsr evaluate",
        commit=None,
        data="my data",
        split="val",
        frames_per_sequence=2,
        device=torch.device("cpu"),
    )

    assert (about.data, about.device, about.torch) == ("my data", "cpu", torch.__version__)
    assert about.weights_sha256 == {"tiny-random": tiny.weights_sha256}
    assert len(about.manifest_sha256) == 64


def test_json_has_no_numbers_that_are_none(report: Report) -> None:
    # JSON knows neither NaN nor infinity.
    assert all(
        math.isfinite(value)
        for mean in json.loads(report.to_json())["means"]
        for value in mean.values()
        if isinstance(value, float)
    )
