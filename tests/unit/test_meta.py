# SPDX-License-Identifier: Apache-2.0
"""Keys, records, permissions and the numbers of one server's namespace."""
import errno
import stat

import pytest

from pymadfs.identity import Who, allowed
from pymadfs.layout import home, owner
from pymadfs.ops import ATTR, ROOT_INO
from pymadfs.server import meta
from pymadfs.server.kv import MemoryKV
from pymadfs.server.meta import Meta, StoreError, entry_key, path_of
from pymadfs.server.rename import Move, pack, unpack


@pytest.mark.parametrize("path", [b"/", b"/a", b"/a/b", b"/a b/\xff"])
def test_entry_keys_and_paths(path):
    assert path_of(entry_key(path)) == path
    assert entry_key(path).startswith(meta.entries_prefix(path[:path.rindex(b"/")] or b"/"))


def test_siblings_are_one_range_and_children_of_siblings_are_not_in_it():
    keys = sorted(map(entry_key, (b"/a/x", b"/a/z", b"/a!/y", b"/a/x/1", b"/a", b"/ab")))
    siblings = [key for key in keys if key.startswith(meta.entries_prefix(b"/a"))]
    assert sorted(siblings) == sorted((entry_key(b"/a/x"), entry_key(b"/a/z")))
    start = keys.index(siblings[0])
    assert keys[start:start + 2] == siblings


def test_numbers_are_never_given_twice():
    kv, given = MemoryKV(), set()
    for turn in range(4):
        store = Meta(kv, 2, 3)
        numbers = [store.serial() for _ in range(5000)]
        assert all(home(number) == 2 for number in numbers) and min(numbers) != ROOT_INO
        assert not given & set(numbers) and len(set(numbers)) == 5000
        if turn == 2:  # the batch with the last block is refused
            kv.error = OSError(errno.ENOSPC, "full")
            with pytest.raises(OSError):
                kv.commit()
            kv.error = None
            store.rolled_back()
            numbers = []
        else:
            kv.commit()
        given |= set(numbers)
        kv.close()


def test_a_store_of_somebody_else_is_refused():
    kv = MemoryKV()
    Meta(kv, 0, 2)
    for number, servers, words in ((1, 2, "belongs to server 0"), (0, 3, "cluster of 2 servers")):
        with pytest.raises(StoreError, match=words):
            Meta(kv, number, servers)
    kv.put(b"Mformat", meta.NUMBER.pack(99))
    with pytest.raises(StoreError, match="format 99"):
        Meta(kv, 0, 2)


def test_the_root_is_made_once_where_it_belongs():
    for number in range(3):
        kv = MemoryKV()
        Meta(kv, number, 3, 1000, 100)
        value = kv.get(entry_key(b"/"))
        assert (value is not None) == (owner(b"/", 3) == number)
        if value is not None:
            attr = ATTR.unpack(value)
            assert (attr.ino, attr.mode, attr.uid, attr.gid) == (ROOT_INO, stat.S_IFDIR | 0o1777, 1000, 100)
            kv.put(entry_key(b"/"), meta.changed(value, mode=stat.S_IFDIR | 0o700))
            assert not Meta(kv, number, 3).fresh
            assert meta.mode_of(kv.get(entry_key(b"/"))) == stat.S_IFDIR | 0o700


def test_records():
    value = meta.new_attr(5, stat.S_IFREG | 0o6755, 1, 2, 77, chunk_size=512) + b"tail"
    sized = ATTR.unpack(meta.with_size(value, 1000, 88, cuts=3))
    assert sized == ATTR.unpack(value)._replace(size=1000, mtime_ns=88, ctime_ns=88, cuts=3)
    assert (meta.with_size(value, 1000, 88)[ATTR.size:], meta.cuts_of(meta.with_size(value, 9, 8))) == (b"tail", 0)
    assert ATTR.unpack(meta.with_times(value, 99)) == ATTR.unpack(value)._replace(mtime_ns=99, ctime_ns=99)
    assert meta.with_times(value, 99)[ATTR.size:] == b"tail" == meta.target_of(value)
    assert (meta.ino_of(value), meta.mode_of(value), meta.size_of(value)) == (5, stat.S_IFREG | 0o6755, 0)
    for user, mode in (((9, 2), 0o755), ((9, 9), 0o755), ((0, 0), 0o6755)):
        assert ATTR.unpack(meta.without_privileges(value, Who(*user))).mode == stat.S_IFREG | mode
    locking = meta.changed(value, mode=stat.S_IFREG | 0o2745)
    for user, mode in (((9, 2), 0o2745), ((9, 9, 1, {2}), 0o2745), ((9, 9, 1, {3}), 0o745)):
        assert ATTR.unpack(meta.without_privileges(locking, Who(*user))).mode == stat.S_IFREG | mode
    assert meta.stripped(0o106744) == 0o102744  # without group execution setgid means locking
    pointer = meta.pointer(5, stat.S_IFLNK | 0o777)
    assert meta.is_pointer(pointer) and meta.is_symlink(pointer) and not meta.is_directory(pointer)
    assert meta.is_directory(meta.new_attr(6, stat.S_IFDIR, 0, 0, 0)) and not meta.is_pointer(value)


