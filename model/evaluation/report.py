"""What `vsr evaluate` says: means and gains from the scores per sequence, as Markdown tables and as JSON.

A report's folder holds:

    report.md      the tables
    report.json    the same numbers, not rounded, with every sequence's own; `Report.to_json` names the fields
    index.html     pictures side by side, from `model/evaluation/page.py`
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import torch

from model.data import MANIFEST, Dataset
from model.evaluation.complexity import Cost
from model.evaluation.contenders import Contender, Method, hat_methods, two_steps
from model.evaluation.scores import BORDER_PX, MOVING_PX, PSNR_MAX_DB, SequenceScores
from model.hardware import cpu_name

FORMAT = "twostep-vsr/evaluation/1"

# Two steps may lie below HAT alone by this on a sequence, in dB PSNR-Y, and still count as never worse.
FLOOR_DB = -0.05

MEASURES = (
    f"Results are rounded to 8 bits and {BORDER_PX} px at each edge of the enlarged frame are left out everywhere. "
    "PSNR-Y and SSIM-Y are of BT.601 luma, PSNR-RGB is over all three channels; means over frames, where a frame equal "
    f"to the truth counts {PSNR_MAX_DB:.0f} dB. E_warp is the warping error of Lai et al. (ECCV 2018) times 1000: the "
    "squared difference between a frame and the next one, warped onto it by the motion of the true frames, where "
    "nothing hides it. Less is steadier; blur is steadier than the truth, whose own is in the table. Motion is "
    "pyramidal Lucas-Kanade, checked forth and back, so E_warp compares with itself, not with published figures. dtSSD "
    "(Erofeev et al., BMVC 2015), in 8-bit levels, is the root mean square error of the change from one frame to the "
    f"next: 0 is the true change. A sequence is moving if its pixels move by {MOVING_PX} low-resolution px per frame "
    "or more in the mean, else static."
)


@dataclass(frozen=True)
class Table:
    """Cells as they are shown; the first column is text, the others are numbers."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    note: str = ""

    def to_markdown(self) -> str:
        """As GitHub reads it."""
        lines = [f"### {self.title}", ""]
        lines += ["| " + " | ".join(self.columns) + " |", "|---|" + "---:|" * (len(self.columns) - 1)]
        # The names of networks are those of files, which may hold what ends a cell.
        lines += ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in self.rows]
        return "\n".join([*lines, "", *([self.note, ""] if self.note else [])])


@dataclass(frozen=True)
class MethodMeans:
    """One row: means over all frames (and pairs of frames) of a group under a condition."""

    condition: str
    group: str
    method: Method
    sequences: int
    frames: int
    psnr_y_db: float | None
    psnr_rgb_db: float | None
    ssim_y: float | None
    warping_error: float | None
    dtssd: float | None


@dataclass(frozen=True)
class Gain:
    """What two steps give over HAT alone and over their own controls: differences of means, positive is better.

    The differences of warping error and dtSSD are two steps less HAT alone: negative is steadier.
    """

    condition: str
    group: str
    networks: str
    sequences: int
    psnr_y_db: float
    psnr_rgb_db: float
    psnr_y_db_by_neighbours: float
    psnr_y_db_over_foreign: float | None
    warping_error: float | None
    dtssd: float | None
    worst_sequence: str
    worst_psnr_y_db: float
    below_floor: int


@dataclass(frozen=True)
class ControlGain:
    """What two steps give over a control that was trained without neighbours, as PSNR; positive is better."""

    condition: str
    group: str
    networks: str
    control: str
    sequences: int
    psnr_y_db: float
    psnr_rgb_db: float
    worst_sequence: str
    worst_psnr_y_db: float


@dataclass(frozen=True)
class Provenance:
    """What it takes to repeat an evaluation."""

    command: str
    commit: str | None
    date: str
    torch: str
    machine: str
    device: str
    threads: int
    data: str
    manifest_sha256: str
    split: str
    frames_per_sequence: int | None
    weights_sha256: dict[str, str]


