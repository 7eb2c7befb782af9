# SPDX-License-Identifier: Apache-2.0
"""Which attributes which calls change, and what open files without a name, FIFOs and odd arguments give: the same
script on a local directory and on the mount."""
import os
import subprocess
import sys

import pytest
from support import TIMEOUT_S

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to other users, which only root can")

LIBRARY = """
import ctypes, errno, fcntl, mmap, os, stat, sys, time
os.chdir(sys.argv[1])
os.umask(0o022)
libc = ctypes.CDLL(None, use_errno=True)
LONG = ctypes.c_long

def attempt(function, *arguments, **options):
    try:
        return function(*arguments, **options)
    except OSError as error:
        return errno.errorcode[error.errno]

def raw(name, *arguments):
    result = getattr(libc, name)(*(LONG(a) if isinstance(a, int) else a for a in arguments))
    return errno.errorcode[ctypes.get_errno()] if result < 0 else result

def fill(name, mode=0o644):
    with open(name, "wb") as file:
        file.write(b"data")
    os.chmod(name, mode)

def child(function, uid, groups=()):
    "What a process of another user gives."
    sys.stdout.flush()
    pid = os.fork()
    if not pid:
        os.setgroups(groups); os.setresgid(uid, uid, uid); os.setresuid(uid, uid, uid)
        print(attempt(function))
        sys.stdout.flush()
        os._exit(0)
    os.waitpid(pid, 0)
"""

TIMES = """
NAMES = "f", "h", "l", "d", "d2", ".", "d/f", "p", "d/n", "d2/f", "d/s", "d/h"

def changes(call):
    before = {name: os.lstat(name) for name in NAMES if os.path.lexists(name)}
    now = time.time_ns()
    while time.time_ns() - now < 10_000_000:  # more than the clock of a local file system ticks
        pass
    result, found = attempt(eval, call), []
    for name in NAMES:
        if os.path.lexists(name):
            old, new = before.get(name), os.lstat(name)
            times = [f"st_{letter}time_ns" for letter in "amc"]
            which = "new" if old is None else [t[3] for t in times if getattr(old, t) != getattr(new, t)]
            same = old is not None and old.st_ino == new.st_ino
            found.append((name, which, same, new.st_nlink, None if stat.S_ISDIR(new.st_mode) else new.st_size))
    print(call, result if isinstance(result, str) else "done", found)

os.mkdir("d"); os.mkdir("d2"); fill("f"); fill("d/f"); os.symlink("f", "l"); os.link("f", "h"); os.mkfifo("p")
W, R = os.O_WRONLY, os.O_RDONLY
for call in '''
None
os.chmod("f", 0o600)
os.chmod("f", 0o600)
os.chown("f", -1, -1)
os.chown("f", 0, 0)
os.lchown("l", 1, 1)
os.link("f", "d/n")
os.unlink("d/n")
os.write(os.open("f", W), b"")
os.write(os.open("f", W), b"x")
os.pwrite(os.open("f", W), b"x", 10000)
os.pread(os.open("f", R), 5, 0)
os.pread(os.open("f", R), 5, 0)
os.pread(os.open("d/f", R), 0, 0)
os.pread(os.open("d/f", R | os.O_NOATIME), 5, 0)
os.truncate("f", 10001)
os.ftruncate(os.open("f", W), 10001)
os.truncate("f", 5)
os.truncate("f", 50000)
os.open("f", W | os.O_TRUNC)
os.open("f", W | os.O_TRUNC)
os.open("f", W | os.O_CREAT)
os.open("d/n", W | os.O_CREAT)
raw("fallocate", os.open("f", W), 0, 0, 4096)
raw("fallocate", os.open("f", W), 1, 0, 40960)
raw("fallocate", os.open("f", W), 3, 0, 4096)
raw("fallocate", os.open("f", W), 16, 0, 8192)
os.setxattr("f", "user.a", b"x")
os.setxattr("d", "user.a", b"x")
os.getxattr("f", "user.a")
os.removexattr("f", "user.a")
os.removexattr("f", "user.a")
os.utime("f", ns=(10**18, 10**18))
os.utime("l", ns=(10**18, 10**18), follow_symlinks=False)
os.readlink("l")
os.readlink("l")
os.listdir("d")
os.listdir("d")
os.mkdir("d/s")
os.mkdir("d/s")
os.rmdir("d")
os.rename("d/n", "d/f")
os.rename("d/s", "d2/s")
os.rename("d2/s", "d/s")
os.rename("d/f", "d2/f")
os.rename("f", "h")
os.rename("h", "d2/f")
os.rename("d2/f", "f") or os.link("f", "d/h")
raw("renameat2", -100, b"f", -100, b"d/f", 2)
os.link("f", "d/f")
raw("renameat2", -100, b"d/f", -100, b"d/s", 2)
raw("renameat2", -100, b"d/f", -100, b"d/s", 2)
os.rename("d/f", "d/f")
os.symlink("x", "d/n")
os.unlink("d/n")
os.mkfifo("d/n")
os.rmdir("d/s")
os.open("d", os.O_TMPFILE | os.O_RDWR)
raw("linkat", -100, b"/proc/self/fd/%d" % os.open("d", os.O_TMPFILE | os.O_RDWR), -100, b"d/s", 0x400)
os.copy_file_range(os.open("d/h", R), os.open("d/s", W), 3)
os.sendfile(os.open("d/s", W), os.open("d/h", R), 0, 3)
os.fchmod(os.open("d/s", W), 0o600)
os.utime(os.open("d/s", W))
os.fsync(os.open("d/s", W))
fcntl.flock(os.open("d/s", W), 2)
'''.strip().splitlines():
    changes(call)
"""

