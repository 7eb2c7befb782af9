# SPDX-License-Identifier: Apache-2.0
"""What servers ask of each other, and what people ask of a server.  None of these waits for another server, save
INSTALL for its parent directory (rename.py) and TOUCH for who asked it (times.py): so servers that wait for each other
always get their answers."""
import asyncio
import errno
import os
import time

from flatbuffers import flexbuffers

from pymadfs.errors import fail
from pymadfs.ops import ARRIVED, ATTR, CUT, DIRINFO, EMPTY, INVALIDATE, SHUTDOWN, STATUS

from .dispatch import serves
from .inodes import cut_here
from .meta import (
    entries_prefix,
    entry_key,
    inode_key,
    is_directory,
    is_file,
    is_pointer,
    size_of,
)

CENSUS_PAGE = 1024  # keys looked at before others are served


@serves(DIRINFO)
def dirinfo(server, request):
    path = request.tail
    value = server.dirs.above(entry_key(path))
    if value is None:
        raise fail(errno.ENOENT)
    if is_directory(value) and request.fields.server < server.servers:
        server.dirs.told(path, request.fields.server)
        if request.fields.writes:
            server.times.grant(path, request.fields.server)
    return (value[:ATTR.size],), value[ATTR.size:]


@serves(INVALIDATE)
def invalidate(server, request):
    if request.tail:
        server.dirs.forget(request.tail)
    else:
        server.dirs.forget_all()
    return (), b""


@serves(EMPTY)
def empty(server, request):
    server.dirs.forget(request.tail)
    server.commit()
    path = request.tail
    return (not server.kv.scan(entries_prefix(path), b"", 1) and not server.freezes.reserves(path),), b""


@serves(CUT)
def cut(server, request):
    _, size, chunk_size, _ = request.fields
    if size and not chunk_size:
        raise fail(errno.EPROTO)
    return _cut(server, request.fields)


async def _cut(server, fields):
    return (await cut_here(server, *fields),), b""


@serves(STATUS)
async def status(server, request):
    files, stored = await census(server)
    build = flexbuffers.Builder()
    rpc = server.rpc
    with build.Map():
        build.Int("number", server.number)
        build.Int("servers", server.servers)
        build.Int("pid", os.getpid())
        build.Float("uptime_s", time.monotonic() - server.since_s)
        build.Int("connections", len(server.conns))
        build.Int("open_files", len(server.openings.total))
        build.Int("files", files)
        build.Int("bytes", stored)
        build.Int("bytes_in", server.bytes_in)
        build.Int("bytes_out", server.bytes_out)
        build.Int("sync_rounds", server.syncer.rounds)
        build.Int("garbage", rpc.counters["garbage"])
        with build.Map("operations"):
            for name, count in rpc.counters.items():
                if count and name != "garbage":
                    build.Int(name, count)
    return (), bytes(build.Finish())


async def census(server):
    """``(files, bytes)``: regular files whose inode is here, and their sizes; others are served meanwhile."""
    files = stored = 0
    for kind in (entries_prefix(b"")[:1], inode_key(0)[:1]):
        after: bytes | None = b""
        while after is not None:
            server.commit()
            page = server.kv.scan(kind, after, CENSUS_PAGE)
            for _, value in page:
                if is_file(value) and not is_pointer(value):
                    files += 1
                    stored += size_of(value)
            after = page[-1][0][len(kind):] if len(page) == CENSUS_PAGE else None
            await asyncio.sleep(0)
    return files, stored


@serves(ARRIVED)
def arrived(server, request):
    return (server.rpc.arrived(*request.fields),), b""


@serves(SHUTDOWN)
def shutdown(server, request):
    if request.uid not in (0, os.getuid()):
        raise fail(errno.EPERM)
    server.loop.call_soon(server.ended)
    return (), b""
