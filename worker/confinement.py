"""What the kernel refuses a process that reads strangers' videos, from the moment it confines itself.

    memory_limit        more address space than it may have
    no_new_privileges   gaining any by a program, core dumps, being looked into by others, outliving the parent
    network_namespace   every network: the process has one of its own, with nothing in it
    landlock            reading or changing any file but those named; signals to others
    seccomp             sockets (also unix ones, which no namespace stops), programs, new processes, looking into
                        others and signals to them, locks, watches and the attributes of files, which Landlock lets be,
                        memory that is not its own, raising its own limits

All but the first on Linux only, and each only where the system lets it be: what is in force is said, never guessed.
What the parent does remains anywhere (worker.cage): it ends a process that is stuck, and takes nothing on trust.
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
PROTECTIONS = ("memory_limit", "no_new_privileges", "network_namespace", "landlock", "seccomp")

_MAX_OPEN_FILES = 256

# linux/prctl.h, sched.h
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
_CLONE_THREAD, _CLONE_NEWUSER, _CLONE_NEWNET = 0x10000, 0x10000000, 0x40000000


def confine(reads: Iterable[Path], writes: Iterable[Path], memory_bytes: int) -> dict[str, str]:
    """Give up everything but reading `reads` and writing in `writes`, for good. To be called by a single thread.

    Returns for each of `PROTECTIONS` "yes", or why it is not in force, or not wholly.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (_within_hard_limit(resource.RLIMIT_NOFILE, _MAX_OPEN_FILES),) * 2)
    found = {"memory_limit": _tried(lambda: _limit_memory(memory_bytes))}
    if sys.platform != "linux":
        return dict.fromkeys(PROTECTIONS, f"no ({sys.platform})") | found
    if len(list(Path("/proc/self/task").iterdir())) != 1:
        raise RuntimeError("there are threads already, which would stay free")
    # First: it needs privileges that the others take away.
    found["network_namespace"] = _tried(_leave_the_network)
    found["no_new_privileges"] = _tried(_give_up_privileges)
    found["landlock"] = _tried(lambda: _allow_only(reads, writes))
    found["seccomp"] = _tried(_refuse_system_calls)
    return {name: found[name] for name in PROTECTIONS}


def _tried(step: Callable[[], str | None]) -> str:
    """`step` returns what it could not have, if anything."""
    try:
        lacking = step()
    except OSError as error:
        return f"no ({error.strerror}, kernel {platform.release()})"
    return f"partly ({lacking}, kernel {platform.release()})" if lacking else YES


def _limit_memory(memory_bytes: int) -> None:
    most = _within_hard_limit(resource.RLIMIT_AS, memory_bytes)
    try:
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    except ValueError as error:  # Python's word for EINVAL: macOS has the name of this limit, and not the limit
        raise OSError(errno.EINVAL, str(error)) from error


def _within_hard_limit(what: int, wanted: int) -> int:
    """No process can raise what its user has lowered (ulimit)."""
    hard = resource.getrlimit(what)[1]
    return wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)


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
_LACKING_BEFORE_VERSION = {3: "emptying files", 6: "signals"}
_OF_FILES = _WRITE_FILE | _READ_FILE | _TRUNCATE
_BIND_AND_CONNECT_TCP = 0b11
_ABSTRACT_SOCKETS_AND_SIGNALS = 0b11


