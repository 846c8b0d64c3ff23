"""`vsr upscale`: one file on this machine, without server or Redis, by the same plan, segments and assembly."""

import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Lock

import structlog
from pydantic import ValidationError

from worker.assemble import assemble, result_tag
from worker.cage import Decoding, open_decoding
from worker.contract.failure import FailureCode, JobFailureError
from worker.contract.job import Container, JobOptions, Progress, VideoCodec
from worker.contract.report import Report
from worker.contract.storage import JobFolder, fsync_folder, write_atomically
from worker.loaded_models import LoadedModels, usable_device
from worker.opened_source import opened_source
from worker.pipeline import SegmentOrder, render_segments
from worker.plan import SCALE, Plan, make_plan, sha256_of_file
from worker.rendering import Rendering, agreed_rendering, read_rendering, step_down, with_rendering
from worker.settings import VideoLimits, WorkerSettings
from worker.upscaler import Upscaler
from worker.video.containers import holds_codec
from worker.video.mux import segment_maker
from worker.video.png_sequence import files_of_others, read_folder_tag, unpack
from worker.video.png_source import sha256_of_folder
from worker.video.tag import read_tag

log = structlog.get_logger(__name__)

WORKSPACE_SUFFIX = ".vsr-work"
_OTHER_VERSION = "the earlier run was of another version of this program"
_OTHER_NAMES = {".m4v": ".mp4", ".3gp": ".mp4", ".qt": ".mov"}


class OutputExistsError(Exception):
    """The output is there already and is not what this run would make; the message names the way out."""


@dataclass(frozen=True)
class Outcome:
    """What `upscale_file` did."""

    output: Path
    already_done: bool
    """The output was there and is exactly what this run would have made: nothing was done."""
    report: Report | None
    """None when `already_done`."""
    resumed_segments: int = 0
    """Finished segments of an earlier, interrupted run that were used."""
    started_over: str | None = None
    """Why the work of an earlier run could not be used, if there was any."""
    missing_protections: Mapping[str, str] = field(default_factory=dict)
    """What of the cage this system does not give, and why: nobody shall have to guess."""


def default_output(source: Path, codec: VideoCodec | None = None) -> Path:
    """Return `clip_2x.mp4` for `clip.mp4`, and `clip_2x.mkv` for a container that we do not write.

    So too where the container cannot hold the `codec` asked for; pictures go into a zip. A job of the service whose
    source has such a name comes to the same container. For a folder of pictures it is a folder beside it.
    """
    if source.is_dir():
        folder = source.absolute()
        return source.parent / f"{folder.name}_{SCALE}x" if source.name else folder.with_name(f"{folder.name}_{SCALE}x")
    suffix = _OTHER_NAMES.get(source.suffix.lower(), source.suffix)
    container = _container_named(Path(f"_{suffix}"))
    if container is None or (codec is not None and not holds_codec(container, codec)):
        suffix = ".zip" if codec is VideoCodec.PNG else ".mkv"
    return source.with_name(f"{source.stem}_{SCALE}x{suffix}")


