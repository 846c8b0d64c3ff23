"""What can go wrong, each as a function that does it, mends what only an operator could, and times the recovery."""

import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from os import kill

from tests.chaos.cluster import Cluster, Host, task_of, wait_for

MOST_HITS = 2
"""A task that loses its worker for the third time rightly fails its job: nothing is hit more often than this."""


@dataclass
class Chaos:
    """The cluster, the dice, and what was hit so far."""

    cluster: Cluster
    chance: random.Random
    lease_seconds: float
    hits: Counter[str] = field(default_factory=Counter)
    hit_at: list[tuple[str, float]] = field(default_factory=list)
    """Tasks that lost their worker, and when."""

    def victims(self, host: Host | None = None) -> dict[str, tuple[str, int]]:
        """Executions under way that may be hit: of segments, on any host or on one."""
        pids = host.pids() if host else None
        under_way = self.cluster.under_way()
        here = {execution: at for execution, at in under_way.items() if pids is None or at[1] in pids}
        spared = any(self.hits[task_of(execution)] >= MOST_HITS for execution in here)
        if host and spared:  # all on a host are hit together
            return {}
        return {
            execution: at
            for execution, at in here.items()
            if "-segment-" in execution and self.hits[task_of(execution)] < MOST_HITS
        }

    def recovery(self, executions: list[str], since: float) -> float:
        """Hit these; return the seconds until every one of their tasks was begun anew."""
        for execution in executions:
            self.hits[task_of(execution)] += 1
            self.hit_at.append((task_of(execution), since))
        for execution in executions:
            task = task_of(execution)
            wait_for(f"{task} to be begun again", lambda task=task: self._is_cared_for(task, since))  # type: ignore[misc]
        return time.monotonic() - since

    def _is_cared_for(self, task: str, since: float) -> bool:
        """Begun again, or finished: by one whom we did not see at it, as its file was there already."""
        return self.cluster.watched.begun_since(task, since) or self.cluster.is_finished(task)

    def progress(self) -> float:
        """Return the seconds until a task is begun that nobody was at before."""
        before = {execution for executions in self.cluster.watched.begun.values() for execution in list(executions)}

        def something_new() -> bool:
            return any(set(executions) - before for executions in list(self.cluster.watched.begun.values()))

        return wait_for("anything to go on", something_new)


def kill_a_worker(chaos: Chaos) -> float:
    """SIGKILL of one worker process, as the kernel does when memory is short."""
    wait_for("a segment under way", chaos.victims)
    time.sleep(chaos.chance.uniform(0, 0.5))
    while True:
        wait_for("a segment under way", chaos.victims)
        for execution, (_, pid) in sorted(chaos.victims().items(), key=lambda _: chaos.chance.random()):
            # Held still until it is certain what it is at: the segment may have ended since we looked.
            try:
                kill(pid, signal.SIGSTOP)
            except ProcessLookupError:  # ended of itself, as after a freeze, and not yet missed
                time.sleep(0.05)
                continue
            if execution in chaos.victims():
                killed_at = time.monotonic()
                kill(pid, signal.SIGKILL)
                return chaos.recovery([execution], killed_at)
            kill(pid, signal.SIGCONT)


def kill_a_host(chaos: Chaos) -> float:
    """SIGKILL of a supervisor and all its processes at once; the machine comes back later."""
    host, executions, killed_at = killed_host(chaos)
    try:
        return chaos.recovery(executions, killed_at)
    finally:
        host.start()
        wait_for("the host's workers", lambda: chaos.cluster.workers_on(host))


def set_a_clock(chaos: Chaos) -> float:
    """A whole machine dies, and comes back at once with a clock that is wrong by up to an hour."""
    host, executions, killed_at = killed_host(chaos)
    host.start(clock_seconds=chaos.chance.uniform(-3600, 3600))
    wait_for("the host's workers", lambda: chaos.cluster.workers_on(host))
    return chaos.recovery(executions, killed_at)


def freeze_a_host(chaos: Chaos) -> float:
    """SIGSTOP of a whole machine for longer than the lease: when it wakes, its work belongs to another."""
    host = chaos.chance.choice(chaos.cluster.hosts)
    executions, frozen_at = held_still(chaos, host)
    try:
        return chaos.recovery(executions, frozen_at)
    finally:
        host.signal(signal.SIGCONT)
        wait_for("the host's workers", lambda: chaos.cluster.workers_on(host))


def killed_host(chaos: Chaos) -> tuple[Host, list[str], float]:
    """Kill all of a machine in the middle of segments; return it, their executions, and when that began."""
    host = chaos.chance.choice(chaos.cluster.hosts)
    executions, killed_at = held_still(chaos, host)
    host.signal(signal.SIGKILL)
    assert host.process is not None
    host.process.wait()
    return host, executions, killed_at


def held_still(chaos: Chaos, host: Host) -> tuple[list[str], float]:
    """Stop all of a machine in the middle of segments; return their executions, and since when they are held."""
    while True:
        wait_for("a segment under way on this host", lambda: chaos.victims(host))
        host.signal(signal.SIGSTOP)
        held_at = time.monotonic()
        if executions := list(chaos.victims(host)):
            return executions, held_at
        host.signal(signal.SIGCONT)


def kill_redis(chaos: Chaos) -> float:
    """SIGKILL of Redis; it comes back on its append-only file after a moment."""
    wait_for("a segment under way", chaos.victims)
    chaos.cluster.kill_redis()
    time.sleep(chaos.chance.uniform(0.5, 4))
    chaos.cluster.start_redis()
    return chaos.progress()


def freeze_redis(chaos: Chaos) -> float:
    """SIGSTOP of Redis for twice the lease: connections stay open and nothing answers."""
    wait_for("a segment under way", chaos.victims)
    pid = chaos.cluster.redis_server.pid
    assert pid is not None
    kill(pid, signal.SIGSTOP)
    time.sleep(2 * chaos.lease_seconds)
    kill(pid, signal.SIGCONT)
    return chaos.progress()


def wipe_redis(chaos: Chaos) -> float:
    """FLUSHALL in the middle of everything."""
    wait_for("a segment under way", chaos.victims)
    chaos.cluster.redis.flushall()
    return chaos.progress()


def kill_the_gateway(chaos: Chaos) -> float:
    """SIGKILL of the gateway, most of the time in the middle of an upload; started again at once."""
    wait_for("an upload under way", lambda: list(chaos.cluster.storage.uploads.iterdir()))
    chaos.cluster.kill_gateway()
    killed_at = time.monotonic()
    chaos.cluster.start_gateway()
    return time.monotonic() - killed_at


FAULTS_OF_ALL = frozenset({"Redis killed", "Redis frozen", "Redis wiped"})
"""Faults that any task may have to be begun again for; the others have victims by name."""

FAULTS: dict[str, Callable[[Chaos], float]] = {
    "worker killed": kill_a_worker,
    "host killed": kill_a_host,
    "host killed, back with a wrong clock": set_a_clock,
    "host frozen beyond its lease": freeze_a_host,
    "Redis killed": kill_redis,
    "Redis frozen": freeze_redis,
    "Redis wiped": wipe_redis,
    "gateway killed in uploads": kill_the_gateway,
}
