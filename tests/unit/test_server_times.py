# SPDX-License-Identifier: Apache-2.0
"""Times of a directory whose entries change on other servers: never old, whoever dies, and free when nobody looks."""
import asyncio
import os

import pytest
from server_world import World, run

from pymadfs import ops
from pymadfs.ops import SET_MTIME
from pymadfs.server import times
from pymadfs.server.meta import now_ns as clock


def directory(world):
    """A directory, its owner, and the other two servers."""
    path = b"/d"
    mine = world.owner(path)
    return path, mine, [number for number in range(3) if number != mine]


def asked(world):
    names = [op.name for _, op in world.log]
    world.log.clear()
    return names


@run
async def test_each_change_elsewhere_is_seen_at_once(world):
    path, _, others = directory(world)
    await world.mkdir(path)
    for number in others:
        name, other = world.path_on(number, path), world.path_on(number, path, b"g")
        for change, *arguments in ((world.create, name), (world.rename, name, other), (world.unlink, other),
                                   (world.symlink, b"to", name), (world.unlink, name), (world.mkdir, name),
                                   (world.rmdir, name)):
            await world.setattr(path, SET_MTIME, mtime=1)
            began = clock()
            await change(*arguments)
            first = await world.stat(path)
            assert began <= first.mtime_ns == first.ctime_ns <= clock()
            assert (await world.getattr(first.ino, path)).mtime_ns == first.mtime_ns, "it is stored"


@run
async def test_renames_between_servers_are_seen_at_once(world):
    path, _, others = directory(world)
    await world.mkdir(path)
    await world.mkdir(b"/to")
    for number in range(3):
        for target in range(3):
            old, new = world.path_on(number, path), world.path_on(target, b"/to")
            await world.create(old)
            await world.setattr(path, SET_MTIME, mtime=1)
            await world.setattr(b"/to", SET_MTIME, mtime=1)
            began = clock()
            await world.rename(old, new)
            assert (await world.stat(path)).mtime_ns >= began
            assert (await world.stat(b"/to")).mtime_ns >= began
            await world.unlink(new)


@run
async def test_a_time_that_was_set_stays(world):
    path, _, others = directory(world)
    await world.mkdir(path)
    for number in others:
        await world.create(world.path_on(number, path))
    await world.setattr(path, SET_MTIME, mtime=5)
    for _ in range(3):
        assert (await world.stat(path)).mtime_ns == 5


@run
async def test_changes_that_nobody_looks_at_cost_nothing(world):
    path, _, others = directory(world)
    await world.mkdir(path)
    names = [world.path_on(others[0], path, skip=skip) for skip in range(4)]
    await world.create(names[0])
    asked(world)
    for name in names[1:]:
        await world.create(name)
    assert asked(world) == ["open", "release"] * 3
    await world.stat(path)
    assert asked(world) == ["lookup", "times"]
    await world.stat(path)
    assert asked(world) == ["lookup"]
    await world.unlink(names[0])
    assert asked(world) == ["unlink", "dirinfo"]
    await world.mkdir(path + b"/%s" % os.path.basename(world.path_on(others[0], path, b"sub")))
    assert "times" not in asked(world), "a directory's count is told anyway"


@run
async def test_looking_while_entries_come_and_go(world):
    path, _, others = directory(world)
    await world.mkdir(path)
    seen = [0]

    async def look():
        for _ in range(30):
            seen.append((await world.stat(path)).mtime_ns)

    async def change(number):
        for _ in range(30):
            name = world.path_on(number, path)
            await world.create(name)
            began = clock()
            await world.unlink(name)
            assert (await world.stat(path)).mtime_ns >= began

    await asyncio.gather(look(), look(), *map(change, range(3)))
    assert seen == sorted(seen) and seen[-1]


@run
async def test_the_owner_starts_again(world):
    path, mine, others = directory(world)
    await world.mkdir(path)
    await world.create(world.path_on(others[0], path))
    await world.setattr(path, SET_MTIME, mtime=1)
    began = clock()
    await world.create(world.path_on(others[0], path, b"g"))
    world.crash(mine)
    world.start(mine)
    assert (await world.stat(path)).mtime_ns >= began
    await world.setattr(path, SET_MTIME, mtime=1)
    began = clock()
    await world.unlink(world.path_on(others[0], path))
    assert (await world.stat(path)).mtime_ns >= began


