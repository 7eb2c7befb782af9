# SPDX-License-Identifier: Apache-2.0
"""Names over several servers: making, finding, removing, permissions."""
import asyncio
import errno
import os

import pytest
from server_world import code, run

from pymadfs.errors import Restart
from pymadfs.ops import DIRINFO, LOOKUP, OPEN, SET_MODE, SET_MTIME, SETATTR


@run
async def test_create_lookup_unlink(world):
    for index in range(12):
        path = b"/file%d" % index
        attr = await world.create(path)
        assert (await world.stat(path)).ino == attr.ino
    assert len(await world.names(b"/")) == 12
    with pytest.raises(OSError) as error:
        await world.create(b"/file1", os.O_CREAT | os.O_EXCL)
    assert code(error) == "EEXIST"
    for index in range(12):
        await world.unlink(b"/file%d" % index)
    assert await world.names(b"/") == []
    assert not world.keys(b"I") and not world.keys(b"P")


@run
async def test_what_is_missing_and_why(world):
    await world.mkdir(b"/d")
    await world.create(b"/d/file")
    await world.symlink(b"d", b"/link")
    for index in range(9):  # names on all servers
        for path, expected in ((b"/d/x%d", "ENOENT"), (b"/none/x%d", "ENOENT"), (b"/none/a/b/x%d", "ENOENT"),
                               (b"/d/file/x%d", "ENOTDIR"), (b"/d/file/a/x%d", "ENOTDIR")):
            with pytest.raises(OSError) as error:
                await world.stat(path % index)
            assert code(error) == expected, path
            with pytest.raises(OSError) as error:
                await world.create(path % index, os.O_RDWR | (0 if path.startswith(b"/d/x") else os.O_CREAT))
            assert code(error) == expected, path
        with pytest.raises(Restart) as link:
            await world.stat(b"/link/a/x%d" % index)
        assert link.value.args == (5, b"d")
    _, target = await world.call(LOOKUP, b"/link")
    assert target == b"d"


@run
async def test_steady_state_asks_one_server_only(world):
    await world.mkdir(b"/d")
    for index in range(9):
        await world.create(b"/d/a%d" % index)
    world.log.clear()
    for index in range(9):
        await world.create(b"/d/b%d" % index, keep=True)
        await world.stat(b"/d/b%d" % index)
        with pytest.raises(OSError):
            await world.stat(b"/d/none%d" % index)
    asked = [op.name for _, op in world.log if op.name != "touch"]
    assert asked == ["open", "lookup", "lookup"] * 9


@run
async def test_mkdir_rmdir_and_link_counts(world):
    await world.mkdir(b"/d")
    for index in range(6):
        await world.mkdir(b"/d/s%d" % index)
    assert (await world.stat(b"/d")).nlink == 8
    with pytest.raises(OSError) as error:
        await world.rmdir(b"/d")
    assert code(error) == "ENOTEMPTY"
    with pytest.raises(OSError) as error:
        await world.mkdir(b"/d/s1")
    assert code(error) == "EEXIST"
    for index in range(6):
        await world.rmdir(b"/d/s%d" % index)
    assert (await world.stat(b"/d")).nlink == 2
    await world.rmdir(b"/d")
    for index in range(6):
        with pytest.raises(OSError) as error:
            await world.create(b"/d/f%d" % index)
        assert code(error) == "ENOENT"
    await world.create(b"/f")
    for name, call in (("ENOTDIR", world.rmdir(b"/f")), ("EBUSY", world.rmdir(b"/"))):
        with pytest.raises(OSError) as error:
            await call
        assert code(error) == name
    await world.mkdir(b"/e")
    with pytest.raises(OSError) as error:
        await world.unlink(b"/e")
    assert code(error) == "EISDIR"


async def after(turns, call):
    for _ in range(turns):
        await asyncio.sleep(0)
    return await call


