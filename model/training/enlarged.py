"""HAT's outputs, computed once: HAT is frozen, so training a U-Net need not run it again at every step.

Whole frames are enlarged, as in serving, because channel attention averages over all it is given. A file per sequence
and condition holds the frames of some centres:

    <cache folder>/<first 16 digits of HAT's sha256>/<condition>/<sequence's sha256>.safetensors
        `frames` (N, 3, 2H, 2W) float16, `centers` (N,) int64

Named by content, the files serve any run and any data set with the same sequence. Each appears whole or not at all, so
caching goes on where it was interrupted, and several processes can share the work.

Training compact's U-Net on one CPU thread made 41 patches/s with cached frames and 16 without. Rounding to float16
costs it 0.0001 dB on clean frames and none on H.264 (crf 28); uint8 would cost 0.012 and 0.002 dB, for half the disk.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from model.data import Dataset, SequenceEntry
from model.training.config import CannotWriteError, TrainingError

# A GPU enlarges so many low-resolution pixels at a time (64 frames of 64x64, or one of 640x360); a CPU one frame.
GPU_PIXELS_AT_A_TIME = 2**18

_DTYPE = torch.float16


class EnlargedCache:
    """The cached frames of a HAT. Nothing is held in memory; a frame is read where it lies."""

    def __init__(self, folder: Path, hat_sha256: str, centers_per_sequence: int | None) -> None:
        """`centers_per_sequence` evenly spread ones of those with two neighbours, None: all of them."""
        self.folder = folder / hat_sha256[:16]
        self.centers_per_sequence = centers_per_sequence
        self._verified: set[Path] = set()

    def centers(self, entry: SequenceEntry) -> Sequence[int]:
        """Which frames of a sequence are cached."""
        inner = range(1, entry.frames - 1)
        if self.centers_per_sequence is None or self.centers_per_sequence >= len(inner):
            return inner
        # The middles of equal parts.
        parts = self.centers_per_sequence
        return [inner[(2 * part + 1) * len(inner) // (2 * parts)] for part in range(parts)]

    def frame(self, entry: SequenceEntry, condition: str, t: int) -> Tensor:
        """Frame t enlarged, (3, 2H, 2W) float32. TrainingError for a file that is damaged or missing."""
        path = self.path(entry, condition)
        if path not in self._verified:
            _verify(path)
            self._verified.add(path)
        try:
            with safe_open(path, framework="pt") as file:
                # Looked up each time: another run may have put a file with other centres in its place.
                centers = file.get_tensor("centers").tolist()
                if t not in centers:
                    raise _damaged(path, f"frame {t} is not in it")
                frame: Tensor = file.get_slice("frames")[centers.index(t)]
        except (SafetensorError, FileNotFoundError) as error:
            raise _damaged(path, str(error)) from error
        return frame.float()

    def path(self, entry: SequenceEntry, condition: str) -> Path:
        """The file of a sequence as it is in a condition."""
        return self.folder / condition / f"{entry.sha256}.safetensors"

    def fill(
        self,
        dataset: Dataset,
        entries: Sequence[SequenceEntry],
        conditions: Sequence[str],
        enlarge: Callable[[Tensor], Tensor],
        device: torch.device,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Compute what is missing; `on_progress` hears of frames done and frames in all.

        CannotWriteError when the disk has no room for it, before anything is computed, or takes no more.
        """
        missing = [
            (entry, condition)
            for condition in conditions
            for entry in entries
            if not self._is_there(self.path(entry, condition), entry)
        ]
        total = sum(len(self.centers(entry)) for entry, _ in missing)
        self._refuse_without_room(missing)
        done = 0
        for entry, condition in missing:
            centers = list(self.centers(entry))
            lr = dataset.read(entry)[condition][centers]
            at_a_time = max(1, GPU_PIXELS_AT_A_TIME // lr[0, 0].numel()) if device.type == "cuda" else 1
            parts = [enlarge(part.to(device).float() / 255).to(_DTYPE).cpu() for part in torch.split(lr, at_a_time)]
            with _writing(self.folder):
                _write(self.path(entry, condition), torch.cat(parts).contiguous(), centers)
            done += len(centers)
            if on_progress is not None:
                on_progress(done, total)

    def _is_there(self, path: Path, entry: SequenceEntry) -> bool:
        """Whether a file is whole and has these centres. Its content is compared when it is first read."""
        try:
            with safe_open(path, framework="pt") as file:
                found = set(file.get_tensor("centers").tolist())
        except FileNotFoundError:
            return False
        except SafetensorError:  # Cut off, or something else: made anew.
            return False
        return found >= set(self.centers(entry))

    def _refuse_without_room(self, missing: Sequence[tuple[SequenceEntry, str]]) -> None:
        needed = sum(
            len(self.centers(entry)) * 3 * entry.height * entry.width * _DTYPE.itemsize for entry, _ in missing
        )
        with _writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise CannotWriteError(
                f"HAT's outputs need {needed / 1e6:,.1f} MB in {self.folder}, where {free / 1e6:,.1f} MB are free: "
                "choose another cache folder, fewer centres, or no cache"
            )


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise CannotWriteError(f"cannot write into {folder}: {reason}; the frames cached so far stay") from error


def _write(path: Path, frames: Tensor, centers: Sequence[int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    digest = hashlib.sha256(frames.numpy().tobytes()).hexdigest()
    try:
        save_file({"frames": frames, "centers": torch.tensor(list(centers))}, partial, {"sha256": digest})
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _verify(path: Path) -> None:
    """TrainingError when the file is not what was written."""
    try:
        with safe_open(path, framework="pt") as file:
            frames, expected = file.get_tensor("frames"), (file.metadata() or {}).get("sha256")
    except (SafetensorError, FileNotFoundError) as error:
        raise _damaged(path, str(error)) from error
    if hashlib.sha256(frames.numpy().tobytes()).hexdigest() != expected:
        raise _damaged(path, "its frames do not have the sha256 that it names")


def _damaged(path: Path, reason: str) -> TrainingError:
    return TrainingError(f"{path} is damaged ({reason}): remove it, and the same command makes it anew")
