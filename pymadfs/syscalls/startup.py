# SPDX-License-Identifier: Apache-2.0
"""What a program needs before the client is there: libraries, and its loader, that lie on the mount.

The dynamic loader opens the libraries that a program starts with (DT_NEEDED, LD_PRELOAD), and the kernel opens the
loader (PT_INTERP), before anything of ours runs in the process.  So the process that executes the program copies them
to a *stage*, a directory of the host's that is laid out as the mount is::

    /dev/shm/madfs-USER-JOB/stage-NUMBER/lib/libfoo.so        a copy of MOUNT/lib/libfoo.so

The program is given an LD_LIBRARY_PATH in which the directories of the mount are those of the stage.  The loader does
the search itself: what is copied is each file of the mount that it could come to for one of the names it will look for.
In the program, intercept/stage.c removes the copies when all are mapped, puts the variables back, and takes a path into
the stage for one into the mount, so that libraries loaded later are found by the same search.
"""

import errno
import fcntl
import posix
from struct import Struct

from pymadfs.client import S_IFDIR, S_IFMT, S_IFREG, HostPath
from pymadfs.errors import fail

from . import files, sharing
from .programs import copy_opened

OBJECTS_MAX = 4096  # libraries that one program starts with, whatever their names lead to
ABANDONED_S = 10  # a stage that nobody has locked for so long was left by a process that was killed
TEXT_MAX = 4096
ENVIRONMENT_MAX = 120 << 10  # bytes of one variable; the kernel's limit is 128 KiB
NOEXEC = 8  # of statvfs
HWCAPS = (b"/glibc-hwcaps/x86-64-v4", b"/glibc-hwcaps/x86-64-v3", b"/glibc-hwcaps/x86-64-v2")
LIB = (b"lib64", b"lib", b"lib/x86_64-linux-gnu", b"lib/aarch64-linux-gnu")  # what $LIB may stand for
SYSTEM = tuple(top + b"/" + name for name in LIB for top in (b"", b"/usr"))
CACHE, CACHE_MAGIC = b"/etc/ld.so.cache", b"glibc-ld.so.cache1.1"
MACHINES = {"x86_64": 62, "aarch64": 183}

_HEADER, _SEGMENT, _ENTRY = Struct("<16sHHIQQQIHHHHHH"), Struct("<IIQQQQQQ"), Struct("<qQ")
_CACHE_ENTRY = Struct("<iIIIQ")
_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
_NEEDED, _STRTAB, _RPATH, _RUNPATH = 1, 5, 15, 29


class Object:
    """What an ELF file says about its start.  ``fd`` stays the caller's.  Raises ValueError when it is no such file."""

    def __init__(self, fd):
        head = posix.pread(fd, _HEADER.size, 0)
        if len(head) < _HEADER.size or head[:6] != b"\x7fELF\2\1":
            raise ValueError
        header = _HEADER.unpack(head)
        if header[2] != MACHINES.get(posix.uname().machine) or header[9] != _SEGMENT.size:
            raise ValueError
        self.fd, self._segments_at = fd, header[5]
        segments = posix.pread(fd, _SEGMENT.size * header[10], header[5])
        self._segments = list(_SEGMENT.iter_unpack(segments[: len(segments) - len(segments) % _SEGMENT.size]))
        self.needed, self.rpath, self.runpath, self.interpreter = [], b"", b"", b""
        for kind, _, offset, _, _, size, _, _ in self._segments:
            if kind == _PT_INTERP:
                self.interpreter = posix.pread(fd, min(size, TEXT_MAX), offset).partition(b"\0")[0]
            elif kind == _PT_DYNAMIC:
                self._read_dynamic(offset, size)

    def _read_dynamic(self, offset, size):
        data = posix.pread(self.fd, size, offset)
        entries = []
        for at in range(0, len(data) - _ENTRY.size + 1, _ENTRY.size):
            tag, value = _ENTRY.unpack_from(data, at)
            if tag == 0:
                break
            entries.append((tag, value, offset + at))
        strings = next((self._file_offset(value) for tag, value, _ in entries if tag == _STRTAB), None)
        if strings is None:
            return
        for tag, value, at in entries:
            if tag in (_NEEDED, _RPATH, _RUNPATH):
                text = posix.pread(self.fd, TEXT_MAX, strings + value).partition(b"\0")[0]
                if tag == _NEEDED:
                    self.needed.append((text, at, value))
                elif tag == _RPATH:
                    self.rpath = text
                else:
                    self.runpath = text

    def _file_offset(self, address):
        for kind, _, offset, start, _, size, _, _ in self._segments:
            if kind == _PT_LOAD and start <= address < start + size:
                return offset + address - start
        return None

    def need_by_name(self, at, value, path):
        """Make a DT_NEEDED with slashes one without: the end of the same string.  REQUIRES: the file is a copy."""
        posix.pwrite(self.fd, _ENTRY.pack(_NEEDED, value + path.rindex(b"/") + 1), at)

    def interpret_by(self, path):
        """Name another loader, at the end of the file.  REQUIRES: the file is a copy."""
        end = posix.fstat(self.fd).st_size
        posix.pwrite(self.fd, path + b"\0", end)
        for number, segment in enumerate(self._segments):
            if segment[0] == _PT_INTERP:
                kind, flags, _, address, physical, _, memory, align = segment
                changed = _SEGMENT.pack(kind, flags, end, address, physical, len(path) + 1, memory, align)
                posix.pwrite(self.fd, changed, self._segments_at + number * _SEGMENT.size)


