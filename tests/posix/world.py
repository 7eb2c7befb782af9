# SPDX-License-Identifier: Apache-2.0
"""A small world of files with all kinds of permissions, and every call on every path in it, as several users.

``world.py DIRECTORY PART USER STEP PHASE`` makes the calls of a PART (single, open, rename or link) in DIRECTORY, every
STEP-th from PHASE on, and prints what came of each and what it changed.  test_worlds.py compares that of two file
systems.  Python's standard library only.
"""
import ctypes
import errno
import itertools
import os
import stat
import sys

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
AT, NOFOLLOW, EMPTY = -100, 0x100, 0x1000
NOBODY = 65534
USERS = {"root": (0, []), "nobody": (NOBODY, []), "user": (1000, [2000]), "member": (1001, [3000, 2000])}
NUMBERS = {"access": 21, "truncate": 76, "chdir": 80, "statfs": 137, "setxattr": 188, "lsetxattr": 189, "getxattr": 191,
           "listxattr": 194, "removexattr": 197, "openat": 257, "mkdirat": 258, "mknodat": 259, "fchownat": 260,
           "newfstatat": 262, "unlinkat": 263, "linkat": 265, "symlinkat": 266, "readlinkat": 267, "fchmodat": 268,
           "utimensat": 280, "renameat2": 316, "statx": 332, "faccessat2": 439, "fchmodat2": 452}
LONG, LONGEST = "N" * 256, "N" * 255
BASES = ["a", "b", "c", "w", "w/f", "w/d", "w/e", "w/l", "w/n", "r", "r/f", "r/d", "r/n", "x", "x/f", "x/d", "x/n",
         "s/f", "s/d", "s/u", "s/n", "g", "g/f", "g/d", "g/n", "u", "u/f", "u/d", "u/p", "u/s", "u/n", "lw", "lw/f",
         "lw/n", "lx", "ln", "ln/n", "lo", "la", "p", "k", "n", "n/n", "a/n", LONG, "x/" + LONG, "w/" + LONGEST,
         "a/" + LONG, "n/" + LONG, ".", "..", LONG + "/n", "w/e/f", "w/e/f/n"]
SINGLE = [base + end for base in BASES for end in ("", "/", "/.", "/..", "/n") if base + end != "../.."]
SINGLE += ["", "w/" * 2047 + "f", "w/" * 2050, "x" * 4095, "x" * 4096, "a/" + "x" * 4094]
PLAIN = ("w/d", "w/f", "n", "w/e", "lw")  # names tried with "." behind them as one of two
DOUBLE = [base + end for base in BASES for end in ("", "/", "/.", "/n")
          if not base.startswith("..") and (end != "/." or base in PLAIN or len(base) > 50)] + [""]

buffer = ctypes.create_string_buffer(8192)
top = ""


def call(name, *arguments):
    """The result of a system call, or the name of its errno."""
    arguments = [value.encode() if isinstance(value, str) else value for value in arguments]
    result = libc.syscall(NUMBERS[name], *(ctypes.c_long(value) if isinstance(value, int) else value
                                           for value in arguments))
    return errno.errorcode[ctypes.get_errno()] if result < 0 else result


# --- the world ------------------------------------------------------------------------------------------------------


def become(name):
    uid, groups = USERS[name]
    os.setresuid(0, 0, 0)
    os.setgroups(groups)
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, 0)
    os.umask(0o022)


def file(name, mode, uid=0, gid=0):
    with open(name, "w") as made:
        made.write("data")
    os.chown(name, uid, gid)
    os.chmod(name, mode)


def directory(name, mode, uid=0, gid=0):
    os.mkdir(name)
    os.chown(name, uid, gid)
    os.chmod(name, mode)


def empty(name):
    os.chmod(name, 0o777)
    for entry in os.scandir(name):
        path = f"{name}/{entry.name}"
        if entry.is_dir(follow_symlinks=False):
            empty(path)
            os.rmdir(path)
        else:
            os.unlink(path)


