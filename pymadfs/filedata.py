# SPDX-License-Identifier: Apache-2.0
"""The bytes of files over many servers: which chunk is asked of whom, and what the answers mean together."""

import errno

from .errors import fail
from .layout import chunk_server, home, split
from .ops import ATTR, EXTEND, FSYNC, GETATTR, READ, RESERVE, SET_SIZE, WRITE

MYPY = False  # the type checker takes it for true; the client must not import typing
if MYPY:
    from typing import Any

MAX_PARALLEL = 64  # data requests of one call in flight at once


def pieces(offset, segments, chunk_size):
    """Cut memory at chunk borders: yields ``(chunk, offset in it, length, source)``.

    ``segments`` are ``(source, length)`` in the order of the file from ``offset`` on; a source is an address or bytes.
    """
    for source, length in segments:
        at = 0
        for chunk, within, piece in split(offset, length, chunk_size):
            if isinstance(source, int):
                yield chunk, within, piece, source + at
            else:
                yield chunk, within, piece, source[at : at + piece]
            at += piece
        offset += length


def clipped(segments, room):
    """The leading part of ``segments`` that has at most ``room`` bytes."""
    kept = []
    for source, length in segments:
        if room <= 0:
            break
        kept.append((source, min(length, room)))
        room -= length
    return kept


def windows(items, limit=MAX_PARALLEL):
    """Cut an iterable into lists of at most ``limit``."""
    window = []
    for item in items:
        window.append(item)
        if len(window) == limit:
            yield window
            window = []
    if window:
        yield window


