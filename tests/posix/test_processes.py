# SPDX-License-Identifier: Apache-2.0
"""New processes by each of the kernel's ways, made without libc: the child has the parent's files, and both use the
mount."""
import subprocess

import pytest
from support import TIMEOUT_S

PROGRAM = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static long child_of(const char *way) {
  struct clone_args wanted = {.exit_signal = SIGCHLD};
  if (!strcmp(way, "clone3")) return syscall(SYS_clone3, &wanted, sizeof wanted);
  if (!strcmp(way, "clone")) return syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
  if (!strcmp(way, "fork")) return syscall(SYS_fork);
  return fork();
}

int main(int count, char **words) {
  char text[64] = "";
  int status, fd = open(words[2], O_RDWR | O_CREAT | O_EXCL, 0600);
  if (fd < 0 || write(fd, "parent ", 7) != 7) return 1;
  long child = child_of(words[1]);
  if (child == 0) {
    int own = open(words[3], O_RDWR | O_CREAT, 0600);
    int good = own >= 0 && write(own, "own", 3) == 3 && write(fd, "child ", 6) == 6;
    syscall(SYS_exit_group, good ? 7 : 8);
  }
  if (child < 0 || waitpid(child, &status, 0) != child) return 2;
  if (write(fd, "again", 5) != 5 || pread(fd, text, sizeof text, 0) != 18) return 3;
  int own = open(words[3], O_RDONLY);
  if (own < 0 || read(own, text + 18, 3) != 3) return 4;
  printf("%s %d\n", text, WEXITSTATUS(status));
  return count - 4;
}
"""


@pytest.fixture(scope="session")
def program(tmp_path_factory):
    path = tmp_path_factory.mktemp("processes") / "program"
    subprocess.run(["gcc", "-O2", "-o", path, "-x", "c", "-"], input=PROGRAM, text=True, check=True, timeout=TIMEOUT_S)
    return str(path)


@pytest.mark.parametrize("way", ["clone3", "clone", "fork", "libc"])
def test_child_shares_files_and_offsets(runner, program, tmp_path, way):
    for directory, environment in ((tmp_path, runner.plain), (f"{runner.mount}/process-{way}", runner.loaded)):
        subprocess.run(["mkdir", "-p", directory], env=environment, check=True, timeout=TIMEOUT_S)
        done = subprocess.run([program, way, f"{directory}/shared", f"{directory}/own"], env=environment, text=True,
                              capture_output=True, timeout=TIMEOUT_S, check=False)
        assert (done.returncode, done.stdout) == (0, "parent child againown 7\n"), done.stderr


# `read` waits until tail has printed: from a FIFO outside the mount.
TAIL = r"""
pipe=$(mktemp -u /tmp/tail.XXXXXX); mkfifo $pipe; seq 3 > f
tail -s 0.1 -f f > $pipe 2> err & exec 7< $pipe; rm $pipe
for i in 1 2 3; do read -t 20 line <&7; echo "$line"; done
echo four >> f; read -t 20 line <&7; echo "$line"; kill $!; wait; exec 7<&-; cat err
mkfifo $pipe; echo first > g; tail -s 0.1 -F g > $pipe 2> err & exec 7< $pipe; rm $pipe
read -t 20 line <&7; echo "$line"; echo more >> g; read -t 20 line <&7; echo "$line"
mv g old; echo replaced > g; read -t 20 line <&7; echo "$line"; kill $!; wait; exec 7<&-; rm err
"""


def test_tail_follows(runner):
    """There are no notifications on the mount: tail looks again."""
    assert runner.same(TAIL).split() == b"1 2 3 four first more replaced".split()
