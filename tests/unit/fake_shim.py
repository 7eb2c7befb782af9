# SPDX-License-Identifier: Apache-2.0
"""The module `_shim` that the runtime builds in, over ctypes: slots, shared offsets, and real memory."""

import ctypes
import errno
import mmap
import os
import resource
import signal
import sys
import threading
import types

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class Shim(types.ModuleType):
    """Descriptors are numbers from 1000 on; a handle is slot | generation << 20, here with generation 1."""

    def __init__(self):
        super().__init__("_shim")
        self.reset()

    def reset(self):
        self.slots = {}  # handle -> [flags, record, path]
        self.offsets = {}
        self.descriptors = {}  # fd -> handle
        self.mask = 0o022
        self.cwd = None
        self.moves = []
        self.descriptors_max = 1 << 16
        self.protected, self.kept = [], []
        self.mappings = []

    def handle(self, fd):
        return self.descriptors[fd]

    def open_fd(self, flags, record, path, cloexec):
        assert isinstance(record, bytes) and len(record) <= 128 and path.startswith(b"/")
        if len(self.descriptors) >= self.descriptors_max:
            raise OSError(errno.EMFILE, "full")
        slot = len(self.slots)
        handle = slot | 1 << 20
        self.slots[handle], self.offsets[handle] = [flags, record, path], 0
        fd = 1000 + slot
        self.descriptors[fd] = handle
        return fd

    def drop(self, fd):
        """close(2) of the last descriptor; returns the handle whose `release` is due."""
        return self.descriptors.pop(fd)

    def slot(self, handle):
        if handle not in self.slots:
            raise OSError(errno.EBADF, "no such slot")
        return tuple(self.slots[handle])

    def offset(self, handle):
        return self.offsets[handle]

    def offset_set(self, handle, value):
        self.offsets[handle] = value

    def offset_cas(self, handle, old, new):
        if self.offsets[handle] != old:
            return False
        self.offsets[handle] = new
        return True

    def offset_add(self, handle, count):
        self.offsets[handle] += count
        return self.offsets[handle] - count

    @staticmethod
    def load(address, length):
        if address < 4096 and length:
            raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))
        return ctypes.string_at(address, length) if length else b""

    @staticmethod
    def store(address, data):
        if address < 4096:
            raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))
        ctypes.memmove(address, bytes(data), len(data))

    @staticmethod
    def probe(address, length, write):
        return length if address >= 4096 else 0

    def keep(self, fd):
        self.kept.append(fd)

    def set_cwd(self, path, inode):
        self.cwd = path

    @staticmethod
    def open_at(path):
        return ()

    def gone(self, inode):
        raise AssertionError(f"nothing was open of {inode}")

    def moved(self, old, new, exchange):
        self.moves.append((old, new, exchange))

    def umask(self):
        return self.mask

    @staticmethod
    def raise_signal(number):
        signal.pthread_kill(threading.get_ident(), number)

    @staticmethod
    def size_limit():
        return resource.getrlimit(resource.RLIMIT_FSIZE)[0]

    @staticmethod
    def lift(up):
        """No file of the tests is that long."""
        return -1

    @staticmethod
    def identity():
        return os.geteuid(), os.getegid()

    @staticmethod
    def cluster():
        return -1

    @staticmethod
    def anonymous(address, length, prot, flags):
        assert flags & mmap.MAP_ANONYMOUS and flags & 0xF == mmap.MAP_PRIVATE
        result = _libc.mmap(address, length, prot, flags, -1, 0)
        if result == ctypes.c_void_p(-1).value:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return result

    @staticmethod
    def map(address, length, prot, flags, fd, offset):
        result = _libc.mmap(address, length, prot, flags, fd, offset)
        if result == ctypes.c_void_p(-1).value:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return result

    @staticmethod
    def unmap(address, length):
        assert _libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(length)) == 0

    def mapped(self, address, length, file, offset):
        self.mappings.append((address, length, file, offset))

    def is_mapped(self, file):
        return any(mapping[2] == file for mapping in self.mappings)

    @staticmethod
    def window(address, length):
        return memoryview((ctypes.c_char * length).from_address(address)).cast("B")

    @staticmethod
    def differences(a, b, gap):
        found = []
        for at, (one, other) in enumerate(zip(a, b)):
            if one != other and found and at - found[-1][1] < gap:
                found[-1] = found[-1][0], at + 1
            elif one != other:
                found.append((at, at + 1))
        return found

    @staticmethod
    def merge(address, old, new):
        now = ctypes.string_at(address, len(old))
        merged = bytes(y if x == z else z for x, y, z in zip(old, new, now))
        ctypes.memmove(address, merged, len(merged))

    def protect(self, address, length, prot):
        self.protected.append((address, length, prot))
        assert _libc.mprotect(address, length, prot) == 0


def install():
    """Put a Shim where `import _shim` finds it; returns it."""
    shim = sys.modules.get("_shim")
    if not isinstance(shim, Shim):
        shim = sys.modules["_shim"] = Shim()
    return shim
