# SPDX-License-Identifier: Apache-2.0
"""The times of a directory whose entries are made and removed on other servers than its own.

A server changes a directory that lies elsewhere only while its owner counts it among the *writers* of it: it becomes
one by DIRINFO, before the first change, and from then on changes cost nothing more: it notes the time
(``Directories.changed``).  Whoever looks at the directory's times, or sets them, makes the owner collect what the
writers have noted (TIMES), after which there are none.  So the times are never old, a directory that nobody looks at
costs nothing, and neither does one that nobody changes.

What a writer that was killed had noted is lost: the directory then counts as changed at the time when that is found
out.  An owner that starts again does not know the writers: first it asks every server for all that it has noted.
"""
import asyncio
import errno

from pymadfs.errors import fail
from pymadfs.layout import owner
from pymadfs.log import log
from pymadfs.ops import ATTR, TIMES, TOUCH, Record

from .dispatch import DEFERRED, serves, settled
from .meta import changed, entry_key, is_directory, now_ns

HAND_OVER_S = 1.0  # after a change the owner is made to store the time, in case that nobody looks
CHANGED_MAX = 4096  # directories elsewhere that a server keeps times of
WRITERS_MAX = 1 << 16  # directories here that others keep times of
STOP_S = 0.2  # how long the end of a server waits for owners to take what it has noted
NOTED = Record("Noted", "mtime_ns:q length:H")
NOTED_BYTES_MAX = 4096
KEPT = b"Mtimes"


