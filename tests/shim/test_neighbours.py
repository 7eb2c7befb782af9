# SPDX-License-Identifier: Apache-2.0
"""Others that reach into a process: allocators, sanitizers, debuggers, filters.  docs/neighbours.md lists them."""
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from support import call

from pymadfs.launch import LIBRARY

SYSTEM = Path("/usr/lib/x86_64-linux-gnu")

# Four threads that write, look and read on the mount.
WORKER = """
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
static void *work(void *number) {
  char name[64], back[9], *text = malloc(100);
  struct stat file;
  snprintf(name, sizeof name, "/madfs/nb-%d-%ld", (int)getpid(), (long)number);
  int fd = open(name, O_RDWR | O_CREAT | O_TRUNC, 0644);
  strcpy(text, "text");
  if (write(fd, text, 5) != 5) return (void *)1;
  if (fstat(fd, &file) || file.st_size != 5) return (void *)2;
  if (pread(fd, back, 5, 0) != 5 || strcmp(back, "text")) return (void *)3;
  free(text);
  return close(fd) || unlink(name) ? (void *)4 : 0;
}
int main(void) {
  pthread_t thread[4];
  void *result;
  for (long i = 0; i < 4; i++) pthread_create(&thread[i], 0, work, (void *)i);
  for (int i = 0; i < 4; i++)
    if (pthread_join(thread[i], &result) || result) return printf("bad %ld\\n", (long)result), 1;
  return puts("ok") < 0;
}
"""

# Reads more than its buffer holds.
OVERFLOW = """
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>
int main(void) {
  size_t room = 10, size = 16;
  char *small = malloc(room);
  int fd = open("/madfs/overflow", O_RDWR | O_CREAT | O_TRUNC, 0600);
  if (write(fd, "0123456789abcdef", size) != 16) return 1;
  return pread(fd, small, size, 0) == 16 ? small[0] : 2;
}
"""

MAKER = """
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>
int main(void) {
  int a = mkdir("/madfs/gdb", 0755), b = chdir("/madfs/gdb"), c = mkdir("inner", 0755), d = rmdir("inner");
  printf("%d %d %d %d %d\\n", a, b, c, d, rmdir("/madfs/gdb"));
  return 0;
}
"""

# Allows what docs/neighbours.md lists, and ends the process for everything else.
FILTER = """
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
static const int allowed[] = {@LIST@, SYS_exit_group, SYS_unlink};
int main(int count, char **words) {
  enum { N = sizeof allowed / sizeof *allowed };
  struct sock_filter code[2 * N + 2] = {BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr))};
  for (int i = 0; i < N; i++) {
    code[1 + 2 * i] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, allowed[i], 0, 1);
    code[2 + 2 * i] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
  }
  code[2 * N + 1] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
  struct sock_fprog program = {2 * N + 2, code};
  struct stat file;
  char *data = calloc(1, 300000);
  if (close(open("/madfs/filtered", O_RDWR | O_CREAT, 0600))) return 3;
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)) return 4;
  if (count > 1) syscall(SYS_getppid);
  for (int i = 0; i < 20; i++) {
    char name[64];
    snprintf(name, sizeof name, "/madfs/filtered-%d", i);  // on one server and the other
    int fd = open(name, O_RDWR | O_CREAT | O_TRUNC, 0600);
    if (write(fd, data, 300000) != 300000 || pread(fd, data, 300000, 0) != 300000 || fsync(fd) || close(fd)) return 5;
    if (stat(name, &file) || file.st_size != 300000 || unlink(name)) return 6;
  }
  return puts("ok") < 0;
}
"""


