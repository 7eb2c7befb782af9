# SPDX-License-Identifier: Apache-2.0
"""Makes each system call of CALLS with each of its pointers wrong in each way, in the directory ``argv[1]``; prints
``{call: result}`` as JSON.  ``argv[2]`` has the numbers of the calls; with ``argv[3]`` "some", when something else is
wrong, too, pointers are wrong in one way only.

All calls are made in this one process: were one of them to crash, all would be missing.
"""
import ctypes
import errno
import json
import os
import shutil
import socket
import struct
import sys

from pointer_calls import CALLS, CREATORS, In, Inner, Out, Path, Spot

from pymadfs import ops

PAGE = 4096
CONTENT = b"#!/bin/true\n" + bytes(range(100))
SIZE = len(CONTENT)
NAMES = {**errno.errorcode, errno.EOPNOTSUPP: "EOPNOTSUPP"}
KEEPS = NAMES.values()  # after these results all is as it was
CONSUMERS = ("accept", "accept4", "recvmsg", "recvmmsg", "recvfrom")  # but for these calls
# These change nothing but positions.
READERS = ("newfstatat", "stat", "lstat", "fstat", "statx", "faccessat", "faccessat2", "access", "readlinkat",
           "readlink", "statfs", "fstatfs", "read", "pread64", "readv", "preadv", "preadv2", "getdents", "getdents64",
           "getcwd", "getxattr", "lgetxattr", "fgetxattr", "getxattrat", "listxattr", "llistxattr", "flistxattr",
           "listxattrat",
           "ioctl", "fcntl", "poll", "ppoll", "select", "pselect6", "getrlimit", "prlimit64", "setrlimit", "mmap",
           "rt_sigaction", "sigaltstack", "execve", "execveat", "clone", "clone3", "msync", "munmap", "mprotect",
           "pkey_mprotect", "mremap", "acct", "setgroups", "waitid")
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]


def region(protection):
    """Address of a page with ``protection``, and behind it one that nobody may touch."""
    at = libc.mmap(None, 2 * PAGE, 3, 0x22, -1, 0)
    libc.mprotect(ctypes.c_void_p(at + PAGE), PAGE, 0)
    libc.mprotect(ctypes.c_void_p(at), PAGE, protection)
    return at


# Ways in which a pointer is wrong -> its address; "cut": the page ends one byte before the object does.
ADDRESSES = {"NULL": 0, "1": 1, "hole": 0x1000000000, "noaccess": region(0), "minus": (1 << 64) - 8,
             "noncanonical": 0x8000000000000000, "readonly": region(1), "cut": None}


class Memory:
    """Objects of one call."""

    def __init__(self):
        self.kept = []
        self.cut = region(3)

    def whole(self, data, size):
        buffer = ctypes.create_string_buffer(data.ljust(size, b"\0"), max(size, 1) + 8)
        self.kept.append(buffer)
        return ctypes.addressof(buffer)

    def short(self, data, size):
        at = self.cut + PAGE - (size - 1)
        ctypes.memmove(at, data.ljust(size, b"\0")[:size - 1], size - 1)
        return at


MEMORY = Memory()


class World:
    """The files, descriptors and paths that calls use."""

    def __init__(self, top):
        self.top, self.fds = top, {}
        self.build()

    def build(self):
        for fd in self.fds.values():
            try:
                os.close(fd)
            except OSError:
                pass
        os.chdir("/")
        if os.path.exists(self.top):
            shutil.rmtree(self.top)
        os.mkdir(self.top)
        os.chdir(self.top)
        os.mkdir("dir")
        os.mkdir("empty")
        os.symlink("file", "link")
        for name in ("file", "dir/inner", "other"):
            fd = os.open(name, os.O_CREAT | os.O_RDWR, 0o755)
            os.write(fd, CONTENT)
            os.close(fd)
        os.setxattr("file", "user.one", b"value")
        pipe = os.pipe()
        pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        pair[1].send(b"datagram")
        free = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind("bound")
        listener.listen(4)
        listener.setblocking(False)
        visitor = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        visitor.connect("bound")
        os.write(pipe[1], b"in the pipe")
        self.fds = {"F": os.open("file", os.O_RDWR), "G": os.open("other", os.O_RDWR), "D": os.open("dir", os.O_RDONLY),
                    "P": os.open("dir/inner", os.O_RDONLY),
                    "R": pipe[0], "W": pipe[1], "S": pair[0].detach(), "T": pair[1].detach(), "N": free.detach(),
                    "L": listener.detach(), "V": visitor.detach()}
        os.set_inheritable(self.fds["P"], True)

    def state(self, result):
        """What a call that gave ``result`` may have changed and is worth comparing."""
        fd = self.fds["F"]
        return os.lseek(fd, 0, os.SEEK_CUR), SIZE if result in KEEPS else os.fstat(fd).st_size

    def restore(self, name, label, result):
        """All is as before the call ``name`` again, whatever it did."""
        if name in READERS and label != "pipe":
            for fd in "FGD":
                os.lseek(self.fds[fd], 0, os.SEEK_SET)
        elif result not in KEEPS or name in CONSUMERS:
            self.build()


