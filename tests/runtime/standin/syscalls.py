# SPDX-License-Identifier: Apache-2.0
"""Takes the place of pymadfs/syscalls/ in a runtime made for tests: calls whose answers show what the bridge did."""
import gc
import sys

import _shim

CLIENT = ("abi", "client", "cluster", "config", "door", "errors", "layout", "log", "ops", "rpc", "transport",
          "transport.ucx")


class HostPath(Exception):
    pass


class Refused(OSError):
    pass


forks = 0
workers = []


def answer(address, value):
    """Leave ``repr(value)`` at ``address``, with a zero byte; its length."""
    text = repr(value).encode()
    _shim.store(address, text + b"\0")
    return len(text)


def identity(value):
    return value


def describe(address, handle, path, text, number):
    return answer(address, (handle, path, text, number))


def fail(code):
    raise Refused(code, "refused")


def odd(which):
    if which == 0:
        raise KeyError("a defect")
    if which == 1:
        raise MemoryError
    if which == 2:
        raise OSError
    if which == 3:
        raise OSError(5000, "not an errno")
    if which == 4:
        raise HostPath(b"/" * 9000, 0)
    if which == 5:
        raise SystemExit(3)
    if which == 6:
        raise OSError("not", "a number")
    return (None, -7, 1 << 70, "text", True)[which - 7]


def escape(path, index):
    raise HostPath(path, index)


def shim(address):
    """Every function of ``_shim`` against the table of the test's host."""
    results = [_shim.open_fd(5, b"record", b"/madfs/x", 1), _shim.slot(77), _shim.offset(10), _shim.offset_set(10, -1),
               _shim.offset_cas(10, 1, 2), _shim.offset_cas(10, 3, 4), _shim.offset_add(10, 5), _shim.load(address, 3),
               _shim.set_cwd(b"/madfs/here", 1 << 63), _shim.umask()]
    page = _shim.anonymous(0, 8192, 3, 2)
    _shim.store(page, b"kept")
    _shim.protect(page, 4096, 1)
    results.append(_shim.load(page, 5))
    refused = []
    for function, arguments in ((_shim.open_fd, (5, b"r" * 129, b"/", 0)), (_shim.open_fd, (5, b"", b"/" * 8192, 0)),
                                (_shim.open_fd, (0, b"", b"/full", 0)), (_shim.slot, (1,)), (_shim.slot, ()),
                                (_shim.offset, (1,)), (_shim.load, (0, 4)), (_shim.store, (8, b"x")),
                                (_shim.store, (page, "text")), (_shim.protect, (1, 4096, 1)), (_shim.offset, ("x",))):
        try:
            function(*arguments)
        except (OSError, TypeError, ValueError) as error:
            refused.append((type(error).__name__, getattr(error, "errno", None)))
    return answer(address, (results, refused))


def forked():
    return forks


def spin(count):
    """Keeps the interpreter busy and gives the GIL away now and then."""
    total = 0
    for index in range(count):
        total += index
    return total


def states():
    """Threads the interpreter knows of."""
    return len(sys._current_frames())


def modules(address):
    for name in CLIENT:
        __import__("pymadfs." + name)
    return answer(address, sorted(sys.modules))


def interpreter(address):
    streams = [getattr(sys, name, None) for name in ("stdin", "stdout", "__stderr__")]
    streams = [stream is None or stream.fileno() < 0 for stream in streams]
    return answer(address, (getattr(sys, "path", []), streams, sys.flags.isolated, sys.flags.utf8_mode, gc.isenabled(),
                            gc.get_freeze_count() > 1000))


def warn(count):
    for index in range(count):
        print("line", index, file=sys.stderr)
    return 0


def worker(address):
    """Open a UCX worker and keep it."""
    from ._ucx_cffi import ffi, lib

    message = ffi.new("char[]", 256)
    opened = lib.ux_open(ffi.NULL, 0, message, 256)
    if not opened:
        return answer(address, ffi.string(message))
    workers.append(opened)
    room = ffi.new("char[]", 8192)
    length = lib.ux_address(opened, room, 8192)
    return answer(address, length > 0)


def start():
    """Nothing has to be there before the first call."""


def after_fork_child():
    global forks
    forks += 1
    workers.clear()


def exiting():
    print("exiting", file=sys.stderr)


CALLS = [identity, describe, fail, odd, escape, shim, forked, spin, states, modules, interpreter, warn, worker]
