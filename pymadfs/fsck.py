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
from .ops import ATTR, FLAG_REMOTE, INVENTORY, ITEM, ITEM_FILE, ITEM_OPEN, MEND, ROOT_INO
from .server.meta import chunk_of, is_whole, key_number, path_of  # type: ignore[import-not-found]  # of server/

CLEAN, MENDED, WRONG, TROUBLE = 0, 1, 4, 8
"""Exit statuses, those of fsck(8)."""

LOOKS = 3
PAUSE_S = 0.3
UNDER_WAY = {b"P": "removal", b"R": "rename", b"N": "link count", b"T": "rename of a directory"}

Problem = namedtuple("Problem", "kind path ino number server text")
"""One thing that is wrong: ``kind`` is the MEND action, ``number`` what that takes, ``server`` who has to mend it."""

Entry = namedtuple("Entry", "ino mode remote nlink server")
Inode = namedtuple("Inode", "mode nlink open server path")


class Census:
    """What the servers have.

    ``entries``: path -> Entry; ``inodes``: number -> Inode, ``path`` being that of the entry which embeds it or None;
    ``names``: inode number -> its paths; ``stored``: (inode, chunk, server, kind of key); ``waiting``: how much of what
    is under way.
    """

    def __init__(self, servers):
        self.servers = servers
        self.entries, self.inodes, self.names = {}, {}, defaultdict(list)
        self.stored, self.waiting, self.purged = [], Counter(), set()
        self.double, self.damaged = [], []

    def add(self, server, key, value, flags):
        kind = key[:1]
        if kind in (b"E", b"I") and not is_whole(value, self.servers):
            self.damaged.append((server, key))
        elif kind == b"E":
            attr, path = ATTR.unpack(value), path_of(key)
            remote = bool(attr.flags & FLAG_REMOTE)
            self.entries[path] = Entry(attr.ino, attr.mode, remote, attr.nlink, server)
            self.names[attr.ino].append(path)
            if not remote:
                self._inode(attr.ino, Inode(attr.mode, attr.nlink, bool(flags & ITEM_OPEN), server, path))
        elif kind == b"I":
            attr = ATTR.unpack(value)
            self._inode(attr.ino, Inode(attr.mode, attr.nlink, bool(flags & ITEM_OPEN), server, None))
        elif kind == b"D":
            self.stored.append((key_number(key), 0, server, kind))
        elif kind in (b"C", ITEM_FILE):
            self.stored.append((key_number(key[:-8]), chunk_of(key), server, kind))
        elif kind in UNDER_WAY:
            self.waiting[UNDER_WAY[kind]] += 1
            if kind == b"P":
                self.purged.add(key_number(key))

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
    return {*_records(census), *_names(census), *_inodes(census), *_data(census)}


def _shown(path):
    return path.decode(errors="surrogateescape")


def _records(census):
    """Each record of a name or inode can be one."""
    for server, key in census.damaged:
        what = _shown(path_of(key)) if key[:1] == b"E" else f"inode {key_number(key):x}"
        yield Problem(ops.MEND_RECORD, key, 0, 0, server, f"the record of {what} on server {server} is damaged")


def _names(census):
    """Each name has a directory above it, is where it belongs, and means something."""
    children: Counter = Counter()
    for path, entry in census.entries.items():
        if owner(path, census.servers) != entry.server:
            yield Problem(None, path, entry.ino, 0, entry.server, f"{_shown(path)} is on server {entry.server} instead "
                          f"of server {owner(path, census.servers)}")
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
        if entry.remote and entry.ino not in census.inodes:
            yield Problem(ops.MEND_ENTRY, path, entry.ino, 0, entry.server,
                          f"{_shown(path)} is a name of inode {entry.ino:x}, which does not exist")
    for path, entry in census.entries.items():
        if stat.S_ISDIR(entry.mode) and entry.nlink != 2 + children[path]:
            yield Problem(ops.MEND_DIRECTORY, path, entry.ino, 2 + children[path], entry.server,
                          f"{_shown(path)} has {children[path]} directories in it and a link count of {entry.nlink}")
    if b"/" not in census.entries:
        yield Problem(ops.MEND_PARENT, b"/", 0, 0, owner(b"/", census.servers), "there is no root directory")


def _inodes(census):
    """Each inode has the names that it counts."""
    for ino, inode in census.inodes.items():
        names = len(census.names.get(ino, ()))
        if inode.path is not None:
            if names > 1:
                yield Problem(None, inode.path, ino, names, inode.server, f"{_shown(inode.path)} has the inode {ino:x} "
                              f"within, which has {names} names")
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
        yield Problem(None, b"", ino, 0, one.server, f"inode {ino:x} exists twice, on servers {one.server} and "
                      f"{other.server}")


def _data(census):
    """Each stored chunk belongs to an inode and has its key."""
    keyed = {(ino, chunk, server) for ino, chunk, server, kind in census.stored if kind != ITEM_FILE}
    for ino, chunk, server, kind in census.stored:
        what = f"chunk {chunk} of inode {ino:x} on server {server}"
        if ino not in census.inodes:
            if ino not in census.purged:
                yield Problem(ops.MEND_DATA, b"", ino, chunk, server, f"{what} belongs to no file")
        elif chunk_server(ino, chunk, census.servers) != server:
            yield Problem(None, b"", ino, chunk, server, f"{what} should be on server "
                          f"{chunk_server(ino, chunk, census.servers)}")
        elif kind == ITEM_FILE and (ino, chunk, server) not in keyed:
            yield Problem(ops.MEND_DATA, b"", ino, chunk, server, f"{what} was never acknowledged")


def check(client, report=lambda text: None):
    """``(Census, list of Problems)`` after several looks.  Raises OSError."""
    wrong: set = set()
    for look in range(LOOKS):
        if look:
            time.sleep(PAUSE_S)
        census = take(client, report)
        wrong = wrong & problems(census) if look else problems(census)
        if not wrong and not census.waiting:
            break
    return census, sorted(wrong, key=lambda problem: (problem.text, problem.server))


def mend(client, wrong):
    """Put right what can be; returns the texts of what was.  Parents come first: what is below them counts."""
    done = []
    for problem in sorted(wrong, key=lambda problem: problem.kind != ops.MEND_PARENT):
        if problem.kind is None:
            continue
        reply, _ = client.call(problem.server, MEND, problem.path, problem.kind, problem.ino, problem.number)
        if reply.done:
            done.append(problem.text)
    return done
