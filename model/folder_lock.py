"""One process at a time in a folder that is written to for hours: a second one would overwrite its files."""

import errno
import fcntl
from pathlib import Path
from typing import BinaryIO

# Some network and FUSE file systems have no locks. They are a guard against a mistake, not a reason to refuse work.
_NO_LOCKS_HERE = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)


class FolderInUseError(Exception):
    """Another process writes into the folder."""


def take_lock(lock: Path) -> BinaryIO:
    """The lock file, opened: closing it gives the lock back, and so does the end of the process, however it ends.

    FolderInUseError, at once, while another holds it.
    """
    file = lock.open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS_HERE:
            return file
        file.close()
        if isinstance(error, BlockingIOError):
            message = f"another process writes into {lock.parent}: wait for it, or choose another folder"
            raise FolderInUseError(message) from error
        raise
    return file
