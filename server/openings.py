# SPDX-License-Identifier: Apache-2.0
"""Who has which inode open.  Synchronous; openings end with RELEASE or with the connection."""

KEPT = None  # in place of a connection: of a process that is to tell of it itself


class Openings:
    """Counts per connection and inode; ``total`` (ino -> openings of all connections) answers the only hot question."""

    def __init__(self):
        self.total = {}
        self._by_conn = {}

    def add(self, conn, ino):
        held = self._by_conn.get(conn)
        if held is None:
            held = self._by_conn[conn] = {}
        held[ino] = held.get(ino, 0) + 1
        self.total[ino] = self.total.get(ino, 0) + 1

    def release(self, conn, ino):
        """One opening of ``conn`` ended, or one that was kept for it.  True when it was the last one of all; what was
        never opened is ignored."""
        held = self._by_conn.get(conn)
        if not held or ino not in held:
            return conn is not KEPT and self.release(KEPT, ino)
        held[ino] -= 1
        if not held[ino]:
            del held[ino]
            if not held:
                del self._by_conn[conn]
        return self._lower(ino, 1)

    def lost(self, conn):
        """The connection is gone: inodes that nobody has open any more."""
        return [ino for ino, count in self._by_conn.pop(conn, {}).items() if self._lower(ino, count)]

    def _lower(self, ino, count):
        self.total[ino] -= count
        if self.total[ino]:
            return False
        del self.total[ino]
        return True
