# SPDX-License-Identifier: Apache-2.0
"""What fallocate does to files of the local file system, whichever modes that has.  Synchronous, for any thread."""
import ctypes
import errno
import os

KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 0x10
END = 1 << 40  # beyond any chunk
PAGE = 4096
ZEROS = bytes(1 << 16)

_library = ctypes.CDLL(None, use_errno=True)
_library.fallocate64.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def _fallocate(fd, mode, offset, length):
    """fallocate(2).  False when the file system has no such mode; raises OSError otherwise."""
    while _library.fallocate64(fd, mode, offset, length):
        code = ctypes.get_errno()
        if code in (errno.EOPNOTSUPP, errno.ENOSYS):
            return False
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))
    return True


def allocate(fd, offset, length):
    """Have room for ``length`` bytes at ``offset``; what is stored and the size stay.  ENOSPC."""
    if _fallocate(fd, KEEP_SIZE, offset, length):
        return
    _write_zeros_into_holes(fd, offset, offset + length)


def _write_zeros_into_holes(fd, offset, end):
    """Where nothing can be allocated without a size: at least below the size, holes become zeros."""
    end = min(end, os.fstat(fd).st_size)
    while offset < end:
        hole = os.lseek(fd, offset, os.SEEK_HOLE)
        try:
            offset = min(end, os.lseek(fd, hole, os.SEEK_DATA))
        except OSError:
            offset = end
        if hole < offset:
            _write_zeros(fd, hole, offset - hole)


def punch(fd, offset, length):
    """Make a hole; the size stays."""
    if not _fallocate(fd, KEEP_SIZE | PUNCH_HOLE, offset, length):
        _write_zeros(fd, offset, min(length, os.fstat(fd).st_size - offset))


def dig(fd, offset, length):
    """Make a hole below the end of the file: what is stored then reaches at least as far as the hole.

    A file system frees the page with the end of what is stored, and what was allocated, only if that is so.
    """
    size, end = os.fstat(fd).st_size, offset + length
    if size < end:
        os.ftruncate(fd, end)
    if size <= end:
        end = -(-end // PAGE) * PAGE
    punch(fd, offset, end - offset)


def zero(fd, offset, length):
    """Zeros at ``offset``, with room to write there; the size stays."""
    if not _fallocate(fd, KEEP_SIZE | ZERO_RANGE, offset, length):
        punch(fd, offset, length)
        allocate(fd, offset, length)


def _write_zeros(fd, offset, length):
    while length > 0:
        count = os.pwrite(fd, ZEROS[:length], offset)
        offset, length = offset + count, length - count
