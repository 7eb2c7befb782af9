# SPDX-License-Identifier: Apache-2.0
"""What pointers.py calls: for each system call that takes pointers, arguments with which it works.

An argument is a number; a letter for a descriptor (F, G, P files, D a directory, R, W a pipe, S, T, N, L, V sockets); a
path; or memory that the call reads (In), fills (Out) or finds other pointers in (Inner).
"""
import os
import signal
import socket
import struct

NOWHERE = ("NULL", "1", "hole", "noaccess", "minus", "noncanonical")


class In:
    """Memory that the call reads."""

    ways = (*NOWHERE, "cut")

    def __init__(self, data=b"", size=0):
        self.data, self.size = data, size or len(data)

    def __str__(self):
        return f"{type(self).__name__} {self.data} {self.size}"


class Out(In):
    """Memory of ``size`` bytes that the call fills, or reads and fills."""

    ways = (*NOWHERE, "cut", "readonly")

    def __init__(self, size, data=b""):
        super().__init__(data, size)


class Path(In):
    """A path: relative to the directory of the test, or below it by its absolute name."""

    def __init__(self, name, absolute=False):
        super().__init__(name)
        self.absolute, self.size = absolute, 0

    def bytes(self, top):
        """What is in memory."""
        return (os.fsencode(top) + b"/" + self.data if self.absolute else self.data) + b"\0"


class Inner(In):
    """An object with pointers in it: ``parts`` are bytes and arguments."""

    ways = (*NOWHERE, "cut", "readonly")

    def __init__(self, *parts):
        super().__init__(size=sum(len(part) if isinstance(part, bytes) else 8 for part in parts))
        self.parts = parts

    def __str__(self):
        return " ".join(map(str, self.parts))


class Spot:
    """An address that names pages, as munmap's: ``value`` when it is right."""

    ways = ("1", "minus", "noncanonical")

    def __init__(self, value=0):
        self.value = value


CWD, EMPTY = -100, 0x1000
RW, CREATE, DIRECTORY = os.O_RDWR, os.O_RDWR | os.O_CREAT, os.O_DIRECTORY
FILE, INNER, LINK, NEW, DIR = Path(b"file"), Path(b"inner"), Path(b"link"), Path(b"new"), Path(b"empty")
A_FILE, A_LINK, A_NEW, A_DIR = (Path(name, True) for name in (b"file", b"link", b"new", b"empty"))
NONE = Path(b"")


def quad(*numbers):
    """Words of 64 bits."""
    return struct.pack(f"<{len(numbers)}q", *numbers)


def vector(*parts):
    """An array of struct iovec."""
    return Inner(*(word for part in parts for word in (part, quad(part.size))))


def message(iov, name=None, control=None):
    """A struct msghdr; ``name`` and ``control`` are memory or None."""
    return Inner(name or quad(0), quad(name.size if name else 0), iov, quad(1), control or quad(0),
                 quad(control.size if control else 0), quad(0))


def messages(*inner):
    """One struct mmsghdr."""
    return Inner(*inner, quad(0))


def at(path, *rest):
    """A call with a path, and with a directory and a path."""
    return ((CWD, path, *rest), ("D", INNER if path in (FILE, LINK) else NEW if path is NEW else path, *rest),
            (CWD, Path(path.data, True), *rest))


def named(*rest, path=FILE):
    """A call whose first argument is a path."""
    return (path, *rest), (Path(path.data, True), *rest)


DATA, ROOM, VALUE, NAME = In(b"0123456789"), Out(40), In(b"value"), In(b"user.one\0")
TIMES, PAIR, OFFSET = In(quad(1, 2, 3, 4)), In(quad(1, 2)), Out(8, quad(3))
SIGNALS, TIME = In(quad(0)), In(quad(0, 0))
ADDRESS = In(struct.pack("<H", socket.AF_UNIX) + b"name\0")
BOUND = In(struct.pack("<H", socket.AF_UNIX) + b"bound\0")
LENGTH = Out(4, struct.pack("<i", 110))
IN, OUT = vector(In(b"abc"), In(b"defg")), vector(Out(3), Out(4))
RIGHTS = In(struct.pack("<qiii4x", 20, socket.SOL_SOCKET, socket.SCM_RIGHTS, 0))
FLOCK = Out(32, struct.pack("<hhxxxxqqi4x", 1, 0, 0, 5, 0))
OPEN_HOW = In(quad(os.O_RDWR, 0, 0))
GETTER, SETTER = Inner(Out(8), struct.pack("<iI", 8, 0)), Inner(In(b"value"), struct.pack("<iI", 5, 0))
ACTION = In(quad(signal.SIG_IGN, 0x04000000, 0, 0))
STACK, LIMIT = In(struct.pack("<qi4xq", 0, 2, 0)), In(quad(4096, 4096))
FILTER = Inner(quad(1), In(struct.pack("<HBBI", 6, 0, 0, 0x7FFF0000)))  # one instruction: all is allowed
PROGRAM = (Path(b"/bin/true"), Path(b"dir/inner"))
ARGUMENTS = Inner(In(b"name\0"), In(b"argument\0"), quad(0))
ENVIRONMENT = Inner(In(b"ONE=1\0"), quad(0))
BLOCK = Inner(Inner(quad(0, 0), struct.pack("<hhI", 0, 0, 3), In(b"abc"), quad(3, 0, 0, 0, 0)))
CLONE_PARENT_SETTID, CLONE_CHILD_SETTID = 0x100000, 0x1000000
POLL, READY = Out(8, struct.pack("<ihh", 0, 1, 0)), Out(128, b"\1")

