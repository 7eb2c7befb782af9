# SPDX-License-Identifier: Apache-2.0
"""What of syscalls/ cannot be compared with a local directory: handles, failures, memory, the way out of the
mount."""

import ctypes
import errno
import os
import stat
import struct
import subprocess
import sys
from types import SimpleNamespace

import fake_shim
import pytest
from fake_servers import Servers

shim = fake_shim.install()

from pymadfs import abi, ops, syscalls  # noqa: E402
from pymadfs.client import FileSystem, HostPath  # noqa: E402
from pymadfs.config import Config  # noqa: E402
from pymadfs.layout import chunk_server, home, order  # noqa: E402
from pymadfs.syscalls import data, files  # noqa: E402

calls = SimpleNamespace(**syscalls.FUNCTIONS)

CHUNK = 64
MAP_FIXED = 0x10
R, W, RW, CREAT = os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_CREAT


class Memory:
    """``at`` is the address of a copy of ``data``.  It lives as long as the test."""

    kept: list = []

    def __init__(self, data):
        self.kept.append(self)
        self.buffer = ctypes.create_string_buffer(data, max(len(data), 1))
        self.length, self.at = len(data), ctypes.addressof(self.buffer)

    @property
    def data(self):
        return self.buffer.raw[: self.length]


@pytest.fixture
def servers():
    shim.reset()
    files.open_files.clear()
    files.locked.clear()
    config = Config({})
    config.chunk_size, config.eager_max = CHUNK, 256
    fake = Servers(3)
    syscalls.use(FileSystem(fake, config, b"/madfs", shim.store))
    yield fake
    Memory.kept.clear()


def opened(path=b"/madfs/file", flags=CREAT | RW, mode=0o644):
    return shim.handle(calls.openat(path, flags, mode))


def write(handle, data):
    memory = Memory(data)
    return calls.write(handle, memory.at, len(data))


def pread(handle, length, offset=0):
    memory = Memory(bytes(length))
    count = calls.pread(handle, memory.at, length, offset)
    return memory.data[:count]


def read(handle, length):
    memory = Memory(bytes(length))
    count = calls.read(handle, memory.at, length)
    return memory.data[:count]


def failure(code):
    return pytest.raises(OSError, match=rf"\[Errno {code}\]")


def test_every_canonical_call_has_its_function():
    assert len(syscalls.CALLS) == len(ops.canonical_calls())
    for function, (name, kinds) in zip(syscalls.CALLS, ops.canonical_calls().items()):
        assert function.__name__ == name and function.__code__.co_argcount == len(kinds), name


# --- descriptors ----------------------------------------------------------------------------------------------------


def test_what_the_shim_keeps_is_enough_for_another_process(servers):
    handle = opened()
    write(handle, b"x" * 200)
    assert shim.slots[handle][2] == b"/madfs/file"
    node = servers.names[b"/file"]
    assert node.openings == 1
    syscalls.after_fork_child()
    assert servers.log[-1] == (None, "forget_after_fork")
    assert pread(handle, 300) == b"x" * 200 and node.openings == 2, "the child counts as one more"
    assert write(handle, b"y") == 1 and shim.offsets[handle] == 201
    servers.log.clear()
    calls.fsync(handle)
    assert [name for _, name in servers.log].count("fsync") == 3, "what the parent wrote is synced, too"
    calls.release(handle)
    syscalls.exiting()
    assert node.openings == 1


def test_release_of_what_this_process_never_used(servers):
    handle = opened()
    calls.release(handle)
    syscalls.exiting()
    assert servers.names[b"/file"].openings == 0
    other = opened()
    syscalls.after_fork_child()
    calls.release(other)
    syscalls.exiting()
    assert servers.notified[-1][1] == "release", "the server knows whose opening it is, or that it was left to us"
    assert calls.release(12345) == 0


def test_no_descriptor_left(servers):
    shim.descriptors_max = 0
    with failure(errno.EMFILE):
        opened()
    syscalls.exiting()
    assert servers.names[b"/file"].openings == 0


def test_flags_of_a_descriptor(servers):
    def kept(flags):
        return shim.slots[opened(flags=flags)][0]

    large = abi.O_LARGEFILE
    assert kept(CREAT | os.O_EXCL | os.O_TRUNC | os.O_NOCTTY | os.O_CLOEXEC | W) == W | large
    assert kept(RW | os.O_APPEND | os.O_NONBLOCK) == RW | os.O_APPEND | os.O_NONBLOCK | large
    assert kept(os.O_PATH | RW | os.O_APPEND) == os.O_PATH


def test_append_may_be_switched_on_later(servers):
    handle = opened()
    write(handle, b"12345")
    shim.offsets[handle] = 0
    shim.slots[handle][0] |= os.O_APPEND
    assert write(handle, b"678") == 3 and pread(handle, 99) == b"12345678" and shim.offsets[handle] == 8


