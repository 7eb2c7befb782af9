# SPDX-License-Identifier: Apache-2.0
"""FIFOs that are open, and sockets that are bound: the kernel's own, one for each of the mount and node.

They lie in a directory in memory of the job, whose name only those know who have its secret.  So they work between
processes of one node, of any user, with the kernel's semantics, and not between nodes.  Who may use one is checked at
its entry in the mount.  An inode number is never used again, so what is left over disturbs nobody; the keeper removes
the directory at the end.  ``intercept/sockets.c`` has the names of sockets.
"""

import errno
import posix

import _shim
from pymadfs.client import S_IFIFO, S_IFMT, S_IFSOCK, W_OK, File, HostPath, allowed
from pymadfs.errors import fail

from . import files
from .files import put
from .table import call

_JOB_DIGITS = 16  # of the outer directory's name
_SEARCH = posix.O_PATH | posix.O_DIRECTORY | posix.O_CLOEXEC | posix.O_NOFOLLOW

_place: tuple = ()  # (outer, inner, descriptor of the inner one)


def _directories(error):
    """``(outer, inner, descriptor)``; made when there are none.  Raises OSError ``error`` when that cannot be."""
    global _place
    if not _place:
        from pymadfs import cluster

        outer, inner = cluster.node_directory(files.fs.rpc.cluster.secret)
        for attempt in range(2):
            try:
                _place = outer, inner, posix.open(inner, _SEARCH)
                break
            except FileNotFoundError:
                if attempt:
                    raise fail(error) from None
                _make(outer, inner)
            except OSError:
                raise fail(error) from None
    return _place


def _make(outer, inner):
    """Make both directories, at once for all who look: every user may put something in, and nobody can list them."""
    new = b"%b.%x" % (outer, int.from_bytes(posix.urandom(8), "little"))
    below = new + inner[len(outer) :]
    try:
        posix.mkdir(new, 0o700)
        posix.mkdir(below, 0o700)
        posix.chmod(below, 0o733)  # not sticky: fs.protected_fifos would stand in the way
        posix.chmod(new, 0o1733)
        posix.rename(new, outer)
    except OSError:  # somebody else made it meanwhile, or there is no such place: who looks again will see
        for path in (below, new):
            try:
                posix.rmdir(path)
            except OSError:
                continue


def pipe(name, ino):
    """The HostPath to raise when the FIFO ``ino`` at ``name`` is opened: the kernel opens its own.

    Raises OSError ENXIO when there is no place for it.
    """
    _, inner, _ = _directories(errno.ENXIO)
    where, path = b"%b/name-%x" % (inner, ino), b"%b/pipe-%x" % (inner, ino)
    new = b"%b.%x" % (path, int.from_bytes(posix.urandom(8), "little"))
    try:
        posix.stat(path)
    except OSError:
        try:
            posix.symlink(name, where)
        except OSError:  # it is there, or its name is too long for a link's target
            pass
        try:
            posix.mkfifo(new, 0o600)
            posix.chmod(new, 0o666)
            try:
                posix.link(new, path)
            except FileExistsError:
                pass
            finally:
                posix.unlink(new)
        except OSError:
            raise fail(errno.ENXIO) from None
    return HostPath(path)


def opened_pipe(ino):
    """The File of a FIFO that the kernel has open, for calls about its attributes."""
    _, inner, _ = _directories(errno.EBADF)
    try:
        name = posix.readlink(b"%b/name-%x" % (inner, ino))
    except OSError:
        name = b""
    return File(ino, S_IFIFO, name, 0)


# unix(7): "When binding a socket to a pathname ... EADDRINUSE: The specified local address is already in use or the
# filesystem socket object already exists."
@call
def socket_bind(path, given, mode, buffer):
    """Make the entry of a socket; ``given`` is what the program called it.  Stores the path where the kernel shall bind
    it.  EEXIST when there is one."""
    path = files.fs.inside(path)
    outer, _, fd = _directories(errno.EOPNOTSUPP)
    attr = files.fs.mknod(path, S_IFSOCK | mode & ~_shim.umask())
    try:
        posix.symlink(given, b"%b/%x" % (outer, attr.ino))
    except OSError:
        files.fs.unlink(path)
        raise
    return _bound(attr.ino, outer, fd, buffer)


# unix(7): "On Linux, connecting to a stream socket object requires write permission on that socket; sending a datagram
# to a datagram socket likewise requires write permission on that socket."  connect(2): "ECONNREFUSED: A connect() on a
# stream socket found no one listening on the remote address."
@call
def socket_find(path, buffer):
    """Store the path where the kernel has bound the socket of an entry, on the node where it was."""
    _, attr, _ = files.fs.lookup(files.fs.inside(path))
    if not allowed(attr, files.fs.rpc.who, W_OK):
        raise fail(errno.EACCES)
    if attr.mode & S_IFMT != S_IFSOCK:
        raise fail(errno.ECONNREFUSED)
    outer, _, fd = _directories(errno.ECONNREFUSED)
    return _bound(attr.ino, outer, fd, buffer)


def _bound(ino, outer, fd, buffer):
    return put(buffer, b"/proc/self/fd/%d/madfs-%b-%x\0" % (fd, outer[-_JOB_DIGITS:], ino))
