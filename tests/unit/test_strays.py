# SPDX-License-Identifier: Apache-2.0
"""Clients that die within a write: what they stored without telling the file's home goes before it shows, and with the
file."""

import asyncio

from server_world import CHUNK, run

from pymadfs.layout import chunk_server, home
from pymadfs.ops import APPEND, EXTEND, FALLOCATE, SET_SIZE, WRITE

PATH = b"/f"


async def killed_within_a_write(world, conn=2, size=10, chunk=4):
    """A file of ``size`` bytes with a piece of a write above its end, whose writer is gone."""
    attr = await world.create(PATH, conn=conn)
    await world.write(attr, PATH, 0, b"x" * size)
    number = chunk_server(attr.ino, chunk, world.count)
    assert number != home(attr.ino)
    await world.ask(number, WRITE, b"stray" * 100, attr.ino, chunk, 100, 500, 0, 0, 0, 0, conn=conn)
    for server in world.servers:
        server.forget(conn)
    await world.quiet()
    return attr


def home_chunk(attr, world):
    """A chunk above that of the stray bytes which the file's home has."""
    return next(chunk for chunk in range(5, 9) if chunk_server(attr.ino, chunk, world.count) == home(attr.ino))


def extended(world, attr, end):
    return world.ask(home(attr.ino), EXTEND, PATH, attr.ino, end, end, 0)


def written(world, attr, end):
    """The last byte, which the home has."""
    chunk = home_chunk(attr, world)
    return world.ask(home(attr.ino), WRITE, PATH + b"\0", attr.ino, chunk, 0, 1, end, len(PATH), chunk * CHUNK, 0)


def appended(world, attr, end):
    return world.ask(home(attr.ino), APPEND, PATH + bytes(end - 10), attr.ino, end - 10, len(PATH), 0, 0)


def resized(world, attr, end):
    return world.setattr(PATH, SET_SIZE, size=end)


def allocated(world, attr, end):
    return world.ask(home(attr.ino), FALLOCATE, PATH, attr.ino, 0, 0, end)


@run
async def test_what_a_killed_writer_left_does_not_show(world):
    for conn, grow in enumerate((extended, written, appended, resized, allocated), 2):
        attr = await killed_within_a_write(world, conn)
        end = home_chunk(attr, world) * CHUNK + 1 if grow is written else 9 * CHUNK
        await grow(world, attr, end)
        assert (await world.stat(PATH)).size == end
        assert await world.read(attr.ino, 0, end) == (b"x" * 10).ljust(end, b"\0"), grow
        assert not any(server.strays for server in world.servers)
        await world.unlink(PATH)


@run
async def test_what_a_killed_writer_left_goes_with_the_file(world):
    for keep in (False, True):
        attr = await killed_within_a_write(world, 2 + keep)
        assert len(world.keys(b"C")) == 1
        if keep:
            await world.create(PATH, keep=True)
        await world.unlink(PATH)
        if keep:
            await world.release(attr.ino)
        await world.quiet()
        assert not world.files_of_chunks() and not world.keys(b"C") and not world.keys(b"P")


@run
async def test_what_is_within_the_file_stays(world):
    """Most who go have told the size of all that they wrote."""
    attr = await killed_within_a_write(world, size=5 * CHUNK)
    before = await world.read(attr.ino, 0, 5 * CHUNK)
    assert b"stray" in before and any(server.strays for server in world.servers)
    del world.log[:]
    await extended(world, attr, 6 * CHUNK)
    assert len(world.log) == 1 and not any(server.strays for server in world.servers)
    assert await world.read(attr.ino, 0, 5 * CHUNK) == before
    assert (await world.stat(PATH)).size == 6 * CHUNK


@run
async def test_a_home_that_is_dead_is_told_when_it_is_back(world):
    attr = await world.create(PATH, conn=2)
    number = chunk_server(attr.ino, 1, world.count)
    for server in world.servers:
        server.retry_s = 0.01
    await world.ask(number, WRITE, b"stray" * 100, attr.ino, 1, 100, 500, 0, 0, 0, 0, conn=2)
    world.crash(home(attr.ino))
    world.servers[number].forget(2)
    world.start(home(attr.ino))
    while not world.servers[home(attr.ino)].strays:
        await asyncio.sleep(0.001)
    await extended(world, attr, 5 * CHUNK)
    assert await world.read(attr.ino, 0, 5 * CHUNK) == bytes(5 * CHUNK)
    assert not world.servers[number].strays._untold