def test_table_of_files_does_not_grow_with_what_others_closed(servers, monkeypatch):
    monkeypatch.setattr(files, "FILES_MAX", 10)
    handles = [opened() for _ in range(10)]
    for handle in handles:
        pread(handle, 1)
    for handle in handles[1:]:
        del shim.slots[handle]
    shim.slots[99 | 1 << 20], shim.offsets[99 | 1 << 20] = shim.slots[handles[0]], 0
    pread(99 | 1 << 20, 1)
    assert set(files.open_files) == {handles[0], 99 | 1 << 20}
    with failure(errno.EBADF):
        calls.fstat(777, 4096)


# --- shared offsets -------------------------------------------------------------------------------------------------


def test_offset_advances_by_what_was_written(servers):
    handle = opened()
    ino = servers.names[b"/file"].ino
    servers.fail[chunk_server(ino, 1, 3), "write"] = errno.ENOSPC
    assert write(handle, b"x" * 200) == CHUNK and shim.offsets[handle] == CHUNK
    with failure(errno.ENOSPC):
        write(handle, b"x")
    assert shim.offsets[handle] == CHUNK


def test_offset_is_not_taken_back_when_another_went_on(servers):
    handle = opened()
    ino = servers.names[b"/file"].ino
    servers.fail[home(ino), "write"] = errno.EIO
    servers.hooks["write"] = lambda _: shim.offset_add(handle, 1000)
    with failure(errno.EIO):
        write(handle, b"x" * 10)
    assert shim.offsets[handle] == 1010


def test_reads_do_not_give_the_same_bytes_twice(servers):
    handle = opened()
    write(handle, b"0123456789")
    shim.offsets[handle] = 0
    servers.hooks["read"] = lambda _: shim.offset_set(handle, 3)  # another process reads meanwhile
    assert read(handle, 4) == b"3456" and shim.offsets[handle] == 7


def test_append_moves_the_offset_to_the_end(servers):
    handle = opened(flags=CREAT | W | os.O_APPEND)
    opened()
    write(handle, b"abc")
    assert shim.offsets[handle] == 3
    servers.fail[home(servers.names[b"/file"].ino), "append"] = errno.ENOSPC
    with failure(errno.ENOSPC):
        write(handle, b"abc")
    assert shim.offsets[handle] == 3


# --- reading and writing --------------------------------------------------------------------------------------------


def test_one_request_for_a_few_small_buffers(servers):
    handle = opened()
    parts = [Memory(b"ab"), Memory(b""), Memory(b"cdef")]
    vector = Memory(b"".join(struct.pack("<Qq", part.at, part.length) for part in parts))
    servers.rounds.clear()
    assert calls.writev(handle, vector.at, 3) == 6 and servers.rounds == [1]
    assert calls.preadv(handle, vector.at, 3, 2) == 4 and servers.rounds == [1, 1]
    assert [part.data for part in parts] == [b"cd", b"", b"efef"]
    assert calls.preadv2(handle, vector.at, 3, 0, abi.RWF_HIPRI) == 6 and parts[2].data == b"cdef"
    shim.offsets[handle] = 1
    assert calls.preadv2(handle, vector.at, 1, -1, 0) == 2 and parts[0].data == b"bc" and shim.offsets[handle] == 3


def test_few_requests_for_a_record_of_many_buffers(servers):
    handle = opened(flags=CREAT | RW | os.O_APPEND)
    lengths = [700] * 100 + [50_000] + [3] * 50
    parts = [Memory(b"%c" % (65 + number % 26) * length) for number, length in enumerate(lengths)]
    vector = Memory(b"".join(struct.pack("<Qq", part.at, part.length) for part in parts))
    servers.log.clear()
    assert calls.writev(handle, vector.at, len(parts)) == sum(lengths)
    assert [op for _, op in servers.log] == ["append"] * 5
    assert pread(handle, 200_000) == b"".join(part.data for part in parts)


def test_flags_of_one_write(servers):
    handle = opened()
    part = Memory(b"xyz")
    vector = Memory(struct.pack("<Qq", part.at, 3))
    assert calls.pwritev2(handle, vector.at, 1, 0, abi.RWF_APPEND) == 3 == calls.pwritev(handle, vector.at, 1, 1)
    assert calls.pwritev2(handle, vector.at, 1, 0, abi.RWF_APPEND) == 3 and pread(handle, 99) == b"xxyzxyz"
    assert shim.offsets[handle] == 0
    assert calls.pwritev2(handle, vector.at, 1, -1, abi.RWF_DSYNC) == 3 and shim.offsets[handle] == 3
    assert servers.log[-1][1] == "fsync"
    for call in (calls.preadv2, calls.pwritev2):
        with failure(errno.EOPNOTSUPP):
            call(handle, vector.at, 1, 0, 0x40000000)
    with failure(errno.EINVAL):
        calls.pwritev2(handle, vector.at, 1, -2, 0)


