# SPDX-License-Identifier: Apache-2.0
"""Several servers in one event loop over a network that can be cut at any message: to test the server's logic."""
import asyncio
import errno
import gc
import os
import struct
from typing import ClassVar

from pymadfs import listing
from pymadfs.config import Config
from pymadfs.errors import fail, seen
from pymadfs.layout import chunk_server, home, owner
from pymadfs.ops import (
    ATTR,
    EXTEND,
    FLAG_REMOTE,
    GETATTR,
    LINK,
    LOOKUP,
    MKDIR,
    MOVETREE,
    OPEN,
    READ,
    READDIR,
    RELEASE,
    RENAME,
    RMDIR,
    SETATTR,
    SYMLINK,
    UNLINK,
    WRITE,
)
from pymadfs.server import handlers
from pymadfs.server.dispatch import Server
from pymadfs.server.kv import MemoryKV
from pymadfs.server.meta import entries_prefix, entry_key, path_of

CHUNK, INLINE = 4096, 2000


class Rpc:
    """Stands in for rpc.Service."""

    def __init__(self, world, number):
        self.world, self.number, self.servers = world, number, world.count
        self.secret, self.address = b"", b""
        self.counters = {"garbage": 0}
        self.pending = 0

    def reply(self, request, fields=(), tail=b"", data=None):
        packed = request.op.reply.pack(*fields)
        self._answer(request, (request.op.reply.unpack(packed), bytes(tail) + bytes(data or b"")), None)

    def fail(self, request, error):
        if not isinstance(error, OSError) and type(error).__name__ != "Restart":
            self.world.defects.append(error)
        self._answer(request, None, error)

    @staticmethod
    def _answer(request, result, error):
        future = request.answer
        if future is None or future.done():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    def forget(self, conn):
        """Nothing to do."""

    def call_peer(self, server, op, tail=b"", *fields, data=None):
        payload = b"" if data is None else bytes(data)
        if len(payload) < CHUNK // 2:
            tail, payload = tail + payload, b""
        task = asyncio.get_running_loop().create_task(self._call(server, op, tail, fields, payload))
        task.add_done_callback(seen)
        return task

    async def _call(self, server, op, tail, fields, payload):
        for when in ("before", "after"):
            if when == "after":
                result = await self.world.ask(server, op, tail, *fields, conn=-1 - self.number, payload=payload)
            if self.world.watch:
                self.world.watch(self.number, server, op, when)
                if self.world.servers[self.number] is None or self.world.servers[self.number].rpc is not self:
                    await asyncio.Event().wait()  # a dead process does not go on
            if self.world.trap and (self.number, op, when) == self.world.trap[:3]:
                victim, self.world.trap = self.world.trap[3], None
                self.world.crash(victim)
                self.world.trapped.set()
                if victim == self.number:
                    await asyncio.Event().wait()  # a dead process does not go on
        return result

    async def receive(self, request, view):
        await asyncio.sleep(0)
        view[:len(request.payload)] = request.payload


class Call:
    """A request as rpc.Request, with what the tests hang on it: the future of its answer, and its bulk data."""

    def __init__(self, op, conn, who, fields, tail, payload):
        self.op, self.id, self.conn, self.fields, self.tail = op, 0, conn, fields, tail
        self.uid, self.gid, self.groups = who
        self.bulk, self.fsync, self.unread = len(payload), False, 0
        self.answer, self.payload = asyncio.get_running_loop().create_future(), payload
        self.answer.add_done_callback(seen)  # who asked a server that dies does not wait for it


def _never(coroutine):
    """What a dead server does."""
    coroutine.close()
    task = asyncio.get_running_loop().create_future()
    task.cancel()
    return task