def normal(path):
    """An absolute path without ``.``, ``..`` and double slashes."""
    parts = []
    for part in path.split(b"/"):
        if part == b"..":
            del parts[-1:]
        elif part not in (b"", b"."):
            parts.append(part)
    return b"/" + b"/".join(parts)


def above(path):
    """The directory of an absolute path."""
    return path[: path.rindex(b"/")] or b"/"


_cached = None


def cached():
    """What /etc/ld.so.cache says: name of a library -> its path."""
    global _cached
    if _cached is None:
        _cached = {}
        try:
            fd = posix.open(CACHE, posix.O_RDONLY | posix.O_CLOEXEC)
        except OSError:
            return _cached
        try:
            data = posix.pread(fd, posix.fstat(fd).st_size, 0)
        finally:
            posix.close(fd)
        start = data.find(CACHE_MAGIC)
        if start >= 0:
            count = int.from_bytes(data[start + 20 : start + 24], "little")
            for number in range(count):
                _, key, value, _, _ = _CACHE_ENTRY.unpack_from(data, start + 48 + number * _CACHE_ENTRY.size)
                _cached.setdefault(_text(data, start + key), _text(data, start + value))
    return _cached


def _text(data, at):
    return data[at : data.index(b"\0", at)]


class Stage:
    """The directory with the copies: ``top``, and what is in it."""

    def __init__(self):
        self.top, self.lock = b"", -1
        self.made = []  # names below top in the order in which they were made; those of directories end in a slash
        self.copies = {}  # path below the mount -> path of the copy, or None: there is no such file
        self.inodes = {}  # inode number -> path of its copy
        self.directories = {}  # path below the mount -> whether it is a directory

    def directory(self, path):
        """Whether ``path`` below the mount is a directory; then the stage has it, too."""
        path = normal(path)
        if path not in self.directories:
            try:
                _, attr, _ = files.fs.lookup(path)
                self.directories[path] = attr.mode & S_IFMT == S_IFDIR
            except (OSError, HostPath):
                self.directories[path] = False
            if self.directories[path]:
                self._make(path)
        return self.directories[path]

    def _make(self, path):
        if not self.top:
            self.top = new_stage()
            self.lock = posix.open(self.top, posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC)
            fcntl.flock(self.lock, fcntl.LOCK_SH)
        at = b""
        for part in path.split(b"/")[1:]:
            at += part + b"/"
            if part and at not in self.made:
                posix.mkdir(self.top + b"/" + at, 0o700)
                self.made.append(at)

    def copy(self, path):
        """Path of the copy of the library ``path`` below the mount, or None when there is none."""
        path = normal(path)
        if path not in self.copies:
            try:
                self.copies[path] = self._copy(path)
            except HostPath as out:  # a link that leads to a library of the host's
                self.copies[path] = self._place(path)
                posix.symlink(out.path, self.copies[path])
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.ELOOP):
                    raise
                self.copies[path] = None
        return self.copies[path]

    def _place(self, path):
        self._make(above(path))
        self.made.append(path[1:])
        return self.top + path

    def _copy(self, path):
        real, attr, _ = files.fs.lookup(path)
        if attr.mode & S_IFMT != S_IFREG:
            return None
        place = self._place(path)
        if attr.ino in self.inodes:
            posix.link(self.inodes[attr.ino], place)  # the loader knows it by its inode
            return place
        fd = posix.open(place, posix.O_RDWR | posix.O_CREAT | posix.O_EXCL | posix.O_CLOEXEC, 0o700)
        try:
            copy_file(real, fd)
        finally:
            posix.close(fd)
        self.inodes[attr.ino] = place
        return place

    def leave(self):
        """Who asked for it holds a lock of its own from now on, or soon."""
        if self.lock >= 0:
            posix.close(self.lock)
            self.lock = -1

    def remove(self):
        """There is nothing in it that anybody needs."""
        if self.top:
            remove_tree(self.top)


