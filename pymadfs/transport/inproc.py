# SPDX-License-Identifier: Apache-2.0
"""Queues within one process: the tests' transport, with loss, delay and corruption on request.

    network = Network()
    service = Service(cluster, 0, config, network.transport())
    network.serve(service)                      # what listening at the door is for the real one
    client = Client(cluster, config, network.transport())

The service either runs on an event loop in another thread (``fileno()`` is an eventfd), or is stepped by the caller's
wait: ``network.steps.append(function)``, each function polling one service and answering.  With steps, time is virtual:
a call whose reply cannot come any more fails with ETIMEDOUT at once.
"""
import collections
import ctypes
import errno
import itertools
import os
import random
import threading
import time

from ..ops import REPLY, TAG_BULK_IN, TAG_BULK_OUT, TAG_SHIFT
from . import HEAD_MAX, MESSAGE, MESSAGE_MAX, TRANSFER, Slot, Transport, Visit

Message = collections.namedtuple("Message", "source target tag data")
"""What predicates look at: addresses of both ends (bytes), tag, data (bytes)."""


class Faults:
    """What goes wrong on a network.

    ``lose``, ``delay`` and ``corrupt`` are each None, a probability, or a predicate of a Message.  A delayed message
    comes after everything sent meanwhile, when nothing else moves or ``Network.release()`` is called.  A corrupted one
    has one random byte changed, or is replaced by the bytes that the predicate returned.  Chances come from ``seed``.
    """

    def __init__(self, lose=None, delay=None, corrupt=None, seed=0):
        self._lose, self._delay, self._corrupt = lose, delay, corrupt
        self._random = random.Random(seed)

    def _happens(self, what, message):
        if what is None:
            return False
        return what(message) if callable(what) else self._random.random() < what

    def apply(self, message):
        """-> (data to deliver or None when lost, whether it is delayed)."""
        if self._happens(self._lose, message):
            return None, False
        data = message.data
        corrupt = self._happens(self._corrupt, message)
        if isinstance(corrupt, bytes):
            data = corrupt
        elif corrupt and data:
            changed = bytearray(data)
            changed[self._random.randrange(len(data))] ^= 1 + self._random.randrange(255)
            data = bytes(changed)
        return data, bool(self._happens(self._delay, message))


class Network:
    """Connects the transports it made.  ``faults`` may be replaced at any time; ``sent`` counts messages."""

    def __init__(self, faults=None):
        self.faults = faults or Faults()
        self.steps = []
        self.sent = 0
        self.moved = threading.Condition()
        self._numbers = itertools.count()
        self._endpoints = {}
        self._services = {}
        self._held = []

    def transport(self):
        """A new endpoint, for one Client or one Service."""
        endpoint = Inproc(self, b"inproc:%d" % next(self._numbers))
        self._endpoints[endpoint.address] = endpoint
        return endpoint

    def serve(self, service):
        """Let callers in to ``service`` from now on."""
        self._services[service.number] = service

    def kill(self, number):
        """What happens when server ``number`` dies: its callers notice, new ones are refused."""
        service = self._services.pop(number)
        with self.moved:
            self._endpoints.pop(service.address)
            self.moved.notify_all()

    def release(self):
        """Deliver what was delayed; -> how many messages."""
        with self.moved:
            held, self._held = self._held, []
            for message in held:
                self._put(message)
        return len(held)

    def find(self, number):
        return self._services.get(number)

    def lives(self, address):
        return address in self._endpoints

    def send(self, message):
        with self.moved:
            self.sent += 1
            data, delayed = self.faults.apply(message)
            if data is None:
                return
            message = message._replace(data=data)
            if delayed:
                self._held.append(message)
            else:
                self._put(message)

    def _put(self, message):
        endpoint = self._endpoints.get(message.target)
        if endpoint is not None:
            endpoint.deliver(message)
            self.moved.notify_all()

    def wait(self, done, timeout_us):
        """Until ``done()``: let the steps run, or wait for other threads.  -> False when time is over."""
        deadline = time.monotonic() + timeout_us / 1e6
        while not done():
            if self.steps:
                before = self.sent
                for step in self.steps:
                    step()
                if not done() and self.sent == before and not self.release():
                    return False
            else:
                with self.moved:
                    if not done() and not self.moved.wait(deadline - time.monotonic()) and not done():
                        if self._held:
                            held, self._held = self._held, []
                            for message in held:
                                self._put(message)
                        else:
                            return False
        return True