PRIVILEGES = """
def change(what, file):
    calls = {
        "write": lambda: os.write(file, b"y"), "write nothing": lambda: os.write(file, b""),
        "truncate": lambda: os.truncate("s", 2), "truncate to the same": lambda: os.truncate("s", 4),
        "ftruncate": lambda: os.ftruncate(file, 2), "O_TRUNC": lambda: os.close(os.open("s", os.O_WRONLY | os.O_TRUNC)),
        "chown": lambda: os.chown("s", 1000, 1000), "chown nothing": lambda: os.chown("s", -1, -1),
        "fallocate": lambda: raw("fallocate", file, 0, 0, 10), "punch": lambda: raw("fallocate", file, 3, 0, 3),
        "copy": lambda: os.copy_file_range(os.open("from", os.O_RDONLY), file, 3),
        "attribute": lambda: os.setxattr(file, "user.a", b"s"), "utime": lambda: os.utime("s")}
    return calls[what]()

os.chmod(".", 0o777)
fill("from")
for uid in (0, 1000):
    for mode in (0o6777, 0o2745, 0o6711, 0o2010):
        for what in ("write", "write nothing", "truncate", "truncate to the same", "ftruncate", "O_TRUNC", "chown",
                     "chown nothing", "fallocate", "punch", "copy", "attribute", "utime"):
            fill("s"); os.chown("s", 1000, 1000); os.chmod("s", mode)
            file = os.open("s", os.O_RDWR)
            child(lambda: change(what, file), uid)
            os.close(file)
            print(uid, oct(mode), what, oct(os.stat("s").st_mode))
os.mkdir("sg"); os.chown("sg", 1000, 3000)
for groups in ((), (3000,)):
    child(lambda: os.chmod("sg", 0o2777), 1000, groups)
    print(oct(os.stat("sg").st_mode))
os.chmod("sg", 0o3777)

def make():
    os.umask(0)
    os.close(os.open("sg/f", os.O_CREAT | os.O_WRONLY, 0o6777)); os.mkdir("sg/d", 0o6777); os.mkfifo("sg/p", 0o6777)
    os.symlink("x", "sg/l"); os.close(os.open("sg/g", os.O_CREAT | os.O_WRONLY, 0o2767)); os.mknod("sg/r", 0o102755)
    info = os.fstat(os.open("sg", os.O_TMPFILE | os.O_RDWR, 0o6777))
    return oct(info.st_mode), info.st_gid

for uid, groups in ((1000, ()), (1000, (3000,)), (1001, ()), (0, ())):
    child(make, uid, groups)
    for name in sorted(os.listdir("sg")):
        info = os.lstat("sg/" + name)
        print(uid, groups, name, oct(info.st_mode), info.st_uid, info.st_gid)
        os.rmdir("sg/" + name) if stat.S_ISDIR(info.st_mode) else os.unlink("sg/" + name)
"""

