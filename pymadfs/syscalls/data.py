# SPDX-License-Identifier: Apache-2.0
"""Reading and writing."""

import errno
import posix

import _shim
from pymadfs import abi
from pymadfs.errors import fail
from pymadfs.filedata import clipped

from . import files
from .allocation import exceeded
from .files import load, offset_add, offset_cas, offset_get, offset_set, opened, slot, store
from .table import call

MERGED_MAX = 32 << 10  # bytes: fit into a message

_scratch = []  # addresses of free buffers of eager_max bytes

# --- reading and writing --------------------------------------------------------------------------------------------


def _readable_file(handle, count, offset=0):
    file = opened(handle)
    if not file.readable:
        raise fail(errno.EBADF)
    if file.directory:
        _range(offset, count)
        raise fail(errno.EISDIR)
    return file


def _writable_file(handle):
    file = opened(handle)
    if not file.writable:
        raise fail(errno.EBADF)
    return file


def _range(offset, count):
    """EFAULT and EINVAL for what no buffer and no file can have, checked before ``count`` is limited to RW_MAX."""
    if count < 0:  # no address has so much behind it
        raise fail(errno.EFAULT)
    if offset < 0 or offset + count > abi.OFFSET_MAX:
        raise fail(errno.EINVAL)


_RWF_KNOWN = (
    abi.RWF_HIPRI
    | abi.RWF_DSYNC
    | abi.RWF_SYNC
    | abi.RWF_APPEND
    | abi.RWF_NOAPPEND
    | abi.RWF_DONTCACHE
    | abi.RWF_NOSIGNAL
)  # without RWF_NOWAIT, which the kernel's tmpfs refuses as well: whoever asks a server waits


def _rwf(flags):
    if flags & ~_RWF_KNOWN:
        raise fail(errno.EOPNOTSUPP)
    if flags & abi.RWF_APPEND and flags & abi.RWF_NOAPPEND:
        raise fail(errno.EINVAL)


# readv(2): "EINVAL: The sum of the iov_len values overflows an ssize_t value ... The vector count, iovcnt, is less than
# zero or greater than the permitted maximum."  In truth each part must lie where a program can have memory (EFAULT);
# one that is alone is limited to RW_MAX before.
def _vector(address, count):
    """``[(base, length)]`` of an array of ``struct iovec``, without the empty ones."""
    count &= 0xFFFFFFFF  # an unsigned int
    if count > abi.IOV_MAX:
        raise fail(errno.EINVAL)
    if not count:
        return ()  # the address is not looked at
    parts, total = [], 0
    whole = list(abi.IOVEC.iter_unpack(load(address, count * abi.IOVEC.size)))
    if any(length < 0 for _, length in whole):
        raise fail(errno.EINVAL)
    for base, length in whole:
        if count == 1:
            length = min(length, abi.RW_MAX)
        if base + length > abi.USER_END:
            raise fail(errno.EFAULT)
        length = min(length, abi.RW_MAX - total)
        if length:
            parts.append((base, length))
            total += length
    return parts


def _there(parts, fills):
    """``(segments, total)`` up to the first byte that cannot be read, or with ``fills`` written."""
    segments, total = [], 0
    for base, length in parts:
        there = _shim.probe(base, length, fills)
        if not there and not total:
            raise fail(errno.EFAULT)
        if there:
            segments.append((base, there))
            total += there
        if there < length:
            break
    return segments, total


def _room(handle, vector, count, flags=0, offset=-1):
    """``(file, segments, total)`` of a call that reads to a vector, or of nothing."""
    file = opened(handle)
    if not file.readable:
        raise fail(errno.EBADF)
    parts = _vector(vector, count)
    if not parts:
        return file, (), 0
    _check(handle, parts, flags, offset)
    if file.directory:
        raise fail(errno.EISDIR if not flags & ~abi.RWF_HIPRI else errno.EOPNOTSUPP)
    try:
        return file, *_there(parts, True)
    except OSError:
        if files.fs.getattr(file).size > (offset if offset != -1 else offset_get(handle)):
            raise
        return file, (), 0  # at the end there is nothing to store


def _check(handle, parts, flags, offset):
    _range(offset if offset != -1 else offset_get(handle), sum([length for _, length in parts]))
    if flags:
        _rwf(flags)


# read(2): "attempts to read up to count bytes from file descriptor fd into the buffer starting at buf ... the file
# offset is incremented by the number of bytes read."
@call
def read(handle, buffer, count):
    return _read(handle, _readable_file(handle, count), ((buffer, min(count, abi.RW_MAX)),), count)


