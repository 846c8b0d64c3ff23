"""What a worker process counts. Base units, labels of few known values, never a job id.

The processes of one host write into one folder (prometheus_client's multiprocess mode), so that counters survive the
death of a process; their supervisor serves the sum, with its own figures (worker.supervisor_metrics) beside them.
"""

from collections.abc import Sequence

from prometheus_client import Counter, Gauge, Histogram

from worker.contract.failure import FailureCode
from worker.contract.job import JobStatus
from worker.contract.presets import PRESETS, TEST_PRESETS

STAGES = ("plan", "decode", "infer", "hat", "unet", "wait", "encode", "check", "assemble", "preview")
TILE_OUTCOMES = ("computed", "reused")
SEGMENT_OUTCOMES = ("finished", "existing", "given_back", "canceled", "failed")
CAGE_INCIDENTS = ("killed", "crashed", "too_demanding", "astray")

JOBS_FINISHED = Counter(
    "vsr_jobs_finished_total",
    "Jobs that ended here: succeeded (no reason), or failed with the reason's code.",
    ["status", "reason"],
)
JOB_DURATION_SECONDS = Histogram(
    "vsr_job_duration_seconds",
    "From the start of a job to its end.",
    ["preset"],
    buckets=(1, 5, 15, 60, 300, 900, 1800, 3600, 7200, 14400),
)
JOB_WAIT_SECONDS = Histogram(
    "vsr_job_wait_seconds", "From accepting a job to its start.", buckets=(0.1, 1, 5, 15, 60, 300, 900, 3600)
)
FRAMES = Counter("vsr_frames_total", "Frames upscaled, counted again when a segment is redone.", ["preset"])
OUTPUT_PIXELS = Counter("vsr_output_pixels_total", "Pixels of the upscaled frames.", ["preset"])
STAGE_DURATION_SECONDS = Histogram(
    "vsr_stage_duration_seconds",
    "Time spent in one stage of a segment (decode, infer, encode, check, which overlap; hat and unet are parts of "
    "infer; wait: the device had nothing to do, so that infer / (infer + wait) is how busy it was) or of a job (plan, "
    "assemble, preview).",
    ["stage", "preset"],
    buckets=(0.01, 0.05, 0.1, 0.5, 1, 2, 5, 10, 20, 30, 60, 120),
)
BATCH_FRAMES = Histogram("vsr_batch_frames", "Frames in one call of the networks.", buckets=(1, 2, 4, 8, 16, 32, 64))
BATCH_BACKOFFS = Counter("vsr_batch_backoffs_total", "Times that memory was short and smaller batches were tried.")
TILE_BACKOFFS = Counter("vsr_tile_backoffs_total", "Times that memory was short and smaller tiles were tried.")
TILES = Counter("vsr_tiles_total", "Tiles of jobs that reuse what has not changed (`reuse`).", ["outcome"])
SEGMENTS = Counter("vsr_segments_total", "Segment tasks by how they ended.", ["outcome"])
MODEL_LOAD_SECONDS = Gauge(
    "vsr_model_load_seconds", "Time that loading a model took, the latest.", multiprocess_mode="livemax"
)
MODEL_INFO = Gauge(
    "vsr_model_info", "1 for each model in a worker's memory.", ["preset", "device"], multiprocess_mode="livemax"
)
CAGE_PROTECTION = Gauge(
    "vsr_cage_protection",
    "1 for each protection in force around the process that reads videos; 0: the log says why not.",
    ["protection"],
    multiprocess_mode="livemin",
)
CAGE_INCIDENTS_SEEN = Counter(
    "vsr_cage_incidents_total",
    "What befell processes that read videos: killed (from outside; what it did is done again), crashed (the decoder), "
    "too_demanding (too much memory, processor time, or no progress), astray (it said what it cannot say).",
    ["incident"],
)


def start_at_zero() -> None:
    """Make every known series exist before its first event: a rate over a series that appears with 1 misses that 1."""
    JOBS_FINISHED.labels(status=JobStatus.SUCCEEDED, reason="")
    for code in FailureCode:
        JOBS_FINISHED.labels(status=JobStatus.FAILED, reason=code)
    _touch(SEGMENTS, SEGMENT_OUTCOMES)
    _touch(TILES, TILE_OUTCOMES)
    _touch(CAGE_INCIDENTS_SEEN, CAGE_INCIDENTS)


def start_preset_at_zero(preset: str) -> None:
    """The same for the series of one preset, when it is loaded: most workers never load another."""
    for stage in STAGES:
        STAGE_DURATION_SECONDS.labels(stage, preset)
    for family in (JOB_DURATION_SECONDS, FRAMES, OUTPUT_PIXELS):
        family.labels(preset)


def preset_label(preset: str) -> str:
    """The label's value for a job's preset: one of few, whatever a record says."""
    return preset if preset in PRESETS or preset in TEST_PRESETS else "unknown"


def _touch(family: Counter | Histogram, values: Sequence[str]) -> None:
    for value in values:
        family.labels(value)
