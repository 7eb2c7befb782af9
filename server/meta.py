# SPDX-License-Identifier: Apache-2.0
"""Names and inodes over a key-value store: keys, records, permissions, times.  Synchronous, and knows no event loop.

Keys (all integers big-endian, so that ranges come in order)::

    E parent \\0 order name
                          entry: ATTR, then the target of a symbolic link.  `order` is 4 bytes, the upper half of the
                          name's place in listings.  The root has an empty name.
    I ino                 detached inode: ATTR, then the target of a symbolic link
    D ino                 bytes of a small file (chunk 0)
    C ino chunk           this chunk has a chunk file here
    P ino                 PURGE: removal of this inode that must still happen
    R id                  INTENT, old path, new path, target: a rename whose second half may be missing
    X server id           this rename of `server` was installed, or this debt of it was counted here
    N id                  DEBT, path: a link count elsewhere that must still change (counts.py)
    AX ino                extended attributes of an inode that lives here: xattrs.py
    TI id                 a rename of a directory that this server coordinates (subtree.py)
    TF id                 names that are frozen here for such a rename (frozen.py)
    SE id key             an entry that waits for its place during an exchange (relocate.py)
    SL ino                path of a directory that was born here and has moved
    M name                format, number, servers, counter, boots, idle, times

An inode is embedded in the entry at its birth path while that is its only name.  A rename, a further name, or an unlink
while it is open detaches it to I; entries then only point (FLAG_REMOTE) and have a type, an inode number and a target.
"""
import errno
import os
import stat
import struct
import time
from zlib import crc32

from pymadfs.errors import fail
from pymadfs.identity import allowed
from pymadfs.layout import join, owner
from pymadfs.ops import ATTR, FLAG_BEYOND, FLAG_REMOTE, FLAG_XATTRS, INO_HOME_SHIFT, ROOT_INO, Record

FORMAT = 3
COUNTER_BLOCK = 4096
ORDER_BYTES = 4
NAME_BYTES_MAX = 255
PATH_BYTES_MAX = 8191
TARGET_BYTES_MAX = 4095
SIZE_MAX = (1 << 63) - 1
O_NOATIME = getattr(os, "O_NOATIME", 0o1000000)
BLOCK = 512
PAGE_SHIFT, PAGE_BLOCKS = 12, 8  # what is stored is counted in pages, as local file systems do
CLOCK_REALTIME_COARSE = 5  # of Linux's time.h; the time module has no name for it

PURGES, INTENTS, APPLIED, DEBTS, LOCATIONS = b"P", b"R", b"X", b"N", b"SL"
IDLE = b"Midle"

# What the records are whose keys begin so.
KINDS = {b"E": "a name", b"I": "an inode", b"P": "a removal", b"R": "a rename", b"N": "a link count", b"D": "data",
         b"X": "what is done", b"T": "a rename of a directory", b"S": "a directory that moved", b"C": "a chunk",
         b"A": "an attribute or lock"}

PURGE = Record("Purge", "size:Q chunk_size:I")
INTENT = Record("Intent", f"flags:I old:H new:H uid:I gid:I groups:H attr:{ATTR.size}s")
NUMBER = Record("Number", "value:Q")
DEBT = Record("Debt", "ino:Q change:i now_ns:q")

_INO = struct.Struct(">Q")
_CHUNK = struct.Struct(">QQ")
_SERVER = struct.Struct(">IQ")
_TIMES = struct.Struct("<qq")
_SIZES = struct.Struct("<QQ")
_WIRE_INO = struct.Struct("<Q")
_CUTS = struct.Struct("<I")
# Where hot fields lie within ATTR, for changes that need not unpack it.
AT_SIZE, AT_ATIME, AT_MTIME, AT_CTIME, AT_MODE, AT_FLAGS, AT_CUTS = 8, 24, 32, 40, 48, 72, 76
assert ATTR.unpack(bytes(range(ATTR.size))).mtime_ns == int.from_bytes(bytes(range(AT_MTIME, AT_MTIME + 8)), "little")
assert ATTR.unpack(bytes(range(ATTR.size))).mode == int.from_bytes(bytes(range(AT_MODE, AT_MODE + 4)), "little")
assert ATTR.unpack(bytes(range(ATTR.size))).flags == int.from_bytes(bytes(range(AT_FLAGS, AT_FLAGS + 4)), "little")


