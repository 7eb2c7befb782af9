# SPDX-License-Identifier: Apache-2.0
"""Programs that lie on the mount."""

import errno
import posix

import _shim
from pymadfs import abi
from pymadfs.client import S_IFLNK, S_IFMT, S_IFREG, X_OK, File, allowed
from pymadfs.errors import fail

from . import files
from .files import load
from .table import call

_PROGRAM_BYTES = 1 << 20  # read at once
_FOREIGN_BYTES = 64 << 20  # of what only an interpreter that the administrator registered can execute
_program_buffer = 0


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
    global _program_buffer
    if flags & ~(abi.AT_SYMLINK_NOFOLLOW | abi.AT_EMPTY_PATH):
        raise fail(errno.EINVAL)
    path, attr, _ = files.fs.lookup(files.fs.inside(path), not flags & abi.AT_SYMLINK_NOFOLLOW)
    if attr.mode & S_IFMT == S_IFLNK:
        raise fail(errno.ELOOP)
    if attr.mode & S_IFMT != S_IFREG or not allowed(attr, files.fs.rpc.who, X_OK):
        raise fail(errno.EACCES)
    path, attr = files.fs.open(path, posix.O_RDONLY, 0)
    file = File(attr.ino, attr.mode, path, attr.chunk_size, attr.size, posix.O_RDONLY)
    if not _program_buffer:
        _program_buffer = _shim.anonymous(
            0, _PROGRAM_BYTES, abi.PROT_READ | abi.PROT_WRITE, abi.MAP_PRIVATE | abi.MAP_ANONYMOUS
        )
    offset, end = 0, 1
    try:
        while offset < end and (done := files.fs.read(file, offset, ((_program_buffer, _PROGRAM_BYTES),))):
            data = load(_program_buffer, done)
            if not offset:
                end = _needed(bytes(data[:4]), attr.size)
            offset += done
            while data:
                data = data[posix.write(fd, data) :]
    finally:
        files.fs.ended(attr.ino)
    return 0
