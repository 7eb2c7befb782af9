# SPDX-License-Identifier: Apache-2.0
"""POSIX record locks of one server's files: pure bookkeeping.  Times, replies and connections are the caller's.

An owner is ``(connection, owner number)``; ranges are [start, end) in bytes.  As fcntl(2) has it: a process's own locks
never conflict, setting a lock replaces what the range had, and parts are split off and merged.
"""
import errno
from collections import namedtuple
from fcntl import F_RDLCK, F_UNLCK, F_WRLCK

from pymadfs.errors import fail

LOCKS_MAX = 1 << 16  # per file
CYCLE_STEPS_MAX = 1 << 10

Lock = namedtuple("Lock", "owner type start end")
Waiter = namedtuple("Waiter", "ino lock token")


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
    """Locks held and waited for.  ``set`` and ``release`` say whose waiting is over."""

    def __init__(self):
        self.held = {}
        self.waiting = []

    def test(self, ino, wanted):
        """The lock that would keep ``wanted`` waiting (F_GETLK), or None."""
        return conflict(self.held.get(ino, ()), wanted)

    def set(self, ino, wanted, token=None):
        """Set or remove a lock.  Returns the tokens of waiters that have theirs now, or None when ``wanted`` has to
        wait: it is then queued under ``token``.  Without a token: EAGAIN.  EDEADLK when waiting would never end."""
        if wanted.type not in (F_RDLCK, F_WRLCK, F_UNLCK) or wanted.start >= wanted.end:
            raise fail(errno.EINVAL)
        locks = self.held.get(ino, [])
        if wanted.type != F_UNLCK and (obstacle := conflict(locks, wanted)):
            if token is None:
                raise fail(errno.EAGAIN)
            if self._cycle(wanted.owner, obstacle.owner):
                raise fail(errno.EDEADLK)
            self.waiting.append(Waiter(ino, wanted, token))
            return None
        locks = replaced(locks, wanted)
        if len(locks) > LOCKS_MAX:
            raise fail(errno.ENOLCK)
        self._store(ino, locks)
        return self._grant({ino})

    def cancel(self, token):
        """The waiter gave up.  True when it was still waiting."""
        before = len(self.waiting)
        self.waiting = [waiter for waiter in self.waiting if waiter.token is not token]
        return len(self.waiting) < before

    def lost(self, conn):
        """Drop everything of a connection; tokens of waiters that have their lock now."""
        self.waiting = [waiter for waiter in self.waiting if waiter.lock.owner[0] != conn]
        touched = set()
        for ino, locks in list(self.held.items()):
            kept = [lock for lock in locks if lock.owner[0] != conn]
            if len(kept) < len(locks):
                touched.add(ino)
                self._store(ino, kept)
        return self._grant(touched)

    def _store(self, ino, locks):
        if locks:
            self.held[ino] = locks
        else:
            self.held.pop(ino, None)

    def _grant(self, inos):
        granted = []
        while waiter := next((waiter for waiter in self.waiting if waiter.ino in inos
                              and not conflict(self.held.get(waiter.ino, ()), waiter.lock)), None):
            self.waiting.remove(waiter)  # and look again from the start: its old lock may have been stronger
            self._store(waiter.ino, replaced(self.held.get(waiter.ino, []), waiter.lock))
            granted.append(waiter.token)
        return granted

    def _cycle(self, owner, holder):
        """Whether ``holder`` waits, directly or through others, for ``owner``."""
        seen, frontier = set(), [holder]
        while frontier and len(seen) < CYCLE_STEPS_MAX:
            current = frontier.pop()
            if current == owner:
                return True
            if current in seen:
                continue
            seen.add(current)
            for waiter in self.waiting:
                if waiter.lock.owner == current:
                    frontier += [lock.owner for lock in self.held.get(waiter.ino, ())
                                 if conflict([lock], waiter.lock)]
        return False
