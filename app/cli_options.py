"""What several commands of `vsr` share: options of one name and meaning, and how an interruption ends."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import typer

from app.exit_codes import ExitCode
from app.terminal import print_note

DeviceName = Literal["auto", "cuda", "cpu"]

PresetOption = Annotated[str, typer.Option(help="Networks and weights: see `vsr weights list`.")]
DeviceOption = Annotated[
    DeviceName | None, typer.Option(help="auto takes a GPU where there is one; cuda never falls back.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
WeightsDirOption = Annotated[Path | None, typer.Option(help="Folder of imported weights (VSR_WEIGHTS_DIR).")]


@contextmanager
def interruptible(note: str) -> Iterator[None]:
    """Ctrl-C is a way to end, not an error."""
    try:
        yield
    except KeyboardInterrupt:
        print_note(note)
        raise typer.Exit(ExitCode.INTERRUPTED) from None
