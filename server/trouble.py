# SPDX-License-Identifier: Apache-2.0
"""For tests: a network that holds messages back and lets others overtake them, on the real transport.

``MADFS_TROUBLE=seed=1,share=0.3,delay_ms=40,twice=0.2``, in the environment of the servers: that share of what comes to
a server, and of its replies, waits for up to so long; that share of what servers ask of each other and may repeat comes
twice.  What one sender sends to one receiver stays in order, as UCX has it; nothing is lost, for UCX loses nothing
unless one of the two ends.  Without the variable none of this exists.
"""
import asyncio
import heapq
import itertools
import os
import random
import select
import time
from typing import Any

from pymadfs import ops
from pymadfs.ops import OPS, REQUEST
from pymadfs.transport import MESSAGE, Transport

VARIABLE = "MADFS_TROUBLE"
DELAY_MS_MAX = 500  # much less than what the watchdog takes for deafness
HELD_MAX = 1 << 12  # more messages are not held back at once
_REQUESTS = ops.TAG_REQUEST, ops.TAG_FSYNC


def transport(make):
    """What ``make()`` makes with trouble, when the environment asks for that; else None.  Raises ValueError."""
    text = os.environ.get(VARIABLE)
    if not text:
        return None
    wanted = {"seed": 0.0, "share": 0.3, "delay_ms": 20.0, "twice": 0.0}
    try:
        given = {name: float(value) for name, _, value in (part.partition("=") for part in text.split(","))}
    except ValueError:
        given = {"": 0.0}
    if not given.keys() <= wanted.keys():
        raise ValueError(f"{VARIABLE}={text!r} is not valid: say for instance seed=1,share=0.3,delay_ms=20,twice=0.1")
    return Troubled(make(), **{**wanted, **given})


class Troubled(Transport):
    """``inner`` with messages held back."""

    def __init__(self, inner, seed, share, delay_ms, twice):
        self._inner, self._chance = inner, random.Random(f"{seed} {os.getpid()}")
        self._share, self._delay_s, self._twice = share, min(delay_ms, DELAY_MS_MAX) / 1000, twice
        self._loop = asyncio.get_running_loop()
        self._coming, self._leaving = [], []  # heaps of (when, sequence, message)
        self._last = {}  # sender or receiver -> when its last message is due
        self._sequence = itertools.count()
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll = select.epoll()
        for fd in (self._event, inner.fileno()):
            self._epoll.register(fd, select.EPOLLIN)
        self.arena: Any = b""

    def __getattr__(self, name):
        return getattr(self._inner, name)

    # What the interface declares would go before __getattr__.

    def fileno(self):
        return self._epoll.fileno()

    def arm(self):
        return self._inner.arm()

    def close(self):
        for _, _, (peer, tag, head, tail) in sorted(self._leaving):
            self._inner.send(peer, tag, head, tail)
        self._epoll.close()
        os.close(self._event)
        self._inner.close()

    def disconnect(self, peer):
        self._leaving = [each for each in self._leaving if each[2][0] != peer]
        heapq.heapify(self._leaving)
        self._inner.disconnect(peer)

    def _put(self, heap, key, message):
        """Have ``message`` wait in ``heap``, behind what ``key`` has sent before."""
        due = time.monotonic()
        if self._chance.random() < self._share and len(heap) < HELD_MAX:
            due += self._chance.random() * self._delay_s
            self._loop.call_later(due - time.monotonic() + 0.0005, self._wake)
        if key is not None:
            due = self._last[key] = max(due, self._last.get(key, 0))
            if len(self._last) > HELD_MAX:
                self._last.clear()
        heapq.heappush(heap, (due, next(self._sequence), message))

    def _wake(self):
        try:
            os.eventfd_write(self._event, 1)
        except OSError:  # closed meanwhile
            return

    @staticmethod
    def _due(heap):
        """Messages whose time has come, in order."""
        now = time.monotonic()
        while heap and heap[0][0] <= now:
            yield heapq.heappop(heap)[2]

    def poll(self, spin_us, limit):
        try:
            os.eventfd_read(self._event)
        except BlockingIOError:
            pass
        events = []
        for tag, offset, length, status, what in self._inner.poll(spin_us, limit):
            if what != MESSAGE or status:
                events.append((tag, 0, length, status, what))
                continue
            key = ("from", tag) if tag >> ops.TAG_SHIFT in _REQUESTS else None
            self._put(self._coming, key, (tag, bytes(self._inner.arena[offset:offset + length])))
        pieces, at = [], 0
        for tag, data in self._due(self._coming):
            for _ in range(1 + self._repeats(tag, data)):
                events.append((tag, at, len(data), 0, MESSAGE))
                pieces.append(data)
                at += len(data)
        self.arena = memoryview(b"".join(pieces))
        self._send_due()
        return events

    def _repeats(self, tag, data):
        if tag >> ops.TAG_SHIFT != ops.TAG_REQUEST or len(data) < REQUEST.size:
            return False
        op = OPS.get(REQUEST.unpack(data).op)
        return op is not None and op.peer and op.retry and self._chance.random() < self._twice

    def _send_due(self):
        for peer, tag, head, tail in self._due(self._leaving):
            self._inner.send(peer, tag, head, tail)

    def send(self, peer, tag, head, tail):
        self._put(self._leaving, ("to", peer), (peer, tag, bytes(head), bytes(tail)))
        self._send_due()
        return 0
