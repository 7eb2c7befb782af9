# SPDX-License-Identifier: Apache-2.0
"""The door over real sockets, in one process: the server on an event loop in a thread, visitors on the test's own."""
import asyncio
import errno
import os
import random
import socket
import threading
from contextlib import ExitStack

import pytest

import pymadfs
from pymadfs import door
from pymadfs.ops import PROTOCOL

SECRET = b"k" * 32


class FakeService:
    """What ``door.guard`` needs of a service; remembers who came and went."""

    secret, number, servers, address = SECRET, 3, 7, b"our address"

    def __init__(self):
        self.accepted, self.forgotten, self.gone = [], [], threading.Event()
        self.refuse = None

    def accept(self, kind, address, process):
        if self.refuse:
            raise self.refuse
        self.accepted.append((kind, address))
        return 40 + len(self.accepted)

    def forget(self, conn):
        self.forgotten.append(conn)
        self.gone.set()


@pytest.fixture
def place():
    """(service, port) of a door that is open."""
    service, started, box = FakeService(), threading.Event(), []

    async def main():
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        listener = await loop.create_server(door.guard(service), "127.0.0.1", 0)
        box.extend((loop, stop, listener.sockets[0].getsockname()[1]))
        started.set()
        await stop.wait()
        listener.close()

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    assert started.wait(10)
    yield service, box[2]
    box[0].call_soon_threadsafe(box[1].set)
    thread.join(10)


def knock(port, secret=SECRET, kind=door.KIND_CLIENT, address=b"visitor's address", timeout_ms=5000):
    return door.knock("127.0.0.1", port, secret, kind, address, timeout_ms)


def test_a_visitor_is_let_in_and_forgotten_when_it_leaves(place):
    service, port = place
    visit = knock(port)
    assert (visit.conn, visit.number, visit.servers, visit.address) == (41, 3, 7, b"our address")
    assert service.accepted == [(door.KIND_CLIENT, b"visitor's address")]
    assert not service.forgotten
    os.close(visit.door)
    assert service.gone.wait(10) and service.forgotten == [41]


def test_the_wrong_secret_is_refused_with_the_reason(place, capfd):
    service, port = place
    with pytest.raises(PermissionError, match="wrong secret"):
        knock(port, secret=b"x" * 32)
    assert service.accepted == []
    assert "does not know the secret" in capfd.readouterr().err


def test_the_proof_depends_on_everything_it_covers():
    base = door.proof(SECRET, b"n" * 16, 1, 2, b"a")
    assert base == door.proof(SECRET, b"n" * 16, 1, 2, b"a") and len(base) == 32
    others = [(b"x" * 32, b"n" * 16, 1, 2, b"a"), (SECRET, b"m" * 16, 1, 2, b"a"), (SECRET, b"n" * 16, 2, 2, b"a"),
              (SECRET, b"n" * 16, 1, 3, b"a"), (SECRET, b"n" * 16, 1, 2, b"b")]
    assert base not in {door.proof(*other) for other in others}


def test_a_server_that_cannot_reach_the_visitor_says_so(place):
    service, port = place
    service.refuse = OSError(errno.EHOSTUNREACH, "no transport")
    with pytest.raises(OSError):
        knock(port)


def test_garbage_is_closed_with_one_line(place, capfd):
    service, port = place
    dice = random.Random(1)
    for length in (1, 6, 46, 47, 500, 70_000):
        with socket.create_connection(("127.0.0.1", port), 5) as visitor:
            try:
                visitor.sendall(b"\xff" + dice.randbytes(length))
                while visitor.recv(4096):
                    pass
            except ConnectionError:
                pass
    assert service.accepted == []
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 6 and all("refused: it is not MadFS" in line for line in lines)
    os.close(knock(port).door)
    assert service.gone.wait(10)


@pytest.mark.parametrize("change", ["protocol", "length", "kind", "extra"])
def test_answers_that_lie_are_refused(place, change):
    service, port = place
    with socket.create_connection(("127.0.0.1", port), 5) as visitor:
        greeting = door.GREETING.unpack(visitor.recv(door.GREETING.size, socket.MSG_WAITALL))
        kind = 9 if change == "kind" else 1
        proof = door.proof(SECRET, greeting.nonce, kind, 5, b"abc")
        protocol = PROTOCOL + 1 if change == "protocol" else PROTOCOL
        length = 60_000 if change == "length" else 3
        visitor.sendall(door.ANSWER.pack(door.MAGIC, protocol, kind, proof, 5, length) + b"abc"
                        + b"more" * (change == "extra"))
        data = visitor.recv(4096)
        assert not data or door.WELCOME.unpack(data).status
    assert service.accepted == []


