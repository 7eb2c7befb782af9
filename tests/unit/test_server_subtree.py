# SPDX-License-Identifier: Apache-2.0
"""Renames and exchanges of directories over several servers: what Linux says, races, and a crash at every message."""
import asyncio
import errno
import itertools
import os
import stat

import pytest
from server_world import CHUNK, World, code, run

from pymadfs.ops import INSTALL, OPEN, READDIR, REMOVEXATTR, SET_MODE, SETATTR, SETXATTR, TREE, WHERE
from pymadfs.server import frozen, relocate, tickets
from pymadfs.server.kv import MemoryKV

NOREPLACE, EXCHANGE = 1, 2


async def walk(world, top=b"/"):
    """Path -> ino of everything below ``top``; names are looked up, links and inodes are checked on the way."""
    found = {}
    subdirectories = 0
    for name in await world.names(top):
        path = top.rstrip(b"/") + b"/" + name
        attr = await world.stat(path)
        found[path] = attr.ino
        if stat.S_ISDIR(attr.mode):
            subdirectories += 1
            found.update(await walk(world, path))
        else:
            assert attr.nlink == 1, path
    assert (await world.stat(top)).nlink == 2 + subdirectories, top
    return found


def moved(tree, old, new, exchange=False):
    """The tree of ``walk`` after a rename."""
    result = {}
    for path, ino in tree.items():
        for source, target in ((old, new), (new, old))[:2 if exchange else 1]:
            if path == source or path.startswith(source + b"/"):
                path = target + path[len(source):]
                break
        else:
            if path == new:
                continue  # replaced
        result[path] = ino
    return result


async def plant(world, top, depth=2, files=4):
    """A small tree with files that have data, links, and names that were renamed before."""
    await world.mkdir(top)
    for index in range(files):
        path = top + b"/file%d" % index
        attr = await world.create(path)
        await world.write(attr, path, 0, b"data of %d" % attr.ino)
    await world.rename(top + b"/file0", top + b"/renamed")
    await world.symlink(b"file1", top + b"/link")
    if depth:
        for name in (b"/d", b"/d-", b"/e"):
            await plant(world, top + name, depth - 1, files)


async def check_data(world, tree):
    for path, ino in tree.items():
        attr = await world.stat(path)
        if stat.S_ISREG(attr.mode):
            assert await world.read(ino, 0, attr.size) == b"data of %d" % ino, path


def clean(world):
    """Nothing of a rename is left."""
    assert not world.keys(b"T") and not world.keys(b"SE")
    assert all(not server.freezes for server in world.servers)


@run
async def test_a_tree_moves_whole(world):
    await plant(world, b"/a")
    await world.mkdir(b"/into")
    tree = await walk(world)
    for old, new in ((b"/a", b"/into/b"), (b"/into/b", b"/into/c"), (b"/into/c/d", b"/d"), (b"/d", b"/into/c/d"),
                     (b"/into/c", b"/a"), (b"/a", b"/into")):
        before = await world.stat(old)
        await world.rename_tree(old, new)
        tree = moved(tree, old, new)
        assert await walk(world) == tree, (old, new)
        await check_data(world, tree)
        after = await world.stat(new)
        assert (after.mode, after.mtime_ns, after.nlink) == (before.mode, before.mtime_ns, before.nlink)
        assert after.ctime_ns >= before.ctime_ns
    clean(world)


@run
async def test_exchange_of_all_kinds(world):
    await plant(world, b"/a")
    await plant(world, b"/b", depth=1)
    await world.mkdir(b"/c")
    await world.symlink(b"nowhere", b"/c/link")
    for index in range(3):
        path = world.path_on(index, b"/c", stem=b"f")
        await world.write(await world.create(path), path, 0, b"data of %d" % (await world.stat(path)).ino)
    tree = await walk(world)
    names = [b"/a", b"/b", b"/c/link", b"/a/d", b"/c", b"/b/d"] + [path for path in tree if path.startswith(b"/c/f")]
    for old, new in itertools.permutations(names, 2):
        if old.startswith(new + b"/") or new.startswith(old + b"/") or old not in tree or new not in tree:
            continue
        await world.rename_tree(old, new, EXCHANGE)
        tree = moved(tree, old, new, True)
        assert await walk(world) == tree, (old, new)
    await check_data(world, tree)
    clean(world)


