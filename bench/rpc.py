# SPDX-License-Identifier: Apache-2.0
"""Round trips with Python on both sides (messages, and whole calls) against C on the same UCX; bandwidth of bulk."""
import asyncio
import ctypes
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

import libucx
import uvloop

from pymadfs import cluster, door, ops
from pymadfs.config import Config
from pymadfs.rpc import Client
from pymadfs.server.rpc import Service
from pymadfs.transport import ucx

from . import common

TRANSPORTS = {"shm": "posix,cma,self", "tcp": "tcp,self"}
CALLS, ROUNDS = 20_000, 5
BULK = 512 << 10


def answer_all(service, loop, data):
    """Serve like a MadFS server does: handlers inline, poll a little, then let the event loop wait."""
    while True:
        requests = service.poll(0 if service.pending else 50)
        for request in requests:
            if request.op is ops.READ:
                service.reply(request, (len(data), -1), data=data)
            else:
                service.reply(request, (request.tail[:0].ljust(ops.ATTR.size, b"\0"),))
        if not requests:
            if service.pending:
                loop.call_soon(answer_all, service, loop, data)
                return
            if service.arm():
                return


async def serve(path):
    """A server with nothing behind it: GETATTR answers zeros, READ the same half MiB."""
    service = Service(cluster.read(path), 0, Config())
    loop = asyncio.get_running_loop()
    entry = service.cluster.servers[0]
    await loop.create_server(door.guard(service), entry.host, entry.port)
    data = memoryview(bytes(BULK))
    loop.add_reader(service.fileno(), answer_all, service, loop, data)
    print("ready", flush=True)
    answer_all(service, loop, data)
    await asyncio.Event().wait()


def microseconds(call, calls):
    """Median time of ``call()``."""
    clock, lasted = time.perf_counter_ns, []
    for _ in range(calls):
        begin = clock()
        call()
        lasted.append(clock() - begin)
    return statistics.median(lasted) / 1e3


REQUEST_TAG, REPLY_TAG = ops.TAG_REQUEST << ops.TAG_SHIFT | 1, ops.TAG_REPLY << ops.TAG_SHIFT | 1
REPLY = ops.REPLY.pack(1, 0, 0) + bytes(ops.ATTR.size)


def echo(transports, door):
    """The other side of ``message_trips``: answer every message until killed."""
    os.sched_setaffinity(0, {0})
    transport = ucx.Ucx(Config({"MADFS_UCX_TLS": transports}))
    door.send(transport.address)
    peer = transport.connect(door.recv(1 << 16), -1)
    door.send(b"ready")
    while True:
        for _ in transport.poll(1_000_000, 64):
            transport.send(peer, REPLY_TAG, REPLY, b"")


def message_trips(transports, calls):
    """Median round trips in us of a request in two pieces and a reply of 96 bytes: the binding without the RPC."""
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        try:
            echo(transports, theirs)
        finally:
            os._exit(1)
    try:
        os.sched_setaffinity(0, {1 % os.cpu_count()})
        transport = ucx.Ucx(Config({"MADFS_UCX_TLS": transports}))
        address = ours.recv(1 << 16)
        ours.send(transport.address)
        peer = transport.connect(address, -1)
        if ours.recv(16) != b"ready":
            raise RuntimeError("the other side of the benchmark did not start")
        handle, tail = transport.slot().handle, b"/a/hint/of/some/length"

        def trip():
            length = len(REPLY)
            if transport.ask(handle, peer, REQUEST_TAG, REPLY_TAG, 40, tail, len(tail), length, 5_000_000) != length:
                raise RuntimeError("no answer")

        microseconds(trip, 1000)
        return [microseconds(trip, calls) for _ in range(ROUNDS)]
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.sched_setaffinity(0, range(os.cpu_count()))


def bulk_rate(client, calls):
    """MiB/s of reading half a MiB at a time."""
    room = ctypes.create_string_buffer(BULK)
    address = ctypes.addressof(room)
    begin = time.perf_counter()
    for _ in range(calls):
        client.call(0, ops.READ, b"", 1, 0, 0, BULK, recv=(address, BULK))
    return calls * BULK / (time.perf_counter() - begin) / (1 << 20)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def measure(transports, directory, quick):
    """-> (round trips in us, bulk rates in MiB/s), one per round."""
    path = os.path.join(directory, f"cluster-{transports.partition(',')[0]}")
    described = cluster.Cluster("/madfs", os.urandom(32), [cluster.Server(0, "127.0.0.1", free_port(), 0, "-")])
    described.write(path)
    environment = {**os.environ, "MADFS_UCX_TLS": transports}
    server = subprocess.Popen(["taskset", "-c", "0", sys.executable, "-m", "bench.rpc", path], env=environment,
                              stdout=subprocess.PIPE, text=True)
    try:
        if server.stdout.readline() != "ready\n":
            raise RuntimeError("the server of the benchmark did not start")
        os.sched_setaffinity(0, {1 % os.cpu_count()})
        client = Client(described, Config({"MADFS_UCX_TLS": transports}))
        scale = 20 if quick else 1

        def call():
            client.call(0, ops.GETATTR, b"/a/hint/of/some/length", 1)

        microseconds(call, 1000)
        trips = [microseconds(call, CALLS // scale) for _ in range(ROUNDS)]
        rates = [bulk_rate(client, 1000 // scale) for _ in range(ROUNDS)]
        client.close()
        return trips, rates
    finally:
        os.sched_setaffinity(0, range(os.cpu_count()))
        server.terminate()
        server.wait()


def run(quick=False):
    prefix = os.path.dirname(libucx.__file__)
    with tempfile.TemporaryDirectory(prefix="madfs-bench-") as directory:
        pingpong = common.compile_program("pingpong.c", directory, f"-I{prefix}/include", f"-L{prefix}/lib", "-lucp",
                                          "-lucs", f"-Wl,-rpath,{prefix}/lib")
        for name, transports in TRANSPORTS.items():
            limit = statistics.median(float(common.capture([pingpong, transports, CALLS // (20 if quick else 1)]))
                                      for _ in range(1 if quick else ROUNDS))
            trips, rates = measure(transports, directory, quick)
            messages = message_trips(transports, CALLS // (20 if quick else 1))
            yield common.Row(f"round_trip_{name}", statistics.median(messages), "us", limit)
            yield common.Row(f"call_{name}", statistics.median(trips), "us", limit)
            yield common.Row(f"bulk_read_512KiB_{name}", statistics.median(rates), "MiB/s", None)


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1]))
