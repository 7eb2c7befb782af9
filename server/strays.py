# SPDX-License-Identifier: Apache-2.0
"""Bytes above the end of a file that a client left which died within a write.

Such a write goes to several servers at once, and its end to the file's home; of what a client that is killed has sent
some may arrive and some not.  So each server knows what was stored last for the sake of others, and when a connection
is lost it tells the homes of those files how far that goes (STRAY).  Most of it is within the files.  A home takes what
is not away before the file grows, or with the file.  A home that died within an append (STORE) is told when it is back.
"""
import errno
from collections import deque

from pymadfs.layout import home
from pymadfs.ops import ATTR, STRAY

from .directories import Wait
from .dispatch import serves
from .meta import ino_of, inode_key, reach_of
from .sizes import cut_to

RECENT_MAX = 1 << 10  # more is not under way at once
KNOWN_MAX = 1 << 14
RETURN_PAUSES = 30  # who waits for a home that is dead asks seldom: most say themselves that they are back


class Strays(dict):
    """Inode that lives here -> (chunk, bytes of it) up to which a lost connection may have stored something.

    ``recent``: (connection, inode, chunk, bytes of it) of writes here that do not tell the size; ``stored``: the same
    of what homes had stored here."""

    def __init__(self, server):
        super().__init__()
        self._server = server
        self._untold = {}  # home -> {inode: (chunk, bytes of it)} that it is to be told
        self.recent, self.stored = deque(maxlen=RECENT_MAX), deque(maxlen=RECENT_MAX)

    def lost(self, conn):
        """The connection is lost."""
        for lately, dead in (self.recent, False), (self.stored, True):
            for writer, ino, *end in lately:
                if writer == conn:
                    self._found(ino, tuple(end), dead)

    def _found(self, ino, end, dead):
        number = home(ino)
        if number == self._server.number:
            self.note(ino, *end)
            return
        untold = self._untold.setdefault(number, {})
        if not untold:
            self._server.spawn(self._tell(number, untold, dead))
        untold[ino] = max(untold.get(ino, (0, 0)), end)

    async def _tell(self, number, untold, dead):
        """Tell the home ``number``, once it is back if it is ``dead``."""
        while untold:
            if dead:
                await self._server.pause(RETURN_PAUSES)
            ino, end = next(iter(untold.items()))
            try:
                await self._server.call_peer(number, STRAY, b"", ino, *end)
            except OSError as error:
                dead = error.errno == errno.EIO
                if dead:
                    continue
            dead = False
            if untold[ino] == end:
                del untold[ino]
        self._untold.pop(number, None)

    def note(self, ino, chunk, end):
        if len(self) >= KNOWN_MAX:
            self.clear()
        self[ino] = max(self.get(ino, (0, 0)), (chunk, end))

    def reach(self, value):
        """Below this many bytes the file ``value`` may have something stored."""
        if not self or ino_of(value) not in self:
            return reach_of(value)
        chunk, end = self[ino_of(value)]
        return max(reach_of(value), chunk * ATTR.unpack(value).chunk_size + end)

    def free(self, ino, hint):
        """Raises Wait when the inode, which is about to grow, may have something stored above its end."""
        if ino in self:
            raise Wait(lambda: self._sweep(ino, hint))

    async def _sweep(self, ino, hint):
        server, held = self._server, inode_key(ino)
        while True:
            try:
                server.dirs.hold(held)
                break
            except Wait as wait:
                await wait.make()
        try:
            await server.cuts.drained(ino)
            _, value = server.meta.find(ino, hint)
            size, reach = ATTR.unpack(value).size, self.reach(value)
            if ino in self and reach > size and reach > reach_of(value):
                key, value = await cut_to(server, ino, hint, size, reach)
                server.kv.put(key, value)
                server.commit()
        except OSError:  # who wants to write is not to blame
            return
        finally:
            self.pop(ino, None)
            server.dirs.let_go(held)


@serves(STRAY)
def stray(server, request):
    ino, chunk, end = request.fields
    server.strays.note(ino, chunk, end)
    return (), b""
