# SPDX-License-Identifier: Apache-2.0
"""Soak and repeated race tests, run by ``make test-long``: what goes wrong once in a thousand times."""
import os
import random
import select
import signal
import subprocess
import sys

import pytest
from support import MADFS, TIMEOUT_S, call, clean_environment

from pymadfs import cli, cluster

pytestmark = pytest.mark.long

# Changes names in one directory together with others.  Only what a race explains may fail, and what is seen must exist.
RACER = """
import errno, os, random, sys
top, seed, steps = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
chance = random.Random(seed)
expected = {errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY, errno.EISDIR, errno.ENOTDIR}
names = [f"{top}/{i}" for i in range(12)] + [f"{top}/d/{i}" for i in range(12)]
for _ in range(steps):
    a, b = chance.choice(names), chance.choice(names)
    try:
        match chance.randrange(8):
            case 0 | 1:
                with open(a, "w") as file:
                    file.write(f"{seed} " * chance.randrange(4000))
            case 2: os.rename(a, b)
            case 3: os.unlink(a)
            case 4: os.mkdir(f"{top}/d")
            case 5: os.rmdir(f"{top}/d")
            case 6:
                with open(a) as file:
                    file.read()
            case 7: assert all(name.isdigit() or name == "d" for name in os.listdir(top))
    except OSError as error:
        assert error.errno in expected, error
"""

# Reads and writes in threads, forks in others, and is interrupted a thousand times a second.
STORM = """
import os, random, signal, sys, threading
top, rounds = sys.argv[1], int(sys.argv[2])
signal.signal(signal.SIGALRM, lambda *_: None)
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
wrong = []
def work(number):
    for i in range(rounds):
        data = os.urandom(random.randrange(1, 100_000))
        path = f"{top}/{os.getpid()}-{number}-{i % 5}"
        with open(path, "wb") as file:
            file.write(data)
        with open(path, "rb") as file:
            if file.read() != data:
                wrong.append(path)
threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
for thread in threads:
    thread.start()
children = []
for i in range(rounds):
    child = os.fork()
    if child == 0:
        with open(f"{top}/child-{i}", "w") as file:
            file.write(str(i))
        os._exit(0 if open(f"{top}/child-{i}").read() == str(i) else 1)
    children.append(os.waitpid(child, 0)[1])
for thread in threads:
    thread.join()
signal.setitimer(signal.ITIMER_REAL, 0)
assert not wrong, wrong
assert not any(children), children
print("done")
"""


@pytest.fixture
def standing(madfs, tmp_path):
    path = tmp_path / "cluster"
    done = madfs("up", "--servers", 3, "--store", tmp_path / "store", "--cluster", path)
    assert done.returncode == 0, done.stderr
    yield path
    assert madfs("down", "--cluster", path).returncode == 0


def test_starts_and_stops_leave_nothing(madfs, tmp_path):
    for number in range(40):
        done = madfs("run", "--servers", 3, "--", "sh", "-c", f"echo {number} > /madfs/f; cat /madfs/f")
        assert (done.returncode, done.stdout) == (0, f"{number}\n"), done.stderr
        assert os.listdir(tmp_path / "tmp") == []


def test_interrupted_at_any_time(tmp_path):
    """Ctrl-C or SIGTERM to the launcher, from before its first step to after its last: nothing ever stays."""
    for number in range(60):
        process = subprocess.Popen([*MADFS, "run", "--servers", "2", "--", "sh", "-c", "echo x > /madfs/f"],
                                   env={**clean_environment(), "TMPDIR": str(tmp_path)}, stderr=subprocess.PIPE)
        end = os.pidfd_open(process.pid)
        select.select([end], [], [], number / 100)  # that long, or until it ended by itself
        os.close(end)
        process.send_signal(signal.SIGINT if number % 2 else signal.SIGTERM)
        process.communicate(timeout=TIMEOUT_S)  # its standard error ends when the keeper does
        assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("seed", range(5))
def test_names_under_race(standing, tmp_path, seed):
    environment = {**clean_environment(), **cli.preload_environment(str(standing))}
    racers = [subprocess.Popen([sys.executable, "-c", RACER, "/madfs", str(seed * 10 + i), "1500"], env=environment,
                               stderr=subprocess.PIPE, text=True) for i in range(4)]
    errors = [racer.communicate(timeout=5 * TIMEOUT_S)[1] for racer in racers]
    assert errors == [""] * len(racers)
    listed = call(["find", "/madfs", "-type", "f"], environment=environment).stdout.split()
    assert call(["cat", *listed], environment=environment).returncode == 0
    assert call(["rm", "-rf", *listed, "/madfs/d"], environment=environment).returncode == 0
    assert call(["find", "/madfs", "-mindepth", "1"], environment=environment).stdout == ""


def test_threads_forks_and_signals(standing):
    environment = cli.preload_environment(str(standing))
    done = call([sys.executable, "-c", STORM, "/madfs", "150"], environment=environment, timeout=10 * TIMEOUT_S)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


def test_killed_again_and_again(madfs, standing, tmp_path):
    """Whatever was acknowledged before a server was killed is there after it came back, every time."""
    chance = random.Random(11)
    acknowledged = 0
    writer = "i=$1; while echo $i > /madfs/f$i 2> /dev/null; do echo $i; i=$((i+1)); done"
    environment = {**clean_environment(), **cli.preload_environment(str(standing))}
    for _ in range(8):
        process = subprocess.Popen(["sh", "-c", writer, "sh", str(acknowledged)], env=environment, text=True,
                                   stdout=subprocess.PIPE)
        for _ in range(chance.randrange(50)):
            process.stdout.readline()
        os.kill(chance.choice(cluster.read(str(standing)).servers).pid, signal.SIGKILL)
        output, _ = process.communicate(timeout=TIMEOUT_S)
        acknowledged = max([acknowledged, *(int(line) + 1 for line in output.split())])
        done = madfs("up", "--cluster", standing)
        assert done.returncode == 0, done.stderr
        check = f"i=0; while [ $i -lt {acknowledged} ]; do test \"$(cat /madfs/f$i)\" = $i || echo $i; i=$((i+1)); done"
        assert call(["sh", "-c", check], environment=environment, timeout=5 * TIMEOUT_S).stdout == ""
