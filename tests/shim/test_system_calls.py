# SPDX-License-Identifier: Apache-2.0
"""One system call after the other: what is ours, what is the kernel's, and with which errno."""
import errno
import os

import pytest

CWD, CREATE, RDONLY = -100, os.O_RDWR | os.O_CREAT, 0
EMPTY_PATH = 0x1000
NAMES = {**errno.errorcode, errno.EOPNOTSUPP: "EOPNOTSUPP"}


def codes(results):
    """``[0, 3, "ENOENT"]``"""
    return [NAMES[result["errno"]] if result["ret"] == -1 else result["ret"] for result in results]


def test_write_and_read_back(system):
    results = system(f"openat {CWD} /madfs/f {CREATE} 0644 , write $0 str:text 4 , lseek $0 1 0 "
                     f", read $0 buf:10 10 , close $0 "
                     ", close $0")
    assert codes(results) == [3, 4, 1, 3, 0, "EBADF"] and results[3]["data"] == "ext"


@pytest.mark.parametrize(("path", "ours"), [
    ("/madfs", True), ("/madfs/", True), ("/madfs/.", True), ("//madfs", True), ("/./madfs", True),
    ("/tmp/../madfs", True),
    ("/madfs//", True), ("/../madfs", True), ("/tmp/..//./madfs/.", True),
    ("/madfs2", False), ("/madf", False), ("/madfsx/../nonexistent", False), ("/tmp/madfs", False), ("/.madfs", False)])
def test_which_paths_are_ours(system, path, ours):
    assert codes(system(f"newfstatat {CWD} {path} buf:200 0")) == [0 if ours else "ENOENT"]


def test_relative_paths(system, tmp_path):
    (tmp_path / "host").write_text("host")
    up = "../" * (len(tmp_path.parts) - 1)
    assert codes(system(f"faccessat {CWD} {up}madfs 0 , faccessat {CWD} {up}nothing 0 , faccessat {CWD} host 0",
                        cwd=tmp_path)) == [0, "ENOENT", 0]
    assert codes(system(f"faccessat {CWD} madfs 0 , faccessat {CWD} ./madfs 0", cwd="/")) == [0, 0]
    assert codes(system(f"openat {CWD} / {RDONLY} , faccessat $0 madfs 0 , faccessat $0 tmp 0")) == [3, 0, 0]


def test_directory_descriptors(system):
    assert codes(system(
        f"mkdirat {CWD} /madfs/d 0755 , openat {CWD} /madfs/d {os.O_RDONLY | os.O_DIRECTORY} "
        f", openat $1 f {CREATE} 0644 "
        f", faccessat {CWD} /madfs/d/f 0 , faccessat $1 f 0 , faccessat $1 none 0 , faccessat $1 /tmp 0 "
        f", unlinkat $1 f 0"
    )) == [0, 3, 4, 0, 0, "ENOENT", 0, 0]


def test_leaving_the_mount(system, tmp_path):
    (tmp_path / "f").write_text("host")
    results = system(f"openat {CWD} /madfs/..{tmp_path}/f {RDONLY} , read $0 buf:9 9 , chdir /madfs , getcwd buf:99 99 "
                     f", openat {CWD} ..{tmp_path}/f {RDONLY} , read $4 buf:9 9 , chdir ..{tmp_path} "
                     f", getcwd buf:4096 4096")
    assert codes(results)[:7] == [3, 4, 0, 7, 4, 4, 0]
    assert results[1]["data"] == results[5]["data"] == "host"
    assert results[7]["data"] == f"{tmp_path}\\u0000" or results[7]["data"].rstrip("\0") == str(tmp_path)


def test_across_the_border(system, tmp_path):
    (tmp_path / "f").write_text("host")
    assert codes(system(
        f"openat {CWD} /madfs/f {CREATE} 0644 , renameat2 {CWD} /madfs/f {CWD} {tmp_path}/g 0 "
        f", renameat2 {CWD} {tmp_path}/f {CWD} /madfs/g 0 , linkat {CWD} /madfs/f {CWD} {tmp_path}/g 0 "
        f", linkat {CWD} /madfs/f {CWD} /madfs/g 0 , renameat2 {CWD} {tmp_path}/f {CWD} {tmp_path}/h 0"
    )) == [3, "EXDEV", "EXDEV", "EXDEV", "EPERM", 0]


