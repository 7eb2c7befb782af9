# SPDX-License-Identifier: Apache-2.0
"""Where a file has data and where holes, on this server and, at its home, everywhere; and when it was last read.

Chunk files are sparse files of the local file system, which knows its holes; bytes in the key-value store are data.
FALLOCATE is made by the file's home, which holds the inode and asks all servers that have a part (RESHAPE).  What may
come to lie above the size is marked in the inode first (FLAG_BEYOND), so that it is found when the file goes.
"""
import errno
import os
import struct

from pymadfs.config import CHUNK_SIZE_MAX
from pymadfs.errors import fail
from pymadfs.layout import chunk_server, home
from pymadfs.ops import ACCESSED, ATTR, FALLOCATE, FLAG_BEYOND, RESHAPE, SEEK, SEEK_NONE

from . import allocation
from .allocation import KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE
from .dispatch import serves
from .meta import (
    AT_ATIME,
    AT_MTIME,
    SIZE_MAX,
    changed,
    data_key,
    inode_key,
    is_directory,
    is_file,
    now_ns,
    pages,
    size_of,
    without_privileges,
)

MODES = {0, KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE, ZERO_RANGE | KEEP_SIZE}
SEEK_PAGE = 64  # chunks looked at at once
SEEK_PAGES = 16
RESHAPE_PAGE = 64
DAY_NS = 86400 * 10**9
READ_LATELY_MAX = 1 << 16

_TIMES = struct.Struct("<qqq")
_TIME = struct.Struct("<q")


# --- when it was read -----------------------------------------------------------------------------------------------


def accessed(server, ino, hint):
    """An inode that lives here was read: its atime becomes now, if it is not newer than the other times or a day old
    (relatime).  Written within 100 ms, not with the reply."""
    try:
        key, value = server.meta.find(ino, hint)
    except OSError:  # removed meanwhile
        return
    touch_atime(server, key, value)
    if len(server.read_lately) >= READ_LATELY_MAX:
        server.read_lately.clear()
    _, mtime, ctime = _TIMES.unpack_from(value, AT_ATIME)
    if now_ns() > max(mtime, ctime):
        server.read_lately.add(ino)


def touch_atime(server, key, value, modified=False):
    """``modified``: since it was read last, probably; its mtime does not show it yet."""
    now = now_ns()
    atime, mtime, ctime = _TIMES.unpack_from(value, AT_ATIME)
    if modified or atime <= mtime or atime <= ctime or now - atime >= DAY_NS:
        server.kv.lazy(key, value[:AT_ATIME] + _TIME.pack(now) + value[AT_MTIME:])
        server.write_lazily_soon()


@serves(ACCESSED)
def accessed_(server, request):
    accessed(server, request.fields.ino, request.tail)
    return (), b""


# --- where it has data ----------------------------------------------------------------------------------------------


@serves(SEEK)
def seek(server, request):
    ino, offset, chunk_size, hole = request.fields
    if not 0 < chunk_size <= CHUNK_SIZE_MAX or offset > SIZE_MAX:
        raise fail(errno.EPROTO)
    size = size_of(server.meta.find(ino, request.tail)[1]) if request.tail else 0
    first, within = divmod(offset, chunk_size)
    if not first:
        inline = server.chunks.read_inline(ino, 0, chunk_size)
        if inline is not None:
            if within < len(inline):
                if not hole:
                    return (offset, 1, size), b""
                if len(inline) < chunk_size:
                    return (len(inline), 1, size), b""
                offset = chunk_size
            elif hole:
                return (offset, 1, size), b""
    return _seek(server, ino, offset, chunk_size, hole, size)


async def _seek(server, ino, offset, chunk_size, hole, size):
    """Look through the chunk files, a page at a time."""
    find = _find_hole if hole else _find_data
    for _ in range(SEEK_PAGES):
        server.commit()
        first = offset // chunk_size
        found = server.chunks.numbers(ino, first, SEEK_PAGE)
        if not found and not hole:
            return (SEEK_NONE, 1, size), b""
        place = await server.io(find, server, ino, offset, chunk_size, found)
        if place is not None:
            return (min(place, SEEK_NONE), 1, size), b""
        if not hole and len(found) < SEEK_PAGE:
            return (SEEK_NONE, 1, size), b""
        offset = (found[-1] + 1) * chunk_size
    return (offset, 0, size), b""


