# SPDX-License-Identifier: Apache-2.0
"""Mappings of files."""

import errno

import _shim
from pymadfs import abi
from pymadfs.errors import fail

from . import files
from .files import opened
from .table import call


# mmap(2): "contents of a file mapping ... are initialized using length bytes starting at offset offset in the file ...
# EACCES: a file mapping was requested, but fd is not open for reading.  Or MAP_SHARED was requested and PROT_WRITE is
# set, but fd is not open in read/write (O_RDWR) mode."
@call
def mmap(handle, address, length, prot, flags, offset):
    file = opened(handle)
    kind = flags & abi.MAP_TYPE
    if length <= 0 or offset % abi.PAGE or kind not in (abi.MAP_SHARED, abi.MAP_PRIVATE, abi.MAP_SHARED_VALIDATE):
        raise fail(errno.EINVAL)
    if offset < 0 or offset + length > abi.OFFSET_MAX:
        raise fail(errno.EOVERFLOW)
    shared_write = kind != abi.MAP_PRIVATE and prot & abi.PROT_WRITE
    if not file.readable or shared_write and not file.writable:
        raise fail(errno.EACCES)
    if file.directory or shared_write:
        raise fail(errno.ENODEV)
    size = min(length, files.fs.getattr(file).size - offset)
    flags = flags & ~abi.MAP_TYPE | abi.MAP_PRIVATE | abi.MAP_ANONYMOUS
    address = _shim.anonymous(address, length, abi.PROT_READ | abi.PROT_WRITE, flags)
    if size > 0:
        files.fs.read(file, offset, ((address, size),))
    if prot != abi.PROT_READ | abi.PROT_WRITE:
        _shim.protect(address, length, prot)
    return address


# ioctl(2): "ENOTTY: The specified operation does not apply to the kind of object that the file descriptor fd
