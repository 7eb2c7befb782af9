# SPDX-License-Identifier: Apache-2.0
"""openat2(2), whose RESOLVE_* flags say how the way to a file may lead.  Imported when such flags are first used."""

import errno
import posix

from pymadfs import abi
from pymadfs.client import LINKS_MAX, S_IFDIR, S_IFLNK, S_IFMT, HostPath
from pymadfs.errors import fail
from pymadfs.layout import covers, join, parent

from . import files

NO_XDEV, NO_MAGICLINKS, NO_SYMLINKS, BENEATH, IN_ROOT, CACHED = (1 << bit for bit in range(6))
KNOWN = (1 << 6) - 1


def resolve(host, given, flags, how):
    """The host's name of what ``given`` means with RESOLVE_* flags ``how``, reached through no link;
    ``host`` is the same without them.  A link at the end that open shall not follow stays.

    One look-up for each name, instead of one for all: who may not be led astray pays for it.
    """
    walk = _Walk(host, given, flags, how)
    while walk.rest:
        walk.step()
    return files.host_name(walk.at) + walk.ending


class _Walk:
    """``at`` is where it has come, without links; ``rest`` the names to come, the next one last."""

    def __init__(self, host, given, flags, how):
        self.flags, self.how, self.links, self.ending = flags, how, 0, b""
        if given[:1] == b"/":
            if how & BENEATH:
                raise fail(errno.EXDEV)
            if how & (NO_MAGICLINKS | NO_SYMLINKS) and given.startswith((b"/proc/", b"/dev/")):
                raise fail(errno.ELOOP)
            base = files.fs.mount
        else:
            base = host[: len(host) - len(given) - 1]
            if not covers(files.fs.mount, base):  # it begins outside the mount
                if how & (BENEATH | IN_ROOT):
                    raise fail(errno.EXDEV)
                base = files.fs.mount
        if how & NO_XDEV and (given[:1] == b"/" or not covers(files.fs.mount, host[: len(host) - len(given) - 1])):
            raise fail(errno.EXDEV)
        self.base = self.at = files.fs.inside(base) if base != files.fs.mount else b"/"
        self.rest = host[len(base) :].split(b"/")[::-1]
        self._trim()

    def _trim(self):
        """Slashes at the end demand a directory."""
        while self.rest and not self.rest[0]:
            self.ending = b"/"
            del self.rest[0]

    def step(self):
        name = self.rest.pop()
        if name in (b"", b"."):
            if name and not self.rest:
                self.ending = b"/."
            return
        if name == b"..":
            self._up()
            return
        path = join(self.at, name)
        last = not self.rest
        if last and self.ending and self.flags & posix.O_CREAT:
            files.fs.directory(self.at, search=True)
            raise fail(errno.EISDIR, path)
        try:
            _, attr, target = files.fs.lookup(path, follow=False)
        except OSError as error:
            if not last or error.errno != errno.ENOENT:
                raise
            attr = None
        if attr is None or attr.mode & S_IFMT != S_IFLNK or last and not self._follows():
            if not last and attr.mode & S_IFMT != S_IFDIR:
                raise fail(errno.ENOTDIR, path)
            self.at = path
            return
        self._link(path, attr, target)

    def _follows(self):
        """Whether a link at the path's end is followed."""
        exclusive = self.flags & posix.O_CREAT and self.flags & posix.O_EXCL
        return bool(self.ending) or not (exclusive or self.flags & posix.O_NOFOLLOW)

    def _up(self):
        files.fs.directory(self.at, search=True)
        if not self.rest:
            self.ending = b"/."
        if self.at == self.base and self.how & IN_ROOT:
            return
        if self.at == self.base and self.how & BENEATH or self.at == b"/" and self.how & NO_XDEV:
            raise fail(errno.EXDEV)
        if self.at == b"/":
            raise HostPath(parent(files.fs.mount) + b"/" + b"/".join(reversed(self.rest)) + self.ending)
        self.at = parent(self.at)

    def _link(self, path, attr, target):
        self.links += 1
        if self.how & NO_SYMLINKS or self.links > LINKS_MAX:
            raise fail(errno.ELOOP, path)
        files.fs.followed(path, attr)
        self.rest += target.split(b"/")[::-1]
        if len(self.rest) > abi.PATH_MAX:
            raise fail(errno.ENAMETOOLONG, path)
        self._trim()
        if target[:1] != b"/":
            return
        if self.how & IN_ROOT:
            self.at = self.base
        elif self.how & (BENEATH | NO_XDEV):
            raise fail(errno.EXDEV)
        else:
            host = b"/".join(reversed(self.rest)) + self.ending
            inside = files.fs.inside(b"/" + host.lstrip(b"/"))  # HostPath
            self.at, self.rest = b"/", inside.split(b"/")[::-1]
            self._trim()