def copy_file(path, fd):
    """Copy the file at ``path`` below the mount, without links in it, to ``fd``."""
    path, attr = files.fs.open(path, posix.O_RDONLY, 0)
    copy_opened(attr, path, fd)


_stages = 0


def new_stage():
    """A new directory that libraries can be mapped from.  Raises OSError."""
    global _stages
    for base in sharing.places():
        try:
            sharing.private(base)
            if posix.statvfs(base).f_flag & NOEXEC:
                continue
        except OSError:
            continue
        sweep(base)
        while True:
            _stages += 1
            top = b"%s/stage-%d-%d" % (base, posix.getpid(), _stages)
            try:
                posix.mkdir(top, 0o700)
                return top
            except FileExistsError:
                pass
    raise fail(errno.EACCES)


def sweep(base):
    """Remove stages of processes that were killed before their program had started."""
    import time

    for name in posix.listdir(base):
        if not name.startswith(b"stage-"):
            continue
        top = base + b"/" + name
        try:
            fd = posix.open(top, posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC)
        except OSError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if time.time() - posix.fstat(fd).st_ctime > ABANDONED_S:
                remove_tree(top)
        except OSError:
            pass
        finally:
            posix.close(fd)


def remove_tree(top):
    """Remove a directory with all that is in it.  Raises OSError."""
    for name in posix.listdir(top):
        path = top + b"/" + name
        if posix.lstat(path).st_mode & S_IFMT == S_IFDIR:
            remove_tree(path)
        else:
            posix.unlink(path)
    posix.rmdir(top)


class Search:
    """Finds what the loader will look for, and stages what of it lies on the mount."""

    def __init__(self, mount, cwd, program, library_path):
        self.mount, self.cwd = mount, cwd
        self.stage = Stage()
        self.seen, self.objects = set(), 0
        self.first, self.last = [], []  # directories of the mount from DT_RPATH and DT_RUNPATH
        self.origin = above(program)
        texts = library_path.replace(b";", b":").split(b":") if library_path else []
        self.given = [(text, self.expand(self.absolute(text), self.origin)) for text in texts]
        self.library_path = [path for _, found in self.given for path in found]

    def inside(self, path):
        """The path below the mount, or None."""
        return path[len(self.mount) :] or b"/" if (path + b"/").startswith(self.mount + b"/") else None

    def absolute(self, path):
        """What the loader takes ``path`` for; relative ones stay when the working directory is the kernel's."""
        return path if path[:1] in (b"/", b"$") or not self.cwd else self.cwd + b"/" + path

    def expand(self, text, origin):
        """Directories of one item of a search path."""
        for name in (b"$ORIGIN", b"${ORIGIN}"):
            text = text.replace(name, origin)
        found = [text]
        for name in (b"$LIB", b"${LIB}"):
            if name in text:
                found = [text.replace(name, lib) for lib in LIB]
        return [normal(path) for path in map(self.absolute, found) if path[:1] == b"/"]

    def directories(self, text, origin, among):
        """Directories of a DT_RPATH or DT_RUNPATH; those of the mount are noted in ``among``."""
        found = [path for part in text.split(b":") if part for path in self.expand(part, origin)]
        for path in found:
            inner = self.inside(path)
            if inner and self.stage.directory(inner) and inner not in among:
                among.append(inner)
        return found

    def examine(self, item, origin, inherited, is_copy):
        """Find all that ``item`` (an Object) and what it needs will be looked for."""
        rpath = [] if item.runpath else self.directories(item.rpath, origin, self.first) + inherited
        runpath = self.directories(item.runpath, origin, self.last)
        for name, at, value in item.needed:
            if b"/" not in name:
                self.find(name, rpath, (*rpath, *self.library_path, *runpath))
                continue
            path = self.absolute(name)
            inner = self.inside(normal(path)) if path[:1] == b"/" else None
            if inner and is_copy and self.take(inner, rpath):
                item.need_by_name(at, value, name)
                if above(inner) not in self.first:
                    self.first.append(above(inner))

    def find(self, name, rpath, directories):
        """One name without slashes: all files of the mount that it may mean, and the first of the host's."""
        for directory in directories:
            if (directory, name) in self.seen:
                continue
            self.seen.add((directory, name))
            inner = self.inside(directory)
            if inner is None:
                if self.host(directory + b"/" + name, rpath):
                    return
            elif self.stage.directory(inner):
                inner = b"" if inner == b"/" else inner
                if self.stage.directory(inner + b"/glibc-hwcaps"):
                    for sub in HWCAPS:
                        self.take(inner + sub + b"/" + name, rpath)
                self.take(inner + b"/" + name, rpath)
        if (None, name) not in self.seen:
            self.seen.add((None, name))
            path = cached().get(name)
            if not (path and self.host(path, rpath)):
                any(self.host(directory + b"/" + name, rpath) for directory in SYSTEM)

    def take(self, inner, rpath):
        """Stage the library ``inner`` (below the mount) and what it needs; whether there is one."""
        known = normal(inner) in self.stage.copies
        place = self.stage.copy(inner)
        if place and not known:
            self.open(place, above(self.mount + normal(inner)), rpath, True)
        return place is not None

    def host(self, path, rpath):
        """A library of the host's: what it needs may lie on the mount.  Whether there is one."""
        if path in self.seen:
            return True
        if not self.open(path, above(path), rpath, False):
            return False
        self.seen.add(path)
        return True

    def open(self, path, origin, rpath, is_copy):
        self.objects += 1
        if self.objects > OBJECTS_MAX:
            raise fail(errno.ELIBMAX)
        try:
            fd = posix.open(path, (posix.O_RDWR if is_copy else posix.O_RDONLY) | posix.O_CLOEXEC)
        except OSError:
            return False
        try:
            self.examine(Object(fd), origin, rpath, is_copy)
        except ValueError:
            pass  # not for this machine: the loader goes on, or says what is wrong
        finally:
            posix.close(fd)
        return True


