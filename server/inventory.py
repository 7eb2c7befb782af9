# SPDX-License-Identifier: Apache-2.0
"""What a server has in its store, told to fsck, and what fsck wants put right (pymadfs/fsck.py)."""
import errno
import os
import stat
import struct

from pymadfs import ops
from pymadfs.errors import fail
from pymadfs.layout import home, owner
from pymadfs.ops import ATTR, INVENTORY, ITEM, ITEM_DAMAGED, ITEM_FILE, ITEM_LOST, ITEM_OPEN, MEND

from .chunks import DIRECTORIES
from .dispatch import serves
from .inodes import purge
from .meta import (
    PURGE,
    changed,
    chunk_key,
    chunk_of,
    data_key,
    entry_key,
    ino_of,
    inode_key,
    is_directory,
    is_pointer,
    key_number,
    mode_of,
    new_attr,
    now_ns,
    path_of,
    pointer,
    purge_key,
    reach_of,
    target_of,
    xattrs_key,
)
from .records import whole

PAGE_KEYS = 256
PAGE_FILES = 1024
KEYS, FILES = b"k", b"f"  # first byte of a cursor: then the last key, or directory and how many of its files were told
_AT = struct.Struct(">HI")
MENDS = {}
WITH_PATH = (ops.MEND_DIRECTORY, ops.MEND_ENTRY, ops.MEND_PARENT, ops.MEND_DETACH, ops.MEND_TWIN, ops.MEND_MISPLACED,
             ops.MEND_PLACE)


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
    kind, kept, flags = key[:1], b"", 0
    if kind != ITEM_FILE and not whole(key, value, server.servers):
        return ITEM.pack(len(key), 0, ITEM_DAMAGED) + key
    if kind == b"E" or kind == b"I":
        ino = ino_of(value) if kind == b"E" else key_number(key)
        kept = value[:ATTR.size] if kind == b"I" or owner(path_of(key), server.servers) == server.number else value
        flags = ITEM_OPEN if ino in server.openings.total or ino in server.orphans else 0
    elif kind == b"C" and _lost(server, key_number(key[:9]), chunk_of(key)):
        flags = ITEM_LOST
    return ITEM.pack(len(key), len(kept), flags) + key + kept


def _lost(server, ino, chunk):
    """Whether a chunk has a key and no file."""
    return ino not in server.cuts.under_way and not server.chunks.exists(ino, chunk)


# --- putting right --------------------------------------------------------------------------------------------------


@serves(MEND)
def mend(server, request):
    """Each looks first whether it is still so: the store may have changed since fsck looked."""
    action, ino, number = request.fields
    _only_for_the_owner(request)
    if action not in MENDS or action in WITH_PATH and request.tail[:1] != b"/":
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


@mends(ops.MEND_CHUNK)
def chunk(server, ino, number, path):
    """The file of a chunk is gone: its key goes, too, and there is a hole."""
    key = chunk_key(ino, number)
    if server.kv.get(key) is None or not _lost(server, ino, number):
        return False
    server.chunks.cut_done(ino, [(number, 0)])
    return True


@mends(ops.MEND_DATA)
async def data(server, ino, number, path):
    """Stored bytes of one chunk that belong to no inode, or a chunk file without its key."""
    if server.kv.get(chunk_key(ino, number)) is None and server.chunks.is_open(ino, number):
        return (0,), b""  # it is being made
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
    """The record cannot be one of its kind: what it was is lost, and what belonged to it is found next."""
    value = server.kv.get(key)
    if value is None or whole(key, value, server.servers):
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


# --- what is there twice, or in a wrong place -----------------------------------------------------------------------


@mends(ops.MEND_DETACH)
def detach(server, ino, number, path):
    """A file's inode lies within a name and has other names, or lies elsewhere as well: it becomes a record of its own,
    if there is none yet, and the name one that points to it."""
    key, value = _embedded(server, path, ino)
    if value is None or is_directory(value):
        return False
    if home(ino) == server.number and server.kv.get(inode_key(ino)) is None:
        server.kv.put(inode_key(ino), value)
    server.kv.put(key, pointer(ino, mode_of(value)) + target_of(value))
    return True


@mends(ops.MEND_TWIN)
def twin(server, ino, number, path):
    """Two directories have one inode number: this one gets another."""
    key, value = _embedded(server, path, ino)
    if value is None or not is_directory(value):
        return False
    server.kv.put(key, changed(value, ino=server.meta.serial()))
    server.dirs.forget_all()
    return True


@mends(ops.MEND_MISPLACED)
def misplaced(server, ino, number, path):
    """A name that belongs to another server, which has it by now.  What it was may go on there."""
    key = entry_key(path)
    server.dirs.free(key)
    value = server.kv.get(key)
    if value is None or owner(path, server.servers) == server.number:
        return False
    inside = not is_pointer(value) and not is_directory(value) and ino == ino_of(value)
    if inside and home(ino) == server.number and server.kv.get(inode_key(ino)) is None:
        server.kv.put(inode_key(ino), value)
    server.kv.delete(key)
    server.dirs.forget_all()
    return True


@mends(ops.MEND_PLACE)
def place(server, ino, length, tail):
    """The path ``tail[:length]`` was found on another server, with this value."""
    path, value = tail[:length], tail[length:]
    key = entry_key(path)
    server.dirs.free(key)
    if owner(path, server.servers) != server.number or not whole(key, value, server.servers):
        raise fail(errno.EINVAL)
    if server.kv.get(key) is not None:
        return False
    if not is_directory(value) and (home(ino) != server.number or server.kv.get(inode_key(ino)) is not None):
        value = pointer(ino, mode_of(value)) + target_of(value)
    server.kv.put(key, value)
    return True


@mends(ops.MEND_INODE)
def inode(server, ino, number, path):
    """An inode that lives elsewhere has a record here as well."""
    if home(ino) == server.number or server.kv.get(inode_key(ino)) is None:
        return False
    server.kv.delete(inode_key(ino))
    return True


@mends(ops.MEND_XATTRS)
def attributes(server, ino, number, path):
    """Extended attributes of an inode that is not here."""
    if server.kv.get(xattrs_key(ino)) is None or server.kv.get(inode_key(ino)) is not None:
        return False
    server.kv.delete(xattrs_key(ino))
    return True


def _embedded(server, path, ino):
    """``(key, value)`` of a name that has the inode ``ino`` within; the value is None when it has not."""
    key = entry_key(path)
    server.dirs.free(key)
    server.dirs.free(inode_key(ino))
    value = server.kv.get(key)
    return key, None if value is None or is_pointer(value) or ino_of(value) != ino else value
