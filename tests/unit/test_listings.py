# SPDX-License-Identifier: Apache-2.0
"""Listings over several servers: nothing is missed or given twice, whatever comes and goes, and little is held."""
import ctypes
import errno
import os
import random
import stat
from types import SimpleNamespace

import fake_shim
import pytest
from real_servers import RealServers

shim = fake_shim.install()

from pymadfs import layout, listing, syscalls  # noqa: E402
from pymadfs.client import FileSystem  # noqa: E402
from pymadfs.config import Config  # noqa: E402
from pymadfs.ops import DIRENT  # noqa: E402
from pymadfs.server import listing as pages  # noqa: E402
from pymadfs.server.kv import MemoryKV  # noqa: E402
from pymadfs.server.meta import entries_prefix, entry_key, new_attr  # noqa: E402

calls = SimpleNamespace(**syscalls.FUNCTIONS)
WINDOW_BYTES = 3000


@pytest.fixture
def fs(tmp_path, monkeypatch):
    monkeypatch.setattr(listing, "WINDOW_BYTES", WINDOW_BYTES)
    shim.reset()
    syscalls.files.open_files.clear()
    servers = RealServers(tmp_path / "stores", 3)
    file_system = FileSystem(servers, Config({}), b"/madfs", shim.store)
    syscalls.use(file_system)
    yield file_system
    servers.close()


def make(fs, directory, count):
    fs.mkdir(directory, 0o755)
    names = {b"entry-%05d" % number for number in range(count)}
    for name in names:
        fs.mknod(directory + b"/" + name, 0o644)
    return names


class Reader:
    """An open directory, read as libc does."""

    def __init__(self, path, size=500):
        self.handle = shim.handle(calls.openat(path, os.O_RDONLY | os.O_DIRECTORY, 0))
        self.buffer, self.size = ctypes.create_string_buffer(size), size

    def some(self):
        """``[(name, d_off)]`` of one getdents64."""
        count = calls.getdents64(self.handle, ctypes.addressof(self.buffer), self.size)
        data, at, found = self.buffer.raw[:count], 0, []
        while at < count:
            length = int.from_bytes(data[at + 16:at + 18], "little")
            found.append((data[at + 19:at + length].split(b"\0")[0], int.from_bytes(data[at + 8:at + 16], "little")))
            at += length
        return found

    def all(self):
        return [entry for some in iter(self.some, []) for entry in some]

    def seek(self, place):
        calls.lseek(self.handle, place, os.SEEK_SET)

    @property
    def held(self):
        return len(syscalls.files.open_files[self.handle].listing.entries)


def names(entries):
    return sorted(name for name, _ in entries)


def test_each_entry_once_and_few_held_at_a_time(fs):
    made = make(fs, b"/d", 500)
    reader, found, held = Reader(b"/madfs/d"), [], 0
    for some in iter(reader.some, []):
        found += some
        held = max(held, reader.held)
    assert names(found) == sorted([b".", b"..", *made])
    assert held <= 2 + WINDOW_BYTES // DIRENT.size
    places = [place for _, place in found]
    assert places == sorted(places) and len(set(places)) == len(places)


def test_what_stays_is_given_once_while_others_come_and_go(fs):
    make(fs, b"/d", 300)
    stays = {b"entry-%05d" % number for number in range(0, 300, 3)}
    goes = sorted(b"entry-%05d" % number for number in range(300) if number % 3)
    random.Random(3).shuffle(goes)
    reader, found = Reader(b"/madfs/d", 200), []
    for turn, some in enumerate(iter(reader.some, [])):
        found += [name for name, _ in some]
        if goes:
            fs.unlink(b"/d/" + goes.pop())
        fs.mknod(b"/d/new-%d" % turn, 0o644)
    assert len(found) == len(set(found)) and stays < set(found)


def test_remove_all_while_reading(fs):
    """What `rm -rf` does: each entry that was read is removed before the next ones are asked for."""
    make(fs, b"/d", 400)
    reader, removed = Reader(b"/madfs/d", 120), 0
    for some in iter(reader.some, []):
        for name, _ in some:
            if name not in (b".", b".."):
                fs.unlink(b"/d/" + name)
                removed += 1
    assert removed == 400
    fs.rmdir(b"/d")
    with pytest.raises(OSError) as error:
        reader.seek(0)
        reader.some()
    assert error.value.errno == errno.ENOENT


def test_every_place_can_be_returned_to(fs):
    make(fs, b"/d", 60)
    reader = Reader(b"/madfs/d", 90)
    whole = reader.all()
    for index in random.Random(5).sample(range(len(whole)), 20):
        reader.seek(whole[index][1])
        assert reader.all() == whole[index + 1:]
    fs.unlink(b"/d/" + whole[30][0])
    reader.seek(whole[30][1])  # the place of an entry that went away
    assert reader.all() == whole[31:]
    reader.seek((1 << 63) - 1)
    assert reader.some() == []


def test_a_directory_that_was_replaced_is_gone(fs):
    make(fs, b"/d", 0)
    reader = Reader(b"/madfs/d")
    for replace in (lambda: fs.mkdir(b"/d", 0o755), lambda: fs.symlink(b"/", b"/d"), lambda: fs.mknod(b"/d", 0o600)):
        (fs.rmdir if stat.S_ISDIR(fs.lookup(b"/d", False)[1].mode) else fs.unlink)(b"/d")
        replace()
        reader.seek(0)
        with pytest.raises(OSError) as error:
            reader.some()
        assert error.value.errno == errno.ENOENT


def test_dots_have_the_right_numbers(fs):
    fs.mkdir(b"/d", 0o755)
    fs.mkdir(b"/d/e", 0o755)
    numbers = {path: fs.lookup(path)[1].ino for path in (b"/", b"/d", b"/d/e")}
    for path, above in ((b"/", b"/"), (b"/d", b"/"), (b"/d/e", b"/d")):
        entries = {name: ino for name, ino, _ in listing.everything(fs, path)}
        assert (entries[b"."], entries[b".."]) == (numbers[path], numbers[above])


def same_place(count):
    """Names that share the upper half of their place: CRC-32 is linear, so these are easily made."""
    found, seen = [], {}
    for number in range(400_000):
        name = b"%x" % (number * 2654435761 % (1 << 40))
        key = layout.order_key(layout.order(name))
        if key in seen:
            found.append((seen[key], name))
            if len(found) == count:
                return found
        seen[key] = name
    raise AssertionError("no names found")


def test_names_of_one_key_are_in_the_order_of_their_places():
    pairs = same_place(3)
    kv = MemoryKV()
    for number, name in enumerate(name for pair in pairs for name in pair):
        kv.put(entry_key(b"/d/" + name), new_attr(number + 100, stat.S_IFREG, 0, 0, 0))
    kv.commit()
    found, after, done = [], 0, False
    while not done:
        records, done = pages.page(kv, entries_prefix(b"/d"), after, 1)
        assert len(records) == 1
        (after, _, _, name), = listing.records(records[0])
        found.append(name)
    assert found == sorted((name for pair in pairs for name in pair), key=layout.order)


def test_names_of_one_place_are_not_parted():
    found = [(9, b"cc"), (7, b"aa"), (7, b"bb")]
    assert pages.cut(list(found), 1) == [b"aa", b"bb"]
    assert pages.cut(list(found), 5) == [b"aa", b"bb"]
    assert pages.cut(list(found), 6) == [b"aa", b"bb", b"cc"]
