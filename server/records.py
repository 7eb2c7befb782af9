# SPDX-License-Identifier: Apache-2.0
"""Whether what a key of the store has can be what docs/format.md says of its kind.

A server that starts leaves what cannot be aside, with a line in its log, instead of failing for it; fsck tells of it
and removes it.
"""
import struct

from pymadfs.layout import home
from pymadfs.log import log

from .frozen import RECORD as FROZEN
from .locking import HOLDER, LOCKED
from .meta import DEBT, INTENT, KINDS, NUMBER, PURGE, entry_key, is_whole, path_of
from .subtree import INTENT as TREE
from .xattrs import unpack as unpack_xattrs


def whole(key, value, servers):
    """Whether ``value`` can be the record of ``key`` in a cluster of so many servers."""
    check = _CHECKS.get(key[:2]) or _CHECKS.get(key[:1])
    try:
        return check is None or bool(check(key, value, servers))
    except (struct.error, ValueError, IndexError):
        return False


def sound(server, records):
    """Those of the ``(key, value)`` in ``records`` that are whole; the others are told of."""
    found = []
    for key, value in records:
        if whole(key, value, server.servers):
            found.append((key, value))
        else:
            log(f"server {server.number}: the record of {KINDS[key[:1]]} is damaged and not taken up: look at the "
                "store with `madfs fsck`")
    return found


def _numbered(size):
    """Keys that are two or fewer letters and numbers: so many bytes."""
    return lambda key, value, servers: len(key) == size


def _path(path):
    return path[:1] == b"/"


def _entry(key, value, servers):
    return is_whole(value, servers) and entry_key(path_of(key)) == key


def _staged(key, value, servers):
    return _entry(key[10:], value, servers)


def _intent(key, value, servers):
    fields = INTENT.unpack(value)
    middle, end = INTENT.size + fields.old, INTENT.size + fields.old + fields.new
    return (len(key) == 9 and len(value) >= end + 4 * fields.groups and _path(value[INTENT.size:middle])
            and _path(value[middle:end]) and is_whole(fields.attr, servers))


def _debt(key, value, servers):
    ino = DEBT.unpack(value).ino
    return len(key) == 9 and (home(ino) < servers if ino else _path(value[DEBT.size:]))


def _tree(key, value, servers):
    fields = TREE.unpack(value)
    paths = TREE.size + fields.old
    return (len(key) == 10 and len(value) == paths + fields.new + fields.moved + fields.back
            and _path(value[TREE.size:paths]) and _path(value[paths:paths + fields.new]))


def _frozen(key, value, servers):
    fields = FROZEN.unpack(value)
    middle = FROZEN.size + fields.old
    return (len(key) == 10 and len(value) == middle + fields.new and _path(value[FROZEN.size:middle])
            and _path(value[middle:]))


def _xattrs(key, value, servers):
    found = unpack_xattrs(value)
    return len(key) == 10 and sum(5 + len(name) + len(each) for name, each in found.items()) == len(value)


_CHECKS = {
    b"E": _entry,
    b"I": lambda key, value, servers: len(key) == 9 and is_whole(value, servers),
    b"P": lambda key, value, servers: len(key) == 9 and len(value) == PURGE.size,
    b"D": _numbered(9),
    b"C": _numbered(17),
    b"X": _numbered(13),
    b"R": _intent,
    b"N": _debt,
    b"TI": _tree,
    b"TF": _frozen,
    b"SE": _staged,
    b"ST": lambda key, value, servers: len(key) == 10 and len(value) == NUMBER.size,
    b"SL": lambda key, value, servers: len(key) == 10 and _path(value),
    b"AX": _xattrs,
    b"AL": lambda key, value, servers: len(key) == 11 and len(value) % LOCKED.size == 0,
    b"AO": lambda key, value, servers: len(key) == 10 and len(value) % HOLDER.size == 0,
}
