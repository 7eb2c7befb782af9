# SPDX-License-Identifier: Apache-2.0
"""Each operation of more than one server, killed at each of its steps: a server dies at a message or at a batch that is
stored, and comes back.  What was acknowledged is there, what was not is done whole or not at all, ``madfs fsck`` finds
nothing, and nothing is in the way of the next.

A row of ``CASES`` prepares (a generator up to its ``yield``), and acts (after it).  ``ops.OPS`` says which operations
there must be rows for: see ``test_every_operation_is_killed_or_needs_not_be``.
"""
import ctypes
import errno
import os

import pytest
from kill_world import Killable
from server_world import CHUNK

from pymadfs import ops
from pymadfs.client import File, FileSystem
from pymadfs.config import Config
from pymadfs.ops import ATTR

QUICK_RUNS = 5
DATA = bytes(range(1, 252)) * 200
KEEP_SIZE, PUNCH_HOLE = 1, 2
NOREPLACE, EXCHANGE = 1, 2

CASES = {}


def case(partial=None, check=None):
    """Register a row.  ``partial(path, before, after, now)`` says whether a file may be as ``now`` when its change was
    not acknowledged; ``check(fs, acknowledged)`` looks at more."""
    def register(function):
        CASES[function.__name__] = function, partial, check
        return function
    return register


class Disk(FileSystem):
    """The client, with short ways to make things on a chosen server."""

    def at(self, server, stem=b"f", directory=b"/", skip=0):
        return self.rpc.world.path_on(server, directory, stem, skip)

    def make(self, path, size=0):
        """A file with ``size`` bytes of DATA; closed."""
        _, attr = self.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
        if size:
            file = self.file(path, attr)
            assert self.write(file, 0, [(DATA[:size], size)]) == size
        self.ended(attr.ino)
        self.flush()
        return attr

    def file(self, path, attr=None):
        if attr is None:
            path, attr = self.open(path, os.O_RDWR, 0)
        return File(attr.ino, attr.mode, path, attr.chunk_size, attr.size, cuts=attr.cuts)

    def away(self, server, home, size=0, stem=b"f"):
        """A name on ``server`` of a file whose inode lives on ``home``."""
        born, path = self.at(home, b"born-" + stem), self.at(server, stem)
        self.make(born, size)
        self.rename(born, path)
        return path

    def link_to(self, path, new):
        _, attr, _ = self.lookup(path)
        self._named(ops.LINK, new, (attr.ino, len(new)), path)


def begin(path):
    rpc = Killable(path)
    config = Config({"MADFS_CHUNK_SIZE": str(CHUNK)})
    return rpc, Disk(rpc, config, b"/madfs", lambda address, data: ctypes.memmove(address, data, len(data)))


# --- rename ---------------------------------------------------------------------------------------------------------


@case()
def rename_of_a_file(fs):
    fs.make(fs.at(0), 3 * CHUNK)
    yield
    fs.rename(fs.at(0), fs.at(1, b"new"))


@case()
def rename_of_a_file_that_was_renamed(fs):
    path = fs.away(0, 2, 100)
    yield
    fs.rename(path, fs.at(1, b"new"))


@case()
def rename_home(fs):
    path = fs.away(0, 1, 100)
    yield
    fs.rename(path, fs.at(1, b"new"))


@case()
def rename_that_replaces(fs):
    fs.make(fs.at(0), 100)
    fs.make(fs.at(1, b"new"), 5 * CHUNK)
    yield
    fs.rename(fs.at(0), fs.at(1, b"new"))


@case()
def rename_that_replaces_a_name_of_another_server(fs):
    fs.make(fs.at(0), 100)
    path = fs.away(1, 2, 4 * CHUNK, b"new")
    yield
    fs.rename(fs.at(0), path)


@case()
def rename_on_one_server_that_replaces_a_name_of_another(fs):
    fs.make(fs.at(0), 100)
    path = fs.away(0, 2, 4 * CHUNK, b"new")
    yield
    fs.rename(fs.at(0), path)