@run
async def test_rmdir_and_create_never_both_succeed(world):
    outcomes = set()
    for turn in range(40):
        directory = b"/d%d" % turn
        await world.mkdir(directory)
        for index in range(3):  # parents known everywhere
            path = world.path_on(index, directory)
            await world.create(path)
            await world.unlink(path)
        makers = [world.create(world.path_on(index, directory, b"n")) if turn % 2 else
                  world.mkdir(world.path_on(index, directory, b"n")) for index in range(3)]
        results = await asyncio.gather(after(turn // 2, world.rmdir(directory)),
                                       *(after(turn % 7 * index, make) for index, make in enumerate(makers, 1)),
                                       return_exceptions=True)
        removed = results.pop(0) is None
        made = [result for result in results if not isinstance(result, OSError)]
        assert len(results) == 3
        assert removed != bool(made), (turn, results)
        outcomes.add(removed)
        assert all(result.errno == errno.ENOENT for result in results if isinstance(result, OSError))
        assert len(await world.names(directory)) == len(made)
    assert outcomes == {True, False}


@run
async def test_permissions_follow_a_chmod_at_once(world):
    await world.mkdir(b"/d", mode=0o777)
    paths = [world.path_on(index, b"/d") for index in range(3)]
    for path in paths:
        await world.create(path, uid=1000, gid=1000)
    await world.setattr(b"/d", SET_MODE, mode=0o700)
    for path in paths:
        with pytest.raises(OSError) as error:
            await world.stat(path, uid=1000, gid=1000)
        assert code(error) == "EACCES"
        with pytest.raises(OSError) as error:
            await world.create(path + b"x", uid=1000, gid=1000)
        assert code(error) == "EACCES"
        await world.stat(path)
    await world.setattr(b"/d", SET_MODE, mode=0o755)
    for path in paths:
        await world.stat(path, uid=1000, gid=1000)
        with pytest.raises(OSError) as error:
            await world.unlink(path, uid=1000, gid=1000)
        assert code(error) == "EACCES"


@run
async def test_chmod_racing_with_creates_is_all_or_nothing(world):
    """Once chmod has returned, no server creates by the old mode; and answers that it overtook are not kept."""
    for turn in range(20):
        directory = b"/d%d" % turn
        await world.mkdir(directory, mode=0o777)
        names = [world.path_on(index, directory) for index in range(3)]
        creates = [asyncio.ensure_future(world.create(path, uid=7, gid=7)) for path in names]
        for _ in range(turn % 5):
            await asyncio.sleep(0)
        await world.setattr(directory, SET_MODE, mode=0o755)
        for path in names:
            with pytest.raises(OSError) as error:
                await world.create(path + b"later", uid=7, gid=7)
            assert code(error) == "EACCES"
        await asyncio.gather(*creates, return_exceptions=True)


@run
async def test_a_restarted_owner_reaches_holders_it_does_not_remember(world):
    await world.mkdir(b"/d", mode=0o777)
    paths = [world.path_on(index, b"/d") for index in range(3)]
    for path in paths:
        await world.create(path, uid=5, gid=5)
    number = world.owner(b"/d")
    world.crash(number)
    world.start(number)
    await world.setattr(b"/d", SET_MODE, mode=0o755)
    for path in paths:
        with pytest.raises(OSError) as error:
            await world.create(path + b"x", uid=5, gid=5)
        assert code(error) == "EACCES"


@run
async def test_what_a_lost_server_told_is_asked_again(world):
    await world.mkdir(b"/d")
    number = world.owner(b"/d")
    path = world.path_on((number + 1) % 3, b"/d")
    await world.create(path)
    await world.unlink(path)
    for lost in (False, True):
        if lost:
            world.servers[(number + 1) % 3].rpc.lost(number)
        world.log.clear()
        await world.create(path)
        await world.unlink(path)
        assert ((number, DIRINFO) in world.log) is lost


@run
async def test_sticky_directories(world):
    await world.create(b"/mine", uid=5, gid=5)  # the root is sticky
    with pytest.raises(OSError) as error:
        await world.unlink(b"/mine", uid=6, gid=6)
    assert code(error) == "EPERM"
    for index in range(3):  # also when the inode lives elsewhere
        new = world.path_on(index, stem=b"moved")
        await world.rename(b"/mine", new, uid=5, gid=5)
        with pytest.raises(OSError) as error:
            await world.unlink(new, uid=6, gid=6)
        assert code(error) == "EPERM"
        with pytest.raises(OSError) as error:
            await world.rename(new, b"/theirs", uid=6, gid=6)
        assert code(error) == "EPERM"
        await world.rename(new, b"/mine", uid=5, gid=5)
    await world.unlink(b"/mine", uid=5, gid=5)


@run
async def test_times_of_directories(world):
    await world.mkdir(b"/d")
    for index in range(3):
        path = world.path_on(index, b"/d")
        for change in (world.create(path), world.unlink(path)):
            await world.setattr(b"/d", SET_MTIME, mtime=1)
            await change
            assert (await world.stat(b"/d")).mtime_ns != 1


@run
async def test_time_that_is_set_stays_although_earlier_changes_are_told_later(world):
    await world.mkdir(b"/d")
    for index in range(3):
        path = world.path_on(index, b"/d")
        for change in (world.create, world.unlink):
            await change(path)
            before = await world.setattr(b"/d", SET_MTIME, mtime=1)
            while world.servers[world.owner(path)].directories_touched():
                await asyncio.sleep(0)
            after = await world.stat(b"/d")
            assert (before.mtime_ns, after.mtime_ns) == (1, 1) and after.ctime_ns >= before.ctime_ns


@run
async def test_pages_of_a_directory(world):
    await world.mkdir(b"/d")
    names = sorted(b"a-rather-long-name-of-a-file-%04d" % index for index in range(400))
    for name in names:
        await world.create(b"/d/" + name)
    assert await world.names(b"/d") == names


@run
async def test_a_batch_that_cannot_be_written_fails_as_a_whole(world):
    number = world.owner(b"/full")
    await world.create(world.path_on(number, stem=b"before"))
    world.kvs[number].error = OSError(errno.ENOSPC, "full")
    for _ in range(2):
        with pytest.raises(OSError) as error:
            await world.create(b"/full")
        assert code(error) == "ENOSPC"
    world.kvs[number].error = None
    with pytest.raises(OSError) as error:
        await world.stat(b"/full")
    assert code(error) == "ENOENT"
    first = await world.create(b"/full")
    world.crash(number)
    world.start(number)
    assert (await world.stat(b"/full")).ino == first.ino
    assert (await world.create(world.path_on(number, stem=b"after"))).ino > first.ino


@run
async def test_names_that_may_not_be(world):
    for path, expected in ((b"/" + b"x" * 256, "ENAMETOOLONG"), (b"relative", "EINVAL"),
                           (b"/a\0b", "EINVAL"), (b"/.", "EINVAL"),
                           (b"/..", "EINVAL"), (b"//", "EINVAL"), (b"/" + b"x/" * 4100, "ENAMETOOLONG")):
        with pytest.raises(OSError) as error:
            await world.create(path)
        assert code(error) == expected, path
    wrong = next(number for number in range(3) if number != world.owner(b"/here"))
    with pytest.raises(OSError) as error:
        await world.ask(wrong, OPEN, b"/here", os.O_CREAT, 0o644, 4096, 0)
    assert code(error) == "EPROTO"
    with pytest.raises(OSError):
        await world.call(SETATTR, b"/none", 0, SET_MODE, 0, 0, 0, 0, 0, 0)
