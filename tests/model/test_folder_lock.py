"""Two processes never write into one folder, and a killed one does not keep it."""

import errno
import fcntl
import subprocess
import sys
from pathlib import Path

import pytest

from model.folder_lock import FolderInUseError, take_lock

REPOSITORY = Path(__file__).parents[2]


def test_a_folder_belongs_to_one_process_until_it_is_killed(tmp_path: Path) -> None:
    # given another process that holds the lock
    code = (
        "import pathlib, sys; from model.folder_lock import take_lock\n"
        "lock = take_lock(pathlib.Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=REPOSITORY,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"

        # when it is asked for here, then it is refused
        with pytest.raises(FolderInUseError, match="another process writes into"):
            take_lock(tmp_path / "lock")

        other.kill()

    # then, with that one gone, it is free
    take_lock(tmp_path / "lock").close()


def test_a_file_system_without_locks_is_written_to_nevertheless(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)

    take_lock(tmp_path / "lock").close()
