# SPDX-License-Identifier: Apache-2.0
"""Files that are removed while open live as long as somebody has them open, whoever dies in between."""
import os
import signal
import subprocess
import sys
import time

import pytest
from test_servers import kill

from pymadfs import cli

SIZE = 3_000_000
GRACE_MS = 2500

# Opens a file on each server, removes it, and says so; then does as it is told: "read" checks the bytes, "link" gives a
# name to a file that never had one.
HOLDER = r"""
import os, sys
os.chdir(sys.argv[1])
data = bytes(range(256)) * (int(sys.argv[2]) // 256 + 1)
data = data[:int(sys.argv[2])]
held = []
for i in range(6):
    fd = os.open(f"f{i}", os.O_CREAT | os.O_RDWR); os.write(fd, data); os.unlink(f"f{i}"); held.append(fd)
nameless = os.open(".", os.O_TMPFILE | os.O_RDWR); os.write(nameless, data)
print("ready", flush=True)
for line in sys.stdin:
    if line == "read\n":
        for fd in held:
            assert os.fstat(fd).st_nlink == 0 and os.fstat(fd).st_size == len(data)
            assert os.pread(fd, len(data) + 1, 0) == data
            os.pwrite(fd, b"new", 5)
            assert os.pread(fd, 4, 5) == b"new" + data[8:9]
            os.pwrite(fd, data[5:8], 5)
    elif line == "link\n":
        os.link(f"/proc/self/fd/{nameless}", "named", src_dir_fd=0)
        assert open("named", "rb").read() == data
    elif line == "close\n":
        for fd in held: os.close(fd)
    print("done", flush=True)
"""


class Client:
    def __init__(self, environment):
        self.process = subprocess.Popen([sys.executable, "-c", HOLDER, environment["MADFS_MOUNT"], str(SIZE)],
                                        env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout.readline() == "ready\n"

    def ask(self, *orders):
        for order in orders:
            self.process.stdin.write(order + "\n")
            self.process.stdin.flush()
            assert self.process.stdout.readline() == "done\n", order

    def end(self):
        self.process.stdin.close()
        assert self.process.wait(20) == 0
        self.process.stdout.close()

    def kill(self):
        self.process.kill()
        self.process.wait(20)
        self.process.stdin.close()
        self.process.stdout.close()


@pytest.fixture
def standing(tmp_path, monkeypatch):
    """(cluster file, store, environment of clients) of three servers; what starts them again."""
    monkeypatch.setenv("MADFS_GRACE_MS", str(GRACE_MS))
    monkeypatch.setenv("MADFS_LINGER_MS", "100")
    path, store = str(tmp_path / "cluster"), str(tmp_path / "store")

    def up():
        subprocess.run(["madfs", "up", "--servers", "3", "--cluster", path, "--store", store], check=True, timeout=60,
                       capture_output=True)

    up()
    yield path, store, {**os.environ, **cli.preload_environment(path)}, up
    subprocess.run(["madfs", "down", "--cluster", path], timeout=60, capture_output=True)


def stored(store):
    """How many chunk files there are."""
    return sum(len(names) for directory, _, names in os.walk(store) if os.sep + "data" in directory)


def freed(store, within_s=20.0):
    """Wait until nothing is stored; how long it took, in seconds."""
    began = time.monotonic()
    while stored(store):
        assert time.monotonic() - began < within_s, stored(store)
        time.sleep(0.005)  # the servers want the processor
    return time.monotonic() - began


def test_closing_frees(standing):
    _, store, environment, _ = standing
    client = Client(environment)
    client.ask("read")
    assert stored(store) >= 7 * (SIZE >> 19)
    client.ask("close", "link")
    subprocess.run(["rm", environment["MADFS_MOUNT"] + "/named"], env=environment, check=True, timeout=30)
    client.end()
    freed(store)


def test_a_killed_client_frees(standing):
    _, store, environment, _ = standing
    client = Client(environment)
    assert stored(store)
    client.kill()
    freed(store)


@pytest.mark.parametrize("victims", [[0], [0, 1, 2]])
def test_the_living_client_goes_on_after_a_restart(standing, victims):
    path, store, environment, up = standing
    client = Client(environment)
    for number in victims:
        kill(path, number)
    up()
    client.ask("read")
    began = time.monotonic()
    while time.monotonic() - began < GRACE_MS / 1000 + 1:  # what the grace is for: it keeps its files beyond it
        client.ask("read")
    client.ask("link", "read")
    client.end()
    subprocess.run(["rm", environment["MADFS_MOUNT"] + "/named"], env=environment, check=True, timeout=30)
    freed(store)


def test_a_client_that_does_not_come_back_frees(standing):
    path, store, environment, up = standing
    client = Client(environment)
    for number in range(3):
        kill(path, number)
    client.kill()
    up()
    assert stored(store)
    freed(store)


def test_removed_after_the_restart_before_the_client_is_heard_of(standing):
    """The restarted servers do not know yet that the file is open."""
    path, store, environment, up = standing
    script = ("import os, sys\nos.chdir(sys.argv[1])\nfd = os.open('f', os.O_CREAT | os.O_RDWR)\n"
              f"os.write(fd, b'x' * {SIZE})\nprint('ready', flush=True)\nsys.stdin.readline()\n"
              f"assert os.fstat(fd).st_nlink == 0 and os.pread(fd, {SIZE + 1}, 0) == b'x' * {SIZE}\nprint('read')")
    client = subprocess.Popen([sys.executable, "-c", script, environment["MADFS_MOUNT"]], env=environment, text=True,
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert client.stdout.readline() == "ready\n"
    for number in range(3):
        kill(path, number)
    up()
    subprocess.run(["rm", environment["MADFS_MOUNT"] + "/f"], env=environment, check=True, timeout=30)
    output, _ = client.communicate("go\n", timeout=30)
    assert output == "read\n"
    freed(store)


def test_a_stopped_client_is_not_a_dead_one(standing):
    _, store, environment, _ = standing
    client = Client(environment)
    client.process.send_signal(signal.SIGSTOP)
    assert stored(store)
    client.process.send_signal(signal.SIGCONT)
    client.ask("read")
    client.kill()
    freed(store)