class StoreError(Exception):
    """The store cannot be used by this server; the message says why and what to do, in one line."""


# --- keys -----------------------------------------------------------------------------------------------------------


def entry_key(path):
    """Key of the entry of ``path`` (absolute, bytes); ValueError when it has no slash."""
    cut = path.rindex(b"/")
    name = path[cut + 1:]
    return b"E%b\0%b%b" % (path[:cut] or b"/", crc32(name).to_bytes(4, "big"), name)  # layout.order_key, spelled out


def path_of(key):
    """The path of an entry key; empty for another key."""
    if key[:1] != b"E":
        return b""
    directory, _, name = key[1:].partition(b"\0")
    return join(directory, name[ORDER_BYTES:])


def entries_prefix(directory):
    return b"E%b\0" % directory


def inode_key(ino):
    return b"I" + _INO.pack(ino)


def data_key(ino):
    return b"D" + _INO.pack(ino)


def chunk_key(ino, chunk):
    return b"C" + _CHUNK.pack(ino, chunk)


def chunks_prefix(ino):
    return b"C" + _INO.pack(ino)


def chunk_of(key):
    """Chunk number in a chunk key."""
    return _CHUNK.unpack_from(key, 1)[1]


def xattrs_key(ino):
    return b"AX" + _INO.pack(ino)


def purge_key(ino):
    return b"P" + _INO.pack(ino)


def intent_key(number):
    return b"R" + _INO.pack(number)


def applied_key(server, number):
    return b"X" + _SERVER.pack(server, number)


def debt_key(number):
    return b"N" + _INO.pack(number)


def location_key(ino):
    return LOCATIONS + _INO.pack(ino)


def is_whole(value, servers):
    """Whether the record of an entry or inode can be one: its size, type, inode number and place."""
    if len(value) < ATTR.size or mode_of(value) >> 12 not in (1, 2, 4, 6, 8, 10, 12):
        return False
    ino = ino_of(value)
    return ino > 0 and ino >> INO_HOME_SHIFT < servers


def key_number(key):
    """The integer that ends a P, R, X, N or T key."""
    return _INO.unpack_from(key, len(key) - 8)[0]


def applied_server(key):
    return _SERVER.unpack_from(key, 1)[0]


# --- records --------------------------------------------------------------------------------------------------------


def ino_of(value):
    return _WIRE_INO.unpack_from(value)[0]


def mode_of(value):
    return value[48] | value[49] << 8


def is_pointer(value):
    return value[AT_FLAGS] & FLAG_REMOTE


def is_directory(value):
    return value[49] & 0xF0 == 0x40


def is_file(value):
    return value[49] & 0xF0 == 0x80


def is_symlink(value):
    return value[49] & 0xF0 == 0xA0


def is_special(value):
    """A FIFO, device node or socket."""
    return value[49] & 0xF0 not in (0x80, 0x40, 0xA0)


def target_of(value):
    return value[ATTR.size:]


def has_xattrs(value):
    return value[AT_FLAGS] & FLAG_XATTRS


def new_attr(ino, mode, uid, gid, now, *, nlink=1, size=0, chunk_size=0, rdev=0):
    return ATTR.pack(ino, size, 0, now, now, now, mode, nlink, uid, gid, rdev, chunk_size, 0, 0, now)


def pointer(ino, mode):
    """The attributes of an entry whose inode lives elsewhere: only the type of it is told."""
    return ATTR.pack(ino, 0, 0, 0, 0, 0, stat.S_IFMT(mode), 0, 0, 0, 0, 0, FLAG_REMOTE, 0, 0)


def now_ns():
    """The clock of times in inodes: as coarse as the kernel's own file systems use, so that many changes share one."""
    return time.clock_gettime_ns(CLOCK_REALTIME_COARSE)


def has_times(value, now):
    return value[AT_MTIME:AT_MODE] == _TIMES.pack(now, now)