def test_synchronous_files_are_synced(servers):
    handle = opened(flags=CREAT | W | os.O_DSYNC)
    write(handle, b"x")
    assert servers.log[-1][1] == "fsync"


@pytest.mark.parametrize("address", [0, 8, 4095, -1])
def test_bad_addresses(servers, address):
    handle = opened()
    vector = Memory(struct.pack("<Qq", address & 0xFFFFFFFFFFFFFFFF if address > 0 else 8, 5))
    assert calls.readv(handle, vector.at, 1) == 0, "at the end nobody looks"
    calls.pwrite(handle, Memory(b"x").at, 1, 0)
    for call in (
        lambda: calls.fstat(handle, address),
        lambda: calls.newfstatat(b"/madfs/file", address, 0),
        lambda: calls.readv(handle, vector.at, 1),
        lambda: calls.writev(handle, address, 1),
        lambda: calls.statfs(b"/madfs", address),
        lambda: calls.getdents64(opened(b"/madfs/", R), address, 1000),
        lambda: calls.openat2(b"/madfs/file", address, 24, b"file"),
    ):
        with failure(errno.EFAULT):
            call()
    assert calls.read(handle, address, 0) == 0 == calls.write(handle, address, 0) and shim.offsets[handle] == 0


def test_counts_as_linux_limits_them(servers):
    handle, memory = opened(), Memory(b"x" * 16)
    with failure(errno.EFAULT):
        calls.read(handle, memory.at, -1)
    for count in (-1, 1025):
        with failure(errno.EINVAL):
            calls.readv(handle, memory.at, count)
    vector = Memory(struct.pack("<QqQq", memory.at, 4, memory.at, -1))
    with failure(errno.EINVAL):
        calls.writev(handle, vector.at, 2)
    vector = Memory(struct.pack("<QqQq", memory.at, 0x7FFFEFFF, memory.at, 99))
    assert data._vector(vector.at, 2) == [(memory.at, 0x7FFFEFFF), (memory.at, 1)]


# --- directories ----------------------------------------------------------------------------------------------------


def names_in(data):
    found, at = [], 0
    while at < len(data):
        position, length = struct.unpack_from("<qH", data, at + 8)
        found.append((data[at + 19 : at + length].split(b"\0")[0], position))
        at += length
    return found


def listing(handle, size):
    memory = Memory(bytes(size))
    count = calls.getdents64(handle, memory.at, size)
    return names_in(memory.data[:count])


def test_a_listing_asks_once_for_what_it_gives_in_pieces(servers):
    names = [b"%d" % number for number in range(3)]
    for name in names:
        calls.mknodat(b"/madfs/" + name, stat.S_IFREG, 0)
    handle = opened(b"/madfs", R | os.O_DIRECTORY)
    assert listing(handle, 50) == [(b".", 1), (b"..", 2)]
    calls.mknodat(b"/madfs/new", stat.S_IFREG, 0)
    asked = len(servers.log)
    expected = [(name, order(name)) for name in sorted(names, key=order)]
    assert listing(handle, 24) == expected[:1] and listing(handle, 1000) == expected[1:]
    assert listing(handle, 1000) == [] and len(servers.log) == asked
    assert calls.lseek(handle, 0, os.SEEK_CUR) == order(expected[-1][0])
    assert calls.lseek(handle, expected[0][1], os.SEEK_SET) and listing(handle, 1000) == expected[1:]
    calls.lseek(handle, 0, os.SEEK_SET)
    assert (b"new", order(b"new")) in listing(handle, 1000)
    calls.lseek(handle, 0, os.SEEK_SET)
    for size, code in ((0, errno.EINVAL), (23, errno.EINVAL)):
        with failure(code):
            listing(handle, size)
    with failure(errno.EINVAL):
        calls.lseek(handle, 0, os.SEEK_END)


def test_another_process_goes_on_with_a_listing(servers):
    names = sorted((b"%d" % number for number in range(5)), key=order)
    for name in names:
        calls.mknodat(b"/madfs/" + name, stat.S_IFREG, 0)
    handle = opened(b"/madfs", R)
    assert len(listing(handle, 24 * 4)) == 4
    syscalls.after_fork_child()
    assert [name for name, _ in listing(handle, 1000)] == names[2:]


def test_the_record_of_the_old_call(servers):
    calls.mknodat(b"/madfs/name", stat.S_IFREG, 0)
    memory = Memory(bytes(200))
    count = calls.getdents(opened(b"/madfs", R), memory.at, 200)
    found, at = [], 0
    while at < count:
        ino, place, length = struct.unpack_from("<QqH", memory.data, at)
        found.append((memory.data[at + 18:at + length - 1].rstrip(b"\0"), place, memory.data[at + length - 1]))
        at += length
    assert found == [(b".", 1, 4), (b"..", 2, 4), (b"name", order(b"name"), 8)]


