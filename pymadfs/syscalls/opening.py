# SPDX-License-Identifier: Apache-2.0
"""Opening and closing files, and the working directory."""

import errno
import posix

import _shim
from pymadfs import abi, links
from pymadfs.client import S_IFDIR, S_IFIFO, S_IFLNK, S_IFMT, S_IFREG, X_OK, File, allowed
from pymadfs.errors import fail
from pymadfs.ops import OPEN_TO_EXECUTE

from . import files, nodes
from .files import RECORD, descriptor, file_of, host_name, load, locked, open_files, slot, unlock
from .table import call


# open(2): "Given a pathname for a file, open() returns a file descriptor, a small, nonnegative integer."
@call
def openat(path, flags, mode):
    path = files.fs.inside(path)
    flags &= ~OPEN_TO_EXECUTE
    if flags & posix.O_PATH:
        flags &= posix.O_PATH | posix.O_DIRECTORY | posix.O_NOFOLLOW | posix.O_CLOEXEC
        path, attr, _ = files.fs.lookup(path, not flags & posix.O_NOFOLLOW)
        if flags & posix.O_DIRECTORY and attr.mode & S_IFMT != S_IFDIR:
            raise fail(errno.ENOTDIR)
    else:
        if flags & _TMPFILE:
            return _tmpfile(path, flags, mode & 0o7777 & ~_shim.umask())
        path, attr = files.fs.open(path, flags, mode & 0o7777 & ~_shim.umask() if flags & posix.O_CREAT else 0)
        if attr.mode & S_IFMT == S_IFIFO:
            raise nodes.pipe(path, attr.ino)
    return descriptor(path, attr, flags)


# proc(5): "For file descriptors for files that have no name ... it is possible to use the file descriptor [...] as
# though it were a symbolic link": what is opened is the file itself, with the permissions it has now.
@call
def reopen(handle, flags, mode):
    file = file_of(handle)
    kind = file.mode & S_IFMT
    if kind not in (S_IFREG, S_IFIFO) or flags & _TMPFILE and not flags & posix.O_PATH:
        try:
            return openat(host_name(file.path), flags | (posix.O_NOFOLLOW if kind == S_IFLNK else 0), mode)
        except OSError as error:
            if error.errno != errno.ENOENT or not file.directory or file.path == b"/":
                raise
        return openat(b"%b\0%d" % (host_name(file.path), file.ino), flags, mode)
    if flags & posix.O_DIRECTORY:
        raise fail(errno.EINVAL if flags & posix.O_CREAT and not flags & posix.O_PATH else errno.ENOTDIR)
    if flags & posix.O_PATH:
        return descriptor(file.path, files.fs.getattr(file), flags & (posix.O_PATH | posix.O_CLOEXEC))
    attr = files.fs.open_again(file, flags & ~(posix.O_CREAT | posix.O_EXCL))
    if kind == S_IFIFO:
        raise nodes.pipe(file.path, attr.ino)
    return descriptor(file.path, attr, flags)


_TMPFILE = posix.O_TMPFILE & ~posix.O_DIRECTORY


# open(2): "O_TMPFILE (since Linux 3.11): Create an unnamed temporary regular file.  The pathname argument specifies a
# directory ... must be specified with one of O_RDWR or O_WRONLY and, optionally, O_EXCL."
def _tmpfile(path, flags, mode):
    if not flags & posix.O_DIRECTORY or flags & posix.O_CREAT or not flags & posix.O_ACCMODE:
        raise fail(errno.EINVAL)
    path, attr = links.tmpfile(files.fs, path, flags, mode)
    return descriptor(path, attr, flags & ~posix.O_DIRECTORY)  # F_GETFL shows it all the same


