# SPDX-License-Identifier: Apache-2.0
"""Disks that are full on some servers: what a call says was written is there, what it says was not is not, and the size
is that of what was written."""
import ctypes
import errno
import os
import random
from collections import namedtuple

import pytest
from real_servers import RealServers
from server_world import CHUNK

from pymadfs import ops
from pymadfs.client import File, FileSystem
from pymadfs.config import Config
from pymadfs.errors import fail
from pymadfs.server import chunks

SERVERS = 3


class Disks:
    """Which servers have no room: ``full`` has their numbers, ``partly`` those that notice in the middle."""

    def __init__(self, monkeypatch, world):
        self.full, self.partly, self._world = set(), set(), world
        for server in world.servers:
            server.chunks._check_space = lambda length, number=server.number: self._check(number)
        write = chunks.Piece.write

        def some(piece, offset, data):
            view = memoryview(data)
            if self._number(piece) in self.partly and len(view) > 10:
                write(piece, offset, view[:len(view) // 2])
                raise fail(errno.ENOSPC)
            write(piece, offset, view)

        monkeypatch.setattr(chunks.Piece, "write", some)

    def _check(self, number):
        if number in self.full:
            raise fail(errno.ENOSPC)

    def _number(self, piece):
        return next(server.number for server in self._world.servers if server.chunks._open.get(piece.key) is piece)


@pytest.fixture
def rpc(tmp_path):
    servers = RealServers(tmp_path, SERVERS)
    yield servers
    servers.close()


def client(rpc):
    return FileSystem(rpc, Config({"MADFS_CHUNK_SIZE": str(CHUNK)}), b"/madfs",
                      lambda address, data: ctypes.memmove(address, data, len(data)))


def opened(fs, path, flags=os.O_CREAT):
    path, attr = fs.open(path, os.O_RDWR | flags, 0o644)
    return File(attr.ino, attr.mode, path, attr.chunk_size, attr.size, cuts=attr.cuts)


def content(fs, file):
    size = fs.getattr(file).size
    room = ctypes.create_string_buffer(size + 1)
    assert fs.read(file, 0, [(ctypes.addressof(room), size + 1)]) == size
    return room.raw[:size]


class Model:
    """The file as it should be."""

    def __init__(self):
        self.data = b""

    def write(self, offset, data):
        if data:
            self.data = self.data.ljust(offset, b"\0")
            self.data = self.data[:offset] + data + self.data[offset + len(data):]

    def truncate(self, size):
        self.data = self.data[:size].ljust(size, b"\0")


def attempt(function, *arguments):
    try:
        return function(*arguments)
    except OSError as error:
        assert error.errno == errno.ENOSPC, error
        return None


@pytest.mark.parametrize("seed", range(12))
def test_random_writes_on_disks_that_fill_and_empty(rpc, monkeypatch, seed):
    chance, disks, fs = random.Random(seed), Disks(monkeypatch, rpc.world), client(rpc)
    refused = 0
    for number in range(4):
        file, model = opened(fs, b"/f%d" % number), Model()
        for _ in range(40):
            disks.full = {server for server in range(SERVERS) if chance.random() < 0.25}
            disks.partly = {server for server in range(SERVERS) if chance.random() < 0.1}
            data = chance.randbytes(chance.choice((1, 100, 1900, CHUNK, 3 * CHUNK, 5 * CHUNK + 7)))
            offset = chance.randrange(len(model.data) + chance.choice((1, CHUNK, 4 * CHUNK)))
            old = model.data
            match chance.randrange(5):
                case 0:
                    found = attempt(fs.append, file, [(data, len(data))], len(data))
                    done, offset = (0, 0) if found is None else (found[1], found[0])
                    assert found is None or offset == len(model.data)
                    model.write(offset, data[:done])
                case 1:
                    fs.ftruncate(file, offset)
                    model.truncate(offset)
                    done = len(data)
                case _:
                    done = attempt(fs.write, file, offset, [(data, len(data))]) or 0
                    model.write(offset, data[:done])
            if done < len(data):
                refused += 1
                now = content(fs, file)  # of what was refused some bytes may be there, where the file had been before
                assert len(now) == len(model.data)
                for at, (new, wanted) in enumerate(zip(now, model.data, strict=True)):
                    if new != wanted:
                        assert at < len(old) and new == data[at - offset], at
                model.data = now
            assert content(fs, file) == model.data
            assert file.size <= len(model.data)
        disks.full, disks.partly = set(), set()
        model.truncate(len(model.data) + 7 * CHUNK)  # shows what was left behind the end
        fs.ftruncate(file, len(model.data))
        assert content(fs, file) == model.data
    assert refused > 20


def test_what_others_wrote_meanwhile_stays(rpc, monkeypatch):
    """The size that a refused write has set may be taken back only if nobody has written since."""
    disks, fs = Disks(monkeypatch, rpc.world), client(rpc)
    file = opened(fs, rpc.world.path_on(0))
    fs.write(file, 0, [(b"a" * 100, 100)])
    disks.full = {1}
    rpc_call = rpc.call

    def meanwhile(server, op, *arguments, **options):
        if op is ops.RETRACT:
            disks.full.clear()
            rpc.call = fs._call = rpc_call
            assert fs.write(opened(fs, file.path), 2 * CHUNK, [(b"b" * 50, 50)]) == 50
        return rpc_call(server, op, *arguments, **options)

    fs._call = meanwhile
    with pytest.raises(OSError):
        fs.write(file, CHUNK, [(b"c" * CHUNK * 2, CHUNK * 2)])
    assert content(fs, file)[2 * CHUNK:2 * CHUNK + 50] == b"b" * 50


def test_the_size_is_that_of_what_others_have_written(rpc, monkeypatch):
    """Several make a file longer at once; of those that are refused none counts."""
    disks, fs = Disks(monkeypatch, rpc.world), client(rpc)
    file = opened(fs, rpc.world.path_on(0))
    disks.full = {1, 2}
    rpc_call = fs._call

    def beside(server, op, *arguments, **options):
        if op is ops.RETRACT:
            fs._call = rpc_call
            disks.full.clear()
            for end in (3, 5, 2):
                assert fs.write(file, (end - 1) * CHUNK, [(b"b" * CHUNK, CHUNK)]) == CHUNK
            disks.full = {1, 2}
            with pytest.raises(OSError):
                fs.write(file, 7 * CHUNK, [(b"d" * CHUNK, CHUNK)])
        return rpc_call(server, op, *arguments, **options)

    fs._call = beside
    with pytest.raises(OSError):
        fs.write(file, 10 * CHUNK, [(b"c" * CHUNK, CHUNK)])
    other = (b"\0" * CHUNK + b"b" * CHUNK * 2 + b"\0" * CHUNK + b"b" * CHUNK)
    assert content(fs, file) == other
    disks.full.clear()
    fs.ftruncate(file, 12 * CHUNK)
    assert content(fs, file) == other.ljust(12 * CHUNK, b"\0")


def test_a_size_that_was_set_stays(rpc, monkeypatch):
    """Truncation and fallocate beside a write that is refused set the size, whatever is taken back."""
    disks, fs = Disks(monkeypatch, rpc.world), client(rpc)
    file = opened(fs, rpc.world.path_on(0))
    rpc_call = fs._call
    for change, size in ((lambda: fs.ftruncate(file, 9 * CHUNK), 9), (lambda: fs.ftruncate(file, CHUNK), 1),
                         (lambda: fs.fallocate(file, 0, 0, 8 * CHUNK), 8)):
        def beside(server, op, *arguments, change=change, **options):
            if op is ops.RETRACT:
                fs._call = rpc_call
                disks.full.clear()
                change()
            return rpc_call(server, op, *arguments, **options)

        fs.ftruncate(file, 0)
        disks.full, fs._call = {1, 2}, beside
        with pytest.raises(OSError):
            fs.write(file, 4 * CHUNK, [(b"c" * CHUNK, CHUNK)])
        assert content(fs, file) == b"\0" * size * CHUNK


def test_a_range_stays_reserved_when_the_one_behind_it_is_taken_back(rpc, monkeypatch):
    disks, first, second = Disks(monkeypatch, rpc.world), client(rpc), client(rpc)
    file, same = opened(first, b"/log"), opened(second, b"/log")
    ask, length = first._call, 3 * CHUNK

    def meanwhile(server, op, *arguments, **options):
        reply = ask(server, op, *arguments, **options)
        if op is ops.RESERVE:
            first._call = ask
            disks.full = {0, 1, 2}
            for _ in range(3):
                with pytest.raises(OSError):
                    second.append(same, ((b"c" * length, length),), length)
            disks.full.clear()
        return reply

    first._call = meanwhile
    assert first.append(file, ((b"b" * length, length),), length) == (0, length)
    assert content(first, file) == b"b" * length


Room = namedtuple("Room", "f_frsize f_blocks f_bfree f_bavail f_files f_ffree")
RECORD = 3 * CHUNK + 10


def test_appends_on_a_disk_that_becomes_full_leave_no_hole(rpc, monkeypatch):
    """What has its range is stored, from the headroom if need be; the next range is given only where there is room."""
    left = 1 << 30

    def statvfs(_):
        return Room(4096, 1 << 19, left >> 12, left >> 12, 1000, 1000)

    def fills_up():
        nonlocal left
        left = chunks.HEADROOM_BYTES_MAX - 1000
        for server in rpc.world.servers:
            server.chunks._unchecked = chunks.HEADROOM_CHECK_BYTES

    def append(fs, file, letter):
        return fs.append(file, ((letter * RECORD, RECORD),), RECORD)

    monkeypatch.setattr(chunks.os, "statvfs", statvfs)
    first, second = client(rpc), client(rpc)
    file, same = opened(first, b"/log"), opened(second, b"/log")
    assert append(first, file, b"a") == (0, RECORD)
    ask = rpc.call

    def meanwhile(server, op, *arguments, **options):
        reply = ask(server, op, *arguments, **options)
        if op is ops.RESERVE:
            first._call = ask
            fills_up()
            assert append(second, same, b"c") == (2 * RECORD, RECORD)
        return reply

    first._call = meanwhile
    assert append(first, file, b"b") == (RECORD, RECORD)
    whole = b"a" * RECORD + b"b" * RECORD + b"c" * RECORD
    assert content(first, file) == whole
    for _ in range(3):
        with pytest.raises(OSError) as error:
            append(second, same, b"d")
        assert error.value.errno == errno.ENOSPC and content(first, file) == whole
    left = 1 << 30
    assert append(second, same, b"d") == (3 * RECORD, RECORD) and append(first, file, b"e")[1] == RECORD
    assert content(first, file) == whole + b"d" * RECORD + b"e" * RECORD


def test_what_is_appended_with_little_room_has_its_room_first(rpc, monkeypatch):
    """Then it does not matter what others write meanwhile: none of the headroom is left when it is stored."""
    left = chunks.HEADROOM_BYTES_MAX + 5 * RECORD

    def statvfs(_):
        return Room(4096, 1 << 19, left >> 12, left >> 12, 1000, 1000)

    monkeypatch.setattr(chunks.os, "statvfs", statvfs)
    fs = client(rpc)
    file = opened(fs, b"/log")
    ask, granted = fs._call, []

    def meanwhile(server, op, *arguments, **options):
        nonlocal left
        reply = ask(server, op, *arguments, **options)
        if op is ops.RESERVE:
            granted.append(reply[0])
            left = 0
        return reply

    fs._call = meanwhile
    assert fs.append(file, ((b"a" * RECORD, RECORD),), RECORD) == (0, RECORD)
    assert granted == [(0, RECORD, 0, ops.RESERVED_ROOM)]
    with pytest.raises(OSError) as error:
        fs.append(file, ((b"b", 1),), 1)
    assert error.value.errno == errno.ENOSPC and content(fs, file) == b"a" * RECORD
    big = 4 << 20
    left = chunks.HEADROOM_BYTES_MAX + (3 << 20)
    assert 1 << 20 <= fs.append(file, ((b"b" * big, big),), big)[1] < 3 << 20
    done = granted[-1].length
    assert content(fs, file) == b"a" * RECORD + b"b" * done
    attr = fs.getattr(file)
    assert not attr.flags & ops.FLAG_BEYOND and attr.size == RECORD + done
