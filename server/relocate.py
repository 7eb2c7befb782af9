# SPDX-License-Identifier: Apache-2.0
"""What every server does in the rename of a directory, as the coordinator (subtree.py) asks it.

FREEZE    requests by path at or below the two names are parked from now on; answered when nothing under way here
          concerns them any more, and nothing is remembered about directories there.  Durable: a server that starts
          again comes up frozen.
MOVE      entries below the old name go to the servers of their new names, page by page.  Each is put there (PLACE)
          before it is deleted here, so this can be repeated.  Requests by inode go on meanwhile: an entry that changed
          since it was sent is sent again, and a file's inode becomes a record of its own when its entry goes.
PUBLISH   after an exchange: entries that were put aside because their new names were still in use take their places.
THAW      what was parked is served, and finds all new names and no old one.
"""
import asyncio
import errno
import struct

from pymadfs.errors import fail
from pymadfs.identity import SEARCH, WRITE, Who
from pymadfs.layout import home, owner
from pymadfs.ops import ATTR, FREEZE, PLACE, TREE, WHERE, Record

from . import counts, xattrs
from .directories import Wait
from .dispatch import gather, serves
from .frozen import (
    EXCHANGE,
    KNOWN,
    LOOK,
    MOVE,
    PARENT,
    PUBLISH,
    PUT,
    REMOVE,
    STUCK,
    TAKE,
    THAW,
    Freeze,
    frozen_key,
    hold,
)
from .inodes import forget_location, sticky
from .meta import (
    changed,
    check_access,
    check_new_path,
    entry_key,
    has_xattrs,
    ino_of,
    inode_key,
    is_directory,
    is_pointer,
    location_key,
    mode_of,
    path_of,
    pointer,
    target_of,
    xattrs_key,
)
from .rename import stamp

STAGED = b"SE"
PLACED = Record("Placed", "kind:B ino:Q path:H value:I")
ENTRY, LOCATION, XATTR, NEXT_XATTR = range(4)  # kinds of PLACED
PLACE_BYTES_MAX = 60_000
PAGE_ENTRIES = 256
PAGES_MAX = 16  # of one MOVE or PUBLISH
DRAIN_S = 0.001
DRAIN_S_MAX = 3.0


def staged_prefix(number):
    return STAGED + number.to_bytes(8, "big")


# --- freezing -------------------------------------------------------------------------------------------------------


@serves(FREEZE)
async def freeze_names(server, request):
    number, flags, length = request.fields
    return (await freeze_here(server, number, flags, request.tail[:length], request.tail[length:], request.conn),), b""


async def freeze_here(server, number, flags, old, new, conn=None):
    """Freeze two names; -> whether something is below the new one.  Raises OSError EIO when what is under way there
    cannot end, ENOSPC."""
    freeze = server.freezes.known(number)
    if freeze is None:
        if conn is not None and conn not in server.conns:
            raise fail(errno.EIO)  # the coordinator died since it asked
        server.chunks.check_room()
        freeze = Freeze(number, flags, old, new)
        server.freezes.add(freeze)
        server.kv.put(frozen_key(number), freeze.record())
        server.commit()
    freeze.conn, freeze.cursors = conn, {}
    deadline = server.loop.time() + DRAIN_S_MAX
    while _under_way(server, freeze):
        if server.loop.time() > deadline:  # it waits for a server that does not answer
            raise fail(errno.EIO)
        await server.times.hand_over(freeze.concerns)
        await asyncio.sleep(DRAIN_S)
    server.dirs.forget_below(old, new)
    server.dirs.unheld_below(old, new)
    server.commit()
    return any(server.kv.scan(prefix, b"", 1) for prefix in prefixes(new))


def _under_way(server, freeze):
    """Whether something that began before the freeze still works on a name below.  Raises OSError EIO."""
    for key, stuck in server.dirs.held_keys():
        if key not in freeze.held and freeze.concerns(path_of(key)):
            if stuck:
                raise fail(errno.EIO)
            return True
    return any(freeze.concerns(directory) for directory in server.directories_touched())


def prefixes(directory):
    """Of the keys of all entries below ``directory``."""
    return b"E%b\0" % directory, b"E%b/" % directory


@serves(WHERE)
def where(server, request):
    path = server.kv.get(location_key(request.fields.ino))
    if path is None:
        raise fail(errno.ENOENT)
    return (), path


@serves(TREE)
def tree(server, request):
    return STEPS[request.fields.step](server, request.fields, request.tail)


# --- the two names themselves ---------------------------------------------------------------------------------------


RESERVE, CROSSING = 1, 2  # bits of ``links`` in LOOK


