# SPDX-License-Identifier: Apache-2.0
"""One raw system call after the other, on the mount and on a local directory: results and errno are the same.

The lines are read by ``tests/shim/sys.c``; ``D`` stands for the directory.  Where MadFS refuses a call, the errno is
that of its row in ``pymadfs/ops.py``.
"""
import errno
import json
import os
import platform
import subprocess

import pytest
from support import ROOT, TIMEOUT_S

from pymadfs import ops

CWD, RW = -100, os.O_RDWR | os.O_CREAT
OPEN = f"openat {CWD} D/f {RW} 0644 , write $0 str:0123456789 10"
NOFOLLOW, EMPTY_PATH = 0x100, 0x1000
FIONREAD, FIOCLEX, FIONCLEX, TCGETS, FICLONE = 0x541B, 0x5451, 0x5450, 0x5401, 0x40049409

SAME = {
    "open": f"open D/f {RW} 0644 , open D/f {RW | os.O_EXCL} 0644 , open D/none 0 , open D {os.O_WRONLY} , open D/f/ 0",
    "creat": "creat D/f 0600 , write $0 str:x 1 , read $0 buf:9 9 , creat D 0600 , creat D/no/f 0600",
    "openat2": f"openat2 {CWD} D/none buf:24 24 , openat2 {CWD} D/none buf:24 8 , openat2 {CWD} D bad 24",
    "tee": f"{OPEN} , tee $0 $0 9 0 , vmsplice $0 null 0 0 , vmsplice $0 bad 1 0 , vmsplice $0 buf:16 1 0",
    "read_write": f"{OPEN} , lseek $0 0 0 , read $0 buf:4 4 , read $0 buf:99 99 , read $0 buf:9 9 , lseek $0 0 0 , "
                  "read $0 bad 5 , "
                  "write $0 bad 5 , read $0 buf:1 0 , write 77 str:x 1",
    "pread64": f"{OPEN} , pread64 $0 buf:4 4 3 , pread64 $0 buf:4 4 100 , pread64 $0 buf:4 4 -1 , lseek $0 0 1",
    "pwrite64": f"{OPEN} , pwrite64 $0 str:ab 2 20 , pwrite64 $0 str:ab 2 -1 , lseek $0 0 2 , pread64 $0 buf:22 22 0",
    "readv_writev": f"{OPEN} , readv $0 bad 1 , writev $0 bad 1 , readv $0 null 0 , writev $0 null 2000 , "
                    "writev $0 null -1",
    "preadv_pwritev": f"{OPEN} , preadv $0 null 0 0 , pwritev $0 null 0 0 , preadv $0 null 0 -1 , pwritev $0 bad 1 0",
    "preadv2_pwritev2": f"{OPEN} , preadv2 $0 null 0 0 0 0 , pwritev2 $0 null 0 0 0 0 , preadv2 $0 bad 1 0 0 0",
    "lseek": f"{OPEN} , lseek $0 -3 2 , lseek $0 -4 0 , lseek $0 2 1 , lseek $0 0 3 , lseek $0 0 4 , lseek $0 99 3",
    "ftruncate_truncate": f"{OPEN} , ftruncate $0 4 , lseek $0 0 2 , truncate D/f 8 , lseek $0 0 2 , ftruncate $0 -1 , "
                          "truncate D/none 0 , truncate D 0 , truncate D/f -1 , pread64 $0 buf:8 8 0",
    "sendfile": f"{OPEN} , open D/g {RW} 0644 , sendfile $2 $0 word:2 5 , sendfile $2 $0 null 5 , lseek $0 7 0 , "
                "sendfile $2 $0 null 9 , pread64 $2 buf:9 9 0 , sendfile $2 $0 word:-1 1 , sendfile $2 77 null 1 , "
                f"sendfile 77 $0 word:0 1 , sendfile $2 $0 bad 1 , open D/g {RW | os.O_APPEND} 0 , "
                "sendfile $12 $0 word:0 1 , lseek $0 0 1 , lseek $2 0 1",
    "copy_file_range": f"{OPEN} , open D/g {RW} 0644 , copy_file_range $0 word:1 $2 null 4 0 , lseek $0 3 0 , "
                       "copy_file_range $0 null $2 word:9 99 0 , copy_file_range $0 null $2 null 9 0 , "
                       "pread64 $2 buf:20 20 0 , copy_file_range $0 word:0 $0 word:2 5 0 , lseek $0 0 1 , "
                       "copy_file_range $0 word:0 $2 null 1 9 , copy_file_range $0 bad $2 null 1 0 , "
                       "copy_file_range 77 null $2 null 1 0 , lseek $2 0 1",
    "hints": f"{OPEN} , fcntl $0 1035 buf:8 , fcntl $0 1036 word:3 , open D/f 0 , fcntl $4 1035 buf:8 , "
             "fcntl $4 1036 word:6 , fcntl $4 1036 word:5 , fcntl $0 1035 buf:8 , fcntl $0 1036 word:0 , "
             "fcntl $4 1035 buf:8 , fcntl $0 1037 buf:8 , fcntl $0 1038 word:1 , "
             f"open D/f {os.O_PATH} , fcntl $12 1035 buf:8 , fcntl $0 17 buf:8",
    "addresses": f"{OPEN} , lseek $0 0 0 , read $0 hole 5 , read $0 guard:3 9 , write $0 noread 5 , open hole 0 , "
                 "open noread 0 , stat D/f hole , stat -1 buf:200 , pread64 $0 readonly 4 0 , rename D/f hole , "
                 "access tail:/nowhere 0 , getcwd hole 4096 , readv $0 hole 1 , pwrite64 $0 guard:2 5 0",
    "fallocate": f"{OPEN} , fallocate $0 0 5 100 , lseek $0 0 2 , fallocate $0 0 0 0 , fallocate $0 0 -1 5 , "
                 "fallocate 77 0 0 1",
    "fsync_fdatasync": f"{OPEN} , fsync $0 , fdatasync $0 , syncfs $0 , sync_file_range $0 0 0 0 , fsync 77 , "
                       "fdatasync 77",
    "advice": f"{OPEN} , fadvise64 $0 0 0 1 , readahead $0 0 10 , fadvise64 77 0 0 1",
    "getdents64": f"open D/sub/dir {os.O_DIRECTORY} , mkdir D/sub 0755 , open D/sub {os.O_DIRECTORY} , getdents64 $2 "
                  "bad 1000 , "
                  f"getdents64 $2 buf:5 5 , {OPEN} , getdents64 $5 buf:99 99",
    "getdents": f"mkdir D/sub 0755 , open D/sub {os.O_DIRECTORY} , getdents $1 buf:9 9 , getdents $1 bad 99 , "
                f"getdents $1 buf:99 99 , getdents $1 buf:99 99 , rmdir D/sub , lseek $1 0 0 , getdents $1 buf:99 99 , "
                f"{OPEN} , getdents $9 buf:99 99",
    "ioctl": f"{OPEN} , ioctl $0 {TCGETS} buf:64 , ioctl $0 {FIOCLEX} , fcntl $0 1 , ioctl $0 {FIONCLEX} , fcntl $0 1 "
             f", ioctl $0 {FICLONE} $0",
    "stats": f"{OPEN} , newfstatat {CWD} D/none buf:200 0 , stat D/none buf:200 , lstat D/f bad , fstat $0 bad , "
             f"fstat 77 buf:200 , statx {CWD} D/f 0 2047 bad , statx {CWD} D/none 0 2047 buf:256 , stat D/f/x buf:200",
    "access": f"{OPEN} , access D/f 0 , access D/none 0 , access D/f 1 , access D/f 9 , faccessat {CWD} D/f 4 , "
              f"faccessat2 {CWD} D/f 2 {NOFOLLOW} , faccessat2 $0 str: 0 {EMPTY_PATH} , faccessat2 {CWD} D/f 0 0x40000",
    "readlink": f"symlinkat target {CWD} D/l , readlink D/l buf:99 99 , readlink D/l buf:3 3 , readlinkat {CWD} "
                "D/l buf:9 0 , "
                "readlink D buf:9 9 , readlink D/none buf:9 9 , symlink x D/l , symlink str: D/m , lstat D/l buf:200",
    "statfs": f"{OPEN} , statfs D buf:200 , fstatfs $0 buf:200 , statfs D/none buf:200 , fstatfs 77 buf:200 , "
              "statfs D bad",
    "mkdir_rmdir": f"mkdirat {CWD} D/a 0755 , mkdir D/a 0755 , mkdir D/a/b 0755 , rmdir D/a , unlinkat {CWD} "
                   f"D/a/b {0x200} , "
                   f"unlinkat {CWD} D/a 0 , rmdir D/a , rmdir D/a , rmdir D/none/x , mkdir D/ 0755 , rmdir D/.",
    "mknod": f"mknodat {CWD} D/n {0o100644} 0 , mknod D/m {0o100600} 0 , mknod D/m {0o100600} 0 , mknod D/d "
             f"{0o040755} 0",
    "unlink": f"{OPEN} , unlink D/f , unlink D/f , unlink D , unlinkat {CWD} D/f 0 , pread64 $0 buf:99 99 0 , "
              "unlink D/x/",
    "rename": f"{OPEN} , rename D/f D/g , rename D/f D/h , rename D/g D/g , renameat {CWD} D/g {CWD} D/h , "
              f"renameat2 {CWD} D/h {CWD} D/i 1 , creat D/h 0644 , renameat2 {CWD} D/h {CWD} D/i 1 , "
              f"renameat2 {CWD} D/h {CWD} D/i 99 , rename D/h D/none/x , rename D/h D/i , pread64 $0 buf:9 9 0 , "
              "access D/h 0",
    "chmod": f"{OPEN} , chmod D/f 0600 , fchmod $0 0640 , fchmodat {CWD} D/f 0400 , chmod D/none 0 , fchmod 77 0 , "
             f"fchmodat {CWD} D/none 0",
    "chown": f"{OPEN} , chown D/f -1 -1 , lchown D/f -1 -1 , fchown $0 -1 -1 , fchownat {CWD} D/f -1 -1 {NOFOLLOW} , "
             f"fchownat $0 str: -1 -1 {EMPTY_PATH} , chown D/none 0 0 , fchown 77 0 0 , lchown D/none 0 0",
    "times": f"{OPEN} , utimensat {CWD} D/f null 0 , utimensat $0 null null 0 , utimes D/f null , utime D/f null , "
             f"futimesat {CWD} D/f null , utimensat {CWD} D/none null 0 , utimes D/none null , utime D/none null , "
             f"utimensat {CWD} D/f bad 0 , utimes D/f bad",
    "descriptors": f"{OPEN} , dup $0 , dup2 $0 50 , dup3 $0 51 {os.O_CLOEXEC} , fcntl 51 1 , dup3 $0 $0 0 , "
                   "lseek 50 3 0 , "
                   "read $2 buf:9 9 , close 50 , close 50 , close_range 51 60 0 , close 51 , close_range 9 "
                   "3 0 , dup 99",
    "directories": f"open D {os.O_DIRECTORY} , mkdirat $0 d 0755 , chdir D/d , openat {CWD} f {RW} 0644 , fchdir $0 , "
                   "access d/f 0 , access f 0 , chdir D/d/f , chdir D/none , fchdir $3 , chdir .. , getcwd buf:2 2",
    "umask": f"umask 077 , creat D/f 0666 , mkdir D/d 0777 , umask 022 , umask {0o1777} , umask 0",
}

