"""Two commits, measured in turns by the same benchmark in the same Python environment.

    .venv/bin/python benchmarks/compare.py main HEAD --rounds 5 -- app.cli benchmark --json --preset compact

What follows `--` is a module with its arguments, run as `python -m`, that prints JSON; else `vsr benchmark --json`.
Each commit is checked out into a folder that goes away again, and imports its own `app`, `worker` and `model` from
there: that is looked at first, and a side that would import other code is not measured. Of every figure that both
print come the medians over the rounds, the second commit's against the first's, and how far each side's own rounds lie
apart: a ratio within that spread says nothing.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = ("app", "worker", "model")
FIGURES = r"_ms|stage_ms|seconds|per_second|_mib|busy"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", metavar="A")
    parser.add_argument("second", metavar="B")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--figures", default=FIGURES, help="Regular expression for those to show.")
    parser.add_argument("command", nargs="*", metavar="-- MODULE ARGUMENT...")
    words = sys.argv[1:]
    ours, theirs = (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
    options = parser.parse_args(ours)
    command = [sys.executable, "-m", *(theirs or ["app.cli", "benchmark", "--json"])]

    load_before = os.getloadavg()[0]
    measured: dict[str, tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
    with checked_out(options.first) as first, checked_out(options.second) as second:
        for round_number in range(options.rounds):
            sides = [(0, first), (1, second)]
            # Whoever comes second finds a warmer machine, or a more tired one.
            for side, folder in sides if round_number % 2 == 0 else reversed(sides):
                printed = json.loads(run(command, folder))
                for name, value in figures(printed):
                    if re.search(options.figures, name):
                        measured[name][side].append(value)

    print(f"A = {options.first} ({commit(options.first)}), B = {options.second} ({commit(options.second)})")
    print(f"{' '.join(command[1:])}, {options.rounds} rounds in turns, load average {load_before:.1f} before")
    print("\n| figure | A | B | B / A | spread of A | spread of B |\n| --- | --- | --- | --- | --- | --- |")
    for name, (of_first, of_second) in measured.items():
        if of_first and of_second:
            before, after = statistics.median(of_first), statistics.median(of_second)
            ratio = f"{after / before:.3f}" if before else "-"
            print(f"| {name} | {before:.4g} | {after:.4g} | {ratio} | {spread(of_first)} | {spread(of_second)} |")


@contextmanager
def checked_out(revision: str) -> Iterator[Path]:
    """A folder with that commit's files. Raises SystemExit where Python would import others from there."""
    with tempfile.TemporaryDirectory(prefix="vsr-compare-") as name:
        folder = Path(name).resolve() / "checkout"
        git("worktree", "add", "--quiet", "--detach", str(folder), revision)
        try:
            prove = f"import {', '.join(PACKAGES)}; print(*({', '.join(f'{one}.__file__' for one in PACKAGES)},))"
            for file in run([sys.executable, "-c", prove], folder).split():
                if not Path(file).resolve().is_relative_to(folder):
                    raise SystemExit(f"{revision} would import {file}, which is not its own")
            yield folder
        finally:
            git("worktree", "remove", "--force", str(folder))


def run(command: list[str], folder: Path) -> str:
    """What it prints."""
    done = subprocess.run(
        command, cwd=folder, env=os.environ | {"PYTHONPATH": str(folder)}, stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode} in {folder}")
    return done.stdout


def figures(printed: Any, name: str = "") -> Iterator[tuple[str, float]]:  # noqa: ANN401  # any JSON
    """Every number with its place. What stands in a list is named by its own words, as its preset, or by its number."""
    if isinstance(printed, dict):
        for key, value in printed.items():
            yield from figures(value, f"{name} {key}".strip())
    elif isinstance(printed, list):
        for number, value in enumerate(printed):
            words = [word for word in value.values() if isinstance(word, str)] if isinstance(value, dict) else []
            yield from figures(value, f"{name} {', '.join(words) or number}")
    elif isinstance(printed, int | float) and not isinstance(printed, bool):
        yield name, float(printed)


def spread(values: list[float]) -> str:
    """From the lowest to the highest, in percent of the median."""
    median = statistics.median(values)
    return f"{100 * (max(values) - min(values)) / median:.0f} %" if median else "-"


def commit(revision: str) -> str:
    return git("rev-parse", "--short", revision)


def git(*words: str) -> str:
    return subprocess.run(
        ["git", "-C", str(REPOSITORY), *words], check=True, stdout=subprocess.PIPE, text=True
    ).stdout.strip()


if __name__ == "__main__":
    main()
