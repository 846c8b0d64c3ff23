"""The `vsr` command, and the one place where the app, the worker and the model meet.

Each command parses, calls one function of the room that does the work, and prints. Rooms are imported inside the
commands that need them: torch and av take seconds, and the gateway's installation does not have them; the web framework
takes as long as all the rest of `vsr --help`.
"""

import re
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import ValidationError

from app import terminal
from app.cli_benchmark import benchmark_cli
from app.cli_keys import keys_cli
from app.cli_options import (
    CodecOption,
    ContainerOption,
    CrfOption,
    DeinterlaceOption,
    DeviceOption,
    DropUnsupportedOption,
    EncoderOptionsOption,
    EncoderPresetOption,
    FrameRateOption,
    JsonOption,
    OnErrorOption,
    PresetOption,
    QualityOption,
    ReuseOption,
    WeightsDirOption,
    container_for,
    interruptible,
    refuse_unwritable,
)
from app.cli_training import training_cli, weights_cli
from app.exit_codes import CommandError, ExitCode, exit_code_of
from app.terminal import ProgressLine, print_json, print_note, print_result, print_table
from worker.contract.failure import FailureCode, JobFailureError
from worker.contract.job import DEFAULT_PRESET, JOB_ID_PATTERN, Container, JobOptions, JobStatus, PartialResult
from worker.contract.logs import configure_logging
from worker.contract.settings import LogSettings, RedisSettings, StorageSettings

if TYPE_CHECKING:
    from app.client import Client
    from app.schemas import Job
    from app.settings import GatewaySettings
    from worker.contract.report import Report

