# SPDX-License-Identifier: Apache-2.0
"""Truncation, also by open: the home holds the inode while bytes go on all servers."""
from pymadfs.ops import ATTR, FLAG_BEYOND

from .inodes import shrink
from .meta import (
    changed,
    cuts_of,
    ino_of,
    inode_key,
    now_ns,
    with_size,
    without_privileges,
)


def resized(server, request, value, size):
    """The value with another size and times, or None when other servers or threads must drop bytes first."""
    ino = ino_of(value)
    cuts = None
    if server.extensions:
        server.extensions.pop(ino, None)  # this size is wanted
    reach = server.strays.reach(value)
    if size < reach:
        if not server.chunks.single(ino, reach, ATTR.unpack(value).chunk_size):
            return None
        server.chunks.cut_inline(ino, size)
        cuts = next_cut(server, value)
    server.read_lately.discard(ino)
    return without_privileges(with_size(value, size, now_ns(), cuts=cuts), request)


def next_cut(server, value):
    """A number for a cut of the file; one that a dead peer kept from being made was perhaps made on others."""
    return max(cuts_of(value), server.cuts.known.get(ino_of(value), 0)) + 1


async def shrunk(server, request, ino, hint, size, change=None):
    """Drop the bytes above ``size`` everywhere, then set the size; the inode is held meanwhile.
    ``change(request, value)`` makes other changes that the request asks for.

    In this order a crash leaves a hole below the old size, never old bytes above the new one.
    """
    held = inode_key(ino)
    server.dirs.hold(held)
    try:
        await server.cuts.drained(ino)
        key, value = await cut_to(server, ino, hint, size)
        server.extensions.pop(ino, None)
        value = without_privileges(change(request, value) if change else value, request)
        server.kv.put(key, value)
        server.commit()
    finally:
        server.dirs.let_go(held)
    return (value[:ATTR.size],), b""


async def cut_to(server, ino, hint, size, reach=0):
    """The key and new value of an inode after all bytes from ``size`` on were dropped.  Something may be stored up to
    ``reach`` although the file does not know it.  REQUIRES: it is held."""
    _, value = server.meta.find(ino, hint)
    cuts = next_cut(server, value)
    freed = await shrink(server, ino, size, max(reach, server.strays.reach(value)), ATTR.unpack(value).chunk_size, cuts)
    server.strays.pop(ino, None)
    server.read_lately.discard(ino)
    key, value = server.meta.find(ino, hint)
    value = with_size(value, size, now_ns(), freed, cuts)
    flags = ATTR.unpack(value).flags
    return key, changed(value, flags=flags & ~FLAG_BEYOND) if flags & FLAG_BEYOND else value