REFUSED = {
    "finit_module": f"{OPEN} , finit_module $0 str: 0",
    "kexec_file_load": f"{OPEN} , kexec_file_load $0 $0 0 str: 0",
    "quotactl_fd": f"{OPEN} , quotactl_fd $0 0 0 0",
    "name_to_handle_at": f"{OPEN} , name_to_handle_at {CWD} D/f buf:99 buf:9 0",
    "inotify_add_watch": f"{OPEN} , inotify_add_watch 9 D/f 1",
    "fanotify_mark": f"{OPEN} , fanotify_mark 9 1 1 {CWD} D/f",
    "chroot": f"{OPEN} , chroot D",
    "umount2": f"{OPEN} , umount2 D 0",
    "swapon": f"{OPEN} , swapon D/f 0",
    "acct": f"{OPEN} , acct D/f",
    "mount": f"{OPEN} , mount x D tmpfs 0 0",
    "pivot_root": f"{OPEN} , pivot_root D D",
    "move_mount": f"{OPEN} , move_mount {CWD} D {CWD} D 0",
    "open_tree": f"{OPEN} , open_tree {CWD} D 0",
    "open_tree_attr": f"{OPEN} , open_tree_attr {CWD} D 0 buf:32 32",
    "mount_setattr": f"{OPEN} , mount_setattr {CWD} D 0 buf:32 32",
    "fspick": f"{OPEN} , fspick {CWD} D 0",
    "swapoff": f"{OPEN} , swapoff D/f",
    "quotactl": f"{OPEN} , quotactl 0 D/f 0 buf:99",
    "uselib": f"{OPEN} , uselib D/f",
    "file_getattr": f"{OPEN} , file_getattr {CWD} D/f buf:99 99 0",
    "file_setattr": f"{OPEN} , file_setattr {CWD} D/f buf:99 99 0",
    "cachestat": f"{OPEN} , cachestat $0 buf:16 buf:40 0",
}



