# SPDX-License-Identifier: Apache-2.0
"""Bytes, sizes, openings and removals over several servers."""
import asyncio
import errno
import os
import random

import pytest
from flatbuffers import flexbuffers
from server_world import CHUNK, INLINE, code, run

from pymadfs.layout import home
from pymadfs.ops import (
    ATTR,
    EXTEND,
    FSYNC,
    OPEN,
    RELEASE,
    SET_ATIME,
    SET_ATIME_NOW,
    SET_GID,
    SET_MODE,
    SET_MTIME,
    SET_MTIME_NOW,
    SET_SIZE,
    SET_UID,
    SETATTR,
    STATFS,
    STATUS,
    WRITE,
)


@run
async def test_random_writes_and_truncations_against_a_model(world):
    chance = random.Random(1)
    for turn in range(6):
        path = b"/f%d" % turn
        attr = await world.create(path, keep=True)
        model = bytearray()
        for _ in range(40):
            action = chance.random()
            if action < 0.6:
                offset = chance.randrange(CHUNK * 7 if action < 0.3 else 300)
                data = chance.randbytes(chance.choice((1, 10, 700, CHUNK, 3 * CHUNK)))
                await world.write(attr, path, offset, data, bulk=action < 0.2)
                model.extend(bytes(max(0, offset + len(data) - len(model))))
                model[offset:offset + len(data)] = data
            elif action < 0.8:
                size = chance.randrange(CHUNK * 8) if action < 0.75 else 0
                await world.setattr(path, SET_SIZE, size=size)
                model = model[:size].ljust(size, b"\0")
            else:
                await world.call(FSYNC, path, attr.ino)
            assert (await world.stat(path)).size == len(model)
            assert await world.read(attr.ino, 0, len(model) + 10) == bytes(model) + bytes(10)
        await world.unlink(path)
        assert await world.read(attr.ino, 0, len(model)) == model  # still open
        await world.release(attr.ino)
    await world.quiet()
    assert not world.files_of_chunks() and not world.keys(b"P") and not world.keys(b"C") and not world.keys(b"D")


@run
async def test_small_files_stay_in_the_key_value_store(world):
    attr = await world.create(b"/small")
    await world.write(attr, b"/small", 0, b"x" * INLINE)
    assert not world.files_of_chunks() and len(world.keys(b"D")) == 1
    await world.unlink(b"/small")
    assert not world.keys(b"D") and not world.keys(b"P")


@run
async def test_open_truncates_and_counts(world):
    attr = await world.create(b"/f")
    await world.write(attr, b"/f", 0, b"x" * (CHUNK * 5))
    again = await world.create(b"/f", os.O_WRONLY | os.O_TRUNC, keep=True)
    assert (again.ino, again.size) == (attr.ino, 0)
    await world.unlink(b"/f")
    assert (await world.getattr(attr.ino)).nlink == 0
    await world.release(attr.ino)
    await world.quiet()
    with pytest.raises(OSError) as error:
        await world.getattr(attr.ino)
    assert code(error) == "ENOENT"


@run
async def test_openings_end_with_the_connection(world):
    attr = await world.create(b"/f", keep=True, conn=2)
    await world.create(b"/f", keep=True, conn=3)
    await world.write(attr, b"/f", 0, b"x" * (CHUNK * 5))
    await world.unlink(b"/f")
    server = world.servers[home(attr.ino)]
    server.forget(2)
    await world.quiet()
    assert await world.read(attr.ino, 0, 3) == b"xxx"
    server.forget(3)
    await world.quiet()
    assert not world.files_of_chunks() and not world.keys(b"I") and not world.keys(b"P")


