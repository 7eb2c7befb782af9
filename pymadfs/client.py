# SPDX-License-Identifier: Apache-2.0
"""The file system over many servers: where each name, inode and chunk is, and what is asked of whom.

Paths are relative to the mount: ``b"/"`` is its root, ``b"/a/b"`` a file.  Bulk data is named by its address in
memory, so that it goes from and into the program's own buffers.  Every method raises OSError; methods that take a
path also raise :class:`HostPath` when it leads out of the mount.
"""

import errno
import posix
from time import CLOCK_BOOTTIME, clock_gettime

from . import identity
from .abi import NAME_MAX, OFFSET_MAX, PATH_LONGEST, RENAME_EXCHANGE, RENAME_NOREPLACE
from .errors import Restart, fail
from .filedata import FileData
from .layout import home, join, owner, parent
from .ops import (
    ATTR,
    FLAG_REMOTE,
    GETATTR,
    HELD,
    LOCK,
    LOCK_RECORD,
    LOOKUP,
    MKDIR,
    MKNOD,
    MOVETREE,
    OPEN,
    RELEASE,
    RENAME,
    REOPEN,
    RMDIR,
    ROOT_INO,
    SET_LINK,
    SET_SIZE,
    SETATTR,
    SYMLINK,
    UNLINK,
    WHERE,
)

LINKS_MAX = 40  # symbolic links followed in one path, as in Linux
RELEASES_MAX = 64  # openings that ended and wait to be told in one message
_NOT_ONLY_LOOKING = posix.O_CREAT | posix.O_ACCMODE | posix.O_TRUNC | posix.O_NOATIME
REPLACED_MAX = 8  # times a path is looked up again because the file it led to was replaced
RENAME_TRIES = 8  # a rename starts again when a directory above became a link meanwhile

S_IFMT, S_IFDIR, S_IFLNK, S_IFREG = 0o170000, 0o040000, 0o120000, 0o100000
S_SPECIAL = S_IFIFO, S_IFCHR, S_IFBLK, S_IFSOCK = 0o010000, 0o020000, 0o060000, 0o140000
R_OK, W_OK, X_OK = 4, 2, 1

# How a path ends: all but the first demand a directory.
PLAIN, SLASH, DOT, DOTDOT = range(4)


class HostPath(Exception):
    """The path leads out of the mount to the host's ``path`` (bytes); ``index`` is the call's argument that named
    it."""

    def __init__(self, path, index=0):
        super().__init__(path, index)
        self.path, self.index = path, index


class File:
    """An open file.  ``size`` is the last size seen, a hint, and ``cuts`` the last number of a truncation; ``dirty``
    the servers written to since the last fsync, or None when another process may have written through the same
    opening; ``noticed``: the home knows that it is being read, or need not know (O_NOATIME: then ``hint`` is empty)."""

    __slots__ = (
        "chunk_size",
        "cuts",
        "dirty",
        "flags",
        "hint",
        "ino",
        "listing",
        "mode",
        "noticed",
        "path",
        "readable",
        "size",
        "writable",
    )

    def __init__(self, ino, mode, path, chunk_size, size=0, flags=posix.O_RDWR, dirty=True, cuts=0):
        self.ino, self.mode, self.path, self.chunk_size, self.size, self.flags = (
            ino,
            mode,
            path,
            chunk_size,
            size,
            flags,
        )
        self.dirty = set() if dirty else None
        self.listing, self.cuts = None, cuts
        self.noticed = flags & posix.O_NOATIME != 0
        self.hint = b"" if self.noticed else path
        access = flags & posix.O_ACCMODE
        self.readable = access in (posix.O_RDONLY, posix.O_RDWR) and not flags & posix.O_PATH
        self.writable = access in (posix.O_WRONLY, posix.O_RDWR) and not flags & posix.O_PATH

    @property
    def counted(self):
        """Whether its home keeps it for as long as it is open."""
        return self.mode & S_IFMT == S_IFREG and not self.flags & posix.O_PATH

    @property
    def directory(self):
        return self.mode & S_IFMT == S_IFDIR


def allowed(attr, who, mask):
    """Whether the permission bits of ``attr`` grant ``mask`` (R_OK | W_OK | X_OK) to ``who``."""
    return identity.allowed(attr.mode, attr.uid, attr.gid, who, mask)


