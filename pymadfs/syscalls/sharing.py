# SPDX-License-Identifier: Apache-2.0
"""Whether files are mapped to be shared on this node: what every process must know, and as little as that.  The rest is
in :mod:`.images`, which is imported when there is one."""

import errno
import posix

import _shim
from pymadfs import abi, cluster
from pymadfs.client import FileSystem
from pymadfs.errors import fail

NAMES = posix.O_RDWR | posix.O_CLOEXEC | posix.O_NOFOLLOW

_fs = _directory = _live = _images = _name = None
_lives = {}  # directory -> its _live


def start(fs, directory):
    """Let ``fs`` look at the images in ``directory``.  Where there can be none, files cannot be mapped for shared
    writing."""
    global _fs, _directory, _live, _name
    _name = directory
    try:
        if directory not in _lives:
            _lives[directory] = live(directory)
    except OSError:
        return
    _fs, _directory, _live = fs, directory, _lives[directory]
    fs.mapped, fs.images = _live, images


def another_user(secret):
    """The process has become another user, who has images of his own.  As long as it maps files, it stays with those
    that it began with, and sees no others."""
    global _images
    directory = cluster.shared_directory(secret)
    if _fs is not None and directory != _directory and not (_images and _images.known):
        _images = None
        start(_fs, directory)


def private(directory):
    """Make the directory if need be; nobody else may have made it.  Raises OSError."""
    try:
        posix.mkdir(directory, 0o700)
    except FileExistsError:
        pass
    info = posix.lstat(directory)
    if info.st_uid != posix.geteuid() or info.st_mode & 0o170077 != 0o040000:
        raise fail(errno.EPERM, directory)


def places():
    """Paths of this job's directory for what is not the images: the first that can be used is to be taken."""
    name = _name.rsplit(b"/", 1)[1]
    return [_name, *(place + b"/" + name for place in cluster.PLACES)]


def live(directory):
    """Memory with the number of images of this node, shared by its processes.  Raises OSError."""
    private(directory)
    fd = posix.open(directory + b"/live", NAMES | posix.O_CREAT, 0o600)
    try:
        if posix.fstat(fd).st_size < abi.PAGE:  # `ulimit -f` may forbid it
            posix.posix_fallocate(fd, 0, abi.PAGE)  # Where memory is full, a mere truncation would be a SIGBUS later.
        address = _shim.map(0, abi.PAGE, abi.PROT_READ | abi.PROT_WRITE, abi.MAP_SHARED, fd, 0)
    finally:
        posix.close(fd)
    return _shim.window(address, abi.PAGE).cast("I")


def images():
    """The Images of this node, or None when there can be none."""
    global _images
    if _images is None and _fs is not None:
        from .images import Images

        _images = Images(_directory, _live, _ServersOnly(_fs.rpc, _fs.config, _fs.mount, _fs.store))
    return _images


class _ServersOnly(FileSystem):
    """The file system without the images."""

    def ended(self, ino):
        _fs.ended(ino)


def after_fork_child():
    """In the child of a fork: mappings stay, locks do not."""
    if _images:
        _images.after_fork_child()


def exiting():
    """The process ends, or becomes another program."""
    if _images:
        _images.exiting()