@run
async def test_threads_work_on_the_files_that_were_meant(world):
    """Chunk files are closed, and others get their descriptors, between a request and the thread that serves it."""
    attrs = [await world.create(b"/f%d" % number) for number in range(20)]
    texts = [b"%02d" % number * (CHUNK // 2) for number in range(20)]
    for server in world.servers:
        server.chunks._open_share = 2
        server.disk_slow_until = float("inf")

    async def write_and_read(number):
        for _ in range(3):
            await world.write(attrs[number], b"/f%d" % number, 0, texts[number] * 3, bulk=True)
            assert await world.read(attrs[number].ino, 0, 3 * CHUNK) == texts[number] * 3

    await asyncio.gather(*(write_and_read(number) for number in range(20)))
    assert [await world.read(attr.ino, CHUNK, CHUNK) for attr in attrs] == texts


@run
async def test_removal_goes_on_after_a_crash_and_a_dead_server(world):
    attr = await world.create(b"/f")
    await world.write(attr, b"/f", 0, b"x" * (CHUNK * 9))
    first = home(attr.ino)
    other = (first + 1) % 3
    world.crash(other)
    await world.unlink(b"/f")
    world.crash(first)
    world.start(first)
    assert world.files_of_chunks()
    world.start(other)
    await world.quiet()
    assert not world.files_of_chunks() and not world.keys(b"C") and not world.keys(b"P")


@run
async def test_orphans_are_purged_at_start(world):
    attr = await world.create(b"/f", keep=True)
    await world.write(attr, b"/f", 0, b"x" * (CHUNK * 4))
    await world.unlink(b"/f")
    assert world.keys(b"I")
    world.crash(home(attr.ino))
    world.start(home(attr.ino))
    await world.quiet()
    assert not world.files_of_chunks() and not world.keys(b"I")


@run
async def test_a_write_takes_setuid_away(world):
    attr = await world.create(b"/f", mode=0o6755)
    await world.write(attr, b"/f", 0, b"root keeps it")
    assert (await world.stat(b"/f")).mode & 0o7777 == 0o6755
    await world.write(attr, b"/f", 0, b"others do not", uid=5, gid=5)
    assert (await world.stat(b"/f")).mode & 0o7777 == 0o755


@run
async def test_changing_attributes(world):
    await world.create(b"/f", uid=5, gid=6)
    await world.setattr(b"/f", SET_MODE, mode=0o600, uid=0)
    attr = await world.setattr(b"/f", SET_ATIME | SET_MTIME, atime=11, mtime=12)
    assert (attr.mode, attr.atime_ns, attr.mtime_ns) == (0o100600, 11, 12) and attr.ctime_ns > 12
    refused = (("EPERM", SET_MODE, {"mode": 0o777}), ("EPERM", SET_UID, {}), ("EPERM", SET_ATIME, {}),
               ("EPERM", SET_MTIME_NOW, {}), ("EACCES", SET_ATIME_NOW | SET_MTIME_NOW, {}),
               ("EACCES", SET_SIZE, {}))
    for expected, valid, fields in refused:
        with pytest.raises(OSError) as error:
            await world.call(SETATTR, b"/f", 0, valid, fields.get("mode", 0), 0, 0, 0, 0, 0, uid=9, gid=9)
        assert code(error) == expected
    await world.setattr(b"/f", SET_MODE, mode=0o6755)
    reply, _ = await world.call(SETATTR, b"/f", 0, SET_UID | SET_GID, 0, 7, 8, 0, 0, 0)
    attr = ATTR.unpack(reply.attr)
    assert (attr.uid, attr.gid, attr.mode & 0o7777) == (7, 8, 0o755)
    for size, expected in ((1 << 63, "EFBIG"),):
        with pytest.raises(OSError) as error:
            await world.setattr(b"/f", SET_SIZE, size=size)
        assert code(error) == expected
    with pytest.raises(OSError) as error:
        await world.setattr(b"/", SET_SIZE)
    assert code(error) == "EISDIR"


@run
async def test_access_at_open(world):
    await world.create(b"/f", mode=0o640, uid=5, gid=6)
    for flags, uid, gid, expected in ((os.O_RDONLY, 5, 5, None), (os.O_RDWR, 5, 5, None), (os.O_RDONLY, 9, 6, None),
                                      (os.O_WRONLY, 9, 6, "EACCES"), (os.O_RDONLY | os.O_TRUNC, 9, 6, "EACCES"),
                                      (os.O_RDONLY, 9, 9, "EACCES"), (os.O_RDONLY | os.O_DIRECTORY, 0, 0, "ENOTDIR"),
                                      (os.O_CREAT | os.O_EXCL, 0, 0, "EEXIST")):
        if expected is None:
            await world.create(b"/f", flags, uid=uid, gid=gid)
            continue
        with pytest.raises(OSError) as error:
            await world.create(b"/f", flags, uid=uid, gid=gid)
        assert code(error) == expected
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_CREAT, os.O_TRUNC):
        with pytest.raises(OSError) as error:
            await world.create(b"/", flags)
        assert code(error) in ("EISDIR", "EINVAL")
    await world.symlink(b"f", b"/link")
    reply, target = await world.call(OPEN, b"/link", os.O_RDWR, 0, CHUNK, 0)
    assert target == b"f" and not reply.created


@run
async def test_what_comes_from_the_wire_is_checked(world):
    attr = await world.create(b"/f")
    for fields, data in (((attr.ino, 0, 0, 5, 5, 2), b"four"), ((attr.ino, 0, 1 << 31, 1 << 31, 0, 0), b""),
                         ((attr.ino, 0, 0, 4, 1 << 63, 2), b"four"), ((attr.ino + 1, 0, 0, 4, 4, 2), b"four")):
        with pytest.raises(OSError) as error:
            await world.ask(home(attr.ino), WRITE, b"/f" + data, *fields, 0, 0)
        assert code(error) in ("EPROTO", "EFBIG", "ENOENT")
    with pytest.raises(OSError):
        await world.ask(home(attr.ino), EXTEND, b"/f", attr.ino, 0, 1 << 63, 0)
    with pytest.raises(OSError):
        await world.ask(home(attr.ino), WRITE, b"/f", attr.ino, 0, 0, 3, 3, 2, 0, 0, payload=b"four")
    await world.ask(home(attr.ino), RELEASE, b"odd")
    await world.ask(home(attr.ino), RELEASE, b"\xff" * 16)
    assert (await world.stat(b"/f")).size == 0


@run
async def test_no_space_is_told_and_loses_nothing(world):
    attr = await world.create(b"/f")
    await world.write(attr, b"/f", 0, b"a" * 9000)
    server = world.servers[home(attr.ino)]

    def full(length):
        raise OSError(errno.ENOSPC, "full")

    server.chunks._check_space = full
    await world.write(attr, b"/f", 0, b"b" * 5000)  # what is allocated can be written
    with pytest.raises(OSError) as error:
        await world.write(attr, b"/f", 3 * CHUNK * world.count, b"c" * 9000)
    assert code(error) == "ENOSPC"
    assert await world.read(attr.ino, 0, 9000) == b"b" * 5000 + b"a" * 4000
    await world.unlink(b"/f")


@run
async def test_statfs(world):
    reply, _ = await world.ask(0, STATFS)
    assert reply.block and reply.blocks >= reply.free >= reply.available


@run
async def test_one_round_of_sync_serves_all_who_wait(world):
    attr = await world.create(b"/f")
    await world.write(attr, b"/f", 0, b"x" * CHUNK)
    server = world.servers[home(attr.ino)]
    await asyncio.gather(*(world.ask(home(attr.ino), FSYNC, b"/f", attr.ino) for _ in range(50)))
    assert 1 <= server.syncer.rounds <= 25
    assert not server.chunks._dirty

    def broken():
        raise OSError(errno.EIO, "the disk")

    await world.write(attr, b"/f", 0, b"y" * CHUNK)
    server.kv.sync_fds = broken
    with pytest.raises(OSError) as error:
        await world.call(FSYNC, b"/f", attr.ino)
    assert code(error) == "EIO" and server.chunks._dirty
    del server.kv.sync_fds


@run
async def test_status_counts_files(world):
    attr = await world.create(b"/f")
    await world.write(attr, b"/f", 0, b"x" * 500)
    found = [flexbuffers.Loads((await world.ask(number, STATUS))[1]) for number in range(3)]
    assert sum(each["files"] for each in found) == 1 and sum(each["bytes"] for each in found) == 500
