# SPDX-License-Identifier: Apache-2.0
"""Record locks."""

import errno

from pymadfs import abi
from pymadfs.client import LOCK_TO_END
from pymadfs.errors import fail

from . import files
from .files import load, locked, offset_get, opened, put
from .table import call


# fcntl(2): "l_whence, l_start, and l_len fields of this structure specify the range of bytes we wish to lock. ...
# Specifying 0 for l_len has the special meaning: lock all bytes starting at the location specified by l_whence and
# l_start"
def _lock_range(handle, file, whence, start, length):
    """``(start, end)`` in bytes from the start of the file."""
    if whence == abi.SEEK_CUR:
        start += offset_get(handle)
    elif whence == abi.SEEK_END:
        start += files.fs.getattr(file).size
    elif whence != abi.SEEK_SET:
        raise fail(errno.EINVAL)
    end = start + length if length else LOCK_TO_END
    if length < 0:
        start, end = end, start
    if start < 0:
        raise fail(errno.EINVAL)
    if start > abi.OFFSET_MAX or end > LOCK_TO_END:
        raise fail(errno.EOVERFLOW)
    return start, end


# fcntl(2): "F_SETLK: ... If a conflicting lock is held by another process, this call returns -1 and sets errno to
# EACCES or EAGAIN ... F_SETLKW: As for F_SETLK, but if a conflicting lock is held on the file, then wait for that
# lock to be released."
@call
def fcntl_lock(handle, command, address):
    file = opened(handle)
    kind, whence, start, length, _ = abi.unpack_flock(load(address, abi.FLOCK_SIZE))
    if command not in (abi.F_GETLK, abi.F_SETLK, abi.F_SETLKW) or kind not in (abi.F_RDLCK, abi.F_WRLCK, abi.F_UNLCK):
        raise fail(errno.EINVAL)
    start, end = _lock_range(handle, file, whence, start, length)
    if command == abi.F_GETLK:
        if kind == abi.F_UNLCK:
            raise fail(errno.EINVAL)
        held = files.fs.lock(file, files.owner, kind, start, end, 2)
        if held.type == abi.F_UNLCK:
            return put(address, abi.pack_flock(abi.F_UNLCK, whence, start, length, 0)[:2])
        length = 0 if held.end >= LOCK_TO_END else held.end - held.start
        return put(address, abi.pack_flock(held.type, abi.SEEK_SET, held.start, length, held.owner & 0x7FFFFFFF))
    if kind == abi.F_RDLCK and not file.readable or kind == abi.F_WRLCK and not file.writable:
        raise fail(errno.EBADF)
    if kind != abi.F_UNLCK:
        locked[file.ino] = file.path
    # Not waiting for the answer: the shim asks again.
    files.fs.lock(file, files.owner, kind, start, end, 1 if command == abi.F_SETLKW else 0, False)
    return 0