def upscale_file(
    source: Path,
    output: Path,
    options: JobOptions,
    *,
    settings: WorkerSettings,
    limits: VideoLimits,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    overwrite: bool = False,
    unpacked: bool = False,
    load_upscaler: Callable[[str], Upscaler] | None = None,
) -> Outcome:
    """Upscale `source`, a video or a sequence of pictures, to `output`, whose suffix says the container.

    `unpacked`: the output is a folder, into which a zip of pictures would be unpacked; a folder that is there already
    says the same. Finished segments are kept in a folder beside the output until all is done, so that an interrupted
    run goes on where it stopped. `load_upscaler` gives the networks of a preset; None: as `settings` say. Raises
    `JobFailureError`, and `OutputExistsError` unless `overwrite`.
    """
    unpacked = unpacked or output.is_dir()
    container = Container.ZIP if unpacked else _container_named(output)
    if container is None:
        known = ", ".join(f".{name}" for name in Container)
        raise JobFailureError(
            FailureCode.UNSUPPORTED_OUTPUT, f"cannot write {output.suffix or 'a file without suffix'}: use {known}"
        )
    options = options.model_copy(update={"container": container})
    # FFmpeg takes what stands before a colon for a protocol, unless the name begins with a slash.
    shown, source, output = output, source.absolute(), output.absolute()
    if source in output.parents:
        raise JobFailureError(
            FailureCode.UNSUPPORTED_OUTPUT, f"{shown} lies in the folder of the source: choose another place"
        )
    there = _tag_of_output(shown, output, source, unpacked=unpacked, overwrite=overwrite)
    workspace = JobFolder(output.with_name(output.name + WORKSPACE_SUFFIX))
    # Before the networks: it starts while they are loaded.
    with closing(open_decoding(settings, limits, reads=(source, workspace.path))) as decoding:
        models = LoadedModels(
            usable_device(settings.device),
            settings.weights_dir,
            settings.tile_px,
            settings.batch_frames,
            settings.precision,
        )

        # A network that the caller brings is taken as it is.
        def upscaler_for(way: Rendering) -> Upscaler:
            if load_upscaler:
                return load_upscaler(options.preset)
            return models.get(options.preset, way, reuse=options.reuse)

        usual = models.usual_rendering_of(reuse=options.reuse)
        fingerprints = {step.way: upscaler_for(step).fingerprint for step in usual.and_smaller()}
        source_sha256 = sha256_of_folder(source) if source.is_dir() else sha256_of_file(source)
        if there is not None and not overwrite:
            made_of = {
                result_tag(source_sha256, options, container, made_by, settings.segment_frames)
                for made_by in fingerprints.values()
            }
            if there in made_of:
                # Of a run that was ended between its result and the clearing up.
                shutil.rmtree(workspace.path, ignore_errors=True)
                return Outcome(shown, already_done=True, report=None)
            raise OutputExistsError(
                f"{shown} exists and was made from another source, or with other options or weights or on another "
                "device: choose another output, or overwrite it (--overwrite)"
            )

        plan, started_over = _plan(
            workspace, source, source_sha256, options, limits, usual, fingerprints, settings.segment_frames, decoding
        )
        missing_protections = decoding.missing()
        opened = opened_source(decoding, source, workspace.pictures, options, limits, _unheard)
        workspace.make_segments()
        if not load_upscaler and read_rendering(workspace) is None:
            width, height = plan.picture.width // SCALE, plan.picture.height // SCALE
            usual = models.beginning(options.preset, width, height, reuse=options.reuse)
        while True:
            rendering = agreed_rendering(workspace, usual)
            progress = _Progress(plan, workspace, on_progress, rendering)
            try:
                _render_missing(plan, workspace, opened, upscaler_for(rendering), rendering, progress, decoding)
                break
            except MemoryError:
                pass
            except JobFailureError as failure:
                if failure.code is not FailureCode.OUT_OF_MEMORY or load_upscaler:
                    raise
            # Here, where the error and with it all that its frames held is gone.
            smaller = step_down(workspace, plan, rendering)
            log.warning("memory_short", rendered=str(rendering), now_rendered=str(smaller))
            models.release_memory()
        result = workspace.result(container)
        with decoding.making(result) as (writer, path):
            report = writer.call(
                assemble,
                plan,
                opened,
                plan.segment_files(workspace),
                path,
                returns=Report,
                on_progress=_unheard,
            )
        report = with_rendering(report, rendering)
        if unpacked:
            _deliver_unpacked(result, output, workspace)
        else:
            result.replace(output)
        fsync_folder(output.parent)
        shutil.rmtree(workspace.path)
        return Outcome(
            shown,
            already_done=False,
            report=report,
            resumed_segments=progress.resumed_segments,
            started_over=started_over,
            missing_protections=missing_protections,
        )


def _render_missing(
    plan: Plan,
    workspace: JobFolder,
    source: Path,
    upscaler: Upscaler,
    rendering: Rendering,
    progress: "_Progress",
    decoding: Decoding,
) -> None:
    missing = [segment for segment in plan.segments if not plan.segment_file(workspace, segment.index).exists()]
    orders = [
        SegmentOrder(
            segment.index,
            plan.segment_file(workspace, segment.index),
            figures=plan.figures_file(workspace, segment.index),
            on_frames_done=partial(progress.frames_done, segment.index),
            on_published=partial(progress.segment_done, segment.index),
        )
        for segment in missing
    ]
    render_segments(plan, orders, source, upscaler, batch_frames=rendering.batch_frames, decode=decoding.frames)


