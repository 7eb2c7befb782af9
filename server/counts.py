# SPDX-License-Identifier: Apache-2.0
"""Link counts that live on another server than the name that changed: what is owed there, and how it is told.

The change of a name and a debt (DEBT, key N) are one batch; COUNT then tells the home, and the debt is deleted.  The
home remembers which debts it has taken (key X, as for renames), so that one told twice counts once.  A debt found at
start, or whose home is dead, is told until somebody answers.

A name that comes is counted before it is there, one that goes after it is gone: the count of a file is never too small.
So a debt of +1 means that the name was never put: when it is told late, the opposite debt follows.
"""
import errno
from collections import deque

from pymadfs.layout import home, owner
from pymadfs.log import log
from pymadfs.ops import ATTR, COUNT

from .meta import DEBT, changed, debt_key, is_directory, now_ns


def owe(server, ino, change, path, now):
    """Record with this batch that the count of ``ino`` changes, or that of the directory ``path`` when ``ino`` is 0, at
    ``now`` (ns).  Returns the debt's number; once it is committed, ``settle`` it."""
    number = server.meta.serial()
    server.kv.put(debt_key(number), DEBT.pack(ino, change, now) + path)
    server.intents.add(number)
    if not ino:
        server.linking[number] = path
    return number


async def settle(server, number):
    """Tell a committed debt; when its home does not answer, go on in the background."""
    server.intents.add(number)
    try:
        await _pay(server, number)
    except OSError:
        later(server, number)


def later(server, number):
    """Tell a committed debt in the background, after those that wait for the same server."""
    server.intents.add(number)
    record = server.kv.get(debt_key(number))
    if record is None:
        server.intents.discard(number)
        return
    ino, path = DEBT.unpack(record).ino, record[DEBT.size:]
    target = _home(server, ino, path)
    if not ino:
        server.linking[number] = path
    if target in server.debts:
        server.debts[target].append(number)
    else:
        server.debts[target] = deque([number])
        server.spawn(_pay_all(server, target))


async def _pay_all(server, target):
    line = server.debts[target]
    while line:
        try:
            await _pay(server, line[0])
        except OSError as error:
            log(f"server {server.number}: {len(line)} link counts wait for server {target}: {error}")
            await server.pause()
        else:
            line.popleft()
    del server.debts[target]


async def _pay(server, number):
    record = server.kv.get(debt_key(number))
    if record is not None:
        debt = DEBT.unpack(record)
        try:
            await tell(server, number)
        except OSError as error:
            if error.errno not in _FINAL:
                raise
        else:
            if debt.ino and debt.change > 0:
                back = owe(server, debt.ino, -debt.change, b"", now_ns())
                forgive(server, number)
                server.commit()
                later(server, back)
                return
        forgive(server, number)
        server.commit()
    server.intents.discard(number)


# What refuses a debt for good: the inode or directory is gone, or takes no further name.
_FINAL = (errno.ENOENT, errno.EPERM, errno.EMLINK)


async def tell(server, number):
    """Ask the home of debt ``number`` to count.  Returns COUNT's reply and tail; raises OSError."""
    record = server.kv.get(debt_key(number))
    ino, change, now = DEBT.unpack(record)
    path = record[DEBT.size:]
    below = min(server.intents, default=number)
    return await server.call_peer(_home(server, ino, path), COUNT, path, ino, change, now, number, min(below, number),
                                  server.number)


def forgive(server, number):
    """The debt is paid, or was refused: forget it with this batch."""
    server.kv.delete(debt_key(number))
    server.linking.pop(number, None)
    server.intents.discard(number)


def _home(server, ino, path):
    return home(ino) if ino else owner(path, server.servers)


# --- directories ----------------------------------------------------------------------------------------------------


def adjust(server, key, now, links):
    """A directory came (``links`` 1) or went (-1) in the directory whose entry is ``key``, here."""
    value = server.kv.get(key)
    if value is not None and is_directory(value):
        attr = ATTR.unpack(value)
        server.kv.put(key, changed(value, nlink=max(2, attr.nlink + links), mtime_ns=max(now, attr.mtime_ns),
                                   ctime_ns=max(now, attr.ctime_ns)))


async def settled(server, number, result):
    """The ``result`` of a request whose debt ``number`` is pending, once it is told."""
    server.commit()
    await settle(server, number)
    return result