def build():
    """Make everything anew."""
    empty(".")
    os.umask(0)
    os.chmod(".", 0o755)
    for name, mode, uid, gid in (("w", 0o777, 0, 0), ("r", 0o755, 0, 0), ("x", 0o666, 0, 0), ("s", 0o1777, 0, 0),
                                 ("g", 0o2770, 0, 2000), ("u", 0o700, 1000, 1000)):
        directory(name, mode, uid, gid)
        file(f"{name}/f", 0o644, uid, gid)
        directory(f"{name}/d", 0o755, uid, gid)
        os.symlink("f", f"{name}/l")
    directory("w/e", 0o755)
    file("w/e/f", 0o644)
    file("s/u", 0o666, 1000, 2000)
    file("u/p", 0o000, 1000, 1000)
    file("u/s", 0o6755, 1000, 1000)
    file("a", 0o666)
    file("b", 0o000)
    file("c", 0o640, 0, 2000)
    for target, name in (("w", "lw"), ("x/f", "lx"), ("none", "ln"), ("lo", "lo"), ("a/", "la")):
        os.symlink(target, name)
    os.mkfifo("p", 0o666)
    os.mknod("k", stat.S_IFSOCK | 0o666)


def look(name="."):
    """Path -> what can be compared of it, of everything there is."""
    info = os.lstat(name)
    is_directory = stat.S_ISDIR(info.st_mode)
    found = {name: (oct(info.st_mode), info.st_nlink, info.st_uid, info.st_gid, 0 if is_directory else info.st_size,
                    os.readlink(name) if stat.S_ISLNK(info.st_mode) else "")}
    for entry in sorted(os.listdir(name)) if is_directory else ():
        found.update(look(f"{name}/{entry}"))
    return found


# --- the calls ------------------------------------------------------------------------------------------------------


def times(*values):
    return (ctypes.c_long * 4)(*values)


NOW, OMIT = (1 << 30) - 1, (1 << 30) - 2
PURE = {  # they change nothing
    "stat": lambda path: call("newfstatat", AT, path, buffer, 0),
    "lstat": lambda path: call("newfstatat", AT, path, buffer, NOFOLLOW),
    "stat empty": lambda path: call("newfstatat", AT, path, buffer, EMPTY),
    "stat bad": lambda path: call("newfstatat", AT, path, buffer, 0x40),
    "statx": lambda path: call("statx", AT, path, 0, 0xFFF, buffer),
    "statx bad": lambda path: call("statx", AT, path, 0x6000, 0xFFF, buffer),
    "statx mask": lambda path: call("statx", AT, path, 0, 1 << 31, buffer),
    "access 3": lambda path: call("access", path, 3),
    "chdir": lambda path: call("chdir", path),
    "statfs": lambda path: call("statfs", path, buffer),
    "readlink": lambda path: call("readlinkat", AT, path, buffer, 100),
    "readlink 0": lambda path: call("readlinkat", AT, path, buffer, 0),
    "readlink 2": lambda path: call("readlinkat", AT, path, buffer, 2),
    "listxattr": lambda path: call("listxattr", path, buffer, 100),
    **{f"access {mode} {flags}": lambda path, mode=mode, flags=flags: call("faccessat2", AT, path, mode, flags)
       for mode in (0, 1, 2, 4, 6, 7, 8) for flags in (0, 0x100, 0x200, 0x300, 0x1000, 0x400)},
    **{f"getxattr {name!r} {size}": lambda path, name=name, size=size: call("getxattr", path, name, buffer, size)
       for name in ("user.a", "trusted.a", "security.a", "bad", "") for size in (0, 1)},
}
CHANGING = {
    "mkdir": lambda path: call("mkdirat", AT, path, 0o2777),
    "mkdir sticky": lambda path: call("mkdirat", AT, path, 0o1777),
    "unlink": lambda path: call("unlinkat", AT, path, 0),
    "rmdir": lambda path: call("unlinkat", AT, path, 0x200),
    "unlink bad": lambda path: call("unlinkat", AT, path, 0x100),
    "symlink": lambda path: call("symlinkat", "target", AT, path),
    "symlink empty": lambda path: call("symlinkat", "", AT, path),
    "symlink long": lambda path: call("symlinkat", "x" * 4096, AT, path),
    "chmod link": lambda path: call("fchmodat2", AT, path, 0o600, NOFOLLOW),
    "chmod bad": lambda path: call("fchmodat2", AT, path, 0o600, 1),
    "chown bad": lambda path: call("fchownat", AT, path, 0, 0, 0x400),
    **{f"mknod {mode:o} {device:x}": lambda path, mode=mode, device=device: call("mknodat", AT, path, mode, device)
       for mode, device in ((0o100644, 0), (0o6755, 0), (0o010644, 0), (0o020644, 0x103), (0o020644, 0),
                            (0o060644, 0x701), (0o140644, 0), (0o040644, 0), (0o120644, 0), (0o030644, 0))},
    **{f"chmod {mode:o}": lambda path, mode=mode: call("fchmodat", AT, path, mode)
       for mode in (0o600, 0o4755, 0o2755, 0o1777, 0o12777)},
    **{f"chown {uid} {gid} {flags}": lambda path, uid=uid, gid=gid, flags=flags: call("fchownat", AT, path, uid, gid,
                                                                                      flags)
       for uid in (-1, 0, 1000, NOBODY) for gid in (-1, 2000, 3000, 1000) for flags in (0, NOFOLLOW)},
    **{f"truncate {size}": lambda path, size=size: call("truncate", path, size) for size in (0, 4, 5, -1)},
    **{f"utimens {name}": lambda path, value=value, flags=flags: call("utimensat", AT, path, value, flags)
       for name, value, flags in (
           ("now", None, 0), ("set", times(1, 2, 3, 4), 0), ("both now", times(0, NOW, 0, NOW), 0),
           ("omit", times(0, OMIT, 0, OMIT), 0), ("half", times(0, NOW, 0, OMIT), 0),
           ("now and set", times(0, NOW, 5, 5), 0), ("bad", times(0, -1, 0, 0), 0),
           ("link", times(1, 2, 3, 4), NOFOLLOW), ("bad flag", times(1, 2, 3, 4), 1),
           ("omit, bad flag", times(0, OMIT, 0, OMIT), 1), ("omit, bad", times(0, OMIT, 0, 10**9), 0))},
    **{f"{kind} {name[:12]!r} {flags}": lambda path, kind=kind, name=name, flags=flags: call(kind, path, name, b"v", 1,
                                                                                             flags)
       for kind in ("setxattr", "lsetxattr") for flags in range(5)
       for name in ("user.a", "trusted.a", "security.a", "bad", "user.", "", "user." + "n" * 251)},
    **{f"removexattr {name!r}": lambda path, name=name: call("removexattr", path, name)
       for name in ("user.a", "trusted.a", "security.a", "bad", "user.", "")},
}
OPENINGS = [access | sum(more) for access in range(4) for more in itertools.product(*(
    (0, flag) for flag in (os.O_CREAT, os.O_EXCL, os.O_TRUNC, os.O_DIRECTORY, os.O_NOFOLLOW, os.O_PATH,
                           os.O_TMPFILE & ~os.O_DIRECTORY, os.O_NOATIME, os.O_APPEND)))]


