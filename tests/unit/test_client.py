# SPDX-License-Identifier: Apache-2.0
"""FileSystem against servers in one dict: who is asked, how often, and what comes of answers that fail."""

import ctypes
import errno
import os
import stat

import pytest
from fake_servers import Servers

from pymadfs import links, listing, ops
from pymadfs.client import DOT, DOTDOT, PLAIN, SLASH, File, FileSystem, HostPath, allowed
from pymadfs.config import Config
from pymadfs.filedata import MAX_PARALLEL, pieces, windows
from pymadfs.identity import Who
from pymadfs.layout import chunk_server, home, owner

CHUNK = 64


def store(address, data):
    ctypes.memmove(address, data, len(data))


@pytest.fixture
def servers():
    return Servers(3)


@pytest.fixture
def fs(servers):
    config = Config({})
    config.chunk_size = CHUNK
    return FileSystem(servers, config, b"/madfs", store)


def create(fs, path=b"/file"):
    path, attr = fs.open(path, os.O_CREAT | os.O_RDWR, 0o644)
    return File(attr.ino, attr.mode, path, attr.chunk_size, attr.size)


class Buffer:
    def __init__(self, data):
        self.memory = ctypes.create_string_buffer(data, max(len(data), 1))
        self.at, self.length = ctypes.addressof(self.memory), len(data)

    def segments(self):
        return ((self.at, self.length),)


def write(fs, file, offset, data):
    buffer = Buffer(data)
    return fs.write(file, offset, buffer.segments())


def read(fs, file, offset, length, fill=b"\xff"):
    buffer = Buffer(fill * length)
    count = fs.read(file, offset, buffer.segments())
    assert buffer.memory.raw[count:length] == fill * (length - count), "memory beyond what was read was written to"
    return buffer.memory.raw[:count]


def asked(servers):
    """What was asked since the last time, without the servers' numbers."""
    names = [name for _, name in servers.log]
    servers.log.clear()
    return names


def failure(code):
    return pytest.raises(OSError, match=errno.errorcode[code])


# --- data -----------------------------------------------------------------------------------------------------------


def test_pieces_cut_at_chunks_and_buffers():
    assert list(pieces(60, ((1000, 10), (b"abcdefg", 7)), 64)) == [
        (0, 60, 4, 1000),
        (1, 0, 6, 1004),
        (1, 6, 7, b"abcdefg"),
    ]
    assert list(pieces(62, ((b"abcd", 4),), 64)) == [(0, 62, 2, b"ab"), (1, 0, 2, b"cd")]
    assert list(windows(range(5), 2)) == [[0, 1], [2, 3], [4]]


def test_write_is_spread_and_read_back(fs, servers):
    file, data = create(fs), os.urandom(1000)
    assert write(fs, file, 0, data) == 1000
    node = servers.inodes[file.ino]
    assert node.size == 1000 and sorted(node.data) == list(range(16))
    assert file.dirty == {0, 1, 2}
    assert read(fs, file, 0, 1000) == data and read(fs, file, 63, 2) == data[63:65]
    assert read(fs, file, 990, 100) == data[990:] and read(fs, file, 1000, 5) == b"" and read(fs, file, 10**6, 5) == b""


def test_write_at_home_is_one_request(fs, servers):
    file = create(fs)
    asked(servers)
    write(fs, file, 0, b"x" * 10)
    assert asked(servers) == ["write"] and servers.inodes[file.ino].size == 10 and file.size == 10
    write(fs, file, 3 * CHUNK, b"y")
    assert asked(servers) == ["write"] and servers.inodes[file.ino].size == 193


def test_write_elsewhere_tells_home_in_the_same_round(fs, servers):
    file = create(fs)
    asked(servers)
    servers.rounds.clear()
    write(fs, file, CHUNK, b"x" * 10)
    assert sorted(asked(servers)) == ["extend", "write"] and servers.rounds == [2]
    assert servers.inodes[file.ino].size == CHUNK + 10 == file.size


def test_write_that_touches_home_carries_the_end_once(fs, servers):
    file = create(fs)
    asked(servers)
    write(fs, file, 0, b"x" * CHUNK * 7)
    assert asked(servers) == ["write"] * 7 and servers.rounds[-1] == 7 and servers.inodes[file.ino].size == 7 * CHUNK


