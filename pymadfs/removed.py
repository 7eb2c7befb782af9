# SPDX-License-Identifier: Apache-2.0
"""Directories that are named by their inodes: the one a relative path begins in, when its name leads nowhere any more.

Who has a directory open, or works in it, knows its last path and its inode.  When that path is wrong, the shim gives
the call once more with ``path NUL inode`` in its place, a name that nobody can have.  It is looked up here: a directory
that another node has renamed is where it is now; one that was removed has its attributes, no entries, and above it what
was above.
"""

import errno
import posix

from .abi import OFFSET_MAX
from .client import R_OK, S_IFDIR, S_IFMT, File, allowed
from .errors import fail
from .ops import OPEN, SETATTR


def resolve(fs, op, path, fields):
    """``(path, attributes)`` of what ``op`` (LOOKUP, OPEN or SETATTR by path) does to ``path NUL inode``.

    Raises OSError; ENOENT when more names follow, for there are none.
    """
    path, _, rest = path.partition(b"\0")
    if not rest.isdigit() or int(rest) > OFFSET_MAX:
        raise fail(errno.ENOENT, path)
    file = File(int(rest), S_IFDIR, path, 0)
    if op is SETATTR:
        attr = fs.fsetattr(file, *fields[1:])
    else:
        attr = fs.getattr(file)
    if op is OPEN:
        _check_open(attr, fs.rpc.who, fields[0])
    return path if not attr.nlink else fs.where(file.ino) or path, attr


def _check_open(attr, who, flags):
    """What the server says to OPEN of a directory."""
    if attr.mode & S_IFMT != S_IFDIR or flags & posix.O_PATH:
        return
    if flags & (posix.O_ACCMODE | posix.O_TRUNC | posix.O_CREAT):
        raise fail(errno.EISDIR)
    if not allowed(attr, who, R_OK):
        raise fail(errno.EACCES)
    if flags & posix.O_NOATIME and who.uid not in (0, attr.uid):
        raise fail(errno.EPERM)
