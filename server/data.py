# SPDX-License-Identifier: Apache-2.0
"""What each operation on bytes does: reading, writing, sizes, durability."""
import asyncio
import errno
import time

from pymadfs.errors import fail
from pymadfs.ops import ATTR, EXTEND, FSYNC, READ, STATFS, STORE, WRITE

from .directories import Wait
from .dispatch import DEFERRED, serves
from .extensions import look_again
from .holes import accessed
from .meta import SIZE_MAX, changed, cuts_of, inode_key, now_ns, size_of, without_privileges, written

CHUNK_BYTES_MAX = 64 << 20
INLINE_IO_BYTES = 1 << 20  # more than this is read and written on a thread
SLOW_S = 0.005
SLOW_FOR_S = 1.0


@serves(READ)
def read(server, request):
    _, _, offset, length = request.fields
    if length > CHUNK_BYTES_MAX:
        raise fail(errno.EINVAL)
    data, piece = _stored(server, request)
    if piece is not None:
        if _may_block(server, length):
            return _read_later(server, request)
        data = _timed(server, piece.read, offset, length)
    return _read(server, request, data)


def _stored(server, request):
    """``(bytes, None)`` of what is to be read, or ``(None, Piece)`` that has it.  The piece is open until something
    else is done with the store, unless it is pinned."""
    ino, chunk, offset, length = request.fields
    data = server.chunks.read_inline(ino, offset, length) if not chunk else None
    if data is not None:
        return data, None
    piece = server.chunks.piece(ino, chunk)
    return (b"", None) if piece is None else (None, piece)


def _read(server, request, data):
    """The reply that carries ``data``, and the file's size when that is of interest and known."""
    ino, _, _, length = request.fields
    count, size = len(data), -1
    if request.tail:
        if count < length:
            size = _size(server, request, count)
        if ino not in server.read_lately:
            server.behind(accessed, ino, request.tail)
    server.bytes_out += count
    return (count, size), b"", data


def _size(server, request, count):
    """The file's size, of which ``count`` bytes are stored of what is to be read.  Raises Wait while the rest is on its
    way."""
    ino, chunk, offset, length = request.fields
    attr = ATTR.unpack(server.meta.find(ino, request.tail)[1])
    if server.extensions:
        begin = chunk * attr.chunk_size + offset
        if server.extensions.growing(ino, begin + count, min(begin + length, attr.size)):
            raise Wait(look_again)
    return attr.size


def _may_block(server, length):
    """Whether chunk files are for the threads now.

    What the page cache has or takes is 1.2 to 2 times as fast without a thread; what has to wait for the disk would
    hold up everybody.  Nobody can tell beforehand: so one slow transfer sends those of the next second to the threads.
    """
    return length > INLINE_IO_BYTES or server.disk_slow_until > time.monotonic()


def _timed(server, transfer, offset, what):
    begin = time.monotonic()
    result = transfer(offset, what)
    now = time.monotonic()
    if now - begin > SLOW_S:
        server.disk_slow_until = now + SLOW_FOR_S
    return result


async def _read_later(server, request):
    """By a thread.  This begins a while after the request came: only now is known what there is to read."""
    _, _, offset, length = request.fields
    data, piece = _stored(server, request)
    if piece is None:
        return _read(server, request, data)
    server.chunks.pin(piece)
    try:
        data = await server.io(piece.read, offset, length)
        if len(data) < length:  # what was stored meanwhile belongs to the size that is told
            data += piece.read(offset + len(data), length - len(data))
    finally:
        server.chunks.unpin(piece)
    return _read(server, request, data)


@serves(WRITE)
def write(server, request):
    ino, chunk, offset, length, end, hint_length, _, _ = request.fields
    if offset + length > CHUNK_BYTES_MAX or end > SIZE_MAX:
        raise fail(errno.EFBIG)
    last = _admitted(server, request)
    if not end:
        server.strays.recent.append((request.conn, ino, chunk, offset + length))
    if request.bulk:
        return _write_bulk(server, request)
    data = memoryview(request.tail)[hint_length:]
    if len(data) != length:
        raise fail(errno.EPROTO)
    put_bytes(server, ino, chunk, offset, data)
    server.bytes_in += length
    return _extended(server, request, end) if end else ((0, last), b"")


@serves(STORE)
def store(server, request):
    ino, chunk, offset = request.fields
    if offset + len(request.tail) + request.bulk > CHUNK_BYTES_MAX:
        raise fail(errno.EFBIG)
    if request.bulk:
        return _store_bulk(server, request)
    _uncut(server, ino)
    server.strays.stored.append((request.conn, ino, chunk, offset + len(request.tail)))
    put_bytes(server, ino, chunk, offset, request.tail)
    return (), b""


async def _store_bulk(server, request):
    ino, chunk, offset = request.fields
    buffer = server.buffer(request.bulk)
    with memoryview(buffer) as whole, whole[:request.bulk] as view:
        await server.receive(request, view)
        await server.cuts.ended(ino)
        server.strays.stored.append((request.conn, ino, chunk, offset + request.bulk))
        await store_bytes(server, ino, chunk, offset, view)
    server.recycle(buffer)
    return (), b""


