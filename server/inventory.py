# SPDX-License-Identifier: Apache-2.0
"""What a server has in its store, told to fsck, and what fsck wants put right (pymadfs/fsck.py)."""
import errno
import os
import stat
import struct

from pymadfs import ops
from pymadfs.errors import fail
from pymadfs.layout import owner
from pymadfs.ops import ATTR, INVENTORY, ITEM, ITEM_FILE, ITEM_OPEN, MEND

from .chunks import DIRECTORIES
from .dispatch import serves
from .inodes import purge
from .meta import (
    PURGE,
    changed,
    chunk_key,
    data_key,
    entry_key,
    ino_of,
    inode_key,
    is_directory,
    is_pointer,
    is_whole,
    key_number,
    new_attr,
    now_ns,
    purge_key,
    reach_of,
)

PAGE_KEYS = 256
PAGE_FILES = 1024
KEYS, FILES = b"k", b"f"  # first byte of a cursor: then the last key, or directory and how many of its files were told
_AT = struct.Struct(">HI")
MENDS = {}


@serves(INVENTORY)
def inventory(server, request):
    _only_for_the_owner(request)
    cursor = request.tail or KEYS
    if cursor[:1] == KEYS:
        server.commit()
        page = server.kv.scan(b"", cursor[1:], PAGE_KEYS)
        items = [_item(server, key, value) for key, value in page]
        cursor = KEYS + page[-1][0] if len(page) == PAGE_KEYS else FILES + _AT.pack(0, 0)
    else:
        number, skip = _AT.unpack(cursor[1:])
        files = server.chunks.files(number)[skip:skip + PAGE_FILES]
        while not files and number + 1 < DIRECTORIES:  # most of a small store are empty
            number, skip = number + 1, 0
            files = server.chunks.files(number)[:PAGE_FILES]
        items = [_item(server, ITEM_FILE + chunk_key(ino, chunk)[1:], b"") for ino, chunk in files]
        number, skip = (number, skip + PAGE_FILES) if len(files) == PAGE_FILES else (number + 1, 0)
        cursor = FILES + _AT.pack(number, skip) if number < DIRECTORIES else b""
    return (len(cursor),), cursor + b"".join(items)


def _only_for_the_owner(request):
    if request.uid not in (0, os.getuid()):
        raise fail(errno.EPERM)


def _item(server, key, value):
    kind = key[:1]
    whole = kind in (b"E", b"I") and is_whole(value, server.servers)
    ino = 0 if not whole else ino_of(value) if kind == b"E" else key_number(key)
    kept = value[:ATTR.size] if kind in (b"E", b"I") else b""
    is_open = ino in server.openings.total or ino in server.orphans
    return ITEM.pack(len(key), len(kept), ITEM_OPEN if is_open else 0) + key + kept


# --- putting right --------------------------------------------------------------------------------------------------


@serves(MEND)
def mend(server, request):
    """Each looks first whether it is still so: the store may have changed since fsck looked."""
    action, ino, number = request.fields
    _only_for_the_owner(request)
    if action not in MENDS or action in (ops.MEND_DIRECTORY, ops.MEND_ENTRY, ops.MEND_PARENT) \
            and request.tail[:1] != b"/":
        raise fail(errno.EINVAL)
    result = MENDS[action](server, ino, number, request.tail)
    return ((int(result),), b"") if isinstance(result, bool) else result


def mends(action):
    def register(function):
        MENDS[action] = function
        return function
    return register


@mends(ops.MEND_LINKS)
def links(server, ino, number, path):
    """The detached inode has so many names."""
    server.dirs.free(inode_key(ino))
    value = server.kv.get(inode_key(ino))
    if value is None or not number:
        return False
    server.kv.put(inode_key(ino), changed(value, nlink=number, ctime_ns=now_ns()))
    server.kv.delete(purge_key(ino))
    server.orphans.discard(ino)
    return True


@mends(ops.MEND_DIRECTORY)
def directory(server, ino, number, path):
    """The directory has so many links: two and one for each directory in it."""
    key = entry_key(path)
    server.dirs.free(key)
    value = server.kv.get(key)
    if value is None or not is_directory(value) or ino_of(value) != ino:
        return False
    server.kv.put(key, changed(value, nlink=number))
    return True


@mends(ops.MEND_ENTRY)
def entry(server, ino, number, path):
    """The name points to an inode that does not exist."""
    key = entry_key(path)
    server.dirs.free(key)
    value = server.kv.get(key)
    if value is None or not is_pointer(value) or ino_of(value) != ino:
        return False
    server.kv.delete(key)
    return True


@mends(ops.MEND_DATA)
async def data(server, ino, number, path):
    """Stored bytes of one chunk that belong to no inode."""
    if not number:
        server.kv.delete(data_key(ino))
        server.commit()
    await server.io(server.chunks.remove_files, ino, [(number, 0)])
    server.chunks.cut_done(ino, [(number, 0)])
    server.commit()
    return (1,), b""


@mends(ops.MEND_PARENT)
def parent(server, ino, number, path):
    """There are names below a directory that does not exist: make it, for root only."""
    key = entry_key(path)
    server.dirs.free(key)
    if server.kv.get(key) is not None or owner(path, server.servers) != server.number:
        return False
    mode = stat.S_IFDIR | 0o700
    server.kv.put(key, new_attr(server.meta.serial(), mode, os.getuid(), os.getgid(), now_ns(), nlink=2))
    return True


@mends(ops.MEND_RECORD)
def record(server, ino, number, key):
    """The record of an entry or inode cannot be one: what it was is lost, and what belonged to it is found next."""
    value = server.kv.get(key)
    if value is None or key[:1] not in (b"E", b"I") or is_whole(value, server.servers):
        return False
    server.kv.delete(key)
    server.dirs.forget_all()
    return True


@mends(ops.MEND_ORPHAN)
def orphan(server, ino, number, path):
    """The inode has no name and nobody has it open."""
    value = server.kv.get(inode_key(ino))
    if value is None or ino in server.openings.total or ino in server.orphans:
        return False
    attr = ATTR.unpack(value)
    server.kv.put(inode_key(ino), changed(value, nlink=0))
    server.kv.put(purge_key(ino), PURGE.pack(reach_of(value), attr.chunk_size))
    server.remove(purge(server, ino))
    return True
