# SPDX-License-Identifier: Apache-2.0
"""Where a file has data, and how long it is."""

import errno

import _shim
from pymadfs import abi
from pymadfs.client import S_IFDIR, S_IFMT, S_IFREG, W_OK, allowed
from pymadfs.errors import fail

from . import files
from .files import file_of, offset_get, offset_set, opened
from .table import call


def exceeded():
    """The error of a call that would make a file longer than RLIMIT_FSIZE; its signal is on its way to this thread."""
    _shim.raise_signal(abi.SIGXFSZ)
    return fail(errno.EFBIG)


# lseek(2): "SEEK_DATA: Adjust the file offset to the next location in the file greater than or equal to offset
# containing data. ... SEEK_HOLE: Adjust the file offset to the next hole in the file greater than or equal to offset.
# ... ENXIO: whence is SEEK_DATA or SEEK_HOLE, and offset is beyond the end of the file, or whence is SEEK_DATA and
# offset is within a hole at the end of the file."
@call
def lseek(handle, offset, whence):
    file = opened(handle)
    if whence == abi.SEEK_CUR:
        offset += offset_get(handle)
    elif whence == abi.SEEK_END and not file.directory:
        offset += files.fs.getattr(file).size
    elif whence in (abi.SEEK_DATA, abi.SEEK_HOLE) and not file.directory:
        if offset < 0:
            raise fail(errno.ENXIO)
        offset = files.fs.seek(file, offset, whence == abi.SEEK_HOLE)
    elif whence != abi.SEEK_SET:
        raise fail(errno.EINVAL)
    if not 0 <= offset <= abi.OFFSET_MAX:  # Linux lets it overflow, which is as bad as negative
        raise fail(errno.EINVAL)
    offset_set(handle, offset)
    return offset


# truncate(2): "If the file previously was larger than this size, the extra data is lost.  If the file previously was
# shorter, it is extended, and the extended part reads as null bytes."
@call
def truncate(path, length):
    if length < 0:
        raise fail(errno.EINVAL)
    path = files.fs.inside(path)
    if 0 <= _shim.size_limit() < length and files.fs.lookup(path)[1].size < length:
        raise exceeded()
    files.fs.truncate(path, length)
    return 0


# proc(5): a path of /proc/self/fd means the open file, which needs to be writable by who asks, not to be open for it.
@call
def truncate_again(handle, length):
    file = file_of(handle)
    attr = files.fs.getattr(file)
    if length < 0 or attr.mode & S_IFMT not in (S_IFREG, S_IFDIR):
        raise fail(errno.EINVAL)
    if attr.mode & S_IFMT == S_IFDIR:
        raise fail(errno.EISDIR)
    if not allowed(attr, files.fs.rpc.who, W_OK):
        raise fail(errno.EACCES)
    if 0 <= _shim.size_limit() < length and attr.size < length:
        raise exceeded()
    files.fs.ftruncate(file, length)
    return 0


# ftruncate(2): "EBADF or EINVAL: fd is not open for writing."
@call
def ftruncate(handle, length):
    if length < 0:
        raise fail(errno.EINVAL)
    file = opened(handle)
    if not file.writable or file.mode & S_IFMT != S_IFREG:
        raise fail(errno.EINVAL)
    if 0 <= _shim.size_limit() < length and files.fs.getattr(file).size < length:
        raise exceeded()
    files.fs.ftruncate(file, length)
    return 0


_FALLOC_KNOWN = (
    abi.FALLOC_FL_KEEP_SIZE
    | abi.FALLOC_FL_PUNCH_HOLE
    | abi.FALLOC_FL_COLLAPSE_RANGE
    | abi.FALLOC_FL_ZERO_RANGE
    | abi.FALLOC_FL_INSERT_RANGE
    | abi.FALLOC_FL_UNSHARE_RANGE
)
_FALLOC_DONE = abi.FALLOC_FL_KEEP_SIZE | abi.FALLOC_FL_PUNCH_HOLE | abi.FALLOC_FL_ZERO_RANGE


def _check_mode(mode):
    """The errors of combinations of FALLOC_FL_* flags, in Linux's order."""
    punch, zero = mode & abi.FALLOC_FL_PUNCH_HOLE, mode & abi.FALLOC_FL_ZERO_RANGE
    if mode & ~_FALLOC_KNOWN or punch and zero or punch and not mode & abi.FALLOC_FL_KEEP_SIZE:
        raise fail(errno.EOPNOTSUPP)


# fallocate(2): "allows the caller to directly manipulate the allocated disk space for the file referred to by fd for
# the byte range starting at offset and continuing for len bytes. ... EOPNOTSUPP: The filesystem containing the file
# referred to by fd does not support this operation; or the mode is not supported"
@call
def fallocate(handle, mode, offset, length):
    file = opened(handle)
    mode &= 0xFFFFFFFF
    if offset < 0 or length <= 0:
        raise fail(errno.EINVAL)
    _check_mode(mode)
    if not file.writable:
        raise fail(errno.EBADF)
    kind = file.mode & S_IFMT
    if kind != S_IFREG:
        raise fail(errno.EISDIR if kind == S_IFDIR else errno.ENODEV)
    if offset + length > abi.OFFSET_MAX:
        raise fail(errno.EFBIG)
    if mode & ~_FALLOC_DONE:
        raise fail(errno.EOPNOTSUPP)
    limit = -1 if mode & abi.FALLOC_FL_KEEP_SIZE else _shim.size_limit()
    if 0 <= limit < offset + length and files.fs.getattr(file).size < offset + length:
        raise exceeded()
    files.fs.fallocate(file, mode, offset, length)
    return 0
