# SPDX-License-Identifier: Apache-2.0
"""Mappings of files do on the mount what they do on a local directory: maps.c."""
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import TIMEOUT_S

SOURCE = Path(__file__).with_name("maps.c")
NAMES = re.findall(r'{"(\w+)", \w+}', SOURCE.read_text())


@pytest.fixture(scope="session")
def maps(tmp_path_factory):
    path = tmp_path_factory.mktemp("maps") / "maps"
    subprocess.run(["gcc", "-std=gnu11", "-O1", "-w", "-o", path, SOURCE, "-lpthread"], check=True, timeout=TIMEOUT_S)
    return path


def test_all_of_them_are_found():
    assert len(NAMES) == len(re.findall(r"static void \w+\(void\) {", SOURCE.read_text())) > 10


@pytest.mark.parametrize("name", NAMES)
def test_maps(runner, maps, name):
    assert runner.same(f"{maps} {name} && echo done").endswith(b"done\n")


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name, rounds", [("race", 100), ("ends", 1), ("killed", 1), ("children", 1)])
def test_a_hundred_times(runner, maps, name, rounds):
    for _ in range(100):
        assert runner.same(f"{maps} {name} {rounds} && echo done", timeout=120).endswith(b"done\n")


def test_nothing_stays_in_memory(runner, maps):
    """Images go with the last mapping of a file, also when somebody was killed."""
    from pymadfs import cluster

    runner.same(f"{maps} killed; {maps} ends; {maps} children")
    description = cluster.read(runner.loaded["MADFS_CLUSTER"])
    shared = Path(cluster.shared_directory(description.secret).decode())
    assert {path.name for path in shared.iterdir()} <= {"keeper", "live"}
    assert (shared / "live").read_bytes()[:4] == bytes(4)
    assert shared.stat().st_mode & 0o777 == 0o700


def test_library_on_the_mount(runner):
    """The linker maps what it writes; the loader maps it to be executed."""
    runner.same("printf 'int f(void){return 4;}' > a.c; gcc -shared -fPIC -o libf.so a.c; "
                "python3 -c 'import ctypes; f = ctypes.CDLL(\"./libf.so\"); print(f.f()); "
                "print(open(\"/proc/self/maps\").read().count(\"r-xp\") > 1)'; rm libf.so")


PYTHON = """
import mmap, os

def attempt(function, *arguments):
    try: result = function(*arguments)
    except (OSError, ValueError, TypeError) as e: print(function.__name__, type(e).__name__, getattr(e, "errno", None))
    else: print(function.__name__, result if isinstance(result, (int, bytes)) else type(result).__name__)

def put(at, data): m[at:at + len(data)] = data

open("f", "wb").write(bytes(range(256)) * 40)
for mode in ("rb", "r+b"):
    for access in (mmap.ACCESS_DEFAULT, mmap.ACCESS_READ, mmap.ACCESS_WRITE, mmap.ACCESS_COPY):
        with open("f", mode) as f:
            try: m = mmap.mmap(f.fileno(), 0, access=access)
            except OSError as e: print(mode, access, e.errno); continue
            print(mode, access, len(m), m.find(b"AB"), m.rfind(b"AB"), m[10:14], m.size())
            attempt(put, 5, b"hello"); attempt(m.write_byte, 7); attempt(m.move, 100, 0, 50); attempt(m.resize, 20000)
            attempt(m.flush); attempt(m.seek, 0, 2); attempt(m.tell); attempt(m.read, 10); attempt(m.seek, 9)
            attempt(m.readline); attempt(m.madvise, mmap.MADV_DONTNEED); attempt(m.flush, 4096, 4096)
            attempt(m.flush, 3, 5); m.close()
            os.truncate("f", 10240)
for length, offset in ((0, 4096), (4096, 4096), (100000, 0), (10, 100), (0, 40960), (0, 8192)):
    with open("f", "r+b") as f:
        try: m = mmap.mmap(f.fileno(), length, offset=offset)
        except (OSError, ValueError) as e: print(length, offset, type(e).__name__, getattr(e, "errno", None)); continue
        print(length, offset, len(m), m[:4]); m.close()
with open("e", "w+b") as f:
    attempt(mmap.mmap, f.fileno(), 0); attempt(mmap.mmap, f.fileno(), 10)
    f.truncate(10); m = mmap.mmap(f.fileno(), 10); m[:] = b"0123456789"; m.close(); f.seek(0); print(f.read())
"""

