# SPDX-License-Identifier: Apache-2.0
"""What a process sees whose working directory, or a directory that it has open, was removed: run on the mount and on a
local directory by ``test_removed.py``, as ``removed.py DIRECTORY HOW``."""
import ctypes
import errno
import fcntl
import os
import stat
import subprocess
import sys

libc = ctypes.CDLL(None, use_errno=True)
TOP = os.path.abspath(sys.argv[1])
CREATE = os.O_CREAT | os.O_RDWR


def show(name, call, *arguments, **options):
    try:
        result = call(*arguments, **options)
    except OSError as error:
        result = errno.errorcode[error.errno]
    print(name, *arguments, result)


def status(info):
    return stat.filemode(info.st_mode), info.st_nlink, info.st_uid, info.st_gid


def attributes(fd):
    return sorted(os.listxattr(fd))


def listed(fd):
    buffer = ctypes.create_string_buffer(4096)
    number = libc.syscall({"x86_64": 217}.get(os.uname().machine, 61), fd, buffer, 4096)
    return number if number >= 0 else errno.errorcode[ctypes.get_errno()]


def opened(path, flags, **options):
    fd = os.open(path, flags, 0o600, **options)
    try:
        dead = not os.fstat(fd).st_nlink
        return status(os.fstat(fd)), listed(fd) if dead else 0, path != "." or os.read(fd, 1)
    finally:
        os.close(fd)


def paths(at):
    """Calls with paths from the directory, which is the working directory or a descriptor's."""
    for path in (".", "./", "./.", "..", "../", "./..", "../other", "../missing", "../.", "x/..", "../gone/x", "x",
                 "./x"):
        show("stat", lambda path: status(os.stat(path, **at)), path)
        show("lstat", lambda path: status(os.stat(path, follow_symlinks=False, **at)), path)
        show("access", lambda path: os.access(path, os.W_OK, **at), path)
    for path in (".", "./", "..", "../other", "x", "./x"):
        for flags in (0, os.O_RDWR, CREATE, CREATE | os.O_EXCL, os.O_DIRECTORY, os.O_PATH, os.O_TRUNC, os.O_NOFOLLOW):
            show("open", lambda path, flags: opened(path, flags, **at), path, flags)
    both = {"src_dir_fd": at["dir_fd"], "dst_dir_fd": at["dir_fd"]} if at else {}
    for path in (".", "./", "x", "..", "../other", "./x"):
        for call in os.mkdir, os.unlink, os.mkfifo, os.readlink:
            show(call.__name__, call, path, **at)
        show("symlink", os.symlink, "t", path, **at)
        show("link", os.link, "../f", path, **both)
        show("rename", os.rename, "../f", path, **both)
        if path != "../other":
            show("rmdir", os.rmdir, path, **at)
            show("rename", os.rename, path, "y", **both)
    show("rename", os.rename, "../f", "../f2", **both)
    show("rename", os.rename, "../f2", "../f", **both)
    for call, values in ((os.chmod, (0o711,)), (os.chown, (3, 4)), (os.utime, ((5, 6),))):
        show(call.__name__, call, ".", *values, **at)
        show("stat", lambda path: (*status(os.stat(path, **at)), os.stat(path, **at).st_mtime > 6), ".")


def working_directory():
    paths({})
    show("getcwd", os.getcwd)
    show("listdir", os.listdir, ".")
    show("truncate", os.truncate, ".", 3)
    show("statvfs", lambda path: os.statvfs(path) and 1, ".")
    show("listxattr", lambda path: sorted(os.listxattr(path)), ".")
    show("getxattr", os.getxattr, ".", "user.a")
    for program in ".", "./x", "x":
        show("execv", os.execv, program, [program])
    for script in ("ls -a; echo $?", "ls ..; echo $?", "cd .; ls", "cd ..; basename $(/bin/pwd)", "stat -c %h .",
                   "touch x 2>/dev/null; echo $?", "find .; echo $?", "cp ../f x 2>/dev/null; echo $?", "cp ../f ../g",
                   "mkdir -p a/b 2>/dev/null; echo $?", "cd ../other; basename $(/bin/pwd)", "rm -rf x ../g; ls .."):
        done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, stdin=subprocess.DEVNULL,
                              timeout=30)
        print(script, done.stdout)