def needs(tool, package=None):
    """Path of ``tool``; skips with the name of the package that has it."""
    path = shutil.which(tool)
    if not path:
        pytest.skip(f"there is no {tool}: package {package or tool}")
    return path


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Compiles ``text`` with more ``flags``; skips when the compiler has no such sanitizer."""
    def built(text, *flags):
        directory = tmp_path_factory.mktemp("neighbour")
        (directory / "program.c").write_text(text)
        command = ["gcc", "-g", "-O1", *flags, "-o", directory / "program", directory / "program.c", "-lpthread"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if "cannot find" in done.stderr:
            pytest.skip(f"gcc has no library for {' '.join(flags)}: package libgcc-12-dev")
        assert done.returncode == 0, done.stderr
        return directory / "program"

    return built


def good(done, output="ok\n"):
    assert (done.stdout, done.returncode) == (output, 0), done.stderr


# --- allocators -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize(("library", "package"), [("libtcmalloc_minimal.so.4", "libtcmalloc-minimal4"),
                                                  ("libjemalloc.so.2", "libjemalloc2")])
def test_allocators(on_mount, built, library, package, order):
    path = SYSTEM / library
    if not path.exists():
        pytest.skip(f"there is no {library}: package {package}")
    preload = f"{path}:{LIBRARY}" if order == "before" else f"{LIBRARY}:{path}"
    good(on_mount(built(WORKER), environment={"LD_PRELOAD": preload}))
    code = ("import os; open('/madfs/alloc', 'w').write('x' * 100000); print(os.path.getsize('/madfs/alloc')); "
            f"print({library.partition('.')[0]!r} in open('/proc/self/maps').read())")
    good(on_mount("bash", "-c", f'python3 -c "{code}"', environment={"LD_PRELOAD": preload}), "100000\nTrue\n")


# --- how a program is built -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [["-fsanitize=address"], ["-fsanitize=thread"], ["-fsanitize=undefined"],
                                   ["-fsanitize=leak"], ["-no-pie"], ["-s"], ["-O3", "-fcf-protection=full"],
                                   ["-Wl,-z,now,-z,relro"], ["-Wl,-z,lazy"], ["-pg"]], ids=" ".join)
def test_programs(on_mount, built, tmp_path, flags):
    program = built(WORKER, *flags)
    good(on_mount(program, cwd=tmp_path))
    good(on_mount("bash", "-c", f"env -i {program}", cwd=tmp_path))


def test_address_sanitizer_finds_what_a_call_of_ours_would_overwrite(on_mount, built):
    done = on_mount(built(OVERFLOW, "-fsanitize=address"))
    assert done.returncode == 1 and "heap-buffer-overflow" in done.stderr


def test_address_sanitizer_preloaded_by_the_user(on_mount):
    runtime = subprocess.run(["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True,
                             check=True).stdout.strip()
    if not Path(runtime).exists():
        pytest.skip("there is no libasan: package libasan8")
    preload = f"{LIBRARY}:{Path(runtime).resolve()}"
    code = "open('/madfs/asan', 'w').write('x' * 5); print(open('/madfs/asan').read())"
    variables = {"LD_PRELOAD": preload, "ASAN_OPTIONS": "detect_leaks=0"}
    good(on_mount("/usr/bin/python3", "-c", code, environment=variables), "xxxxx\n")


# --- debuggers ------------------------------------------------------------------------------------------------------


@pytest.fixture
def gdb(on_mount, tmp_path):
    """Runs gdb's commands on a program; what it printed."""
    path = needs("gdb")

    def gdb(program, *commands, arguments=()):
        script = tmp_path / "commands"
        script.write_text("\n".join(["set confirm off", "set startup-with-shell off", "set debuginfod enabled off",
                                     "set breakpoint pending on", *commands]))
        done = on_mount(path, "-nx", "-q", "-batch", "-x", script, "--args", program, *arguments)
        assert "SIGSEGV" not in done.stdout and "SIGTRAP" not in done.stdout, done.stdout
        return done.stdout

    return gdb


def test_gdb_runs_and_breaks(gdb, built):
    said = gdb(built(WORKER, "-O0"), "break main", "break work", "run", "next", "continue", "delete", "continue")
    assert "Breakpoint 1, main" in said and "work (number=" in said and "ok\n" in said
    assert "exited normally" in said


