# SPDX-License-Identifier: Apache-2.0
"""Ranges at the end of files, for O_APPEND.

Who appends asks the file's home for a range (RESERVE) and stores his bytes there.  Others have reserved what follows
by then, so what a full disk refuses would stay as a hole.  So the home looks how much room its disk has, and clients
tell it when another disk is nearly full.  While there is plenty a range is given at once.  Otherwise room for it is
allocated on all servers first: then it can be written, or is not given.  See docs/decisions/0086.
"""
import errno
import time
from collections import Counter

from pymadfs.errors import fail
from pymadfs.layout import chunk_server, split
from pymadfs.ops import ATTR, FLAG_BEYOND, RESERVE, RESERVED, RESERVED_ROOM, STATFS

from .allocation import KEEP_SIZE
from .dispatch import gather, serves
from .holes import reshape_everywhere
from .meta import SIZE_MAX, changed, cuts_of, inode_key, now_ns, size_of, without_privileges, written
from .sizes import cut_to

LOOK_BYTES = 1 << 16  # more than this looks at the disk, which costs two microseconds
LOOK_S = 0.05  # less does so if nobody did for so long
LATELY_S = 1.0
SHORT_MIN = 1 << 20  # so many bytes are appended as a whole or not at all
TOLD_MAX = 1 << 12


class Appends:
    """How much was given lately, and where the next range must have its room first."""

    def __init__(self, chunks):
        self._chunks = chunks
        self._told = set()  # inodes of whose appenders one has met a disk that is nearly full
        self._since = self._look_at = 0.0
        self._before = self._lately = self._left = 0

    def told(self, ino):
        """A client says that a disk on which the file lies is nearly full."""
        if len(self._told) >= TOLD_MAX:
            self._told.clear()
        self._told.add(ino)

    def plenty(self, ino):
        """All disks on which the file grows have room again."""
        self._told.discard(ino)

    def free(self, ino, length):
        """Whether a range may be given without more ado: what was given in the last one to two seconds, and may not be
        stored yet, and the range fit on this server's disk, with another headroom for what others write."""
        now = time.monotonic()
        if now - self._since > LATELY_S:
            self._before = self._lately if now - self._since < 2 * LATELY_S else 0
            self._since, self._lately = now, 0
        if length > LOOK_BYTES or now > self._look_at:
            self._look_at, self._left = now + LOOK_S, self._chunks.room(headrooms=2)
        if ino in self._told or self._left < self._before + self._lately + length:
            return False
        self._lately += length
        return True


@serves(RESERVE)
def reserve(server, request):
    ino, length = request.fields
    server.free_bytes(ino, request.conn, request.tail)
    key, value = server.meta.find(ino, request.tail)
    if size_of(value) + length > SIZE_MAX:
        raise fail(errno.EFBIG)
    if not server.appends.free(ino, length):
        return _reserve_room(server, request)
    return _given(server, request, key, value, length, RESERVED)


def _given(server, request, key, value, length, how):
    offset = size_of(value)
    server.extensions.grew(request.fields.ino, request.conn, offset + length, offset)
    server.kv.put(key, without_privileges(written(value, offset, offset + length, now_ns()), request))
    server.read_lately.discard(request.fields.ino)
    return (offset, length, cuts_of(value), how), b""


async def _reserve_room(server, request):
    """As reserve, of a range for which there is room: of so much as there is room for.  Raises ENOSPC."""
    ino = request.fields.ino
    held = inode_key(ino)
    server.dirs.hold(held)
    try:
        await server.cuts.drained(ino)
        _, value = server.meta.find(ino, request.tail)
        attr = ATTR.unpack(value)
        length = await _fitting(server, attr, request.fields.length)
        how = RESERVED
        if not server.chunks.stays_inline(ino, attr.size + length):
            how = RESERVED_ROOM
            await _allocate(server, request, attr, length)
        key, value = server.meta.find(ino, request.tail)
        reply = _given(server, request, key, value, length, how)
        server.commit()
    finally:
        server.dirs.let_go(held)
    return reply


async def _fitting(server, attr, length):
    """How many of ``length`` bytes at the end of the file there is room for on all disks concerned."""
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
    fitting, plenty = length, True
    for device, room in left.items():
        if needed[device] > max(0, room):
            fitting = min(fitting, length * max(0, room) // needed[device] - attr.chunk_size)
        plenty = plenty and room > needed[device] + server.chunks.headroom_bytes()
    if plenty:
        server.appends.plenty(attr.ino)
    if fitting < min(length, SHORT_MIN):
        raise fail(errno.ENOSPC)
    return fitting


async def _allocate(server, request, attr, length):
    """Have room at the end of the file.  What may come to lie above it is marked first, as by FALLOCATE."""
    ino, hint, marked = request.fields.ino, request.tail, attr.flags & FLAG_BEYOND
    key, value = server.meta.find(ino, hint)
    server.kv.put(key, changed(value, flags=attr.flags | FLAG_BEYOND))
    server.commit()
    _, error = await reshape_everywhere(server, ino, KEEP_SIZE, attr.size, length, attr.chunk_size)
    if error and not marked:
        key, value = await cut_to(server, ino, hint, attr.size, attr.size + length, spares=True)
        server.kv.put(key, value)
        server.commit()
    if error:
        raise error
    if not marked:
        key, value = server.meta.find(ino, hint)
        server.kv.put(key, changed(value, flags=ATTR.unpack(value).flags & ~FLAG_BEYOND))
