"""What `vsr prepare` is given: videos, folders of videos, numbered pictures, an index, OpenVid-1M.

Nothing is decoded here. Every video found becomes one `SourceVideo`, in a fixed order.
"""

import csv
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from model.data import SPLITS, DatasetError, Skipped

VIDEO_SUFFIXES = {".mp4", ".mkv", ".mov", ".webm", ".avi", ".m4v", ".mpg", ".wmv", ".ts"}
INDEX = "index.csv"
_INDEX_COLUMNS = {"file", "split", "source", "licence"}
_UNKNOWN_LICENCE = "unknown"

# A clip of OpenVid-1M is named after the video it was cut from: its id of eleven characters, the number of the clip,
# and often the frames kept: `IIvwqskxtdE_0.mp4`, `---_iRTHryQ_13_0to241.mp4`.
_OPENVID_CLIP = re.compile(r"(.{11})_\d+(_\d+to\d+)?")
# Where its own download script lays the csv, seen from the folder that holds the videos too.
_OPENVID_CSV_FOLDERS = (".", "data/train")

_NUMBERED_PICTURE = re.compile(r".*?(\d+)\.png", re.IGNORECASE)


@dataclass(frozen=True)
class SourceVideo:
    """One video, or folder of numbered PNG frames, to take sequences from.

    `source` is what may not lie in two splits; `split` is None where the material does not say. A ready-made sequence
    is taken as it is: once, and in its own size.
    """

    path: Path
    name: str
    source: str
    licence: str = _UNKNOWN_LICENCE
    split: str | None = None
    kind: Literal["video", "pictures"] = "video"
    ready_made: bool = False


def find_sources(locations: list[Path]) -> tuple[list[SourceVideo], list[Skipped]]:
    """Every video below `locations`, and what they name but do not hold.

    A video that is found twice counts once; of two with the same name the second is called `name (2)`. Raises
    DatasetError for a location without any video, or with an index that cannot be understood.
    """
    videos: dict[Path, SourceVideo] = {}
    missing: list[Skipped] = []
    names: dict[str, int] = {}
    for location in locations:
        if not location.exists():
            raise DatasetError(f"{location} does not exist")
        found, not_there = _sources_at(location)
        if not found:
            why = f" ({not_there[0].name}: {not_there[0].reason})" if not_there else ""
            raise DatasetError(f"no video, no folder of numbered PNG frames and no {INDEX} in {location}{why}")
        missing += not_there
        for video in found:
            key = video.path.resolve()
            if key in videos:
                continue
            names[video.name] = number = names.get(video.name, 0) + 1
            videos[key] = video if number == 1 else _renamed(video, number)
    return list(videos.values()), missing


def _renamed(video: SourceVideo, number: int) -> SourceVideo:
    name = f"{video.name} ({number})"
    source = name if video.source == video.name else video.source
    return SourceVideo(video.path, name, source, video.licence, video.split, video.kind, video.ready_made)


def _sources_at(location: Path) -> tuple[list[SourceVideo], list[Skipped]]:
    if location.is_file():
        if location.suffix.lower() == ".csv":
            return _listed_by_openvid(location.parent, [location])
        name = _readable(location.name)
        return [SourceVideo(location, name, name)], []
    if (location / INDEX).is_file():
        return list(_indexed(location)), []
    lists = [
        path
        for folder in _OPENVID_CSV_FOLDERS
        for path in sorted((location / folder).glob("*.csv"))
        if path.is_file() and "video" in _columns(path)
    ]
    if lists:
        return _listed_by_openvid(location, lists)
    return _in_folder(location)


def _in_folder(folder: Path) -> tuple[list[SourceVideo], list[Skipped]]:
    """Every video below the folder, every folder of numbered PNGs and nothing else in it, and what may not be read."""
    videos: list[SourceVideo] = []
    closed: list[Skipped] = []

    def skip(error: OSError) -> None:
        place = Path(error.filename).relative_to(folder).as_posix()
        closed.append(Skipped(_readable(place), error.strerror or str(error)))

    for place, folders, files in os.walk(folder, onerror=skip):
        folders.sort()
        here = Path(place)
        files = [file for file in files if not file.startswith(".")]
        if not folders and files and all(_NUMBERED_PICTURE.fullmatch(file) for file in files):
            name = _readable(folder.name if here == folder else here.relative_to(folder).as_posix())
            videos.append(SourceVideo(here, name, name, kind="pictures"))
            continue
        for file in sorted(files):
            path = here / file
            if path.suffix.lower() in VIDEO_SUFFIXES:
                name = _readable(path.relative_to(folder).as_posix())
                videos.append(SourceVideo(path, name, name))
    return videos, closed


def _readable(name: str) -> str:
    """A file's name as text that can be written down: a disk takes any bytes, of which \ufffd stands for the others."""
    return os.fsencode(name).decode(errors="replace")


def picture_files(folder: Path) -> list[Path]:
    """The frames of a folder of numbered PNGs, by their numbers: 9 comes before 10."""
    numbered = ((_NUMBERED_PICTURE.fullmatch(path.name), path) for path in folder.iterdir())
    return [path for _, path in sorted((int(match[1]), path) for match, path in numbered if match)]


def _indexed(folder: Path) -> Iterator[SourceVideo]:
    """Ready-made sequences, one per line of the index, with their split, source and licence."""
    with _table(folder / INDEX) as rows:
        if missing := _INDEX_COLUMNS - set(rows.fieldnames or ()):
            raise DatasetError(f"{folder / INDEX} lacks the columns {', '.join(sorted(missing))}")
        for row in rows:
            # An empty split is dealt out, as for videos without an index.
            if row["split"] not in (*SPLITS, ""):
                raise DatasetError(
                    f"{folder / INDEX} puts {row['file']} into {row['split']!r}, which is none of train, val and test"
                )
            yield SourceVideo(
                folder / row["file"],
                row["file"],
                row["source"],
                row["licence"],
                row["split"] or None,
                ready_made=True,
            )


def _listed_by_openvid(folder: Path, lists: list[Path]) -> tuple[list[SourceVideo], list[Skipped]]:
    """The videos that the lists' column `video` names, wherever below the folder they lie; few have all of them."""
    there = {path.name: path for path in sorted(folder.rglob("*")) if path.suffix.lower() in VIDEO_SUFFIXES}
    videos: list[SourceVideo] = []
    missing: list[Skipped] = []
    for path in lists:
        if "video" not in _columns(path):
            raise DatasetError(f"{path} has no column 'video'")
        rows = 0
        before = len(videos)
        with _table(path) as lines:
            for row in lines:
                rows += 1
                if row["video"] in there:
                    clip = _OPENVID_CLIP.fullmatch(Path(row["video"]).stem)
                    source = clip[1] if clip else row["video"]
                    videos.append(SourceVideo(there[row["video"]], row["video"], source))
        if absent := rows - (len(videos) - before):
            missing.append(Skipped(path.name, f"{absent} of its {rows} videos are not in {folder.name}"))
    return videos, missing


@contextmanager
def _table(path: Path) -> "Iterator[csv.DictReader[str]]":
    """The rows of a CSV file in UTF-8, with the mark in front of it that Excel makes or without."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as lines:
            yield csv.DictReader(lines)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{path} is not a CSV file in UTF-8: {error}") from error


def _columns(path: Path) -> list[str]:
    """What the first row names; nothing where a file is called .csv but is none."""
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as lines:
        try:
            return next(csv.reader(lines), [])
        except csv.Error:
            return []
