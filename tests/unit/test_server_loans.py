# SPDX-License-Identifier: Apache-2.0
"""Bytes of small files that come with their open: who gets them, who waits for them, and that nobody reads old ones."""
import ctypes
import os
import time

import pytest
from real_servers import RealServers
from server_world import CHUNK, World, run

from pymadfs.client import File, FileSystem
from pymadfs.config import Config
from pymadfs.layout import home
from pymadfs.ops import APPEND, ATTR, EXTEND, FALLOCATE, OPEN, SET_MODE, SET_SIZE
from pymadfs.server import loans

LEND_US = 300_000
CLOCK_REALTIME_COARSE = 5  # <time.h>
OTHER = 2  # a connection that is not the borrower's


@pytest.fixture(autouse=True)
def long_loans(monkeypatch):
    """So long that a test which does not wait for their end would notice."""
    monkeypatch.setitem(World.settings, "MADFS_LEND_US", str(LEND_US))


async def small(world, path, data=b"some bytes"):
    attr = await world.create(path)
    await world.write(attr, path, 0, data)
    return attr


async def borrow(world, path, flags=os.O_RDONLY, conn=1):
    """-> the lent bytes, or None."""
    reply, tail = await world.call(OPEN, path, flags, 0, CHUNK, 0, conn=conn)
    assert reply.lease_us in (0, LEND_US)
    return tail if reply.lease_us else None


@run
async def test_only_small_files_that_are_read_are_lent(world):
    await small(world, b"/f")
    assert await borrow(world, b"/f") == b"some bytes"
    assert await borrow(world, b"/f", os.O_RDONLY | os.O_CREAT) == b"some bytes"
    for flags in (os.O_RDWR, os.O_WRONLY, os.O_PATH):
        assert await borrow(world, b"/f", flags) is None
    await world.create(b"/empty")
    assert await borrow(world, b"/empty") == b""
    await small(world, b"/large", b"x" * (CHUNK + 1))
    assert await borrow(world, b"/large") is None
    await world.mkdir(b"/d")
    assert await borrow(world, b"/d") is None
    await world.symlink(b"/f", b"/l")
    assert await borrow(world, b"/l") is None
    attr = await small(world, b"/sparse", b"ab")
    await world.setattr(b"/sparse", SET_SIZE, size=5)
    assert attr.size == 0 and await borrow(world, b"/sparse") == b"ab\0\0\0"


async def _write(world, attr, path, conn):
    await world.write(attr, path, 0, b"NEW", conn=conn)


async def _extend(world, attr, path, conn):
    await world.call(EXTEND, path, attr.ino, 10, 20, 0, conn=conn)


async def _append(world, attr, path, conn):
    await world.ask(home(attr.ino), APPEND, path + b"bytes", attr.ino, 5, len(path), 0, 0, conn=conn)


async def _truncate(world, attr, path, conn):
    await world.setattr(path, SET_SIZE, size=3, conn=conn)


async def _open_truncating(world, attr, path, conn):
    await world.call(OPEN, path, os.O_WRONLY | os.O_TRUNC, 0, CHUNK, 0, conn=conn)


async def _allocate(world, attr, path, conn):
    await world.call(FALLOCATE, path, attr.ino, 0, 0, 100, conn=conn)


CHANGES = (_write, _extend, _append, _truncate, _open_truncating, _allocate)


@run
async def test_others_wait_before_they_change_what_is_lent(world):
    for change in CHANGES:
        path = b"/" + change.__name__.encode()
        attr = await small(world, path)
        server = world.servers[world.owner(path)]
        assert await borrow(world, path) is not None
        until, borrower = server.loans._until[attr.ino]
        assert borrower == 1
        await change(world, attr, path, OTHER)
        assert time.monotonic() >= until, f"{change.__name__} did not wait"
        assert await borrow(world, path) is None, "it would have to wait again"


@run
async def test_the_borrower_does_not_wait_unless_others_borrowed_too(world):
    for change in CHANGES:
        path = b"/" + change.__name__.encode()
        attr = await small(world, path)
        server = world.servers[world.owner(path)]
        assert await borrow(world, path) is not None
        await change(world, attr, path, 1)
        assert time.monotonic() < server.loans._until[attr.ino][0], f"{change.__name__} waited, or all is very slow"
    attr = await small(world, b"/both")
    assert await borrow(world, b"/both") == await borrow(world, b"/both", conn=OTHER) == b"some bytes"
    until, _ = world.servers[world.owner(b"/both")].loans._until[attr.ino]
    await _write(world, attr, b"/both", 1)
    assert time.monotonic() >= until


@run
async def test_names_and_modes_change_without_waiting(world):
    await small(world, b"/f")
    await borrow(world, b"/f")
    until, _ = next(iter(world.servers[world.owner(b"/f")].loans._until.values()))
    await world.setattr(b"/f", SET_MODE, mode=0o600, conn=OTHER)
    await world.rename(b"/f", b"/g", conn=OTHER)
    await world.unlink(b"/g", conn=OTHER)
    assert time.monotonic() < until


@run
async def test_loans_are_limited_and_forgotten(world):
    await small(world, b"/f0")
    lender = world.servers[world.owner(b"/f0")].loans
    names = [world.path_on(world.owner(b"/f0"), stem=b"n", skip=skip) for skip in range(3)]
    for name in names:
        await small(world, name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loans, "LOANS_MAX", 2)
        assert [await borrow(world, name) is not None for name in names] == [True, True, False]
        for ino in lender._until:
            lender._until[ino] = (0.0, 1)
        assert await borrow(world, names[2]) is not None
    assert len(lender._until) == 1


