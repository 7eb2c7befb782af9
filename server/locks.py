# SPDX-License-Identifier: Apache-2.0
"""Locks of one server's files: pure bookkeeping.  Times, replies, connections and the store are the caller's.

A file has two spaces of locks: RECORD, ranges [start, end) in bytes (POSIX and open file description locks, which see
each other), and WHOLE (flock).  An owner is a number of 64 bits: with OWNER_FILE an open file description, without it
a process.  As fcntl(2) has it, an owner's own locks never conflict, setting a lock replaces what the range had, and
parts are split off and merged; as flock(2) has it, a conversion gives the old lock up first.
"""
import errno
from collections import namedtuple
from fcntl import F_RDLCK, F_UNLCK, F_WRLCK

from pymadfs.errors import fail
from pymadfs.ops import LOCK_WHOLE, OWNER_FILE

LOCKS_MAX = 1 << 16  # per file
CYCLE_STEPS_MAX = 1 << 10

Lock = namedtuple("Lock", "owner type start end")


class Waiter:
    """Somebody who waits for ``lock`` in the space ``key``, (inode, space).  ``token`` is whom to tell; None while
    nobody is there to be told, but the place in the line is kept; ``pauses`` counts how often that came to be."""

    __slots__ = ("key", "lock", "pauses", "token")

    def __init__(self, key, lock, token):
        self.key, self.lock, self.token, self.pauses = key, lock, token, 0


class Line:
    """Those who wait, in the order in which they came.  A thousand of them ask again several times a second: nothing
    that is done with one looks at the others."""

    def __init__(self):
        self._all = {}  # Waiter -> None, as are the dictionaries within the next ones
        self._of_key, self._of_owner = {}, {}
        self._of_token = {}  # token -> Waiter
        self._paused = {}  # (key, lock) -> Waiter without a token

    def __iter__(self):
        return iter(self._all)

    def __len__(self):
        return len(self._all)

    def of_key(self, key):
        """Those who wait in a space, in order."""
        return self._of_key.get(key, ())

    def of_owner(self, owner):
        return self._of_owner.get(owner, ())

    def add(self, key, lock, token):
        """Wait in line; who waited before for the same keeps its place."""
        waiter = self._paused.pop((key, lock), None)
        if waiter is None:
            waiter = Waiter(key, lock, token)
            self._all[waiter] = None
            self._of_key.setdefault(key, {})[waiter] = None
            self._of_owner.setdefault(lock.owner, {})[waiter] = None
        waiter.token = token
        self._of_token[token] = waiter

    def remove(self, waiter):
        """The waiter does not wait any more."""
        del self._all[waiter]
        for index, value in ((self._of_key, waiter.key), (self._of_owner, waiter.lock.owner)):
            del index[value][waiter]
            if not index[value]:
                del index[value]
        if waiter.token is not None:
            del self._of_token[waiter.token]
        elif self._paused.get((waiter.key, waiter.lock)) is waiter:
            del self._paused[waiter.key, waiter.lock]

    def take(self, token):
        """The waiter of a token, which does not wait any more; None when it did not."""
        waiter = self._of_token.get(token)
        if waiter is not None:
            self.remove(waiter)
        return waiter

    def pause(self, token):
        """Nobody is there for ``token`` any more, but may come back.  Its number of pauses, 0 when it did not wait."""
        waiter = self._of_token.get(token)
        if waiter is None:
            return 0
        self.forget(waiter.key, waiter.lock)  # of two threads that wait for the same, one place is kept
        del self._of_token[token]
        waiter.token = None
        self._paused[waiter.key, waiter.lock] = waiter
        waiter.pauses += 1
        return waiter.pauses

    def forget(self, key, lock, pauses=0):
        """Who paused, for that time if ``pauses`` says so, does not come back."""
        waiter = self._paused.get((key, lock))
        if waiter is not None and pauses in (0, waiter.pauses):
            self.remove(waiter)


def replaced(locks, new):
    """The sorted list ``locks`` of one file after its owner set ``new``: split, replaced and merged."""
    result, start, end = [], new.start, new.end
    for lock in locks:
        if lock.owner != new.owner or lock.end < new.start or lock.start > new.end:
            result.append(lock)
        elif lock.type == new.type:  # touching or overlapping: one lock
            start, end = min(start, lock.start), max(end, lock.end)
        else:
            if lock.start < new.start:
                result.append(lock._replace(end=new.start))
            if lock.end > new.end:
                result.append(lock._replace(start=new.end))
    if new.type != F_UNLCK:
        result.append(Lock(new.owner, new.type, start, end))
    return sorted(result, key=lambda lock: (lock.start, lock.end))


def conflict(locks, wanted):
    """The first lock that keeps ``wanted`` from being set, or None."""
    for lock in locks:
        if (lock.owner != wanted.owner and lock.start < wanted.end and wanted.start < lock.end
                and F_WRLCK in (lock.type, wanted.type)):
            return lock
    return None


