"""The training material: sequences of consecutive frames at high and at low resolution, on a disk or in object storage.

A data set is a folder, or any address that fsspec knows (`s3://`, `http://`, `memory://`):

    manifest.json             scale, seed, conditions; per sequence its place, split, source, licence, size and sha256
    shards/00000.tar, ...     per sequence one member `<key>.safetensors`, as webdataset names them, of uint8 RGB:
                              `hr` (T, 3, 2H, 2W), `clean` (T, 3, H, W), and one (T, 3, H, W) for each other condition

Why tar and safetensors: few large files that any object store streams, that `tar` and webdataset read without us, and
whose members are not compressed, so that a patch is read where it lies, by a memory map or a range of bytes.

Decoding video is not done here (`worker/dataset/prepare.py` does); this module starts from decoded frames.
"""

import hashlib
import json
import os
import random
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from tarfile import BLOCKSIZE, USTAR_FORMAT, TarInfo
from typing import IO, TYPE_CHECKING, Any, BinaryIO, Self

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

from model.folder_lock import FolderInUseError, take_lock

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

SCALE = 2
FRAMES_PER_SEQUENCE = 25
CLEAN = "clean"
"""The condition that is always there: the high-resolution frames, shrunk."""

MANIFEST = "manifest.json"
FORMAT_VERSION = 2
"""1 had a file per sequence and no conditions."""

JOURNAL = "unfinished.jsonl"
LOCK = "unfinished.lock"
SHARD_BYTES = 256 * 1024**2

_SHARD_NAME = re.compile(r"shards/\d{5,}\.tar")

SPLITS = ("train", "val", "test")
# The paper's 8:1:1.
VAL_SHARE = TEST_SHARE = 0.1

# Of sequences read over the network; those on a disk are in the system's own cache.
_CACHE_BYTES = 256 * 1024**2


class DatasetError(Exception):
    """A data set that is missing, incomplete or not what its manifest says."""