class World:
    """``count`` servers with their stores in ``path``; ``trap`` is (server, op, "before" or "after", victim):
    the victim dies when the server is about to call op, or has its answer."""

    return_s = 0.02  # see server/subtree.py
    settings: ClassVar[dict] = {"MADFS_GRACE_MS": "0", "MADFS_LINGER_MS": "0"}

    def __init__(self, path, count=3, make_kv=MemoryKV):
        self.path, self.count = str(path), count
        self.kvs = [make_kv() for _ in range(count)]
        self.servers = [None] * count
        self.trap = None
        self.watch = None  # called with (server, server asked, op, "before" or "after") around each call of a server
        self.trapped = asyncio.Event()
        self.defects = []
        self.log = []
        for number in range(count):
            self.start(number)

    def start(self, number):
        path = os.path.join(self.path, str(number))
        os.makedirs(path, exist_ok=True)
        config = Config({"MADFS_INLINE_MAX": str(INLINE), **self.settings})
        server = Server(Rpc(self, number), self.kvs[number], path, config)
        server.retry_s = 0.001
        server.conns.update(range(-self.count, 10))
        self.servers[number] = server
        handlers.start(server)
        server.subtrees.return_s = self.return_s

    def crash(self, number):
        """kill -9: what was not committed is gone, nothing more happens."""
        server, self.servers[number] = self.servers[number], None
        for pool in (*server._pools, server._removals):
            for task in pool.running:
                task.cancel()
            pool._line.clear()
            pool._stopped = True
        for task in server._background:
            task.cancel()
        server.spawn = _never  # its timers may still fire
        server.flush = server.commit = lambda lazily=False: None
        server.syncer.stop()
        server.threads.shutdown(cancel_futures=True)
        server.chunks._close_idle(len(server.chunks._open))  # handlers that are cancelled close the others
        server.chunks._open.clear()
        server.chunks.close()
        self.kvs[number].close()
        self.lost(number)

    def lost(self, number):
        """The others notice that a server died."""
        for other in filter(None, self.servers):
            other.forget(-1 - number)
            other.conns.add(-1 - number)

    async def stop(self):
        for server in self.servers:
            if server is not None:
                await server.stop()
        gc.collect()  # exceptions that nobody has seen are told now: see conftest.py
        assert not self.defects, self.defects

    async def ask(self, number, op, tail=b"", *fields, uid=0, gid=0, groups=(), conn=1, payload=b""):
        """(reply, tail), or the exception that a client would see.  EIO when the server is dead or dies meanwhile."""
        self.log.append((number, op))
        packed = op.request.pack(*fields)
        request = Call(op, conn, (uid, gid, groups), op.request.unpack(packed), tail, payload)
        await asyncio.sleep(0)
        server = self.servers[number]
        if server is None or conn < 0 and self.servers[-1 - conn] is None:  # what a dead server sent is void
            raise fail(errno.EIO)
        server.serve([request])
        while True:
            done, _ = await asyncio.wait([request.answer], timeout=0.02)
            if done:
                break
            if self.servers[number] is not server:
                raise fail(errno.EIO)
        return request.answer.result()

    # --- a small client ---------------------------------------------------------------------------------------------

    def owner(self, path):
        return owner(path, self.count)

    def path_on(self, number, directory=b"/", stem=b"f", skip=0):
        """A name in ``directory`` that lies on server ``number``."""
        for index in range(10000):
            path = directory.rstrip(b"/") + b"/" + stem + b"%d" % index
            if self.owner(path) == number:
                if not skip:
                    return path
                skip -= 1
        raise AssertionError

    async def call(self, op, path, *fields, **user):
        return await self.ask(self.owner(path), op, path, *fields, **user)

    async def create(self, path, flags=os.O_RDWR | os.O_CREAT, mode=0o644, keep=False, **user):
        reply, _ = await self.call(OPEN, path, flags, mode, CHUNK, 0, **user)
        attr = ATTR.unpack(reply.attr)
        if not keep:
            await self.release(attr.ino, conn=user.get("conn", 1))
        return attr

    async def release(self, ino, conn=1):
        await self.ask(home(ino), RELEASE, struct.pack("<Q", ino), conn=conn)

    async def stat(self, path, **user):
        reply, target = await self.call(LOOKUP, path, **user)
        attr = ATTR.unpack(reply.attr)
        if attr.flags & FLAG_REMOTE:
            return await self.getattr(attr.ino, path)
        return attr

    async def getattr(self, ino, hint=b""):
        reply, _ = await self.ask(home(ino), GETATTR, hint, ino)
        return ATTR.unpack(reply.attr)

    async def mkdir(self, path, mode=0o755, **user):
        reply, _ = await self.call(MKDIR, path, mode, **user)
        return ATTR.unpack(reply.attr)

    async def rmdir(self, path, **user):
        await self.call(RMDIR, path, **user)

    async def unlink(self, path, **user):
        await self.call(UNLINK, path, **user)

    async def symlink(self, target, path):
        await self.ask(self.owner(path), SYMLINK, path + target, len(path))

    async def rename(self, old, new, flags=0, **user):
        await self.ask(self.owner(old), RENAME, old + new, flags, len(old), **user)

    async def link(self, ino, new, hint=b"", **user):
        await self.ask(self.owner(new), LINK, new + hint, ino, len(new), **user)

    async def rename_tree(self, old, new, flags=0, ticket=0, **user):
        """MOVETREE, asked until it is done."""
        ticket, begin = ticket or int.from_bytes(os.urandom(7), "little"), 1
        while True:
            reply, _ = await self.ask(self.owner(b"/"), MOVETREE, old + new, flags, len(old), ticket, begin, **user)
            if reply.done:
                return
            begin = 0

    async def setattr(self, path, valid, mode=0, uid=0, gid=0, size=0, atime=0, mtime=0, **user):
        reply, _ = await self.call(SETATTR, path, 0, valid, mode, uid, gid, size, atime, mtime, **user)
        return ATTR.unpack(reply.attr)

    async def write(self, attr, path, offset, data, bulk=False, **user):
        """Chunk by chunk, all told to the home."""
        while data:
            chunk, within = divmod(offset, CHUNK)
            piece = data[:CHUNK - within]
            number = chunk_server(attr.ino, chunk, self.count)
            end = offset + len(piece)
            if number == home(attr.ino):
                fields = (attr.ino, chunk, within, len(piece), end, len(path), offset, 0)
            else:
                await self.ask(home(attr.ino), EXTEND, path, attr.ino, offset, end, 0, **user)
                fields = (attr.ino, chunk, within, len(piece), 0, len(path), offset, 0)
            tail, payload = (path, piece) if bulk else (path + piece, b"")
            await self.ask(number, WRITE, tail, *fields, payload=payload, **user)
            offset, data = end, data[len(piece):]

    async def read(self, ino, offset, length):
        result = b""
        while length:
            chunk, within = divmod(offset, CHUNK)
            want = min(length, CHUNK - within)
            _, data = await self.ask(chunk_server(ino, chunk, self.count), READ, b"", ino, chunk, within, want)
            result += data.ljust(want, b"\0")
            offset, length = offset + want, length - want
        return result

    async def names(self, path):
        """Sorted names in the directory, also those that a server has although the directory is gone."""
        if not self.keys(entry_key(path)):
            return sorted(path_of(key) for key in self.keys(entries_prefix(path)))
        found = []
        for number in range(self.count):
            after, done = 0, False
            while not done:
                reply, page = await self.ask(number, READDIR, path, after, 200)
                entries = listing.records(page)
                found += [name for _, _, _, name in entries]
                after, done = entries[-1][0] if entries else after, reply.done
        return sorted(found)

    async def quiet(self):
        """Until all removals and renames in the background are done."""
        while any(server and (server._removals.running or server._background) for server in self.servers):
            tasks = [task for server in self.servers if server
                     for task in (*server._removals.running, *server._background)]
            await asyncio.wait(tasks)

    def files_of_chunks(self):
        """Names of all chunk files."""
        return [name for _, _, names in os.walk(self.path) for name in names]

    def keys(self, prefix):
        return [key for kv in self.kvs for key in kv.items if key.startswith(prefix)]


def run(test):
    """Run an ``async def test(world)`` with three servers."""
    def wrapper(tmp_path):
        async def main():
            world = World(tmp_path)
            try:
                await asyncio.wait_for(test(world), 20)
            finally:
                await world.stop()
        asyncio.run(main())
    wrapper.__name__ = test.__name__
    wrapper.__doc__ = test.__doc__
    return wrapper


def code(error):
    return errno.errorcode[error.value.errno]