# --- the client -----------------------------------------------------------------------------------------------------


@pytest.fixture
def servers(tmp_path):
    servers = RealServers(tmp_path / "stores", 1)
    yield servers
    servers.close()


@pytest.fixture
def fs(servers):
    return FileSystem(servers, Config({}), b"/madfs", lambda address, data: ctypes.memmove(address, data, len(data)))


def opened(fs, path, flags):
    path, attr = fs.open(path, flags, 0o644)
    return File(attr.ino, attr.mode, path, attr.chunk_size, attr.size, flags)


def content(fs, file, offset=0, length=100):
    room = ctypes.create_string_buffer(length)
    count = fs.read(file, offset, [(ctypes.addressof(room), length)])
    return room.raw[:count]


def tick():
    """Until the clock that files' times come from goes on."""
    now = time.clock_gettime_ns(CLOCK_REALTIME_COARSE)
    while time.clock_gettime_ns(CLOCK_REALTIME_COARSE) == now:
        continue


def asked(fs, function, *arguments):
    """(its result, names of the requests it cost)."""
    fs.rpc.world.log.clear()
    return function(*arguments), [op.name for _, op in fs.rpc.world.log]


def test_reading_a_small_file_costs_nothing(fs):
    file = opened(fs, b"/f", os.O_CREAT | os.O_RDWR)
    fs.write(file, 0, [(b"hello", 5)])
    reader, cost = asked(fs, opened, fs, b"/f", os.O_RDONLY)
    assert cost == ["open"]
    tick()
    assert asked(fs, content, fs, reader) == (b"hello", ["accessed"]), "told once that it is read, and not waited for"
    assert asked(fs, content, fs, reader, 3) == (b"lo", [])
    assert asked(fs, content, fs, reader, 5) == (b"", [])
    attr = ATTR.unpack(fs.rpc.call(0, OPEN, b"/f", os.O_RDWR, 0, 1, 0)[0].attr)
    assert attr.atime_ns > attr.mtime_ns
    reader = opened(fs, b"/f", os.O_RDONLY)
    assert asked(fs, content, fs, reader) == (b"hello", []), "its atime is newer than its mtime"


def test_own_changes_are_seen_at_once(fs):
    file = opened(fs, b"/f", os.O_CREAT | os.O_RDWR)
    for change, expected in (
        (lambda: fs.write(file, 0, [(b"hello", 5)]), b"hello"),
        (lambda: fs.append(file, [(b"!", 1)], 1), b"hello!"),
        (lambda: fs.truncate(b"/f", 4), b"hell"),
        (lambda: fs.ftruncate(file, 6), b"hell\0\0"),
        (lambda: fs.fallocate(file, 0, 0, 8), b"hell\0\0\0\0"),
        (lambda: fs.open(b"/f", os.O_WRONLY | os.O_TRUNC, 0), b""),
        (lambda: fs.extend(file, 3), b"\0\0\0"),
    ):
        reader = opened(fs, b"/f", os.O_RDONLY)
        before = content(fs, reader)
        change()
        assert content(fs, reader) == expected != before


def test_a_change_while_the_open_is_under_way(fs):
    file = opened(fs, b"/f", os.O_CREAT | os.O_RDWR)
    ask = fs._call

    def slow(server, op, *arguments, **options):
        answer = ask(server, op, *arguments, **options)
        if op is OPEN:  # another thread of this process writes before this one sees its answer
            fs._call = ask
            fs.write(file, 0, [(b"newer", 5)])
        return answer

    fs._call = slow
    reader = opened(fs, b"/f", os.O_RDONLY)
    assert content(fs, reader) == b"newer"


def test_what_was_lent_is_not_read_when_its_time_is_over(fs, monkeypatch):
    file = opened(fs, b"/f", os.O_CREAT | os.O_RDWR)
    fs.write(file, 0, [(b"hello", 5)])
    reader = opened(fs, b"/f", os.O_RDONLY)
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    monkeypatch.setattr("pymadfs.filedata.clock_gettime", lambda clock: now + LEND_US / 1e6 + 1)
    assert asked(fs, content, fs, reader) == (b"hello", ["read"])


def test_a_child_does_not_read_what_its_parent_was_lent(fs):
    file = opened(fs, b"/f", os.O_CREAT | os.O_RDWR)
    fs.write(file, 0, [(b"hello", 5)])
    reader = opened(fs, b"/f", os.O_RDONLY)
    fs.rpc.forget_after_fork = lambda keep: None
    fs.after_fork_child()
    assert asked(fs, content, fs, reader) == (b"hello", ["read"])


@run
async def test_an_open_that_waits_tells_once_of_what_ended(world):
    path = world.path_on(1)
    ended = await world.create(world.path_on(1, skip=1), conn=OTHER, keep=True)
    await world.create(world.path_on(1, skip=1), conn=OTHER, keep=True)
    await small(world, path)
    assert await borrow(world, path)
    await world.call(OPEN, path, os.O_WRONLY | os.O_TRUNC, 0, CHUNK, ended.ino, conn=OTHER)
    assert world.servers[1].openings.total[ended.ino] == 1
    await world.call(OPEN, path, os.O_WRONLY, 0, CHUNK, ended.ino, conn=OTHER)
    assert ended.ino not in world.servers[1].openings.total
