# SPDX-License-Identifier: Apache-2.0
"""From requests to replies: runs handlers, batches their changes, and bounds what may wait.

A handler is a function of ``(server, request)`` registered with ``@serves(OP)``.  It returns ``(fields, tail)`` or
``(fields, tail, data)``; DEFERRED when somebody else will call ``Server.finish``; or a coroutine, which then is one of
the few that may wait at a time.  It raises OSError, Restart, or Wait (see directories.py).

Changes: a handler checks first and changes then, so that one that raises has changed nothing.  All changes of the
requests of one poll are one batch of the key-value store, written before the first of their replies is sent.  When the
batch cannot be written, all these requests fail with its error.  A coroutine calls ``commit`` before it waits.
"""
import asyncio
import errno
import os
import random
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from inspect import iscoroutine
from typing import Any

from pymadfs import door
from pymadfs.errors import fail
from pymadfs.layout import owner
from pymadfs.log import log

from .chunks import Chunks
from .cuts import Cuts
from .directories import Directories, Wait
from .frozen import Freezes
from .inodes import everywhere, purge
from .loans import Loans
from .meta import PURGE, Meta, debt_key, has_times, inode_key, intent_key, purge_key, with_times
from .openings import KEPT, Openings
from .syncer import Syncer

DEFERRED = object()
HANDLERS = {}

HANDLERS_AT_ONCE = 16  # coroutines of clients' requests, and as many of other servers'
QUEUE_MAX = 1 << 16
STALL_S = 1.0  # a transfer takes milliseconds: longer only from a caller that is stopped
STALLED_MAX = 256  # of them; each holds a buffer
WAITS_MAX = 1000  # times one request may run again
IO_THREADS = 8
LAZY_S = 0.1
RETRY_S = 1.0
BUFFER_BYTES = 1 << 20
BUFFERS_KEPT = 16


def serves(op):
    """Register the decorated function as the handler of ``op``."""
    def register(handler):
        if op in HANDLERS:
            raise ValueError(f"{op} has two handlers")
        HANDLERS[op] = handler
        return handler
    return register


async def gather(calls):
    """Results of calls to other servers; raises the first failure when all have ended."""
    results = [await settled(call) for call in calls]
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


async def settled(call):
    try:
        return await call
    except OSError as error:
        return error


class _Pool:
    """Runs coroutines, HANDLERS_AT_ONCE at a time; the others wait in a line of at most ``line_max``.  ``stalled`` of
    them do not count."""

    def __init__(self, line_max=QUEUE_MAX):
        self._line_max = line_max
        self.running = {}
        self._stalled = 0
        self._line = deque()
        self._stopped = False

    def run(self, coroutine, inner=None):
        """Start or queue ``coroutine``, which awaits ``inner`` if that is a coroutine.  Nothing starts after ``stop``.

        Raises OSError ENOMEM when the line is full.
        """
        if self._stopped:
            _close(coroutine, inner)
        elif self._room():
            self._start(coroutine, inner)
        elif self._line_max is None or len(self._line) < self._line_max:
            self._line.append((coroutine, inner))
        else:
            _close(coroutine, inner)
            raise fail(errno.ENOMEM)

    def _room(self):
        return len(self.running) - self._stalled < HANDLERS_AT_ONCE

    def stalled(self, more):
        """``more`` (or fewer) of those that run wait for somebody who may be stopped for hours."""
        self._stalled += more
        if self._line and self._room():
            self._start(*self._line.popleft())

    def _start(self, coroutine, inner):
        task = asyncio.get_running_loop().create_task(coroutine)
        self.running[task] = inner
        task.add_done_callback(self._ended)

    def _ended(self, task):
        inner = self.running.pop(task, None)
        if task.cancelled():
            _close(inner)
        elif task.exception():
            log(f"a handler failed: {task.exception()!r}")
        if self._line and self._room():
            self._start(*self._line.popleft())

    async def stop(self):
        """Cancel what runs; what waits in line never begins."""
        self._stopped = True
        while self._line:
            _close(*self._line.popleft())
        for task in list(self.running):
            task.cancel()
        await asyncio.gather(*self.running, return_exceptions=True)


def _close(*coroutines):
    """End coroutines that may not have begun."""
    for coroutine in coroutines:
        if iscoroutine(coroutine):
            coroutine.close()


