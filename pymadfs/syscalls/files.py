# SPDX-License-Identifier: Apache-2.0
"""The open files of this process and the file system behind them: what all calls share."""

import errno
import posix
from struct import Struct
from zlib import crc32

import _shim
from pymadfs import abi, links
from pymadfs.client import LOCK_TO_END, S_IFDIR, S_IFMT, S_IFREG, File, FileSystem
from pymadfs.errors import fail
from pymadfs.layout import covers
from pymadfs.ops import LOCK_TRY

from . import sharing
from .table import call

load, store, slot = _shim.load, _shim.store, _shim.slot
offset_get, offset_set, offset_cas, offset_add = _shim.offset, _shim.offset_set, _shim.offset_cas, _shim.offset_add

# What the shim keeps of an open file: ino, size seen at open, chunk size, mode, the image that opened it, and the last
# number of a truncation seen at open.
RECORD = Struct("<QQIIQI")
assert RECORD.size <= 128

FILES_MAX = 4096  # open files remembered before those that other processes closed are looked for
_STATUS_FLAGS = ~(posix.O_CREAT | posix.O_EXCL | posix.O_NOCTTY | posix.O_TRUNC | posix.O_CLOEXEC)

open_files = {}  # handle -> File
locked = {}  # inode number -> path of files this process may hold record locks on
this_image = 0  # this run of this program: what another one opened may have been written to through it
owner = 0  # who holds this process's record locks: node and pid
described = False  # an open file was locked by this process, or one it was forked from
_error = False  # start() failed; it is not tried again


class _Unstarted:
    """Stands for the file system until the first call needs it."""

    def __getattr__(self, name):
        return getattr(start(), name)


fs = _Unstarted()


def start():
    """Read the settings and the cluster file and return the FileSystem.  Servers are not connected to before they are
    needed.  When it fails, one line in the log says what to do and every call gives EIO."""
    global _error
    if not isinstance(fs, _Unstarted):
        return fs
    if _error:
        raise fail(errno.EIO)
    from pymadfs import cluster, config, log, rpc

    try:
        settings = config.Config()
        if not settings.cluster:
            raise cluster.ClusterError(
                "MADFS_CLUSTER is not set: start the program with `madfs run`, or name the cluster file"
            )
        description = cluster.read(settings.cluster, _shim.cluster())
        uid, gid = _shim.identity()
        client = rpc.Client(description, settings, uid=uid, gid=gid, groups=posix.getgroups())
    except (cluster.ClusterError, ValueError, OSError) as error:
        _error = True
        log.log(f"the mount cannot be used: {error}")
        raise fail(errno.EIO) from None
    use(FileSystem(client, settings, settings.mount.encode("utf-8", "surrogateescape"), store))
    sharing.start(fs, cluster.shared_directory(description.secret))
    return fs


# credentials(7): "filesystem user ID and filesystem group ID (the fsuid and fsgid) ... These IDs are used, along with
# the supplementary group IDs, to determine permissions for accessing files".
@call
def identity(uid, gid):
    """The calling thread is another user's, or in other groups, from now on."""
    fs.rpc.identify(uid, gid, posix.getgroups())
    sharing.another_user(fs.rpc.cluster.secret)
    return 0


def use(file_system):
    """Answer calls from ``file_system`` from now on."""
    global fs
    fs = file_system
    fs.rpc.met = lambda server: links.report(fs, list(open_files.values()), server)
    _identify()


def _identify():
    global this_image, owner
    this_image = int.from_bytes(posix.urandom(4), "little") << 32 | posix.getpid()
    owner = (crc32(posix.uname().nodename.encode()) & 0x7FFFFFFF) << 32 | posix.getpid()


def after_fork_child():
    """In the child of a fork: nothing sent or held by the parent is ours."""
    if isinstance(fs, _Unstarted):
        return
    fs.after_fork_child(described)
    sharing.after_fork_child()
    locked.clear()
    open_files.clear()  # they are adopted anew, as another process's
    _identify()


def exiting():
    """The process is about to end: tell the servers what they would otherwise wait for."""
    if isinstance(fs, _Unstarted):
        return
    for ino in list(locked):
        unlock(ino)
    sharing.exiting()
    fs.flush()


