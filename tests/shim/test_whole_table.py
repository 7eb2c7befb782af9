# SPDX-License-Identifier: Apache-2.0
"""Every row of the table with a path and with descriptors of ours: what is not the kernel's never gets there.

observer.c watches from outside what the kernel is asked.
"""
import errno
import json
import os
import subprocess
from pathlib import Path

import pytest
from support import AS_ROOT, TIMEOUT_S, call_numbers

from pymadfs import ops

CWD, EMPTY_PATH = -100, 0x1000
FILE, FOLDER = 777, 778  # descriptors of ours, by numbers that nothing else has
TOGETHER = 50  # calls of one process
MOUNT = "/madfs/"
NAMES = {**errno.errorcode, errno.EOPNOTSUPP: "EOPNOTSUPP"}

# What the shim asks the kernel about its placeholders itself, and what it lets pass when it has taken part in it.
SHIM = {"close", "close_range", "dup", "dup2", "dup3", "fcntl", "lseek", "fstat", "openat", "ioctl"}
# Rows that C answers: where their descriptors and paths are.
PLACES = {
    "copy_file_range": ("fd 0", "fd 2"), "sendfile": ("fd 0", "fd 1"), "fchdir": ("fd 0",), "chdir": ("path 0",),
    "flock": ("fd 0",),
    "execve": ("path 0",), "execveat": ("at 0 1",), "splice": ("fd 0", "fd 2"), "tee": ("fd 0", "fd 1"),
}
UNTRIED = {"close", "close_range", "dup", "dup2", "dup3",  # test_system_calls.py; FILE would be gone
           "fork", "vfork", "clone", "clone3", "exit_group", "umask", "getcwd", "rt_sigaction", "sigaltstack",
           "unshare", "prctl", "seccomp",
           "prlimit64", "setrlimit", "getrlimit",  # of no descriptor in particular
           "munmap", "mremap", "msync", "mprotect", "pkey_mprotect",  # these name memory
           "io_uring_setup", "io_submit", "bind", "connect", "sendmsg", "recvmsg", "sendmmsg", "recvmmsg",
           "pidfd_getfd", "fcntl",
           "accept", "accept4", "getsockname", "getpeername", "sendto", "recvfrom",  # of sockets; test_placeholder.py
           "setuid", "setgid", "setreuid", "setregid", "setresuid", "setresgid", "setfsuid", "setfsgid", "setgroups"}


def places(row):
    """``[("fd", 0), ("at", 0, 1), ("path", 1)]``: arguments of a row that are descriptors and paths."""
    if row.name in PLACES:
        texts = [place.split() for place in PLACES[row.name]]
        return [(kind, *map(int, rest)) for kind, *rest in texts]
    found = []
    for kind, *values in ops.arguments(row.call):
        if kind == "fd":
            found.append(("fd", int(values[0][1:])))
        elif kind == "at" and values[0].startswith("a"):
            found.append(("at", int(values[0][1:]), int(values[1][1:])))
        elif kind == "at":
            found.append(("path", int(values[1][1:])))
    return found


def calls(row):
    """Lines for sys.c: each place in turn is ours, by path, by directory and by the descriptor alone."""
    flags = int(row.flags[1:]) if row.flags and row.flags.startswith("a") else None
    for place in places(row):
        kind, *at = place
        ways = [{at[0]: FILE}, {at[0]: FOLDER}] if kind == "fd" else [{at[-1]: f"{MOUNT}o/x"}, {at[-1]: f"{MOUNT}o"},
                                                                     {at[-1]: "/proc/self/fd/777"}]
        if kind == "at":
            ways += [{at[0]: FOLDER, at[1]: "x"}, {at[0]: FOLDER, at[1]: "str:"}, {at[0]: FILE, at[1]: "null"}]
            ways += [{at[0]: FILE, at[1]: path, n: EMPTY_PATH} for path in ("null", "str:")
                     for n in ([flags] if flags is not None else range(at[1] + 1, 6))]
        for way in ways:
            if row.name == "mmap":
                way[3] = 2  # private: an anonymous mapping is of no descriptor
            for others in (["0"], ["buf:4096", "8"], ["8", "buf:4096"]):
                yield " ".join([row.name, *(str(way.get(n, others[n % len(others)])) for n in range(6))])


