# SPDX-License-Identifier: Apache-2.0
"""A host of the runtime in Python: ``python host.py LIBRARY CHECK``; prints what it found as JSON.

It runs under any Python from 3.6 on, because an application may be any Python.
"""
import ctypes
import json
import os
import re
import signal
import sys
import threading

CALLS = ["identity", "describe", "fail", "odd", "escape", "shim", "forked", "spin", "states", "modules", "interpreter",
         "warn", "worker"]
INT, FD, PATH, STR = range(4)
HEADER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "intercept", "host.h")
with open(HEADER) as header:
    ABI = int(re.search(r"MADFS_HOST_ABI (\d+)", header.read()).group(1))
HANDLE = 5 << 20 | 3


class Arg(ctypes.Structure):
    _fields_ = [("kind", ctypes.c_int), ("value", ctypes.c_long), ("text", ctypes.c_char_p),
                ("length", ctypes.c_size_t)]


class Call(ctypes.Structure):
    _fields_ = [("number", ctypes.c_int), ("count", ctypes.c_int), ("arg", Arg * 6)]


U64, I64, SIZE, INT_P = ctypes.c_uint64, ctypes.c_int64, ctypes.c_size_t, ctypes.c_int
OPEN = ctypes.CFUNCTYPE(INT_P, ctypes.c_uint32, ctypes.c_void_p, SIZE, ctypes.c_void_p, SIZE, INT_P)
SLOT = ctypes.CFUNCTYPE(INT_P, U64, ctypes.POINTER(ctypes.c_uint32), ctypes.c_void_p, ctypes.POINTER(SIZE),
                        ctypes.c_void_p, ctypes.POINTER(SIZE))
GET, SET = ctypes.CFUNCTYPE(I64, U64), ctypes.CFUNCTYPE(None, U64, I64)
CAS, ADD = ctypes.CFUNCTYPE(INT_P, U64, I64, I64), ctypes.CFUNCTYPE(I64, U64, I64)
CWD, UMASK = ctypes.CFUNCTYPE(None, ctypes.c_void_p, SIZE, U64), ctypes.CFUNCTYPE(ctypes.c_uint)
INSIDE = ctypes.CFUNCTYPE(INT_P, INT_P)


COPY, PROBE = ctypes.CFUNCTYPE(INT_P, SIZE, SIZE, SIZE), ctypes.CFUNCTYPE(SIZE, SIZE, SIZE, INT_P)
MAPPED, IS_MAPPED = ctypes.CFUNCTYPE(INT_P, SIZE, SIZE, U64, SIZE), ctypes.CFUNCTYPE(INT_P, U64)
IDENTITY, CLUSTER = ctypes.CFUNCTYPE(None, ctypes.POINTER(ctypes.c_uint), ctypes.POINTER(ctypes.c_uint)), \
    ctypes.CFUNCTYPE(INT_P)
MOVED, KEEP = ctypes.CFUNCTYPE(None, SIZE, SIZE, SIZE, SIZE, INT_P), ctypes.CFUNCTYPE(None, INT_P)


class Host(ctypes.Structure):
    _fields_ = [("abi", ctypes.c_uint32), ("version", ctypes.c_char_p), ("open_fd", OPEN), ("slot_read", SLOT),
                ("offset_get", GET), ("offset_set", SET), ("offset_cas", CAS), ("offset_add", ADD), ("set_cwd", CWD),
                ("umask", UMASK), ("inside", INSIDE), ("copy", COPY), ("probe", PROBE), ("mapped", MAPPED),
                ("is_mapped", IS_MAPPED), ("identity", IDENTITY), ("cluster", CLUSTER), ("moved", MOVED),
                ("keep", KEEP)]


class Runtime(ctypes.Structure):
    _fields_ = [("call", ctypes.CFUNCTYPE(ctypes.c_long, ctypes.POINTER(Call), ctypes.c_char_p,
                                          ctypes.POINTER(ctypes.c_int), use_errno=True)),
                ("exiting", ctypes.CFUNCTYPE(None)), ("fork_begins", ctypes.CFUNCTYPE(None)),
                ("fork_ends", ctypes.CFUNCTYPE(None, ctypes.c_int))]


seen = []


def open_fd(flags, record, length, path, path_length, cloexec):
    seen.append(["open_fd", flags, ctypes.string_at(record, length).decode(),
                 ctypes.string_at(path, path_length).decode(), cloexec])
    return 42 if flags else -24


def slot_read(handle, flags, record, length, path, path_length):
    if handle != 77:
        return -9
    assert (length[0], path_length[0]) == (128, 8192)
    flags[0] = 0x8001
    ctypes.memmove(record, b"r\0ecord", 7)
    length[0] = 7
    ctypes.memmove(path, b"/madfs/file", 11)
    path_length[0] = 11
    return 0


def copy(out, given, size):
    if min(out, given) < 4096:
        return 0
    ctypes.memmove(out, given, size)
    return 1


def identity(user, group):
    user[0], group[0] = os.geteuid(), os.getegid()


def build_host(abi):
    return Host(abi, b"test", OPEN(open_fd), SLOT(slot_read), GET(lambda handle: 1 << 40 if handle == 10 else -9),
                SET(lambda *a: seen.append(["offset_set", *a])), CAS(lambda handle, old, new: old == 1),
                ADD(lambda handle, n: 100),
                CWD(lambda path, n, inode: seen.append(["cwd", ctypes.string_at(path, n).decode(), inode])),
                UMASK(lambda: 0o27), ctypes.cast(ctypes.CDLL(None).abs, INSIDE),  # called while forking: no Python
                COPY(copy), PROBE(lambda at, length, write: length), MAPPED(lambda *a: 0), IS_MAPPED(lambda file: 0),
                IDENTITY(identity), CLUSTER(lambda: -1), MOVED(lambda *a: None), KEEP(lambda fd: None))