def test_getdents_needs_a_directory(servers):
    with failure(errno.ENOTDIR):
        listing(opened(), 100)
    with failure(errno.EBADF):
        listing(opened(b"/madfs", os.O_PATH), 100)


# --- memory and devices ---------------------------------------------------------------------------------------------


def test_mmap_is_a_copy(servers):
    handle = opened()
    write(handle, b"x" * 5000)
    address = calls.mmap(handle, 0, 12288, abi.PROT_READ, abi.MAP_PRIVATE, 0)
    assert shim.load(address, 8192) == b"x" * 5000 + bytes(3192)
    there = calls.mmap(handle, address, 4096, 3, abi.MAP_PRIVATE | MAP_FIXED, 4096)
    assert there == address and shim.load(address, 4096) == b"x" * 904 + bytes(3192)
    shared = calls.mmap(handle, 0, 4096, abi.PROT_READ, abi.MAP_SHARED, 0)
    assert shim.load(shared, 4096) == b"x" * 4096


def test_mmap_refuses(servers):
    handle = opened()
    cases = (
        (handle, 0, abi.PROT_READ, abi.MAP_PRIVATE, 0, errno.EINVAL),
        (handle, 10, abi.PROT_READ, abi.MAP_PRIVATE, 5, errno.EINVAL),
        (handle, 10, abi.PROT_READ, 0, 0, errno.EINVAL),
        (handle, 10, abi.PROT_READ | abi.PROT_WRITE, abi.MAP_SHARED, 0, errno.ENODEV),
        (opened(flags=W), 10, abi.PROT_READ, abi.MAP_PRIVATE, 0, errno.EACCES),
        (opened(flags=R), 10, abi.PROT_WRITE, abi.MAP_SHARED, 0, errno.EACCES),
        (opened(flags=os.O_PATH), 10, abi.PROT_READ, abi.MAP_PRIVATE, 0, errno.EBADF),
        (opened(b"/madfs", R), 10, abi.PROT_READ, abi.MAP_PRIVATE, 0, errno.ENODEV),
    )
    for which, length, prot, flags, offset, code in cases:
        with failure(code):
            calls.mmap(which, 0, length, prot, flags, offset)


def test_ioctl(servers):
    handle, memory = opened(), Memory(bytes(4))
    write(handle, b"x" * 100)
    shim.offsets[handle] = 30
    assert calls.ioctl(handle, abi.FIONREAD, memory.at) == 0 and memory.data == struct.pack("<i", 70)
    shim.offsets[handle] = 101
    assert calls.ioctl(handle, abi.FIONREAD, memory.at) == 0 and memory.data == struct.pack("<i", -1)
    for which, request in ((handle, 0x5401), (opened(b"/madfs", R), abi.FIONREAD)):
        with failure(errno.ENOTTY):
            calls.ioctl(which, request, memory.at)


# --- attributes -----------------------------------------------------------------------------------------------------


def test_stat_and_statx_agree(servers):
    handle = opened()
    write(handle, b"x" * 700)
    by_path, by_fd, wide, wide_fd = (Memory(bytes(256)) for _ in range(4))
    calls.newfstatat(b"/madfs/file", by_path.at, abi.AT_NO_AUTOMOUNT)
    calls.fstat(handle, by_fd.at)
    calls.statx(b"/madfs/file", abi.AT_SYMLINK_NOFOLLOW, 0x7FF, wide.at)
    calls.fstatx(handle, 0x7FF, wide_fd.at)
    assert by_path.data == by_fd.data and wide.data == wide_fd.data
    device, ino = struct.unpack_from("<QQ", by_path.data)
    assert ino == struct.unpack_from("<Q", wide.data, 32)[0] == servers.names[b"/file"].ino
    assert os.makedev(*struct.unpack_from("<II", wide.data, 136)) == device == abi.DEVICE
    for call in (
        lambda: calls.newfstatat(b"/madfs/file", by_path.at, 0x8000),
        lambda: calls.statx(b"/madfs/file", 0, abi.STATX_RESERVED, wide.at),
        lambda: calls.statx(b"/madfs/file", abi.AT_STATX_SYNC_TYPE, 0, wide.at),
        lambda: calls.fstatx(handle, abi.STATX_RESERVED, wide.at),
        lambda: calls.faccessat(b"/madfs/file", 8, 0),
        lambda: calls.faccessat(b"/madfs/file", 0, 8),
        lambda: calls.faccess(handle, 8, 0),
        lambda: calls.fchmodat(b"/madfs/file", 0, 1),
        lambda: calls.fchownat(b"/madfs/file", 0, 0, 1),
        lambda: calls.utimensat(b"/madfs/file", 0, 1),
        lambda: calls.unlinkat(b"/madfs/file", 1),
        lambda: calls.renameat2(b"/madfs/file", b"/madfs/x", 4),
    ):
        with failure(errno.EINVAL):
            call()