def test_empty_paths(system, tmp_path):
    assert codes(system(
        f"openat {CWD} /madfs/f {CREATE} 0644 , newfstatat $0 str: buf:200 {EMPTY_PATH} , newfstatat $0 str: buf:200 0 "
        f", newfstatat $0 null buf:200 {EMPTY_PATH} , newfstatat $0 null buf:200 0 "
        f", statx $0 str: {EMPTY_PATH} 2047 buf:256 "
        f", chdir /madfs , newfstatat {CWD} str: buf:200 {EMPTY_PATH} , newfstatat {CWD} str: buf:200 0 "
        f", openat {CWD} str: 0"
    )) == [3, 0, "ENOENT", 0, "EFAULT", 0, 0, 0, "ENOENT", "ENOENT"]


def test_bad_pointers_and_long_paths(system):
    long = "/madfs/" + "x" * 4096
    assert codes(system(f"openat {CWD} bad 0 , openat {CWD} null 0 , chdir bad , symlinkat bad {CWD} /madfs/l "
                        f", openat {CWD} {long} 0 , openat {CWD} {'y' * 4096} 0 , chdir /madfs "
                        f", openat {CWD} {'y' * 4096} 0")
                 ) == ["EFAULT", "EFAULT", "EFAULT", "EFAULT", "ENAMETOOLONG", "ENAMETOOLONG", 0, "ENAMETOOLONG"]


@pytest.mark.parametrize("bad", ["bad", "hole", "noread", "-1", "0x8000000000000000", "0x7fffffffefff", "guard:0"])
def test_addresses_that_are_not_there(system, bad):
    """The kernel's answer, whether the call turns out to be ours or not."""
    mine = f"openat {CWD} /madfs/f {CREATE} 0755 , write $0 str:text 4 , lseek $0 0 0"
    assert set(codes(system(
        f"{mine} , openat {CWD} {bad} 0 , faccessat {CWD} {bad} 0 , chdir {bad} , openat $0 {bad} 0 "
        f", renameat2 {CWD} /madfs/f {CWD} {bad} 0 , renameat2 {CWD} {bad} {CWD} /madfs/f 0 "
        f", symlinkat {bad} {CWD} /madfs/l , newfstatat $0 {bad} buf:200 {EMPTY_PATH} , read $0 {bad} 9 "
        f", write $0 {bad} 9 , pread64 $0 {bad} 9 0 , pwrite64 $0 {bad} 9 0 , execve {bad} 0 0 "
        f", execve /madfs/f {bad} 0 , execve /madfs/f 0 {bad} , execve /bin/true {bad} 0 "
        f", readlinkat {CWD} {bad} buf:9 9 , readlinkat {CWD} /proc/self/fd/3 {bad} 9 , rt_sigaction 11 {bad} 0 8 "
        f", rt_sigaction 7 0 {bad} 8")[3:])
    ) == {"EFAULT"}


def test_directory_and_bad_address(system):
    assert codes(system(f"chdir /madfs , getcwd hole 100 , openat {CWD} hole 0 , getcwd guard:7 99 , getcwd guard:6 99")
                 ) == [0, "EFAULT", "EFAULT", 7, "EFAULT"]


def test_part_of_a_buffer(system):
    """What is there is used; reading does not write to memory that is read-only."""
    assert codes(system(
        f"openat {CWD} /madfs/f {CREATE} 0644 , write $0 guard:5 9 , pread64 $0 guard:3 9 0 , pread64 $0 readonly 9 0 "
        f", pwrite64 $0 readonly 9 0 , pread64 $0 buf:9 9 100 , read $0 bad 0 , pread64 $0 bad 0 0")
    ) == [3, 5, 3, "EFAULT", 9, 0, 0, 0]


@pytest.mark.parametrize("path", ["/madfs", "/madfs/.", "//madfs/", "/tmp/../madfs", "/madfs/../madfs"])
def test_paths_at_the_end_of_a_page(system, path):
    results = system(f"chdir / , faccessat {CWD} tail:{path} 0 , faccessat {CWD} tail:{path[1:]} 0 "
                     f", faccessat {CWD} tail:{path}x 0 , faccessat {CWD} tail:.. 0 , faccessat {CWD} tail: 0")
    assert codes(results) == [0, 0, 0, "ENOENT", 0, "ENOENT"]


