# SPDX-License-Identifier: Apache-2.0
"""Servers that die, that come back, and that are sent garbage: the caller hears of it in time and nothing acknowledged
is lost."""
import os
import random
import signal
import socket
import subprocess
import sys
import time

import pytest

from pymadfs import cli, cluster

# Writes file after file, says so after each close, and at the first error tells its number and how long it took.
WRITER = r"""
import os, sys, time
directory, big = sys.argv[1], len(sys.argv) > 2
count = 0
while True:
    began = time.monotonic()
    try:
        with open(f"{directory}/f{count}", "wb", buffering=0) as f:
            f.write(b"%08d" % count * (1 if not big else 150000))
    except OSError as error:
        print("error", error.errno, round(time.monotonic() - began, 2), flush=True)
        break
    print("written", count, flush=True)
    count += 1
"""


@pytest.fixture
def standing(tmp_path):
    """A cluster of this test's own, since its servers get killed: (cluster file, store, environment of clients).  At
    the end all of it is in order."""
    path, store = str(tmp_path / "cluster"), str(tmp_path / "store")
    up = ["madfs", "up", "--servers", "2", "--cluster", path, "--store", store]
    subprocess.run(up, check=True, timeout=60)
    try:
        yield path, store, {**os.environ, **cli.preload_environment(path)}
        subprocess.run(up, check=True, timeout=60, capture_output=True)
        done = subprocess.run(["madfs", "fsck", "--cluster", path], timeout=60, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    finally:
        subprocess.run(["madfs", "down", "--cluster", path], timeout=60, capture_output=True)


def kill(path, number):
    """End server ``number`` as a crash would, and wait until it is gone."""
    pid = cluster.read(path).servers[number].pid
    end = os.pidfd_open(pid)
    os.kill(pid, signal.SIGKILL)
    import select
    assert select.select([end], [], [], 10)[0], "the server outlived SIGKILL"
    os.close(end)


@pytest.mark.parametrize("big", [[], ["big"]])
def test_killed_server_gives_eio_and_keeps_what_was_acknowledged(standing, big):
    path, store, environment = standing
    writer = subprocess.Popen([sys.executable, "-c", WRITER, environment["MADFS_MOUNT"], *big], env=environment,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for _ in range(20):
        assert writer.stdout.readline().startswith("written")
    killed = time.monotonic()
    kill(path, 1)
    output, log = writer.communicate(timeout=20)
    assert time.monotonic() - killed < 5 + 2
    last = output.splitlines()[-1].split()
    assert last[:2] == ["error", "5"] and float(last[2]) < 5, output[-200:]
    assert "server 1" in log, log
    written = 20 + output.count("written")

    subprocess.run(["madfs", "up", "--servers", "2", "--cluster", path, "--store", store], check=True, timeout=60)
    check = "import sys\nfor i in range(int(sys.argv[2])):\n    data = open(f'{sys.argv[1]}/f{i}', 'rb').read()\n" \
            "    assert data == b'%08d' % i * int(sys.argv[3]), i\nprint('intact')"
    done = subprocess.run([sys.executable, "-c", check, environment["MADFS_MOUNT"], str(written),
                           "150000" if big else "1"],
                          env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout == "intact\n", done.stderr


def test_client_goes_on_after_a_restart(standing):
    path, store, environment = standing
    script = ("import sys\np = sys.argv[1] + '/x%d'\nfor i in range(8): open(p % i, 'w').write('a')\n"
              "print('ready', flush=True)\nsys.stdin.readline()\nfor i in range(8): assert open(p % i).read() == 'a'\n"
              "for i in range(8, 16): open(p % i, 'w').write('b')\nprint('on')")
    client = subprocess.Popen([sys.executable, "-c", script, environment["MADFS_MOUNT"]], env=environment, text=True,
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert client.stdout.readline() == "ready\n"
    kill(path, 0)
    subprocess.run(["madfs", "up", "--servers", "2", "--cluster", path, "--store", store], check=True, timeout=60)
    output, log = client.communicate("go\n", timeout=30)
    assert output == "on\n", log


def listening(pid):
    """TCP addresses on which process ``pid`` listens: the door, and UCX's own, one for each network."""
    inodes = {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
    addresses = set()
    with open(f"/proc/{pid}/net/tcp") as lines:
        for line in list(lines)[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
                host, _, port = fields[1].partition(":")
                addresses.add((socket.inet_ntoa(bytes.fromhex(host)[::-1]), int(port, 16)))
    return addresses


def test_garbage_on_every_port(standing):
    path, _store, environment = standing
    server = cluster.read(path).servers[0]
    addresses = listening(server.pid)
    assert (server.host, server.port) in addresses
    generator = random.Random(2026)
    for address in sorted(addresses):
        for size in (0, 1, 7, 64, 1000, 100_000):
            with socket.create_connection(address, timeout=5) as connection:
                try:
                    connection.sendall(generator.randbytes(size))
                    connection.shutdown(socket.SHUT_WR)
                    connection.settimeout(10)
                    while connection.recv(4096):
                        pass
                except OSError:
                    pass  # being thrown out is the right answer
    done = subprocess.run(["sh", "-c", "echo alive > $MADFS_MOUNT/f && cat $MADFS_MOUNT/f && ls $MADFS_MOUNT"],
                          env=environment,
                          capture_output=True, text=True, timeout=30)
    assert done.stdout == "alive\nf\n", done.stderr
    assert cluster.read(path).servers[0].pid == server.pid
    os.kill(server.pid, 0)


def test_large_files_are_spread_over_all_servers(tmp_path):
    store = tmp_path / "store"
    subprocess.run(["madfs", "run", "--servers", "3", "--store", str(store), "--chunk-size", "64K", "--",
                    "sh", "-c", "head -c 1000000 /dev/zero > $MADFS_MOUNT/f && stat -c %s $MADFS_MOUNT/f"], check=True,
                    timeout=60)
    sizes = []
    for server in sorted(store.iterdir()):
        if server.is_dir():
            sizes.append(sum(os.path.getsize(os.path.join(d, f)) for d, _, names in os.walk(server / "data")
                             for f in names))
    assert len(sizes) == 3 and min(sizes) >= 5 * 65536 - 65536 and sum(sizes) == 1_000_000