cli = typer.Typer(
    name="vsr",
    help="Video super-resolution: twice the size, sharper, everything that was not pixels untouched.",
    epilog="Examples:  vsr upscale clip.mp4   |   vsr serve   |   vsr submit clip.mp4 --wait -o big.mp4",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
cli.add_typer(weights_cli, name="weights", no_args_is_help=True)
cli.add_typer(keys_cli, name="keys", no_args_is_help=True)
cli.add_typer(training_cli)
cli.add_typer(benchmark_cli)

UrlOption = Annotated[str | None, typer.Option(help="Address of the service (VSR_URL).")]
JobArgument = Annotated[str, typer.Argument(help="The job's id.", show_default=False)]


# --- one file, here --------------------------------------------------------------------------------------------------


@cli.command(
    epilog="Examples:  vsr upscale holiday.mov   |   vsr upscale old.avi old_2x.mkv --codec hevc --quality high   |   "
    "vsr upscale film.mkv film.mp4 --drop-unsupported --report film.json   |   "
    "vsr upscale clip.mp4 frames/ --drop-unsupported"
)
def upscale(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="IN", help="The video; or a folder or zip of PNG pictures.", exists=True, show_default=False
        ),
    ],
    out: Annotated[
        str | None,
        typer.Argument(
            metavar="[OUT]",
            help="Default: IN with _2x in its name. With a slash at its end: a folder, of PNG pictures.",
            show_default=False,
        ),
    ] = None,
    preset: PresetOption = DEFAULT_PRESET,
    device: DeviceOption = None,
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
    batch: Annotated[int | None, typer.Option(min=1, max=64, help="Frames per network call.")] = None,
    tile: Annotated[
        int | None, typer.Option(min=32, help="Work in tiles of so many source pixels, where memory is short.")
    ] = None,
    weights_dir: WeightsDirOption = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it is another file.")] = False,
    report: Annotated[
        Path | None,
        typer.Option(help="Write the report of what was kept to this file (JSON); `vsr report` shows it."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Upscale one video on this machine, without a server. Interrupted, the same command goes on where it stopped.

    What is not pixels is kept; what the result could not hold is named before any work.
    """
    refuse_unwritable(report)
    from worker.cpu_environment import restart_with_cpu_environment

    # Before torch is loaded, as the supervisor does for its processes.
    restart_with_cpu_environment()
    from worker.local import OutputExistsError, default_output, upscale_file
    from worker.settings import VideoLimits, WorkerSettings

    output = Path(out) if out else None
    container = container_for(output, container)
    # A folder of pictures becomes another one, unless a container is said; OUT/ and --container zip make one of videos.
    unpacked = source.is_dir() and container is None
    if out is not None and out.endswith("/"):
        if container not in (None, Container.ZIP):
            raise typer.BadParameter(f"OUT is a folder, of pictures; --container says {container}: leave one out")
        unpacked, container = True, None
    if output is None:
        output = default_output(source, codec)
        if container:
            output = output.with_name(f"{output.name if source.is_dir() else output.stem}.{container}")
    elif container and output.suffix.lower() != f".{container}":
        unpacked = unpacked or container is Container.ZIP
        output = output if unpacked else output.with_name(f"{output.name}.{container}")
    chosen = {"preset": preset, "device": device, "batch_frames": batch, "tile_px": tile, "weights_dir": weights_dir}
    settings = WorkerSettings.model_validate({name: value for name, value in chosen.items() if value is not None})
    options = JobOptions.model_validate(
        _said(
            preset=preset,
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
        )
    )
    kept = "interrupted: what is finished is kept, the same command goes on from there"
    try:
        with interruptible(kept), ProgressLine("reading", quiet=as_json) as line:
            outcome = upscale_file(
                source,
                output,
                options,
                settings=settings,
                limits=VideoLimits(),
                overwrite=overwrite,
                unpacked=unpacked,
                on_progress=lambda now: line.update(now.frames_done, now.frames_total, label="upscaling"),
            )
    except OutputExistsError as error:
        raise JobFailureError(FailureCode.OUTPUT_EXISTS, str(error)) from error
    if outcome.started_over:
        print_note(f"started over: {outcome.started_over}")
    if report and outcome.report:
        report.write_text(outcome.report.model_dump_json(indent=2) + "\n")
    elif report:
        print_note(f"no report is written to {report}: there is only one of a run, and --overwrite runs again")
    if as_json:
        print_json(
            {
                "output": str(output),
                "already_done": outcome.already_done,
                "resumed_segments": outcome.resumed_segments,
                "report": outcome.report.model_dump(mode="json") if outcome.report else None,
            }
        )
    elif outcome.already_done:
        print_result(f"{output} is already finished: nothing to do")
    else:
        print_result(str(output))
        _note_changes(outcome.report)


def _said(**options: object) -> dict[str, object]:
    """Those options that were said: the others are left to the defaults of whoever does the work."""
    return {name: value for name, value in options.items() if value is not None}


def _note_changes(report: "Report | None") -> None:
    """One line, where there is anything to tell."""
    if report and report.changes:
        print_note(f"not simply kept: {'; '.join(report.changes)}")


@cli.command(name="report", epilog="Examples:  vsr report clip.json   |   vsr report 0mhi6s2k4z1q8w3e5r7t")
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
            content = client.report(report)
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


# --- the service -----------------------------------------------------------------------------------------------------


@cli.command(epilog="Example:  vsr serve --port 8000 --workers 1")
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on (VSR_HOST).")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port (VSR_PORT); 0: any free one.")] = None,
    workers: Annotated[int, typer.Option(min=0, help="Worker processes; 0: one per GPU, else one.")] = 0,
    preset: Annotated[str | None, typer.Option(help="Networks to load at start (VSR_PRESET).")] = None,
    device: DeviceOption = None,
) -> None:
    """Run the whole service on this machine: gateway, workers, courier, and Redis unless VSR_REDIS_URL names one."""
    from app.house import serve_house

    _log_for_people_on_a_terminal()
    chosen = {"--preset": preset, "--device": device, "--workers": workers}
    worker_arguments = [word for name, value in chosen.items() if value for word in (name, str(value))]

    def say_hello(url: str) -> None:
        print_note(f"twostep-vsr is listening at {url}   (Ctrl-C stops it; accepted jobs are kept)")
        print_note(f"try:  curl -F file=@examples/clip.mp4 {url}/v1/jobs")

    serve_house(_gateway_settings(host, port), RedisSettings(), StorageSettings(), worker_arguments, say_hello)


@cli.command()
def gateway(
    host: Annotated[str | None, typer.Option(help="Address to listen on (VSR_HOST).")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port (VSR_PORT); 0: any free one.")] = None,
) -> None:
    """Run the gateway alone. Needs VSR_REDIS_URL, and the workers' storage folder as VSR_STORAGE_DIR."""
    from app.server import serve_gateway

    _log_for_people_on_a_terminal()
    serve_gateway(
        _gateway_settings(host, port),
        RedisSettings(),
        StorageSettings(),
        lambda url: print_note(f"the gateway is listening at {url}"),
    )


@cli.command()
def courier() -> None:
    """Fetch sources and deliver webhooks: all that calls other hosts. Needs VSR_REDIS_URL and VSR_STORAGE_DIR."""
    from app.courier.process import run_courier
    from app.settings import CourierSettings

    _log_for_people_on_a_terminal()
    run_courier(CourierSettings(), RedisSettings(), StorageSettings())


@cli.command()
def worker(
    workers: Annotated[int, typer.Option(min=0, help="Worker processes; 0: one per GPU, else one.")] = 0,
    preset: Annotated[str | None, typer.Option(help="Networks to load at start (VSR_PRESET).")] = None,
    device: DeviceOption = None,
) -> None:
    """Run the workers of this machine. Needs VSR_REDIS_URL, and the gateway's storage folder as VSR_STORAGE_DIR."""
    from worker.settings import VideoLimits, WorkerSettings
    from worker.supervisor import run_worker

    log_settings = _log_for_people_on_a_terminal()
    chosen = {"preset": preset, "device": device}
    settings = WorkerSettings.model_validate({name: value for name, value in chosen.items() if value is not None})
    raise typer.Exit(
        run_worker(settings, RedisSettings(), StorageSettings(), VideoLimits(), log_settings, workers=workers)
    )


def _gateway_settings(host: str | None, port: int | None) -> "GatewaySettings":
    from app.settings import GatewaySettings

    chosen = {"host": host, "port": port}
    return GatewaySettings.model_validate({name: value for name, value in chosen.items() if value is not None})


def _log_for_people_on_a_terminal() -> LogSettings:
    """JSON lines for machines is the default; on a terminal, unless VSR_LOG_FORMAT says otherwise, text."""
    settings = LogSettings()
    if sys.stderr.isatty() and "log_format" not in settings.model_fields_set:
        settings = settings.model_copy(update={"log_format": "console"})
    configure_logging(settings.log_format, settings.log_level)
    return settings


# --- a client of a running service -----------------------------------------------------------------------------------


@cli.command(
    epilog="Examples:  vsr submit clip.mp4 --wait -o clip_2x.mp4   |   "
    "vsr submit film.mkv -o film.mp4 --quality high --drop-unsupported --report film.json"
)
def submit(
    source: Annotated[
        str, typer.Argument(help="The video, or its URL, which the service fetches itself.", show_default=False)
    ],
    wait: Annotated[bool, typer.Option("--wait", help="Wait until the job is done.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Then download the result to this file.")
    ] = None,
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
    if output and container is None:
        names = ", ".join(f".{one}" for one in Container)
        raise JobFailureError(
            FailureCode.UNSUPPORTED_OUTPUT, f"cannot write {output.name}: the name must end in one of {names}"
        )
    options = _said(
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
        if is_url:
            job = client.submit_url(source, options)
        else:
            with ProgressLine("uploading", rate_unit="bytes/s", quiet=as_json) as line:
                job = client.submit(Path(source), options, on_progress=line.update)
        if wait or output or report:
            try:
                job = _wait(client, job.id, quiet=as_json)
            except KeyboardInterrupt:
                client.cancel(job.id)
                print_note(f"canceled job {job.id}")
                raise typer.Exit(ExitCode.INTERRUPTED) from None
        if output and job.status is JobStatus.SUCCEEDED:
            client.download(job.id, output)
        if report and job.status is JobStatus.SUCCEEDED:
            report.write_bytes(client.report(job.id))
        # OUT is only named where it was written.
        downloaded = str(output) if job.status is JobStatus.SUCCEEDED else None
        _print_job(job, as_json=as_json, brief=downloaded if output else job.id)
    _exit_with(job)


@cli.command()
def status(job_id: JobArgument, url: UrlOption = None, as_json: JsonOption = False) -> None:
    """Show a job."""
    with _client(url) as client:
        _print_job(client.get(job_id), as_json=as_json)


@cli.command(name="wait")
def wait_for(job_id: JobArgument, url: UrlOption = None, as_json: JsonOption = False) -> None:
    """Wait until a job is done."""
    with interruptible("the job goes on: see `vsr status`"), _client(url) as client:
        job = _wait(client, job_id, quiet=as_json)
        _print_job(job, as_json=as_json)
    _exit_with(job)


@cli.command()
def download(
    job_id: JobArgument,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Default: the source's name with _2x.")] = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Download a finished result."""
    with _client(url) as client:
        job = client.get(job_id)
        if output is None:
            suffix = job.result.container if job.result else "mp4"
            output = Path(f"{Path(job.source.name).stem}_2x.{suffix}")
        with ProgressLine("downloading", rate_unit="bytes/s", quiet=as_json) as line:
            client.download(job_id, output, on_progress=line.update)
        _print_job(job, as_json=as_json, brief=str(output))


@cli.command()
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
        _print_job(client.cancel(job_id, keep_partial=keep_partial), as_json=as_json)


@cli.command()
def retry(job_id: JobArgument, url: UrlOption = None, as_json: JsonOption = False) -> None:
    """Try a failed or canceled job again. What it had finished is kept."""
    with _client(url) as client:
        _print_job(client.retry(job_id), as_json=as_json)


@cli.command(name="list")
def list_jobs(
    status: Annotated[JobStatus | None, typer.Option(help="Only jobs in this state.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100, help="How many.")] = 20,
    cursor: Annotated[str | None, typer.Option(help="Of the next page, as printed by the one before.")] = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """List jobs, newest first."""
    with _client(url) as client:
        page = client.list(status, limit, cursor)
    if as_json:
        print_json(page.model_dump(mode="json"))
        return
    rows = [[job.id, job.status, f"{job.progress.fraction:.0%}", job.source.name] for job in page.jobs]
    print_table(["job", "status", "done", "source"], rows)
    if page.next_cursor:
        print_note(f"more: vsr list --cursor {page.next_cursor}")


def _client(url: str | None) -> "Client":
    from app.client import Client
    from app.settings import ClientSettings

    settings = ClientSettings()
    return Client(url or settings.url, settings.api_key.get_secret_value() if settings.api_key else None)


def _wait(client: "Client", job_id: str, *, quiet: bool) -> "Job":
    with ProgressLine("queued", quiet=quiet) as line:
        return client.wait(
            job_id,
            on_progress=lambda job: line.update(
                job.progress.frames_done, job.progress.frames_total or None, label=str(job.status)
            ),
        )


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


# --- the door --------------------------------------------------------------------------------------------------------


def _print_version(wanted: bool) -> None:
    if wanted:
        print_result(f"twostep-vsr {version('twostep-vsr')}")
        raise typer.Exit


@cli.callback()
def options_of_all(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options before the command's name."""
    # The service's commands raise this to their own settings; all others only speak up when something is wrong.
    configure_logging("console", "WARNING")


def main() -> None:
    """Run the command. A user's error is one line on standard error and a named exit code; a traceback is a bug."""
    try:
        cli()
    except JobFailureError as failure:
        terminal.print_error(failure.message)
        sys.exit(exit_code_of(failure.code))
    except CommandError as error:
        terminal.print_error(str(error))
        sys.exit(error.exit_code)
    except OSError as error:
        # A folder that is missing or may not be written, a disk that is full: of the machine, with its own words.
        place = f"{error.filename}: " if error.filename else ""
        terminal.print_error(f"{place}{error.strerror or error}")
        sys.exit(ExitCode.SYSTEM)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        terminal.print_error(f"{place}: {first['msg']} (of {error.title})")
        sys.exit(ExitCode.USAGE)


if __name__ == "__main__":
    main()
