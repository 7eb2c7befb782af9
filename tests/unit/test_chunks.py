# SPDX-License-Identifier: Apache-2.0
"""Stored bytes: inline, in files, spilled, cut, found again."""
import errno
import os

import pytest

from pymadfs.server import allocation
from pymadfs.server import chunks as module
from pymadfs.server.chunks import Chunks
from pymadfs.server.kv import MemoryKV
from pymadfs.server.meta import chunk_key, data_key

SIZE = 1 << 16


@pytest.fixture
def kv():
    return MemoryKV()


@pytest.fixture
def chunks(kv, tmp_path):
    made = Chunks(kv, str(tmp_path), 1000)
    yield made
    made.close()


def cut(kv, chunks, ino, size):
    chunks.cut_inline(ino, size)
    more = True
    while more:
        kv.commit()
        work, more = chunks.cut_plan(ino, size, SIZE)
        chunks.remove_files(ino, work)
        chunks.cut_done(ino, work)
    kv.commit()


def files(path):
    return sorted(name for _, _, names in os.walk(path) for name in names)


def test_small_stays_inline_and_spills_once(kv, chunks, tmp_path):
    assert chunks.write_inline(5, 10, b"abc")
    assert chunks.write_inline(5, 0, b"xy")
    assert chunks.read_inline(5, 0, 100) == b"xy" + bytes(8) + b"abc"
    assert not chunks.write_inline(5, 999, b"zz")
    piece = chunks.writable(5, 0, 0, 2)
    piece.write(999, b"zz")
    assert chunks.read_inline(5, 0, 100) is None
    assert piece.read(0, 2000) == b"xy" + bytes(8) + b"abc" + bytes(986) + b"zz"
    assert not chunks.write_inline(5, 0, b"small again")
    kv.commit()
    assert set(kv.items) == {chunk_key(5, 0)} and files(tmp_path) == ["5.0"]
    assert chunks.piece(5, 1) is None


def test_a_spill_that_was_not_committed_starts_from_nothing(kv, tmp_path):
    first = Chunks(kv, str(tmp_path), 1000)
    first.write_inline(5, 0, b"kept")
    kv.commit()
    first.writable(5, 0, 0, 2000).write(4, b"never acknowledged" * 100)
    first.close()
    kv.close()  # the batch is lost with the process
    second = Chunks(kv, str(tmp_path), 1000)
    assert second.read_inline(5, 0, 100) == b"kept" and second.piece(5, 0) is None
    assert second.writable(5, 0, 0, 1).read(0, 5000) == b"kept"
    second.close()


def test_a_refused_batch_removes_what_it_made(kv, chunks, tmp_path):
    chunks.writable(5, 2, 0, 10).write(0, b"y")
    kv.commit()
    kv.error = OSError(errno.ENOSPC, "full")
    chunks.writable(5, 3, 0, 10).write(0, b"x")
    with pytest.raises(OSError):
        kv.commit()
    chunks.rolled_back()
    assert chunks.piece(5, 3) is None and chunks.piece(5, 2).read(0, 10) == b"y" and files(tmp_path) == ["5.2"]


def test_cutting(kv, chunks, tmp_path):
    for chunk in (0, 2, 5):
        chunks.writable(7, chunk, 0, 100).write(0, b"a" * 100)
    chunks.writable(8, 2, 0, 100).write(0, b"other")
    cut(kv, chunks, 7, 2 * SIZE + 60)
    assert files(tmp_path) == ["7.0", "7.2", "8.2"]
    assert chunks.piece(7, 2).read(0, 1000) == b"a" * 60
    cut(kv, chunks, 7, 2 * SIZE)
    assert files(tmp_path) == ["7.0", "8.2"] and chunks.piece(7, 2) is None
    cut(kv, chunks, 7, 0)
    assert files(tmp_path) == ["8.2"] and set(kv.items) == {chunk_key(8, 2)}


def test_cutting_in_pages(kv, chunks, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CUT_PAGE", 3)
    for chunk in range(10):
        chunks.writable(7, chunk, 0, 1).write(0, b"a")
    cut(kv, chunks, 7, SIZE + 1)
    assert files(tmp_path) == ["7.0", "7.1"]
    cut(kv, chunks, 7, 0)
    assert files(tmp_path) == []


def test_a_removal_cut_short_is_taken_up(kv, chunks, tmp_path):
    chunks.writable(7, 1, 0, 1).write(0, b"a")
    kv.commit()
    work, _ = chunks.cut_plan(7, 0, SIZE)
    chunks.remove_files(7, work)  # and a crash before cut_done
    assert chunks.piece(7, 1) is None
    chunks.writable(7, 1, 0, 1).write(0, b"b")
    assert chunks.piece(7, 1).read(0, 9) == b"b"
    cut(kv, chunks, 7, 0)
    assert not kv.items


def test_few_descriptors_stay_open_but_pinned_ones_do(kv, chunks, monkeypatch):
    monkeypatch.setattr(module, "OPEN_FILES_MAX", 4)
    pinned = chunks.writable(1, 0, 0, 1)
    chunks.pin(pinned)
    for ino in range(2, 12):
        chunks.writable(ino, 0, 0, 1).write(0, b"%d" % ino)
    assert len(chunks._open) == 4 and chunks.piece(1, 0) is pinned
    pinned.write(0, b"still open")
    for ino in range(2, 12):
        assert chunks.piece(ino, 0).read(0, 9) == b"%d" % ino
    kv.commit()
    cut(kv, chunks, 1, 0)
    os.fstat(pinned.fd)  # removed, but the transfer goes on
    chunks.unpin(pinned)
    with pytest.raises(OSError):
        os.fstat(pinned.fd)


def test_sync_knows_what_is_dirty(kv, chunks, monkeypatch):
    monkeypatch.setattr(module, "DIRTY_FILES_MAX", 2)
    chunks.writable(1, 0, 0, 1)
    chunks.writable(1, 4, 0, 1)
    plan = chunks.sync_plan(1)
    assert {piece.key for piece in plan[0]} == {(1, 0), (1, 4)} and None in plan[1] and not plan[2]
    chunks.sync_names(plan[1])
    chunks.sync_done(plan, failed=True)  # it stays dirty
    plan = chunks.sync_plan(1)
    assert len(plan[0]) == 2 and len(plan[1]) == 3
    chunks.sync_done(plan, failed=False)
    assert chunks.sync_plan(1) == ([], set(), False)
    for ino in (2, 3, 4):
        chunks.writable(ino, 0, 0, 1)
    assert chunks.sync_plan(4)[2]  # too many to know: everything


def test_a_disk_almost_full_takes_no_data(kv, chunks, monkeypatch):
    there = chunks.writable(1, 5, 0, 8192)
    allocation.allocate(there.fd, 0, 8192)
    real = os.statvfs(chunks.fileno())

    class Room:
        f_blocks, f_frsize, f_bavail = real.f_blocks, real.f_frsize, 1

    monkeypatch.setattr(module.os, "statvfs", lambda fd: Room)
    with pytest.raises(OSError) as error:
        chunks.writable(1, 0, 0, 1 << 20)
    assert error.value.errno == errno.ENOSPC
    with pytest.raises(OSError) as error:
        chunks.write_inline(1, 0, b"small files would take the room that removing needs")
    assert chunks.writable(1, 5, 0, 8192) is there  # what is allocated can be written
    assert error.value.errno == errno.ENOSPC and kv.get(data_key(1)) is None