def descriptor(fd):
    paths({"dir_fd": fd})
    look = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_PATH
    show("getdents", lambda: listed(fd))
    show("fstat", lambda: status(os.fstat(fd)))
    for call, values in ((os.fchmod, (0o750,)), (os.fchown, (1, 2)), (os.utime, ((7, 8),)), (os.fsync, ()),
                         (os.fdatasync, ()), (attributes, ()), (os.getxattr, ("user.a",)), (os.lseek, (0, 0)),
                         (os.setxattr, ("user.b", b"new")), (os.setxattr, ("user.b", b"newer", os.XATTR_CREATE)),
                         (os.setxattr, ("user.b", b"newer", os.XATTR_REPLACE)), (attributes, ()),
                         (os.getxattr, ("user.b",)), (os.removexattr, ("user.a",)), (os.removexattr, ("user.a",)),
                         (os.getxattr, ("user.a",)), (attributes, ()),
                         (os.read, (1,)), (os.ftruncate, (1,)), (fcntl.flock, (fcntl.LOCK_EX,))):
        show(call.__name__, lambda call=call, values=values: call(fd, *values))
    show("fstat", lambda: status(os.fstat(fd)))
    show("listdir", lambda: os.listdir(fd))
    show("statvfs", lambda: os.fstatvfs(fd) and 1)
    show("stat link", lambda: status(os.stat(f"/proc/self/fd/{fd}")))
    for rest in "/", "/.", "/./", "/..", "/../other", "/x", "/./x", "/../missing":
        for name in f"/proc/self/fd/{fd}", "/proc/self/cwd":
            path = name + rest
            shown = path.replace(str(fd), "N")
            show(shown, lambda path=path: status(os.stat(path)))
            if rest != "/..":
                show(shown, lambda path=path: os.listdir(path))
            show(shown, lambda path=path: os.close(os.open(path, os.O_RDONLY)))
            if not rest.endswith("/"):
                show(shown, lambda path=path: os.mkdir(path))
    show("open link", lambda: look or os.close(os.open(f"/proc/self/fd/{fd}", 0)))


def remove(how):
    """``gone``, where this process is, goes away.  Returns a descriptor of it."""
    fd = os.open(".", os.O_PATH if how == "path" else os.O_RDONLY)
    if how == "child":
        subprocess.run(["rmdir", TOP + "/gone"], check=True, timeout=30)
    elif how == "elsewhere":
        print("remove", flush=True)
        sys.stdin.readline()
    elif how == "replaced":
        os.mkdir("../new")
        os.rename("../new", "../gone")
    else:
        os.rmdir("../gone")
    if how == "again":
        os.mkdir("../gone", 0o700)
        open("../gone/x", "w").close()
    return fd


def main():
    how = sys.argv[2]
    os.umask(0o22)
    os.chdir(TOP)
    os.mkdir("gone", 0o755)
    os.setxattr("gone", "user.a", b"old")
    os.mkdir("other")
    open("f", "w").close()
    os.chdir("gone")
    fd = remove(how)
    if how == "user":
        os.chmod(TOP, 0o755)
        os.setresuid(65534, 65534, 65534)
    working_directory()
    descriptor(fd)
    show("away", os.chdir, "..")
    show("getcwd", lambda: os.path.basename(os.getcwd()) == os.path.basename(TOP))
    show("back", lambda: os.fchdir(fd))
    show("stat", lambda: status(os.stat(".")))
    show("stay", os.chdir, ".")
    show("down", os.chdir, "x")
    child = os.fork()
    if not child:
        show("child", lambda: status(os.stat(".")))
        show("child", lambda: status(os.fstat(fd)))
        sys.stdout.flush()
        os._exit(0)
    os.waitpid(child, 0)
    show("other", os.chdir, "../other")
    show("getcwd", lambda: os.path.basename(os.getcwd()))
    show("dup", lambda: status(os.fstat(os.dup(fd))))
    print(sorted(os.listdir(TOP)))


if __name__ == "__main__":
    main()
