# SPDX-License-Identifier: Apache-2.0
"""Writes, appends and truncations that meet on several servers, their messages delivered in random orders."""

import asyncio
import ctypes
import os
import random

import pytest
from real_servers import RealServers
from server_world import CHUNK

from pymadfs.client import File, FileSystem
from pymadfs.config import Config
from pymadfs.ops import APPEND, CUT, EXTEND, READ, SET_SIZE, SETATTR, STORE, WRITE


class Shuffled(RealServers):
    """Delivers each message of a write or a truncation a random while after the others.  ``at_first`` is a coroutine
    function that begins when the first data request is sent."""

    def __init__(self, path, count=3):
        super().__init__(path, count)
        self.chance = random.Random(0)
        self.at_first = None
        self.beside: list = []
        asked = self.world.ask

        async def late(number, op, *arguments, **keywords):
            if op in (WRITE, EXTEND, CUT, SETATTR, APPEND, STORE):
                for _ in range(self.chance.randrange(12)):
                    await asyncio.sleep(0)
            return await asked(number, op, *arguments, **keywords)

        self.world.ask = late

    async def _ask(self, server, op, tail, fields, send, recv):
        if op in (WRITE, EXTEND, APPEND) and self.at_first:
            begun, self.at_first = self.at_first, None
            self.beside.append(self.loop.create_task(begun()))
        return await super()._ask(server, op, tail, fields, send, recv)

    def settle(self):
        """Wait for what began beside a write."""
        while self.beside:
            self.loop.run_until_complete(self.beside.pop())


@pytest.fixture
def servers(tmp_path):
    rpc = Shuffled(tmp_path)
    yield rpc
    rpc.close()


def opened(rpc, path=b"/f"):
    def store(address, data):
        ctypes.memmove(address, data, len(data))

    fs = FileSystem(rpc, Config({"MADFS_CHUNK_SIZE": str(CHUNK)}), b"/madfs", store)
    path, attr = fs.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    return fs, File(attr.ino, attr.mode, path, attr.chunk_size, attr.size, os.O_RDWR)


def content(fs, file, length):
    memory = ctypes.create_string_buffer(length + 1)
    count = fs.read(file, 0, ((ctypes.addressof(memory), length),))
    return memory.raw[:count]


def truncation(rpc, file, size):
    async def begin():
        await rpc.world.ask(file.ino >> 44, SETATTR, file.path, file.ino, SET_SIZE, 0, 0, 0, size, 0, 0)

    return begin


TURNS = 150


def race(rpc, turns, seed=0):
    fs, file = opened(rpc)
    fs.write(file, 0, ((b"old!" * CHUNK * 2, 8 * CHUNK),))
    for turn in range(seed, seed + turns):
        rpc.chance.seed(turn)
        before = rpc.chance.choice((b"", b"0123456789" * 900, b"b" * 5 * CHUNK, b"tiny"))
        fs.ftruncate(file, 0)
        if before:
            fs.write(file, 0, ((before, len(before)),))
        size = rpc.chance.choice((0, 1, 100, CHUNK, CHUNK + 5, 3 * CHUNK - 1, 20 * CHUNK))
        offset = rpc.chance.choice((0, 50, CHUNK - 1, 2 * CHUNK, 4 * CHUNK + 9))
        data = bytes([65 + turn % 26]) * rpc.chance.choice((1, 100, CHUNK, 2 * CHUNK, 3 * CHUNK + 7))
        rpc.at_first = truncation(rpc, file, size)
        assert fs.write(file, offset, ((data, len(data)),)) == len(data)
        rpc.settle()

        written = bytearray(before.ljust(offset, b"\0"))
        written[offset : offset + len(data)] = data
        earlier = bytes(written[:size]).ljust(size, b"\0")
        later = bytearray(before[:size].ljust(max(size, offset), b"\0"))
        later[offset : offset + len(data)] = data
        end = 30 * CHUNK
        found = content(fs, file, end)
        assert found in (earlier, bytes(later)), turn
        fs.ftruncate(file, end)  # nothing that was cut off comes back
        assert content(fs, file, end) == found.ljust(end, b"\0"), turn


