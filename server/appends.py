# SPDX-License-Identifier: Apache-2.0
"""What is written with O_APPEND: stored by the file's home, one record after another.

The home has the bytes stored where the file ends, here or on other servers (STORE), and makes the file longer when they
are: so nobody sees the range before it is written, and a record that is refused leaves nothing.  While other servers
are asked the home holds the inode; what else is to be appended meanwhile stands in line, and small records of it are
stored together.  See docs/decisions/0097.
"""
import asyncio
import errno
from collections import deque

from pymadfs.errors import fail
from pymadfs.layout import chunk_server, split
from pymadfs.ops import APPEND, APPEND_MAX, ATTR, STORE
from pymadfs.wire import EAGER_LIMIT

from .data import put_bytes, store_bytes
from .directories import Wait
from .dispatch import DEFERRED, serves
from .meta import SIZE_MAX, cuts_of, inode_key, is_file, now_ns, size_of, without_privileges, written
from .sizes import cut_to

TOGETHER_BYTES = EAGER_LIMIT  # small records up to so many bytes are stored at once
RECEIVED_MAX = 16  # large records in one line whose data is here already
TURN_S = 1.0  # for so long the next part of a record is waited for


class Record:
    """What a request appends; ``turn`` names what it is a part of, if that is longer.  ``data`` is None as long as it
    has not been received, else in ``buffer``, or in the request."""

    __slots__ = ("buffer", "data", "hint", "length", "request", "turn")

    def __init__(self, request, data=None):
        fields = request.fields
        self.request, self.data, self.length, self.buffer = request, data, fields.length, None
        self.hint = request.tail[:fields.hint]
        self.turn = (request.conn, fields.turn) if fields.turn else None

    async def receive(self, server):
        buffer = server.buffer(self.length)
        data = memoryview(buffer)[:self.length]
        await server.receive(self.request, data)
        self.buffer, self.data = buffer, data


class Line:
    """Records that wait to be appended to one file; while it is somebody's ``turn`` his go first."""

    def __init__(self):
        self.turn, self._waiting, self._came = None, deque(), asyncio.Event()
        self.received = 0

    def __len__(self):
        return len(self._waiting)

    def add(self, record):
        self.received += record.buffer is not None
        if self.turn and record.turn == self.turn:
            self._waiting.appendleft(record)
            self._came.set()
        else:
            self._waiting.append(record)

    async def next(self):
        """The records to be stored next, together; none when nobody waits any more."""
        if self.turn and not (self._waiting and self._waiting[0].turn == self.turn):
            self._came.clear()
            try:
                await asyncio.wait_for(self._came.wait(), TURN_S)
            except TimeoutError:  # who began is stopped, or gone
                self.turn = None
        if not self._waiting:
            return []
        first = self._waiting.popleft()
        self.received -= first.buffer is not None
        self.turn = first.turn if first.request.fields.more else None
        records, length = [first], first.length
        while not (first.turn or first.request.bulk) and self._waiting:
            length += self._waiting[0].length
            if length > TOGETHER_BYTES or self._waiting[0].turn or self._waiting[0].request.bulk:
                break
            records.append(self._waiting.popleft())
        return records


@serves(APPEND)
def append(server, request):
    ino, length, hint_length, turn, _ = request.fields
    if length > APPEND_MAX or request.bulk not in (0, length):
        raise fail(errno.EPROTO)
    line = server.appends.get(ino)
    if request.bulk:
        return _receive(server, request)
    data = memoryview(request.tail)[hint_length:]
    if len(data) != length:
        raise fail(errno.EPROTO)
    if line is not None:
        line.add(Record(request, data))
        return DEFERRED
    if not turn:
        server.free_bytes(ino, request.conn, request.tail[:hint_length])
        reply = _append_here(server, request, data)
        if reply is not None:
            return reply
    return _join(server, Record(request, data))


def _append_here(server, request, data):
    """Append at once what goes into a chunk of this server; None when it does not, or is refused."""
    ino = request.fields.ino
    key, value = server.meta.find(ino, request.tail[:request.fields.hint])
    attr = _checked(value, len(data))
    chunk, within = divmod(attr.size, attr.chunk_size)
    if within + len(data) > attr.chunk_size or chunk_server(ino, chunk, server.servers) != server.number:
        return None
    try:
        put_bytes(server, ino, chunk, within, data)
    except OSError:  # who stands in line has what was stored of it taken back, and is told why
        return None
    _grow(server, key, value, attr.size + len(data), [request])
    return (attr.size, attr.cuts), b""