def with_times(value, now):
    """mtime and ctime become ``now`` (ns)."""
    return value[:AT_MTIME] + _TIMES.pack(now, now) + value[AT_MODE:]


def written(value, begin, end, now):
    """The value after [begin, end) was written at ``now``: its size, times, and what is stored of it.

    Exact for files without holes, and for bytes above the old end.  Where a file with holes is written again nobody
    knows at the home whether there was a hole: it counts as one, up to what a file without holes would have.
    """
    size, blocks = _SIZES.unpack_from(value, AT_SIZE)
    if begin <= size <= blocks << 9:
        if end > size:
            size, blocks = end, max(blocks, ((end + 4095) >> PAGE_SHIFT) * PAGE_BLOCKS)
    else:
        stored = pages(size)
        if begin >= size:
            blocks += max(0, pages(end) - max(begin >> PAGE_SHIFT << 3, stored if blocks else 0))
        else:
            blocks = min(blocks + pages(end) - (begin >> PAGE_SHIFT << 3), max(blocks, pages(max(size, end))))
        size = max(size, end)
    return (value[:AT_SIZE] + _SIZES.pack(size, blocks) + value[AT_ATIME:AT_MTIME] + _TIMES.pack(now, now)
            + value[AT_MODE:])


def pages(size):
    """Blocks of 512 bytes that ``size`` bytes without a hole take."""
    return ((size + 4095) >> PAGE_SHIFT) * PAGE_BLOCKS


def with_size(value, size, now, freed=0, cuts=None):
    """Size in bytes, mtime and ctime after a truncation that freed blocks of 512 bytes; ``cuts`` is its number."""
    old, blocks = _SIZES.unpack_from(value, AT_SIZE)
    if size < old:
        blocks = pages(size) if blocks << 9 >= old else max(0, min(blocks - freed, pages(size)))
    else:
        blocks = max(0, blocks - freed)
    return (value[:AT_SIZE] + _SIZES.pack(size, blocks) + value[AT_ATIME:AT_MTIME] + _TIMES.pack(now, now)
            + value[AT_MODE:AT_CUTS]
            + (value[AT_CUTS:] if cuts is None else _CUTS.pack(cuts) + value[AT_CUTS + _CUTS.size:]))


def cuts_of(value):
    """The number of the last cut of the file: see cuts.py."""
    return _CUTS.unpack_from(value, AT_CUTS)[0]


def reach_of(value):
    """Below this many bytes a file may have something stored."""
    return SIZE_MAX if value[AT_FLAGS] & FLAG_BEYOND else size_of(value)


def size_of(value):
    return _WIRE_INO.unpack_from(value, AT_SIZE)[0]


def changed(value, **fields):
    """The value with some of its ATTR fields replaced."""
    return ATTR.pack(*ATTR.unpack(value)._replace(**fields)) + value[ATTR.size:]


def without_privileges(value, request):
    """A change of the bytes by anybody but root takes setuid and an effective setgid away; by somebody who is not of
    the file's group, any setgid."""
    if not mode_of(value) & 0o6000 or request.uid == 0:
        return value
    attr = ATTR.unpack(value)
    mode = stripped(attr.mode)
    if attr.gid != request.gid and attr.gid not in request.groups:
        mode &= ~stat.S_ISGID
    return changed(value, mode=mode)


def stripped(mode):
    """``mode`` without setuid, and without setgid where it means execution (not mandatory locking)."""
    return mode & ~(stat.S_ISUID | (stat.S_ISGID if mode & stat.S_IXGRP else 0))


# --- permissions ----------------------------------------------------------------------------------------------------


def check_access(attr, who, want):
    """EACCES unless ``who`` (of identity.py) may do ``want``; ``attr`` is an unpacked ATTR."""
    if not allowed(attr.mode, attr.uid, attr.gid, who, want):
        raise fail(errno.EACCES)


def check_owner(attr, uid):
    if uid not in (0, attr.uid):
        raise fail(errno.EPERM)


