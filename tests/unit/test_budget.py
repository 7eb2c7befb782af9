# SPDX-License-Identifier: Apache-2.0
"""How many requests each call costs once the directories above are known: the budget of the design.

Counted are the requests of the client, and those that servers make of each other before the answer.
"""
import os
import stat

import pytest
from real_servers import RealServers

from pymadfs import listing, ops
from pymadfs.client import FileSystem
from pymadfs.config import Config
from pymadfs.layout import owner
from pymadfs.server import times

SERVERS = 3


@pytest.fixture(params=["root", "user"])
def fs(request, tmp_path, monkeypatch):
    monkeypatch.setattr(times, "HAND_OVER_S", 1000)
    servers = RealServers(tmp_path / "stores", SERVERS)
    file_system = FileSystem(servers, Config({}), b"/madfs", lambda address, data: None)
    file_system.mkdir(b"/d", 0o777)
    if request.param == "user":
        servers.identify(1000, 1000, (5, 6))
    for number in range(40):  # each server comes to know the directory, and so do those of its subdirectories
        file_system.mknod(b"/d/warm-%d" % number, 0o644)
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


def names(count=9):
    """Paths in /d on every server in turn."""
    found = [b"/d/budget-%d" % number for number in range(200)]
    return [next(path for path in found[at * 20:] if owner(path, SERVERS) == at % SERVERS) for at in range(count)]


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
