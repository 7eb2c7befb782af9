# SPDX-License-Identifier: Apache-2.0
"""Renames over several servers: replacing, racing, and with a crash at every message."""
import asyncio
import errno
import os

import pytest
from server_world import CHUNK, World, code, run

from pymadfs.ops import DIRINFO, INSTALL, REOPEN

NOREPLACE = 1


@run
async def test_to_every_server_and_back(world):
    for source in range(3):
        for target in range(3):
            old, new = world.path_on(source, stem=b"old"), world.path_on(target, stem=b"new")
            attr = await world.create(old, keep=True)
            await world.write(attr, old, 0, b"x" * (CHUNK * 4))
            await world.rename(old, new)
            with pytest.raises(OSError):
                await world.stat(old)
            found = await world.stat(new)
            assert (found.ino, found.size, found.nlink) == (attr.ino, CHUNK * 4, 1)
            await world.write(attr, old, CHUNK * 4, b"more")  # the opening goes on
            assert (await world.stat(new)).size == CHUNK * 4 + 4
            third = world.path_on((target + 1) % 3, stem=b"third")
            await world.rename(new, third)
            await world.rename(third, old)
            assert (await world.stat(old)).ino == attr.ino
            await world.release(attr.ino)
            await world.unlink(old)
    await world.quiet()
    assert not world.files_of_chunks() and not any(world.keys(prefix) for prefix in (b"I", b"P", b"R", b"C"))


@run
async def test_replacing(world):
    for source in range(3):
        for target in range(3):
            old, new = world.path_on(source, stem=b"old"), world.path_on(target, stem=b"new")
            attr = await world.create(old)
            replaced = await world.create(new, keep=True)
            await world.write(replaced, new, 0, b"x" * (CHUNK * 4))
            with pytest.raises(OSError) as error:
                await world.rename(old, new, NOREPLACE)
            assert code(error) == "EEXIST"
            await world.rename(old, new)
            assert (await world.stat(new)).ino == attr.ino
            assert await world.read(replaced.ino, 0, 1) == b"x"
            await world.release(replaced.ino)
            await world.unlink(new)
    await world.quiet()
    assert not world.files_of_chunks() and not any(world.keys(prefix) for prefix in (b"I", b"P", b"R", b"C"))


@run
async def test_refusals(world):
    await world.mkdir(b"/d")
    await world.create(b"/file")
    for index in range(3):
        new = world.path_on(index)
        cases = ((b"/none", new, 0, "ENOENT"), (b"/file", b"/d", 0, "EISDIR"), (b"/d", new, 0, "EXDEV"),
                 (b"/file", b"/none" + new, 0, "ENOENT"), (b"/file", b"/file" + new, 0, "ENOTDIR"),
                 (b"/file", new, 2, "EINVAL"), (b"/file", b"/file", NOREPLACE, "EEXIST"))
        for old, path, flags, expected in cases:
            with pytest.raises(OSError) as error:
                await world.rename(old, path, flags)
            assert code(error) == expected, (old, path)
    await world.rename(b"/file", b"/file")
    assert (await world.stat(b"/file")).nlink == 1
    assert not world.keys(b"R")


@run
async def test_symbolic_links_move_with_their_target(world):
    for index in range(3):
        new = world.path_on(index)
        await world.symlink(b"/somewhere", b"/link")
        await world.rename(b"/link", new)
        attr = await world.stat(new)
        assert attr.mode & 0o170000 == 0o120000
        await world.rename(new, b"/link")
        await world.unlink(b"/link")


@run
async def test_opening_a_renamed_file_at_its_home(world):
    old, new = world.path_on(0), world.path_on(1)
    attr = await world.create(old)
    await world.write(attr, old, 0, b"x" * (CHUNK * 3))
    await world.rename(old, new)
    pointer = await world.create(new, os.O_RDWR | os.O_TRUNC, keep=True)
    assert pointer.flags & 1 and pointer.ino == attr.ino
    reply, _ = await world.ask(0, REOPEN, new, attr.ino, os.O_RDWR | os.O_TRUNC)
    assert (await world.stat(new)).size == 0
    await world.unlink(new)
    assert (await world.getattr(attr.ino)).nlink == 0
    await world.release(attr.ino)
    await world.quiet()
    assert not world.keys(b"I")


