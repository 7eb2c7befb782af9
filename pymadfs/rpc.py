# SPDX-License-Identifier: Apache-2.0
"""Remote procedure calls: ids, tags, deadlines, retries.  ``Client`` calls; ``Service`` is the serving twin.

A call is one small message each way: REQUEST, the operation's fields, its tail; REPLY, the reply's fields, its tail.
Data of more than ``eager_max`` bytes goes as a message of its own between the two memories.  Tags: a request carries
the connection, a reply and bulk for the caller carry the request id, bulk for the server both::

    kind << 60 | conn                               TAG_REQUEST, TAG_FSYNC
    kind << 60 | request id                         TAG_REPLY, TAG_FSYNC_REPLY, TAG_BULK_OUT
    kind << 60 | conn << 28 | low bits of the id    TAG_BULK_IN

Request ids are ``31 random bits << 28 | counter``: unique in the job, so that a server can recognise a repetition.
This module runs inside other people's programs: no asyncio at import.
"""
import _thread
import errno
import itertools
import os
import struct
import time

from . import cluster as clusters
from . import door, hearing, ops
from .errors import Restart, fail, from_status, seen, to_status
from .identity import NO_GROUPS, Who
from .log import log
from .ops import ARRIVED, FSYNC, OPS, REPLY, REQUEST
from .transport import HEAD_MAX, MESSAGE_MAX, TRANSFER
from .visitors import ID_BITS, ID_LOW, Conn, Lost, Request, ServerPeer, may_have_come

EAGER_LIMIT = 64 << 10
"""Bytes: a larger ``eager_max`` would not leave room for header and paths in a small message."""
TAIL_MAX = 64 << 10
"""Bytes of a tail, either way."""
GROUP_SETS_MAX = 4096
"""Sets of supplementary groups that a connection can tell apart."""
GROUPS_MAX = 16000
"""Groups in a set; a message has no room for more, so the highest ones do not count."""
LEFT_MAX = 1 << 16  # connections of former lives of a server of which is known what came
START_AGAIN = "; start it again on the same store, calls then go on"
TRIES = 3  # of a request that did not come, or may be repeated, after its connection was lost
BLAME_S = 1.0
"""Seconds for which a server that did not answer the door in time is not asked again."""

_REQUEST, _FSYNC, _REPLY, _FSYNC_REPLY, _BULK_IN, _BULK_OUT = (
    kind << ops.TAG_SHIFT
    for kind in (ops.TAG_REQUEST, ops.TAG_FSYNC, ops.TAG_REPLY, ops.TAG_FSYNC_REPLY, ops.TAG_BULK_IN, ops.TAG_BULK_OUT))
_LOW = (1 << ops.TAG_SHIFT) - 1
_CONN_MASK = (1 << 64) - 1 ^ ID_LOW  # kind and connection of a TAG_BULK_IN


def _codec(record, header):
    """Header and fields in one go."""
    codec = struct.Struct("<" + header.format + record.format)
    assert codec.size <= HEAD_MAX
    return codec


class _Made(dict):
    """Values are made by ``make(key)`` when they are first asked for: a client uses few operations."""

    def __init__(self, make):
        super().__init__()
        self._make = make

    def __missing__(self, key):
        value = self[key] = self._make(key)
        return value


_REQUEST_CODECS = _Made(lambda op: _codec(op.request, REQUEST))
_REPLY_CODECS = _Made(lambda op: _codec(op.reply, REPLY))
# For each operation what a call needs of it: writer and size of header and fields, reader of the reply's fields and
# where they end, tags of request and reply.
_CALLS = _Made(lambda op: (
    _REQUEST_CODECS[op].pack_into, _REQUEST_CODECS[op].size, struct.Struct("<" + op.reply.format).unpack_from,
    _REPLY_CODECS[op].size, *((_FSYNC, _FSYNC_REPLY) if op is FSYNC else (_REQUEST, _REPLY))))
_FIELDS_AT = REPLY.size
_reply_header = struct.Struct("<" + REPLY.format).unpack_from
_request_header = struct.Struct("<" + REQUEST.format).unpack_from
_new = tuple.__new__
_new_object = object.__new__


