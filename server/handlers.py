# SPDX-License-Identifier: Apache-2.0
"""What each operation on names and attributes does; ``data.py``, ``rename.py`` and ``peers.py`` have the others.

Errors come in the order in which Linux finds them: the way to the parent, the parent's permission, then the name.
"""
import errno
import os
import stat

from pymadfs.config import CHUNK_SIZE_MAX
from pymadfs.errors import fail
from pymadfs.identity import READ, SEARCH, WRITE, member
from pymadfs.layout import owner, parent
from pymadfs.ops import (
    ATTR,
    EMPTY,
    GETATTR,
    LOOKUP,
    MKDIR,
    OPEN,
    OPEN_TO_EXECUTE,
    OPS,
    RELEASE,
    REOPEN,
    RMDIR,
    SET_GID,
    SET_LINK,
    SET_MODE,
    SET_SIZE,
    SET_UID,
    SETATTR,
    SYMLINK,
    UNLINK,
)

from . import (  # all for their handlers
    appends,  # noqa: F401
    counts,
    credentials,  # noqa: F401
    data,  # noqa: F401
    extensions,
    holes,  # noqa: F401
    inventory,  # noqa: F401
    links,  # noqa: F401
    listing,  # noqa: F401
    locking,
    peers,  # noqa: F401
    recovery,
    relocate,  # noqa: F401
    rename,  # noqa: F401
    strays,
    subtree,  # noqa: F401
    times,
    xattrs,
)
from .attributes import attributes
from .dispatch import HANDLERS, gather, serves
from .inodes import drop, forget_location, sticky
from .meta import (
    O_NOATIME,
    SIZE_MAX,
    TARGET_BYTES_MAX,
    changed,
    check_access,
    check_new_path,
    check_owner,
    entries_prefix,
    entry_key,
    ino_of,
    inode_key,
    is_directory,
    is_pointer,
    is_special,
    is_symlink,
    mode_of,
    new_attr,
    now_ns,
    path_of,
)
from .sizes import resized, shrunk

ATTR_SIZE = ATTR.size
O_PATH = getattr(os, "O_PATH", 0o10000000)


def start(server):
    """Begin to serve: the event loop runs.  What a crash left half done is taken up in the background."""
    unserved = [op.name for op in OPS.values() if op not in HANDLERS]
    # imported for their handlers
    assert not unserved, f"operations without a handler: {unserved}"
    server.start()
    server.locking = locking.Locking(server)
    server.locking.start()
    server.times = times.Times(server)
    server.times.start()
    server.extensions = extensions.Extensions(server.conns)
    server.strays = strays.Strays(server)
    recovery.resume(server)


def new_entry(server, path, request, counted=False):
    """``(key, parent's Dir)`` for a name that must not exist yet; ``counted``: see Directories.parent."""
    check_new_path(path)
    if owner(path, server.servers) != server.number:
        raise fail(errno.EPROTO)
    key = entry_key(path)
    server.dirs.free(key)
    exists = server.kv.get(key) is not None
    above = server.dirs.parent(path, request, SEARCH if exists else WRITE | SEARCH, counted)
    if exists:
        raise fail(errno.EEXIST)
    return key, above


def created_mode(mode, gid, who):
    """The mode of a file that gets its group from a directory: no program runs as a group that its maker is not in."""
    executable = stat.S_ISGID | stat.S_IXGRP
    return mode & ~stat.S_ISGID if mode & executable == executable and who.uid and not member(who, gid) else mode


def group_of(above, request):
    """A new inode's group: the directory's where that is setgid."""
    return above.gid if above.mode & stat.S_ISGID else request.gid


# --- looking --------------------------------------------------------------------------------------------------------


@serves(LOOKUP)
def lookup(server, request):
    if server.times.active and server.times.elsewhere(request.tail):
        return server.times.afterwards(request.tail, looked_up, request)
    return looked_up(server, request)


def looked_up(server, request):
    key, value = server.dirs.entry(request.tail, request)
    if is_pointer(value):
        key, value = server.meta.resolve(key, value)
    return (value[:ATTR_SIZE],), value[ATTR_SIZE:]


