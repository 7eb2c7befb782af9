# SPDX-License-Identifier: Apache-2.0
"""Programs that lie on the mount."""

import errno
import posix

import _shim
from pymadfs import abi
from pymadfs.client import S_IFLNK, S_IFMT, S_IFREG, X_OK, File, allowed
from pymadfs.errors import fail
from pymadfs.ops import OPEN_TO_EXECUTE

from . import files
from .files import load, store
from .table import call

_PROGRAM_BYTES = 1 << 20  # read at once
_FOREIGN_BYTES = 64 << 20  # of what only an interpreter that the administrator registered can execute


def _needed(head, size):
    """How many bytes of a program the kernel may look at: of a script and of what is no program, not all of a file that
    may be huge."""
    if head[:2] == b"#!":
        return 1
    return size if head == b"\x7fELF" else min(size, _FOREIGN_BYTES)


# execve(2): "EACCES: The file or a script interpreter is not a regular file. ... Execute permission is denied for the
# file or a script or ELF interpreter."
@call
def program(path, flags, fd):
    """Copy the program at ``path`` to ``fd``, a descriptor of the kernel's; ``flags`` are those of execveat."""
    if flags & ~(abi.AT_SYMLINK_NOFOLLOW | abi.AT_EMPTY_PATH):
        raise fail(errno.EINVAL)
    path, attr, _ = files.fs.lookup(files.fs.inside(path), not flags & abi.AT_SYMLINK_NOFOLLOW)
    if attr.mode & S_IFMT == S_IFLNK:
        raise fail(errno.ELOOP)
    _check(attr)
    path, attr = files.fs.open(path, OPEN_TO_EXECUTE, 0)
    copy_opened(attr, path, fd)
    return 0


# execveat(2): "If pathname is an empty string and the AT_EMPTY_PATH flag is specified, then the file descriptor dirfd
# specifies the file to be executed".
@call
def program_opened(handle, fd):
    """Copy the open file ``handle``, which may have been removed, to ``fd``."""
    file = files.file_of(handle)
    attr = files.fs.getattr(file)
    _check(attr)
    _copy(File(attr.ino, attr.mode, file.path, attr.chunk_size, attr.size, posix.O_RDONLY), fd)
    return 0


def _check(attr):
    if attr.mode & S_IFMT != S_IFREG or not allowed(attr, files.fs.rpc.who, X_OK):
        raise fail(errno.EACCES)


@call
def libraries(path, fd, library_path, preload, cwd, out):
    """Copy to this node what the program ``path`` starts with and that lies on the mount.

    ``fd`` is a copy of it, or the complement of a descriptor of the host's file; ``library_path`` and ``preload`` are
    the variables, ``cwd`` the working directory if it lies on the mount.  At ``out`` go what MADFS_STAGE,
    LD_LIBRARY_PATH and LD_PRELOAD are to be, each terminated; returns their length, 0 when nothing is to be done.
    """
    from .startup import prepare

    with files.unlimited:
        texts = prepare(path, max(fd, ~fd), fd >= 0, library_path, preload, cwd)
    if not texts:
        return 0
    data = b"".join([text + b"\0" for text in texts])
    store(out, data)
    return len(data)


def copy_opened(attr, path, fd):
    """Copy the file that files.fs.open() opened to ``fd``; the opening ends."""
    try:
        _copy(File(attr.ino, attr.mode, path, attr.chunk_size, attr.size, posix.O_RDONLY), fd)
    finally:
        files.fs.ended(attr.ino)


def _copy(file, fd):
    buffer = _shim.anonymous(
        0, _PROGRAM_BYTES, abi.PROT_READ | abi.PROT_WRITE, abi.MAP_PRIVATE | abi.MAP_ANONYMOUS
    )
    offset, end = 0, 1
    try:
        while offset < end and (done := files.fs.read(file, offset, ((buffer, _PROGRAM_BYTES),))):
            data = load(buffer, done)
            if not offset:
                end = _needed(bytes(data[:4]), file.size)
            offset += done
            with files.unlimited as limit:
                if 0 <= limit < offset:
                    raise fail(errno.ENOMEM)
                while data:
                    data = data[posix.write(fd, data) :]
    finally:
        _shim.unmap(buffer, _PROGRAM_BYTES)
