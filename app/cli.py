"""The `vsr` command, and the one place where the app, the worker and the model meet.

Each command parses, calls one function of the room that does the work, and prints. Rooms are imported inside the
commands that need them: torch and av take seconds, and the gateway's installation does not have them; the web framework
takes as long as all the rest of `vsr --help`.
"""

import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import structlog
import typer
from pydantic import ValidationError
from typer.exceptions import TyperException

from app import terminal
from app.cli_benchmark import benchmark_cli
from app.cli_demo import demo_cli
from app.cli_doctor import doctor_cli
from app.cli_jobs import jobs_cli
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
    LogFormatOption,
    OnErrorOption,
    PresetOption,
    QualityOption,
    ReuseOption,
    WeightsDirOption,
    container_for,
    examples,
    interruptible,
    refuse_unwritable,
    said,
)
from app.cli_training import training_cli, weights_cli
from app.exit_codes import CommandError, ExitCode, exit_code_of
from app.terminal import ProgressLine, print_json, print_note, print_result
from worker.contract.failure import FailureCode, JobFailureError
from worker.contract.job import DEFAULT_PRESET, Container, JobOptions
from worker.contract.logs import LogFormat, configure_logging
from worker.contract.settings import LogSettings, RedisSettings, StorageSettings

if TYPE_CHECKING:
    from app.settings import GatewaySettings
    from worker.contract.report import Report

cli = typer.Typer(
    name="vsr",
    help="Video super-resolution: twice the size, sharper, everything that was not pixels untouched.",
    epilog=examples("vsr upscale clip.mp4", "vsr serve", "vsr submit clip.mp4 -o clip_2x.mp4")
    + "\n\nExit codes: 0 done; 1 a bug; 2 wrong usage; 3 bad input; 4 not possible; 5 this machine lacks something; "
    "6 the service cannot be reached or refused; 7 the job ended without a result; 130 interrupted.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
cli.add_typer(weights_cli, name="weights", no_args_is_help=True)
cli.add_typer(keys_cli, name="keys", no_args_is_help=True)
cli.add_typer(jobs_cli)
cli.add_typer(demo_cli)
cli.add_typer(doctor_cli)
cli.add_typer(training_cli)
cli.add_typer(benchmark_cli)

# --- one file, here --------------------------------------------------------------------------------------------------


@cli.command(
    epilog=examples(
        "vsr upscale holiday.mov",
        "vsr upscale old.avi old_2x.mkv --codec hevc --quality high",
        "vsr upscale film.mkv film.mp4 --drop-unsupported --report film.json",
        "vsr upscale clip.mp4 frames/ --drop-unsupported",
    )
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
        said(
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
        if outcome.missing_protections:
            lacking = "; ".join(f"{name}: {found}" for name, found in outcome.missing_protections.items())
            print_note(f"read with less protection than there could be, as `vsr doctor` explains: {lacking}")
        _note_changes(outcome.report)


def _note_changes(report: "Report | None") -> None:
    """One line, where there is anything to tell."""
    if report and report.changes:
        print_note(f"not simply kept: {'; '.join(report.changes)}")


# --- the service -----------------------------------------------------------------------------------------------------


@cli.command(epilog=examples("vsr serve --port 8000 --workers 1"))
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on (VSR_HOST).")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port (VSR_PORT); 0: any free one.")] = None,
    workers: Annotated[int, typer.Option(min=0, help="Worker processes; 0: one per GPU, else one.")] = 0,
    preset: Annotated[str | None, typer.Option(help="Networks to load at start (VSR_PRESET).")] = None,
    device: DeviceOption = None,
    log_format: LogFormatOption = None,
) -> None:
    """Run the whole service on this machine: gateway, workers, courier, and Redis unless VSR_REDIS_URL names one."""
    from app.house import serve_house

    log_settings = _configured_logging(log_format)
    chosen = {"--preset": preset, "--device": device, "--workers": workers}
    worker_arguments = [word for name, value in chosen.items() if value for word in (name, str(value))]

    def say_hello(url: str) -> None:
        if log_settings.log_format == "json":
            structlog.get_logger(__name__).info(f"twostep-vsr is listening at {url}")
            return
        print_note(f"twostep-vsr is listening at {url}   (Ctrl-C stops it; accepted jobs are kept)")
        print_note(f"try:  curl -F file=@examples/clip.mp4 {url}/v1/jobs")

    serve_house(
        _gateway_settings(host, port), RedisSettings(), StorageSettings(), log_settings, worker_arguments, say_hello
    )