def test_statfs(servers):
    one, two = Memory(bytes(120)), Memory(bytes(120))
    assert calls.statfs(b"/madfs", one.at) == 0 == calls.fstatfs(opened(), two.at) and one.data == two.data
    assert struct.unpack_from("<qqQQQ", one.data) == (0x4D414446, 4096, 2500, 1250, 1000)
    with failure(errno.ENOENT):
        calls.statfs(b"/madfs/none", one.at)


def test_permissions_are_checked_for_the_real_user(servers, monkeypatch):
    handle = opened(mode=0o640)
    for uid, gid, mode, granted in (
        (0, 0, 6, True),
        (0, 0, 1, False),
        (5, 0, 4, True),
        (5, 0, 2, False),
        (5, 5, 4, False),
    ):
        monkeypatch.setattr(files.posix, "getuid", lambda uid=uid: uid)
        monkeypatch.setattr(files.posix, "getgid", lambda gid=gid: gid)
        for call, what in ((calls.faccess, (handle, mode, 0)), (calls.faccessat, (b"/madfs/file", mode, 0))):
            if granted:
                assert call(*what) == 0
            else:
                with failure(errno.EACCES):
                    call(*what)
    assert calls.faccessat(b"/madfs/file", 6, abi.AT_EACCESS) == 0, "the effective user is root"


def test_chown(servers):
    handle, node = opened(), servers.names[b"/file"]
    calls.symlinkat(b"file", b"/madfs/link")
    calls.fchownat(b"/madfs/link", 5, -1, 0)
    assert (node.uid, node.gid) == (5, 0)
    calls.fchown(handle, 0xFFFFFFFF, 7, 0)
    assert (node.uid, node.gid) == (5, 7)
    calls.fchownat(b"/madfs/link", 8, 9, abi.AT_SYMLINK_NOFOLLOW)
    assert (node.uid, servers.names[b"/link"].uid, servers.names[b"/link"].gid) == (5, 8, 9)
    assert calls.fchownat(b"/madfs/link", -1, -1, 0) == 0
    calls.fchmod(handle, 0o100600, 0)
    assert node.mode == stat.S_IFREG | 0o600
    with failure(errno.EOPNOTSUPP):
        calls.fchmodat(b"/madfs/link", 0o600, abi.AT_SYMLINK_NOFOLLOW)
    assert calls.fchmodat(b"/madfs/file", 0o604, abi.AT_SYMLINK_NOFOLLOW) == 0 and node.mode & 0o777 == 0o604


def test_times(servers):
    handle, node = opened(), servers.names[b"/file"]

    def spec(*fields):
        return Memory(struct.pack("<qqqq", *fields)).at

    calls.utimensat(b"/madfs/file", spec(5, 6, -7, 8), 0)
    assert (node.atime, node.mtime) == (5 * 10**9 + 6, -7 * 10**9 + 8)
    calls.futimens(handle, spec(0, abi.UTIME_OMIT, 1, 0), 0)
    assert (node.atime, node.mtime) == (5 * 10**9 + 6, 10**9)
    assert calls.utimensat(b"/madfs/none", spec(0, abi.UTIME_OMIT, 0, abi.UTIME_OMIT), 0) == 0
    seen = []
    servers.hooks["setattr"] = seen.append
    calls.utimensat(b"/madfs/file", spec(0, abi.UTIME_NOW, 9, 9), 0)
    assert seen[0].valid == ops.SET_ATIME_NOW | ops.SET_MTIME and node.mtime == 9 * 10**9 + 9
    for call in (
        lambda: calls.utimensat(b"/madfs/file", 0, 0),
        lambda: calls.futimens(handle, 0, 0),
        lambda: calls.futimesat(b"/madfs/file", 0),
        lambda: calls.futimes(handle, 0),
        lambda: calls.utime(b"/madfs/file", 0),
    ):
        servers.hooks["setattr"] = seen.append
        call()
        assert seen[-1].valid == ops.SET_ATIME_NOW | ops.SET_MTIME_NOW
    calls.futimesat(b"/madfs/file", spec(1, 2, 3, 4))
    assert (node.atime, node.mtime) == (10**9 + 2000, 3 * 10**9 + 4000)
    calls.futimes(handle, spec(2, 0, 4, 0))
    assert (node.atime, node.mtime) == (2 * 10**9, 4 * 10**9)
    calls.utime(b"/madfs/file", spec(8, 9, 0, 0))
    assert (node.atime, node.mtime) == (8 * 10**9, 9 * 10**9)
    calls.utimensat(b"/madfs/file", spec(1 << 60, 0, -(1 << 60), 0), 0)
    assert (node.atime, node.mtime) == (abi.OFFSET_MAX, -abi.OFFSET_MAX)
    for call in (
        lambda: calls.utimensat(b"/madfs/file", spec(0, 10**9, 0, 0), 0),
        lambda: calls.futimes(handle, spec(0, 10**6, 0, 0)),
        lambda: calls.futimens(handle, spec(0, 0, 0, -1), 0),
    ):
        with failure(errno.EINVAL):
            call()


