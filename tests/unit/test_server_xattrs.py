# SPDX-License-Identifier: Apache-2.0
"""Extended attributes and special files at the servers: who may, where they are kept, and when they go."""
import ctypes
import errno
import os
import stat

import fake_shim
import pytest
from real_servers import RealServers
from server_world import CHUNK, code, run

fake_shim.install()

from pymadfs import ops, syscalls  # noqa: E402
from pymadfs.client import FileSystem  # noqa: E402
from pymadfs.config import Config  # noqa: E402
from pymadfs.layout import home  # noqa: E402
from pymadfs.ops import (  # noqa: E402
    ATTR,
    GETXATTR,
    LISTXATTR,
    MKNOD,
    OPEN,
    REMOVEXATTR,
    REOPEN,
    SET_MODE,
    SET_UID,
    SETXATTR,
)
from pymadfs.server import xattrs  # noqa: E402

OWNER, OTHER = {"uid": 7, "gid": 7}, {"uid": 8, "gid": 8}


class Marks:
    """Extended attributes of one inode; an OSError's name stands for what failed."""

    def __init__(self, world, ino, path):
        self.world, self.ino, self.path = world, ino, path

    async def _ask(self, op, name, *fields, value=b"", **user):
        try:
            return (await self.world.ask(home(self.ino), op, name + self.path + value, self.ino, *fields, **user))[1]
        except OSError as error:
            return errno.errorcode[error.errno]

    async def set(self, name, value, flags=0, bulk=False, **user):
        fields = flags, len(name), len(self.path)
        if bulk:
            return await self._ask(SETXATTR, name, *fields, payload=value, **user)
        return await self._ask(SETXATTR, name, *fields, value=value, **user)

    async def get(self, name, **user):
        return await self._ask(GETXATTR, name, len(name), **user)

    async def list(self, **user):
        return await self._ask(LISTXATTR, b"", **user)

    async def remove(self, name, **user):
        return await self._ask(REMOVEXATTR, name, len(name), **user)


@run
async def test_who_may(world):
    attr = await world.create(b"/f", mode=0o640, **OWNER)
    marks = Marks(world, attr.ino, b"/f")
    assert await marks.set(b"user.a", b"1", **OWNER) == b"" and await marks.get(b"user.a", **OWNER) == b"1"
    assert await marks.get(b"user.a", **OTHER) == "EACCES" == await marks.set(b"user.a", b"2", **OTHER)
    assert await marks.remove(b"user.a", **OTHER) == "EACCES"
    assert await marks.set(b"trusted.a", b"1") == b"" and await marks.get(b"trusted.a") == b"1"
    assert await marks.set(b"trusted.a", b"1", **OWNER) == "EPERM" == await marks.remove(b"trusted.a", **OWNER)
    assert await marks.get(b"trusted.a", **OWNER) == "ENODATA"
    assert await marks.list() == b"user.a\0trusted.a\0" and await marks.list(**OTHER) == b"user.a\0"
    assert await marks.set(b"security.x", b"1", **OWNER) == "EPERM" and await marks.set(b"security.x", b"1") == b""
    assert await marks.get(b"security.x", **OTHER) == b"1"
    assert await marks.set(b"security.capability", b"1") == "ENOTSUP"
    assert await marks.set(b"", b"") == "ERANGE" == await marks.set(b"user." + b"n" * 251, b"")
    for name in (b"system.posix_acl_access", b"system.posix_acl_default", b"other.x", b"x"):
        assert await marks.set(name, b"") == "ENOTSUP" == await marks.get(name) == await marks.remove(name)
    assert await marks.set(b"other.x", b"", **OTHER) == "EACCES"


@run
async def test_sticky_directories_belong_to_their_owner(world):
    attr = await world.mkdir(b"/d", **OWNER)
    marks = Marks(world, attr.ino, b"/d")
    await world.setattr(b"/d", SET_MODE, mode=0o1777)
    assert await marks.set(b"user.a", b"1", **OTHER) == "EPERM" and await marks.set(b"user.a", b"1", **OWNER) == b""
    await world.setattr(b"/d", SET_MODE, mode=0o777)
    assert await marks.set(b"user.a", b"1", **OTHER) == b""


