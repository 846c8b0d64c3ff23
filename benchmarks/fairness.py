"""Twenty short jobs beside one long one: how long until each is begun, in segments of the long one.

    .venv/bin/python benchmarks/fairness.py --jobs 20

Brings its own service (`vsr serve`, one worker process) and videos. First all twenty at once, then one after another,
at seeded random moments. The wait is the service's own: from `created_at` to `started_at`, when the video was looked
through and its first segment is in the queue. What the long job has to do with it is how many of its segments ended
meanwhile; the rest is the short jobs' own turns.
"""

import argparse
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx2

if __name__ == "__main__":  # run as a script, the repository is not on the path
    sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.end_to_end.conftest import PRESET, write_moving_video
from tests.end_to_end.test_serve import serving

# At 6 frames per second a segment is 24 frames, 4 seconds.
FRAMES_PER_SECOND = 6
GIVE_UP_SECONDS = 540.0
FINAL = ("succeeded", "failed", "canceled")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=20)
    parser.add_argument("--seconds", type=int, default=10, help="Of each short video.")
    parser.add_argument("--long-seconds", type=int, default=2400, help="Of the long one: it must outlast the others.")
    parser.add_argument("--size", default="192x108")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        width, height = map(int, options.size.split("x"))
        short = write_moving_video(folder / "short.mp4", options.seconds * FRAMES_PER_SECOND, width, height)
        long = write_moving_video(folder / "long.mp4", options.long_seconds * FRAMES_PER_SECOND, width, height)
        quiet = {"VSR_CPU_THREADS": "1", "VSR_LOG_LEVEL": "ERROR"}
        with serving(folder / "data", **quiet) as (url, _), httpx2.Client(base_url=url, timeout=60) as service:
            alone = until_end(service, submit(service, short))
            long_id = submit(service, long)
            segment_seconds = seconds_per_segment(service, long_id)
            together = [submit(service, short) for _ in range(options.jobs)]
            at_once = [until_end(service, job_id) for job_id in together]
            in_turn = []
            for _ in range(options.jobs):
                time.sleep(chance.uniform(0, 2 * segment_seconds))
                in_turn.append(until_end(service, submit(service, short)))
            long_job = service.get(f"/v1/jobs/{long_id}").json()
            ends = segment_ends(folder / "data" / "jobs" / long_id / "segments")

    print(f"load average                   {os.getloadavg()[0]:.1f}")
    print(f"a segment of the long job      {segment_seconds:.2f} s (median, alone)")
    print(f"a short job alone              waits {wait(alone):.2f} s, takes {took(alone):.2f} s")
    for name, jobs in ((f"{options.jobs} at once", at_once), (f"{options.jobs} in turn", in_turn)):
        waits = [wait(job) for job in jobs]
        overtaken = max(
            sum(moment(job["created_at"]) < end < moment(job["started_at"]) for end in ends) for job in jobs
        )
        print(
            f"{name:<30} wait median {statistics.median(waits):.2f} s, max {max(waits):.2f} s"
            f" = {max(waits) / segment_seconds:.1f} segments; of the long job {overtaken} at most ended meanwhile;"
            f" took median {statistics.median(map(took, jobs)):.2f} s"
        )
    print(f"the long job then              {long_job['status']}, {100 * long_job['progress']['fraction']:.0f} % done")
    if long_job["status"] != "running" or any(job["status"] != "succeeded" for job in (*at_once, *in_turn)):
        raise SystemExit("the long job must run beside all the others, and they must succeed")


def segment_ends(folder: Path) -> list[float]:
    """When each finished segment was published. A segment may be several files."""
    ends: dict[str, float] = {}
    for path in folder.glob("[0-9]*"):
        name = path.name.partition(".")[0]
        ends[name] = max(ends.get(name, 0.0), path.stat().st_mtime)
    return list(ends.values())


def wait(job: dict[str, Any]) -> float:
    return moment(job["started_at"]) - moment(job["created_at"])


def took(job: dict[str, Any]) -> float:
    return moment(job["finished_at"]) - moment(job["created_at"])


def moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def submit(service: httpx2.Client, video: Path) -> str:
    with video.open("rb") as file:
        options = {"preset": PRESET, "encoder_preset": "ultrafast"}
        answer = service.post("/v1/jobs", files={"file": (video.name, file)}, data=options)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def until_end(service: httpx2.Client, job_id: str) -> dict[str, Any]:
    job: dict[str, Any] = {}

    def is_final() -> bool:
        job.update(service.get(f"/v1/jobs/{job_id}").json())
        return job["status"] in FINAL

    wait_for(is_final, "the end of a job")
    return job


def seconds_per_segment(service: httpx2.Client, job_id: str) -> float:
    """Of a job that is alone in the service."""

    def done() -> int:
        return int(service.get(f"/v1/jobs/{job_id}").json()["progress"]["segments_done"])

    seconds = []
    for number in range(1, 7):
        wait_for(lambda number=number: done() >= number, "a segment")
        seconds.append(time.monotonic())
    return statistics.median(after - before for before, after in pairwise(seconds))


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + GIVE_UP_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"{what}: not within {GIVE_UP_SECONDS:.0f} s")
        time.sleep(0.05)


if __name__ == "__main__":
    main()
