# SPDX-License-Identifier: Apache-2.0
"""What a user may do: the same calls by root and by nobody, here and on the mount; identities that change on the way.

Each script runs as root in a fresh directory that everybody may write to, and gives up privileges itself.
"""
import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")

PRELUDE = """
import errno, json, os, stat, sys, threading
found = []
OWNER, OTHER, GROUP = 1111, 2222, 3333

def attempt(function, *arguments, **keywords):
    try:
        result = function(*arguments, **keywords)
    except OSError as error:
        result = errno.errorcode[error.errno]
    found.append((function.__name__, result if isinstance(result, (int, str, bool, list)) else None))
    return result

def mode(path):
    info = os.lstat(path)
    found.append((path, oct(info.st_mode), info.st_uid, info.st_gid))

def child(function):
    "Run a function in a child; what it found is found here."
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        found.clear()
        try:
            function()
        except BaseException as error:
            found.append(repr(error))
        os.write(writer, json.dumps(found).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        found.extend(json.load(file))
    os.waitpid(pid, 0)

def become(uid, gid=None, groups=()):
    os.setgroups(list(groups))
    os.setresgid(*[uid if gid is None else gid] * 3)
    os.setresuid(uid, uid, uid)

def make(path, mode=0o644, uid=0, gid=0):
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
    os.chown(path, uid, gid)
    os.chmod(path, mode)
    return path

def directory(path, mode=0o755, uid=0, gid=0):
    os.mkdir(path)
    os.chown(path, uid, gid)
    os.chmod(path, mode)
    return path
"""

