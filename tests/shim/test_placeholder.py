# SPDX-License-Identifier: Apache-2.0
"""No call on a descriptor of ours ends in the kernel's placeholder for it with a false success: every call that takes a
descriptor is made on one of ours and on a file of this node, and what is not the same is listed here with its reason.
"""
import errno
import json
import os
import re
import socket
import subprocess

import pytest
from support import TIMEOUT_S

from pymadfs import ops

CWD, CREATE = -100, os.O_RDWR | os.O_CREAT
NAMES = {**errno.errorcode, errno.EOPNOTSUPP: "EOPNOTSUPP"}
F = {"NOTIFY": 1026, "SETLEASE": 1024, "GETLEASE": 1025, "ADD_SEALS": 1033, "GET_SEALS": 1034, "SETPIPE_SZ": 1031,
     "GETPIPE_SZ": 1032, "GET_RW_HINT": 1035, "SET_RW_HINT": 1036, "GET_FILE_RW_HINT": 1037, "SET_FILE_RW_HINT": 1038,
     "SETOWN": 8, "GETOWN": 9, "SETSIG": 10, "GETSIG": 11, "CANCELLK": 1029, "CREATED_QUERY": 1028, "unknown": 4711}
IO = {"FICLONE": 0x40049409, "FICLONERANGE": 0x4020940D, "FIDEDUPERANGE": 0xC0189436, "FS_IOC_FIEMAP": 0xC020660B,
      "FS_IOC_GETFLAGS": 0x80086601, "FS_IOC_SETFLAGS": 0x40086602, "FS_IOC_FSGETXATTR": 0x801C581F, "FIGETBSZ": 2,
      "FIBMAP": 1, "FIFREEZE": 0xC0045877, "FITRIM": 0xC0185879, "TCGETS": 0x5401, "TIOCGWINSZ": 0x5413,
      "BLKGETSIZE64": 0x80081272, "FS_IOC_GETVERSION": 0x80087601, "FIOASYNC": 0x5452, "FIOQSIZE": 0x5460,
      "FS_IOC_ENABLE_VERITY": 0x40806685, "unknown": 0x12345678}

# Calls with the descriptor as $0 that answer the same on a file of ours as on any other.
SAME = [
    "epoll_ctl $3 1 $0 buf:12", "epoll_ctl $0 1 $3 buf:12", "epoll_wait $0 buf:12 1 0", "epoll_pwait $0 buf:12 1 0 0 8",
    "epoll_pwait2 $0 buf:12 1 0 0 8",
    "accept $0 0 0", "accept4 $0 0 0 0", "sendto $0 str:x 1 0 0 0", "recvfrom $0 buf:9 9 0 0 0", "shutdown $0 2",
    "listen $0 1", "getsockname $0 buf:99 word:99", "getpeername $0 buf:99 word:99", "setsockopt $0 1 2 word:1 4",
    "getsockopt $0 1 2 word:0 word:4", "sendmsg $0 buf:56 0", "recvmsg $0 buf:56 0", "bind $0 unix:/tmp/x 110",
    "connect $0 unix:/tmp/x 110", "sendmmsg $0 buf:64 1 0", "recvmmsg $0 buf:64 1 0 0",
    "tee $0 $1 9 0", "tee $2 $0 9 0", "splice $0 0 $0 0 9 0",
    "signalfd4 $0 buf:8 8 0", "signalfd $0 buf:8 8", "timerfd_settime $0 0 buf:32 0", "timerfd_gettime $0 buf:32",
    "inotify_rm_watch $0 1", "inotify_add_watch $0 /tmp 1", "fanotify_mark $0 1 1 -100 /tmp",
    "mq_timedsend $0 str:x 1 0 0", "mq_timedreceive $0 buf:9 9 0 0", "mq_notify $0 0", "mq_getsetattr $0 0 0",
    "pidfd_send_signal $0 0 0 0",
    "process_madvise $0 buf:16 1 4 0", "process_mrelease $0 0", "waitid 3 $0 buf:128 4 0",
    "perf_event_open buf:128 0 -1 $0 0", "fsconfig $0 6 0 0 0", "fsmount $0 0 0", "setns $0 0",
    "landlock_add_rule $0 1 buf:16 0", "landlock_restrict_self $0 0", "pidfd_getfd $0 0 0",
    "io_uring_enter $0 1 0 0 0 0", "io_uring_register $0 0 0 0",
    "finit_module $0 str: 0", "kexec_file_load $0 $0 0 str: 0", "swapoff /tmp",
    "openat $0 x 0", "mkdirat $0 x 0755", "unlinkat $0 x 0", "newfstatat $0 x buf:200 0", "symlinkat x $0 y",
    "renameat2 $0 x $0 y 0", "readlinkat $0 x buf:9 9", "faccessat $0 x 0", "fchmodat $0 x 0644",
    "utimensat $0 x 0 0", "fchdir $0", "getdents $0 buf:99 99", "getdents64 $0 buf:99 99", "execveat $0 x 0 0 0",
    "fchownat $0 x 0 0 0",
    "statx $0 x 0 0 buf:256", "mknodat $0 x 0100644 0",
    "preadv2 $0 buf:16 1 -2 0 0", "preadv2 $0 buf:16 1 0 0 0x8000", "pwritev2 $0 buf:16 1 0 0 0x8000",
    "lseek $0 0 77", "lseek $0 -1 0", "ftruncate $0 -1", "fallocate $0 0x7000 0 1", "pread64 $0 buf:9 9 -1",
    "pwrite64 $0 str:x 1 -1", "readv $0 buf:16 -1", "writev $0 buf:16 2000", "read $0 bad 0",
    "sendfile $0 $2 0 9", "vmsplice $0 word:0 0 0", "name_to_handle_at $0 x buf:8 buf:8 0",
    *(f"fcntl $0 {F[name]} 0" for name in ("ADD_SEALS", "GET_SEALS", "SETPIPE_SZ", "GETPIPE_SZ", "GETOWN", "GETSIG",
                                           "GETLEASE", "NOTIFY", "GET_RW_HINT", "SET_RW_HINT", "unknown")),
]

