# SPDX-License-Identifier: Apache-2.0
"""How many requests each call costs once the directories above are known: the budget of the design.

Counted are the requests of the client, and those that servers make of each other before the answer.
"""
import ctypes
import os
import stat

import pytest
from real_servers import RealServers
from server_world import World

from pymadfs import links, listing, ops
from pymadfs.client import File, FileSystem
from pymadfs.config import Config
from pymadfs.layout import home, owner
from pymadfs.server import times

SERVERS = 3
CHUNK = 4096


@pytest.fixture(params=["root", "user"])
def fs(request, tmp_path, monkeypatch):
    monkeypatch.setattr(times, "HAND_OVER_S", 1000)
    monkeypatch.setitem(World.settings, "MADFS_LEND_US", "1000000")  # a busy machine shall not let a loan end
    servers = RealServers(tmp_path / "stores", SERVERS)
    file_system = FileSystem(servers, Config({"MADFS_CHUNK_SIZE": str(CHUNK)}), b"/madfs",
                             lambda address, data: ctypes.memmove(address, data, len(data)))
    file_system.mkdir(b"/d", 0o777)
    file_system.mkdir(b"/e", 0o777)
    if request.param == "user":
        servers.identify(1000, 1000, (5, 6))
    for number in range(40):  # each server comes to know the directory, and so do those of its subdirectories
        file_system.mknod(b"/d/warm-%d" % number, 0o644)
        file_system.mknod(b"/e/warm-%d" % number, 0o644)
    yield file_system
    servers.close()


@pytest.fixture
def asked(fs):
    """Names of the requests that ``function`` costs; what is told later is not waited for."""
    world = fs.rpc.world
    later = {ops.RELEASE}

    def count(function, *arguments):
        fs.flush()
        fs.rpc.loop.run_until_complete(world.quiet())
        world.log.clear()
        function(*arguments)
        return sorted(op.name for _, op in world.log if op not in later)

    return count


def names(count=9, directory=b"/d"):
    """Paths in a directory on every server in turn."""
    found = [directory + b"/budget-%d" % number for number in range(200)]
    return [next(path for path in found[at * 20:] if owner(path, SERVERS) == at % SERVERS) for at in range(count)]


def opened(fs, path, flags=os.O_RDWR):
    """A file of ours, made if it does not exist."""
    path, attr = fs.open(path, flags | os.O_CREAT, 0o644)
    return File(attr.ino, attr.mode, path, attr.chunk_size, attr.size, flags, cuts=attr.cuts)


def write(fs, file, offset, length):
    assert fs.write(file, offset, ((b"x" * length, length),)) == length


def read(fs, file, offset, length):
    """Bytes that are read, at most ``length``."""
    memory = ctypes.create_string_buffer(length)
    count = fs.read(file, offset, ((ctypes.addressof(memory), length),))
    return memory.raw[:count]


def test_calls_on_a_name_cost_one_request(fs, asked):
    for path in names():
        assert asked(fs.open, path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644) == ["open"]
        assert asked(fs.lookup, path) == ["lookup"]
        assert asked(fs.open, path, os.O_RDWR, 0) == ["open"]
        assert asked(fs.open, path, os.O_CREAT | os.O_RDWR, 0o644) == ["open"]
        assert asked(fs.setattr, path, ops.SET_MODE, True, 0o600) == ["setattr"]
        assert asked(fs.setattr, path, ops.SET_ATIME | ops.SET_MTIME) == ["setattr"]
        assert asked(fs.truncate, path, 0) == ["setattr"]
        assert asked(fs.unlink, path) == ["unlink"]
        assert asked(fs.symlink, b"target", path) == ["symlink"]
        assert asked(fs.lookup, path, False) == ["lookup"]
        assert asked(fs.unlink, path) == ["unlink"]


def test_what_fails_costs_one_request_too(fs, asked):
    def fails(function, *arguments):
        with pytest.raises(OSError):
            function(*arguments)

    for path in names():
        assert asked(fails, fs.lookup, path) == ["lookup"]
        assert asked(fails, fs.open, path, os.O_RDWR, 0) == ["open"]
        assert asked(fails, fs.unlink, path) == ["unlink"]
    assert asked(fails, fs.mkdir, b"/d/warm-1", 0o755) == ["mkdir"]