def _parser(number):
    """What the server needs of an operation: Op, reader and size of the fields, data, whether only servers ask."""
    op = OPS.get(number)
    if op is None:
        return None, None, 0, None, False
    return op, struct.Struct("<" + op.request.format).unpack_from, op.request.size, op.data, op.peer


_PARSERS = _Made(_parser)  # by number: of 16 bits, so that garbage cannot make it grow for ever
_REQUEST_SIZE = REQUEST.size


def _bulk_in_tag(conn, request_id):
    return _BULK_IN | conn << ID_BITS | request_id & ID_LOW


def _new_ids():
    return itertools.count(int.from_bytes(os.urandom(4), "little") >> 1 << ID_BITS)


def closed():
    """The error of calls of a client that was closed."""
    return OSError(errno.ESHUTDOWN, "the client was closed")


def _real_transport():
    from .transport.ucx import Ucx  # not before somebody wants it: it loads libucp
    return Ucx


def _close_if_open(fd):
    """In a child whose parent's thread had a table of descriptors of its own, what another thread opened is missing."""
    try:
        os.close(fd)
    except OSError as error:
        if error.errno != errno.EBADF:
            raise


class _Peer:
    """A server we have met: ``handle`` of the ``transport``, whose ``ask`` is at hand, ``conn`` (our id there),
    ``door`` (socket or None) and, in a server, the event ``loop`` that watches it."""

    __slots__ = ("ask", "conn", "door", "handle", "loop", "transport")

    def __init__(self, transport, handle, conn, door, loop=None):
        self.transport, self.ask = transport, transport.ask
        self.handle, self.conn, self.door, self.loop = handle, conn, door, loop


