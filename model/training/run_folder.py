"""All that a training run leaves behind, and what it takes to go on with it.

config.json          the TrainConfig; what data and HAT it was for; per start commit, versions, machine and command
metrics.jsonl        one JSON object per report
curves/              the same for TensorBoard
samples/             pictures of every validation: bicubic, HAT, ours, truth
enlarged/            HAT's outputs, where they are cached here
lock                 held by the run that writes here
checkpoint.pt        weights, optimiser, random state and step, replaced atomically; a run resumes from it
weights.safetensors  the finished networks
"""

import io
import json
import os
import pickle
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Self

import torch
from safetensors import SafetensorError

from model.folder_lock import FolderInUseError, take_lock
from model.hardware import cpu_name
from model.training.config import CannotWriteError, TrainConfig, TrainingError
from model.training.curves import Curves
from model.training.ranks import Ranks

# What may differ between a run and its continuation.
RESUMABLE_FIELDS = {
    "steps",
    "epochs",
    "device",
    "report_every",
    "checkpoint_every",
    "validation_frames",
    "data_folder",
    "run_folder",
    "hat_weights",
    "start_weights",
    "cache_folder",
    "compile",
}


class RunFolder:
    """The files of one run. Of several processes only the first calls what writes.

    A context manager: leaving it lets another process have the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.json"
        self.checkpoint = path / "checkpoint.pt"
        self.weights = path / "weights.safetensors"
        self.metrics = path / "metrics.jsonl"
        self.samples = path / "samples"
        self._begun_at_step = 0
        self._curves: Curves | None = None
        self._lock: BinaryIO | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def refuse_another(self, config: TrainConfig, material: Mapping[str, str | None]) -> None:
        """Compare with the config.json that is there, if any; TrainingError when it describes another run.

        `material` names by sha256 what the fields of the config only point to.
        """
        if not self.config.is_file():
            return
        written = self._described()
        before, now = written["config"] | written["material"], as_json(config) | dict(material)
        changed = [
            f"{name} was {before[name]}, now {value}"
            for name, value in now.items()
            if name not in RESUMABLE_FIELDS and name in before and before[name] != value
        ]
        if changed:
            raise TrainingError(f"{self.path} holds another run: {', '.join(changed)}")

    def begin(self, config: TrainConfig, material: Mapping[str, str | None], ranks: Ranks, step: int) -> None:
        """Add this start to config.json, and forget what a killed run recorded past `step`, as it is done again now.

        TrainingError while another process trains here.
        """
        with self.writing():
            self.path.mkdir(parents=True, exist_ok=True)
            try:
                self._lock = take_lock(self.path / "lock")
            except FolderInUseError as error:
                raise TrainingError(str(error)) from error
        starts = self._described()["starts"] if self.config.is_file() else []
        starts.append(this_start(ranks, step))
        description = {"config": as_json(config), "material": dict(material), "starts": starts}
        self._replace(self.config, (json.dumps(description, indent=1) + "\n").encode())
        self._begun_at_step = step
        self._forget_after(step)

    def _described(self) -> dict[str, Any]:
        """The config.json that is there; TrainingError where it is not a run's."""
        try:
            described = json.loads(self.config.read_text())
            return {name: described[name] for name in ("config", "material", "starts")}
        except (ValueError, TypeError, KeyError) as error:
            raise TrainingError(
                f"{self.config} is not a training run's, or is damaged: choose another folder"
            ) from error

    def load_state(self) -> dict[str, Any] | None:
        """What `save_state` was given last, on the CPU; None for a new run. TrainingError for a damaged checkpoint."""
        if not self.checkpoint.is_file():
            return None
        try:
            state: dict[str, Any] = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, EOFError, RuntimeError, ValueError) as error:
            raise self.damaged(error) from error
        return state

    def damaged(self, error: Exception) -> TrainingError:
        """What to say of a checkpoint that is not what it should be."""
        reason = str(error).partition("\n")[0]
        return TrainingError(f"{self.checkpoint} is damaged ({reason}): remove it to start the run anew")

    def save_state(self, state: Mapping[str, object]) -> None:
        """Replace the checkpoint: a run killed while saving, or out of disk, keeps the last one."""
        partial = self.checkpoint.with_suffix(".partial")
        with self.writing():
            try:
                # By way of memory: of a file that cannot be written torch hides the reason.
                content = io.BytesIO()
                torch.save(dict(state), content)
                with partial.open("wb") as file:
                    file.write(content.getbuffer())
                    file.flush()
                    os.fsync(file.fileno())
                partial.replace(self.checkpoint)
            finally:
                partial.unlink(missing_ok=True)

    def record(self, step: int, values: Mapping[str, float], psnr_y_db: Mapping[str, Mapping[str, float]]) -> None:
        """One line to metrics.jsonl, one point to every curve; `psnr_y_db` by method and condition, if validated."""
        with self.writing():
            if self._curves is None:
                self._curves = Curves(self.path / "curves", self._begun_at_step)
            with self.metrics.open("a") as lines:
                lines.write(json.dumps({"step": step, **values, **psnr_y_db}) + "\n")
            for method, scores in psnr_y_db.items():
                values = {**values, **{f"{method}/{condition}": score for condition, score in scores.items()}}
            self._curves.add(step, values)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """A full disk, and all else that keeps us from writing, ends the run with one line."""
        try:
            yield
        except (OSError, SafetensorError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise CannotWriteError(f"cannot write into {self.path}: {reason}; {self.what_is_kept()}") from error

    def what_is_kept(self) -> str:
        """What one can still rely on when a run ends early."""
        if self.checkpoint.is_file():
            return f"the last checkpoint is intact: {self.checkpoint}"
        return "there was no checkpoint yet"

    def _forget_after(self, step: int) -> None:
        if self.metrics.is_file():
            # The last line may have been cut off by the kill.
            whole = [line for line in self.metrics.read_text().splitlines(keepends=True) if line.endswith("\n")]
            kept = "".join(line for line in whole if json.loads(line)["step"] <= step)
            self._replace(self.metrics, kept.encode())
        for picture in self.samples.glob("*.png"):
            if int(picture.stem) > step:
                picture.unlink()

    def _replace(self, path: Path, content: bytes) -> None:
        partial = path.with_suffix(".partial")
        with self.writing():
            try:
                partial.write_bytes(content)
                partial.replace(path)
            finally:
                partial.unlink(missing_ok=True)


def as_json(config: TrainConfig) -> dict[str, Any]:
    """The fields as they come back from JSON, where tuples are lists."""
    fields: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    return fields


def this_start(ranks: Ranks, step: int) -> dict[str, object]:
    """What one would have to know to repeat this start of a run."""
    on_gpu = ranks.device.type == "cuda"
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "from_step": step,
        "command": shlex.join(sys.argv),
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "gpu": torch.cuda.get_device_name(ranks.device) if on_gpu else None,
        "threads": torch.get_num_threads(),
        "processes": ranks.count,
    }


def commit() -> str:
    """The commit this code is at, "unknown" outside a checkout."""
    return _git("rev-parse", "HEAD") or "unknown"


def _git(*arguments: str) -> str | None:
    if shutil.which("git") is None:
        return None
    answer = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), *arguments],  # noqa: S607 git is where PATH says
        capture_output=True,
        text=True,
        check=False,
    )
    return answer.stdout.strip() or None