def test_gdb_breaks_in_libc(gdb, built):
    """Where the shim would like to put its jumps; removed in between, too."""
    names = ["mkdir", "chdir", "rmdir", "write", "open64", "read", "close", "stat64"]
    breaks = [line for number, name in enumerate(names, 1)
              for line in (f"break {name}", f"commands {number}", "silent", "continue", "end")]
    said = gdb(built(MAKER, "-O0"), *breaks, "run", "delete", "run", "break mkdir", "run", "delete", "continue")
    assert said.count("0 0 0 0 0\n") == 3, said
    assert said.count("exited normally") == 3


def test_gdb_sees_through_a_call(gdb, built):
    said = gdb(built(WORKER, "-O0"), "break madfs_runtime_call", "run", "backtrace", "kill")
    frames = re.findall(r"^#\d+ +(?:0x\w+ in )?(\w+) ", said, re.MULTILINE)
    assert frames[0] == "madfs_runtime_call" and "madfs_entry" in frames
    assert frames.index("work") > frames.index("madfs_entry"), said


def test_gdb_steps_through_a_rewritten_call(gdb, built):
    said = gdb(built(MAKER, "-O0"), "break main", "run", "tbreak mkdir", "continue", *["stepi"] * 40, "backtrace 20",
               "delete", "continue")
    assert "0 0 0 0 0\n" in said and "exited normally" in said
    assert re.search(r"in main \(\)", said), said


def test_gdb_attaches(on_mount):
    path = needs("gdb")
    code = f"""
import os, subprocess
open('/madfs/attached', 'w').write('text')
done = subprocess.run([{path!r}, '-nx', '-q', '-batch', '-iex', 'set debuginfod enabled off', '-ex', 'bt 5', '-ex',
                       'detach', '-p', str(os.getpid())], capture_output=True, text=True)
print(open('/madfs/attached').read(), 'detached]' in done.stdout, '#0' in done.stdout)
if 'ptrace' in done.stderr: print(done.stderr)
"""
    done = on_mount("/usr/bin/python3", "-c", code)
    if "Operation not permitted" in done.stdout:
        pytest.skip("tracing is not allowed here")
    good(done, "text True True\n")


def test_strace(on_mount, built, tmp_path):
    log = tmp_path / "log"
    good(on_mount(needs("strace"), "-f", "-o", log, built(WORKER)))
    assert "exited with 0" in log.read_text()


def test_perf(on_mount, built, tmp_path):
    done = on_mount(needs("perf", "linux-perf"), "stat", "-o", tmp_path / "log", "-e", "task-clock", built(WORKER))
    if done.returncode and "ok" not in done.stdout:
        pytest.skip(f"perf does not work here: {done.stderr.strip().splitlines()[-1:]}")
    good(done)


def test_valgrind(on_mount, built, tmp_path):
    good(on_mount(needs("valgrind"), "-q", f"--log-file={tmp_path}/log", built(WORKER)))


# --- filters --------------------------------------------------------------------------------------------------------


def listed():
    """The calls that docs/neighbours.md says a filter must allow, to open files as well."""
    page = (Path(__file__).parents[2] / "docs" / "neighbours.md").read_text()
    names = " ".join(re.findall(r"`([^`]*)`", page[page.index("A filter that is installed"):])).split()
    assert {"read", "rt_sigprocmask", "openat", "epoll_wait"} <= set(names)
    return names


def test_filter_that_allows_what_is_listed(on_mount, built):
    program = built(FILTER.replace("@LIST@", ", ".join(f"SYS_{name}" for name in listed())))
    good(on_mount(program))
    assert on_mount(program, "more").returncode == -31, "the filter does filter: getppid"


def test_filter_without_them_ends_the_process(on_mount, built):
    program = built(FILTER.replace("@LIST@", "SYS_read, SYS_write"))
    assert on_mount(program).returncode == -31


# --- a filter that leaves the client nothing -------------------------------------------------------------------------

