# SPDX-License-Identifier: Apache-2.0
"""Paths of /proc/self/fd mean the open file, whatever became of its name; removed directories that are open."""
import subprocess
import sys

import pytest
from support import AS_ROOT

SCRIPT = """
import errno, os, stat, sys
top = sys.argv[1]
os.mkdir(top); os.chdir(top); os.umask(0o022)

def attempt(call, *arguments, **keywords):
    try:
        result = call(*arguments, **keywords)
    except OSError as error:
        return errno.errorcode[error.errno]
    if call is not os.open:
        return result
    info = os.fstat(result)
    kind = stat.S_IFMT(info.st_mode)
    found = oct(info.st_mode if kind != stat.S_IFIFO else kind), info.st_size, info.st_nlink
    os.close(result)
    return found

fd = os.open("a", os.O_RDWR | os.O_CREAT)
os.write(fd, b"hello")
os.unlink("a")
with open("a", "w") as other:
    other.write("another")
path = f"/proc/self/fd/{fd}"
for flags in (os.O_RDONLY, os.O_WRONLY | os.O_APPEND, os.O_PATH, os.O_DIRECTORY, os.O_CREAT, os.O_CREAT | os.O_EXCL,
              os.O_NOFOLLOW, os.O_CREAT | os.O_DIRECTORY, os.O_TMPFILE | os.O_RDWR, os.O_RDWR | os.O_TRUNC):
    print(oct(flags), attempt(os.open, path, flags, 0o600))
with open(path, "w") as again:
    again.write("again")
os.truncate(path, 3)
os.chmod(path, 0o640); os.chown(path, 7, 8); os.utime(path, (5, 6)); os.setxattr(path, "user.a", b"1")
info, other = os.fstat(fd), os.stat("a")
print(os.pread(fd, 9, 0), open(f"/dev/fd/{fd}").read(), open("a").read(), oct(info.st_mode), info.st_uid, info.st_gid,
      info.st_atime, info.st_mtime, info.st_nlink, os.getxattr(path, "user.a"), os.listxattr(path), os.access(path, 6))
print(oct(other.st_mode), other.st_uid, other.st_size, os.listxattr("a"))
os.removexattr(path, "user.a")
print(attempt(os.truncate, path, -1), attempt(os.getxattr, path, "user.a"), attempt(os.statvfs, path) is not None)
os.symlink("a", "l"); os.mkfifo("q")
link, fifo = os.open("l", os.O_PATH | os.O_NOFOLLOW), os.open("q", os.O_PATH)
print(attempt(os.open, f"/proc/self/fd/{link}", 0), attempt(os.open, f"/dev/fd/{fifo}", os.O_RDWR))
shut = os.open("a", os.O_PATH)
os.chmod("a", 0o200)
if os.geteuid() == 0 and not os.fork():
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
    print(attempt(os.open, f"/proc/self/fd/{shut}", os.O_RDONLY), attempt(os.truncate, path, 1), flush=True)
    os._exit(0)
os.geteuid() or os.wait()
os.rename("a", "b")
print(attempt(os.open, f"/proc/self/fd/{shut}", os.O_RDWR), attempt(os.stat, f"/proc/self/fd/{shut}") is not None)
os.mkdir("d")
directory, other = os.open("d", os.O_RDONLY), os.open("d", os.O_PATH)
print(attempt(os.open, f"/proc/self/fd/{directory}", 0)[0], attempt(os.open, f"/proc/self/fd/{directory}/.", 0)[0])
os.mkdir("d/e"); os.rmdir("d/e"); os.chown("d", 5, 6); os.rmdir("d")
for number in (directory, other):
    info = os.fstat(number)
    print(oct(info.st_mode), info.st_nlink, info.st_uid, info.st_gid)
print(os.listdir(directory), attempt(os.open, "x", os.O_CREAT | os.O_RDWR, dir_fd=directory))
os.mkdir("d1"); os.rename("d1", "d2")
moved = os.open("d2", os.O_RDONLY)
os.rmdir("d2")
print(oct(os.fstat(moved).st_mode), os.fstat(moved).st_nlink)
"""