def put_bytes(server, ino, chunk, offset, data):
    """Store a little in a chunk of this server.  Raises OSError: perhaps a part of it is stored."""
    if chunk or not server.chunks.write_inline(ino, offset, data):
        _timed(server, server.chunks.writable(ino, chunk, offset, len(data)).write, offset, data)


async def store_bytes(server, ino, chunk, offset, data):
    """As put_bytes, perhaps by a thread."""
    if not _may_block(server, len(data)):
        put_bytes(server, ino, chunk, offset, data)
    elif chunk or not server.chunks.write_inline(ino, offset, data):
        await _write_by_thread(server, server.chunks.writable(ino, chunk, offset, len(data)), offset, data)


def _uncut(server, ino):
    """Raises Wait while bytes of the inode are being cut off."""
    if ino in server.cuts.under_way:
        future = server.cuts.under_way[ino]
        raise Wait(lambda: asyncio.shield(future))


def _admitted(server, request):
    """The number of the last cut of the file that was made here, for a write that comes after it.

    Raises Wait while bytes are being cut off, and ENOENT.
    """
    ino, chunk, _, _, end, hint_length, _, cuts = request.fields
    _uncut(server, ino)
    if end or not chunk:
        server.loans.back(ino, request.conn)
    if end:
        server.dirs.free(inode_key(ino))
        if server.strays:
            server.strays.free(ino, request.tail[:hint_length])
        last = cuts_of(server.meta.find(ino, request.tail[:hint_length])[1])
    else:
        last = server.cuts.known.get(ino, 0)
    return last if cuts == last else server.cuts.learn(ino, cuts)


async def _write_bulk(server, request):
    ino, chunk, offset, length, end, _, begin, _ = request.fields
    if request.bulk != length:
        raise fail(errno.EPROTO)
    told = end - begin > length
    if told:
        # Other parts may be stored before this one has come.  A writer that dies meanwhile leaves zeros then, but no
        # bytes behind the end, which would show when the file grows and stay when it is removed.
        await _admitted_later(server, request)
        _extended(server, request, end)
        server.commit()
    buffer = server.buffer(length)
    with memoryview(buffer) as whole, whole[:length] as view:
        await server.receive(request, view)
        last = await _admitted_later(server, request)  # a truncation may have begun meanwhile
        await store_bytes(server, ino, chunk, offset, view)
    server.recycle(buffer)  # not after an error: the transfer may still be writing into it
    server.bytes_in += length
    return _extended(server, request, end, told) if end else ((0, last), b"")


async def _admitted_later(server, request):
    while True:
        try:
            return _admitted(server, request)
        except Wait as wait:
            await wait.make()
            if request.conn not in server.conns:
                raise fail(errno.EIO) from None  # what it left has been looked for already


async def _write_by_thread(server, piece, offset, view):
    ino = piece.key[0]
    server.chunks.pin(piece)
    server.cuts.transfer(ino)
    try:
        server.commit()
        await server.io(piece.write, offset, view)
    finally:
        server.cuts.transferred(ino)
        server.chunks.unpin(piece)


def _extended(server, request, end, told=False):
    """The reply to a write or EXTEND at the file's home, once size and times are set, perhaps not for the first time
    (``told``).  No cut came since the bytes were stored here: it would wait for the transfer."""
    fields = request.fields
    ino = fields.ino
    hint = request.tail[:fields.hint] if request.op is WRITE else request.tail
    key, value = server.meta.find(ino, hint)
    before = size_of(value)
    value = without_privileges(written(value, fields.begin, end, now_ns()), request)
    if fields.cuts > cuts_of(value):  # begun before this server died, and known to others
        value = changed(value, cuts=fields.cuts)
    if request.op is EXTEND or end - fields.begin > fields.length:
        grew = server.extensions.again if told else server.extensions.grew
        grew(ino, request.conn, fields.begin, end, before, fields.cuts)
    elif server.extensions:
        server.extensions.stored(ino, end, before)
    server.kv.put(key, value)
    server.read_lately.discard(ino)
    return (size_of(value), cuts_of(value)), b""


@serves(EXTEND)
def extend(server, request):
    ino, _, end, _ = request.fields
    if end > SIZE_MAX:
        raise fail(errno.EFBIG)
    server.free_bytes(ino, request.conn, request.tail)
    return _extended(server, request, end)


@serves(FSYNC)
def fsync(server, request):
    server.commit(lazily=True)
    server.kv.settle()

    def synced(error):
        if error is None:
            server.rpc.reply(request)
        else:
            server.rpc.fail(request, error)

    server.syncer.request(request.fields.ino, synced)
    return DEFERRED


@serves(STATFS)
def statfs(server, request):
    room = server.chunks.statvfs()
    available = max(0, room.f_bavail - -(-server.chunks.headroom(room) // room.f_frsize))
    return (room.f_frsize, room.f_blocks, room.f_bfree, available, room.f_files, room.f_ffree,
            server.chunks.device), b""