@case()
def rename_without_replacing(fs):
    fs.make(fs.at(0), 100)
    yield
    fs.rename(fs.at(0), fs.at(1, b"new"), NOREPLACE)


@case()
def rename_of_a_symbolic_link(fs):
    fs.symlink(b"somewhere", fs.at(0))
    yield
    fs.rename(fs.at(0), fs.at(1, b"new"))


@case()
def exchange_of_files(fs):
    fs.make(fs.at(0), 100)
    fs.make(fs.at(1, b"new"), 3 * CHUNK)
    yield
    fs.rename(fs.at(0), fs.at(1, b"new"), EXCHANGE)


@case()
def exchange_of_a_directory_and_a_file(fs):
    fs.mkdir(fs.at(0), 0o755)
    for server in range(3):
        fs.make(fs.at(server, directory=fs.at(0)), 100)
    fs.make(fs.at(1, b"new"), 3 * CHUNK)
    yield
    fs.rename(fs.at(0), fs.at(1, b"new"), EXCHANGE)


def subtree(fs, top):
    fs.mkdir(top, 0o755)
    for directory in (top, top + b"/d"):
        if directory != top:
            fs.mkdir(directory, 0o700)
        for server in range(3):
            fs.make(fs.at(server, directory=directory), 100)
    fs.symlink(b"x", top + b"/link")
    _, attr, _ = fs.lookup(top + b"/d")
    fs.xattr(ops.SETXATTR, attr.ino, top + b"/d", 0, 6, len(top + b"/d"), tail=b"user.x" + b"", send=None)


@case()
def rename_of_a_directory(fs):
    subtree(fs, b"/a")
    yield
    fs.rename(b"/a", b"/b")


@case()
def rename_of_a_directory_that_replaces(fs):
    subtree(fs, b"/a")
    fs.mkdir(b"/p", 0o755)
    fs.mkdir(b"/p/old", 0o755)
    fs.rename(b"/p/old", b"/p/b")
    yield
    fs.rename(b"/a", b"/p/b")


# --- links ----------------------------------------------------------------------------------------------------------


@case()
def link(fs):
    fs.make(fs.at(0), 100)
    yield
    fs.link_to(fs.at(0), fs.at(1, b"new"))


@case()
def link_of_a_symbolic_link(fs):
    fs.symlink(b"somewhere", fs.at(0))
    _, attr, _ = fs.lookup(fs.at(0), follow=False)
    yield
    new = fs.at(1, b"new")
    fs._named(ops.LINK, new, (attr.ino, len(new)), fs.at(0))


@case()
def link_of_a_file_without_a_name(fs):
    attr = ATTR.unpack(fs._named(ops.TMPFILE, fs.at(0), (0, 0o644, CHUNK))[0].attr)
    assert fs.write(fs.file(b"", attr), 0, [(DATA[:100], 100)]) == 100
    yield
    new = fs.at(1, b"new")
    try:
        fs._named(ops.LINK, new, (attr.ino, len(new)), b"")
    finally:
        fs.ended(attr.ino)
        fs.flush()


@case()
def making_of_a_file_without_a_name(fs):
    fs.make(fs.at(0), 100)
    yield
    attr = ATTR.unpack(fs._named(ops.TMPFILE, fs.at(0), (0, 0o644, CHUNK))[0].attr)
    try:
        if fs.write(fs.file(b"", attr), 0, [(DATA[:4 * CHUNK], 4 * CHUNK)]) < 4 * CHUNK:
            raise OSError(errno.EIO, "a short count")
        new = fs.at(1, b"new")
        fs._named(ops.LINK, new, (attr.ino, len(new)), b"")
    finally:
        fs.ended(attr.ino)
        fs.flush()


@case()
def unlink_of_one_of_two_names(fs):
    fs.make(fs.at(0), 3 * CHUNK)
    fs.link_to(fs.at(0), fs.at(1, b"new"))
    yield
    fs.unlink(fs.at(1, b"new"))