class FileSystem(FileData):
    """The operations of a mounted file system.

    ``rpc`` is an rpc.Client, ``config`` a Config, ``mount`` the absolute path (bytes) of the mount, ``store(address,
    data)`` a function that writes to memory.
    """

    def __init__(self, rpc, config, mount, store):
        self.rpc, self.config, self.store = rpc, config, store
        self.mount = mount.rstrip(b"/")
        self._prefix = self.mount + b"/"
        self.servers = rpc.servers
        self.mapped, self.images = b"\0", None  # how many files are mapped to be shared on this node, and which
        self._forget_endings()
        self._lend_nothing()
        self._call = rpc.call

    # --- paths ------------------------------------------------------------------------------------------------------

    def inside(self, host):
        """``b"/madfs/a"`` -> ``b"/a"``; raises HostPath when the absolute path ``host`` is not in the mount."""
        size = len(self.mount)
        if host.startswith(self._prefix):
            return host[size:]
        if not host.startswith(self.mount) or host[size : size + 1] not in (b"", b"/"):
            shorter = b"/" + b"/".join(part for part in host.split(b"/") if part not in (b"", b"."))
            if not shorter.startswith(self.mount) or shorter[size : size + 1] not in (b"", b"/"):
                raise HostPath(host)
            if host.endswith((b"/", b"/.")):
                shorter += b"/"
            host = shorter
        return host[size:] or b"/"

    def clean(self, path, real=b"/", links=None):
        """``(path, ending)`` without ``.``, ``..``, empty names and trailing slashes.

        A step up is taken from where the links before it lead; ``real`` is a leading part known to hold no links.
        ``links``, a list of one number, counts the links followed for one path: ELOOP when they are too many.
        """
        if len(path) > NAME_MAX and (len(path) > PATH_LONGEST or max(map(len, path.split(b"/"))) > NAME_MAX):
            self._too_long(path)
        if path.find(b"/.") < 0 and path.find(b"//") < 0 and (path[-1:] != b"/" or path == b"/"):
            return path, PLAIN
        names, ending = [], PLAIN
        checked = len(real.split(b"/")) - 1 if real != b"/" else 0
        parts = path.split(b"/")
        for index, part in enumerate(parts):
            if part == b"..":
                if len(names) > checked:
                    links = [0] if links is None else links
                    try:
                        real = self.directory(b"/" + b"/".join(names), links, True)
                    except HostPath as host:
                        raise HostPath(host.path + b"/" + b"/".join(parts[index:])) from None
                    names = [name for name in real.split(b"/") if name]
                if not names:
                    return self._above(parts[index + 1 :], links)
                names.pop()
                checked, ending = len(names), DOTDOT
            elif part == b".":
                ending = DOT
            elif part:
                names.append(part)
                ending = PLAIN
        if ending == PLAIN and path[-1:] == b"/" and names:
            ending = SLASH
        return b"/" + b"/".join(names), ending

    def _too_long(self, path):
        """Raise ENAMETOOLONG, or what is found on the way to the first name that is too long."""
        names = path.split(b"/")
        first = next((index for index, name in enumerate(names) if len(name) > NAME_MAX), 0)
        if first > 1 and len(path) <= PATH_LONGEST:
            self.directory(b"/".join(names[:first]), search=True)
        raise fail(errno.ENAMETOOLONG, path)

    def _above(self, parts, links):
        """The path ``parts`` starts in the directory that holds the mount: on the host, or back in the mount."""
        host = self.mount[: self.mount.rindex(b"/")] + b"/" + b"/".join(parts)
        return self.clean(self.inside(host), links=links)

    def redirect(self, path, prefix, target, links=None):
        """``(path, ending)`` with the link that ``path[:prefix]`` names replaced by its ``target``; ``links`` as for
        clean."""
        links = [0] if links is None else links
        links[0] += 1
        if links[0] > LINKS_MAX:
            raise fail(errno.ELOOP, path)
        rest = path[prefix:]
        if target[:1] == b"/":
            return self.clean(self.inside(target + rest), links=links)
        base = parent(path[:prefix])
        return self.clean(join(base, target + rest), base, links)

    def _resolve(self, op, path, ending, follow, fields=(), links=None):
        """Ask ``op`` (LOOKUP, OPEN or SETATTR by path) of the name's owner until no link is in the way.

        Returns ``(path, attr, target)``; ``target`` is that of a link not followed, else empty.
        """
        for tries in range(LINKS_MAX + 1):
            try:
                server = owner(path, self.servers)
                if op is OPEN:
                    begun, changes = clock_gettime(CLOCK_BOOTTIME), self._changes
                    reply, target = self._call(server, op, path, *fields, self._one_ended(server))
                else:
                    reply, target = self._call(server, op, path, *fields)
            except Restart as restart:
                links = [0] if links is None else links
                path, end = self.redirect(path, restart.prefix, restart.target, links)
            except OSError:
                if b"\0" not in path:
                    raise
                from . import removed

                path, attr = removed.resolve(self, op, path, fields)
                if ending == DOT and not allowed(attr, self.rpc.who, X_OK):
                    raise fail(errno.EACCES, path) from None
                return path, attr, b""
            else:
                attr = ATTR.unpack(reply.attr)
                link = attr.mode & S_IFMT == S_IFLNK
                if attr.flags & FLAG_REMOTE and not (link and (follow or ending)):
                    try:
                        attr = self._remote(op, path, attr, fields)
                    except OSError as error:
                        if error.errno != errno.ENOENT or tries >= REPLACED_MAX:
                            raise
                        continue  # another file took the name in between
                if not link:
                    if ending and attr.mode & S_IFMT != S_IFDIR:
                        raise fail(errno.ENOTDIR, path)
                    if ending == DOT and not allowed(attr, self.rpc.who, X_OK):
                        raise fail(errno.EACCES, path)
                    if op is OPEN and reply.lease_us:
                        self._borrow(attr, target, begun + reply.lease_us / 1e6, changes)
                    return path, attr, b""
                if not (follow or ending):
                    return path, attr, target
                links = [0] if links is None else links
                path, end = self.redirect(path, len(path), target, links)
            if end and not ending:
                if op is SETATTR or end == DOT:  # nothing is to change before this is known
                    self.directory(path, links, end == DOT)
                ending = end
                if op is OPEN:
                    fields = (self._directory_flags(fields[0]), *fields[1:])
        raise fail(errno.ELOOP, path)

    def _remote(self, op, path, pointer, fields):
        """Continue where the inode of a renamed file lives; returns its attributes."""
        ino, link = pointer.ino, pointer.mode & S_IFMT == S_IFLNK
        if op is OPEN and not link:
            return ATTR.unpack(self._call(home(ino), REOPEN, path, ino, fields[0])[0].attr)
        if op is not SETATTR or link and not fields[1] & SET_LINK:
            return self._getattr(ino, path)
        if fields[1] & SET_SIZE:  # the server takes who has the number for somebody who opened the file
            found = self._getattr(ino, path)
            if not allowed(found, self.rpc.who, W_OK):
                raise fail(errno.EACCES, path)
        return ATTR.unpack(self._call(home(ino), SETATTR, path, ino, *fields[1:])[0].attr)

    def _getattr(self, ino, hint):
        return ATTR.unpack(self._of_inode(GETATTR, ino, hint)[0].attr)

    def _of_inode(self, op, ino, path, *fields, tail=b"", send=None):
        """Ask ``op`` of an inode's home; ``path`` is the hint behind ``tail``.  A directory that has moved since it was
        made is asked for where it is."""
        try:
            return self._call(home(ino), op, tail + path, ino, *fields, send=send)
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
            place = self.where(ino) or path
            if place == path and owner(path, self.servers) == home(ino):
                raise
        return self._call(owner(place, self.servers), op, tail + place, ino, *fields, send=send)

    def lookup(self, path, follow=True, links=None):
        """``(path, attr, target)``: the path without links, its attributes, and a link's target when not followed."""
        path, ending = self.clean(path, links=links)
        return self._resolve(LOOKUP, path, ending, follow, (), links)

    def directory(self, path, links=None, search=False):
        """The path of the existing directory ``path`` without links; ``search``: it is gone through, too."""
        path, attr, _ = self.lookup(path, links=links)
        if attr.mode & S_IFMT != S_IFDIR:
            raise fail(errno.ENOTDIR, path)
        if search and not allowed(attr, self.rpc.who, X_OK):
            raise fail(errno.EACCES, path)
        return path

    def _named(self, op, path, fields=(), suffix=b"", sized=False):
        """Ask ``op`` about the name ``path``: links above it are followed, one at its end is not."""
        return self._named_at(op, path, fields, suffix, sized)[1]

    def _named_at(self, op, path, fields=(), suffix=b"", sized=False):
        """As _named; ``(path without links, what was answered)``."""
        for _ in range(LINKS_MAX + 1):
            try:
                said = self._call(owner(path, self.servers), op, path + suffix, *((len(path),) if sized else fields))
                return path, said
            except Restart as restart:
                path, _ = self.redirect(path, restart.prefix, restart.target)
        raise fail(errno.ELOOP, path)

    # --- names ------------------------------------------------------------------------------------------------------

    @staticmethod
    def _directory_flags(flags):
        if flags & posix.O_CREAT:
            raise fail(errno.EISDIR)
        return flags | posix.O_DIRECTORY

    def open(self, path, flags, mode):
        """Open or create; ``mode`` without the umask's bits.  Returns ``(path, attr)``; the opening is counted."""
        if flags & posix.O_CREAT and flags & posix.O_DIRECTORY:
            raise fail(errno.EINVAL, path)
        if flags & posix.O_CREAT and path[-1:] == b"/" and path.strip(b"/"):
            name = path.rstrip(b"/")
            if not name.endswith((b"/.", b"/..")):
                self.directory(parent(name), search=True)
                raise fail(errno.EISDIR, path)
        path, ending = self.clean(path)
        if ending > SLASH and flags & _NOT_ONLY_LOOKING:
            self.directory(path, search=True)  # ENOENT, ENOTDIR and EACCES come first
        if ending > SLASH and flags & posix.O_CREAT:
            raise fail(errno.EEXIST if flags & posix.O_EXCL else errno.EISDIR, path)
        if ending:
            flags = self._directory_flags(flags)
        exclusive = flags & posix.O_CREAT and flags & posix.O_EXCL
        follow = not (exclusive or flags & posix.O_NOFOLLOW)
        path, attr, target = self._resolve(
            OPEN, path, ending, follow, (flags & 0xFFFFFFFF, mode, self.config.chunk_size)
        )
        if target:
            raise fail(errno.EEXIST if exclusive else errno.ENOTDIR if flags & posix.O_DIRECTORY else errno.ELOOP, path)
        if flags & posix.O_TRUNC:
            self._changed(attr.ino)
            if self.mapped[0]:
                self.images().resized(attr.ino, attr.size)
        return path, attr

    def open_again(self, file, flags):
        """Open the inode of an open file once more, whatever its name is by now.  Returns its attributes."""
        attr = ATTR.unpack(self._call(home(file.ino), REOPEN, file.path, file.ino, flags & 0xFFFFFFFF)[0].attr)
        if flags & posix.O_TRUNC and self.mapped[0]:
            self.images().resized(attr.ino, attr.size)
        return attr

    def reopen(self, file):
        """Count an opening that another process began and this one goes on with.  Never raises: the file works without,
        but may be removed under this process when the other one ends and its name is gone."""
        try:
            self._call(home(file.ino), HELD, file.ino.to_bytes(8, "little"))
        except OSError:
            return

    def ended(self, ino):
        """An opening of ``ino`` ended; its home is told with the next OPEN there, or of many at once."""
        ended = self._ended[home(ino)]
        ended.append(ino)
        if len(ended) >= RELEASES_MAX:
            self.flush()

    def _one_ended(self, server):
        """An inode of ``server`` of which an opening ended, or 0."""
        try:
            return self._ended[server].pop()
        except IndexError:
            return 0

    def _forget_endings(self):
        self._ended = [[] for _ in range(self.servers)]

    def flush(self):
        """Tell the servers of all openings that ended.  Never raises: a server that died has forgotten them anyway."""
        for server, ended in enumerate(self._ended):
            if not ended:
                continue
            inos = []
            while ino := self._one_ended(server):
                inos.append(ino.to_bytes(8, "little"))
            try:
                self.rpc.notify(server, RELEASE, b"".join(inos))
            except OSError:
                continue

    def mkdir(self, path, mode):
        """Make a directory; ``mode`` without the umask's bits."""
        path, ending = self.clean(path)
        if ending > SLASH or path == b"/":
            self.directory(path, search=True)
            raise fail(errno.EEXIST, path)
        self._named(MKDIR, path, (mode,))

    def mknod(self, path, mode, rdev=0):
        """Make an empty regular file, a FIFO, a device node or a socket; EEXIST when the name exists.  Returns its
        attributes."""
        path, ending = self.clean(path)
        if ending:
            self.taken(path, ending)
        if mode & S_IFMT not in (0, S_IFREG):
            return ATTR.unpack(self._named(MKNOD, path, (mode, rdev))[0].attr)
        _, attr = self.open(path, posix.O_CREAT | posix.O_EXCL, mode)
        self.ended(attr.ino)
        return attr

    def symlink(self, target, path):
        """Make the link ``path`` that points to ``target``."""
        path, ending = self.clean(path)
        if ending:
            self.taken(path, ending)
        self._named(SYMLINK, path, suffix=target, sized=True)

    def taken(self, path, ending):
        """Raise why nothing but a directory can be made at ``path``, which ends in a slash or dots."""
        if ending > SLASH:
            self.directory(path, search=True)
        else:
            self.lookup(path, follow=False)  # ENOENT
        raise fail(errno.EEXIST, path)

    def unlink(self, path):
        """Remove the name of a file or link."""
        path, ending = self.clean(path)
        if ending > SLASH:
            self.directory(path, search=True)
            raise fail(errno.EISDIR, path)
        if ending:
            _, attr, _ = self.lookup(path, follow=False)
            raise fail(errno.EISDIR if attr.mode & S_IFMT == S_IFDIR else errno.ENOTDIR, path)
        if any(self._ended):
            self.flush()  # so that a closed file goes at once instead of waiting for a batch
        self._named(UNLINK, path)

    def rmdir(self, path):
        """Remove an empty directory.  Returns its path without links."""
        path, ending = self.clean(path)
        if ending > SLASH:
            self.directory(path, search=True)
            raise fail(errno.EINVAL if ending == DOT else errno.ENOTEMPTY, path)
        if path == b"/":
            raise fail(errno.EBUSY, path)
        return self._named_at(RMDIR, path)[0]

    def rename(self, old, new, flags=0):
        """Move a name, replacing what is at ``new``; ``flags`` is 0, RENAME_NOREPLACE or RENAME_EXCHANGE.

        Returns ``(old, new)`` without links when directories may have moved, else None.
        """
        if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE) or flags == RENAME_NOREPLACE | RENAME_EXCHANGE:
            raise fail(errno.EINVAL, old)
        try:
            return self._rename(self.clean(old), self.clean(new), flags)
        except OSError as error:
            from . import renaming

            if error.errno in renaming.REASONS:
                renaming.explain(self, old, new, flags)
            raise

    def _rename(self, source, target, flags):
        (old, old_ending), (new, new_ending) = source, target
        exchange = flags & RENAME_EXCHANGE
        if max(old_ending, new_ending) > SLASH or b"/" in (old, new):
            raise fail(errno.EBUSY, old)
        for path, ending in ((old, old_ending or new_ending and not exchange), (new, new_ending and exchange)):
            if ending and self.lookup(path, follow=False)[1].mode & S_IFMT != S_IFDIR:
                raise fail(errno.ENOTDIR, path)
        tree = bool(exchange)
        for _ in range(RENAME_TRIES):
            try:
                if tree:
                    self._rename_tree(old, new, flags)
                    return old, new
                self._call(owner(old, self.servers), RENAME, old + new, flags, len(old))
                return None
            except Restart:  # of one of the two: rare enough to resolve both
                old, new = self.real_name(old), self.real_name(new)
            except OSError as error:
                if error.errno == errno.EXDEV and not tree:
                    tree = True
                elif error.errno == errno.ESTALE and not exchange:  # it was replaced by a file meanwhile
                    tree = False
                else:
                    raise
        raise fail(errno.ELOOP, old)

    def _rename_tree(self, old, new, flags):
        """Rename a directory or exchange names: asked of one server, which does one at a time.  May take a while."""
        ticket, begin, lost = int.from_bytes(posix.urandom(8), "little"), 1, 0
        while True:
            try:
                reply, _ = self._call(owner(b"/", self.servers), MOVETREE, old + new, flags, len(old), ticket, begin)
            except OSError as error:
                lost += 1
                if error.errno != errno.EIO or lost > RENAME_TRIES:
                    raise
                continue  # it may be back already, and knows the ticket
            if reply.done:
                return
            begin, lost = 0, 0

    def where(self, ino):
        """The path of a directory that has moved since it was made; None when it has not, or is gone."""
        try:
            _, path = self._call(home(ino), WHERE, b"", ino)
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
            return None
        return path

    def name(self, path):
        """The name ``path`` without links above it; the last component need not exist."""
        path, ending = self.clean(path)
        try:
            return self.real_name(path)
        except HostPath as host:
            raise HostPath(host.path + (b"/" if ending else b"")) from None

    def real_name(self, path):
        """As name, of a clean path."""
        above, last = parent(path), path[path.rindex(b"/") + 1 :]
        try:
            return join(self.directory(above), last)
        except HostPath as host:
            raise HostPath(host.path.rstrip(b"/") + b"/" + last) from None

    def _many(self, calls):
        """Results of parallel calls; raises the first that failed."""
        results = self.rpc.call_many(calls)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return results

    # --- attributes -------------------------------------------------------------------------------------------------

    def getattr(self, file):
        """Attributes of an open file."""
        if file.ino == ROOT_INO:
            return self.lookup(file.path)[1]
        try:
            attr = self._getattr(file.ino, file.path)
        except OSError as error:
            if error.errno != errno.ENOENT or file.counted:
                raise
            who = self.rpc.who  # it was removed, and nothing is known of it any more but this much
            size = 0 if file.directory else file.size
            attr = ATTR.type(file.ino, size, 0, 0, 0, 0, file.mode, 0, who.uid, who.gid, 0, 0, 0, 0, 0)  # type: ignore
        file.size, file.cuts = attr.size, attr.cuts
        return attr

    def target(self, file):
        """Where an open symbolic link (O_PATH) points to."""
        return self._call(home(file.ino), GETATTR, file.path, file.ino)[1]

    def setattr(self, path, valid, follow=True, mode=0, uid=0, gid=0, size=0, atime=0, mtime=0):
        """Change what ``valid`` (SET_*) names at a path; times in nanoseconds.  Returns the attributes afterwards."""
        path, ending = self.clean(path)
        if ending:  # what ends in a slash must be a directory before anything changes
            found, _, _ = self.lookup(path + (b"/" if ending == SLASH else b"/."))
            path = found if b"\0" not in path else path
        if not valid:
            return self._resolve(LOOKUP, path, PLAIN, follow)[1]
        fields = (0, valid, mode, uid, gid, size, atime, mtime)
        attr = self._resolve(SETATTR, path, PLAIN, follow, fields)[1]
        if valid & SET_SIZE:
            self._changed(attr.ino)
            if self.mapped[0]:
                self.images().resized(attr.ino, attr.size)
        return attr

    def fsetattr(self, file, valid, mode=0, uid=0, gid=0, size=0, atime=0, mtime=0):
        """As setattr, of an open file."""
        if not valid:
            return self.getattr(file)
        if file.ino == ROOT_INO:
            return self.setattr(file.path, valid, True, mode, uid, gid, size, atime, mtime)
        reply, _ = self._of_inode(SETATTR, file.ino, file.path, valid, mode, uid, gid, size, atime, mtime)
        attr = ATTR.unpack(reply.attr)
        file.size, file.cuts = attr.size, attr.cuts
        if valid & SET_SIZE:
            self._changed(file.ino)
            if self.mapped[0]:
                self.images().resized(file.ino, attr.size)
        return attr

    def xattr(self, op, ino, path, *fields, tail=b"", send=None):
        """Ask ``op`` about extended attributes of an inode; ``path`` is the hint behind ``tail``.  Returns the reply's
        tail."""
        if ino == ROOT_INO:
            return self._call(owner(path, self.servers), op, tail + path, ino, *fields, send=send)[1]
        return self._of_inode(op, ino, path, *fields, tail=tail, send=send)[1]

    # --- record locks -----------------------------------------------------------------------------------------------

    def lock(self, file, owner_id, kind, start, end, how, space=LOCK_RECORD, opener=0):
        """Lock [start, end) of an open file as LOCK says.  Returns its reply; EAGAIN to LOCK_WAIT means ask again."""
        return self._call(home(file.ino), LOCK, file.path, file.ino, owner_id, opener, start, end, kind, how, space)[0]

    def after_fork_child(self, keep=False):
        """In the child of a fork: connections and endings in hand belong to the parent.  ``keep``: see rpc.Client."""
        self._forget_endings()
        self._lend_nothing()
        self.rpc.forget_after_fork(keep)


LOCK_TO_END = OFFSET_MAX + 1
