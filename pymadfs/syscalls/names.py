# SPDX-License-Identifier: Apache-2.0
"""Names that come and go."""

import errno

import _shim
from pymadfs import abi
from pymadfs.client import S_IFDIR, S_IFMT, S_IFREG, S_SPECIAL, HostPath
from pymadfs.errors import fail

from . import files
from .table import call


# mkdir(2): "the mode of the created directory is (mode & ~umask & 0777)", Linux also honours the S_ISVTX bit.
@call
def mkdirat(path, mode):
    files.fs.mkdir(files.fs.inside(path), mode & 0o1777 & ~_shim.umask())
    return 0


# mknod(2): "EEXIST: pathname already exists.  This includes the case where pathname is a symbolic link ... EINVAL: mode
# requested creation of something other than a regular file, device special file, FIFO or socket."
@call
def mknodat(path, mode, device):
    mode &= 0xFFFF
    if mode & S_IFMT == S_IFDIR:
        raise fail(errno.EPERM)
    if mode & S_IFMT not in (0, S_IFREG, *S_SPECIAL):
        raise fail(errno.EINVAL)
    files.fs.mknod(files.fs.inside(path), mode & ~_shim.umask(), device & 0xFFFFFFFF)
    return 0


# unlink(2): "deletes a name from the filesystem"; unlinkat(2): "If the AT_REMOVEDIR flag is specified, performs the
# equivalent of rmdir(2)"
@call
def unlinkat(path, flags):
    if flags & ~abi.AT_REMOVEDIR:
        raise fail(errno.EINVAL)
    if flags:
        files.removed(files.fs.rmdir(files.fs.inside(path)))
    else:
        files.fs.unlink(files.fs.inside(path))
    return 0


# rename(2): "If newpath already exists, it will be atomically replaced ... EXDEV: oldpath and newpath are not on the
# same mounted filesystem."
@call
def renameat2(old, new, flags):
    names, outside = [], []
    for index, path in enumerate((old, new)):
        try:
            names.append((index, files.fs.inside(path)))
        except HostPath:
            outside.append(index)
    if not names:
        raise HostPath(old)
    try:
        if not outside:
            moved = files.fs.rename(names[0][1], names[1][1], flags)
            if moved:
                files.moved(moved[0], moved[1], flags & abi.RENAME_EXCHANGE)
            return 0
        files.fs.name(names[0][1])
    except HostPath as host:
        if outside:  # after all, both are the host's
            raise HostPath(host.path, names[0][0]) from None
    raise fail(errno.EXDEV)


# symlink(2): "creates a symbolic link named linkpath which contains the string target. ... ENOENT: target is the empty
# string."
@call
def symlinkat(target, path):
    if not target:
        raise fail(errno.ENOENT)
    if len(target) >= abi.PATH_MAX:
        raise fail(errno.ENAMETOOLONG)
    try:
        files.fs.symlink(target, files.fs.inside(path))
    except HostPath as host:
        raise HostPath(host.path, 1) from None
    return 0
