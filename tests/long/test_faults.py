# SPDX-License-Identifier: Apache-2.0
"""Clients and servers that are killed or stopped while many transfers are under way: who survives gets its bytes, no
EIO but for a server that was killed, and an end."""
import os
import random
import select
import signal
import subprocess
import sys

import pytest
from support import MADFS, call, clean_environment

from pymadfs import cli, cluster

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

CLIENT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "transfers.py")
CLIENTS, EVENTS, TIMEOUT_MS = 4, 30, 3000
SEEDS = [int(seed) for seed in os.environ.get("FAULT_SEEDS", "1").split()]


class World:
    """A cluster of three servers and its clients; clients that were killed are followed by new ones."""

    def __init__(self, path, transport, seed):
        self.path, self.seed, self.chance = path, seed, random.Random(seed)
        self.cluster = str(path / "cluster")
        settings = {"MADFS_LINGER_MS": "100", "MADFS_GRACE_MS": "2000", "MADFS_TIMEOUT_MS": str(TIMEOUT_MS)}
        self.environment = {**clean_environment(), **settings, **({"MADFS_UCX_TLS": transport} if transport else {})}
        self.run("up", "--servers", 3, "--store", path / "store", "--cluster", self.cluster)
        self.environment.update(cli.preload_environment(self.cluster))
        self.mount = self.environment["MADFS_MOUNT"]
        self.clients, self.numbers, self.happened = {}, 0, []
        for _ in range(CLIENTS):
            self.begin()

    def run(self, *arguments):
        done = call([*MADFS, *arguments], environment=self.environment, timeout=120)
        assert done.returncode == 0, (arguments, done.stdout, done.stderr, self.happened)

    def argv(self, number, what):
        return [sys.executable, CLIENT, self.mount, str(self.path / f"state-{number}"), str(number), str(what)]

    def begin(self):
        self.numbers += 1
        self.clients[self.numbers] = subprocess.Popen(
            self.argv(self.numbers, self.seed), env=self.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True)

    def pause(self, most=0.6):
        """Let the transfers go on for a while."""
        select.select([], [], [], self.chance.uniform(0.05, most))
        gone = [(number, client.communicate()) for number, client in self.clients.items() if client.poll() is not None]
        assert not gone, (gone, self.happened)

    def kill_client(self):
        number = self.chance.choice(list(self.clients))
        client = self.clients.pop(number)
        client.kill()
        client.communicate()
        self.begin()
        return number

    def stop_client(self):
        number = self.chance.choice(list(self.clients))
        client = self.clients[number]
        client.send_signal(signal.SIGSTOP)
        select.select([], [], [], self.chance.choice((0.3, 1.5, TIMEOUT_MS / 1000 * 1.3)))
        client.send_signal(signal.SIGCONT)
        return number

    def server(self):
        return self.chance.choice(cluster.read(self.cluster).servers)

    def stop_server(self):
        pid = self.server().pid
        os.kill(pid, signal.SIGSTOP)
        select.select([], [], [], self.chance.choice((0.1, 0.4, 0.8)))
        os.kill(pid, signal.SIGCONT)
        return pid

    def kill_server(self):
        pid = self.server().pid
        os.kill(pid, signal.SIGKILL)
        self.pause()
        self.run("up", "--cluster", self.cluster)
        return pid

    def end(self):
        """All clients end, and find what they wrote; returns how many EIOs there were."""
        failures = 0
        for client in self.clients.values():
            client.stdin.close()
            client.stdin = None
        for number, client in self.clients.items():
            said, errors = client.communicate(timeout=120)
            strange = [line for line in errors.splitlines() if not line.startswith("madfs: ")]
            assert (client.returncode, strange) == (0, []), (number, errors, self.happened)
            failures += int(said)
        self.clients.clear()
        for number in range(1, self.numbers + 1):
            done = call(self.argv(number, "check"), environment=self.environment, timeout=120)
            assert done.returncode == 0, (number, done.stderr, self.happened)
        self.run("fsck", "--cluster", self.cluster)
        done = call(["sh", "-c", f"rm {self.mount}/*-* && ls -A {self.mount}"], environment=self.environment)
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
        return failures

    def close(self):
        for client in self.clients.values():
            client.kill()
            client.communicate()
        self.run("down", "--cluster", self.cluster)
        self.run("fsck", "--store", self.path / "store")


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("servers", [False, True], ids=["clients", "servers"])
@pytest.mark.parametrize("transport", ["", "tcp"], ids=["shm", "tcp"])
def test_survivors_have_their_bytes(tmp_path, transport, servers, seed):
    world = World(tmp_path, transport, seed)
    acts = [world.kill_client, world.kill_client, world.stop_client, world.stop_server]
    if servers:
        acts += [world.kill_server] * 2
    try:
        for _ in range(EVENTS):
            world.pause()
            act = world.chance.choice(acts)
            world.happened.append((act.__name__, act()))
        failures = world.end()
        assert servers or not failures, (failures, world.happened)
    finally:
        world.close()