def _checked(value, length):
    if not is_file(value):
        raise fail(errno.EINVAL)
    if size_of(value) + length > SIZE_MAX:
        raise fail(errno.EFBIG)
    return ATTR.unpack(value)


def _grow(server, key, value, end, requests):
    """What ``requests`` append up to ``end`` is stored."""
    ino, begin = requests[0].fields.ino, size_of(value)
    value = written(value, begin, end, now_ns())
    for request in requests:
        value = without_privileges(value, request)
    if server.extensions:
        server.extensions.stored(ino, end, begin)
    server.kv.put(key, value)
    server.read_lately.discard(ino)
    server.bytes_in += end - begin


async def _receive(server, request):
    record, line = Record(request), server.appends.get(request.fields.ino)
    if line is None or line.received < RECEIVED_MAX:
        await record.receive(server)
    return await _join(server, record)


async def _join(server, record):
    """Stand in line; the first one sees to it that all are served."""
    ino = record.request.fields.ino
    line = server.appends.get(ino)
    if line is not None:
        line.add(record)
        return DEFERRED
    line = server.appends[ino] = Line()
    line.add(record)
    try:
        while records := await line.next():
            here = [record for record in records if record.request.conn in server.conns]
            if here:
                await _serve(server, ino, line, here)
            else:
                line.turn = None
    finally:
        del server.appends[ino]
    return DEFERRED


async def _serve(server, ino, line, records):
    """Append the records, as many as are not refused, and answer."""
    begin = done = cuts = 0
    try:
        if records[0].data is None:
            await records[0].receive(server)
        await _hold(server, ino, records)
        try:
            begin, done, cuts, error = await _append(server, ino, records)
        finally:
            server.dirs.let_go(inode_key(ino))
    except OSError as failure:
        error = failure
    at = 0
    for record in records:
        at += record.length
        if at > done:
            line.turn = None
            server.rpc.fail(record.request, error)
            continue
        server.rpc.reply(record.request, (begin + at - record.length, cuts))
        if record.buffer is not None and error is None:  # else it may still be sent
            server.recycle(record.buffer)
    server.posted()
    await asyncio.sleep(0)  # who waits for the inode goes before those in line


async def _hold(server, ino, records):
    conns = {record.request.conn for record in records}
    conn = conns.pop() if len(conns) == 1 else None  # of what is lent, see loans.py: nobody has it alone
    while True:
        try:
            server.free_bytes(ino, conn, records[0].hint)
            server.dirs.hold(inode_key(ino))
            return
        except Wait as wait:
            await wait.make()


async def _append(server, ino, records):
    """-> where the file ended, how many bytes are stored behind that, the number of the last cut, and why it is not
    all of them.  REQUIRES: the inode is held."""
    hint, data = records[0].hint, records[0].data
    if len(records) > 1:
        data = memoryview(b"".join([record.data for record in records]))
    attr = _checked(server.meta.find(ino, hint)[1], len(data))
    begin, end = attr.size, attr.size + len(data)
    stored, error = await _store(server, attr, data)
    requests, done = [], 0
    for record in records:  # whole ones only
        if done + record.length > stored:
            break
        done += record.length
        requests.append(record.request)
    key, value = server.meta.find(ino, hint)
    if requests:
        _grow(server, key, value, begin + done, requests)
    if error:
        await _take_back(server, ino, hint, begin + done, end)
    server.commit()
    return begin, done, cuts_of(server.meta.find(ino, hint)[1]), error


async def _store(server, attr, data):
    """Store ``data`` at the end of the file, everywhere at once; -> how much of it is stored before the first part that
    is refused, and why that is."""
    steps, at = [], 0
    for chunk, within, length in split(attr.size, len(data), attr.chunk_size):
        number, piece = chunk_server(attr.ino, chunk, server.servers), data[at:at + length]
        call = None
        if number != server.number:
            call = server.call_peer(number, STORE, b"", attr.ino, chunk, within, data=piece)
        steps.append((call, chunk, within, piece))
        at += length
    done, error = 0, None
    for call, chunk, within, piece in steps:
        try:
            await (call or store_bytes(server, attr.ino, chunk, within, piece))
        except OSError as failure:
            error = error or failure
        else:
            done += 0 if error else len(piece)
    return done, error


async def _take_back(server, ino, hint, size, end):
    """Drop what may be stored from ``size`` on up to ``end``."""
    try:
        key, value = await cut_to(server, ino, hint, size, end)
    except OSError:  # a server is dead: before the file grows
        _, value = server.meta.find(ino, hint)
        server.strays.note(ino, *divmod(end, ATTR.unpack(value).chunk_size))
        return
    server.kv.put(key, value)