@run
async def test_a_step_that_is_asked_for_twice(world):
    """A coordinator that lost its connection asks again, while what it asked for is under way and slow."""
    await plant(world, b"/a", depth=1)
    await plant(world, b"/b", depth=1)
    tree = await walk(world)
    step, send, late = relocate.STEPS[relocate.MOVE], relocate._send, []

    async def twice(*arguments):
        late.append(asyncio.ensure_future(step(*arguments)))
        return await step(*arguments)

    async def slowly(*arguments):
        if asyncio.current_task() in late:
            await asyncio.sleep(0.05)
        await send(*arguments)

    relocate.STEPS[relocate.MOVE], relocate._send = twice, slowly
    try:
        await world.rename_tree(b"/a", b"/b", EXCHANGE)
        await asyncio.gather(*late)
    finally:
        relocate.STEPS[relocate.MOVE], relocate._send = step, send
    assert late and await walk(world) == moved(tree, b"/a", b"/b", True)
    clean(world)


@run
async def test_refusals(world):
    await plant(world, b"/a", depth=1)
    await world.mkdir(b"/full")
    await world.mkdir(b"/full/x")
    await world.mkdir(b"/empty")
    await world.create(b"/file")
    await world.symlink(b"/a", b"/link")
    tree = await walk(world)
    cases = ((b"/none", b"/x", 0, "ENOENT"), (b"/a", b"/none/x", 0, "ENOENT"), (b"/a", b"/file/x", 0, "ENOTDIR"),
             (b"/a", b"/a/b", 0, "EINVAL"), (b"/a", b"/a/d/b", 0, "EINVAL"), (b"/a", b"/a/none/b", 0, "ENOENT"),
             (b"/a/d", b"/a", 0, "ENOTEMPTY"), (b"/a/d", b"/a", EXCHANGE, "EINVAL"),
             (b"/a", b"/a/d", EXCHANGE, "EINVAL"), (b"/a", b"/full", 0, "ENOTEMPTY"),
             (b"/a", b"/file", 0, "ENOTDIR"), (b"/a", b"/link", 0, "ENOTDIR"),
             (b"/a", b"/empty", NOREPLACE, "EEXIST"), (b"/a", b"/a", NOREPLACE, "EEXIST"),
             (b"/a", b"/none", EXCHANGE, "ENOENT"), (b"/none", b"/a", EXCHANGE, "ENOENT"), (b"/a", b"/x", 4, "EINVAL"),
             (b"/a", b"/x", 3, "EINVAL"), (b"/", b"/x", 0, "EBUSY"), (b"/a", b"/" + b"n" * 256, 0, "ENAMETOOLONG"))
    for old, new, flags, expected in cases:
        with pytest.raises(OSError) as error:
            await world.rename_tree(old, new, flags)
        assert code(error) == expected, (old, new, flags)
        assert await walk(world) == tree
    await world.rename_tree(b"/a", b"/a")
    await world.rename_tree(b"/a", b"/a", EXCHANGE)
    with pytest.raises(OSError) as error:
        await world.rename(b"/a/d/file1", b"/a/d")
    assert code(error) == "ENOTEMPTY"
    assert await walk(world) == tree
    await world.rename_tree(b"/a", b"/empty")
    assert await walk(world) == moved(tree, b"/a", b"/empty")
    clean(world)


@run
async def test_permissions(world):
    user, other = {"uid": 7, "gid": 7}, {"uid": 8, "gid": 8}
    await world.mkdir(b"/mine", **user)
    await world.mkdir(b"/mine/d", **user)
    await world.mkdir(b"/closed", 0o755)
    await world.mkdir(b"/open", 0o777)
    for old, new, flags, who, expected in (
            (b"/mine/d", b"/open/d", 0, other, "EACCES"), (b"/mine/d", b"/closed/d", 0, user, "EACCES"),
            (b"/mine", b"/other", 0, other, "EPERM"),  # the root is sticky
            (b"/open", b"/mine", EXCHANGE, user, "EPERM"),
    ):
        with pytest.raises(OSError) as error:
            await world.rename_tree(old, new, flags, **who)
        assert code(error) == expected, (old, new)
    await world.setattr(b"/mine/d", SET_MODE, mode=0o555, **user)
    await world.rename_tree(b"/mine/d", b"/mine/e", **user)
    with pytest.raises(OSError) as error:  # its ".." would change
        await world.rename_tree(b"/mine/e", b"/open/e", **user)
    assert code(error) == "EACCES"
    clean(world)


