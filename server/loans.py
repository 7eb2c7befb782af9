# SPDX-License-Identifier: Apache-2.0
"""Bytes of small files that go out with OPEN's answer, for a few milliseconds.

For so long the file's home lets nobody else change them, and the process that opened may read them without asking.  It
counts the time from before it asked, so its loan ends first, whatever the clocks say.  See docs/decisions/0050.
Synchronous, save the waiting.
"""
import asyncio
import os
import struct
import time

from .directories import Wait
from .meta import AT_FLAGS, data_key, inode_key, is_file

BYTES_MAX = 8 << 10
LOANS_MAX = 4096  # more are not remembered, so not given
SPARED_S = 1.0  # for so long after somebody had to wait nobody is lent the file again
MARGIN = 1.1  # clocks of different machines do not run equally fast
SHARED = -1
_BEGIN, _CHUNK_SIZE = struct.Struct("<QQ"), struct.Struct("<I")  # of ATTR: inode number and size; then, before AT_FLAGS
_NOT_LENT = os.O_ACCMODE | os.O_TRUNC | os.O_PATH


class Loans:
    """``duration_us`` is 0 when nothing is lent."""

    def __init__(self, duration_us):
        self.duration_us = duration_us
        self._duration_s = duration_us * MARGIN / 1e6
        self._until = {}  # ino -> (monotonic seconds, connection that may read it, or SHARED)
        self._spared = {}  # ino -> monotonic seconds

    def lend(self, server, conn, value, flags):
        """The bytes of the regular file ``value`` for who opened it with ``flags``, or None."""
        if flags & _NOT_LENT or not self.duration_us or not is_file(value):
            return None
        ino, size = _BEGIN.unpack_from(value)
        if size > BYTES_MAX or size > _CHUNK_SIZE.unpack_from(value, AT_FLAGS - 4)[0]:
            return None
        if ino in server.cuts.under_way or server.cuts.writing(ino) or server.dirs.is_held(inode_key(ino)):
            return None
        data = server.kv.get(data_key(ino)) if size else b""
        if data is None or not self._remember(ino, conn, time.monotonic()):
            return None
        return data if len(data) == size else data[:size].ljust(size, b"\0")

    def _remember(self, ino, conn, now):
        if self._spared and self._spared.get(ino, now) > now:
            return False
        if len(self._until) >= LOANS_MAX:
            self._until = {ino: loan for ino, loan in self._until.items() if loan[0] > now}
            self._spared = {ino: until for ino, until in self._spared.items() if until > now}
            if len(self._until) >= LOANS_MAX:
                return False
        until, other = self._until.get(ino, (0, conn))
        self._until[ino] = (now + self._duration_s, conn if other == conn or until <= now else SHARED)
        return True

    def back(self, ino, conn):
        """Before ``conn`` changes bytes or size of ``ino``.  Raises Wait while others may read what they were lent."""
        loan = self._until.get(ino)
        if loan is None:
            return
        until, borrower = loan
        now = time.monotonic()
        if until <= now:
            del self._until[ino]
        elif borrower != conn:
            self._spared[ino] = now + SPARED_S
            raise Wait(lambda: asyncio.sleep(until - now))