def _find_data(server, ino, offset, chunk_size, found):
    """The first byte of data in the chunks ``found``, or None."""
    for chunk in found:
        begin = chunk * chunk_size
        place = server.chunks.seek_file(ino, chunk, max(0, offset - begin), os.SEEK_DATA)
        if place is not None and place < chunk_size:
            return begin + place
    return None


def _find_hole(server, ino, offset, chunk_size, found):
    """The first hole in the chunks of this server from that of ``offset`` on; None: none up to the last ``found``."""
    first = offset // chunk_size
    mine = first + (server.number - home(ino) - first) % server.servers
    for chunk in found:
        if chunk != mine:
            break
        begin = chunk * chunk_size
        place = server.chunks.seek_file(ino, chunk, max(0, offset - begin), os.SEEK_HOLE)
        if place is None or place < chunk_size:
            return max(offset, begin) if place is None else begin + place
        mine += server.servers
    else:
        if len(found) == SEEK_PAGE:
            return None
    return max(offset, mine * chunk_size)


# --- allocation -----------------------------------------------------------------------------------------------------


@serves(FALLOCATE)
def fallocate(server, request):
    ino, mode, offset, length = request.fields
    server.free_bytes(ino, request.conn, request.tail)
    _, value = server.meta.find(ino, request.tail)
    if not is_file(value):
        raise fail(errno.EISDIR if is_directory(value) else errno.ENODEV)
    if mode not in MODES:
        raise fail(errno.EOPNOTSUPP)
    if not length or offset + length > SIZE_MAX:
        raise fail(errno.EFBIG if length else errno.EINVAL)
    return _fallocate(server, request)


async def _fallocate(server, request):
    ino, mode, offset, length = request.fields
    held = inode_key(ino)
    server.dirs.hold(held)
    try:
        await server.cuts.drained(ino)
        key, value = server.meta.find(ino, request.tail)
        attr = ATTR.unpack(value)
        end = offset + length
        if mode & PUNCH_HOLE:
            end = min(end, max(attr.size, offset))  # what is allocated above stays, as with ext4
        elif end > attr.size:
            value = changed(value, flags=attr.flags | FLAG_BEYOND)
            server.kv.put(key, value)
            server.commit()
        server.extensions.pop(ino, None)
        grown, error = await reshape_everywhere(server, ino, mode, offset, end - offset, attr.chunk_size)
        key, value = server.meta.find(ino, request.tail)
        size = attr.size
        if not error:
            size = size if mode & KEEP_SIZE else max(size, end)
            now = now_ns()
            flags = attr.flags if not mode & KEEP_SIZE else ATTR.unpack(value).flags
            value = without_privileges(changed(value, mtime_ns=now, ctime_ns=now, flags=flags), request)
        value = changed(value, size=size, blocks=max(0, ATTR.unpack(value).blocks + grown))
        server.kv.put(key, value)
        server.read_lately.discard(ino)
        server.commit()
        if error:
            raise error
    finally:
        server.dirs.let_go(held)
    return (value[:ATTR.size],), b""


async def reshape_everywhere(server, ino, mode, offset, length, chunk_size):
    """Ask all servers that have a part of the range; -> (growth in blocks, the first error or None)."""
    if not length:
        return 0, None
    first, last = offset // chunk_size, (offset + length - 1) // chunk_size
    chunks = range(first, min(last, first + server.servers) + 1)
    numbers = {chunk_server(ino, chunk, server.servers) for chunk in chunks}
    calls = [server.call_peer(number, RESHAPE, b"", ino, mode, offset, length, chunk_size)
             for number in sorted(numbers) if number != server.number]
    grown, error = 0, None
    if server.number in numbers:
        try:
            grown = await reshape_here(server, ino, mode, offset, length, chunk_size)
        except OSError as failure:
            error = failure
    for call in calls:
        try:
            grown += (await call)[0].blocks
        except OSError as failure:
            error = error or failure
    return grown, error


@serves(RESHAPE)
def reshape(server, request):
    ino, mode, offset, length, chunk_size = request.fields
    if mode not in MODES or not length or not 0 < chunk_size <= CHUNK_SIZE_MAX or offset + length > SIZE_MAX:
        raise fail(errno.EPROTO)
    return _reshaped(server, ino, mode, offset, length, chunk_size)