def test_full_read_is_one_round(fs, servers):
    file = create(fs)
    write(fs, file, 0, b"x" * 200)
    asked(servers)
    assert len(read(fs, file, 0, 200)) == 200 and asked(servers) == ["read"] * 4
    assert len(read(fs, file, 10, 20)) == 20 and asked(servers) == ["read"]


def test_read_over_the_end_at_home_is_one_request(fs, servers):
    file = create(fs)
    write(fs, file, 0, b"x" * 50)
    asked(servers)
    assert read(fs, file, 0, CHUNK) == b"x" * 50 and read(fs, file, 52, 10) == b""
    assert asked(servers) == ["read"] * 2


def test_read_over_the_end_asks_for_the_size_in_the_same_round(fs, servers):
    file = create(fs)
    write(fs, file, CHUNK, b"x" * 50)
    asked(servers)
    servers.rounds.clear()
    assert read(fs, file, CHUNK, CHUNK) == b"x" * 50
    assert sorted(asked(servers)) == ["getattr", "read"] and servers.rounds == [2]


def test_read_far_over_the_end_does_not_ask_for_all_of_it(fs, servers):
    file = create(fs)
    write(fs, file, 0, b"x" * 50)
    asked(servers)
    assert read(fs, file, 0, 100 * CHUNK) == b"x" * 50
    assert asked(servers) == ["getattr", "read"]


def test_holes_read_as_zeros(fs, servers):
    file = create(fs)
    write(fs, file, 300, b"end")
    assert read(fs, file, 0, 303) == bytes(300) + b"end"
    assert read(fs, file, 290, 100) == bytes(10) + b"end"
    fs.ftruncate(file, 5000)
    assert read(fs, file, 4000, 2000) == bytes(1000)
    fs.ftruncate(file, 301)
    assert read(fs, file, 299, 10) == b"\0e"


def test_data_that_came_between_is_not_read_as_a_hole(fs, servers):
    file = create(fs)
    write(fs, file, CHUNK, b"x")
    other = File(file.ino, file.mode, file.path, file.chunk_size)
    servers.hooks["getattr"] = lambda request: write(fs, other, CHUNK + 1, b"yz" * 20)
    assert read(fs, file, CHUNK, CHUNK) == b"x" + b"yz" * 20


def test_truncated_by_somebody_else(fs, servers):
    file = create(fs)
    write(fs, file, 0, b"x" * 300)
    fs.truncate(b"/file", 100)
    assert file.size == 300 and read(fs, file, 0, 300) == b"x" * 100
    write(fs, file, 200, b"yy")
    assert read(fs, file, 90, 300) == b"x" * 10 + bytes(100) + b"yy"


def test_many_pieces_go_in_windows(fs, servers):
    file, data = create(fs), os.urandom(CHUNK * 200)
    assert write(fs, file, 7, data) == len(data)
    assert max(servers.rounds) <= MAX_PARALLEL + 1
    assert read(fs, file, 7, len(data)) == data and max(servers.rounds) <= MAX_PARALLEL + 1


def test_many_buffers(fs, servers):
    file = create(fs)
    parts = [Buffer(os.urandom(size)) for size in (1, 100, 64, 63, 500)]
    total = sum(part.length for part in parts)
    assert fs.write(file, 30, [(part.at, part.length) for part in parts]) == total
    assert read(fs, file, 30, total) == b"".join(part.memory.raw for part in parts)
    targets = [Buffer(bytes(size)) for size in (200, 3, 1000)]
    assert fs.read(file, 30, [(target.at, target.length) for target in targets]) == total
    assert b"".join(target.memory.raw for target in targets)[:total] == b"".join(part.memory.raw for part in parts)


def other_server(file, servers):
    """A server that holds chunk 1 but not the inode."""
    return chunk_server(file.ino, 1, servers.servers)


