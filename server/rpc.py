# SPDX-License-Identifier: Apache-2.0
"""Remote procedure calls, the serving side, which calls other servers as well: see pymadfs/wire.py."""
import errno
import itertools
import os
import struct

from pymadfs import door, hearing, ops
from pymadfs.errors import Restart, fail, seen, to_status
from pymadfs.identity import NO_GROUPS
from pymadfs.log import log
from pymadfs.ops import OPS, REPLY, REQUEST
from pymadfs.transport import MESSAGE_MAX, TRANSFER
from pymadfs.wire import (
    BULK_OUT_TAG,
    EAGER_LIMIT,
    FSYNC_REPLY_TAG,
    GROUP_SETS_MAX,
    ID_LOW,
    REPLY_CODECS,
    REPLY_TAG,
    REQUEST_CODECS,
    REQUEST_TAG,
    Made,
    Peer,
    bulk_in_tag,
    decode,
    new_ids,
    real_transport,
    reply_header,
    request_header,
)

from .visitors import Conn, Lost, Request, ServerPeer, may_have_come

TRIES = 3  # of a call that may be repeated, when the other server dies
LEFT_MAX = 1 << 16  # connections of former lives of a server of which is known what came

_LOW = (1 << ops.TAG_SHIFT) - 1
_CONN_MASK = (1 << 64) - 1 ^ ID_LOW  # kind and connection of a TAG_BULK_IN
_REQUEST_SIZE = REQUEST.size
_new = tuple.__new__
_new_object = object.__new__


def _parser(number):
    """What the server needs of an operation: Op, reader and size of the fields, data, whether only servers ask."""
    op = OPS.get(number)
    if op is None:
        return None, None, 0, None, False
    return op, struct.Struct("<" + op.request.format).unpack_from, op.request.size, op.data, op.peer


_PARSERS = Made(_parser)  # by number: of 16 bits, so that garbage cannot make it grow for ever