OPEN = """
os.mkfifo("p"); os.chown("p", 3, 4)
fifo, named = os.open("p", os.O_RDWR | os.O_NONBLOCK), os.stat("p")
def seen(info):
    return info.st_ino == named.st_ino, info.st_dev == named.st_dev, oct(info.st_mode), info.st_uid, info.st_nlink
print(seen(os.fstat(fifo)), seen(os.fstat(os.dup(fifo))))
os.fchmod(fifo, 0o640); os.fchown(fifo, 5, 6); os.utime(fifo, (5, 6))
info = os.stat("p"); print(oct(info.st_mode), info.st_uid, info.st_gid, info.st_mtime)
print(attempt(os.setxattr, fifo, "user.a", b"x"), attempt(os.getxattr, fifo, "user.a"), os.listxattr(fifo))
os.link("p", "p2"); os.rename("p", "p3"); print(seen(os.fstat(fifo)))
if not os.fork():
    print(seen(os.fstat(fifo)), flush=True)
    os._exit(0)
os.wait()
print(os.write(fifo, b"hello"), os.read(fifo, 9))
os.unlink("p2"); os.unlink("p3"); print(os.fstat(fifo).st_nlink, os.fstat(fifo).st_ino == named.st_ino)
read, write = os.pipe()
print(oct(os.fstat(read).st_mode), oct(os.fstat(write).st_mode), attempt(os.fchmod, read, 0o600))

for make in (lambda: os.symlink("target", "x"), lambda: os.mkfifo("x"), lambda: os.mknod("x", 0o140644),
             lambda: fill("x"), lambda: os.mkdir("x")):
    make()
    path = os.open("x", os.O_PATH | os.O_NOFOLLOW)
    before = os.fstat(path)
    os.rmdir("x") if stat.S_ISDIR(before.st_mode) else os.unlink("x")
    after = os.fstat(path)
    print(after.st_nlink, after.st_ino == before.st_ino, stat.S_IFMT(after.st_mode) == stat.S_IFMT(before.st_mode))

unnamed = os.open(".", os.O_TMPFILE | os.O_RDWR)
print([attempt(call, "x", dir_fd=unnamed) for call in (os.stat, os.mkdir, os.unlink, os.readlink, os.mkfifo)],
      attempt(os.rename, "x", "y", src_dir_fd=unnamed, dst_dir_fd=unnamed), attempt(os.stat, "/none", dir_fd=unnamed))
print(attempt(os.open, f"/proc/self/fd/{unnamed}", os.O_PATH | os.O_CREAT | os.O_EXCL) is not None,
      attempt(os.open, f"/proc/self/fd/{unnamed}", os.O_CREAT | os.O_EXCL))

here = os.open(".", os.O_RDONLY)
print([attempt(call, "p4", "x", src_dir_fd=old, dst_dir_fd=new) for call in (os.rename, os.link)
       for old, new in ((here, 999), (999, here), (unnamed, 999), (999, unnamed))])
for flags in os.O_RDONLY, os.O_PATH:
    directory = os.open(".", flags)
    for end in "", "/", "/.":
        print(end, attempt(os.chdir, f"/proc/self/fd/{directory}{end}"), os.getcwd() == sys.argv[1])
print(attempt(os.chdir, f"/proc/self/fd/{unnamed}"), attempt(os.chdir, f"/dev/fd/{directory}"))
for blocking in False, True:
    print(attempt(os.set_blocking, unnamed, blocking), os.get_blocking(unnamed))
    print(attempt(os.set_blocking, directory, blocking))

fill("f")
files = {"read": os.open("f", os.O_RDONLY), "write": os.open("f", os.O_WRONLY), "path": os.open("f", os.O_PATH),
         "directory": os.open(".", os.O_RDONLY), "none": 999}
for name, file in files.items():
    print(name, [attempt(os.posix_fadvise, file, 0, length, advice) for length in (0, -1) for advice in (0, 5, 6, 77)],
          raw("readahead", file, 0, 10), [raw("sync_file_range", file, *numbers) for numbers in (
              (0, 0, 0), (0, 0, 7), (0, 0, 8), (-1, 0, 0), (0, -1, 0), (1, 2**63 - 1, 0))],
          attempt(os.utime, file), attempt(os.fchmod, file, 0o644), [raw("fchownat", file, b"", 1, 2, flags)
                                                                     for flags in (0, 0x1000, 0x1100, 0x2000)],
          [raw("utimensat", file, b"", None, flags) for flags in (0x1000, 0x1100, 0x1001)])
"""


def run(script, directory, environment):
    subprocess.run(["mkdir", directory], env=environment, check=True, timeout=TIMEOUT_S)
    done = subprocess.run([sys.executable, "-S", "-E", "-c", LIBRARY + script, directory], env=environment,
                          capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    subprocess.run(["rm", "-rf", directory], env=environment, check=True, timeout=TIMEOUT_S)
    return done.stdout.splitlines()


@pytest.mark.parametrize("what", ["times", "privileges", "open"])
def test_same_status(runner, everybodys, what):
    script = {"times": TIMES, "privileges": PRIVILEGES, "open": OPEN}[what]
    local = run(script, f"{everybodys}/status", runner.plain)
    ours = run(script, f"{runner.mount}/status-{what}", runner.loaded)
    assert ours == local
    assert len(local) > 10
