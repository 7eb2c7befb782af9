# SPDX-License-Identifier: Apache-2.0
"""The same scripts by root and by nobody, on the mount and on a local directory: modes, owners, sticky and setgid
directories, privileges of files, access in another's name, supplementary groups, times, attributes.

A script has a part that root does in a fresh directory, which then belongs to the user, and one that the user does.
"""
import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")

USERS = {"root": 0, "nobody": 65534}

PRELUDE = """
import errno, itertools, json, os, stat, sys
top, me = sys.argv[1], int(sys.argv[2])
OTHER, GROUP, STRANGE = 1111, 3333, 4444  # GROUP: a supplementary group of the user
os.mkdir(top); os.chdir(top); os.umask(0)
found = []

def attempt(call, *arguments, **keywords):
    try:
        result = call(*arguments, **keywords)
    except OSError as error:
        result = errno.errorcode[error.errno]
    if call is os.open and isinstance(result, int):
        os.close(result)
        result = "opened"
    elif isinstance(result, os.stat_result):
        result = oct(result.st_mode)
    found.append([getattr(call, "__name__", ""), [str(part) for part in arguments], str(result)])
    return result

def shown(path):
    try:
        info = os.lstat(path)
    except PermissionError:
        return
    found.append([path, oct(info.st_mode), info.st_uid, info.st_gid, info.st_nlink])

def make(path, mode=0o644, uid=0, gid=0, directory=False):
    os.mkdir(path) if directory else os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
    os.chown(path, uid, gid)
    os.chmod(path, mode)

def become():
    os.chown(top, me, me)
    if me:
        os.setgroups([GROUP])
        os.setresgid(me, me, me)
        os.setresuid(me, me, me)
"""

