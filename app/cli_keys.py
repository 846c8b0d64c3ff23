"""`vsr keys`: making API keys."""

from typing import Annotated

import typer

from app.cli_options import JsonOption, examples
from app.keys import KeysError, keys_file_line, new_key
from app.terminal import print_json, print_note, print_result
from worker.contract.failure import FailureCode, JobFailureError

keys_cli = typer.Typer(help="API keys: make one for a user of the service.")


@keys_cli.callback()
def keys() -> None:
    """Keeps `new` a word of its own, though it is the only command."""


@keys_cli.command(epilog=examples("vsr keys new studio"))
def new(
    name: Annotated[str, typer.Argument(help="Whose key it is, for you and the log.", show_default=False)],
    as_json: JsonOption = False,
) -> None:
    """Make a key. It is printed this once; the service keeps only its digest."""
    key = new_key()
    try:
        line = keys_file_line(name, key)
    except KeysError as error:
        raise JobFailureError(FailureCode.INVALID_OPTION, str(error)) from error
    if as_json:
        print_json({"key": key, "line": line})
        return
    print_note("the key, which nobody can show again; and the line for the file that VSR_API_KEYS_FILE names:")
    print_result(key)
    print_result(line)
