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
    nobody is there to be told, but the place in the line is kept."""

    __slots__ = ("key", "lock", "token")

    def __init__(self, key, lock, token):
        self.key, self.lock, self.token = key, lock, token


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
        self.waiting = []
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
            self._queue(key, wanted, token)
            return granted, True
        locks = replaced(locks, wanted)
        if len(locks) > LOCKS_MAX:
            raise fail(errno.ENOLCK)
        self._forget_waiter(key, wanted)
        self._store(key, locks)
        return granted + self._grant(key), False

    @staticmethod
    def _fail(code, granted):
        """Raise; those who have their lock now go along."""
        error = fail(code)
        error.granted = granted
        raise error

    def _queue(self, key, wanted, token):
        """Wait in line; who waited before for the same keeps its place."""
        for waiter in self.waiting:
            if waiter.key == key and waiter.lock == wanted and waiter.token is None:
                waiter.token = token
                return
        self.waiting.append(Waiter(key, wanted, token))

    def _forget_waiter(self, key, wanted):
        self.waiting = [waiter for waiter in self.waiting
                        if waiter.token is not None or waiter.key != key or waiter.lock != wanted]

    def pause(self, token):
        """Nobody is there for ``token`` any more, but may come back.  True when it was still waiting."""
        for waiter in self.waiting:
            if waiter.token is token:
                waiter.token = None
                return True
        return False

    def cancel(self, token):
        """The waiter gave up.  Returns the tokens of those behind it that have their lock now, or None when it did not
        wait any more."""
        for waiter in self.waiting:
            if waiter.token is token:
                self.waiting.remove(waiter)
                return self._grant(waiter.key)
        return None

    def expire(self, key, wanted):
        """Who paused did not come back."""
        self._forget_waiter(key, wanted)

    def gone(self, owner):
        """Drop everything of an owner; tokens of waiters that have their lock now."""
        self.waiting = [waiter for waiter in self.waiting if waiter.lock.owner != owner]
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
        while waiter := next((waiter for waiter in self.waiting if waiter.key == key and waiter.token is not None
                              and not conflict(self.held.get(key, ()), waiter.lock)), None):
            self.waiting.remove(waiter)  # and look again from the start: its old lock may have been stronger
            self._store(key, replaced(self.held.get(key, []), waiter.lock))
            granted.append(waiter.token)
        return granted

    def edges(self):
        """``(process that waits, process it waits for)`` of record locks here."""
        return {(waiter.lock.owner, lock.owner) for waiter in self.waiting if not waiter.lock.owner & OWNER_FILE
                for lock in self.held.get(waiter.key, ())
                if not lock.owner & OWNER_FILE and conflict([lock], waiter.lock)}

    def cycle(self, owner, holder, edges=None):
        """Whether ``holder`` waits, directly or through others, for ``owner``.  Only processes can be in deadlock:
        who shares an open file could be released by somebody else."""
        if (owner | holder) & OWNER_FILE:
            return False
        edges = self.edges() if edges is None else edges
        seen, frontier = set(), [holder]
        while frontier and len(seen) < CYCLE_STEPS_MAX:
            current = frontier.pop()
            if current == owner:
                return True
            if current not in seen:
                seen.add(current)
                frontier += [other for waits, other in edges if waits == current]
        return False