@run
async def test_openings_and_directories_are_found_after_a_move(world):
    await plant(world, b"/a", depth=1, files=2)
    attr = await world.create(b"/a/d/open", keep=True)
    await world.write(attr, b"/a/d/open", 0, b"x" * CHUNK * 3)
    directory = await world.stat(b"/a/d")
    with pytest.raises(OSError):
        await world.ask(world.owner(b"/a/d"), WHERE, b"", directory.ino)
    await world.rename_tree(b"/a", b"/b")
    await world.write(attr, b"/a/d/open", CHUNK * 3, b"more")
    assert (await world.stat(b"/b/d/open")).size == CHUNK * 3 + 4
    _, path = await world.ask(world.owner(b"/a/d"), WHERE, b"", directory.ino)
    assert path == b"/b/d"
    await world.rename_tree(b"/b", b"/a")
    _, path = await world.ask(world.owner(b"/a/d"), WHERE, b"", directory.ino)
    assert path == b"/a/d"
    for name in await world.names(b"/a/d"):
        await world.unlink(b"/a/d/" + name)
    await world.rename_tree(b"/a/d", b"/gone")
    await world.rmdir(b"/gone")
    await world.quiet()
    with pytest.raises(OSError) as error:
        await world.ask(world.owner(b"/a/d"), WHERE, b"", directory.ino)
    assert code(error) == "ENOENT"


@run
async def test_entries_that_change_by_inode_under_way_keep_the_change(world):
    """chmod and truncate through descriptors are not stopped by a freeze."""
    await plant(world, b"/a", depth=1, files=6)
    tree = {path: ino for path, ino in (await walk(world)).items() if path.startswith(b"/a/")}
    modes = {path: [] for path in tree}  # path -> (when the change began, when it was answered, mode)
    clock = itertools.count()

    async def change(path, ino, mode):
        number, begin = ino >> 44, next(clock)
        await world.ask(number, SETATTR, path, ino, SET_MODE, mode, 0, 0, 0, 0, 0)
        modes[path].append((begin, next(clock), mode))

    changes = []

    def watch(number, server, op, when):
        for mode, (path, ino) in enumerate(tree.items()):
            if len(changes) < 300:
                changes.append(asyncio.ensure_future(change(path, ino, 0o600 + (len(changes) + mode) % 64)))

    world.watch = watch
    await world.rename_tree(b"/a", b"/b")
    world.watch = None
    results = await asyncio.gather(*changes, return_exceptions=True)
    # A directory that has moved is asked for at its new place: its old home says ENOENT.
    assert all(result is None or result.errno == errno.ENOENT for result in results), results
    assert any(modes.values())
    for path, changes in modes.items():
        if changes:
            last = max(begin for begin, _, _ in changes)
            possible = {mode for _, end, mode in changes if end > last}  # no other began after its answer
            assert stat.S_IMODE((await world.stat(b"/b" + path[2:])).mode) in possible, path


@run
async def test_changes_of_directories_by_inode_wait_for_a_long_rename(world):
    """fchmod and fsetxattr of a directory that moves with its entry."""
    path = world.path_on(1, stem=b"d")
    attr = await world.mkdir(path)
    server = world.servers[1]
    name, value = b"user.x", b"v" * 3000
    for outcome in ("thaw", "stick"):
        freeze = frozen.Freeze(77, 0, path, b"/elsewhere")
        server.freezes.add(freeze)
        calls = [asyncio.ensure_future(world.ask(1, op, tail, attr.ino, *fields, payload=payload))
                 for op, tail, fields, payload in (
                     (SETATTR, path, (SET_MODE, 0o700, 0, 0, 0, 0, 0), b""),
                     (SETXATTR, name + path + value, (0, len(name), len(path)), b""),
                     (SETXATTR, name + path, (0, len(name), len(path)), value),
                     (REMOVEXATTR, name + path, (len(name),), b""))]
        for _ in range(3000):
            await asyncio.sleep(0)
        assert not any(call.done() for call in calls)
        getattr(server.freezes, outcome)(freeze)
        results = await asyncio.gather(*calls, return_exceptions=True)
        if outcome == "thaw":
            assert not any(isinstance(result, OSError) for result in results), results
            assert stat.S_IMODE((await world.stat(path)).mode) == 0o700
        else:
            assert [result.errno for result in results] == [errno.EIO] * len(calls)
            server.freezes.thaw(freeze)