# Results that are a new descriptor: its number does not matter.
CREATORS = {"openat", "open", "creat", "openat2", "accept", "accept4", "signalfd", "signalfd4", "open_tree",
            "open_tree_attr", "fspick", "perf_event_open", "io_uring_setup"}


def xattrs(first, path):
    """The four calls about extended attributes whose first argument is ``first``, with their names' beginning."""
    letter = {FILE: "", LINK: "l"}.get(path, "f")
    calls = {"setxattr": (first, In(b"user.two\0"), VALUE, 5, 0), "getxattr": (first, NAME, ROOM, 40),
             "listxattr": (first, ROOM, 40), "removexattr": (first, NAME)}
    return {letter + name: (arguments,) for name, arguments in calls.items()}


CALLS = {
    "openat": (*at(FILE, RW), *at(NEW, CREATE, 0o644)),
    "open": (*named(RW), *named(CREATE, 0o644, path=NEW)),
    "creat": named(0o644, path=NEW),
    "openat2": at(FILE, OPEN_HOW, 24),
    "read": (("F", ROOM, 40), ("F", ROOM, 0)),
    "write": (("F", DATA, 10), ("F", DATA, 0)),
    "pread64": (("F", ROOM, 40, 5), ("F", ROOM, 40, -1)),
    "pwrite64": (("F", DATA, 10, 5), ("F", DATA, 10, -1)),
    "readv": (("F", OUT, 2), ("F", OUT, 0)), "writev": (("F", IN, 2), ("F", IN, 0)),
    "preadv": (("F", OUT, 2, 5), ("F", OUT, 2, -1)), "pwritev": (("F", IN, 2, 5), ("F", IN, 2, -1)),
    "preadv2": (("F", OUT, 2, 5, 0, 0), ("F", OUT, 2, -1, -1, 0), ("F", OUT, 2, 5, 0, 1 << 30)),
    "pwritev2": (("F", IN, 2, 5, 0, 0), ("F", IN, 2, -1, -1, 0), ("F", IN, 2, 5, 0, 1 << 30)),
    "truncate": named(50),
    "getdents64": (("D", Out(400), 400), ("D", Out(10), 10)), "getdents": (("D", Out(400), 400),),
    "mmap": ((Spot(), 4096, 1, 2, "F", 0), (Spot(), 4096, 1, 0x12, "F", 0)),
    "munmap": ((Spot(), 4096),), "mremap": ((Spot(), 4096, 8192, 1),), "msync": ((Spot(), 4096, 4),),
    "mprotect": ((Spot(), 4096, 1),), "pkey_mprotect": ((Spot(), 4096, 1, -1),),
    "ioctl": (("F", 0x541B, Out(4)), ("F", 0x5421, In(b"\0\0\0\0")), ("F", 0x5401, Out(60))),
    "newfstatat": (*at(FILE, Out(144), 0), *at(LINK, Out(144), 0x100), ("F", NONE, Out(144), EMPTY)),
    "stat": named(Out(144)), "lstat": named(Out(144), path=LINK), "fstat": (("F", Out(144)),),
    "statx": (*at(FILE, 0, 0x7FF, Out(256)), ("F", NONE, EMPTY, 0x7FF, Out(256))),
    "faccessat": at(FILE, 4), "faccessat2": (*at(FILE, 4, 0x200), ("F", NONE, 4, EMPTY)), "access": named(4),
    "readlinkat": (*at(LINK, ROOM, 40), *at(LINK, ROOM, 0)), "readlink": named(ROOM, 40, path=LINK),
    "statfs": named(Out(120)), "fstatfs": (("F", Out(120)),),
    "mkdirat": at(NEW, 0o755), "mkdir": named(0o755, path=NEW),
    "mknodat": at(NEW, 0o100644, 0), "mknod": named(0o100644, 0, path=NEW),
    "unlinkat": (*at(FILE, 0), *at(DIR, 0x200)), "unlink": named(), "rmdir": named(path=DIR),
    "renameat2": ((CWD, FILE, CWD, NEW, 0), ("D", INNER, CWD, A_NEW, 1), (CWD, A_FILE, "D", INNER, 2)),
    "renameat": ((CWD, FILE, CWD, NEW), ("D", INNER, CWD, A_NEW)), "rename": ((FILE, NEW), (A_FILE, A_NEW)),
    "symlinkat": ((In(b"target\0"), CWD, NEW), (In(b"target\0"), "D", NEW), (In(b"target\0"), CWD, A_NEW)),
    "symlink": ((In(b"target\0"), NEW), (In(b"target\0"), A_NEW)),
    "linkat": ((CWD, FILE, CWD, NEW, 0), ("D", INNER, CWD, A_NEW, 0x400), ("F", NONE, CWD, NEW, EMPTY)),
    "link": ((FILE, NEW), (A_FILE, A_NEW)),
    "fchmodat": at(FILE, 0o700), "fchmodat2": (*at(FILE, 0o700, 0), ("F", NONE, 0o700, EMPTY)), "chmod": named(0o700),
    "fchownat": (*at(FILE, -1, -1, 0), ("F", NONE, -1, -1, EMPTY)), "chown": named(-1, -1),
    "lchown": named(-1, -1, path=LINK),
    "utimensat": (*at(FILE, TIMES, 0), ("F", NONE, TIMES, EMPTY), ("F", 0, TIMES, 0)),
    "futimesat": at(FILE, TIMES), "utimes": named(TIMES), "utime": named(PAIR),
    "copy_file_range": (("F", OFFSET, "G", OFFSET, 9, 0),), "sendfile": (("F", "G", OFFSET, 9), ("W", "F", OFFSET, 9)),
    "splice": (("F", OFFSET, "W", 0, 9, 0), ("R", 0, "F", OFFSET, 9, 0), ("F", OFFSET, "G", OFFSET, 9, 0)),
    "vmsplice": (("F", IN, 2, 0),),
    **xattrs(FILE, FILE), **xattrs(LINK, LINK), **xattrs("F", None),
    "setxattrat": (*at(FILE, 0, NAME, SETTER, 16), ("F", NONE, EMPTY, NAME, SETTER, 16)),
    "getxattrat": (*at(FILE, 0, NAME, GETTER, 16), ("F", NONE, EMPTY, NAME, GETTER, 16)),
    "listxattrat": (*at(FILE, 0, ROOM, 40), ("F", NONE, EMPTY, ROOM, 40)),
    "removexattrat": (*at(FILE, 0, NAME), ("F", NONE, EMPTY, NAME)),
    "name_to_handle_at": at(FILE, Out(136, struct.pack("<I", 128)), Out(4), 0),
    "inotify_add_watch": (("S", FILE, 2), ("S", A_FILE, 2)), "fanotify_mark": (("S", 1, 2, CWD, FILE),),
    "chroot": ((Path(b"gone"),),), "umount2": named(0), "swapon": named(0), "swapoff": named(),
    "mount": ((In(b"none\0"), DIR, In(b"nothing\0"), 0, In(b"\0")),), "pivot_root": ((DIR, DIR),),
    "move_mount": ((CWD, FILE, CWD, FILE, 0),), "open_tree": at(FILE, 0),
    "open_tree_attr": at(FILE, 0, In(b"", 32), 32),
    "mount_setattr": at(FILE, 0, In(b"", 32), 32), "fspick": at(FILE, 0),
    "quotactl": ((0x80000100, FILE, 0, Out(72)),), "uselib": named(), "acct": named(),
    "file_getattr": at(FILE, Out(32), 32, 0), "file_setattr": at(FILE, In(b"", 32), 32, 0),
    "cachestat": (("F", In(quad(0, 9)), Out(40), 0),),
    "recvmsg": (("S", message(OUT, Out(20), Out(40)), 0x40),),
    "recvmmsg": (("S", messages(message(OUT, Out(20), Out(40))), 1, 0x40, TIME),),
    "sendmsg": (("S", message(IN, None, RIGHTS), 0x40), ("N", message(IN, BOUND), 0x40)),
    "sendmmsg": (("S", messages(message(IN, None, RIGHTS)), 1, 0x40),),
    "bind": (("N", ADDRESS, 7),), "connect": (("N", BOUND, 8),), "sendto": (("N", DATA, 10, 0x40, BOUND, 8),),
    "getsockname": (("L", Out(20), LENGTH),), "getpeername": (("V", Out(20), LENGTH),),
    "accept": (("L", Out(20), LENGTH),), "accept4": (("L", Out(20), LENGTH, 0),),
    "recvfrom": (("S", ROOM, 40, 0x40, Out(20), LENGTH),),
    "io_submit": ((0, 1, BLOCK),), "io_uring_setup": ((1, Out(120)),),
    "finit_module": (("F", In(b"parameters\0"), 0),), "kexec_file_load": (("F", "F", 5, In(b"line\0"), 0),),
    "quotactl_fd": (("F", 0x80000100, 0, Out(72)),),
    "fcntl": (("F", 5, FLOCK), ("F", 6, FLOCK), ("F", 36, FLOCK), ("F", 37, FLOCK), ("F", 15, In(quad(0))),
              ("F", 16, Out(8)), ("F", 17, Out(8)), ("F", 1035, Out(8)), ("F", 1036, In(quad(0)))),
    "chdir": named(path=DIR), "getcwd": ((Out(4096), 4096), (Out(1), 1)),
    "execve": tuple((path, ARGUMENTS, ENVIRONMENT) for path in PROGRAM),
    "execveat": (("P", NONE, ARGUMENTS, ENVIRONMENT, EMPTY), ("D", INNER, ARGUMENTS, ENVIRONMENT, 0)),
    "rt_sigaction": tuple((number, ACTION, Out(32), 8) for number in (signal.SIGBUS, signal.SIGUSR1)),
    "sigaltstack": ((STACK, Out(24)),),
    "clone": ((CLONE_PARENT_SETTID | CLONE_CHILD_SETTID | signal.SIGCHLD, 0, Out(4), Out(4), 0),),
    "clone3": ((Inner(quad(CLONE_PARENT_SETTID), quad(0), quad(0), Out(4), quad(signal.SIGCHLD, 0, 0, 0)), 64),),
    "setgroups": ((2, In(struct.pack("<II", 0, 1))),),
    "prlimit64": ((0, 7, LIMIT, Out(16)),), "setrlimit": ((7, LIMIT),), "getrlimit": ((7, Out(16)),),
    "prctl": ((15, In(b"name\0")), (22, 2, FILTER)), "seccomp": ((2, 0, In(b"\0\0\xff\x7f")), (1, 0, FILTER)),
    # The kernel's rows.
    "poll": ((POLL, 1, 0),), "ppoll": ((POLL, 1, TIME, SIGNALS, 8),),
    "select": ((1, READY, READY, READY, Out(16)),),
    "pselect6": ((1, READY, READY, READY, TIME, Inner(SIGNALS, quad(8))),),
    "epoll_wait": (("F", Out(12), 1, 0),), "epoll_pwait": (("F", Out(12), 1, 0, SIGNALS, 8),),
    "epoll_pwait2": (("F", Out(12), 1, TIME, SIGNALS, 8),), "epoll_ctl": (("F", 1, "F", In(b"", 12)),),
    "setsockopt": (("F", 1, 2, In(b"\1\0\0\0"), 4),), "getsockopt": (("F", 1, 2, Out(4), LENGTH),),
    "signalfd": (("F", SIGNALS, 8),), "signalfd4": (("F", SIGNALS, 8, 0),),
    "timerfd_settime": (("F", 0, TIMES, Out(32)),), "timerfd_gettime": (("F", Out(32)),),
    "mq_timedsend": (("F", DATA, 10, 0, TIME),), "mq_timedreceive": (("F", ROOM, 40, Out(4), TIME),),
    "mq_notify": (("F", In(b"", 64)),), "mq_getsetattr": (("F", In(b"", 64), Out(64)),),
    "pidfd_send_signal": (("F", 0, In(b"", 128), 0),), "process_madvise": (("F", IN, 2, 0, 0),),
    "waitid": ((3, "F", Out(128), 4, Out(144)),), "perf_event_open": ((In(b"", 128), 0, -1, "F", 0),),
    "fsconfig": (("F", 1, In(b"key\0"), In(b"value\0"), 0),), "landlock_add_rule": (("F", 1, In(b"", 16), 0),),
    "open_by_handle_at": (("F", In(b"", 136), 0),), "bpf": ((0, In(b"", 72), 72),),
    "io_uring_enter": (("F", 0, 0, 0, SIGNALS, 8),), "io_uring_register": (("F", 2, Out(4), 1),),
}

# Rows of ops.SYSCALLS without pointers.
_WITHOUT = """
lseek ftruncate fallocate fsync fdatasync syncfs sync_file_range fadvise64 readahead flock fchmod fchown tee pidfd_getfd
close close_range dup dup2 dup3 fchdir umask fork vfork unshare exit_group setuid setgid setreuid setregid setresuid
setresgid setfsuid setfsgid shutdown listen inotify_rm_watch process_mrelease fsmount setns landlock_restrict_self kcmp
sync
"""
WITHOUT = set(_WITHOUT.split())
