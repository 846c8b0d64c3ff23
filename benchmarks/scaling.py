"""One video by one worker and by two, each on a core of its own: two shall take at most 0.55 of one's time.

    .venv/bin/python benchmarks/scaling.py --preset compact --seconds 48 --rounds 2

Brings its own Redis and storage for every run. Each worker is a supervisor with one process and one thread, bound to a
core as `taskset` does, which stands for a machine of its own. Counted is from the job's acceptance to its end: the plan
and the joining, which one worker does, are in it; with two workers on two cores Redis and this program take their part
of both. Ways take turns. The results' bytes are compared.
"""

import argparse
import hashlib
import os
import shutil
import statistics
import sys
import tempfile
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path

if __name__ == "__main__":  # run as a script, the repository is not on the path
    sys.path.insert(0, str(Path(__file__).parents[1]))

from app.embedded_redis import EmbeddedRedis
from tests.end_to_end.conftest import House, Workers, wait_for, write_moving_video
from worker.contract.job import JobOptions, JobStatus
from worker.cpu_environment import CPU_ENVIRONMENT

FRAMES_PER_SECOND = 6  # a segment is 24 frames, four seconds
GIVE_UP_SECONDS = 540.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="compact")
    parser.add_argument("--seconds", type=int, default=48, help="Of the video; four are a segment.")
    parser.add_argument("--size", default="320x180")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    width, height = map(int, options.size.split("x"))
    cores = sorted(os.sched_getaffinity(0))[:2]

    seconds: dict[int, list[float]] = defaultdict(list)
    digests: set[str] = set()
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        clip = write_moving_video(Path(name) / "clip.mp4", options.seconds * FRAMES_PER_SECOND, width, height)
        for _ in range(options.rounds):
            for count in (1, 2):
                folder = Path(name) / "run"
                took, digest = job_seconds(folder, clip, options.preset, cores[:count])
                seconds[count].append(took)
                digests.add(digest)
                shutil.rmtree(folder)

    one, two = (statistics.median(seconds[count]) for count in (1, 2))
    frames = options.seconds * FRAMES_PER_SECOND
    print(f"{options.preset}, {frames} frames of {options.size}, load average {load_before:.1f} before")
    for count, measured in seconds.items():
        print(f"{count} on {count} of the cores   {', '.join(f'{took:.1f}' for took in measured)} s")
    print(f"two against one      {two / one:.3f}")
    print(f"bytes of the results {'all the same' if len(digests) == 1 else 'NOT the same'}")
    if len(digests) > 1:
        raise SystemExit(1)


def job_seconds(folder: Path, clip: Path, preset: str, cores: list[int]) -> tuple[float, str]:
    """From the job's acceptance to its end, with a worker on each of the cores; and the digest of the result."""
    folder.mkdir()
    with ExitStack() as stack:
        server = stack.enter_context(EmbeddedRedis(folder / "redis"))
        house = House(folder / "storage", server.url)
        stack.callback(house.redis.close)
        settings = CPU_ENVIRONMENT | {"VSR_PRESET": preset, "VSR_LOG_LEVEL": "WARNING"}
        everywhere = os.sched_getaffinity(0)
        for core in cores:
            os.sched_setaffinity(0, {core})  # what is started now stays there
            workers = Workers(house, 1, settings)
            os.sched_setaffinity(0, everywhere)
            stack.callback(workers.stop)
        wait_for("the workers", lambda: len(workers.names()) == len(cores))
        job_id = house.submit(clip, preset=preset, options=JobOptions(preset=preset))
        wait_for("the job's end", lambda: house.job(job_id).status.is_final, GIVE_UP_SECONDS)
        job = house.job(job_id)
        if job.status is not JobStatus.SUCCEEDED or job.finished_at is None:
            raise SystemExit(f"the job {job.status}: {job.error}")
        return (job.finished_at - job.created_at).total_seconds(), hashlib.sha256(house.result(job_id)).hexdigest()


if __name__ == "__main__":
    main()
