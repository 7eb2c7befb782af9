# SPDX-License-Identifier: Apache-2.0
"""Renaming a directory, and exchanging two names: coordinated by one server, the owner of the root, one at a time.

Entries are placed by the hash of their full path, so all that is below a directory moves.  The steps::

    look       at both names: refusals, in Linux's order; most end here
    freeze     all servers park requests by path at or below the two names, and end what is under way there
    look       again, now that nothing can change; the new name is reserved
    commit     the intent T I id is written: from here on the rename is completed, whatever dies
    move       each server sends what is below to the servers of the new names (and publishes it, after an exchange)
    place      the moved entries themselves, their parents' times and links
    thaw       the intent is deleted, all servers go on

Before the commit, any failure thaws everything: nothing happened.  After it, each step may be repeated; it is, when a
server died, until it is back.  Meanwhile the two names answer EIO, and so does any other rename of a directory.  Who
asked is told EIO when that takes longer than RETURN_S.

A client names its rename by a ticket, which is stored with the commit (tickets.py): it may ask again, also a
coordinator that was started again, and hears what became of it.
"""
import asyncio
import errno
import struct
from collections import namedtuple

from pymadfs.errors import fail
from pymadfs.identity import Who
from pymadfs.layout import covers, home, owner, parent
from pymadfs.log import log
from pymadfs.ops import FREEZE, MOVETREE, PLACE, TREE, Record

from . import relocate
from .dispatch import DEFERRED, gather, serves
from .frozen import (
    EXCHANGE,
    LOOK,
    MOVE,
    NOREPLACE,
    PARENT,
    PUBLISH,
    PUT,
    REMOVE,
    STUCK,
    TAKE,
    THAW,
    coordinator,
)
from .meta import check_new_path, ino_of, is_directory, key_number, now_ns
from .relocate import CROSSING, LOCATION, PLACED, RESERVE, freeze_here, patiently, place_here
from .tickets import Tickets

INTENTS = b"TI"
INTENT = Record("Tree", "flags:I replaced:B phase:B now:q old:H new:H moved:H back:H moves:i comes:i")
WAIT_S = 1.0  # until a client whose rename takes longer is told to ask again
RETURN_S = 2.0  # for a server that was lost to be back before a client is told EIO: one that began anew is
OVER_S = 0.01  # between looks whether a rename is complete
THAW_S = 1.0  # how long the answer to a client waits for servers that may be dead
JOBS_MAX = 256  # answers kept for clients that ask again

OLD_DONE, NEW_DONE = 1, 2  # bits of PARENT
MOVING, PUBLISHING, PLACING = range(3)  # how far a rename has come

ROOT = Who(0, 0)
Plan = namedtuple("Plan", "replaced moves comes")
"""What a rename that may happen does: whether it replaces a directory, and the links that the parents of the old and
the new name gain."""


class Move:
    """A rename under way: what the intent record stores."""

    def __init__(self, number, flags, old, new):
        self.number, self.flags, self.old, self.new = number, flags, old, new
        self.replaced, self.links, self.now = False, (0, 0), 0
        self.phase = MOVING
        self.values = b"", b""  # PLACING: of the entries from the old name and, in an exchange, from the new one

    def pack(self):
        moved, back = self.values
        fixed = INTENT.pack(self.flags, self.replaced, self.phase, self.now, len(self.old), len(self.new), len(moved),
                            len(back), *self.links)
        return fixed + self.old + self.new + moved + back

    @classmethod
    def unpack(cls, number, record):
        fields = INTENT.unpack(record)
        parts, at = [], INTENT.size
        for length in (fields.old, fields.new, fields.moved, fields.back):
            parts.append(record[at:at + length])
            at += length
        self = cls(number, fields.flags, *parts[:2])
        self.replaced, self.links, self.now = bool(fields.replaced), (fields.moves, fields.comes), fields.now
        self.phase, self.values = fields.phase, tuple(parts[2:])
        return self

    @property
    def exchange(self):
        return bool(self.flags & EXCHANGE)


def intent_key(number):
    return INTENTS + number.to_bytes(8, "big")