# The same, but for a reason: (call, ours, on a local file or None when that depends on the file system)
OTHERWISE = {
    "linkat $0 x $0 y 0": (("EPERM", "ENOTDIR"), "ENOTDIR"),
    "copy_file_range $0 0 $1 0 9 0": (0, None),  # between two file systems: not EXDEV, it is done
    "copy_file_range $2 0 $0 0 9 0": (0, None),
    "cachestat $0 buf:16 buf:40 0": ("EOPNOTSUPP", None),  # no page cache to tell of
    "quotactl_fd $0 0 0 0": ("ESRCH", None),  # no quotas
    "open_by_handle_at $0 buf:16 0": (("EINVAL", "EPERM", "ESTALE"), None),  # no handle was ever given
    f"name_to_handle_at $0 str: buf:136 buf:8 {0x1000}": ("EOPNOTSUPP", None),
    **{f"fcntl $0 {F[name]} 0": ("EINVAL", None)  # leases and notification: none
       for name in ("SETLEASE", "GET_FILE_RW_HINT", "SET_FILE_RW_HINT", "CREATED_QUERY")},
    "inotify_add_watch $4 /proc/self/fd/3 2": ("EOPNOTSUPP", 1),
}


@pytest.fixture
def real(on_mount, programs):
    """Makes system calls (sys.c) with the real client behind them; the last result."""
    def real(line):
        done = on_mount(programs / "sys", *f"unlinkat {CWD} /madfs/f 0 , ".split(), *renumbered(line).split())
        assert (done.returncode, done.stderr) == (0, ""), done
        return codes(json.loads(text) for text in done.stdout.splitlines())[-1]

    return real


def renumbered(line):
    """``line`` with all results one later."""
    return re.sub(r"\$(\d)", lambda match: f"${int(match[1]) + 1}", line)


def codes(results):
    return [NAMES[result["errno"]] if result["ret"] == -1 else result["ret"] for result in results]


def prepare(path):
    """$0 the file, $1 and $2 files in memory, $3 an epoll, $4 an inotify descriptor."""
    return (f"openat {CWD} {path} {CREATE} 0644 , memfd_create x 0 , memfd_create y 0 , epoll_create1 0 , "
            "inotify_init1 0 , ")


@pytest.mark.parametrize("call", SAME)
def test_same_as_on_a_local_file(real, system, tmp_path, call):
    ours = real(prepare("/madfs/f") + call)
    local = codes(system(prepare(tmp_path / "f") + call, shim=False))[-1]
    if local == "ENOSYS":
        pytest.skip(f"this kernel has no {call.split()[0]}")
    assert ours == local


@pytest.mark.parametrize(("call", "answers"), OTHERWISE.items())
def test_not_the_same_for_a_reason(real, system, tmp_path, call, answers):
    ours = real(prepare("/madfs/f") + call)
    allowed = answers[0] if isinstance(answers[0], tuple) else (answers[0],)
    assert ours in allowed
    if answers[1] is not None:
        assert codes(system(prepare(tmp_path / "f") + call, shim=False))[-1] == answers[1]


@pytest.mark.parametrize("name", IO)
def test_requests_of_ioctl(real, name):
    assert real(prepare("/madfs/f") + f"ioctl $0 {IO[name]} buf:256") in ("ENOTTY", "EINVAL", "EOPNOTSUPP")