def test_write_stops_before_the_piece_that_failed(fs, servers):
    file = create(fs)
    servers.fail[other_server(file, servers), "write"] = errno.ENOSPC
    assert write(fs, file, 10, b"x" * 200) == CHUNK - 10 and servers.inodes[file.ino].size == CHUNK
    with failure(errno.ENOSPC):
        write(fs, file, CHUNK, b"x")
    assert file.dirty is not None and other_server(file, servers) not in file.dirty


def test_write_is_visible_when_the_piece_with_the_size_failed(fs, servers):
    file = create(fs)
    servers.fail[home(file.ino), "write"] = errno.ENOSPC
    assert write(fs, file, CHUNK, b"x" * 5 * CHUNK) == 2 * CHUNK
    assert servers.inodes[file.ino].size == 3 * CHUNK and read(fs, file, 0, 999) == bytes(CHUNK) + b"x" * 2 * CHUNK


def test_write_fails_when_the_size_cannot_be_set(fs, servers):
    file = create(fs)
    servers.fail[home(file.ino), "extend"] = errno.EIO
    with failure(errno.EIO):
        write(fs, file, CHUNK, b"x")


def test_write_ends_with_the_window_that_failed(fs, servers):
    file = create(fs)

    def fail_later(request):
        if request.chunk == MAX_PARALLEL:
            servers.fail[chunk_server(file.ino, MAX_PARALLEL, 3), "write"] = errno.EIO
        servers.hooks["write"] = fail_later

    servers.hooks["write"] = fail_later
    assert write(fs, file, 0, b"x" * CHUNK * (MAX_PARALLEL + 10)) == CHUNK * MAX_PARALLEL


def test_read_stops_before_the_piece_that_failed(fs, servers):
    file = create(fs)
    write(fs, file, 0, b"x" * 300)
    servers.fail[other_server(file, servers), "read"] = errno.EIO
    buffer = Buffer(bytes(300))
    assert fs.read(file, 0, buffer.segments()) == CHUNK
    with failure(errno.EIO):
        read(fs, file, CHUNK, 10)


def test_an_append_is_one_request_of_the_home(fs, servers):
    file = create(fs)
    write(fs, file, 0, b"x" * 60)
    asked(servers)
    assert fs.append(file, Buffer(b"y" * 10).segments(), 10) == (60, 10)
    assert asked(servers) == ["append"] and read(fs, file, 0, 100) == b"x" * 60 + b"y" * 10


def test_fsync_asks_who_was_written_to(fs, servers):
    file = create(fs)
    write(fs, file, CHUNK, b"x")
    asked(servers)
    fs.fsync(file)
    assert asked(servers) == ["fsync"] * 2
    fs.fsync(file)
    assert asked(servers) == ["fsync"]
    write(fs, file, CHUNK, b"x")
    servers.fail[other_server(file, servers), "fsync"] = errno.EIO
    with failure(errno.EIO):
        fs.fsync(file)
    servers.fail.clear()
    asked(servers)
    fs.fsync(file)
    assert asked(servers) == ["fsync"] * 2, "what failed is still to be synced"
    inherited = File(file.ino, file.mode, file.path, CHUNK, dirty=False)
    write(fs, file, 0, b"x" * 300)
    asked(servers)
    fs.fsync(inherited)
    assert asked(servers) == ["getattr", "fsync", "fsync", "fsync"]


# --- names ----------------------------------------------------------------------------------------------------------


def test_endings(fs, servers):
    fs.mkdir(b"/d", 0o755)
    assert fs.clean(b"/a/b") == (b"/a/b", PLAIN) and fs.clean(b"/") == (b"/", PLAIN)
    assert fs.clean(b"//a///b/") == (b"/a/b", SLASH) and fs.clean(b"/./a/./b/.") == (b"/a/b", DOT)
    assert fs.clean(b"/.a/..b/...") == (b"/.a/..b/...", PLAIN)
    assert (
        fs.clean(b"/d/..") == (b"/", DOTDOT)
        and fs.clean(b"/d/../a") == (b"/a", PLAIN)
        and fs.clean(b"/d/./") == (b"/d", DOT)
    )


def test_plain_paths_cost_one_request(fs, servers):
    create(fs)
    asked(servers)
    for path in (b"/file", b"//file", b"/./file"):
        fs.lookup(path)
        assert asked(servers) == ["lookup"]