class Locks:
    """Locks held and waited for.  ``changed(key)`` is called whenever the locks of a space change; ``set`` and
    ``release`` return the tokens of waiters that have their lock now."""

    def __init__(self, changed=lambda key: None):
        self.held = {}  # (ino, space) -> sorted list of Lock
        self.waiting = Line()
        self.keys = {}  # owner -> set of keys it holds locks in
        self._changed = changed

    def test(self, key, wanted):
        """The lock that would keep ``wanted`` waiting (F_GETLK), or None.  Of type F_UNLCK: the owner's own there."""
        if wanted.type == F_UNLCK:
            return next((lock for lock in self.held.get(key, ())
                         if lock.owner == wanted.owner and lock.start < wanted.end and wanted.start < lock.end), None)
        return conflict(self.held.get(key, ()), wanted)

    def set(self, key, wanted, token=None):
        """Set or remove a lock.  Returns ``(tokens, waits)``: whose waiting is over, and whether ``wanted`` has to
        wait, in line, until ``token`` is told.  Without a token: EAGAIN.  EDEADLK when waiting would never end."""
        if wanted.type not in (F_RDLCK, F_WRLCK, F_UNLCK) or wanted.start >= wanted.end:
            raise fail(errno.EINVAL)
        locks = self.held.get(key, [])
        granted = []
        if key[1] == LOCK_WHOLE and any(lock.owner == wanted.owner and lock.type != wanted.type for lock in locks):
            locks = [lock for lock in locks if lock.owner != wanted.owner]
            self._store(key, locks)
            if wanted.type != F_UNLCK and conflict(locks, wanted):
                granted = self._grant(key)
                locks = self.held.get(key, [])
        if wanted.type != F_UNLCK and (obstacle := conflict(locks, wanted)):
            if token is None:
                self._fail(errno.EAGAIN, granted)
            if self.cycle(wanted.owner, obstacle.owner):
                self._fail(errno.EDEADLK, granted)
            self.waiting.add(key, wanted, token)
            return granted, True
        locks = replaced(locks, wanted)
        if len(locks) > LOCKS_MAX:
            raise fail(errno.ENOLCK)
        self.waiting.forget(key, wanted)
        self._store(key, locks)
        return granted + self._grant(key), False

    @staticmethod
    def _fail(code, granted):
        """Raise; those who have their lock now go along."""
        error = fail(code)
        error.granted = granted
        raise error

    def cancel(self, token):
        """The waiter gave up.  Returns the tokens of those behind it that have their lock now, or None when it did not
        wait any more."""
        waiter = self.waiting.take(token)
        return None if waiter is None else self._grant(waiter.key)

    def gone(self, owner):
        """Drop everything of an owner; tokens of waiters that have their lock now."""
        for waiter in list(self.waiting.of_owner(owner)):
            self.waiting.remove(waiter)
        granted = []
        for key in sorted(self.keys.get(owner, ())):
            self._store(key, [lock for lock in self.held[key] if lock.owner != owner])
            granted += self._grant(key)
        return granted

    def load(self, key, locks):
        """Locks of a file as they were stored."""
        self.held[key] = locks
        for lock in locks:
            self.keys.setdefault(lock.owner, set()).add(key)

    def _store(self, key, locks):
        before = self.held.get(key, [])
        if before == locks:
            return
        now = {lock.owner for lock in locks}
        for owner in {lock.owner for lock in before} - now:
            self.keys[owner].discard(key)
            if not self.keys[owner]:
                del self.keys[owner]
        for owner in now:
            self.keys.setdefault(owner, set()).add(key)
        if locks:
            self.held[key] = locks
        else:
            self.held.pop(key, None)
        self._changed(key)

    def _grant(self, key):
        """Give those who wait what they can have now, in the order in which they came."""
        granted = []
        while waiter := next((waiter for waiter in self.waiting.of_key(key) if waiter.token is not None
                              and not conflict(self.held.get(key, ()), waiter.lock)), None):
            self.waiting.remove(waiter)  # and look again from the start: its old lock may have been stronger
            self._store(key, replaced(self.held.get(key, []), waiter.lock))
            granted.append(waiter.token)
        return granted

    def edges(self):
        """``(process that waits, process it waits for)`` of record locks here."""
        return {(waiter.lock.owner, other) for waiter in self.waiting for other in self.obstacles(waiter)}

    def obstacles(self, waiter):
        """The processes that a process waits for."""
        if waiter.lock.owner & OWNER_FILE:
            return set()
        return {lock.owner for lock in self.held.get(waiter.key, ())
                if not lock.owner & OWNER_FILE and conflict([lock], waiter.lock)}

    def cycle(self, owner, holder):
        """Whether ``holder`` waits here, directly or through others, for ``owner``.  Only processes can be in deadlock:
        who shares an open file could be released by somebody else."""
        if (owner | holder) & OWNER_FILE:
            return False
        return owner in reached(holder, lambda current: {
            other for waiter in self.waiting.of_owner(current) for other in self.obstacles(waiter)})


def reached(start, following):
    """``start`` and what ``following`` (a number to a set of them) leads to from there."""
    seen, frontier = set(), [start]
    while frontier and len(seen) < CYCLE_STEPS_MAX:
        current = frontier.pop()
        if current not in seen:
            seen.add(current)
            frontier += following(current)
    return seen


def circles(edges):
    """Those in ``edges``, pairs of who waits for whom, that wait for themselves through others."""
    ahead: dict = {}
    for waits, other in edges:
        ahead.setdefault(waits, set()).add(other)
    left = None
    while left != len(ahead):  # who waits for nobody that waits is in no circle
        left = len(ahead)
        ahead = {waits: others & ahead.keys() for waits, others in ahead.items() if others & ahead.keys()}
    return {waits for waits, others in ahead.items()
            if any(waits in reached(other, lambda current: ahead.get(current, ())) for other in others)}