@dataclass(frozen=True)
class Report:
    """Everything that was measured, and what follows from it."""

    provenance: Provenance
    scores: list[SequenceScores]
    costs: list[Cost]
    means: list[MethodMeans] = field(default_factory=list)
    gains: list[Gain] = field(default_factory=list)
    control_gains: list[ControlGain] = field(default_factory=list)

    def tables(self) -> list[Table]:
        """What networks cost; then for each condition what two steps give, and one table per group."""
        tables = [cost_table(self.costs)]
        for condition in dict.fromkeys(row.condition for row in self.means):
            tables += self.gain_tables(condition)
            of_condition = [row for row in self.means if row.condition == condition]
            for group in dict.fromkeys(row.group for row in of_condition):
                tables.append(means_table([row for row in of_condition if row.group == group]))
        return tables

    def summary_tables(self) -> list[Table]:
        """Of each condition what two steps give, and the methods over all sequences; then the cost."""
        tables: list[Table] = []
        for condition in dict.fromkeys(row.condition for row in self.means):
            tables += self.gain_tables(condition)
            tables.append(means_table([row for row in self.means if (row.condition, row.group) == (condition, "all")]))
        return [*tables, cost_table(self.costs)]

    def gain_tables(self, condition: str) -> list[Table]:
        """What two steps give over HAT alone, and over controls where there are any."""
        gains = [gain for gain in self.gains if gain.condition == condition]
        control_gains = [gain for gain in self.control_gains if gain.condition == condition]
        return [
            *([gain_table(condition, gains)] if gains else []),
            *([control_table(condition, control_gains)] if control_gains else []),
        ]

    def to_markdown(self) -> str:
        """The whole report as a text."""
        about = self.provenance
        per_sequence = "all frames" if about.frames_per_sequence is None else f"{about.frames_per_sequence} frames"
        weights = "".join(f"- {label}: weights {digest}\n" for label, digest in about.weights_sha256.items())
        return (
            f"# Evaluation\n\n    {about.command}\n\n"
            f"- data: {about.data}, split {about.split}, {per_sequence} of each sequence; manifest "
            f"{about.manifest_sha256}\n{weights}"
            f"- {about.date}, {about.machine}, {about.device}, {about.threads} threads, torch {about.torch}, commit "
            f"{about.commit or 'unknown'}\n\n{MEASURES}\n\n" + "\n".join(table.to_markdown() for table in self.tables())
        )

    def to_json(self) -> str:
        """All that was measured and follows from it, in the fields' own names and units, not rounded."""
        content = {
            "format": FORMAT,
            "provenance": asdict(self.provenance),
            "floor_db": FLOOR_DB,
            "costs": [_flat(cost) for cost in self.costs],
            "gains": [asdict(gain) for gain in self.gains],
            "control_gains": [asdict(gain) for gain in self.control_gains],
            "means": [_flat(row) for row in self.means],
            "sequences": [{**_flat(row), "moving": row.moving} for row in self.scores],
        }
        return json.dumps(content, indent=1, allow_nan=False) + "\n"

    def write(self, folder: Path) -> None:
        """report.md and report.json, for people and for programs."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "report.md").write_text(self.to_markdown())
        (folder / "report.json").write_text(self.to_json())


def make_report(
    provenance: Provenance, scores: list[SequenceScores], costs: list[Cost], contenders: Sequence[Contender]
) -> Report:
    """Means and gains per condition and group, in a fixed order."""
    means: list[MethodMeans] = []
    gains: list[Gain] = []
    control_gains: list[ControlGain] = []
    hats = hat_methods(contenders)
    trained = [one for one in contenders if one.unet is not None and not one.is_control]
    for condition in dict.fromkeys(row.condition for row in scores):
        for group, members in groups_of([row for row in scores if row.condition == condition]).items():
            means += [means_of(condition, group, rows) for rows in _by_method(members).values()]
            gains += [gain_of(condition, group, members, contender, hats[contender.label]) for contender in trained]
            control_gains += [
                control_gain_of(condition, group, members, contender, control)
                for contender in trained
                for control in contenders
                if control.is_control
            ]
    return Report(provenance, scores, costs, means, gains, control_gains)


def groups_of(rows: list[SequenceScores]) -> dict[str, list[SequenceScores]]:
    """All; each kind of material, where there are several; static and moving. Empty groups are left out.

    A kind whose name is one of those three is told apart by a slash, as the folder that it is.
    """
    groups = {"all": rows}
    kinds = sorted({row.group for row in rows} - {""})
    if len(kinds) > 1:
        for kind in kinds:
            name = f"{kind}/" if kind in ("all", "static", "moving") else kind
            groups[name] = [row for row in rows if row.group == kind]
    for name, moving in (("static", False), ("moving", True)):
        groups[name] = [row for row in rows if row.moving == moving]
    return {name: members for name, members in groups.items() if members}


def means_of(condition: str, group: str, rows: list[SequenceScores]) -> MethodMeans:
    """Means of one method over the sequences of a group, each weighted by its frames, or its pairs of frames."""

    def mean(value: Callable[[SequenceScores], float | None], fewer: int = 0) -> float | None:
        weighted = [(found, row.frames - fewer) for row in rows if (found := value(row)) is not None]
        total = sum(weight for _, weight in weighted)
        return sum(found * weight for found, weight in weighted) / total if total else None

    return MethodMeans(
        condition,
        group,
        rows[0].method,
        len(rows),
        sum(row.frames for row in rows),
        mean(lambda row: row.psnr_y_db),
        mean(lambda row: row.psnr_rgb_db),
        mean(lambda row: row.ssim_y),
        mean(lambda row: row.warping_error, 1),
        mean(lambda row: row.dtssd, 1),
    )


def gain_of(condition: str, group: str, rows: list[SequenceScores], contender: Contender, hat: Method) -> Gain:
    """What a contender's two steps give in a group."""
    by_method = _by_method(rows)
    ours, first = by_method[two_steps(contender, "two-step")], by_method[hat]
    two, one = means_of(condition, group, ours), means_of(condition, group, first)
    alone = means_of(condition, group, by_method[two_steps(contender, "no-neighbours")])
    foreign_rows = by_method.get(two_steps(contender, "foreign-neighbours"))
    foreign = means_of(condition, group, foreign_rows).psnr_y_db if foreign_rows else None
    differences = _differences(ours, first)
    worst = min(differences, key=lambda sequence: differences[sequence])
    return Gain(
        condition=condition,
        group=group,
        networks=contender.label,
        sequences=len(ours),
        psnr_y_db=_less(two.psnr_y_db, one.psnr_y_db),
        psnr_rgb_db=_less(two.psnr_rgb_db, one.psnr_rgb_db),
        psnr_y_db_by_neighbours=_less(two.psnr_y_db, alone.psnr_y_db),
        psnr_y_db_over_foreign=None if foreign is None else _less(two.psnr_y_db, foreign),
        warping_error=None if two.warping_error is None else _less(two.warping_error, one.warping_error),
        dtssd=None if two.dtssd is None else _less(two.dtssd, one.dtssd),
        worst_sequence=worst,
        worst_psnr_y_db=differences[worst],
        below_floor=sum(difference < FLOOR_DB for difference in differences.values()),
    )


