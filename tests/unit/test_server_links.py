# SPDX-License-Identifier: Apache-2.0
"""Further names of files over several servers: counts, refusals, races, and a crash at every message."""
import asyncio
import errno
import os
import stat
from typing import ClassVar

import pytest
from server_world import CHUNK, World, code, run

from pymadfs.ops import ATTR, COUNT, FLAG_REMOTE, HELD, KEEP, LINK, OPEN, SET_MODE, TMPFILE
from pymadfs.server import links

NAMES = [(birth, other) for birth in range(3) for other in range(3)]
GONE = (b"I", b"P", b"R", b"C", b"D", b"N")


def left(world):
    return [key for prefix in GONE for key in world.keys(prefix)]


async def refused(call):
    with pytest.raises(OSError) as error:
        await call
    return code(error)


@run
async def test_names_of_every_server(world):
    for birth, other in NAMES:
        old, new = world.path_on(birth, stem=b"old"), world.path_on(other, stem=b"new")
        attr = await world.create(old)
        await world.write(attr, old, 0, b"x" * (CHUNK * 3))
        before = (await world.stat(old)).ctime_ns
        await asyncio.sleep(0.01)  # a tick of the coarse clock
        await world.link(attr.ino, new, old)
        one, two = await world.stat(old), await world.stat(new)
        assert one == two and (one.ino, one.nlink, one.size) == (attr.ino, 2, CHUNK * 3)
        assert one.ctime_ns > before
        for path in (old, new):  # open through either name, write, and see it through the other
            reply, _ = await world.call(OPEN, path, os.O_RDWR | os.O_CREAT, 0o644, CHUNK, 0)
            found = ATTR.unpack(reply.attr)
            assert found.ino == attr.ino and not reply.created
            if not found.flags & FLAG_REMOTE:
                await world.release(attr.ino)
        await world.write(attr, new, CHUNK * 3, b"y")
        assert (await world.stat(old)).size == CHUNK * 3 + 1
        await world.unlink(old)
        found = await world.stat(new)
        assert (found.nlink, found.size) == (1, CHUNK * 3 + 1) and found.ctime_ns >= one.ctime_ns
        assert await refused(world.stat(old)) == "ENOENT"
        await world.link(attr.ino, old, b"/wrong/hint")
        assert (await world.stat(old)).nlink == 2
        await world.unlink(new)
        await world.unlink(old)
        await world.quiet()
        assert await refused(world.getattr(attr.ino)) == "ENOENT"
    assert not left(world) and not world.files_of_chunks()


@run
async def test_refusals_in_order(world):
    await world.mkdir(b"/d")
    attr = await world.create(b"/f")
    directory = await world.mkdir(b"/d/e")
    for server in range(3):
        new = world.path_on(server)
        cases = ((attr.ino, b"/d", "EEXIST"), (attr.ino, b"/none" + new, "ENOENT"), (attr.ino, b"/f" + new, "ENOTDIR"),
                 (attr.ino + 1000, new, "ENOENT"), (directory.ino, new, "EPERM"),
                 (attr.ino, b"/" + b"n" * 256, "ENAMETOOLONG"))
        for ino, path, expected in cases:
            assert await refused(world.link(ino, path, b"/d/e" if ino == directory.ino else b"/f")) == expected, path
    await world.setattr(b"/d", SET_MODE, mode=0o755)
    inside = world.path_on(1, b"/d")
    assert await refused(world.link(attr.ino, inside, b"/f", uid=1000, gid=1000)) == "EACCES"
    assert (await world.stat(b"/f")).nlink == 1
    await world.quiet()
    assert not world.keys(b"N")


@run
async def test_a_limit(world):
    limit, links.LINKS_MAX = links.LINKS_MAX, 3
    try:
        attr = await world.create(b"/f")
        for server in range(2):
            await world.link(attr.ino, world.path_on(server), b"/f")
        for server in range(3):
            assert await refused(world.link(attr.ino, world.path_on(server, stem=b"more"), b"/f")) == "EMLINK"
        assert (await world.stat(b"/f")).nlink == 3
        assert len(await world.names(b"/")) == 3
    finally:
        links.LINKS_MAX = limit


