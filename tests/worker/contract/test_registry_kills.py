"""Whoever changes a job may be killed at any moment: of what Redis was told, nothing stays unknown to storage."""

import random
import subprocess
import sys
from pathlib import Path

from redis import Redis

from tests.worker.contract.test_registry import make_record
from worker.contract.registry import JobRegistry
from worker.contract.storage import JobStorage

# Adds one to a figure of the job, over and over, and says each time what it came to.
CHANGER = """
import sys
from pathlib import Path
from redis import Redis
from worker.contract.registry import JobRegistry
from worker.contract.storage import JobStorage

url, folder, job_id = sys.argv[1:]
registry = JobRegistry(Redis.from_url(url), JobStorage(Path(folder)))
while True:
    changed = registry.change(
        job_id, lambda job: job.model_copy(update={"source_size_bytes": job.source_size_bytes + 1})
    )
    print(changed.source_size_bytes, flush=True)
"""


def test_no_change_is_lost_or_made_twice_however_its_makers_are_killed(
    redis: Redis, redis_url: str, tmp_path: Path
) -> None:
    # Given a job that three processes change at the same time
    storage = JobStorage(tmp_path)
    storage.prepare()
    registry = JobRegistry(redis, storage)
    record = make_record().model_copy(update={"source_size_bytes": 0})
    registry.add(record)
    chance = random.Random(5)
    said: list[int] = []
    for _ in range(4):
        changers = [
            subprocess.Popen(
                [sys.executable, "-c", CHANGER, redis_url, str(tmp_path), record.id], stdout=subprocess.PIPE, text=True
            )
            for _ in range(3)
        ]

        # When each of them is killed in the midst of it
        for changer in changers:
            assert changer.stdout
            said += [int(changer.stdout.readline()) for _ in range(chance.randint(1, 30))]
        for changer in changers:
            changer.kill()
            said += [int(line) for line in changer.communicate()[0].split() if line]
        left_unwritten = registry.get(record.id) != storage.read_record(record.id)
        assert not left_unwritten or registry.unwritten_ids() == [record.id]
        settled = registry.settle(record.id)

        # Then Redis and storage agree on a state with every change in it, each made once
        assert settled
        assert settled == storage.read_record(record.id) == registry.get(record.id)
        assert registry.unwritten_ids() == []
        assert len(said) == len(set(said))
        assert max(said) <= settled.source_size_bytes == settled.revision