# A process that used the mount, its child or its thread, goes into a sandbox and ends.
SANDBOX = """
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <stddef.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
static const char *words;
#define CAN(number) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)
static void *sandbox(void *unused) {
  struct sock_filter code[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)), BPF_STMT(BPF_ST, 3),
      BPF_STMT(BPF_LD | BPF_IMM, 7), BPF_STMT(BPF_MISC | BPF_TAX, 0), BPF_STMT(BPF_LD | BPF_MEM, 3),
      BPF_STMT(BPF_ALU | BPF_ADD | BPF_X, 0), BPF_STMT(BPF_ALU | BPF_SUB | BPF_K, 7),
      CAN(SYS_openat), CAN(SYS_close), CAN(SYS_write), CAN(SYS_exit_group),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS)};
  struct sock_fprog program = {sizeof code / sizeof *code, code};
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) _exit(3);
  struct sock_filter no_prctl[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_prctl, 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
  struct sock_fprog first = {sizeof no_prctl / sizeof *no_prctl, no_prctl};
  if (strchr(words, 'd') && syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &first)) _exit(4);
  if (strchr(words, 's') ? syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program)
                         : prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)) _exit(4);
  int fd = open("/dev/null", O_WRONLY);
  _exit(write(fd, "x", 1) != 1 || close(fd) || write(1, "ok\\n", 3) != 3);
  return unused;
}
int main(int count, char **given) {
  int fd = open("/madfs/sandbox", O_RDWR | O_CREAT, 0600);
  words = given[count - 1];
  if (write(fd, "x", 1) != 1 || close(fd) || unlink("/madfs/sandbox")) return 1;
  pid_t child = strchr(words, 'f') ? fork() : 0;
  if (child) {
    int status;
    return waitpid(child, &status, 0) != child || status;
  }
  pthread_t thread;
  if (!strchr(words, 't')) sandbox(NULL);
  else if (pthread_create(&thread, NULL, sandbox, NULL)) return 2;
  for (;;) pause();
}
"""


@pytest.mark.parametrize("words", ["p", "s", "fp", "fs", "tp", "sd"])
def test_ends_under_any_filter(on_mount, built, words):
    good(on_mount(built(SANDBOX), words))


# What a process that used the mount can do under a filter that allows just that.
ALLOWED = """
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/fsuid.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#define CAN(number) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)
static char alternate[16384];
static void handler(int number) { (void)number; }
int main(int count, char **words) {
  struct sock_filter code[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)), CAN(SYS_close), CAN(SYS_dup),
      CAN(SYS_lseek),
      CAN(SYS_fcntl), CAN(SYS_rt_sigaction), CAN(SYS_write), CAN(SYS_exit_group), CAN(SYS_dup2), CAN(SYS_dup3),
      CAN(SYS_chdir), CAN(SYS_sigaltstack), CAN(SYS_openat), CAN(SYS_mmap), CAN(SYS_munmap), CAN(SYS_rename),
      CAN(SYS_close_range), CAN(SYS_vfork), CAN(SYS_wait4), CAN(SYS_setfsuid), CAN(SYS_unshare),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS)};
  struct sock_fprog program = {sizeof code / sizeof *code, code};
  struct sigaction wanted = {.sa_handler = handler}, is;
  int status;
  int fd = open(words[count - 1], O_RDWR | O_CREAT | O_APPEND, 0600);
  if (write(fd, "text", 4) != 4 || unlink(words[count - 1])) return 1;
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)) return 2;
  int copy = dup(fd), high = fcntl(fd, F_DUPFD_CLOEXEC, 20);
  if (copy != fd + 1 || high != 20 || lseek(fd, 1, SEEK_CUR) != 5 || lseek(copy, -2, SEEK_CUR) != 3) _exit(3);
  if (fcntl(high, F_GETFD) != FD_CLOEXEC) _exit(4);
  if ((fcntl(fd, F_GETFL) & (O_ACCMODE | O_APPEND)) != (O_RDWR | O_APPEND)) _exit(4);
  if (dup2(fd, 21) != 21 || dup3(21, 22, O_CLOEXEC) != 22 || lseek(22, 0, SEEK_CUR) != 3) _exit(5);
  if (sigaction(SIGSEGV, &wanted, NULL) || sigaction(SIGSEGV, NULL, &is) || is.sa_handler != handler) _exit(6);
  if (close(fd) || close(copy) || close(high) || close(21) || close(22)) _exit(7);
  if (close(fd) == 0 || lseek(fd, 0, SEEK_CUR) != -1) _exit(7);
  stack_t stack = {.ss_sp = alternate, .ss_size = sizeof alternate};
  if (chdir("/usr") || sigaltstack(&stack, NULL) || setfsuid(0)) _exit(8);
  if (rename("/usr/not/there", "nor/here") != -1) _exit(8);
  fd = open("/bin/true", O_RDONLY);
  void *text = mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE, fd, 8192);
  if (text == MAP_FAILED || munmap(text, 4096) || unshare(CLONE_FILES)) _exit(9);
  pid_t child = vfork();
  if (!child) _exit(7);
  if (wait4(child, &status, 0, NULL) != child || status != 7 << 8 || close_range(40, 50, 0)) _exit(10);
  for (int i = 3; i < 100000; i++) close(i);
  _exit(write(1, "ok\\n", 3) != 3);
}
"""


