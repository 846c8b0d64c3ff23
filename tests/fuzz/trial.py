"""One damaged file through everything that reads it: planned, and where it is accepted, its frames decoded."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.fuzz.corpus import Sample
from worker.cage import Cage, Cages
from worker.contract.failure import FailureCode, JobFailureError
from worker.contract.job import JobOptions
from worker.plan import Plan, make_plan
from worker.settings import VideoLimits

OPTIONS = JobOptions(drop_unsupported=True)


@dataclass
class Tally:
    """What became of the files."""

    outcomes: Counter[str] = field(default_factory=Counter)
    """By failure code, or "accepted"; "undecodable" was accepted and lost its way later, "bug" is ours."""
    bugs: list[str] = field(default_factory=list)
    slowest_seconds: float = 0.0
    slowest: str = ""
    over_10_seconds: list[str] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)


def try_sample(sample: Sample, cages: Cages, folder: Path, limits: VideoLimits, tally: Tally) -> None:
    """Give one file to one cage, as a worker does with a job."""
    folder.mkdir(exist_ok=True)  # the same for all files: it is this very folder that the cage may enter
    source = folder / "source"
    source.write_bytes(sample.content)
    began = time.monotonic()
    cage = cages.of(folder)
    try:
        plan = cage.call(make_plan, source, OPTIONS, limits, try_encoder=False, returns=Plan, on_progress=_unheard)
        plan.demand_usable(OPTIONS, limits)
    except JobFailureError as failure:
        outcome = failure.code.value
    except Exception as error:  # noqa: BLE001  # to be counted
        outcome = "bug"
        tally.bugs.append(f"{sample.name}: {str(error)[-600:]}")
    else:
        outcome = _decoded(cage, plan, source, limits, sample, tally)
    seconds = time.monotonic() - began
    tally.outcomes[outcome] += 1
    if seconds > tally.slowest_seconds:
        tally.slowest_seconds, tally.slowest = seconds, sample.name
    if seconds > 10:
        tally.over_10_seconds.append(f"{sample.name}: {seconds:.1f} s")
    source.unlink()
    tally.leftovers += [f"{sample.name}: {path}" for path in folder.iterdir()]


def _decoded(cage: object, plan: Plan, source: Path, limits: VideoLimits, sample: Sample, tally: Tally) -> str:
    assert isinstance(cage, Cage)
    try:
        for _ in cage.frames(source, plan.survey, 0, plan.frames, max_pixels=limits.max_pixels):
            pass
    except JobFailureError as failure:
        return FailureCode(failure.code).value if failure.code is FailureCode.DECODER_CRASHED else "undecodable"
    except Exception as error:  # noqa: BLE001  # to be counted
        tally.bugs.append(f"{sample.name}: {str(error)[-600:]}")
        return "bug"
    return "accepted"


def living_children() -> set[int]:
    """Processes that this one has started and that have not ended."""
    of_threads = (path.read_text().split() for path in Path("/proc/self/task").glob("*/children"))
    return {int(text) for children in of_threads for text in children}


_unheard: Callable[[], None] = lambda: None  # noqa: E731