def opening(flags, path):
    fd = call("openat", AT, path, flags | os.O_NONBLOCK, 0o4755)
    if isinstance(fd, str):
        return fd
    mode, status = os.fstat(fd).st_mode, libc.fcntl(fd, 3)
    os.close(fd)
    return oct(mode), oct(status)


def calls(part):
    """``(what it is called, function, whether it changes nothing)`` of each call of a part."""
    if part == "single":
        for table in (PURE, CHANGING):
            for (name, function), path in itertools.product(table.items(), SINGLE):
                if table is PURE or not path.startswith(".."):
                    yield (name, path), lambda function=function, path=path: function(path), table is PURE
    elif part == "open":
        for flags, path in itertools.product(OPENINGS, SINGLE):
            yield (oct(flags), path), lambda flags=flags, path=path: opening(flags, path), False
    else:
        name, known = {"rename": ("renameat2", (0, 1, 2, 3, 8)), "link": ("linkat", (0, 0x400, EMPTY, 0x100))}[part]
        for flags, old, new in itertools.product(known, DOUBLE, DOUBLE):
            yield ((part, flags, old, new),
                   lambda flags=flags, old=old, new=new: call(name, AT, old, AT, new, flags), False)


def short(value):
    return value if not isinstance(value, str) or len(value) < 40 else f"{value[:12]}..{len(value)}..{value[-9:]}"


def main():
    global top
    base, part, user, step, phase = *sys.argv[1:4], int(sys.argv[4]), int(sys.argv[5])
    top = f"{base}/top"  # what ".." is belongs to this, too
    os.mkdir(top)
    before = None
    for label, function, pure in itertools.islice(calls(part), phase, None, step):
        os.chdir(top)
        if before is None:
            build()
            before = look()
        become(user)
        result = function()
        become("root")
        os.chdir(top)
        changes = {}
        if not pure and not isinstance(result, str):
            after = look()
            changes = {path: after.get(path) for path in {*before, *after} if before.get(path) != after.get(path)}
            before = None if changes else before
        print(*map(short, label), "->", result, sorted(changes.items()))


if __name__ == "__main__":
    main()
