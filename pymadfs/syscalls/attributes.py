# SPDX-License-Identifier: Apache-2.0
"""Attributes of files."""

import errno
import posix

from pymadfs import abi
from pymadfs.client import S_IFLNK, S_IFMT, S_IFREG, allowed
from pymadfs.errors import fail
from pymadfs.ops import (
    SET_ATIME,
    SET_ATIME_NOW,
    SET_CHOWN,
    SET_GID,
    SET_LINK,
    SET_MODE,
    SET_MTIME,
    SET_MTIME_NOW,
    SET_UID,
)

from . import files
from .files import file_of, load, offset_get, opened, put
from .table import call

_SHARING = (abi.FICLONE, abi.FICLONERANGE, abi.FIDEDUPERANGE)


# ioctl(2): "ENOTTY: The specified operation does not apply to the kind of object that the file descriptor fd
# references."  ioctl_ficlone(2): "EOPNOTSUPP: This can appear if the filesystem does not support reflinking".
@call
def ioctl(handle, request, argument):
    file = opened(handle)
    request &= 0xFFFFFFFF
    if request in _SHARING and file.mode & S_IFMT == S_IFREG:
        raise fail(errno.EOPNOTSUPP)
    if request != abi.FIONREAD or file.mode & S_IFMT != S_IFREG:
        raise fail(errno.ENOTTY)
    left = files.fs.getattr(file).size - offset_get(handle)
    return put(argument, abi.INT.pack((left + (1 << 31)) % (1 << 32) - (1 << 31)))


def _lookup(path, flags, known=0):
    """The attributes that a call with AT_* ``flags`` means; ``known`` are those it takes beside AT_SYMLINK_NOFOLLOW."""
    if flags & ~(abi.AT_SYMLINK_NOFOLLOW | abi.AT_EMPTY_PATH | known):
        raise fail(errno.EINVAL)
    return files.fs.lookup(files.fs.inside(path), not flags & abi.AT_SYMLINK_NOFOLLOW)[1]


# stat(2): "return information about a file, in the buffer pointed to by statbuf."
@call
def newfstatat(path, buffer, flags):
    return put(buffer, abi.pack_stat(_lookup(path, flags, abi.AT_NO_AUTOMOUNT)))


# fstat(2): "identical to stat(), except that the file about which information is to be retrieved is specified by the
# file descriptor fd."
@call
def fstat(handle, buffer):
    return put(buffer, abi.pack_stat(files.fs.getattr(file_of(handle))))


# statx(2): "A filesystem may also fill in fields that the caller didn't ask for if it has values for them available"
@call
def statx(path, flags, mask, buffer):
    if mask & abi.STATX_RESERVED or flags & abi.AT_STATX_SYNC_TYPE == abi.AT_STATX_SYNC_TYPE:
        raise fail(errno.EINVAL)
    return put(buffer, abi.pack_statx(_lookup(path, flags, abi.AT_NO_AUTOMOUNT | abi.AT_STATX_SYNC_TYPE)))


@call
def fstatx(handle, mask, buffer):
    if mask & abi.STATX_RESERVED:
        raise fail(errno.EINVAL)
    return put(buffer, abi.pack_statx(files.fs.getattr(file_of(handle))))


# access(2): "checks whether the calling process can access the file ... The check is done using the calling process's
# real UID and GID ... AT_EACCESS: Perform access checks using the effective user and group IDs."
@call
def faccessat(path, mode, flags):
    if mode & ~7:
        raise fail(errno.EINVAL)
    if flags & abi.AT_EACCESS:
        return _access(_lookup(path, flags, abi.AT_EACCESS), mode)
    before = _become_real()
    try:
        return _access(_lookup(path, flags, abi.AT_EACCESS), mode)
    finally:
        if before:
            files.fs.rpc.identify(before.uid, before.gid, posix.getgroups())


@call
def faccess(handle, mode, flags):
    if mode & ~7 or flags & ~(abi.AT_EACCESS | abi.AT_SYMLINK_NOFOLLOW | abi.AT_EMPTY_PATH):
        raise fail(errno.EINVAL)
    before = None if flags & abi.AT_EACCESS else _become_real()
    try:
        return _access(files.fs.getattr(file_of(handle)), mode)
    finally:
        if before:
            files.fs.rpc.identify(before.uid, before.gid, posix.getgroups())


