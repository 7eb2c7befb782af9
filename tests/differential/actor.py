# SPDX-License-Identifier: Apache-2.0
"""A process that makes the calls it is told to and says what came of them: one JSON list a line, in and out.

Used by test_differential.py, which runs it here under the preload and there without.  Python's standard library only.
A call is ``[name, argument...]``; a result ``["ok", value]`` or ``["error", errno's name]``.  Bytes travel as Latin-1.
Descriptors are named by the number that the call which opened them was given.
"""
import ctypes
import errno
import fcntl
import json
import os
import struct
import sys

libc = ctypes.CDLL(None, use_errno=True)
libc.renameat2.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
libc.opendir.restype = libc.readdir.restype = ctypes.c_void_p
libc.readdir.argtypes = libc.closedir.argtypes = libc.rewinddir.argtypes = [ctypes.c_void_p]
libc.telldir.argtypes, libc.telldir.restype = [ctypes.c_void_p], ctypes.c_long
libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]
libc.getxattr.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t]
libc.getxattr.restype = ctypes.c_ssize_t
libc.syscall.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t]
libc.pwritev2.argtypes = libc.preadv2.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_long,
                                                  ctypes.c_int]
libc.pwritev2.restype = libc.preadv2.restype = ctypes.c_ssize_t
libc.faccessat.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_int]
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]

NO_FILE = 9999  # what a number stands for that was never opened, or is closed

files: dict = {}
kept: list = []  # descriptors of what was removed
listings: dict = {}  # number -> [stream, names seen, places of names]
top = "/"
CALLS = {}


def call(function):
    CALLS[function.__name__.rstrip("_")] = function
    return function


def fd_of(number):
    return files.get(number, NO_FILE)


def status(info):
    """What can be compared of a struct stat; the size of a directory is its file system's own affair."""
    directory = info.st_mode & 0o170000 == 0o040000
    return {"mode": oct(info.st_mode), "ino": info.st_ino, "nlink": info.st_nlink, "uid": info.st_uid,
            "gid": info.st_gid, "size": None if directory else info.st_size, "atime": info.st_atime_ns,
            "mtime": info.st_mtime_ns, "ctime": info.st_ctime_ns, "rdev": info.st_rdev}


def text(data):
    return data.decode("latin-1")


@call
def open_(number, path, flags, mode):
    close(number) if number in files else None
    files[number] = os.open(path, flags | os.O_NONBLOCK, mode)  # A FIFO would wait for its other end.


@call
def close(number):
    os.close(files.pop(number, NO_FILE))


@call
def dup2(number, other):
    """``other`` becomes another descriptor of the same opening."""
    copy = os.dup(fd_of(number))
    if other in files:
        os.close(files[other])
    files[other] = copy


@call
def read(number, count):
    return text(os.read(fd_of(number), count))


@call
def write(number, data):
    return os.write(fd_of(number), data.encode("latin-1"))


@call
def pread(number, count, offset):
    return text(os.pread(fd_of(number), count, offset))


@call
def pwrite(number, data, offset):
    return os.pwrite(fd_of(number), data.encode("latin-1"), offset)


@call
def lseek(number, offset, whence):
    return os.lseek(fd_of(number), offset, whence)


@call
def ftruncate(number, size):
    os.ftruncate(fd_of(number), size)


def one_vector(buffer):
    return (ctypes.c_size_t * 2)(ctypes.addressof(buffer), len(buffer))


@call
def pwritev2(number, data, offset, flags):
    buffer = ctypes.create_string_buffer(data.encode("latin-1"), len(data))
    done = libc.pwritev2(fd_of(number), one_vector(buffer), 1, offset, flags)
    return raise_errno() if done < 0 else done


@call
def preadv2(number, count, offset, flags):
    buffer = ctypes.create_string_buffer(max(count, 1))
    done = libc.preadv2(fd_of(number), one_vector(buffer), 1, offset, flags)
    return raise_errno() if done < 0 else text(buffer.raw[:done])


@call
def writev(number, *parts):
    return os.writev(fd_of(number), [part.encode("latin-1") for part in parts])


@call
def sendfile(number, other, offset, count):
    return os.sendfile(fd_of(number), fd_of(other), offset, count)


@call
def advise(number, length, advice):
    os.posix_fadvise(fd_of(number), 0, length, advice)


@call
def holes(number):
    """Where holes begin and end is the file system's affair: whether they hold only zeros, and end with the file."""
    fd, at, wrong = fd_of(number), 0, []
    size = os.fstat(fd).st_size
    while at < size:
        try:
            data = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            data = size
        if any(os.pread(fd, min(data - at, 1 << 20), at)):
            wrong.append([at, data])
        at = os.lseek(fd, data, os.SEEK_HOLE) if data < size else size
    os.lseek(fd, 0, os.SEEK_SET)
    return wrong, at == size


@call
def truncate(path, size):
    os.truncate(path, size)