@serves(GETATTR)
def getattr_(server, request):
    try:
        key, value = server.meta.find(request.fields[0], request.tail)
    except OSError:
        return found(server, request)
    if server.times.active and is_directory(value) and server.times.elsewhere(path_of(key)):
        return server.times.afterwards(path_of(key), found, request)
    return (value[:ATTR_SIZE],), value[ATTR_SIZE:]


def found(server, request):
    try:
        _, value = server.meta.find(request.fields[0], request.tail)
    except OSError:
        value = server.dirs.removed.get(request.fields[0])
        if value is None:
            raise
        return (value[:ATTR_SIZE],), b""
    return (value[:ATTR_SIZE],), value[ATTR_SIZE:]


# --- opening --------------------------------------------------------------------------------------------------------


@serves(OPEN)
def open_(server, request):
    path = request.tail
    flags, _, _, ended = request.fields
    if ended:
        server.behind(also_ended, request)
    if not flags & os.O_CREAT or flags & O_PATH:
        key, value = server.dirs.entry(path, request)
        return opened(server, request, path, key, value, flags)
    check_new_path(path)
    key = entry_key(path)
    server.dirs.free(key)
    value = server.kv.get(key)
    if value is None:
        return created(server, request, path, key)
    if request.uid:
        server.dirs.parent(path, request, SEARCH)
    if flags & os.O_EXCL:
        raise fail(errno.EEXIST)
    if is_directory(value):
        raise fail(errno.EISDIR)
    return opened(server, request, path, key, value, flags)


def created(server, request, path, key):
    """A new regular file, open."""
    _, mode, chunk_size, _ = request.fields
    if not 0 < chunk_size <= CHUNK_SIZE_MAX:
        raise fail(errno.EINVAL)
    if owner(path, server.servers) != server.number:
        raise fail(errno.EPROTO)
    above = server.dirs.parent(path, request, WRITE | SEARCH)
    chunk_size = above.chunk_size or chunk_size
    now = now_ns()
    ino = server.meta.serial()
    gid = request.gid
    if above.mode & stat.S_ISGID:
        gid = above.gid
        mode = created_mode(mode, gid, request)
    value = ATTR.pack(ino, 0, 0, now, now, now, stat.S_IFREG | mode & 0o7777, 1, request.uid, gid, 0, chunk_size, 0, 0,
                      now)
    server.kv.put(key, value)
    server.openings.add(request.conn, ino)
    server.touched(path, above, now)
    return (1, 0, value), b""


def opened(server, request, path, key, value, flags):
    """An existing name: its attributes, and one more opening of it if it is a regular file."""
    if is_symlink(value):
        return (0, 0, value[:ATTR_SIZE]), value[ATTR_SIZE:]
    if is_pointer(value):
        key, value = server.meta.resolve(key, value)
        if is_pointer(value):
            return (0, 0, value[:ATTR_SIZE]), b""  # the caller goes on with REOPEN at its home
    result = reopened(server, request, key, value, flags)
    if result.__class__ is not tuple:
        return _opened_later(result)
    lent = server.loans.lend(server, request.conn, value, flags)
    if lent is None:
        return (0, 0, *result[0]), b""
    return (0, server.loans.duration_us, *result[0]), lent


async def _opened_later(truncation):
    fields, tail = await truncation
    return (0, 0, *fields), tail


@serves(REOPEN)
def reopen(server, request):
    ino, flags = request.fields
    key, value = server.meta.find(ino, request.tail)
    return reopened(server, request, key, value, flags)