@run
async def test_symbolic_links_have_further_names(world):
    for birth, other in NAMES:
        old, new = world.path_on(birth, stem=b"old"), world.path_on(other, stem=b"new")
        await world.symlink(b"/somewhere", old)
        attr = await world.stat(old)
        await world.link(attr.ino, new, old)
        for path in (old, new):
            found = await world.stat(path)
            assert stat.S_ISLNK(found.mode) and found.nlink == 2
            _, target = await world.call(OPEN, path, os.O_RDONLY, 0, CHUNK, 0)
            assert target == b"/somewhere"
        await world.unlink(old)
        await world.unlink(new)
    assert not left(world)


@run
async def test_rename_of_further_names(world):
    """rename(2): "If oldpath and newpath are existing hard links referring to the same file, then rename() does
    nothing, and returns a success status." """
    for birth, other in NAMES:
        old, new = world.path_on(birth, stem=b"old"), world.path_on(other, stem=b"new")
        attr = await world.create(old)
        await world.link(attr.ino, new, old)
        for one, two in ((old, new), (new, old)):
            await world.rename(one, two)
            assert (await world.stat(old)).nlink == 2 and (await world.stat(new)).ino == attr.ino
        replaced, third = await world.create(world.path_on(0, stem=b"x")), world.path_on(0, stem=b"x")
        await world.link(replaced.ino, world.path_on(2, stem=b"y"), third)
        await world.rename(new, third)  # takes one of its names from the file that is replaced
        assert (await world.getattr(replaced.ino)).nlink == 1
        assert (await world.stat(third)).nlink == 2
        for path in (old, third, world.path_on(2, stem=b"y")):
            await world.unlink(path)
    await world.quiet()
    assert not left(world)


@run
async def test_links_and_unlinks_race(world):
    """Whatever the order, the count is that of the names."""
    for turn in range(20):
        paths = [world.path_on(server, stem=b"t%d-" % turn, skip=skip) for server in range(3) for skip in range(2)]
        attr = await world.create(paths[0])
        calls = [world.link(attr.ino, path, paths[0]) for path in paths[1:] for _ in range(2)]
        calls[turn % len(calls):turn % len(calls)] = [world.unlink(paths[turn % 6]), world.unlink(paths[0])]
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert all(each is None or each.errno in (errno.EEXIST, errno.ENOENT) for each in results), results
        await world.quiet()
        names = [name for name in await world.names(b"/") if name.startswith(b"t%d-" % turn)]
        if names:
            assert (await world.getattr(attr.ino, paths[0])).nlink == len(names)
        else:
            assert await refused(world.getattr(attr.ino, paths[0])) == "ENOENT"
        for name in names:
            await world.unlink(b"/" + name)
        assert not left(world)


@run
async def test_a_directory_that_goes_while_a_name_is_put(world):
    for turn in range(10):
        directory = world.path_on(2, stem=b"d%d-" % turn)
        await world.mkdir(directory)
        old, new = world.path_on(0), world.path_on(1, directory)
        attr = await world.create(old)
        results = await asyncio.gather(world.link(attr.ino, new, old), world.rmdir(directory), return_exceptions=True)
        done = [result is None for result in results]
        assert done.count(True) == 1, results
        await world.quiet()
        assert (await world.stat(old)).nlink == 1 + done[0]
        if done[0]:
            await world.unlink(new)
            await world.rmdir(directory)
        await world.unlink(old)
        assert not left(world)


WHENS = [(victim, when) for victim in ("asking", "home") for when in ("before", "after")]


def crashing(tmp_path, scenario):
    async def main():
        world = World(tmp_path)
        await scenario(world)
        await world.stop()
    asyncio.run(asyncio.wait_for(main(), 20))


async def revive(world):
    assert world.trapped.is_set()
    for number in range(3):
        if world.servers[number] is None:
            world.start(number)
    await world.quiet()


async def consistent(world, ino, paths):
    """As many names as are counted; the same after another restart of everybody."""
    for _ in range(2):
        present = [path for path in paths if path[1:] in await world.names(b"/")]
        if present:
            for path in present:
                found = await world.stat(path)
                assert (found.ino, found.nlink) == (ino, len(present)), present
        else:
            assert await refused(world.getattr(ino, paths[0])) == "ENOENT"
        assert not world.keys(b"N") and not world.keys(b"P")
        for number in range(3):
            world.crash(number)
            world.start(number)
        await world.quiet()
    return present


