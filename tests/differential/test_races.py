# SPDX-License-Identifier: Apache-2.0
"""Processes that race for names leave a directory tree behind in which everything is in order."""
import os
import select
import signal
import subprocess
import sys

import pytest
from support import MADFS, call

from pymadfs import cli, cluster

RACER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "racer.py")
RACE_S = 120

# Run on the mount: what is listed exists, link counts are the numbers of names, and everything can be removed.
INVARIANTS = """
import collections, os, stat, sys
top, wrong = sys.argv[1], []
names, found = collections.Counter(), {}
for directory, directories, files in os.walk(top, onerror=wrong.append):
    links = os.stat(directory).st_nlink
    if links != 2 + len(directories):
        wrong.append(f"{directory} has {len(directories)} directories and {links} links")
    for name in directories + files:
        path = os.path.join(directory, name)
        try:
            info = os.lstat(path)
        except OSError as error:
            wrong.append(f"listed, and {error}")
            continue
        if stat.S_ISREG(info.st_mode):
            names[info.st_ino] += 1
            found[info.st_ino] = path, info.st_nlink
            with open(path, "rb") as file:
                if set(file.read()) - {ord("x")}:
                    wrong.append(f"{path} has bytes that nobody wrote")
        elif not stat.S_ISDIR(info.st_mode):
            wrong.append(f"{path} is {stat.filemode(info.st_mode)}")
for ino, (path, links) in found.items():
    if links != names[ino]:
        wrong.append(f"{path} has {names[ino]} names and {links} links")
for directory, directories, files in os.walk(top, topdown=False):
    for name in files:
        os.unlink(os.path.join(directory, name))
    for name in directories:
        os.rmdir(os.path.join(directory, name))
os.rmdir(top)
print(*wrong, sep="\\n", end="")
"""


def python(script, *arguments, environment):
    """Start a Python program in ``environment``; its output is text."""
    return subprocess.Popen([sys.executable, "-S", "-E", *script, *map(str, arguments)], env=environment, text=True,
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def race(environment, processes, steps, seed, *allowed, meanwhile=lambda: None):
    """Let the processes race until ``meanwhile`` is done, and return everything that is wrong afterwards."""
    top = f"{environment['MADFS_MOUNT']}/race-{seed}"
    subprocess.run(["mkdir", top], env=environment, check=True, timeout=RACE_S)
    racers = [python([RACER], top, seed * 100 + number, steps, *allowed, environment=environment)
              for number in range(processes)]
    try:
        for racer in racers:
            assert racer.stdout.readline() == "begins\n"
        meanwhile()
        wrong = "".join(racer.communicate(timeout=RACE_S)[0] for racer in racers)
    finally:
        for racer in racers:
            racer.kill()
            racer.communicate()
    check = python(["-c", INVARIANTS], top, environment=environment)
    wrong += check.communicate(timeout=RACE_S)[0]
    done = call([*MADFS, "fsck", "--cluster", environment["MADFS_CLUSTER"]], timeout=RACE_S)
    return wrong if done.returncode == 0 else wrong + done.stdout + done.stderr


@pytest.fixture
def loaded(trio):
    return {**os.environ, **trio}


def test_racing_for_names(loaded):
    assert race(loaded, 4, 200, seed=1) == ""


@pytest.mark.long
@pytest.mark.parametrize("seed", range(2, 102))
def test_racing_for_names_often(loaded, seed):
    assert race(loaded, 4, 300, seed) == ""


def crash_and_race(tmp_path, seeds, steps, crashes=1):
    """Servers die by kill -9 and come back on their stores while processes race."""
    path, store = str(tmp_path / "cluster"), str(tmp_path / "store")
    up = [*MADFS, "up", "--servers", "3", "--store", store, "--cluster", path]
    subprocess.run(up, check=True, timeout=60)
    try:
        for seed in seeds:
            environment = {**os.environ, **cli.preload_environment(path)}
            wrong = race(environment, 3, steps, seed, "EIO",
                         meanwhile=lambda seed=seed: [crash(path, (seed + i) % 3, up) for i in range(crashes)])
            assert "\n".join(line for line in wrong.splitlines() if not line.startswith("madfs:")) == ""
    finally:
        subprocess.run([*MADFS, "down", "--cluster", path], check=True, timeout=60)


TROUBLE = "share=0.3,delay_ms=30,twice=0.3,seed=%d"  # server/trouble.py


def troubled_race(tmp_path, monkeypatch, seeds, steps, crashes=0):
    """The same with messages that are held back, overtake each other and come twice; and at the end the stores of the
    stopped servers are looked at, too."""
    monkeypatch.setenv("MADFS_TROUBLE", TROUBLE % seeds[0])
    crash_and_race(tmp_path, seeds, steps, crashes)
    monkeypatch.delenv("MADFS_TROUBLE")
    done = call([*MADFS, "fsck", "--store", tmp_path / "store"])
    assert done.returncode == 0, done.stdout + done.stderr


def test_racing_on_a_network_with_trouble(tmp_path, monkeypatch):
    troubled_race(tmp_path, monkeypatch, range(1), 60)


def test_racing_on_a_network_with_trouble_while_servers_die(tmp_path, monkeypatch):
    troubled_race(tmp_path, monkeypatch, range(1), 60, crashes=2)


@pytest.mark.long
@pytest.mark.parametrize("first", range(100, 150, 5))
@pytest.mark.parametrize("crashes", [0, 3])
def test_racing_on_a_network_with_trouble_often(tmp_path, monkeypatch, first, crashes):
    troubled_race(tmp_path, monkeypatch, range(first, first + 5), 200, crashes)


def test_trouble_that_is_misspelt_is_refused(tmp_path):
    done = call([*MADFS, "run", "--", "true"], environment={"MADFS_TROUBLE": "delay=3"})
    assert done.returncode and "MADFS_TROUBLE='delay=3' is not valid" in done.stderr


def crash(path, number, up):
    """Kill server ``number`` and start it again."""
    pid = cluster.read(path).servers[number].pid
    end = os.pidfd_open(pid)
    try:
        os.kill(pid, signal.SIGKILL)
        assert select.select([end], [], [], 10)[0], "the server outlived SIGKILL"
    finally:
        os.close(end)
    subprocess.run(up, check=True, timeout=60)


def test_racing_while_servers_die(tmp_path):
    crash_and_race(tmp_path, range(3), 150)


@pytest.mark.long
@pytest.mark.parametrize("first", range(0, 99, 3))
def test_racing_while_servers_die_often(tmp_path, first):
    crash_and_race(tmp_path, range(first, first + 3), 400, crashes=3)