@pytest.mark.parametrize("before", range(18))
def test_dots_wherever_they_stand(system, before):
    """The search for "/." and "//" looks at eight bytes at once."""
    path = "/" + "x" * before
    assert codes(system(f"faccessat {CWD} {path}/../madfs 0 , faccessat {CWD} {path}//..//madfs 0 "
                        f", faccessat {CWD} /{path[1:]}.x/madfs 0 , faccessat {CWD} {path}/.x/../../madfs/ 0 "
                        f", faccessat {CWD} {path}/madfs 0 , faccessat {CWD} /./proc/{path[1:]} 0"
                        )) == [0, 0, "ENOENT", 0, "ENOENT" if before else 0, "ENOENT" if before else 0]


def test_longest_path(system):
    path = "/madfs/" + "/".join(["x" * 200] * 20)
    assert len(path) < 4096
    assert codes(system(f"openat {CWD} {path} 0 , mkdirat {CWD} /madfs/d 0755")) == ["ENOENT", 0]


def test_long_names_of_open_files(system):
    """Paths that do not fit in the slot are kept behind it."""
    name = "/madfs/" + "/".join(["."] * 300) + "/f"
    results = system(f"openat {CWD} {name} {CREATE} 0644 , readlinkat {CWD} /proc/self/fd/3 buf:4096 4096 , close $0")
    assert codes(results) == [3, len(name), 0] and results[1]["data"] == name


def test_calls_that_are_refused(system):
    assert codes(system(
        f"openat {CWD} /madfs/f {CREATE} 0644 , chroot /madfs , inotify_add_watch 5 /madfs 1 "
        f", splice $0 0 $0 0 1 0 , execve /madfs/f 0 0 , execveat $0 str: 0 0 {EMPTY_PATH}"
    )) == [3, "EINVAL", "EOPNOTSUPP", "EINVAL", "EACCES", "EACCES"]


def test_mounts_and_new_attributes(system):
    assert codes(system(
        f"openat {CWD} /madfs/f {CREATE} 0644 , mount x /madfs tmpfs 0 0 , pivot_root /madfs /madfs , swapoff /madfs/f "
        f", open_tree {CWD} /madfs 0 , move_mount {CWD} /madfs {CWD} /madfs 0 "
        f", file_getattr {CWD} /madfs/f buf:99 99 0 "
        f", cachestat $0 bad bad 0"
    )) == [3, *["EINVAL"] * 5, *["EOPNOTSUPP"] * 2]


def test_more_of_what_is_refused(system):
    assert codes(system(
        f"open_tree_attr {CWD} /madfs 0 buf:32 32 , mount_setattr {CWD} /madfs 0 buf:32 32 , fspick {CWD} /madfs 0 "
        f", quotactl 0 /madfs 0 buf:9 , uselib /madfs , file_setattr {CWD} /madfs buf:32 32 0 "
        f", quotactl 0 /madfs/x 0 buf:9 , uselib /madfs/x , fspick {CWD} /madfs/x 0")
    ) == [*["EINVAL"] * 3, "ENOTBLK", "ENOEXEC", "EOPNOTSUPP", *["ENOENT"] * 3]


def test_rings_and_polls(system):
    assert codes(system(f"openat {CWD} /madfs/f {CREATE} 0644 , io_uring_setup 8 buf:120 , epoll_create1 0 "
                        f", epoll_ctl $2 1 $0 buf:12")) == [3, "ENOSYS", 4, "EPERM"]


def test_sockets_with_a_path(system, tmp_path):
    results = system(f"socket 1 1 0 , bind $0 unix:/madfs/s 110 , connect $0 unix:/madfs/s 110 , chdir /madfs "
                     f", bind $0 unix:s 110 , chdir {tmp_path} , bind $0 unix:s 110")
    assert codes(results) == [3, "EOPNOTSUPP", "ECONNREFUSED", 0, "EOPNOTSUPP", 0, 0]
    assert (tmp_path / "s").is_socket()


def test_copies_between_files(system, tmp_path):
    (tmp_path / "in").write_text("0123456789")
    results = system(
        f"openat {CWD} /madfs/f {CREATE} 0644 , openat {CWD} {tmp_path}/in 0 "
        f", openat {CWD} {tmp_path}/out {CREATE} 0644 , sendfile $0 $1 0 4 , copy_file_range $1 0 $0 0 100 0 "
        f", copy_file_range $1 0 $0 0 100 0 , lseek $0 2 0 , sendfile $2 $0 0 3 , lseek $0 0 1 "
        f", copy_file_range $0 word:1 $2 word:5 4 0 , sendfile $2 $0 word:8 100 "
        f", copy_file_range $0 word:0 $0 word:5 9 0 , copy_file_range $0 word:0 $0 word:5 5 0 "
        f", sendfile $0 $0 word:-1 1 , copy_file_range $0 0 $0 0 1 7 , sendfile $0 $1 bad 1 "
        f", sendfile 77 $0 word:0 1 , sendfile $0 77 0 1 , pread64 $0 buf:20 20 0 , sendfile $1 $0 word:0 1")
    assert codes(results) == [3, 4, 5, 4, 6, 0, 2, 3, 5, 4, 2, "EINVAL", 5, "EINVAL", "EINVAL", "EFAULT", "EBADF",
                              "EBADF", 10, "EBADF"]
    assert (tmp_path / "out").read_bytes() == b"234891234"
    assert results[18]["data"] == "0123401234"


