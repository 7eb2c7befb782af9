# SPDX-License-Identifier: Apache-2.0
"""What chmod, chown and utimensat may change, as Linux's notify_change() has it.  Synchronous and pure."""
import errno
import stat

from pymadfs.errors import fail
from pymadfs.identity import WRITE, member
from pymadfs.ops import (
    ATTR,
    SET_ATIME,
    SET_ATIME_NOW,
    SET_CHOWN,
    SET_GID,
    SET_MODE,
    SET_MTIME,
    SET_MTIME_NOW,
    SET_UID,
)

from .meta import changed, check_access, check_owner, now_ns, stripped

_TIMES_NOW = SET_ATIME_NOW | SET_MTIME_NOW
_TIMES = SET_ATIME | SET_MTIME | _TIMES_NOW


def attributes(request, value):
    """The value with the mode, owner and times that a SETATTR asks for.  Raises EPERM or EACCES."""
    valid = request.fields.valid
    attr = ATTR.unpack(value)
    now = now_ns()
    fields = {"ctime_ns": now}
    if valid & (SET_UID | SET_GID | SET_CHOWN):
        _chown(request, attr, fields)
    if valid & SET_MODE:
        _chmod(request, attr, fields)
    if valid & _TIMES:
        _utimes(request, attr, fields, now)
    return changed(value, **fields)


def _chown(request, attr, fields):
    """chown(2): "Only a privileged process may change the owner of a file.  The owner of a file may change the group of
    the file to any group of which that owner is a member. ... the S_ISUID and S_ISGID mode bits are cleared"."""
    _, valid, _, uid, gid = request.fields[:5]
    if request.uid and (valid & SET_UID and not request.uid == attr.uid == uid
                        or valid & SET_GID and (request.uid != attr.uid
                                                or gid != attr.gid and not member(request, gid))):
        raise fail(errno.EPERM)
    if valid & SET_UID:
        fields["uid"] = uid
    if valid & SET_GID:
        fields["gid"] = gid
    if stat.S_ISDIR(attr.mode):
        return
    mode = stripped(attr.mode)
    if request.uid and not member(request, attr.gid):
        mode &= ~stat.S_ISGID
    if mode != attr.mode:
        check_owner(attr, request.uid)
        fields["mode"] = mode


def _chmod(request, attr, fields):
    """chmod(2): "If the calling process is not privileged, and the group of the file does not match the effective group
    ID of the process or one of its supplementary group IDs, the S_ISGID bit will be turned off"."""
    check_owner(attr, request.uid)
    mode = stat.S_IFMT(attr.mode) | request.fields.mode & 0o7777
    if request.uid and not member(request, fields.get("gid", attr.gid)):
        mode &= ~stat.S_ISGID
    fields["mode"] = mode


def _utimes(request, attr, fields, now):
    """utimensat(2): "1. the caller must have write access to the file; 2. the caller's effective user ID must match the
    owner of the file; or 3. ... appropriate privileges", where 1 is enough only to set both times to now."""
    valid, atime, mtime = request.fields.valid, request.fields.atime_ns, request.fields.mtime_ns
    if request.uid not in (0, attr.uid):
        if valid & _TIMES != _TIMES_NOW:
            raise fail(errno.EPERM)
        check_access(attr, request, WRITE)
    if valid & (SET_ATIME | SET_ATIME_NOW):
        fields["atime_ns"] = now if valid & SET_ATIME_NOW else atime
    if valid & (SET_MTIME | SET_MTIME_NOW):
        fields["mtime_ns"] = now if valid & SET_MTIME_NOW else mtime
