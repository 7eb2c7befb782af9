# SPDX-License-Identifier: Apache-2.0
"""Remote procedure calls, the calling side: deadlines, retries, connections.  wire.py has what crosses the wire,
server/rpc.py the serving twin.

This module runs inside other people's programs: no asyncio at import.
"""
import _thread
import errno
import os
import struct
import time

from . import cluster as clusters
from . import door, hearing, ops
from .errors import Restart, fail, from_status
from .identity import NO_GROUPS, Who
from .log import log
from .ops import ARRIVED, FSYNC, OPS
from .transport import MESSAGE_MAX
from .wire import (
    BULK_OUT_TAG,
    EAGER_LIMIT,
    FIELDS_AT,
    FSYNC_REPLY_TAG,
    FSYNC_TAG,
    GROUP_SETS_MAX,
    REPLY_CODECS,
    REPLY_TAG,
    REQUEST_CODECS,
    REQUEST_TAG,
    Made,
    Peer,
    bulk_in_tag,
    new_ids,
    real_transport,
    reply_header,
    request_header,
)

TAIL_MAX = 64 << 10
"""Bytes of a tail, either way."""
GROUPS_MAX = 16000
"""Groups in a set; a message has no room for more, so the highest ones do not count."""
START_AGAIN = "; start it again on the same store, calls then go on"
TRIES = 3  # of a request that did not come, or may be repeated, after its connection was lost
BLAME_S = 1.0
"""Seconds for which a server that did not answer the door in time is not asked again."""

# For each operation what a call needs of it: writer and size of header and fields, reader of the reply's fields and
# where they end, tags of request and reply.
_CALLS = Made(lambda op: (
    REQUEST_CODECS[op].pack_into, REQUEST_CODECS[op].size, struct.Struct("<" + op.reply.format).unpack_from,
    REPLY_CODECS[op].size, *((FSYNC_TAG, FSYNC_REPLY_TAG) if op is FSYNC else (REQUEST_TAG, REPLY_TAG))))
_new = tuple.__new__


def closed():
    """The error of calls of a client that was closed."""
    return OSError(errno.ESHUTDOWN, "the client was closed")


def _close_if_open(fd):
    """In a child whose parent's thread had a table of descriptors of its own, what another thread opened is missing."""
    try:
        os.close(fd)
    except OSError as error:
        if error.errno != errno.EBADF:
            raise


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
            kind, near = real_transport(), all(server.host.startswith("127.") for server in cluster.servers)
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
        self._ids = new_ids()
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
                return (_new(op.reply.type, unpack_from(reply, FIELDS_AT)),
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
        return -1 if peer is None else peer.door

    def forget_after_fork(self, keep=False):
        """In the child: the parent's connections are not ours; make new ones at the next call.  ``keep``: the child
        holds locks as its parent does, so its copies of the doors stay open."""
        for peer in self._peers + self._left:
            if peer is not None and peer.door >= 0 and not keep:
                _close_if_open(peer.door)  # else the server would take the child's copy for the parent's life
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
            peer.shut_door()

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
                bulk, bulk_tag = sending, bulk_in_tag(conn, request_id)
            else:
                length += sending
        elif recv is not None:
            receiving, room = recv
            if room > self._eager_max:
                bulk, bulk_tag = room, BULK_OUT_TAG | request_id
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
            _, status, _ = reply_header(slot.reply)
            raise from_status(status, bytes(slot.reply[FIELDS_AT:self._transport.length(slot.handle)]))
        end = REPLY_CODECS[op].size
        return (op.reply.unpack(slot.reply, FIELDS_AT),
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
                conn = request_header(slot.head)[2]
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
            handle = transport.connect(visit.address, visit.door)
        except OSError as error:
            if visit.door >= 0:
                os.close(visit.door)
            if error.errno == errno.EPROTO or transport is self._second:
                raise
            self._second = self._second or transport.beside()
            if self._second is None:
                raise
            return self._visit(server, self._second)
        return Peer(transport, handle, visit.conn, visit.door)

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
            peer.shut_door()
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
