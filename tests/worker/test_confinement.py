"""Each protection by itself, in a process that has no other: what it stops where it is in force, and what is said."""

import json
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.worker import cage_guests as guests
from worker import confinement
from worker.confinement import PROTECTIONS

REPOSITORY = Path(guests.__file__).parents[2]
OF_FILES = ("read", "write", "new file", "list")
OF_SECCOMP = (
    *("unix socket", "program", "process", "signal", "queued signal", "queued signal to a thread"),
    *("signals by a pipe", "signals by a file", "cores of the parent", "priority of the parent", "own limits"),
    *("outliving the parent", "being looked into", "empty", "mode", "owner", "times", "attribute"),
    *("inotify", "inotify watch", "fanotify", "lock", "lock by fcntl"),
    *("shared memory", "semaphores", "messages", "message queue", "memory file"),
)

# A process that confines itself as far as it is told, then tries everything.
PROGRAM = """
import json, sys
from pathlib import Path
from tests.worker import cage_guests as guests
from worker import confinement
layer, neighbour, unix_socket, port, parent, reads = json.loads(sys.argv[1])
step = {
    "none": lambda: None,
    "network_namespace": confinement._leave_the_network,
    "no_new_privileges": confinement._give_up_privileges,
    "landlock": lambda: confinement._allow_only([Path(path) for path in reads], []),
    "seccomp": confinement._refuse_system_calls,
}[layer]
said = confinement._tried(step)
print(json.dumps([said, guests.try_everything(Path(neighbour), unix_socket, port, parent)]), flush=True)
"""

# Refuses what Docker's default profile does, and what a kernel without Landlock lacks; then asks what is in force.
POOR_SYSTEM = """
import ctypes, errno, json, struct
lines = [(0x20, 0, 0, 0)]
for number in NUMBERS:
    lines += [(0x15, 0, 1, number), (0x06, 0, 0, 0x00050000 | errno.EPERM)]
lines.append((0x06, 0, 0, 0x7FFF0000))
code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in lines))
program = ctypes.create_string_buffer(struct.pack("@HP", len(lines), ctypes.addressof(code)))
libc = ctypes.CDLL(None)
libc.prctl(38, *map(ctypes.c_ulong, (1, 0, 0, 0)))
assert libc.prctl(22, *map(ctypes.c_ulong, (2, ctypes.addressof(program), 0, 0))) == 0
from worker.cage import protections_in_force
from worker.settings import VideoLimits, WorkerSettings
print(json.dumps(protections_in_force(WorkerSettings(), VideoLimits())))
"""


@pytest.fixture
def server() -> Iterator[int]:
    """A port on which somebody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


def run(program: str, *arguments: str) -> object:
    ended = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    return json.loads(ended.stdout)


def confined_by(layer: str, tmp_path: Path, port: int) -> tuple[str, dict[str, str]]:
    """What is said of a protection, and what became of each attempt under it alone."""
    (tmp_path / "jobs").mkdir(exist_ok=True)
    neighbour = tmp_path / "jobs" / "neighbour"
    neighbour.write_text("private")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / f"{layer}.sock"))
        listening.listen()
        reads = ["/usr", "/lib", sys.prefix, sys.base_prefix, str(REPOSITORY)]
        said, found = run(  # type: ignore[misc]
            PROGRAM, json.dumps([layer, str(neighbour), str(tmp_path / f"{layer}.sock"), port, os.getpid(), reads])
        )
    return said, found


def test_without_any_the_attempts_succeed_so_they_are_worth_trying(tmp_path: Path, server: int) -> None:
    # Given no protection
    _, found = confined_by("none", tmp_path, server)
    # Then what any user may do works
    for attempt in ("tcp", "unix socket", "signal", "signals by a pipe", *OF_FILES, "empty", "mode", "times", "lock"):
        assert found[attempt] == "done", (attempt, found[attempt])


@pytest.mark.parametrize(
    ("layer", "stopped"),
    [("network_namespace", ("tcp",)), ("landlock", OF_FILES), ("seccomp", OF_SECCOMP)],
    ids=["network_namespace", "landlock", "seccomp"],
)
def test_each_protection_alone_stops_what_it_is_for_or_is_said_to_be_missing(
    layer: str, stopped: tuple[str, ...], tmp_path: Path, server: int
) -> None:
    # When a process has one of them, as far as this system gives it
    said, found = confined_by(layer, tmp_path, server)
    # Then that stops all that it is for, or is said not to be there
    if said.startswith("no ("):
        assert stopped[0] == "tcp" or "done" in [found[attempt] for attempt in stopped]
    else:
        assert said == "yes" or said.startswith("partly (")
        refused = ("PermissionError", "ValueError") if layer != "network_namespace" else ("OSError", "TimeoutError")
        assert {attempt: found[attempt] for attempt in stopped if not found[attempt].startswith(refused)} == {}


def test_what_the_system_refuses_is_said_and_the_rest_holds() -> None:
    # Given a system without Landlock and without namespaces for users
    numbers = [444, 97 if os.uname().machine == "aarch64" else 272]
    # When it is asked what protects a cage
    found = run(f"NUMBERS = {numbers}\n{POOR_SYSTEM}")
    # Then
    assert isinstance(found, dict)
    assert tuple(found) == PROTECTIONS
    missing = {name for name, said in found.items() if said.startswith("no (Operation not permitted")}
    assert missing == {"landlock", "network_namespace"}
    assert {found[name] for name in PROTECTIONS if name not in missing} == {"yes"}


def test_an_old_landlock_is_said_to_protect_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given each version, on a system where nothing is really restricted
    monkeypatch.setattr(confinement, "_prctl", lambda *values: None)
    monkeypatch.setattr(os, "close", lambda descriptor: None)
    said = []
    for version in (1, 2, 3, 5, 6, 7):
        libc = type("Libc", (), {"syscall": lambda self, *values, version=version: version})()
        monkeypatch.setattr(confinement, "_libc", lambda libc=libc: libc)
        # When it restricts
        said.append(confinement._tried(lambda: confinement._allow_only([], [])))
    # Then only those that know all are said to be in force
    assert [words.split(", kernel")[0] for words in said[:2]] == [
        f"partly (version {version} has no say over emptying files and signals" for version in (1, 2)
    ]
    assert [words.split(", kernel")[0] for words in said[2:4]] == [
        f"partly (version {version} has no say over signals" for version in (3, 5)
    ]
    assert said[4:] == ["yes", "yes"]


def test_a_limit_on_memory_that_the_user_has_set_is_kept() -> None:
    # Given a user whose processes may not have more than 3 GiB (ulimit -v)
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_AS, ({3 * 1024**3}, {3 * 1024**3}))\nNUMBERS = []\n"
    # Then cages work, within that
    found = run(limit + POOR_SYSTEM)
    assert isinstance(found, dict)
    assert found["memory_limit"] == "yes"


def test_a_system_without_that_limit_is_no_reason_to_read_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given macOS, which knows the limit by name only
    def refuse(what: int, limits: tuple[int, int]) -> None:
        raise ValueError("current limit exceeds maximum limit")

    monkeypatch.setattr(resource, "setrlimit", refuse)
    # Then that is said
    assert confinement._tried(lambda: confinement._limit_memory(1024**3)).startswith("no (current limit exceeds")