def test_cloning_between_ours_and_the_kernels(system, tmp_path):
    """ioctl(theirs, FICLONE, ours) is a call on their descriptor: the kernel says that it cannot."""
    results = codes(system(
        f"openat {CWD} /madfs/f {CREATE} 0644 , write $0 str:text 4 , openat {CWD} {tmp_path}/g {CREATE} 0644 "
        f", ioctl $2 {IO['FICLONE']} $0 , lseek $2 0 2"))
    assert results[3] in ("EXDEV", "EOPNOTSUPP", "ENOTTY", "EINVAL", "EBADF") and results[4] == 0


def test_every_row_of_the_kernels_is_tried():
    tried = {call.split()[0] for call in [*SAME, *OTHERWISE]}
    untried = {name for name, row in ops.SYSCALLS.items() if row.kernel} - tried
    # No descriptor of ours can be named in a way that matters, or test_system_calls.py has them.
    assert untried <= {"poll", "ppoll", "select", "pselect6", "bpf", "kcmp", "sync"}


# --- in other ways --------------------------------------------------------------------------------------------------


def test_a_process_without_the_preload_gets_nothing_silently(run, tmp_path):
    """Its reads see an empty file; what would lose data fails: write, truncate, and mapping for writing."""
    done = run("python3", "-c", """
import os, subprocess, sys
fd = os.open('/madfs/f', os.O_RDWR | os.O_CREAT)
os.write(fd, b'text')
code = '''
import errno, mmap, os
def name(call, *a):
    try: return call(*a)
    except OSError as e: return errno.errorcode[e.errno]
print(name(os.read, {0}, 9), name(os.write, {0}, b"x"), name(os.ftruncate, {0}, 0), name(os.fsync, {0}),
      name(mmap.mmap, {0}, 4096), name(os.getcwd) != "/madfs")
'''.format(fd)
print(subprocess.run([sys.executable, '-c', code], pass_fds=[fd], env={'MADFS_PRELOAD': '0'}, capture_output=True,
                     text=True).stdout, end='')
print(os.pread(fd, 9, 0))
""")
    assert done.stdout == "b'' EBADF EINVAL None EACCES True\nb'text'\n", done


def test_descriptors_sent_to_a_process_without_the_preload(variables, tmp_path):
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        code = f"""
import os, socket
fd = os.open('/madfs/f', os.O_RDWR | os.O_CREAT)
os.write(fd, b'text')
s = socket.socket(socket.AF_UNIX); s.connect({str(path)!r})
socket.send_fds(s, [b'x'], [fd]); print(s.recv(9).decode(), os.pread(fd, 9, 0))
"""
        child = subprocess.Popen(["python3", "-c", code], env={**os.environ, **variables},
                                 stdout=subprocess.PIPE, text=True)
        try:
            listener.settimeout(TIMEOUT_S)
            connection, _ = listener.accept()
            with connection:
                _, (fd,), _, _ = socket.recv_fds(connection, 9, 1)
                assert os.read(fd, 9) == b""
                with pytest.raises(OSError) as wrong:
                    os.write(fd, b"x")
                assert wrong.value.errno == errno.EBADF
                os.close(fd)
                connection.send(b"done")
            assert child.communicate(timeout=TIMEOUT_S)[0] == "done b'text'\n"
        finally:
            child.kill()
            child.wait()
            child.stdout.close()


def test_a_mapping_is_never_of_the_placeholder(run):
    """It would be the table of open files."""
    done = run("python3", "-c", """
import mmap, os
fd = os.open('/madfs/f', os.O_RDWR | os.O_CREAT)
os.write(fd, b'text')
for flags, prot in ((mmap.MAP_PRIVATE, mmap.PROT_READ), (mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE),
                    (mmap.MAP_SHARED, mmap.PROT_READ), (mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)):
    try: print(mmap.mmap(fd, 4, flags=flags, prot=prot)[:4])
    except OSError as e: print(e.errno)
print(sum('memfd:madfs' in line and ' r' in line and 's ' not in line[:60] for line in open('/proc/self/maps')))
""")
    assert done.returncode == 0, done.stderr
    *answers, private = done.stdout.split("\n")[:-1]
    assert all(answer in ("b'text'", str(errno.ENODEV), str(errno.ENOSYS)) for answer in answers), done.stdout
    assert private == "0", "the table of open files is mapped as if it were the file"


def test_kcmp_tells_openings_apart(system):
    results = system(f"openat {CWD} /madfs/f {CREATE} 0644 , openat {CWD} /madfs/f {CREATE} 0644 , dup $0 , getpid")
    pid = results[-1]["ret"]
    assert pid > 0
    done = system(f"openat {CWD} /madfs/f {CREATE} 0644 , openat {CWD} /madfs/f {CREATE} 0644 , dup $0 , getpid "
                  ", kcmp $3 $3 0 $0 $2 , kcmp $3 $3 0 $0 $1")
    if done[4]["ret"] == -1:
        pytest.skip("kcmp is not allowed here")
    assert done[4]["ret"] == 0 and done[5]["ret"] in (1, 2)
