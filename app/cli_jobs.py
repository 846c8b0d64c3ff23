"""The commands that talk to a running service: `vsr submit`, `status`, `wait`, `download`, ... over `app.client`."""

import hashlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer
from pydantic import ValidationError

from app.cli_options import (
    CodecOption,
    ContainerOption,
    CrfOption,
    DeinterlaceOption,
    DropUnsupportedOption,
    EncoderOptionsOption,
    EncoderPresetOption,
    FrameRateOption,
    JsonOption,
    OnErrorOption,
    OverwriteOption,
    PresetOption,
    QualityOption,
    ReuseOption,
    container_for,
    examples,
    interruptible,
    refuse_to_replace,
    refuse_unwritable,
    said,
)
from app.exit_codes import ExitCode
from app.terminal import ProgressLine, print_json, print_note, print_result, print_table
from worker.contract.failure import FailureCode, JobFailureError
from worker.contract.job import DEFAULT_PRESET, JOB_ID_PATTERN, Container, JobStatus, PartialResult

if TYPE_CHECKING:
    from app.client import Client, Options
    from app.schemas import Job

jobs_cli = typer.Typer()

UrlOption = Annotated[str | None, typer.Option(help="Address of the service (VSR_URL).")]
JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="The job's id.", show_default=False)]