def look(server, fields, tail):
    """What is at a path, its value in the tail; the result is the errno of a user who may not change the name.

    Raises what the way there says: OSError, Restart, Wait.  RESERVE: the name is reserved for the rename; CROSSING: it
    changes its directory.  Tail: path, then supplementary groups, 4 bytes each.
    """
    path, groups = tail[:fields.length], tail[fields.length:]
    who = Who(fields.uid, fields.gid, 0, frozenset(struct.unpack(f"<{len(groups) // 4}I", groups)))
    key = entry_key(path)
    freeze = server.freezes.known(fields.id)
    if freeze is None or key not in freeze.held:
        server.dirs.free(key)
    value = server.kv.get(key)
    server.dirs.parent(path, who, SEARCH)
    denied = 0
    try:
        if value is None:
            check_new_path(path)
        directory = server.dirs.parent(path, who, WRITE | SEARCH)
        if value is not None:
            sticky(server, directory, who, path, value)
            if fields.links & CROSSING and is_directory(value):  # its ".." changes, which needs permission on itself
                check_access(ATTR.unpack(value), who, WRITE)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM):
            raise
        denied = error.errno
    if fields.links & RESERVE:
        server.freezes.get(fields.id).reserved = True
    return (denied,), value or b""


async def take(server, fields, path):
    """The entry that moves, as its new place shall have it; it does not change any more."""
    freeze = server.freezes.get(fields.id)
    server.commit()
    value = hold(server, freeze, entry_key(path))
    if value is None:
        return (0,), b""
    if is_directory(value):
        if has_xattrs(value):
            await _send_xattrs(server, freeze, value, freeze.other(path))
        return (0,), changed(value, ctime_ns=fields.now)
    if is_pointer(value):
        await stamp(server, ino_of(value))
    else:
        ino = ino_of(value)
        server.kv.put(inode_key(ino), changed(value, ctime_ns=fields.now))
        value = pointer(ino, mode_of(value)) + target_of(value)
        server.kv.put(entry_key(path), value)
    return (0,), value


def put(server, fields, tail):
    """Put a value at one of the two names."""
    freeze = server.freezes.get(fields.id)
    path, value = tail[:fields.length], tail[fields.length:]
    existing, debt = server.kv.get(entry_key(path)), None
    if existing is not None and fields.links and ino_of(existing) != ino_of(value):
        kept = xattrs.forget(server, existing)  # the empty directory that was replaced
        debt = forget_location(server, ino_of(existing), fields.now)
        server.dirs.remember(ino_of(existing), changed(existing, nlink=0, ctime_ns=fields.now) + kept)
    elif existing is not None and ino_of(existing) != ino_of(value):
        _leave(server, existing, freeze.other(path))
    server.kv.put(entry_key(path), value)
    server.commit()
    if debt is not None:
        counts.later(server, debt)
    return (0,), b""


def remove(server, fields, path):
    freeze = server.freezes.get(fields.id)
    value = server.kv.get(entry_key(path))
    if value is not None:
        _leave(server, value, freeze.other(path))
        server.kv.delete(entry_key(path))
    return (0,), b""


def above(server, fields, path):
    """Times and links of a parent; ``length`` is the bit that says that it was done."""
    freeze = server.freezes.get(fields.id)
    value = server.kv.get(entry_key(path))
    if value is None or freeze.done & fields.length:
        return (0,), b""
    attr = ATTR.unpack(value)
    server.kv.put(entry_key(path), changed(value, nlink=max(2, attr.nlink + fields.links),
                                           mtime_ns=max(fields.now, attr.mtime_ns),
                                           ctime_ns=max(fields.now, attr.ctime_ns)))
    freeze.done |= fields.length
    server.kv.put(frozen_key(freeze.number), freeze.record())
    return (0,), b""


# --- what is below them ---------------------------------------------------------------------------------------------


async def move(server, fields, _):
    """Send some entries to their new places; the result is whether there may be more.

    A coordinator that has lost its connection, or its life, asks again while this is under way: then the second waits
    for the first, which would otherwise deliver what it has in hand late, and delete what has come to old places.
    """
    freeze = server.freezes.get(fields.id)
    async with freeze.alone:
        if freeze.published or server.freezes.known(fields.id) is not freeze:
            return (0,), b""
        server.commit(lazily=True)
        for source, target in freeze.ways():
            for prefix in prefixes(source):
                if await _move_range(server, freeze, prefix, source, target):
                    return (1,), b""
    return (0,), b""


async def _move_range(server, freeze, prefix, source, target):
    """Move up to PAGES_MAX pages; -> whether entries may be left."""
    for _ in range(PAGES_MAX):
        after = freeze.cursors.get(prefix, b"")
        server.commit()
        page = server.kv.scan(prefix, after, PAGE_ENTRIES)
        if not page:
            if not after:
                return False
            freeze.cursors[prefix] = b""  # once more from the start: some may have changed under way
            continue
        await _send(server, freeze, page, source, target)
        _drop_sent(server, page, source, target)
        freeze.cursors[prefix] = page[-1][0][len(prefix):]
        server.commit()
        await asyncio.sleep(0)
    return True