def test_a_step_up_is_taken_where_the_link_leads(fs, servers):
    for path in (b"/a", b"/a/b", b"/c"):
        fs.mkdir(path, 0o755)
    fs.symlink(b"/madfs/a/b", b"/c/link")
    assert fs.lookup(b"/c/link/..")[0] == b"/a"
    assert fs.lookup(b"/c/link/../b/../../c/link")[0] == b"/a/b"
    for path, code in ((b"/none/..", errno.ENOENT), (b"/file/..", errno.ENOTDIR)):
        if code == errno.ENOTDIR:
            create(fs)
        with failure(code):
            fs.lookup(path)


@pytest.mark.parametrize(
    ("path", "host"),
    [
        (b"/..", b"/"),
        (b"/../etc/x", b"/etc/x"),
        (b"/d/../../x/", b"/x/"),
        (b"/out", b"/tmp/o"),
        (b"/out/a/../b", b"/tmp/o/b"),
        (b"/out/y", b"/tmp/o/y"),
        (b"/up", b"/zz"),
        (b"/d/up2/q", b"/zz/q"),
        (b"/through/x", b"/tmp/o/x"),
        (b"/near", b"/madfs2/x"),
    ],
)
def test_paths_that_lead_out(fs, servers, path, host):
    fs.mkdir(b"/d", 0o755)
    for target, link in (
        (b"/tmp/o", b"/out"),
        (b"../zz", b"/up"),
        (b"../../zz", b"/d/up2"),
        (b"out", b"/through"),
        (b"/madfs2/x", b"/near"),
    ):
        fs.symlink(target, link)
    with pytest.raises(HostPath) as raised:
        fs.lookup(path)
    assert os.path.normpath(raised.value.path) == os.path.normpath(host)
    assert raised.value.path.endswith(b"/") == host.endswith(b"/")


def test_paths_that_lead_out_and_back(fs, servers):
    create(fs)
    fs.symlink(b"/madfs/file", b"/abs")
    fs.symlink(b"//madfs/./file", b"/odd")
    fs.symlink(b"../madfs/file", b"/round")
    for path in (b"/../madfs/file", b"/abs", b"/odd", b"/round", b"/../madfs/round"):
        assert fs.lookup(path)[0] == b"/file"


def test_inside(fs):
    assert fs.inside(b"/madfs") == b"/" == fs.inside(b"/madfs/") and fs.inside(b"/madfs/a/") == b"/a/"
    assert fs.inside(b"//madfs//a/./b/") == b"/a/b/"
    for path in (b"/madfs2", b"/mad", b"/", b"/etc/madfs"):
        with pytest.raises(HostPath):
            fs.inside(path)


def test_loops_end(fs, servers):
    fs.symlink(b"b", b"/a")
    fs.symlink(b"a", b"/b")
    asked(servers)
    for path in (b"/a", b"/a/x", b"/b/"):
        with failure(errno.ELOOP):
            fs.lookup(path)
        assert len(asked(servers)) <= 41
    with failure(errno.ELOOP):
        fs.mkdir(b"/a/x", 0o755)
    with failure(errno.ELOOP):
        fs.rename(b"/a/x", b"/y")


def test_renamed_files_are_followed_to_their_home(fs, servers):
    moved = [b"/m%d" % number for number in range(20)]
    for path in moved:
        file = create(fs)
        write(fs, file, 0, b"content")
        fs.rename(b"/file", path)
        assert fs.lookup(path)[1].size == 7
        _, attr = fs.open(path, os.O_RDWR, 0)
        assert attr.ino == file.ino and servers.inodes[file.ino].openings == 2
        assert fs.setattr(path, ops.SET_MODE, mode=0o600).mode == stat.S_IFREG | 0o600
        fs.truncate(path, 3)
        assert servers.inodes[file.ino].size == 3
        fs.open(path, os.O_WRONLY | os.O_TRUNC, 0)
        assert servers.inodes[file.ino].size == 0
    assert any(owner(path, 3) != home(servers.names[path].ino) for path in moved)