@pytest.mark.parametrize("again", [False, True])
def test_who_changed_it_dies(tmp_path, again):
    async def test(world):
        path, _, others = directory(world)
        await world.mkdir(path)
        await world.setattr(path, SET_MTIME, mtime=1)
        began = clock()
        await world.create(world.path_on(others[0], path))
        world.crash(others[0])
        if again:
            world.start(others[0])
            await world.create(world.path_on(others[0], path, b"g"))
        assert (await world.stat(path)).mtime_ns >= began
    run(test)(tmp_path)


@run
async def test_a_directory_that_is_renamed_takes_its_times_along(world):
    path, _, others = directory(world)
    await world.mkdir(path)
    await world.mkdir(path + b"/sub")
    began = {}
    for number in range(3):
        for each in (path, path + b"/sub"):
            await world.setattr(each, SET_MTIME, mtime=1)
            began[each] = clock()
            await world.create(world.path_on(number, each))
    await world.rename_tree(path, b"/moved")
    assert (await world.stat(b"/moved")).mtime_ns >= began[path]
    assert (await world.stat(b"/moved/sub")).mtime_ns >= began[path + b"/sub"]
    await world.setattr(b"/moved/sub", SET_MTIME, mtime=1)
    await world.create(world.path_on(others[0], b"/moved/sub", b"g"))
    assert (await world.stat(b"/moved/sub")).mtime_ns > 1


@run
async def test_a_directory_of_the_same_name_is_another_one(world):
    path, _, others = directory(world)
    for _ in range(3):
        await world.mkdir(path)
        name = world.path_on(others[0], path)
        await world.create(name)
        began = clock()
        await world.unlink(name)
        assert (await world.stat(path)).mtime_ns >= began
        await world.create(name)
        await world.unlink(name)
        await world.rmdir(path)


def test_what_nobody_looked_at_is_stored_in_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(times, "HAND_OVER_S", 0.001)

    async def test(world):
        path, mine, others = directory(world)
        await world.mkdir(path)
        await world.setattr(path, SET_MTIME, mtime=1)
        told = asyncio.Event()
        world.watch = lambda _, __, op, when: told.set() if (op, when) == (ops.TOUCH, "after") else None
        began = clock()
        await world.create(world.path_on(others[0], path))
        await asyncio.wait_for(told.wait(), 10)
        world.watch = None
        world.servers[mine].commit(lazily=True)
        world.crash(others[0])
        world.crash(mine)
        world.start(mine)
        assert began <= (await world.stat(path)).mtime_ns

    run(test)(tmp_path)


@pytest.mark.parametrize("goes_on", [False, True])
def test_a_server_that_ends_after_the_owner_keeps_the_times_for_it(tmp_path, goes_on):
    """All servers of a set end at once: who has something for another may find it gone.  Or it is only this one that is
    started again."""
    async def main():
        world = World(tmp_path)
        path, mine, others = directory(world)
        await world.mkdir(path)
        await world.setattr(path, SET_MTIME, mtime=1)
        began = clock()
        await world.create(world.path_on(others[0], path))
        for number in (mine, *others):
            world.servers[number].commit(lazily=True)
            await world.servers[number].stop()
            world.servers[number] = None
        if goes_on:
            world.start(mine)
            await world.quiet()
        for number in others:
            world.start(number)
        if not goes_on:
            world.start(mine)
        await world.quiet()
        assert began <= (await world.stat(path)).mtime_ns
        assert all(kv.get(times.KEPT) is None for kv in world.kvs)
        await world.stop()

    asyncio.run(main())


def test_a_server_that_ends_leaves_its_times_with_the_owner(tmp_path):
    async def main():
        world = World(tmp_path)
        path, mine, others = directory(world)
        await world.mkdir(path)
        await world.setattr(path, SET_MTIME, mtime=1)
        began = clock()
        await world.create(world.path_on(others[0], path))
        for number in (*others, mine):
            if number == mine:
                world.servers[number].commit(lazily=True)  # as RocksKV does when it is closed
            await world.servers[number].stop()
            world.servers[number] = None
        world.start(mine)
        assert began <= (await world.stat(path)).mtime_ns
        await world.stop()

    asyncio.run(main())