def _plan(
    workspace: JobFolder,
    source: Path,
    source_sha256: str,
    options: JobOptions,
    limits: VideoLimits,
    usual: Rendering,
    fingerprints: Mapping[Rendering, str],
    segment_frames: int | None,
    decoding: Decoding,
) -> tuple[Plan, str | None]:
    """Return the plan of an earlier run if its work can be used; else clear the folder and plan anew, saying why."""
    earlier: Plan | None = None
    why: str | None = None
    if workspace.plan.exists():
        try:
            earlier = Plan.model_validate_json(workspace.plan.read_bytes())
        except ValidationError:
            why = _OTHER_VERSION
    if earlier is not None:
        noted = read_rendering(workspace)
        if noted and noted.way not in fingerprints:  # the user has chosen other batches or tiles since
            workspace.rendering.unlink(missing_ok=True)
        expected = fingerprints.get((noted or usual).way, fingerprints[usual.way])
        makers = {segment_maker(path) for path in earlier.segment_files(workspace) if path.exists()}
        if not earlier.is_current:
            why = _OTHER_VERSION
        elif earlier.source_sha256 != source_sha256:
            why = "the source has changed since the earlier run"
        elif (earlier.options, earlier.segment_frames) != (options, segment_frames):
            why = "the earlier run had other options"
        elif makers - {expected}:
            why = "the earlier run had other weights, or another device or batch"
        else:
            return earlier, None
    if workspace.path.exists():
        shutil.rmtree(workspace.path)
    workspace.path.mkdir(parents=True)
    try:
        plan = decoding.call(
            make_plan,
            source,
            options,
            limits,
            source.suffix,
            opened=opened_source(decoding, source, workspace.pictures, options, limits, _unheard),
            source_sha256=source_sha256,
            segment_frames=segment_frames,
            try_encoder=False,
            returns=Plan,
            on_progress=_unheard,
        )
        plan.demand_usable(options, limits)
    except BaseException:
        shutil.rmtree(workspace.path)
        raise
    write_atomically(workspace.plan, plan.model_dump_json().encode())
    return plan, why


def _unheard() -> None:
    """Progress within a step that the command does not show."""


def _tag_of_output(shown: Path, output: Path, source: Path, *, unpacked: bool, overwrite: bool) -> str | None:
    """Return the mark of what is at `output`, None where there is nothing yet.

    Raises `OutputExistsError` for what is not ours to replace. In a folder only what such a run puts there may be
    replaced, however much the user wants to overwrite.
    """
    if not output.exists() or (unpacked and output.is_dir() and not any(output.iterdir())):
        return None
    if source.samefile(output):
        raise OutputExistsError(f"{shown} is the source itself: choose another output")
    if unpacked:
        if not output.is_dir():
            raise OutputExistsError(f"{shown} is a file: choose another output")
        strangers = files_of_others(output)
        if strangers:
            raise OutputExistsError(f"{shown} holds other files ({strangers[0]}): choose another output")
    tag = read_folder_tag(output) if unpacked else read_tag(output)
    if tag is None and not overwrite:
        raise OutputExistsError(
            f"{shown} exists and was not made by vsr: choose another output, or overwrite it (--overwrite)"
        )
    return tag


def _deliver_unpacked(result: Path, output: Path, workspace: JobFolder) -> None:
    """Put the pictures of a finished zip in the place of `output`: all of them appear at once."""
    fresh = workspace.path / "unpacked"
    if fresh.exists():
        shutil.rmtree(fresh)  # of a run that was killed just here
    fresh.mkdir()
    unpack(result, fresh)
    if output.exists():
        output.rename(workspace.path / "replaced")
    fresh.rename(output)


class _Progress:
    """Adds up what is done and tells it on. Of two segments at a time, as each has a thread that tells of it."""

    def __init__(
        self, plan: Plan, workspace: JobFolder, tell: Callable[[Progress], None], rendering: Rendering
    ) -> None:
        finished = [segment for segment in plan.segments if plan.segment_file(workspace, segment.index).exists()]
        self.resumed_segments = len(finished)
        self._resumed_frames = sum(segment.frames for segment in finished)
        self._now = Progress(
            frames_done=self._resumed_frames,
            frames_total=plan.frames,
            segments_done=len(finished),
            segments_total=len(plan.segments),
            batch_frames=rendering.batch_frames,
            tile_px=rendering.tile_px,
        )
        self._frames_of_segments: dict[int, int] = {}
        self._began = time.monotonic()
        self._telling = Lock()
        self._tell = tell
        tell(self._now)

    def frames_done(self, index: int, in_segment: int) -> None:
        """Tell how many frames of this segment are done."""
        with self._telling:
            self._frames_of_segments[index] = in_segment
            done = sum(self._frames_of_segments.values())
            seconds = time.monotonic() - self._began
            self._now = self._now.model_copy(
                update={
                    "frames_done": self._resumed_frames + done,
                    "fps": done / seconds if seconds > 0 else None,
                }
            )
            self._tell(self._now)

    def segment_done(self, index: int) -> None:
        """Tell that this segment is published."""
        with self._telling:
            self._now = self._now.model_copy(update={"segments_done": self._now.segments_done + 1})
            self._tell(self._now)


def _container_named(path: Path) -> Container | None:
    suffix = path.suffix.lower().lstrip(".")
    return Container(suffix) if suffix in set(Container) else None
