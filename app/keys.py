"""API keys: known by their digests alone. What can be read in memory, in the keys file or in a dump opens nothing.

A key is 256 random bits, so one round of SHA-256 is enough: there is nothing to guess that a slower hash would protect.

The file that `VSR_API_KEYS_FILE` names has one key per line, and is read again whenever it changes:

    # name     digest, as `vsr keys new` prints it (or the key itself, which is hashed as it is read)
    studio     sha256:2bd806c97f0e00af1a1fc3328fa763a9269723c8db8fac4f93af71db186d6e90

A browser's `<video>` and EventSource send no headers of ours. For them the key itself travels in a cookie, so that no
one who only has digests can make one, and a key that is taken away takes all its sessions with it.
"""

import base64
import binascii
import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import structlog
from pydantic import SecretStr

log = structlog.get_logger(__name__)

DIGEST_PREFIX = "sha256:"
_DIGEST = re.compile(r"[0-9a-fA-F]{64}")
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_ID_DIGITS = 12
SESSION_COOKIE = "vsr_session"


class KeysError(ValueError):
    """Keys that cannot be used. The message never repeats what may be one."""


@dataclass(frozen=True)
class ApiKey:
    """One accepted key. `id`, the first 12 digits of its digest, is what jobs remember of their owner."""

    name: str
    digest: bytes

    @property
    def id(self) -> str:
        return self.digest.hex()[:_ID_DIGITS]


class ApiKeys:
    """The accepted keys: those of the settings, and those of the file as it is now."""

    def __init__(self, digests: Iterable[SecretStr] = (), file: Path | None = None) -> None:
        """`digests`: as `digest_text` writes them. Raises `KeysError` when the file cannot be read or understood."""
        configured = [bytes.fromhex(one.get_secret_value().removeprefix(DIGEST_PREFIX)) for one in digests]
        self._configured = [ApiKey(digest.hex()[:_ID_DIGITS], digest) for digest in configured]
        self._file = file
        self._file_version: object = None
        self._of_file: list[ApiKey] = []
        if file is not None:
            self._file_version = _version(file)
            self._of_file = read_keys_file(file)

    @property
    def are_configured(self) -> bool:
        """True also for a file without a key in it: then nobody gets in, and not everybody."""
        return bool(self._configured) or self._file is not None

    def find(self, candidate: str) -> ApiKey | None:
        """Compares with every key in constant time, so that an answer's delay says nothing about a key."""
        self._read_file_again_if_changed()
        digest = _digest(candidate)
        found = None
        for key in (*self._configured, *self._of_file):
            if hmac.compare_digest(digest, key.digest):
                found = key
        return found

    def _read_file_again_if_changed(self) -> None:
        """A file that is gone or cannot be understood changes nothing: a slip of the editor must lock nobody out."""
        if self._file is None:
            return
        version = _version(self._file)
        if version == self._file_version:
            return
        self._file_version = version
        try:
            keys = read_keys_file(self._file)
        except KeysError as error:
            log.error("the changed keys file is not used; the keys before it stay", reason=str(error))
            return
        log.info(
            "keys file read again",
            added=sorted(key.name for key in keys if key not in self._of_file),
            removed=sorted(key.name for key in self._of_file if key not in keys),
        )
        self._of_file = keys


def read_keys_file(path: Path) -> list[ApiKey]:
    """Raises `KeysError` with the number of the line that cannot be understood."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise KeysError(f"the keys file {path} cannot be read: {reason}") from None
    keys: list[ApiKey] = []
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        try:
            # A comment may follow; a third word otherwise is a name with a space, or a key with one.
            if len(words) < 2 or (len(words) > 2 and not words[2].startswith("#")):
                raise KeysError("a line is a name, then a digest or key")
            if not _NAME.fullmatch(words[0]):
                raise KeysError("a name has letters, digits, dots, dashes and underscores, 64 at most")
            keys.append(ApiKey(words[0], bytes.fromhex(digest_text(words[1]).removeprefix(DIGEST_PREFIX))))
        except KeysError as error:
            raise KeysError(f"line {number} of the keys file {path}: {error}") from None
    return keys


def digest_text(key_or_digest: str) -> str:
    """`sha256:` and 64 hex digits, of a key, or of what already is that. Raises `KeysError` for a damaged digest."""
    if not key_or_digest.startswith(DIGEST_PREFIX):
        return DIGEST_PREFIX + _digest(key_or_digest).hex()
    digits = key_or_digest.removeprefix(DIGEST_PREFIX)
    if not _DIGEST.fullmatch(digits):
        raise KeysError(f"a digest is {DIGEST_PREFIX} and 64 hexadecimal digits")
    return DIGEST_PREFIX + digits.lower()


def new_key() -> str:
    """256 random bits, under a mark by which scanners for leaked secrets can know it."""
    return f"vsr_{secrets.token_urlsafe(32)}"


def keys_file_line(name: str, key: str) -> str:
    """Raises `KeysError` for a name that the file could not hold."""
    if not _NAME.fullmatch(name):
        raise KeysError("a name has letters, digits, dots, dashes and underscores, 64 at most")
    return f"{name} {digest_text(key)}"


def cookie_value(key: str) -> str:
    """Of the session's cookie: base64url, as a key may hold what no cookie may."""
    return base64.urlsafe_b64encode(key.encode()).decode().rstrip("=")


def key_in_cookie(value: str) -> str | None:
    """What `cookie_value` was made of. None: it was made of something else."""
    try:
        return base64.b64decode(value + "=" * (-len(value) % 4), altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        return None


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _version(path: Path) -> object:
    """Another value after every change. None: there is no such file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