SCRIPTS = {
    "bits": """
paths = [make(f"f{bits:o}", bits, OWNER, GROUP) for bits in (0o600, 0o060, 0o006, 0o640, 0o404, 0o777, 0)]
paths += [directory(f"d{bits:o}", bits, OWNER, GROUP) for bits in (0o700, 0o070, 0o007, 0o750, 0o505, 0o111, 0o444)]
for path in paths:
    if path[0] == "d":
        make(path + "/f", 0o666)
top = os.getcwd()
def look():
    for path in paths:
        for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC, os.O_PATH):
            fd = attempt(os.open, path, flags)
            if isinstance(fd, int):
                os.close(fd)
                found[-1] = "opened"
        for wanted in range(8):
            attempt(os.access, path, wanted)
        attempt(os.listdir, path)
        attempt(os.stat, path + "/f"); attempt(os.stat, path + "/none"); attempt(os.chdir, path); os.chdir(top)
        attempt(os.truncate, path, 1)
        attempt(os.mkdir, path + "/new"); attempt(os.rmdir, path + "/new"); attempt(os.unlink, path + "/none")
for who in ((OWNER, OWNER, ()), (OTHER, GROUP, ()), (OTHER, OTHER, (5, GROUP)), (OTHER, OTHER, ()), (OWNER, GROUP, ())):
    child(lambda: (become(*who), look()))
look()
""",
    "way": """
directory("a", 0o755); directory("a/b", 0o700); directory("a/b/c", 0o777); make("a/b/c/f", 0o666)
os.symlink("a/b/c", "l")
def walk():
    for path in ("a", "a/b", "a/b/c", "a/b/c/f", "a/b/c/none", "a/b/none/x", "a/b/c/f/x", "a/none", "l", "l/f", "l/.."):
        attempt(os.stat, path); attempt(os.access, path, 4)
        attempt(os.open, path, os.O_RDONLY) ; found[-1] = found[-1] if isinstance(found[-1][1], str) else "opened"
    attempt(os.listdir, "a/b"); attempt(os.listdir, "a/b/c"); attempt(os.mkdir, "a/b/c/d")
    attempt(os.unlink, "a/b/c/f")
    attempt(os.rename, "a/b/c/f", "g"); attempt(os.symlink, "x", "a/b/c/s"); attempt(os.readlink, "a/b/c/s")
child(lambda: (become(OTHER), walk()))
os.chmod("a/b", 0o711)
child(lambda: (become(OTHER), walk()))
os.chmod("a", 0o600)
child(lambda: (become(OTHER), walk()))
""",
    "dots": """
directory("shut", 0o644); directory("shut/in", 0o777); make("f", 0o666); directory("open", 0o777); os.chmod(".", 0o755)
os.symlink("shut/..", "up"); os.symlink("shut/.", "at"); os.symlink("open/..", "l")
top = os.getcwd()
def step():
    for way in ("shut/..", "shut/.", "shut/", "shut", "f/..", "f/.", "none/..", "open/..", "open/.", "up", "at", "l",
                "shut/in/..", "open/../shut/..", "shut/../shut"):
        for call in (os.stat, os.listdir, os.rmdir, os.unlink, os.mkdir, os.chdir, os.readlink, os.statvfs,
                     lambda path: os.utime(path, (5, 6)), lambda path: os.open(path, os.O_RDONLY | os.O_CREAT) and 0,
                     lambda path: os.rename(path, "x"), lambda path: os.rename("f", path),
                     lambda path: os.access(path, 0), lambda path: os.symlink("x", path),
                     lambda path: os.link("f", path), lambda path: os.truncate(path, 1)):
            attempt(call, way)
            if not isinstance(found[-1][1], str):
                found[-1] = ("done",)
            found[-1] = (*found[-1], way)
            os.chdir(top)
        for name in ("/f", "/new"):
            attempt(os.stat, way + name); attempt(os.mkdir, way + name); attempt(os.rmdir, way + name)
            found[-1] = (found[-1][0], way, name, isinstance(found[-1][1], str) and found[-1][1])
child(lambda: (become(OTHER), step()))
os.chmod("shut", 0o755)
child(lambda: (become(OTHER), step()))
""",
    "sticky": """
directory("t", 0o1777)
for name, uid in (("root", 0), ("owner", OWNER), ("other", OTHER)):
    make("t/" + name, 0o666, uid); directory("t/d" + name, 0o777, uid); make("t/x" + name, 0o666, uid)
directory("o", 0o1777, OTHER)
make("o/owner", 0o666, OWNER)
def remove():
    for name in ("root", "owner", "other"):
        attempt(os.unlink, "t/" + name); attempt(os.rmdir, "t/d" + name); attempt(os.rename, "t/x" + name, "t/y" + name)
        attempt(os.rename, "t/x" + name, "moved" + name)
    attempt(os.unlink, "o/owner"); found.append(sorted(os.listdir("t")))
os.chmod(".", 0o777)
for uid in (OTHER, OWNER, 0):
    child(lambda: (uid and become(uid), remove()))
""",
    "setgid": """
directory("g", 0o2777, 0, GROUP)
def fill():
    os.umask(0o002)
    make_here = lambda name, bits: os.close(os.open(name, os.O_CREAT | os.O_WRONLY, bits))
    make_here("g/f", 0o666); make_here("g/s", 0o2770); make_here("g/n", 0o2660); os.mkdir("g/d"); os.mkdir("g/d/e")
    os.symlink("x", "g/l"); os.mknod("g/m", 0o2755 | stat.S_IFREG)
    for name in ("f", "s", "n", "d", "d/e", "l", "m"):
        mode("g/" + name)
    os.rmdir("g/d/e"); os.rmdir("g/d")
    for name in ("f", "s", "n", "l", "m"):
        os.unlink("g/" + name)
for who in ((OTHER, OTHER, ()), (OTHER, OTHER, (GROUP,)), (OTHER, GROUP, ())):
    child(lambda: (become(*who), fill()))
fill()
""",
    "chmod": """
for number, (uid, gid) in enumerate(((OWNER, OWNER), (OWNER, GROUP), (OTHER, OTHER), (0, 0))):
    make(f"f{number}", 0o644, uid, gid); directory(f"d{number}", 0o755, uid, gid)
    os.symlink(f"f{number}", f"l{number}"); os.lchown(f"l{number}", uid, gid)
def change():
    for kind in "fdl":
        for number in range(4):
            for bits in (0o600, 0o6755, 0o2644, 0o1777, 0o7777, 0o644):
                attempt(os.chmod, f"{kind}{number}", bits); mode(f"{kind}{number}")
for who in ((OWNER, OWNER, ()), (OWNER, OWNER, (GROUP,)), (OTHER, GROUP, ())):
    child(lambda: (become(*who), change()))
change()
""",
    "chown": """
bits = (0o644, 0o6755, 0o6745, 0o2644, 0o4644, 0o6777)
for number in bits:
    make(f"f{number:o}", number, OWNER, GROUP); directory(f"d{number:o}", number, OWNER, GROUP)
os.symlink("f644", "l"); os.lchown("l", OWNER, GROUP)
def change():
    for name in [f"{kind}{number:o}" for kind in "fd" for number in bits] + ["l"]:
        for uid, gid in ((-1, -1), (OWNER, -1), (-1, GROUP), (OWNER, GROUP), (-1, 4444), (-1, 5555), (OTHER, -1),
                         (0, 0)):
            before = os.stat(name).st_ctime_ns
            attempt(os.chown, name, uid, gid); mode(name)
            found.append(os.stat(name).st_ctime_ns >= before)
        attempt(os.lchown, name, -1, 4444); mode(name)
for who in ((OTHER, GROUP, ()), (OWNER, GROUP, (4444,)), (OWNER, 4444, (GROUP,)), (OWNER, OWNER, ())):
    child(lambda: (become(*who), change()))
change()
""",
    "times": """
for uid, bits in ((OWNER, 0o600), (OTHER, 0o666), (OTHER, 0o644), (0, 0o622), (0, 0o600)):
    make(f"f{uid}-{bits:o}", bits, uid); directory(f"d{uid}-{bits:o}", bits, uid)
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
NOW, OMIT = (1 << 30) - 1, (1 << 30) - 2
def utimensat(name, *times):
    spec = (ctypes.c_long * 4)(*times) if times else None
    if libc.utimensat(-100, name.encode(), spec, 0):
        raise OSError(ctypes.get_errno(), "utimensat")
    info = os.stat(name)
    return [info.st_atime_ns if times and times[1] < OMIT else 0, info.st_mtime_ns if times and times[3] < OMIT else 0]
names = sorted(os.listdir("."))
def change():
    for name in names:
        for times in ((), (0, NOW, 0, NOW), (0, NOW, 0, OMIT), (0, OMIT, 0, NOW), (0, OMIT, 0, OMIT), (5, 6, 7, 8),
                      (5, 6, 0, OMIT), (0, OMIT, 7, 999999999), (5, 6, 0, NOW), (1, 1000000000, 1, 1), (1, -1, 1, 1)):
            attempt(utimensat, name, *times)
    attempt(utimensat, "none"); attempt(utimensat, "none", 0, OMIT, 0, OMIT)
for uid in (OWNER, OTHER):
    child(lambda: (become(uid), change()))
change()
""",
    "privileges": """
for bits in (0o6777, 0o2767, 0o4666):
    for what in ("write", "truncate", "ftruncate", "open", "pwrite", "append", "none", "fallocate"):
        make(f"{what}{bits:o}", bits, OWNER, OWNER)
def write():
    for bits in (0o6777, 0o2767, 0o4666):
        name = lambda what: f"{what}{bits:o}"
        fd = os.open(name("write"), os.O_RDWR); os.write(fd, b"x"); os.close(fd); mode(name("write"))
        os.truncate(name("truncate"), 5); mode(name("truncate"))
        fd = os.open(name("ftruncate"), os.O_RDWR); os.ftruncate(fd, 7); os.close(fd); mode(name("ftruncate"))
        os.close(os.open(name("open"), os.O_RDWR | os.O_TRUNC)); mode(name("open"))
        fd = os.open(name("pwrite"), os.O_RDWR); os.pwrite(fd, b"x", 1 << 20); os.close(fd); mode(name("pwrite"))
        fd = os.open(name("append"), os.O_RDWR | os.O_APPEND); os.write(fd, b"x"); os.close(fd); mode(name("append"))
        os.close(os.open(name("none"), os.O_RDWR)); mode(name("none"))
child(lambda: write())
child(lambda: (become(OWNER), write()))
""",
    "noatime": """
make("f", 0o644, OWNER); directory("d", 0o755, OWNER)
def look():
    for name in "fd":
        for flags in (os.O_RDONLY, os.O_RDONLY | os.O_NOATIME):
            fd = attempt(os.open, name, flags)
            if isinstance(fd, int):
                os.close(fd)
                found[-1] = "opened"
for uid in (OWNER, OTHER):
    child(lambda: (become(uid), look()))
look()
""",
    "changing": """
directory("d", 0o700, OWNER, OWNER); make("d/f", 0o600, OWNER, OWNER); directory("e", 0o770, 0, GROUP)
os.chmod(".", 0o777)
def look():
    attempt(os.listdir, "d"); attempt(os.listdir, "e"); attempt(os.access, "d/f", 4)
    attempt(os.access, "d/f", 4, effective_ids=True)
    name = f"made-by-{os.geteuid()}-{os.getegid()}"
    attempt(os.mkdir, name); mode(name) if os.path.exists(name) else None
def change():
    look()
    os.setgroups([]); os.setegid(OTHER); os.seteuid(OTHER); look()
    os.seteuid(0); os.setgroups([GROUP]); os.seteuid(OTHER); look()
    os.seteuid(0); os.setegid(OWNER); os.seteuid(OWNER); look()
    fd = os.open("d/f", os.O_RDWR)
    os.seteuid(0); os.seteuid(OTHER); attempt(os.read, fd, 1) ; attempt(os.open, "d/f", os.O_RDONLY)
    os.seteuid(0); os.setegid(0); os.setregid(OWNER, OTHER); look(); os.setregid(0, 0)
    os.setreuid(OTHER, 0); look()
    os.setreuid(0, OTHER); look()
    os.setresuid(OWNER, OWNER, OWNER); look(); attempt(os.seteuid, 0); look()
child(change)
""",
    "threads": """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
directory("d", 0o700, OWNER, OWNER); os.chmod(".", 0o777)
results = {}
def look(key):
    try: results[key] = os.listdir("d")
    except OSError as error: results[key] = errno.errorcode[error.errno]
    os.close(os.open(key, os.O_CREAT | os.O_WRONLY, 0o600))
def thread(key, uid):
    if uid: libc.setfsgid(uid)
    if uid: libc.syscall(122 if os.uname().machine == "x86_64" else 151, uid)  # setfsuid of this thread only
    look(key)
    if uid:
        inner = threading.Thread(target=look, args=(key + "-inner",)); inner.start(); inner.join()
def change():
    for key, uid in (("a", OTHER), ("b", OWNER), ("c", 0)):
        one = threading.Thread(target=thread, args=(key, uid)); one.start(); one.join()
    look("main")
    found.append(sorted(results.items())); found.extend((name, os.stat(name).st_uid) for name in sorted(results))
    waiting, ready = threading.Event(), threading.Event()
    def later():
        look("before"); ready.set(); waiting.wait(); look("after")
    other = threading.Thread(target=later); other.start(); ready.wait()
    os.setgroups([]); os.setgid(OTHER); os.setuid(OTHER); waiting.set(); other.join(); look("self")
    found.extend((name, results[name], os.stat(name).st_uid) for name in ("before", "after", "self"))
child(change)
""",
    "programs": """
import subprocess
directory("d", 0o750, 0, GROUP); make("d/f"); os.chmod(".", 0o777)
for groups in ([], [GROUP], [5, 6, GROUP]):
    script = "ls d; touch new-$$ && ls -ln new-$$ | cut -d' ' -f3,4; rm -f new-$$; cat d/f; id -G"
    done = subprocess.run(["sh", "-c", script],
                          user=OTHER, group=OTHER, extra_groups=groups, capture_output=True, text=True)
    found.append((done.returncode, done.stdout.replace("\\n", " "), "denied" in done.stderr))
""",
}


def run(script, directory, environment):
    subprocess.run(["mkdir", "-p", directory], env=environment, check=True, timeout=30)
    subprocess.run(["chmod", "755", directory], env=environment, check=True, timeout=30)
    done = subprocess.run([sys.executable, "-c", f"{PRELUDE}\nos.chdir({directory!r})\nos.umask(0o022)\n{script}\n"
                           "print(json.dumps(found))"], env=environment, capture_output=True, text=True, timeout=120,
                          check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", SCRIPTS)
def test_same_as_locally(request, runner, everybodys, name):
    if name == "programs":
        request.getfixturevalue("others_may_run_it")
    local = run(SCRIPTS[name], f"{everybodys}/{name}", runner.plain)
    ours = run(SCRIPTS[name], f"{runner.mount}/permissions-{name}", runner.loaded)
    assert len(local) > 2
    for index, (mine, wanted) in enumerate(zip(ours, local)):
        assert mine == wanted, f"step {index}; before it {local[max(0, index - 3):index]}"
    assert len(ours) == len(local)
