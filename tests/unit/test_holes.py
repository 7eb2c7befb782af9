# SPDX-License-Identifier: Apache-2.0
"""Holes, allocation and sizes on several servers: against a model, and by what is stored."""

import ctypes
import errno
import os
import random

import pytest
from fake_servers import Servers
from real_servers import RealServers
from server_world import CHUNK, code, run

from pymadfs.client import File, FileSystem
from pymadfs.config import Config
from pymadfs.layout import home
from pymadfs.ops import ACCESSED, ATTR, FALLOCATE, READ, RESHAPE, SEEK, SET_SIZE

KEEP, PUNCH, ZERO = 1, 2, 0x10
END = 9 * CHUNK


def store(address, data):
    ctypes.memmove(address, data, len(data))


def file_system(rpc):
    return FileSystem(rpc, Config({"MADFS_CHUNK_SIZE": str(CHUNK)}), b"/madfs", store)


def opened(fs, path=b"/f"):
    path, attr = fs.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    return File(attr.ino, attr.mode, path, attr.chunk_size, attr.size, os.O_RDWR)


@pytest.fixture
def fs(tmp_path):
    rpc = RealServers(tmp_path)
    yield file_system(rpc)
    rpc.close()


def read(fs, file, offset, length):
    memory = ctypes.create_string_buffer(length + 1)
    count = fs.read(file, offset, ((ctypes.addressof(memory), length),))
    return memory.raw[:count]


def write(fs, file, offset, data):
    assert fs.write(file, offset, ((data, len(data)),)) == len(data)


def extents(fs, file):
    """[begin, end) of all data, by SEEK."""
    found, at = [], 0
    try:
        while True:
            begin = fs.seek(file, at, False)
            at = fs.seek(file, begin, True)
            assert begin < at
            found.append((begin, at))
    except OSError as error:
        assert error.errno == errno.ENXIO
    return found


def overwrite(model, offset, data):
    model.extend(bytes(max(0, offset + len(data) - len(model))))
    model[offset : offset + len(data)] = data


def step(fs, files, chance, model):
    """One random operation, by one of several openings, on the file and on its model."""
    file, action = chance.choice(files), chance.random()
    offset = chance.choice((chance.randrange(END), chance.randrange(100), chance.randrange(9) * CHUNK))
    length = chance.choice((1, 10, 700, CHUNK, 3 * CHUNK, chance.randrange(1, END)))
    if action < 0.3:
        data = chance.randbytes(length)
        write(fs, file, offset, data)
        overwrite(model, offset, data)
    elif action < 0.4:
        data = chance.randbytes(length % 5000 + 1)
        assert fs.append(file, ((data, len(data)),), len(data)) == (len(model), len(data))
        model.extend(data)
    elif action < 0.55:
        fs.ftruncate(file, offset)
        model[:] = model[:offset].ljust(offset, b"\0")
    elif action < 0.6:
        _, attr = fs.open(file.path, os.O_WRONLY | os.O_TRUNC, 0)
        fs.ended(attr.ino)
        del model[:]
    elif action < 0.9:
        mode = chance.choice((0, KEEP, PUNCH | KEEP, PUNCH | KEEP, ZERO, ZERO | KEEP))
        fs.fallocate(file, mode, offset, length)
        if mode & (PUNCH | ZERO):
            end = min(offset + length, len(model))
            model[offset:end] = bytes(max(0, end - offset))
        if not mode & KEEP:
            model.extend(bytes(max(0, offset + length - len(model))))
    else:
        assert read(fs, file, offset, length) == model[offset : offset + length]


def check(fs, file, model):
    assert read(fs, file, 0, len(model) + 10) == model
    found = extents(fs, file)
    at = 0
    for begin, end in found:
        assert not any(model[at:begin])
        at = end
    assert not any(model[at:]) and at <= len(model)
    attr = fs.getattr(file)
    assert attr.size == len(model)


