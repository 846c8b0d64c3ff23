"""`vsr evaluate --sweep`: the paper's Tables I to III trained again, every a with several seeds, and two more.

A sweep is a list of arms, each a TrainConfig, and one loop over arms and seeds. A folder holds it:

    runs/mae-seed0/       one training run as `vsr train` leaves it, and its score.json
    enlarged/             HAT's outputs, computed once for all runs
    sweep.md, sweep.json  the tables, with the paper's figures beside ours

Interrupted, the same command goes on: a run with a score is not repeated, one without goes on from its checkpoint.
"""

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from model.checkpoints import load_checkpoint, sha256_of
from model.data import Dataset, SequenceEntry
from model.evaluation.contenders import as_served
from model.evaluation.report import Table, manifest_sha256
from model.evaluation.scores import BORDER_PX, PSNR_MAX_DB, check_size, conditions_of, in_eight_bits, triplets
from model.hardware import cpu_name
from model.hat import HAT
from model.metrics import psnr, psnr_y
from model.training.config import TrainConfig, TrainingError
from model.training.enlarged import EnlargedCache
from model.training.loop import train
from model.training.run_folder import commit
from model.unet import ConditionalUNet
from model.upscaler import resolve_device

# PSNR in dB as the paper has it.
PAPER_HAT_DB = 28.97
PAPER_TABLE_I = {"mse": 30.55, "mae": 30.73}
PAPER_TABLE_II = (27.34, 30.78, 30.53, 30.76, 30.70, 30.83, 30.73, 30.83, 30.86, 30.83, 30.73)
PAPER_TABLE_III = (30.55, 30.61, 30.79, 30.70, 30.76, 30.63, 30.74, 30.77, 30.76, 30.61, 30.745)

TABLES = {
    "I": "Table I: MSE or MAE",
    "II": "Table II: a of a MAE + (1 - a) (1 - SSIM)",
    "III": "Table III: a of the encoder loss",
    "output": "Direct or residual output, MAE",
    "neighbours": "Trained and tested with true neighbours, or with the current frame for both, MAE",
}

SCORE = "score.json"
# Fields of a TrainConfig that say where things lie, not what they are.
PLACES = ("data_folder", "run_folder", "hat_weights", "cache_folder", "device", "report_every", "checkpoint_every")

Scores = dict[str, dict[str, float]]
"""Per condition `psnr_rgb_db` and `psnr_y_db`, means over frames."""

# Of how many evenly spread frames of a sequence HAT's outputs are kept for scoring.
SCORED_FRAMES = 5


@dataclass(frozen=True)
class Arm:
    """One row of a table: what is trained. Arms with the same `run` are the same training and share it."""

    table: str
    label: str
    run: str
    config: TrainConfig
    paper_db: float | None = None


@dataclass(frozen=True)
class SweepRow:
    """An arm under one condition: PSNR in dB, mean and sample standard deviation over seeds (None with one seed)."""

    table: str
    label: str
    condition: str
    seeds: int
    psnr_rgb_db: float
    psnr_rgb_spread_db: float | None
    psnr_y_db: float
    psnr_y_spread_db: float | None
    over_hat_rgb_db: float
    over_hat_y_db: float
    paper_db: float | None
    paper_over_hat_db: float | None


