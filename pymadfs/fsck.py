# SPDX-License-Identifier: Apache-2.0
"""``madfs fsck``: whether what all servers have in their stores makes one file system, and how to mend what does not.

Every server tells its keys (INVENTORY); they are put together here, some 500 bytes of memory for each name.  The
servers may be at work meanwhile: only what is wrong in the same way in several looks counts.
"""
import stat
import time
from collections import Counter, defaultdict, namedtuple

from . import ops
from .layout import chunk_server, home, owner, parent
from .ops import (
    ATTR,
    FLAG_REMOTE,
    INVENTORY,
    ITEM,
    ITEM_DAMAGED,
    ITEM_FILE,
    ITEM_LOST,
    ITEM_OPEN,
    MEND,
    ROOT_INO,
)
from .server.meta import KINDS, chunk_of, key_number, path_of  # type: ignore[import-not-found]  # of server/

CLEAN, MENDED, WRONG, TROUBLE = 0, 1, 4, 8
"""Exit statuses, those of fsck(8)."""

LOOKS = 3
LOOKS_BUSY = 8  # while programs change things, what is seen half done may look wrong several times
REPAIRS_MAX = 6  # what one brings to light, the next mends
PAUSE_S = 0.3
PATIENCE_S = 5.0  # for a rename or link count that waits for nobody but servers that answer
UNDER_WAY = {b"P": "removal", b"R": "rename", b"N": "link count", b"T": "rename of a directory"}
SOON = b"R", b"N"  # which of them end at once

Problem = namedtuple("Problem", "kind path ino number server text")
"""One thing that is wrong: ``kind`` is the MEND action, ``number`` what that takes, ``server`` who has to mend it."""

Entry = namedtuple("Entry", "ino mode remote nlink server")
Inode = namedtuple("Inode", "mode nlink open server path")
Misplaced = namedtuple("Misplaced", "path value server")


class Census:
    """What the servers have.

    ``entries``: path -> Entry; ``inodes``: number -> Inode, ``path`` being that of the entry which embeds it or None;
    ``names``: inode number -> its paths; ``stored``: (inode, chunk, server, kind of key); ``lost``: as that, of chunks
    whose file is missing; ``attributes``: (inode, server) of extended ones; ``waiting``: how much of what is under way,
    ``soon``: that which should not be for long, (server, key);
    ``elsewhere``: inodes within names on a wrong server.
    """

    def __init__(self, servers):
        self.servers = servers
        self.entries, self.inodes, self.names = {}, {}, defaultdict(list)
        self.stored, self.waiting, self.purged = [], Counter(), set()
        self.double, self.damaged, self.misplaced, self.lost = [], [], [], []
        self.attributes, self.soon, self.elsewhere = [], set(), set()

    def add(self, server, key, value, flags):
        kind = key[:1]
        if flags & ITEM_DAMAGED:
            self.damaged.append((server, key))
        elif kind == b"E":
            self._entry(server, path_of(key), value, flags)
        elif kind == b"I":
            attr = ATTR.unpack(value)
            self._inode(attr.ino, Inode(attr.mode, attr.nlink, bool(flags & ITEM_OPEN), server, None))
        elif kind == b"D":
            self.stored.append((key_number(key), 0, server, kind))
        elif kind in (b"C", ITEM_FILE):
            item = key_number(key[:-8]), chunk_of(key), server, kind
            (self.lost if flags & ITEM_LOST else self.stored).append(item)
        elif key[:2] == b"AX":
            self.attributes.append((key_number(key), server))
        elif kind in UNDER_WAY:
            self.waiting[UNDER_WAY[kind]] += 1
            if kind == b"P":
                self.purged.add(key_number(key))
            elif kind in SOON:
                self.soon.add((server, key))

    def _entry(self, server, path, value, flags):
        attr = ATTR.unpack(value)
        remote = bool(attr.flags & FLAG_REMOTE)
        if owner(path, self.servers) != server:
            self.misplaced.append(Misplaced(path, bytes(value), server))
            if not remote:
                self.elsewhere.add(attr.ino)
            return
        self.entries[path] = Entry(attr.ino, attr.mode, remote, attr.nlink, server)
        self.names[attr.ino].append(path)
        if not remote:
            self._inode(attr.ino, Inode(attr.mode, attr.nlink, bool(flags & ITEM_OPEN), server, path))

    def _inode(self, ino, inode):
        if ino in self.inodes:
            self.double.append((ino, inode, self.inodes[ino]))
        self.inodes[ino] = inode