def control_gain_of(
    condition: str, group: str, rows: list[SequenceScores], contender: Contender, control: Contender
) -> ControlGain:
    """What a contender's two steps give over a trained control in a group."""
    by_method = _by_method(rows)
    ours, theirs = by_method[two_steps(contender, "two-step")], by_method[two_steps(control, "trained-control")]
    two, one = means_of(condition, group, ours), means_of(condition, group, theirs)
    differences = _differences(ours, theirs)
    worst = min(differences, key=lambda sequence: differences[sequence])
    return ControlGain(
        condition=condition,
        group=group,
        networks=contender.label,
        control=control.label,
        sequences=len(ours),
        psnr_y_db=_less(two.psnr_y_db, one.psnr_y_db),
        psnr_rgb_db=_less(two.psnr_rgb_db, one.psnr_rgb_db),
        worst_sequence=worst,
        worst_psnr_y_db=differences[worst],
    )


def cost_table(costs: Iterable[Cost]) -> Table:
    """Parameters, multiply-adds and time of each method."""
    rows = [
        (
            cost.method.name,
            f"{cost.parameters / 1e6:.2f}",
            _number(cost.multiply_adds, "{:.1f}", 1e-9),
            _number(cost.milliseconds, "{:.1f}"),
        )
        for cost in costs
    ]
    sizes = {f"{cost.width}x{cost.height}" for cost in costs}
    note = (
        "Of one low-resolution frame at a time; multiply-adds of convolutions and matrix products (one is two FLOPs); "
        "the median time on this machine, with whatever else it was doing."
    )
    columns = ("method", "parameters (M)", "multiply-adds (G)", "ms per frame")
    return Table(f"Cost for a frame of {', '.join(sorted(sizes))} px", columns, rows, note)