async def churn(world, top, turns, seen):
    """Make and remove names below ``top``, as a client does who is told ENOENT once the tree has gone."""
    for turn in range(turns):
        path = top + b"/%d" % turn
        try:
            await world.create(path)
            seen.add(path)
            await world.rename(path, path + b"-")
            seen.discard(path)
            seen.add(path + b"-")
            if turn % 3 == 0:
                await world.unlink(path + b"-")
                seen.discard(path + b"-")
            elif turn % 3 == 1:
                await world.mkdir(top + b"/d%d" % turn)
                seen.add(top + b"/d%d" % turn)
        except OSError as error:
            assert error.errno == errno.ENOENT, error
            return


@run
async def test_operations_below_happen_before_or_after(world):
    for turn in range(6):
        await world.mkdir(b"/a")
        await world.mkdir(b"/a/sub")
        seen = set()
        old, new = b"/a", b"/b%d" % turn
        churners = [asyncio.ensure_future(churn(world, top, 12 * (turn + 1), seen)) for top in (b"/a", b"/a/sub")]
        for _ in range(turn * 25):
            await asyncio.sleep(0)
        await world.rename_tree(old, new)
        await asyncio.gather(*churners)
        found = set(await walk(world, new))
        expected = {new + path[2:] for path in seen} | {new + b"/sub"}
        # Of a file that was renamed when the tree went, either name may be the one that was told.
        assert {path.rstrip(b"-") for path in found} == {path.rstrip(b"-") for path in expected}
        with pytest.raises(OSError):
            await world.stat(b"/a")
        assert await world.names(b"/a") == [] and await world.names(b"/a/sub") == []
    clean(world)


@run
async def test_rmdir_of_the_new_parent_and_rename_never_both_succeed(world):
    for turn in range(30):
        await world.mkdir(b"/a")
        await world.mkdir(b"/p")
        jobs = world.rename_tree(b"/a", b"/p/a"), world.rmdir(b"/p")
        results = await asyncio.gather(*(jobs if turn % 2 else jobs[::-1]), return_exceptions=True)
        renamed, removed = results if turn % 2 else results[::-1]
        assert (renamed is None) != (removed is None), results
        assert (renamed or removed).errno in (errno.ENOENT, errno.ENOTEMPTY)
        if renamed is None:
            await world.rmdir(b"/p/a")
            await world.rmdir(b"/p")
        else:
            await world.rmdir(b"/a")
        assert await walk(world) == {}
    clean(world)


@run
async def test_opposite_renames_of_directories_make_no_cycle(world):
    for _ in range(15):
        await world.mkdir(b"/a")
        await world.mkdir(b"/b")
        results = await asyncio.gather(world.rename_tree(b"/a", b"/b/a"), world.rename_tree(b"/b", b"/a/b"),
                                       return_exceptions=True)
        assert [result for result in results if result is None] == [None], results
        top, inner = (b"/b", b"/b/a") if results[0] is None else (b"/a", b"/a/b")
        assert set(await walk(world)) == {top, inner}
        await world.rmdir(inner)
        await world.rmdir(top)
    clean(world)