def take(client, report=lambda text: None):
    """The Census of all servers of ``client`` (rpc.Client); ``report(text)`` is told how far it is.  Raises OSError."""
    census = Census(client.servers)
    keys, told = 0, time.monotonic()
    for server in range(client.servers):
        cursor = b""
        while True:
            reply, tail = client.call(server, INVENTORY, cursor)
            cursor, at = tail[:reply.cursor], reply.cursor
            while at < len(tail):
                key_size, value_size, flags = ITEM.unpack(tail, at)
                at += ITEM.size
                census.add(server, tail[at:at + key_size], tail[at + key_size:at + key_size + value_size], flags)
                at += key_size + value_size
                keys += 1
            if time.monotonic() - told > 1:
                told = time.monotonic()
                report(f"{keys:,} keys, server {server + 1} of {client.servers}")
            if not cursor:
                break
    return census


def problems(census):
    """The set of what is wrong, as Problems."""
    return {*_records(census), *_misplaced(census), *_names(census), *_inodes(census), *_data(census)}


def _shown(path):
    return path.decode(errors="surrogateescape")


def _records(census):
    """Each record can be one of its kind."""
    for server, key in census.damaged:
        what = _shown(path_of(key)) if key[:1] == b"E" else f"inode {key_number(key):x}" if key[:1] == b"I" \
            else f"{KINDS[key[:1]]} ({key[:2].decode(errors='replace')} {key[-8:].hex()})"
        yield Problem(ops.MEND_RECORD, key, 0, 0, server, f"the record of {what} on server {server} is damaged")


def _misplaced(census):
    """Each name is where it belongs."""
    for path, value, server in census.misplaced:
        right = owner(path, census.servers)
        yield Problem(ops.MEND_MISPLACED, path + value, ATTR.unpack(value).ino, len(path), server,
                      f"{_shown(path)} is on server {server} instead of server {right}")


def _names(census):
    """Each name has a directory above it and means something."""
    children: Counter = Counter()
    for path, entry in census.entries.items():
        if path == b"/":
            continue
        above = parent(path)
        if stat.S_ISDIR(entry.mode):
            children[above] += 1
        found = census.entries.get(above)
        if found is None:
            yield Problem(ops.MEND_PARENT, above, 0, 0, owner(above, census.servers),
                          f"the directory {_shown(above)} does not exist, and there are names in it")
        elif not stat.S_ISDIR(found.mode):
            yield Problem(None, above, found.ino, 0, found.server, f"{_shown(above)} is not a directory, and there are "
                          "names in it")
        if entry.remote and entry.ino in census.elsewhere:
            continue
        if entry.remote and entry.ino not in census.inodes:
            yield Problem(ops.MEND_ENTRY, path, entry.ino, 0, entry.server,
                          f"{_shown(path)} is a name of inode {entry.ino:x}, which does not exist")
        elif entry.remote and stat.S_ISDIR(census.inodes[entry.ino].mode):
            yield Problem(ops.MEND_ENTRY, path, entry.ino, 0, entry.server,
                          f"{_shown(path)} is a further name of the directory {_shown(census.inodes[entry.ino].path)}")
    for path, entry in census.entries.items():
        if stat.S_ISDIR(entry.mode) and entry.nlink != 2 + children[path]:
            yield Problem(ops.MEND_DIRECTORY, path, entry.ino, 2 + children[path], entry.server,
                          f"{_shown(path)} has {children[path]} directories in it and a link count of {entry.nlink}")
    if b"/" not in census.entries:
        yield Problem(ops.MEND_PARENT, b"/", 0, 0, owner(b"/", census.servers), "there is no root directory")


def _inodes(census):
    """Each inode is there once and has the names that it counts."""
    twice = {ino for ino, _, _ in census.double} | census.elsewhere
    for ino, inode in census.inodes.items():
        names = len(census.names.get(ino, ()))
        if ino in twice:
            continue  # first things first
        if inode.path is not None:
            if names > 1 and not stat.S_ISDIR(inode.mode):
                yield Problem(ops.MEND_DETACH, inode.path, ino, names, inode.server, f"{_shown(inode.path)} has the "
                              f"inode {ino:x} within, which has {names} names")
            continue
        if not names:
            if not inode.open and ino not in census.purged:
                yield Problem(ops.MEND_ORPHAN, b"", ino, 0, inode.server, f"inode {ino:x} has no name, and nobody has "
                              "it open")
        elif names != inode.nlink:
            yield Problem(ops.MEND_LINKS, b"", ino, names, inode.server, f"inode {ino:x} has {names} names and a link "
                          f"count of {inode.nlink}: {', '.join(map(_shown, sorted(census.names[ino])[:3]))}")
        if home(ino) != inode.server and ino != ROOT_INO:
            yield Problem(None, b"", ino, 0, inode.server,
                          f"inode {ino:x} is on server {inode.server}, and was born on server {home(ino)}")
    for ino, one, other in census.double:
        yield _double(ino, one, other)