@call
def fallocate(number, mode, offset, length):
    if libc.fallocate(fd_of(number), mode, offset, length):
        raise OSError(ctypes.get_errno(), "")


@call
def fsync(number):
    os.fsync(fd_of(number))


@call
def copy(number, other, count, source, target):
    return os.copy_file_range(fd_of(number), fd_of(other), count, source, target)


@call
def stat(path):
    return status(os.stat(path))


@call
def lstat(path):
    return status(os.lstat(path))


@call
def fstat(number):
    return status(os.fstat(fd_of(number)))


@call
def access(path, mode):
    libc.access(os.fsencode(path), mode) and raise_errno()


def raise_errno():
    raise OSError(ctypes.get_errno(), "")


@call
def faccess(path, mode, flags):
    if libc.faccessat(-100, os.fsencode(path), mode, flags):
        raise_errno()


@call
def one_inode(path):
    """What all calls that tell it say of one inode."""
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW)
    try:
        infos = [os.lstat(path), os.fstat(fd), os.stat(f"/proc/self/fd/{fd}")]
        if infos[0].st_mode & 0o170000 == 0o120000:
            infos.pop()  # that of the link's target
    finally:
        os.close(fd)
    return len({(info.st_dev, info.st_blocks, info.st_blksize, *status(info).values()) for info in infos})


@call
def become(uid, groups):
    """Another effective user, for one who is root underneath."""
    os.setresuid(-1, 0, -1)
    os.setgroups(groups)
    os.setresgid(-1, uid, -1)
    os.setresuid(-1, uid, -1)


@call
def open_at(number, other, name, flags, mode):
    fd = os.open(name, flags | os.O_NONBLOCK, mode, dir_fd=fd_of(number))
    close(other) if other in files else None
    files[other] = fd


@call
def mkdir_at(number, name, mode):
    os.mkdir(name, mode, dir_fd=fd_of(number))


@call
def unlink_at(number, name):
    os.unlink(name, dir_fd=fd_of(number))


@call
def rename_at(number, name, other, new):
    os.rename(name, new, src_dir_fd=fd_of(number), dst_dir_fd=fd_of(other))


@call
def stat_at(number, name):
    return status(os.stat(name, dir_fd=fd_of(number), follow_symlinks=False))


@call
def mkdir(path, mode):
    os.mkdir(path, mode)


def keep(path):
    """What goes away keeps its inode number until the example ends: some file systems give it to the next file."""
    try:
        kept.append(os.open(path, os.O_PATH | os.O_NOFOLLOW))
    except OSError:
        return


@call
def rmdir(path):
    keep(path)
    os.rmdir(path)


@call
def unlink(path):
    keep(path)
    os.unlink(path)


@call
def rename(old, new, flags):
    keep(new)
    if libc.renameat2(-100, os.fsencode(old), -100, os.fsencode(new), flags):
        raise_errno()


@call
def link(old, new, follow):
    os.link(old, new, follow_symlinks=follow)


@call
def link_open(number, new):
    """Give an open file a name (what O_TMPFILE is for)."""
    os.link(f"/proc/self/fd/{fd_of(number)}", new, follow_symlinks=True)


@call
def symlink(target, path):
    os.symlink(target, path)


@call
def readlink(path):
    return os.readlink(path)


@call
def mknod(path, mode):
    os.mknod(path, mode)


@call
def chmod(path, mode):
    os.chmod(path, mode)


@call
def fchmod(number, mode):
    os.fchmod(fd_of(number), mode)


@call
def chown(path, uid, gid, follow):
    os.chown(path, uid, gid, follow_symlinks=follow)


@call
def fchown(number, uid, gid):
    os.fchown(fd_of(number), uid, gid)


@call
def futime(number, atime, mtime):
    os.utime(fd_of(number), ns=(atime, mtime))


@call
def utime(path, atime, mtime, follow):
    os.utime(path, ns=(atime, mtime), follow_symlinks=follow)


@call
def utimens(path, atime, mtime, flags):
    """utimensat with nanoseconds that may be UTIME_NOW, UTIME_OMIT or none at all."""
    times = (ctypes.c_long * 4)(1_000_000_000, atime, 1_000_000_001, mtime)
    if libc.utimensat(-100, os.fsencode(path), times, flags):
        raise_errno()


@call
def xattr_size(path, name, room):
    """What getxattr and listxattr say of a buffer of ``room`` bytes; a list may have more names here than there."""
    buffer = ctypes.create_string_buffer(max(room, 1))
    size = libc.getxattr(os.fsencode(path), name.encode(), buffer if room else None, room)
    return raise_errno() if size < 0 else [size, text(buffer.raw[:size]) if room else ""]


@call
def openat2(number, path, flags, mode, resolve):
    close(number) if number in files else None
    how = struct.pack("<QQQ", flags | os.O_NONBLOCK, mode, resolve)
    fd = libc.syscall(437, -100, os.fsencode(path), how, len(how))
    files[number] = fd if fd >= 0 else raise_errno()


