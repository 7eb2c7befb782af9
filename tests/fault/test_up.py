# SPDX-License-Identifier: Apache-2.0
"""`madfs up` while servers die: it ends in time, says which server is the matter, and the next one mends it."""
import os
import random
import signal
import subprocess
import sys
import threading

import pytest
from support import MADFS, call

from pymadfs import cli, keeper

UP_S = keeper.START_S + keeper.STOP_S + 15
SERVERS = 3

FILL = r"""
import os, sys
os.chdir(sys.argv[1])
number = 0
print("begins", flush=True)
while True:
    number += 1
    try:
        os.makedirs(f"d{number % 7}/e", exist_ok=True)
        with open(f"d{number % 7}/e/f", "w") as file: file.write("x" * 3000)
        os.replace(f"d{number % 7}/e/f", f"g{number % 5}")
        os.link(f"g{number % 5}", f"h{number}")
        os.rename(f"d{number % 7}", f"d{number % 3}")
        os.unlink(f"h{number - 1}")
    except OSError:
        continue
"""


def servers_of(store):
    """Process ids of the servers on ``store``."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/cmdline", "rb") as file:
                line = file.read().split(b"\0")
        except OSError:
            continue
        if b"pymadfs.server" in line and any(part.startswith(os.fsencode(store)) for part in line):
            found.append(int(name))
    return found


def kill_some(chance, store, ended):
    """Kill a server now and then until ``ended`` is set."""
    for _ in range(chance.randrange(1, 6)):
        if ended.wait(chance.random() * 0.6):
            return
        victims = servers_of(store)
        for pid in chance.sample(victims, min(len(victims), chance.choice((1, 1, 2, 3)))):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


def up_and_kill(tmp_path, seed, rounds):
    chance = random.Random(seed)
    path, store = str(tmp_path / "cluster"), str(tmp_path / "store")
    up = [*MADFS, "up", "--servers", SERVERS, "--cluster", path, "--store", store]
    assert call(up).returncode == 0
    environment = {**os.environ, **cli.preload_environment(path)}
    with subprocess.Popen([sys.executable, "-c", FILL, environment["MADFS_MOUNT"]], env=environment,
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as worker:
        try:
            assert worker.stdout.readline() == b"begins\n"
            for _ in range(rounds):
                ended = threading.Event()
                killer = threading.Thread(target=kill_some, args=(chance, store, ended))
                killer.start()
                try:
                    done = call(up, timeout=UP_S)  # TimeoutExpired: it hangs
                finally:
                    ended.set()
                    killer.join()
                assert done.returncode == 0 or "server" in done.stderr, done.stderr
            worker.kill()
            worker.wait()
            done = call(up, timeout=UP_S)
            assert done.returncode == 0, done.stderr
            done = call([*MADFS, "fsck", "--cluster", path])
            assert done.returncode == 0, done.stdout + done.stderr
        finally:
            worker.kill()
            call([*MADFS, "down", "--cluster", path])


def test_servers_die_while_servers_start(tmp_path):
    up_and_kill(tmp_path, 1, 4)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100, 112))
def test_servers_die_while_servers_start_again_and_again(tmp_path, seed):
    up_and_kill(tmp_path, seed, 12)