class _Call:
    """A slot's handle: what ``prepare`` was given."""

    def __init__(self):
        self.head, self.reply = bytearray(HEAD_MAX), bytearray(MESSAGE_MAX)
        self.arguments = None
        self.length = 0


class Inproc(Transport):
    """One endpoint of a Network."""

    def __init__(self, network, address):
        self.network, self.address = network, address
        self.arena = b""
        self._event = -1  # eventfd, made when somebody wants to sleep on it
        self._peers = {}
        self._visits = {}
        self._last = 0
        self._inbox = collections.deque()
        self._bulk = {}  # tag -> data that came before anyone asked for it
        self._receives = {}  # tag -> (token, writable view or None)
        self._ended = []  # events of transfers

    def connect(self, address, door):
        if not self.network.lives(bytes(address)):
            raise OSError(errno.ECONNREFUSED, "nobody has this address")
        self._last += 1
        self._peers[self._last] = bytes(address)
        return self._last

    def disconnect(self, peer):
        address = self._peers.pop(peer, None)
        service, conn = self._visits.pop(address, (None, None))
        if service is not None:
            service.forget(conn)

    def alive(self, peer):
        return self.network.lives(self._peers.get(peer))

    def close(self):
        if self._event >= 0:
            os.close(self._event)
            self._event = -1

    __del__ = close

    def abandon(self):
        self.close()
        return self.network.transport()

    def deliver(self, message):
        """Called with the network's lock held."""
        kind = message.tag >> TAG_SHIFT
        if kind in (TAG_BULK_IN, TAG_BULK_OUT):
            receive = self._receives.pop(message.tag, None)
            if receive is None:
                self._bulk[message.tag] = message.data
            else:
                self._finish(receive, message.data)
        else:
            self._inbox.append(message)
        self._wake()

    def _finish(self, receive, data):
        token, view = receive
        if view is not None:
            count = min(len(view), len(data))
            view[:count] = data[:count]
            self._ended.append((token, 0, len(data), 0, TRANSFER))

    # --- calling ----------------------------------------------------------------------------------------------------

    def beside(self):
        return None

    def another(self):
        return self.network.transport()

    def knock(self, server, secret, kind, timeout_ms):
        service = self.network.find(server.number)
        if service is None:
            raise OSError(errno.ECONNREFUSED, "Connection refused")
        if service.secret != secret:
            raise OSError(errno.EACCES, "wrong secret")
        conn = service.accept(kind, self.address)
        self._visits[service.address] = (service, conn)
        return Visit(-1, conn, service.number, service.servers, service.address)

    def slot(self):
        call = _Call()
        return Slot(call, call.head, call.reply)

    def prepare(self, call, *arguments):
        call.arguments = arguments

    def call(self, call, *arguments):
        self.prepare(call, *arguments[:-1])
        return self.run([call], arguments[-1])[0]

    def ask(self, call, peer, tag, reply_tag, head_length, tail, tail_length, fixed, timeout_us):
        return self.call(call, peer, tag, reply_tag, head_length, tail, tail_length, 0, 0, 0, 0, 0, fixed, timeout_us)

    def length(self, call):
        return call.length

    def run(self, calls, timeout_us):
        started = [self._start(call) for call in calls]
        return [code if code is not None else self._await(call, timeout_us) for call, code in zip(calls, started)]

    def _start(self, call):
        peer, tag, reply_tag, head_length, tail, _, send, length, _, _, bulk_tag, _ = call.arguments
        address = self._peers.get(peer)
        if not self.network.lives(address):
            return -errno.ENOTCONN
        data = bytes(call.head[:head_length]) + tail
        memory = ctypes.string_at(send, length) if length else b""
        bulk = bulk_tag and length
        self.network.send(Message(self.address, address, tag, data if bulk else data + memory))
        if bulk:
            self.network.send(Message(self.address, address, bulk_tag, memory))
        return None if reply_tag else 0

    def _await(self, call, timeout_us):
        """The reply's length, its bytes in ``call.reply`` and in the memory that was to receive."""
        peer, _, reply_tag, _, _, _, _, length, recv, room, bulk_tag, fixed = call.arguments
        address = self._peers.get(peer)
        found = []

        def done():
            with self.network.moved:
                found[:] = [message for message in self._inbox if message.tag == reply_tag]
                return bool(found) or not self.network.lives(address)

        in_time = self.network.wait(done, timeout_us)
        if not found:
            return -errno.ECONNRESET if in_time else -errno.ETIMEDOUT
        data = found[0].data
        self._inbox.remove(found[0])
        call.reply[:len(data)], call.length = data, len(data)
        if len(data) < REPLY.size:
            return -errno.EPROTO
        _, status, bulk = REPLY.unpack(data)
        if status:
            return 0
        if len(data) < fixed:
            return -errno.EPROTO
        if bulk:
            if not self.network.wait(lambda: bulk_tag in self._bulk or not self.network.lives(address), timeout_us):
                return -errno.ETIMEDOUT
            if bulk_tag not in self._bulk:
                return -errno.ECONNRESET
        payload = self._bulk.pop(bulk_tag) if bulk else data[fixed:]
        if bulk and bulk != len(payload):
            return -errno.EPROTO
        if recv:
            ctypes.memmove(recv, payload, min(room, len(payload)))
        return len(data)

    # --- serving ----------------------------------------------------------------------------------------------------

    def fileno(self):
        if self._event < 0:
            self._event = os.eventfd(1, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        return self._event

    def arm(self):
        return not self._inbox and not self._ended

    def poll(self, spin_us, limit):
        with self.network.moved:
            if self._event >= 0:
                try:
                    os.eventfd_read(self._event)
                except BlockingIOError:
                    pass
            events, self._ended = self._ended, []
            pieces, offset = [], 0
            while self._inbox and len(pieces) < limit:
                message = self._inbox.popleft()
                status = -errno.EMSGSIZE if len(message.data) > MESSAGE_MAX else 0
                events.append((message.tag, offset, len(message.data), status, MESSAGE))
                pieces.append(message.data)
                offset += len(message.data)
            self.arena = b"".join(pieces)
        return events

    def send(self, peer, tag, head, tail):
        self.network.send(Message(self.address, self._peers.get(peer), tag, head + bytes(tail)))
        return 0

    def send_bulk(self, peer, tag, data):
        self.network.send(Message(self.address, self._peers.get(peer), tag, bytes(data)))
        return 0

    def receive_bulk(self, tag, view):
        with self.network.moved:
            self._last += 1
            receive = (self._last, view)
            data = self._bulk.pop(tag, None)
            if data is None:
                self._receives[tag] = receive
            else:
                self._finish(receive, data)
                self._wake()
        return receive[0]

    def cancel(self, token):
        with self.network.moved:
            for tag, (waiting, _) in list(self._receives.items()):
                if waiting == token:
                    del self._receives[tag]
                    self._ended.append((token, 0, 0, -errno.ECANCELED, TRANSFER))
                    self._wake()

    def discard(self, tag):
        with self.network.moved:
            if self._bulk.pop(tag, None) is None:
                self._receives[tag] = (0, None)
        return 0

    def purge(self, tag, mask):
        with self.network.moved:
            for waiting in [waiting for waiting in self._bulk if waiting & mask == tag & mask]:
                del self._bulk[waiting]

    def _wake(self):
        if self._event >= 0:
            os.eventfd_write(self._event, 1)
