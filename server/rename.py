# SPDX-License-Identifier: Apache-2.0
"""Moving a name.  On one server it is one batch; across two it is this, coordinated by the owner of the old name:

1. hold the old name; detach the inode if the entry embeds it; write an intent.  One batch.
2. INSTALL at the owner of the new name: checks, replaces what is there, remembers that it did.  One batch.
3. delete the old entry and the intent.  One batch.

A definite refusal in 2 deletes the intent: nothing happened.  After a crash, or when the other server died, the
coordinator repeats 2 until it has an answer; who did it before says yes again.  Meanwhile the old name answers EIO.
"""
import asyncio
import errno
import random
import struct
from collections import namedtuple

from pymadfs.errors import Restart, fail
from pymadfs.identity import SEARCH, WRITE, Who
from pymadfs.layout import covers, home, owner
from pymadfs.log import log
from pymadfs.ops import ATTR, INSTALL, RENAME, SETATTR

from . import counts
from .directories import Wait
from .dispatch import serves
from .inodes import drop, sticky
from .meta import (
    INTENT,
    applied_key,
    changed,
    check_new_path,
    entry_key,
    ino_of,
    inode_key,
    intent_key,
    is_directory,
    is_pointer,
    mode_of,
    now_ns,
    pointer,
    target_of,
)

RENAME_NOREPLACE = 1
BACKOFF_S = 0.001

Move = namedtuple("Move", "number flags old new uid gid groups attr target")
"""A rename under way: what the intent record stores; ``groups`` are 4 bytes each."""


@serves(RENAME)
def rename(server, request):
    flags, length = request.fields
    old, new = request.tail[:length], request.tail[length:]
    if flags & ~RENAME_NOREPLACE:
        raise fail(errno.EINVAL)
    check_new_path(new)
    key, value = server.dirs.entry(old, request)
    if old == new:  # Linux looks no further
        if flags & RENAME_NOREPLACE:
            raise fail(errno.EEXIST)
        return (), b""
    above = server.dirs.parent(old, request, WRITE | SEARCH)
    sticky(server, above, request, old, value)
    if is_directory(value):
        raise fail(errno.EXDEV)
    if covers(new, old):
        raise fail(errno.EEXIST if flags & RENAME_NOREPLACE else errno.ENOTEMPTY)
    server.dirs.free(inode_key(ino_of(value)))
    if owner(new, server.servers) != server.number:
        return _across(server, request, old, new, flags, above, value)
    new_above, existing = _checked(server, request, new, flags, ino_of(value))
    if existing is not None and ino_of(existing) == ino_of(value):
        return (), b""
    now = now_ns()
    debt = _place(server, new, new_above, existing, _detached(server, value, now), now)
    server.kv.delete(key)
    server.touched(old, above, now)
    return _renamed(server, debt, ino_of(value)) if debt is not None or is_pointer(value) else ((), b"")


async def _renamed(server, debt, ino):
    server.commit()
    stamped = server.spawn(stamp(server, ino))  # at the same time
    if debt is not None:
        await counts.settle(server, debt)
    await stamped
    return (), b""


async def stamp(server, ino):
    """The ctime of an inode that had been moved before becomes now, where it lives."""
    if home(ino) == server.number:
        found = server.kv.get(inode_key(ino))
        if found is not None:
            server.kv.put(inode_key(ino), changed(found, ctime_ns=now_ns()))
        return
    try:
        await server.call_peer(home(ino), SETATTR, b"", ino, 0, 0, 0, 0, 0, 0, 0)
    except OSError as error:  # the rename is done; of a server that is dead, nobody sees the time
        log(f"server {server.number}: ctime of inode {ino:x} was not set: {error}")


def _detached(server, value, now):
    """What an entry elsewhere says of the inode that the entry ``value`` embeds or points to."""
    if is_pointer(value):
        return value
    ino = ino_of(value)
    server.kv.put(inode_key(ino), changed(value, ctime_ns=now))
    return pointer(ino, mode_of(value)) + target_of(value)


def _checked(server, who, new, flags, ino):
    """``(parent's Dir, existing value or None)`` when ``who`` may put the inode ``ino`` at ``new``."""
    key = entry_key(new)
    server.dirs.free(key)
    existing = server.kv.get(key)
    above = server.dirs.parent(new, who, WRITE | SEARCH)
    if existing is not None:
        if flags & RENAME_NOREPLACE:
            raise fail(errno.EEXIST)
        if ino_of(existing) != ino:
            sticky(server, above, who, new, existing)
        if is_directory(existing):
            raise fail(errno.EISDIR)
        server.dirs.free(inode_key(ino_of(existing)))
    return above, existing


def _place(server, new, above, existing, value, now):
    """Put the entry; returns what ``drop`` of the replaced one returns."""
    debt = None if existing is None else drop(server, existing, now)
    server.kv.put(entry_key(new), value)
    server.touched(new, above, now)
    return debt


# --- across two servers: the coordinator ----------------------------------------------------------------------------


