# SPDX-License-Identifier: Apache-2.0
"""The real transport between processes: every kind of message, and everything that can happen to a process."""
import contextlib
import ctypes
import errno
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import pytest

import pymadfs
from pymadfs import ops
from pymadfs.cluster import Cluster, Server
from pymadfs.config import Config
from pymadfs.rpc import Client
from pymadfs.transport.ucx import Ucx

SERVER = Path(__file__).with_name("rpc_server.py")
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(pymadfs.__file__))}  # installed or not
SHM, TCP = "sysv,cma,self", "tcp,self"
SIZES = (0, 1, 1023, 1024, 8191, 8192, 8193, 65536, 524288, 3 << 20)

sys.path.insert(0, str(SERVER.parent))
from rpc_server import ATTR, content  # noqa: E402


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class Servers:
    """Server processes of one cluster, over ``transports``."""

    def __init__(self, directory, count, transports):
        self.cluster = Cluster("/madfs", b"s" * 32, [Server(number, "127.0.0.1", port, 0, "/none")
                                                     for number, port in enumerate(free_ports(count))])
        self.path = str(directory / "cluster")
        self.cluster.write(self.path)
        self.environment = {**ENVIRONMENT, "MADFS_UCX_TLS": transports, "MADFS_TIMEOUT_MS": "20000"}
        self.log = directory / "log"
        self.processes = [self.start(number) for number in range(count)]

    def start(self, number):
        with open(self.log, "ab") as log:
            process = subprocess.Popen([sys.executable, str(SERVER), self.path, str(number)], env=self.environment,
                                       stdout=subprocess.PIPE, stderr=log)
        if process.stdout.readline() != b"ready\n":
            process.wait(10)
            process.stdout.close()
            raise AssertionError(self.log.read_text())
        return process

    def kill(self, number, how=signal.SIGKILL):
        process = self.processes[number]
        process.send_signal(how)
        if how == signal.SIGKILL:
            process.wait(10)
            process.stdout.close()

    def restart(self, number):
        self.processes[number] = self.start(number)

    def stop(self):
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.wait(10)
            process.stdout.close()

    @contextlib.contextmanager
    def client(self, **variables):
        client = Client(self.cluster, Config({**self.environment, **variables}), uid=1, gid=2)
        try:
            yield client
        finally:
            client.close()


@pytest.fixture(params=[SHM, TCP, ""], ids=["shm", "tcp", "auto"])
def servers(request, tmp_path):
    servers = Servers(tmp_path, 1, request.param)
    yield servers
    servers.stop()


@pytest.fixture(params=[SHM, TCP], ids=["shm", "tcp"])
def three(request, tmp_path):
    servers = Servers(tmp_path, 3, request.param)
    yield servers
    servers.stop()


def write(client, server, data, ino=1, hint=b"/f"):
    """WRITE ``data`` from memory of our own; -> the checksum that the server answers."""
    memory = ctypes.create_string_buffer(data, max(len(data), 1))
    reply, _ = client.call(server, ops.WRITE, hint, ino, 0, 0, len(data), 0, len(hint), 0, 0,
                           send=(ctypes.addressof(memory), len(data)))
    return reply.size


def read(client, server, seed, size):
    """READ ``size`` bytes into the middle of guarded memory; -> what came."""
    memory = ctypes.create_string_buffer(b"\xaa" * (size + 16), size + 16)
    reply, tail = client.call(server, ops.READ, b"", seed, 0, 0, size, recv=(ctypes.addressof(memory) + 8, size))
    assert (reply.count, tail) == (size, b"")
    assert memory.raw[:8] == memory.raw[8 + size:] == b"\xaa" * 8
    return memory.raw[8:8 + size]


def test_every_kind_and_size_of_message(servers):
    with servers.client() as client:
        assert client.call(0, ops.LOOKUP, b"/a/b") == ((ATTR,), b"/a/b")
        with pytest.raises(FileNotFoundError):
            client.call(0, ops.UNLINK, b"/a")
        client.call(0, ops.FSYNC, b"/f", 5)
        client.notify(0, ops.RELEASE, bytes(8))
        for size in SIZES:
            assert read(client, 0, size, size) == content(size, size)
            data = content(size + 1, size)
            assert write(client, 0, data) == zlib.crc32(data)
        for limit in (1, 5000, 60_000):
            assert client.call(0, ops.READDIR, b"/", 0, limit)[1] == content(1, limit)
        long = b"/" + b"x" * 4000
        assert client.call(0, ops.LOOKUP, long)[1] == long
        data = content(3, 8192)
        assert write(client, 0, data, hint=long) == zlib.crc32(data)