def test_a_silent_visitor_is_shown_out(place, monkeypatch):
    service, port = place
    monkeypatch.setattr(door, "PATIENCE_S", 0.05)
    with socket.create_connection(("127.0.0.1", port), 5) as visitor:
        assert len(visitor.recv(door.GREETING.size, socket.MSG_WAITALL)) == door.GREETING.size
        assert visitor.recv(1) == b""
    assert service.accepted == []


def serve_once(answer):
    """A thread that accepts one connection and does ``answer(connection)``; -> (port, thread)."""
    listener = socket.create_server(("127.0.0.1", 0))

    def work():
        connection, _ = listener.accept()
        with connection, listener:
            answer(connection)

    thread = threading.Thread(target=work)
    thread.start()
    return listener.getsockname()[1], thread


@pytest.mark.parametrize("greeting, complaint", [
    (b"SSH-2.0-OpenSSH_9.2p1 and so on and so forth, more", "not a MadFS server"),
    (door.GREETING.pack(door.MAGIC, PROTOCOL, b"99.9", bytes(16)), "runs MadFS 99.9"),
    (door.GREETING.pack(door.MAGIC, PROTOCOL + 1, pymadfs.__version__.encode(), bytes(16)), "same version"),
    (b"MAD", "closed the connection"),
])
def test_what_is_not_our_server_is_said_so(greeting, complaint):
    port, thread = serve_once(lambda connection: connection.sendall(greeting))
    with pytest.raises(OSError, match=complaint):
        knock(port)
    thread.join()


def test_a_server_that_says_nothing_costs_the_timeout(capfd):
    done = threading.Event()
    port, thread = serve_once(lambda connection: done.wait(10))
    with pytest.raises(TimeoutError, match="no answer within 50 ms"):
        knock(port, timeout_ms=50)
    done.set()
    thread.join()


def test_a_server_that_takes_no_connections_costs_the_timeout():
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, ExitStack() as stack:
        for _ in range(4):  # more than the queue takes
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        with pytest.raises(TimeoutError, match="no answer within 50 ms"):
            knock(listener.getsockname()[1], timeout_ms=50)


def test_a_name_that_nobody_knows():
    with pytest.raises(OSError, match="nobody knows a host of the name 'no host': correct the cluster file"):
        door.knock("no host", 1, SECRET, door.KIND_CLIENT, b"", 5000)


def test_a_server_at_an_address_of_ipv6():
    if not socket.has_ipv6:
        pytest.skip("this Python has no IPv6")
    listener = socket.socket(socket.AF_INET6)
    with listener:
        try:
            listener.bind(("::1", 0))
        except OSError as error:
            pytest.skip(f"this machine has no IPv6: {error.strerror}")
        port = listener.getsockname()[1]
        with pytest.raises(ConnectionRefusedError):  # nobody listens yet
            door.knock("::1", port, SECRET, door.KIND_CLIENT, b"", 5000)
        listener.listen()
        thread = threading.Thread(target=lambda: listener.accept()[0].close())
        thread.start()
        with pytest.raises(ConnectionResetError, match="closed the connection"):
            door.knock("::1", port, SECRET, door.KIND_CLIENT, b"", 5000)
        thread.join()


def test_a_refused_connection_leaves_nothing_open():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ConnectionRefusedError):
        knock(port)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_thousand_visitors_are_not_a_thousand_lines(place, monkeypatch):
    _, port = place
    lines, now = [], [100.0]
    monkeypatch.setattr(door, "log", lines.append)
    monkeypatch.setattr(door.time, "monotonic", lambda: now[0])

    def visit():
        with socket.create_connection(("127.0.0.1", port), 10) as visitor:
            visitor.sendall(b"GET / HTTP/1.1")
            while visitor.recv(4096):
                pass

    for _ in range(100):
        visit()
    assert len(lines) == door.REFUSALS and all("is not MadFS" in line for line in lines)
    assert "only counted" in lines[-1]
    now[0] += door.REFUSALS_S
    visit()
    assert lines[door.REFUSALS:] == ["90 more visitors were refused", lines[0]]
