# SPDX-License-Identifier: Apache-2.0
"""Listings of directories, in pages that need no memory between them.

Entries come in the order of :func:`pymadfs.layout.order`, a hash of the name: a place in it is one number, means the
same on every server, and stays what it is when other entries come and go.  The keys of a directory's entries begin
with the upper half of it, so that a page is one short range of the store.
"""
import errno

from pymadfs.errors import fail
from pymadfs.layout import order, order_key
from pymadfs.ops import DIRENT, NUMBER, READDIR

from .dispatch import serves
from .holes import touch_atime
from .meta import ORDER_BYTES, entries_prefix, entry_key, ino_of, is_directory, mode_of

PAGE_BYTES_MAX = 32 << 10
SCAN_ENTRIES = 256  # read from the store at once
TYPE_SHIFT = 12  # DT_* of dirent.h is the type in st_mode, shifted


@serves(READDIR)
def readdir(server, request):
    after, limit = request.fields
    path = request.tail
    ino = directory(server, path)
    if ino and not after:
        key = entry_key(path)
        touch_atime(server, key, server.kv.get(key), server.times.elsewhere(path))
    server.commit()
    records, done = page(server.kv, entries_prefix(path), after, min(limit, PAGE_BYTES_MAX))
    return (done, ino), b"".join(records)


@serves(NUMBER)
def number(server, request):
    _, value = server.dirs.entry(request.tail, request)
    return (ino_of(value),), b""


def directory(server, path):
    """Number of the directory ``path`` if its entry lies here, else 0.  Raises OSError ENOENT or ENOTDIR, or Wait."""
    key = entry_key(path)
    value = server.dirs.above(key)
    if value is not None:
        if not is_directory(value):
            raise fail(errno.ENOTDIR)
        return ino_of(value)
    if server.owns(path):
        raise fail(errno.ENOENT)
    return 0


def page(kv, prefix, after, limit):
    """``(DIRENT records, done)`` of the entries behind ``after``: ``limit`` bytes, or the first one if that is more.

    Names of equal key are read together, because their order is not that of the keys.
    """
    found, size = [], 0
    at, last = order_key(after) if after else b"", b""
    while True:
        entries = kv.scan(prefix, at, SCAN_ENTRIES)
        for key, value in entries:
            half, name = key[len(prefix):len(prefix) + ORDER_BYTES], key[len(prefix) + ORDER_BYTES:]
            if size > limit and half != last:
                return cut(found, limit), 0
            place = order(name)
            if place > after and name:  # only the root itself has no name
                found.append((place, DIRENT.pack(ino_of(value), place, mode_of(value) >> TYPE_SHIFT, len(name)) + name))
                size += DIRENT.size + len(name)
                last = half
        if len(entries) < SCAN_ENTRIES:
            records = cut(found, limit)
            return records, len(records) == len(found)
        at = entries[-1][0][len(prefix):]


def cut(found, limit):
    """The first records of ``found``, (place, record), that fit into ``limit`` bytes; equal places stay together."""
    found.sort()
    records, place = [], None
    for at, record in found:
        limit -= len(record)
        if limit < 0 and records and at != place:
            break
        records.append(record)
        place = at
    return records