def rows():
    machine = os.uname().machine
    return [row for row in ops.SYSCALLS.values() if row.only in (None, machine) and not row.kernel
            and row.name not in UNTRIED]


@pytest.fixture(scope="module")
def observer(tmp_path_factory, compiler):
    return compiler(tmp_path_factory.mktemp("observer") / "observer", Path(__file__).with_name("observer.c"))


@pytest.fixture
def observed(on_mount, observer, programs, tmp_path):
    """Makes calls with FILE and FOLDER open; their results, and what the kernel saw: (name, arguments)."""
    prepare = (f"mkdirat {CWD} {MOUNT}o 0755 , openat {CWD} {MOUNT}o/f 66 0644 , dup2 $1 {FILE} , "
               f"openat {CWD} {MOUNT}o 65536 , dup2 $3 {FOLDER}")
    known = {number: name for name, number in call_numbers().items()}

    def observed(lines):
        report = tmp_path / "report"
        done = on_mount(observer, MOUNT, report, FILE, FOLDER, "--", programs / "sys",
                        *f"{prepare} , {' , '.join(lines)}".split(), timeout=2 * TIMEOUT_S)
        if "ptrace" in done.stderr:
            pytest.skip(f"tracing is not allowed here: {done.stderr}")
        assert (done.returncode, done.stderr) == (0, ""), done
        seen = [(known.get(int(line.split()[0]), line), line.split()[1:]) for line in report.read_text().splitlines()]
        results = [json.loads(text) for text in done.stdout.splitlines()]
        return [NAMES[one["errno"]] if one["ret"] == -1 else one["ret"] for one in results[5:]], seen

    return observed


def reached(seen):
    """Calls that the kernel saw with something of ours where the row has a descriptor or a path."""
    wrong = set()
    for name, arguments in seen:
        row = ops.SYSCALLS.get(name)
        if row is None or row.kernel or name in SHIM:
            continue
        where = {(f"{n}:fd" if kind != "path" and n == place[0] else f"{n}:path")
                 for kind, *place in places(row) for n in place}
        if where & set(arguments):
            wrong.add(f"{name} {' '.join(arguments)}")
    return sorted(wrong)


@AS_ROOT
def test_the_kernel_sees_nothing_of_ours(observed):
    lines = [line for row in rows() for line in calls(row)]
    assert len(lines) > 1000
    wrong, results = {}, {}
    for at in range(0, len(lines), TOGETHER):
        some = lines[at:at + TOGETHER]
        answers, seen = observed(some)
        wrong.update(dict.fromkeys(reached(seen), some))
        results.update(zip(some, answers))
    assert not wrong, "\n".join(sorted(wrong))
    refused = {line: results[line] for line in lines if ops.SYSCALLS[line.split()[0]].refuse}
    assert {line: answer for line, answer in refused.items() if not isinstance(answer, str)} == {}, "false success"


def test_the_observer_sees(observed):
    """What passes is seen: a row of the kernel's."""
    _, seen = observed([f"epoll_wait {FILE} buf:99 1 0"])
    assert ("epoll_wait", ["0:fd"]) in seen


def test_every_row_is_tried():
    tried = {row.name for row in rows() if list(calls(row))}
    assert {row.name for row in rows()} - tried == set()
    assert len(tried) > 100 and ops.SYSCALLS.keys() >= UNTRIED


def test_nothing_is_newer_than_the_table():
    """The kernel that runs here may have calls that no header tells of: their numbers follow the last one known."""
    known = set(call_numbers().values())
    last = max(known)
    call = "import ctypes, sys; c = ctypes.CDLL(None, use_errno=True); "
    call += "r = c.syscall(int(sys.argv[1]), -1, 0, 0, 0, 0, 0); print(ctypes.get_errno() if r < 0 else 0)"
    unknown = []
    for number in range(last + 1, last + 12):
        done = subprocess.run(["python3", "-c", call, str(number)], capture_output=True, text=True, timeout=TIMEOUT_S,
                              check=True)
        if int(done.stdout) != errno.ENOSYS:
            unknown.append(number)
    assert len(known) > 300 and unknown == []
