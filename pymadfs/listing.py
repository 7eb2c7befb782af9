# SPDX-License-Identifier: Apache-2.0
"""Listings of directories over all servers, a window at a time.

Each server gives its entries in the order of :func:`pymadfs.layout.order`.  A window asks all of them at the same
time for what is behind one place, and ends where the first of their pages ends: so a place is all that is needed to go
on, whoever does, and nothing grows with the directory.
"""
import errno

from .client import S_IFDIR, S_IFMT
from .errors import Restart, fail
from .filedata import MAX_PARALLEL, windows
from .layout import owner, parent
from .ops import DIRENT, NUMBER, READDIR

WINDOW_BYTES = 128 << 10  # of all servers' pages together
PAGE_BYTES_MIN, PAGE_BYTES_MAX = 1 << 10, 32 << 10
DOT, DOTDOT = 1, 2  # places of "." and ".."


class Window:
    """The ``entries``, (place, ino, type, name) in order, behind the place ``after``; ``done``: there are no more."""

    __slots__ = ("after", "done", "entries")

    def __init__(self, after, entries, done):
        self.after, self.entries, self.done = after, entries, done

    def covers(self, place):
        """Whether what follows ``place`` is in here, or is known to be nothing."""
        return self.after <= place and (self.done or bool(self.entries) and place < self.entries[-1][0])


def read(fs, path, ino, after):
    """The Window behind ``after`` of the open directory ``ino``, which has the name ``path``.

    Raises OSError; ENOENT when the directory was removed.
    """
    limit = max(PAGE_BYTES_MIN, min(PAGE_BYTES_MAX, WINDOW_BYTES // fs.servers))
    calls: list = [(server, READDIR, path, (after, limit), None, None) for server in range(fs.servers)]
    above = parent(path)
    if after < DOTDOT:
        calls.append((owner(above, fs.servers), NUMBER, above, (), None, None))
    results: list = []
    for some in windows(calls, MAX_PARALLEL):
        results += fs.rpc.call_many(some)
    dots = []
    if after < DOTDOT:
        up = results.pop()
        dots = [(DOT, ino, S_IFDIR >> 12, b".") if after < DOT else None,
                (DOTDOT, ino if isinstance(up, BaseException) else up[0].ino, S_IFDIR >> 12, b"..")]
    return _merged(after, [dot for dot in dots if dot], results, ino)


def _merged(after, entries, results, ino):
    """The Window of all servers' pages, up to where the shortest of those ends that are not the last."""
    end = None
    for result in results:
        if isinstance(result, BaseException):
            gone = isinstance(result, Restart) or isinstance(result, OSError) and result.errno == errno.ENOTDIR
            raise fail(errno.ENOENT) if gone else result
        reply, page = result
        if reply.ino not in (0, ino):
            raise fail(errno.ENOENT)  # another directory has the name
        found = records(page)
        entries += found
        if not reply.done and found:
            end = found[-1][0] if end is None else min(end, found[-1][0])
    entries.sort()
    if end is not None:
        while entries[-1][0] > end:
            entries.pop()
    return Window(after, entries, end is None)


def records(page):
    """``[(place, ino, type, name)]`` of a READDIR's reply."""
    at, found, size, unpack = 0, [], DIRENT.size, DIRENT.unpack
    while at < len(page):
        ino, place, kind, length = unpack(page, at)
        at += size
        found.append((place, ino, kind, bytes(page[at:at + length])))
        at += length
    return found


def everything(fs, path):
    """Entries ``(name, ino, type)`` of the directory ``path`` (without links), ``.`` and ``..`` first, then by name."""
    attr = fs.lookup(path)[1]
    if attr.mode & S_IFMT != S_IFDIR:
        raise fail(errno.ENOTDIR)
    place, done, entries = 0, False, []
    while not done:
        window = read(fs, path, attr.ino, place)
        entries += [(name, ino, kind) for _, ino, kind, name in window.entries]
        place, done = window.entries[-1][0] if window.entries else place, window.done
    return sorted(entries, key=lambda entry: (entry[0] not in (b".", b".."), entry[0]))
