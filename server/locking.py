# SPDX-License-Identifier: Apache-2.0
"""Locks at work: who waits, who is alive, and what a restart keeps (docs/decisions/0027).

An owner lives as long as one of the connections that speak for it.  Locks and the processes behind their owners are
stored with the same batch that answers the request, so that a server that starts again has them still::

    AL ino:8 space:1    LOCKED*    the locks of one file
    AO owner:8          HOLDER*    processes that speak for an owner

A process on this host that was there before a restart is asked for by its number; one elsewhere has ABSENT_S to make
a request about the lock.
"""
import asyncio
import errno
import os
import time
from fcntl import F_UNLCK

from pymadfs.errors import fail
from pymadfs.layout import home
from pymadfs.ops import LOCK, LOCK_ASK, LOCK_WAIT, LOCK_WHOLE, LOCKWAITS, OWNER_FILE, Record

from .dispatch import DEFERRED, serves
from .locks import Lock, Locks, circles

WAIT_S = 0.25  # until a signal to somebody who waits for a lock is noticed
WAITERS_PER_S = 2000  # who wait may ask so often; with more of them a signal is noticed later
COME_BACK_S = 1.0  # how long the place in the line of who was sent back is kept
DEADLOCK_S = 0.05  # before other servers are asked who waits for whom
DEADLOCK_SHARE = 4  # and so many times as long as the last look at that took
EDGES_MAX = 4096  # told of one server
ABSENT_S = 60.0
LOOK_S = 0.25
RECORDS_MAX = 1 << 20

LOCKED = Record("Locked", "owner:Q type:H start:Q end:Q")
HOLDER = Record("Holder", "pid:I here:B")


def locks_key(key):
    return b"AL" + key[0].to_bytes(8, "big") + bytes((key[1],))


def owner_key(owner):
    return b"AO" + owner.to_bytes(8, "big")


def _unpack(record, data):
    return [record.unpack(data, at) for at in range(0, len(data) - record.size + 1, record.size)]


class Locking:
    """The locks of one server and those who hold them.  ``processes`` is connection -> (process, whether on this host,
    peer's host)."""

    def __init__(self, server):
        self._server, self._kv = server, server.kv
        self.locks = Locks(self._changed)
        self.speakers = {}  # owner -> set of connections
        self.absent = {}  # owner -> [HOLDER], that were there before the restart
        self._absent_until = time.monotonic() + ABSENT_S
        self._looking = self._look_again = False

    # --- the store ----------------------------------------------------------------------------------------------------

    def start(self):
        """The event loop runs: take up what a former life has stored."""
        self._load()
        for key, value in self._kv.scan(b"AO", b"", RECORDS_MAX):
            self.absent[int.from_bytes(key[2:], "big")] = _unpack(HOLDER, value)
        for owner in list(self.locks.keys):
            self.absent.setdefault(owner, [])
        if self.absent:
            self._server.spawn(self._watch())

    def _load(self):
        for key, value in self._kv.scan(b"AL", b"", RECORDS_MAX):
            self.locks.load((int.from_bytes(key[2:10], "big"), key[10]),
                            [Lock(*record) for record in _unpack(LOCKED, value)])

    def rolled_back(self):
        """The last batch was not written: what is stored holds."""
        self.locks.held, self.locks.keys = {}, {}
        self._load()

    def _changed(self, key):
        record = b"".join(LOCKED.pack(*lock) for lock in self.locks.held.get(key, ()))
        if record:
            self._kv.put(locks_key(key), record)
        else:
            self._kv.delete(locks_key(key))

    def _write_owner(self, owner):
        processes = self._server.processes
        found = {processes[conn][:2] for conn in self.speakers.get(owner, ()) if conn in processes}
        self._kv.put(owner_key(owner), b"".join(HOLDER.pack(*each) for each in sorted(found)))

    async def _watch(self):
        """Until all owners from before the restart have spoken or are gone."""
        while self.absent:
            late = time.monotonic() > self._absent_until
            for owner, holders in list(self.absent.items()):
                if not any(_alive(pid) if here else not late for pid, here in holders):
                    self.gone(owner)
            await asyncio.sleep(LOOK_S)

    # --- owners -------------------------------------------------------------------------------------------------------

    def speak(self, owner, conn, opener):
        """``conn`` holds ``owner``'s locks, and so does the process ``opener`` of its host, which opened the file."""
        known = self.speakers.setdefault(owner, set())
        if conn in known and owner not in self.absent:
            return  # it asks again, as those who wait do
        before = len(known)
        known.add(conn)
        processes = self._server.processes
        if opener and conn in processes:
            host = processes[conn][2]
            known.update(other for other, (pid, _, where) in processes.items() if pid == opener and where == host)
        if self.absent.pop(owner, None) is not None or len(known) != before:
            self._write_owner(owner)

    def settle(self, owner):
        """Forget an owner that has no locks and does not wait."""
        if owner in self.locks.keys or self.locks.waiting.of_owner(owner):
            return
        if self.speakers.pop(owner, None) is not None or self.absent.pop(owner, None) is not None:
            self._kv.delete(owner_key(owner))

    def gone(self, owner):
        """Nobody speaks for ``owner`` any more."""
        for token in self.locks.gone(owner):
            token.granted()
        self.settle(owner)
        self._server.flush_soon()

    def lost(self, conn):
        """A connection ended."""
        for owner, known in list(self.speakers.items()):
            if conn in known:
                known.discard(conn)
                if known:
                    self._write_owner(owner)
                else:
                    self.gone(owner)

    # --- deadlock across servers --------------------------------------------------------------------------------------

    async def edges(self):
        """Who waits for whom, on all servers."""
        server = self._server
        found = self.locks.edges()
        calls = [server.call_peer(number, LOCKWAITS) for number in range(server.servers) if number != server.number]
        for result in await asyncio.gather(*calls, return_exceptions=True):
            if isinstance(result, OSError):
                continue  # a dead server keeps nobody waiting
            if isinstance(result, BaseException):
                raise result
            words = memoryview(bytes(result[1])).cast("Q")
            found |= set(zip(words[::2], words[1::2]))
        return found

    def look_around(self):
        """A process begins to wait, or waits again: soon see whether that is part of a circle that spans servers."""
        self._look_again = True
        if not self._looking:
            self._looking = True
            self._server.spawn(self._look())

    async def _look(self):
        """EDEADLK to one of those here who wait in a circle, as long as there are processes that wait: one look for all
        of them.

        Two questions one after the other: who was seen waiting for the same in both answers waited all the time between
        them, so all of the circle was there at once.  Of those in it, the process with the highest number gives way.
        """
        took = 0.0
        try:
            while self._look_again:
                self._look_again = False
                await asyncio.sleep(max(DEADLOCK_S, DEADLOCK_SHARE * took))
                began = time.monotonic()
                stable = await self.edges()
                if circles(stable):
                    stable &= await self.edges()
                    if members := circles(stable):
                        self._give_way(max(members), members)
                took = time.monotonic() - began
        finally:
            self._looking = False

    def _give_way(self, owner, members):
        """If the process ``owner`` waits here for one of ``members``, it does not any more."""
        for waiter in list(self.locks.waiting.of_owner(owner)):
            if waiter.token is not None and members & self.locks.obstacles(waiter):
                waiter.token.give_way()
                return