@pytest.fixture(scope="session")
def program(tmp_path_factory):
    """The program that makes the calls."""
    path = tmp_path_factory.mktemp("calls") / "sys"
    subprocess.run(["gcc", "-std=gnu11", "-O2", "-o", path, ROOT / "tests" / "shim" / "sys.c"], check=True,
                   timeout=TIMEOUT_S)
    return str(path)


def results(program, line, directory, environment, shown=("read", "pread64", "readlink")):
    """What each call of ``line`` answered: the errno's name, or the result and the bytes read."""
    subprocess.run(["mkdir", directory], env=environment, check=True, timeout=TIMEOUT_S)
    words = [word.replace("D", directory, 1) if word == "D" or word.startswith("D/") else word for word in line.split()]
    done = subprocess.run([program, *words], env=environment, capture_output=True, text=True, timeout=TIMEOUT_S,
                          check=False)
    assert (done.returncode, done.stderr) == (0, "")
    names = [part.split()[0] for part in line.split(" , ")]
    found = []
    for name, text in zip(names, done.stdout.splitlines(), strict=True):
        answer = json.loads(text)
        code = errno.errorcode[answer["errno"]] if answer["ret"] == -1 else answer["ret"]
        found.append((name, code, answer.get("data") if name in shown else None))
    return found


@pytest.mark.parametrize("name", SAME)
def test_same_as_locally(runner, program, tmp_path, name):
    local = results(program, SAME[name], f"{tmp_path}/local", runner.plain)
    ours = results(program, SAME[name], f"{runner.mount}/call-{name}", runner.loaded)
    assert ours == local


@pytest.mark.parametrize("name", [name for name in REFUSED if ops.SYSCALLS[name].only in (None, platform.machine())])
def test_refused_with_the_errno_of_its_row(runner, program, name):
    expected = ops.SYSCALLS[name].refuse
    *_, (_, code, _) = results(program, REFUSED[name], f"{runner.mount}/refused-{name}", runner.loaded)
    assert code == errno.errorcode[getattr(errno, expected)]


def test_every_refused_call_is_here():
    assert {name for name, row in ops.SYSCALLS.items() if row.refuse} == set(REFUSED)
