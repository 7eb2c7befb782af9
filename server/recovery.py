# SPDX-License-Identifier: Apache-2.0
"""What must still happen: removals whose names are gone, renames whose second half may be missing, link counts that are
owed to other servers.

Their records are written together with the change that makes them necessary, and deleted when they are done; what is
found at start is taken up again.  A server that cannot be reached is asked again until it answers.
"""
import asyncio

from pymadfs.ops import UNFINISHED

from . import counts
from .dispatch import gather, serves
from .frozen import FROZEN, resume_freezes
from .inodes import everywhere, purge
from .meta import APPLIED, DEBTS, INTENTS, PURGE, PURGES, applied_server, chunk_key, inode_key, key_number
from .records import sound
from .rename import resume_rename
from .subtree import INTENTS as TREES
from .subtree import resume_trees

RECORDS_MAX = 1 << 20
GREETED_MAX = 64  # servers; in a larger cluster the others find out when they try again


def resume(server):
    """At start: take up what a crash or a stop has left."""
    kv = server.kv

    def found(prefix):
        return sound(server, kv.scan(prefix, b"", RECORDS_MAX))

    for key, _ in found(APPLIED):
        server.applied.setdefault(applied_server(key), []).append(key_number(key))
    for key, value in found(INTENTS):
        resume_rename(server, key_number(key), value)
    for key, _ in found(DEBTS):
        counts.later(server, key_number(key))
    resume_freezes(server, found(FROZEN))
    resume_trees(server, found(TREES))
    for key, record in found(PURGES):
        ino = key_number(key)
        kv.put(key, everywhere(server, PURGE.unpack(record)))
        if kv.get(inode_key(ino)) is not None:
            server.orphans.add(ino)  # somebody had it open, and may still have
        else:
            server.remove(purge(server, ino))
    server.flush()
    server.wait_for_openings()
    if not server.meta.idle:
        server.spawn(greet(server))
        server.spawn(sweep(server))


async def greet(server):
    """Let the others know that this server is back: what waited for it there goes on at once (Server.pause)."""
    others = [number for number in range(server.servers) if number != server.number]
    try:
        await gather([server.call_peer(number, UNFINISHED) for number in others[:GREETED_MAX]])
    except OSError:
        return  # who is dead asks by itself when it is back


async def sweep(server):
    """After a crash: remove chunk files that no key names, left of writes that were never acknowledged.  Nobody else
    would, not even with the file; what is written meanwhile has its key, or is open, when it is looked at."""
    for directory in server.chunks.directories():
        for ino, chunk in await server.io(server.chunks.files, directory):
            if server.kv.get(chunk_key(ino, chunk)) is None:
                server.chunks.remove_unknown(ino, chunk)
            await asyncio.sleep(0)


@serves(UNFINISHED)
def unfinished(server, request):
    stuck = sum(is_stuck for _, is_stuck in server.dirs.held_keys())
    frozen = sum(freeze.stuck for freeze in server.freezes.all())
    owed = sum(len(line) for line in server.debts.values())
    return (stuck + frozen + owed + server.subtrees.insisting,), b""