@dataclass(frozen=True)
class Sweep:
    """The rows of all tables, HAT alone first in each, and what they were made with."""

    about: dict[str, object]
    rows: list[SweepRow]

    def tables(self) -> list[Table]:
        """One per table and condition."""
        kinds = dict.fromkeys((row.table, row.condition) for row in self.rows)
        return [
            sweep_table(condition, [row for row in self.rows if (row.table, row.condition) == (table, condition)])
            for table, condition in kinds
        ]

    def to_markdown(self) -> str:
        """All tables."""
        about = "".join(f"- {name}: {value}\n" for name, value in self.about.items())
        return f"# Sweep\n\n{about}\n" + "\n".join(table.to_markdown() for table in self.tables())

    def to_json(self) -> str:
        """The rows in the fields' own names, not rounded."""
        content = {"format": "twostep-vsr/sweep/1", **self.about, "rows": [asdict(row) for row in self.rows]}
        return json.dumps(content, indent=1, allow_nan=False) + "\n"

    def write(self, folder: Path) -> None:
        """sweep.md and sweep.json."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "sweep.md").write_text(self.to_markdown())
        (folder / "sweep.json").write_text(self.to_json())


def arms_of(table: str, base: TrainConfig) -> list[Arm]:
    """The arms of a table; all else is as in `base`, a configuration of stage "unet"."""
    assert base.unet is not None
    mae = replace(base, loss="mae", alpha=None)
    if table == "I":
        mse = replace(base, loss="mse", alpha=None)
        return [
            Arm(table, "MSE", "mse", mse, PAPER_TABLE_I["mse"]),
            Arm(table, "MAE", "mae", mae, PAPER_TABLE_I["mae"]),
        ]
    if table == "II":
        arms = []
        for ssim_data_range in ("true", "published"):
            for tenths, paper_db in enumerate(PAPER_TABLE_II):
                label, run = f"a = {tenths / 10:.1f}, {ssim_data_range} range", f"mae-ssim-{ssim_data_range}-{tenths}"
                config = replace(base, loss="mae_ssim", alpha=tenths / 10, ssim_data_range=ssim_data_range)
                # With a = 1 nothing is left but MAE.
                arms.append(Arm(table, label, *((run, config) if tenths < 10 else ("mae", mae)), paper_db))
        return arms
    if table == "III":
        return [
            Arm(
                table,
                f"a = {hundredths / 100:.2f}",
                f"encoder-{hundredths}",
                replace(base, loss="encoder", alpha=hundredths / 100),
                paper_db,
            )
            for hundredths, paper_db in enumerate(PAPER_TABLE_III)
        ]
    if table == "output":
        return [
            Arm(
                table,
                output,
                "mae" if output == base.unet.output else f"mae-{output}",
                replace(mae, unet=replace(base.unet, output=output)),
            )
            for output in ("direct", "residual")
        ]
    if table == "neighbours":
        return [
            Arm(table, "true neighbours", "mae", mae),
            Arm(table, "the current frame for both", "mae-current", replace(mae, neighbours="current")),
        ]
    raise ValueError(f"there is no table {table!r}, only {', '.join(TABLES)}")


def run_sweep(
    dataset: Dataset,
    base: TrainConfig,
    folder: Path,
    *,
    tables: Sequence[str] = ("I", "II", "III"),
    seeds: int = 3,
    split: str = "val",
    conditions: Sequence[str] = (),
    frames_per_sequence: int = SCORED_FRAMES,
    on_progress: Callable[[float, int, str], None] | None = None,
) -> Sweep:
    """Train every arm with seeds 0, 1, ... and score it: mean PSNR over frames of a split, per condition.

    Without `conditions`, under those that `base` trains on, or all of the data set where it names none.
    `on_progress(runs done, runs in all, what is being done)` counts a run in parts while it trains. Raises what `train`
    raises.
    """
    conditions = conditions_of(dataset, conditions or list(base.conditions))
    arms = [arm for table in dict.fromkeys(tables) for arm in arms_of(table, base)]
    if base.hat_weights is None:
        raise TrainingError("a sweep trains U-Nets behind a HAT: name its weights")
    _, hat, _ = load_checkpoint(Path(base.hat_weights))
    runs = [(arm.run, seed, arm.config) for arm in {arm.run: arm for arm in arms}.values() for seed in range(seeds)]

    def tell(done: float, doing: str) -> None:
        if on_progress is not None:
            on_progress(done, len(runs), doing)

    cache_folder, device = folder / "enlarged", resolve_device(base.device)
    scorer = Scorer(dataset, hat, split, conditions, frames_per_sequence, cache_folder, device)
    scorer.fill_cache(hat, lambda frames, of: tell(0, enlarging(frames, of)))
    of_runs: dict[str, list[Scores]] = {}
    for done, (run, seed, config) in enumerate(runs):
        seeded = replace(
            config,
            seed=seed,
            data_folder=dataset.location,
            run_folder=str(folder / "runs" / f"{run}-seed{seed}"),
            cache_enlarged=True,
            cache_folder=str(cache_folder),
            validation_frames=0,  # It is scored when it is finished, and not on the way.
        )

        def tell_of_run(part: float, doing: str, done: int = done) -> None:
            tell(done + part, doing)

        of_runs.setdefault(run, []).append(train_and_score(seeded, scorer, tell_of_run))
    hat_scores = scorer.score(None)
    rows: list[SweepRow] = []
    for table in dict.fromkeys(tables):
        for condition in conditions:
            baseline = hat_scores[condition]
            rows.append(row_of(Arm(table, "HAT alone", "", base, PAPER_HAT_DB), condition, [hat_scores], baseline))
            rows += [row_of(arm, condition, of_runs[arm.run], baseline) for arm in arms if arm.table == table]
    about = {
        "data": dataset.location,
        **scorer.described,
        "seeds": seeds,
        "trained": {name: value for name, value in asdict(base).items() if name not in PLACES},
        "commit": commit(),
        "torch": torch.__version__,
        "machine": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
    }
    return Sweep(about, rows)


class Scorer:
    """Scores U-Nets on the same frames, behind HAT's outputs that are computed once."""

    def __init__(
        self,
        dataset: Dataset,
        hat: HAT,
        split: str,
        conditions: Sequence[str],
        frames_per_sequence: int,
        cache_folder: Path,
        device: torch.device,
    ) -> None:
        """DatasetError for an empty split or frames that are too small."""
        self.dataset, self.conditions, self.device = dataset, conditions, device
        self.entries = dataset.split(split)
        for entry in self.entries:
            check_size(entry)
        hat_sha256 = sha256_of(hat.state_dict())
        self.cache = EnlargedCache(cache_folder, hat_sha256, frames_per_sequence)
        # What decides a score beside the run itself.
        self.described = {
            "hat_sha256": hat_sha256,
            "manifest_sha256": manifest_sha256(dataset),
            "split": split,
            "conditions": list(conditions),
            "frames_per_sequence": frames_per_sequence,
            "border_px": BORDER_PX,
        }

    def fill_cache(self, hat: HAT, on_progress: Callable[[int, int], None] | None = None) -> None:
        """Enlarge what is not in the cache yet."""
        hat.to(self.device).eval()
        self.cache.fill(
            self.dataset, self.entries, self.conditions, lambda lr: as_served(hat, lr), self.device, on_progress
        )

    def score(self, unet: ConditionalUNet | None, neighbours: str = "true") -> Scores:
        """Mean PSNR per condition; of HAT alone without a U-Net, of a control with "current" `neighbours`."""
        if unet is not None:
            unet.to(self.device).eval()
        scores: Scores = {}
        for condition in self.conditions:
            rows = [self._score_sequence(unet, neighbours, condition, entry) for entry in self.entries]
            rgb_db, y_db = torch.cat(rows).mean(dim=0).tolist()
            scores[condition] = {"psnr_rgb_db": rgb_db, "psnr_y_db": y_db}
        return scores

    def _score_sequence(
        self, unet: ConditionalUNet | None, neighbours: str, condition: str, entry: SequenceEntry
    ) -> Tensor:
        """(frames, 2): PSNR-RGB and PSNR-Y."""
        centers = self.cache.centers(entry)
        batch = triplets(self.dataset.read(entry), condition, centers, self.device)
        output = torch.stack([self.cache.frame(entry, condition, t) for t in centers]).to(self.device)
        if unet is not None:
            previous_lr, next_lr = batch.previous_lr, batch.next_lr
            if neighbours == "current":
                previous_lr = next_lr = batch.center_lr
            output = as_served(unet, output, previous_lr, next_lr)
        seen = in_eight_bits(output)
        return torch.stack(
            [metric(seen, batch.target, border_px=BORDER_PX).clamp(max=PSNR_MAX_DB) for metric in (psnr, psnr_y)], 1
        ).cpu()