class _Unlimited:
    """``with unlimited:`` RLIMIT_FSIZE, which is the program's, does not hold for files of ours in memory.  The value
    is how long those can be nevertheless, -1 for any length."""

    def __enter__(self):
        return _shim.lift(1)

    def __exit__(self, *_):
        _shim.lift(0)


unlimited = _Unlimited()


def file_of(handle):
    """The open file of a handle, also one opened only for its path (O_PATH)."""
    try:
        return open_files[handle]
    except KeyError:
        return _adopt(handle)


def opened(handle):
    """The open file of a handle; EBADF for O_PATH as the man page of open demands."""
    try:
        file = open_files[handle]
    except KeyError:
        file = _adopt(handle)
    if file.flags & posix.O_PATH:
        raise fail(errno.EBADF)
    return file


_GONE = 1 << 63  # with an inode's number: it is known to be of a directory that was removed
_PIPE_SHIFT = 62  # of what C gives as the handle of a FIFO, which the kernel has open: this bit and the inode number


def _adopt(handle):
    """Make the File of a handle from what its slot keeps: opened here just now, or by another process or program."""
    if handle >> _PIPE_SHIFT:
        from . import nodes

        return nodes.opened_pipe(handle & ~(1 << _PIPE_SHIFT))
    flags, record, path = slot(handle)
    ino, size, chunk_size, mode, image, cuts = RECORD.unpack(record)
    file = File(ino, mode, fs.inside(path), chunk_size, size, flags, dirty=image == this_image, cuts=cuts)
    if image != this_image and mode & S_IFMT == S_IFREG and not flags & posix.O_PATH:
        fs.reopen(file)
    if len(open_files) >= FILES_MAX:
        _forget_closed()
    open_files[handle] = file
    return file


def _forget_closed():
    """Forget open files whose last descriptor another process closed."""
    for handle in list(open_files):
        try:
            slot(handle)
        except OSError:
            open_files.pop(handle, None)


def host_name(path):
    """The host's name of a path in the mount."""
    return fs.mount + path if path != b"/" else fs.mount


def descriptor(path, attr, flags):
    """A descriptor for what was opened."""
    record = RECORD.pack(attr.ino, attr.size, attr.chunk_size, attr.mode, this_image, attr.cuts)
    status = flags & _STATUS_FLAGS if flags & posix.O_PATH else flags & _STATUS_FLAGS | abi.O_LARGEFILE
    try:
        fd = _shim.open_fd(status, record, host_name(path), flags & posix.O_CLOEXEC != 0)
    except OSError:
        if attr.mode & S_IFMT == S_IFREG and not flags & posix.O_PATH:
            fs.ended(attr.ino)
        raise
    if not attr.nlink and attr.mode & S_IFMT == S_IFDIR:
        _shim.gone(attr.ino)
    return fd


def removed(path):
    """The directory ``path`` was removed, or replaced: who has it open here goes on with what has no name."""
    for ino in set(_shim.open_at(host_name(path))):
        if ino < _GONE and not fs.getattr(File(ino, S_IFDIR, path, 0)).nlink:
            _shim.gone(ino)


def moved(old, new, exchange):
    """Directories have moved: what is open below them goes along, and working directories."""
    if not exchange:
        removed(new)
    _shim.moved(host_name(old), host_name(new), exchange)
    for file in list(open_files.values()):
        if covers(old, file.path):
            file.path = new + file.path[len(old) :]
        elif exchange and covers(new, file.path):
            file.path = old + file.path[len(new) :]


def follow(handle, file):
    """The open directory ``file`` of a handle may have been renamed, by this process tree or by others; its path."""
    path = fs.inside(slot(handle)[2])
    file.path = path if path != file.path else fs.where(file.ino) or path
    return file.path


def put(address, data):
    store(address, data)
    return 0


def unlock(ino):
    """Drop all record locks of this process on a file."""
    path = locked.pop(ino, b"")
    try:
        fs.lock(File(ino, S_IFREG, path, 0), owner, abi.F_UNLCK, 0, LOCK_TO_END, LOCK_TRY)
    except OSError:  # a server that died holds no locks
        return