def test_readlink_cuts(servers):
    calls.symlinkat(b"target", b"/madfs/link")
    memory = Memory(b"........")
    assert calls.readlinkat(b"/madfs/link", memory.at, 3) == 3 and memory.data == b"tar....."
    for size in (0, -1):
        with failure(errno.EINVAL):
            calls.readlinkat(b"/madfs/link", memory.at, size)


# --- opening and names ----------------------------------------------------------------------------------------------


def how(flags=0, mode=0, resolve=0, more=b""):
    return Memory(struct.pack("<QQQ", flags, mode, resolve) + more)


def test_openat2(servers):
    good = how(CREAT | RW, 0o600)
    assert calls.openat2(b"/madfs/file", good.at, 24, b"file") >= 0 and servers.names[b"/file"].mode & 0o777 == 0o600
    assert calls.openat2(b"/madfs/file", how(more=bytes(8)).at, 32, b"file") >= 0
    cases = [
        (how(), 23, errno.EINVAL),
        (how(more=b"\0\1"), 26, errno.E2BIG),
        (how(), 5000, errno.E2BIG),
        (how(1 << 40), 24, errno.EINVAL),
        (how(mode=0o600), 24, errno.EINVAL),
        (how(CREAT, 1 << 16), 24, errno.EINVAL),
        (how(resolve=64), 24, errno.EINVAL),
        (how(resolve=8 | 16), 24, errno.EINVAL),
        (how(os.O_PATH | RW), 24, errno.EINVAL),
    ]
    for memory, size, code in cases:
        with failure(code):
            calls.openat2(b"/madfs/file", memory.at, size, b"file")


def test_umask(servers):
    shim.mask = 0o027
    opened(b"/madfs/f", mode=0o6777)
    calls.mkdirat(b"/madfs/d", 0o7777)
    calls.mknodat(b"/madfs/n", 0o666, 0)
    modes = [servers.names[name].mode & 0o7777 for name in (b"/f", b"/d", b"/n")]
    assert modes == [0o6750, 0o1750, 0o640]


def test_what_cannot_be_made(servers):
    with failure(errno.EOPNOTSUPP):
        calls.fallocate(opened(), abi.FALLOC_FL_COLLAPSE_RANGE, 0, 4096)
    with failure(errno.ENAMETOOLONG):
        calls.newfstatat(b"/madfs/" + b"a/" * 4100, 4096, 0)


def test_rename_to_what_exists(servers):
    opened(b"/madfs/a")
    opened(b"/madfs/b")
    with failure(errno.EEXIST):
        calls.renameat2(b"/madfs/a", b"/madfs/b", abi.RENAME_NOREPLACE)
    assert calls.renameat2(b"/madfs/a", b"/madfs/c", abi.RENAME_NOREPLACE) == 0


def test_the_root_stays(servers):
    for call in (
        lambda: calls.unlinkat(b"/madfs", abi.AT_REMOVEDIR),
        lambda: calls.unlinkat(b"/madfs/", abi.AT_REMOVEDIR),
        lambda: calls.renameat2(b"/madfs", b"/madfs/x", 0),
        lambda: calls.renameat2(b"/madfs/x", b"/madfs", 0),
    ):
        with failure(errno.EBUSY):
            call()
    with failure(errno.EISDIR):
        calls.unlinkat(b"/madfs", 0)


def test_the_way_out_of_the_mount(servers):
    opened(b"/madfs/in")
    calls.symlinkat(b"/tmp", b"/madfs/out")
    memory = Memory(bytes(256))
    for call, path, index in (
        (lambda: calls.newfstatat(b"/madfs/out/x", memory.at, 0), b"/tmp/x", 0),
        (lambda: calls.openat(b"/madfs/../etc/passwd", R, 0), b"/etc/passwd", 0),
        (lambda: calls.openat(b"/madfs/out", R, 0), b"/tmp", 0),
        (lambda: calls.symlinkat(b"t", b"/madfs/out/x"), b"/tmp/x", 1),
        (lambda: calls.chdir_path(b"/madfs/.."), b"/", 0),
        (lambda: calls.unlinkat(b"/madfs/out/x", 0), b"/tmp/x", 0),
        (lambda: calls.mkdirat(b"/madfs/out/x", 0o755), b"/tmp/x", 0),
        (lambda: calls.renameat2(b"/tmp/a", b"/madfs/out/b", 0), b"/tmp/b", 1),
        (lambda: calls.renameat2(b"/madfs/out/b", b"/tmp/a", 0), b"/tmp/b", 0),
        (lambda: calls.renameat2(b"/tmp/a", b"/tmp/b", 0), b"/tmp/a", 0),
    ):
        with pytest.raises(HostPath) as raised:
            call()
        assert (raised.value.path, raised.value.index) == (path, index)
    for old, new, code in (
        (b"/madfs/in", b"/tmp/x", errno.EXDEV),
        (b"/tmp/x", b"/madfs/in", errno.EXDEV),
        (b"/madfs/in", b"/madfs/out/x", errno.EXDEV),
        (b"/madfs/none/x", b"/tmp/x", errno.ENOENT),
    ):
        with failure(code):
            calls.renameat2(old, new, 0)