class Times:
    """Of one server; ``active`` is false where no directory's times can be elsewhere."""

    def __init__(self, server):
        self._server = server
        self._changed = server.dirs.changed
        self._late = {}  # path -> time of a change made after the server had ceased to be a writer
        self._due = None  # timer
        self._writers = {}  # path of a directory that lies here -> bits of server numbers
        self._rounds = {}  # path -> (Future, whether all writers are asked) of the questions that are under way
        self._lost = None  # a task, after a restart, until all have told what they know
        self.active = self._stopping = False

    # --- as a writer ------------------------------------------------------------------------------------------------

    def note(self, directory, now):
        """An entry in ``directory``, which lies elsewhere, came or went at ``now`` (ns)."""
        if directory in self._changed:
            self._changed[directory] = now
            if self._due is None:
                self._due = self._server.loop.call_later(HAND_OVER_S, self._store_all)
        else:
            self._server.spawn(self._tell(directory, now))

    async def note_surely(self, path, above, now):
        """As Server.touched for a change that began a while ago: returns when nobody can see the old times."""
        directory = path[:path.rindex(b"/")] or b"/"
        if above.key is not None or directory in self._changed:
            self._server.touched(path, above, now)
        else:
            self._server.commit()
            await self._tell(directory, now)

    async def _tell(self, directory, now):
        self._late[directory] = now
        await self._ask_owner(directory, False)

    async def _ask_owner(self, directory, keep):
        server, before = self._server, self._changed.get(directory)
        try:
            await server.call_peer(owner(directory, server.servers), TOUCH, directory, server.number, keep)
        except OSError as error:
            if error.errno != errno.ENOENT:
                if not self._stopping:  # then they are stored
                    log(f"server {server.number}: the times of {directory!r} are not told: {error}")
            elif self._changed.get(directory) == before:  # it was removed
                self._changed.pop(directory, None)
                self._late.pop(directory, None)

    def noted(self, directory, keep):
        """When entries of ``directory`` last changed here, 0 if not at all; without ``keep``, this server must ask
        again before it changes it."""
        late, now = self._late.pop(directory, 0), self._changed.pop(directory, None)
        if keep and now is not None:
            self._changed[directory] = 0
        self._server.dirs.overtake(directory)
        return max(late, now or 0)

    def unstored(self):
        """Directories elsewhere whose owners do not know yet when they changed."""
        return [*self._late, *(path for path, now in self._changed.items() if now)]

    def all_noted(self, number):
        """Some of what is noted of directories of server ``number``, as NOTED records; no more of it is kept."""
        servers, tail = self._server.servers, bytearray()
        for directory in [path for path in (*self._changed, *self._late) if owner(path, servers) == number]:
            tail += NOTED.pack(self.noted(directory, False), len(directory)) + directory
            if len(tail) > NOTED_BYTES_MAX:
                break
        return bytes(tail)

    def _store_all(self):
        """Make the owners store what changed, in case that nobody looks; keep the rights to change."""
        self._due = None
        directories = list(self._changed)
        for at, directory in enumerate(directories):
            keep = len(directories) - at <= CHANGED_MAX
            if self._changed[directory] or not keep:
                self._server.spawn(self._ask_owner(directory, keep))

    async def hand_over(self, concerns):
        """Let the owners have the times of all directories for which ``concerns(path)``; they are not changed without
        asking again."""
        paths = [path for path in (*self._changed, *self._late) if concerns(path)]
        await asyncio.gather(*[self._ask_owner(path, False) for path in paths])

    async def stop(self):
        """At the end; what is for owners that are not there any more is stored here until both are back."""
        self._stopping = True
        if self._due is not None:
            self._due.cancel()
        told = [self._server.spawn(self._ask_owner(path, False)) for path, now in self._changed.items() if now]
        if told:
            await asyncio.wait(told, timeout=STOP_S)
        kept = b"".join(NOTED.pack(max(self._late.get(path, 0), self._changed.get(path, 0)), len(path)) + path
                        for path in set(self.unstored()))
        if kept:
            self._server.kv.put(KEPT, kept)

    def _take_up(self):
        """What stop() stored: the owners ask for it when they start, and are told in case that they go on."""
        kv = self._server.kv
        kept = kv.get(KEPT)
        if kept is None:
            return
        kv.delete(KEPT)
        self._server.commit()
        for directory, now in _noted(kept):
            self._server.spawn(self._tell(directory, now))

    # --- as the owner -----------------------------------------------------------------------------------------------

    def start(self):
        """After a restart: ask all servers what they know of directories here."""
        self._take_up()
        if self._server.servers > 1 and not self._server.meta.fresh:
            self._lost = self._server.spawn(self._recover())
            self.active = True

    async def _recover(self):
        others = [number for number in range(self._server.servers) if number != self._server.number]
        await asyncio.gather(*[self._recover_from(number) for number in others])
        self._lost = None
        self.active = bool(self._writers)

    async def _recover_from(self, number):
        while True:
            answer = await settled(self._server.call_peer(number, TIMES, b"", self._server.number, False))
            if isinstance(answer, BaseException) or not answer[1]:
                return  # who does not answer is dead, and has noted nothing when it starts again
            for directory, now in _noted(answer[1]):
                self._store(directory, now)

    def grant(self, path, number):
        """Server ``number`` may change the directory ``path`` until it is asked for its times."""
        self._writers[path] = self._writers.get(path, 0) | 1 << number
        self.active = True
        if len(self._writers) > WRITERS_MAX:
            for old in list(self._writers)[:WRITERS_MAX // 4]:
                self._server.spawn(self.collect(old))

    def elsewhere(self, path):
        """Whether the times of the directory ``path``, whose entry is here, may be known to others only."""
        return path in self._writers or path in self._rounds or self._lost is not None and self.is_here(path)

    def is_here(self, path):
        value = self._server.kv.get(entry_key(path))
        return value is not None and is_directory(value)

    async def afterwards(self, path, handler, request):
        """The ``handler``'s result once the times of the directory ``path`` are here."""
        server = self._server
        await self.collect(path)
        if request.conn not in server.conns or server.freezes and server.freezes.park(request):
            return DEFERRED
        result = handler(server, request)
        return await result if asyncio.iscoroutine(result) else result

    async def collect(self, path):
        """Return when what writers had noted of ``path`` when this was called is stored; there are none then."""
        if self._lost is not None:
            await asyncio.shield(self._lost)
        waited = False
        while path in self._rounds:
            future, whole = self._rounds[path]
            await asyncio.shield(future)
            if whole and waited:
                return  # this one began later than the call
            waited = True
        if path in self._writers:
            await self._ask(path, self._writers.pop(path), False)

    async def _ask(self, path, writers, keep, whole=True):
        server = self._server
        future = server.loop.create_future()
        self._rounds[path] = future, whole
        try:
            numbers = [number for number in range(writers.bit_length()) if writers >> number & 1]
            calls = [settled(server.call_peer(number, TIMES, path, server.number, keep)) for number in numbers]
            latest = 0
            for answer in await asyncio.gather(*calls):
                dead = isinstance(answer, BaseException)
                latest = max(latest, now_ns() if dead else answer[0].mtime_ns)
            self._store(path, latest)
        finally:
            del self._rounds[path]
            future.set_result(None)
            self.active = bool(self._writers or self._rounds or self._lost)

    async def fetch(self, path, number, keep):
        """Ask one server, which wants to be asked."""
        while path in self._rounds:
            await asyncio.shield(self._rounds[path][0])
        left = self._writers.get(path, 0) & ~(0 if keep else 1 << number)
        if left:
            self._writers[path] = left
        else:
            self._writers.pop(path, None)
        await self._ask(path, 1 << number, keep, whole=False)

    def _store(self, path, now):
        server, key = self._server, entry_key(path)
        if now and self.is_here(path):
            value = server.kv.get(key)
            attr = ATTR.unpack(value)
            server.kv.put(key, changed(value, mtime_ns=max(now, attr.mtime_ns), ctime_ns=max(now, attr.ctime_ns)))
            server.flush_soon()  # nobody else knows it any more


def _noted(records):
    """``(directory, time)`` of each of the NOTED records."""
    at = 0
    while at < len(records):
        now, length = NOTED.unpack(records, at)
        at += NOTED.size + length
        yield bytes(records[at - length:at]), now


@serves(TIMES)
def times(server, request):
    number, keep = request.fields
    if not request.tail:
        return (0,), server.times.all_noted(number)
    return (server.times.noted(request.tail, keep),), b""


@serves(TOUCH)
async def touch(server, request):
    number, keep = request.fields
    if not server.times.is_here(request.tail):
        raise fail(errno.ENOENT)
    await server.times.fetch(request.tail, number, keep)
    return (), b""
