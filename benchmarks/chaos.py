"""Let faults fall on a cluster of real processes for as long as you like, and count what became of every job.

    .venv/bin/python -m benchmarks.chaos --minutes 60 --seed 1
    .venv/bin/python -m benchmarks.chaos --faults "worker killed" --tries 100 --seed 1

Brings its own Redis, gateway and hosts. What falls and when is decided by the seed; what it hits also by the machine.
"""

import argparse
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.chaos.cluster import Cluster
from tests.chaos.faults import FAULTS
from tests.chaos.storm import storm
from tests.chaos.videos import videos_with_results

# Most deaths are of single processes; whole hosts take the whole lease to be missed.
_WEIGHTS = {"worker killed": 10, "gateway killed in uploads": 3, "Redis killed": 2}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--tries", type=int, help="so many faults instead")
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=list(FAULTS), metavar="FAULT")
    parser.add_argument("--hosts", type=int, default=2)
    parser.add_argument("--workers", type=int, default=1, help="processes per host")
    parser.add_argument("--lease", type=float, default=15.0, help="VSR_LEASE_SECONDS")
    parser.add_argument("--pause", type=float, default=8.0, help="seconds between two faults, at most")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()

    with tempfile.TemporaryDirectory(prefix="vsr-chaos-") as name:
        folder = Path(name)
        videos = videos_with_results(folder)
        settings = {"VSR_LEASE_SECONDS": str(options.lease)}
        cluster = Cluster(folder / "c", hosts=options.hosts, workers=options.workers, **settings)
        with cluster:
            faults = _faults(options.faults, options.minutes * 60, options.tries, options.seed)
            outcome = storm(
                cluster,
                videos,
                faults,
                seed=options.seed,
                lease_seconds=options.lease,
                pause_seconds=options.pause,
            )
    print(f"seed {options.seed}, {options.hosts} hosts with {options.workers} workers, lease {options.lease:g} s")
    print(outcome.table())
    for name, trouble in outcome.troubles.items():
        print(f"{name}: {trouble}")
    if outcome.troubles:
        raise SystemExit(1)


def _faults(names: list[str], seconds: float, tries: int | None, seed: int) -> Iterator[str]:
    chance = random.Random(seed)
    deadline = time.monotonic() + seconds
    done = 0
    while done < tries if tries is not None else time.monotonic() < deadline:
        yield chance.choices(names, [_WEIGHTS.get(name, 1) for name in names])[0]
        done += 1


if __name__ == "__main__":
    main()
