"""The training material on disk and in memory: sequences of consecutive frames, each at high and low resolution.

A data set is a folder:

    manifest.json            scale, seed, and per sequence: file, split, source, licence, size, sha256
    sequences/00000.safetensors, ...   `hr` (T, 3, sH, sW) and `lr` (T, 3, H, W), uint8 RGB

Decoding video is not done here (`worker/dataset.py` does); this module starts from decoded frames.
"""

import hashlib
import json
import random
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

SCALE = 2
FRAMES_PER_SEQUENCE = 25
MANIFEST = "manifest.json"

SPLITS = ("train", "val", "test")
# The paper's 8:1:1.
SPLIT_SHARES = (0.8, 0.1, 0.1)


class DatasetError(Exception):
    """A data set on disk that is missing, incomplete or not what its manifest says."""


@dataclass(frozen=True)
class DecodedSequence:
    """Consecutive high-resolution frames of one video, (T, 3, H, W) uint8 RGB, H and W even.

    `source` names the video they come from; all sequences of a source land in one split. `split` is None where the
    material does not say.
    """

    name: str
    source: str
    licence: str
    split: str | None
    hr: Tensor


@dataclass(frozen=True)
class SequenceEntry:
    """One line of the manifest."""

    name: str
    file: str
    split: str
    source: str
    licence: str
    frames: int
    height: int
    width: int
    sha256: str


def shrink(hr: Tensor) -> Tensor:
    """The low-resolution input of (T, 3, H, W) uint8 frames: (T, 3, H / 2, W / 2) uint8.

    Bicubic with a kernel widened by the scale (antialiased), as MATLAB's imresize and Pillow do, and rounded to 8 bits,
    as real inputs are.
    """
    lr = F.interpolate(hr.float(), scale_factor=1 / SCALE, mode="bicubic", antialias=True)
    return lr.round().clamp(0, 255).to(torch.uint8)


def write_dataset(sequences: Iterable[DecodedSequence], folder: Path, seed: int) -> list[SequenceEntry]:
    """Write sequences one by one, so that any amount of material needs the memory of one, then the manifest."""
    (folder / "sequences").mkdir(parents=True, exist_ok=True)
    entries: list[SequenceEntry] = []
    for number, sequence in enumerate(sequences):
        frames, _, height, width = sequence.hr.shape
        if height % SCALE or width % SCALE:
            raise DatasetError(f"{sequence.name}: {width}x{height} is not a multiple of {SCALE}")
        file = f"sequences/{number:05d}.safetensors"
        save_file({"hr": sequence.hr.contiguous(), "lr": shrink(sequence.hr)}, folder / file)
        digest = hashlib.sha256((folder / file).read_bytes()).hexdigest()
        split = sequence.split or ""
        entries.append(
            SequenceEntry(sequence.name, file, split, sequence.source, sequence.licence, frames, height, width, digest)
        )
    if not entries:
        raise DatasetError("no sequence of enough frames was found in the given sources")
    entries = split_by_source(entries, seed)
    manifest = {"scale": SCALE, "seed": seed, "sequences": [asdict(entry) for entry in entries]}
    # Last, so that a folder with a manifest is a complete one.
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    return entries


def split_by_source(entries: list[SequenceEntry], seed: int) -> list[SequenceEntry]:
    """Give each source without a split one, 8:1:1 over sources, so that no video lies on both sides."""
    sources = sorted({entry.source for entry in entries if not entry.split})
    random.Random(seed).shuffle(sources)  # noqa: S311 no secret is drawn
    train_end = round(SPLIT_SHARES[0] * len(sources))
    val_end = train_end + round(SPLIT_SHARES[1] * len(sources))
    split_of = {
        source: SPLITS[0] if place < train_end else SPLITS[1] if place < val_end else SPLITS[2]
        for place, source in enumerate(sources)
    }
    return [entry if entry.split else replace(entry, split=split_of[entry.source]) for entry in entries]


