# SPDX-License-Identifier: Apache-2.0
"""A directory with many entries is renamed across servers while they are killed and come back: afterwards all that was
in it is in exactly one place, and nothing else is anywhere."""
import errno
import os
import random
import select
import signal
import subprocess
import sys
import time

import pytest
from support import MADFS, TIMEOUT_S, call, clean_environment

from pymadfs import cli, cluster

ENTRIES, ROUNDS, MAKERS = 100_000, 12, 4
QUICK_ENTRIES, QUICK_ROUNDS = 2000, 2
FEW = 997  # one entry in so many is looked at closely
MAKING_S = 600

# What is in the directory, by number: names, and what each is.
LAYOUT = r"""
import errno, os, sys
def entry(n):
    kind = n % 100
    if kind == 1: return f"dir-{n}", "d"
    if kind == 2: return f"dir-{n - 1}/inner", "f"
    if kind == 3: return f"link-{n}", "l"
    return f"file-{n}", "f"
def content(n): return (b"%d " % n) * (n // 10 % 7 * 300) if n % 10 == 5 else b""
"""

# One process in so many makes every hundred of entries that is its own.
MAKER = LAYOUT + r"""
top, me, makers, entries = sys.argv[1], *map(int, sys.argv[2:])
for n in (n for n in range(entries) if n // 100 % makers == me):
    name, kind = entry(n)
    path = f"{top}/{name}"
    if kind == "d": os.mkdir(path)
    elif kind == "l": os.symlink(str(n), path)
    elif n % 100 == 4: os.link(f"{top}/file-{n - 4}", path)
    else:
        fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        if content(n): assert os.write(fd, content(n)) == len(content(n))
        os.close(fd)
"""

# What is wrong with the directory.
CHECKER = LAYOUT + r"""
top, entries, few = sys.argv[1], *map(int, sys.argv[2:])
kinds = {"d": lambda each: each.is_dir(follow_symlinks=False), "l": lambda each: each.is_symlink(),
         "f": lambda each: each.is_file(follow_symlinks=False)}
wanted, listed = dict(entry(n) for n in range(entries)), {}
for top_or_not, *_ in [(top,)] + [(f"{top}/{name}",) for name, kind in wanted.items() if kind == "d"]:
    with os.scandir(top_or_not) as found:
        for each in found:
            name = os.path.relpath(each.path, top)
            if name in listed: print("twice", name)
            listed[name] = next(kind for kind, test in kinds.items() if test(each))
if listed != wanted: print(len(listed), "entries:", sorted(set(listed.items()) ^ set(wanted.items()))[:5])
for n in (n for n in range(entries) if n % few in (0, 3, 4) or n % 100 == 4 and n % few < 20):
    name, kind = entry(n)
    path = f"{top}/{name}"
    if kind == "l" and os.readlink(path) != str(n): print("another target", name)
    links = os.lstat(path).st_nlink
    if links != 2 and (kind == "d" or n % 100 in (0, 4)) or links != 1 and kind == "l": print(links, "links", name)
    if kind == "f":
        with open(path, "rb") as file:
            if file.read() != content(n): print("another content", name)
"""

RENAMER = r"""
import os, sys
print("begins", flush=True)
try: os.rename(*sys.argv[1:])
except OSError as error: print(error.errno)
else: print(0)
"""


def program(environment, script, *arguments):
    return subprocess.Popen([sys.executable, "-S", "-E", "-c", script, *map(str, arguments)], env=environment,
                            text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def output(process, timeout=TIMEOUT_S):
    """What the process says until it ends."""
    try:
        said, log = process.communicate(timeout=timeout)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0, log
    return said


class Standing:
    """Three servers of this test's own."""

    def __init__(self, tmp_path):
        self.path = str(tmp_path / "cluster")
        self._up = [*MADFS, "up", "--servers", 3, "--store", tmp_path / "store", "--cluster", self.path]
        self.heal()
        self.environment = {**clean_environment(), **cli.preload_environment(self.path)}
        self.mount = self.environment["MADFS_MOUNT"]

    def heal(self):
        done = call(self._up)
        assert done.returncode == 0, done.stderr

    def kill(self, number):
        pid = cluster.read(self.path).servers[number].pid
        end = os.pidfd_open(pid)
        try:
            os.kill(pid, signal.SIGKILL)
            assert select.select([end], [], [], 10)[0], "the server outlived SIGKILL"
        finally:
            os.close(end)

    def down(self):
        assert call([*MADFS, "down", "--cluster", self.path]).returncode == 0

    def make(self, name, entries):
        assert call(["mkdir", f"{self.mount}/{name}"], environment=self.environment).returncode == 0
        makers = [program(self.environment, MAKER, f"{self.mount}/{name}", me, MAKERS, entries)
                  for me in range(MAKERS)]
        for maker in makers:
            assert output(maker, MAKING_S) == ""

    def rename(self, old, new, victim=None, after_s=0.0):
        """Rename in another process; if ``victim`` is a server, kill it after a while and start it again.  Returns
        ``(errno or 0, seconds)``."""
        renamer = program(self.environment, RENAMER, f"{self.mount}/{old}", f"{self.mount}/{new}")
        try:
            assert renamer.stdout.readline() == "begins\n"
            begin = time.monotonic()
            if victim is not None:
                select.select([renamer.stdout], [], [], after_s)  # that long, or until it is over
                self.kill(victim)
                self.heal()
            code = int(output(renamer, 4 * TIMEOUT_S))
        finally:
            renamer.kill()
            renamer.communicate()
        return code, time.monotonic() - begin

    def names(self):
        listed = call(["ls", "-A", self.mount], environment=self.environment)
        assert listed.returncode == 0, listed.stderr
        return listed.stdout.split()

    def check(self, name, entries):
        assert output(program(self.environment, CHECKER, f"{self.mount}/{name}", entries, FEW), 4 * TIMEOUT_S) == ""
        done = call([*MADFS, "fsck", "--cluster", self.path], timeout=4 * TIMEOUT_S)
        assert done.returncode == 0 and "under way" not in done.stdout, done.stdout + done.stderr


def renamed_and_killed(tmp_path, entries, rounds, seed):
    standing, chance = Standing(tmp_path), random.Random(seed)
    try:
        standing.make("a", entries)
        standing.check("a", entries)
        code, seconds = standing.rename("a", "b")
        assert code == 0 and standing.names() == ["b"]
        here, there = "b", "a"
        for turn in range(rounds):
            victim, after_s = chance.randrange(3), chance.random() * 1.1 * seconds
            code, _ = standing.rename(here, there, victim, after_s)
            where = f"turn {turn}, seed {seed}: server {victim} killed after {after_s:.3f} of {seconds:.3f} s"
            assert code in (0, errno.EIO), where
            found = standing.names()
            assert found == [there] or code and found == [here], f"{where}: {found}"
            here, there = found[0], {"a": "b", "b": "a"}[found[0]]
            standing.check(here, entries)
    finally:
        standing.down()


def test_a_directory_is_renamed_while_servers_die(tmp_path):
    renamed_and_killed(tmp_path, QUICK_ENTRIES, QUICK_ROUNDS, seed=1)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(2))
def test_a_directory_of_a_hundred_thousand_is_renamed_while_servers_die(tmp_path, seed):
    renamed_and_killed(tmp_path, ENTRIES, ROUNDS, seed + 100)
