# SPDX-License-Identifier: Apache-2.0
"""Every call on every kind of path: what fails on a local directory fails on the mount, with the same errno."""
import json
import subprocess
import sys

import pytest

SCRIPT = """
import errno, json, os, shutil, stat, sys
top = sys.argv[1]
os.umask(0o022); os.makedirs(top); os.chdir(top)  # what ".." is belongs to this test, too

def build():
    for name in os.listdir("."):
        shutil.rmtree(name) if os.path.isdir(name) and not os.path.islink(name) else os.unlink(name)
    os.mkdir("dir"); os.mkdir("full"); os.mkdir("full/sub")
    for name in ("file", "full/file", "other"):
        os.close(os.open(name, os.O_CREAT | os.O_WRONLY, 0o644))
    for target, name in (("file", "to-file"), ("dir", "to-dir"), ("full", "to-full"), ("none", "to-none"),
                         ("loop2", "loop1"), ("loop1", "loop2"), ("file/", "to-file-slash"), ("dir/", "to-dir-slash"),
                         (".", "to-dot"), ("full/sub/..", "to-up"), ("none/", "to-none-slash"),
                         ("to-none", "to-to-none"), ("n" * 256, "to-long")):
        os.symlink(target, name)

names = ["file", "dir", "full", "none", "to-file", "to-dir", "to-full", "to-none", "loop1", "to-file-slash",
         "to-dir-slash", "to-dot", "to-up", "to-none-slash", "to-to-none", "to-long", "full/file", "full/sub",
         "full/none", "none/none", "n" * 255, "n" * 256]
endings = ["", "/", "//", "/.", "/..", "/x", "/x/", "/x/y", "/" + "n" * 256]
paths = [name + ending for name in names for ending in endings] + ["", ".", "..", "./", "../", "./.", "/", "x" * 4096,
         "dir/" * 1023 + "x", "dir/../" * 580 + "file", "dir/./" * 100]
flags = {name: getattr(os, name) for name in ("O_RDONLY", "O_WRONLY", "O_RDWR", "O_CREAT", "O_EXCL", "O_TRUNC",
                                              "O_DIRECTORY", "O_NOFOLLOW", "O_PATH", "O_APPEND")}
opens = ["O_RDONLY", "O_WRONLY", "O_RDONLY|O_CREAT", "O_WRONLY|O_CREAT|O_EXCL", "O_RDONLY|O_TRUNC",
         "O_RDONLY|O_DIRECTORY", "O_WRONLY|O_DIRECTORY", "O_RDONLY|O_NOFOLLOW", "O_WRONLY|O_CREAT|O_NOFOLLOW",
         "O_RDONLY|O_CREAT|O_DIRECTORY", "O_RDONLY|O_NOFOLLOW|O_DIRECTORY", "O_PATH", "O_PATH|O_NOFOLLOW",
         "O_PATH|O_DIRECTORY", "O_RDONLY|O_CREAT|O_TRUNC", "O_PATH|O_NOFOLLOW|O_DIRECTORY",
         "O_PATH|O_CREAT|O_EXCL", "O_CREAT|O_EXCL|O_DIRECTORY|O_RDONLY"]

def opening(name):
    bits = 0
    for part in name.split("|"):
        bits |= flags[part]
    def run(path):
        fd = os.open(path, bits, 0o600)
        info = os.fstat(fd)
        os.close(fd)
        return [oct(info.st_mode), info.st_size if stat.S_ISREG(info.st_mode) else 0]
    return run

def seen(path, **options):
    info = os.stat(path, **options)
    return oct(info.st_mode)

calls = {
    "stat": seen, "lstat": lambda path: seen(path, follow_symlinks=False), "access": lambda path: os.access(path, 4),
    "chdir": lambda path: (os.chdir(path), os.chdir(top))[0], "readlink": os.readlink,
    "statvfs": lambda path: bool(os.statvfs(path)),
    "listdir": lambda path: len(os.listdir(path)) if path not in ("..", "../", "/") else 0,
    "mkdir": os.mkdir, "rmdir": os.rmdir, "unlink": os.unlink, "chmod": lambda path: os.chmod(path, 0o751),
    "chown": lambda path: os.chown(path, -1, -1), "lchown": lambda path: os.lchown(path, -1, -1),
    "utime": lambda path: os.utime(path, (5, 6)), "lutime": lambda path: os.utime(path, (5, 6), follow_symlinks=False),
    "truncate": lambda path: os.truncate(path, 3), "mknod": lambda path: os.mknod(path, stat.S_IFREG | 0o600),
    "mkfifo": os.mkfifo,
    "symlink": lambda path: os.symlink("target", path), "symlink from": lambda path: os.symlink(path, "made"),
    "link": lambda path: os.link(path, "made"), "link to": lambda path: os.link("other", path),
    "link nofollow": lambda path: os.link(path, "made", follow_symlinks=False),
}
calls.update({f"open {name}": opening(name) for name in opens})
pure = {"stat", "lstat", "access", "chdir", "readlink", "statvfs", "listdir", "chmod", "chown", "lchown", "utime",
        "lutime", "open O_RDONLY", "open O_WRONLY", "open O_PATH"}
looking = {"stat", "lstat", "access", "chdir", "readlink", "statvfs", "listdir", "open O_RDONLY", "open O_PATH"}
found = {}
step = int(sys.argv[3])
for number, name in enumerate(json.loads(sys.argv[2])):
    build()
    for path in paths[number % step::step]:
        if path == "/" and name not in looking:
            continue  # another file system's, and not to be changed
        try:
            result = calls[name](path)
            changed = name not in pure
        except OSError as error:
            result, changed = errno.errorcode[error.errno], False
        short = path if len(path) < 40 else f"{path[:12]}...{path[-12:]} ({len(path)})"
        found[f"{name}: {short}"] = result
        if changed:
            build()
print(json.dumps(found))
"""