BLOCKS = [  # what is done to an empty file, and its size and blocks afterwards
    ([(0, 1)], 1, 8),
    ([(0, 4096), (4096, 4097), (4097, 5000)], 5000, 16),
    ([(0, 5000), (0, 5000), (100, 200)], 5000, 16),
    ([1 << 20], 1 << 20, 0),
    ([1 << 20, (4095, 4097)], 1 << 20, 16),
    ([(1 << 20, (1 << 20) + 1)], (1 << 20) + 1, 8),
    ([(0, 10), (1 << 20, (1 << 20) + 8192)], (1 << 20) + 8192, 24),
    ([(0, 10), (100, 200)], 200, 8),
    ([(0, 1 << 20), 4097], 4097, 16),
    ([(0, 1 << 20), 0, 1 << 20], 1 << 20, 0),
]


@pytest.mark.parametrize("changes, size, blocks", BLOCKS, ids=str)
def test_what_is_stored_is_counted_in_pages(changes, size, blocks):
    value = meta.new_attr(5, stat.S_IFREG, 1, 2, 77, chunk_size=512) + b"tail"
    for change in changes:
        value = meta.with_size(value, change, 1) if isinstance(change, int) else meta.written(value, *change, 1)
    assert (ATTR.unpack(value).size, ATTR.unpack(value).blocks, value[ATTR.size:]) == (size, blocks, b"tail")


def test_pages_written_again_and_again_are_no_more_than_the_file():
    value = meta.with_size(meta.new_attr(5, stat.S_IFREG, 1, 2, 77), 1 << 20, 1)
    for _ in range(1000):
        value = meta.written(value, 8192, 12288, 1)
    assert ATTR.unpack(value).blocks == 2048


def test_intent_records():
    move = Move(7, 1, b"/old/name", b"/n", 5, 6, bytes(range(8)), bytes(range(ATTR.size)), b"target")
    assert unpack(7, pack(move)) == move


@pytest.mark.parametrize("mode, uid, gid, want, expected", [
    (0o700, 5, 9, 7, True), (0o077, 5, 9, 4, False), (0o070, 9, 6, 7, True), (0o707, 9, 6, 4, False),
    (0o007, 9, 9, 7, True),
    (0o770, 9, 9, 1, False), (0o000, 0, 0, 6, True), (0o600, 0, 0, 1, False), (0o601, 0, 0, 1, True)])
def test_permission_bits(mode, uid, gid, want, expected):
    assert allowed(stat.S_IFREG | mode, 5, 6, Who(uid, gid), want) is expected
    assert allowed(stat.S_IFREG | mode, 5, 6, Who(uid, 7, 1, frozenset({3, gid})), want) is expected
    assert allowed(stat.S_IFDIR, 5, 6, Who(0, 0), 7)


def test_a_detached_inode_is_found_by_number():
    kv = MemoryKV()
    store = Meta(kv, 0, 1)
    value = meta.new_attr(77, stat.S_IFREG, 0, 0, 0)
    kv.put(entry_key(b"/f"), value)
    assert store.find(77, b"/f") == (entry_key(b"/f"), value)
    for ino, hint in ((78, b"/f"), (77, b"/g"), (77, b""), (77, b"no path")):
        with pytest.raises(OSError) as error:
            store.find(ino, hint)
        assert error.value.errno == errno.ENOENT
    kv.put(meta.inode_key(77), value)
    kv.put(entry_key(b"/f"), meta.pointer(77, stat.S_IFREG))
    assert store.find(77, b"/f") == store.find(77, b"") == (meta.inode_key(77), value)
    assert store.resolve(entry_key(b"/f"), kv.get(entry_key(b"/f"))) == (meta.inode_key(77), value)