class Client:
    """Calls servers; any thread may.  ``counters`` counts the requests made, by operation name.

    ``who`` (an identity.Who) goes along with each request: see :meth:`identify`.  ``met(server)``, if set, is called
    when a server was connected to.  The transport is opened at the first call.
    """

    def __init__(self, cluster, config, transport=None, uid=0, gid=0, groups=()):
        self.cluster, self.config = cluster, config
        self._group_sets = {}  # groups -> their number, announced to each server
        self.servers = len(cluster.servers)
        self.counters = {op.name: 0 for op in OPS.values()}
        self.met = None
        self._eager_max = min(config.eager_max, EAGER_LIMIT)
        self._timeout_us = config.timeout_ms * 1000
        self._transport = self._second = None
        self._user, self._stranger = uid, False
        self._renewable = transport is None  # else it is a test's
        self._closed = False
        if transport is not None:
            self._transport = transport
        else:
            # Imported here, on one thread: a fork during an import leaves its lock taken in the child.
            kind, near = _real_transport(), all(server.host.startswith("127.") for server in cluster.servers)
            self._new_transport = lambda config: kind(config, near=near)
        self._reset()
        self.who = self._who(uid, gid, groups)
        self.names = {}  # thread -> its own Who, where that is another

    def _reset(self):
        self._peers = [None] * self.servers
        self._deaf = []  # transports that hear nothing any more
        self._left = []  # of a stranger: connections made before it became one
        self._blamed = {}  # server -> time until which it is not asked again
        self._mourned = set()  # servers whose death is in the log already
        self._slots = []
        self._ids = _new_ids()
        self._lock = _thread.allocate_lock()  # connecting and disconnecting

    def call(self, server, op, tail=b"", *fields, send=None, recv=None):
        """Ask ``server`` (number) for ``op`` with ``fields``; -> (reply fields as a named tuple, tail as bytes).

        ``send=(address, length)`` is data of the request, ``recv=(address, room)`` where data of the reply goes (the
        tail is empty then); neither memory is touched after the return.  Raises what the server answered: OSError or
        Restart; EIO when it is dead or does not answer within ``timeout_ms``.
        """
        if send is not None or recv is not None:
            return self._call_with_data(server, op, tail, fields, send, recv)
        peer = self._peers[server] or self._connect(server)
        try:
            slot = self._slots.pop()
        except IndexError:
            slot = self._transport.slot()
        pack_into, size, unpack_from, end, tag, reply_tag = _CALLS[op]
        handle, head, reply = slot
        uid, gid, number, _ = self.who
        request_id = next(self._ids)
        length = len(tail)
        if length > TAIL_MAX:
            raise fail(errno.EMSGSIZE)
        try:
            pack_into(head, 0, op.number, number, peer.conn, request_id, uid, gid, 0, length, *fields)
            self.counters[op.name] += 1
            count = peer.ask(handle, peer.handle, tag | peer.conn, reply_tag | request_id, size, tail, length, end,
                              self._timeout_us)
            if count > 0:
                return (_new(op.reply.type, unpack_from(reply, _FIELDS_AT)),
                        bytes(reply[end:count]) if count > end else b"")
            return self._finish(count, slot, server, op, request_id, tail, fields, None, None)
        finally:
            self._slots.append(slot)

    def _call_with_data(self, server, op, tail, fields, send, recv):
        slot = self._slot()
        request_id = next(self._ids)
        try:
            count = self._attempt(slot, server, op, request_id, tail, fields, send, recv)
            return self._finish(count, slot, server, op, request_id, tail, fields, send, recv)
        finally:
            self._slots.append(slot)

    def call_many(self, calls):
        """All of ``calls``, tuples (server, op, tail, fields, send, recv), at the same time.

        Returns a list with, for each, (reply, tail) or the exception that :meth:`call` would have raised.
        """
        results: list = [None] * len(calls)
        ready = []
        slots = []
        try:
            for index, (server, op, tail, fields, send, recv) in enumerate(calls):
                request_id = next(self._ids)
                try:
                    peer = self._peers[server] or self._connect(server)
                    slot = self._slot()
                    slots.append(slot)
                    peer.transport.prepare(*self._arguments(slot, peer, op, request_id, tail, fields, send, recv))
                    ready.append((index, slot, request_id, peer))
                except OSError as error:
                    results[index] = error
            for (index, slot, request_id, _), count in self._run(ready):
                server, op, tail, fields, send, recv = calls[index]
                try:
                    results[index] = self._finish(count, slot, server, op, request_id, tail, fields, send, recv)
                except (OSError, Restart) as error:
                    results[index] = error
        finally:
            self._slots += slots
        return results

    def _run(self, ready):
        """``[(item, count)]`` of prepared calls."""
        counted: list = []
        for transport in dict.fromkeys([item[3].transport for item in ready]):  # perhaps one just replaced: see _listen
            here = [item for item in ready if item[3].transport is transport]
            counted += zip(here, transport.run([item[1].handle for item in here], self._timeout_us))
        return counted

    def notify(self, server, op, tail=b"", *fields):
        """Send ``op``, which has no reply.  Raises OSError EIO when the server is dead; else it may yet get lost."""
        slot = self._slot()
        try:
            request_id = next(self._ids)
            count = self._attempt(slot, server, op, request_id, tail, fields, None, None)
            if count < 0:
                self._retry(count, slot, server, op, request_id, tail, fields, None, None)
        finally:
            self._slots.append(slot)

    def door(self, server):
        """Descriptor of the socket that is our sign of life for a server, or -1."""
        peer = self._peers[server]
        return peer.door.fileno() if peer is not None and peer.door is not None else -1

    def forget_after_fork(self, keep=False):
        """In the child: the parent's connections are not ours; make new ones at the next call.  ``keep``: the child
        holds locks as its parent does, so its copies of the doors stay open."""
        for peer in self._peers + self._left:
            if peer is not None and peer.door is not None:
                fd = peer.door.detach()
                if not keep:  # else the server would take the child's copy for the parent's life
                    _close_if_open(fd)
        for transport in (self._second, *self._deaf):
            if transport is not None:
                transport.abandon()
        successor = self._transport.abandon() if self._transport is not None else None
        self._transport, self._second = successor, None
        self._reset()

    def close(self):
        """End all connections.  Calls that other threads are in raise OSError ESHUTDOWN, as do later ones."""
        with self._lock:
            self._closed = True
        for transport in (self._transport, self._second, *self._deaf):
            if transport is not None:
                transport.close()  # first, so that transfers under way can end
        for server, peer in enumerate(self._peers):
            if peer is not None:
                self._drop(server, peer)
        for peer in self._left:
            peer.transport.disconnect(peer.handle)
            if peer.door is not None:
                peer.door.close()

    # --- in whose name ----------------------------------------------------------------------------------------------

    def identify(self, uid, gid, groups=()):
        """The calling thread's requests are made in this name from now on."""
        if uid not in (0, self._user):
            self._become_a_stranger()
        who = self._who(uid, gid, groups)
        if who != self.who:
            self.__class__ = _OfManyThreads
            self.names[_thread.get_ident()] = who

    def _become_a_stranger(self):
        """A thread may not open memory of the servers any more: go on by the transport that shares none.

        UCX opens some whenever it needs more, in the middle of a send; one that fails there blocks the server's queue
        for good.  What is under way ends where it began, and there the servers go on counting what was opened."""
        with self._lock:
            if self._stranger or self._transport is None or self._closed:
                self._stranger = True
                return
            try:
                self._second = self._second or self._transport.beside()
                self._stranger = self._second is not None
            except OSError:
                self._stranger = True  # rather nobody can be reached than everybody's queue is blocked
                raise
            finally:
                for server, peer in enumerate(self._peers):
                    if self._stranger and peer is not None and peer.transport is not self._second:
                        self._left.append(peer)
                        self._peers[server] = None

    def _unshare(self):
        """A message could not be sent, because no more of a server's memory can be mapped here: go on without sharing
        any.  -> whether that is possible; the message may be sent again then."""
        if self._stranger:
            return False
        try:
            self._become_a_stranger()
        except OSError as error:
            log(str(error.strerror))
            return False
        return self._stranger

    def _who(self, uid, gid, groups):
        groups = frozenset(groups) - {gid} if uid else NO_GROUPS
        number = 0
        if groups:
            number = self._group_sets.get(groups, 0)
            if not number:
                number = len(self._group_sets) + 1
                if number > GROUP_SETS_MAX:  # the oldest gives its number away
                    number = self._group_sets.pop(next(iter(self._group_sets)))
                self._group_sets[groups] = number
                for server, peer in enumerate(self._peers):
                    if peer is not None:
                        self._announce(peer, server, number, groups)
        return Who(uid, gid, number, groups)

    def _announce(self, peer, server, number, groups):
        """Tell a server what a number of groups means.  A server that died hears of it when it is met again."""
        slot = self._slot()
        request_id = next(self._ids)
        tail = b"".join([gid.to_bytes(4, "little") for gid in sorted(groups)[:GROUPS_MAX]])
        try:
            peer.transport.call(*self._arguments(slot, peer, ops.GROUPS, request_id, tail, (number,), None, None),
                                self._timeout_us)
        finally:
            self._slots.append(slot)

    # --- one attempt ------------------------------------------------------------------------------------------------

    def _slot(self):
        try:
            return self._slots.pop()
        except IndexError:
            pass
        if self._transport is None:
            with self._lock:
                if self._closed:
                    raise closed()
                if self._transport is None:
                    self._transport = self._new_transport(self.config)
        return self._transport.slot()

    def _attempt(self, slot, server, op, request_id, tail, fields, send, recv):
        peer = self._peers[server] or self._connect(server)
        arguments = self._arguments(slot, peer, op, request_id, tail, fields, send, recv)
        return peer.transport.call(*arguments, self._timeout_us)

    def _arguments(self, slot, peer, op, request_id, tail, fields, send, recv):
        """What the transport's ``call`` takes; writes header and fields into the slot."""
        pack_into, size, _, end, tag, reply_tag = _CALLS[op]
        conn, length, room = peer.conn, len(tail), 0
        address = sending = receiving = bulk_tag = bulk = 0
        if send is not None:
            address, sending = send
            if sending > self._eager_max:
                bulk, bulk_tag = sending, _bulk_in_tag(conn, request_id)
            else:
                length += sending
        elif recv is not None:
            receiving, room = recv
            if room > self._eager_max:
                bulk, bulk_tag = room, _BULK_OUT | request_id
        if len(tail) > TAIL_MAX or size + length > MESSAGE_MAX:
            raise fail(errno.EMSGSIZE)
        uid, gid, number, _ = self.who
        pack_into(slot.head, 0, op.number, number, conn, request_id, uid, gid, bulk, length, *fields)
        self.counters[op.name] += 1
        return (slot.handle, peer.handle, tag | conn, 0 if op.oneway else reply_tag | request_id, size, tail, len(tail),
                address, sending, receiving, room, bulk_tag, end)

    def _finish(self, count, slot, server, op, request_id, tail, fields, send, recv):
        """What :meth:`call` returns or raises, after an attempt that gave ``count``."""
        if count < 0:
            count = self._retry(count, slot, server, op, request_id, tail, fields, send, recv)
        if count == 0 and not op.oneway:
            _, status, _ = _reply_header(slot.reply)
            raise from_status(status, bytes(slot.reply[_FIELDS_AT:self._transport.length(slot.handle)]))
        end = _REPLY_CODECS[op].size
        return (op.reply.unpack(slot.reply, _FIELDS_AT),
                bytes(slot.reply[end:count]) if count > end and recv is None else b"")

    def _retry(self, code, slot, server, op, request_id, tail, fields, send, recv):
        """After a failed attempt: again where that is harmless.  -> as an attempt, >= 0, or raises OSError EIO."""
        for _ in range(TRIES):
            if self._closed:
                raise closed()
            if code == -errno.ECOMM:
                if not (op.retry or send is None or send[1] <= self._eager_max) or not self._unshare():
                    break
            elif code in (-errno.ENOTCONN, -errno.ECONNRESET):
                conn = _request_header(slot.head)[2]
                self._lose(server)
                if code == -errno.ECONNRESET and not op.retry and self._arrived(server, conn, request_id):
                    break
            else:
                break
            if not op.retry:
                request_id = next(self._ids)  # those of a connection grow: see arrived()
            code = self._attempt(slot, server, op, request_id, tail, fields, send, recv)
            if code >= 0:
                return code
        if code == -errno.ETIMEDOUT:
            self._listen(self._transport)
            log(f"{self._name(server)} did not answer {op.name} within {self.config.timeout_ms} ms; look whether it "
                "hangs, or raise MADFS_TIMEOUT_MS")
        elif code not in (-errno.ENOTCONN, -errno.ECONNRESET):
            log(f"{self._name(server)}: {op.name} failed in transport: {os.strerror(-code)}")
        raise fail(errno.EIO)

    def _arrived(self, server, conn, request_id):
        """Whether a request on a connection that was lost may have come there: a server that could not hear any more
        and began anew knows which did not."""
        try:
            return self.call(server, ARRIVED, b"", conn, request_id)[0].arrived
        except OSError:
            return True

    # --- connections ------------------------------------------------------------------------------------------------

    def _connect(self, server):
        """The peer for ``server``, met now unless another thread has just done so.  Raises OSError EIO."""
        with self._lock:
            peer = self._peers[server]
            if peer is not None:
                return peer
            peer = self._connected(server)
        if self.met is not None:
            self.met(server)
        return peer

    def _connected(self, server):
        """A new connection; REQUIRES the lock."""
        if self._closed:
            raise closed()
        if time.monotonic() < self._blamed.get(server, 0):
            raise fail(errno.EIO)
        if self._transport is None:
            self._transport = self._new_transport(self.config)
        try:
            peer = self._knock(server)
        except OSError as error:
            if error.errno == errno.ETIMEDOUT:
                self._blamed[server] = time.monotonic() + BLAME_S
            known = error.errno in (errno.EACCES, errno.EPROTO)  # The message says what to do: no server is dead.
            self._mourn(server, f"cannot be reached: {error.strerror or error}", "" if known else START_AGAIN)
            raise fail(errno.EIO) from None
        for groups, number in self._group_sets.items():
            self._announce(peer, server, number, groups)
        self._peers[server] = peer
        self._mourned.discard(server)
        return peer

    def _knock(self, server):
        """Where the cluster file says, or where it says by now: servers started anew listen elsewhere."""
        known, transport = self.cluster, self._transport
        if self._stranger:
            transport = self._second = self._second or transport.beside() or transport
        try:
            return self._visit(server, transport)
        except OSError:
            self._read_again()
            if (self.cluster.servers, self.cluster.secret) == (known.servers, known.secret):
                raise
        return self._visit(server, transport)

    def _read_again(self):
        if self.cluster.path is not None:
            try:
                found = clusters.read(self.cluster.path)
            except clusters.ClusterError:
                return
            if len(found.servers) == self.servers:
                self.cluster = found

    def _visit(self, server, transport):
        """Meet a server by ``transport``, or by the one beside it where that is another user's memory to share."""
        visit = transport.knock(self.cluster.servers[server], self.cluster.secret, door.KIND_CLIENT,
                                self.config.connect_ms)
        try:
            if (visit.number, visit.servers) != (server, self.servers):
                raise OSError(errno.EPROTO,
                              f"it is server {visit.number} of {visit.servers}: the cluster file is stale")
            handle = transport.connect(visit.address, visit.door.fileno() if visit.door else -1)
        except OSError as error:
            if visit.door:
                visit.door.close()
            if error.errno == errno.EPROTO or transport is self._second:
                raise
            self._second = self._second or transport.beside()
            if self._second is None:
                raise
            return self._visit(server, self._second)
        return _Peer(transport, handle, visit.conn, visit.door)

    def _lose(self, server):
        peer = self._peers[server]
        if peer is not None and not peer.transport.alive(peer.handle):
            if self._drop(server, peer):
                self._listen(peer.transport)
            self._mourn(server, "died")

    def _drop(self, server, peer):
        with self._lock:
            if self._peers[server] is not peer:
                return False  # another thread was faster
            self._peers[server] = None
            peer.transport.disconnect(peer.handle)
            if peer.door is not None:
                peer.door.close()
        return True

    def _listen(self, transport):
        """A server died or is silent: perhaps ``transport`` is deaf.  Then all that is under way on it fails, and is
        repeated on a new one where that is harmless."""
        if not self._renewable or transport is not self._transport or not transport.queued:
            return
        if hearing.hears(transport, next(self._ids)):
            return
        log("a server died within a message and blocks this process's queue in shared memory: connecting anew")
        for server, peer in enumerate(self._peers):
            if peer is not None and peer.transport is transport:
                self._drop(server, peer)
        with self._lock:
            if self._transport is transport and not self._closed:
                self._transport = self._new_transport(self.config)
                self._deaf.append(transport)  # other threads may be in it yet

    def _mourn(self, server, what, advice=START_AGAIN):
        """One line for each death of a server, not one for each call that notices."""
        if server not in self._mourned:
            self._mourned.add(server)
            log(f"{self._name(server)} {what}{advice}")

    def _name(self, server):
        entry = self.cluster.servers[server]
        return f"server {server} ({entry.host}:{entry.port})"