GROUPS = {
    "looking": ["stat", "lstat", "access", "chdir", "readlink", "statvfs", "listdir"],
    "attributes": ["chmod", "chown", "lchown", "utime", "lutime", "truncate"],
    "making": ["mkdir", "mknod", "mkfifo", "symlink", "symlink from"],
    "removing": ["rmdir", "unlink"],
    "linking": ["link", "link to", "link nofollow"],
    "opening": ["open O_RDONLY", "open O_WRONLY", "open O_RDONLY|O_CREAT", "open O_WRONLY|O_CREAT|O_EXCL",
                "open O_RDONLY|O_TRUNC", "open O_RDONLY|O_DIRECTORY"],
    "opening oddly": ["open O_WRONLY|O_DIRECTORY", "open O_RDONLY|O_NOFOLLOW", "open O_WRONLY|O_CREAT|O_NOFOLLOW",
                      "open O_RDONLY|O_CREAT|O_DIRECTORY", "open O_RDONLY|O_NOFOLLOW|O_DIRECTORY",
                      "open O_RDONLY|O_CREAT|O_TRUNC", "open O_CREAT|O_EXCL|O_DIRECTORY|O_RDONLY"],
    "opening paths": ["open O_PATH", "open O_PATH|O_NOFOLLOW", "open O_PATH|O_DIRECTORY",
                      "open O_PATH|O_NOFOLLOW|O_DIRECTORY", "open O_PATH|O_CREAT|O_EXCL"],
}


def run(calls, directory, environment, step):
    done = subprocess.run([sys.executable, "-c", SCRIPT, directory, json.dumps(calls), str(step)], env=environment,
                          capture_output=True, text=True, timeout=600, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def compare(runner, directory, group, step):
    ours = run(GROUPS[group], f"{runner.mount}/errnos-{step}-{group.replace(' ', '-')}/d", runner.loaded, step)
    local = run(GROUPS[group], f"{directory}/errnos/d", runner.plain, step)
    different = {what: (ours[what], local[what]) for what in local if ours[what] != local[what]}
    assert not different
    assert len(local) >= 200 // step * len(GROUPS[group])


@pytest.mark.parametrize("group", GROUPS)
def test_same_errnos_as_locally(runner, everybodys, group):
    compare(runner, everybodys, group, 12)


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("group", GROUPS)
def test_same_errnos_as_locally_everywhere(runner, everybodys, group):
    compare(runner, everybodys, group, 1)