@dataclass(frozen=True)
class DecodedSequence:
    """Consecutive high-resolution frames of one video, (T, 3, H, W) uint8 RGB, H and W even.

    `source` names the video they come from; all sequences of a source land in one split. `split` is None where the
    material does not say. `degraded` holds, beside the clean ones that are made when writing, low-resolution frames
    (T, 3, H / 2, W / 2) by condition; `degradations` says in words what was drawn for each, as "crf=23".
    """

    name: str
    source: str
    licence: str
    split: str | None
    hr: Tensor
    degraded: Mapping[str, Tensor] = field(default_factory=dict)
    degradations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SequenceEntry:
    """One line of the manifest. Height and width are those of the high resolution; the offset is in the shard."""

    name: str
    shard: str
    offset_bytes: int
    size_bytes: int
    split: str
    source: str
    licence: str
    frames: int
    height: int
    width: int
    sha256: str
    degradations: Mapping[str, str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class PackedSequence:
    """The bytes of a shard's member, and its manifest entry, which lacks its place in a shard yet."""

    entry: SequenceEntry
    conditions: tuple[str, ...]
    content: bytes


@dataclass(frozen=True)
class Skipped:
    """Material that gave no sequence, and why."""

    name: str
    reason: str


def shrink(hr: Tensor) -> Tensor:
    """The low-resolution input of (T, 3, H, W) uint8 frames: (T, 3, H / 2, W / 2) uint8.

    Bicubic with a kernel widened by the scale (antialiased), as MATLAB's imresize and Pillow do, and rounded to 8 bits,
    as real inputs are.
    """
    lr = F.interpolate(hr.float(), scale_factor=1 / SCALE, mode="bicubic", antialias=True)
    return lr.round().clamp(0, 255).to(torch.uint8)


def pack(sequence: DecodedSequence) -> PackedSequence:
    """Make the clean low resolution and lay all out as it is written; DatasetError where a side is odd."""
    frames, _, height, width = sequence.hr.shape
    if height % SCALE or width % SCALE:
        raise DatasetError(f"{sequence.name}: {width}x{height} is not a multiple of {SCALE}")
    tensors = {CLEAN: shrink(sequence.hr), **sequence.degraded}
    # For those who stream the shards without the manifest. One entry only: safetensors does not keep their order.
    about = json.dumps({"name": sequence.name, "source": sequence.source, "licence": sequence.licence})
    content = safetensors.torch.save({"hr": sequence.hr.contiguous(), **tensors}, {"sequence": about})
    entry = SequenceEntry(
        name=sequence.name,
        shard="",
        offset_bytes=0,
        size_bytes=len(content),
        split=sequence.split or "",
        source=sequence.source,
        licence=sequence.licence,
        frames=frames,
        height=height,
        width=width,
        sha256=hashlib.sha256(content).hexdigest(),
        degradations=dict(sequence.degradations),
    )
    return PackedSequence(entry, tuple(tensors), content)


class Dataset:
    """A finished data set, opened for reading. In memory are the manifest and, of a remote one, a small cache."""

    def __init__(
        self,
        location: str,
        seed: int,
        conditions: tuple[str, ...],
        entries: tuple[SequenceEntry, ...],
        skipped: tuple[Skipped, ...],
        recipe: Mapping[str, Any],
    ) -> None:
        self.location = location
        self.scale = SCALE
        self.seed = seed
        self.conditions = conditions
        self.entries = entries
        self.skipped = skipped
        self.recipe = recipe
        self._maps: dict[str, npt.NDArray[np.uint8]] = {}
        self._verified: set[tuple[str, int]] = set()
        self._fetched: OrderedDict[tuple[str, int], npt.NDArray[np.uint8]] = OrderedDict()

    @classmethod
    def open(cls, location: str | Path) -> Self:
        """Read the manifest; DatasetError when there is none, or it is damaged, of another scale or another version."""
        location = str(location)
        path = f"{location}/{MANIFEST}"
        try:
            text = _filesystem(location).cat_file(path) if is_remote(location) else Path(path).read_bytes()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise DatasetError(f"no {MANIFEST} in {location}; make a data set with `vsr prepare`") from error
        try:
            manifest = json.loads(text)
            if manifest.get("version") != FORMAT_VERSION:
                raise DatasetError(
                    f"{path} is of version {manifest.get('version', 1)}, expected {FORMAT_VERSION}: "
                    "remove the data set and make it again with `vsr prepare`"
                )
            if manifest["scale"] != SCALE:
                raise DatasetError(f"{path}: made for scale {manifest['scale']}, expected {SCALE}")
            conditions = tuple(manifest["conditions"])
            entries = tuple(SequenceEntry(**entry) for entry in manifest["sequences"])
            _refuse_paths_elsewhere(conditions, entries)
            skipped = tuple(Skipped(**line) for line in manifest["skipped"])
            return cls(location, manifest["seed"], conditions, entries, skipped, manifest["recipe"])
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DatasetError(f"{path} is damaged: {error!r}") from error

    def split(self, name: str) -> list[SequenceEntry]:
        """The sequences of "train", "val" or "test"; DatasetError when there are none."""
        found = [entry for entry in self.entries if entry.split == name]
        if not found:
            others = [split for split in SPLITS if any(entry.split == split for entry in self.entries)]
            raise DatasetError(f"{self.location} has no sequence in the split {name!r}, only in {' and '.join(others)}")
        return found

    def read(self, entry: SequenceEntry) -> dict[str, Tensor]:
        """`hr`, `clean` and every other condition of a sequence, uint8.

        From a disk they are memory-mapped: what is not touched is not read, and what is written to them stays private.
        The sha256 is compared when an entry is first read. DatasetError when its shard is missing or damaged.
        """
        if is_remote(self.location):
            content = self._fetch(entry)
        else:
            content = self._map(entry)
            if (entry.shard, entry.offset_bytes) not in self._verified:
                self._verify(entry, content)
                self._verified.add((entry.shard, entry.offset_bytes))
        try:
            tensors = tensors_in(content)
        except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
            raise DatasetError(
                f"{self.location}/{entry.shard}: {entry.name} is no safetensors file: {error}"
            ) from error
        high = (entry.frames, 3, entry.height, entry.width)
        low = (entry.frames, 3, entry.height // SCALE, entry.width // SCALE)
        for name, shape in {"hr": high, **dict.fromkeys(self.conditions, low)}.items():
            if name not in tensors or tensors[name].shape != shape:
                raise DatasetError(f"{self.location}/{entry.shard}: {entry.name} has no {name!r} of {shape}")
        return tensors

    def _map(self, entry: SequenceEntry) -> npt.NDArray[np.uint8]:
        if entry.shard not in self._maps:
            try:
                # Copy-on-write: torch has no tensors that may only be read.
                self._maps[entry.shard] = np.memmap(Path(self.location) / entry.shard, dtype=np.uint8, mode="c")
            except FileNotFoundError as error:
                raise DatasetError(f"{self.location}/{entry.shard} is missing") from error
            except ValueError as error:  # an empty file cannot be mapped
                raise DatasetError(f"{self.location}/{entry.shard} is damaged: it is empty") from error
        return self._maps[entry.shard][entry.offset_bytes : entry.offset_bytes + entry.size_bytes]

    def _fetch(self, entry: SequenceEntry) -> npt.NDArray[np.uint8]:
        """The bytes of a sequence over the network, or from the cache of those used last."""
        key = (entry.shard, entry.offset_bytes)
        if key not in self._fetched:
            try:
                fetched = self._remote.cat_file(
                    f"{self.location}/{entry.shard}", entry.offset_bytes, entry.offset_bytes + entry.size_bytes
                )
            except FileNotFoundError as error:
                raise DatasetError(f"{self.location}/{entry.shard} is missing") from error
            if len(fetched) > entry.size_bytes:
                raise DatasetError(f"the server of {self.location} does not serve ranges of bytes, which this needs")
            content = np.frombuffer(bytearray(fetched), dtype=np.uint8)  # a bytearray: torch wants to be able to write
            self._verify(entry, content)
            self._fetched[key] = content
        self._fetched.move_to_end(key)
        while len(self._fetched) > 1 and sum(kept.nbytes for kept in self._fetched.values()) > _CACHE_BYTES:
            self._fetched.popitem(last=False)
        return self._fetched[key]

    @cached_property
    def _remote(self) -> "AbstractFileSystem":
        return _filesystem(self.location)

    def _verify(self, entry: SequenceEntry, content: npt.NDArray[np.uint8]) -> None:
        if hashlib.sha256(content.data).hexdigest() != entry.sha256:
            raise DatasetError(
                f"{self.location}/{entry.shard} is damaged: the sha256 of {entry.name} is not the manifest's"
            )


def _refuse_paths_elsewhere(conditions: Sequence[str], entries: Sequence[SequenceEntry]) -> None:
    """ValueError for names that would lead out of the folders they stand for: a manifest may be a stranger's.

    A condition names a folder of HAT's cached outputs (`model/training/enlarged.py`), a shard a file of the data set.
    """
    for name in conditions:
        if name in ("", ".", "..") or "/" in name or "\0" in name:
            raise ValueError(f"{name!r} is no name of a condition")
    for entry in entries:
        if not _SHARD_NAME.fullmatch(entry.shard):
            raise ValueError(f"{entry.shard!r} is no name of a shard")


def is_remote(location: str) -> bool:
    """Whether this is an address for fsspec, not a folder on a disk."""
    return "://" in location


def _filesystem(location: str) -> "AbstractFileSystem":
    import fsspec  # with torch, but slow to import, and a data set on a disk does without

    try:
        return fsspec.core.url_to_fs(location)[0]
    except (ValueError, ImportError) as error:  # a protocol that nobody knows, or whose package is not installed
        raise DatasetError(f"{location} cannot be opened: {error}") from error


def tensors_in(content: npt.NDArray[np.uint8]) -> dict[str, Tensor]:
    """The tensors of a safetensors file that lies in memory, as views of it: nothing is copied.

    safetensors' own reader can do so for a whole file only. The format: the length of the header as 8 bytes, little
    end first; the header as JSON; the tensors' bytes, whose places in the header count from there.
    """
    header_bytes = int.from_bytes(content[:8].tobytes(), "little")
    header = json.loads(content[8 : 8 + header_bytes].tobytes())
    body = torch.from_numpy(content[8 + header_bytes :])
    tensors = {}
    for name, described in header.items():
        if name == "__metadata__":
            continue
        if described["dtype"] != "U8":
            raise ValueError(f"{name} is {described['dtype']}, expected U8")
        begin, end = described["data_offsets"]
        tensors[name] = body[begin:end].view(described["shape"])
    return tensors


class DatasetWriter:
    """Writes a data set piece by piece. Killed at any point and made anew, it goes on behind what it had committed.

    A context manager: leaving it closes the files, whether the data set is finished or not.

    Until it is finished, a journal beside the shards holds the recipe and one line per commit; what a shard holds
    behind the last commit is cut off. The manifest comes last: a folder without one is not a data set.
    """

    def __init__(
        self,
        folder: Path,
        *,
        seed: int,
        conditions: Sequence[str] = (),
        recipe: Mapping[str, Any] | None = None,
        shard_bytes: int = SHARD_BYTES,
    ) -> None:
        """`conditions` are those beside `clean`; `recipe`, of JSON values, says all else that decides the bytes.

        DatasetError when the folder holds a finished data set, or an unfinished one of another recipe, or another
        process writes one there.
        """
        _refuse_finished(folder)
        (folder / "shards").mkdir(parents=True, exist_ok=True)
        try:
            self._lock = take_lock(folder / LOCK)
        except FolderInUseError as error:
            raise DatasetError(str(error)) from error
        self.folder = folder
        self.entries: list[SequenceEntry] = []
        self.skipped: list[Skipped] = []
        self.commits = 0
        """How many commits have been made, those of earlier runs included."""
        self._seed = seed
        self._conditions = (CLEAN, *conditions)
        self._described: dict[str, Any] = {
            "version": FORMAT_VERSION,
            "scale": SCALE,
            "seed": seed,
            "conditions": list(self._conditions),
            "recipe": dict(recipe or {}),
        }
        self._shard_bytes = shard_bytes
        self._shard_number = 0
        self._shard: BinaryIO | None = None
        try:
            _refuse_finished(folder)  # Again: another process may have finished it just now.
            self._resume()
        except BaseException:
            self._lock.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self._shard is not None:
                self._shard.close()
        finally:
            self._lock.close()

    def commit(self, sequences: Sequence[PackedSequence], skipped: Sequence[Skipped] = ()) -> None:
        """Add sequences, and what gave none; when this returns they are on the disk and will not be asked for again."""
        entries = [self._append(sequence, len(self.entries) + place) for place, sequence in enumerate(sequences)]
        if self._shard is not None:
            _to_disk(self._shard)
        line = {"entries": [asdict(entry) for entry in entries], "skipped": [asdict(one) for one in skipped]}
        with (self.folder / JOURNAL).open("a") as journal:
            journal.write(json.dumps(line) + "\n")
            _to_disk(journal)
        self.entries += entries
        self.skipped += skipped
        self.commits += 1

    def finish(self) -> Dataset:
        """Deal the sources out to the splits and write the manifest; DatasetError when there is no sequence at all."""
        self._close_shard()
        if not self.entries:
            reasons = f": {self.skipped[0].name}: {self.skipped[0].reason}" if self.skipped else ""
            more = f", and {len(self.skipped) - 1} more were skipped" if len(self.skipped) > 1 else ""
            self._remove_what_is_unfinished()
            raise DatasetError(f"no usable sequence was found in the given sources{reasons}{more}")
        entries = split_by_source(self.entries, self._seed)
        manifest = self._described | {
            "skipped": [asdict(one) for one in self.skipped],
            "sequences": [asdict(entry) for entry in entries],
        }
        partial = self.folder / f"{MANIFEST}.partial"
        with partial.open("w") as file:
            file.write(json.dumps(manifest, indent=1) + "\n")
            _to_disk(file)
        partial.replace(self.folder / MANIFEST)
        self._remove_what_is_unfinished()
        return Dataset.open(self.folder)

    def _remove_what_is_unfinished(self) -> None:
        for name in (JOURNAL, LOCK):
            (self.folder / name).unlink()
        self._lock.close()

    def _append(self, sequence: PackedSequence, number: int) -> SequenceEntry:
        if sequence.conditions != self._conditions:
            raise DatasetError(
                f"{sequence.entry.name} has the conditions {sequence.conditions}, not {self._conditions}"
            )
        member = TarInfo(f"{number:08d}.safetensors")
        member.size = len(sequence.content)
        shard = self._shard_with_room_for(member.size)
        shard.write(member.tobuf(USTAR_FORMAT))
        offset_bytes = shard.tell()
        shard.write(sequence.content)
        shard.write(bytes(-member.size % BLOCKSIZE))
        return replace(sequence.entry, shard=_shard_name(self._shard_number), offset_bytes=offset_bytes)

    def _shard_with_room_for(self, size_bytes: int) -> BinaryIO:
        if self._shard is not None and self._shard.tell() > 0 and self._shard.tell() + size_bytes > self._shard_bytes:
            self._close_shard()
            self._shard_number += 1
        if self._shard is None:
            path = self.folder / _shard_name(self._shard_number)
            self._shard = path.open("ab")
        return self._shard

    def _close_shard(self) -> None:
        if self._shard is not None:
            self._shard.write(bytes(2 * BLOCKSIZE))  # how a tar file ends
            _to_disk(self._shard)
            self._shard.close()
            self._shard = None

    def _resume(self) -> None:
        """Take up the journal, if there is one of this recipe, and cut off what was written after its last line."""
        path = self.folder / JOURNAL
        text = path.read_text() if path.exists() else ""
        # The last line may have been cut off by the kill.
        lines = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
        if not lines and any((self.folder / "shards").iterdir()):
            raise DatasetError(f"{self.folder} holds shards that no journal tells about: choose another folder")
        if lines and lines[0] != json.loads(json.dumps(self._described)):
            changed = [name for name, value in _flat(self._described) if value != dict(_flat(lines[0])).get(name)]
            raise DatasetError(
                f"{self.folder} holds an unfinished data set made otherwise ({', '.join(changed)}): "
                "remove it, or choose another folder"
            )
        for line in lines[1:]:
            self.entries += [SequenceEntry(**entry) for entry in line["entries"]]
            self.skipped += [Skipped(**one) for one in line["skipped"]]
            self.commits += 1
        partial = path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(line) + "\n" for line in lines or [self._described]))
        partial.replace(path)
        if self.entries:
            last = self.entries[-1]
            self._shard_number = int(Path(last.shard).stem)
            end = last.offset_bytes + last.size_bytes
            os.truncate(self.folder / last.shard, end + -end % BLOCKSIZE)
        for shard in (self.folder / "shards").iterdir():
            ours = _SHARD_NAME.fullmatch(f"shards/{shard.name}")
            if ours and (not self.entries or int(shard.stem) > self._shard_number):
                shard.unlink()
        if self.entries:
            self._shard = (self.folder / _shard_name(self._shard_number)).open("ab")