class _OfManyThreads(Client):
    """A Client whose threads have different names."""

    @property
    def who(self):  # goes before the attribute of the same name
        return self.names.get(_thread.get_ident()) or self.__dict__["who"]


def _decode(data, op):
    """The reply in ``data`` (bytes) -> (fields, tail); raises what it says, OSError EPROTO when it is garbage."""
    status = _reply_header(data)[1]
    if status:
        raise from_status(status, data[_FIELDS_AT:])
    end = _REPLY_CODECS[op].size
    if len(data) < end:
        raise fail(errno.EPROTO)
    return op.reply.unpack(data, _FIELDS_AT), data[end:]


# --- the serving twin -----------------------------------------------------------------------------------------------


class Service:
    """The serving side of one server, on its event loop's thread.

    ``address`` is the transport's address; ``counters`` counts requests by operation name, and ``"garbage"``;
    ``arrivals`` is what ``arrivals()`` of a former life of this process gave.
    """

    def __init__(self, cluster, number, config, transport=None, arrivals=()):
        self.cluster, self.number, self.config = cluster, number, config
        self.secret, self.servers = cluster.secret, len(cluster.servers)
        self._transport = transport = transport or _real_transport()(config)
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
        self._ids = _new_ids()
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
        number, groups, conn_id, request_id, uid, gid, bulk, tail_length = _request_header(arena, offset)
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
        tag = (_FSYNC_REPLY if fsync else _REPLY) | request_id
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
        head = _REPLY_CODECS[op].pack(request.id, 0, bulk, *fields)
        if len(head) + len(tail) > MESSAGE_MAX:
            raise fail(errno.EMSGSIZE)
        if bulk:
            self._send_bulk(conn, request, data)
        self._transport.send(conn.handle, (_FSYNC_REPLY if request.fsync else _REPLY) | request.id, head, tail)

    def fail(self, request, error):
        """Answer with ``error``: OSError and Restart arrive as such, else it is a defect, logged and EIO there."""
        status, tail = to_status(error)
        if status == errno.EIO and not isinstance(error, OSError):
            log(f"server {self.number}: {request!r} failed: {type(error).__name__}: {error}")
        conn = self._conns.get(request.conn)
        if request.unread:
            self._discard(request)
        if conn is not None and not request.op.oneway:
            tag = (_FSYNC_REPLY if request.fsync else _REPLY) | request.id
            self._transport.send(conn.handle, tag, REPLY.pack(request.id, status, 0), tail)

    async def receive(self, request, view):
        """Receive the ``request.bulk`` bytes that the caller sends into ``view`` (writable, at least that long).

        Raises OSError ECONNRESET when the caller dies, EPROTO when it sends another length, ETIMEDOUT.
        """
        conn = self._conns.get(request.conn)
        if conn is None:
            raise fail(errno.ECONNRESET)
        request.unread = 0
        token = self._transport.receive_bulk(_bulk_in_tag(request.conn, request.id), view[:request.bulk])
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
        token = self._transport.send_bulk(conn.handle, _BULK_OUT | request.id, data)
        if token > 0:
            conn.transfers.add(token)
            self._transfers[token] = (request.conn, None, data, 0)

    def _discard(self, request):
        """Let the caller finish sending what nobody wants."""
        request.unread = 0
        conn = self._conns.get(request.conn)
        if conn is not None:
            conn.unread.discard(request.id)
            token = self._transport.discard(_bulk_in_tag(request.conn, request.id))
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
            self._transport.purge(_bulk_in_tag(conn_id, 0), _CONN_MASK)

    def close(self):
        """End all connections; what is under way fails."""
        for conn_id in list(self._conns):
            self.forget(conn_id)
        for server in list(self._peers):
            self._lose(server, "this server stops")
        self._transport.close()

    # --- calls of other servers -------------------------------------------------------------------------------------

    def call_peer(self, server, op, tail=b"", *fields):
        """Ask another server; -> asyncio.Future of (reply fields, tail).

        It fails with what the other answered, or OSError EIO when it is dead or silent; an operation that may be
        repeated is tried twice more after reconnecting.
        """
        import asyncio
        task = asyncio.get_running_loop().create_task(self._call_peer(server, op, tail, fields))
        task.add_done_callback(seen)
        return task

    async def _call_peer(self, server, op, tail, fields):
        import asyncio
        loop = asyncio.get_running_loop()
        request_id = next(self._ids)
        for may_repeat in (op.retry, op.retry, False):
            state = await self._meet(loop, server)
            try:
                return await self._ask(loop, loop.create_future(), state, server, op, request_id, tail, fields)
            except Lost:
                if not may_repeat:
                    break
        raise fail(errno.EIO)

    def _ask(self, loop, future, state, server, op, request_id, tail, fields):
        peer = state.peer
        head = _REQUEST_CODECS[op].pack(op.number, 0, peer.conn, request_id, 0, 0, 0, len(tail), *fields)
        if len(head) + len(tail) > MESSAGE_MAX:
            raise fail(errno.EMSGSIZE)
        timer = loop.call_later(self._limit_s, self._late, request_id)
        self._calls[request_id] = (future, server, op, timer)
        state.calls.add(request_id)
        self._transport.send(peer.handle, _REQUEST | peer.conn, head, tail)
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
        state.peer = _Peer(self._transport, handle, visit.conn, visit.door, loop)
        if visit.door is not None:
            visit.door.setblocking(False)
            loop.add_reader(visit.door.fileno(), self._door_speaks, server, visit.door)

    def _door_speaks(self, server, visitor):
        try:
            if visitor.recv(4096):
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
            self._end(request_id, error=Lost())
        self._transport.disconnect(peer.handle)
        if peer.door is not None:
            peer.loop.remove_reader(peer.door.fileno())
            peer.door.close()
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
        request_id = _reply_header(arena, offset)[0]
        call = self._calls.get(request_id)
        if call is None:
            if request_id == self.probing:
                self.probing = 0
            return  # it came too late
        try:
            result = _decode(bytes(arena[offset:offset + length]), call[2])
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