@pytest.mark.parametrize("victim, when", WHENS)
def test_a_crash_while_a_name_is_added(tmp_path, victim, when):
    async def scenario(world):
        old, new = world.path_on(0, stem=b"old"), world.path_on(1, stem=b"new")
        attr = await world.create(old)
        world.trap = (1, COUNT, when, {"asking": 1, "home": 0}[victim])
        try:
            await world.link(attr.ino, new, old)
        except OSError as error:
            assert error.errno == errno.EIO
        await revive(world)
        await consistent(world, attr.ino, [old, new])
        if new[1:] not in await world.names(b"/"):
            await world.link(attr.ino, new, old)
        assert (await world.stat(new)).nlink == 2

    crashing(tmp_path, scenario)


@pytest.mark.parametrize("victim, when", WHENS)
@pytest.mark.parametrize("names", [1, 2, 3])
def test_a_crash_while_a_name_is_removed(tmp_path, victim, when, names):
    async def scenario(world):
        paths = [world.path_on(server, stem=b"name") for server in (1, 0, 2)]
        attr = await world.create(paths[1])
        await world.write(attr, paths[1], 0, b"x" * CHUNK * 4)
        await world.link(attr.ino, paths[0], paths[1])
        if names > 2:
            await world.link(attr.ino, paths[2], paths[1])
        if names < 2:
            await world.unlink(paths[1])
        world.trap = (1, COUNT, when, {"asking": 1, "home": 0}[victim])
        try:
            await world.unlink(paths[0])
        except OSError as error:
            assert error.errno == errno.EIO
        await revive(world)
        assert len(await consistent(world, attr.ino, paths)) == names - 1
        assert bool(world.files_of_chunks()) == (names > 1)

    crashing(tmp_path, scenario)


@pytest.mark.parametrize("victim, when", WHENS)
@pytest.mark.parametrize("remove", [False, True])
def test_a_crash_while_a_directory_is_counted(tmp_path, victim, when, remove):
    async def scenario(world):
        parent = world.path_on(0, stem=b"parent")
        child = world.path_on(1, parent)
        await world.mkdir(parent)
        if remove:
            await world.mkdir(child)
        world.trap = (1, COUNT, when, {"asking": 1, "home": 0}[victim])
        try:
            await (world.rmdir(child) if remove else world.mkdir(child))
        except OSError as error:
            assert error.errno == errno.EIO
        await revive(world)
        for _ in range(2):
            assert (await world.stat(parent)).nlink == 2 + (not remove)
            assert len(await world.names(parent)) == (not remove)
            for number in range(3):
                world.crash(number)
                world.start(number)
            await world.quiet()
        assert not world.keys(b"N")

    crashing(tmp_path, scenario)


@run
async def test_a_dead_home_delays_nobody_and_is_told_later(world):
    old = world.path_on(0)
    new = [world.path_on(1, stem=b"n", skip=skip) for skip in range(20)]
    attr = await world.create(old)
    for path in new:
        await world.link(attr.ino, path, old)
    world.crash(0)
    for path in new:
        await world.unlink(path)
    other, third = world.path_on(1, stem=b"other"), world.path_on(2, stem=b"third")
    await world.create(other)
    await world.unlink(other)
    assert await refused(world.link(attr.ino, third, old)) == "EIO"
    world.start(0)
    await world.quiet()
    assert (await world.stat(old)).nlink == 1
    assert not world.keys(b"N")


@run
async def test_requests(world):
    """What a link and an unlink cost between servers: nothing at the inode's home, else one request."""
    for birth, other in NAMES:
        old, new = world.path_on(birth, stem=b"old"), world.path_on(other, stem=b"new")
        attr = await world.create(old)
        world.log.clear()
        await world.link(attr.ino, new, old)
        await world.unlink(new)
        asked = [op.name for _, op in world.log if op in (LINK, COUNT)]
        assert asked == (["link"] if birth == other else ["link", "count", "count"])
        await world.unlink(old)


# --- inodes without a name, and who has them open -------------------------------------------------------------------


def tmpfile(world, number, exclusive=False, **user):
    return world.call(TMPFILE, world.path_on(number), exclusive, 0o600, CHUNK, **user)


