"""What the kernel refuses a process that reads strangers' videos, from the moment it confines itself.

    no_new_privileges   gaining any by a program, core dumps, being looked into by others, outliving the parent
    network_namespace   every network: the process has one of its own, with nothing in it
    landlock            every file but those named; signals to others
    seccomp             sockets (also unix ones, which no namespace stops), programs, new processes, looking into
                        others, raising its own limits

Linux only, and each only where the system lets it be: what is in force is said, never guessed. Elsewhere the limits on
memory, files and time remain, which the parent sets (worker.cage).
"""

import ctypes
import errno
import os
import platform
import resource
import signal
import struct
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

YES = "yes"
PROTECTIONS = ("no_new_privileges", "network_namespace", "landlock", "seccomp")

_MAX_OPEN_FILES = 256

# linux/prctl.h, sched.h
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
_CLONE_THREAD, _CLONE_NEWUSER, _CLONE_NEWNET = 0x10000, 0x10000000, 0x40000000


def confine(reads: Iterable[Path], writes: Iterable[Path], memory_bytes: int) -> dict[str, str]:
    """Give up everything but reading `reads` and writing in `writes`, for good. To be called by a single thread.

    Returns for each of `PROTECTIONS` "yes", or why it is not in force.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    most = _MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(_MAX_OPEN_FILES, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if sys.platform != "linux":
        return dict.fromkeys(PROTECTIONS, f"no ({sys.platform})")
    if len(list(Path("/proc/self/task").iterdir())) != 1:
        raise RuntimeError("there are threads already, which would stay free")
    steps: dict[str, Callable[[], None]] = {
        # First: it needs privileges that the others take away.
        "network_namespace": _leave_the_network,
        "no_new_privileges": _give_up_privileges,
        "landlock": lambda: _allow_only(reads, writes),
        "seccomp": _refuse_system_calls,
    }
    found = {}
    for name, step in steps.items():
        try:
            step()
        except OSError as error:
            found[name] = f"no ({error.strerror}, kernel {platform.release()})"
        else:
            found[name] = YES
    return {name: found[name] for name in PROTECTIONS}


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _prctl(option: int, *values: int) -> None:
    padded = [ctypes.c_ulong(value) for value in (*values, 0, 0, 0, 0)[:4]]
    _checked(_libc().prctl(option, *padded))


# --- network and privileges -------------------------------------------------------------------------------------------


def _leave_the_network() -> None:
    """Root may do so at once; others only in a namespace of users of their own, where the system allows that."""
    libc = _libc()
    if libc.unshare(_CLONE_NEWNET) != 0:
        _checked(libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET))


# linux/capability.h: with these root reads and writes the files of others, as it could before.
_CAPABILITY_VERSION_3 = 0x20080522
_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH = 1, 2


def _give_up_privileges() -> None:
    libc = _libc()
    header = ctypes.create_string_buffer(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0))
    held = ctypes.create_string_buffer(24)
    _checked(libc.capget(header, held))
    effective, permitted, _, *_ = struct.unpack("=6I", held.raw)
    kept = (1 << _CAP_DAC_OVERRIDE | 1 << _CAP_DAC_READ_SEARCH) & effective & permitted
    _checked(libc.capset(header, ctypes.create_string_buffer(struct.pack("=6I", kept, kept, 0, 0, 0, 0))))
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _prctl(_PR_SET_DUMPABLE, 0)
    # Here, not at the start: the kernel forgets it when a process changes its privileges.
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


# --- files: Landlock (linux/landlock.h) -------------------------------------------------------------------------------

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on all architectures
_WRITE_FILE, _READ_FILE, _READ_DIR, _REMOVE_FILE, _MAKE_REG = 1 << 1, 1 << 2, 1 << 3, 1 << 5, 1 << 8
_REFER, _TRUNCATE, _IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
_OF_VERSION_1 = (1 << 13) - 1
_SINCE_VERSION = {2: _REFER, 3: _TRUNCATE, 5: _IOCTL_DEV}
_OF_FILES = _WRITE_FILE | _READ_FILE | _TRUNCATE
_BIND_AND_CONNECT_TCP = 0b11
_ABSTRACT_SOCKETS_AND_SIGNALS = 0b11


def _allow_only(reads: Iterable[Path], writes: Iterable[Path]) -> None:
    libc = _libc()
    version = _checked(libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(1)))
    handled = _OF_VERSION_1
    for since, right in _SINCE_VERSION.items():
        handled |= right if version >= since else 0
    attributes = struct.pack(
        "=3Q",
        handled,
        _BIND_AND_CONNECT_TCP if version >= 4 else 0,
        _ABSTRACT_SOCKETS_AND_SIGNALS if version >= 6 else 0,
    )
    # Older kernels know a shorter form.
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = _checked(libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(size), ctypes.c_uint32(0)))
    try:
        for path in reads:
            _allow(libc, ruleset, path, _READ_FILE | _READ_DIR)
        for path in writes:
            _allow(
                libc,
                ruleset,
                path,
                (_READ_FILE | _READ_DIR | _WRITE_FILE | _REMOVE_FILE | _MAKE_REG | _TRUNCATE) & handled,
            )
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)
        _checked(libc.syscall(_RESTRICT_SELF, ruleset, ctypes.c_uint32(0)))
    finally:
        os.close(ruleset)


def _allow(libc: ctypes.CDLL, ruleset: int, path: Path, rights: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        rule = struct.pack("=Qi", rights if path.is_dir() else rights & _OF_FILES, descriptor)
        _checked(libc.syscall(_ADD_RULE, ruleset, 1, rule, ctypes.c_uint32(0)))
    finally:
        os.close(descriptor)


# --- system calls: seccomp (linux/seccomp.h, linux/bpf_common.h) ------------------------------------------------------

_ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
_REFUSED = (
    # x86_64, aarch64. Descriptors that lead out; io_uring makes sockets without any of these calls.
    (41, 198),  # socket
    (53, 199),  # socketpair
    (42, 203),  # connect
    (49, 200),  # bind
    (50, 201),  # listen
    (43, 202),  # accept
    (288, 242),  # accept4
    (425, 425),  # io_uring_setup
    (438, 438),  # pidfd_getfd
    # Programs and processes; threads are made by clone, which is looked at below
    (59, 221),  # execve
    (322, 281),  # execveat
    (57, None),  # fork
    (58, None),  # vfork
    # Other processes of the same user
    (62, 129),  # kill
    (200, 130),  # tkill
    (234, 131),  # tgkill
    (434, 434),  # pidfd_open
    (424, 424),  # pidfd_send_signal
    (101, 117),  # ptrace
    (310, 270),  # process_vm_readv
    (311, 271),  # process_vm_writev
    # Parts of the kernel that no decoder needs
    (165, 40),  # mount
    (272, 97),  # unshare
    (308, 268),  # setns
    (321, 280),  # bpf
    (298, 241),  # perf_event_open
    (323, 282),  # userfaultfd
    (248, 217),  # add_key
    (249, 218),  # request_key
    (250, 219),  # keyctl
    # Its own limits
    (160, 164),  # setrlimit
)
_CLONE, _CLONE3, _PRLIMIT64 = (56, 220), (435, 435), (302, 261)
_X32_CALLS = 0x40000000

_LOAD, _JUMP_IF_EQUAL, _JUMP_IF_AT_LEAST, _JUMP_IF_SET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL_PROCESS, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_MODE_FILTER = 2
_NUMBER, _ARCHITECTURE = 0, 4


def _argument(index: int) -> int:
    """Where its lower half lies in `struct seccomp_data`."""
    return 16 + 8 * index


def _refuse_system_calls() -> None:
    known = _ARCHITECTURES.get(platform.machine())
    if known is None:
        raise OSError(errno.ENOSYS, f"not known for {platform.machine()}")
    instructions = b"".join(struct.pack("=HBBI", *instruction) for instruction in _program(*known))
    code = ctypes.create_string_buffer(instructions)
    program = ctypes.create_string_buffer(struct.pack("@HP", len(instructions) // 8, ctypes.addressof(code)))
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.addressof(program))


def _program(architecture: int, column: int) -> Sequence[tuple[int, int, int, int]]:
    """Instructions of classic BPF: code, how far to jump if true and if false, operand."""
    refuse = (_RETURN, 0, 0, _ERRNO | errno.EPERM)
    allow = (_RETURN, 0, 0, _ALLOW)
    lines = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_JUMP_IF_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL_PROCESS),
        (_LOAD, 0, 0, _NUMBER),
    ]
    if platform.machine() == "x86_64":
        lines += [(_JUMP_IF_AT_LEAST, 0, 1, _X32_CALLS), refuse]
    for numbers in _REFUSED:
        number = numbers[column]
        if number is not None:
            lines += [(_JUMP_IF_EQUAL, 0, 1, number), refuse]
    lines += [
        # The C library falls back to clone, whose flags can be seen.
        (_JUMP_IF_EQUAL, 0, 1, _CLONE3[column]),
        (_RETURN, 0, 0, _ERRNO | errno.ENOSYS),
        (_JUMP_IF_EQUAL, 0, 4, _CLONE[column]),
        (_LOAD, 0, 0, _argument(0)),
        (_JUMP_IF_SET, 0, 1, _CLONE_THREAD),
        allow,
        refuse,
        # Asking for limits is allowed: there is no new one.
        (_JUMP_IF_EQUAL, 0, 6, _PRLIMIT64[column]),
        (_LOAD, 0, 0, _argument(2)),
        (_JUMP_IF_EQUAL, 0, 3, 0),
        (_LOAD, 0, 0, _argument(2) + 4),
        (_JUMP_IF_EQUAL, 0, 1, 0),
        allow,
        refuse,
        allow,
    ]
    return lines
