# SPDX-License-Identifier: Apache-2.0
"""Extended attributes."""

import errno
import posix

import _shim
from pymadfs import abi
from pymadfs.client import REPLACED_MAX
from pymadfs.errors import fail
from pymadfs.ops import FLAG_XATTRS, GETXATTR, LISTXATTR, REMOVEXATTR, SETXATTR

from . import files
from .files import load, opened, put
from .table import call

NAME_MAX = 255
SIZE_MAX = 64 << 10  # of a value, and of a list
CREATE, REPLACE = posix.XATTR_CREATE, posix.XATTR_REPLACE
_PREFIXES = b"user.", b"trusted.", b"security."
_CHUNK_SIZE = b"user.madfs.chunk_size"  # kept with the inode itself


def _name(address):
    """The name at an address.  xattr(7): "ERANGE" for one that is empty or longer than 255 bytes."""
    data = load(address, _shim.probe(address, NAME_MAX + 1, False))
    name, end, _ = data.partition(b"\0")
    if not end and len(data) <= NAME_MAX:
        raise fail(errno.EFAULT)
    if not end or not name:
        raise fail(errno.ERANGE)
    return name


def _flags(flags, known):
    if flags & 0xFFFFFFFF & ~known:
        raise fail(errno.EINVAL)


def _at_flags(flags):
    _flags(flags, abi.AT_SYMLINK_NOFOLLOW | abi.AT_EMPTY_PATH)
    return flags & abi.AT_SYMLINK_NOFOLLOW


def _arguments(address, size):
    """``(value, size, flags)`` of a ``struct xattr_args``."""
    if size < abi.XATTR_ARGS.size:
        raise fail(errno.EINVAL)
    if size > abi.PAGE:
        raise fail(errno.E2BIG)
    data = load(address, size)
    if any(data[abi.XATTR_ARGS.size :]):
        raise fail(errno.E2BIG)
    return abi.XATTR_ARGS.unpack_from(data)


# --- whose attributes -------------------------------------------------------------------------------------------------


def _of_path(path, flags, ask):
    """``ask(ino, path, attr)`` of what a path names; again when it was replaced meanwhile."""
    path = files.fs.inside(path)
    for tries in range(REPLACED_MAX + 1):
        found, attr, _ = files.fs.lookup(path, not flags & abi.AT_SYMLINK_NOFOLLOW)
        try:
            return ask(attr.ino, found, attr)
        except OSError as error:
            if error.errno != errno.ENOENT or tries == REPLACED_MAX:
                raise
    return None


def _of_file(handle, ask):
    file = opened(handle)
    return ask(file.ino, file.path, None)


def _has_none(attr):
    """Whether nothing needs to be asked: there are no attributes, and this is root, to whom nothing is forbidden."""
    return attr is not None and not attr.flags & FLAG_XATTRS and not files.fs.rpc.who.uid


# --- set --------------------------------------------------------------------------------------------------------------


# setxattr(2): "XATTR_CREATE: Perform a pure create, which fails if the named attribute exists already.  XATTR_REPLACE:
# Perform a pure replace operation, which fails if the named attribute does not already exist."
def _setter(name, value, size, flags):
    _flags(flags, CREATE | REPLACE)
    name = _name(name)
    if not 0 <= size <= SIZE_MAX:
        raise fail(errno.E2BIG)
    if size and _shim.probe(value, size, False) < size:
        raise fail(errno.EFAULT)

    def ask(ino, path, attr):
        if name.startswith(b"system."):
            raise fail(errno.EOPNOTSUPP)
        send = (value, size) if size else None
        files.fs.xattr(SETXATTR, ino, path, flags, len(name), len(path), tail=name, send=send)
        return 0

    return ask


@call
def setxattr(path, name, value, size, flags, at_flags):
    return _of_path(path, at_flags, _setter(name, value, size, flags))


@call
def fsetxattr(handle, name, value, size, flags):
    return _of_file(handle, _setter(name, value, size, flags))