def play(fs, seed, steps):
    chance, model = random.Random(seed), bytearray()
    path = b"/f%d" % seed
    files = [opened(fs, path) for _ in range(3)]
    for number in range(steps):
        try:
            step(fs, files, chance, model)
            check(fs, files[0], model)
        except Exception as error:
            raise AssertionError(f"seed {seed}, step {number}") from error
    fs.unlink(path)
    for file in files:
        fs.ended(file.ino)
    fs.flush()


def left_over(fs):
    world = fs.rpc.world
    fs.rpc.loop.run_until_complete(world.quiet())
    return world.files_of_chunks() + world.keys(b"C") + world.keys(b"D") + world.keys(b"P") + world.keys(b"I")


def test_random_operations_against_a_model(fs):
    for seed in range(12):
        play(fs, seed, 40)
    assert not left_over(fs)


@pytest.mark.long
def test_random_operations_against_a_model_long(fs):
    for seed in range(100, 600):
        play(fs, seed, 60)
    assert not left_over(fs)


def test_what_is_allocated_above_the_size_goes_with_the_file(fs):
    file = opened(fs)
    fs.fallocate(file, KEEP, 2 * CHUNK, 5 * CHUNK)
    attr = fs.getattr(file)
    assert attr.size == 0 and attr.blocks == 5 * CHUNK // 512 and len(fs.rpc.world.files_of_chunks()) >= 5
    assert read(fs, file, 0, 10) == b""
    fs.unlink(b"/f")
    fs.ended(file.ino)
    fs.flush()
    assert not left_over(fs)


def test_truncation_frees_what_is_allocated_above(fs):
    file = opened(fs)
    fs.fallocate(file, KEEP, 2 * CHUNK, 5 * CHUNK)
    fs.ftruncate(file, 0)
    assert not fs.rpc.world.keys(b"C") and fs.getattr(file).blocks == 0


def test_no_room_changes_no_size(fs):
    file = opened(fs)
    write(fs, file, 0, b"kept")
    world = fs.rpc.world

    def full():
        return 0

    for server in world.servers:
        server.chunks.room = full
    with pytest.raises(OSError) as error:
        fs.fallocate(file, 0, 0, 6 * CHUNK)
    assert code_of(error) == "ENOSPC" and fs.getattr(file).size == 4 and read(fs, file, 0, 9) == b"kept"


def code_of(error):
    return errno.errorcode[error.value.errno]


def test_large_allocations_go_in_parts_and_ask_for_room_first():
    rpc = Servers()
    config = Config({})
    config.chunk_size = 64
    fs = FileSystem(rpc, config, b"/madfs", store)
    file = opened(fs)
    step_bytes = 64 * 1024 * 3
    fs.fallocate(file, 0, 0, 2 * step_bytes + 1)
    assert [name for _, name in rpc.log if name == "fallocate"] == ["fallocate"] * 3
    assert fs.getattr(file).size == 2 * step_bytes + 1
    rpc.log.clear()
    with pytest.raises(OSError) as error:
        fs.fallocate(file, 0, 0, 1 << 40)
    assert code_of(error) == "ENOSPC" and "fallocate" not in [name for _, name in rpc.log]


def test_requests_of_seek_and_fallocate(fs):
    """One round where the answer lies near, two when other servers may have it."""
    file = opened(fs)
    log = fs.rpc.world.log

    def asked(action):
        before = len(log)
        action()
        return [op for _, op in log[before:]]

    write(fs, file, 0, b"x" * 100)
    assert asked(lambda: fs.seek(file, 0, False)) == asked(lambda: fs.seek(file, 5, True)) == [SEEK]
    write(fs, file, 0, b"x" * 6 * CHUNK)
    assert asked(lambda: fs.seek(file, CHUNK, False)) == [SEEK] * 2
    assert asked(lambda: fs.seek(file, 0, True)) == [SEEK] * 3
    assert sorted(op.name for op in asked(lambda: fs.fallocate(file, 0, 0, 6 * CHUNK))) == [
        "fallocate",
        "reshape",
        "reshape",
    ]