def test_a_directory_costs_one_request_and_the_count_of_links(fs, asked):
    """mkdir tells the owner of the directory above, if that is another; rmdir asks all servers whether it is empty."""
    for path in names():
        count = [] if owner(path, SERVERS) == owner(b"/d", SERVERS) else ["count"]
        assert asked(fs.mkdir, path, 0o755) == [*count, "mkdir"]
        assert stat.S_ISDIR(fs.lookup(path)[1].mode)
        assert asked(fs.rmdir, path) == [*count, *["empty"] * (SERVERS - 1), "rmdir"]


def test_chmod_of_a_directory_tells_those_who_know_it(fs, asked):
    fs.rpc.identify(0, 0)
    assert asked(lambda: fs.setattr(b"/d", ops.SET_MODE, mode=0o777)).count("setattr") == 1
    assert asked(lambda: fs.setattr(b"/d", ops.SET_MODE, mode=0o777)) == ["setattr"], "nobody knows it any more"


def test_a_window_of_a_listing_costs_one_request_of_each_server(fs, asked, monkeypatch):
    ino = fs.lookup(b"/d")[1].ino
    assert asked(listing.read, fs, b"/d", ino, 0) == ["number"] + ["readdir"] * SERVERS, "the first one asks what .. is"
    monkeypatch.setattr(listing, "WINDOW_BYTES", 1000)
    after = listing.read(fs, b"/d", ino, 0).entries[-1][0]
    assert asked(listing.read, fs, b"/d", ino, after) == ["readdir"] * SERVERS


def test_a_listing_of_several_windows_costs_one_request_of_each_server_for_each(fs, asked, monkeypatch):
    """A page is asked for once, and by all servers at the same time."""
    monkeypatch.setattr(listing, "PAGE_BYTES_MIN", 200)
    monkeypatch.setattr(listing, "WINDOW_BYTES", 600)
    ino, after, windows, seen = fs.lookup(b"/d")[1].ino, 0, 0, []

    def window():
        nonlocal after, windows, done
        found = listing.read(fs, b"/d", ino, after)
        seen.extend(entry[3] for entry in found.entries)
        after, windows, done = found.entries[-1][0], windows + 1, found.done

    done = False
    while not done:
        first = ["number"] if not windows else []
        assert asked(window) == [*first, *["readdir"] * SERVERS]
    assert windows > 2 and len(seen) == len(set(seen)) == 42


# --- bytes ----------------------------------------------------------------------------------------------------------

as_root = pytest.mark.parametrize("fs", ["root"], indirect=True)  # who asks makes no difference


@as_root
def test_a_small_file_is_opened_read_and_closed_by_one_request(fs, asked):
    def all_of_it(path):
        path, attr = fs.open(path, os.O_RDONLY, 0)
        file = File(attr.ino, attr.mode, path, attr.chunk_size, attr.size, os.O_RDONLY)
        assert read(fs, file, 0, 2 * CHUNK) == b"x" * 100 and read(fs, file, 100, CHUNK) == b""
        fs.ended(file.ino)

    for path in names(3):
        file = opened(fs, path)
        write(fs, file, 0, 100)
        fs.ended(file.ino)
        assert asked(all_of_it, path) in (["open"], ["accessed", "open"]), "the access is told, and not waited for"