class Started:
    """The runtime at ``path``, started."""

    def __init__(self, path, abi=ABI):
        self.library = ctypes.CDLL(path, mode=getattr(os, "RTLD_NOW", 2))
        start = self.library.madfs_runtime_start
        start.restype, start.argtypes = ctypes.POINTER(Runtime), [ctypes.POINTER(Host), ctypes.c_char_p, SIZE]
        self.host, error = build_host(abi), ctypes.create_string_buffer(8192)
        self.runtime = start(ctypes.byref(self.host), error, 8192)
        self.error = error.value.decode()
        if self.runtime:
            table = self.runtime.contents
            os.register_at_fork(before=table.fork_begins, after_in_parent=lambda: table.fork_ends(0),
                                after_in_child=lambda: table.fork_ends(1))
        self.room = ctypes.create_string_buffer(1 << 16)

    def call(self, name, *arguments):
        """Result of a call; ints are integers, bytes paths, and pairs name their kind."""
        call = Call(CALLS.index(name) if isinstance(name, str) else name, len(arguments))
        for arg, given in zip(call.arg, arguments):
            kind, value = given if isinstance(given, tuple) else (PATH if isinstance(given, bytes) else INT, given)
            arg.kind = kind
            if isinstance(value, bytes):
                arg.text, arg.length = value, len(value)
            else:
                arg.value = value
        self.escaped, self.index = ctypes.create_string_buffer(8192), ctypes.c_int(-1)
        return self.runtime.contents.call(ctypes.byref(call), self.escaped, ctypes.byref(self.index))

    def ask(self, name, *arguments):
        """What the call left in memory."""
        assert self.call(name, ctypes.addressof(self.room), *arguments) > 0
        return self.room.value.decode()


def check_calls(runtime):
    found = {"identity": [runtime.call("identity", n) for n in (0, 7, 2 ** 62, -7)],
             "describe": runtime.ask("describe", (FD, HANDLE), b"/madfs/a\xff/", (STR, b""), -1)}
    ctypes.set_errno(77)
    found["fail"] = [runtime.call("fail", code) for code in (2, 4095)]
    found["errno"] = ctypes.get_errno()
    found["odd"] = [runtime.call("odd", which) for which in range(12)]
    found["escape"] = [runtime.call("escape", b"/etc/passwd", 1), runtime.escaped.value.decode(), runtime.index.value]
    found["number"] = [runtime.call(len(CALLS)), runtime.call(-1), runtime.call("identity")]
    return found


def check_shim(runtime):
    ctypes.memmove(runtime.room, b"abc", 3)
    return {"answer": runtime.ask("shim"), "seen": seen}


def check_state(runtime):
    return {"interpreter": runtime.ask("interpreter"), "modules": runtime.ask("modules")}


def check_log(runtime):
    runtime.call("warn", 2)
    runtime.call("odd", 0)
    runtime.runtime.contents.exiting()
    return {}


def check_threads(runtime):
    """Many threads at once, then one after the other; how many the interpreter knows in the end."""
    wrong = []

    def work(number):
        for count in range(300):
            if runtime_local[number].call("identity", number * 1000 + count) != number * 1000 + count:
                wrong.append(number)

    class View(Started):
        def __init__(self):
            self.runtime = runtime.runtime

    runtime_local = [View() for _ in range(8)]
    for _ in range(5):
        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return {"wrong": wrong, "states": runtime.call("states")}


def check_forks(runtime):
    """Children made by this Python's own fork."""
    results = []
    for _ in range(5):
        pid = os.fork()
        if pid == 0:
            right = runtime.call("forked") == 1 and runtime.call("identity", 9) == 9
            os._exit(0 if right else 1)
        results.append(os.waitpid(pid, 0)[1])
    return {"statuses": results, "forked": runtime.call("forked")}


def traces():
    """What a library could have changed in this process: first bytes of libc's functions, and signal handlers."""
    libc = ctypes.CDLL(None)
    names = ("mmap", "munmap", "mremap", "madvise", "shmat", "shmdt", "brk", "sbrk", "mprotect", "malloc", "free")
    code = {name: ctypes.string_at(ctypes.cast(getattr(libc, name), ctypes.c_void_p).value, 16).hex() for name in names}
    own = 0x180000000  # signals 32 and 33, libc's for its threads
    with open("/proc/self/status") as status:
        masks = [line.split() for line in status if line.startswith(("SigCgt", "SigIgn", "SigBlk"))]
    signals = [int(mask, 16) & ~own for _, mask in masks]
    return [code, signals, sorted(os.environ.items()), str(signal.getsignal(signal.SIGINT))]


def check_hygiene(runtime):
    opened = runtime.ask("worker")
    with open("/proc/self/maps") as maps:
        ucx = sorted({line.split()[-1].rpartition("/")[2] for line in maps if "libuc" in line or "libmf" in line})
    return {"worker": opened, "libraries": ucx}


def main():
    before = traces()
    runtime = Started(sys.argv[1], abi=99 if sys.argv[2] == "abi" else ABI)
    if not runtime.runtime:
        print(json.dumps({"error": runtime.error}))
        return
    found = globals()["check_" + sys.argv[2]](runtime)
    found["same"] = traces() == before
    print(json.dumps(found))


if __name__ == "__main__":
    main()