@run
async def test_a_crash_while_allocating_leaves_nothing_for_ever(world):
    attr = await world.create(b"/f", keep=True)
    base = home(attr.ino)
    world.trap = (base, RESHAPE, "after", base)
    with pytest.raises(OSError) as error:
        await world.ask(base, FALLOCATE, b"/f", attr.ino, 0, 0, 6 * CHUNK)
    assert code(error) == "EIO"
    world.start(base)
    assert (await world.stat(b"/f")).size == 0 and world.files_of_chunks()
    await world.unlink(b"/f")
    await world.quiet()
    assert not world.files_of_chunks() and not world.keys(b"C") and not world.keys(b"P")


@run
async def test_a_dead_server_fails_the_allocation(world):
    attr = await world.create(b"/f")
    world.crash((home(attr.ino) + 1) % 3)
    with pytest.raises(OSError) as error:
        await world.ask(home(attr.ino), FALLOCATE, b"/f", attr.ino, 0, 0, 6 * CHUNK)
    assert code(error) == "EIO" and (await world.stat(b"/f")).size == 0


@run
async def test_what_comes_from_the_wire_is_checked(world):
    attr = await world.create(b"/f")
    directory = await world.mkdir(b"/d")
    base = home(attr.ino)
    for op, fields in (
        (FALLOCATE, (attr.ino, 8, 0, 1)), (FALLOCATE, (attr.ino, 0, 0, 0)), (FALLOCATE, (attr.ino, 0, 1 << 63, 1)),
        (RESHAPE, (attr.ino, 3, 0, 1, 0)), (RESHAPE, (attr.ino, 99, 0, 1, CHUNK)), (SEEK, (attr.ino, 0, 0, 0)),
        (SEEK, (attr.ino + 99, 0, CHUNK, 0)),
    ):
        with pytest.raises(OSError) as error:
            await world.ask(base, op, b"/f", *fields)
        assert code(error) in ("ENOTSUP", "EINVAL", "EFBIG", "EPROTO", "ENOENT")
    with pytest.raises(OSError) as error:
        await world.ask(home(directory.ino), FALLOCATE, b"/d", directory.ino, 0, 0, 1)
    assert code(error) == "EISDIR"


@run
async def test_changes_by_others_take_setuid_away(world):
    attr = await world.create(b"/f", mode=0o6755)
    base = home(attr.ino)
    await world.ask(base, FALLOCATE, b"/f", attr.ino, 0, 0, 100)
    assert (await world.stat(b"/f")).mode & 0o7777 == 0o6755
    for mode in (0, KEEP, PUNCH | KEEP, ZERO):
        await world.ask(base, FALLOCATE, b"/f", attr.ino, mode, 0, 100, uid=5, gid=5)
        assert (await world.stat(b"/f")).mode & 0o7777 == 0o755
        await world.setattr(b"/f", 1, mode=0o6755)
    await world.setattr(b"/f", SET_SIZE, size=50)
    assert (await world.stat(b"/f")).mode & 0o7777 == 0o6755


@run
async def test_atime_follows_reading_as_relatime(world):
    attr = await world.create(b"/f")
    base = home(attr.ino)
    await world.write(attr, b"/f", 0, b"data")
    server = world.servers[base]

    async def age(atime, mtime):
        server.read_lately.clear()
        key, value = server.meta.find(attr.ino, b"/f")
        server.kv.put(key, ATTR.pack(*ATTR.unpack(value)._replace(atime_ns=atime, mtime_ns=mtime, ctime_ns=mtime)))
        server.commit()

    async def updated(ask, atime, mtime):
        await age(atime, mtime)
        await ask()
        return (await world.stat(b"/f")).atime_ns != atime

    now = (await world.stat(b"/f")).mtime_ns
    day = 86400 * 10**9
    for op, fields in ((READ, (0, 0, 4)), (ACCESSED, ())):
        def ask(op=op, fields=fields):
            return world.ask(base, op, b"/f", attr.ino, *fields)

        assert await updated(ask, 5, 5) and await updated(ask, now - 9, now) and await updated(ask, now - 2 * day, 5)
        assert not await updated(ask, now - 9, now - 10)
    assert not await updated(lambda: world.ask(base, READ, b"", attr.ino, 0, 0, 4), 5, 5)  # O_NOATIME: without hint
    await world.ask(base, ACCESSED, b"/gone", attr.ino + 99)