def check_new_path(path):
    """The checks of a path that shall come into being which no existing parent implies.  Raises OSError."""
    if path[:1] != b"/":
        raise fail(errno.EINVAL)
    name = path[path.rindex(b"/") + 1:]
    if len(name) > NAME_BYTES_MAX or len(path) > PATH_BYTES_MAX:
        raise fail(errno.ENAMETOOLONG)
    if name in (b"", b".", b"..") or 0 in name:
        raise fail(errno.EINVAL)
    if 0 in path:  # a directory that has lost its name: pymadfs/removed.py
        raise fail(errno.ENOENT)


# --- the namespace of one server ------------------------------------------------------------------------------------


class Meta:
    """Entries and inodes of server ``number`` of ``servers`` in the store ``kv``; ``uid`` and ``gid`` get a new root.

    Raises StoreError when the store is of another format, number or count.
    """

    def __init__(self, kv, number, servers, uid=0, gid=0):
        self.kv, self.number, self.servers = kv, number, servers
        self._owner = uid, gid
        self._next = self._limit = 0
        self._check_format()
        self.boots = self._count(b"Mboots") + 1
        kv.put(b"Mboots", NUMBER.pack(self.boots))
        self.idle = self.fresh or kv.get(IDLE) is not None
        kv.delete(IDLE)
        self._make_root()
        kv.commit()

    def _count(self, key, default=0):
        value = self.kv.get(key)
        return default if value is None else NUMBER.unpack(value).value

    def _check_format(self):
        wanted = {b"Mformat": FORMAT, b"Mnumber": self.number, b"Mservers": self.servers}
        if self.kv.get(b"Mformat") is None:
            for key, value in wanted.items():
                self.kv.put(key, NUMBER.pack(value))
            return
        for key, value in wanted.items():
            found = self._count(key)
            if found != value:
                raise StoreError({
                    b"Mformat": f"the store is of format {found}, this server writes format {value}: use another store",
                    b"Mnumber": f"the store belongs to server {found}, this is server {value}: each needs its own",
                    b"Mservers": f"the store is of a cluster of {found} servers, this one has {value}: start {found}",
                }[key])

    def _make_root(self):
        if owner(b"/", self.servers) != self.number or self.kv.get(entry_key(b"/")) is not None:
            return
        mode = stat.S_IFDIR | stat.S_ISVTX | 0o777  # as /tmp: all users of a job may create in it
        self.kv.put(entry_key(b"/"), new_attr(ROOT_INO, mode, *self._owner, now_ns(), nlink=2))

    def ended_idle(self):
        """The server ends and nobody has a file open: so the next start need not wait for anybody (``idle``)."""
        self.kv.put(IDLE, b"")

    @property
    def fresh(self):
        """Whether this is the first time that the store is used."""
        return self.boots == 1

    def serial(self):
        """A number never given before: an inode number, or the name of a rename.  Blocks of them are taken durably."""
        if self._next == self._limit:
            self._next = self._count(b"Mcounter", 16)  # the first numbers are for the root and kin
            self._limit = self._next + COUNTER_BLOCK
            self.kv.put(b"Mcounter", NUMBER.pack(self._limit))
        self._next += 1
        return self.number << INO_HOME_SHIFT | self._next - 1

    def rolled_back(self):
        """The last batch was not written: the block of numbers it took may not have been either."""
        self._next = self._limit = 0

    def find(self, ino, hint):
        """``(key, value)`` of an inode that lives here; ``hint`` is the path it was born or opened at.  ENOENT."""
        if hint[:1] == b"/":
            key = entry_key(hint)
            value = self.kv.get(key)
            if value is not None and ino_of(value) == ino and not is_pointer(value):
                return key, value
        key = inode_key(ino)
        value = self.kv.get(key)
        if value is None:
            raise fail(errno.ENOENT)
        return key, value

    def resolve(self, key, value):
        """Follow a pointer to an inode that lives here; one that lives elsewhere stays a pointer."""
        ino = ino_of(value)
        if ino >> INO_HOME_SHIFT != self.number:
            return key, value
        key = inode_key(ino)
        found = self.kv.get(key)
        if found is None:
            raise fail(errno.ENOENT)
        return key, found