def reopened(server, request, key, value, flags):
    """Access, count and truncate an inode that lives here."""
    if flags & O_PATH:
        return (value[:ATTR_SIZE],), b""
    access = flags & os.O_ACCMODE
    if is_special(value):
        xattrs.check_node(request, value, flags)
        return (value[:ATTR_SIZE],), b""
    want = (READ if access != os.O_WRONLY else 0) | (WRITE if access != os.O_RDONLY or flags & os.O_TRUNC else 0)
    if flags & OPEN_TO_EXECUTE:
        want = SEARCH
    if is_directory(value):
        if want & WRITE:
            raise fail(errno.EISDIR)
    elif flags & os.O_DIRECTORY:
        raise fail(errno.ENOTDIR)
    if request.uid:
        attr = ATTR.unpack(value)
        check_access(attr, request, want)
        if flags & O_NOATIME:
            check_owner(attr, request.uid)
    if is_directory(value):
        return (value[:ATTR_SIZE],), b""
    ino = ino_of(value)
    if flags & os.O_TRUNC:
        server.free_bytes(ino, request.conn, path_of(key))
        changes = resized(server, request, value, 0)
        if changes is None:
            return _emptied(server, request, ino, path_of(key))
        value = changes
        server.kv.put(key, value)
    server.openings.add(request.conn, ino)
    return (value[:ATTR_SIZE],), b""


async def _emptied(server, request, ino, hint):
    result = await shrunk(server, request, ino, hint, 0)
    if request.conn in server.conns:
        server.openings.add(request.conn, ino)
    return result


def also_ended(server, request):
    """OPEN told of an opening that ended."""
    ino = request.fields.ended
    request.fields = request.fields._replace(ended=0)  # it may have to wait, and its handler to run again
    server.released(request.conn, ino)


@serves(RELEASE)
def release(server, request):
    for at in range(0, len(request.tail) - 7, 8):
        ino = int.from_bytes(request.tail[at:at + 8], "little")
        server.released(request.conn, ino)
    return (), b""


# --- making ---------------------------------------------------------------------------------------------------------


@serves(MKDIR)
def mkdir(server, request):
    path = request.tail
    key, above = new_entry(server, path, request, counted=True)
    now = now_ns()
    mode = stat.S_IFDIR | request.fields.mode & 0o7777 | above.mode & stat.S_ISGID
    value = new_attr(server.meta.serial(), mode, request.uid, group_of(above, request), now, nlink=2,
                     chunk_size=above.chunk_size)
    server.kv.put(key, value)
    if above.key is None:
        return counts.settled(server, counts.owe(server, 0, 1, parent(path), now), ((value,), b""))
    counts.adjust(server, above.key, now, 1)
    return (value,), b""


@serves(SYMLINK)
def symlink(server, request):
    path, target = request.tail[:request.fields.length], request.tail[request.fields.length:]
    if not target:
        raise fail(errno.ENOENT)
    if len(target) > TARGET_BYTES_MAX or b"\0" in target:
        raise fail(errno.ENAMETOOLONG if len(target) > TARGET_BYTES_MAX else errno.EINVAL)
    key, above = new_entry(server, path, request)
    now = now_ns()
    ino, gid = server.meta.serial(), group_of(above, request)
    value = new_attr(ino, stat.S_IFLNK | 0o777, request.uid, gid, now, size=len(target))
    server.kv.put(key, value + target)
    server.touched(path, above, now)
    return (value,), b""


# --- removing -------------------------------------------------------------------------------------------------------


@serves(UNLINK)
def unlink(server, request):
    path = request.tail
    key, value = server.dirs.entry(path, request)
    above = server.dirs.parent(path, request, WRITE | SEARCH)
    sticky(server, above, request, path, value)
    if is_directory(value):
        raise fail(errno.EISDIR)
    server.dirs.free(inode_key(ino_of(value)))
    now = now_ns()
    debt = drop(server, value, now)
    server.kv.delete(key)
    server.touched(path, above, now)
    return ((), b"") if debt is None else counts.settled(server, debt, ((), b""))


@serves(RMDIR)
async def rmdir(server, request):
    path = request.tail
    key, value = server.dirs.entry(path, request)
    above = server.dirs.parent(path, request, WRITE | SEARCH, counted=True)
    sticky(server, above, request, path, value)
    if not is_directory(value):
        raise fail(errno.ENOTDIR)
    if path == b"/":
        raise fail(errno.EBUSY)
    server.dirs.hold(key)
    try:
        server.dirs.forget(path)
        if not await empty_everywhere(server, path):
            raise fail(errno.ENOTEMPTY)
        kept = xattrs.forget(server, value)
        now = now_ns()
        server.kv.delete(key)
        moved = forget_location(server, ino_of(value), now)
        server.dirs.gone(path)
        if above.key is not None:
            counts.adjust(server, above.key, now, -1)
        else:
            debt = counts.owe(server, 0, -1, parent(path), now)
        server.commit()
        server.dirs.remember(ino_of(value), changed(value, nlink=0, ctime_ns=now) + kept)
    finally:
        server.dirs.let_go(key)
    if moved is not None:
        counts.later(server, moved)
    return ((), b"") if above.key is not None else await counts.settled(server, debt, ((), b""))


