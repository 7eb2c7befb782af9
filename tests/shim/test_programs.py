# SPDX-License-Identifier: Apache-2.0
"""Unmodified programs under the shim, with a runtime in plain C behind it."""
import os
import platform
import re
import shutil
import subprocess

import pytest
from support import ROOT, call

import pymadfs

COUNTS = re.compile(r"madfs: patched (\d+) of (\d+) system call sites in (\d+) objects; "
                    r"(\d+) never concern files, (\d+) left")


def test_every_site_is_rewritten(run):
    done = run("true", environment={"MADFS_DEBUG": "1"})
    patched, sites, objects, idle, left = map(int, COUNTS.fullmatch(done.stderr.strip()).groups())
    assert done.returncode == 0 and left == 0 and objects >= 2
    assert patched > 200 and patched + idle == sites


@pytest.mark.parametrize("name", ["cancel", "threads", "stacks", "vforks", "forks", "spawn", "spawn_open", "signals",
                                  "registers", "lowest", "closing", "limit", "lock_waits", "cancel_lock", "jumps",
                                  "alternate", "faults", "passing", "answers", "requests"])
def test_host(run, programs, name):
    done = run(programs / "host", name)
    assert (done.stdout, done.stderr, done.returncode) == ("ok\n", "", 0)


def test_destructors_run_when_a_waiting_call_is_cancelled(run, tmp_path):
    """The unwinder finds its way from a call of ours to the program's frames."""
    source = ROOT / "tests" / "shim" / "cancel.cc"
    subprocess.run(["g++", "-O2", "-o", tmp_path / "cancel", source, "-lpthread"], check=True)
    done = run(tmp_path / "cancel")
    assert (done.stdout, done.stderr, done.returncode) == ("10\n", "", 0)


@pytest.mark.parametrize("name", ["cancel"])
def test_host_without_the_mount(run, programs, name, tmp_path):
    assert run(programs / "host", name).stdout == "ok\n"
    assert not (tmp_path / "store").exists(), "the runtime was loaded although nobody touched the mount"


def test_redirections(bash):
    assert bash("""
        { echo a; echo b | cat; } > /madfs/f 2>&1
        cat < /madfs/f >> /madfs/g
        (echo c; exec cat /madfs/f) >> /madfs/g
        exec 5<> /madfs/h; echo five >&5; exec 5>&-
        cat /madfs/g - /madfs/h << END
here
END
        test -e /madfs/g && ! test -e /madfs/none && echo $(< /madfs/h)
    """) == "a\nb\nc\na\nb\nhere\nfive\nfive\n"


def test_offset_is_shared_with_children(bash):
    assert bash("""
        { echo 1; /bin/echo 2; (echo 3); bash -c 'echo 4; /bin/echo 5'; } > /madfs/f
        { dd bs=2 count=1 status=none; (dd bs=2 count=2 status=none); echo -; cat; } < /madfs/f
    """) == "1\n2\n3\n-\n4\n5\n"


def test_working_directory(bash, tmp_path):
    assert bash(f"""
        mkdir /madfs/d /madfs/d/e; cd /madfs/d; pwd; /bin/pwd
        echo x > y; cat /madfs/d/y ../d/./y; (cd e; /bin/pwd; cat ../y); cd ..; /bin/pwd
        cd ..; /bin/pwd; cat madfs/d/y; cd {tmp_path}; /bin/pwd; touch here; ls here
    """) == (f"/madfs/d\n/madfs/d\nx\nx\n/madfs/d/e\nx\n/madfs\n/\nx\n{tmp_path}\nhere\n")


def test_working_directory_in_the_mount_is_no_directory_of_the_kernel(run, programs, bash):
    """What slips past the shim, such as a program that is not preloaded, finds and creates nothing."""
    link = "/proc/self/cwd"
    seen = bash(f"cd /madfs; readlink {link}; env -u LD_PRELOAD MADFS_PRELOAD=0 readlink {link}").split()
    assert seen[0] == "/madfs" and not seen[1].startswith("/madfs")
    assert not [name for name in os.listdir("/tmp") if name.startswith(".madfs-cwd-")]


def test_executed_programs_keep_everything(bash):
    """Even when somebody clears the environment or sets close-on-exec for all descriptors."""
    assert bash("""
        mkdir /madfs/d; cd /madfs/d; exec 3> /madfs/d/f
        env -i FAKE_STORE=$FAKE_STORE /bin/sh -c 'echo one >&3; pwd; echo two > g'
        unset LD_PRELOAD; cat f g
    """) == "/madfs/d\none\ntwo\n"
    assert bash("""exec 3>> /madfs/d/f; python3 -c "
import fcntl, os
for fd in range(3, 2000):
    try: fcntl.fcntl(fd, fcntl.F_SETFD, fcntl.FD_CLOEXEC if fd > 3 else 0)
    except OSError: pass
os.execvp('sh', ['sh', '-c', 'echo three >&3'])
"; cat /madfs/d/f""") == "one\nthree\n"


