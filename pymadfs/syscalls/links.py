# SPDX-License-Identifier: Apache-2.0
"""Further names of files."""

import errno
import posix

from pymadfs import abi, links
from pymadfs.client import HostPath
from pymadfs.errors import fail

from . import files
from .files import file_of
from .table import call

_FLAGS = abi.AT_SYMLINK_FOLLOW | abi.AT_EMPTY_PATH


# link(2): "creates a new link (also known as a hard link) to an existing file.  If newpath exists, it will not be
# overwritten. ... EXDEV: oldpath and newpath are not on the same mounted filesystem. ... AT_SYMLINK_FOLLOW (since Linux
# 2.6.18): By default, linkat() does not dereference oldpath if it is a symbolic link"
@call
def linkat(old, new, flags):
    if flags & ~_FLAGS:
        raise fail(errno.EINVAL)
    try:
        path, attr, _ = files.fs.lookup(files.fs.inside(old), flags & abi.AT_SYMLINK_FOLLOW != 0)
    except HostPath as host:
        return _from_host(host, new)
    return _link(attr, path, new)


# linkat(2): "AT_EMPTY_PATH: If oldpath is an empty string, create a link to the file referenced by olddirfd ... This
# will generally not work if the file has a link count of zero (files created with O_TMPFILE and without O_EXCL are an
# exception)."
@call
def flinkat(handle, new, flags):
    if flags & ~_FLAGS:
        raise fail(errno.EINVAL)
    if handle < 0:  # the descriptor is the kernel's
        _check_new(new)
        raise fail(errno.EXDEV)
    file = file_of(handle)
    return _link(files.fs.getattr(file) if files.fs.rpc.who.uid else file, file.path, new)


def _link(attr, path, new):
    try:
        links.link_inode(files.fs, attr, path, files.fs.inside(new))
    except HostPath as host:
        _check_host(host.path)
        raise fail(errno.EXDEV) from None
    return 0


def _from_host(host, new):
    """``old`` lies on the host."""
    try:
        posix.lstat(host.path)
        links.refuse(files.fs, files.fs.inside(new))
    except HostPath as other:
        _check_host(other.path)
    raise fail(errno.EXDEV)


def _check_new(new):
    try:
        links.refuse(files.fs, files.fs.inside(new))
    except HostPath as host:
        _check_host(host.path)


def _check_host(path):
    """What the kernel would find wrong with a new name before it saw that it is on another file system."""
    try:
        posix.lstat(path)
    except FileNotFoundError:
        posix.lstat(path.rstrip(b"/").rpartition(b"/")[0] or b"/")
    else:
        raise fail(errno.EEXIST, path)