@run
async def test_files_without_a_name(world):
    for number in range(3):
        for exclusive in (False, True):
            attr = ATTR.unpack((await tmpfile(world, number, exclusive))[0].attr)
            assert (attr.ino >> 44, attr.nlink) == (number, 0)
            await world.write(attr, b"", 0, b"x" * CHUNK * 4)
            new = world.path_on((number + 1) % 3)
            if exclusive:
                assert await refused(world.link(attr.ino, new)) == "ENOENT"
            else:
                await world.link(attr.ino, new)
                await world.release(attr.ino)
                assert (await world.stat(new)).nlink == 1 and not world.keys(b"P")
                keep = await world.create(new, keep=True)
                await world.ask(number, HELD, keep.ino.to_bytes(8, "little"))
                await world.unlink(new)
                assert await refused(world.link(attr.ino, new)) == "ENOENT"  # only the first name comes from nothing
            await world.release(attr.ino)
            await world.quiet()
            assert not left(world) and not world.files_of_chunks()
    await world.mkdir(b"/d", 0o755)
    assert await refused(world.call(TMPFILE, b"/d/x", 0, 0o600, CHUNK, uid=7, gid=7)) == "EACCES"
    assert await refused(world.call(TMPFILE, b"/none/x", 0, 0o600, CHUNK)) == "ENOENT"


class Patient(World):
    settings: ClassVar[dict] = {"MADFS_GRACE_MS": "60000", "MADFS_LINGER_MS": "60000"}


def patiently(test):
    """As run, with servers that wait for openings until the test lets them."""
    def wrapper(tmp_path):
        async def main():
            world = Patient(tmp_path)
            try:
                await asyncio.wait_for(test(world), 20)
            finally:
                await world.stop()
        asyncio.run(main())
    wrapper.__name__ = test.__name__
    return wrapper


async def restart(world):
    for number in range(3):
        world.crash(number)
        world.start(number)
    await world.quiet()


@patiently
async def test_a_restarted_server_waits_for_openings(world):
    path = world.path_on(0)
    attr = await world.create(path, keep=True)
    await world.write(attr, path, 0, b"x" * CHUNK * 3)
    await world.unlink(path)
    named = await world.create(path)
    await world.write(named, path, 0, b"y" * CHUNK * 3)
    await restart(world)
    await world.unlink(path)  # nobody is known to have it open, but somebody may
    assert await world.read(attr.ino, 0, 3) == b"xxx" and await world.read(named.ino, 0, 3) == b"yyy"
    assert (await world.getattr(attr.ino)).nlink == (await world.getattr(named.ino)).nlink == 0
    await world.ask(0, HELD, attr.ino.to_bytes(8, "little"))
    world.servers[0]._waited()
    await world.quiet()
    assert await refused(world.getattr(named.ino)) == "ENOENT"
    assert await world.read(attr.ino, 0, 3) == b"xxx"
    await world.release(attr.ino)
    await world.quiet()
    assert not left(world) and not world.files_of_chunks()
    again = await world.create(path)
    await world.unlink(path)  # the time is over: gone at once
    assert await refused(world.getattr(again.ino)) == "ENOENT"


@patiently
async def test_a_server_that_ended_idle_does_not_wait(world):
    path = world.path_on(0)
    await world.create(path)
    for number in range(3):
        kv = world.kvs[number]
        await world.servers[number].stop()
        assert kv.items[b"Midle"] == b""
        world.start(number)
    assert not any(server.unsure for server in world.servers)
    await restart(world)  # a crash after it
    assert all(server.unsure for server in world.servers)


@patiently
async def test_a_lost_client_is_waited_for(world):
    """Its connection may have broken, or a child of it has the file, too."""
    path = world.path_on(0)
    attr = await world.create(path, keep=True, conn=5)
    await world.unlink(path)
    server = world.servers[0]
    server.forget(5)
    assert (await world.getattr(attr.ino)).nlink == 0
    await world.ask(0, HELD, attr.ino.to_bytes(8, "little"), conn=6)
    assert server.openings.total == {attr.ino: 1}
    await world.release(attr.ino, conn=6)
    await world.quiet()
    assert not left(world)


@patiently
async def test_openings_are_kept_for_who_inherits_them(world):
    path = world.path_on(0)
    attr = await world.create(path, keep=True, conn=5)
    await world.ask(0, KEEP, attr.ino.to_bytes(8, "little"), conn=5)
    server = world.servers[0]
    server.forget(5)
    await world.unlink(path)
    assert (await world.getattr(attr.ino)).nlink == 0
    await world.ask(0, HELD, attr.ino.to_bytes(8, "little"), conn=6)
    server.forget(6)
    assert server.openings.total == {attr.ino: 1}  # kept once more: the client was lost
    server._kept(attr.ino)
    await world.quiet()
    assert not left(world)
    other = await world.create(path, keep=True, conn=7)
    await world.ask(0, KEEP, other.ino.to_bytes(8, "little"), conn=7)
    server.forget(7)
    await world.release(other.ino, conn=8)  # closed by one who inherited it and never used it
    assert not server.openings.total