def test_descriptor_by_name(bash):
    assert bash("""
        echo text > /madfs/f; exec 5< /madfs/f
        readlink /proc/self/fd/5; cat /dev/fd/5; cat /dev/stdin < /madfs/f; readlink /proc/self/fd/0 < /madfs/f
    """) == "/madfs/f\ntext\ntext\n/madfs/f\n"


def test_program_on_the_mount_is_refused(run):
    done = run("bash", "-c", "echo > /madfs/p; /madfs/p")
    assert done.returncode == 126 and "Permission denied" in done.stderr


def test_last_descriptor_releases(bash, tmp_path):
    bash("exec 3> /madfs/f; echo x >&3; exec 4>&3 3>&-; (echo y >&4); exec 4>&-")
    store = (tmp_path / "store").read_bytes()
    at = store.index(b"/f\0")
    opens, releases = (int.from_bytes(store[at + 256 + 4 + 4 * n:at + 256 + 8 + 4 * n], "little") for n in range(2))
    assert (opens, releases) == (1, 1)


def test_python_as_host(run):
    done = run("python3", "-c", """
import os, subprocess, tempfile, threading
os.mkdir('/madfs/d')
def work(n):
    for i in range(20):
        with open(f'/madfs/d/{n}', 'w') as f: f.write('x' * i)
        assert os.path.getsize(f'/madfs/d/{n}') == i
threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
[t.start() for t in threads]; [t.join() for t in threads]
print(subprocess.run(['pwd'], cwd='/madfs/d', capture_output=True, text=True).stdout, end='')
with open('/madfs/out', 'w') as f: subprocess.run(['echo', 'child'], stdout=f)
print(open('/madfs/out').read(), end='')
with tempfile.TemporaryFile() as f: f.write(b'host')
os.chdir('/madfs/d'); print(os.getcwd()); os.chdir('/'); print(os.getcwd())
try: open('/madfs/none')
except FileNotFoundError as e: print(e)
""")
    assert (done.stderr, done.returncode) == ("", 0)
    assert done.stdout == "/madfs/d\nchild\n/madfs/d\n/\n[Errno 2] No such file or directory: '/madfs/none'\n"


def test_exit_is_announced_to_the_runtime(run):
    assert run("bash", "-c", "echo > /madfs/f", environment={"FAKE_EXITING": "1"}).stderr == "exiting\n"
    assert run("true", environment={"FAKE_EXITING": "1"}).stderr == ""


def test_library_with_sites_is_rewritten_when_loaded(run, programs, tmp_path):
    source = tmp_path / "late.c"
    source.write_text("""
long late_open(const char *path) {
  long r; register long r10 __asm__("r10") = 0644;
  __asm__ volatile("mov $257, %%eax; syscall" : "=a"(r) : "D"(-100L), "S"(path), "d"(66L), "r"(r10)
                   : "rcx", "r11", "memory");
  return r;
}
""")
    subprocess.run(["gcc", "-shared", "-fPIC", "-O2", "-o", tmp_path / "late.so", source], check=True)
    code = f"""
import ctypes, os
late = ctypes.CDLL('{tmp_path}/late.so')
print(late.late_open(b'/madfs/late') >= 0, os.path.exists('/madfs/late'))
"""
    assert run("python3", "-c", code).stdout == "True True\n"


