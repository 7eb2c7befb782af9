# SPDX-License-Identifier: Apache-2.0
"""The life of a server process: start, listen at the door, poll the network, stop.

One thread runs the event loop.  The network's descriptor wakes it; it then polls and serves until nothing comes any
more, and arms the descriptor again.  Before that it polls on for a few microseconds, if nothing else waits for the
loop and there is a processor for everybody who polls: a wake-up costs more than many requests.
"""
import asyncio
import fcntl
import gc
import os
import resource
import signal
import socket

import anyio

from pymadfs import door
from pymadfs.transport.ucx import Ucx

from . import handlers, trouble, watchdog
from .dispatch import Server
from .kv import RocksKV
from .meta import StoreError
from .rpc import Service

POLL_LIMIT = 64
ROUNDS_MAX = 16  # polls before others on the event loop get their turn
SPIN_US = 50
UNEASY_S = 0.005  # how long to trust the descriptor while transfers are under way
BEAT_S = 0.25  # while somebody may come: see watchdog.py
BACKLOG = 1024


class StartError(Exception):
    """The server cannot start; the message says why and what to do, in one line."""


class Poller:
    """Connects the event loop and the network of ``server``; ``neighbours`` is how many other processes poll here.
    ``renew()`` is called when the network is deaf."""

    def __init__(self, server, loop, neighbours, renew):
        self._server, self._rpc, self._loop = server, server.rpc, loop
        self._neighbours = neighbours
        self._spin_us = server.config.spin_us
        self._cores = len(os.sched_getaffinity(0))
        self._again = self._timer = self._beat = None
        self._runs = False  # after the end there is no network to poll, also for who was to be called by then
        self._watchdog = watchdog.Watchdog(self._rpc, renew)
        server.posted = self.soon
        self.start()

    def start(self):
        """Listen to the network, which may be another one than before."""
        self._runs = True
        self._loop.add_reader(self._rpc.fileno(), self._wake)
        self.soon()

    def soon(self):
        """Something was sent or asked for outside of a poll: give the network a chance to move it."""
        if self._again is None:
            self._again = self._loop.call_soon(self._wake)

    def _wake(self):
        self._again = None
        if not self._runs:
            return
        rpc, server, watch = self._rpc, self._server, self._watchdog
        nap = 0.0
        for _ in range(ROUNDS_MAX):
            pending = rpc.pending
            requests = rpc.poll(self._spin(), POLL_LIMIT)
            ended = rpc.pending < pending
            if watch.since and (requests or ended):
                watch.calm()
            if requests:
                server.serve(requests)
            if ended or requests and server.busy:
                break  # who waited for it, or has just begun, runs first
            if requests:
                continue
            if server.kv.owed:
                server.settle()
            if rpc.arm():
                if rpc.pending and self._timer is None:
                    self._timer = self._loop.call_later(UNEASY_S, self._uneasy)
                if watch.since:
                    watch.calm()
                if self._beat is None and server.conns:
                    self._beat = self._loop.call_later(BEAT_S, self._look)
                return
            nap = watch.busy()
        if nap:
            self._loop.call_later(nap, self.soon)
        else:
            self.soon()

    def _look(self):
        """Asleep: who left a gap in the queue may have left without waking us, and nobody else will."""
        self._beat = None
        self._wake()

    def _uneasy(self):
        self._timer = None
        self._wake()

    def _spin(self):
        if self._server.busy:
            return 0
        if self._spin_us >= 0:
            return self._spin_us
        return SPIN_US if len(self._server.conns) + self._neighbours <= self._cores else 0

    def stop(self):
        self._runs = False
        self._loop.remove_reader(self._rpc.fileno())
        for handle in (self._again, self._timer, self._beat):
            if handle is not None:
                handle.cancel()
        self._again = self._timer = self._beat = None


async def run(cluster, number, store, config, *, listen_fd=None, cpu=None, arrivals=(), ready):
    """Serve until SIGTERM, SIGINT or SHUTDOWN.

    ``cluster`` names this server as ``number``; ``store`` is its directory; ``listen_fd`` a socket that listens
    already; ``cpu`` pins the event loop's thread; ``arrivals`` is what a former life of this process left
    (watchdog.py); ``ready(host, port)`` is called when clients can come.  Raises
    StartError.
    """
    raise_limits()
    with listener(cluster.servers[number], listen_fd) as sock, locked_store(store):
        stopped = anyio.Event()
        try:
            service = Service(cluster, number, config, trouble.transport(lambda: Ucx(config)), arrivals)
        except OSError as error:
            raise StartError(error.strerror or str(error)) from None
        current = os.path.join(store, "kv", "CURRENT")  # RocksDB would begin anew without it.
        if os.path.isdir(os.path.join(store, "data")) and not os.path.exists(current):
            raise StartError(f"the store {store} has lost {current}; put it back, or choose another store")
        try:
            kv = RocksKV(os.path.join(store, "kv"))
            server = Server(service, kv, store, config, stopped.set)
        except (StoreError, OSError) as error:
            raise StartError(f"the store {store} cannot be used: {error}") from None
        affinity = os.sched_getaffinity(0)
        if cpu is not None:
            os.sched_setaffinity(0, {cpu})
        loop = asyncio.get_running_loop()
        handlers.start(server)
        neighbours = sum(each.host == cluster.servers[number].host for each in cluster.servers)

        def renew():
            poller.stop()
            server.rpc.renew()
            poller.start()
            server.spawn(watchdog.last_things(
                server, stopped.is_set, lambda: watchdog.begin_anew(number, server.rpc, sock, affinity)))

        poller = Poller(server, loop, neighbours, renew)
        gc.freeze()
        gate = await loop.create_server(door.guard(server), sock=sock, backlog=BACKLOG)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stop_on_signal, stopped)
            ready(*sock.getsockname()[:2])
            await stopped.wait()
            tasks.cancel_scope.cancel()
        gate.close()
        await server.stop()
        poller.stop()
        server.rpc.close()


async def stop_on_signal(stopped):
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            stopped.set()


def raise_limits():
    """A descriptor for each client and each open chunk file."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def listener(entry, listen_fd):
    """The socket of the door: the inherited ``listen_fd``, or a new one at the cluster file's address."""
    if listen_fd is not None:
        try:
            return socket.socket(fileno=listen_fd)
        except OSError as error:
            raise StartError(f"--listen-fd {listen_fd} is not a listening socket: {error.strerror}") from None
    family = socket.AF_INET6 if ":" in entry.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((entry.host, entry.port))
    except OSError as error:
        sock.close()
        raise StartError(f"cannot listen on {entry.host}:{entry.port}: {error.strerror}; "
                         "end what uses the port or make a new cluster file") from None
    return sock


class locked_store:
    """The store directory, made if missing and held by this process alone."""

    def __init__(self, path):
        self._path = path
        self._fd = -1

    def __enter__(self):
        try:
            os.makedirs(self._path, 0o700, exist_ok=True)
            self._fd = os.open(os.path.join(self._path, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StartError(f"the store {self._path} cannot be written: {error.strerror}; "
                             "choose another with --store") from None
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            pid = os.read(self._fd, 32).decode(errors="replace").strip() or "?"
            os.close(self._fd)
            raise StartError(f"the store {self._path} is used by another server (process {pid}); "
                             "stop it or choose another store") from None
        os.ftruncate(self._fd, 0)
        os.write(self._fd, b"%d\n" % os.getpid())

    def __exit__(self, *_):
        os.close(self._fd)
