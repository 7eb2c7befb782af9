# SPDX-License-Identifier: Apache-2.0
"""The file system as an ordinary synchronous Python package, without the preload library."""

import ctypes
import errno
import io
import os
import stat as stat_module

from . import cluster, links, listing, rpc
from .client import File, FileSystem, HostPath
from .config import Config
from .errors import fail
from .ops import SET_ATIME, SET_ATIME_NOW, SET_GID, SET_LINK, SET_MODE, SET_MTIME, SET_MTIME_NOW, SET_UID

_BUFFER_BYTES = 1 << 20


def connect(cluster_file, config=None):
    """The Mount that the cluster file at ``cluster_file`` describes.

    ``config`` is a Config, by default from the environment.  Raises cluster.ClusterError when the file is not usable.
    """
    description = cluster.read(os.fspath(cluster_file))
    config = Config() if config is None else config
    client = rpc.Client(description, config, uid=os.geteuid(), gid=os.getegid(), groups=os.getgroups())
    return Mount(FileSystem(client, config, os.fsencode(description.mount), _store))


def _store(address, data):
    ctypes.memmove(address, data, len(data))


class Mount:
    """A mounted file system.  Paths (str, bytes or os.PathLike) are below its root, with or without a leading slash.

    Methods are named and behave as those of :mod:`os` and raise OSError; ENOTCONN for a path whose links lead out of
    the mount.
    """

    def __init__(self, file_system):
        self._fs = file_system

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """End the connections.  Files still open cannot be used afterwards: what is asked later, and what other
        threads are waiting for, raises OSError ESHUTDOWN."""
        self._fs.flush()
        self._fs.rpc.close()

    def _do(self, method, path, *arguments, **options):
        """Call a method of the file system on a path."""
        name = os.fsencode(path)
        try:
            return method(name if name[:1] == b"/" else b"/" + name, *arguments, **options)
        except HostPath as host:
            raise OSError(errno.ENOTCONN, f"leads out of the mount, to {os.fsdecode(host.path)}", path) from None
        except OSError as error:
            text = error.strerror if error.errno == errno.ESHUTDOWN else os.strerror(error.errno or errno.EIO)
            raise OSError(error.errno, text, path) from None

    def open(self, path, mode="r", buffering=-1, encoding=None, errors=None, newline=None):
        """As the built-in open, for the same modes; ``buffering`` 0 gives the raw file (bytes modes)."""
        text = "b" not in mode
        if (
            set(mode) - set("rwxab+t")
            or sum(mode.count(letter) for letter in "rwxa") != 1
            or "b" in mode
            and "t" in mode
        ):
            raise ValueError(f"invalid mode: {mode!r}")
        if text and buffering == 0 or not text and (encoding or errors or newline):
            raise ValueError("text needs a buffer, and bytes take no encoding, errors or newline")
        raw = self._open_raw(path, mode)
        if buffering == 0:
            return raw
        size = buffering if buffering > 1 else _BUFFER_BYTES
        buffer = (io.BufferedRandom if "+" in mode else io.BufferedReader if "r" in mode else io.BufferedWriter)(
            raw, size
        )
        return io.TextIOWrapper(buffer, encoding, errors, newline, line_buffering=buffering == 1) if text else buffer

    def _open_raw(self, path, mode):
        access = os.O_RDWR if "+" in mode else os.O_RDONLY if "r" in mode else os.O_WRONLY
        bits = {"r": 0, "w": os.O_CREAT | os.O_TRUNC, "x": os.O_CREAT | os.O_EXCL, "a": os.O_CREAT | os.O_APPEND}
        flags = access | next(value for letter, value in bits.items() if letter in mode)
        umask = os.umask(0)
        os.umask(umask)
        name, attr = self._do(self._fs.open, path, flags, 0o666 & ~umask)
        if stat_module.S_ISDIR(attr.mode):
            self._fs.ended(attr.ino)
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        return RawFile(self._fs, File(attr.ino, attr.mode, name, attr.chunk_size, attr.size, flags), path, mode)

    def stat(self, path, follow_symlinks=True):
        """os.stat_result of a path."""
        return _stat_result(self._do(self._fs.lookup, path, follow_symlinks)[1])

    def lstat(self, path):
        """stat of a link itself."""
        return self.stat(path, follow_symlinks=False)

    def exists(self, path):
        """Whether a path exists, also behind links; False when it cannot be looked at."""
        try:
            self._do(self._fs.lookup, path)
        except OSError:
            return False
        return True

    def listdir(self, path="/"):
        """Names in a directory, str or bytes as ``path`` is, sorted by bytes."""
        names = [name for name, _, _ in listing.everything(self._fs, self._do(self._fs.directory, path))[2:]]
        return names if isinstance(os.fspath(path), bytes) else [os.fsdecode(name) for name in names]

    def mkdir(self, path, mode=0o755):
        """Make a directory with exactly the permissions ``mode``."""
        self._do(self._fs.mkdir, path, mode & 0o1777)

    def rmdir(self, path):
        """Remove an empty directory."""
        self._do(self._fs.rmdir, path)

    def unlink(self, path):
        """Remove a file or link."""
        self._do(self._fs.unlink, path)

    remove = unlink

    def rename(self, old, new):
        """Move a file or link, replacing what is at ``new``."""
        new = os.fsencode(new)
        self._do(self._fs.rename, old, new if new[:1] == b"/" else b"/" + new)

    replace = rename

    def link(self, old, new, follow_symlinks=True):
        """Give the file ``old`` the further name ``new``."""
        new = os.fsencode(new)
        new = new if new[:1] == b"/" else b"/" + new
        self._do(lambda name: links.link(self._fs, name, new, follow_symlinks), old)

    def symlink(self, target, path):
        """Make the link ``path`` that points to ``target``."""
        self._do(lambda name: self._fs.symlink(os.fsencode(target), name), path)

    def readlink(self, path):
        """Where a link points to; EINVAL when it is none."""
        _, attr, target = self._do(self._fs.lookup, path, follow=False)
        if not stat_module.S_ISLNK(attr.mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), path)
        return target if isinstance(os.fspath(path), bytes) else os.fsdecode(target)

    def truncate(self, path, length):
        """Set a file's size in bytes."""
        if length < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), path)
        self._do(self._fs.truncate, path, length)

    def chmod(self, path, mode):
        """Set the permissions."""
        self._do(self._fs.setattr, path, SET_MODE, mode=mode & 0o7777)

    def chown(self, path, uid, gid, follow_symlinks=True):
        """Set owner and group; -1 leaves one as it is."""
        valid = (SET_UID if uid != -1 else 0) | (SET_GID if gid != -1 else 0)
        self._do(
            self._fs.setattr,
            path,
            valid | self._link(valid, follow_symlinks),
            follow_symlinks,
            uid=uid & 0xFFFFFFFF,
            gid=gid & 0xFFFFFFFF,
        )

    def utime(self, path, ns=None, follow_symlinks=True):
        """Set access and modification time, ``ns=(atime, mtime)`` in nanoseconds; None: now."""
        valid = SET_ATIME_NOW | SET_MTIME_NOW if ns is None else SET_ATIME | SET_MTIME
        atime, mtime = ns or (0, 0)
        self._do(
            self._fs.setattr,
            path,
            valid | self._link(valid, follow_symlinks),
            follow_symlinks,
            atime=atime,
            mtime=mtime,
        )

    @staticmethod
    def _link(valid, follow):
        return SET_LINK if valid and not follow else 0

    def statvfs(self):
        """``(block, blocks, free, available, files, files_free)``: space of all servers together, in units of
        ``block`` bytes."""
        return self._fs.statfs()