@run
async def test_sizes(world):
    attr = await world.create(b"/f")
    marks = Marks(world, attr.ino, b"/f")
    big = os.urandom(64 << 10)
    assert await marks.set(b"user.big", big, bulk=True) == b"" and await marks.get(b"user.big") == big
    assert await marks.set(b"user.big", big + b"x", bulk=True) == "E2BIG" == await marks.set(b"user.big", big + b"x")
    for index in range(3):
        assert await marks.set(b"user.%d" % index, big[:65000]) == b""
    assert await marks.set(b"user.4", big[:65000]) == "ENOSPC" and await marks.get(b"user.4") == "ENODATA"
    assert await marks.set(b"user.big", b"") == b"" and await marks.get(b"user.big") == b""
    with pytest.raises(OSError):
        await world.ask(home(attr.ino), SETXATTR, b"user.a" + b"/f" + b"x", attr.ino + 1, 0, 6, 2)


@run
async def test_they_live_with_the_inode(world):
    """Kept by a rename to another server, over a restart and while the file is open; gone with the last of it."""
    here, there = world.path_on(0), world.path_on(1, stem=b"g")
    attr = await world.create(here, keep=True)
    marks = Marks(world, attr.ino, here)
    before = (await world.stat(here)).ctime_ns
    while (await world.stat(here)).ctime_ns == before:  # the clock is coarse
        await marks.set(b"user.a", b"1")
    assert (await world.stat(here)).flags & ops.FLAG_XATTRS
    await world.rename(here, there)
    assert await marks.get(b"user.a") == b"1" and await marks.list() == b"user.a\0"
    world.crash(0)
    world.start(0)
    assert await marks.get(b"user.a") == b"1"
    await world.ask(0, REOPEN, there, attr.ino, os.O_RDWR)
    await world.unlink(there)
    assert await marks.set(b"user.b", b"2") == b"" and await marks.get(b"user.a") == b"1"
    assert world.keys(b"AX")
    await world.release(attr.ino)
    await world.quiet()
    assert not world.keys(b"AX") and await marks.get(b"user.a") == "ENOENT"


@run
async def test_removed_with_the_name(world):
    attr, directory = await world.create(b"/f"), await world.mkdir(b"/d")
    for marks in (Marks(world, attr.ino, b"/f"), Marks(world, directory.ino, b"/d")):
        await marks.set(b"user.a", b"1")
        await marks.set(b"user.b", b"1")
        assert await marks.remove(b"user.a") == b"" and await marks.list() == b"user.b\0"
        assert await marks.remove(b"user.a") == "ENODATA"
    assert len(world.keys(b"AX")) == 2
    await world.unlink(b"/f")
    await world.rmdir(b"/d")
    assert not world.keys(b"AX")
    attr = await world.create(b"/f")
    marks = Marks(world, attr.ino, b"/f")
    await marks.set(b"user.a", b"1")
    await marks.remove(b"user.a")
    assert not world.keys(b"AX") and not (await world.stat(b"/f")).flags & ops.FLAG_XATTRS


@run
async def test_chunk_size_reaches_all_servers(world):
    """Also those that knew the directory before: none makes a file by what was when the call has returned."""
    directory = await world.mkdir(b"/d")
    files = [world.path_on(number, b"/d", b"before") for number in range(3)]
    for path in files:
        assert (await world.create(path)).chunk_size == CHUNK
    marks = Marks(world, directory.ino, b"/d")
    assert await marks.set(xattrs.CHUNK_SIZE, b"12345") == b"" and await marks.get(xattrs.CHUNK_SIZE) == b"12345"
    assert await marks.set(xattrs.CHUNK_SIZE, b"1", flags=xattrs.XATTR_CREATE) == "EEXIST"
    for number in range(3):
        assert (await world.create(world.path_on(number, b"/d", b"after"))).chunk_size == 12345
    sub = await world.mkdir(b"/d/sub")
    assert await Marks(world, sub.ino, b"/d/sub").get(xattrs.CHUNK_SIZE) == b"12345"
    assert (await world.create(b"/d/sub/f")).chunk_size == 12345
    assert await marks.remove(xattrs.CHUNK_SIZE) == b"" and await marks.remove(xattrs.CHUNK_SIZE) == "ENODATA"
    assert (await world.create(b"/d/last")).chunk_size == CHUNK
    file = Marks(world, (await world.stat(b"/d/last")).ino, b"/d/last")
    assert await file.set(xattrs.CHUNK_SIZE, b"5") == "EINVAL" == await file.remove(xattrs.CHUNK_SIZE)
    assert await file.get(xattrs.CHUNK_SIZE) == b"%d" % CHUNK