# A function as Go makes them: not described, behind traps, the number in a register, on a stack of 8 KB.
UNDESCRIBED = """
#include <fcntl.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>
long undescribed(long number, long a, long b, long c);
__asm__(".text\\n.p2align 5,0xcc\\n.fill 32,1,0xcc\\nundescribed:\\n mov %rdi,%rax\\n mov %rsi,%rdi\\n mov %rdx,%rsi\\n"
        " mov %rcx,%rdx\\n syscall\\n cmp $-4095,%rax\\n jb 1f\\n neg %rax\\n neg %rax\\n1: ret\\n .p2align 5,0xcc\\n");
static ucontext_t back, routine;
static char stack[8192];
static long result[4];
static void work(void) {
  result[0] = undescribed(SYS_open, (long)"/madfs/go", O_RDWR | O_CREAT, 0600);
  result[1] = undescribed(SYS_write, result[0], (long)"text", 4);
  result[2] = undescribed(SYS_lseek, result[0], 0, 2);
  result[3] = undescribed(SYS_write, 77, 0, 0);
}
int main(void) {
  getcontext(&routine);
  routine.uc_stack.ss_sp = stack, routine.uc_stack.ss_size = sizeof stack, routine.uc_link = &back;
  makecontext(&routine, work, 0);
  swapcontext(&back, &routine);
  return printf("%d %ld %ld %ld\\n", result[0] >= 0, result[1], result[2], result[3]) < 0;
}
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="instructions of x86_64")
def test_functions_that_nothing_describes(run, compiler, tmp_path):
    (tmp_path / "go.c").write_text(UNDESCRIBED)
    program = compiler(tmp_path / "go", tmp_path / "go.c", flags=["-fno-asynchronous-unwind-tables"])
    done = run(program)
    assert (done.stdout, done.stderr, done.returncode) == ("1 4 4 -9\n", "", 0)
    # Where the result is not looked at, the bytes may be anything: they stay as they are.
    (tmp_path / "data.c").write_text(UNDESCRIBED.replace("cmp $-4095,%rax", "cmp $-4094,%rax"))
    program = compiler(tmp_path / "data", tmp_path / "data.c", flags=["-fno-asynchronous-unwind-tables"])
    assert run(program).stdout == "0 -9 -9 -9\n"


# --- start-up -------------------------------------------------------------------------------------------------------


def test_table_of_sites_says_what_scanning_finds(run, libraries, tmp_path):
    """With libmadfs_intercept.sites beside the library nothing is scanned; a damaged or foreign table is ignored."""
    shutil.copytree(libraries, tmp_path / "copy")
    shim, table = tmp_path / "copy" / "libmadfs_intercept.so", tmp_path / "copy" / "libmadfs_intercept.sites"
    copied = {"LD_PRELOAD": str(shim)}
    assert run("true", environment={**copied, "MADFS_SITES_WRITE": str(table)}).returncode == 0
    script = "cat /dev/null; echo ok > /madfs/f; cat /madfs/f; true"
    scanned = run("bash", "-c", script, environment={"MADFS_DEBUG": "1"})
    known = run("bash", "-c", script, environment={**copied, "MADFS_DEBUG": "1"})
    assert scanned.stdout == known.stdout == "ok\n" and scanned.stderr == known.stderr
    good = table.read_bytes()
    for bad in (b"", good[:20], good[:-8], bytes(len(good)), good[:200] + bytes(len(good) - 200), good[::-1]):
        table.write_bytes(bad)
        done = run("true", environment={**copied, "MADFS_DEBUG": "1"})
        assert done.returncode == 0 and done.stderr == scanned.stderr.splitlines(True)[-1], bad[:20]


def test_another_version_is_refused(run):
    done = run("true", environment={"MADFS_VERSION": "0.0.0"})
    assert done.returncode == 127 and done.stderr.count("\n") == 1
    assert pymadfs.__version__ in done.stderr and "0.0.0" in done.stderr


@pytest.mark.parametrize("mount", ["", "madfs", "/", "relative/path"])
def test_bad_mount(run, mount):
    done = run("true", environment={"MADFS_MOUNT": mount})
    assert done.returncode == 127 and done.stderr.startswith("madfs: MADFS_MOUNT=") and done.stderr.count("\n") == 1


def test_runtime_that_does_not_start(run):
    done = run("bash", "-c", "cat /madfs/a; cat /madfs/b; echo still here",
               environment={"FAKE_STORE": "/proc/nonexistent/store"})
    assert done.stdout == "still here\n"
    assert done.stderr.count("the client cannot start") == 2 and "/proc/nonexistent/store" in done.stderr  # two cats
    assert done.stderr.count("Input/output error") == 2


def test_needs_no_vector_register_and_little_of_libc(libraries):
    library = libraries / "libmadfs_intercept.so"
    text = subprocess.run(["nm", "-D", "--undefined-only", library], capture_output=True, text=True, check=True).stdout
    used = {line.split()[-1].partition("@")[0] for line in text.splitlines() if " U " in line}
    assert used <= {"__environ", "environ", "__errno_location",
                    "__libc_current_sigrtmin", "__register_atfork", "dladdr", "dlerror", "dlopen", "dlsym",
                    "fork", "free", "malloc", "pthread_attr_init", "pthread_attr_setdetachstate", "pthread_create",
                    "pthread_key_create", "pthread_setcancelstate", "pthread_setcanceltype",
                    "pthread_testcancel", "pthread_setspecific"}


def test_environment_of_the_runtime_has_no_ucx_settings_of_the_user(run, tmp_path):
    code = "import os; os.stat('/madfs'); print(os.environ['UCX_TLS'], os.getenv('UCX_VFS_ENABLE'))"
    assert run("python3", "-c", code, environment={"UCX_TLS": "self"}).stdout == "self None\n"


def test_without_the_shim_nothing_is_there(programs):
    done = call([programs / "sys", "newfstatat", "-100", "/madfs", "buf:200", "0"])
    assert done.stdout == '{"ret": -1, "errno": 2}\n'
