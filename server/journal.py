# SPDX-License-Identifier: Apache-2.0
"""Changes in memory that outlives the process, so that replies need not wait for the database.

A file mapped shared: what was stored in it is there after ``kill -9``.  It is not synced: after a power loss, which a
new boot id tells, it says nothing, and what was fsynced is in the database's own log.  Layout: docs/format.md.
"""
import mmap
import os
import struct

from pymadfs.log import log
from pymadfs.ops import Record

HEADER = Record("JournalHeader", "magic:8s boot:16s length:Q")
ITEM = Record("JournalItem", "key:I value:I")
MAGIC = b"MADFSJ1\0"
NO_VALUE = 0xFFFFFFFF  # the key is deleted
SIZE = 1 << 20
BOOT_ID = "/proc/sys/kernel/random/boot_id"

_LENGTH_AT = HEADER.size - 8
_ROOM = SIZE - HEADER.size
_EMPTY = bytes(8)
_item = ITEM.pack
_length = struct.Struct("<Q").pack


def boot_id():
    """16 bytes that are others after each start of the machine; zeros where that cannot be known."""
    try:
        with open(BOOT_ID, encoding="ascii") as file:
            return bytes.fromhex(file.read().strip().replace("-", ""))
    except (OSError, ValueError):
        return bytes(16)


class Journal:
    """The journal file at ``path`` (str), made when missing.  ``left`` is what a process that was killed had added and
    not cleared, as one dict; ``used`` the bytes in use.  Raises OSError."""

    def __init__(self, path):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, SIZE)  # a store into memory must not meet a full disk
            self._map = mmap.mmap(fd, SIZE)
        finally:
            os.close(fd)
        boot = boot_id()
        header = HEADER.unpack(self._map)
        self.left, self.used = {}, 0
        if (header.magic, header.boot) == (MAGIC, boot) and any(boot):
            self._read(header)
        else:
            self._map[:HEADER.size] = MAGIC + boot + _EMPTY

    def _read(self, header):
        """What is whole, from the start.  Nothing that a kill leaves ends within an item; a file that somebody cut off
        or wrote to may."""
        at, end = HEADER.size, HEADER.size + min(header.length, _ROOM)
        while at + ITEM.size <= end:
            key_size, value_size = ITEM.unpack(self._map, at)
            key_end = at + ITEM.size + key_size
            item_end = key_end + (0 if value_size == NO_VALUE else value_size)
            if not key_size or item_end > end:
                break
            key = self._map[at + ITEM.size:key_end]
            self.left[key] = None if value_size == NO_VALUE else self._map[key_end:item_end]
            at = item_end
        self.used = at - HEADER.size
        if at != HEADER.size + header.length:
            log(f"the journal is damaged after {self.used} of {header.length} bytes: later changes are lost; "
                "`madfs fsck --repair` mends what that leaves half done")

    def add(self, batch):
        """Keep ``batch``, a dict with None for what is deleted, until ``clear``.  False: there is no room."""
        parts = []
        for key, value in batch.items():
            if value is None:
                parts += _item(len(key), NO_VALUE), key
            else:
                parts += _item(len(key), len(value)), key, value
        data = b"".join(parts)
        used = self.used + len(data)
        if used > _ROOM:
            return False
        self._map[HEADER.size + self.used:HEADER.size + used] = data
        self._map[_LENGTH_AT:HEADER.size] = _length(used)  # last: one store, which a kill cannot tear
        self.used = used
        return True

    def clear(self):
        """The database has it all."""
        self._map[_LENGTH_AT:HEADER.size] = _EMPTY
        self.used = 0

    def close(self):
        self._map.close()