def spots(arguments, at=()):
    """Where the pointers of a call are: positions, with those within objects behind them."""
    for number, argument in enumerate(arguments):
        here = (*at, number)
        if isinstance(argument, (In, Out, Path, Inner, Spot)):
            yield here, argument
        if isinstance(argument, Inner):
            yield from spots(argument.parts, here)


def place(argument, world, here, wrong, address):
    """The value of one argument, or its bytes in an object: ``wrong`` is the pointer that gets ``address``."""
    if isinstance(argument, str):
        return world.fds.get(argument, 999)
    if isinstance(argument, int):
        return argument
    if isinstance(argument, Spot):
        return address if here == wrong else argument.value
    data, size = b"", argument.size
    if isinstance(argument, Inner):
        for number, part in enumerate(argument.parts):
            data += part if isinstance(part, bytes) else struct.pack(
                "<Q", place(part, world, (*here, number), wrong, address) & (1 << 64) - 1)
    elif isinstance(argument, Path):
        data = argument.bytes(world.top)
    elif isinstance(argument, In):
        data = argument.data
    size = size or len(data)
    if here != wrong:
        return MEMORY.whole(data, size)
    return MEMORY.short(data, size) if address is None else address


def perform(world, name, number, arguments, wrong, address):
    MEMORY.kept.clear()
    values = [place(argument, world, (n,), wrong, address) for n, argument in enumerate(arguments)]
    values += [0] * (6 - len(values))
    if name.startswith("execve"):
        return executed(number, values)
    result = libc.syscall(ctypes.c_long(number), *map(ctypes.c_ulong, (value & (1 << 64) - 1 for value in values)))
    if result == 0 and name in ("clone", "clone3"):
        os._exit(0)
    if result < 0:
        return NAMES[ctypes.get_errno()]
    if name in CREATORS:
        os.close(result)
        return "descriptor"
    if name in ("clone", "clone3"):
        os.waitpid(result, 0x40000000)
        return "child"
    return "number" if name in ("mmap", "mremap", "getcwd") else result


def executed(number, values):
    child = os.fork()
    if child == 0:
        libc.syscall(ctypes.c_long(number), *map(ctypes.c_ulong, (value & (1 << 64) - 1 for value in values)))
        os._exit(ctypes.get_errno())
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return NAMES.get(status, status)


# What else is wrong with the call: what takes the place of descriptors and of paths.
WORLDS = {"": {}, "closed": {"F": "X"}, "directory": {"F": "D"}, "gone": {"paths": b"none/x"},
          "file": {"paths": b"file/x", "D": "F"}, "pipe": {"F": "R"}}


def changed(argument, how):
    if isinstance(argument, str):
        return how.get(argument, argument)
    if isinstance(argument, Path) and "paths" in how:
        return Path(how["paths"], argument.absolute)
    if isinstance(argument, Inner):
        return Inner(*(changed(part, how) for part in argument.parts))
    return argument


def same(one, other):
    return [str(argument) for argument in one] == [str(argument) for argument in other]


def main():
    numbers, some = json.loads(sys.argv[2]), sys.argv[3] == "some"
    world, found, before = World(sys.argv[1]), {}, (0, SIZE)
    for name, variants in CALLS.items():
        if name not in numbers:
            continue
        for variant, arguments in enumerate(variants):
            for label, how in WORLDS.items():
                these = [changed(argument, how) for argument in arguments]
                if how and same(these, arguments):
                    continue
                for wrong, argument in spots(these):
                    for way, address in ADDRESSES.items():
                        if way not in argument.ways or label and some and way != "noaccess":
                            continue
                        result = perform(world, name, numbers[name], these, wrong, address)
                        after = world.state(result)
                        key = f"{name} {variant} {'.'.join(map(str, wrong))}={way} {label}".strip()
                        found[key] = result if after == before else [result, *after]
                        world.restore(name, label, result if after == before else after)
    print(json.dumps(found))


if __name__ == "__main__":
    assert ops.SYSCALLS.keys() >= CALLS.keys()
    main()