def _double(ino, one, other):
    """Two records of one inode: the one that is put right."""
    text = f"inode {ino:x} exists twice, on servers {one.server} and {other.server}"
    named = [inode for inode in (one, other) if inode.path is not None]
    if not named:
        wrong = one if one.server != home(ino) else other
        return Problem(ops.MEND_INODE, b"", ino, 0, wrong.server, text)
    if all(stat.S_ISDIR(inode.mode) for inode in (one, other)):
        last = max(named, key=lambda inode: inode.path)
        return Problem(ops.MEND_TWIN, last.path, ino, 0, last.server, text)
    wrong = min(named, key=lambda inode: (inode.server == home(ino), stat.S_ISDIR(inode.mode), inode.path))
    return Problem(ops.MEND_TWIN if stat.S_ISDIR(wrong.mode) else ops.MEND_DETACH, wrong.path, ino, 0, wrong.server,
                   text)


def _data(census):
    """Each stored chunk belongs to an inode and has its key and its file; attributes belong to an inode, too."""
    known = census.inodes.keys() | census.elsewhere
    for ino, chunk, server, _ in census.lost:
        if ino in known:
            yield Problem(ops.MEND_CHUNK, b"", ino, chunk, server, f"chunk {chunk} of inode {ino:x} on server {server} "
                          "has lost its file: its bytes are gone")
        elif ino not in census.purged:
            yield Problem(ops.MEND_CHUNK, b"", ino, chunk, server,
                          f"chunk {chunk} of inode {ino:x} on server {server} belongs to no file")
    for ino, server in census.attributes:
        if ino not in known and ino not in census.purged:
            yield Problem(ops.MEND_XATTRS, b"", ino, 0, server, f"extended attributes on server {server} belong to "
                          f"inode {ino:x}, which does not exist")
    keyed = {(ino, chunk, server) for ino, chunk, server, kind in census.stored if kind != ITEM_FILE}
    for ino, chunk, server, kind in census.stored:
        what = f"chunk {chunk} of inode {ino:x} on server {server}"
        if ino not in known:
            if ino not in census.purged:
                yield Problem(ops.MEND_DATA, b"", ino, chunk, server, f"{what} belongs to no file")
        elif chunk_server(ino, chunk, census.servers) != server:
            yield Problem(None, b"", ino, chunk, server, f"{what} should be on server "
                          f"{chunk_server(ino, chunk, census.servers)}")
        elif kind == ITEM_FILE and (ino, chunk, server) not in keyed:
            yield Problem(ops.MEND_DATA, b"", ino, chunk, server, f"{what} was never acknowledged")


def check(client, report=lambda text: None, looks=LOOKS):
    """``(Census, list of Problems)`` after several looks.  Raises OSError."""
    wrong, soon = None, None
    until = time.monotonic() + PATIENCE_S
    while True:
        census = take(client, report)
        found = problems(census)
        wrong = found if wrong is None else wrong & found
        soon = census.soon if soon is None else soon & census.soon
        looks -= 1
        if not wrong and not soon or looks <= 0 and (not soon or time.monotonic() > until):
            break
        time.sleep(PAUSE_S * (0.5 + looks % 3 * 0.5))  # not in step with what programs do
    stuck = [Problem(None, key, 0, 0, server, f"a {UNDER_WAY[key[:1]]} ({key_number(key):x}) of server {server} does "
                     "not come to its end; start that server anew") for server, key in soon]
    return census, sorted([*wrong, *stuck], key=lambda problem: (problem.text, problem.server))


def mend(client, wrong):
    """Put right what can be; returns the texts of what was.  Names that are in wrong places come first, then parents:
    what is below them counts."""
    first = ops.MEND_MISPLACED, ops.MEND_PARENT
    done = []
    for problem in sorted(wrong, key=lambda each: first.index(each.kind) if each.kind in first else len(first)):
        if problem.kind is not None and _mended(client, problem):
            done.append(problem.text)
    return done


def _mended(client, problem):
    server, tail = problem.server, problem.path
    if problem.kind == ops.MEND_MISPLACED:
        tail = problem.path[:problem.number]
        client.call(owner(tail, client.servers), MEND, problem.path, ops.MEND_PLACE, problem.ino, problem.number)
    return client.call(server, MEND, tail, problem.kind, problem.ino, problem.number)[0].done