@cli.command(epilog=examples("VSR_REDIS_URL=redis://localhost VSR_STORAGE_DIR=/srv/vsr vsr gateway --port 8000"))
def gateway(
    host: Annotated[str | None, typer.Option(help="Address to listen on (VSR_HOST).")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port (VSR_PORT); 0: any free one.")] = None,
    log_format: LogFormatOption = None,
) -> None:
    """Run the gateway alone. Needs VSR_REDIS_URL, and the workers' storage folder as VSR_STORAGE_DIR."""
    from app.server import serve_gateway

    _configured_logging(log_format)
    serve_gateway(
        _gateway_settings(host, port),
        RedisSettings(),
        StorageSettings(),
        lambda url: structlog.get_logger(__name__).info(f"the gateway is listening at {url}"),
    )


@cli.command(epilog=examples("VSR_REDIS_URL=redis://localhost VSR_STORAGE_DIR=/srv/vsr vsr courier"))
def courier(log_format: LogFormatOption = None) -> None:
    """Fetch sources and deliver webhooks: all that calls other hosts. Needs VSR_REDIS_URL and VSR_STORAGE_DIR."""
    from app.courier.process import run_courier
    from app.settings import CourierSettings

    _configured_logging(log_format)
    run_courier(CourierSettings(), RedisSettings(), StorageSettings())


@cli.command(epilog=examples("VSR_REDIS_URL=redis://localhost VSR_STORAGE_DIR=/srv/vsr vsr worker --device cuda"))
def worker(
    workers: Annotated[int, typer.Option(min=0, help="Worker processes; 0: one per GPU, else one.")] = 0,
    preset: Annotated[str | None, typer.Option(help="Networks to load at start (VSR_PRESET).")] = None,
    device: DeviceOption = None,
    log_format: LogFormatOption = None,
) -> None:
    """Run the workers of this machine. Needs VSR_REDIS_URL, and the gateway's storage folder as VSR_STORAGE_DIR."""
    from worker.settings import VideoLimits, WorkerSettings
    from worker.supervisor import run_worker

    log_settings = _configured_logging(log_format)
    chosen = {"preset": preset, "device": device}
    settings = WorkerSettings.model_validate({name: value for name, value in chosen.items() if value is not None})
    raise typer.Exit(
        run_worker(settings, RedisSettings(), StorageSettings(), VideoLimits(), log_settings, workers=workers)
    )


def _gateway_settings(host: str | None, port: int | None) -> "GatewaySettings":
    from app.settings import GatewaySettings

    chosen = {"host": host, "port": port}
    return GatewaySettings.model_validate({name: value for name, value in chosen.items() if value is not None})


def _configured_logging(log_format: LogFormat | None) -> LogSettings:
    """As asked for by --log-format or VSR_LOG_FORMAT; else text for people on a terminal, JSON lines for machines."""
    settings = LogSettings() if log_format is None else LogSettings(log_format=log_format)
    if sys.stderr.isatty() and "log_format" not in settings.model_fields_set:
        settings = settings.model_copy(update={"log_format": "console"})
    configure_logging(settings.log_format, settings.log_level)
    return settings


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
        sys.exit(cli(standalone_mode=False))
    except TyperException as error:
        # Where not even a command was named, the help has been printed, and there is no more to say.
        if message := error.format_message():
            context = getattr(error, "ctx", None)
            terminal.print_error(f"{message.rstrip('.')}. See: {context.command_path if context else 'vsr'} --help")
        sys.exit(ExitCode.USAGE)
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