def _become_real():
    """Ask with the real user and group; returns who it was before where that is somebody else."""
    who = files.fs.rpc.who
    uid, gid = posix.getuid(), posix.getgid()
    if (uid, gid) == (who.uid, who.gid):
        return None
    files.fs.rpc.identify(uid, gid, posix.getgroups())
    return who


def _access(attr, mode):
    if mode and not allowed(attr, files.fs.rpc.who, mode):
        raise fail(errno.EACCES)
    return 0


# readlink(2): "places the contents of the symbolic link pathname in the buffer buf, which has size bufsiz.  readlink()
# does not append a terminating null byte to buf. ... EINVAL: The named file is not a symbolic link."
@call
def readlinkat(path, buffer, size):
    if size <= 0:
        raise fail(errno.EINVAL)
    path, attr, target = files.fs.lookup(files.fs.inside(path), follow=False)
    if attr.mode & S_IFMT != S_IFLNK:
        raise fail(errno.EINVAL)
    files.fs.followed(path, attr)
    put(buffer, target[:size])
    return min(len(target), size)


# readlink(2): "Since Linux 2.6.39, pathname can be an empty string, in which case the call operates on the symbolic
# link referred to by dirfd (which should have been obtained using open(2) with the O_PATH and O_NOFOLLOW flags)."
@call
def freadlink(handle, buffer, size):
    if size <= 0:
        raise fail(errno.EINVAL)
    file = file_of(handle)
    if file.mode & S_IFMT != S_IFLNK:
        raise fail(errno.ENOENT)
    target = files.fs.target(file)
    put(buffer, target[:size])
    return min(len(target), size)


# statfs(2): "returns information about a mounted filesystem."
@call
def statfs(path, buffer):
    files.fs.lookup(files.fs.inside(path))
    return put(buffer, abi.pack_statfs(*files.fs.statfs()))


@call
def fstatfs(handle, buffer):
    file_of(handle)
    return put(buffer, abi.pack_statfs(*files.fs.statfs()))


# chmod(2): "change a file's mode bits"; "AT_SYMLINK_NOFOLLOW: ... EOPNOTSUPP" for a symbolic link.
@call
def fchmodat(path, mode, flags):
    if flags & ~(abi.AT_SYMLINK_NOFOLLOW | abi.AT_EMPTY_PATH):
        raise fail(errno.EINVAL)
    attr = files.fs.setattr(files.fs.inside(path), SET_MODE, not flags & abi.AT_SYMLINK_NOFOLLOW, mode=mode & 0o7777)
    if attr.mode & S_IFMT == S_IFLNK:
        raise fail(errno.EOPNOTSUPP)
    return 0


@call
def fchmod(handle, mode, flags):
    file = _by_descriptor(handle, flags)
    if file.mode & S_IFMT == S_IFLNK:
        raise fail(errno.EOPNOTSUPP)
    files.fs.fsetattr(file, SET_MODE, mode=mode & 0o7777)
    return 0


def _by_descriptor(handle, flags):
    """The open file of a handle.  open(2): O_PATH is for AT_EMPTY_PATH, which is looked up as a path."""
    if flags & ~(abi.AT_SYMLINK_NOFOLLOW | abi.AT_EMPTY_PATH):
        raise fail(errno.EINVAL)
    return file_of(handle) if flags & abi.AT_EMPTY_PATH else opened(handle)


def _owners(uid, gid):
    """``(valid, uid, gid)``.  chown(2): "If the owner or group is specified as -1, then that ID is not changed." """
    uid, gid = uid & 0xFFFFFFFF, gid & 0xFFFFFFFF
    unchanged = 0xFFFFFFFF
    return SET_CHOWN | (SET_UID if uid != unchanged else 0) | (SET_GID if gid != unchanged else 0), uid, gid


# chown(2): "change the owner and group of a file.  lchown() is like chown(), but does not dereference symbolic links."
@call
def fchownat(path, uid, gid, flags):
    if flags & ~(abi.AT_SYMLINK_NOFOLLOW | abi.AT_EMPTY_PATH):
        raise fail(errno.EINVAL)
    valid, uid, gid = _owners(uid, gid)
    return _set(path, flags, valid, uid=uid, gid=gid)


@call
def fchown(handle, uid, gid, flags):
    file = _by_descriptor(handle, flags)
    valid, uid, gid = _owners(uid, gid)
    files.fs.fsetattr(file, valid, uid=uid, gid=gid)
    return 0


