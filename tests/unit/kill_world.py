# SPDX-License-Identifier: Apache-2.0
"""Servers that can be killed at every message between them and at every batch that one of them stores.

``Killable(path)`` is ``RealServers`` whose events are counted: ``record()`` begins; ``kill(victim, step)`` lets a
server die at event number ``step`` from then on.  ``snapshot`` is all that programs could see, ``check`` what
``madfs fsck`` says.
"""
import asyncio
import errno
import stat

from real_servers import RealServers
from server_world import World

from pymadfs import fsck, ops
from pymadfs.errors import fail
from pymadfs.ops import ATTR, INVENTORY
from pymadfs.server.kv import MemoryKV
from pymadfs.server.meta import entry_key

PATIENCE_S = 10


class Dead(asyncio.CancelledError):
    """This server was killed: nothing of what runs in it goes on."""


class Store(MemoryKV):
    """A store that says when it is about to take a batch, and when it has."""

    event = None  # called with "before" or "after"

    def commit(self, lazily=False):
        if self.event is None or not (self.pending or lazily and self.pending_lazily):
            return super().commit(lazily)
        self.event("before")
        super().commit(lazily)
        self.event("after")
        return None


class KillWorld(World):
    def __init__(self, path, count=3):
        self.events, self.victim, self.step, self.counting, self._soon = [], None, None, False, False
        super().__init__(path, count, Store)

    def start(self, number):
        self.kvs[number].event = lambda when: self._event(number, None, "commit", when)
        super().start(number)

    def crash(self, number):
        super().crash(number)
        old, self.kvs[number] = self.kvs[number], Store()
        self.kvs[number].items = dict(old.items)  # what the dead still does to its own has no effect
        old.event = None

    def lost(self, number):
        if self._soon:  # nobody notices it in the middle of something
            asyncio.get_running_loop().call_soon(super().lost, number)
        else:
            super().lost(number)

    def _event(self, number, other, what, when):
        if not self.counting:
            return
        self.events.append((number, other, what, when))
        if len(self.events) - 1 == self.step and self.servers[self.victim] is not None:
            self.step, self._soon = None, True
            self.crash(self.victim)
            self._soon = False
            if self.victim == number and what == "commit":
                raise Dead

    def record(self):
        """Events are counted from now on."""
        self.events.clear()
        self.counting = True
        self.watch = lambda number, other, op, when: self._event(number, other, op.name, when)

    def calm(self):
        """They are not any more."""
        self.counting, self.watch, self.step = False, None, None

    async def ask(self, *arguments, **options):
        try:
            return await super().ask(*arguments, **options)
        except Dead:
            raise fail(errno.EIO) from None

    async def revive(self):
        """Start the servers that died, and wait until all is done that waited for them."""
        for number, server in enumerate(self.servers):
            if server is None:
                self.start(number)
        await asyncio.wait_for(self.quiet(), PATIENCE_S)


class Killable(RealServers):
    @staticmethod
    async def _make(path, count, make_kv):
        return KillWorld(path, count)

    def wait(self, awaitable):
        return self.loop.run_until_complete(asyncio.wait_for(awaitable, PATIENCE_S))

    def call(self, server, op, tail=b"", *fields, send=None, recv=None):
        return self.wait(self._ask(server, op, tail, fields, send, recv))

    def call_many(self, calls):
        return self.wait(self._all(calls))

    def kill(self, victim, step):
        self.world.victim, self.world.step = victim, step
        self.world.record()

    def revive(self):
        self.world.calm()
        self.wait(self.world.revive())

    def restart(self):
        """Kill all servers and start them again."""
        for number in range(self.servers):
            self.world.crash(number)
        self.revive()

    def snapshot(self):
        return self.wait(_snapshot(self.world))

    def check(self):
        """What fsck finds, and what is still under way."""
        census = fsck.take(_Admin(self))
        return sorted(problem.text for problem in fsck.problems(census)), dict(census.waiting)


class _Admin:
    """What fsck asks, which is no step of anything."""

    def __init__(self, servers):
        self._servers, self.servers = servers, servers.servers

    def call(self, server, op, tail=b"", *fields):
        assert op is INVENTORY
        return self._servers.wait(self._servers.world.ask(server, op, tail, *fields))


async def _snapshot(world):
    """{path: (type and mode, links, size, content, which other names are the same file)}"""
    found, first = {}, {}
    waiting = [b"/"]
    while waiting:
        top = waiting.pop()
        for name in await world.names(top):
            path = top.rstrip(b"/") + b"/" + name
            attr = await world.stat(path)
            content: object = b""
            if stat.S_ISDIR(attr.mode):
                waiting.append(path)
            elif stat.S_ISREG(attr.mode):
                content = await world.read(attr.ino, 0, attr.size)
            else:
                content = (await world.ask(world.owner(path), ops.LOOKUP, path))[1]
            xattrs = []
            if attr.flags & ops.FLAG_XATTRS:
                number = world.owner(path) if stat.S_ISDIR(attr.mode) else attr.ino >> ops.INO_HOME_SHIFT
                xattrs = (await world.ask(number, ops.LISTXATTR, path, attr.ino))[1]
            found[path] = (oct(attr.mode), attr.nlink, attr.size, content, xattrs, attr.ino)
    for path in sorted(found):
        first.setdefault(found[path][-1], path)
    result = {path: (*values, first[ino]) for path, (*values, ino) in found.items()}
    root = ATTR.unpack(next(kv.items[entry_key(b"/")] for kv in world.kvs if entry_key(b"/") in kv.items))
    result[b"/"] = (oct(root.mode), root.nlink)
    return result
