"""The short form of `python -m benchmarks.chaos`: one of every fault that a minute has room for."""

from pathlib import Path

from tests.chaos.cluster import Cluster
from tests.chaos.storm import storm
from tests.chaos.videos import videos_with_results

LEASE_SECONDS = 3.0


def test_no_acknowledged_job_is_lost_doubled_or_changed_whatever_dies(tmp_path: Path) -> None:
    # Given a gateway, a Redis, two hosts and jobs that keep coming
    videos = videos_with_results(tmp_path)
    settings = {"VSR_LEASE_SECONDS": str(LEASE_SECONDS)}
    with Cluster(tmp_path / "cluster", **settings) as cluster:
        # When one thing after the other dies, freezes or forgets
        faults = [
            "worker killed",
            "gateway killed in uploads",
            "Redis killed",
            "worker killed",
            "host frozen beyond its lease",
            "Redis wiped",
            "host killed",
        ]
        outcome = storm(cluster, videos, faults, seed=1, lease_seconds=LEASE_SECONDS)

    # Then every job has ended once, with the bytes of an undisturbed run
    assert outcome.troubles == {}
    assert outcome.ok == outcome.acknowledged > 0
    # And nothing was done again but what the dead were at
    assert max(outcome.faults["worker killed"].segments_redone) <= 1, outcome
