# SPDX-License-Identifier: Apache-2.0
"""A crash of ours says where, in which call and of which version, in one line; then the program's own handler, or the
signal's default, has its way.  And the stack that this needs is not seen by the program.
"""
import re
import signal
import subprocess

import pytest
from support import TIMEOUT_S

import pymadfs

LINE = re.compile(rf"madfs: version {re.escape(pymadfs.__version__)} (crashed|crashed in the client): (SIG\w+)"
                  r"( \(its stack is full\))? at (\S+)\+0x[0-9a-f]+, in system call (\w+) \((\d+)\) made at "
                  r"(\S+)\+0x[0-9a-f]+\n")

HANDLER = """
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
static void handle(int number) { write(1, "handled\\n", 8); _exit(number); }
int main(int count, char **words) {
  static char room[64 << 10];
  stack_t stack = {.ss_sp = room, .ss_size = sizeof room};
  struct sigaction action = {.sa_handler = handle, .sa_flags = SA_ONSTACK};
  struct stat file;
  if (count > 2) sigaltstack(&stack, 0);
  sigaction(atoi(words[1]), &action, 0);
  return stat("/madfs/f", &file);
}
"""

STACKS = """
#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
static char room[64 << 10], *local;
static void handle(int number) {
  char here; stack_t now, other = {.ss_sp = room, .ss_size = sizeof room};
  (void)number; local = &here;
  assert(!sigaltstack(0, &now));
  if (now.ss_sp != room) return;
  assert(now.ss_flags == SS_ONSTACK && sigaltstack(&other, 0) == -1 && errno == EPERM);
}
static void *run(void *unused) {
  struct stat file;
  stack_t old, none = {.ss_flags = SS_DISABLE}, mine = {.ss_sp = room, .ss_size = sizeof room};
  assert(!sigaltstack(0, &old) && old.ss_flags == SS_DISABLE && !old.ss_sp);
  assert(!stat("/madfs", &file));
  assert(!sigaltstack(0, &old) && old.ss_flags == SS_DISABLE && !old.ss_sp && !old.ss_size);
  raise(SIGUSR1);
  assert(!sigaltstack(&mine, &old) && old.ss_flags == SS_DISABLE && !stat("/madfs", &file));
  assert(!sigaltstack(0, &old) && old.ss_flags == 0 && old.ss_sp == room && old.ss_size == sizeof room);
  raise(SIGUSR1);
  assert(local >= room && local < room + sizeof room);
  assert(!sigaltstack(&none, &old) && old.ss_sp == room);
  assert(!sigaltstack(0, &old) && old.ss_flags == SS_DISABLE && !old.ss_sp);
  stack_t small = {.ss_sp = room, .ss_size = 16}, odd = {.ss_sp = room, .ss_size = sizeof room, .ss_flags = 77};
  assert(sigaltstack(&small, 0) == -1 && errno == ENOMEM && sigaltstack(&odd, 0) == -1 && errno == EINVAL);
  assert(sigaltstack((stack_t *)16, 0) == -1 && errno == EFAULT);
  return unused;
}
int main(void) {
  struct sigaction action = {.sa_handler = handle, .sa_flags = SA_ONSTACK};
  sigaction(SIGUSR1, &action, 0);
  run(0);
  for (int i = 0; i < 3; i++) { pthread_t t; pthread_create(&t, 0, run, 0); pthread_join(t, 0); }
  return puts("ok") < 0;
}
"""