def test_working_directory(servers, monkeypatch):
    calls.mkdirat(b"/madfs/d", 0o700)
    calls.symlinkat(b"d", b"/madfs/link")
    opened()
    assert calls.chdir_path(b"/madfs/link/") == 0 and shim.cwd == b"/madfs/d"
    assert calls.chdir_path(b"/madfs/") == 0 and shim.cwd == b"/madfs"
    assert calls.chdir_fd(opened(b"/madfs/d", os.O_PATH)) == 0 and shim.cwd == b"/madfs/d"
    for path, code in ((b"/madfs/file", errno.ENOTDIR), (b"/madfs/none", errno.ENOENT)):
        with failure(code):
            calls.chdir_path(path)
    with failure(errno.ENOTDIR):
        calls.chdir_fd(opened())
    servers.identify(77, 77)
    with failure(errno.EACCES):
        calls.chdir_path(b"/madfs/d")
    assert shim.cwd == b"/madfs/d"


# --- locks ----------------------------------------------------------------------------------------------------------


def flock(kind, whence=0, start=0, length=0):
    return Memory(abi.pack_flock(kind, whence, start, length, 0))


def test_lock_ranges(servers):
    handle = opened()
    write(handle, b"x" * 100)
    shim.offsets[handle] = 40
    end = 1 << 63
    for arguments, wanted in (
        ((0, 5, 10), (5, 15)),
        ((0, 5, 0), (5, end)),
        ((1, 5, 10), (45, 55)),
        ((2, -10, 20), (90, 110)),
        ((0, 20, -5), (15, 20)),
        ((0, abi.OFFSET_MAX, 1), (abi.OFFSET_MAX, end)),
    ):
        assert calls.fcntl_lock(handle, abi.F_SETLK, flock(abi.F_WRLCK, *arguments).at) == 0
        assert (servers.locks[-1].start, servers.locks[-1].end, servers.locks[-1].how) == (*wanted, 0)
    for arguments, code in (
        ((0, -1, 5), errno.EINVAL),
        ((0, 3, -5), errno.EINVAL),
        ((7, 0, 0), errno.EINVAL),
        ((0, abi.OFFSET_MAX, 2), errno.EOVERFLOW),
    ):
        with failure(code):
            calls.fcntl_lock(handle, abi.F_SETLK, flock(abi.F_WRLCK, *arguments).at)


def test_lock_modes(servers):
    handle = opened()
    assert calls.fcntl_lock(handle, abi.F_SETLKW, flock(abi.F_RDLCK).at) == 0 and servers.locks[-1].how == 1
    with failure(errno.EBADF):
        calls.fcntl_lock(opened(flags=R), abi.F_SETLK, flock(abi.F_WRLCK).at)
    with failure(errno.EBADF):
        calls.fcntl_lock(opened(flags=W), abi.F_SETLK, flock(abi.F_RDLCK).at)
    for command, kind in ((abi.F_SETLK, 9), (99, abi.F_RDLCK), (abi.F_GETLK, abi.F_UNLCK)):
        with failure(errno.EINVAL):
            calls.fcntl_lock(handle, command, flock(kind).at)


def test_who_holds_a_lock(servers):
    handle = opened()
    asked = flock(abi.F_WRLCK, 0, 5, 10)
    assert calls.fcntl_lock(handle, abi.F_GETLK, asked.at) == 0
    assert abi.unpack_flock(asked.data) == (abi.F_UNLCK, 0, 5, 10, 0) and servers.locks[-1].how == 2
    asked = flock(abi.F_WRLCK, 0, 5, 10)
    here = files.owner >> 32 << 32
    for owner, pid in ((here | 1234, 1234), ((here ^ 1 << 32) | 1234, -1234), (1 << 63 | 1234, -1)):
        servers.lock = lambda *_, owner=owner: ((abi.F_WRLCK, 3, 1 << 63, owner), b"")
        assert calls.fcntl_lock(handle, abi.F_GETLK, asked.at) == 0
        assert abi.unpack_flock(asked.data) == (abi.F_WRLCK, abi.SEEK_SET, 3, 0, pid)