def _allow_only(reads: Iterable[Path], writes: Iterable[Path]) -> str | None:
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
    lacking = [what for since, what in _LACKING_BEFORE_VERSION.items() if version < since]
    return f"version {version} has no say over {' and '.join(lacking)}" if lacking else None


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
    # x86_64, aarch64 (None: not there). Descriptors that lead out; io_uring makes sockets without any of these calls.
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
    (129, 138),  # rt_sigqueueinfo
    (297, 240),  # rt_tgsigqueueinfo
    (312, 272),  # kcmp
    (440, 440),  # process_madvise
    (448, 448),  # process_mrelease
    (256, 238),  # migrate_pages
    (279, 239),  # move_pages
    (141, 140),  # setpriority
    (142, 118),  # sched_setparam
    (144, 119),  # sched_setscheduler
    (203, 122),  # sched_setaffinity
    (314, 274),  # sched_setattr
    (251, 30),  # ioprio_set
    # What Landlock lets everybody do with every file: attributes
    (90, None),  # chmod
    (91, 52),  # fchmod
    (268, 53),  # fchmodat
    (452, 452),  # fchmodat2
    (92, None),  # chown
    (94, None),  # lchown
    (93, 55),  # fchown
    (260, 54),  # fchownat
    (188, 5),  # setxattr
    (189, 6),  # lsetxattr
    (190, 7),  # fsetxattr
    (463, 463),  # setxattrat
    (197, 14),  # removexattr
    (198, 15),  # lremovexattr
    (199, 16),  # fremovexattr
    (466, 466),  # removexattrat
    (469, 469),  # file_setattr
    (132, None),  # utime
    (235, None),  # utimes
    (261, None),  # futimesat
    (280, 88),  # utimensat
    (76, 45),  # truncate: its first versions let this be too
    # Watches, locks, and ways to a file without its path
    (253, None),  # inotify_init
    (294, 26),  # inotify_init1
    (254, 27),  # inotify_add_watch
    (300, 262),  # fanotify_init
    (301, 263),  # fanotify_mark
    (73, 32),  # flock
    (303, 264),  # name_to_handle_at
    (304, 265),  # open_by_handle_at
    # Memory and messages that others share, or that outlive it, or that its limit does not count
    (29, 194),  # shmget
    (30, 196),  # shmat
    (31, 195),  # shmctl
    (64, 190),  # semget
    (65, 193),  # semop
    (220, 192),  # semtimedop
    (66, 191),  # semctl
    (68, 186),  # msgget
    (69, 189),  # msgsnd
    (70, 188),  # msgrcv
    (71, 187),  # msgctl
    (240, 180),  # mq_open
    (241, 181),  # mq_unlink
    (319, 279),  # memfd_create
    (447, 447),  # memfd_secret
    # Parts of the kernel that no decoder needs
    (206, 0),  # io_setup
    (209, 2),  # io_submit
    (161, 51),  # chroot
    (155, 41),  # pivot_root
    (166, 39),  # umount2
    (428, 428),  # open_tree
    (429, 429),  # move_mount
    (430, 430),  # fsopen
    (442, 442),  # mount_setattr
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
_REFUSED_ARGUMENTS = (
    # Numbers as above, which argument, and its values (linux/fcntl.h, linux/prctl.h).
    # fcntl: locks on files; F_SETOWN, F_SETSIG, F_SETOWN_EX, by which the kernel sends signals to anybody; open file
    # description locks; F_SETLEASE, F_NOTIFY, F_SETPIPE_SZ
    ((72, 25), 1, (6, 7, 8, 10, 15, 37, 38, 1024, 1026, 1031)),
    # prctl: PR_SET_PDEATHSIG, by which it dies with its parent; PR_SET_DUMPABLE, PR_SET_MM, PR_SET_PTRACER
    ((157, 167), 0, (1, 4, 35, 0x59616D61)),
)
# ioctl: to ask for a terminal, of which there is none; to close on exec, not to block, how much there is to read.
# Others set who gets signals, the attributes of files, and much more.
_IOCTL, _ALLOWED_IOCTLS = (16, 29), (0x5401, 0x802C542A, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
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
    for numbers, argument, values in _REFUSED_ARGUMENTS:
        lines += [(_JUMP_IF_EQUAL, 0, 2 * len(values) + 2, numbers[column]), (_LOAD, 0, 0, _argument(argument))]
        for value in values:
            lines += [(_JUMP_IF_EQUAL, 0, 1, value), refuse]
        lines.append(allow)
    lines += [(_JUMP_IF_EQUAL, 0, 2 * len(_ALLOWED_IOCTLS) + 2, _IOCTL[column]), (_LOAD, 0, 0, _argument(1))]
    for value in _ALLOWED_IOCTLS:
        lines += [(_JUMP_IF_EQUAL, 0, 1, value), allow]
    lines.append(refuse)
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
