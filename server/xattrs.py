# SPDX-License-Identifier: Apache-2.0
"""Extended attributes, and inodes that are neither file, directory nor link.

All attributes of an inode are one record at its home, key ``AX`` ino::

    record    := attribute*
    attribute := length of name:u8, length of value:u32 (little-endian), name, value

``FLAG_XATTRS`` in the inode says whether there is one, so that who has none pays nothing.  One attribute is no record:
``user.madfs.chunk_size`` of a directory is the field ``chunk_size`` of its ATTR, in decimal, which every server that
makes files in the directory knows already.
"""
import errno
import os
import stat
import struct

from pymadfs.config import CHUNK_SIZE_MAX
from pymadfs.errors import fail
from pymadfs.identity import READ, WRITE
from pymadfs.ops import ATTR, FLAG_XATTRS, GETXATTR, LISTXATTR, MKNOD, REMOVEXATTR, SETXATTR

from .directories import Wait
from .dispatch import serves
from .meta import (
    O_NOATIME,
    changed,
    check_access,
    check_owner,
    has_xattrs,
    ino_of,
    inode_key,
    is_directory,
    mode_of,
    new_attr,
    now_ns,
    path_of,
    xattrs_key,
)

NAME_MAX, VALUE_MAX = 255, 64 << 10
TOTAL_MAX = 256 << 10  # bytes of one record
REMOVED_MAX = 4 << 10  # and of that of a directory that was removed, which is kept in memory behind its attributes
XATTR_CREATE, XATTR_REPLACE = 1, 2
CHUNK_SIZE = b"user.madfs.chunk_size"
PREFIXES = b"user.", b"trusted.", b"security."
NODES = stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK

_LENGTHS = struct.Struct("<BI")


def unpack(record):
    """Dict of name -> value (bytes)."""
    found, at = {}, 0
    while at < len(record):
        name_length, length = _LENGTHS.unpack_from(record, at)
        at += _LENGTHS.size
        middle = at + name_length
        found[record[at:middle]] = record[middle:middle + length]
        at = middle + length
    return found


def pack(attributes):
    """The record of a dict."""
    return b"".join(_LENGTHS.pack(len(name), len(value)) + name + value for name, value in attributes.items())


def _load(server, value):
    if ino_of(value) in server.dirs.removed:
        return unpack(value[ATTR.size:])
    return unpack(server.kv.get(xattrs_key(ino_of(value))) or b"") if has_xattrs(value) else {}


def _store(server, key, value, attributes):
    """The inode ``value`` has these attributes from now on.  Raises ENOSPC when they are too many."""
    record = pack(attributes)
    if len(record) > (TOTAL_MAX if key else REMOVED_MAX):
        raise fail(errno.ENOSPC)
    if not key:
        server.dirs.remember(ino_of(value), changed(value, ctime_ns=now_ns())[:ATTR.size] + record)
        return
    if record:
        server.kv.put(xattrs_key(ino_of(value)), record)
    else:
        server.kv.delete(xattrs_key(ino_of(value)))
    flags = ATTR.unpack(value).flags
    flags = flags | FLAG_XATTRS if record else flags & ~FLAG_XATTRS
    server.kv.put(key, changed(value, flags=flags, ctime_ns=now_ns()))


def forget(server, value):
    """The inode ``value`` goes away with this batch; -> its record, for who has it open, if that is not large."""
    if not has_xattrs(value):
        return b""
    record = server.kv.get(xattrs_key(ino_of(value))) or b""
    server.kv.delete(xattrs_key(ino_of(value)))
    return record if len(record) <= REMOVED_MAX else b""


# --- who may ----------------------------------------------------------------------------------------------------------


def check(request, value, name, want):
    """May the caller read or write (``want``) the attribute ``name`` of the inode?  Raises OSError as xattr(7) says."""
    if not name or len(name) > NAME_MAX:
        raise fail(errno.ERANGE)
    attr, root = ATTR.unpack(value), not request.uid
    refused = errno.EPERM if want & WRITE else errno.ENODATA
    if name.startswith(b"trusted.") and not root:
        raise fail(refused)
    if name.startswith(b"user."):
        if not (stat.S_ISREG(attr.mode) or stat.S_ISDIR(attr.mode)):
            raise fail(refused)
        if stat.S_ISDIR(attr.mode) and attr.mode & stat.S_ISVTX and want & WRITE and request.uid not in (0, attr.uid):
            raise fail(errno.EPERM)
    if not root:
        if not name.startswith((b"security.", b"system.")):
            check_access(attr, request, want)
        elif want & WRITE and name.startswith(b"security."):
            raise fail(errno.EPERM)
    # What grants capabilities to a program would have no effect here.
    if not name.startswith(PREFIXES) or want & WRITE and name == b"security.capability":
        raise fail(errno.EOPNOTSUPP)
    if name in PREFIXES:
        raise fail(errno.EINVAL)


def _inode(server, request, ino, hint):
    """``(key, value)`` of an inode that nobody is changing; no key when it is a removed directory's."""
    server.dirs.free(inode_key(ino))
    if ino in server.dirs.removed:
        return None, server.dirs.removed[ino]
    key, value = server.meta.find(ino, hint)
    server.dirs.free(key)
    return key, value


def _changing(server, request, ino, hint):
    """As ``_inode``, for a change: those of a directory wait for a rename that it moves with."""
    key, value = _inode(server, request, ino, hint)
    if server.freezes and key and is_directory(value):
        server.freezes.still(path_of(key))
    return key, value


# --- the operations ---------------------------------------------------------------------------------------------------