class FileData:
    """The part of a client.FileSystem that reads and writes open files.  It uses of the rest:"""

    rpc: "Any"
    servers: int
    store: "Any"
    _call: "Any"
    _many: "Any"
    getattr: "Any"
    setattr: "Any"
    fsetattr: "Any"
    mapped: "Any"
    images: "Any"

    def read(self, file, offset, segments):
        """Fill ``segments`` of memory, ``(address, length)``, from ``offset`` on.  Returns the bytes read: fewer at
        the end of the file, or before a piece that failed."""
        if self.mapped[0]:
            return self.images().read(file, offset, segments)
        if len(segments) == 1:  # most calls: one chunk of one buffer
            address, total = segments[0]
            chunk, within = divmod(offset, file.chunk_size)
            if within + total <= file.chunk_size:
                return self._read_window(file, offset, total, ((chunk, within, total, address),))
        total = sum(length for _, length in segments)
        if (offset + total - 1) // file.chunk_size > file.size // file.chunk_size + 1:
            # Several pieces seem to lie beyond the end: look where it is rather than ask for all of them.
            segments = clipped(segments, max(0, self.getattr(file).size - offset))
        done = 0
        for window in windows(pieces(offset, segments, file.chunk_size)):
            asked = sum(piece[2] for piece in window)
            try:
                count = self._read_window(file, offset + done, asked, window)
            except OSError:
                if done:
                    break
                raise
            done += count
            if count < asked:
                break
        return done

    def _read_window(self, file, offset, asked, window):
        ino, servers = file.ino, self.servers
        if len(window) == 1:
            chunk, within, length, address = window[0]
            server = chunk_server(ino, chunk, servers)
            at_home = server == home(ino)
            if at_home or offset + asked <= file.size:
                hint = file.path if at_home else b""
                reply, _ = self._call(server, READ, hint, ino, chunk, within, length, recv=(address, length))
                if reply.count == length:
                    return length
                if reply.size < 0:
                    return self._settle(file, offset, window, [reply.count], self.getattr(file).size)
                file.size = reply.size
                wanted = max(0, min(length, reply.size - offset))
                if reply.count < wanted:  # data and size are of one moment: what is not stored is a hole
                    self.store(address + reply.count, bytes(wanted - reply.count))
                return wanted
        calls: list = [
            (chunk_server(ino, chunk, servers), READ, b"", (ino, chunk, within, length), None, (address, length))
            for chunk, within, length, address in window
        ]
        near_end = offset + asked > file.size
        if near_end:  # most likely the end of the file is met: ask for it in the same round
            calls.append((home(ino), GETATTR, file.path, (ino,), None, None))
        results = self.rpc.call_many(calls)
        size = None
        if near_end:
            result = results.pop()
            if isinstance(result, BaseException):
                raise result
            size = file.size = ATTR.unpack(result[0].attr).size
        counts = []
        for result in results:
            if isinstance(result, BaseException):
                if not counts:
                    raise result
                break
            counts.append(result[0].count)
        if size is None and any(count < piece[2] for count, piece in zip(counts, window)):
            size = self.getattr(file).size
        return self._settle(file, offset, window, counts, size)

    def _settle(self, file, offset, window, counts, size):
        """Bytes read, given how much was stored of each piece: holes below ``size`` are filled, what is above is cut
        off."""
        holes, done = [], 0
        for count, (chunk, within, length, address) in zip(counts, window):
            wanted = length if size is None else max(0, min(length, size - offset - done))
            if count < wanted:
                holes.append((chunk, within, wanted, address))
            done += wanted
            if wanted < length:
                break
        if holes:
            self._fill(file, holes)
        return done

    def _fill(self, file, holes):
        """Read again what was short although the file goes on: a write may have come between the data and the size.
        What is still not stored is a hole."""
        calls = [
            (
                chunk_server(file.ino, chunk, self.servers),
                READ,
                b"",
                (file.ino, chunk, within, length),
                None,
                (address, length),
            )
            for chunk, within, length, address in holes
        ]
        for (reply, _), (_, _, length, address) in zip(self._many(calls), holes):
            if reply.count < length:
                self.store(address + reply.count, bytes(length - reply.count))

    def write(self, file, offset, segments, extend=True):
        """Store ``segments``, ``(source, length)`` with an address or bytes as source, at ``offset``.

        Returns the bytes written, fewer when a later piece failed.  Without ``extend`` the size was reserved before.
        """
        if self.mapped[0]:
            return self.images().write(file, offset, segments, extend)
        if len(segments) == 1:
            source, total = segments[0]
            chunk, within = divmod(offset, file.chunk_size)
            if within + total <= file.chunk_size:
                return self._write_window(file, ((chunk, within, total, source),), offset + total if extend else 0)
        done = 0
        for window in windows(pieces(offset, segments, file.chunk_size)):
            asked = sum(piece[2] for piece in window)
            try:
                count = self._write_window(file, window, offset + done + asked if extend else 0)
            except OSError:
                if done:
                    break
                raise
            done += count
            if count < asked:
                break
        return done

    def _write_window(self, file, window, end):
        """``end`` is where the last piece ends, told to the file's home: with one of the pieces if it gets one."""
        ino, servers, base = file.ino, self.servers, home(file.ino)
        calls: list = []
        bearer = None
        for chunk, within, length, source in window:
            server = chunk_server(ino, chunk, servers)
            size, hint = (end, file.path) if end and bearer is None and server == base else (0, b"")
            if size:
                bearer = len(calls)
            fields = (ino, chunk, within, length, size, len(hint))
            if isinstance(source, int):
                calls.append((server, WRITE, hint, fields, (source, length), None))
            else:
                calls.append((server, WRITE, hint + source, fields, None, None))
        if end and bearer is None:
            bearer = len(calls)
            calls.append((base, EXTEND, file.path, (ino, end), None, None))
        if len(calls) == 1:
            server, _, tail, fields, send, _ = calls[0]
            results = [self._call(server, WRITE, tail, *fields, send=send)]
        else:
            results = self.rpc.call_many(calls)
        return self._written(file, window, end, calls, results, bearer)

    def _written(self, file, window, end, calls, results, bearer):
        """Bytes written before the first piece that failed; raises when that is the first, or the size cannot be
        set."""
        done, error = 0, None
        for piece, result, call in zip(window, results, calls):
            if isinstance(result, BaseException):
                error = error or result
            else:
                if file.dirty is not None:
                    file.dirty.add(call[0])
                if not error:
                    done += piece[2]
        if error and not done:
            raise error
        if bearer is not None:
            if isinstance(results[bearer], BaseException):
                self.extend(file, end - sum(piece[2] for piece in window) + done)  # what was written must be seen
            else:
                file.size = results[bearer][0].size
        return done

    def write_pieces(self, file, changes):
        """Store pieces of memory, ``(offset, address, length)``, all at once and within the file's size.  Raises when
        one cannot be stored."""
        end = max(offset + length for offset, _, length in changes)
        for window in windows(
            piece
            for offset, address, length in changes
            for piece in pieces(offset, ((address, length),), file.chunk_size)
        ):
            if self._write_window(file, window, end) < sum(piece[2] for piece in window):
                raise fail(errno.EIO, file.path)

    def append(self, file, segments, length):
        """Store ``segments`` of ``length`` bytes at the end of the file: ``(offset, bytes written)``."""
        if self.mapped[0]:
            return self.images().append(file, segments, length)
        reply, _ = self._call(home(file.ino), RESERVE, file.path, file.ino, length)
        file.size = max(file.size, reply.offset + length)
        return reply.offset, self.write(file, reply.offset, segments, extend=False)

    def truncate(self, path, size):
        """Set the size of the file at ``path``."""
        self.setattr(path, SET_SIZE, size=size)

    def ftruncate(self, file, size):
        """Set the size of an open file."""
        self.fsetattr(file, SET_SIZE, size=size)

    def extend(self, file, end):
        """Make an open file at least ``end`` bytes long."""
        reply, _ = self._call(home(file.ino), EXTEND, file.path, file.ino, end)
        file.size = reply.size
        if self.mapped[0]:
            self.images().resized(file.ino, file.size)

    def fsync(self, file):
        """Make durable what was written through this opening, on the servers it went to and at the file's home."""
        if self.mapped[0]:
            self.images().synced(file.ino)
        if file.directory:  # its entries are everywhere
            servers = set(range(self.servers))
        elif file.dirty is None:
            file.dirty = set()
            servers = set(self._holders(file))
        else:
            servers = set()
            while file.dirty:
                try:
                    servers.add(file.dirty.pop())
                except KeyError:  # another thread was faster
                    break
        servers.add(home(file.ino))
        calls = [(server, FSYNC, file.path, (file.ino,), None, None) for server in sorted(servers)]
        try:
            self._many(calls)
        except OSError:
            if file.dirty is not None:
                file.dirty.update(servers)
            raise

    def _holders(self, file):
        """Servers that may hold data of a file."""
        chunks = -(-self.getattr(file).size // file.chunk_size)
        return [chunk_server(file.ino, chunk, self.servers) for chunk in range(min(max(chunks, 1), self.servers))]