@jobs_cli.command(
    epilog=examples(
        "vsr submit clip.mp4 --wait -o clip_2x.mp4",
        "vsr submit film.mkv -o film.mp4 --quality high --drop-unsupported --report film.json",
    )
)
def submit(
    source: Annotated[
        str,
        typer.Argument(
            metavar="FILE|URL", help="The video, or its URL, which the service fetches itself.", show_default=False
        ),
    ],
    wait: Annotated[bool, typer.Option("--wait", help="Wait until the job is done.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Then download the result to this file.")
    ] = None,
    overwrite: OverwriteOption = False,
    preset: PresetOption = DEFAULT_PRESET,
    container: ContainerOption = None,
    codec: CodecOption = None,
    quality: QualityOption = None,
    crf: CrfOption = None,
    encoder_preset: EncoderPresetOption = "medium",
    encoder_options: EncoderOptionsOption = None,
    deinterlace: DeinterlaceOption = None,
    on_error: OnErrorOption = None,
    frame_rate: FrameRateOption = None,
    drop_unsupported: DropUnsupportedOption = False,
    reuse: ReuseOption = False,
    report: Annotated[Path | None, typer.Option(help="Then save the report to this file (JSON).")] = None,
    webhook_url: Annotated[str | None, typer.Option(help="An https URL that the service tells of the end.")] = None,
    reuse_result: Annotated[
        bool, typer.Option("--reuse-result", help="Take an earlier job's result of the same bytes and options.")
    ] = False,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Submit a video to a running service. Ctrl-C while waiting cancels the job."""
    is_url = "://" in source
    if is_url and reuse_result:
        raise typer.BadParameter(
            "the service knows no bytes of a URL before it has fetched it", param_hint="--reuse-result"
        )
    if not is_url and not Path(source).is_file():
        raise typer.BadParameter(f"{source}: there is no such file", param_hint="SOURCE")
    container = container_for(output, container)
    refuse_unwritable(output)
    refuse_unwritable(report)
    if output:  # now, and not when hours of work have gone into what has no place
        refuse_to_replace(output, None if is_url else Path(source), overwrite=overwrite)
    if output and container is None:
        names = ", ".join(f".{one}" for one in Container)
        raise JobFailureError(
            FailureCode.UNSUPPORTED_OUTPUT, f"cannot write {output.name}: the name must end in one of {names}"
        )
    options = said(
        preset=preset,
        container=container,
        codec=codec,
        quality=quality,
        crf=crf,
        encoder_preset=encoder_preset,
        encoder_options=encoder_options,
        deinterlace=deinterlace,
        on_error=on_error,
        frame_rate=frame_rate,
        drop_unsupported=drop_unsupported or None,
        reuse=reuse or None,
        webhook_url=webhook_url,
        reuse_result=reuse_result or None,
    )
    with _client(url) as client:
        job = _create(client, source, cast("Options", options), is_url=is_url, quiet=as_json)
        if wait or output or report:
            try:
                job = _wait(client, job.id, quiet=as_json)
            except KeyboardInterrupt:
                client.jobs.cancel(job.id)
                print_note(f"canceled job {job.id}")
                raise typer.Exit(ExitCode.INTERRUPTED) from None
        if output and job.status is JobStatus.SUCCEEDED:
            _download(client, job.id, output, quiet=as_json)
        if report and job.status is JobStatus.SUCCEEDED:
            report.write_bytes(client.jobs.report(job.id))
        # OUT is only named where it was written.
        downloaded = str(output) if job.status is JobStatus.SUCCEEDED else None
        _print_job(job, as_json=as_json, brief=downloaded if output else job.id)
    _exit_with(job)


@jobs_cli.command(epilog=examples("vsr status JOB", "vsr status JOB --json | jq .progress.fraction"))
def status(job_id: JobArgument, url: UrlOption = None, as_json: JsonOption = False) -> None:
    """Show a job."""
    with _client(url) as client:
        _print_job(client.jobs.get(job_id), as_json=as_json)


@jobs_cli.command(name="wait", epilog=examples("vsr wait JOB && vsr download JOB"))
def wait_for(job_id: JobArgument, url: UrlOption = None, as_json: JsonOption = False) -> None:
    """Wait until a job is done."""
    with interruptible("the job goes on: see `vsr status`"), _client(url) as client:
        job = _wait(client, job_id, quiet=as_json)
        _print_job(job, as_json=as_json)
    _exit_with(job)


@jobs_cli.command(epilog=examples("vsr download JOB -o film_2x.mp4"))
def download(
    job_id: JobArgument,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Default: the source's name with _2x.")] = None,
    overwrite: OverwriteOption = False,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Download a finished result. One that is there already is not fetched again."""
    with _client(url) as client:
        job = client.jobs.get(job_id)
        if output is None:
            suffix = job.result.container if job.result else "mp4"
            output = Path(f"{Path(job.source.name).stem}_2x.{suffix}")
        if not _is_there(output, job):
            if job.result:  # else that is what is to be said
                refuse_to_replace(output, None, overwrite=overwrite)
            _download(client, job_id, output, quiet=as_json)
        _print_job(job, as_json=as_json, brief=str(output))


@jobs_cli.command(epilog=examples("vsr cancel JOB", "vsr cancel JOB --keep-partial && vsr download JOB"))
def cancel(
    job_id: JobArgument,
    keep_partial: Annotated[
        bool, typer.Option("--keep-partial", help="Make a playable result of what is finished from the start.")
    ] = False,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Cancel a job. Canceling it again, or one that has ended, changes nothing."""
    with _client(url) as client:
        _print_job(client.jobs.cancel(job_id, keep_partial=keep_partial), as_json=as_json)


@jobs_cli.command(epilog=examples("vsr retry JOB && vsr wait JOB"))
def retry(job_id: JobArgument, url: UrlOption = None, as_json: JsonOption = False) -> None:
    """Try a failed or canceled job again. What it had finished is kept."""
    with _client(url) as client:
        _print_job(client.jobs.retry(job_id), as_json=as_json)


@jobs_cli.command(epilog=examples("vsr delete JOB"))
def delete(job_id: JobArgument, url: UrlOption = None, as_json: JsonOption = False) -> None:
    """Delete a job with its source and result. One that is under way is canceled first."""
    with _client(url) as client:
        client.jobs.delete(job_id)
    if as_json:
        print_json({"id": job_id, "deleted": True})
    else:
        print_result(job_id)


@jobs_cli.command(name="list", epilog=examples("vsr list --status running", "vsr list --json | jq -r .jobs[].id"))
def list_jobs(
    status: Annotated[JobStatus | None, typer.Option(help="Only jobs in this state.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100, help="How many.")] = 20,
    cursor: Annotated[str | None, typer.Option(help="Of the next page, as printed by the one before.")] = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """List jobs, newest first."""
    with _client(url) as client:
        page = client.jobs.list(status, limit, cursor)
    if as_json:
        print_json(page.model_dump(mode="json"))
        return
    rows = [[job.id, job.status, f"{job.progress.fraction:.0%}", job.source.name] for job in page.jobs]
    print_table(["job", "status", "done", "source"], rows)
    if page.next_cursor:
        print_note(f"more: vsr list --cursor {page.next_cursor}")


@jobs_cli.command(name="report", epilog=examples("vsr report clip.json", "vsr report JOB"))
def show_report(
    report: Annotated[
        str,
        typer.Argument(metavar="JOB|FILE", help="A job of the service, or what --report wrote.", show_default=False),
    ],
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what became of everything in the source: kept, converted or dropped, and why; quality and speed."""
    from app.report_page import print_report
    from worker.contract.report import Report

    if re.fullmatch(JOB_ID_PATTERN, report) and not Path(report).exists():
        with _client(url) as client:
            content = client.jobs.report(report)
    elif Path(report).is_file():
        content = Path(report).read_bytes()
    else:
        raise JobFailureError(FailureCode.INVALID_OPTION, f"{report} is neither a file nor the id of a job")
    if as_json:
        sys.stdout.write(content.decode())
        return
    try:
        print_report(Report.model_validate_json(content))
    except ValidationError:
        raise JobFailureError(
            FailureCode.INVALID_OPTION,
            f"{report} is no report of this version: --json prints one of another version as it is",
        ) from None


def _client(url: str | None) -> "Client":
    from app.client import Client
    from app.settings import ClientSettings

    settings = ClientSettings()
    key = settings.api_key.get_secret_value() if settings.api_key else None
    return Client(url or settings.url, key, uploads_dir=settings.uploads_dir.expanduser())


def _create(client: "Client", source: str, options: "Options", *, is_url: bool, quiet: bool) -> "Job":
    if is_url:
        return client.jobs.create(source, **options)
    kept = "interrupted: what has arrived is kept, the same command goes on from there"
    with interruptible(kept), ProgressLine("uploading", rate_unit="MB/s", quiet=quiet) as line:
        return client.jobs.create(Path(source), _in_megabytes(line), **options)


def _in_megabytes(line: ProgressLine) -> Callable[[int, int], None]:
    return lambda done, total: line.update(done / 1e6, total / 1e6)


def _wait(client: "Client", job_id: str, *, quiet: bool) -> "Job":
    with ProgressLine("queued", quiet=quiet) as line:

        def show(job: "Job") -> None:
            label = f"waiting, number {job.queue_position} in the queue" if job.queue_position else str(job.status)
            line.update(job.progress.frames_done, job.progress.frames_total or None, label=label)

        return client.jobs.wait(job_id, show)


def _download(client: "Client", job_id: str, output: Path, *, quiet: bool) -> None:
    kept = "interrupted: what has arrived is kept, `vsr download` goes on from there"
    with interruptible(kept), ProgressLine("downloading", rate_unit="MB/s", quiet=quiet) as line:
        client.jobs.download(job_id, output, _in_megabytes(line))


def _is_there(output: Path, job: "Job") -> bool:
    """Whether the file is the job's result already."""
    if job.result is None or not output.is_file() or output.stat().st_size != job.result.size_bytes:
        return False
    with output.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == job.result.sha256


_PARTIAL_RESULT_WORDS = {
    PartialResult.BEING_MADE: "what was finished is being put together: vsr download has it in a moment",
    PartialResult.KEPT: "what was finished from the start is kept: vsr download",
    PartialResult.NOTHING_FINISHED: "nothing was finished that could be kept",
    PartialResult.FAILED: "what was finished could not be put together",
}


def _print_job(job: "Job", *, as_json: bool, brief: str | None = None) -> None:
    if as_json:
        print_json(job.model_dump(mode="json"))
    elif brief and job.error is None:
        print_result(brief)
    else:
        progress = job.progress
        facts = [f"{job.id}  {job.status}  {progress.frames_done} of {progress.frames_total} frames"]
        facts += [f"waiting, number {job.queue_position} in the queue"] if job.queue_position else []
        facts += [f"{progress.fps:.1f} frames/s, {progress.eta_seconds or 0:.0f} s left"] if progress.fps else []
        facts += [f"{job.error.code}: {job.error.message}"] if job.error else []
        facts += [_PARTIAL_RESULT_WORDS[job.partial_result]] if job.partial_result else []
        print_result("\n    ".join(facts))


def _exit_with(job: "Job") -> None:
    if job.status in (JobStatus.FAILED, JobStatus.CANCELED):
        raise typer.Exit(ExitCode.JOB_FAILED)
