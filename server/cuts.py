# SPDX-License-Identifier: Apache-2.0
"""Which writes come before a truncation and which after: what one server knows of it.  Synchronous, save the waiting.

A write on one server tells the size to the file's home, another server, in parallel; a truncation is made by the home
and reaches the same servers.  So that both agree who was first, each cut of a file has a number, kept in the inode
(``cuts``).  CUT brings it to the servers; WRITE and EXTEND answer the last one they know of.  When all answers to a
writer are equal, its write was between the same two cuts everywhere; if not, it repeats what came too early
(client ``_agree``).  What a restarted server has forgotten the writer tells it.  See docs/decisions/0025.
"""
import asyncio

KNOWN_MAX = 1 << 16


class Cuts:
    """``known``: inode -> number of its last cut known here.  ``under_way``: inode -> Future while bytes of it are
    dropped or moved by threads; writes wait for it."""

    def __init__(self):
        self.known = {}
        self.under_way = {}
        self._writing = {}  # inode -> [transfers by threads, Future of who waits for their end or None]

    def learn(self, ino, number):
        """Somebody says that cut ``number`` of the inode was made; -> the last one known."""
        last = self.known.get(ino, 0)
        if number <= last:
            return last
        if len(self.known) >= KNOWN_MAX:
            for old in list(self.known)[:KNOWN_MAX // 4]:
                del self.known[old]
        self.known[ino] = number
        return number

    def transfer(self, ino):
        """A thread begins to write bytes of the inode."""
        self._writing.setdefault(ino, [0, None])[0] += 1

    def writing(self, ino):
        """Whether a thread writes bytes of the inode."""
        return ino in self._writing

    def transferred(self, ino):
        state = self._writing[ino]
        state[0] -= 1
        if not state[0]:
            del self._writing[ino]
            if state[1] is not None and not state[1].done():
                state[1].set_result(None)

    async def begin(self, ino):
        """Keep writes of the inode waiting until ``end``, and wait for those under way."""
        await self.ended(ino)
        self.under_way[ino] = asyncio.get_running_loop().create_future()
        try:
            if ino in self._writing:
                state = self._writing[ino]
                state[1] = asyncio.get_running_loop().create_future()
                await state[1]
        except BaseException:
            self.end(ino)
            raise

    async def ended(self, ino):
        """Wait until no bytes of the inode are being dropped."""
        while ino in self.under_way:
            await asyncio.shield(self.under_way[ino])

    async def drained(self, ino):
        """Wait for the threads that write bytes of the inode now."""
        if ino in self._writing:
            await self.begin(ino)
            self.end(ino)

    def end(self, ino):
        self.under_way.pop(ino).set_result(None)
