"""Whom the kernel ends where memory is short, and how deaths are put down to it."""

import time
from pathlib import Path

from worker.cage import CagedProcess
from worker.oom_kills import OomWatch


def test_what_reads_a_video_goes_before_its_worker() -> None:
    # Given a caged process, which waits for its place
    own = int(Path("/proc/self/oom_score_adj").read_text())
    caged = CagedProcess(4096)
    score = Path(f"/proc/{caged.pid}/oom_score_adj")

    # When it has begun; then the kernel takes it for the larger one
    deadline = time.monotonic() + 30
    while int(score.read_text()) == own and own < 1000:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert int(score.read_text()) == min(1000, own + 500)
    caged.kill()


def test_each_kill_explains_one_death() -> None:
    kills = [7]
    watch = OomWatch(lambda: kills[0])
    assert not watch.explains_a_death()
    kills[0] += 2
    watch.look()
    assert [watch.explains_a_death() for _ in range(3)] == [True, True, False]
