# SPDX-License-Identifier: Apache-2.0
"""O_APPEND among several clients and servers: records are whole, in order, and seen when they are written."""

import asyncio
import errno
import itertools
import random

import pytest
from server_world import CHUNK, run

from pymadfs.layout import chunk_server, home
from pymadfs.ops import APPEND, APPEND_MAX, SET_SIZE, STORE
from pymadfs.server import appends

PATH = b"/log"
CONNS = 1, 2, 3


def append(world, attr, data, conn=1, turn=0, more=0, bulk=False):
    tail, payload = (PATH, data) if bulk else (PATH + data, b"")
    return world.ask(
        home(attr.ino), APPEND, tail, attr.ino, len(data), len(PATH), turn, more, conn=conn, payload=payload
    )


async def started(world):
    for server in world.servers:
        server.conns.update(CONNS)
    return await world.create(PATH)


async def content(world, attr):
    size = (await world.getattr(attr.ino, PATH)).size
    return await world.read(attr.ino, 0, size)


async def nothing_above(world, attr, whole):
    """When the file grows only zeros appear."""
    await world.setattr(PATH, SET_SIZE, size=len(whole) + 9 * CHUNK)
    assert await content(world, attr) == whole.ljust(len(whole) + 9 * CHUNK, b"\0")
    await world.setattr(PATH, SET_SIZE, size=len(whole))


def records_of(data):
    """The records of ``data``: a letter repeated, then a newline."""
    records = data.split(b"\n")
    assert records.pop() == b""
    assert all(record == record[:1] * len(record) for record in records)
    return records


@run
async def test_records_are_whole_and_in_order(world):
    chance, attr = random.Random(7), await started(world)

    async def writer(number):
        made = []
        for turn in range(30):
            record = bytes([65 + number * 8 + turn % 8]) * chance.choice((1, 10, 700, CHUNK, 2 * CHUNK + 5))
            for server in world.servers:
                server.conns.update(CONNS)
            reply, _ = await append(world, attr, record + b"\n", CONNS[number], bulk=chance.random() < 0.3)
            made.append((reply.offset, record))
        assert [offset for offset, _ in made] == sorted(offset for offset, _ in made)
        return made

    async def reader():
        while not done.is_set():
            assert b"\0" not in await content(world, attr)

    done = asyncio.Event()
    looks = asyncio.ensure_future(reader())
    made = sorted(itertools.chain(*await asyncio.gather(*[writer(number) for number in range(3)])))
    done.set()
    await looks
    whole = b"".join(record + b"\n" for _, record in made)
    assert await content(world, attr) == whole and len(records_of(whole)) == 90
    assert [offset for offset, _ in made] == [
        sum(len(record) + 1 for _, record in made[:index]) for index in range(len(made))
    ]
    await nothing_above(world, attr, whole)


@run
async def test_small_records_are_stored_together(world):
    attr = await started(world)
    await append(world, attr, b"x" * CHUNK)  # from here on another server has the bytes
    before = len(world.log)
    await asyncio.gather(*[append(world, attr, b"record %02d\n" % number, CONNS[number % 3]) for number in range(30)])
    asked = [op for _, op in world.log[before:]]
    assert asked.count(APPEND) == 30 and 1 <= asked.count(STORE) <= 3
    assert (await content(world, attr))[CHUNK:].count(b"\n") == 30


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """Turns last however slow the machine is."""
    monkeypatch.setattr(appends, "TURN_S", 60)


@run
async def test_a_record_in_parts_is_one(world):
    attr = await started(world)
    await append(world, attr, b"a" * CHUNK, turn=5, more=1)
    others = [asyncio.ensure_future(append(world, attr, b"b" * 10, conn)) for conn in (2, 3)]
    mine = asyncio.ensure_future(append(world, attr, b"b" * 10, turn=7, more=0))
    while len(world.servers[home(attr.ino)].appends[attr.ino]) < 3:
        await asyncio.sleep(0)
    await append(world, attr, b"a" * CHUNK, turn=5, more=1)
    assert not any(other.done() for other in (*others, mine))
    await append(world, attr, b"a" * 3, turn=5)
    await asyncio.gather(*others, mine)
    assert await content(world, attr) == b"a" * (2 * CHUNK + 3) + b"b" * 30
    assert not any(server.appends for server in world.servers)


@run
async def test_who_does_not_go_on_loses_his_turn(world):
    appends.TURN_S = 0.02  # until the end of the test: see patient
    attr = await started(world)
    await append(world, attr, b"a" * 10, turn=5, more=1)
    await append(world, attr, b"b" * 10, 2)
    await append(world, attr, b"a" * 10, turn=5)
    assert await content(world, attr) == b"a" * 10 + b"b" * 10 + b"a" * 10
    assert not any(server.appends for server in world.servers)