# pread(2): "reads up to count bytes from file descriptor fd at offset offset ... The file offset is not changed."
@call
def pread(handle, buffer, count, offset):
    if offset < 0:
        raise fail(errno.EINVAL)
    return _pread(_readable_file(handle, count, offset), offset, ((buffer, min(count, abi.RW_MAX)),), count)


# readv(2): "reads iovcnt buffers from the file associated with the file descriptor fd into the buffers described by
# iov"
@call
def readv(handle, vector, count):
    return _read(handle, *_room(handle, vector, count))


# preadv(2): "combines the functionality of readv() and pread(2)."
@call
def preadv(handle, vector, count, offset):
    if offset < 0:
        raise fail(errno.EINVAL)
    file, segments, total = _room(handle, vector, count, 0, offset)
    return _pread(file, offset, segments, total)


# preadv2(2): "if the offset argument is -1, then the current file offset is used and updated ... EOPNOTSUPP: An unknown
# flag is specified in flags."
@call
def preadv2(handle, vector, count, offset, flags):
    if offset < -1:
        raise fail(errno.EINVAL)
    file, segments, total = _room(handle, vector, count, flags, offset)
    if offset == -1:
        return _read(handle, file, segments, total)
    return _pread(file, offset, segments, total)


def _read(handle, file, segments, total):
    """Read at the shared offset.  When another call moved it meanwhile, what was read belongs to that one."""
    while total:
        offset = offset_get(handle)
        done = _pread(file, offset, segments, total)
        if not done or offset_cas(handle, offset, offset + done):
            return done
    return 0


def _pread(file, offset, segments, total):
    _range(offset, total)
    if not total:
        return 0
    total = min(total, abi.RW_MAX)
    if len(segments) == 1 or total > files.fs.config.eager_max:
        return files.fs.read(file, offset, segments)
    return _scatter(file, offset, segments, total)


def _scatter(file, offset, segments, total):
    """Read a few small segments as one, by way of a buffer of ours."""
    try:
        address = _scratch.pop()
    except IndexError:
        address = _shim.anonymous(
            0, files.fs.config.eager_max, abi.PROT_READ | abi.PROT_WRITE, abi.MAP_PRIVATE | abi.MAP_ANONYMOUS
        )
    try:
        done = files.fs.read(file, offset, ((address, total),))
        data = load(address, done)
    finally:
        _scratch.append(address)
    at = 0
    for base, length in segments:
        if at >= done:
            break
        store(base, data[at : at + length])
        at += length
    return done


# write(2): "writes up to count bytes ... the file offset is incremented by the number of bytes actually written.  If
# the file was open(2)ed with O_APPEND, the file offset is first set to the end of the file before writing."
@call
def write(handle, buffer, count):
    return _write(handle, _writable_file(handle), ((buffer, min(count, abi.RW_MAX)),), count)


# pwrite(2): "if a file is opened with O_APPEND, on Linux, pwrite() appends data to the end of the file, regardless of
# the value of offset."
@call
def pwrite(handle, buffer, count, offset):
    if offset < 0:
        raise fail(errno.EINVAL)
    return _pwrite(handle, _writable_file(handle), ((buffer, min(count, abi.RW_MAX)),), count, offset)


# writev(2): "writes iovcnt buffers of data described by iov to the file associated with the file descriptor fd"
@call
def writev(handle, vector, count):
    file = _writable_file(handle)
    return _write(handle, file, *_there(_vector(vector, count), False))


# pwritev(2): "combines the functionality of writev() and pwrite(2)."
@call
def pwritev(handle, vector, count, offset):
    if offset < 0:
        raise fail(errno.EINVAL)
    file = _writable_file(handle)
    parts = _vector(vector, count)
    _check(handle, parts, 0, offset)
    segments, total = _there(parts, False)
    return _pwrite(handle, file, segments, total, offset)


# pwritev2(2): "RWF_DSYNC: Provide a per-write equivalent of the O_DSYNC open(2) flag ... RWF_APPEND: Append data to the
# end of the file ... the offset argument does not affect the write operation"
@call
def pwritev2(handle, vector, count, offset, flags):
    if offset < -1:
        raise fail(errno.EINVAL)
    file = _writable_file(handle)
    parts = _vector(vector, count)
    if parts:
        _check(handle, parts, flags, offset)
    segments, total = _there(parts, False)
    if offset == -1:
        return _write(handle, file, segments, total, flags)
    return _pwrite(handle, file, segments, total, offset, flags)