@serves(GETXATTR)
def getxattr(server, request):
    ino, length = request.fields
    name, hint = request.tail[:length], request.tail[length:]
    _, value = _inode(server, request, ino, hint)
    check(request, value, name, READ)
    if name == CHUNK_SIZE:
        found = b"%d" % ATTR.unpack(value).chunk_size
        if found == b"0":
            raise fail(errno.ENODATA)
        return (), found
    try:
        return (), _load(server, value)[name]
    except KeyError:
        raise fail(errno.ENODATA) from None


@serves(LISTXATTR)
def listxattr(server, request):
    _, value = _inode(server, request, request.fields.ino, request.tail)
    names = [name for name in _load(server, value) if not (request.uid and name.startswith(b"trusted."))]
    if is_directory(value) and ATTR.unpack(value).chunk_size:
        names.append(CHUNK_SIZE)
    return (), b"".join(name + b"\0" for name in names)


@serves(SETXATTR)
def setxattr(server, request):
    _, _, name_length, hint_length = request.fields
    if request.bulk:
        return _receive(server, request)
    return _set(server, request, request.tail[name_length + hint_length:])


async def _receive(server, request):
    if request.bulk > VALUE_MAX:
        raise fail(errno.E2BIG)
    data = bytearray(request.bulk)
    with memoryview(data) as view:
        await server.receive(request, view)
    while True:  # the value does not come twice
        try:
            result = _set(server, request, bytes(data))
            return result if result.__class__ is tuple else await result
        except Wait as wait:
            await wait.make()


def _set(server, request, data):
    ino, flags, name_length, hint_length = request.fields
    name, hint = request.tail[:name_length], request.tail[name_length:name_length + hint_length]
    if len(data) > VALUE_MAX:
        raise fail(errno.E2BIG)
    key, value = _changing(server, request, ino, hint)
    check(request, value, name, WRITE)
    attributes = _load(server, value)
    virtual = name == CHUNK_SIZE
    exists = bool(ATTR.unpack(value).chunk_size) if virtual else name in attributes
    if exists and flags & XATTR_CREATE:
        raise fail(errno.EEXIST)
    if not exists and flags & XATTR_REPLACE:
        raise fail(errno.ENODATA)
    if virtual:
        return _set_chunk_size(server, key, value, _chunk_size(value, data))
    attributes[name] = data
    _store(server, key, value, attributes)
    return (), b""


@serves(REMOVEXATTR)
def removexattr(server, request):
    ino, length = request.fields
    name, hint = request.tail[:length], request.tail[length:]
    key, value = _changing(server, request, ino, hint)
    check(request, value, name, WRITE)
    if name == CHUNK_SIZE:
        if not is_directory(value) or not ATTR.unpack(value).chunk_size:
            raise fail(errno.EINVAL if not is_directory(value) else errno.ENODATA)
        return _set_chunk_size(server, key, value, 0)
    attributes = _load(server, value)
    if attributes.pop(name, None) is None:
        raise fail(errno.ENODATA)
    _store(server, key, value, attributes)
    return (), b""


# --- the chunk size of files to be made -------------------------------------------------------------------------------


def _chunk_size(value, text):
    """Bytes that ``text`` names.  EINVAL: no number, out of range, or not for a directory: a file's is fixed."""
    if not is_directory(value) or not text.isdigit() or len(text) > 10 or not 0 < int(text) <= CHUNK_SIZE_MAX:
        raise fail(errno.EINVAL)
    return int(text)


async def _set_chunk_size(server, key, value, chunk_size):
    """As chmod of a directory: it holds once no server makes files by what was."""
    if not key:
        raise fail(errno.ENOENT)
    path = path_of(key)
    server.dirs.hold(key)
    try:
        server.dirs.forget(path)
        await server.dirs.invalidate(path)
        value = server.kv.get(key)
        if value is None:
            raise fail(errno.ENOENT)
        server.kv.put(key, changed(value, chunk_size=chunk_size, ctime_ns=now_ns()))
        server.commit()
    finally:
        server.dirs.let_go(key)
    return (), b""


# --- special files ----------------------------------------------------------------------------------------------------


@serves(MKNOD)
def mknod(server, request):
    from .handlers import created_mode, group_of, new_entry
    mode, rdev = request.fields
    kind = stat.S_IFMT(mode)
    if kind not in NODES:
        raise fail(errno.EINVAL)
    key, above = new_entry(server, request.tail, request)
    device = kind in (stat.S_IFCHR, stat.S_IFBLK)
    if device and request.uid and not (kind == stat.S_IFCHR and not rdev):  # 0:0 is overlayfs' whiteout: for all
        raise fail(errno.EPERM)
    now = now_ns()
    gid = group_of(above, request)
    mode = created_mode(mode & 0o7777, gid, request) if above.mode & stat.S_ISGID else mode & 0o7777
    value = new_attr(server.meta.serial(), kind | mode, request.uid, gid, now, rdev=rdev if device else 0)
    server.kv.put(key, value)
    server.touched(request.tail, above, now)
    return (value,), b""


def check_node(request, value, flags):
    """open(2) of what is no file, directory or link: FIFOs are the caller's node's affair, once it may open them.

    Device nodes are as on a file system that is mounted with nodev, and nobody listens at a socket's file.
    """
    kind = stat.S_IFMT(mode_of(value))
    if flags & os.O_DIRECTORY:
        raise fail(errno.ENOTDIR)
    if kind in (stat.S_IFCHR, stat.S_IFBLK):
        raise fail(errno.EACCES)
    if request.uid:
        access = flags & os.O_ACCMODE
        want = (READ if access != os.O_WRONLY else 0) | (WRITE if access != os.O_RDONLY else 0)
        attr = ATTR.unpack(value)
        check_access(attr, request, want)
        if flags & O_NOATIME:
            check_owner(attr, request.uid)
    if kind == stat.S_IFSOCK:
        raise fail(errno.ENXIO)