_OPEN_FLAGS = (
    posix.O_ACCMODE
    | posix.O_CREAT
    | posix.O_EXCL
    | posix.O_NOCTTY
    | posix.O_TRUNC
    | posix.O_APPEND
    | posix.O_NONBLOCK
    | posix.O_SYNC
    | posix.O_ASYNC
    | posix.O_DIRECT
    | abi.O_LARGEFILE
    | posix.O_DIRECTORY
    | posix.O_NOFOLLOW
    | posix.O_NOATIME
    | posix.O_CLOEXEC
    | posix.O_PATH
    | posix.O_TMPFILE
)


# openat2(2): "how.size ... E2BIG: An extension that this kernel does not support was specified in how."
@call
def openat2(path, how, size, given):
    if size < abi.OPEN_HOW.size:
        raise fail(errno.EINVAL)
    if size > abi.PAGE or size > abi.OPEN_HOW.size and any(load(how + abi.OPEN_HOW.size, size - abi.OPEN_HOW.size)):
        raise fail(errno.E2BIG)
    flags, mode, resolve = abi.OPEN_HOW.unpack(load(how, abi.OPEN_HOW.size))
    if flags & ~_OPEN_FLAGS or mode & ~0o7777 or mode and not flags & (posix.O_CREAT | _TMPFILE):
        raise fail(errno.EINVAL)
    if flags & posix.O_PATH and flags & ~(posix.O_PATH | posix.O_DIRECTORY | posix.O_NOFOLLOW | posix.O_CLOEXEC):
        raise fail(errno.EINVAL)
    if flags & posix.O_CREAT and flags & posix.O_DIRECTORY:
        raise fail(errno.EINVAL)
    if resolve:
        from . import beneath

        if resolve & ~beneath.KNOWN or resolve & beneath.BENEATH and resolve & beneath.IN_ROOT:
            raise fail(errno.EINVAL)
        if resolve & beneath.CACHED and flags & (posix.O_CREAT | posix.O_TRUNC | _TMPFILE):
            raise fail(errno.EAGAIN)
        path = beneath.resolve(path, given, flags, resolve)
    return openat(path, flags, mode)


# close(2): "If fd is the last file descriptor referring to the underlying open file description, the resources
# associated with the open file description are freed."
@call
def release(handle):
    file = open_files.pop(handle, None)
    if file is None:
        try:
            flags, record, _ = slot(handle)
        except OSError:
            return 0
        ino, _, _, mode, _, _ = RECORD.unpack(record)  # perhaps another process's, which left it to the last one
    else:
        ino, mode, flags = file.ino, file.mode, file.flags
    if ino in locked:
        unlock(ino)
    if mode & S_IFMT == S_IFREG and not flags & posix.O_PATH:
        files.fs.ended(ino)
    return 0


@call
def leave(handle):
    """This process ends or becomes another program, and others may go on with the open file: servers keep it for them
    until they are heard of."""
    file = open_files.get(handle)
    if file is None:
        flags, record, path = slot(handle)
        ino, size, chunk_size, mode, image, _ = RECORD.unpack(record)
        if image != files.this_image:
            return 0  # this process never used it
        file = File(ino, mode, files.fs.inside(path), chunk_size, size, flags)
    links.leave(files.fs, (file,))
    return 0


def _enter(path, attr):
    if attr.mode & S_IFMT != S_IFDIR:
        raise fail(errno.ENOTDIR)
    if not allowed(attr, files.fs.rpc.who, X_OK):
        raise fail(errno.EACCES)
    _shim.set_cwd(host_name(path), attr.ino)
    if not attr.nlink:
        _shim.gone(attr.ino)
    return 0


# chdir(2): "changes the current working directory of the calling process to the directory specified in path."
@call
def chdir_path(path):
    path, attr, _ = files.fs.lookup(files.fs.inside(path))
    return _enter(path, attr)


# fchdir(2): "identical to chdir(); the only difference is that the directory is given as an open file descriptor."
@call
def chdir_fd(handle):
    file = file_of(handle)
    file.path = files.fs.inside(slot(handle)[2])  # a process of this tree may have renamed it
    return _enter(file.path, files.fs.getattr(file))
