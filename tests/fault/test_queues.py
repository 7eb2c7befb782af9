# SPDX-License-Identifier: Apache-2.0
"""Queues in shared memory that a sender has left a gap in: who shall receive there finds out, and goes on."""
import contextlib
import ctypes
import os
import subprocess
import sys
import time

import pytest
from gap import claim, queues
from test_servers import kill, standing

from pymadfs import cluster
from pymadfs.config import Config
from pymadfs.layout import owner
from pymadfs.ops import ATTR, GETATTR, MKDIR, OPEN, READ, WRITE
from pymadfs.rpc import Client

assert standing  # a fixture

GAP = os.path.join(os.path.dirname(os.path.abspath(__file__)), "gap.py")
ON_S = 10.0  # within which a server finds out; it takes a second on an idle machine
SLEEPS_S = 5.0

# Makes directories and renames files, until told to end; says how many.  None fails, and none is made twice, which
# EEXIST and ENOENT would tell.
MAKER = """
import os, select, sys, time
os.chdir(sys.argv[1])
count = 0
print("begins", flush=True)
while not select.select([0], [], [], 0)[0] or count < 50:
    os.mkdir(f"d{count}")
    os.close(os.open(f"d{count}/f", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    os.rename(f"d{count}/f", f"f{count}")
    os.link(f"f{count}", f"l{count}")
    os.unlink(f"f{count}")
    count += 1
whole = sorted(os.listdir(".")) == sorted(f"{kind}{n}" for n in range(count) for kind in "dl")
print(count, whole and all(os.stat(f"l{n}").st_nlink == 1 for n in range(count)))
"""

# Threads write pieces of many sizes, each to a file of its own, until told to end; says whether all are right.
WRITER = """
import os, select, sys, threading
os.chdir(sys.argv[1])
sizes, told, right = [100, 5000, 9000, 40000, 70000, 600000, 1 << 20], [], []
def work(number):
    fd, size, turn = os.open(f"w{number}", os.O_CREAT | os.O_RDWR), sizes[number % len(sizes)], 0
    while not told or turn < 20:
        turn += 1
        piece = bytes([turn % 251]) * size
        assert os.pwrite(fd, piece, turn % 5 * size) == size
        if turn % 7 == 0: assert os.pread(fd, size, turn % 5 * size) == piece
    right.append(os.fstat(fd).st_size == 5 * size)
threads = [threading.Thread(target=work, args=(number,)) for number in range(21)]
for thread in threads: thread.start()
print("begins", flush=True)
sys.stdin.read()
told.append(True)
for thread in threads: thread.join()
print(len(right), all(right))
"""


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """On a machine that has other things to do, too, a server may take its time to begin anew."""
    monkeypatch.setenv("MADFS_CONNECT_MS", "20000")