@run
async def test_a_file_moves_into_a_tree_that_moves(world):
    for turn in range(20):
        await plant(world, b"/a", depth=0, files=2)
        old, new = world.path_on(turn % 3, stem=b"from"), world.path_on((turn + 1) % 3, b"/a", stem=b"to")
        attr = await world.create(old)
        results = await asyncio.gather(world.rename(old, new), world.rename_tree(b"/a", b"/b"),
                                       world.rename(b"/a/file1", b"/out"), return_exceptions=True)
        assert results[1] is None
        tree = await walk(world)
        assert [path for path, ino in tree.items() if ino == attr.ino] == [old if results[0] else b"/b" + new[2:]]
        assert (b"/out" in tree) != (b"/b/file1" in tree)
        for path in sorted(tree, reverse=True):
            await (world.rmdir(path) if path == b"/b" else world.unlink(path))
    await world.quiet()
    clean(world)
    assert not world.keys(b"R") and not world.keys(b"I")


async def crash_at(path, flags, victim, step):
    """Rename or exchange while message ``step`` between servers kills ``victim``: before it is sent or after its answer
    came.  Returns ``(whether it died, whether the rename happened)``."""
    world = World(path)
    messages = itertools.count()
    dead = []

    def watch(number, server, op, when):
        if next(messages) == step:
            dead.append((number, server, op.name, when))
            world.watch = None
            world.crash(victim)

    await world.mkdir(b"/to")
    await plant(world, b"/a", depth=1, files=2)
    if flags:
        await plant(world, b"/to/b", depth=0, files=3)
    else:
        await world.mkdir(b"/to/b")
    tree = await walk(world)
    await asyncio.sleep(0.003)  # times of directories, told in the background
    world.watch = watch
    try:
        await world.rename_tree(b"/a", b"/to/b", flags)
        done = True
    except OSError as error:
        assert error.errno == errno.EIO
        done = False
    world.watch = None
    if dead:
        world.start(victim)
    await world.quiet()
    after = moved(tree, b"/a", b"/to/b", bool(flags))
    found = await walk(world)
    assert found == after or not done and found == tree, (step, dead, done)
    await check_data(world, found)
    clean(world)
    await world.rename_tree(b"/to", b"/on")  # nothing is in the way of the next
    for number in range(3):
        world.crash(number)
        world.start(number)
    await world.quiet()
    assert await walk(world) == moved(found, b"/to", b"/on")
    await world.stop()
    return bool(dead), found == after


async def ask_again(path, victim, step):
    """A client loses the coordinator or another server at message ``step`` and asks again; -> whether one died."""
    world = World(path)
    messages, died = itertools.count(), []

    def watch(number, server, op, when):
        if next(messages) == step:
            died.append(op.name)
            world.crash(victim)

    await plant(world, b"/a", depth=1, files=2)
    await world.mkdir(b"/to")
    tree = await walk(world)
    world.watch = watch
    for tries in range(3):
        try:
            await world.rename_tree(b"/a", b"/to/b", ticket=99)
            break
        except OSError as error:
            assert error.errno == errno.EIO and tries < 2
        world.watch = None
        world.start(victim)
        await world.quiet()
        if world.owner(b"/") != victim:
            world.servers[world.owner(b"/")].subtrees.jobs.clear()  # else it repeats what it said
    world.watch = None
    if world.servers[victim] is None:
        world.start(victim)
    await world.quiet()
    assert await walk(world) == moved(tree, b"/a", b"/to/b"), (step, died)
    await world.rename_tree(b"/a", b"/to/b", ticket=99)  # and once more
    clean(world)
    await world.stop()
    return bool(died)


@pytest.mark.parametrize("role", ["coordinator", "another"])
def test_who_asks_again_for_a_rename_hears_what_became_of_it(tmp_path, role):
    async def main():
        root = World(tmp_path / "root")
        victim = (root.owner(b"/") + (role == "another")) % 3
        await root.stop()
        for step in range(0, 1000, 6):
            if not await asyncio.wait_for(ask_again(tmp_path / str(step), victim, step), 20):
                assert step > 20
                return

    asyncio.run(main())


def test_the_oldest_tickets_are_forgotten():
    kv = MemoryKV()
    known = tickets.Tickets(kv)
    for ticket in range(tickets.KEPT + 10):
        known.put(ticket * 7, ticket)
    kv.commit()
    for each in (known, tickets.Tickets(kv)):
        assert each.number(9 * 7) is None and each.number(10 * 7) == 10 and each.number(7 * (tickets.KEPT + 9))
    assert len(kv.items) == tickets.KEPT