@case()
def unlink_of_the_last_name(fs):
    path = fs.away(1, 0, 4 * CHUNK)
    yield
    fs.unlink(path)


@case()
def unlink_of_many_chunks(fs):
    fs.make(fs.at(0), 7 * CHUNK)
    yield
    fs.unlink(fs.at(0))


@case()
def unlink_of_an_open_file(fs):
    fs.make(fs.at(0), 5 * CHUNK)
    _, attr = fs.open(fs.at(0), os.O_RDWR, 0)
    yield
    try:
        fs.unlink(fs.at(0))
    finally:
        fs.ended(attr.ino)
        fs.flush()


# --- directories ----------------------------------------------------------------------------------------------------


@case()
def mkdir(fs):
    fs.mkdir(fs.at(0), 0o755)
    yield
    fs.mkdir(fs.at(1, directory=fs.at(0)), 0o755)


@case()
def rmdir(fs):
    fs.mkdir(fs.at(0), 0o755)
    fs.mkdir(fs.at(1, directory=fs.at(0)), 0o755)
    fs.make(fs.at(1, b"x", directory=fs.at(1, directory=fs.at(0))))
    fs.unlink(fs.at(1, b"x", directory=fs.at(1, directory=fs.at(0))))
    yield
    fs.rmdir(fs.at(1, directory=fs.at(0)))


@case()
def rmdir_of_a_directory_that_has_moved(fs):
    fs.mkdir(fs.at(2), 0o755)
    fs.rename(fs.at(2), fs.at(0, b"moved"))
    yield
    fs.rmdir(fs.at(0, b"moved"))


@case()
def chmod_of_a_directory(fs):
    fs.mkdir(fs.at(0), 0o755)
    for server in range(3):
        fs.make(fs.at(server, directory=fs.at(0)))
    yield
    fs.setattr(fs.at(0), ops.SET_MODE, mode=0o711)


def changed_since(fs, acknowledged):
    """A directory whose entries changed shows it."""
    after = fs.lookup(fs.at(0, b"dir"))[1]
    assert not acknowledged or after.mtime_ns > fs.before.mtime_ns


@case(check=changed_since)
def times_of_a_directory(fs):
    directory = fs.at(0, b"dir")
    fs.mkdir(directory, 0o755)
    for server in range(3):
        fs.make(fs.at(server, directory=directory))
    fs.setattr(directory, ops.SET_MTIME, mtime=1)
    fs.before = fs.lookup(directory)[1]
    yield
    fs.make(fs.at(1, b"more", directory=directory))
    fs.lookup(directory)


# --- bytes ----------------------------------------------------------------------------------------------------------


def shorter(path, before, after, now):
    """A cut that was not acknowledged may have made a hole, and never brings others' bytes."""
    size, content = now[2:4]
    kept = after[2]
    return size in (before[2], kept) and content[:kept] == after[3] and all(
        new in (0, old) for new, old in zip(content[kept:], before[3][kept:], strict=True))


def mixed(path, before, after, now):
    """Of a change of bytes that was not acknowledged, some may be there; the size is one of the two."""
    size, content = now[2:4]
    old, new = (each[3].ljust(size, b"\0") for each in (before, after))
    return before[2] <= size <= after[2] and all(
        byte in (a, b, 0) for byte, a, b in zip(content, old[:size], new[:size], strict=True))


@case(partial=shorter)
def truncate(fs):
    fs.make(fs.at(0), 7 * CHUNK)
    yield
    fs.truncate(fs.at(0), CHUNK + 100)


@case(partial=shorter)
def truncate_by_open(fs):
    fs.make(fs.at(0), 7 * CHUNK)
    yield
    _, attr = fs.open(fs.at(0), os.O_RDWR | os.O_TRUNC, 0)
    fs.ended(attr.ino)
    fs.flush()


@case(partial=shorter)
def truncate_of_a_file_that_was_renamed(fs):
    path = fs.away(1, 0, 7 * CHUNK)
    yield
    fs.truncate(path, 0)