def test_random_sizes_keep_every_byte(servers):
    dice = random.Random(7)
    with servers.client() as client:
        for number in range(60):
            size = int(2 ** dice.uniform(0, 21))
            assert read(client, 0, number, size) == content(number, size)
            data = content(number, size)
            assert write(client, 0, data) == zlib.crc32(data)


def test_refused_bulk_leaves_the_connection_usable(servers):
    with servers.client() as client:
        for _ in range(20):
            with pytest.raises(OSError) as caught:
                write(client, 0, bytes(1 << 20), ino=13)
            assert caught.value.errno == errno.ENOSPC
        data = content(1, 1 << 20)
        assert write(client, 0, data) == zlib.crc32(data)


def test_eight_threads_share_one_worker(servers):
    failures = []
    with servers.client() as client:
        def work(number):
            dice = random.Random(number)
            try:
                for _ in range(150):
                    what = dice.randrange(4)
                    size = dice.choice(SIZES[:-1])
                    name = b"/%d/%d" % (number, size)
                    if what == 0:
                        assert read(client, 0, size, size) == content(size, size)
                    elif what == 1:
                        data = content(number, size)
                        assert write(client, 0, data) == zlib.crc32(data)
                    else:
                        assert client.call(0, ops.LOOKUP, name)[1] == name
            except Exception as error:  # reported by the main thread
                failures.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
            assert not thread.is_alive()
    assert failures == []


def test_threads_that_sleep_are_all_woken(servers):
    """With no spinning at all, whoever sleeps must be woken by somebody."""
    done = []
    with servers.client(MADFS_SPIN_US="0") as client:
        def work(number):
            for count in range(200):
                name = b"/%d/%d" % (number, count)
                assert client.call(0, ops.LOOKUP, name)[1] == name
            done.append(number)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        begun = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert len(done) == 8
    assert time.monotonic() - begun < 15


def test_parallel_calls_to_three_servers(three):
    with three.client() as client:
        size = 300_000
        memory = [ctypes.create_string_buffer(size) for _ in range(9)]
        calls = [(n % 3, ops.READ, b"", (n, 0, 0, size), None, (ctypes.addressof(memory[n]), size)) for n in range(9)]
        calls.append((1, ops.UNLINK, b"/x", (), None, None))
        calls.append((2, ops.FSYNC, b"/x", (1,), None, None))
        results = client.call_many(calls)
        for n in range(9):
            assert results[n][0].count == size and memory[n].raw == content(n, size)
        assert isinstance(results[9], FileNotFoundError)
        assert results[10] == ((), b"")
        data = [content(n, size) for n in range(6)]
        memory = [ctypes.create_string_buffer(each, size) for each in data]
        calls = [(n % 3, ops.WRITE, b"", (n, 0, 0, size, 0, 0, 0, 0), (ctypes.addressof(memory[n]), size), None)
                 for n in range(6)]
        assert [reply.size for reply, _ in client.call_many(calls)] == [zlib.crc32(each) for each in data]


def test_servers_call_each_other_and_notice_death(three):
    with three.client() as client:
        for _ in range(3):
            client.call(0, ops.RENAME, b"/d", 1, 0)
            client.call(1, ops.RENAME, b"/d", 0, 0)
        three.kill(1)
        with pytest.raises(OSError) as caught:
            client.call(0, ops.RENAME, b"/d", 1, 0)
        assert caught.value.errno == errno.EIO
        three.restart(1)
        client.call(0, ops.RENAME, b"/d", 1, 0)
    assert "server 1 (127.0.0.1:" in three.log.read_text()


def test_a_killed_server_is_eio_at_once_and_its_successor_works(servers, capfd):
    with servers.client() as client:
        client.call(0, ops.LOOKUP, b"/")
        outcome = []

        def wait_for_nothing():
            try:
                client.call(0, ops.MKDIR, b"/never answered", 0o755)
            except OSError as error:
                outcome.append((error.errno, time.monotonic()))

        thread = threading.Thread(target=wait_for_nothing)
        thread.start()
        while client.counters["mkdir"] == 0:
            client.call(0, ops.LOOKUP, b"/")
        begun = time.monotonic()
        servers.kill(0)
        thread.join(10)
        assert outcome and outcome[0][0] == errno.EIO
        assert outcome[0][1] - begun < 2
        for _ in range(3):
            with pytest.raises(OSError) as caught:
                client.call(0, ops.LOOKUP, b"/")
            assert caught.value.errno == errno.EIO
        servers.restart(0)
        assert client.call(0, ops.LOOKUP, b"/back")[1] == b"/back"
        data = content(5, 1 << 20)
        assert write(client, 0, data) == zlib.crc32(data)
    named = f"server 0 (127.0.0.1:{servers.cluster.servers[0].port})"
    assert capfd.readouterr().err.count(named) == 1


