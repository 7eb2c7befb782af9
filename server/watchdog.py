# SPDX-License-Identifier: Apache-2.0
"""Finds out that nobody can be heard any more, and lets the server begin anew.

In shared memory a sender takes a place in the receiver's queue and then fills it.  One that is killed in between, or
cannot map the memory that it has to fill, leaves a gap that the receiver waits at for good: it hears nobody, and UCX
does not let it sleep.  So when the network has kept us busy with nothing for a while, we send ourselves a message the
way others do.  If it does not come, this process becomes the same server anew (docs/decisions/0046).
"""
import asyncio
import fcntl
import json
import os
import signal
import sys
import time

from pymadfs.log import log

QUIET_S = 0.1  # busy and nothing heard: time to look why
ANSWER_S = 1.0  # a message to ourselves takes microseconds, but who fills the place before it may wait for a processor
AGAIN_S = 2.0  # until the next look, when something else keeps the network busy: a client that was stopped
LAST_S = 1.0  # for requests that wait for other servers
NAP_S = 0.001  # between polls meanwhile


class Watchdog:
    """Of the network ``rpc`` (rpc.Service); ``renew()`` is called when it is deaf."""

    def __init__(self, rpc, renew):
        self._rpc, self._renew = rpc, renew
        self.since = 0.0  # monotonic seconds; 0: the network was heard or let us sleep
        self._next = self._asked = 0.0
        self._probe, self._renewed = None, False

    def calm(self):
        """Something was heard, or we may sleep."""
        self.since = 0.0
        self._end()

    def _begin(self, now):
        self._next = now + AGAIN_S
        try:
            self._probe, self._asked = self._rpc.probe(), now
        except OSError as error:
            log(f"server {self._rpc.number}: the network is busy and cannot be probed: {error.strerror}")

    def _end(self):
        if self._probe is not None:
            self._probe.close()
            self._probe = None

    def busy(self):
        """Nothing was heard, and we may not sleep.  -> seconds to wait before the next poll."""
        now = time.monotonic()
        if self._renewed:
            return 0.0
        if not self.since:
            self.since = now
        if now - self.since < QUIET_S:
            return 0.0
        if self._probe is None:
            if now >= self._next:
                self._begin(now)
        elif not self._rpc.probing:
            self._end()
        elif now - self._asked > ANSWER_S:
            self._renewed = True
            self._renew()
        else:
            self._probe.move()
        return NAP_S


async def last_things(server, stopped, then):
    """Answer what requests can be answered soon, that their callers need not be told that nobody knows; those whose
    data cannot come any more are made again.  Then ``then()``, unless ``stopped()``: a server that was told to stop
    must not live again, and nobody tells it twice."""
    until = server.loop.time() + LAST_S
    while server.unanswered and server.loop.time() < until:
        await asyncio.sleep(NAP_S)
    server.flush()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)  # the loop would hear of it too late; the store is fit for such an end
    for _ in range(3):
        await asyncio.sleep(NAP_S)  # the loop hears of one that came before, and who waits for it
    if not stopped():
        then()


# --- beginning anew -------------------------------------------------------------------------------------------------


def begin_anew(number, rpc, listener, affinity):
    """Execute this program again: the same process, door and store.  Clients find their connections ended, as after a
    crash; ``rpc.arrivals()`` goes along to tell them which of their requests never came.  Does not return."""
    log(f"server {number}: a process ended or failed within a message and blocks this server's queue in shared memory: "
        "the server begins anew")
    arrivals = os.memfd_create("arrivals")
    with open(arrivals, "w", closefd=False) as file:
        json.dump(rpc.arrivals(), file)
    kept = listener.detach()
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        if fd > 2:
            try:
                fcntl.fcntl(fd, fcntl.F_SETFD, 0 if fd in (arrivals, kept) else fcntl.FD_CLOEXEC)
            except OSError:
                continue  # by which the directory was read
    os.sched_setaffinity(0, affinity)
    program = sys.orig_argv[:len(sys.orig_argv) - len(sys.argv) + 1]
    os.execv(sys.executable, [*program, *_without(sys.argv[1:], "--ready-fd", "--listen-fd", "--arrivals-fd"),
                              "--listen-fd", str(kept), "--arrivals-fd", str(arrivals)])


def _without(arguments, *options):
    """``arguments`` without ``options`` and their values."""
    kept, skip = [], False
    for argument in arguments:
        if skip:
            skip = False
        elif argument in options:
            skip = True
        elif argument.partition("=")[0] not in options:
            kept.append(argument)
    return kept


def arrivals(fd):
    """What the former life of this process has left in the descriptor ``fd``: see rpc.Service.arrivals().
    Without one connections begin with any number: other ones than those of a process that crashed."""
    if fd is None:
        return [(int.from_bytes(os.urandom(4), "little") >> 1, (0, [], []))]
    with open(fd) as file:
        file.seek(0)
        return json.load(file)