async def empty_everywhere(server, path):
    """Whether no server has an entry in the directory; afterwards none knows it, so none can make one."""
    if not is_empty(server, path):
        return False
    others = [number for number in range(server.servers) if number != server.number]
    results = await gather([server.call_peer(number, EMPTY, path) for number in others])
    return all(reply.empty for reply, _ in results)


def is_empty(server, path):
    server.commit()
    return not server.kv.scan(entries_prefix(path), b"", 1) and not server.freezes.reserves(path)


# --- attributes -----------------------------------------------------------------------------------------------------


@serves(SETATTR)
def setattr_(server, request):
    if request.fields.ino in server.dirs.removed:
        return set_removed(server, request)
    if server.times.active:
        ino = request.fields.ino
        path = path_of(server.meta.find(ino, request.tail)[0]) if ino else request.tail
        if server.times.elsewhere(path):
            return server.times.afterwards(path, set_attributes, request)
    return set_attributes(server, request)


def set_attributes(server, request):
    ino, valid = request.fields[:2]
    if ino:
        path = None
        key, value = server.meta.find(ino, request.tail)
    else:
        path = request.tail
        key, value = server.dirs.entry(path, request)
        if is_symlink(value) and not valid & SET_LINK:
            return (value[:ATTR_SIZE],), value[ATTR_SIZE:]
        if is_pointer(value):
            key, value = server.meta.resolve(key, value)
            if is_pointer(value):
                return (value[:ATTR_SIZE],), value[ATTR_SIZE:]
    server.dirs.free(key)
    server.dirs.free(inode_key(ino_of(value)))
    if server.freezes and is_directory(value):
        server.freezes.still(path_of(key))
    updated = attributes(request, value)
    if valid & SET_SIZE:
        server.free_bytes(ino_of(value), request.conn, path_of(key))
        check_resize(request, value, path)
        sized = resized(server, request, updated, request.fields.size)
        if sized is None:
            return shrunk(server, request, ino_of(value), path_of(key), request.fields.size, attributes)
        updated = sized
    server.read_lately.discard(ino_of(value))
    if is_directory(value) and valid & (SET_MODE | SET_UID | SET_GID):
        return change_directory(server, request, key, path_of(key))
    server.kv.put(key, updated)
    return (updated[:ATTR_SIZE],), updated[ATTR_SIZE:]


def set_removed(server, request):
    """As set_attributes, of a directory that was removed and may still be open."""
    ino = request.fields.ino
    value = attributes(request, server.dirs.removed[ino])
    if request.fields.valid & SET_SIZE:
        raise fail(errno.EISDIR)
    server.dirs.removed[ino] = value
    return (value[:ATTR_SIZE],), b""


def check_resize(request, value, path):
    """truncate(2) needs write permission; a descriptor has shown it at open."""
    if not stat.S_ISREG(mode_of(value)):
        raise fail(errno.EISDIR if is_directory(value) else errno.EINVAL)
    if request.fields.size > SIZE_MAX:
        raise fail(errno.EFBIG)
    if path is not None and request.uid:
        check_access(ATTR.unpack(value), request, WRITE)


async def change_directory(server, request, key, path):
    """chmod and chown of a directory take effect when no server checks by the old attributes any more."""
    server.dirs.hold(key)
    try:
        server.dirs.forget(path)
        await server.dirs.invalidate(path)
        value = server.kv.get(key)
        if value is None:
            raise fail(errno.ENOENT)
        value = attributes(request, value)
        server.kv.put(key, value)
        server.commit()
    finally:
        server.dirs.let_go(key)
    return (value[:ATTR_SIZE],), b""
