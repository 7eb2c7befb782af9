# SPDX-License-Identifier: Apache-2.0
"""Server processes on the real transport: start, refusals, garbage, kill -9 and restart, stop."""
import os
import secrets
import signal
import socket
import subprocess
import sys

import pytest
from flatbuffers import flexbuffers

from pymadfs.cluster import Cluster, Server
from pymadfs.config import Config
from pymadfs.layout import home, owner
from pymadfs.ops import ATTR, FSYNC, GETATTR, LOOKUP, MKDIR, OPEN, READ, RENAME, RMDIR, SHUTDOWN, STATUS, UNLINK, WRITE
from pymadfs.rpc import Client

COMMAND = [sys.executable, "-P", "-m", "pymadfs.server"]


class Servers:
    """Processes of a cluster whose sockets this process holds, so that a restarted one has its port again."""

    def __init__(self, path, count):
        self.path, self.file = path, str(path / "cluster")
        self.sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
        ports = [sock.getsockname()[1] for sock in self.sockets]
        entries = [Server(number, "127.0.0.1", port, 0, str(path / f"store{number}"))
                   for number, port in enumerate(ports)]
        self.cluster = Cluster("/madfs", secrets.token_bytes(32), entries)
        self.cluster.write(self.file)
        self.processes = [None] * count
        for number in range(count):
            self.start(number)

    def start(self, number):
        fd = self.sockets[number].fileno()
        command = [*COMMAND, "--cluster", self.file, "--number", str(number), "--listen-fd", str(fd)]
        with open(self.path / "log", "ab") as log:
            self.processes[number] = subprocess.Popen(command, pass_fds=[fd], stdout=subprocess.PIPE, stderr=log)
        line = self.processes[number].stdout.readline()
        assert line == b"madfs-server %d ready 127.0.0.1:%d\n" % (number, self.cluster.servers[number].port), line

    def end(self, number, how=signal.SIGTERM):
        process = self.processes[number]
        if process.poll() is None:
            process.send_signal(how)
        status = process.wait(20)
        process.stdout.close()
        return status


@pytest.fixture
def servers(tmp_path):
    made = Servers(tmp_path, 2)
    yield made
    for number in range(2):
        made.end(number)
    for sock in made.sockets:
        sock.close()


@pytest.fixture
def client(servers):
    made = Client(servers.cluster, Config({}))
    yield made
    made.close()


def ask(client, path, op, *fields, tail=None, **options):
    return client.call(owner(path, 2), op, path if tail is None else tail, *fields, **options)


def create(client, path):
    reply, _ = ask(client, path, OPEN, os.O_RDWR | os.O_CREAT, 0o644, 1 << 19, 0)
    return ATTR.unpack(reply.attr)


def test_names_and_data_across_servers_and_a_kill(servers, client):
    for turn in range(20):
        ask(client, b"/d%d" % turn, MKDIR, 0o755)
        create(client, b"/d%d/f" % turn)
        old, new = b"/d%d/f" % turn, b"/g%d" % turn
        ask(client, old, RENAME, 0, len(old), tail=old + new)
        ask(client, b"/g%d" % turn, LOOKUP)
        ask(client, b"/d%d" % turn, RMDIR)
    attr = create(client, b"/data")
    data = os.urandom(300_000)
    memory = (ctypes_address(data), len(data))
    client.call(home(attr.ino), WRITE, b"/data", attr.ino, 0, 5, len(data), len(data) + 5, 5, 5, 0, send=memory)
    client.call(home(attr.ino), FSYNC, b"/data", attr.ino)
    for number in range(2):
        servers.end(number, signal.SIGKILL)
        servers.start(number)
    for turn in range(20):
        ask(client, b"/g%d" % turn, LOOKUP)
    reply, _ = client.call(home(attr.ino), GETATTR, b"/data", attr.ino)
    assert ATTR.unpack(reply.attr).size == len(data) + 5
    room = bytearray(len(data) + 100)
    reply, _ = client.call(home(attr.ino), READ, b"", attr.ino, 0, 0, len(room), recv=(ctypes_address(room), len(room)))
    assert reply.count == len(data) + 5 and room[5:reply.count] == data
    ask(client, b"/data", UNLINK)


def ctypes_address(buffer):
    import ctypes
    if isinstance(buffer, bytes):
        return ctypes.cast(ctypes.c_char_p(buffer), ctypes.c_void_p).value
    return ctypes.addressof((ctypes.c_char * len(buffer)).from_buffer(buffer))


def test_garbage_at_the_door_does_no_harm(servers, client):
    host, port = "127.0.0.1", servers.cluster.servers[0].port
    for garbage in (b"GET / HTTP/1.1\r\n\r\n", os.urandom(4096), b""):
        with socket.create_connection((host, port)) as sock:
            try:
                sock.sendall(garbage)
                sock.shutdown(socket.SHUT_WR)
                while sock.recv(4096):
                    pass
            except ConnectionError:
                continue
    assert flexbuffers.Loads(client.call(0, STATUS)[1])["number"] == 0


def test_status_and_shutdown(servers, client):
    create(client, b"/f")
    found = [flexbuffers.Loads(client.call(number, STATUS)[1]) for number in range(2)]
    assert [each["pid"] for each in found] == [process.pid for process in servers.processes]
    assert sum(each["operations"].get("open", 0) for each in found) == 1
    client.call(0, SHUTDOWN)
    assert servers.processes[0].wait(20) == 0
    assert servers.end(1) == 0


def refused(*arguments):
    done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=30)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr


def test_what_is_wrong_is_said_in_one_line(servers, tmp_path):
    cluster = servers.file
    assert "missing" in refused("--cluster", str(tmp_path / "missing"), "--number", "0")
    assert "servers 0 to 1" in refused("--cluster", cluster, "--number", "2")
    assert "cannot listen" in refused("--cluster", cluster, "--number", "0", "--store", str(tmp_path / "other"))
    free = Cluster("/madfs", b"x" * 32, [each._replace(port=0) for each in servers.cluster.servers])
    free.write(str(tmp_path / "free"))
    assert "is used by another server" in refused("--cluster", str(tmp_path / "free"), "--number", "0")
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refused("--cluster", str(tmp_path / "free"), "--number", "0",
                                          "--store", str(tmp_path / "file/x"))
    servers.end(1)
    assert "belongs to server 1" in refused("--cluster", str(tmp_path / "free"), "--number", "0",
                                            "--store", str(tmp_path / "store1"))
    servers.start(1)