class Service:
    """The serving side of one server, on its event loop's thread.

    ``address`` is the transport's address; ``counters`` counts requests by operation name, and ``"garbage"``;
    ``arrivals`` is what ``arrivals()`` of a former life of this process gave.
    """

    def __init__(self, cluster, number, config, transport=None, arrivals=()):
        self.cluster, self.number, self.config = cluster, number, config
        self.secret, self.servers = cluster.secret, len(cluster.servers)
        self._transport = transport = transport or real_transport()(config)
        self.address = transport.address
        self.counters = {op.name: 0 for op in OPS.values()}
        self.counters["garbage"] = 0
        self._eager_max = min(config.eager_max, EAGER_LIMIT)
        self._conns = {}
        self._left = dict(arrivals)
        self._numbers = itertools.count(max(self._left, default=0) + 1)
        self._ends = False  # this process will begin anew
        self.probing = 0  # id of a message to ourselves that has not come yet
        self._transfers = {}  # token -> (conn id, Future or None, what has to stay in memory, expected length)
        self._ids = new_ids()
        self._calls = {}  # request id -> (Future, server number, Op, timer)
        self._peers = {}  # server number -> ServerPeer
        self._limit_s = config.timeout_ms / 1000
        self.lost = None  # called with the number of a server whose connection was lost

    # --- event loop -------------------------------------------------------------------------------------------------

    def fileno(self):
        """Descriptor that becomes readable when there is something to poll for, once :meth:`arm` said True."""
        return self._transport.fileno()

    def arm(self):
        """True: sleep on ``fileno()``; False: poll again first."""
        return self._transport.arm()

    @property
    def pending(self):
        """Transfers and calls of other servers under way."""
        return len(self._transfers) + len(self._calls)

    def poll(self, spin_us=0, limit=64):
        """Requests that came, at most ``limit``; waits up to ``spin_us`` for one.  Ends transfers and calls of peers.

        Never raises because of what was received: garbage is counted, and answered with EPROTO where that is possible.
        """
        requests = []
        for tag, offset, length, status, what in self._transport.poll(spin_us, limit):
            kind = tag >> ops.TAG_SHIFT
            if what == TRANSFER:
                self._transferred(tag, length, status)
            elif status:
                self.counters["garbage"] += 1
            elif kind == ops.TAG_REQUEST or kind == ops.TAG_FSYNC:
                request = self._parse(offset, length, tag & _LOW, kind == ops.TAG_FSYNC)
                if request is not None:
                    requests.append(request)
            elif kind == ops.TAG_REPLY and length >= REPLY.size:
                self._answered(offset, length)
            else:
                self.counters["garbage"] += 1
        return requests

    def _parse(self, offset, length, tag_conn, fsync):
        """The message as a Request; None when it is garbage, which is counted and, if possible, answered."""
        if length < _REQUEST_SIZE:
            self.counters["garbage"] += 1
            return None
        arena = self._transport.arena
        number, groups, conn_id, request_id, uid, gid, bulk, tail_length = request_header(arena, offset)
        conn = self._conns.get(conn_id)
        if conn is None or conn_id != tag_conn or request_id > _LOW:
            self.counters["garbage"] += 1
            return None
        if conn.handle is None and not self._connect_back(conn_id, conn):
            return None
        op, fields, fields_size, data, only_servers = _PARSERS[number]
        start = offset + _REQUEST_SIZE
        end = start + fields_size
        if op is None or end + tail_length != offset + length or bulk and data is None:
            return self._refuse(conn, request_id, fsync, errno.EPROTO)
        if only_servers and conn.kind != door.KIND_SERVER:
            return self._refuse(conn, request_id, fsync, errno.EPERM)
        self.counters[op.name] += 1
        conn.newest.append(request_id)
        request = _new_object(Request)
        request.op, request.id, request.conn, request.uid, request.gid = op, request_id, conn_id, uid, gid
        request.fields = _new(op.request.type, fields(arena, start))
        request.tail = bytes(arena[end:end + tail_length]) if tail_length else b""
        request.bulk, request.fsync = bulk, fsync
        request.groups = conn.groups.get(groups, NO_GROUPS) if groups else NO_GROUPS
        request.unread = 0
        if bulk and data == "request":
            request.unread = bulk
            conn.unread.add(request_id)
        return request

    def _refuse(self, conn, request_id, fsync, code):
        self.counters["garbage"] += 1
        tag = (FSYNC_REPLY_TAG if fsync else REPLY_TAG) | request_id
        self._transport.send(conn.handle, tag, REPLY.pack(request_id, code, 0), b"")

    # --- replies ----------------------------------------------------------------------------------------------------

    def reply(self, request, fields=(), tail=b"", data=None):
        """Answer with the reply's ``fields`` and ``tail`` (bytes); ``data`` (bytes-like) is what the caller reads.

        ``data`` goes within the reply when it is small, else from its memory, kept until it is sent.  Raises
        struct.error when the fields do not fit the operation, OSError EMSGSIZE when the tail is too long.
        """
        op, conn = request.op, self._conns.get(request.conn)
        if request.unread:
            self._discard(request)
        if conn is None or op.oneway:
            return
        bulk = 0
        if data is not None:
            bulk = len(data)
            if bulk <= self._eager_max or bulk > request.bulk:
                tail, bulk = (tail + bytes(data) if tail else data), 0
        head = REPLY_CODECS[op].pack(request.id, 0, bulk, *fields)
        if len(head) + len(tail) > MESSAGE_MAX:
            raise fail(errno.EMSGSIZE)
        if bulk:
            self._send_bulk(conn, request, data)
        self._transport.send(conn.handle, (FSYNC_REPLY_TAG if request.fsync else REPLY_TAG) | request.id, head, tail)

    def fail(self, request, error):
        """Answer with ``error``: OSError and Restart arrive as such, else it is a defect, logged and EIO there."""
        status, tail = to_status(error)
        if status == errno.EIO and not isinstance(error, OSError):
            log(f"server {self.number}: {request!r} failed: {type(error).__name__}: {error}")
        conn = self._conns.get(request.conn)
        if request.unread:
            self._discard(request)
        if conn is not None and not request.op.oneway:
            tag = (FSYNC_REPLY_TAG if request.fsync else REPLY_TAG) | request.id
            self._transport.send(conn.handle, tag, REPLY.pack(request.id, status, 0), tail)

    async def receive(self, request, view):
        """Receive the ``request.bulk`` bytes that the caller sends into ``view`` (writable, at least that long).

        Raises OSError ECONNRESET when the caller dies, EPROTO when it sends another length, ETIMEDOUT.
        """
        conn = self._conns.get(request.conn)
        if conn is None:
            raise fail(errno.ECONNRESET)
        request.unread = 0
        token = self._transport.receive_bulk(bulk_in_tag(request.conn, request.id), view[:request.bulk])
        if token <= 0:
            conn.unread.discard(request.id)
            if token < 0:
                raise fail(-token)
            return
        import asyncio
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        conn.transfers.add(token)
        self._transfers[token] = (request.conn, future, view, request.bulk)
        timer = loop.call_later(self._limit_s, self._transport.cancel, token)
        try:
            await future
        finally:
            conn.unread.discard(request.id)
            timer.cancel()
            if not future.done() or future.cancelled():
                self._transport.cancel(token)

    def _send_bulk(self, conn, request, data):
        token = self._transport.send_bulk(conn.handle, BULK_OUT_TAG | request.id, data)
        if token > 0:
            conn.transfers.add(token)
            self._transfers[token] = (request.conn, None, data, 0)

    def _discard(self, request):
        """Let the caller finish sending what nobody wants."""
        request.unread = 0
        conn = self._conns.get(request.conn)
        if conn is not None:
            conn.unread.discard(request.id)
            token = self._transport.discard(bulk_in_tag(request.conn, request.id))
            if token > 0:
                conn.transfers.add(token)
                self._transfers[token] = (request.conn, None, None, 0)

    def _transferred(self, token, length, status):
        conn_id, future, _, expected = self._transfers.pop(token, (None, None, None, 0))
        conn = self._conns.get(conn_id)
        if conn is not None:
            conn.transfers.discard(token)
        if future is not None and not future.done():
            if status == 0 and length == expected:
                future.set_result(None)
            else:
                code = -status if status else errno.EPROTO
                future.set_exception(fail((errno.ECONNRESET if conn is None else errno.ETIMEDOUT)
                                          if code == errno.ECANCELED else code))

    # --- visitors ---------------------------------------------------------------------------------------------------

    def accept(self, kind, address, process=None):
        """Let a visitor in whose transport is at ``address`` (bytes); -> its connection id.  Raises OSError."""
        conn_id = next(self._numbers)
        self._conns[conn_id] = Conn(address, kind)
        return conn_id

    def announced(self, conn_id, number, groups):
        """GROUPS came: later requests of the visitor may be in the name of a member of ``groups``."""
        conn = self._conns.get(conn_id)
        if conn is not None and 0 < number <= GROUP_SETS_MAX:
            conn.groups[number] = frozenset(groups)

    def _connect_back(self, conn_id, conn):
        """Connect to a visitor once it has sent something, for then its connection serves both ways; -> success."""
        if self._ends and conn.kind != door.KIND_SERVER:
            return False  # the reply might get lost; it asks again when we have begun anew
        try:
            conn.handle = self._transport.connect(conn.address, -1)
        except OSError as error:
            log(f"server {self.number}: visitor {conn_id} cannot be answered: {error.strerror}")
            self.forget(conn_id)
            return False
        return True

    def arrivals(self):
        """``[(connection, what Conn.left() says)]``, for who goes on in our place."""
        here = [(number, conn.left()) for number, conn in self._conns.items()]
        return [*self._left.items(), *here][-LEFT_MAX:]

    def arrived(self, conn_id, request_id):
        """Whether a former life of this process may have done anything for that request."""
        left = self._left.get(conn_id)
        return left is None or may_have_come(left, request_id)

    def renew(self):
        """Our transport is deaf: another takes its place for what is under way.  Calls are made again where they may
        be, to answer those who visit by the old one until they come again.  Raises OSError."""
        transport = hearing.Successor(self._transport, self._transport.another())
        for server in list(self._peers):
            self._lose(server, "this server's queue is blocked")
        self._transport, self.address, self._ends = transport, transport.address, True

    def probe(self):
        """Send ourselves a message as others do; -> its Probe.  ``probing`` is 0 once it came.  Raises OSError."""
        self.probing = next(self._ids)
        return hearing.Probe(self._transport, self.probing)

    def forget(self, conn_id):
        """The visitor is gone: end its transfers, release what it cost."""
        conn = self._conns.pop(conn_id, None)
        if conn is not None:
            for token in conn.transfers:
                self._transport.cancel(token)
            if conn.handle is not None:
                self._transport.disconnect(conn.handle)
            self._transport.purge(bulk_in_tag(conn_id, 0), _CONN_MASK)

    def close(self):
        """End all connections; what is under way fails."""
        for conn_id in list(self._conns):
            self.forget(conn_id)
        for server in list(self._peers):
            self._lose(server, "this server stops")
        self._transport.close()

    # --- calls of other servers -------------------------------------------------------------------------------------

    def call_peer(self, server, op, tail=b"", *fields, data=None):
        """Ask another server; -> asyncio.Future of (reply fields, tail).

        ``data`` (bytes-like) is that of the request; after an error it may be read for a while yet.  It fails with what
        the other answered, or OSError EIO when it is dead or silent; an operation that may be repeated is tried twice
        more after reconnecting.
        """
        import asyncio
        loop, bulk = asyncio.get_running_loop(), None
        if data is not None:
            if len(data) <= self._eager_max:
                tail += bytes(data)
            else:
                bulk = data
        state = self._peers.get(server)
        if not op.retry and state is not None and state.peer is not None:
            task = self._ask(loop, loop.create_future(), state, server, op, next(self._ids), tail, fields, bulk)
        else:
            task = loop.create_task(self._call_peer(server, op, tail, fields, bulk))
        task.add_done_callback(seen)
        return task

    async def _call_peer(self, server, op, tail, fields, bulk):
        import asyncio
        loop = asyncio.get_running_loop()
        request_id = next(self._ids)
        for _ in range(TRIES):
            state = await self._meet(loop, server)
            try:
                return await self._ask(loop, loop.create_future(), state, server, op, request_id, tail, fields, bulk)
            except Lost:  # it may be repeated
                continue
        raise fail(errno.EIO)

    def _ask(self, loop, future, state, server, op, request_id, tail, fields, bulk):
        peer = state.peer
        length = 0 if bulk is None else len(bulk)
        head = REQUEST_CODECS[op].pack(op.number, 0, peer.conn, request_id, 0, 0, length, len(tail), *fields)
        if len(head) + len(tail) > MESSAGE_MAX:
            raise fail(errno.EMSGSIZE)
        timer = loop.call_later(self._limit_s, self._late, request_id)
        self._calls[request_id] = (future, server, op, timer)
        state.calls.add(request_id)
        self._transport.send(peer.handle, REQUEST_TAG | peer.conn, head, tail)
        if length:
            token = self._transport.send_bulk(peer.handle, bulk_in_tag(peer.conn, request_id), bulk)
            if token > 0:
                self._transfers[token] = (None, None, bulk, 0)
        return future

    async def _meet(self, loop, server):
        """The state of ``server`` once it is met; knocking happens on a thread, for it may take a while."""
        state = self._peers.setdefault(server, ServerPeer())
        if state.peer is not None:
            return state
        if state.meeting is None:
            state.meeting = loop.create_task(self._knock(loop, server, state))
            state.meeting.add_done_callback(seen)
        import asyncio
        await asyncio.shield(state.meeting)
        return state

    async def _knock(self, loop, server, state):
        entry = self.cluster.servers[server]
        try:
            visit = await loop.run_in_executor(None, self._transport.knock, entry, self.secret, door.KIND_SERVER,
                                               self.config.connect_ms)
            handle = self._transport.connect(visit.address, -1)
        except OSError as error:
            log(f"server {self.number}: server {server} ({entry.host}:{entry.port}) cannot be reached: "
                f"{error.strerror or error}; start it again on the same store")
            raise fail(errno.EIO) from None
        finally:
            state.meeting = None
        state.peer = Peer(self._transport, handle, visit.conn, visit.door, loop)
        if visit.door >= 0:
            loop.add_reader(visit.door, self._door_speaks, server, visit.door)

    def _door_speaks(self, server, connection):
        try:
            if os.read(connection, 4096):
                return
        except BlockingIOError:
            return
        except OSError:
            pass  # as good as end of file
        self._lose(server, "it died")

    def _lose(self, server, why):
        state = self._peers.pop(server, None)
        if state is None or state.peer is None:
            return
        peer = state.peer
        entry = self.cluster.servers[server]
        if state.calls:
            log(f"server {self.number}: lost server {server} ({entry.host}:{entry.port}) with {len(state.calls)} calls "
                f"under way: {why}")
        for request_id in list(state.calls):
            self._end(request_id, error=Lost() if self._calls[request_id][2].retry else fail(errno.EIO))
        self._transport.disconnect(peer.handle)
        if peer.door >= 0:
            peer.loop.remove_reader(peer.door)
            peer.shut_door()
        if self.lost is not None:
            self.lost(server)

    def _late(self, request_id):
        call = self._calls.get(request_id)
        if call is not None:
            log(f"server {self.number}: server {call[1]} did not answer {call[2].name} within "
                f"{self.config.timeout_ms} ms")
            self._end(request_id, error=fail(errno.EIO))

    def _answered(self, offset, length):
        arena = self._transport.arena
        request_id = reply_header(arena, offset)[0]
        call = self._calls.get(request_id)
        if call is None:
            if request_id == self.probing:
                self.probing = 0
            return  # it came too late
        try:
            result = decode(bytes(arena[offset:offset + length]), call[2])
        except (OSError, Restart) as error:
            self._end(request_id, error=error)
        else:
            self._end(request_id, result=result)

    def _end(self, request_id, result=None, error=None):
        future, server, _, timer = self._calls.pop(request_id)
        timer.cancel()
        state = self._peers.get(server)
        if state is not None:
            state.calls.discard(request_id)
        if future.done():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)