def crash_everywhere(tmp_path, flags, victim, steps, expected):
    """``crash_at`` for ``steps`` until there are no more messages; ``expected`` outcomes were seen."""
    async def main():
        outcomes = set()
        for step in steps:
            died, happened = await asyncio.wait_for(crash_at(tmp_path / str(step), flags, victim, step), 20)
            if not died:
                break
            outcomes.add(happened)
        assert step > 20 and outcomes >= expected

    asyncio.run(main())


@pytest.mark.parametrize("victim", range(3))
@pytest.mark.parametrize("flags", [0, EXCHANGE])
def test_a_crash_is_completed_or_undone(tmp_path, flags, victim):
    crash_everywhere(tmp_path, flags, victim, itertools.count(victim, 5), {True})


@pytest.mark.long
@pytest.mark.parametrize("victim", range(3))
@pytest.mark.parametrize("flags", [0, EXCHANGE])
def test_a_crash_at_any_message_is_completed_or_undone(tmp_path, flags, victim):
    crash_everywhere(tmp_path, flags, victim, itertools.count(), {False, True})


@run
async def test_names_of_a_rename_that_waits_for_a_dead_server_answer_at_once(world):
    await plant(world, b"/a", depth=1)
    await world.create(b"/other")
    tree = await walk(world)
    root = world.owner(b"/")
    victim = (root + 1) % 3
    world.trap = (root, TREE, "before", -1)
    steps = itertools.count()
    waiting = []

    def watch(number, server, op, when):
        if op is TREE and when == "before" and next(steps) == 4:
            waiting.append(asyncio.ensure_future(world.names(b"/a")))
            world.crash(victim)

    world.trap, world.watch = None, watch
    with pytest.raises(OSError) as error:
        await world.rename_tree(b"/a", b"/b")
    assert code(error) == "EIO"
    alive = next(number for number in range(3) if number != victim)
    for number, op, path, fields in ((alive, READDIR, b"/a", (0, 4096)), (alive, OPEN, b"/b/new", (0, 0, CHUNK, 0)),):
        with pytest.raises(OSError) as error:
            await world.ask(number, op, path, *fields)
        assert code(error) == "EIO"
    with pytest.raises(OSError):
        await waiting[0]
    with pytest.raises(OSError) as error:  # nor does another rename of a directory wait
        await world.rename_tree(b"/b", b"/c")
    assert code(error) == "EIO"
    world.watch = None
    world.start(victim)
    await world.quiet()
    assert await walk(world) in (tree, moved(tree, b"/a", b"/b"))
    clean(world)


@run
async def test_a_renamed_file_costs_one_message_between_servers(world):
    old, new = world.path_on(0, stem=b"old"), world.path_on(1, stem=b"new")
    await world.create(old)
    await world.create(world.path_on(1, stem=b"warm"))
    await asyncio.sleep(0.003)
    asked = []
    world.watch = lambda number, server, op, when: asked.append(op) if when == "before" else None
    await world.rename(old, new)
    assert asked == [INSTALL]


@run
async def test_times_of_what_is_concerned(world):
    await world.mkdir(b"/p")
    await world.mkdir(b"/q")
    await world.mkdir(b"/p/d")
    path = world.path_on(0, b"/p")
    await world.create(path)
    before = {name: await world.stat(name) for name in (b"/p", b"/q", b"/p/d", path)}
    await asyncio.sleep(0.02)  # the clock of inodes is coarse
    await world.rename_tree(b"/p/d", b"/q/d")
    for name, now in ((b"/p", b"/p"), (b"/q", b"/q"), (b"/p/d", b"/q/d")):
        attr = await world.stat(now)
        assert attr.ctime_ns > before[name].ctime_ns
        assert (attr.mtime_ns > before[name].mtime_ns) == (name != b"/p/d")
    for target in range(3):  # also once its inode lives elsewhere
        attr = await world.stat(path)
        await asyncio.sleep(0.02)
        new = world.path_on(target, b"/q", stem=b"t")
        await world.rename(path, new)
        assert (await world.stat(new)).ctime_ns > attr.ctime_ns
        path = new
    assert os.path.basename(path) in await world.names(b"/q")