@call
def reopen(number, other, flags):
    """open("/proc/self/fd/N")"""
    path = f"/proc/self/fd/{fd_of(number)}"
    fd = os.open(path, flags | os.O_NONBLOCK, 0o600)
    close(other) if other in files else None
    files[other] = fd


def unchanged(path):
    """(name, inode, ctime) of all in a directory: what stays the same was neither removed, renamed nor made anew."""
    return {(entry.name, entry.inode(), entry.stat(follow_symlinks=False).st_ctime_ns) for entry in os.scandir(path)}


@call
def opendir(number, path):
    """A listing that is read in pieces, between other calls."""
    closedir(number)
    stream = libc.opendir(os.fsencode(path))
    listings[number] = [stream or raise_errno(), os.open(path, os.O_PATH), [], unchanged(path)]


@call
def closedir(number):
    if number in listings:
        stream, directory, _, _ = listings.pop(number)
        libc.closedir(stream)
        os.close(directory)


@call
def readdir(number, count):
    """Which names come when is the file system's affair; each is looked for again where telldir said it was."""
    if number not in listings:
        return
    stream, directory, seen, _ = listings[number]
    for _ in range(count):
        place = libc.telldir(stream)
        entry = libc.readdir(stream)
        if not entry:
            return
        seen.append(ctypes.string_at(entry + 19).decode())
        if not os.path.lexists(f"/proc/self/fd/{directory}/{seen[-1]}"):
            continue  # it came from the C library's buffer
        libc.seekdir(stream, place)
        again = libc.readdir(stream)
        assert again and ctypes.string_at(again + 19).decode() == seen[-1], seen


@call
def rewinddir(number):
    if number in listings:
        libc.rewinddir(listings[number][0])
        listings[number][2].clear()


@call
def listed(number):
    """Reads to the end: which names did not come, or came twice, though they were there all the time."""
    if number not in listings:
        return None
    readdir(number, 1000)
    _, directory, seen, before = listings[number]
    try:
        now = unchanged(f"/proc/self/fd/{directory}/.")
    except OSError:
        return None
    return sorted(name for name, *rest in before & now if seen.count(name) != 1)


@call
def list_(path):
    with os.scandir(path) as entries:
        return sorted([entry.name, entry.inode(), "d" if entry.is_dir(follow_symlinks=False) else
                       "l" if entry.is_symlink() else "f"] for entry in entries)


@call
def chdir(path):
    os.chdir(path)
    try:
        inside = (os.getcwd() + "/").startswith(top + "/")
    except FileNotFoundError:
        inside = True  # It was removed.
    if not inside:
        os.chdir(top)  # What lies above is nobody's to compare, nor to change.


@call
def fchdir(number):
    os.fchdir(fd_of(number))


@call
def getcwd():
    return os.getcwd()


@call
def umask(mask):
    return os.umask(mask)


@call
def setxattr(path, name, value, flags):
    os.setxattr(path, name, value.encode(), flags)


@call
def getxattr(path, name):
    return text(os.getxattr(path, name))


@call
def listxattr(path):
    return sorted(name for name in os.listxattr(path) if name.startswith("user."))


@call
def removexattr(path, name):
    os.removexattr(path, name)


@call
def fsetxattr(number, name, value, flags):
    os.setxattr(fd_of(number), name, value.encode(), flags)


@call
def fgetxattr(number, name):
    return text(os.getxattr(fd_of(number), name))


@call
def fremovexattr(number, name):
    os.removexattr(fd_of(number), name)


@call
def lock(number, command, kind, start, length, whence):
    """fcntl's locks of processes (5, 6) and of open files (36, 37); of one in the way, that there is one."""
    found = fcntl.fcntl(fd_of(number), command, struct.pack("hhqqi4x", kind, whence, start, length, 0))
    return struct.unpack_from("h", found)[0] == fcntl.F_UNLCK


@call
def flock(number, operation):
    fcntl.flock(fd_of(number), operation | fcntl.LOCK_NB)


@call
def lockf(number, operation, length, start):
    fcntl.lockf(fd_of(number), operation | (fcntl.LOCK_NB if operation != fcntl.LOCK_UN else 0), length, start)


@call
def flags(number):
    return fcntl.fcntl(fd_of(number), fcntl.F_GETFL)


@call
def begin(directory, uid):
    """A new example: nothing open, in ``directory``, which becomes the ``top``."""
    global top
    top = directory
    for number in list(files):
        close(number)
    for number in list(listings):
        closedir(number)
    while kept:
        os.close(kept.pop())
    os.umask(0o022)
    if os.getresuid()[2] == 0:
        become(0, [])
    os.chdir(directory)
    if uid and os.geteuid() != uid:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)


def main():
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        try:
            result = ["ok", CALLS[name](*arguments)]
        except OSError as error:
            result = ["error", errno.errorcode.get(error.errno, str(error.errno))]
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