def _alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


class _Waiting:
    """A LOCK request whose answer comes when the lock is granted, or EAGAIN after a while: the caller then asks again,
    so that it can be interrupted and a server never keeps a request for longer than callers wait."""

    def __init__(self, server, request, key, lock):
        self._server, self._request, self._key, self._lock = server, request, key, lock
        self._timer = None

    def begin(self):
        server = self._server
        wait_s = max(WAIT_S, len(server.locking.locks.waiting) / WAITERS_PER_S)
        self._timer = server.loop.call_later(min(wait_s, server.config.timeout_ms / 3000), self._late)
        if server.servers > 1 and not self._lock.owner & OWNER_FILE:
            server.locking.look_around()

    def granted(self):
        if self._timer:
            self._timer.cancel()
        self._timer = None
        self._server.finish(self._request, _reply(self._lock))

    def _late(self):
        self._timer = None
        server, locking = self._server, self._server.locking
        pauses = locking.locks.waiting.pause(self)
        if pauses:
            server.rpc.fail(self._request, fail(errno.EAGAIN))
            server.posted()
            server.loop.call_later(COME_BACK_S, self._expire, pauses)

    def _expire(self, pauses):
        locking = self._server.locking
        locking.locks.waiting.forget(self._key, self._lock, pauses)
        locking.settle(self._lock.owner)
        self._server.flush_soon()

    def give_way(self):
        """EDEADLK: the wait would never end."""
        self._timer.cancel()
        self._timer = None
        locking = self._server.locking
        for token in locking.locks.cancel(self):
            token.granted()
        self._server.rpc.fail(self._request, fail(errno.EDEADLK))
        locking.settle(self._lock.owner)
        self._server.flush_soon()
        self._server.posted()


def _reply(lock):
    return (lock.type, lock.start, lock.end, lock.owner), b""


@serves(LOCK)
def lock(server, request):
    ino, owner, opener, start, end, kind, how, space = request.fields
    if home(ino) != server.number:
        raise fail(errno.EINVAL)
    locking, locks, key = server.locking, server.locking.locks, (ino, LOCK_WHOLE if space == LOCK_WHOLE else 0)
    wanted = Lock(owner, kind, start, end)
    if how == LOCK_ASK:
        return _reply(locks.test(key, wanted) or wanted._replace(type=F_UNLCK))
    if kind == F_UNLCK and owner not in locks.keys:
        return _reply(wanted)
    locking.speak(owner, request.conn, opener)
    waiting = _Waiting(server, request, key, wanted) if how == LOCK_WAIT else None
    try:
        granted, waits = locks.set(key, wanted, waiting)
    except OSError as error:
        for other in getattr(error, "granted", ()):
            other.granted()
        locking.settle(owner)
        if server.kv.pending:
            server.flush_soon()
        raise
    for other in granted:
        other.granted()
    if waits:
        waiting.begin()
        return DEFERRED
    locking.settle(owner)
    return _reply(wanted)


@serves(LOCKWAITS)
def lockwaits(server, request):
    edges = list(server.locking.locks.edges())[:EDGES_MAX]
    return (), b"".join(number.to_bytes(8, "little") for edge in edges for number in edge)