# Takes the table of open files out of memory: what only a defect of the shim's own could do.
UNMAP = """
import ctypes, os
fd = os.open('/madfs/f', os.O_RDWR | os.O_CREAT)
for line in open('/proc/self/maps'):
    if 'memfd:madfs' in line:
        first, last = (int(number, 16) for number in line.split()[0].split('-'))
        ctypes.CDLL(None).munmap(ctypes.c_void_p(first), ctypes.c_size_t(last - first))
os.lseek(fd, 5, 0)
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory, compiler):
    def compiled(text, name):
        directory = tmp_path_factory.mktemp(name)
        (directory / "program.c").write_text(text)
        return compiler(directory / name, directory / "program.c")

    return compiled


@pytest.fixture(scope="module")
def handler(compiled):
    return compiled(HANDLER, "handler")


def told(done, name, call="newfstatat"):
    """Assert that ``done`` said one line about signal ``name``; what it matched."""
    match = LINE.fullmatch(done.stderr)
    assert match, done
    assert match[2] == name and match[5] == call and match[7].startswith("libc.so")
    return match


@pytest.mark.parametrize(("how", "name", "where"), [
    ("segv", "SIGSEGV", "libmadfs_runtime.so"), ("bus", "SIGBUS", "libmadfs_runtime.so"),
    ("ill", "SIGILL", "libmadfs_runtime.so"), ("abort", "SIGABRT", "libc.so.6"),
    ("overflow", "SIGSEGV", "libmadfs_runtime.so")])
def test_in_the_client(run, handler, how, name, where):
    number = getattr(signal, name)
    done = run(handler, signal.SIGUSR2, environment={"FAKE_CRASH": how})  # the default
    assert done.returncode == -number
    match = told(done, name)
    assert match[1] == "crashed in the client" and match[4] == where and bool(match[3]) == (how == "overflow")
    done = run(handler, int(number), "stack", environment={"FAKE_CRASH": how})  # its own handler, on its own stack
    assert (done.returncode, done.stdout) == (number, "handled\n")
    told(done, name)
    done = run(handler, int(number), environment={"FAKE_CRASH": how})
    assert (done.returncode, done.stdout) == (number, "handled\n")


def test_in_the_shim(run):
    done = run("python3", "-c", UNMAP)
    assert done.returncode == -signal.SIGSEGV
    match = told(done, "SIGSEGV", "lseek")
    assert match[1] == "crashed" and match[4] == "libmadfs_intercept.so"


def test_the_programs_own_crash_is_its_own(run, handler):
    for name in ("SEGV", "BUS", "ILL", "ABRT"):
        done = run("bash", "-c", f"test -e /madfs; kill -{name} $$")
        assert (done.returncode, done.stderr) == (-getattr(signal, f"SIG{name}"), "")
    done = run("python3", "-c", "import os; os.path.exists('/madfs'); os.abort()")
    assert (done.returncode, done.stderr) == (-signal.SIGABRT, "")
    done = run("python3", "-c", "import os, ctypes; os.path.exists('/madfs'); ctypes.string_at(8)")
    assert (done.returncode, done.stderr) == (-signal.SIGSEGV, "")


def test_faulthandler_of_python(run):
    code = "import os, faulthandler; faulthandler.enable(); os.stat('/madfs')"
    done = run("python3", "-c", code, environment={"FAKE_CRASH": "segv"})
    assert "Fatal Python error: Segmentation fault" in done.stderr and done.stderr.startswith("madfs: version ")


def test_settings_of_the_signals_are_the_programs(run):
    code = """
import signal
for name in ('SIGSEGV', 'SIGBUS', 'SIGILL', 'SIGABRT'):
    number = getattr(signal, name)
    assert signal.getsignal(number) == signal.SIG_DFL, name
    signal.signal(number, signal.SIG_IGN); assert signal.getsignal(number) == signal.SIG_IGN
    signal.signal(number, lambda *_: print(name)); signal.raise_signal(number); signal.signal(number, signal.SIG_DFL)
"""
    done = run("python3", "-c", code)
    assert (done.stdout, done.stderr) == ("SIGSEGV\nSIGBUS\nSIGILL\nSIGABRT\n", "")


def test_ignored_signals_stay_ignored_across_exec(run, programs):
    script = "trap '' ABRT ILL; test -e /madfs; exec grep SigIgn /proc/self/status"
    mask = int(run("bash", "-c", script).stdout.split()[1], 16)
    assert mask & 1 << signal.SIGABRT - 1 and mask & 1 << signal.SIGILL - 1 and not mask & 1 << signal.SIGSEGV - 1


def test_the_stack_for_signals_is_the_programs(run, compiled):
    program = compiled(STACKS, "stacks")
    done = run(program)
    assert (done.stdout, done.stderr, done.returncode) == ("ok\n", "", 0)


def test_core_shows_the_place(run, handler, tmp_path):
    """The default disposition acts as without the shim: where cores are files, there is one."""
    pattern = subprocess.run(["cat", "/proc/sys/kernel/core_pattern"], capture_output=True, text=True,
                             timeout=TIMEOUT_S, check=True).stdout
    if pattern.startswith("|") or "/" in pattern:
        pytest.skip(f"cores go to {pattern.strip()}")
    script = f"ulimit -c unlimited; exec {handler} {int(signal.SIGUSR2)}"
    done = run("bash", "-c", script, environment={"FAKE_CRASH": "segv"}, cwd=tmp_path)
    assert done.returncode == -signal.SIGSEGV and list(tmp_path.glob("*core*"))
