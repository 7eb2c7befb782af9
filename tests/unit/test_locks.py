# SPDX-License-Identifier: Apache-2.0
"""Record locks: splitting, merging, conflicts, waiting, deadlocks, against a byte-wise model."""
import errno
import random
from fcntl import F_RDLCK, F_UNLCK, F_WRLCK

import pytest

from pymadfs.server.locks import Lock, Locks, conflict, replaced

A, B, C = (1, 1), (1, 2), (2, 1)


def test_split_merge_and_replace_as_a_byte_map():
    chance = random.Random(3)
    locks, model = [], {}
    for _ in range(3000):
        owner = chance.choice((A, B, C))
        kind = chance.choice((F_RDLCK, F_RDLCK, F_WRLCK, F_UNLCK))
        start = chance.randrange(40)
        new = Lock(owner, kind, start, start + chance.randrange(1, 12))
        blocked = any(other != owner and F_WRLCK in (kind, held) for at in range(new.start, new.end)
                      for other, held in model.get(at, {}).items()) and kind != F_UNLCK
        assert bool(kind != F_UNLCK and conflict(locks, new)) == blocked
        if blocked:
            continue
        locks = replaced(locks, new)
        for at in range(new.start, new.end):
            model.setdefault(at, {}).pop(owner, None)
            if kind != F_UNLCK:
                model[at][owner] = kind
        seen = {}
        for lock in locks:
            for at in range(lock.start, lock.end):
                assert lock.owner not in seen.setdefault(at, {})
                seen[at][lock.owner] = lock.type
        assert seen == {at: held for at, held in model.items() if held}
        for one in locks:  # no two that could be one
            ends = one.owner, one.type, one.end
            assert not any(one is not two and ends == (two.owner, two.type, two.start) for two in locks)


def test_waiting_is_granted_in_order():
    locks = Locks()
    assert locks.set(1, Lock(A, F_WRLCK, 0, 10)) == []
    with pytest.raises(OSError) as error:
        locks.set(1, Lock(B, F_RDLCK, 5, 6))
    assert error.value.errno == errno.EAGAIN
    assert locks.set(1, Lock(B, F_RDLCK, 5, 6), "b") is None
    assert locks.set(1, Lock(C, F_RDLCK, 5, 20), "c") is None
    assert locks.set(2, Lock(C, F_WRLCK, 0, 10)) == []  # another file
    assert locks.test(1, Lock(B, F_RDLCK, 0, 1)).owner == A
    assert locks.set(1, Lock(A, F_UNLCK, 5, 6)) == ["b"]
    assert locks.set(1, Lock(A, F_RDLCK, 0, 10)) == ["c"]
    assert locks.test(1, Lock(A, F_WRLCK, 0, 1)) is None


def test_deadlock_is_refused():
    locks = Locks()
    for owner, start in ((A, 0), (B, 1), (C, 2)):
        locks.set(1, Lock(owner, F_WRLCK, start, start + 1))
    assert locks.set(1, Lock(A, F_WRLCK, 1, 2), "a") is None
    assert locks.set(1, Lock(B, F_WRLCK, 2, 3), "b") is None
    with pytest.raises(OSError) as error:
        locks.set(1, Lock(C, F_WRLCK, 0, 1), "c")
    assert error.value.errno == errno.EDEADLK
    assert locks.cancel("a") and not locks.cancel("a")
    assert locks.set(1, Lock(C, F_WRLCK, 0, 1), "c") is None


def test_a_lost_connection_releases_and_stops_waiting():
    locks = Locks()
    locks.set(1, Lock(A, F_WRLCK, 0, 10))
    locks.set(2, Lock(C, F_WRLCK, 0, 10))
    assert locks.set(1, Lock(C, F_RDLCK, 0, 1), "c") is None
    assert locks.set(2, Lock(B, F_RDLCK, 0, 1), "b") is None
    assert locks.lost(1) == ["c"]
    assert locks.lost(2) == []
    assert not locks.held and not locks.waiting


@pytest.mark.parametrize("kind, start, end", [(9, 0, 1), (F_RDLCK, 5, 5), (F_RDLCK, 6, 5)])
def test_nonsense_is_refused(kind, start, end):
    with pytest.raises(OSError) as error:
        Locks().set(1, Lock(A, kind, start, end))
    assert error.value.errno == errno.EINVAL
