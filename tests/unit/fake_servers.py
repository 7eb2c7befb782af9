# SPDX-License-Identifier: Apache-2.0
"""Servers as pymadfs/ops.py describes them, in one dict: what the client's unit tests talk to in place of an
rpc.Client.

Every request is checked for having come to the right server.
"""

import ctypes
import errno
import os
import stat

from pymadfs import ops
from pymadfs.errors import Restart, fail
from pymadfs.identity import Who
from pymadfs.layout import chunk_server, home, order, owner, parent, split


class Node:
    """An inode; ``born`` is the server it lives on."""

    def __init__(self, ino, mode, uid=0, gid=0, chunk_size=0, target=b""):
        self.ino, self.mode, self.uid, self.gid, self.chunk_size, self.target = ino, mode, uid, gid, chunk_size, target
        self.size, self.atime, self.mtime, self.nlink, self.openings = len(target), 0, 0, 1, 0
        self.cuts = 0
        self.data = {}  # chunk -> bytearray, as its server has it

    def attr(self):
        return ops.ATTR.pack(
            self.ino,
            self.size,
            -(-self.size // 512),
            self.atime,
            self.mtime,
            self.mtime,
            self.mode,
            self.nlink,
            self.uid,
            self.gid,
            0,
            self.chunk_size,
            0,
            self.cuts,
            self.atime,
        )

    @property
    def kind(self):
        return stat.S_IFMT(self.mode)


class Servers:
    """Has the methods of rpc.Client.  ``fail[server, op name]`` is an errno to answer with; ``log`` what was asked."""

    def __init__(self, servers=3, eager_max=8192):
        self.servers, self.eager_max, self.who = servers, eager_max, Who(0, 0)
        self.fail, self.log, self.rounds, self.notified, self.hooks = {}, [], [], [], {}
        self.names = {b"/": Node(ops.ROOT_INO, stat.S_IFDIR | 0o1777)}
        self.inodes = {}
        self.locks = []
        self.next = 16

    # --- rpc.Client -------------------------------------------------------------------------------------------------

    def call(self, server, op, tail=b"", *fields, send=None, recv=None):
        self.rounds.append(1)
        return self._serve(server, op, tail, fields, send, recv)

    def call_many(self, calls):
        self.rounds.append(len(calls))
        results = []
        for call in calls:
            try:
                results.append(self._serve(*call))
            except (OSError, Restart) as error:
                results.append(error)
        return results

    def door(self, server):
        return -1

    def notify(self, server, op, tail=b"", *fields):
        self.notified.append((server, op.name, tail))
        if op is ops.RELEASE:
            for at in range(0, len(tail), 8):
                ino = int.from_bytes(tail[at : at + 8], "little")
                assert home(ino) == server
                if ino in self.inodes:
                    self.inodes[ino].openings -= 1

    def identify(self, uid, gid, groups=()):
        self.who = Who(uid, gid, 0, frozenset(groups))

    def forget_after_fork(self, keep=False):
        self.log.append((None, "forget_after_fork"))

    def close(self):
        self.log.append((None, "close"))

    def _serve(self, server, op, tail, fields, send, recv):
        assert 0 <= server < self.servers and isinstance(tail, bytes)
        request = op.request.unpack(op.request.pack(*fields))
        self.log.append((server, op.name))
        if op.name in self.hooks:
            self.hooks.pop(op.name)(request)
        if (server, op.name) in self.fail:
            raise fail(self.fail[server, op.name])
        if send:
            tail += ctypes.string_at(*send)
        reply, back = getattr(self, op.name)(server, request, tail)
        packed = op.reply.unpack(op.reply.pack(*reply))
        if recv:
            assert len(back) <= recv[1]
            ctypes.memmove(recv[0], back, len(back))
            back = b""
        return packed, back

    # --- names ------------------------------------------------------------------------------------------------------

    def walk(self, path):
        """The node at a path or None; everything above it must be a directory."""
        assert path == b"/" or path[:1] == b"/" and not {b"", b".", b".."}.intersection(path[1:].split(b"/")), path
        at = path.find(b"/", 1)
        while at > 0:
            node = self.names.get(path[:at])
            if node is None:
                raise fail(errno.ENOENT)
            if node.kind == stat.S_IFLNK:
                raise Restart(at, node.target)
            if node.kind != stat.S_IFDIR:
                raise fail(errno.ENOTDIR)
            at = path.find(b"/", at + 1)
        return self.names.get(path)

    def named(self, server, path):
        assert server == owner(path, self.servers)
        node = self.walk(path)
        if node is None:
            raise fail(errno.ENOENT)
        return node

    def seen(self, server, node):
        """A name's attributes as its server tells them: only a pointer when the inode lives elsewhere."""
        if node.ino != ops.ROOT_INO and home(node.ino) != server:
            return ops.ATTR.pack(node.ino, 0, 0, 0, 0, 0, node.kind, 0, 0, 0, 0, 0, ops.FLAG_REMOTE, 0, 0)
        return node.attr()

    def make(self, server, path, mode, chunk_size=0, target=b""):
        assert server == owner(path, self.servers)
        if self.walk(path) is not None:
            raise fail(errno.EEXIST)
        self.next += 1
        node = Node(server << ops.INO_HOME_SHIFT | self.next, mode, self.who.uid, self.who.gid, chunk_size, target)
        self.names[path] = self.inodes[node.ino] = node
        return node

    def inode(self, server, ino):
        assert server == home(ino) and ino != ops.ROOT_INO
        if ino not in self.inodes:
            raise fail(errno.ENOENT)
        return self.inodes[ino]

    def lookup(self, server, request, path):
        node = self.named(server, path)
        return (self.seen(server, node),), node.target

    def number(self, server, request, path):
        return (self.named(server, path).ino,), b""

    def getattr(self, server, request, hint):
        if server == owner(hint, self.servers) != home(request.ino):  # a directory that has moved, or nothing
            node = self.names.get(hint)
            if node is None or node.ino != request.ino:
                raise fail(errno.ENOENT)
        else:
            node = self.inode(server, request.ino)
        return (node.attr(),), node.target

    def open(self, server, request, path):
        assert server == owner(path, self.servers)
        if request.ended:
            self.inode(server, request.ended).openings -= 1
        node, created = self.walk(path), 0
        if node is None:
            if not request.flags & os.O_CREAT:
                raise fail(errno.ENOENT)
            node, created = self.make(server, path, stat.S_IFREG | request.mode, request.chunk_size), 1
        elif request.flags & os.O_CREAT and request.flags & os.O_EXCL:
            raise fail(errno.EEXIST)
        if node.kind == stat.S_IFLNK:
            return (0, 0, self.seen(server, node)), node.target
        if node.kind == stat.S_IFDIR:
            if request.flags & (os.O_ACCMODE | os.O_CREAT):
                raise fail(errno.EISDIR)
        elif request.flags & os.O_DIRECTORY:
            raise fail(errno.ENOTDIR)
        elif home(node.ino) != server:
            return (0, 0, self.seen(server, node)), b""  # REOPEN goes on
        elif request.flags & os.O_TRUNC:
            self.cut(node, 0)
        if node.kind == stat.S_IFREG:
            node.openings += 1
        return (created, 0, self.seen(server, node)), b""

    def reopen(self, server, request, hint):
        node = self.inode(server, request.ino)
        if request.flags & os.O_DIRECTORY:
            raise fail(errno.ENOTDIR)
        if request.flags & os.O_TRUNC:
            self.cut(node, 0)
        node.openings += 1
        return (node.attr(),), b""

    def mkdir(self, server, request, path):
        return (self.make(server, path, stat.S_IFDIR | request.mode).attr(),), b""

    def symlink(self, server, request, tail):
        path, target = tail[: request.length], tail[request.length :]
        return (self.make(server, path, stat.S_IFLNK | 0o777, target=target).attr(),), b""

    def held(self, server, request, tail):
        for at in range(0, len(tail), 8):
            self.inode(server, int.from_bytes(tail[at : at + 8], "little")).openings += 1
        return (), b""

    def link(self, server, request, tail):
        path = tail[: request.length]
        assert server == owner(path, self.servers)
        if self.walk(path) is not None:
            raise fail(errno.EEXIST)
        node = self.inode(home(request.ino), request.ino)
        node.nlink += 1
        self.names[path] = node
        return (), b""

    def tmpfile(self, server, request, path):
        assert self.walk(path) is None
        self.next += 1
        node = Node(server << ops.INO_HOME_SHIFT | self.next, stat.S_IFREG | request.mode, 0, 0, request.chunk_size)
        node.nlink, node.openings = 0, 1
        self.inodes[node.ino] = node
        return (node.attr(),), b""

    def unlink(self, server, request, path):
        node = self.named(server, path)
        if node.kind == stat.S_IFDIR:
            raise fail(errno.EISDIR)
        node.nlink -= 1
        del self.names[path]
        return (), b""

    def rmdir(self, server, request, path):
        if self.named(server, path).kind != stat.S_IFDIR:
            raise fail(errno.ENOTDIR)
        if any(parent(name) == path for name in self.names if name != b"/"):
            raise fail(errno.ENOTEMPTY)
        del self.names[path]
        return (), b""

    def rename(self, server, request, tail):
        old, new = tail[: request.length], tail[request.length :]
        node, target = self.named(server, old), self.walk(new)
        if target is not None and request.flags:
            raise fail(errno.EEXIST)
        if node.kind == stat.S_IFDIR:
            raise fail(errno.EXDEV)
        if target is not None and target.kind == stat.S_IFDIR:
            raise fail(errno.EISDIR)
        del self.names[old]
        self.names[new] = node
        return (), b""

    def movetree(self, server, request, tail):
        """Half of the times it is not done when it is asked first."""
        assert server == owner(b"/", self.servers)
        if request.begin and request.ticket % 2:
            self.late = request.ticket
            return (0,), b""
        assert request.begin or request.ticket == self.late
        old, new = tail[: request.length], tail[request.length :]
        node, target = self.walk(old), self.walk(new)
        if node is None or target is None and request.flags == 2:
            raise fail(errno.ENOENT)
        if target is not None and request.flags == 1:
            raise fail(errno.EEXIST)
        names, self.names = self.names, {}
        for path, each in names.items():
            for source, place in ((old, new), (new, old if request.flags == 2 else None)):
                if path == source or path.startswith(source + b"/"):
                    path = place and place + path[len(source) :]
                    break
            if path:
                self.names[path] = each
        return (1,), b""

    def where(self, server, request, hint):
        for path, node in self.names.items():
            if node.ino == request.ino:
                return (), path
        raise fail(errno.ENOENT)

    def readdir(self, server, request, path):
        node = self.walk(path)
        assert node is None or node.kind == stat.S_IFDIR
        if node is None and owner(path, self.servers) == server:
            raise fail(errno.ENOENT)
        entries = sorted(
            (order(name[name.rindex(b"/") + 1 :]), name)
            for name in self.names
            if name != b"/" and parent(name) == path and owner(name, self.servers) == server
        )
        page, room = b"", min(request.limit, 100)  # small pages, so that there are several
        ino = node.ino if owner(path, self.servers) == server else 0
        for place, name in entries:
            short = name[name.rindex(b"/") + 1 :]
            if place <= request.after:
                continue
            entry = ops.DIRENT.pack(self.names[name].ino, place, self.names[name].kind >> 12, len(short)) + short
            if page and len(page) + len(entry) > room:
                return (0, ino), page
            page += entry
        return (1, ino), page

    # --- inodes -----------------------------------------------------------------------------------------------------

    def setattr(self, server, request, tail):
        node = self.inode(server, request.ino) if request.ino else self.named(server, tail)
        if node.kind == stat.S_IFLNK and not request.valid & ops.SET_LINK:
            return (self.seen(server, node),), node.target
        if not request.ino and home(node.ino) != server and node.ino != ops.ROOT_INO:
            return (self.seen(server, node),), node.target
        if request.valid & ops.SET_SIZE:
            if node.kind == stat.S_IFDIR:
                raise fail(errno.EISDIR)
            self.cut(node, request.size)
        if request.valid & ops.SET_MODE:
            node.mode = node.kind | request.mode
        if request.valid & ops.SET_UID:
            node.uid = request.uid
        if request.valid & ops.SET_GID:
            node.gid = request.gid
        if request.valid & ops.SET_ATIME:
            node.atime = request.atime_ns
        if request.valid & ops.SET_MTIME:
            node.mtime = request.mtime_ns
        return (node.attr(),), node.target

    def cut(self, node, size):
        for chunk in list(node.data):
            keep = size - chunk * node.chunk_size
            node.data[chunk] = node.data[chunk][: max(keep, 0)]
        node.cuts += size < node.size
        node.size = size

    def read(self, server, request, tail):
        assert server == chunk_server(request.ino, request.chunk, self.servers) and request.length > 0
        node = self.inodes[request.ino]
        stored = node.data.get(request.chunk, b"")
        data = bytes(stored[request.offset : request.offset + request.length])
        assert not tail or server == home(request.ino)
        return (len(data), node.size if tail and len(data) < request.length else -1), data

    def write(self, server, request, tail):
        assert server == chunk_server(request.ino, request.chunk, self.servers)
        node, data = self.inodes[request.ino], tail[request.hint :]
        assert len(data) == request.length and request.offset + request.length <= node.chunk_size
        stored = node.data.setdefault(request.chunk, bytearray())
        stored.extend(bytes(max(0, request.offset - len(stored))))
        stored[request.offset : request.offset + len(data)] = data
        if request.end:
            assert server == home(request.ino) and tail[: request.hint].startswith(b"/")
            node.size = max(node.size, request.end)
        return (node.size if request.end else 0, node.cuts), b""

    def extend(self, server, request, hint):
        node = self.inode(server, request.ino)
        assert request.begin <= request.end
        node.size = max(node.size, request.end)
        return (node.size, node.cuts), b""

    def append(self, server, request, tail):
        node, data = self.inode(server, request.ino), tail[request.hint :]
        assert len(data) == request.length and tail[: request.hint].startswith(b"/")
        offset = node.size
        for chunk, within, length in split(offset, len(data), node.chunk_size):
            stored = node.data.setdefault(chunk, bytearray())
            stored.extend(bytes(max(0, within - len(stored))))
            stored[within : within + length], data = data[:length], data[length:]
        node.size += request.length
        return (offset, node.cuts), b""

    def retract(self, server, request, hint):
        node = self.inode(server, request.ino)
        if node.size == request.end and request.kept:
            node.size = request.kept
        return (node.size,), b""

    def growing(self, server, request, ranges):
        assert ranges and not len(ranges) % 16
        return (0,), b""

    def seek(self, server, request, hint):
        node = self.inodes[request.ino]
        assert not hint or server == home(request.ino)
        size = node.size if hint else 0
        at = request.offset
        while at < node.size + node.chunk_size:
            chunk, within = divmod(at, node.chunk_size)
            if chunk_server(request.ino, chunk, self.servers) == server:
                stored = within < len(node.data.get(chunk, b""))
                if stored != request.hole:
                    return (at, 1, size), b""
                at += len(node.data[chunk]) - within if stored else node.chunk_size - within
            else:
                at += node.chunk_size - within
        return (ops.SEEK_NONE, 1, size), b""

    def fallocate(self, server, request, hint):
        node, end = self.inode(server, request.ino), request.offset + request.length
        if request.mode & ~1:  # punched or zeroed
            for at in range(request.offset, min(end, node.size)):
                chunk, within = divmod(at, node.chunk_size)
                if within < len(node.data.get(chunk, b"")):
                    node.data[chunk][within] = 0
        if not request.mode & 1:
            node.size = max(node.size, end)
        return (node.attr(),), b""

    def accessed(self, server, request, hint):
        raise AssertionError("has no reply")

    def fsync(self, server, request, hint):
        return (), b""

    def statfs(self, server, request, tail):
        return (4096 >> server % 2, 1000, 500, 400, 10, 5, server), b""

    def lock(self, server, request, hint):
        self.inode(server, request.ino)
        self.locks.append(request)
        return (2, 0, 0, 0), b""
