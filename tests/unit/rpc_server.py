# SPDX-License-Identifier: Apache-2.0
"""A server process for the tests of the transport: real door, real UCX, no file system behind it.

``python rpc_server.py CLUSTER NUMBER`` prints "ready" when it serves, and begins anew when its queue is blocked.
READ of inode s answers bytes that follow from s; WRITE answers the checksum of what it got as ``size``, for inode 13
ENOSPC; LOOKUP echoes its tail; STATUS tells the number of transfers under way; UNLINK fails with ENOENT; MKDIR never
is answered; RENAME makes it ask server ``flags`` (DIRINFO); SHUTDOWN ends it.
"""
import asyncio
import errno
import os
import random
import socket
import sys
import zlib

from pymadfs import cluster, door, ops
from pymadfs.config import Config
from pymadfs.errors import fail
from pymadfs.server import watchdog
from pymadfs.server.rpc import Service

ATTR = bytes(range(ops.ATTR.size))


def content(seed, length):
    return random.Random(seed).randbytes(length)


class Server:
    def __init__(self, path, number, options):
        self.listen_fd, arrivals_fd = map(int, options[1::2]) if options else (None, None)
        self.service = Service(cluster.read(path), number, Config(), arrivals=watchdog.arrivals(arrivals_fd))
        self.stopped = asyncio.Event()
        self.tasks = set()
        self.loop, self.watchdog = asyncio.get_running_loop(), watchdog.Watchdog(self.service, self.renew)
        self.sock = self.beat = None

    def ready(self):
        """Answer all there is, then let the event loop sleep; let it see to others every now and then."""
        service, loop = self.service, self.loop
        if self.beat is not None:
            self.beat.cancel()
        for _ in range(16):
            requests = service.poll(0 if self.tasks else 50)
            if requests:
                self.watchdog.calm()
            else:
                self.watchdog.busy()
            for request in requests:
                if request.op is ops.WRITE and request.bulk or request.op is ops.RENAME:
                    task = loop.create_task(self.slow(request))
                    self.tasks.add(task)
                    task.add_done_callback(self.tasks.discard)
                else:
                    self.quick(request)
            if self.tasks:
                break
            if not requests and service.arm():
                self.watchdog.calm()
                self.beat = loop.call_later(0.25, self.ready)
                return
        loop.call_soon(self.ready)

    def quick(self, request):
        service, op, fields = self.service, request.op, request.fields
        if op in (ops.LOOKUP, ops.DIRINFO):
            service.reply(request, (ATTR,), request.tail)
        elif op is ops.READ:
            service.reply(request, (fields.length, -1), data=memoryview(content(fields.ino, fields.length)))
        elif op is ops.WRITE:
            service.reply(request, (zlib.crc32(request.tail[fields.hint:]), 0))
        elif op is ops.READDIR:
            service.reply(request, (1, 0), content(1, fields.limit))
        elif op is ops.STATUS:
            service.reply(request, (), b"%d" % service.pending)
        elif op is ops.UNLINK:
            service.fail(request, fail(errno.ENOENT))
        elif op is ops.SHUTDOWN:
            service.reply(request)
            self.stopped.set()
        elif op is not ops.MKDIR:
            service.reply(request)

    async def slow(self, request):
        service = self.service
        try:
            if request.op is ops.WRITE:
                if request.fields.ino == 13:
                    raise fail(errno.ENOSPC)
                data = bytearray(request.bulk)
                await service.receive(request, memoryview(data))
                service.reply(request, (zlib.crc32(data), 0))
            else:
                reply, tail = await service.call_peer(request.fields.flags, ops.DIRINFO, request.tail, service.number,
                                                        False)
                assert (reply.attr, tail) == (ATTR, request.tail)
                service.reply(request)
        except OSError as error:
            service.fail(request, error)

    def renew(self):
        service = self.service
        self.loop.remove_reader(service.fileno())
        service.renew()
        watchdog.begin_anew(service.number, service, self.sock, os.sched_getaffinity(0))

    async def main(self):
        loop = self.loop
        entry = self.service.cluster.servers[self.service.number]
        if self.listen_fd is None:
            self.sock = socket.create_server((entry.host, entry.port), backlog=100)
        else:
            self.sock = socket.socket(fileno=self.listen_fd)
        listener = await loop.create_server(door.guard(self.service), sock=self.sock)
        loop.add_reader(self.service.fileno(), self.ready)
        print("ready", flush=True)
        self.ready()
        await self.stopped.wait()
        listener.close()
        loop.remove_reader(self.service.fileno())
        self.service.poll()
        self.service.close()


async def main():
    await Server(sys.argv[1], int(sys.argv[2]), sys.argv[3:]).main()


if __name__ == "__main__":
    asyncio.run(main())
