# SPDX-License-Identifier: Apache-2.0
"""Sizes that were set for bytes which then were not stored.

A write tells the new size to the file's home while its bytes go to several servers.  When one of them refuses, the disk
being full, or dies, the writer tells how far it came (RETRACT), and the size goes back to what others have made it,
with all that is stored above.  A server that is dead may have stored its part: the size goes back when it can be asked.

Who reads what is not stored there asks whether it is about to be (GROWING), and looks again.
"""
import asyncio
import bisect
import errno
import struct
import time
from operator import itemgetter

from pymadfs.errors import fail
from pymadfs.ops import GROWING, RETRACT

from .directories import Wait
from .dispatch import serves
from .meta import SIZE_MAX, inode_key, size_of
from .sizes import cut_to

KNOWN_MAX = 1 << 12  # what is forgotten keeps a size that is too large
ENDS_MAX = 32  # so many changes of one file are known, and those below count as made

GROWING_S = 1.0  # after so long who is still writing is stopped
LOOK_AGAIN_S = 0.002

_end = itemgetter(0)
_RANGE = struct.Struct("<QQ")


class Growth:
    """Of one file: it has ``base`` bytes, and ``ends`` (``(end, who, cuts, begin, when)`` in order) of writes that made
    it longer, any of which may yet be taken back.  ``size`` is the largest of them."""

    __slots__ = ("base", "ends", "size")

    def __init__(self, base):
        self.base, self.ends, self.size = base, [], base

    def add(self, end, who, cuts, begin):
        if cuts:  # else it was not asked again after a cut
            self.remove(end, who, cuts)
        record = end, who, cuts, begin, time.monotonic()
        if end > self.size:  # as nearly always
            self.size = end
            self.ends.append(record)
        elif end > self.base:
            bisect.insort(self.ends, record, key=_end)
        while len(self.ends) > ENDS_MAX or self.ends and self.ends[0][0] <= self.base:
            self.base = max(self.base, self.ends.pop(0)[0])

    def find(self, end, who, cuts=0):
        """The record of that write: of those before cut ``cuts``, if that is given."""
        for record in self.ends:
            if record[0] == end and record[1] == who and not 0 < cuts <= record[2]:
                return record
        return None

    def remove(self, end, who, cuts=0):
        record = self.find(end, who, cuts)
        if record:
            self.size = self.without(record)
            self.ends.remove(record)

    def without(self, record):
        """What the file's size would be without the record."""
        return max([self.base, *[other[0] for other in self.ends if other is not record]])

    def reach(self, end):
        """Up to ``end`` the file is stored."""
        self.base, self.size = max(self.base, end), max(self.size, end)


class Extensions(dict):
    """Inode -> Growth of files here.  Who sets a size that is wanted as such removes it."""

    def __init__(self, conns):
        super().__init__()
        self._conns = conns

    def grew(self, ino, who, begin, end, before, cuts):
        """``who`` is writing [begin, end), which makes the file, of ``before`` bytes, longer."""
        growth = self.get(ino)
        if growth is None or growth.size != before:  # else what it says of the size is all there is to say
            self.pop(ino, None)
            if end <= before:
                return
            if len(self) >= KNOWN_MAX:
                self.clear()
            growth = self[ino] = Growth(before)
        growth.add(end, who, cuts, max(begin, before))

    def again(self, ino, who, begin, end, before, cuts):
        """As grew, of what was told before; unless the file was changed since."""
        growth = self.get(ino)
        if growth is None or growth.size != before or growth.find(end, who) is None:
            self.grew(ino, who, begin, end, before, cuts)

    def stored(self, ino, end, before):
        """Bytes up to ``end`` have been stored."""
        growth = self.get(ino)
        if growth is not None:
            if growth.size == before:
                growth.reach(end)
            else:
                del self[ino]

    def refused(self, ino, who, kept, end):
        """The write up to ``end`` came only to ``kept``."""
        growth = self.get(ino)
        if growth is not None:
            growth.reach(kept)
            growth.remove(end, who)

    def size_without(self, value, ino, who, kept, end):
        """The size that the file ``value`` gets when its write up to ``end`` was stored up to ``kept``, and what is
        above goes; None: nothing may go."""
        size, growth = size_of(value), self.get(ino)
        if size < end:
            return size  # it was not even told: only the bytes go
        record = growth and growth.find(end, who)
        if not record or growth.size != size:
            return None
        wanted = max(kept, growth.without(record))
        return wanted if wanted < size else None

    def growing(self, ino, begin, end):
        """Whether bytes in [begin, end) may be on their way, for all that is known."""
        growth = self.get(ino)
        return growth is not None and any(
            begin < stop and start < end and who in self._conns and time.monotonic() - when < GROWING_S
            for stop, who, _, start, when in growth.ends)


@serves(GROWING)
def growing(server, request):
    ino, tail = request.fields.ino, request.tail
    ranges = _RANGE.iter_unpack(tail[:len(tail) - len(tail) % _RANGE.size])
    if server.extensions and any(server.extensions.growing(ino, begin, end) for begin, end in ranges):
        return _growing()
    return (0,), b""


async def _growing():
    await look_again()
    return (1,), b""


def look_again():
    return asyncio.sleep(LOOK_AGAIN_S)


@serves(RETRACT)
def retract(server, request):
    ino, kept, end = request.fields
    if max(kept, end) > SIZE_MAX:
        raise fail(errno.EPROTO)
    server.dirs.free(inode_key(ino))
    _, value = server.meta.find(ino, request.tail)
    if server.extensions.size_without(value, ino, request.conn, kept, end) is None:
        server.extensions.refused(ino, request.conn, kept, end)
        return (size_of(value),), b""
    return _retracted(server, request)


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
        growth = server.extensions.setdefault(ino, Growth(size))
        growth.remove(end, request.conn)
        growth.reach(min(kept, size))
        growth.add(end, later, 0, kept)
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
        size = server.extensions.size_without(value, ino, who, kept, end)  # others may have written since it was asked
        if size is not None:
            key, value = await cut_to(server, ino, hint, size, end)
            server.kv.put(key, value)
            server.commit()
        server.extensions.refused(ino, who, kept, end)
    finally:
        server.dirs.let_go(held)
    return size_of(value)


async def _insist(server, ino, hint, who, kept, end):
    """Take back what a server that is dead may have stored, once it is there again; unless the file was cut."""
    while (growth := server.extensions.get(ino)) is not None and growth.find(end, who):
        await server.pause()
        try:
            await _take_back(server, ino, hint, who, kept, end)
            return
        except Wait as wait:
            await wait.make()
        except OSError as error:
            if error.errno != errno.EIO:
                return
