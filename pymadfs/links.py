# SPDX-License-Identifier: Apache-2.0
"""Names that are added to an inode, files without a name, and openings that servers cannot know of.

Functions over a client.FileSystem ``fs``; paths are relative to the mount.  They raise OSError, and HostPath as the
file system's methods do.
"""

import errno
import posix

from .client import LINKS_MAX, R_OK, S_IFDIR, S_IFMT, S_IFREG, W_OK, X_OK, allowed
from .errors import Restart, fail
from .layout import home, join, owner, parent
from .ops import ATTR, HELD, KEEP, LINK, TMPFILE

_TAIL_INOS = 8000  # inode numbers in one message
_protected = None  # the kernel's fs.protected_hardlinks, once it was asked for


def link(fs, old, new, follow=False):
    """Give the file ``old`` the further name ``new``; ``follow`` a link at the end of ``old``."""
    path, attr, _ = fs.lookup(old, follow)
    link_inode(fs, attr, path, new)


def link_inode(fs, attr, hint, new):
    """As link, of the inode with attributes ``attr`` whose path is or was ``hint``."""
    new, ending = fs.clean(new)
    if ending or new == b"/":
        fs.taken(new, ending)
    directory = attr.mode & S_IFMT == S_IFDIR
    permitted = may_link(attr, fs.rpc.who)
    if directory or not permitted:
        above = refuse(fs, new)
        if permitted and not allowed(above, fs.rpc.who, W_OK | X_OK):
            raise fail(errno.EACCES, new)
        raise fail(errno.EPERM, hint)
    for _ in range(LINKS_MAX + 1):
        try:
            fs.rpc.call(owner(new, fs.servers), LINK, new + hint, attr.ino, len(new))
            return
        except Restart as restart:
            new, _ = fs.redirect(new, restart.prefix, restart.target)
    raise fail(errno.ELOOP, new)


def refuse(fs, new):
    """What Linux finds before it refuses to make a name at ``new`` for another reason: raises that, or returns the
    attributes of the directory above."""
    try:
        fs.lookup(new, follow=False)
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
    else:
        raise fail(errno.EEXIST, new)
    above = fs.lookup(parent(fs.clean(new)[0]))[1]
    if above.mode & S_IFMT != S_IFDIR:
        raise fail(errno.ENOTDIR, new)
    if not above.nlink:
        raise fail(errno.ENOENT, new)
    return above


# proc(5): "/proc/sys/fs/protected_hardlinks: When the value in this file is 1, a hard link can be created to the target
# file only if one of the following conditions is true: The calling process has the CAP_FOWNER capability ... The
# filesystem UID of the process creating the link matches the owner ... All of the following: the target is a regular
# file; not set-user-ID; not both set-group-ID and group-executable; permission to read and write the target file."
def may_link(attr, who):
    """Whether ``who`` may make further names of an inode."""
    global _protected
    if not who.uid or who.uid == attr.uid:
        return True
    if _protected is None:
        try:
            fd = posix.open("/proc/sys/fs/protected_hardlinks", posix.O_RDONLY | posix.O_CLOEXEC)
            _protected = posix.read(fd, 1) == b"1"
            posix.close(fd)
        except OSError:
            _protected = True
    safe = attr.mode & S_IFMT == S_IFREG and not attr.mode & 0o4000 and attr.mode & 0o2010 != 0o2010
    return not _protected or safe and allowed(attr, who, R_OK | W_OK)


def tmpfile(fs, path, flags, mode):
    """Make and open a file without a name in the directory ``path``.  Returns ``(path, attr)`` as FileSystem.open."""
    path, ending = fs.clean(path)
    name = posix.urandom(4).hex().encode()  # so that the files of a directory are spread over the servers
    fields = bool(flags & posix.O_EXCL), mode, fs.config.chunk_size
    for _ in range(LINKS_MAX + 1):
        where = join(path, name)
        try:
            reply, _ = fs.rpc.call(owner(where, fs.servers), TMPFILE, where, *fields)
        except Restart as restart:
            if restart.prefix == len(path) and flags & posix.O_NOFOLLOW and not ending:
                raise fail(errno.ENOTDIR, path) from None
            path, _ = fs.redirect(path, restart.prefix, restart.target)
        else:
            attr = ATTR.unpack(reply.attr)
            return join(path, b"#%d (deleted)" % attr.ino), attr
    raise fail(errno.ELOOP, path)


# --- openings -------------------------------------------------------------------------------------------------------


def _batches(files):
    """Server -> messages' tails of the inode numbers of those of ``files`` whose openings are counted."""
    inos = {}
    for file in files:
        if file.mode & S_IFMT == S_IFREG and not file.flags & posix.O_PATH:
            inos.setdefault(home(file.ino), []).append(file.ino.to_bytes(8, "little"))
    return {
        server: [b"".join(numbers[at : at + _TAIL_INOS]) for at in range(0, len(numbers), _TAIL_INOS)]
        for server, numbers in inos.items()
    }


def report(fs, files, server):
    """Tell ``server``, which was just met, of the open ``files`` that it does not know: it may be a new process on the
    old store.  Never raises: the call for which it was met will."""
    for tail in _batches(files).get(server, ()):
        try:
            fs.rpc.call(server, HELD, tail)
        except OSError:
            return


def leave(fs, files):
    """Ask the servers to keep the open ``files`` for who inherits them.  Never raises."""
    for server, tails in _batches(files).items():
        for tail in tails:
            try:
                fs.rpc.notify(server, KEEP, tail)
            except OSError:
                break