@call
def setxattrat(path, at_flags, name, arguments, size):
    at_flags = _at_flags(at_flags)
    return _of_path(path, at_flags, _setter(name, *_arguments(arguments, size)))


@call
def fsetxattrat(handle, at_flags, name, arguments, size):
    _at_flags(at_flags)
    return _of_file(handle, _setter(name, *_arguments(arguments, size)))


# --- get --------------------------------------------------------------------------------------------------------------


def _give(address, size, data):
    """Store what was asked for.  getxattr(2): "If size is specified as zero, these calls return the current size ...
    ERANGE: The size of the value buffer is too small to hold the result." """
    if size:
        if size < len(data):
            raise fail(errno.ERANGE)
        put(address, data)
    return len(data)


def _getter(name, value, size):
    name = _name(name)

    def ask(ino, path, attr):
        if name.startswith(b"system."):
            raise fail(errno.EOPNOTSUPP)
        if _has_none(attr) and name.startswith(_PREFIXES) and name not in (*_PREFIXES, _CHUNK_SIZE):
            raise fail(errno.ENODATA)
        return _give(value, size, files.fs.xattr(GETXATTR, ino, path, len(name), tail=name))

    return ask


@call
def getxattr(path, name, value, size, at_flags):
    return _of_path(path, at_flags, _getter(name, value, size))


@call
def fgetxattr(handle, name, value, size):
    return _of_file(handle, _getter(name, value, size))


def _getter_at(name, arguments, size):
    value, length, flags = _arguments(arguments, size)
    _flags(flags, 0)
    return _getter(name, value, length)


@call
def getxattrat(path, at_flags, name, arguments, size):
    at_flags = _at_flags(at_flags)
    return _of_path(path, at_flags, _getter_at(name, arguments, size))


@call
def fgetxattrat(handle, at_flags, name, arguments, size):
    _at_flags(at_flags)
    return _of_file(handle, _getter_at(name, arguments, size))


# --- list -------------------------------------------------------------------------------------------------------------


# listxattr(2): "retrieves the list of extended attribute names associated with the given path in the filesystem."
def _lister(address, size):
    def ask(ino, path, attr):
        if attr is not None and not attr.flags & FLAG_XATTRS and not _directory_with_chunk_size(attr):
            return 0
        return _give(address, size, files.fs.xattr(LISTXATTR, ino, path))

    return ask


def _directory_with_chunk_size(attr):
    return attr.mode & files.S_IFMT != files.S_IFREG and attr.chunk_size


@call
def listxattr(path, address, size, at_flags):
    return _of_path(path, at_flags, _lister(address, size))


@call
def flistxattr(handle, address, size):
    return _of_file(handle, _lister(address, size))


@call
def listxattrat(path, at_flags, address, size):
    at_flags = _at_flags(at_flags)
    return _of_path(path, at_flags, _lister(address, size))


@call
def flistxattrat(handle, at_flags, address, size):
    _at_flags(at_flags)
    return _of_file(handle, _lister(address, size))


# --- remove -----------------------------------------------------------------------------------------------------------


# removexattr(2): "ENODATA: The named attribute does not exist."
def _remover(name):
    name = _name(name)

    def ask(ino, path, attr):
        if name.startswith(b"system."):
            raise fail(errno.EOPNOTSUPP)
        files.fs.xattr(REMOVEXATTR, ino, path, len(name), tail=name)
        return 0

    return ask


@call
def removexattr(path, name, at_flags):
    return _of_path(path, at_flags, _remover(name))


@call
def fremovexattr(handle, name):
    return _of_file(handle, _remover(name))


@call
def removexattrat(path, at_flags, name):
    at_flags = _at_flags(at_flags)
    return _of_path(path, at_flags, _remover(name))


@call
def fremovexattrat(handle, at_flags, name):
    _at_flags(at_flags)
    return _of_file(handle, _remover(name))