def test_a_write_is_before_a_truncation_or_after_it(servers):
    race(servers, TURNS)


@pytest.mark.long
def test_a_write_is_before_a_truncation_or_after_it_long(servers):
    race(servers, 5000, 1000)


def append_race(rpc, turns, seed=0):
    fs, file = opened(rpc)
    others = [opened(rpc) for _ in range(2)]
    for turn in range(seed, seed + turns):
        rpc.chance.seed(turn)
        fs.ftruncate(file, 0)
        records = []
        for number in range(4):
            record = bytes([97 + number]) * rpc.chance.choice((1, 7, 300, CHUNK, 2 * CHUNK + 3))
            if rpc.chance.random() < 0.5:
                rpc.at_first = truncation(rpc, file, 0)
            writer, own = rpc.chance.choice(others)
            assert writer.append(own, ((record, len(record)),), len(record))[1] == len(record)
            rpc.settle()
            records.append(record)
        found = content(fs, file, 20 * CHUNK)
        # What is there are the last records, whole and in order.
        assert any(found == b"".join(records[first:]) for first in range(5)), turn
        fs.ftruncate(file, 20 * CHUNK)
        assert content(fs, file, 20 * CHUNK) == found.ljust(20 * CHUNK, b"\0"), turn


def test_appended_records_are_whole_beside_truncations(servers):
    append_race(servers, TURNS)


@pytest.mark.long
def test_appended_records_are_whole_beside_truncations_long(servers):
    append_race(servers, 5000, 1000)


def test_a_restarted_server_learns_of_cuts_from_writers(servers):
    fs, file = opened(servers)
    fs.write(file, 0, ((b"x" * 6 * CHUNK, 6 * CHUNK),))
    fs.ftruncate(file, 5)
    for number in range(3):
        servers.loop.run_until_complete(restart(servers.world, number))
    other = opened(servers)[1]
    assert fs.write(other, 3, ((b"y" * 4 * CHUNK, 4 * CHUNK),)) == 4 * CHUNK
    assert content(fs, file, 9 * CHUNK) == b"xxx" + b"y" * 4 * CHUNK
    assert other.cuts == 1
    before = len(servers.world.log)
    fs.write(other, CHUNK, ((b"z" * 3 * CHUNK, 3 * CHUNK),))
    assert [op for _, op in servers.world.log[before:]] == [WRITE] * 3  # all know of it now


async def restart(world, number):
    world.crash(number)
    world.start(number)


def test_requests_of_writes_and_reads(servers):
    """The budget: a write within a chunk is one request, or two at once when its chunk is not at home."""
    fs, file = opened(servers)
    log = servers.world.log

    def asked(action, *arguments):
        before = len(log)
        action(fs, file, *arguments)
        return [op for _, op in log[before:]]

    def write(fs, file, offset, length):
        fs.write(file, offset, ((b"x" * length, length),))

    def read(fs, file, offset, length):
        memory = ctypes.create_string_buffer(length)
        fs.read(file, offset, ((ctypes.addressof(memory), length),))

    assert asked(write, 0, 100) == asked(write, 50, 500) == asked(write, 0, CHUNK) == [WRITE]
    assert sorted(op.name for op in asked(write, CHUNK, 10)) == ["extend", "write"]
    assert asked(write, 0, 3 * CHUNK) == [WRITE] * 3
    assert asked(read, 0, 100) == asked(read, 0, CHUNK) == asked(read, CHUNK, 100) == [READ]
    assert asked(read, 0, 3 * CHUNK) == [READ] * 3
    fs.ftruncate(file, 2 * CHUNK)
    assert asked(write, CHUNK, 10) in ([WRITE, EXTEND], [EXTEND, WRITE]) and asked(write, 0, 2 * CHUNK) == [WRITE] * 2
    assert asked(lambda fs, file: fs.append(file, ((b"r", 1),), 1)) == [APPEND, STORE]