def _stat_result(attr):
    seconds = [ns // 1_000_000_000 for ns in (attr.atime_ns, attr.mtime_ns, attr.ctime_ns)]
    exact = [ns / 1e9 for ns in (attr.atime_ns, attr.mtime_ns, attr.ctime_ns)]
    from .abi import DEVICE

    return os.stat_result(
        (
            attr.mode,
            attr.ino,
            DEVICE,
            attr.nlink,
            attr.uid,
            attr.gid,
            attr.size,
            *seconds,
            *exact,
            attr.atime_ns,
            attr.mtime_ns,
            attr.ctime_ns,
            attr.chunk_size,
            attr.blocks,
            attr.rdev,
        )
    )


class RawFile(io.RawIOBase):
    """An open file, for io.BufferedReader and kin.  One thread at a time moves its position."""

    def __init__(self, file_system, file, name, mode):
        self._fs, self._file, self.name, self.mode = file_system, file, name, mode
        self._position = file.size if file.flags & os.O_APPEND else 0

    def readable(self):
        return self._file.readable

    def writable(self):
        return self._file.writable

    def seekable(self):
        return True

    def readinto(self, buffer):
        """Read into ``buffer``; returns how many bytes, 0 at the end of the file."""
        self._check(self._file.readable, "not readable")
        view = memoryview(buffer).cast("B")
        if not view:
            return 0
        count = self._fs.read(
            self._file, self._position, ((ctypes.addressof(ctypes.c_char.from_buffer(view)), len(view)),)
        )
        self._position += count
        return count

    def write(self, data):
        """Write bytes; returns how many, fewer than given when a server failed on the way."""
        self._check(self._file.writable, "not writable")
        view = memoryview(data).cast("B")
        if not view:
            return 0
        # The address of memory that may not be written to is not to be had: such data is copied.
        memory = bytearray(view) if view.readonly else view
        segments = ((ctypes.addressof(ctypes.c_char.from_buffer(memory)), len(memory)),)
        if self._file.flags & os.O_APPEND:
            self._position, count = self._fs.append(self._file, segments, len(memory))
        else:
            count = self._fs.write(self._file, self._position, segments)
        self._position += count
        return count

    def seek(self, offset, whence=os.SEEK_SET):
        """Move the position, in bytes; returns it."""
        self._check(True, "")
        base = {
            os.SEEK_SET: lambda: 0,
            os.SEEK_CUR: lambda: self._position,
            os.SEEK_END: lambda: self._fs.getattr(self._file).size,
        }
        if whence not in base or base[whence]() + offset < 0:
            raise fail(errno.EINVAL)
        self._position = base[whence]() + offset
        return self._position

    def truncate(self, size=None):
        """Set the size in bytes, by default to the position; returns it."""
        self._check(self._file.writable, "not writable")
        size = self._position if size is None else size
        if size < 0:
            raise fail(errno.EINVAL)
        self._fs.ftruncate(self._file, size)
        return size

    def sync(self):
        """Make durable what was written."""
        self._check(True, "")
        self._fs.fsync(self._file)

    def close(self):
        """Tell the server that this opening ended."""
        if not self.closed:
            super().close()
            self._fs.ended(self._file.ino)

    def _check(self, allowed, complaint):
        if self.closed:
            raise ValueError("I/O operation on closed file")
        if not allowed:
            raise io.UnsupportedOperation(complaint)
