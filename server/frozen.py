# SPDX-License-Identifier: Apache-2.0
"""Names of which nothing may be seen or changed on this server, while what is below them moves (subtree.py).

A frozen server parks requests by path at or below the two names of the rename.  Requests by inode, and what servers
ask of each other, go on.  The freeze is durable: a server that starts again comes up frozen, and asks the coordinator
how the rename ended.
"""
import asyncio
import errno

from pymadfs.errors import fail
from pymadfs.layout import covers, owner, parent
from pymadfs.log import log
from pymadfs.ops import LINK, MOVETREE, TREE, Record

from .directories import Wait
from .meta import entry_key, key_number

NOREPLACE, EXCHANGE = 1, 2
LOOK, MOVE, PUBLISH, TAKE, PUT, REMOVE, PARENT, STUCK, THAW, KNOWN = range(1, 11)  # steps of TREE

FROZEN = b"TF"
RECORD = Record("Frozen", "flags:I done:I old:H new:H")


def frozen_key(number):
    return FROZEN + number.to_bytes(8, "big")


class Freeze:
    """Two names of which nothing may be seen or changed here while rename ``number`` moves what is below them."""

    def __init__(self, number, flags, old, new, done=0):
        self.number, self.flags, self.old, self.new, self.done = number, flags, old, new, done
        self.names = old, new
        self.parked = []
        self.stuck = False  # the rename cannot go on because a server is dead: requests get EIO
        self.reserved = False  # the new name's parent was found: it is not empty any more
        self.held = []  # keys of the two names' entries that are here
        self.conn = None  # the coordinator's connection
        self.cursors = {}  # prefix of keys -> the last one that was moved
        self.alone = asyncio.Lock()  # of who moves entries
        self.published = False  # what is at the names is there to stay
        self.changed = asyncio.get_running_loop().create_future()  # it is over, or stuck

    def record(self):
        """What the store keeps."""
        return RECORD.pack(self.flags, self.done, len(self.old), len(self.new)) + self.old + self.new

    def wake(self):
        if not self.changed.done():
            self.changed.set_result(None)

    def concerns(self, path):
        return covers(self.old, path) or covers(self.new, path)

    def other(self, name):
        """Where what is at one of the two names goes."""
        return self.new if name == self.old else self.old

    def ways(self):
        """``(from, to)`` of the names that move."""
        return [(self.old, self.new), (self.new, self.old)] if self.flags & EXCHANGE else [(self.old, self.new)]


class Freezes:
    """Of one server; false when there is none, which is all that a request pays for them."""

    def __init__(self, server):
        self._server = server
        self._by_number = {}

    def __bool__(self):
        return bool(self._by_number)

    def get(self, number):
        """The freeze of rename ``number``.  Raises OSError EPROTO: it is over, or never was."""
        found = self._by_number.get(number)
        if found is None:
            raise fail(errno.EPROTO)
        return found

    def add(self, freeze):
        self._by_number[freeze.number] = freeze

    def known(self, number):
        return self._by_number.get(number)

    def over(self, path):
        """The freeze that concerns ``path``, or None."""
        for freeze in self._by_number.values():
            if freeze.concerns(path):
                return freeze
        return None

    def park(self, request):
        """True: the request names something frozen and is kept until the thaw.  Raises OSError EIO when that may be
        long: a server is dead."""
        op = request.op
        by_inode = op is not LINK and "ino" in op.request.fields and request.fields.ino
        if op.peer or op is MOVETREE or by_inode or not request.tail:
            return False
        tail = request.tail
        paths: tuple = (tail,)
        if "length" in op.request.fields:
            length = request.fields.length
            paths = tail[:length], tail[length:]
        for path in paths:
            freeze = self.over(path)
            if freeze is not None:
                if freeze.stuck:
                    raise fail(errno.EIO)
                freeze.parked.append(request)
                return True
        return False

    def still(self, directory):
        """For a change by inode of a directory, which moves with its entry: Wait until nothing freezes the path."""
        freeze = self.over(directory)
        if freeze is not None:
            if freeze.stuck:
                raise fail(errno.EIO)
            raise Wait(lambda: asyncio.shield(freeze.changed))

    def reserves(self, directory):
        """Whether a name that a rename will put in ``directory`` is as good as there."""
        return any(freeze.reserved and parent(freeze.new) == directory for freeze in self._by_number.values())

    def stick(self, freeze):
        """The rename waits for a dead server: who waits for it, and whoever comes, gets EIO until the thaw."""
        freeze.stuck = True
        freeze.wake()
        parked, freeze.parked = freeze.parked, []
        for request in parked:
            self._server.rpc.fail(request, fail(errno.EIO))

    def thaw(self, freeze):
        """The rename is over here."""
        server = self._server
        del self._by_number[freeze.number]
        freeze.wake()
        server.kv.delete(frozen_key(freeze.number))
        for key in freeze.held:
            server.dirs.let_go(key)
        server.dirs.forget_below(freeze.old, freeze.new)  # a question that was on its way may have been answered since
        server.commit()
        parked = [request for request in freeze.parked if request.conn in server.conns]
        if parked:
            server.loop.call_soon(server.serve, parked)
            server.posted()

    def lost(self, conn):
        """A connection is lost: when it is the coordinator's, ask how its rename ended."""
        for freeze in self.all():
            if freeze.conn == conn:
                self.stick(freeze)
                self._server.spawn(ask_end(self._server, freeze))

    def all(self):
        return list(self._by_number.values())


def coordinator(server):
    """Number of the server that does all renames of directories, one after the other."""
    return owner(b"/", server.servers)


def resume_freezes(server, records):
    """At start: what was frozen still is.  The coordinator says when it is over."""
    for key, record in records:
        fields = RECORD.unpack(record)
        old, new = record[RECORD.size:RECORD.size + fields.old], record[RECORD.size + fields.old:]
        freeze = Freeze(key_number(key), fields.flags, old, new, fields.done)
        freeze.stuck = freeze.reserved = True
        server.freezes.add(freeze)
        for name in freeze.names:
            hold(server, freeze, entry_key(name))
        if coordinator(server) != server.number:
            server.spawn(ask_end(server, freeze))


async def ask_end(server, freeze):
    """Ask the coordinator until the rename is over; when it knows nothing of it, nothing was moved."""
    told = False
    while server.freezes.known(freeze.number) is freeze:
        try:
            reply, _ = await server.call_peer(coordinator(server), TREE, b"", freeze.number, KNOWN, 0, 0, 0, 0, 0)
            if not reply.result and server.freezes.known(freeze.number) is freeze:
                server.freezes.thaw(freeze)
                return
        except OSError as error:
            if not told:
                log(f"server {server.number}: {freeze.old!r} stays frozen: {error}")
            told = True
        await server.pause()


def hold(server, freeze, key):
    """The value of the entry ``key`` of one of the two names, if it is here: it does not change until the thaw."""
    value = server.kv.get(key)
    if value is not None and key not in freeze.held:
        server.dirs.hold_frozen(key)
        freeze.held.append(key)
    return value
