# SPDX-License-Identifier: Apache-2.0
"""Paths of /proc/self/fd mean the open file, whatever became of its name; removed directories that are open."""
import subprocess
import sys

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


def test_as_locally(runner, everybodys):
    found = []
    for directory, environment in ((f"{everybodys}/d", runner.plain), (f"{runner.mount}/reopening", runner.loaded)):
        done = subprocess.run([sys.executable, "-c", SCRIPT, directory], env=environment, timeout=60,
                              capture_output=True, text=True)
        found.append((done.returncode, done.stdout, done.stderr))
    assert found[1] == found[0]
    assert found[0][0] == 0
