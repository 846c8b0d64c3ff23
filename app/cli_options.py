"""What several commands of `vsr` share: options of one name and meaning, and how an interruption ends."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import typer

from app.exit_codes import ExitCode
from app.terminal import print_note
from worker.contract.failure import FailureCode, JobFailureError
from worker.contract.job import Container, VideoCodec
from worker.contract.logs import LogFormat

DeviceName = Literal["auto", "cuda", "cpu"]

PresetOption = Annotated[str, typer.Option(help="Networks and weights: see `vsr weights list`.")]
DeviceOption = Annotated[
    DeviceName | None, typer.Option(help="auto takes a GPU where there is one; cuda never falls back.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
LogFormatOption = Annotated[
    LogFormat | None,
    typer.Option(help="Default: VSR_LOG_FORMAT; else text on a terminal, JSON lines for whatever else reads."),
]
WeightsDirOption = Annotated[Path | None, typer.Option(help="Folder of imported weights (VSR_WEIGHTS_DIR).")]

# --- how the result is made: fields of worker.contract.job.JobOptions; what is left out keeps its default -------------

EncoderPreset = Literal["ultrafast", "veryfast", "faster", "fast", "medium", "slow", "veryslow"]

ContainerOption = Annotated[
    Container | None,
    typer.Option(
        help="File format of the result. Default: by OUT's name, else the source's own where it is one of these."
    ),
]
CodecOption = Annotated[
    VideoCodec | None,
    typer.Option(
        help="Video codec. Default: h264 (hevc for more than 8 bits, av1 in webm, png in zip), or the first that keeps "
        "what that one cannot, such as transparency."
    ),
]
QualityOption = Annotated[
    Literal["small", "balanced", "high", "lossless"] | None,
    typer.Option(help="Quality against size, for every codec. Default: balanced."),
]
CrfOption = Annotated[
    int | None, typer.Option(min=0, max=63, help="Quality in the codec's own numbers, lower is better, for experts.")
]
EncoderPresetOption = Annotated[EncoderPreset, typer.Option(help="Encoder effort: slower gives smaller files.")]
EncoderOptionsOption = Annotated[
    str | None,
    typer.Option(help="More options of the encoder, as tune=film:aq-mode=3. Those that break segments are refused."),
]
DeinterlaceOption = Annotated[
    Literal["auto", "always", "never"] | None,
    typer.Option(help="Default: auto, where the picture's two fields are of different times."),
]
OnErrorOption = Annotated[
    Literal["fail", "conceal"] | None,
    typer.Option(
        help="At a frame that cannot be decoded: fail (the default) names its place and stops; conceal goes on with "
        "what the decoder makes of it, and the report names it."
    ),
]
FrameRateOption = Annotated[
    str | None,
    typer.Option(help="Pictures per second where IN is a folder or zip of pictures, as 24000/1001.", metavar="RATE"),
]
DropUnsupportedOption = Annotated[
    bool,
    typer.Option(
        "--drop-unsupported", help="Go on without what the result cannot hold; otherwise that is refused, by name."
    ),
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace the output if there is such a file.")]
ReuseOption = Annotated[
    bool,
    typer.Option(
        "--reuse", help="Work in tiles, and compute only those that have changed: for recordings of a screen."
    ),
]


def examples(*commands: str) -> str:
    """The end of a command's help: lines to copy."""
    # Typer joins lines that no empty one parts.
    return "\n\n".join(["Examples:" if len(commands) > 1 else "Example:", *(f"$ {command}" for command in commands)])


def said(**options: object) -> dict[str, object]:
    """Those options that were said: the others are left to the defaults of whoever does the work."""
    return {name: value for name, value in options.items() if value is not None}


def container_for(output: Path | None, chosen: Container | None) -> Container | None:
    """The container that OUT's name and --container agree on; None: neither says one.

    Raises `typer.BadParameter` where they contradict each other.
    """
    named = next((one for one in Container if output and output.suffix.lower() == f".{one}"), None)
    if named and chosen and named is not chosen:
        raise typer.BadParameter(f"OUT ends in .{named}, --container says {chosen}: leave one out")
    return chosen or named


def refuse_unwritable(file: Path | None) -> None:
    """Raise `OSError` where a file that is written at the end has no place: hours later is too late."""
    if file is None:
        return
    folder = file.absolute().parent
    number = None
    if file.is_dir():
        number = errno.EISDIR
    elif not folder.is_dir():
        number = errno.ENOENT
    # In the place of one that is there, as /dev/stdout, a report can be written.
    elif not os.access(folder, os.W_OK) and not (file.exists() and os.access(file, os.W_OK)):
        number = errno.EACCES
    if number:
        raise OSError(number, os.strerror(number), str(file))


def refuse_to_replace(output: Path, source: Path | None, *, overwrite: bool) -> None:
    """Raise `JobFailureError` where OUT is the video itself, or another file that nobody said may go."""
    if not output.exists():
        return
    if source and source.samefile(output):
        raise JobFailureError(FailureCode.OUTPUT_EXISTS, f"{output} is the video itself: choose another output")
    if not overwrite:
        raise JobFailureError(
            FailureCode.OUTPUT_EXISTS, f"{output} exists: choose another output, or overwrite it (--overwrite)"
        )


@contextmanager
def interruptible(note: str) -> Iterator[None]:
    """Ctrl-C is a way to end, not an error."""
    try:
        yield
    except KeyboardInterrupt:
        print_note(note)
        raise typer.Exit(ExitCode.INTERRUPTED) from None
