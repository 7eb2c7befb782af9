# SPDX-License-Identifier: Apache-2.0
"""Messages to ourselves: whether our queue in shared memory still gives what others put there.

A sender that is killed between taking a place in the queue and filling it leaves a gap that nothing behind it gets
past (docs/decisions/0046).
"""
from .ops import REPLY, TAG_REPLY, TAG_REQUEST, TAG_SHIFT

TRIES, TRY_US = 5, 100_000
"""How often, and for how long each time, a client listens for a message to itself."""


class Probe:
    """A reply that nobody waits for, with the id ``number``, to ``transport`` by way of another one."""

    def __init__(self, transport, number):
        self.number = number
        self.other = transport.another()
        try:
            self._target = self.other.connect(transport.address, -1)
            self.send()
        except OSError:
            self.close()
            raise

    def send(self):
        head = REPLY.pack(self.number, 0, 0)
        self.other.send(self._target, TAG_REPLY << TAG_SHIFT | self.number, head, b"")
        self.move()

    def move(self):
        """Let the other transport finish what it has begun."""
        self.other.poll(0, 1)

    def close(self):
        self.other.close()


class Successor:
    """``new`` takes the place of the deaf transport ``old``, which still sends to its peers."""

    FIRST = 1 << 40  # handles of peers of the new one begin here

    def __init__(self, old, new):
        self._old, self._new = old, new

    def __getattr__(self, name):
        return getattr(self._new, name)

    def connect(self, address, door):
        return self._new.connect(address, door) + self.FIRST

    def _whose(self, peer):
        return (self._new, peer - self.FIRST) if peer >= self.FIRST else (self._old, peer)

    def disconnect(self, peer):
        transport, peer = self._whose(peer)
        transport.disconnect(peer)

    def send(self, peer, tag, head, tail):
        transport, peer = self._whose(peer)
        return transport.send(peer, tag, head, tail)

    def send_bulk(self, peer, tag, data):
        transport, peer = self._whose(peer)
        return transport.send_bulk(peer, tag, data) if transport is self._new else 0  # it would never end


def hears(transport, number):
    """Whether ``transport``, which has no poll of its own, gets what is sent to it; True when nobody knows."""
    try:
        probe = Probe(transport, number)
    except OSError:
        return True
    slot = transport.slot()
    there = -1
    try:
        there = transport.connect(probe.other.address, -1)
        for _ in range(TRIES):
            if transport.ask(slot.handle, there, TAG_REQUEST << TAG_SHIFT, TAG_REPLY << TAG_SHIFT | number, REPLY.size,
                             b"", 0, REPLY.size, TRY_US) > 0:
                return True
            probe.send()
        return False
    except OSError:
        return True
    finally:
        if there >= 0:
            transport.disconnect(there)
        probe.close()
