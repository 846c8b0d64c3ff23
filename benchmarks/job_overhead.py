"""What a job of the service costs beside its segments, on an idle service, and where that goes.

    .venv/bin/python benchmarks/job_overhead.py --jobs 20

Brings its own service (`vsr serve`, one worker process) and a video of one segment, rendered without networks. The
process that joins the segments is made ready beside the first one: the finish waits for it after a tiny segment, and
not after one of half a second. Jobs go one after another. From the worker's log and the job's own times:

    accept     from the first byte of the request to the job's creation
    plan       from there until the source is looked through, segments are laid out and the first is in the queue
    turn       until the segment has begun: a turn of the queue
    finish     from the segment's publication to the job's end: joining, reading back, comparing, the report
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import astuple, dataclass, fields
from datetime import datetime
from pathlib import Path

import httpx2

if __name__ == "__main__":  # run as a script, the repository is not on the path
    sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.end_to_end.conftest import write_moving_video
from tests.end_to_end.test_serve import serving
from worker.contract.presets import REPEAT_PIXELS

PAUSE_SECONDS = 1.0  # for what is made ready for the next job


@dataclass(frozen=True)
class Overhead:
    """Milliseconds."""

    accept: float
    plan: float
    turn: float
    finish: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=20)
    parser.add_argument("--frames", type=int, default=24, help="240 at most: of one segment, at 60 a second.")
    parser.add_argument("--size", default="64x48")
    parser.add_argument("--verbose", action="store_true", help="Print each job too.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        width, height = map(int, options.size.split("x"))
        clip = write_moving_video(folder / "clip.mp4", options.frames, width, height, rate=60)
        logged = {"VSR_LOG_FORMAT": "json", "VSR_LOG_LEVEL": "INFO"}
        with serving(folder / "data", **logged) as (url, _), httpx2.Client(base_url=url) as service:
            run_job(service, clip)  # the first of a worker loads what the others find loaded
            sent = [run_job(service, clip) for _ in range(options.jobs)]
        lines = [json.loads(line) for line in (folder / "serve.log").read_text().splitlines() if line.startswith("{")]

    measured = [overhead(job, sent_at, lines) for job, sent_at in sent]
    totals = [sum(astuple(one)) for one in measured]
    if options.verbose:
        for one in measured:
            print(one)
    print(f"{options.jobs} jobs of one segment, one after another; load average {os.getloadavg()[0]:.1f}")
    print("| ms | median | fastest | slowest |\n| --- | --- | --- | --- |")
    columns = {field.name: [getattr(one, field.name) for one in measured] for field in fields(Overhead)}
    for name, values in (columns | {"all beside segments": totals}).items():
        print(f"| {name} | {statistics.median(values):.0f} | {min(values):.0f} | {max(values):.0f} |")


def run_job(service: httpx2.Client, clip: Path) -> tuple[dict[str, str], float]:
    """The job as it ended, and when its request began."""
    time.sleep(PAUSE_SECONDS)
    sent_at = time.time()
    with clip.open("rb") as file:
        accepted = service.post("/v1/jobs", files={"file": ("clip.mp4", file)}, data={"preset": REPEAT_PIXELS})
    job: dict[str, str] = accepted.raise_for_status().json()
    while job["status"] in ("queued", "running"):
        time.sleep(0.02)
        job = service.get(f"/v1/jobs/{job['id']}").json()
    if job["status"] != "succeeded":
        raise SystemExit(f"the job {job['status']}: {job['error']}")
    return job, sent_at


def overhead(job: dict[str, str], sent_at: float, lines: list[dict[str, object]]) -> Overhead:
    of_job = {line["event"]: line for line in lines if line.get("job_id") == job["id"]}
    segment = of_job["segment_finished"]
    published = moment(str(segment["timestamp"]))
    stages: dict[str, float] = segment["seconds"]  # type: ignore[assignment]
    begun = published - stages["infer"] - stages["wait"]  # the other stages go on beside these
    created, planned = moment(job["created_at"]), moment(str(of_job["job_started"]["timestamp"]))
    ended = moment(job["finished_at"])
    return Overhead(
        accept=1000 * (created - sent_at),
        plan=1000 * (planned - created),
        turn=1000 * (begun - planned),
        finish=1000 * (ended - published),
    )


def moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


if __name__ == "__main__":
    main()
