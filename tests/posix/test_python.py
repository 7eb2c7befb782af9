# SPDX-License-Identifier: Apache-2.0
"""Python programs do on the mount what they do on a local directory, by the test's interpreter and by the system's."""
import os
import shutil
import sys

import pytest

# The virtual environment's is the system's own binary; a python3 further down PATH is another build.
_FOUND = [sys.executable, *(shutil.which("python3", path=part) for part in os.environ["PATH"].split(os.pathsep))]
PYTHONS = list({os.path.realpath(python): python for python in reversed(_FOUND) if python}.values())

SCRIPTS = {
    "open": """
with open("f", "w") as f:
    print("hello", file=f)
with open("f", "a+") as f:
    f.write("more\\n"); f.seek(0); print(f.read())
with open("f", "r+b") as f:
    f.seek(2); f.write(b"LL"); f.seek(-3, 2); print(f.read(), f.tell()); f.truncate(4)
print(open("f").read(), len(open("f", "rb", buffering=0).read()))
for bad in ("none", "f/x", "."):
    try: open(bad)
    except OSError as e: print(type(e).__name__, e.errno)
try: open("f", "x")
except FileExistsError as e: print("exists")
big = bytes(range(256)) * 10000
open("big", "wb").write(big)
assert open("big", "rb").read() == big
import io
with open("big", "rb", buffering=1 << 16) as f:
    f.seek(1 << 20); assert f.read(1000) == big[1 << 20:(1 << 20) + 1000]
""",
    "os": """
import os, errno
def attempt(function, *arguments, **keywords):
    try: result = function(*arguments, **keywords)
    except OSError as e: print(function.__name__, "->", errno.errorcode[e.errno])
    else: print(function.__name__, result if isinstance(result, (int, bytes, list, str)) else type(result).__name__)
fd = os.open("f", os.O_RDWR | os.O_CREAT, 0o640)
attempt(os.write, fd, b"0123456789"); attempt(os.pread, fd, 4, 3); attempt(os.pwrite, fd, b"xy", 8)
attempt(os.lseek, fd, 0, 0)
attempt(os.read, fd, 100); attempt(os.read, fd, 100); attempt(os.lseek, fd, -1, 0); attempt(os.lseek, fd, 5, 2)
attempt(os.write, fd, b"end"); attempt(os.pread, fd, 30, 0); attempt(os.ftruncate, fd, 3)
attempt(os.fstat(fd).__getattribute__, "st_size")
attempt(os.preadv, fd, [bytearray(2), bytearray(5)], 0); attempt(os.writev, fd, [b"ab", b"", b"cde"])
attempt(os.fsync, fd); attempt(os.fdatasync, fd)
other = os.dup(fd); attempt(os.lseek, other, 0, 1); os.close(fd); attempt(os.lseek, other, 0, 0)
attempt(os.read, other, 4)
attempt(os.read, fd, 1); os.close(other)
attempt(os.mkdir, "d"); attempt(os.mkdir, "d"); attempt(os.listdir, "d"); attempt(os.rmdir, "d")
attempt(os.rmdir, "d"); attempt(os.listdir, "d")
attempt(os.makedirs, "x/y/z"); attempt(os.removedirs, "x/y/z"); attempt(os.rename, "f", "g"); attempt(os.stat, "f")
attempt(os.listdir, ".")
attempt(os.symlink, "g", "l"); attempt(os.readlink, "l"); attempt(os.readlink, "g"); attempt(os.unlink, "l")
attempt(os.access, "g", os.R_OK)
attempt(os.access, "g", os.X_OK); attempt(os.chmod, "g", 0o711); attempt(os.access, "g", os.X_OK)
attempt(os.utime, "g", (5, 7))
print(os.stat("g").st_mtime, os.stat("g").st_atime, oct(os.stat("g").st_mode), os.stat("g").st_nlink)
attempt(os.truncate, "g", 100); print(os.path.getsize("g")); attempt(os.open, "g", os.O_RDONLY | os.O_DIRECTORY)
attempt(os.open, "d2", os.O_RDONLY | os.O_DIRECTORY); attempt(os.open, "g", os.O_CREAT | os.O_EXCL)
attempt(os.remove, "."); attempt(os.unlink, "none"); attempt(os.mkdir, "none/x")
attempt(os.write, os.open("g", os.O_RDONLY), b"x")
attempt(os.read, os.open("g", os.O_WRONLY), 1)
dfd = os.open(".", os.O_RDONLY); os.mkdir("sub", dir_fd=dfd)
h = os.open("sub/file", os.O_CREAT | os.O_WRONLY, dir_fd=dfd); os.close(h)
print(sorted(os.listdir(dfd)), os.stat("sub/file", dir_fd=dfd).st_size); os.unlink("sub/file", dir_fd=dfd)
os.rmdir("sub", dir_fd=dfd); os.close(dfd)
""",
    "pathlib": """
from pathlib import Path
p = Path("a") / "b"
p.mkdir(parents=True); (p / "f.txt").write_text("text"); (p / "g.bin").write_bytes(b"\\0" * 5000)
print(sorted(str(x) for x in Path(".").rglob("*")), (p / "f.txt").read_text(), (p / "g.bin").stat().st_size)
(p / "f.txt").rename(p / "h.txt")
print((p / "h.txt").exists(), (p / "f.txt").exists(), p.is_dir(), (p / "h.txt").is_file())
(p / "l").symlink_to("h.txt"); print((p / "l").is_symlink(), (p / "l").resolve().name, (p / "l").read_text())
(p / "h.txt").replace(p / "g.bin"); print((p / "g.bin").read_text()); (p / "l").unlink()
(p / "x").touch(mode=0o600); (p / "x").chmod(0o644)
print([x.name for x in sorted(p.iterdir())], sorted(x.suffix for x in p.glob("*.b*")), Path("a").absolute().name)
for x in p.iterdir(): x.unlink()
p.rmdir()
""",
    "shutil": """
import shutil, os
os.makedirs("t/u"); open("t/f", "w").write("f" * 100000); open("t/u/g", "w").write("g"); os.symlink("f", "t/l")
os.chmod("t/f", 0o604)
shutil.copytree("t", "c", symlinks=True); shutil.copytree("t", "d"); shutil.copy2("t/f", "f2")
shutil.copyfile("t/u/g", "g2"); shutil.move("c", "m")
shutil.move("f2", "m/moved")
print(sorted((r, sorted(d), sorted(f)) for r, d, f in os.walk(".")), oct(os.stat("m/f").st_mode))
name = shutil.make_archive("arch", "gztar", "t"); shutil.unpack_archive("arch.tar.gz", "un")
print(sorted(os.listdir("un")))
print(os.stat("d/f").st_size, shutil.disk_usage(".").total > 0); shutil.rmtree("d"); shutil.rmtree("m")
shutil.rmtree("un"); os.unlink("arch.tar.gz")
print(sorted(os.listdir(".")))
""",
    "threads": """
import threading, os, hashlib
def work(i):
    os.mkdir(f"t{i}")
    for k in range(20):
        data = bytes([i, k]) * (100 * (k + 1) * (300 if k == 7 else 1))
        with open(f"t{i}/{k}", "wb") as f: f.write(data)
        with open(f"t{i}/{k}", "rb") as f: assert f.read() == data, (i, k)
        assert os.stat(f"t{i}/{k}").st_size == len(data)
        if k % 3 == 0: os.rename(f"t{i}/{k}", f"t{i}/{k}.r")
        if k % 5 == 4: os.unlink(f"t{i}/{k}" if k % 3 else f"t{i}/{k}.r")
    results[i] = sorted(os.listdir(f"t{i}"))
results = {}
threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
for t in threads: t.start()
for t in threads: t.join()
print(sorted(results.items()))
""",
    "threads_one_file": """
import threading, os
fd = os.open("f", os.O_CREAT | os.O_RDWR)
def work(i):
    for k in range(50): os.pwrite(fd, bytes([65 + i]) * 1000, (k * 8 + i) * 1000)
threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
for t in threads: t.start()
for t in threads: t.join()
data = os.pread(fd, 1 << 20, 0)
print(len(data), all(data[(k * 8 + i) * 1000] == 65 + i for i in range(8) for k in range(50)))
log = os.open("log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
def append(i):
    for k in range(30): os.write(log, b"%d.%d\\n" % (i, k))
threads = [threading.Thread(target=append, args=(i,)) for i in range(8)]
for t in threads: t.start()
for t in threads: t.join()
lines = open("log").read().split(); print(len(lines), len(set(lines)))
os.unlink("log")
""",
    "subprocess": """
import subprocess, sys, os
open("in", "w").write("c\\nb\\na\\n")
with open("in") as i, open("out", "w") as o: print(subprocess.call(["sort"], stdin=i, stdout=o))
print(open("out").read()); print(subprocess.check_output(["cat", "out"], close_fds=True))
with open("all", "w") as f:
    f.write("first\\n"); f.flush(); subprocess.run(["echo", "child"], stdout=f); f.write("last\\n")
print(open("all").read()); print(subprocess.run("cat < in > copy; ls", shell=True, capture_output=True, cwd=".").stdout)
print(subprocess.run(["pwd"], cwd="/", capture_output=True).stdout)
pid = os.fork()
if pid == 0:
    open("forked", "w").write("child"); os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), open("forked").read())
""",
    "multiprocessing": """
import multiprocessing as mp, os
def work(i):
    with open(f"w{i}", "w") as f: f.write(str(i) * 1000)
    return os.path.getsize(f"w{i}")
open("before", "w").write("touched by the parent first")
with mp.get_context("fork").Pool(3) as pool: print(pool.map(work, range(9)))
print(sorted(os.listdir(".")))
""",
    "tempfile": """
import tempfile, os
with tempfile.TemporaryDirectory(dir=".") as d:
    with tempfile.NamedTemporaryFile(dir=d) as f:
        f.write(b"x" * 10); f.flush(); print(os.path.getsize(f.name))
    with tempfile.TemporaryFile(dir=d) as f:
        f.write(b"gone but open"); f.seek(0); print(f.read())
    print(os.listdir(d))
print(os.listdir("."))
""",
    "scandir": """
import os
for i in range(50): open(f"f{i}", "w").write("x" * i)
os.mkdir("d"); os.symlink("f1", "l"); os.symlink("d", "dl")
with os.scandir(".") as entries:
    print(sorted((e.name, e.is_file(), e.is_dir(), e.is_symlink(), e.stat().st_size if e.is_file() else 0,
                  e.inode() == os.lstat(e.name).st_ino)
          for e in entries))
print(len(os.listdir(".")))
""",
    "mmap_read": """
import mmap, os
open("f", "wb").write(bytes(range(256)) * 5000)
with open("f", "rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as m:
    print(len(m), m[1000:1010], m.find(b"\\xff\\x00"));
with open("f", "rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_COPY) as m:
    m[0:3] = b"new"; print(m[:5])
print(open("f", "rb").read(4))
""",
    "import": """
import os, sys
os.mkdir("pkg"); open("pkg/__init__.py", "w").write("value = 42\\n")
open("pkg/sub.py", "w").write("from . import value\\n")
sys.path.insert(0, "."); sys.dont_write_bytecode = True
import pkg.sub; print(pkg.sub.value)
""",
    "sqlite_free_json_csv": """
import json, csv, pickle, gzip, zipfile, tarfile, os
json.dump({"a": [1, 2]}, open("j", "w")); print(json.load(open("j")))
with open("c", "w", newline="") as f: csv.writer(f).writerows([[1, 2], [3, 4]])
print(list(csv.reader(open("c", newline="")))); pickle.dump(list(range(1000)), open("p", "wb"))
print(sum(pickle.load(open("p", "rb"))))
with gzip.open("g", "wt") as f: f.write("z" * 100000)
print(len(gzip.open("g").read()))
with zipfile.ZipFile("z.zip", "w") as z: z.write("j"); z.writestr("inner", "text")
print(zipfile.ZipFile("z.zip").namelist(), zipfile.ZipFile("z.zip").read("inner"))
for f in ("g", "z.zip"): os.unlink(f)
""",
}


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("name", SCRIPTS)
def test_python(runner, name, python):
    here = f"cat > script.py <<'PROGRAM'\n{SCRIPTS[name]}\nPROGRAM\n"
    runner.same(f"{here}{python} -B script.py; rm -f script.py", timeout=120)
