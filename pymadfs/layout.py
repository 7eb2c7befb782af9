# SPDX-License-Identifier: Apache-2.0
"""Where things live: pure functions from names and offsets to servers.

The name of a path lives on server ``hash(path) mod N``; a file's inode and chunk 0 stay with the server of its birth
(its *home*, kept in the inode number); chunk ``i`` lives on ``(home + i) mod N``.
"""
from zlib import adler32, crc32

from .ops import INO_HOME_SHIFT


def owner(path, servers):
    """Server number that holds the name ``path`` (bytes, ``b"/a/b"``); ``servers`` is how many there are."""
    return crc32(path) % servers


def home(ino):
    """Server number that holds the inode and chunk 0 of ``ino``."""
    return ino >> INO_HOME_SHIFT


def chunk_server(ino, chunk, servers):
    """Server number that holds chunk ``chunk`` of ``ino``."""
    return ((ino >> INO_HOME_SHIFT) + chunk) % servers


def split(offset, length, chunk_size):
    """Cut the range [offset, offset + length) at chunk borders: yields ``(chunk, offset in it, length)``, in bytes."""
    end = offset + length
    while offset < end:
        chunk, within = divmod(offset, chunk_size)
        piece = min(chunk_size - within, end - offset)
        yield chunk, within, piece
        offset += piece


def parent(path):
    """``b"/a/b"`` -> ``b"/a"``; the parent of ``b"/a"`` and of ``b"/"`` is ``b"/"``."""
    return path[:path.rindex(b"/")] or b"/"


ORDER_FIRST = 3
"""Places in a listing below this are its beginning and those behind ``.`` and ``..``."""
ORDER_LOW_BITS = 30


def order(name):
    """Place of a name in listings of its directory: 63 bits that depend on nothing else.

    Two names share one only when two independent sums of theirs agree; they then stand together.
    """
    return (crc32(name) << ORDER_LOW_BITS | adler32(name) & (1 << ORDER_LOW_BITS) - 1) + ORDER_FIRST


def order_key(place):
    """The upper half of a place, in bytes that sort as places do."""
    return min(max(0, place - ORDER_FIRST) >> ORDER_LOW_BITS, 0xFFFFFFFF).to_bytes(4, "big")


def covers(name, path):
    """Whether ``path`` is ``name`` or lies below it."""
    return path.startswith(name) and (len(path) == len(name) or path[len(name)] == 0x2F)


def join(directory, name):
    """``join(b"/", b"a")`` is ``b"/a"``."""
    return (directory if directory != b"/" else b"") + b"/" + name