async def _send(server, freeze, page, source, target):
    batches = {}
    for key, value in page:
        path = target + path_of(key)[len(source):]
        ino = ino_of(value)
        if is_directory(value):
            _add(batches, home(ino), LOCATION, ino, path, b"")
        elif not is_pointer(value):
            value = pointer(ino, mode_of(value)) + target_of(value)
        _add(batches, owner(path, server.servers), ENTRY, ino, path, value)
    for tail in batches.pop(server.number, ()):
        place_here(server, freeze, tail)
    await gather([server.call_peer(number, PLACE, bytes(tail), freeze.number)
                  for number, tails in batches.items() for tail in tails])
    for key, value in page:
        if is_directory(value) and has_xattrs(value):
            await _send_xattrs(server, freeze, value, target + path_of(key)[len(source):])


async def _send_xattrs(server, freeze, value, path):
    """Extended attributes of a directory go where its inode goes; those of a file stay at its home."""
    number, ino = owner(path, server.servers), ino_of(value)
    if number == server.number:
        return
    kind = XATTR
    for name, content in xattrs.unpack(server.kv.get(xattrs_key(ino)) or b"").items():
        await server.call_peer(number, PLACE, PLACED.pack(kind, ino, len(name), len(content)) + name + content,
                               freeze.number)
        kind = NEXT_XATTR


def _leave(server, value, path):
    """The entry ``value`` is now at ``path``: what is no longer for this server goes with this batch."""
    if is_directory(value) and owner(path, server.servers) != server.number:
        xattrs.forget(server, value)


def _add(batches, number, kind, ino, path, value):
    tails = batches.setdefault(number, [bytearray()])
    if len(tails[-1]) + PLACED.size + len(path) + len(value) > PLACE_BYTES_MAX:
        tails.append(bytearray())
    tails[-1] += PLACED.pack(kind, ino, len(path), len(value)) + path + value


def _drop_sent(server, page, source, target):
    """Delete entries that are in their new places; one whose inode changed meanwhile stays to be sent again."""
    for key, value in page:
        current = server.kv.get(key)
        if current is None:
            continue
        if is_directory(current):
            if current != value:
                continue
            _leave(server, value, target + path_of(key)[len(source):])
        elif not is_pointer(current):
            server.kv.put(inode_key(ino_of(current)), current)
        server.kv.delete(key)


@serves(PLACE)
def place(server, request):
    place_here(server, server.freezes.get(request.fields.id), request.tail)
    return (), b""


def place_here(server, freeze, tail):
    """Entries, and where directories that were born here are."""
    prefix = staged_prefix(freeze.number) if freeze.flags & EXCHANGE else b""
    at = 0
    while at < len(tail):
        kind, ino, path_length, length = PLACED.unpack(tail, at)
        at += PLACED.size
        path = bytes(tail[at:at + path_length])
        at += path_length
        if kind == LOCATION:
            server.kv.put(location_key(ino), path)
        elif kind in (XATTR, NEXT_XATTR):
            found = xattrs.unpack(server.kv.get(xattrs_key(ino)) or b"") if kind == NEXT_XATTR else {}
            found[path] = bytes(tail[at:at + length])
            server.kv.put(xattrs_key(ino), xattrs.pack(found))
        else:
            server.kv.put(prefix + entry_key(path), bytes(tail[at:at + length]))
        at += length


async def publish(server, fields, _):
    """Give some staged entries their names; the result is whether there may be more."""
    freeze = server.freezes.get(fields.id)
    prefix = staged_prefix(freeze.number)
    async with freeze.alone:
        freeze.published = True
    for _ in range(PAGES_MAX):
        server.commit()
        page = server.kv.scan(prefix, freeze.cursors.get(prefix, b""), PAGE_ENTRIES)
        for key, value in page:
            server.kv.put(key[len(prefix):], value)
            server.kv.delete(key)
        server.commit()
        if len(page) < PAGE_ENTRIES:
            return (0,), b""
        freeze.cursors[prefix] = page[-1][0][len(prefix):]
        await asyncio.sleep(0)
    return (1,), b""


# --- the end --------------------------------------------------------------------------------------------------------


def stick(server, fields, _):
    freeze = server.freezes.known(fields.id)
    if freeze is not None:
        server.freezes.stick(freeze)
    return (0,), b""


def thaw(server, fields, _):
    freeze = server.freezes.known(fields.id)
    if freeze is not None:
        server.freezes.thaw(freeze)
    return (0,), b""


def known(server, fields, _):
    """Asked of the coordinator: whether the rename is under way."""
    return (fields.id in server.subtrees.active,), b""


STEPS = {LOOK: look, MOVE: move, PUBLISH: publish, TAKE: take, PUT: put, REMOVE: remove, PARENT: above, STUCK: stick,
         THAW: thaw, KNOWN: known}


async def patiently(step, *arguments):
    """What a handler returns, run again after each Wait as Server does for requests."""
    while True:
        try:
            result = step(*arguments)
            return await result if asyncio.iscoroutine(result) else result
        except Wait as wait:
            await wait.make()