class Server:
    """One shard: its state, and the way of a request through it.

    ``rpc`` is an rpc.Service (or its twin in tests), ``kv`` a store of kv.py, ``path`` the directory of chunk files,
    ``ended()`` is called when SHUTDOWN was asked.  Raises meta.StoreError and OSError.  Everything but transfers of a
    ``Piece`` and sync rounds happens on the event loop's thread.
    """

    def __init__(self, rpc, kv, path, config, ended=lambda: None):
        self.rpc, self.kv, self.config, self.ended = rpc, kv, config, ended
        self.number, self.servers = rpc.number, rpc.servers
        self.meta = Meta(kv, self.number, self.servers, os.getuid(), os.getgid())
        self.chunks = Chunks(kv, path, config.inline_max)
        self.dirs = Directories(self.meta, self.call_peer)
        self.freezes = self.dirs.freezes = Freezes(self)
        self.subtrees = None  # the renames of directories that this server coordinates; see subtree.py
        rpc.lost = self.dirs.lost
        self.openings, self.cuts, self.loans = Openings(), Cuts(), Loans(config.lend_us)
        self.extensions: Any = {}  # see extensions.py; handlers.start makes it
        self.appends: dict = {}  # inode -> Line of appends.py
        self.strays: Any = None  # see strays.py
        self.read_lately = set()  # inodes whose atime is newer than their other times: see holes.py
        self.orphans = set()  # inodes without a name that somebody has open
        self.unsure = False  # after a crash: openings that clients have not told again may exist
        self.intents = set()  # renames and debts of ours that other servers may not know yet
        self.applied = {}  # server -> renames and debts of its applied here, oldest first
        self.over = {}  # server -> below this number its renames and debts are over, as far as known
        self.debts = {}  # server -> debts that wait for it (counts.py)
        self.inode_owners = {}  # ino -> uid, answers for handlers that waited for them
        self.bytes_in = self.bytes_out = 0
        self.retry_s = RETRY_S
        self.disk_slow_until = 0.0  # monotonic seconds; see data.py
        self.conns = set()
        self.processes = {}  # connection -> (process id, whether it is on this host, its host)
        self.locking = None  # see locking.py; handlers.start makes it
        self.since_s = time.monotonic()
        self._outbox, self._behind = [], []
        self._serving = self._flush_due = False
        self._receiving = 0  # coroutines that wait for bulk data
        self._stalled = 0  # of these, those whose callers may be stopped
        self._pools = _Pool(), _Pool()
        self._removals = _Pool(line_max=None)
        self.times = None  # see times.py; handlers.start makes it
        self.linking = {}  # debt -> the directory elsewhere whose links it changes; see counts.py
        self._lazy_timer = None
        self._buffers = []
        self._background = set()
        # The event loop's thread may be pinned to a processor later; these are not.
        self.threads = ThreadPoolExecutor(IO_THREADS, "io", os.sched_setaffinity, (0, os.sched_getaffinity(0)))
        self.loop = self.syncer = None
        self._arrival: Any = None  # Future of the next server that comes
        self.posted = lambda: None  # set by who polls the network

    # --- life -------------------------------------------------------------------------------------------------------

    def start(self):
        """The event loop runs (see handlers.start)."""
        self.loop = asyncio.get_running_loop()
        self._arrival = self.loop.create_future()
        self.syncer = Syncer(self.kv, self.chunks, self.loop.call_soon_threadsafe)

    async def stop(self):
        """End what is under way and close the store."""
        await self.times.stop()
        for pool in (*self._pools, self._removals):
            await pool.stop()
        for task in list(self._background):
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        self.flush()
        if self._lazy_timer:
            self._lazy_timer.cancel()
        if self.syncer:
            self.syncer.stop()
        self.threads.shutdown()
        await asyncio.sleep(0)  # the last round's answers
        if not self.openings.total and not self.orphans:
            self.meta.ended_idle()
            self.flush()
        self.kv.close()
        self.chunks.close()

    def remove(self, coroutine):
        """Run a removal behind its reply, a few at a time.  What is left at the end is taken up at the next start."""
        self._removals.run(coroutine)

    def spawn(self, coroutine):
        """Run in the background until the end; -> the task."""
        task = self.loop.create_task(coroutine)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    # What door.guard asks of a service.

    @property
    def secret(self):
        return self.rpc.secret

    @property
    def address(self):
        return self.rpc.address

    def accept(self, kind, address, process=None):
        """Let a visitor in, who is ``process`` (see ``processes``); -> its connection id.  Raises OSError."""
        conn = self.rpc.accept(kind, address)
        self.conns.add(conn)
        if kind == door.KIND_SERVER:
            arrival, self._arrival = self._arrival, self.loop.create_future()
            arrival.set_result(None)
        if process:
            self.processes[conn] = process
        return conn

    def forget(self, conn):
        """The connection is lost: so are its openings and locks."""
        self.rpc.forget(conn)
        self.conns.discard(conn)
        self.freezes.lost(conn)
        for ino in self.openings.lost(conn):
            record = self.kv.get(purge_key(ino)) if ino in self.orphans else None
            if record is not None:
                self.kv.put(purge_key(ino), everywhere(self, PURGE.unpack(record)))
                self.flush_soon()
            if ino in self.orphans and self.config.linger_ms and not self.unsure:
                self.keep(ino, self.config.linger_ms)
            else:
                self.closed(ino)
        self.processes.pop(conn, None)
        self.locking.lost(conn)
        self.strays.lost(conn)

    def released(self, conn, ino):
        """An opening of ``ino`` by ``conn`` ended."""
        if self.openings.release(conn, ino):
            self.closed(ino)

    def closed(self, ino):
        """The last known opening of ``ino`` ended."""
        if ino in self.orphans and not self.unsure:
            self.orphans.discard(ino)
            self.remove(purge(self, ino))

    def keep(self, ino, milliseconds):
        """Count an opening of somebody who will tell of it himself within that time (HELD)."""
        self.openings.add(KEPT, ino)
        self.loop.call_later(milliseconds / 1000, self._kept, ino)

    def _kept(self, ino):
        self.released(KEPT, ino)

    def wait_for_openings(self):
        """At start: whoever has a file open tells again when it next has something for this server.  Until then no file
        without a name is removed."""
        self.unsure = not self.meta.idle and self.config.grace_ms > 0
        if self.unsure:
            self.loop.call_later(self.config.grace_ms / 1000, self._waited)
        else:
            self._waited()

    def _waited(self):
        self.unsure = False
        for ino in [ino for ino in self.orphans if ino not in self.openings.total]:
            self.closed(ino)

    def free_bytes(self, ino, conn, hint):
        """Raises Wait when ``conn`` may not yet change bytes or size of an inode that lives here."""
        self.dirs.free(inode_key(ino))
        self.strays.free(ino, hint)
        self.loans.back(ino, conn)

    # --- requests ---------------------------------------------------------------------------------------------------

    def serve(self, requests):
        """Handle what one poll gave, write the changes, answer."""
        self._serving = True
        try:
            kv, rpc, freezes = self.kv, self.rpc, self.freezes
            for request in requests:
                try:
                    if freezes and freezes.park(request):
                        continue
                    result = HANDLERS[request.op](self, request)
                    if result.__class__ is tuple:
                        if kv.pending:
                            self._outbox.append((request, result))
                        else:
                            rpc.reply(request, *result)
                    elif result is not DEFERRED:
                        self._pools[request.op.peer].run(self._run(request, result), result)
                except Wait as wait:
                    self._queue(request, wait)
                except Exception as error:
                    rpc.fail(request, error)
            if kv.pending or self._outbox:
                self.flush()
            while self._behind:
                work, arguments = self._behind.pop()
                work(self, *arguments)
        finally:
            self._serving = False

    def behind(self, work, *arguments):
        """Call ``work(server, *arguments)``, which may not fail, once the replies of this poll are sent."""
        if self._serving:
            self._behind.append((work, arguments))
        else:
            work(self, *arguments)

    def _queue(self, request, step):
        try:
            self._pools[request.op.peer].run(self._run(request, step), step)
        except OSError as error:
            self.rpc.fail(request, error)

    async def _run(self, request, step):
        """The rest of a request that has to wait: ``step`` is a coroutine of its handler, or a Wait."""
        for _ in range(WAITS_MAX):
            try:
                if step.__class__ is Wait:
                    await step.make()
                    if request.conn not in self.conns:
                        return  # nobody waits for it any more
                    if self.freezes and self.freezes.park(request):
                        return
                    step = HANDLERS[request.op](self, request)
                result = await step if iscoroutine(step) else step
            except Wait as wait:
                step = wait
            except Exception as error:
                self.rpc.fail(request, error)
                return
            else:
                if result is not DEFERRED:
                    self.finish(request, result)
                return
        log(f"server {self.number}: {request!r} has waited {WAITS_MAX} times and is given up")
        self.rpc.fail(request, fail(errno.EAGAIN))

    def finish(self, request, result):
        """Answer a request once what is pending is written: very soon, together with others."""
        self._outbox.append((request, result))
        self.flush_soon()

    def flush_soon(self):
        """What changed outside of a request is written very soon."""
        if not self._serving and not self._flush_due:
            self._flush_due = True
            self.loop.call_soon(self.flush)

    def flush(self):
        """Write the pending batch and send the replies that waited for it."""
        self._flush_due = False
        try:
            self.commit()
        except OSError:
            return  # everybody concerned was told

    def commit(self, lazily=False):
        """As flush; for a handler that has more to do.  Raises OSError when the batch was refused and undone."""
        kv = self.kv
        if kv.pending or lazily:
            try:
                kv.commit(lazily)
            except OSError as error:
                self._undo(error)
                raise
        if self._outbox:
            outbox, self._outbox = self._outbox, []
            self._answer(outbox)
        if kv.overdue:
            self.settle()

    def settle(self):
        """Let the database catch up with the journal."""
        try:
            self.kv.settle()
        except OSError:
            return  # it is in the log; whoever changes something next is told

    def _answer(self, outbox):
        reply = self.rpc.reply
        for request, result in outbox:
            try:
                reply(request, *result)
            except Exception as error:
                self.rpc.fail(request, error)
        if not self._serving:
            self.posted()

    def _undo(self, error):
        """The batch was refused: nothing of it happened."""
        outbox, self._outbox = self._outbox, []
        self.meta.rolled_back()
        self.chunks.rolled_back()
        self.locking.rolled_back()
        self.dirs.forget_all()
        self.intents = {number for number in self.intents
                        if self.kv.get(debt_key(number)) is not None or self.kv.get(intent_key(number)) is not None}
        for request, _ in outbox:
            self.rpc.fail(request, error)

    @property
    def busy(self):
        """Whether coroutines may want to run, which the event loop must not let wait: all but those at a transfer."""
        clients, servers = self._pools  # spelled out: this is asked at every poll
        under_way = len(clients.running) + len(servers.running) + len(self._removals.running)
        return self._flush_due or under_way > self._receiving

    @property
    def unanswered(self):
        """Whether requests of clients are under way that do not wait for data."""
        return len(self._pools[0].running) > self._receiving or bool(self.subtrees.active)

    def owns(self, path):
        """Whether the entry of ``path`` has its place here."""
        return owner(path, self.servers) == self.number

    def call_peer(self, server, op, tail=b"", *fields, data=None):
        """See rpc.Service.call_peer."""
        future = self.rpc.call_peer(server, op, tail, *fields, data=data)
        self.posted()
        return future

    async def receive(self, request, view):
        """See rpc.Service.receive."""
        receiving = self.rpc.receive(request, view)
        self.posted()
        pool = self._pools[request.op.peer]
        stalled = False

        def stall():
            nonlocal stalled
            stalled = self._stalled < STALLED_MAX
            self._stalled += stalled
            pool.stalled(stalled)

        timer = self.loop.call_later(STALL_S, stall)
        self._receiving += 1
        try:
            await receiving
        finally:
            self._receiving -= 1
            timer.cancel()
            self._stalled -= stalled
            pool.stalled(-stalled)

    async def io(self, function, *arguments):
        """Run something that may block on a thread."""
        return await self.loop.run_in_executor(self.threads, function, *arguments)

    def buffer(self, length):
        """Writable memory of at least ``length`` bytes; give it back with ``recycle``."""
        if length <= BUFFER_BYTES:
            return self._buffers.pop() if self._buffers else bytearray(BUFFER_BYTES)
        return bytearray(length)

    def recycle(self, buffer):
        if len(buffer) == BUFFER_BYTES and len(self._buffers) < BUFFERS_KEPT:
            self._buffers.append(buffer)

    async def pause(self, times=1):
        """Before trying again what depends on another server: a while, or until one comes that may be it."""
        await asyncio.wait([self._arrival], timeout=times * self.retry_s * (0.5 + random.random()))

    # --- times of directories ---------------------------------------------------------------------------------------

    def touched(self, path, above, now):
        """An entry ``path`` in the directory ``above`` (a Dir) came or went: its times become ``now``."""
        if self.read_lately:
            self.read_lately.clear()  # a name changed: so did the ctime of an inode
        if above.key is not None:
            value = self.kv.get(above.key)
            if value is not None and not has_times(value, now):
                self.kv.lazy(above.key, with_times(value, now))
                if self._lazy_timer is None:
                    self.write_lazily_soon()
            return
        self.times.note(path[:path.rindex(b"/")] or b"/", now)

    def directories_touched(self):
        """Paths of directories elsewhere whose owners have not yet been told of all changes made here."""
        for number in [number for number in self.linking if self.kv.get(debt_key(number)) is None]:
            del self.linking[number]  # told, or its batch was refused
        return (*self.times.unstored(), *self.linking.values())

    def write_lazily_soon(self):
        if self._lazy_timer is None:
            self._lazy_timer = self.loop.call_later(LAZY_S, self._write_lazily)

    def _write_lazily(self):
        self._lazy_timer = None
        try:
            self.commit(lazily=True)
        except OSError as error:
            log(f"server {self.number}: times of directories could not be stored: {error}")
