# SPDX-License-Identifier: Apache-2.0
"""Listings.

The offset of an open directory is the place of the entry that was given last, 0 at the beginning: it is in the slot,
so that whoever shares the open file goes on there.  What a process keeps beside is one window of entries.
"""

import errno

from pymadfs import abi, listing
from pymadfs.errors import fail

from . import files
from .files import offset_cas, offset_get, opened, put
from .table import call


# getdents(2): "On end of directory, 0 is returned. ... EINVAL: Result buffer is too small. ... ENOENT: No such
# directory."
@call
def getdents64(handle, buffer, size):
    return _list(handle, buffer, size, abi.pack_dirent)


@call
def getdents(handle, buffer, size):
    return _list(handle, buffer, size, abi.pack_old_dirent)


def _list(handle, buffer, size, pack):
    file = opened(handle)
    if not file.directory:
        raise fail(errno.ENOTDIR)
    size &= 0xFFFFFFFF  # an unsigned int
    while True:
        place = offset_get(handle)
        window = file.listing
        if not place or window is None or not window.covers(place):
            window = file.listing = _window(handle, file, place)
        data, end = _records(window, place, size, pack)
        if not data:
            return 0
        put(buffer, data)
        if offset_cas(handle, place, end):  # else another thread or process was faster
            return len(data)


def _window(handle, file, place):
    try:
        return listing.read(files.fs, file.path, file.ino, place)
    except OSError as error:
        path = file.path
        if error.errno != errno.ENOENT or files.follow(handle, file) == path:
            raise
    return listing.read(files.fs, file.path, file.ino, place)


def _records(window, place, size, pack):
    """``(bytes, place of the last)`` of the entries behind ``place`` that fit into ``size`` bytes."""
    entries = window.entries
    low, high = 0, len(entries)
    while low < high:
        middle = (low + high) // 2
        if entries[middle][0] > place:
            high = middle
        else:
            low = middle + 1
    records, room = [], size
    for at, ino, kind, name in entries[low:low + size // 24 + 1]:  # no record is shorter
        record = pack(name, ino, kind, at)
        room -= len(record)
        if room < 0:
            while records and records[-1][0] == at:  # what shares a place is given together
                records.pop()
            if not records:
                raise fail(errno.EINVAL)
            break
        records.append((at, record))
    return b"".join([record for _, record in records]), records[-1][0] if records else place