@run
async def test_special_files(world):
    async def mknod(path, mode, rdev=0, **user):
        return ATTR.unpack((await world.call(MKNOD, path, mode, rdev, **user))[0].attr)

    async def open_(path, flags=0, **user):
        await world.call(OPEN, path, flags, 0, CHUNK, 0, **user)

    async def fails(name, coroutine):
        with pytest.raises(OSError) as error:
            await coroutine
        assert code(error) == name

    node = await mknod(b"/null", stat.S_IFCHR | 0o666, 0x103)
    assert (stat.S_IFMT(node.mode), node.rdev, node.nlink) == (stat.S_IFCHR, 0x103, 1)
    await fails("EPERM", mknod(b"/mine", stat.S_IFBLK | 0o666, 0x700, **OWNER))
    assert (await mknod(b"/whiteout", stat.S_IFCHR, 0, **OWNER)).rdev == 0
    await fails("EEXIST", mknod(b"/null", stat.S_IFIFO))
    await fails("ENOENT", mknod(b"/none/p", stat.S_IFIFO))
    await fails("EINVAL", mknod(b"/x", stat.S_IFDIR))
    await fails("EACCES", open_(b"/null"))
    assert (await mknod(b"/p", stat.S_IFIFO | 0o600, 5, **OWNER)).rdev == 0
    await open_(b"/p", os.O_RDWR | os.O_TRUNC, **OWNER)
    await fails("EACCES", open_(b"/p", **OTHER))
    await mknod(b"/s", stat.S_IFSOCK | 0o600, **OWNER)
    await fails("EACCES", open_(b"/s", **OTHER))
    await fails("ENXIO", open_(b"/s"))
    await fails("ENOTDIR", open_(b"/p", os.O_DIRECTORY))
    pipe = await world.stat(b"/p")
    await world.rename(b"/p", b"/q")
    await fails("EACCES", world.ask(home(pipe.ino), REOPEN, b"/q", pipe.ino, os.O_RDWR, **OTHER))
    await world.setattr(b"/s", SET_UID, uid=8)
    await fails("ENXIO", open_(b"/s", **OTHER))
    assert not any(server.openings.total for server in world.servers)


def test_requests_per_call(tmp_path):
    """Who has no attributes costs one request, the look-up; root need not even ask whether it may."""
    servers = RealServers(tmp_path)
    syscalls.use(FileSystem(servers, Config({}), b"/madfs", lambda *_: None))
    calls, text = syscalls.FUNCTIONS, ctypes.create_string_buffer(b"user.a", 300)
    name = ctypes.addressof(text)
    servers.uid = 0
    calls["mknodat"](b"/madfs/f", 0o644, 0)

    def asked(call, *arguments):
        servers.world.log.clear()
        try:
            calls[call](b"/madfs/f", *arguments)
        except OSError as error:
            assert error.errno == errno.ENODATA
        return [op.name for _, op in servers.world.log]

    assert asked("getxattr", name, 0, 0, 0) == asked("listxattr", 0, 0, 0) == ["lookup"]
    assert asked("setxattr", name, name, 3, 0, 0) == ["lookup", "setxattr"]
    assert asked("getxattr", name, 0, 0, 0) == ["lookup", "getxattr"]
    assert asked("listxattr", 0, 0, 0) == ["lookup", "listxattr"]
    assert asked("removexattr", name, 0) == ["lookup", "removexattr"]
    syscalls.exiting()
    servers.close()