def test_an_idle_connection_to_a_restarted_server_is_renewed(servers):
    """Nobody waited when the server died: even what must not be repeated goes through, for it was never sent."""
    with servers.client() as client:
        client.call(0, ops.LOOKUP, b"/")
        servers.kill(0)
        servers.restart(0)
        client.call(0, ops.RENAME, b"/d", 0, 0)


@pytest.mark.parametrize("size", [1 << 20, 512 << 10, 40_000, 100])
def test_killed_while_bulk_is_under_way(servers, size):
    """The calls end soon, with data or EIO; memory of those that failed is not touched afterwards."""
    with servers.client() as client:
        read(client, 0, 1, size)
        outcome = []

        def work(number):
            try:
                while True:
                    if number % 2:
                        read(client, 0, number, size)
                    else:
                        write(client, 0, content(number, size))
            except OSError as error:
                outcome.append(error.errno)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        while client.counters["read"] + client.counters["write"] < 40 and any(t.is_alive() for t in threads):
            client.call(0, ops.LOOKUP, b"/")
        begun = time.monotonic()
        servers.kill(0)
        for thread in threads:
            thread.join(20)
        assert outcome == [errno.EIO] * 4
        assert time.monotonic() - begun < 5


WRITERS = """
import ctypes, sys, threading
from pymadfs import cluster, ops
from pymadfs.config import Config
from pymadfs.rpc import Client
client, size = Client(cluster.read(sys.argv[1]), Config()), int(sys.argv[2])
memory = ctypes.create_string_buffer(size)
def write(number):
    for turn in range(1 << 30):
        client.call(0, ops.WRITE, b"/f", number, 0, 0, size, 0, 2, 0, 0, send=(ctypes.addressof(memory), size))
        if turn == 2:
            print("!", end="", flush=True)
for number in range(100, 164):
    threading.Thread(target=write, args=(number,)).start()
"""


@pytest.mark.parametrize("size", [1 << 20, 512 << 10, 40_000])
def test_killed_clients_leave_nothing_under_way(servers, size):
    """More than a server has room for, if each left what it was sending."""
    with servers.client() as client:
        for _ in range(5):
            writers = subprocess.Popen([sys.executable, "-c", WRITERS, servers.path, str(size)],
                                       env=servers.environment, stdout=subprocess.PIPE)
            assert writers.stdout.read(64) == b"!" * 64
            writers.kill()
            writers.communicate(timeout=10)
        until = time.monotonic() + 10
        while client.call(0, ops.STATUS)[1] != b"0":
            assert time.monotonic() < until
        assert write(client, 0, content(1, size)) == zlib.crc32(content(1, size))


@pytest.mark.parametrize("servers", [SHM], indirect=True, ids=["shm"])
def test_killed_while_its_queue_is_full(servers):
    """UCX 1.22 alone leaves receives that have begun waiting for ever then (Uct_iface_open in _ucx.c)."""
    size = 4 << 20
    with servers.client() as client:
        outcome = []

        def work(number):
            try:
                while True:
                    read(client, 0, number, size)
            except OSError as error:
                outcome.append(error.errno)

        def fill():
            try:
                while True:
                    client.notify(0, ops.RELEASE, bytes(8))
            except OSError as error:
                outcome.append(error.errno)

        threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(8)]
        for thread in threads:
            thread.start()
        while client.counters["read"] < 64:
            client.call(0, ops.LOOKUP, b"/")
        servers.kill(0, signal.SIGSTOP)
        threads.append(threading.Thread(target=fill, daemon=True))
        threads[-1].start()
        asked = None
        while asked != dict(client.counters):  # until nobody gets on any more
            asked = dict(client.counters)
            time.sleep(0.1)
        servers.kill(0)
        for thread in threads:
            thread.join(10)
        if any(thread.is_alive() for thread in threads):
            client.close = lambda: None  # with a thread inside it would end the process
        assert outcome == [errno.EIO] * 9


@pytest.mark.parametrize("what", ["small", "write", "read"])
def test_a_stopped_server_costs_the_timeout_and_no_more(servers, what, capfd):
    with servers.client(MADFS_TIMEOUT_MS="300") as client:
        size = 1 << 20
        read(client, 0, 1, size)
        servers.kill(0, signal.SIGSTOP)
        begun = time.monotonic()
        with pytest.raises(OSError) as caught:
            if what == "small":
                client.call(0, ops.LOOKUP, b"/")
            elif what == "write":
                write(client, 0, bytes(size))
            else:
                read(client, 0, 1, size)
        assert caught.value.errno == errno.EIO
        assert time.monotonic() - begun < 3
        assert "did not answer" in capfd.readouterr().err
        servers.kill(0, signal.SIGCONT)
        assert client.call(0, ops.LOOKUP, b"/again")[1] == b"/again"