def gain_table(condition: str, gains: list[Gain]) -> Table:
    """One row per group and networks."""
    rows = [
        (
            f"{gain.group} ({gain.networks})",
            str(gain.sequences),
            _number(gain.psnr_y_db, "{:+z.3f}"),
            _number(gain.psnr_rgb_db, "{:+z.3f}"),
            _number(gain.psnr_y_db_by_neighbours, "{:+z.3f}"),
            _number(gain.psnr_y_db_over_foreign, "{:+z.3f}"),
            _number(gain.warping_error, "{:+z.3f}", 1000),
            _number(gain.dtssd, "{:+z.3f}", 255),
            _number(gain.worst_psnr_y_db, "{:+z.3f}"),
        )
        for gain in gains
    ]
    columns = (
        "group",
        "sequences",
        "PSNR-Y over HAT (dB)",
        "PSNR-RGB over HAT (dB)",
        "PSNR-Y by the neighbours (dB)",
        "PSNR-Y over foreign neighbours (dB)",
        "E_warp less HAT's",
        "dtSSD less HAT's",
        "worst sequence, PSNR-Y over HAT (dB)",
    )
    notes = [
        f"{gain.networks}: {gain.below_floor} of {gain.sequences} sequences lie more than {-FLOOR_DB} dB below HAT "
        f"alone; the worst is {gain.worst_sequence}, {gain.worst_psnr_y_db:+z.3f} dB."
        for gain in gains
        if gain.group == "all"
    ]
    note = "By the neighbours: true neighbours less both replaced by the current frame. " + " ".join(notes)
    return Table(f"What two steps give: {condition}", columns, rows, note)


def control_table(condition: str, gains: list[ControlGain]) -> Table:
    """One row per group, networks and control."""
    rows = [
        (
            f"{gain.group} ({gain.networks} over {gain.control})",
            str(gain.sequences),
            _number(gain.psnr_y_db, "{:+z.3f}"),
            _number(gain.psnr_rgb_db, "{:+z.3f}"),
            _number(gain.worst_psnr_y_db, "{:+z.3f}"),
        )
        for gain in gains
    ]
    columns = ("group", "sequences", "PSNR-Y (dB)", "PSNR-RGB (dB)", "worst sequence, PSNR-Y (dB)")
    return Table(f"Over a control trained without neighbours: {condition}", columns, rows)


def means_table(means: list[MethodMeans]) -> Table:
    """The methods of one condition and group."""
    rows = [
        (
            row.method.name,
            _number(row.psnr_y_db, "{:.2f}"),
            _number(row.psnr_rgb_db, "{:.2f}"),
            _number(row.ssim_y, "{:.4f}"),
            _number(row.warping_error, "{:.3f}", 1000),
            _number(row.dtssd, "{:.3f}", 255),
        )
        for row in means
    ]
    columns = ("method", "PSNR-Y (dB)", "PSNR-RGB (dB)", "SSIM-Y", "E_warp (1e-3)", "dtSSD")
    first = means[0]
    title = f"{first.condition}, {first.group}: {first.sequences} sequences, {first.frames} frames"
    return Table(title, columns, rows)


def provenance_of(
    dataset: Dataset,
    contenders: Sequence[Contender],
    *,
    command: str,
    commit: str | None,
    data: str,
    split: str,
    frames_per_sequence: int | None,
    device: torch.device,
) -> Provenance:
    """Where and with what this is measured, now. `data` is the material as the user named it."""
    return Provenance(
        command=command,
        commit=commit,
        date=datetime.now(UTC).date().isoformat(),
        torch=torch.__version__,
        machine=cpu_name(),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        threads=torch.get_num_threads(),
        data=data,
        manifest_sha256=manifest_sha256(dataset),
        split=split,
        frames_per_sequence=frames_per_sequence,
        weights_sha256={contender.label: contender.weights_sha256 for contender in contenders},
    )


def manifest_sha256(dataset: Dataset) -> str:
    """Of the manifest's bytes, which hold the sha256 of every sequence."""
    import fsspec  # slow to import

    with fsspec.open(f"{dataset.location}/{MANIFEST}", "rb") as manifest:
        return hashlib.sha256(manifest.read()).hexdigest()


def _by_method(rows: list[SequenceScores]) -> dict[Method, list[SequenceScores]]:
    by_method: dict[Method, list[SequenceScores]] = {}
    for row in rows:
        by_method.setdefault(row.method, []).append(row)
    return by_method


def _differences(ours: list[SequenceScores], theirs: list[SequenceScores]) -> dict[str, float]:
    """PSNR-Y in dB of one method less another's, by sequence."""
    return {our.sequence: _less(our.psnr_y_db, their.psnr_y_db) for our, their in zip(ours, theirs, strict=True)}


def _less(left: float | None, right: float | None) -> float:
    assert left is not None
    assert right is not None
    return left - right


def _number(value: float | None, form: str, factor: float = 1) -> str:
    """The form's "z" keeps what rounds to zero from being shown as less than zero."""
    return "-" if value is None else form.format(value * factor)


def _flat(row: SequenceScores | MethodMeans | Cost) -> dict[str, object]:
    """The fields, with the method's in place of the method."""
    fields = asdict(row)
    method = fields.pop("method")
    return {"method": method["name"], "kind": method["kind"], "networks": method["networks"], **fields}