NUMPY = """
import numpy as np, os
m = np.memmap("a", dtype="f8", mode="w+", shape=(100, 50)); m[:] = np.arange(5000).reshape(100, 50); m.flush(); del m
m = np.memmap("a", dtype="f8", mode="r+", shape=(100, 50)); m[7] *= 2; m.flush()
print(m.sum(), float(np.memmap("a", dtype="f8", mode="r")[355]))
c = np.memmap("a", dtype="f8", mode="c", shape=(100, 50)); c[:] = 0; print(c.sum(), m.sum())
r = np.memmap("a", dtype="f8", mode="r", offset=4096); print(r.shape, r[0])
try: r[0] = 1
except ValueError as e: print(e)
m += 1; del m; print(np.fromfile("a").sum(), os.path.getsize("a"))
x = np.lib.format.open_memmap("b.npy", mode="w+", dtype=np.int32, shape=(1000,)); x[:] = np.arange(1000); x.flush()
print(np.load("b.npy").sum(), np.load("b.npy", mmap_mode="r")[999])
big = np.memmap("big", dtype=np.uint8, mode="w+", shape=(5 << 20,)); big[::4097] = 1; del big
print(int(np.fromfile("big", np.uint8).sum()))
"""

SQLITE = """
import os, sqlite3, subprocess, sys
db = sqlite3.connect("t.db", timeout=50, isolation_level=None)
print(db.execute("pragma journal_mode=MODE").fetchone())
db.execute("pragma mmap_size=1048576"); db.execute("create table t(a integer, b text)")
code = '''
import sqlite3, sys
db = sqlite3.connect("t.db", timeout=50, isolation_level=None)
db.execute("pragma mmap_size=1048576")
for i in range(10):
    db.execute("begin immediate"); n = db.execute("select count(*) from t").fetchone()[0]
    db.execute("insert into t values(?, ?)", (n, sys.argv[1] * 500)); db.execute("commit")
'''
both = [subprocess.Popen([sys.executable, "-c", code, letter]) for letter in "xy"]
print([one.wait() for one in both])
print(db.execute("select count(*), sum(a), sum(length(b)) from t").fetchone())
print(db.execute("pragma integrity_check").fetchone()); db.close(); print(sorted(set(os.listdir(".")) - {"s.py"}))
"""

LMDB = """
import lmdb, subprocess, sys
code = '''
import lmdb, sys
env = lmdb.open("db", map_size=4 << 20, writemap=bool(WRITEMAP))
for i in range(20):
    with env.begin(write=True) as t:
        n = int(t.get(b"n", b"0")); t.put(b"n", b"%d" % (n + 1)); t.put(sys.argv[1].encode() + b"%d" % i, b"v" * 300)
env.sync(); env.close()
'''
env = lmdb.open("db", map_size=4 << 20, writemap=bool(WRITEMAP))
three = [subprocess.Popen([sys.executable, "-c", code, letter]) for letter in "xyz"]
print([one.wait() for one in three])
with env.begin() as t: print(t.get(b"n"), t.stat()["entries"], sum(len(v) for k, v in t.cursor()))
env.close()
"""


def interpreter(module):
    """A Python that has ``module``; skips the test when none has."""
    found = {sys.executable, *(shutil.which("python3", path=part) for part in os.environ["PATH"].split(os.pathsep))}
    for python in sorted(filter(None, found)):
        if subprocess.run([python, "-c", f"import {module}"], capture_output=True, timeout=TIMEOUT_S).returncode == 0:
            return python
    return pytest.skip(f"no Python here has the module {module}")


def script(runner, module, text, rest="", timeout=60):
    """Standard output of a Python script that does the same here and there; ``rest`` removes what need not be."""
    return runner.same(f"cat > s.py << 'END'\n{text}\nEND\n{interpreter(module)} s.py; rm -rf s.py {rest}", timeout)


def test_python_mmap(runner):
    script(runner, "mmap", PYTHON)


def test_numpy_memmap(runner):
    script(runner, "numpy", NUMPY)


@pytest.mark.parametrize("mode", ["wal", "delete", "truncate", "persist", "memory"])
def test_sqlite_with_two_writers(runner, mode):
    said = script(runner, "sqlite3", SQLITE.replace("MODE", mode), "t.db*", 120)
    assert b"(20, 190, 10000)" in said and f"('{mode}',)".encode() in said


@pytest.mark.parametrize("writemap", [0, 1])
def test_lmdb_with_three_writers(runner, writemap):
    said = script(runner, "lmdb", LMDB.replace("WRITEMAP", str(writemap)), "db", 120)
    assert b"b'60' 61" in said