def read_manifest(folder: Path) -> list[SequenceEntry]:
    """The entries of a data set; DatasetError when there is none or it is of another scale."""
    path = folder / MANIFEST
    if not path.is_file():
        raise DatasetError(f"no {MANIFEST} in {folder}; make a data set with `vsr prepare`")
    manifest = json.loads(path.read_text())
    if manifest["scale"] != SCALE:
        raise DatasetError(f"{path}: made for scale {manifest['scale']}, expected {SCALE}")
    return [SequenceEntry(**entry) for entry in manifest["sequences"]]


def read_sequence(folder: Path, entry: SequenceEntry) -> tuple[Tensor, Tensor]:
    """`lr` and `hr` of one sequence, uint8; DatasetError when the file is not the one the manifest was written with."""
    path = folder / entry.file
    if not path.is_file():
        raise DatasetError(f"{path} is missing")
    if hashlib.sha256(path.read_bytes()).hexdigest() != entry.sha256:
        raise DatasetError(f"{path} is damaged: its sha256 is not the manifest's")
    tensors = load_file(path)
    return tensors["lr"], tensors["hr"]


@dataclass(frozen=True)
class Batch:
    """Triplets of patches, float32 in [0, 1]: three (B, 3, P, P) and the (B, 3, 2P, 2P) target of the centre."""

    previous_lr: Tensor
    center_lr: Tensor
    next_lr: Tensor
    target: Tensor

    def to(self, device: torch.device) -> "Batch":
        """The same batch on another device."""
        return Batch(
            self.previous_lr.to(device), self.center_lr.to(device), self.next_lr.to(device), self.target.to(device)
        )


class TripletSampler:
    """Random patches of (t-1, t, t+1), flipped and turned, from sequences held in memory.

    All randomness comes from `generator`, whose state is enough to go on where a run stopped.
    """

    def __init__(self, sequences: list[tuple[Tensor, Tensor]], patch_px: int, seed: int) -> None:
        self.sequences = [(lr, hr) for lr, hr in sequences if min(lr.shape[-2:]) >= patch_px and lr.shape[0] >= 3]
        if not self.sequences:
            raise DatasetError(
                f"no training sequence has three frames of at least {patch_px}x{patch_px} low-resolution px"
            )
        self.patch_px = patch_px
        self.generator = torch.Generator().manual_seed(seed)

    @classmethod
    def from_folder(cls, folder: Path, patch_px: int, seed: int) -> Self:
        """Read the whole training split into memory."""
        entries = [entry for entry in read_manifest(folder) if entry.split == "train"]
        return cls([read_sequence(folder, entry) for entry in entries], patch_px, seed)

    def batch(self, size: int) -> Batch:
        """The next random batch."""
        triplets, targets = zip(*(self._one() for _ in range(size)), strict=True)
        lr = torch.stack(triplets).float() / 255
        target = torch.stack(targets).float() / 255
        return Batch(lr[:, 0], lr[:, 1], lr[:, 2], target)

    def _one(self) -> tuple[Tensor, Tensor]:
        lr, hr = self.sequences[self._below(len(self.sequences))]
        t = 1 + self._below(lr.shape[0] - 2)
        y = self._below(lr.shape[2] - self.patch_px + 1)
        x = self._below(lr.shape[3] - self.patch_px + 1)
        triplet = lr[t - 1 : t + 2, :, y : y + self.patch_px, x : x + self.patch_px]
        target = hr[t, :, SCALE * y : SCALE * (y + self.patch_px), SCALE * x : SCALE * (x + self.patch_px)]
        if self._below(2):  # Motion looks as natural backwards.
            triplet = triplet.flip(0)
        if self._below(2):
            triplet, target = triplet.flip(-1), target.flip(-1)
        quarter_turns = self._below(4)
        return triplet.rot90(quarter_turns, (-2, -1)), target.rot90(quarter_turns, (-2, -1))

    def _below(self, limit: int) -> int:
        return int(torch.randint(limit, (), generator=self.generator))