@case(partial=mixed)
def allocate(fs):
    fs.make(fs.at(0), 100)
    yield
    fs.fallocate(fs.file(fs.at(0)), 0, 0, 6 * CHUNK)


@case(partial=mixed)
def punch_a_hole(fs):
    fs.make(fs.at(0), 7 * CHUNK)
    yield
    fs.fallocate(fs.file(fs.at(0)), KEEP_SIZE | PUNCH_HOLE, CHUNK // 2, 5 * CHUNK)


def as_told(fs, acknowledged):
    """The bytes that a short count acknowledges are there, and the size covers no others: the home, if it lives, takes
    back what a dead server did not store."""
    begin, count = fs.told
    size, content = fs.rpc.snapshot()[fs.at(0)][2:4]
    assert content[begin:begin + count] == DATA[7:7 + count]
    if fs.rpc.world.victim in (1, 2) and fs.rpc.world.servers[0] is fs.home:
        assert size == max(fs.size, begin + count)


def prepare(fs, size):
    fs.make(fs.at(0), size)
    fs.told, fs.size, fs.home = (0, 0), size, fs.rpc.world.servers[0]


def complete(fs, begin, count):
    fs.told = begin, count
    if count < 6 * CHUNK:
        raise OSError(errno.EIO, "a short count")


@case(partial=mixed, check=as_told)
def write_of_several_chunks(fs):
    prepare(fs, CHUNK + 100)
    yield
    complete(fs, 50, fs.write(fs.file(fs.at(0)), 50, [(DATA[7:7 + 6 * CHUNK], 6 * CHUNK)]))


@case(partial=mixed, check=as_told)
def write_of_a_chunk_elsewhere(fs):
    prepare(fs, CHUNK)
    yield
    count = fs.write(fs.file(fs.at(0)), CHUNK, [(DATA[7:7 + CHUNK], CHUNK)])
    assert count == CHUNK
    fs.told = CHUNK, count


@case(partial=mixed, check=as_told)
def append(fs):
    prepare(fs, CHUNK + 100)
    yield
    complete(fs, *fs.append(fs.file(fs.at(0)), [(DATA[7:7 + 6 * CHUNK], 6 * CHUNK)], 6 * CHUNK))


def perhaps_larger(path, before, after, now):
    """When the home dies under a write, its size may include what was not written."""
    wanted = (*after[:2], 50 + 6 * CHUNK, after[3][:50] + DATA[7:7 + 6 * CHUNK], *after[4:])
    return mixed(path, before, wanted, now)


@case(partial=perhaps_larger, check=as_told)
def write_that_finds_no_room(fs):
    def full(length):
        raise OSError(errno.ENOSPC, "the disk of server 2 is full")

    prepare(fs, CHUNK + 100)
    fs.rpc.world.servers[2].chunks._check_space = full
    yield
    file = fs.file(fs.at(0))
    fs.told = 50, fs.write(file, 50, [(DATA[7:7 + 6 * CHUNK], 6 * CHUNK)])
    if fs.getattr(file).size != 50 + fs.told[1]:
        raise OSError(errno.EIO, "it is not known how it ended")


# --- what is done with them -----------------------------------------------------------------------------------------


def prepared(path, name):
    """``(rpc, fs, what acts)`` when the row has prepared and all is calm."""
    rpc, fs = begin(path)
    steps = CASES[name][0](fs)
    next(steps)
    rpc.wait(rpc.world.quiet())
    return rpc, fs, steps


def act(steps):
    """The errno of what the row does; None: it was acknowledged."""
    try:
        assert next(steps, "ended") == "ended"
    except OSError as error:
        return error.errno
    return None


def undisturbed(path, name):
    """``(before, after, events, operations)`` of a row: the last are the names of all that was asked."""
    rpc, fs, steps = prepared(path, name)
    try:
        before = rpc.snapshot()
        rpc.world.record()
        rpc.world.log.clear()
        assert act(steps) is None
        rpc.wait(rpc.world.quiet())
        rpc.world.calm()
        asked = {op.name for _, op in rpc.world.log}
        assert rpc.check() == ([], {})
        return before, rpc.snapshot(), list(rpc.world.events), asked
    finally:
        rpc.close()


def killed(path, name, victim, step, before, after):
    """Kill at one step; -> whether it came to that."""
    _, partial, check = CASES[name]
    rpc, fs, steps = prepared(path, name)
    try:
        rpc.kill(victim, step)
        failed = act(steps)
        rpc.revive()
        where = f"server {victim} at {rpc.world.events[step:step + 1]}"
        assert failed in (None, errno.EIO), where
        for _ in range(2):
            assert rpc.check() == ([], {}), where
            now = rpc.snapshot()
            if failed is None:
                assert now == after, where
            elif partial is None:
                assert now in (before, after), where
            else:
                assert now.keys() == before.keys(), where
                for path, found in now.items():
                    ends = before[path], after[path]
                    assert found in ends or partial(path, *ends, found), (where, path)
            if check:
                check(fs, failed is None)
            rpc.restart()
        for path in [path for path in now if path.count(b"/") == 1 and path != b"/"]:
            fs.rename(path, b"/moved-" + path[1:])  # nothing is in the way of the next
    finally:
        rpc.close()


def points(events, quick):
    """(victim, step): all that matter, or some of them spread over all."""
    found = [(victim, step) for step, (number, other, what, _) in enumerate(events) for victim in range(3)
             if what == "commit" or victim in (number, other)]
    return found[::max(1, len(found) // QUICK_RUNS)] if quick else found


def all_killed(tmp_path, name, quick):
    before, after, events, _ = undisturbed(tmp_path / "undisturbed", name)
    concerned = {number for asking, asked, *_ in events for number in (asking, asked) if number is not None}
    assert len(concerned) > 1, f"{name} is one of a single server: {events}"
    for victim, step in points(events, quick):
        killed(tmp_path / f"{victim}-{step}", name, victim, step, before, after)


@pytest.mark.parametrize("name", CASES)
def test_killed_at_some_steps(tmp_path, name):
    all_killed(tmp_path, name, quick=True)


@pytest.mark.long
@pytest.mark.parametrize("name", CASES)
def test_killed_at_every_step(tmp_path, name):
    all_killed(tmp_path, name, quick=False)


ALONE = {
    "changes nothing": {
        "arrived", "getattr", "getxattr", "growing", "inventory", "listxattr", "lockwaits", "number", "read", "readdir",
        "seek", "statfs", "status", "unfinished", "where"},
    "one batch of one server": {"mknod", "removexattr", "setxattr", "symlink"},
    "memory of one server, told again after a crash: tests/fault/test_openings.py": {
        "groups", "held", "keep", "reopen", "touch"},
    "locks of one server, stored with the answer: tests/fault/test_lock_holders.py": {"lock"},
    "atime, which may be lost": {"accessed"},
    "memory that a crash may lose, tests/unit/test_strays.py": {"stray"},
    "what was acknowledged is there before it: tests/unit/test_server_files.py": {"fsync"},
    "a person asks for it: tests/test_fsck.py, tests/test_cli.py": {"mend", "shutdown"},
}


def test_every_operation_is_killed_or_needs_not_be(tmp_path):
    """A new operation gets a row in CASES, or a reason in ALONE."""
    killed_somewhere = set()
    for name in CASES:
        killed_somewhere |= undisturbed(tmp_path / name, name)[-1]
    alone = [name for names in ALONE.values() for name in names]
    assert len(alone) == len(set(alone))
    known = {op.name for op in ops.OPS.values()}
    missing = known - killed_somewhere - set(alone)
    assert not missing, f"no row in CASES uses {sorted(missing)}, and ALONE does not say why"
    assert set(alone) <= known, f"ALONE names operations that do not exist: {sorted(set(alone) - known)}"