async def _across(server, request, old, new, flags, above, value):
    key = entry_key(old)
    server.dirs.hold(key)
    if server.kv.get(key) != value:  # it changed before this coroutine began
        server.dirs.let_go(key)
        raise Wait(lambda: asyncio.sleep(0))
    now = now_ns()
    known = is_pointer(value)
    value = _detached(server, value, now)
    groups = struct.pack(f"<{len(request.groups)}I", *request.groups)
    move = Move(server.meta.serial(), flags, old, new, request.uid, request.gid, groups, value[:ATTR.size],
                target_of(value))
    server.intents.add(move.number)
    server.kv.put(key, value)
    server.kv.put(intent_key(move.number), pack(move))
    try:
        server.commit()
    except OSError:
        _over(server, move)
        raise
    try:
        await _install(server, move)
    except (OSError, Restart) as error:
        if not isinstance(error, OSError) or error.errno != errno.EIO:
            _undo(server, move)
            if isinstance(error, OSError) and error.errno == errno.EALREADY:
                return (), b""
            raise
        server.dirs.stuck(key)
        server.spawn(_insist(server, move))
        raise
    _finish(server, move)
    await server.times.note_surely(old, above, now)
    if known:
        await stamp(server, ino_of(value))
    return (), b""


async def _install(server, move):
    """Step 2, until the answer is definite.  OSError EIO: it is not known whether it happened."""
    fields = (move.flags, len(move.new), move.uid, move.gid, len(move.groups) // 4, move.number, min(server.intents),
              server.number, move.attr)
    while True:
        try:
            tail = move.new + move.groups + move.target
            await server.call_peer(owner(move.new, server.servers), INSTALL, tail, *fields)
            return
        except OSError as error:
            if error.errno != errno.EAGAIN:
                raise
        # The new name is in use, perhaps by a rename that waits for our old one: of the two, the one that goes up in
        # the order of names keeps what it holds and asks again, the other gives way and starts anew.  The rename of a
        # directory waits for all old names below it.
        if move.old > move.new or server.freezes and server.freezes.over(move.old):
            _undo(server, move)
            raise Wait(_moment)
        await _moment()


async def _moment():
    await asyncio.sleep(BACKOFF_S * (0.5 + random.random()))


def _finish(server, move):
    """Step 3."""
    server.kv.delete(entry_key(move.old))
    _undo(server, move)


def _undo(server, move):
    """The rename is over: forget the intent and let others have the name."""
    server.kv.delete(intent_key(move.number))
    try:
        server.commit()
    finally:
        _over(server, move)


def _over(server, move):
    server.intents.discard(move.number)
    server.dirs.let_go(entry_key(move.old))


async def _insist(server, move):
    """Repeat steps 2 and 3 until the other server answers: after a crash of either."""
    while True:
        try:
            await _install(server, move)
        except Wait:  # it gave way: undone
            return
        except (OSError, Restart) as error:
            if not isinstance(error, OSError) or error.errno != errno.EIO:
                _undo(server, move)
                return
            server.dirs.stuck(entry_key(move.old))
            await server.pause()
        else:
            _finish(server, move)
            return


def resume_rename(server, number, record):
    """An intent found at start: hold its old name and complete it, or learn that it failed."""
    move = unpack(number, record)
    server.intents.add(number)
    server.dirs.hold(entry_key(move.old))
    server.spawn(_insist(server, move))


def pack(move):
    """Intent record of a Move."""
    fixed = INTENT.pack(move.flags, len(move.old), len(move.new), move.uid, move.gid, len(move.groups) // 4, move.attr)
    return fixed + move.old + move.new + move.groups + move.target


def unpack(number, record):
    fields = INTENT.unpack(record)
    at = INTENT.size
    middle, end = at + fields.old, at + fields.old + fields.new
    last = end + 4 * fields.groups
    old, new, groups, target = record[at:middle], record[middle:end], record[end:last], record[last:]
    return Move(number, fields.flags, old, new, fields.uid, fields.gid, groups, fields.attr, target)


# --- across two servers: the other one ------------------------------------------------------------------------------


@serves(INSTALL)
def install(server, request):
    flags, length, uid, gid, groups, number, below, origin, attr = request.fields
    end = length + 4 * groups
    new, target = request.tail[:length], request.tail[end:]
    who = Who(uid, gid, 0, frozenset(struct.unpack(f"<{groups}I", request.tail[length:end])))
    if is_applied(server, origin, number):
        return (), b""
    check_new_path(new)
    freeze = server.freezes.over(new)
    if freeze:
        raise fail(errno.EIO if freeze.stuck else errno.EAGAIN)
    if server.dirs.is_held(entry_key(new)):
        raise fail(errno.EAGAIN)
    ino = ino_of(attr)
    above, existing = _checked(server, who, new, flags, ino)
    if existing is not None and ino_of(existing) == ino:
        raise fail(errno.EALREADY)  # two names of one file: both stay
    now = now_ns()
    debt = _place(server, new, above, existing, attr + target, now)
    remember(server, origin, number, below)
    if debt is not None:
        server.spawn(counts.settle(server, debt))
    return (), b""


def is_applied(server, origin, number):
    """Whether a rename or debt of server ``origin`` was applied here: it is remembered, or over (asked again late)."""
    return server.kv.get(applied_key(origin, number)) is not None or number < server.over.get(origin, 0)


def remember(server, origin, number, below):
    """This rename or debt was applied here; forget those of ``origin`` that are over."""
    server.kv.put(applied_key(origin, number), b"")
    server.over[origin] = max(below, server.over.get(origin, 0))
    known = server.applied.setdefault(origin, [])
    for old in [old for old in known if old < below]:
        server.kv.delete(applied_key(origin, old))
        known.remove(old)
    known.append(number)