def test_fcntl(system):
    appends = os.O_APPEND | os.O_RDWR
    results = system(f"openat {CWD} /madfs/f {appends | os.O_CREAT | os.O_CLOEXEC} 0644 , fcntl $0 1 , fcntl $0 2 0 "
                     f", fcntl $0 1 , fcntl $0 3 , fcntl $0 4 {os.O_NONBLOCK} , fcntl $0 3 , fcntl $0 1024 0 "
                     f", fcntl $0 1032 "
                     ", fcntl $0 37 buf:64 , fcntl $0 1030 100 , fcntl 100 1 , fcntl $0 6 buf:64")
    assert codes(results) == [3, 1, 0, 0, appends, 0, os.O_RDWR | os.O_NONBLOCK, "EINVAL", "EBADF", 0, 100, 1, 0]


def test_seeks(system):
    big = (1 << 63) - 1
    assert codes(system(f"openat {CWD} /madfs/f {CREATE} 0644 , lseek $0 10 0 , lseek $0 5 1 , lseek $0 -16 1 "
                        f", lseek $0 -1 0 "
                        f", lseek $0 {big} 1 , lseek $0 0 1 , lseek $0 0 2 , lseek $0 0 9 "
                        f", pwrite64 $0 str:abc 3 4 , lseek $0 -1 2"
                        )) == [3, 10, 15, "EINVAL", "EINVAL", "EINVAL", 15, 0, "EINVAL", 3, 6]


def test_access_modes(system):
    assert codes(system(f"openat {CWD} /madfs/f {os.O_WRONLY | os.O_CREAT} 0644 , read $0 buf:9 9 "
                        f", openat {CWD} /madfs/f 0 0 "
                        ", write $2 str:x 1 , ftruncate $0 5 , read $2 buf:9 9")) == [3, "EBADF", 4, "EBADF", 0, 5]


def test_umask(system):
    results = system(f"umask 027 , openat {CWD} /madfs/f {CREATE} 0666 , newfstatat {CWD} /madfs/f buf:200 0")
    assert codes(results)[1:] == [3, 0]


def test_getcwd_room(system):
    assert codes(system("chdir /madfs , getcwd buf:6 6 , getcwd buf:7 7 "
                        ", getcwd bad 100")) == [0, "ERANGE", 7, "EFAULT"]


def test_another_mount(system):
    environment = {"MADFS_MOUNT": "/some/where//"}
    assert codes(system(f"faccessat {CWD} /some/where 0 , faccessat {CWD} /madfs 0 , faccessat {CWD} where 0",
                        environment={"MADFS_MOUNT": "/some/where"})) == [0, "ENOENT", "ENOENT"]
    assert codes(system(f"faccessat {CWD} /some/where/ 0", environment=environment)) == [0]


def test_kernel_results_are_those_without_the_shim(system, tmp_path):
    (tmp_path / "f").write_text("text")
    line = (f"openat {CWD} f {os.O_RDWR} , read $0 buf:9 9 , lseek $0 0 2 , dup $0 , dup2 $0 9 , dup3 $0 9 0 "
            f", dup3 $0 $0 0 "
            f", fcntl 9 1 , close_range 9 20 0 , close 9 , newfstatat $0 str: buf:200 {EMPTY_PATH} "
            f", faccessat {CWD} none 0 "
            ", dup2 $0 $0 , dup2 77 77 , close 77 , fcntl 77 3 , getcwd buf:1 1 , chdir none , fchdir $0 "
            ", close_range 9 3 0 "
            ", readlinkat -100 /proc/self/fd/77 buf:9 9 , openat 77 x 0 , openat 77 ../x 0")
    assert codes(system(line, cwd=tmp_path)) == codes(system(line, cwd=tmp_path, shim=False))
