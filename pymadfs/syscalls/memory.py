# SPDX-License-Identifier: Apache-2.0
"""Mappings of files."""

import errno
import posix

import _shim
from pymadfs import abi
from pymadfs.errors import fail

from . import files, sharing
from .files import opened
from .table import call

_KNOWN_FLAGS = abi.MAP_TYPE | 0x7C07F9F0  # what MAP_SHARED_VALIDATE takes: Linux calls it LEGACY_MAP_MASK
_MFD_EXEC = 0x10


# mmap(2): "contents of a file mapping ... are initialized using length bytes starting at offset offset in the file ...
# EACCES: a file mapping was requested, but fd is not open for reading.  Or MAP_SHARED was requested and PROT_WRITE is
# set, but fd is not open in read/write (O_RDWR) mode."
@call
def mmap(handle, address, length, prot, flags, offset):
    if offset % abi.PAGE:
        raise fail(errno.EINVAL)
    file = opened(handle)
    if length == 0:
        raise fail(errno.EINVAL)
    if not 0 < length <= abi.OFFSET_MAX - abi.PAGE:
        raise fail(errno.ENOMEM)
    if offset < 0 or offset + length > abi.OFFSET_MAX:
        raise fail(errno.EOVERFLOW)
    kind = flags & abi.MAP_TYPE
    if kind not in (abi.MAP_SHARED, abi.MAP_PRIVATE, abi.MAP_SHARED_VALIDATE) or flags & abi.MAP_HUGETLB:
        raise fail(errno.EINVAL)
    if kind == abi.MAP_SHARED_VALIDATE and flags & ~_KNOWN_FLAGS:
        raise fail(errno.EOPNOTSUPP)
    shared = kind != abi.MAP_PRIVATE
    if shared and prot & abi.PROT_WRITE and not file.writable or not file.readable:
        raise fail(errno.EACCES)
    if file.directory:
        raise fail(errno.ENODEV)
    if flags & abi.MAP_GROWSDOWN:
        raise fail(errno.EINVAL)
    try:
        if shared and sharing.images() and not _bounded():
            try:
                return _shared(file, address, length, prot, flags, offset)
            except PermissionError:  # the images are those of the user that the process was
                pass
        if shared and prot & abi.PROT_WRITE:
            raise fail(errno.ENODEV)
        return _copied(file, address, length, prot, flags & ~abi.MAP_TYPE | abi.MAP_PRIVATE, offset)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise fail(errno.ENOMEM) from None
        raise


def _bounded():
    """Whether files of ours in memory have a limit that cannot be lifted: images lie far behind it."""
    with files.unlimited as limit:
        return limit >= 0


def _shared(file, address, length, prot, flags, offset):
    """Map the image of a file.  What was opened for reading only can never be written through."""
    images = sharing.images()
    image = images.attach(file, offset + length, file.writable)
    try:
        with image:
            image.fill(images.fs, offset, offset + length)
        fd = image.data if file.writable else posix.open(f"/proc/self/fd/{image.data}", posix.O_RDONLY)
        try:
            address = _shim.map(address, length, prot, flags, fd, offset)
        finally:
            if fd != image.data:
                posix.close(fd)
        try:
            _shim.mapped(address, length, file.ino, offset)
        except OSError:
            _shim.unmap(address, length)
            raise
    finally:
        images.release(image)
    return address


def _copied(file, address, length, prot, flags, offset):
    """Map a copy of what the file is now: memory of this process alone, which the kernel treats as a file."""
    size = min(files.fs.getattr(file).size, offset + length)
    try:
        fd = posix.memfd_create("madfs-map", posix.MFD_CLOEXEC | _MFD_EXEC)
    except OSError:  # Linux before 6.3 does not know the second flag
        fd = posix.memfd_create("madfs-map", posix.MFD_CLOEXEC)
    try:
        with files.unlimited as limit:
            if 0 <= limit < size:
                return _read_in(file, address, length, prot, flags, offset, size)
            posix.ftruncate(fd, size)
        if size > offset:
            flags_of_filling = abi.MAP_SHARED | abi.MAP_POPULATE  # one fault instead of one a page
            filling = _shim.map(0, size - offset, abi.PROT_READ | abi.PROT_WRITE, flags_of_filling, fd, offset)
            try:
                files.fs.read(file, offset, ((filling, size - offset),))
            finally:
                _shim.unmap(filling, size - offset)
        return _shim.map(address, length, prot, flags, fd, offset)
    finally:
        posix.close(fd)


def _read_in(file, address, length, prot, flags, offset, size):
    """As _copied(), where files of ours in memory must be shorter: memory that the kernel does not treat as a file."""
    there = max(0, size - offset)
    address = _shim.anonymous(address, length, abi.PROT_READ | abi.PROT_WRITE, flags)
    files.fs.read(file, offset, ((address, there),))
    pages = -(-there // abi.PAGE) * abi.PAGE
    if pages:
        _shim.protect(address, pages, prot)
    if pages < length:
        _shim.protect(address + pages, length - pages, 0)
    return address


def _ino(number):
    return number & (1 << 64) - 1


# msync(2): "flushes changes made to the in-core copy of a file that was mapped into memory using mmap(2) back to the
# filesystem. ... MS_INVALIDATE: Asks to invalidate other mappings of the same file (so that they can be updated with
# the fresh values just written)."
@call
def map_sync(ino, offset, length, flags):
    images = sharing.images()
    image = images.known.get(_ino(ino))
    if image is None:
        return 0
    images.write_back(image, offset, offset + length)
    if flags & abi.MS_SYNC:
        images.fs.fsync(image.file)
    if flags & abi.MS_INVALIDATE:
        with image:
            image.renew(images.fs, images.fs.getattr(image.file))
    return 0


# munmap(2): "deletes the mappings for the specified address range"; the last one of a file in this process.
@call
def map_end(ino, offset, length, flags):
    sharing.images().ended(_ino(ino))
    return 0


# mremap(2): "expands (or shrinks) an existing memory mapping, potentially moving it at the same time"
@call
def map_grow(ino, offset, length, flags):
    images = sharing.images()
    image = images.known.get(_ino(ino))
    if image:
        with image:
            image.reach = max(image.reach, offset + length)
            image._save()
            image.fill(images.fs, offset, offset + length)
    return 0


# execve(2): "Memory mappings are not preserved"
@call
def map_sync_all(ino, offset, length, flags):
    images = sharing.images()
    for image in images.all():
        images.write_back(image)
    return 0
