# SPDX-License-Identifier: Apache-2.0
"""Why a rename failed: of several reasons the one that Linux finds first.

The servers that hold the two names find out about their own half, and each stops at its first reason.  Which of all
comes first is looked up when a rename has failed, so that one that succeeds pays nothing for it.
"""

import errno

from . import identity
from .abi import NAME_MAX, RENAME_EXCHANGE, RENAME_NOREPLACE
from .client import S_IFDIR, S_IFMT
from .errors import fail
from .layout import covers, join

REASONS = frozenset(
    (
        errno.EACCES,
        errno.EBUSY,
        errno.EEXIST,
        errno.EINVAL,
        errno.EISDIR,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.ENOENT,
        errno.ENOTDIR,
        errno.ENOTEMPTY,
        errno.EPERM,
    )
)
"""What a rename may fail with for one of several reasons."""

_S_ISVTX = 0o1000
_CHANGE = identity.WRITE | identity.SEARCH


class _Name:
    """One of the two names: the directory that it is in, to which there is a way, and what has it."""

    def __init__(self, fs, path):
        self.fs = fs
        bare = path.rstrip(b"/")
        above, _, self.last = bare.rpartition(b"/")
        self.slash = len(bare) < len(path)
        self.directory = fs.directory(above or b"/", search=True)
        self.special = self.last in (b"", b".", b"..")

    def find(self):
        """Look who has the name; ``attr`` is None when nobody has."""
        if len(self.last) > NAME_MAX:
            raise fail(errno.ENAMETOOLONG, self.last)
        self.path = join(self.directory, self.last)
        self.above = self.fs.lookup(self.directory)[1]
        try:
            self.attr = self.fs.lookup(self.path, follow=False)[1]
        except FileNotFoundError:
            self.attr = None
        self.is_directory = self.attr is not None and self.attr.mode & S_IFMT == S_IFDIR

    def check_removal(self, who):
        """Whether ``who`` may take the name away."""
        self.check_change(who)
        others = who.uid and who.uid not in (self.attr.uid, self.above.uid)
        if self.above.mode & _S_ISVTX and others:
            raise fail(errno.EPERM, self.path)

    def check_change(self, who):
        above = self.above
        if not identity.allowed(above.mode, above.uid, above.gid, who, _CHANGE):
            raise fail(errno.EACCES, self.path)

    def check_moving(self, who):
        """A directory whose ``..`` changes is written to."""
        attr = self.attr
        if self.is_directory and not identity.allowed(attr.mode, attr.uid, attr.gid, who, identity.WRITE):
            raise fail(errno.EACCES, self.path)


def explain(fs, old, new, flags):
    """Raise what is wrong with ``rename(old, new, flags)``, in Linux's order; return when nothing is found."""
    old, new = _Name(fs, old), _Name(fs, new)
    if old.special:
        raise fail(errno.EBUSY, old.last)
    if new.special:
        raise fail(errno.EEXIST if flags & RENAME_NOREPLACE else errno.EBUSY, new.last)
    old.find()
    if old.attr is None:
        raise fail(errno.ENOENT, old.path)
    new.find()
    _check_kinds(old, new, flags)
    if new.attr is None or new.attr.ino != old.attr.ino:
        _check_permissions(old, new, flags, fs.rpc.who)


def _check_kinds(old, new, flags):
    exchange = flags & RENAME_EXCHANGE
    if new.attr is not None and flags & RENAME_NOREPLACE:
        raise fail(errno.EEXIST, new.path)
    if exchange and new.attr is None:
        raise fail(errno.ENOENT, new.path)
    if exchange and new.slash and not new.is_directory:
        raise fail(errno.ENOTDIR, new.path)
    if not old.is_directory and (old.slash or new.slash and not exchange):
        raise fail(errno.ENOTDIR, old.path)
    if old.is_directory and covers(old.path, new.directory):
        raise fail(errno.EINVAL, new.path)
    if new.is_directory and covers(new.path, old.directory):
        raise fail(errno.EINVAL if exchange else errno.ENOTEMPTY, new.path)


def _check_permissions(old, new, flags, who):
    exchange = flags & RENAME_EXCHANGE
    old.check_removal(who)
    if new.attr is None:
        new.check_change(who)
    else:
        new.check_removal(who)
        if not exchange and old.is_directory != new.is_directory:
            raise fail(errno.EISDIR if new.is_directory else errno.ENOTDIR, new.path)
    if old.above.ino != new.above.ino:
        old.check_moving(who)
        if exchange:
            new.check_moving(who)
