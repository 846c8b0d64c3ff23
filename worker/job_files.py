"""What a job's folder says about how far it has come: the plan, and which segments are there."""

from pydantic import ValidationError

from worker.contract.queue import TaskKind, job_id_of, task_id
from worker.contract.storage import PARTIAL_SUFFIX, JobFolder, JobStorage, process_mark, remove_partial
from worker.plan import Plan


def read_plan(folder: JobFolder) -> Plan | None:
    """None: not planned yet, or by another version of this program: nothing may be built upon that plan."""
    try:
        plan = Plan.model_validate_json(folder.plan.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
    return plan if plan.is_current else None


def finished_segments(plan: Plan, folder: JobFolder) -> dict[int, int]:
    """Index to frames of every segment that is published."""
    return {
        segment.index: segment.frames for segment in plan.segments if plan.segment_file(folder, segment.index).exists()
    }


def segments_from_start(plan: Plan, folder: JobFolder) -> int:
    """How many segments are finished from the first on, without a gap."""
    finished = finished_segments(plan, folder)
    return next((index for index in range(len(plan.segments)) if index not in finished), len(plan.segments))


def remove_partial_files(storage: JobStorage, task: str, pid: int) -> None:
    """Remove what process `pid` of this host left behind when it died in this task."""
    folder = storage.folder(job_id_of(task))
    segment_index = task.removeprefix(task_id(TaskKind.SEGMENT, job_id_of(task), 0)[:-5])
    started = f"segments/{segment_index}.*" if segment_index.isdigit() else "*"
    for name in (started, "caged", "live/*"):
        for partial in folder.path.glob(f"{name}.{process_mark(pid)}.*{PARTIAL_SUFFIX}"):
            remove_partial(partial)
