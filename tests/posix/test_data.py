# SPDX-License-Identifier: Apache-2.0
"""Sparse files, sizes, allocation, appending, times and limits: a Python program does on the mount what it does on a
local directory."""
import os
import sys

import pytest

HEAD = """
import ctypes, errno, fcntl, os, resource, signal, stat, sys, time
libc = ctypes.CDLL(None, use_errno=True)
for name in ("fallocate64", "pwrite64", "pread64", "lseek64", "ftruncate64", "posix_fallocate64"):
    getattr(libc, name).argtypes = {
        "fallocate64": [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64],
        "posix_fallocate64": [ctypes.c_int, ctypes.c_int64, ctypes.c_int64],
        "ftruncate64": [ctypes.c_int, ctypes.c_int64],
        "lseek64": [ctypes.c_int, ctypes.c_int64, ctypes.c_int]}.get(
            name, [ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int64])
    getattr(libc, name).restype = ctypes.c_int64
def c(name, *arguments):
    ctypes.set_errno(0)
    result = getattr(libc, name)(*arguments)
    return result if result >= 0 else errno.errorcode[ctypes.get_errno()]
def a(function, *arguments, **keywords):
    try: return function(*arguments, **keywords)
    except OSError as e: return errno.errorcode[e.errno]
def extents(fd):
    found, at = [], 0
    while True:
        begin = c("lseek64", fd, at, os.SEEK_DATA)
        if isinstance(begin, str): return found + [begin]
        at = c("lseek64", fd, begin, os.SEEK_HOLE)
        found.append((begin, at))
def look(fd):
    s = os.fstat(fd)
    return s.st_size, s.st_blocks, extents(fd)
RW = os.O_RDWR | os.O_CREAT
K, M = 1024, 1 << 20
KEEP, PUNCH, COLLAPSE, ZERO, INSERT, UNSHARE = 1, 2, 8, 16, 32, 64
"""

