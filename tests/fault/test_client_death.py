# SPDX-License-Identifier: Apache-2.0
"""Clients that end by kill -9 at any moment, in any call: what they were told is done is done, what they held is free,
and the file system is in order."""
import os
import random
import select
import subprocess
import sys
import time

import pytest
from support import MADFS, call

from pymadfs import cli

# Works in a directory of its own and in one that all share; says what was acknowledged.
WORKER = r"""
import ctypes, fcntl, os, random, sys
top, number, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
chance = random.Random(seed * 100 + number)
libc = ctypes.CDLL(None, use_errno=True)
os.chdir(top)
log = os.open(f"log-{seed}-{number}", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
lock = os.open("lock", os.O_CREAT | os.O_RDWR)
held, count = [], 0
def record(count):
    size = (17, 900, 70_000, 700_000)[count % 4]
    return (b"%d:%d;" % (number, count) * (size // 8 + 1))[:size]
def orphan():
    fd = os.open(f"orphan-{number}", os.O_CREAT | os.O_RDWR)
    os.write(fd, b"x" * chance.choice((10, 9000, 1_500_000)))
    os.unlink(f"orphan-{number}")
    held.append(fd)
    if len(held) > 4: os.close(held.pop(0))
def locked():
    fcntl.lockf(lock, fcntl.LOCK_EX, 1, number)
    fcntl.flock(lock, fcntl.LOCK_SH)
def name(): return f"shared/{chance.randrange(12)}" + ("" if chance.random() < 0.6 else f"/{chance.randrange(4)}")
def create():
    with open(name(), "wb") as file: file.write(b"y" * chance.choice((5, 5000, 600_000)))
def nameless():
    fd = os.open(".", os.O_TMPFILE | os.O_RDWR)
    os.write(fd, b"z" * 600_000)
    os.link(f"/proc/self/fd/{fd}", name(), src_dir_fd=0)
    os.close(fd)
def swap(): libc.renameat2(-100, name().encode(), -100, name().encode(), chance.choice((0, 1, 2)))
def mapped():
    import mmap
    with open(name(), "r+b") as file, mmap.mmap(file.fileno(), 0) as memory: memory[0] = 109
acts = [orphan, locked, create, create, nameless, swap, swap, mapped, lambda: os.mkdir(name()),
        lambda: os.rmdir(name()), lambda: os.unlink(name()), lambda: os.link(name(), name()),
        lambda: os.truncate(name(), chance.choice((0, 3, 2_000_000))), lambda: os.listdir("shared"),
        lambda: os.posix_fallocate(held[0], 0, 3_000_000) if held else None]
print("begins", flush=True)
while True:
    try:
        chance.choice(acts)()
    except (OSError, ValueError, IndexError):
        pass
    if chance.random() < 0.5:
        data = record(count)
        assert os.write(log, data) == len(data)
        count += 1
        print(count, flush=True)
"""

CHECK = r"""
import fcntl, os, sys
top, number, seed, told = sys.argv[1], *map(int, sys.argv[2:])
def record(count):
    size = (17, 900, 70_000, 700_000)[count % 4]
    return (b"%d:%d;" % (number, count) * (size // 8 + 1))[:size]
with open(f"{top}/log-{seed}-{number}", "rb") as file: data = file.read()
at = 0
for count in range(told):
    wanted = record(count)
    assert data[at:at + len(wanted)] == wanted, f"record {count} of {told}"
    at += len(wanted)
wanted = record(told)
assert len(data) - at <= len(wanted), (len(data), at)
assert all(found in (0, byte) for found, byte in zip(data[at:], wanted)), "bytes that nobody wrote"
with open(f"{top}/lock", "r+b") as file:
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
print("fine")
"""

CLEAN = "cd $MADFS_MOUNT && rm -rf shared log-* orphan-* lock && ls -A"


def stored(store):
    return sum(len(names) for directory, _, names in os.walk(store) if os.sep + "data" in directory)


def kill_clients(tmp_path, monkeypatch, seeds):
    monkeypatch.setenv("MADFS_LINGER_MS", "100")
    monkeypatch.setenv("MADFS_GRACE_MS", "2000")  # a server whose queue a killed client blocks begins anew
    path, store = str(tmp_path / "cluster"), str(tmp_path / "store")
    subprocess.run([*MADFS, "up", "--servers", "3", "--cluster", path, "--store", store], check=True, timeout=60)
    environment = {**os.environ, **cli.preload_environment(path)}
    try:
        for seed in seeds:
            one_round(environment, path, seed)
        done = call(["sh", "-c", CLEAN], environment=environment)
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
        until = time.monotonic() + 20
        while stored(store):
            assert time.monotonic() < until, "what was open and removed is not freed: " + str(call(
                [*MADFS, "fsck", "--cluster", path]))
            os.sched_yield()
    finally:
        subprocess.run([*MADFS, "down", "--cluster", path], check=True, timeout=60)
    done = call([*MADFS, "fsck", "--store", store])
    assert done.returncode == 0, done.stdout + done.stderr


def one_round(environment, path, seed, clients=3):
    chance, mount = random.Random(seed), environment["MADFS_MOUNT"]
    subprocess.run(["mkdir", "-p", f"{mount}/shared"], env=environment, check=True, timeout=60)
    workers = [subprocess.Popen([sys.executable, "-c", WORKER, mount, str(number), str(seed)], env=environment,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0)
               for number in range(clients)]
    told = []
    try:
        for worker in workers:
            assert worker.stdout.readline() == b"begins\n", worker.stderr.read()
        select.select([], [], [], chance.random() * 1.5)  # the moment is what is tried
    finally:
        for worker in workers:
            worker.kill()
        outputs = [worker.communicate(timeout=60) for worker in workers]
    for output, errors in outputs:
        assert b"Traceback" not in errors, errors.decode()
        told.append(int((b"0\n" + output).split(b"\n")[-2]))  # the last whole line
    for number in range(clients):
        until = time.monotonic() + 10
        while True:  # locks are free when the servers have noticed
            done = call([sys.executable, "-c", CHECK, mount, number, seed, told[number]], environment=environment)
            if done.stdout == "fine\n" or "Errno 11" not in done.stderr or time.monotonic() > until:
                break
        assert done.stdout == "fine\n", (number, done.stderr)
    done = call([*MADFS, "fsck", "--cluster", path])
    assert done.returncode == 0, done.stdout + done.stderr


def test_killed_clients_leave_everything_in_order(tmp_path, monkeypatch):
    kill_clients(tmp_path, monkeypatch, range(2))


@pytest.mark.long
@pytest.mark.parametrize("first", range(100, 200, 10))
def test_clients_killed_again_and_again_leave_everything_in_order(tmp_path, monkeypatch, first):
    kill_clients(tmp_path, monkeypatch, range(first, first + 10))