async def _reshaped(server, *fields):
    return (await reshape_here(server, *fields),), b""


async def reshape_here(server, ino, mode, offset, length, chunk_size):
    """Allocate, punch or zero what this server has of [offset, offset + length); -> blocks of 512 bytes more.

    Writes of the file wait meanwhile.
    """
    await server.cuts.begin(ino)
    try:
        if mode & PUNCH_HOLE:
            return await _punch_here(server, ino, offset, offset + length, chunk_size)
        return await _allocate_here(server, ino, mode, offset, offset + length, chunk_size)
    finally:
        server.cuts.end(ino)


async def _allocate_here(server, ino, mode, offset, end, chunk_size):
    first = offset // chunk_size
    mine = range(first + (server.number - home(ino) - first) % server.servers, (end - 1) // chunk_size + 1,
                 server.servers)
    wanted = len(mine) * min(chunk_size, end - offset)
    server.commit()
    if wanted > server.chunks.room():
        have = await server.io(server.chunks.allocated, ino, server.chunks.numbers(ino, first, 1 << 20), mine)
        if wanted - have > server.chunks.room():
            raise fail(errno.ENOSPC)
    work = allocation.zero if mode & ZERO_RANGE else allocation.allocate
    grown = 0
    for at in range(0, len(mine), RESHAPE_PAGE):
        pieces = []
        try:
            for chunk in mine[at:at + RESHAPE_PAGE]:
                begin = max(0, offset - chunk * chunk_size)
                length = min(chunk_size, end - chunk * chunk_size) - begin
                piece = server.chunks.writable(ino, chunk, begin, length)
                server.chunks.pin(piece)
                pieces.append((piece, begin, length))
            server.commit()
            grown += await server.io(_apply, work, pieces)
        finally:
            for piece, _, _ in pieces:
                server.chunks.unpin(piece)
    return grown


def _apply(work, pieces):
    """Do ``work`` with each of ``(piece, offset, length)``; -> blocks of 512 bytes more."""
    grown = 0
    for piece, offset, length in pieces:
        before = os.fstat(piece.fd).st_blocks
        work(piece.fd, offset, length)
        grown += os.fstat(piece.fd).st_blocks - before
    return grown


async def _punch_here(server, ino, offset, end, chunk_size):
    chunks = server.chunks
    first, last = offset // chunk_size, (end - 1) // chunk_size
    grown = _punch_inline(server, ino, offset, end) if not first else 0
    after = first
    while True:
        server.commit()
        page = chunks.numbers(ino, after, RESHAPE_PAGE)
        found = [chunk for chunk in page if chunk <= last]
        whole = [chunk for chunk in found if offset <= chunk * chunk_size and end >= (chunk + 1) * chunk_size]
        pieces = []
        try:
            for chunk in found:
                piece = None if chunk in whole else chunks.piece(ino, chunk)
                if piece is not None:
                    begin = max(0, offset - chunk * chunk_size)
                    chunks.pin(piece)
                    chunks.mark_dirty(ino, chunk)
                    pieces.append((piece, begin, min(chunk_size, end - chunk * chunk_size) - begin))
            grown += await server.io(_apply, allocation.dig, pieces)
        finally:
            for piece, _, _ in pieces:
                chunks.unpin(piece)
        if whole:
            work = [(chunk, 0) for chunk in whole]
            for chunk in whole:
                chunks.drop(ino, chunk)
            chunks.cut_done(ino, work)
            server.commit()
            grown -= await server.io(chunks.remove_files, ino, work)
        if len(found) < RESHAPE_PAGE:
            server.commit()
            return grown
        after = found[-1] + 1


def _punch_inline(server, ino, offset, end):
    """Zeros among the bytes in the key-value store; -> what st_blocks changes by: they are counted in pages."""
    key = data_key(ino)
    data = server.kv.get(key)
    if data is None or offset >= len(data):
        return 0
    kept = data[:offset] if end >= len(data) else data[:offset] + bytes(end - offset) + data[end:]
    if kept:
        server.kv.put(key, kept)
    else:
        server.kv.delete(key)
    return pages(len(kept)) - pages(len(data))