LINKS = """
import ctypes, errno, os, stat, struct, sys
top = sys.argv[1]
os.mkdir(top); os.chdir(top); os.umask(0o022)
libc = ctypes.CDLL(None, use_errno=True)
NO_XDEV, NO_MAGICLINKS, NO_SYMLINKS, CACHED = 1, 2, 4, 32

def raw(number, *arguments):
    result = libc.syscall(number, *arguments)
    return result if result >= 0 else errno.errorcode[ctypes.get_errno()]

def open2(path, flags, mode, resolve=0):
    return raw(437, -100, path.encode(), struct.pack("QQQ", flags, mode, resolve), 24)

def kind(found):
    if isinstance(found, str):
        return found
    mode = os.fstat(found).st_mode
    text = [oct(stat.S_IFMT(mode) if stat.S_ISLNK(mode) else mode)]
    if stat.S_ISLNK(mode):
        buffer = ctypes.create_string_buffer(200)
        size = raw(267, found, b"", buffer, 200)
        text.append(size if isinstance(size, str) else buffer.raw[:size].decode().replace(top, "TOP"))
    os.close(found)
    return text

os.mkdir("d")
file, directory = os.open("f", os.O_RDWR | os.O_CREAT, 0o640), os.open("d", os.O_RDONLY)
os.dup2(file, 0)
links = [f"/proc/self/fd/{file}", f"/proc/thread-self/fd/{directory}", f"/dev/fd/{file}", "/dev/stdin",
         "/proc/self/cwd", f"/proc/{os.getpid()}/cwd"]
N, P, D, C, E, T = os.O_NOFOLLOW, os.O_PATH, os.O_DIRECTORY, os.O_CREAT, os.O_EXCL, os.O_TMPFILE | os.O_RDWR
for number, path in enumerate(links):
    for flags in (N, N | P, N | D, N | P | D, N | C, N | C | E, N | os.O_WRONLY, N | T, P, D, C, C | E):
        mode = 0o600 if flags & (C | (T & ~D)) else 0
        print(number, oct(flags), kind(raw(257, -100, path.encode(), flags, mode)), kind(open2(path, flags, mode)))
        print(kind(raw(257, -100, path.encode() + b"/", flags, mode)))
    for resolve in (NO_SYMLINKS, NO_MAGICLINKS, NO_XDEV, NO_MAGICLINKS | NO_XDEV):
        print(number, resolve, kind(open2(path, 0, 0, resolve)), kind(open2(path, P | N, 0, resolve)))
    print(number, stat.S_ISLNK(os.lstat(path).st_mode), os.readlink(path).replace(top, "TOP"))
    for call in (os.unlink, os.rmdir, os.mkdir, lambda path: os.rename(path, "x"), lambda path: os.symlink("x", path),
                 lambda path: os.link(path, "x", follow_symlinks=False)):
        try:
            call(path if "dev" not in path else "/proc/self/fd/0")
        except OSError as error:
            print(errno.errorcode[error.errno])
print(sorted(os.listdir(top)))
"""


def run(script, directory, environment):
    done = subprocess.run([sys.executable, "-c", script, directory], env=environment, timeout=60, capture_output=True,
                          text=True)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("script", [pytest.param(SCRIPT, marks=AS_ROOT), LINKS], ids=["files", "links"])
def test_as_locally(runner, everybodys, script):
    local = run(script, f"{everybodys}/d", runner.plain)
    assert local[0] == 0, local[2]
    assert run(script, f"{runner.mount}/reopening-{script is LINKS}", runner.loaded) == local


PROGRAM = """
import errno, os, stat, sys
for flags in (os.O_NOFOLLOW, os.O_NOFOLLOW | os.O_PATH, os.O_PATH):
    try:
        print(oct(os.fstat(os.open("/proc/self/exe", flags)).st_mode & ~0o777))
    except OSError as error:
        print(errno.errorcode[error.errno])
print(stat.S_ISLNK(os.lstat("/proc/self/exe").st_mode))
try:
    os.unlink("/proc/self/exe")
except OSError as error:
    print(errno.errorcode[error.errno])
print(os.path.exists(sys.argv[1]))
"""


def test_link_to_a_program_on_the_mount(runner):
    runner.same(f"cp /usr/bin/python3 program; ./program -c '{PROGRAM}' program")