def _set(path, flags, valid, **values):
    """Change attributes of a path, or of the link that it names."""
    follow = not flags & abi.AT_SYMLINK_NOFOLLOW
    files.fs.setattr(files.fs.inside(path), valid if follow else valid | SET_LINK, follow, **values)
    return 0


# utimensat(2): "If times is NULL, then both timestamps are set to the current time. ... UTIME_NOW ... set to the
# current time ... UTIME_OMIT ... left unchanged."
def _timespecs(address):
    """``(valid, atime, mtime)`` of two ``struct timespec``; valid 0 when there is nothing to do."""
    if not address:
        return SET_ATIME_NOW | SET_MTIME_NOW, 0, 0
    seconds_a, ns_a, seconds_m, ns_m = abi.TIMESPECS.unpack(load(address, abi.TIMESPECS.size))
    valid, times = 0, []
    for seconds, ns, exact, now in (
        (seconds_a, ns_a, SET_ATIME, SET_ATIME_NOW),
        (seconds_m, ns_m, SET_MTIME, SET_MTIME_NOW),
    ):
        if ns == abi.UTIME_NOW:
            valid |= now
        elif ns != abi.UTIME_OMIT:
            valid |= exact
            if not 0 <= ns < 1_000_000_000:
                raise fail(errno.EINVAL)
        times.append(_nanoseconds(seconds, ns) if valid & exact else 0)
    return valid, *times


def _checked_timespecs(address, find, *arguments):
    """As ``_timespecs``; what ``find(*arguments)`` raises comes before EINVAL."""
    try:
        return _timespecs(address)
    except OSError as error:
        if error.errno == errno.EINVAL:
            find(*arguments)
        raise


def _nanoseconds(seconds, ns):
    """Time in nanoseconds, clamped to what 64 bits hold, as file systems of Linux clamp to their range."""
    return max(-abi.OFFSET_MAX, min(abi.OFFSET_MAX, seconds * 1_000_000_000 + ns))


@call
def utimensat(path, times, flags):
    valid, atime, mtime = _checked_timespecs(times, _lookup, path, flags)
    if not valid:  # Linux looks at nothing else
        return 0
    if flags & ~(abi.AT_SYMLINK_NOFOLLOW | abi.AT_EMPTY_PATH):
        raise fail(errno.EINVAL)
    return _set(path, flags, valid, atime=atime, mtime=mtime)


@call
def futimens(handle, times, flags):
    valid, atime, mtime = _checked_timespecs(times, _by_descriptor, handle, flags)
    if not valid:  # Linux looks at nothing else
        return 0
    files.fs.fsetattr(_by_descriptor(handle, flags), valid, atime=atime, mtime=mtime)
    return 0


# futimesat(2): "operates in exactly the same way as utimes(2)": two struct timeval, or NULL for now.
def _timevals(address):
    """``(valid, atime, mtime)`` of two ``struct timeval``."""
    if not address:
        return SET_ATIME_NOW | SET_MTIME_NOW, 0, 0
    seconds_a, us_a, seconds_m, us_m = abi.TIMESPECS.unpack(load(address, abi.TIMESPECS.size))
    if not (0 <= us_a < 1_000_000 and 0 <= us_m < 1_000_000):
        raise fail(errno.EINVAL)
    return SET_ATIME | SET_MTIME, _nanoseconds(seconds_a, us_a * 1000), _nanoseconds(seconds_m, us_m * 1000)


@call
def futimesat(path, times):
    valid, atime, mtime = _timevals(times)
    return _set(path, 0, valid, atime=atime, mtime=mtime)


@call
def futimes(handle, times):
    file = opened(handle)
    valid, atime, mtime = _timevals(times)
    files.fs.fsetattr(file, valid, atime=atime, mtime=mtime)
    return 0


# utime(2): "changes the access and modification times of the inode specified by filename to the actime and modtime
# fields of times respectively ... If times is NULL, then ... set to the current time."
@call
def utime(path, times):
    if not times:
        return _set(path, 0, SET_ATIME_NOW | SET_MTIME_NOW)
    atime, mtime = abi.UTIMBUF.unpack(load(times, abi.UTIMBUF.size))
    return _set(path, 0, SET_ATIME | SET_MTIME, atime=_nanoseconds(atime, 0), mtime=_nanoseconds(mtime, 0))
