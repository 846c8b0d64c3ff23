"""How a job's frames go through the networks: how many at a time, whole or in tiles. Of the job, never of one worker.

Both change bits, so all segments of a video must be made alike, by whoever makes them. The first worker to render
writes down how (`rendering.json` beside the plan); all others do the same. Where memory turns out to be too small,
the job goes one step down, for good: what was rendered before is removed, and everything is rendered the smaller way.

Which way a job is begun may depend on the memory that is free at that moment (`beginning`): a job's bytes are a
function of what was agreed, which its report tells.

    read and write, remove, publish: all under one lock per job, so no segment made the old way appears after a step
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from worker.contract.failure import FailureCode, JobFailureError
from worker.contract.queue import TaskQueue
from worker.contract.registry import JobRegistry
from worker.contract.report import RenderingReport, Report
from worker.contract.storage import PARTIAL_SUFFIX, JobFolder, folder_locked, write_atomically
from worker.job_files import finished_segments
from worker.plan import SCALE, Plan

_TILES_PX = (512, 256, 128, 64)
# The lock also guards the record (`JobStorage.locked`): never change a job's record while holding it.
_LOCK_WAIT_SECONDS = 30.0
# Other processes, and what the figures leave out, take the rest.
_SHARE_OF_FREE_MEMORY = 0.8

# For jobs that reuse tiles and name none. Not measured yet: with an overlap of 64 px, tiles of twice that are those of
# which the ones that see a single changed pixel add up to the least.
REUSE_TILE_PX = 128


class RenderingChangedError(Exception):
    """The job went a step down while this segment was made: it has to be made again, the smaller way."""


class Rendering(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    batch_frames: int = Field(ge=1, description="Frames per network call.")
    tile_px: int | None = Field(None, description="Side of a tile in pixels of the source. None: whole frames.")
    backoffs: int = Field(0, description="How many steps down from how the job was begun, as memory was short.")
    made_by: str | None = Field(None, description="Weights and kind of device of all segments (`Upscaler.maker`).")

    @property
    def way(self) -> "Rendering":
        """Batch and tile alone: what decides bits beside the networks."""
        return Rendering(batch_frames=self.batch_frames, tile_px=self.tile_px)

    def smaller(self, longer_side_px: int | None = None) -> "Rendering | None":
        """The next step down: half the batch, else the next smaller tile. None: there is none.

        `longer_side_px`: of the source's frames; tiles larger than that are left out, as they save nothing.
        """
        if self.batch_frames > 1:
            change: dict[str, int] = {"batch_frames": self.batch_frames // 2}
        else:
            bound = min(px for px in (self.tile_px, longer_side_px, 2 * _TILES_PX[0]) if px is not None)
            tiles = [tile_px for tile_px in _TILES_PX if tile_px < bound]
            if not tiles:
                return None
            change = {"tile_px": tiles[0]}
        return self.model_copy(update={**change, "backoffs": self.backoffs + 1})

    def and_smaller(self, longer_side_px: int | None = None) -> Iterator["Rendering"]:
        """Yield this one, and every step below; `longer_side_px` as in `smaller`."""
        step: Rendering | None = self
        while step:
            yield step
            step = step.smaller(longer_side_px)

    def __str__(self) -> str:
        tiles = f"tiles of {self.tile_px} px" if self.tile_px else "whole frames"
        return f"{tiles}, {self.batch_frames} at a time"


def beginning(
    usual: Rendering, free_bytes: int | None, needed_bytes: Callable[[Rendering], int], longer_side_px: int
) -> Rendering:
    """How a job is begun: as usual, or else the largest way below that needs no more than its share of what is free.

    As usual too where nobody knows what is free. Where nothing fits, the smallest way: figures are on the safe side.
    """
    if free_bytes is None:
        return usual
    ways = [step.way for step in usual.and_smaller(longer_side_px)]
    share = _SHARE_OF_FREE_MEMORY * free_bytes
    return next((way for way in ways if needed_bytes(way) <= share), ways[-1])


def read_rendering(folder: JobFolder) -> Rendering | None:
    """None: nothing has been rendered yet."""
    try:
        return Rendering.model_validate_json(folder.rendering.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def agreed_rendering(folder: JobFolder, usual: Rendering, maker: str | None = None) -> Rendering:
    """How this job is rendered, and by whom: as written down, or from now on the `usual` way by `maker`."""
    with folder_locked(folder.path, _LOCK_WAIT_SECONDS):
        agreed = read_rendering(folder)
        if agreed is None or agreed.made_by is None:
            agreed = (agreed or usual).model_copy(update={"made_by": maker})
            write_atomically(folder.rendering, agreed.model_dump_json().encode())
        return agreed


def take_over(folder: JobFolder, seen: Rendering, maker: str) -> None:
    """Have a job that others began made by `maker` from its first segment on, unless somebody else does by now.

    What the others made is removed: no video is joined of two networks' work.
    """
    with folder_locked(folder.path, _LOCK_WAIT_SECONDS):
        if read_rendering(folder) == seen:
            _remove_segments(folder)
            write_atomically(folder.rendering, seen.model_copy(update={"made_by": maker}).model_dump_json().encode())


@contextmanager
def unchanged(folder: JobFolder, rendering: Rendering) -> Iterator[None]:
    """To publish a segment in. Raises `RenderingChangedError` if the job is no longer rendered like this."""
    with folder_locked(folder.path, _LOCK_WAIT_SECONDS):
        if read_rendering(folder) != rendering:
            raise RenderingChangedError
        yield


def step_down(
    folder: JobFolder, plan: Plan, seen: Rendering, lock_wait_seconds: float = _LOCK_WAIT_SECONDS
) -> Rendering:
    """Make the job be rendered a step below `seen`, unless it is by now; return how.

    Removes all segments made the old way. Raises `JobFailureError(OUT_OF_MEMORY)` where there is no smaller way, and
    `StorageBusyError` where another holds the job for too long.
    """
    with folder_locked(folder.path, lock_wait_seconds):
        agreed = read_rendering(folder)
        if agreed not in (None, seen):
            return agreed
        picture = plan.picture
        smaller = seen.smaller(max(picture.width, picture.height) // SCALE)
        if smaller is None:
            raise JobFailureError(
                FailureCode.OUT_OF_MEMORY,
                f"the memory is too small even for {seen}: use a machine with more, or a smaller preset",
            )
        # In this order: dying in between leaves a job with nothing rendered, never one with both.
        _remove_segments(folder)
        write_atomically(folder.rendering, smaller.model_dump_json().encode())
        return smaller


def _remove_segments(folder: JobFolder) -> None:
    for made in folder.segments.iterdir() if folder.segments.exists() else ():
        if made.suffix != PARTIAL_SUFFIX:  # somebody is still at it, and will learn of the change when it is done
            made.unlink(missing_ok=True)
    for still in folder.live.glob("[0-9]*.jpg"):
        still.unlink(missing_ok=True)


def stepped_down_since(folder: JobFolder, moment: float) -> bool:
    """Whether the job has gone a step down after `moment`, in seconds since 1970."""
    rendering = read_rendering(folder)
    return rendering is not None and rendering.backoffs > 0 and folder.rendering.stat().st_mtime >= moment


def start_over(registry: JobRegistry, queue: TaskQueue, plan: Plan, folder: JobFolder, job_id: str) -> None:
    """After `step_down` in the service: count anew, and let the removed segments be handed out again.

    The reconciler does so, as with every segment that is missing and that nobody has. Harmless at any time.
    """
    registry.start_rendering(job_id, plan.frames, len(plan.segments), finished_segments(plan, folder))
    queue.forget_ended_tasks(job_id, len(plan.segments))


def with_rendering(report: Report, rendering: Rendering | None) -> Report:
    """The report, with how its result was rendered."""
    said = RenderingReport(**rendering.model_dump(exclude={"made_by"})) if rendering else None
    return report.model_copy(update={"rendering": said})
