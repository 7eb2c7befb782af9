# SPDX-License-Identifier: Apache-2.0
"""What Python programs do with processes and files, by the system's Python: on the mount as on a local directory."""
import pytest

PYTHON = "/usr/bin/python3.11"

POOL = """
import multiprocessing as mp, os, sys, tempfile
tempfile.tempdir = os.getcwd()  # sockets of managers and of the fork server lie there, too
def work(number):
    with open("shared", "rb") as file: start = file.read(4)
    with open(f"out-{number}", "w") as file: file.write(f"{start} {number}")
    with open("log", "a") as file: file.write(f"{number}\\n")
    return os.path.getsize(f"out-{number}")
if __name__ == "__main__":
    with open("shared", "wb") as file: file.write(b"data" * 1000)
    context = mp.get_context(sys.argv[1])
    with context.Pool(3) as pool: print(sum(pool.map(work, range(20))), pool.apply(len, ("abc",)))
    print(sorted(map(int, open("log"))), [open(f"out-{i}").read() for i in (0, 19)])
    os.unlink("log")  # its order is anybody's
"""

SCRIPTS = {
    "fork": (POOL, "fork"),
    "spawn": (POOL, "spawn"),
    "forkserver": (POOL, "forkserver"),
    "manager": ("""
import multiprocessing as mp, os, tempfile
tempfile.tempdir = os.getcwd()
def add(shared, lock, number):
    with lock: shared[number] = open("f").read()
if __name__ == "__main__":
    open("f", "w").write("text")
    with mp.Manager() as manager:
        shared, lock = manager.dict(), manager.Lock()
        workers = [mp.Process(target=add, args=(shared, lock, i)) for i in range(3)]
        for worker in workers: worker.start()
        for worker in workers: worker.join()
        print(sorted(shared.items()), [worker.exitcode for worker in workers])
""", ""),
    "loader": ("""
# As a data loader: the parent opens and maps first, workers by fork open more when they are asked.
import mmap, multiprocessing as mp, os, struct
class Samples:
    def __init__(self): self.file, self.map = None, mmap.mmap(os.open("all", os.O_RDONLY), 0, prot=mmap.PROT_READ)
    def __getitem__(self, index):
        if self.file is None: self.file = open("all", "rb", buffering=0)
        one = os.pread(self.file.fileno(), 8, index * 8)
        return struct.unpack("<Q", one)[0] + self.map[index * 8]
def serve(samples, tasks, results):
    for index in iter(tasks.get, None): results.put((index, samples[index]))
with open("all", "wb") as file: file.write(b"".join(struct.pack("<Q", i * i) for i in range(100000)))
samples, tasks, results = Samples(), mp.Queue(), mp.Queue()
print(samples[5])
workers = [mp.Process(target=serve, args=(samples, tasks, results), daemon=True) for _ in range(4)]
for worker in workers: worker.start()
for index in range(0, 100000, 1000): tasks.put(index)
found = sorted(results.get() for _ in range(100))
print(found == [(i, i * i + (i * i & 255)) for i in range(0, 100000, 1000)], samples[7])
for _ in workers: tasks.put(None)
for worker in workers: worker.join()
print([worker.exitcode for worker in workers], samples[9])
""", ""),
    "futures": ("""
import concurrent.futures as futures, hashlib, os
def digest(name): return name, hashlib.md5(open(name, "rb").read()).hexdigest()
if __name__ == "__main__":
    names = [f"f{i}" for i in range(30)]
    def make(name):
        with open(name, "wb") as file: file.write(name.encode() * 5000)
    with futures.ThreadPoolExecutor(8) as pool: list(pool.map(make, names))
    with futures.ThreadPoolExecutor(8) as threads, futures.ProcessPoolExecutor(2) as processes:
        print(list(threads.map(digest, names)) == list(processes.map(digest, names)), digest("f29"))
""", ""),
    "asyncio": ("""
import asyncio, os, sys
async def run(number):
    with open(f"log{number}", "wb") as out:
        child = await asyncio.create_subprocess_exec("cat", f"in{number}", "none", stdout=out,
                                                     stderr=asyncio.subprocess.STDOUT)
        return await child.wait()
async def main():
    for number in range(5): open(f"in{number}", "w").write(f"text {number}\\n")
    print(await asyncio.gather(*map(run, range(5))))
    child = await asyncio.create_subprocess_shell("tr a-z A-Z < in3; pwd | wc -l", stdout=asyncio.subprocess.PIPE)
    print((await child.communicate())[0], child.returncode)
    print(await asyncio.to_thread(lambda: open("log4").read().replace(os.getcwd(), "")))
asyncio.run(main())
""", ""),
    "stores": ("""
import dbm.dumb, os, pickle, shelve, sqlite3
pickle.dump({"a": list(range(1000))}, open("p", "wb")); print(sum(pickle.load(open("p", "rb"))["a"]))
dbm._defaultmod = dbm.dumb
with shelve.open("shelf", writeback=True) as shelf: shelf["list"] = [1]; shelf["list"].append(2); shelf["gone"] = 1
with shelve.open("shelf") as shelf: del shelf["gone"]; print(dict(shelf))
with dbm.dumb.open("d", "n") as d: d.update({str(i): "x" * i for i in range(200)})
with dbm.dumb.open("d", "r") as d: print(len(d), len(d["150"]))
for mode in "delete", "wal":
    db = sqlite3.connect("db-" + mode); print(db.execute("pragma journal_mode=" + mode).fetchone())
    db.execute("create table t (n integer primary key, s text)")
    with db: db.executemany("insert into t values (?, ?)", ((i, str(i)) for i in range(500)))
    try:
        with db: db.execute("insert into t values (1000, 'x')"); db.execute("insert into t values (1, 'twice')")
    except sqlite3.IntegrityError as error: print(error)
    other = sqlite3.connect("db-" + mode); print(other.execute("select count(*), sum(n) from t").fetchone())
    other.close(); db.close()
for name in os.listdir("."):
    if name.startswith("db-"): os.unlink(name)
""", ""),
    "logging": ("""
import logging, logging.handlers, os
log = logging.getLogger("x"); log.setLevel(logging.INFO)
handler = logging.handlers.RotatingFileHandler("log", maxBytes=2000, backupCount=3); log.addHandler(handler)
for i in range(300): log.info("line %d of the log", i)
handler.close()
print([(name, os.path.getsize(name)) for name in sorted(os.listdir("."))], open("log.1").readline())
watched = logging.handlers.WatchedFileHandler("w"); log.handlers = [watched]
log.info("one"); os.rename("w", "w.old"); log.info("two"); watched.close()
print(open("w").read(), open("w.old").read())
""", ""),
    "walk": ("""
import glob, os, pathlib
for i in range(60): os.makedirs(f"t/{i % 4}/{i % 7}", exist_ok=True); open(f"t/{i % 4}/{i % 7}/f{i}.txt", "w").close()
os.symlink("1", "t/link"); os.symlink("none", "t/broken")
print(sorted(glob.glob("t/**/*3.txt", recursive=True)), len(glob.glob("t/*/[0-3]/*")))
print(sorted(map(str, pathlib.Path("t").rglob("f1*")))[:5])
print([(top, len(names), len(files)) for top, names, files in sorted(os.walk("t"))][:9])
print([(top, len(files)) for top, _, files, _ in os.fwalk("t", topdown=False)][-1], sum(1 for _ in os.scandir("t")))
""", ""),
    "watch": ("""
# Polls a directory's mtime and lists it when that changes, while another process makes files.
import os, subprocess, sys, time
os.mkdir("w")
child = subprocess.Popen([sys.executable, "-c", '''
import os
for i in range(50):
    with open(f"w/.tmp{i}", "w") as file: file.write(str(i) * 100)
    os.rename(f"w/.tmp{i}", f"w/{i}")
'''])
seen, last, deadline = set(), None, time.monotonic() + 30
while len(seen) < 50 and time.monotonic() < deadline:
    now = os.stat("w").st_mtime_ns
    if now != last or time.time_ns() - now < 20_000_000:  # times are as coarse as the kernel's
        last = now
        for name in set(os.listdir("w")) - seen:
            if not name.startswith("."):
                seen.add(name)
                assert open("w/" + name).read() == name * 100
print(len(seen), child.wait())
""", ""),
    "identity": ("""
# libc's setgroups() waits for an answer of every thread, also of those that the client has made.
import os, subprocess, threading
threading.Thread(target=threading.Event().wait, daemon=True).start()
for way in range(2):
    print(subprocess.run(["sh", "-c", "echo text > f; cat < f"], stdout=open("out", "w"), cwd=".").returncode)
    if os.getuid() == 0: os.setgroups([5, 6 + way]); print(sorted(os.getgroups()))
print(open("out").read())
""", ""),
    "venv": ("""
import os, subprocess, sys
subprocess.run([sys.executable, "-m", "venv", "--without-pip", "env"], check=True)
open("env/lib/python3.11/site-packages/module.py", "w").write("import sys; text = sys.prefix")
code = "import module, os; print(module.text == os.path.abspath('env'), module.__cached__ is not None)"
print(subprocess.run(["env/bin/python", "-c", code], check=True, capture_output=True).stdout)
print(subprocess.run(["bash", "-c", ". env/bin/activate; python -c 'import sys; print(sys.prefix != sys.base_prefix)'"],
                     check=True, capture_output=True).stdout)
subprocess.run(["rm", "-r", "env"], check=True)
""", ""),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_python_program(runner, name):
    script, arguments = SCRIPTS[name]
    runner.same(f"cat > script.py <<'PROGRAM'\n{script}\nPROGRAM\n{PYTHON} -B script.py {arguments}; rm -f script.py",
                timeout=90)