# --- what clients ask -----------------------------------------------------------------------------------------------


class Job:
    """A rename that a client asked for, until it has been told how it ended."""

    def __init__(self, task):
        self._task = task
        self._asking = None  # (Server, request, timer)
        task.add_done_callback(self._ended)

    @property
    def ended(self):
        return self._task.done()

    def answer(self, server, request):
        """The result if there is one, else it follows; or, after a while, word that it is under way."""
        if self.ended:
            return self._result()
        self._forget()
        self._asking = server, request, server.loop.call_later(WAIT_S, self._late)
        return DEFERRED

    def _result(self):
        if self._task.cancelled():
            raise fail(errno.EIO)
        self._task.result()
        return (1,), b""

    def _forget(self):
        asking, self._asking = self._asking, None
        if asking:
            asking[2].cancel()
        return asking

    def _late(self):
        server, request, _ = self._forget()
        server.finish(request, ((0,), b""))

    def _ended(self, _):
        asking = self._forget()
        if asking is None or self._task.cancelled():
            self._task.cancelled() or self._task.exception()
            return
        server, request, _ = asking
        try:
            server.finish(request, self._result())
        except Exception as error:
            server.rpc.fail(request, error)
            server.posted()


class Subtrees:
    """The coordinator's state; on other servers it stays empty."""

    def __init__(self):
        self.active = set()  # numbers of renames that some server may be frozen for
        self.insisting = False  # one is committed and waits for a server that is dead
        self.turn = asyncio.Lock()
        self.jobs = {}  # ticket -> Job
        self.tickets, self.return_s = None, RETURN_S  # see tickets.py

    def job(self, key):
        return self.jobs.get(key)

    def add(self, key, job):
        if len(self.jobs) >= JOBS_MAX:
            for old in [old for old, each in self.jobs.items() if each.ended][:JOBS_MAX // 2]:
                del self.jobs[old]
        self.jobs[key] = job


@serves(MOVETREE)
def move_tree(server, request):
    flags, length, ticket, _ = request.fields
    if coordinator(server) != server.number:
        raise fail(errno.EPROTO)
    old, new = request.tail[:length], request.tail[length:]
    job = server.subtrees.job(ticket)
    if job is None:
        number = server.subtrees.tickets.number(ticket)
        if number is not None:  # this server was started again since
            job = Job(server.spawn(_over(server, number)))
            server.subtrees.add(ticket, job)
            return job.answer(server, request)
        if flags & ~(NOREPLACE | EXCHANGE) or flags == NOREPLACE | EXCHANGE or old[:1] != b"/":
            raise fail(errno.EINVAL)
        if old == b"/":
            raise fail(errno.EBUSY)
        check_new_path(new)
        who = Who(request.uid, request.gid, 0, request.groups)
        job = Job(server.spawn(_rename_patiently(server, who, flags, old, new, ticket)))
        server.subtrees.add(ticket, job)
    return job.answer(server, request)


async def _over(server, number):
    """Return when the committed rename ``number`` is complete.  Raises OSError EIO when that takes long."""
    until = server.loop.time() + server.subtrees.return_s
    while number in server.subtrees.active:
        if server.loop.time() > until:
            raise fail(errno.EIO)
        await asyncio.sleep(OVER_S)


async def _rename_patiently(server, *arguments):
    """As ``_rename``, and once more while a server that was lost may be back soon: EIO from it means that nothing
    happened, or that it is committed, which is waited for."""
    until = server.loop.time() + server.subtrees.return_s
    while True:
        try:
            return await _rename(server, *arguments)
        except OSError as error:
            number = server.subtrees.tickets.number(arguments[-1])
            if error.errno != errno.EIO:
                raise
            if number is not None:
                return await _over(server, number)
            if server.loop.time() > until:
                raise
            await server.pause()


# --- asking servers -------------------------------------------------------------------------------------------------


async def _tree(server, number, step, move, tail=b"", *, length=0, who=ROOT, links=0, now=0):
    """TREE at server ``number``: -> (result, tail)."""
    fields = (move.number, step, length, who.uid, who.gid, links, now)
    if number == server.number:
        fields = TREE.request.unpack(TREE.request.pack(*fields))
        result, tail = await patiently(relocate.STEPS[step], server, fields, tail)
        server.commit()
        return result[0], tail
    reply, tail = await server.call_peer(number, TREE, tail, *fields)
    return reply.result, tail


async def _everywhere(server, call):
    """Results of ``call(number)`` for all servers at once; raises the first failure when all have ended."""
    return await gather([server.spawn(call(number)) for number in range(server.servers)])


async def _freeze(server, move, number):
    if number == server.number:
        return await freeze_here(server, move.number, move.flags, move.old, move.new)
    reply, _ = await server.call_peer(number, FREEZE, move.old + move.new, move.number, move.flags, len(move.old))
    return reply.below


# --- one rename -----------------------------------------------------------------------------------------------------


async def _rename(server, who, flags, old, new, ticket):
    """Raises OSError or Restart when it is refused; EIO: also when it will be completed later."""
    trees = server.subtrees
    if trees.insisting:
        raise fail(errno.EIO)
    async with trees.turn:
        if trees.insisting:
            raise fail(errno.EIO)
        move = Move(server.meta.serial(), flags, old, new)
        if await _plan(server, move, who, reserve=0) is None:
            return
        trees.active.add(move.number)
        try:
            committed = await _prepare(server, move, who, ticket)
        except Exception:
            await _thaw(server, move)
            raise
        if not committed:
            await _thaw(server, move)
            return
        try:
            await _complete(server, move)
        except Exception as error:
            log(f"server {server.number}: rename of {move.old!r} waits: {error!r}")
            await _tell_stuck(server, move)
            server.spawn(_insist(server, move))
            raise fail(errno.EIO) from None


async def _plan(server, move, who, reserve):
    """Plan of the rename, None when there is nothing to do.  Raises what Linux refuses with, in its order."""
    old, new, exchange = move.old, move.new, move.exchange
    crossing = CROSSING if parent(old) != parent(new) else 0
    groups = struct.pack(f"<{len(who.groups)}I", *who.groups)
    denied, value = await _tree(server, owner(old, server.servers), LOOK, move, old + groups, who=who, length=len(old),
                                links=crossing)
    denied_new, existing = await _tree(server, owner(new, server.servers), LOOK, move, new + groups, who=who,
                                       length=len(new), links=reserve | (crossing if exchange else 0))
    if not value or exchange and not existing:
        raise fail(errno.ENOENT)
    if move.flags & NOREPLACE and existing:
        raise fail(errno.EEXIST)
    if old != new:
        if covers(old, new):
            raise fail(errno.EINVAL)
        if covers(new, old):
            raise fail(errno.EINVAL if exchange else errno.ENOTEMPTY)
    if existing and ino_of(value) == ino_of(existing):
        return None
    if denied or denied_new:
        raise fail(denied or denied_new)
    moves, comes = int(is_directory(value)), int(bool(existing) and is_directory(existing))
    if exchange:
        links = (comes - moves, moves - comes) if crossing else (0, 0)
        return Plan(False, *links)
    if not moves:
        raise fail(errno.ESTALE)  # it was a directory when the client looked, and is none any more
    if existing and not comes:
        raise fail(errno.ENOTDIR)
    return Plan(bool(existing), *((-1, 1 - comes) if crossing else (-comes, 0)))


async def _prepare(server, move, who, ticket):
    """Freeze, look again and commit; -> False when there is nothing to do after all."""
    below = await _everywhere(server, lambda number: _freeze(server, move, number))
    plan = await _plan(server, move, who, reserve=RESERVE)
    if plan is None:
        return False
    if plan.replaced and any(below):
        raise fail(errno.ENOTEMPTY)
    move.replaced, move.links, move.now = plan.replaced, (plan.moves, plan.comes), now_ns()
    server.subtrees.tickets.put(ticket, move.number)
    _write_intent(server, move)
    return True


def _write_intent(server, move):
    server.kv.put(intent_key(move.number), move.pack())
    server.commit()


async def _complete(server, move):
    """All that follows the commit; may be repeated from its start."""
    if move.phase == MOVING:
        await _until_done(server, move, MOVE)
        _enter(server, move, PUBLISHING)
    if move.phase == PUBLISHING:
        if move.exchange:
            await _until_done(server, move, PUBLISH)
        names = (move.old, move.new) if move.exchange else (move.old,)
        taken = [await _tree(server, owner(name, server.servers), TAKE, move, name, now=move.now) for name in names]
        move.values = (*(value for _, value in taken), b"")[:2]
        _enter(server, move, PLACING)
    moved, back = move.values
    await _put(server, move, move.new, moved)
    if move.exchange:
        await _put(server, move, move.old, back)
    else:
        await _tree(server, owner(move.old, server.servers), REMOVE, move, move.old)
    await _parents(server, move)
    server.kv.delete(intent_key(move.number))
    server.commit()
    await _thaw(server, move)


def _enter(server, move, phase):
    move.phase = phase
    _write_intent(server, move)


async def _until_done(server, move, step):
    async def at(number):
        while (await _tree(server, number, step, move))[0]:
            pass
    await _everywhere(server, at)


async def _put(server, move, path, value):
    """The entry itself at its new name; a directory's home learns where it is."""
    ino = ino_of(value)
    if is_directory(value):
        tail = PLACED.pack(LOCATION, ino, len(path), 0) + path
        if home(ino) == server.number:
            place_here(server, server.freezes.get(move.number), tail)
            server.commit()
        else:
            await server.call_peer(home(ino), PLACE, tail, move.number)
    await _tree(server, owner(path, server.servers), PUT, move, path + value, length=len(path), links=move.replaced,
                now=move.now)


async def _parents(server, move):
    """Both parents' times, and their links when directories came or went."""
    for path, links, bit in ((move.old, move.links[0], OLD_DONE), (move.new, move.links[1], NEW_DONE)):
        above = parent(path)
        await _tree(server, owner(above, server.servers), PARENT, move, above, length=bit, links=links, now=move.now)


async def _thaw(server, move):
    """Everybody goes on.  A server that cannot be reached is told later; if it starts again, it asks."""
    async def at(number):
        try:
            await _tree(server, number, THAW, move)
        except OSError:
            server.spawn(later(number))

    async def later(number):
        while True:
            await server.pause()
            try:
                return await _tree(server, number, THAW, move)
            except OSError:
                continue

    server.subtrees.active.discard(move.number)
    await asyncio.wait([server.spawn(at(number)) for number in range(server.servers)], timeout=THAW_S)


async def _tell_stuck(server, move):
    """A server is dead: nobody shall wait for this rename."""
    server.subtrees.insisting = True
    await asyncio.wait([server.spawn(_stick(server, move, number)) for number in range(server.servers)], timeout=THAW_S)


async def _stick(server, move, number):
    try:
        await _tree(server, number, STUCK, move)
    except OSError as error:  # nobody waits at a dead server
        log(f"server {server.number}: server {number} is not told that a rename waits: {error}")


async def _insist(server, move):
    """Complete a rename that is committed, however long a server stays dead."""
    async with server.subtrees.turn:
        while True:
            try:
                await _everywhere(server, lambda number: _freeze(server, move, number))
                await _complete(server, move)
            except Exception as error:
                log(f"server {server.number}: rename of {move.old!r} waits: {error!r}")
                await _tell_stuck(server, move)
                await server.pause()
            else:
                server.subtrees.insisting = False
                return


def resume_trees(server, records):
    """At start: complete what was committed; take back what was not."""
    server.subtrees = Subtrees()
    server.subtrees.tickets = Tickets(server.kv)
    for key, record in records:
        move = Move.unpack(key_number(key), record)
        server.subtrees.active.add(move.number)
        server.subtrees.insisting = True
        server.spawn(_insist(server, move))
    for stale in server.freezes.all():
        if coordinator(server) == server.number and stale.number not in server.subtrees.active:
            server.freezes.thaw(stale)
