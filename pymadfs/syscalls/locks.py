# SPDX-License-Identifier: Apache-2.0
"""Locks.  Those that wait return EAGAIN once in a while: the shim looks for signals and asks again."""

import errno

import _shim
from pymadfs import abi
from pymadfs.client import LOCK_TO_END
from pymadfs.errors import fail
from pymadfs.layout import home
from pymadfs.ops import LOCK_ASK, LOCK_RECORD, LOCK_TRY, LOCK_WAIT, LOCK_WHOLE, OWNER_FILE

from . import files
from .files import RECORD, file_of, load, locked, offset_get, opened, put, slot, unlock
from .table import call

_MIX = 0x9E3779B97F4A7C15
_POSIX = {abi.F_GETLK: LOCK_ASK, abi.F_SETLK: LOCK_TRY, abi.F_SETLKW: LOCK_WAIT}
_OFD = {abi.F_OFD_GETLK: LOCK_ASK, abi.F_OFD_SETLK: LOCK_TRY, abi.F_OFD_SETLKW: LOCK_WAIT}


def _description(handle):
    """``(owner, opener)`` of an open file: the same in all processes that share it, and who opened it."""
    image = RECORD.unpack(slot(handle)[1])[4]
    return (image * _MIX + handle) % OWNER_FILE | OWNER_FILE, image & 0xFFFFFFFF


def _keep(file):
    """The connection to the file's home speaks for the lock: the shim takes it along to the next program."""
    door = files.fs.rpc.door(home(file.ino))
    if door >= 0:
        _shim.keep(door)


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
    if start > abi.OFFSET_MAX or end > LOCK_TO_END:
        raise fail(errno.EOVERFLOW)
    if start < 0:
        raise fail(errno.EINVAL)
    return start, end


# fcntl(2): "F_SETLK: ... If a conflicting lock is held by another process, this call returns -1 and sets errno to
# EACCES or EAGAIN ... F_SETLKW: As for F_SETLK, but if a conflicting lock is held on the file, then wait for that
# lock to be released."  "Open file description locks ... l_pid must be 0".
@call
def fcntl_lock(handle, command, address):
    file = opened(handle)
    how = _POSIX.get(command, _OFD.get(command))
    kind, whence, start, length, pid = abi.unpack_flock(load(address, abi.FLOCK_SIZE))
    if how is None or kind not in (abi.F_RDLCK, abi.F_WRLCK, abi.F_UNLCK):
        raise fail(errno.EINVAL)
    if command == abi.F_GETLK and kind == abi.F_UNLCK:  # F_OFD_GETLK: which lock the open file has itself
        raise fail(errno.EINVAL)
    begin, end = _lock_range(handle, file, whence, start, length)
    if how != LOCK_ASK and (kind == abi.F_RDLCK and not file.readable or kind == abi.F_WRLCK and not file.writable):
        raise fail(errno.EBADF)
    owner, opener = files.owner, 0
    if command in _OFD:
        if pid:
            raise fail(errno.EINVAL)
        owner, opener = _description(handle)
    if how == LOCK_ASK:
        return _tell(address, files.fs.lock(file, owner, kind, begin, end, how), whence, start, length)
    if kind != abi.F_UNLCK and not opener:
        locked[file.ino] = file.path
    files.fs.lock(file, owner, kind, begin, end, how, LOCK_RECORD, opener)
    if kind != abi.F_UNLCK:
        files.described = files.described or opener != 0
        _keep(file)
    return 0


# fcntl(2): "returns details about one of those locks in the l_type, l_whence, l_start, and l_len fields of lock.  If
# the conflicting lock is a traditional (process-associated) record lock, then the l_pid field is set to the PID of the
# process holding that lock.  If the conflicting lock is an open file description lock, then l_pid is set to -1."  Linux
# gives a process of another node as a negative number.
def _tell(address, held, whence, start, length):
    if held.type == abi.F_UNLCK:
        return put(address, abi.pack_flock(abi.F_UNLCK, whence, start, length, 0)[:2])
    length = 0 if held.end >= LOCK_TO_END else held.end - held.start
    pid = held.owner & 0x7FFFFFFF
    if held.owner & OWNER_FILE:
        pid = -1
    elif held.owner >> 32 != files.owner >> 32:
        pid = -pid
    return put(address, abi.pack_flock(held.type, abi.SEEK_SET, held.start, length, pid))


# flock(2): "Apply or remove an advisory lock on the open file specified by fd. ... a process may hold only one type of
# lock (shared or exclusive) on a file.  Subsequent flock() calls on an already locked file will convert an existing
# lock to the new lock mode. ... EINVAL: operation is invalid."
@call
def flock(handle, operation):
    if operation & abi.LOCK_MAND:  # Linux ignores these since 5.19
        return 0
    kind = {abi.LOCK_SH: abi.F_RDLCK, abi.LOCK_EX: abi.F_WRLCK, abi.LOCK_UN: abi.F_UNLCK}.get(operation & ~abi.LOCK_NB)
    if kind is None:
        raise fail(errno.EINVAL)
    file = opened(handle)
    owner, opener = _description(handle)
    how = LOCK_TRY if operation & abi.LOCK_NB or kind == abi.F_UNLCK else LOCK_WAIT
    files.fs.lock(file, owner, kind, 0, LOCK_TO_END, how, LOCK_WHOLE, opener)
    if kind != abi.F_UNLCK:
        files.described = True
        _keep(file)
    return 0


# flock(2): "the lock is released either by an explicit LOCK_UN operation ... or when all such file descriptors have
# been closed."
@call
def unlock_file(handle):
    file = file_of(handle)
    owner, opener = _description(handle)
    for space in (LOCK_RECORD, LOCK_WHOLE):
        files.fs.lock(file, owner, abi.F_UNLCK, 0, LOCK_TO_END, LOCK_TRY, space, opener)
    return 0


# fcntl(2): "If a process closes any file descriptor referring to a file, then all of the process's locks on that file
# are released, regardless of the file descriptor(s) on which the locks were obtained."
@call
def closing(handle, inherited):
    """``inherited``: the locks may come from the program that executed this one."""
    file = file_of(handle)
    if file.ino in locked or inherited:
        locked.setdefault(file.ino, file.path)
        unlock(file.ino)
    return 0