def write_dataset(sequences: Iterable[DecodedSequence], folder: Path, seed: int) -> Dataset:
    """Write sequences, all of the same conditions, one by one: any amount of material needs the memory of one."""
    upcoming = iter(sequences)
    first = next(upcoming, None)
    with DatasetWriter(folder, seed=seed, conditions=list(first.degraded) if first else []) as writer:
        for sequence in chain([first] if first else [], upcoming):
            writer.commit([pack(sequence)])
        return writer.finish()


def split_by_source(entries: list[SequenceEntry], seed: int) -> list[SequenceEntry]:
    """Give each source without a split one, 8:1:1 over sources, so that no video lies on both sides.

    Of two sources one is for validation; from three on each split has one at least. A source of which the material
    itself has placed a sequence follows that.
    """
    placed = {entry.source: entry.split for entry in entries if entry.split}
    sources = sorted({entry.source for entry in entries if entry.source not in placed})
    random.Random(seed).shuffle(sources)  # noqa: S311 no secret is drawn
    val = max(round(VAL_SHARE * len(sources)), int(len(sources) >= 2))
    test = max(round(TEST_SHARE * len(sources)), int(len(sources) >= 3))
    train = len(sources) - val - test
    dealt = {
        source: SPLITS[0] if place < train else SPLITS[1] if place < train + val else SPLITS[2]
        for place, source in enumerate(sources)
    }
    return [entry if entry.split else replace(entry, split=(placed | dealt)[entry.source]) for entry in entries]


def _refuse_finished(folder: Path) -> None:
    if (folder / MANIFEST).exists():
        raise DatasetError(f"{folder} holds a data set already: remove it or choose another folder")


def _shard_name(number: int) -> str:
    return f"shards/{number:05d}.tar"


def _to_disk(file: IO[Any]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _flat(described: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """What decides a data set, by name, the recipe's own names among them."""
    return [item for item in described.items() if item[0] != "recipe"] + list(described.get("recipe", {}).items())