@contextlib.contextmanager
def gap(path, number):
    """With a process that has left a gap in the queue of server ``number``."""
    helper = subprocess.Popen([sys.executable, GAP, path, str(number)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                              text=True)
    try:
        assert helper.stdout.readline() == "1\n"
        yield
    finally:
        helper.kill()
        helper.communicate(timeout=10)


def log_of(store, number):
    with open(f"{store}/server-{number}.log") as file:
        return file.read()


def began_anew(store, number, times=1):
    until = time.monotonic() + ON_S * times
    while log_of(store, number).count("begins anew") < times:
        assert time.monotonic() < until, log_of(store, number)
        time.sleep(0.01)


def sleeps(pid):
    """Wait until the process takes next to no time any more: 50 ms of a half second at most."""
    def used():
        with open(f"/proc/{pid}/stat") as file:
            return sum(map(int, file.read().rpartition(")")[2].split()[11:13])) / os.sysconf("SC_CLK_TCK")

    until = time.monotonic() + SLEEPS_S
    while True:
        before = used()
        time.sleep(0.5)
        if used() - before <= 0.05:
            return
        assert time.monotonic() < until, "the server still spins"


def test_a_gap_in_a_servers_queue(standing):
    """Twice, and for clients that are at work meanwhile as for new ones; nothing is done twice and nothing fails."""
    path, store, environment = standing
    mount = environment["MADFS_MOUNT"]
    makers = []
    for name in ("a", "b"):
        subprocess.run(["mkdir", f"{mount}/{name}"], env=environment, check=True, timeout=30)
        makers.append(subprocess.Popen([sys.executable, "-c", MAKER, f"{mount}/{name}"], env=environment,
                                       text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
    try:
        for maker in makers:
            assert maker.stdout.readline() == "begins\n"
        for times in (1, 2):
            with gap(path, 1):
                began_anew(store, 1, times)
                subprocess.run(["ls", f"{mount}/a", f"{mount}/b"], env=environment, check=True, timeout=30,
                               stdout=subprocess.DEVNULL)
        for maker in makers:
            count, whole = maker.communicate("", timeout=30)[0].split()
            assert int(count) >= 50 and whole == "True"
            assert maker.returncode == 0
    finally:
        for maker in makers:
            maker.kill()
            maker.communicate()
    for server in cluster.read(path).servers:
        sleeps(server.pid)


def test_writes_under_way_at_a_server_that_begins_anew(standing):
    """Their data cannot come any more: they are made again, by threads that overtake each other."""
    path, store, environment = standing
    writer = subprocess.Popen([sys.executable, "-c", WRITER, environment["MADFS_MOUNT"]], env=environment, text=True,
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert writer.stdout.readline() == "begins\n"
        for number, times in ((0, 1), (1, 1), (0, 2)):
            with gap(path, number):
                began_anew(store, number, times)
        said, trouble = writer.communicate("", timeout=60)
        assert said == "21 True\n", trouble
    finally:
        writer.kill()
        writer.communicate()


def test_a_gap_in_the_queue_of_a_server_that_sleeps(standing):
    """Nobody else calls: it finds out by itself, and whoever comes later is served at once."""
    path, store, environment = standing
    with gap(path, 0):
        began_anew(store, 0)
        sleeps(cluster.read(path).servers[0].pid)
        subprocess.run(["sh", "-c", "for i in 1 2 3 4 5 6; do mkdir $MADFS_MOUNT/$i || exit 1; done"], env=environment,
                       check=True, timeout=30)


def test_a_stopped_client_makes_no_server_begin_anew(standing):
    """It reads no replies, so the server has something to send all the time."""
    path, store, environment = standing
    many = ("import os, sys, threading\nos.chdir(sys.argv[1])\nprint('begins', flush=True)\n"
            "def work():\n    while True: os.listdir('.')\n"
            "for _ in range(80): threading.Thread(target=work, daemon=True).start()\nsys.stdin.read()\nos._exit(0)")
    client = subprocess.Popen([sys.executable, "-c", many, environment["MADFS_MOUNT"]], env=environment, text=True,
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert client.stdout.readline() == "begins\n"
        client.send_signal(19)
        subprocess.run(["sh", "-c", "for i in $(seq 20); do mkdir $MADFS_MOUNT/$i || exit 1; done; sleep 1.5"],
                       env=environment, check=True, timeout=30)
        client.send_signal(18)
        client.communicate("", timeout=30)
    finally:
        client.kill()
        client.communicate()
    assert "anew" not in log_of(store, 0) + log_of(store, 1)


# Can map no more memory for a moment, as a process at its limit: longer messages need a segment of the server's.
STARVED = """
import ctypes, os, resource, sys
from pymadfs import cluster
from pymadfs.config import Config
from pymadfs.layout import owner
from pymadfs.ops import ATTR, GETATTR, OPEN, WRITE
from pymadfs.rpc import Client
client = Client(cluster.read(sys.argv[1]), Config())
server = owner(b"/f", 2)
reply, _ = client.call(server, OPEN, b"/f", os.O_CREAT | os.O_RDWR, 0o644, 1 << 19, 0)
ino = ATTR.unpack(reply.attr).ino
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + (1 << 20), -1))
unshare = client._unshare
client._unshare = lambda: resource.setrlimit(resource.RLIMIT_AS, (-1, -1)) or unshare()
memory = ctypes.create_string_buffer(b"x" * 6000)
for _ in range(3):
    try:
        client.call(server, WRITE, b"/f", ino, 0, 0, 6000, 6000, 2, 0, 0, send=(ctypes.addressof(memory), 6000))
    except OSError as error:
        print(error.errno)
    else:
        print("written")
"""


def test_a_client_that_can_map_no_more(standing):
    path, store, environment = standing
    done = subprocess.run([sys.executable, "-c", STARVED, path], text=True, capture_output=True, timeout=60)
    assert done.stdout == "written\n" * 3, done.stderr
    began_anew(store, owner(b"/f", 2))
    subprocess.run(["sh", "-c", "for i in 1 2 3 4 5 6; do mkdir $MADFS_MOUNT/$i || exit 1; done"], env=environment,
                   check=True, timeout=30)
    assert log_of(store, owner(b"/f", 2)).count("begins anew") == 1


def test_a_gap_in_a_clients_queue(standing):
    """A server that dies may leave it: the client asks itself whether it hears, and connects to the others anew."""
    path, _, _ = standing
    client = Client(cluster.read(path), Config({"MADFS_TIMEOUT_MS": "20000"}))
    try:
        for number in range(2):
            with pytest.raises(OSError):
                client.call(number, GETATTR, b"/none", 1 << 40)
        found = queues(os.getpid())
        assert found
        for start in found:
            claim(start)
        kill(path, 1)
        other = next(name for name in (b"/%d" % number for number in range(100)) if owner(name, 2) == 1)
        with pytest.raises(OSError):
            client.call(1, MKDIR, other, 0o755)
        name = next(name for name in (b"/%d" % number for number in range(100)) if owner(name, 2) == 0)
        began = time.monotonic()
        reply, _ = client.call(0, OPEN, name, os.O_CREAT | os.O_RDWR, 0o644, 1 << 19, 0)
        ino = ATTR.unpack(reply.attr).ino
        memory = ctypes.create_string_buffer(b"x" * 100_000)
        client.call(0, WRITE, name, ino, 0, 0, 100_000, 100_000, len(name), 0, 0,
                    send=(ctypes.addressof(memory), 100_000))
        back = ctypes.create_string_buffer(100_000)
        client.call(0, READ, b"", ino, 0, 0, 100_000, recv=(ctypes.addressof(back), 100_000))
        assert back.raw == b"x" * 100_000
        assert time.monotonic() - began < 10
    finally:
        client.close()
