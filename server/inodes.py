# SPDX-License-Identifier: Apache-2.0
"""What becomes of an inode whose name goes away, and of bytes above a new size: together with other servers."""
import errno
import stat

from pymadfs.errors import fail
from pymadfs.layout import chunk_server, home
from pymadfs.log import log
from pymadfs.ops import ATTR, CUT, FLAG_XATTRS, GETATTR

from . import counts
from .directories import Wait
from .meta import (
    PURGE,
    changed,
    data_key,
    has_xattrs,
    ino_of,
    inode_key,
    is_pointer,
    location_key,
    purge_key,
    xattrs_key,
)


def sticky(server, above, request, path, value):
    """In a sticky directory only the owner of the file, of the directory, or root may take a name away (EPERM)."""
    if not above.mode & stat.S_ISVTX or request.uid in (0, above.uid):
        return
    attr = ATTR.unpack(value)
    uid = attr.uid
    if is_pointer(value):
        ino = attr.ino
        if home(ino) == server.number:
            uid = ATTR.unpack(server.meta.find(ino, path)[1]).uid
        elif (uid := server.inode_owners.pop(ino, None)) is None:
            raise Wait(lambda: _ask_owner(server, ino, path))
    if uid != request.uid:
        raise fail(errno.EPERM)


async def _ask_owner(server, ino, path):
    reply, _ = await server.call_peer(home(ino), GETATTR, path, ino)
    server.inode_owners[ino] = ATTR.unpack(reply.attr).uid


def drop(server, value, now):
    """The entry ``value`` goes away with this batch: its inode has one name less.

    Bytes in chunk files are removed behind it.  Returns None, or the number of a debt to settle after the commit: the
    inode lives elsewhere.
    """
    ino = ino_of(value)
    if not is_pointer(value):
        _drop_inode(server, ino, value, now)
    elif home(ino) == server.number:
        lower(server, ino, now)
    else:
        return counts.owe(server, ino, -1, b"", now)
    return None


def lower(server, ino, now):
    """A detached inode of ours lost a name; with the last one it goes away."""
    value = server.kv.get(inode_key(ino))
    links = 0 if value is None else ATTR.unpack(value).nlink
    if value is None and server.kv.get(location_key(ino)) is not None:
        server.kv.delete(location_key(ino))  # a directory that had moved
    if links > 1:
        server.kv.put(inode_key(ino), changed(value, nlink=links - 1, ctime_ns=now))
    elif links:
        server.kv.delete(inode_key(ino))
        _drop_inode(server, ino, value, now)


def _drop_inode(server, ino, value, now):
    attr = ATTR.unpack(value)
    if ino in server.openings.total or server.unsure and stat.S_ISREG(attr.mode):
        server.kv.put(inode_key(ino), changed(value, nlink=0, ctime_ns=now))
        server.kv.put(purge_key(ino), PURGE.pack(server.strays.reach(value), attr.chunk_size))
        server.orphans.add(ino)
        return
    reach = server.strays.reach(value)
    server.strays.pop(ino, None)
    if attr.size:
        server.kv.delete(data_key(ino))
    if attr.flags & FLAG_XATTRS:
        server.kv.delete(xattrs_key(ino))
    if stat.S_ISREG(attr.mode) and not server.chunks.single(ino, reach, attr.chunk_size):
        server.kv.put(purge_key(ino), PURGE.pack(reach, attr.chunk_size))
        server.remove(purge(server, ino))


def forget_location(server, ino, now):
    """The directory ``ino`` is removed with this batch: so is what its home knows about where it is.

    Returns None, or the number of a debt to settle after the commit: its home is elsewhere.
    """
    if home(ino) != server.number:
        return counts.owe(server, ino, -1, b"", now)
    lower(server, ino, now)
    return None


async def shrink(server, ino, size, old, chunk_size, cuts=0):
    """Drop stored bytes from ``size`` on, of a file of ``old`` bytes, on all servers that may have some: cut ``cuts``
    of the file (see cuts.py).  Returns the blocks of 512 bytes that this freed."""
    first, last = (size // chunk_size, max(old - 1, 0) // chunk_size) if chunk_size else (0, 0)
    chunks = range(first, min(last, first + server.servers) + 1)
    numbers = {chunk_server(ino, chunk, server.servers) for chunk in chunks}
    numbers.add(home(ino))
    calls = [server.call_peer(number, CUT, b"", ino, size, chunk_size, cuts)
             for number in numbers if number != server.number]
    freed, error = 0, None
    try:
        freed = await cut_here(server, ino, size, chunk_size, cuts)
    except OSError as failure:
        error = failure
    for call in calls:
        try:
            freed += (await call)[0].blocks
        except OSError as failure:  # the others are not left at work
            error = error or failure
    if error:
        raise error
    return freed


async def cut_here(server, ino, size, chunk_size, cuts):
    """Drop what this server stores of ``ino`` from ``size`` bytes on; -> blocks of 512 bytes freed.

    Writes that come meanwhile wait; they, and later ones, learn that cut ``cuts`` was before them.
    """
    freed = 0
    await server.cuts.begin(ino)
    try:
        server.cuts.learn(ino, cuts)
        server.chunks.cut_inline(ino, size)
        more = True
        while more:
            server.commit()
            work, more = server.chunks.cut_plan(ino, size, chunk_size)
            if work:  # keys first: a file without a key is removed after a crash, a key without a file is damage
                server.chunks.cut_done(ino, work)
                server.commit()
                freed += await server.io(server.chunks.remove_files, ino, work)
    finally:
        server.cuts.end(ino)
    return freed


def everywhere(server, record):
    """The PURGE record of a removal that asks all servers: some may have stored bytes of a write that this one was not
    told of, because it died or the writer did."""
    return PURGE.pack(max(record.size, record.chunk_size * server.servers), record.chunk_size)


async def purge(server, ino):
    """Do what the purge record of ``ino`` asks, then delete it."""
    while True:
        try:
            return await _purge_once(server, ino)
        except OSError as error:
            log(f"server {server.number}: removal of inode {ino:x} waits: {error}")
            await server.pause()


async def _purge_once(server, ino):
    value = server.kv.get(purge_key(ino))
    if value is None:
        return
    record = PURGE.unpack(value)
    inode = server.kv.get(inode_key(ino))
    await shrink(server, ino, 0, max(record.size, server.strays.reach(inode) if inode else 0), record.chunk_size)
    server.kv.delete(inode_key(ino))
    server.kv.delete(data_key(ino))
    if inode and has_xattrs(inode):
        server.kv.delete(xattrs_key(ino))
    server.kv.delete(purge_key(ino))
    server.commit()