def preload_list(search, preload):
    """LD_PRELOAD with the copies of what lies on the mount; b"" when nothing does."""
    found, changed = [], False
    for text in preload.replace(b" ", b":").split(b":"):
        path = search.absolute(text)
        inner = search.inside(normal(path)) if b"/" in text and path[:1] == b"/" else None
        if inner and search.take(inner, []):
            text, changed = search.stage.copy(inner), True
        elif b"/" in text:
            search.host(text, [])
        elif text:
            search.find(text, [], search.library_path)
        found.append(text)
    return b":".join(found) if changed else b""


def library_path_of(search):
    """LD_LIBRARY_PATH with the directories of the stage."""
    paths = [search.stage.top + inner for inner in search.first]
    for text, found in search.given:
        if any(map(search.inside, found)):
            paths += [search.stage.top + (search.inside(path) or b"") for path in found]
        else:
            paths.append(text)
    paths += [search.stage.top + inner for inner in search.last]
    return b":".join(dict.fromkeys(paths))


def prepare(program, fd, is_copy, library_path, preload, cwd):
    """Stage what the program behind ``fd`` starts with.

    ``program`` is its absolute path, ``library_path`` and ``preload`` the variables (b"" without them), ``cwd`` the
    working directory when it lies on the mount, else b"".  Returns ``(stage, LD_LIBRARY_PATH, LD_PRELOAD)``; the last
    two are b"" when they stay.  None: there is nothing to be done.  Raises OSError.
    """
    try:
        item = Object(fd)
    except ValueError:
        return None
    if not item.interpreter:
        return None  # nobody loads anything for it
    search = Search(files.fs.mount, cwd, program, library_path)
    stage = search.stage
    try:
        inner = search.inside(normal(search.absolute(item.interpreter)))
        place = stage.copy(inner) if inner and is_copy else None
        if place:
            item.interpret_by(place)
        for directory in search.library_path:
            if search.inside(directory):
                stage.directory(search.inside(directory))
        preloads = preload_list(search, preload)
        search.examine(item, search.origin, [], is_copy)
        if not stage.top:
            return None
        names = b":".join(reversed(stage.made))
        posix.utime(stage.top)  # it is not abandoned when nobody holds a lock for a moment
        result = stage.top + b":" + names, library_path_of(search), preloads
        if max(map(len, result)) > ENVIRONMENT_MAX:
            raise fail(errno.E2BIG)
        return result
    except BaseException:
        stage.remove()
        raise
    finally:
        stage.leave()
