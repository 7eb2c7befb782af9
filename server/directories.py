# SPDX-License-Identifier: Apache-2.0
"""The coherent cache of directories above a server's entries, and the names that an operation under way holds.

Who owns a directory's entry tells its attributes with DIRINFO and remembers who asked (the holders).  A holder keeps
them until INVALIDATE, EMPTY, or the loss of its connection to the owner.  The owner changes mode or owner of a
directory, or removes it, only after all holders have acknowledged that they forgot it; until then it holds the name,
and DIRINFO for it waits.  A restarted owner does not know its holders: its first INVALIDATE goes to everybody, for all
directories.

A handler that meets a name that is held, or a directory that is not known here, raises Wait: it has changed nothing
yet, and runs again from the start after what Wait names.
"""
import asyncio
import errno
from collections import namedtuple

from pymadfs.errors import Restart, fail
from pymadfs.identity import SEARCH, WRITE, allowed
from pymadfs.layout import covers, owner, parent
from pymadfs.ops import ATTR, DIRINFO, INVALIDATE

from . import meta
from .meta import entry_key, is_directory, is_symlink, target_of

DIRECTORIES_MAX = 1 << 16
REMOVED_MAX = 8192
FETCH_TRIES = 64  # asked again when an INVALIDATE overtook the answer

Dir = namedtuple("Dir", "mode uid gid key chunk_size")
"""What parents are checked by; ``key`` is that of the entry when it lies here, else None; ``chunk_size`` that of files
to be made in it, 0 when none was set."""


class Wait(Exception):
    """``make()`` gives an awaitable; run the handler again when it is done, or fail with what it raises."""

    def __init__(self, make):
        super().__init__()
        self.make = make