@pytest.mark.parametrize("what", ["write", "read"])
def test_a_server_stopped_in_the_middle_of_bulk_touches_nothing_later(servers, what):
    size = 2 << 20
    dice = random.Random(5)
    memory = ctypes.create_string_buffer(size)
    arguments = {"send" if what == "write" else "recv": (ctypes.addressof(memory), size)}

    def work(client, failed):
        try:
            while True:
                if what == "write":
                    client.call(0, ops.WRITE, b"", 1, 0, 0, size, 0, 0, 0, 0, **arguments)
                else:
                    client.call(0, ops.READ, b"", 1, 0, 0, size, **arguments)
        except OSError as error:
            failed.append(error.errno)

    with servers.client(MADFS_TIMEOUT_MS="200") as client, servers.client() as patient:
        for _ in range(5):
            failed, count = [], client.counters[what] + dice.randrange(3, 20)
            thread = threading.Thread(target=work, args=(client, failed))
            thread.start()
            while client.counters[what] < count and thread.is_alive():
                patient.call(0, ops.LOOKUP, b"/")
            servers.kill(0, signal.SIGSTOP)
            thread.join(10)
            assert failed == [errno.EIO]
            ctypes.memset(memory, 0x55, size)
            servers.kill(0, signal.SIGCONT)
            assert patient.call(0, ops.LOOKUP, b"/again")[1] == b"/again"
            assert memory.raw == b"\x55" * size


def test_a_forked_child_makes_its_own_connections(servers):
    with servers.client() as client:
        client.call(0, ops.LOOKUP, b"/parent")
        for generation in range(3):
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    client.forget_after_fork()
                    data = content(generation, 300_000)
                    assert client.call(0, ops.LOOKUP, b"/child")[1] == b"/child"
                    assert write(client, 0, data) == zlib.crc32(data)
                    assert read(client, 0, 5, 300_000) == content(5, 300_000)
                    status = 0
                finally:
                    os._exit(status)
            assert client.call(0, ops.LOOKUP, b"/parent")[1] == b"/parent"
            assert os.waitpid(child, 0)[1] == 0
        data = content(9, 1 << 20)
        assert write(client, 0, data) == zlib.crc32(data)


def test_a_transport_that_nobody_closed_is_no_trouble_for_forks():
    for _ in range(3):
        dropped = Ucx(Config())
        handle = dropped.connect(dropped.address, -1)
        assert handle >= 0
        del dropped
        kept = Ucx(Config())
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            status = 1
            try:
                del kept  # the parent's
                Ucx(Config()).close()
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        kept.close()


def test_fork_while_other_threads_call(servers):
    """Whatever lock a thread holds just then must not be missing in the child."""
    stop = threading.Event()
    with servers.client() as client:
        def work(number):
            while not stop.is_set():
                client.call(0, ops.LOOKUP, b"/%d" % number)
                read(client, 0, number, 100_000)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        statuses = []
        try:
            for _ in range(20):
                child = os.fork()
                if child == 0:
                    signal.alarm(20)
                    status = 1
                    try:
                        client.forget_after_fork()
                        assert read(client, 0, 5, 100_000) == content(5, 100_000)
                        status = 0
                    finally:
                        os._exit(status)
                statuses.append(os.waitpid(child, 0)[1])
        finally:
            stop.set()
            for thread in threads:
                thread.join(30)
        assert statuses == [0] * 20