@run
async def test_of_many_large_records_only_some_are_received(world):
    """The others' data stays with their writers until it is their turn."""
    attr = await started(world)
    received, receive = [0], type(world.servers[0].rpc).receive

    async def count(rpc, request, view):
        received[0] += 1
        await receive(rpc, request, view)

    for server in world.servers:
        server.rpc.receive = count.__get__(server.rpc)
    await append(world, attr, b"a" * CHUNK, turn=5, more=1)
    records = [bytes([66 + number]) * CHUNK for number in range(40)]
    asked = [asyncio.ensure_future(append(world, attr, record, CONNS[number % 3], bulk=True))
             for number, record in enumerate(records)]
    while len(world.servers[home(attr.ino)].appends[attr.ino]) < len(records):
        await asyncio.sleep(0)
    assert appends.RECEIVED_MAX <= received[0] <= 2 * appends.RECEIVED_MAX
    await append(world, attr, b"a" * CHUNK, turn=5, bulk=True)
    await asyncio.gather(*asked)
    found = await content(world, attr)
    assert found[:2 * CHUNK] == b"a" * 2 * CHUNK
    assert sorted(found[at:at + CHUNK] for at in range(2 * CHUNK, len(found), CHUNK)) == records


@run
async def test_a_server_that_dies_leaves_no_hole(world):
    for when, told in (("before", 0), ("after", 1)):
        attr = await started(world)
        await append(world, attr, b"a" * CHUNK)
        other = chunk_server(attr.ino, 1, world.count)
        world.trap = home(attr.ino), STORE, when, other
        asked = [asyncio.ensure_future(append(world, attr, b"b" * 100, conn)) for conn in CONNS]
        results = await asyncio.gather(*asked, return_exceptions=True)
        failed = [result.errno for result in results if isinstance(result, OSError)]
        assert failed == [errno.EIO] * (3 - told)
        whole = b"a" * CHUNK + b"b" * 100 * told
        assert (await world.getattr(attr.ino, PATH)).size == len(whole)
        world.start(other)
        for server in world.servers:
            server.conns.update(CONNS)
        await append(world, attr, b"d" * 10, 2)
        whole += b"d" * 10
        assert await content(world, attr) == whole
        await nothing_above(world, attr, whole)
        await world.unlink(PATH)


@run
async def test_a_home_that_dies_has_all_or_nothing(world):
    for when in ("before", "after"):
        attr = await started(world)
        await append(world, attr, b"a" * CHUNK)
        world.trap = home(attr.ino), STORE, when, home(attr.ino)
        for server in world.servers:
            server.retry_s = 0.01
        with pytest.raises(OSError) as error:
            await append(world, attr, b"b" * 100)
        assert error.value.errno == errno.EIO
        world.start(home(attr.ino))
        for server in world.servers:
            server.conns.update(CONNS)
        while when == "after" and not world.servers[home(attr.ino)].strays:
            await asyncio.sleep(0.001)  # the other server tells what it has
        assert await content(world, attr) == b"a" * CHUNK
        await append(world, attr, b"c" * 20)
        whole = b"a" * CHUNK + b"c" * 20
        assert await content(world, attr) == whole
        await nothing_above(world, attr, whole)
        await world.unlink(PATH)


@run
async def test_who_is_gone_appends_nothing(world):
    attr = await started(world)
    await append(world, attr, b"a" * 10, turn=5, more=1)
    gone = asyncio.ensure_future(append(world, attr, b"b" * 10, 2))
    while not len(world.servers[home(attr.ino)].appends[attr.ino]):
        await asyncio.sleep(0)
    world.servers[home(attr.ino)].forget(2)
    await append(world, attr, b"a" * 10, turn=5)
    await append(world, attr, b"c" * 10, 3)
    assert await content(world, attr) == b"a" * 20 + b"c" * 10
    gone.cancel()


@run
async def test_garbage_is_refused(world):
    attr = await started(world)
    number = home(attr.ino)
    for length, data, payload, wanted in (
        (5, b"four", b"", errno.EPROTO),
        (5, b"", b"four", errno.EPROTO),
        (APPEND_MAX + 1, b"", bytes(APPEND_MAX + 1), errno.EPROTO),
    ):
        with pytest.raises(OSError) as error:
            await world.ask(number, APPEND, PATH + data, attr.ino, length, len(PATH), 0, 0, payload=payload)
        assert error.value.errno == wanted
    with pytest.raises(OSError) as error:
        await world.ask(number, APPEND, b"/nox", attr.ino + 99, 1, 3, 0, 0)
    assert error.value.errno == errno.ENOENT
    directory = await world.mkdir(b"/d")
    with pytest.raises(OSError) as error:
        await world.ask(home(directory.ino), APPEND, b"/dx", directory.ino, 1, 2, 0, 0)
    assert error.value.errno == errno.EINVAL
    await world.setattr(PATH, SET_SIZE, size=(1 << 63) - 3)
    for turn in (0, 9):
        with pytest.raises(OSError) as error:
            await append(world, attr, b"toolong", turn=turn)
        assert error.value.errno == errno.EFBIG
    with pytest.raises(OSError) as error:
        await world.ask(number, STORE, b"x" * 10, attr.ino, 0, (64 << 20) - 5, conn=-1)
    assert error.value.errno == errno.EFBIG
