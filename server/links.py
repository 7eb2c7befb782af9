# SPDX-License-Identifier: Apache-2.0
"""Names that come to an inode and go from it, and inodes that live without one.

A new name is put by the owner of its path, which coordinates (see counts.py for the debts):

1. hold the new name; write a debt of +1 for the inode.  One batch.
2. COUNT at the inode's home: checks, detaches it if its entry embeds it, counts.  One batch.
3. put the entry, delete the debt.  One batch.

When the home is this server, it is one batch altogether.  After a crash, or when the home does not answer, the debt is
told and then taken back: the count was too large in between, never too small.
"""
import asyncio
import errno
import stat

from pymadfs.config import CHUNK_SIZE_MAX
from pymadfs.errors import fail
from pymadfs.identity import SEARCH, WRITE
from pymadfs.layout import home
from pymadfs.ops import ATTR, COUNT, FLAG_LINKABLE, HELD, KEEP, LINK, TMPFILE

from . import counts
from .directories import Wait
from .dispatch import serves
from .inodes import lower
from .meta import (
    PURGE,
    check_new_path,
    entry_key,
    inode_key,
    is_directory,
    mode_of,
    now_ns,
    pointer,
    purge_key,
    target_of,
)
from .openings import KEPT
from .rename import is_applied, remember

LINKS_MAX = 65000  # names of one inode, as in ext4


# --- a further name -------------------------------------------------------------------------------------------------


@serves(LINK)
def link(server, request):
    ino, length = request.fields
    new, hint = request.tail[:length], request.tail[length:]
    key, above = _new_name(server, new, request)
    if home(ino) != server.number:
        return _across(server, request, ino, new, hint)
    now = now_ns()
    value = _raised(server, ino, hint, now)
    server.kv.put(key, pointer(ino, mode_of(value)) + target_of(value))
    server.touched(new, above, now)
    return (), b""


def _new_name(server, new, request):
    """``(key, parent's Dir)`` of a name that must not exist and that ``request.uid`` may make."""
    check_new_path(new)
    key = entry_key(new)
    server.dirs.free(key)
    exists = server.kv.get(key) is not None
    above = server.dirs.parent(new, request, SEARCH if exists else WRITE | SEARCH)
    if exists:
        raise fail(errno.EEXIST)
    return key, above


async def _across(server, request, ino, new, hint):
    key = entry_key(new)
    server.dirs.hold(key)
    try:
        if server.kv.get(key) is not None:  # it came before this coroutine began
            raise Wait(lambda: asyncio.sleep(0))
        number = counts.owe(server, ino, 1, hint, now_ns())
        server.commit()
        server.intents.add(number)
        try:
            reply, target = await counts.tell(server, number)
        except OSError as error:
            _give_up(server, number, error)
            raise
        try:
            await _put(server, request, number, new, pointer(ino, ATTR.unpack(reply.attr).mode) + target)
        except Exception:
            counts.later(server, number)
            raise
    finally:
        server.dirs.let_go(key)
    return (), b""


def _give_up(server, number, error):
    """Step 2 failed.  EIO: nobody knows whether it happened, so the background goes on until somebody does."""
    if error.errno == errno.EIO:
        counts.later(server, number)
    else:
        counts.forgive(server, number)
        server.commit()


async def _put(server, request, number, new, value):
    """Step 3.  The directory may have gone while the home was asked: then nothing is put, and this raises."""
    while True:
        try:
            above = server.dirs.parent(new, request, WRITE | SEARCH)
        except Wait as wait:
            await wait.make()
        else:
            break
    server.kv.put(entry_key(new), value)
    counts.forgive(server, number)
    server.touched(new, above, now_ns())
    server.commit()


def _raised(server, ino, hint, now):
    """One more name for an inode that lives here; -> its value, detached."""
    key, value = server.meta.find(ino, hint)
    attr = ATTR.unpack(value)
    if is_directory(value):
        raise fail(errno.EPERM)
    if not attr.nlink and not (attr.flags & FLAG_LINKABLE and ino in server.orphans):
        raise fail(errno.ENOENT)
    if attr.nlink >= LINKS_MAX:
        raise fail(errno.EMLINK)
    if key != inode_key(ino):
        server.kv.put(key, pointer(ino, attr.mode) + target_of(value))
    if not attr.nlink:
        server.orphans.discard(ino)
        server.kv.delete(purge_key(ino))
    attr = attr._replace(nlink=attr.nlink + 1, ctime_ns=now, flags=attr.flags & ~FLAG_LINKABLE)
    value = ATTR.pack(*attr) + target_of(value)
    server.kv.put(inode_key(ino), value)
    return value


@serves(COUNT)
def count(server, request):
    ino, change, now, number, below, origin = request.fields
    known = is_applied(server, origin, number)
    value = b""
    if not ino:
        if not known:
            counts.adjust(server, entry_key(request.tail), now, change)
    elif change > 0:
        value = server.meta.find(ino, b"")[1] if known else _raised(server, ino, request.tail, now_ns())
    elif not known:
        server.dirs.free(inode_key(ino))
        lower(server, ino, now_ns())
    if not known:
        remember(server, origin, number, below)
    return (value[:ATTR.size],), value[ATTR.size:]


# --- inodes without a name ------------------------------------------------------------------------------------------


@serves(TMPFILE)
def tmpfile(server, request):
    from .handlers import created_mode
    exclusive, mode, chunk_size = request.fields
    if not 0 < chunk_size <= CHUNK_SIZE_MAX:
        raise fail(errno.EINVAL)
    above = server.dirs.parent(request.tail, request, WRITE | SEARCH)
    chunk_size = above.chunk_size or chunk_size
    now = now_ns()
    ino = server.meta.serial()
    gid = request.gid
    if above.mode & stat.S_ISGID:
        gid = above.gid
        mode = created_mode(mode, gid, request)
    value = ATTR.pack(ino, 0, 0, now, now, now, stat.S_IFREG | mode & 0o7777, 0, request.uid, gid, 0, chunk_size,
                      0 if exclusive else FLAG_LINKABLE, 0, now)
    server.kv.put(inode_key(ino), value)
    server.kv.put(purge_key(ino), PURGE.pack(0, chunk_size))
    server.orphans.add(ino)
    server.openings.add(request.conn, ino)
    return (value,), b""


def _numbers(tail):
    return [int.from_bytes(tail[at:at + 8], "little") for at in range(0, len(tail) - 7, 8)]


@serves(HELD)
def held(server, request):
    for ino in _numbers(request.tail):
        server.openings.add(request.conn, ino)
        server.openings.release(KEPT, ino)
    return (), b""


@serves(KEEP)
def keep(server, request):
    for ino in _numbers(request.tail):
        server.keep(ino, server.config.grace_ms)
    return (), b""