def enlarging(frames: int, of: int) -> str:
    """What is being done before the first step of the first run."""
    return f"enlarging with HAT, once for all runs, {frames} of {of} frames"


def train_and_score(config: TrainConfig, scorer: Scorer, tell: Callable[[float, str], None]) -> Scores:
    """Train one run and score it, or take the score that is kept beside it if that is of the same run and frames.

    `tell(part of the run that is done, what is being done)`.
    """
    path = Path(config.run_folder) / SCORE
    # Through JSON and back, so that tuples compare equal to lists; where things lie does not matter.
    deciding = {**asdict(config), **dict.fromkeys(PLACES), "scored": scorer.described}
    deciding = json.loads(json.dumps(deciding))
    if path.is_file():
        kept = json.loads(path.read_text())
        if kept["of"] == deciding:
            scores: Scores = kept["scores"]
            return scores
    name = Path(config.run_folder).name
    info = train(
        config,
        on_progress=lambda now: tell(now.step / now.steps, name),
        on_caching=lambda frames, of: tell(0, enlarging(frames, of)),
    )
    _, _, unet = load_checkpoint(info.path)
    scores = scorer.score(unet, config.neighbours)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps({"of": deciding, "scores": scores}, indent=1) + "\n")
    partial.replace(path)
    return scores