def test_a_process_exits_with_a_call_under_way(servers):
    program = f"""
import sys, threading
sys.path.insert(0, {str(SERVER.parent)!r})
from pymadfs import cluster, ops
from pymadfs.config import Config
from pymadfs.rpc import Client
client = Client(cluster.read({servers.path!r}), Config())
client.call(0, ops.LOOKUP, b"/")
thread = threading.Thread(target=client.call, args=(0, ops.MKDIR, b"/never", 0), daemon=True)
thread.start()
while not client.counters["mkdir"]:
    client.call(0, ops.LOOKUP, b"/")
client.call(0, ops.LOOKUP, b"/")
"""
    done = subprocess.run([sys.executable, "-c", program], env=servers.environment, timeout=10, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")


def test_the_users_ucx_settings_do_not_leak_in(servers, monkeypatch, tmp_path, capfd):
    """They are meant for the application's UCX; ours would not even start with these."""
    program = f"""
from pymadfs import cluster, ops
from pymadfs.config import Config
from pymadfs.rpc import Client
client = Client(cluster.read({servers.path!r}), Config())
client.call(0, ops.LOOKUP, b"/")
client.close()
"""
    (tmp_path / "ucx.conf").write_text("UCX_TLS=nonsense\n")
    environment = {**servers.environment, "UCX_TLS": "nonsense", "UCX_NET_DEVICES": "none:1", "UCX_LOG_LEVEL": "debug",
                   "HOME": str(tmp_path), "UCX_CONFIG_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, timeout=20, capture_output=True,
                          cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_loading_it_leaves_signals_and_memory_functions_alone():
    """Signals 32 and 33 are glibc's own, in use as soon as there is a thread."""
    program = """
import ctypes, re
libc = ctypes.CDLL(None)
def state():
    caught = re.search("SigCgt:.(.*)", open("/proc/self/status").read()).group(1)
    return int(caught, 16) & 0x7fffffff, [ctypes.string_at(getattr(libc, name), 16)
                    for name in ("mmap", "munmap", "mremap", "madvise", "shmat", "brk", "sbrk", "mprotect")]
before = state()
from pymadfs.config import Config
from pymadfs.transport.ucx import Ucx
transport = Ucx(Config())
assert state() == before
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=20, env=ENVIRONMENT)


@pytest.mark.parametrize("transports", ["", "posix,tcp,self", TCP])
def test_on_one_machine_tcp_waits_until_it_is_needed(tmp_path, transports):
    """A client shares memory with servers of its machine, without looking for TCP; where that fails, it uses TCP."""
    servers = Servers(tmp_path, 1, transports)
    try:
        before = listening(os.getpid())
        with servers.client(MADFS_UCX_TLS="") as client:
            assert client.call(0, ops.LOOKUP, b"/")
            assert (listening(os.getpid()) == before) is (transports == "")
    finally:
        servers.stop()


@pytest.mark.parametrize(("transports", "queued"), [("", True), ("tcp", False), ("tcp,self", False), ("sm,tcp", True)])
def test_only_shared_memory_has_queues_that_can_be_blocked(transports, queued):
    """Else a client on a busy machine that loses a server would take its own for blocked, and connect anew."""
    program = "from pymadfs.config import Config; from pymadfs.transport.ucx import Ucx; print(Ucx(Config()).queued)"
    done = subprocess.run([sys.executable, "-c", program], env={**ENVIRONMENT, "MADFS_UCX_TLS": transports},
                          capture_output=True, timeout=20, text=True)
    assert done.stdout == f"{queued}\n", done.stderr


def test_transports_that_do_not_exist_are_said_so():
    program = "from pymadfs.config import Config; from pymadfs.transport.ucx import Ucx; Ucx(Config())"
    done = subprocess.run([sys.executable, "-c", program], env={**ENVIRONMENT, "MADFS_UCX_TLS": "carrier_pigeon"},
                          capture_output=True, timeout=20, text=True)
    assert done.returncode and "MADFS_UCX_TLS is 'carrier_pigeon'" in done.stderr.splitlines()[-1]


def listening(pid):
    """TCP addresses that the process listens at: its door and, over TCP, UCX's own."""
    inodes = set()
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            target = os.readlink(f"/proc/{pid}/fd/{name}")
        except FileNotFoundError:  # the one by which the directory was listed
            continue
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    places = [row[1].split(":") for row in rows if row[3] == "0A" and row[9] in inodes]
    return [(socket.inet_ntoa(int(host, 16).to_bytes(4, "little")), int(port, 16)) for host, port in places]


def test_garbage_at_every_port_does_no_harm(servers):
    dice = random.Random(3)
    with servers.client() as client:
        client.call(0, ops.LOOKUP, b"/")
        places = listening(servers.processes[0].pid)
        assert ("127.0.0.1", servers.cluster.servers[0].port) in places
        for place in places:
            for length in (0, 1, 8, 47, 100, 5000, 70_000):
                assert servers.processes[0].poll() is None, servers.log.read_text()
                with socket.create_connection(place, 5) as visitor, contextlib.suppress(OSError):
                    visitor.sendall(dice.randbytes(length))
                    visitor.shutdown(socket.SHUT_WR)
                    visitor.settimeout(1)
                    while visitor.recv(4096):
                        pass
                assert client.call(0, ops.LOOKUP, b"/alive")[1] == b"/alive"
        assert servers.processes[0].poll() is None
