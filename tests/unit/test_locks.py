# SPDX-License-Identifier: Apache-2.0
"""Record locks: splitting, merging, conflicts, waiting, deadlocks, against a byte-wise model."""
import errno
import random
from fcntl import F_RDLCK, F_UNLCK, F_WRLCK

import pytest

from pymadfs.ops import LOCK_RECORD, LOCK_WHOLE, OWNER_FILE
from pymadfs.server.locks import Lock, Locks, conflict, replaced

A, B, C, FILE = 1, 2, 3, OWNER_FILE | 4
ONE, TWO = (1, LOCK_RECORD), (2, LOCK_RECORD)
FLOCK = (1, LOCK_WHOLE)


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


def refused(code, function, *arguments):
    with pytest.raises(OSError) as error:
        function(*arguments)
    assert error.value.errno == code
    return error.value.granted


def test_waiting_is_granted_in_order():
    locks = Locks()
    assert locks.set(ONE, Lock(A, F_WRLCK, 0, 10)) == ([], False)
    assert refused(errno.EAGAIN, locks.set, ONE, Lock(B, F_RDLCK, 5, 6)) == []
    assert locks.set(ONE, Lock(B, F_RDLCK, 5, 6), "b") == ([], True)
    assert locks.set(ONE, Lock(C, F_RDLCK, 5, 20), "c") == ([], True)
    assert locks.set(TWO, Lock(C, F_WRLCK, 0, 10)) == ([], False)  # another file
    assert locks.test(ONE, Lock(B, F_RDLCK, 0, 1)).owner == A
    assert locks.set(ONE, Lock(A, F_UNLCK, 5, 6)) == (["b"], False)
    assert locks.set(ONE, Lock(A, F_RDLCK, 0, 10)) == (["c"], False)
    assert locks.test(ONE, Lock(A, F_WRLCK, 0, 1)) is None


def test_who_comes_back_keeps_its_place():
    locks = Locks()
    locks.set(ONE, Lock(A, F_WRLCK, 0, 1))
    b, c = Lock(B, F_WRLCK, 0, 1), Lock(C, F_WRLCK, 0, 1)
    assert locks.set(ONE, b, "b") == locks.set(ONE, c, "c") == ([], True)
    assert locks.waiting.pause("b") and not locks.waiting.pause("b")
    assert locks.set(ONE, b, "b again") == ([], True)
    assert locks.set(ONE, Lock(A, F_UNLCK, 0, 1)) == (["b again"], False)
    assert locks.waiting.pause("c")
    assert locks.set(ONE, Lock(B, F_UNLCK, 0, 1)) == ([], False)  # nobody is there to be told
    assert not locks.held
    locks.waiting.forget(ONE, c)
    assert not len(locks.waiting)


def test_deadlock_is_refused():
    locks = Locks()
    for owner, start in ((A, 0), (B, 1), (C, 2)):
        locks.set(ONE if owner != B else TWO, Lock(owner, F_WRLCK, start, start + 1))
    assert locks.set(TWO, Lock(A, F_WRLCK, 1, 2), "a") == ([], True)
    assert locks.set(ONE, Lock(B, F_WRLCK, 2, 3), "b") == ([], True)
    refused(errno.EDEADLK, locks.set, ONE, Lock(C, F_WRLCK, 0, 1), "c")
    assert locks.edges() == {(A, B), (B, C)} and locks.cycle(C, A)
    assert locks.cancel("a") == [] and locks.cancel("a") is None
    assert locks.set(ONE, Lock(C, F_WRLCK, 0, 1), "c") == ([], True)


def test_open_files_are_never_in_deadlock():
    """Another process may share one and let go."""
    locks = Locks()
    locks.set(ONE, Lock(FILE, F_WRLCK, 0, 1))
    locks.set(ONE, Lock(A, F_WRLCK, 1, 2))
    assert locks.set(ONE, Lock(FILE, F_WRLCK, 1, 2), "file") == ([], True)
    assert locks.set(ONE, Lock(A, F_WRLCK, 0, 1), "a") == ([], True)


def test_flock_is_a_space_of_its_own_and_converts():
    locks = Locks()
    whole = 0, 1 << 63
    assert locks.set(FLOCK, Lock(FILE, F_RDLCK, *whole)) == locks.set(FLOCK, Lock(B, F_RDLCK, *whole)) == ([], False)
    assert locks.set(ONE, Lock(C, F_WRLCK, *whole)) == ([], False)
    refused(errno.EAGAIN, locks.set, FLOCK, Lock(FILE, F_WRLCK, *whole))  # and the shared one was given up
    assert [lock.owner for lock in locks.held[FLOCK]] == [B]
    assert locks.set(FLOCK, Lock(B, F_WRLCK, *whole)) == ([], False)
    assert locks.set(FLOCK, Lock(FILE, F_RDLCK, *whole), "file") == ([], True)
    assert locks.set(FLOCK, Lock(B, F_RDLCK, *whole)) == (["file"], False)


def test_an_owner_that_is_gone_releases_and_stops_waiting():
    changed = []
    locks = Locks(changed.append)
    locks.set(ONE, Lock(A, F_WRLCK, 0, 10))
    locks.set(TWO, Lock(C, F_WRLCK, 0, 10))
    assert changed == [ONE, TWO]
    assert locks.set(ONE, Lock(C, F_RDLCK, 0, 1), "c") == ([], True)
    assert locks.set(TWO, Lock(B, F_RDLCK, 0, 1), "b") == ([], True)
    assert locks.gone(A) == ["c"] and locks.gone(B) == [] and locks.gone(C) == []
    assert not locks.held and not len(locks.waiting) and not locks.keys


@pytest.mark.parametrize("kind, start, end", [(9, 0, 1), (F_RDLCK, 5, 5), (F_RDLCK, 6, 5)])
def test_nonsense_is_refused(kind, start, end):
    with pytest.raises(OSError) as error:
        Locks().set(ONE, Lock(A, kind, start, end))
    assert error.value.errno == errno.EINVAL