def test_renamed_links_are_followed(fs, servers):
    create(fs)
    for number in range(10):
        fs.symlink(b"file", b"/l")
        path = b"/l%d" % number
        fs.rename(b"/l", path)
        assert fs.lookup(path)[0] == b"/file" and fs.lookup(path, follow=False)[2] == b"file"
        assert fs.setattr(path, ops.SET_UID | ops.SET_LINK, False, uid=9).uid == 9
        assert fs.setattr(path, ops.SET_MODE, mode=0o640).mode == stat.S_IFREG | 0o640


def test_a_name_whose_file_is_replaced_meanwhile_still_exists(fs, servers):
    path = next(path for path in (b"/p%d" % number for number in range(20)) if owner(path, 3) != owner(b"/file", 3))
    create(fs)
    fs.rename(b"/file", path)
    old = servers.names[path]

    def replace(_):
        fresh = create(fs, b"/new")
        del servers.inodes[old.ino], servers.names[b"/new"]
        servers.names[path] = servers.inodes[fresh.ino]

    servers.hooks["getattr"] = replace
    assert fs.lookup(path)[1].ino not in (old.ino, 0)


def test_truncating_by_path_needs_permission_also_after_a_rename(fs, servers):
    path = next(path for path in (b"/p%d" % number for number in range(20)) if owner(path, 3) != owner(b"/file", 3))
    create(fs)
    fs.rename(b"/file", path)
    servers.identify(1000, 0)
    with failure(errno.EACCES):
        fs.truncate(path, 0)


def test_rename_resolves_links_above_both_names(fs, servers):
    for path in (b"/a", b"/b"):
        fs.mkdir(path, 0o755)
    fs.symlink(b"a", b"/la")
    fs.symlink(b"b", b"/lb")
    create(fs, b"/a/x")
    fs.rename(b"/la/x", b"/lb/y")
    assert set(servers.names) == {b"/", b"/a", b"/b", b"/la", b"/lb", b"/b/y"}
    asked(servers)
    fs.rename(b"/b/y", b"/b/z")
    assert asked(servers) == ["rename"]


def test_readdir_merges_pages_of_all_servers(fs, servers):
    fs.mkdir(b"/d", 0o755)
    names = [b"n%03d" % number for number in range(100)]
    for name in names:
        fs.mknod(b"/d/" + name, 0o644)
    entries = listing.everything(fs, b"/d")
    assert [name for name, _, _ in entries] == [b".", b"..", *names]
    assert entries[0][1:] == (servers.names[b"/d"].ino, 4) and entries[1][1:] == (ops.ROOT_INO, 4)
    assert all(kind == 8 and ino == servers.names[b"/d/" + name].ino for name, ino, kind in entries[2:])
    with failure(errno.EIO):
        servers.fail[1, "readdir"] = errno.EIO
        listing.everything(fs, b"/d")


def test_an_empty_directory_has_two_entries(fs, servers):
    fs.mkdir(b"/d", 0o755)
    servers.rounds.clear()
    assert [name for name, _, _ in listing.everything(fs, b"/d")] == [b".", b".."]
    assert servers.rounds == [1, 4]  # the directory itself; then all servers, and the one that knows what ".." is


def test_statfs_is_the_sum(fs):
    assert fs.statfs() == (4096, 2500, 1250, 1000, 30, 15)


def test_openings_that_ended_go_in_batches(fs, servers):
    inos = [create(fs, b"/f%d" % number).ino for number in range(300)]
    for ino in inos:
        fs.ended(ino)
    assert sum(servers.inodes[ino].openings for ino in inos) < 3 * 64
    assert 1 <= len(servers.notified) <= 6
    fs.flush()
    assert not any(servers.inodes[ino].openings for ino in inos)
    create(fs, b"/last")
    fs.ended(servers.names[b"/last"].ino)
    fs.unlink(b"/last")
    assert servers.notified[-1][1] == "release"


def test_openings_that_ended_go_with_the_next_open(fs, servers):
    inos = [create(fs, b"/f%d" % number).ino for number in range(6)]
    for ino in inos:
        fs.ended(ino)
    for number in range(20):  # on every server
        create(fs, b"/g%d" % number)
    assert not servers.notified
    assert not any(servers.inodes[ino].openings for ino in inos)