def row_of(arm: Arm, condition: str, of_seeds: Sequence[Scores], hat: dict[str, float]) -> SweepRow:
    """Mean and spread over seeds."""

    def spread(name: str) -> tuple[float, float | None]:
        values = [scores[condition][name] for scores in of_seeds]
        return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None

    (rgb_db, rgb_spread_db), (y_db, y_spread_db) = spread("psnr_rgb_db"), spread("psnr_y_db")
    return SweepRow(
        table=arm.table,
        label=arm.label,
        condition=condition,
        seeds=len(of_seeds),
        psnr_rgb_db=rgb_db,
        psnr_rgb_spread_db=rgb_spread_db,
        psnr_y_db=y_db,
        psnr_y_spread_db=y_spread_db,
        over_hat_rgb_db=rgb_db - hat["psnr_rgb_db"],
        over_hat_y_db=y_db - hat["psnr_y_db"],
        paper_db=arm.paper_db,
        paper_over_hat_db=None if arm.paper_db is None else arm.paper_db - PAPER_HAT_DB,
    )


def sweep_table(condition: str, rows: list[SweepRow]) -> Table:
    """One table of the paper, ours and the paper's side by side."""

    def measured(mean: float, spread: float | None) -> str:
        return f"{mean:.2f}" if spread is None else f"{mean:.2f} ± {spread:.2f}"

    cells = [
        (
            row.label,
            measured(row.psnr_rgb_db, row.psnr_rgb_spread_db),
            measured(row.psnr_y_db, row.psnr_y_spread_db),
            f"{row.over_hat_rgb_db:+.2f}",
            f"{row.over_hat_y_db:+.2f}",
            "-" if row.paper_db is None else f"{row.paper_db:.2f}",
            "-" if row.paper_over_hat_db is None else f"{row.paper_over_hat_db:+.2f}",
        )
        for row in rows
    ]
    columns = ("", "PSNR-RGB (dB)", "PSNR-Y (dB)", "RGB over HAT", "Y over HAT", "paper (dB)", "paper over HAT")
    seeds = max(row.seeds for row in rows)
    note = f"Mean and sample standard deviation over {seeds} seeds." if seeds > 1 else "One seed."
    return Table(f"{TABLES[rows[0].table]}; {condition}", columns, cells, note)
