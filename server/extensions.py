# SPDX-License-Identifier: Apache-2.0
"""Sizes that were set for bytes which then were not stored.

A write tells the new size to the file's home while its bytes go to several servers.  When one of them refuses, the disk
being full, or dies, the writer tells how far it came (RETRACT), and the size goes back, with all that is stored above
it; unless somebody else has written to the file since, whose bytes may lie there.  A server that is dead may have
stored its part: the size goes back when it can be asked.
"""
import errno
from collections import Counter

from pymadfs.errors import fail
from pymadfs.layout import chunk_server, split
from pymadfs.ops import ATTR, RETRACT, STATFS

from .directories import Wait
from .dispatch import gather, serves
from .meta import SIZE_MAX, inode_key, size_of
from .sizes import cut_to

KNOWN_MAX = 1 << 12  # what is forgotten keeps a size that is too large


class Extensions(dict):
    """Inode -> (connection, end, size before) of the last change of a file here, when others had a part in it.  Who
    changes a file otherwise removes it.  In place of the connection: what makes the size go back later.

    ``tight`` has the files whose last appended record took some of the headroom of a disk: what is reserved must be
    stored, so the next range is given only where there is room; inode -> whether that was found."""

    def __init__(self):
        super().__init__()
        self.tight = {}

    def cramped(self, ino):
        """Whether one has to look for room before a range of the file is reserved; after that one has."""
        if not self.tight.get(ino, True):
            return True
        self.tight.pop(ino, None)
        return False

    async def look_for_room(self, server, value, length):
        """Raises ENOSPC when there is no room for ``length`` bytes at the end of the file ``value``."""
        attr = ATTR.unpack(value)
        wanted: Counter = Counter()
        for chunk, _, piece in split(attr.size, length, attr.chunk_size):
            wanted[chunk_server(attr.ino, chunk, server.servers)] += piece
        others = sorted(wanted.keys() - {server.number})
        replies = await gather([server.call_peer(number, STATFS) for number in others])
        own = server.chunks.device
        left, needed = {own: server.chunks.room()}, Counter({own: wanted[server.number]})
        for number, (reply, _) in zip(others, replies):  # several may share a disk
            left[reply.device] = reply.available * reply.block
            needed[reply.device] += wanted[number]
        if any(needed[device] > max(0, room) for device, room in left.items()):
            raise fail(errno.ENOSPC)
        self.tight[attr.ino] = True

    def grew(self, ino, conn, end, before):
        """``conn`` made the file at least ``end`` bytes long, which was ``before``, for bytes on several servers."""
        if end > before:
            if len(self) >= KNOWN_MAX:
                self.clear()
            self[ino] = conn, end, before
        elif self.get(ino, ())[:2] != (conn, end):  # else it was asked again
            self.pop(ino, None)


@serves(RETRACT)
def retract(server, request):
    ino, kept, end = request.fields
    if max(kept, end) > SIZE_MAX:
        raise fail(errno.EPROTO)
    server.dirs.free(inode_key(ino))
    _, value = server.meta.find(ino, request.tail)
    if kept == end:
        if len(server.extensions.tight) < KNOWN_MAX:
            server.extensions.tight[ino] = False
        return (size_of(value),), b""
    if _size(server, value, ino, request.conn, kept, end) is None:
        return (size_of(value),), b""
    return _retracted(server, request)


def _size(server, value, ino, who, kept, end):
    """The size that a file gets when its write up to ``end`` was stored up to ``kept``; None: nothing may change."""
    size = size_of(value)
    if size < end:
        return size  # it was not even told: only the bytes go
    conn, known, before = server.extensions.get(ino, (None, 0, 0))
    if size > end or (conn, known) != (who, end) or max(before, kept) >= end:
        return None
    return max(before, kept)


async def _retracted(server, request):
    ino, kept, end = request.fields
    try:
        size = await _take_back(server, ino, request.tail, request.conn, kept, end)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        _, value = server.meta.find(ino, request.tail)
        size = size_of(value)
        later = object()
        conn, known, before = server.extensions.get(ino, (request.conn, end, size))
        if (conn, known) == (request.conn, end):
            server.extensions[ino] = later, end, min(before, size)
            server.spawn(_insist(server, ino, request.tail, later, kept, end))
    return (size,), b""


async def _take_back(server, ino, hint, who, kept, end):
    """Set the size and drop the bytes above it everywhere, while nobody changes the file; -> the size.

    In this order a crash leaves a hole below the old size, never old bytes above the new one.
    """
    held = inode_key(ino)
    server.dirs.hold(held)
    try:
        await server.cuts.drained(ino)
        _, value = server.meta.find(ino, hint)
        size = _size(server, value, ino, who, kept, end)  # others may have written since it was asked
        if size is None:
            return size_of(value)
        key, value = await cut_to(server, ino, hint, size, end)
        server.kv.put(key, value)
        server.commit()
        server.extensions.pop(ino, None)
    finally:
        server.dirs.let_go(held)
    return size


async def _insist(server, ino, hint, who, kept, end):
    """Take back what a server that is dead may have stored, once it is there again; unless the file was changed."""
    while server.extensions.get(ino, (None,))[0] is who:
        await server.pause()
        try:
            await _take_back(server, ino, hint, who, kept, end)
            return
        except Wait as wait:
            await wait.make()
        except OSError as error:
            if error.errno != errno.EIO:
                return
