# SPDX-License-Identifier: Apache-2.0
"""Sizes that were set for bytes which then found no room.

A write tells the new size to the file's home while its bytes go to several servers.  When one of them refuses, the disk
being full, the writer tells how far it came (RETRACT), and the size goes back, with all that is stored above it; unless
somebody else has written to the file since, whose bytes may lie there.
"""
import errno

from pymadfs.errors import fail
from pymadfs.ops import RETRACT

from .dispatch import serves
from .meta import SIZE_MAX, inode_key, size_of
from .sizes import shrunk

KNOWN_MAX = 1 << 12  # what is forgotten keeps a size that is too large


class Extensions(dict):
    """Inode -> (connection, end, size before) of the last change of a file here, when others had a part in it.  Who
    changes a file otherwise removes it."""

    def grew(self, ino, conn, end, before):
        """``conn`` made the file at least ``end`` bytes long, which was ``before``, for bytes on several servers."""
        if end > before:
            if len(self) >= KNOWN_MAX:
                self.clear()
            self[ino] = conn, end, before
        elif self.get(ino, ())[:2] != (conn, end):  # else it was asked again
            self.pop(ino, None)


@serves(RETRACT)
def retract(server, request):
    ino, kept, end = request.fields
    if max(kept, end) > SIZE_MAX:
        raise fail(errno.EPROTO)
    server.dirs.free(inode_key(ino))
    _, value = server.meta.find(ino, request.tail)
    size = size_of(value)
    conn, known, before = server.extensions.get(ino, (None, 0, 0))
    if size == end and (conn, known) == (request.conn, end):
        wanted = max(before, kept)
        if wanted < end:
            return _retracted(server, request, wanted)
    elif size < end:  # it was not even told: only the bytes go
        return _retracted(server, request, size)
    return (size,), b""


async def _retracted(server, request, size):
    ino, _, end = request.fields
    await shrunk(server, request, ino, request.tail, size, reach=end)
    server.extensions.pop(ino, None)
    return (size,), b""