SCRIPTS = {
    "sparse": """
fd = os.open("f", RW)
print(look(fd), c("lseek64", fd, 0, 3), c("lseek64", fd, 0, 4), c("lseek64", fd, -1, 3))
for offset in (5 * M + 4096, 64 * K, 3 * M - 8192, 700 * K):
    os.pwrite(fd, b"x" * 16384, offset // 4096 * 4096); print(look(fd))
os.ftruncate(fd, 9 * M + 1); print(look(fd))
data = os.pread(fd, 10 * M, 0); print(len(data), [i for i in range(0, len(data), 4096) if data[i]])
print(c("lseek64", fd, 9 * M, 3), c("lseek64", fd, 9 * M, 4), c("lseek64", fd, 9 * M + 1, 4))
os.pwrite(fd, b"y" * (M * 9 + 1), 0); print(look(fd))
os.ftruncate(fd, M + 4096); print(look(fd)); os.ftruncate(fd, 5 * M); print(look(fd))
print(os.pread(fd, 300, M + 4000)); os.ftruncate(fd, 0); print(look(fd))
print(os.lseek(fd, 7, 0), os.write(fd, b"z"), look(fd)[0], os.pread(fd, 99, 0))
d = os.open(".", os.O_RDONLY); print(c("lseek64", d, 0, 9))
""",
    "small": """
fd = os.open("f", RW)
os.write(fd, b"small"); print(look(fd)); os.ftruncate(fd, 3); os.ftruncate(fd, 9); print(os.pread(fd, 99, 0))
os.pwrite(fd, b"far", 8190); print(os.fstat(fd).st_size, os.pread(fd, 9, 0), os.pread(fd, 9, 8186))
os.ftruncate(fd, 8191); os.ftruncate(fd, 8195); print(os.pread(fd, 20, 8186)); os.truncate("f", 2)
print(os.pread(fd, 9, 0), os.truncate("f", 4), os.pread(fd, 9, 0), a(os.truncate, "f", -1), a(os.ftruncate, fd, -1))
os.close(os.open("f", os.O_WRONLY | os.O_TRUNC)); print(os.fstat(fd).st_size, os.pread(fd, 9, 0))
os.write(fd, b"!"); print(os.pread(fd, 9, 0))
""",
    "fallocate": """
fd = os.open("f", RW)
print(c("fallocate64", fd, 0, 0, 3 * M), look(fd)[:2], os.pread(fd, 3, M))
print(c("fallocate64", fd, KEEP, 3 * M, 2 * M), look(fd)[:2])
os.pwrite(fd, b"d" * 3 * M, 0); print(look(fd)[0], look(fd)[2])
print(c("fallocate64", fd, PUNCH | KEEP, 100, 50), os.pread(fd, 60, 95))
print(c("fallocate64", fd, PUNCH | KEEP, 512 * K - 4096, 8192), look(fd)[0], look(fd)[2])
print(c("fallocate64", fd, PUNCH | KEEP, 600 * K, 1200 * K), look(fd)[0], look(fd)[2])
print(c("fallocate64", fd, PUNCH | KEEP, 2 * M, 50 * M), look(fd)[0], look(fd)[2])
print(c("fallocate64", fd, ZERO, 3 * M - 10, 20), look(fd)[0], os.pread(fd, 40, 3 * M - 20))
print(c("fallocate64", fd, ZERO | KEEP, 0, 20), look(fd)[0], os.pread(fd, 25, 0))
print(c("fallocate64", fd, ZERO | KEEP, 4 * M, 20), look(fd)[0])
print(c("posix_fallocate64", fd, 100, 4 * M), os.fstat(fd).st_size, c("posix_fallocate64", fd, -1, 4))
os.ftruncate(fd, 0); print(look(fd))
g = os.open("g", RW); os.write(g, b"inline bytes")
print(c("fallocate64", g, 0, 4, 3), look(g)[0], os.pread(g, 99, 0), c("fallocate64", g, 0, 4, 30))
print(os.pread(g, 99, 0), c("fallocate64", g, PUNCH | KEEP, 2, 4), os.pread(g, 99, 0), os.fstat(g).st_size)
h = os.open("h", RW); os.write(h, b"inline bytes")
print(c("fallocate64", h, PUNCH | KEEP, 2, 4), os.pread(h, 99, 0), c("fallocate64", h, PUNCH | KEEP, 0, 99),
    look(h)[0])
print(os.pread(h, 99, 0), c("fallocate64", h, ZERO, 5, 20), os.pread(h, 99, 0))
""",
    "fallocate errors": """
fd = os.open("f", RW); r = os.open("f", os.O_RDONLY); d = os.open(".", os.O_RDONLY); p = os.pipe()
big = (1 << 63) - 1
for n in (fd, r, d, p[0], p[1], 99):
    for mode in (0, KEEP, PUNCH, PUNCH | KEEP, PUNCH | ZERO | KEEP, ZERO, COLLAPSE | KEEP, INSERT | KEEP,
        UNSHARE | PUNCH | KEEP,
                 UNSHARE | ZERO, 128, 256 | KEEP):
        for where in ((0, 0), (-1, 1), (0, -1), (big, 1), (big - 5, 4096), (0, 4096)):
            if n == fd and where == (0, 4096) and mode in (0, KEEP, ZERO, PUNCH | KEEP): continue
            print(n == 99, mode, where, c("fallocate64", n, mode, *where))
""",
    "appending": """
fd = os.open("f", RW | os.O_APPEND)
print(os.write(fd, b"one"), os.pwrite(fd, b"two", 0), os.lseek(fd, 0, 1), os.pread(fd, 9, 0))
print(os.pwritev(fd, [b"ab", b"c"], 0, 0), os.lseek(fd, 0, 1), os.pread(fd, 99, 0))
fcntl.fcntl(fd, fcntl.F_SETFL, 0); print(os.pwrite(fd, b"TWO", 3), os.pread(fd, 99, 0), os.write(fd, b"-"))
print(os.pread(fd, 99, 0)); fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND); print(os.write(fd, b"+"), os.lseek(fd, 0, 1))
print(os.pread(fd, 99, 0)); other = os.open("f", os.O_WRONLY | os.O_TRUNC)
print(os.write(fd, b"new"), os.pread(fd, 9, 0))
g = os.open("g", RW); os.write(g, b"0123456789")
for flags in (0, 1, 2, 4, 0x10, 0x10 | 2, 0x30, 0x8000): print(flags, a(os.pwritev, g, [b"xy"], 4, flags),
    os.pread(g, 99, 0))
for flags in (0, 1, 2, 4, 0x10, 0x30, 0x8000): print(flags, a(os.preadv, g, [bytearray(3)], 4, flags))
print(a(os.pwritev, g, [], 4, 0x8000), a(os.pwritev, g, [b""], 4, 0x8000), a(os.pwritev, g, [b"x"], -2, 0x8000),
    os.lseek(g, 0, 1))
print(a(os.pwritev, g, [b"cur"], -1, 0), os.lseek(g, 0, 1), a(os.preadv, g, [bytearray(9)], -1, 0), os.lseek(g, 0, 1))
print(a(os.pwritev, g, [b"end"], -1, 0x10), os.lseek(g, 0, 1), os.pread(g, 99, 0))
""",
    "ends": """
fd = os.open("f", RW); big = (1 << 63) - 1
print(os.write(fd, b"0123456789"), os.pread(fd, 5, 8), os.pread(fd, 5, 10), os.pread(fd, 5, 11), os.pread(fd, 5,
    1 << 40))
print(c("pread64", fd, b"     ", 1, big), c("pread64", fd, b"     ", 1, big - 1), c("pread64", fd, b"   ", 0, big))
print(c("pwrite64", fd, b"x", 1, big), c("pwrite64", fd, b"x", 0, big), c("pwrite64", fd, b"x", 1, -1),
    os.fstat(fd).st_size)
print(c("lseek64", fd, 5, 0), os.write(fd, b""), os.lseek(fd, 0, 1), os.readv(fd, [bytearray(3), bytearray(9)]),
    os.read(fd, 4))
print(os.pwrite(fd, b"", 100), os.fstat(fd).st_size, c("ftruncate64", fd, -5))
print(os.preadv(fd, [bytearray(4), bytearray(0), bytearray(99)], 2), os.preadv(fd, [bytearray(4)], 99))
""",
    "limits": """
signal.signal(signal.SIGXFSZ, lambda *_: print("SIGXFSZ"))
fd = os.open("f", RW); os.write(fd, b"x" * 50)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
print(os.write(fd, b"y" * 80), os.fstat(fd).st_size, os.lseek(fd, 0, 1))
print(a(os.write, fd, b"z"), a(os.pwrite, fd, b"z", 200), os.pwrite(fd, b"abc", 98), a(os.ftruncate, fd, 101),
    a(os.truncate, "f", 101))
print(a(os.ftruncate, fd, 100), a(os.ftruncate, fd, 60), c("fallocate64", fd, 0, 50, 51), os.fstat(fd).st_size)
print(os.pwritev(fd, [b"ab", b"cd", b"ef"], 97), os.pread(fd, 9, 95), os.pwrite(fd, b"", 500))
g = os.open("f", os.O_WRONLY | os.O_APPEND); os.ftruncate(fd, 95)
print(os.write(g, b"0123456789"), a(os.write, g, b"0"))
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(os.write(g, b"0"), os.fstat(fd).st_size)
if os.fork() == 0:
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL); resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10)); os.pwrite(fd, b"x", 10); os._exit(0)
print(os.WTERMSIG(os.wait()[1]))
""",
    "times": """
def stamp(path, seconds): os.utime(path, (seconds, seconds))
def changed(path, action):
    stamp(path, 1000); before = os.stat(path); time.sleep(0.02); action(); after = os.stat(path)
    return [n for n in ("st_atime_ns", "st_mtime_ns") if getattr(before, n) != getattr(after,
        n)], after.st_ctime_ns > before.st_ctime_ns
fd = os.open("f", RW); os.write(fd, b"x" * 9000)
now = time.time()
for name, action in {
    "write": lambda: os.pwrite(fd, b"y", 0), "empty": lambda: os.pwrite(fd, b"",
        0), "truncate": lambda: os.truncate("f", 5000),
    "same": lambda: os.truncate("f", 5000), "ftruncate": lambda: os.ftruncate(fd,
        6000), "fsame": lambda: os.ftruncate(fd, 6000),
    "fallocate": lambda: c("fallocate64", fd, 0, 0, 10000), "punch": lambda: c("fallocate64", fd, 3, 0, 5000),
    "trunc": lambda: os.close(os.open("f", os.O_WRONLY | os.O_TRUNC)), "again": lambda: os.close(os.open("f",
        os.O_WRONLY | os.O_TRUNC)),
}.items(): print(name, changed("f", action))
os.write(fd, b"x" * 9000)
def atime(path): return int(os.stat(path, follow_symlinks=False).st_atime)
def wait_for(path, old):
    until = time.monotonic() + 5
    while atime(path) == old and time.monotonic() < until: time.sleep(0.01)
    return atime(path) != old
stamp("f", 1000); print(os.pread(fd, 1, 0), wait_for("f", 1000))
time.sleep(0.02); os.utime("f", (now + 9, now - 100)); kept = atime("f"); os.pread(fd, 1, 0); print(atime("f") == kept)
os.utime("f", (now - 90000, now - 95000)); os.pread(fd, 1, 0); print(wait_for("f", int(now - 90000)))
stamp("f", 1000); n = os.open("f", os.O_RDONLY | os.O_NOATIME); print(os.read(n, 5), os.read(n, 90000)[:1])
os.symlink("f", "l"); os.utime("l", (1000, 1000), follow_symlinks=False); print(os.readlink("l"), wait_for("l", 1000))
os.mkdir("d"); os.close(os.open("d/e", RW)); time.sleep(0.2); stamp("d", 1000)
print(os.listdir("d"), wait_for("d", 1000))
big = os.open("big", RW); os.pwrite(big, b"z" * 600 * K, 600 * K); stamp("big", 1000)
os.pread(big, 100, 700 * K); print(wait_for("big", 1000))
""",
    "privileges": """
for number, action in enumerate((
    lambda fd: os.write(fd, b"x"), lambda fd: os.write(fd, b""), lambda fd: os.ftruncate(fd, 1),
    lambda fd: c("fallocate64", fd, 0, 0, 9), lambda fd: c("fallocate64", fd, 3, 0, 1),
    lambda fd: os.pwrite(fd, b"x" * M, 600 * K), lambda fd: os.read(fd, 1))):
    for mode in (0o6755, 0o6745, 0o2644):
        fd = os.open("f%d%o" % (number, mode), RW, 0o666); os.write(fd, b"ab")
        os.fchown(fd, 65534, 65534); os.fchmod(fd, mode)
        if os.fork() == 0: os.setegid(100); os.setgroups([]); os.seteuid(1000); action(fd); os._exit(0)
        os.wait(); print(number, oct(mode), oct(os.fstat(fd).st_mode))
""",
    "copying": """
fd = os.open("f", RW); os.ftruncate(fd, 4 * M); os.pwrite(fd, b"data" * 2000, 2 * M - 4000); g = os.open("g", RW)
print(os.copy_file_range(fd, g, 3 * M, 0, 0), os.pread(g, 99 * M, 0) == os.pread(fd, 3 * M, 0), os.fstat(g).st_size)
print(os.copy_file_range(fd, fd, 8000, 2 * M - 4000, 100), os.pread(fd, 20, 100))
for count, i, o in ((100, 0, 50), (100, 50, 0), (100, 0, 100), (100, 0, 0), (5 * M, 4 * M - 10, 0), (50, 4 * M,
    4 * M), (50, 4 * M - 10, 4 * M)):
    print(count, i, o, a(os.copy_file_range, fd, fd, count, i, o))
h = os.open("f", os.O_RDWR); print(a(os.copy_file_range, fd, h, 100, 0, 50), a(os.copy_file_range, fd, h, 100, 0, 100))
print(os.fstat(fd).st_size, a(os.copy_file_range, fd, g, 10, 5 * M, 0), a(os.sendfile, g, fd, 2 * M - 100, 9000),
    os.lseek(g, 0, 1))
r = os.open("f", os.O_RDONLY); w = os.open("g", os.O_WRONLY)
print(a(os.copy_file_range, w, g, 1), a(os.copy_file_range, fd, r, 1))
""",
    "flags": """
fd = os.open("f", RW | os.O_DIRECT); print(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT > 0)
import mmap
page = mmap.mmap(-1, 8192); page[:4] = b"page"; print(os.writev(fd, [page]), os.fstat(fd).st_size)
page[:4] = b"    "; print(os.preadv(fd, [page], 0), page[:4])
fcntl.fcntl(fd, fcntl.F_SETFL, 0); print(os.pread(fd, 4, 0), os.pwrite(fd, b"odd", 1), os.pread(fd, 6, 0))
for flag in (os.O_SYNC, os.O_DSYNC):
    s = os.open("s", RW | flag); print(os.write(s, b"durable"), fcntl.fcntl(s, fcntl.F_GETFL) & flag == flag)
    fcntl.fcntl(s, fcntl.F_SETFL, 0); print(fcntl.fcntl(s, fcntl.F_GETFL) & flag == flag)
""",
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_same_on_the_mount(runner, name, tmp_path):
    if name == "privileges" and os.getuid():
        pytest.skip("only root can become others")
    script = tmp_path / "script.py"
    script.write_text(HEAD + SCRIPTS[name])
    local, ours = runner.both(f"{sys.executable} {script}")
    # Line by line, so that a difference is easily seen.
    assert [line.decode() for line in b"\n".join(ours[0][1:]).split(b"\n")] == [
        line.decode() for line in b"\n".join(local[0][1:]).split(b"\n")]
    assert ours == local


@pytest.mark.parametrize("tool", [
    "truncate -s 5M f && printf x | dd of=f bs=1 seek=3000000 conv=notrunc status=none && cp --sparse=auto f g && "
    "cmp f g && du -k f g && stat -c %b f g",
    "truncate -s 3M f && tar -cSf t.tar f && test $(stat -c %s t.tar) -lt 100000 && mkdir x && tar -C x -xf t.tar && "
    "cmp f x/f && du -k f x/f && rm t.tar",
    "head -c 3000000 /dev/zero > f && cp --sparse=always f g && cmp f g && du -k f g && fallocate -d f && du -k f",
    "fallocate -l 2M f && stat -c '%s %b' f && fallocate -p -o 4096 -l 1M f && stat -c '%s %b' f && "
    "cmp -n 2M f /dev/zero",
    "dd if=/dev/zero of=f bs=47008 count=30 status=none && stat -c '%s %b' f && truncate -s 100000 f && "
    "stat -c '%s %b' f",
])
def test_tools_see_sparse_files_alike(runner, tool):
    runner.same(tool)