@as_root
def test_a_write_within_a_chunk_costs_one_request_and_two_at_once_when_it_extends_elsewhere(fs, asked):
    for path in names(3):
        file = opened(fs, path)
        assert asked(write, fs, file, 0, 100) == asked(write, fs, file, 50, CHUNK - 50) == ["write"]
        for chunk in range(1, 7):
            new = asked(write, fs, file, chunk * CHUNK, CHUNK)
            assert new == (["write"] if chunk % SERVERS == 0 else ["extend", "write"])
            assert asked(write, fs, file, 5, 10) == ["write"]
        assert asked(write, fs, file, 0, 7 * CHUNK) == ["write"] * 7, "as many as chunks, at once"
        assert asked(write, fs, file, CHUNK // 2, 7 * CHUNK) == ["write"] * 8
        fs.ended(file.ino)


@as_root
def test_an_append_is_one_request(fs, asked):
    for path in names(3):
        file = opened(fs, path, os.O_RDWR | os.O_APPEND)
        for chunk in range(4):
            stored = [] if chunk % SERVERS == 0 else ["store"]
            assert asked(fs.append, file, ((b"y" * CHUNK, CHUNK),), CHUNK) == ["append", *stored]
        fs.ended(file.ino)


@as_root
def test_a_read_costs_one_request_for_each_chunk(fs, asked):
    for path in names(3):
        writer = opened(fs, path)
        write(fs, writer, 0, 7 * CHUNK)
        file = opened(fs, path)
        told = asked(read, fs, file, 0, CHUNK)
        assert told == ["read"], "the home is asked for chunk 0, and knows of the access by that"
        assert asked(read, fs, file, 2 * CHUNK + 5, 100) == asked(read, fs, file, CHUNK, CHUNK) == ["read"]
        assert asked(read, fs, file, 0, 7 * CHUNK) == ["read"] * 7
        assert asked(read, fs, file, 6 * CHUNK, CHUNK) == ["read"]
        assert asked(read, fs, file, 6 * CHUNK, 2 * CHUNK)[:1] == ["getattr"], "where the end is, at the same time"
        assert read(fs, file, 6 * CHUNK + 1, 2 * CHUNK) == b"x" * (CHUNK - 1)
        for each in (file, writer):
            fs.ended(each.ino)


@as_root
def test_fsync_asks_the_servers_that_were_written_to_and_no_other(fs, asked):
    for path in names(3):
        file = opened(fs, path)
        assert asked(fs.fsync, file) == ["fsync"], "the name is at the home"
        write(fs, file, 0, 10)
        assert asked(fs.fsync, file) == ["fsync"]
        write(fs, file, CHUNK, 10)
        assert asked(fs.fsync, file) == ["fsync"] * 2, "the home and the server of chunk 1"
        assert asked(fs.fsync, file) == ["fsync"], "nothing is dirty any more"
        write(fs, file, 0, 9 * CHUNK)
        assert asked(fs.fsync, file) == ["fsync"] * SERVERS
        fs.ended(file.ino)


@as_root
def test_truncation_asks_the_home_and_that_the_servers_that_have_something(fs, asked):
    for path in names(3):
        file = opened(fs, path)
        write(fs, file, 0, 100)
        assert asked(fs.ftruncate, file, 50) == asked(fs.truncate, path, 10) == ["setattr"]
        assert asked(fs.truncate, path, 9 * CHUNK) == ["setattr"], "upwards nobody has to know"
        fs.truncate(path, 0)
        write(fs, file, 0, 9 * CHUNK)
        assert asked(fs.truncate, path, CHUNK) == ["cut"] * (SERVERS - 1) + ["setattr"]
        assert asked(fs.truncate, path, 10) in (["setattr"], ["cut", "setattr"])
        fs.ended(file.ino)


# --- names that change ----------------------------------------------------------------------------------------------


@as_root
@pytest.mark.parametrize("target", [b"/d", b"/e"], ids=["same directory", "other directory"])
def test_rename_of_a_file_costs_two_requests(fs, asked, target):
    """One where both names are on one server, else that server asks the other."""
    for old in names(3):
        for server in range(SERVERS):
            path = next(path for path in (target + b"/new-%d" % number for number in range(100))
                        if owner(path, SERVERS) == server)
            fs.ended(opened(fs, old).ino)
            elsewhere = [] if server == owner(old, SERVERS) else ["install"]
            assert asked(fs.rename, old, path) == [*elsewhere, "rename"]
            fs.unlink(path)
            for made in (old, path):
                fs.ended(opened(fs, made).ino)
            assert asked(fs.rename, old, path) == [*elsewhere, "rename"], "it replaces"
            fs.unlink(path)


@as_root
def test_what_a_name_of_an_inode_elsewhere_costs(fs, asked):
    """Its home is asked as well: the budget is for files that have the name of their birth."""
    born, path = names(9)[0], names(9)[4]
    fs.ended(opened(fs, born).ino)
    fs.rename(born, path)
    assert home(fs.lookup(path)[1].ino) != owner(path, SERVERS)
    assert asked(fs.lookup, path) == ["getattr", "lookup"]
    assert asked(fs.open, path, os.O_RDWR, 0) == ["open", "reopen"]
    assert asked(fs.setattr, path, ops.SET_MODE, True, 0o600) == ["setattr"] * 2
    assert asked(fs.unlink, path) == ["count", "unlink"]


def test_a_link_costs_a_look_and_one_request_and_the_count_at_the_home(fs, asked):
    for old in names(3):
        fs.ended(opened(fs, old).ino)
        for new in names(3, b"/e"):
            count = [] if owner(new, SERVERS) == owner(old, SERVERS) else ["count"]
            assert asked(links.link, fs, old, new) == [*count, "link", "lookup"]
            assert asked(fs.unlink, new) == [*count, "unlink"]
