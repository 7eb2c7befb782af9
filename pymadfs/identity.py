# SPDX-License-Identifier: Apache-2.0
"""In whose name something is asked, and what permission bits grant to whom.

User 0 has the capabilities of root, and nobody else has any.  What has attributes ``uid``, ``gid`` and ``groups`` can
stand for a :class:`Who`: requests of rpc.py have them.
"""
S_IFMT, S_IFDIR = 0o170000, 0o040000
READ, WRITE, SEARCH = 4, 2, 1  # SEARCH of a directory, or execution of a file
NO_GROUPS: frozenset = frozenset()


class Who(tuple):
    """``(uid, gid, number, groups)``: a user, its group, its supplementary groups and the number that requests
    have for those."""

    __slots__ = ()

    def __new__(cls, uid, gid, number=0, groups=NO_GROUPS):
        return tuple.__new__(cls, (uid, gid, number, groups))

    @property
    def uid(self):
        return self[0]

    @property
    def gid(self):
        return self[1]

    @property
    def groups(self):
        return self[3]


def member(who, gid):
    """Whether ``gid`` is the group or one of the supplementary groups of ``who``."""
    return gid == who.gid or gid in who.groups


def allowed(mode, uid, gid, who, want):
    """Whether ``who`` may do all of ``want`` (READ, WRITE, SEARCH) with an inode of this mode, owner and group."""
    if who.uid == 0:
        return not want & SEARCH or mode & S_IFMT == S_IFDIR or bool(mode & 0o111)
    if who.uid == uid:
        mode >>= 6
    elif gid == who.gid or gid in who.groups:
        mode >>= 3
    return mode & want == want