class Directories:
    """Of server ``meta.number``; ``call_peer`` asks other servers (see rpc.Service.call_peer)."""

    def __init__(self, store, call_peer):
        self._meta, self._call_peer = store, call_peer
        self._known = {}
        self.changed = {}  # directories elsewhere that may be changed from here -> when they were last; see times.py
        self._fetching = {}  # path -> [waiting futures, overtaken by an INVALIDATE]
        self._held = {}  # key -> Future, or None when what holds it is stuck
        self._holders = {}  # path of a directory whose entry is here -> bits of server numbers
        self._forgetful = not store.fresh
        self.removed = {}  # ino -> last value, and record, of directories that were removed and may still be open
        self.freezes = None  # Freezes of frozen.py: what is about to begin waits for them

    # --- names in use -----------------------------------------------------------------------------------------------

    def free(self, key):
        """Wait until nobody holds ``key``.  EIO when its holder cannot go on because another server is dead."""
        if key in self._held:
            future = self._held[key]
            if future is None:
                raise fail(errno.EIO)
            raise Wait(lambda: asyncio.shield(future))

    def hold(self, key):
        """Let others wait for ``key`` until ``let_go``."""
        self.free(key)
        if self.freezes and self.freezes.over(meta.path_of(key)):
            raise Wait(lambda: asyncio.sleep(0))  # then the request is parked
        self._held[key] = asyncio.get_running_loop().create_future()

    def hold_frozen(self, key):
        """As hold, for the rename that has frozen the name."""
        self._held[key] = asyncio.get_running_loop().create_future()

    def let_go(self, key):
        future = self._held.pop(key)
        if future is not None:
            future.set_result(None)

    def stuck(self, key):
        """What holds ``key`` cannot go on now: who waits, and whoever comes, gets EIO until ``let_go``."""
        future, self._held[key] = self._held[key], None
        if future is not None:
            future.set_result(None)

    def remember(self, ino, value):
        """The directory was removed; who has it open may ask about it.  ``value`` has its record of xattrs.py, too."""
        if ino not in self.removed and len(self.removed) >= REMOVED_MAX:
            del self.removed[next(iter(self.removed))]
        self.removed[ino] = value

    def is_held(self, key):
        return key in self._held

    def held_keys(self):
        """``(key, whether its holder is stuck)`` of all that is held."""
        return [(key, future is None) for key, future in self._held.items()]

    # --- entries ----------------------------------------------------------------------------------------------------

    def entry(self, path, request):
        """``(key, value)`` of an existing name, once nobody holds it, for a user who may search the way to it.

        Raises OSError, Restart when the way leads through a symbolic link, or Wait.
        """
        if path[:1] != b"/" or len(path) > meta.PATH_BYTES_MAX:
            raise fail(errno.ENAMETOOLONG if path[:1] == b"/" else errno.EINVAL)
        key = entry_key(path)
        if key in self._held:
            self.free(key)
        value = self._meta.kv.get(key)
        if value is None or request.uid:
            self.parent(path, request, SEARCH)
            if value is None:
                raise fail(errno.ENOENT)
        return key, value

    # --- parents ----------------------------------------------------------------------------------------------------

    def parent(self, path, request, want, counted=False):
        """The Dir above ``path``, which ``request.uid`` must have ``want`` permission on.

        WRITE means that an entry will come or go here, which the owner of the directory must know, unless it will be
        told by COUNT (``counted``).  Raises OSError (ENOENT, ENOTDIR, EACCES), Restart, or Wait.
        """
        above = path[:path.rindex(b"/")] or b"/"
        changes = want & WRITE and not counted
        if request.uid:
            return self._searched(above, request, want, changes)
        found = self._known.get(above) or self.load(above, changes)
        return found if found.key is not None or not changes else self._changing(above, found)

    def _changing(self, path, found):
        """``found``, the Dir of ``path``, which lies elsewhere: once its owner knows that entries change here."""
        if path not in self.changed:
            raise Wait(lambda: self.fetch(path, True))
        return found

    def _searched(self, path, who, want, changes):
        """The Dir of ``path`` after the walk of a user who is not root: search permission above, ``want`` on it."""
        above, at = b"/", path.find(b"/", 1)
        while path != b"/":
            found = self._known.get(above) or self.load(above)
            if not allowed(found.mode, found.uid, found.gid, who, SEARCH):
                raise fail(errno.EACCES)
            if at < 0:
                break
            above, at = path[:at], path.find(b"/", at + 1)
        found = self._known.get(path) or self.load(path, changes)
        if not allowed(found.mode, found.uid, found.gid, who, want):
            raise fail(errno.EACCES)
        return found if found.key is not None or not changes else self._changing(path, found)

    def load(self, path, changes=False):
        """The Dir of a path whose entry lies here, else Wait for its owner's answer; ``changes``: and until it knows
        that entries in it will come and go here."""
        if owner(path, self._meta.servers) != self._meta.number:
            raise Wait(lambda: self.fetch(path, bool(changes)))
        key = entry_key(path)
        value = self.above(key)
        if value is None:
            raise Wait(lambda: self.fetch(path))
        return self._keep(path, value, key)

    def above(self, key):
        """The entry ``key``, here, that is looked at because it is above another; None when there is none.

        A directory that is held (it is about to change or go) has to be waited for.  A file or link is held by a
        rename, which may itself be waiting for who asks: as long as it is there, it is in the way.
        """
        value = self._meta.kv.get(key)
        if value is not None and is_directory(value):
            self.free(key)
        return value

    def _keep(self, path, value, key):
        if is_symlink(value):
            raise Restart(len(path), target_of(value))
        if not is_directory(value):
            raise fail(errno.ENOTDIR)
        attr = ATTR.unpack(value)
        if len(self._known) >= DIRECTORIES_MAX:
            for old in list(self._known)[:DIRECTORIES_MAX // 4]:
                del self._known[old]
        found = self._known[path] = Dir(attr.mode, attr.uid, attr.gid, key, attr.chunk_size)
        return found

    async def fetch(self, path, writes=False):
        """Make the directory ``path`` known here, with ``writes`` to change its entries.  When it does not exist, the
        nearest existing name above tells why: a directory means ENOENT, a file ENOTDIR, a link Restart."""
        wanted = path
        while True:
            if path[:1] != b"/":
                raise fail(errno.ENOENT)
            value = await self._ask(path, writes and path == wanted)
            if value is not None:
                break
            if path == b"/":
                raise OSError(errno.EIO, "the root directory is missing: server that owns it has another store")
            path = parent(path)
        if value is True:  # known or asked by another meanwhile: the handler looks again
            return
        here = owner(path, self._meta.servers) == self._meta.number
        self._keep(path, value, entry_key(path) if here else None)
        if path != wanted:
            raise fail(errno.ENOENT)
        if writes and not here:
            self.changed.setdefault(path, 0)

    async def _ask(self, path, writes):
        """Entry of ``path`` from its owner, None when there is none, True when somebody else has asked meanwhile, or
        the answer was void again and again."""
        server = owner(path, self._meta.servers)
        if server == self._meta.number:
            return self.above(entry_key(path))
        if path in self._fetching:
            future = asyncio.get_running_loop().create_future()
            self._fetching[path][0].append(future)
            await future
            return True
        state = self._fetching[path] = [[], False]
        try:
            for _ in range(FETCH_TRIES):
                state[1] = False
                reply, tail = await self._call_peer(server, DIRINFO, path, self._meta.number, writes)
                if not state[1]:
                    return bytes(reply.attr) + bytes(tail)
            return True  # it changes all the time: the caller begins anew, and may find another way
        except OSError as error:
            if error.errno == errno.ENOENT:
                return None
            if error.errno == errno.EIO:
                self.lost(server)
            raise
        finally:
            del self._fetching[path]
            for future in state[0]:
                if not future.done():
                    future.set_result(None)

    # --- as a holder ------------------------------------------------------------------------------------------------

    def forget(self, path):
        """INVALIDATE or EMPTY came, or it changed here."""
        self._known.pop(path, None)
        self.overtake(path)

    def overtake(self, path):
        """An answer about ``path`` that is on its way is void."""
        if path in self._fetching:
            self._fetching[path][1] = True

    def forget_all(self):
        self._known.clear()
        for state in self._fetching.values():
            state[1] = True

    def forget_below(self, old, new):
        """Forget all directories at or below two paths.  An answer about one that is on its way is void."""
        for path in [path for path in self._known if covers(old, path) or covers(new, path)]:
            del self._known[path]
        for path, state in self._fetching.items():
            if covers(old, path) or covers(new, path):
                state[1] = True

    def unheld_below(self, old, new):
        """All servers forget the directories at or below two paths: nobody needs to be told about them."""
        for path in [path for path in self._holders if covers(old, path) or covers(new, path)]:
            del self._holders[path]

    def lost(self, server):
        """The connection to ``server`` is lost: what it told may be stale from now on."""
        servers = self._meta.servers
        for path in [path for path, each in self._known.items() if each.key is None and owner(path, servers) == server]:
            del self._known[path]

    # --- as the owner -----------------------------------------------------------------------------------------------

    def told(self, path, server):
        """``server`` keeps what DIRINFO answered about ``path``."""
        self._holders[path] = self._holders.get(path, 0) | 1 << server

    async def invalidate(self, path):
        """Return when no other server keeps anything about the directory ``path``, whose name is held.

        A server that does not answer is dead, and starts with nothing known.
        """
        holders = self._holders.pop(path, 0)
        if self._forgetful:
            await self._tell(range(self._meta.servers), b"")
            self._forgetful = False
        await self._tell([server for server in range(holders.bit_length()) if holders >> server & 1], path)

    async def _tell(self, servers, path):
        calls = [self._call_peer(server, INVALIDATE, path) for server in servers if server != self._meta.number]
        for result in await asyncio.gather(*calls, return_exceptions=True):
            if isinstance(result, BaseException) and not isinstance(result, OSError):
                raise result

    def gone(self, path):
        """The directory was removed, after EMPTY made everybody forget it."""
        self._holders.pop(path, None)
        self.forget(path)