def _status(handle, flags):
    """The status flags of the descriptor, as they are now, with what RWF_* ``flags`` change for one call."""
    status = slot(handle)[0]
    if flags:
        if flags & abi.RWF_APPEND:
            status |= posix.O_APPEND
        if flags & abi.RWF_NOAPPEND:
            status &= ~posix.O_APPEND
        if flags & (abi.RWF_DSYNC | abi.RWF_SYNC):
            status |= posix.O_DSYNC
    return status


def _write(handle, file, segments, total, flags=0):
    """Write at the shared offset: the range is claimed first, and what was not written is given back."""
    if total <= 0:
        _range(offset_get(handle), total)
        return 0
    status = _status(handle, flags)
    if status & posix.O_APPEND:
        offset, done = _append(file, segments, total)
        offset_set(handle, offset + done)
    else:
        claimed = min(total, abi.RW_MAX)
        offset = offset_add(handle, claimed)
        done = 0
        try:
            _range(offset, total)
            done = _store(file, segments, claimed, offset)
        finally:
            if done < claimed:
                offset_cas(handle, offset + claimed, offset + done)
    if status & posix.O_DSYNC:
        files.fs.fsync(file)
    return done


def _pwrite(handle, file, segments, total, offset, flags=0):
    _range(offset, total)
    if not total:
        return 0
    status = _status(handle, flags)
    total = min(total, abi.RW_MAX)
    if status & posix.O_APPEND:
        _, done = _append(file, segments, total)
    else:
        done = _store(file, segments, total, offset)
    if status & posix.O_DSYNC:
        files.fs.fsync(file)
    return done


def _store(file, segments, total, offset):
    limit = _shim.size_limit()
    if 0 <= limit < offset + total:
        segments, total = _shortened(segments, limit - offset)
    return files.fs.write(file, offset, _gather(segments, total))


def _append(file, segments, total):
    total = min(total, abi.RW_MAX)
    limit = _shim.size_limit()
    if limit >= 0:
        size = files.fs.getattr(file).size
        if size + total > limit:
            segments, total = _shortened(segments, limit - size)
    return files.fs.append(file, _merged(segments), total)


def _merged(segments):
    """Neighbours that are small become one, for each is a request to the same server."""
    parts, run, size = [], [], 0
    for base, length in segments:
        if run and size + length > MERGED_MAX:
            parts.append(_one(run, size))
            run, size = [], 0
        run.append((base, length))
        size += length
    parts.append(_one(run, size))
    return parts


def _one(segments, total):
    return segments[0] if len(segments) == 1 else (b"".join([load(base, length) for base, length in segments]), total)


# setrlimit(2): "RLIMIT_FSIZE: ... Attempts to extend a file beyond this limit result in delivery of a SIGXFSZ signal.
# ... the relevant system call (e.g., write(2), truncate(2)) fails with the error EFBIG."
def _shortened(segments, room):
    """What of ``segments`` RLIMIT_FSIZE leaves, of which ``room`` bytes remain: ``(segments, total)``."""
    if room <= 0:
        raise exceeded()
    return clipped(segments, room), room


def _gather(segments, total):
    """A few small segments become one."""
    return segments if total > files.fs.config.eager_max else (_one(segments, total),)


# fsync(2): "transfers ("flushes") all modified in-core data of ... the file referred to by the file descriptor fd to
# the disk device ... so that all changed information can be retrieved even if the system crashes"
@call
def fsync(handle):
    files.fs.fsync(opened(handle))
    return 0


# sync_file_range(2): "EINVAL: flags specifies an invalid bit; or offset or nbytes is invalid."
@call
def sync_file_range(handle, offset, length, flags):
    file = opened(handle)
    if flags & ~abi.SYNC_FILE_RANGE_KNOWN or offset < 0 or length < 0 or offset + length > abi.OFFSET_MAX:
        raise fail(errno.EINVAL)
    files.fs.fsync(file)
    return 0


# posix_fadvise(2): "The advice is not binding; it merely constitutes an expectation on behalf of the application. ...
# EINVAL: An invalid value was specified for advice."
@call
def fadvise(handle, length, advice):
    opened(handle)
    if length < 0 or not 0 <= advice <= abi.POSIX_FADV_NOREUSE:
        raise fail(errno.EINVAL)
    return 0


# readahead(2): "EBADF: fd is not a valid file descriptor or is not open for reading.  EINVAL: fd does not refer to a
# file type to which readahead() can be applied."
@call
def readahead(handle):
    file = opened(handle)
    if not file.readable:
        raise fail(errno.EBADF)
    if file.directory:
        raise fail(errno.EINVAL)
    return 0