SCRIPTS = {
    "modes": ("""
owners = [(me, me), (me, STRANGE), (OTHER, me), (OTHER, GROUP), (OTHER, STRANGE), (0, 0)]
modes = [0, 0o400, 0o200, 0o040, 0o020, 0o004, 0o002, 0o700, 0o070, 0o007, 0o640, 0o604, 0o064, 0o111, 0o777]
for (uid, gid), bits in itertools.product(dict.fromkeys(owners), modes):
    make(f"f{uid}.{gid}.{bits:o}", bits, uid, gid)
    make(f"d{uid}.{gid}.{bits:o}", 0o755, uid, gid, True)
    make(f"d{uid}.{gid}.{bits:o}/in", 0o666)
    os.chmod(f"d{uid}.{gid}.{bits:o}", bits)
""", """
for name in sorted(os.listdir(".")):
    for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC, os.O_RDONLY | os.O_NOATIME, os.O_PATH):
        attempt(os.open, name, flags)
    for wanted in range(8):
        attempt(os.access, name, wanted)
        attempt(os.access, name, wanted, effective_ids=True)
    if name[0] == "d":
        attempt(os.listdir, name), attempt(os.stat, name + "/in"), attempt(os.stat, name + "/none")
        attempt(os.mkdir, name + "/new"), attempt(os.rmdir, name + "/new")
        attempt(os.rename, name + "/in", name + "/on")
        attempt(os.stat, name + "/../" + name), attempt(os.chdir, name)
        os.chdir(top)
    else:
        attempt(os.truncate, name, 1), attempt(os.link, name, name + "+")
"""),
    "sticky": ("""
for number, (uid, gid, bits) in enumerate(((me, me, 0o1777), (OTHER, GROUP, 0o1777), (OTHER, GROUP, 0o1775),
                                           (OTHER, GROUP, 0o1770), (0, 0, 0o1755))):
    make(f"s{number}", 0o777, directory=True)
    for owner in {0, me, OTHER}:
        for kind in "abcd":
            make(f"s{number}/{kind}{owner}", 0o666, owner)
        make(f"s{number}/e{owner}", 0o777, owner, directory=True)
    os.chown(f"s{number}", uid, gid); os.chmod(f"s{number}", bits)
make("plain", 0o777, directory=True)
""", """
for number in range(5):
    at = f"s{number}/"
    for owner in (0, 65534, OTHER):
        attempt(os.unlink, f"{at}a{owner}"); attempt(os.rename, f"{at}b{owner}", at + "moved")
        attempt(os.rename, f"{at}c{owner}", f"{at}d{owner}"); attempt(os.rmdir, f"{at}e{owner}")
        attempt(os.rename, f"{at}d{owner}", "plain/x"); attempt(os.symlink, "x", f"{at}l{owner}")
        attempt(os.rename, f"{at}l{owner}", f"{at}b{owner}"); attempt(os.setxattr, at, "user.a", b"1")
    attempt(os.listdir, at) if os.access(at, 4) else None
    found[-1][-1] = "".join(sorted(found[-1][-1]))
"""),
    "chmod and chown": ("""
owners = [(me, me), (me, GROUP), (me, STRANGE), (OTHER, me), (OTHER, GROUP), (0, 0)]
for number, (uid, gid) in enumerate(owners):
    make(f"f{number}", 0o644, uid, gid); make(f"d{number}", 0o755, uid, gid, True)
    os.symlink(f"f{number}", f"l{number}"); os.lchown(f"l{number}", uid, gid)
""", """
for number, kind in itertools.product(range(6), "fdl"):
    name = f"{kind}{number}"
    for bits in (0o600, 0o6755, 0o2644, 0o1777, 0o7777, 0o4711):
        attempt(os.chmod, name, bits), shown(name)
    for uid, gid in ((-1, -1), (me, -1), (-1, me), (-1, GROUP), (me, GROUP), (-1, STRANGE), (OTHER, -1), (0, 0),
                     (-1, 0)):
        if os.geteuid() and kind != "l":
            attempt(os.chmod, name, 0o6755)
        attempt(os.chown, name, uid, gid), shown(name)
        attempt(os.lchown, name, uid, gid), shown(name)
"""),
    "privileges": ("""
owners = [(me, me), (me, GROUP), (OTHER, me), (OTHER, STRANGE)]
modes = (0o6777, 0o2777, 0o4777, 0o2767, 0o6766, 0o1777)
for (number, (uid, gid)), bits in itertools.product(enumerate(owners), modes):
    for what in range(12):
        make(f"{number}.{bits:o}.{what}", bits, uid, gid)
""", """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]
def opened(name, call, flags=os.O_RDWR):
    fd = os.open(name, flags)
    try:
        attempt(lambda: call(fd))
    finally:
        os.close(fd)
source = os.open("source", os.O_CREAT | os.O_RDWR)
os.write(source, b"bytes")
changes = [lambda name: opened(name, lambda fd: os.write(fd, b"x")),
           lambda name: opened(name, lambda fd: os.write(fd, b"")),
           lambda name: opened(name, lambda fd: os.pwrite(fd, b"x", 9)), lambda name: os.truncate(name, 5),
           lambda name: os.truncate(name, 0), lambda name: opened(name, lambda fd: os.ftruncate(fd, 3)),
           lambda name: opened(name, lambda fd: libc.fallocate(fd, 0, 0, 10)),
           lambda name: opened(name, lambda fd: None, os.O_RDWR | os.O_TRUNC),
           lambda name: opened(name, lambda fd: os.copy_file_range(source, fd, 5, 0, 0)),
           lambda name: attempt(os.chown, name, -1, -1), lambda name: attempt(os.chown, name, -1, me),
           lambda name: (attempt(os.utime, name), attempt(os.rename, name, name + "+"), os.rename(name + "+", name))]
for name in sorted(os.listdir(".")):
    if name[0] != "s":
        changes[int(name.rpartition(".")[2])](name), shown(name)
"""),
    "directories of a group": ("""
for number, (uid, gid, bits) in enumerate(((me, me, 0o2777), (OTHER, GROUP, 0o2777), (OTHER, STRANGE, 0o2777),
                                           (OTHER, GROUP, 0o2070))):
    make(f"g{number}", bits, uid, gid, True)
""", """
for number in range(4):
    at = f"g{number}/"
    for bits in (0o666, 0o2666, 0o2777, 0o6755, 0o2710):
        attempt(os.open, f"{at}f{bits:o}", os.O_CREAT | os.O_WRONLY, bits); attempt(os.mkdir, f"{at}d{bits:o}", bits)
        attempt(os.mknod, f"{at}n{bits:o}", stat.S_IFREG | bits); attempt(os.mkfifo, f"{at}p{bits:o}", bits)
        unnamed = os.open(at, os.O_TMPFILE | os.O_RDWR, bits)
        info = os.fstat(unnamed)
        found.append([oct(info.st_mode), info.st_gid, info.st_nlink])
        attempt(os.link, f"/proc/self/fd/{unnamed}", f"{at}t{bits:o}", follow_symlinks=True)
        found[-1][1] = []
    attempt(os.symlink, "x", at + "l"), attempt(os.mkdir, at + "d666/e", 0o755)
    for name in sorted(os.listdir(at)):
        shown(at + name)
    shown(at + "d666/e")
"""),
    "groups": ("""
for name in "ab":
    make(name, 0o770, OTHER, GROUP, True)
    for number in range(12):
        make(f"{name}/{number}", 0o640, OTHER, GROUP)
make("c", 0o1770, OTHER, GROUP, True); make("c/x", 0o666, OTHER); make("c/y", 0o666, me)
""", """
for number in range(6):  # names of different servers
    attempt(os.rename, f"a/{number}", f"b/{number + 3}"), attempt(os.rename, f"b/{number + 4}", f"a/new{number}")
    attempt(os.link, f"b/{number}", f"a/link{number}"), attempt(os.open, f"b/{number}", os.O_RDONLY)
    attempt(os.mkdir, f"a/d{number}"), attempt(os.rename, f"a/d{number}", f"b/d{number + 1}")
attempt(os.rename, "c/x", "c/y"), attempt(os.rename, "c/y", "c/x"), attempt(os.rename, "c/y", "a/y")
for name in "ab":
    found.append(sorted(os.listdir(name)))
"""),
    "times and attributes": ("""
for number, (uid, bits) in enumerate(((me, 0o644), (OTHER, 0o666), (OTHER, 0o644), (OTHER, 0o622))):
    make(f"f{number}", bits, uid)
    make(f"d{number}", bits | 0o1111, uid, directory=True)
os.mkfifo("fifo"); os.chmod("fifo", 0o666); os.symlink("f0", "link")
""", """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
NOW, OMIT = (1 << 30) - 1, (1 << 30) - 2
def times(path, atime, mtime, flags=0):
    both = (ctypes.c_long * 4)(1000, atime, 2000, mtime)
    if libc.utimensat(-100, path.encode(), both, flags):
        raise OSError(ctypes.get_errno(), "")
for name in ("f0", "f1", "f2", "f3", "d0", "d1", "fifo", "link", "none"):
    for atime, mtime in itertools.product((NOW, OMIT, 5, 1 << 30), repeat=2):
        attempt(times, name, atime, mtime)
        if name != "none":
            info = os.lstat(name)
            found.append([info.st_atime_ns if info.st_atime < 10**6 else "now",
                          info.st_mtime_ns if info.st_mtime < 10**6 else "now"])
    attempt(os.utime, name), attempt(times, name, 7, 7, 0x100), attempt(times, name, 7, 7, 0x8000)
    for key in ("user.a", "trusted.a", "security.a", "system.a", "user.", "user", "user." + "n" * 251, "a.b", ""):
        if key == "security.a" and os.geteuid() == 0 or name.startswith("d") and key[:2] == "us" and os.geteuid() == 0:
            continue  # file systems of Linux differ
        attempt(os.setxattr, name, key, b"1"), attempt(os.setxattr, name, key, b"2", 1), attempt(os.getxattr, name, key)
        attempt(os.setxattr, name, key, b"3", 2), attempt(os.removexattr, name, key), attempt(os.removexattr, name, key)
    attempt(os.mknod, name + "c", stat.S_IFCHR | 0o666, os.makedev(1, 3)), attempt(os.mknod, name + "s", stat.S_IFSOCK)
"""),
    "another's name": ("", """
make("mine", 0o600, 0, 0) if not me else make("mine", 0o600, me, me)
os.mkdir("d", 0o700)
for real, effective in ((0, OTHER), (OTHER, 0), (OTHER, STRANGE), (0, 0)) if not me else ((me, me),):
    if os.fork() == 0:
        found = []
        if not me:
            os.setgroups([GROUP]), os.setresgid(real, effective, 0), os.setresuid(real, effective, 0)
        for name, wanted in itertools.product(("mine", "d", "d/.", ".", "none", "mine/x"), range(8)):
            attempt(os.access, name, wanted), attempt(os.access, name, wanted, effective_ids=True)
            attempt(os.access, name, wanted, effective_ids=True, follow_symlinks=False)
        attempt(os.open, "mine", os.O_RDONLY)
        print(json.dumps(found), flush=True)
        os._exit(0)
    os.wait()
"""),
}


@pytest.fixture(params=USERS)
def as_user(request, runner, everybodys):
    """Runs a script of two parts on both sides, the second as the user; returns what was found here and there."""
    uid = USERS[request.param]

    def run(name, parts):
        script = "\n".join((PRELUDE, parts[0], "become()", parts[1], "print(json.dumps(found))"))
        results = []
        there = f"{runner.mount}/{request.param}-{name.replace(' ', '-').replace(chr(39), '')}"
        for directory, environment in ((f"{everybodys}/d", runner.plain), (there, runner.loaded)):
            done = subprocess.run([sys.executable, "-c", script, directory, str(uid)], env=environment, text=True,
                                  capture_output=True, timeout=60)
            assert (done.returncode, done.stderr) == (0, "")
            results.append([step for line in done.stdout.splitlines() for step in json.loads(line)])
        return results

    return run


@pytest.mark.parametrize("name", SCRIPTS)
def test_as_locally(as_user, name):
    local, ours = as_user(name, SCRIPTS[name])
    different = [(index, mine, wanted) for index, (mine, wanted) in enumerate(zip(ours, local)) if mine != wanted]
    assert not different, different[:20]
    assert len(ours) == len(local) > 20