def test_locks_of_an_open_file_are_those_of_all_who_share_it(servers):
    handle, other = opened(), opened()
    assert calls.flock(handle, 2) == 0
    first = servers.locks[-1]
    assert first.owner >> 63 and first.opener == os.getpid() and (first.type, first.how, first.space) == (1, 1, 1)
    syscalls.after_fork_child()  # whose image is another, and who opened the file is the same
    assert calls.flock(handle, 1 | 4) == 0 and calls.flock(handle, 32) == 0
    again = servers.locks[-1]
    assert (again.owner, again.opener, again.type, again.how) == (first.owner, first.opener, 0, 0)
    assert calls.flock(other, 8) == 0 and servers.locks[-1].owner != first.owner
    assert calls.fcntl_lock(handle, abi.F_OFD_SETLK, flock(abi.F_WRLCK).at) == 0
    assert servers.locks[-1].owner == first.owner and servers.locks[-1].space == 0
    assert not files.locked
    count = len(servers.locks)
    calls.unlock_file(handle)
    assert [each.type for each in servers.locks[count:]] == [abi.F_UNLCK] * 2
    for operation in (0, 3, 4, 16):
        with failure(errno.EINVAL):
            calls.flock(handle, operation)


def test_closing_any_descriptor_ends_the_locks_of_the_process(servers):
    handle, other = opened(), opened()
    count = len(servers.locks)
    calls.closing(other, 0)
    assert len(servers.locks) == count
    calls.closing(other, 1)  # the program before may have locked it
    assert servers.locks[-1].type == abi.F_UNLCK and servers.locks[-1].owner == files.owner
    calls.fcntl_lock(handle, abi.F_SETLK, flock(abi.F_WRLCK).at)
    calls.closing(handle, 0)
    assert servers.locks[-1].type == abi.F_UNLCK and not files.locked


def test_locks_end_with_the_file_and_the_process(servers):
    for end in (lambda handle: calls.release(handle), lambda handle: syscalls.exiting()):
        handle = opened()
        calls.fcntl_lock(handle, abi.F_SETLK, flock(abi.F_WRLCK).at)
        end(handle)
        assert (servers.locks[-1].type, servers.locks[-1].start, servers.locks[-1].end) == (abi.F_UNLCK, 0, 1 << 63)
        held = len(servers.locks)
        syscalls.exiting()
        assert len(servers.locks) == held
    handle = opened()
    calls.fcntl_lock(handle, abi.F_SETLK, flock(abi.F_WRLCK).at)
    syscalls.after_fork_child()
    held = len(servers.locks)
    syscalls.exiting()
    assert len(servers.locks) == held, "a child inherits no locks"


# --- starting -------------------------------------------------------------------------------------------------------


def start_in_a_process(code, **environment):
    here = os.path.dirname(__file__)
    lines = (
        f"import sys; sys.path.insert(0, {here!r}); import fake_shim; fake_shim.install(); before = set(sys.modules)\n"
    )
    return subprocess.run(
        [sys.executable, "-c", lines + code],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={
            **{k: v for k, v in os.environ.items() if not k.startswith("MADFS_")},
            **environment,
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        },
    )


def test_a_client_imports_little():
    done = start_in_a_process("import pymadfs.syscalls; print(*sorted(set(sys.modules) - before))")
    assert not done.returncode, done.stderr
    banned = {
        "asyncio",
        "contextlib",
        "dataclasses",
        "enum",
        "functools",
        "io",
        "json",
        "logging",
        "re",
        "socket",
        "typing",
    }
    assert not banned & set(done.stdout.split())


STARTS = """
from pymadfs import syscalls
for _ in range(2):
    try:
        syscalls.FUNCTIONS["newfstatat"](b"/madfs/x", 4096, 0)
    except OSError as error:
        print(error.errno)
"""


@pytest.mark.parametrize(
    ("environment", "complaint"),
    [
        ({}, "MADFS_CLUSTER is not set"),
        ({"MADFS_CLUSTER": "/none/c"}, "cannot read the cluster file /none/c"),
        ({"MADFS_CLUSTER": "/none/c", "MADFS_CHUNK_SIZE": "big"}, "MADFS_CHUNK_SIZE='big' is not valid"),
    ],
)
def test_when_it_cannot_start_one_line_says_why(environment, complaint):
    done = start_in_a_process(STARTS, **environment)
    assert done.stdout.split() == [str(errno.EIO)] * 2 and not done.returncode, done.stderr
    assert len(done.stderr.splitlines()) == 1 and complaint in done.stderr


def test_nothing_happens_before_the_first_call():
    done = start_in_a_process("from pymadfs import syscalls; syscalls.after_fork_child(); syscalls.exiting()")
    assert (done.returncode, done.stderr) == (0, "")
