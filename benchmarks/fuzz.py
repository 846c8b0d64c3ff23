"""Damaged files by the thousand: `python -m benchmarks.fuzz 5000`. See tests/fuzz for what is done to them.

Writes Markdown to standard output: what became of the files, and what must be zero.
"""

import argparse
import platform
import tempfile
import time
from pathlib import Path

from tests.fuzz.corpus import SHARED_CLIPS, samples, write_seeds
from tests.fuzz.trial import Tally, living_children, try_sample
from worker.cage import Cages
from worker.settings import VideoLimits, WorkerSettings

_LARGEST_CLIP_BYTES = 2 * 1024**2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", type=int, nargs="?", default=5000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    limits = VideoLimits(max_frames=1000)
    cages = Cages(WorkerSettings(cage_stall_seconds=60), limits)
    tally, began = Tally(), time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        seeds_folder, folder = Path(name) / "seeds", Path(name) / "job"
        seeds_folder.mkdir()
        seeds = write_seeds(seeds_folder)
        if SHARED_CLIPS.is_dir():
            seeds += [path for path in sorted(SHARED_CLIPS.iterdir()) if path.stat().st_size <= _LARGEST_CLIP_BYTES]
        for number, sample in enumerate(samples(seeds, options.files, options.seed), 1):
            try_sample(sample, cages, folder, limits, tally)
            if number % 500 == 0:
                seconds = time.monotonic() - began
                print(f"<!-- {number} files, {seconds:.0f} s: {dict(tally.outcomes)}, {tally.bugs} -->", flush=True)
    cages.shut()
    print(f"# {options.files} damaged files, seed {options.seed}\n")
    print(
        f"{platform.machine()}, kernel {platform.release()}; {len(seeds)} seeds: {', '.join(p.name for p in seeds)}\n"
    )
    print("| outcome | files |\n| --- | --- |")
    for outcome, count in tally.outcomes.most_common():
        print(f"| {outcome} | {count} |")
    print(f"\nSlowest {tally.slowest_seconds:.1f} s ({tally.slowest}); all {time.monotonic() - began:.0f} s.")
    print(f"\nDeaths of this process: 0. Over 10 s: {len(tally.over_10_seconds)}. Bugs: {len(tally.bugs)}. ", end="")
    print(f"Files left: {len(tally.leftovers)}. Processes left: {len(living_children())}.")
    for line in (*tally.over_10_seconds, *tally.bugs, *tally.leftovers):
        print(f"\n    {line}")
    if tally.over_10_seconds or tally.bugs or tally.leftovers or living_children():
        raise SystemExit(1)


if __name__ == "__main__":
    main()