def test_a_lock_is_one_request(fs, servers):
    """Who waits and is sent back asks again, after a look for signals: that is the shim's affair."""
    file = create(fs)
    asked(servers)
    assert fs.lock(file, 5, 1, 0, 10, 0).type == 2
    servers.fail[home(file.ino), "lock"] = errno.EAGAIN
    with failure(errno.EAGAIN):
        fs.lock(file, 5, 1, 0, 10, 1)
    assert asked(servers) == ["lock", "lock"]


def test_root_is_asked_by_name(fs, servers):
    path, attr = fs.open(b"/", os.O_RDONLY | os.O_DIRECTORY, 0)
    file = File(attr.ino, attr.mode, path, 0)
    assert fs.getattr(file).ino == ops.ROOT_INO
    assert fs.fsetattr(file, ops.SET_MODE, mode=0o700).mode == stat.S_IFDIR | 0o700
    for call in (lambda: fs.rmdir(b"/"), lambda: fs.rename(b"/", b"/x"), lambda: fs.rename(b"/file", b"/")):
        with failure(errno.EBUSY):
            call()
    with failure(errno.EEXIST):
        fs.mkdir(b"/", 0o755)


@pytest.mark.parametrize(
    ("mode", "uid", "gid", "mask", "granted"),
    [
        (0o100400, 1, 9, 4, True),
        (0o100400, 1, 9, 2, False),
        (0o100040, 2, 1, 4, True),
        (0o100040, 1, 1, 4, False),
        (0o100004, 2, 2, 4, True),
        (0o100000, 0, 0, 6, True),
        (0o100000, 0, 0, 1, False),
        (0o100001, 0, 0, 7, True),
        (0o040000, 0, 0, 7, True),
    ],
)
def test_allowed(mode, uid, gid, mask, granted):
    attr = ops.ATTR.unpack(bytes(ops.ATTR.size))._replace(mode=mode, uid=1, gid=1)
    assert allowed(attr, Who(uid, gid), mask) is granted


def test_requests_of_links(servers, fs):
    """A link is a look-up and one request, one more when the old name only points; an unlink is one."""
    create(fs, b"/one")
    asked(servers)
    links.link(fs, b"/one", b"/two")
    assert asked(servers) == ["lookup", "link"]
    servers.log.clear()
    fs.unlink(b"/two")
    assert asked(servers) == ["unlink"]
    other = next(b"/n%d" % i for i in range(99) if owner(b"/n%d" % i, 3) != owner(b"/one", 3))
    links.link(fs, b"/one", other)
    asked(servers)
    links.link(fs, other, b"/three")
    assert asked(servers) == ["lookup", "getattr", "link"]
    servers.log.clear()
    path, attr = links.tmpfile(fs, b"/", os.O_TMPFILE | os.O_RDWR, 0o600)
    assert asked(servers) == ["tmpfile"] and attr.nlink == 0 and path.startswith(b"/#")
    links.link_inode(fs, attr, path, b"/four")
    assert asked(servers) == ["link"]


def test_open_files_are_told_to_a_server_that_was_met_again(servers, fs):
    opened = [create(fs, b"/f%d" % i) for i in range(20)]
    for server in range(3):
        servers.log.clear()
        links.report(fs, opened, server)
        mine = [file for file in opened if home(file.ino) == server]
        assert asked(servers) == ["held"] * bool(mine)
        assert all(servers.inodes[file.ino].openings == 2 for file in mine)


@pytest.mark.parametrize("path, expected", [(b"/d/new", "EACCES"), (b"/new", "EPERM"), (b"/file", "EEXIST"),
                                            (b"/none/new", "ENOENT"), (b"/file/new", "ENOTDIR")])
def test_what_is_wrong_with_a_further_name_of_a_directory(servers, fs, path, expected):
    servers.who = Who(7, 7)
    create(fs)
    fs.mkdir(b"/d", 0o555)
    with pytest.raises(OSError) as error:
        links.link(fs, b"/d", path)
    assert errno.errorcode[error.value.errno] == expected