def test_what_a_filter_allows(on_mount, built, tmp_path):
    program = built(ALLOWED)
    good(call([program, tmp_path / "closes"]))
    good(on_mount(program, "/madfs/closes"))


# --- mounts of a process's own --------------------------------------------------------------------------------------

# What hides the directory of the cluster file, as sandboxes such as bwrap hide /tmp, before the mount is touched.
HIDES = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
hidden = os.path.dirname(os.environ["MADFS_CLUSTER"])
NEWNS, NEWUSER, SIGCHLD, SYS_CLONE, REC, PRIVATE = 0x20000, 0x10000000, 17, 56, 0x4000, 1 << 18
flags = NEWNS | (NEWUSER if os.getuid() else 0)
if sys.argv[1] == "clone":
    child = libc.syscall(SYS_CLONE, flags | SIGCHLD, None, None, None, None)
    if child > 0:
        sys.exit(os.waitpid(child, 0)[1] >> 8)
else:
    child = libc.unshare(flags)
if child < 0 or libc.mount(None, b"/", None, REC | PRIVATE, None):
    sys.exit(77)
if libc.mount(b"none", hidden.encode(), b"tmpfs", 0, None):
    sys.exit(77)
assert not os.path.exists(os.environ["MADFS_CLUSTER"])
assert os.path.isdir("/madfs")
os.execlp("sh", "sh", "-c", "echo within > /madfs/hidden && cat /madfs/hidden && rm /madfs/hidden")
"""


@pytest.mark.parametrize("way", ["clone", "unshare"])
def test_hidden_cluster_file(on_mount, way):
    done = on_mount("python3", "-c", HIDES, way)
    if done.returncode == 77:
        pytest.skip("mounts of a process's own are not allowed here")
    good(done, "within\n")


# --- the doctor knows -----------------------------------------------------------------------------------------------


def test_static_pie_is_no_neighbour(built):
    from pymadfs import doctor

    program = built("int main(void) { return 0; }", "-static-pie")
    assert "static" in doctor.warning([str(program)])
    assert call([program]).returncode == 0


# --- another C library ----------------------------------------------------------------------------------------------


def test_musl(on_mount, tmp_path):
    """It runs, and a line says that it is not on the mount."""
    from pymadfs import doctor

    (tmp_path / "program.c").write_text("""
#include <stdio.h>
#include <unistd.h>
int main(void) { return printf("%d\\n", access("/madfs", F_OK)) < 0; }
""")
    subprocess.run([needs("musl-gcc", "musl-tools"), "-o", tmp_path / "program", tmp_path / "program.c"], check=True)
    for command in ([tmp_path / "program"], ["bash", "-c", f"{tmp_path}/program; true"]):
        done = on_mount(*command)
        assert (done.stdout, done.returncode) == ("-1\n", 0) and "GNU libc" in done.stderr
        assert done.stderr.count("\n") == 1
    assert "musl" in doctor.warning([str(tmp_path / "program")])
