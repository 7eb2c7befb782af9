# SPDX-License-Identifier: Apache-2.0
"""Disks that are full on some servers: what a call says was written is there, what it says was not is not, and the size
is that of what was written."""
import ctypes
import errno
import os
import random

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


@pytest.mark.parametrize("seed", range(4))
def test_appended_records_are_whole_or_refused(rpc, monkeypatch, seed):
    """Also when the disk is full in the middle of one: nothing of it is seen, now or when the file grows."""
    chance, disks = random.Random(seed), Disks(monkeypatch, rpc.world)
    writers = [client(rpc) for _ in range(3)]
    files = [opened(fs, b"/log") for fs in writers]
    whole, refused = b"", 0
    for turn in range(60):
        disks.full = {server for server in range(SERVERS) if chance.random() < 0.2}
        disks.partly = {server for server in range(SERVERS) if chance.random() < 0.2}
        data = bytes([65 + turn % 50]) * chance.choice((1, 100, 1900, CHUNK, 3 * CHUNK + 10))
        number = chance.randrange(3)
        found = attempt(writers[number].append, files[number], [(data, len(data))], len(data))
        if found is None:
            refused += 1
        else:
            assert found == (len(whole), len(data))
            whole += data
        assert content(writers[0], files[0]) == whole
    assert refused > 10
    disks.full, disks.partly = set(), set()
    writers[0].ftruncate(files[0], len(whole) + 7 * CHUNK)
    assert content(writers[1], files[1]) == whole.ljust(len(whole) + 7 * CHUNK, b"\0")