@run
async def test_opposite_renames_do_not_wait_for_each_other(world):
    for turn in range(10):
        a, b, c = (world.path_on(index, stem=b"n%d-" % turn) for index in range(3))
        for path in (a, b, c):
            await world.create(path)
        moves = (a, b), (b, a), (b, c), (c, a), (a, c)
        results = await asyncio.gather(*(world.rename(old, new) for old, new in moves), return_exceptions=True)
        assert all(result is None or result.errno == errno.ENOENT for result in results), results
        inodes = [await world.stat(b"/" + name) for name in await world.names(b"/") if name.startswith(b"n%d-" % turn)]
        assert len({attr.ino for attr in inodes}) == len(inodes) >= 1
    assert not world.keys(b"R")


STEPS = [(op, when) for op in (INSTALL, DIRINFO) for when in ("before", "after")]


@pytest.mark.parametrize("op, when", STEPS, ids=lambda step: getattr(step, "name", step))
@pytest.mark.parametrize("side", ["coordinator", "other"])
def test_a_crash_at_any_message_is_completed_or_undone(tmp_path, op, when, side):
    async def main():
        world = World(tmp_path)
        directory = world.path_on(2, stem=b"d")
        old, new = world.path_on(0, stem=b"old"), world.path_on(1, directory, stem=b"new")
        await world.mkdir(directory)
        attr = await world.create(old)
        replaced = await world.create(new)
        await world.write(replaced, new, 0, b"x" * (CHUNK * 4))
        asking = 1 if op is DIRINFO else 0
        world.trap = (asking, op, when, 0 if side == "coordinator" else 1)
        for server in world.servers:
            server.dirs.forget_all()  # so that DIRINFO is asked
        try:
            await world.rename(old, new)
        except OSError as error:
            assert error.errno == errno.EIO
        assert world.trapped.is_set()
        for number in range(3):
            if world.servers[number] is None:
                world.start(number)
        await world.quiet()
        await check(world, old, new, attr, replaced)
        for number in range(3):  # a second restart changes nothing
            world.crash(number)
            world.start(number)
        await world.quiet()
        await check(world, old, new, attr, replaced)
        await world.stop()

    async def check(world, old, new, attr, replaced):
        names = {name: (await world.stat(path)).ino for name, path in ((b"old", old), (b"new", new))
                 if path.rsplit(b"/", 1)[1] in await world.names(path.rsplit(b"/", 1)[0] or b"/")}
        assert names in ({b"new": attr.ino}, {b"old": attr.ino, b"new": replaced.ino}), names
        assert not world.keys(b"R") and not world.keys(b"P")
        assert bool(world.files_of_chunks()) == (len(names) == 2)

    asyncio.run(asyncio.wait_for(main(), 20))


@run
async def test_a_repeated_half_does_not_bring_a_removed_name_back(world):
    """The coordinator dies after INSTALL; the new name is removed before it is back and asks for INSTALL again."""
    old, new = world.path_on(0), world.path_on(1)
    attr = await world.create(old)
    world.trap = (0, INSTALL, "after", 0)
    with pytest.raises(OSError):
        await world.rename(old, new)
    await world.unlink(new)
    world.start(0)
    await world.quiet()
    assert await world.names(b"/") == []
    with pytest.raises(OSError):
        await world.getattr(attr.ino)
    assert not world.keys(b"R") and not world.keys(b"P") and not world.keys(b"I")
    await world.create(old)
    await world.rename(old, new)
    assert len(world.keys(b"X" + bytes(4))) == 1  # the record of the first was forgotten with the second


@run
async def test_a_name_whose_rename_is_stuck_answers_at_once(world):
    old, new = world.path_on(0), world.path_on(1)
    attr = await world.create(old)
    world.crash(1)
    for call in (world.rename(old, new), world.stat(old), world.unlink(old), world.rename(old, b"/x")):
        with pytest.raises(OSError) as error:
            await call
        assert code(error) == "EIO"
    world.start(1)
    await world.quiet()
    assert (await world.stat(new)).ino == attr.ino
    assert await world.names(b"/") == [new[1:]]
