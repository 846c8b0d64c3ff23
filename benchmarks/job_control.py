"""How long a cancel and a stop take: seconds until no worker is at the canceled job, until the supervisor has gone.

    .venv/bin/python -m benchmarks.job_control --cancels 50 --stops 10 --seed 1

Every cancel and every stop falls at a random moment of a job. A stop is SIGTERM to the supervisor; what it had
under way must be in the queue again, with no attempt used, and what was finished must not be done again.
"""

import argparse
import random
import statistics
import tempfile
import time
from pathlib import Path

from tests.chaos.cluster import Cluster, wait_for
from tests.end_to_end.conftest import House, write_moving_video
from worker.contract.job import JobStatus


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cancels", type=int, default=50)
    parser.add_argument("--stops", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="vsr-control-") as name:
        folder = Path(name)
        video = write_moving_video(folder / "video.mp4", 240)
        with Cluster(folder / "c", hosts=1) as cluster:
            house = House(cluster.storage.root, cluster.redis_server.url)
            cancels = [_cancel(cluster, house, video, chance) for _ in range(options.cancels)]
            stops = [_stop(cluster, house, video, chance) for _ in range(options.stops)]
    for what, seconds in (("cancel", cancels), ("stop", stops)):
        if seconds:
            p99 = sorted(seconds)[max(0, round(0.99 * len(seconds)) - 1)]
            median = statistics.median(seconds)
            print(f"{what}: {len(seconds)} times, median {median:.2f} s, p99 {p99:.2f} s, max {max(seconds):.2f} s")


def _cancel(cluster: Cluster, house: House, video: Path, chance: random.Random) -> float:
    job_id = house.submit(video)
    wait_for("a segment under way", lambda: any(job_id in execution for execution in cluster.under_way()))
    time.sleep(chance.uniform(0, 1))
    began = time.monotonic()
    house.registry.cancel(job_id)
    wait_for("the worker to leave it", lambda: not any(job_id in execution for execution in cluster.under_way()))
    return time.monotonic() - began


def _stop(cluster: Cluster, house: House, video: Path, chance: random.Random) -> float:
    job_id = house.submit(video)
    host = cluster.hosts[0]
    wait_for("a segment under way", lambda: any(job_id in execution for execution in cluster.under_way()))
    time.sleep(chance.uniform(0, 1))
    seconds = host.stop()
    finished = house.finished_segments(job_id)
    if house.job(job_id).status is JobStatus.RUNNING and {task.retries_left for task in house.queue.rq.jobs} - {3}:
        raise SystemExit("a stop has used up an attempt")
    host.start()
    wait_for("more to be finished, and nothing twice", lambda: _goes_on(house, job_id, finished))
    house.registry.cancel(job_id)
    return seconds


def _goes_on(house: House, job_id: str, finished: dict[str, int]) -> bool:
    """More is finished, and what had been is untouched."""
    now = house.finished_segments(job_id)
    return len(now) > len(finished) and finished.items() <= now.items()


if __name__ == "__main__":
    main()
