# SPDX-License-Identifier: Apache-2.0
"""The bytes of files over many servers: which chunk is asked of whom, and what the answers mean together."""

import errno
import posix
import struct
from _thread import allocate_lock
from time import CLOCK_BOOTTIME, clock_gettime, time_ns

from .errors import fail
from .layout import chunk_server, home, split
from .ops import (
    ACCESSED,
    APPEND,
    APPEND_MAX,
    ATTR,
    EXTEND,
    FALLOCATE,
    FSYNC,
    GETATTR,
    GROWING,
    READ,
    RETRACT,
    SEEK,
    SEEK_NONE,
    SET_SIZE,
    STATFS,
    WRITE,
)

MYPY = False  # the type checker takes it for true; the client must not import typing
if MYPY:
    from typing import Any

LENT_MAX = 64  # small files remembered with their bytes
RELATIME_NS = 86400 * 10**9
MAX_PARALLEL = 64  # data requests of one call in flight at once
FALLOCATE_CHUNKS = 1024  # allocated on each server by one request: so many take less than a deadline
FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE = 1, 2
_RANGE = struct.Struct("<QQ")
NOT_STORED = errno.ENOSPC, errno.EDQUOT, errno.EIO  # of a server that has no room, or died
# Where in the fields of a request the number of the last cut is.
_CUTS_FIELD = {WRITE: WRITE.request.fields.index("cuts"), EXTEND: EXTEND.request.fields.index("cuts")}


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
        kept.append((source if isinstance(source, int) else source[:room], min(length, room)))
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
    # and has of its own:
    _lent: dict
    _changes: int
    _lending: "Any"

    # --- small files whose bytes came with the answer to OPEN (decision 0050) ---------------------------------------

    def _lend_nothing(self):
        self._lent = {}  # ino -> (bytes, seconds of CLOCK_BOOTTIME until which they hold, whether atime is recent)
        self._changes = 0  # made by this process
        self._lending = allocate_lock()

    def _borrow(self, attr, data, until, changes):
        """``data`` came with an OPEN that was asked when ``_changes`` was ``changes``."""
        recent = attr.atime_ns > max(attr.mtime_ns, attr.ctime_ns) and attr.atime_ns > time_ns() - RELATIME_NS
        with self._lending:
            if changes == self._changes:  # else another thread's write may be newer
                if len(self._lent) >= LENT_MAX:
                    self._lent.clear()
                self._lent[attr.ino] = data, until, recent

    def _changed(self, ino):
        """This process changed bytes or size of a file: for that the server does not wait."""
        with self._lending:
            self._changes += 1
            self._lent.pop(ino, None)

    def _read_lent(self, file, offset, segments, lent):
        data, _, recent = lent
        if not (recent or file.noticed):
            self._notice(file)
        done = 0
        for address, length in segments:
            piece = data[offset + done : offset + done + length]
            if piece:
                self.store(address, piece)
            done += len(piece)
        return done

    # --- bytes ------------------------------------------------------------------------------------------------------

    def read(self, file, offset, segments):
        """Fill ``segments`` of memory, ``(address, length)``, from ``offset`` on.  Returns the bytes read: fewer at
        the end of the file, or before a piece that failed."""
        if self.mapped[0]:
            return self.images().read(file, offset, segments)
        if self._lent:
            lent = self._lent.get(file.ino)
            if lent:
                if clock_gettime(CLOCK_BOOTTIME) < lent[1]:
                    return self._read_lent(file, offset, segments, lent)
                self._lent.pop(file.ino, None)
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
                hint = b""
                if at_home:
                    hint = file.hint
                    file.noticed = True
                elif not file.noticed:
                    self._notice(file)
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
        if not file.noticed:
            self._notice(file)
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

    def _notice(self, file):
        """Tell the file's home that the file is read, for its atime.  Once is enough, until somebody writes; what is
        written through other openings is not seen.  Never raises, and nobody waits for it."""
        file.noticed = True
        try:
            self.rpc.notify(home(file.ino), ACCESSED, file.path, file.ino)
        except OSError:
            return

    def followed(self, path, attr):
        """A symbolic link was read: its atime becomes now if it is not newer than the other times (relatime)."""
        if attr.atime_ns <= attr.mtime_ns or attr.atime_ns <= attr.ctime_ns:
            try:
                self.rpc.notify(home(attr.ino), ACCESSED, path, attr.ino)
            except OSError:
                return

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
        """Read again what was short although the file goes on: a write may have come between the data and the size, or
        have told its size first.  What is not stored then, and was not on its way before, is a hole."""
        ino, servers = file.ino, self.servers
        while holes:
            begins = [(chunk * file.chunk_size + within, length) for chunk, within, length, _ in holes]
            ranges = b"".join([_RANGE.pack(begin, begin + length) for begin, length in begins])
            growing = self._call(home(ino), GROWING, ranges, ino)[0].growing
            calls = [
                (chunk_server(ino, chunk, servers), READ, b"", (ino, chunk, within, length), None, (address, length))
                for chunk, within, length, address in holes
            ]
            short = []
            for (reply, _), hole in zip(self._many(calls), holes):
                _, _, length, address = hole
                if reply.count < length:
                    short.append(hole)
                    if not growing:
                        self.store(address + reply.count, bytes(length - reply.count))
            holes = short if growing else []

    def write(self, file, offset, segments, extend=True):
        """Store ``segments``, ``(source, length)`` with an address or bytes as source, at ``offset``.

        Returns the bytes written, fewer when a later piece failed.  Without ``extend`` the size stays.
        """
        if self.mapped[0]:
            return self.images().write(file, offset, segments, extend)
        if len(segments) == 1:
            source, total = segments[0]
            chunk, within = divmod(offset, file.chunk_size)
            if within + total <= file.chunk_size:
                window = ((chunk, within, total, source),)
                return self._write_window(file, window, offset, offset + total if extend else 0)
        done = 0
        for window in windows(pieces(offset, segments, file.chunk_size)):
            asked = sum(piece[2] for piece in window)
            try:
                begin = offset + done
                count = self._write_window(file, window, begin, begin + asked if extend else 0)
            except OSError:
                if done:
                    break
                raise
            done += count
            if count < asked:
                break
        return done

    def _write_window(self, file, window, begin, end):
        """The pieces are [begin, end) of the file, which its home is told: with one of the pieces if it gets one.
        ``end`` is 0 when the size stays."""
        ino, servers, base, cuts = file.ino, self.servers, home(file.ino), file.cuts
        if file.noticed:
            file.noticed = file.hint == b""
        calls: list = []
        bearer = None
        for chunk, within, length, source in window:
            server = chunk_server(ino, chunk, servers)
            size, hint = 0, b""
            if server == base and end and bearer is None:
                size, hint, bearer = end, file.path, len(calls)
            fields = (ino, chunk, within, length, size, len(hint), begin, cuts)
            if isinstance(source, int):
                calls.append((server, WRITE, hint, fields, (source, length), None))
            else:
                calls.append((server, WRITE, hint + source, fields, None, None))
        if end and bearer is None:
            bearer = len(calls)
            calls.append((base, EXTEND, file.path, (ino, begin, end, cuts), None, None))
        if len(calls) == 1:
            server, _, tail, fields, send, _ = calls[0]
            try:
                results = [self._call(server, WRITE, tail, *fields, send=send)]
            except OSError as error:
                if end and error.errno != errno.EIO:  # else it was the home
                    self._retract(file, error, 0, end)
                raise
        else:
            results = self.rpc.call_many(calls)
            if bearer is not None:
                self._agree(file, calls, results, bearer)
        self._changed(ino)
        return self._written(file, window, begin, end, calls, results, bearer)

    def _agree(self, file, calls, results, bearer):
        """When the file was cut off meanwhile, some servers stored their part before and some after.  Those that were
        before the latest cut that any answer tells of are asked again, until all were after it: so the write as a whole
        comes after the truncation, or before.  The home first: it answers when the cut was made everywhere."""
        cuts = file.cuts
        for result in results:
            if isinstance(result, BaseException) or result[0][1] != cuts:
                break
        else:  # as nearly always
            return
        while True:
            numbers = [0 if isinstance(result, BaseException) else result[0].cuts for result in results]
            latest = max(numbers)
            early = [
                index
                for index, result in enumerate(results)
                if numbers[index] < latest and not isinstance(result, BaseException)
            ]
            if not early:
                file.cuts = latest
                return
            if bearer in early:
                early = [bearer]
            for index in early:
                server, op, tail, fields, send, recv = calls[index]
                at = _CUTS_FIELD[op]
                calls[index] = (server, op, tail, (*fields[:at], latest, *fields[at + 1 :]), send, recv)
            for index, result in zip(early, self.rpc.call_many([calls[index] for index in early])):
                results[index] = result

    def _written(self, file, window, begin, end, calls, results, bearer):
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
            told = results[bearer] if bearer is not None else None
            if end and not (isinstance(told, OSError) and told.errno == errno.EIO):
                self._retract(file, error, 0, end)
            raise error
        if bearer is not None:
            if isinstance(results[bearer], BaseException):
                self.extend(file, begin + done, begin)  # what was written must be seen
            else:
                file.size, file.cuts = results[bearer][0]
        if error and end:
            self._retract(file, error, begin + done, end)
        return done

    def _retract(self, file, error, kept, end):
        """When a write up to ``end`` was not stored behind ``kept`` (0: anywhere), the size goes back to that, or what
        it was, and bytes behind it go.  Never raises: the caller is told of ``error``."""
        if isinstance(error, OSError) and error.errno in NOT_STORED:
            try:
                reply, _ = self._call(home(file.ino), RETRACT, file.path, file.ino, kept, end)
            except OSError:
                return
            file.size = reply.size

    def write_pieces(self, file, changes):
        """Store pieces of memory, ``(offset, address, length)``, all at once and within the file's size.  Raises when
        one cannot be stored."""
        begin = min(offset for offset, _, _ in changes)
        end = max(offset + length for offset, _, length in changes)
        for window in windows(
            piece
            for offset, address, length in changes
            for piece in pieces(offset, ((address, length),), file.chunk_size)
        ):
            if self._write_window(file, window, begin, end) < sum(piece[2] for piece in window):
                raise fail(errno.EIO, file.path)

    def append(self, file, segments, length):
        """Store ``segments`` of ``length`` bytes at the end of the file, as one record: ``(offset, bytes written)``, so
        that the record ends where they add up to."""
        if self.mapped[0]:
            return self.images().append(file, segments, length)
        parts = [part[2:] for part in pieces(0, segments, APPEND_MAX)]
        turn = int.from_bytes(posix.urandom(8), "little") | 1 if len(parts) > 1 else 0
        done = end = 0
        for number, (size, source) in enumerate(parts, 1):
            try:
                end = self._append(file, source, size, turn, number < len(parts))
            except OSError:
                if done:
                    break
                raise
            done += size
        return end - done, done

    def _append(self, file, source, length, turn, more):
        """Where the record ends, once it is stored."""
        fields = (file.ino, length, len(file.path), turn, more)
        if isinstance(source, int):
            reply, _ = self._call(home(file.ino), APPEND, file.path, *fields, send=(source, length))
        else:
            reply, _ = self._call(home(file.ino), APPEND, file.path + source, *fields)
        end = reply.offset + length
        if file.noticed:
            file.noticed = file.hint == b""
        self._changed(file.ino)
        file.size, file.cuts = max(file.size, end), reply.cuts
        if file.dirty is not None:
            file.dirty.update(
                chunk_server(file.ino, chunk, self.servers)
                for chunk, _, _ in split(reply.offset, length, file.chunk_size)
            )
        return end

    def truncate(self, path, size):
        """Set the size of the file at ``path``."""
        self.setattr(path, SET_SIZE, size=size)

    def ftruncate(self, file, size):
        """Set the size of an open file."""
        self.fsetattr(file, SET_SIZE, size=size)

    def extend(self, file, end, begin=None):
        """Make an open file at least ``end`` bytes long; from ``begin`` on it was written."""
        begin = end if begin is None else begin
        reply, _ = self._call(home(file.ino), EXTEND, file.path, file.ino, begin, end, file.cuts)
        file.size = reply.size
        self._changed(file.ino)
        if self.mapped[0]:
            self.images().resized(file.ino, file.size)

    def fallocate(self, file, mode, offset, length):
        """Allocate, punch or zero a range of an open file; ``mode`` is one of FALLOC_FL_*."""
        end = offset + length
        if self.mapped[0]:
            self.images().synced(file.ino, offset, end)
        step = file.chunk_size * FALLOCATE_CHUNKS * self.servers
        if not mode & FALLOC_PUNCH_HOLE and length > step:
            stored = self.getattr(file).blocks << 9
            block, _, _, available, _, _ = self.statfs()
            if length - stored > available * block:
                raise fail(errno.ENOSPC)
            while end - offset > step:  # the size changes with the last part, when all is there
                self._fallocate(file, mode | FALLOC_KEEP_SIZE, offset, step)
                offset += step
        self._fallocate(file, mode, offset, end - offset)
        if self.mapped[0]:
            self.images().resized(file.ino, file.size)
            self.images().changed(file.ino, end - length, end)

    def _fallocate(self, file, mode, offset, length):
        reply, _ = self._call(home(file.ino), FALLOCATE, file.path, file.ino, mode, offset, length)
        attr = ATTR.unpack(reply.attr)
        file.size, file.cuts = attr.size, attr.cuts
        self._changed(file.ino)

    def seek(self, file, offset, hole):
        """Where data, or a hole, begins in an open file, at or after ``offset``; the end of the file is a hole.  Raises
        ENXIO at and beyond the end of the file, and when there is no data any more."""
        if self.mapped[0]:
            self.images().synced(file.ino)
        base, chunk_size = home(file.ino), file.chunk_size
        chunk = offset // chunk_size
        near = {base, chunk_server(file.ino, chunk, self.servers)}
        size, place = self._seek(file, near, offset, hole)
        if offset >= size:
            raise fail(errno.ENXIO)
        last = (size - 1) // chunk_size
        if place // chunk_size != chunk and chunk != last:  # else nothing elsewhere can come before
            others = {
                chunk_server(file.ino, other, self.servers)
                for other in range(chunk, min(last, chunk + self.servers) + 1)
            }
            place = min(place, self._seek(file, others - near, offset, hole)[1])
        if place >= size:
            if not hole:
                raise fail(errno.ENXIO)
            return size
        return place

    def _seek(self, file, servers, offset, hole):
        """``(size of the file or 0, first place)`` that ``servers`` know of."""
        base, size, places = home(file.ino), 0, [SEEK_NONE]
        asked = dict.fromkeys(sorted(servers), offset)
        while asked:
            calls = [
                (server, SEEK, file.path if server == base else b"", (file.ino, at, file.chunk_size, hole), None, None)
                for server, at in asked.items()
            ]
            pending = {}
            for (server, *_), (reply, _) in zip(calls, self._many(calls)):
                if server == base:
                    size = reply.size
                if reply.done:
                    places.append(reply.offset)
                else:
                    pending[server] = reply.offset
            asked = {server: at for server, at in pending.items() if at < min(places)}
        return size, min(places)

    def statfs(self):
        """``(block, blocks, free, available, files, files_free)`` summed over the servers, in units of ``block`` bytes.

        Servers whose stores are on one file system share its space, which counts once."""
        calls: list = [(server, STATFS, b"", (), None, None) for server in range(self.servers)]
        replies = list({reply.device: reply for reply, _ in self._many(calls)}.values())
        block = max(replies[0].block, 1)
        scaled = [
            sum(getattr(reply, name) * reply.block for reply in replies) // block
            for name in ("blocks", "free", "available")
        ]
        return (block, *scaled, sum(reply.files for reply in replies), sum(reply.files_free for reply in replies))

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