# --- nodes ----------------------------------------------------------------------------------------------------------

# Does what it is told, line by line.
AGENT = """
import mmap, os, sys
for line in sys.stdin:
    words = line.split()
    if words[0] == "map": f = os.open(words[1], os.O_RDWR); m = mmap.mmap(f, int(words[2])); said = len(m)
    elif words[0] == "put": at = int(words[1]); m[at:at + len(words[2])] = words[2].encode(); said = "put"
    elif words[0] == "get": at = int(words[1]); said = m[at:at + int(words[2])].decode()
    elif words[0] == "sync": m.flush(); said = "sync"
    elif words[0] == "invalidate":
        import ctypes
        here = ctypes.addressof(ctypes.c_char.from_buffer(m))
        said = ctypes.CDLL(None).msync(ctypes.c_void_p(here), ctypes.c_size_t(len(m)), 2 | 4)
    elif words[0] == "read": said = os.pread(f, int(words[2]), int(words[1])).decode()
    elif words[0] == "write": said = os.pwrite(f, words[2].encode(), int(words[1]))
    elif words[0] == "end": os.kill(os.getpid(), 9)
    elif words[0] == "unmap": m.close(); os.close(f); said = "unmap"
    print(said, flush=True)
"""


class Agent:
    """A process that maps a file; with ``node`` in a namespace that has a /dev/shm of its own."""

    def __init__(self, environment, node):
        command = [sys.executable, "-c", AGENT]
        if node:
            command = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs tmpfs /dev/shm && exec "$@"', "sh", *command]
        # UCX, too, has its shared memory in /dev/shm.
        self.process = subprocess.Popen(command, env={**environment, "MADFS_UCX_TLS": "tcp"}, stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True)

    def __call__(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().rstrip("\n")

    def end(self):
        self.process.stdin.close()
        self.process.wait(TIMEOUT_S)
        self.process.stdout.close()


@pytest.fixture
def agents(runner):
    """Makes Agents; their file is on the mount and has 8 KiB of dots."""
    made = []

    def make(node=False):
        made.append(Agent(runner.loaded, node))
        return made[-1]

    path = f"{runner.mount}/nodes"
    subprocess.run(["sh", "-c", f"head -c 8192 /dev/zero | tr '\\0' . > {path}"], env=runner.loaded, check=True)
    make.path = path
    yield make
    for agent in made:
        agent.end()
    subprocess.run(["rm", path], env=runner.loaded, check=True)


def test_processes_without_a_common_ancestor(agents):
    a, b = agents(), agents()
    assert a(f"map {agents.path} 8192") == b(f"map {agents.path} 8192") == "8192"
    a("put 10 hello")
    assert b("get 9 7") == b("read 9 7") == ".hello."
    assert b("write 4000 written") == "7" and a("get 4000 8") == "written."
    assert a("unmap") == "unmap" and b("get 10 5") == "hello"
    b("put 20 late")
    b("end")  # kill -9: nobody maps it now
    b.end()
    assert a(f"map {agents.path} 8192") == "8192" and a("get 9 16") == ".hello.....late."


@pytest.mark.skipif(os.geteuid() != 0, reason="a /dev/shm of its own needs root")
def test_nodes_do_not_undo_one_another(agents):
    a, b = agents(), agents(node=True)
    if a(f"map {agents.path} 8192") != "8192" or b(f"map {agents.path} 8192") != "8192":
        pytest.skip("unshare(1) cannot mount here")
    a("put 0 AAAA")
    b("put 100 BBBB")
    assert b("get 0 4") == "...." and a("get 100 4") == "...."
    assert a("sync") == b("sync") == "sync"
    assert b("get 0 4") == "....", "shown before it was asked for"
    assert b("invalidate") == "0" and b("get 0 4") == "AAAA" and b("get 100 4") == "BBBB"
    assert a("invalidate") == "0" and a("get 100 4") == "BBBB" and a("get 0 4") == "AAAA"
    # What is stored meanwhile stays, and bytes side by side belong to two nodes.
    a("put 200 aaaaa")
    b("put 205 bbbbb")
    b("put 0 b")
    assert a("sync") == "sync" and b("invalidate") == "0"
    assert b("get 0 4") == "bAAA" and b("get 200 10") == "aaaaabbbbb"
    assert a("unmap") == b("unmap") == "unmap"
    assert a(f"map {agents.path} 8192") == "8192" and a("get 200 10") == "aaaaabbbbb" and a("get 0 4") == "bAAA"
