# SPDX-License-Identifier: Apache-2.0
"""Client and Service over the in-process transport: what every transport must give, without waiting."""
import asyncio
import ctypes
import errno
import random
import threading

import pytest

from pymadfs import door, ops
from pymadfs.cluster import Cluster, Server
from pymadfs.config import Config
from pymadfs.errors import Restart, fail
from pymadfs.rpc import Client
from pymadfs.server.rpc import Service
from pymadfs.server.visitors import NEWEST_MAX, Conn, may_have_come
from pymadfs.transport import inproc

ATTR = bytes(range(ops.ATTR.size))


def cluster_of(servers):
    return Cluster("/madfs", b"s" * 32, [Server(i, "127.0.0.1", 1000 + i, 0, "/none") for i in range(servers)])


def is_reply(message):
    return message.tag >> ops.TAG_SHIFT == ops.TAG_REPLY


class House:
    """A network with services that answer each request by ``answer(service, request)``."""

    def __init__(self, servers=1, faults=None, environment=None):
        self.network = inproc.Network(faults)
        self.cluster, self.config = cluster_of(servers), Config(environment or {})
        self.answer = self.echo
        self.services = [self.start(number) for number in range(servers)]
        self.network.steps.append(self.step)
        self.requests = []

    def start(self, number):
        service = Service(self.cluster, number, self.config, self.network.transport())
        self.network.serve(service)
        return service

    def client(self):
        return Client(self.cluster, self.config, self.network.transport(), uid=7, gid=8)

    def step(self):
        for service in self.services:
            for request in service.poll():
                self.requests.append(request)
                self.answer(service, request)

    @staticmethod
    def echo(service, request):
        if request.op is ops.LOOKUP:
            service.reply(request, (ATTR,), request.tail)
        elif request.op is ops.READ:
            data = bytes(request.fields.length)
            service.reply(request, (len(data), -1), data=memoryview(data))
        elif request.op is ops.READDIR:
            service.reply(request, (1, 0), b"x" * request.fields.limit)
        else:
            service.reply(request)


def test_fields_tail_and_identity_arrive():
    house = House()
    reply, tail = house.client().call(0, ops.LOOKUP, b"/a/b")
    assert (reply.attr, tail) == (ATTR, b"/a/b")
    request, = house.requests
    assert (request.op, request.uid, request.gid, request.fsync, request.bulk) == (ops.LOOKUP, 7, 8, False, 0)


def test_errors_and_restarts_come_back():
    house = House()
    client = house.client()
    house.answer = lambda service, request: service.fail(request, fail(errno.ENOENT))
    with pytest.raises(FileNotFoundError):
        client.call(0, ops.UNLINK, b"/a")
    house.answer = lambda service, request: service.fail(request, Restart(2, b"/elsewhere"))
    with pytest.raises(Restart) as caught:
        client.call(0, ops.UNLINK, b"/a")
    assert (caught.value.prefix, caught.value.target) == (2, b"/elsewhere")


def test_a_defect_in_a_handler_is_eio_and_logged(capfd):
    house = House()
    house.answer = lambda service, request: service.fail(request, ZeroDivisionError("oops"))
    with pytest.raises(OSError) as caught:
        house.client().call(0, ops.UNLINK, b"/a")
    assert caught.value.errno == errno.EIO
    assert "ZeroDivisionError: oops" in capfd.readouterr().err


def test_fsync_travels_under_its_own_tags():
    house = House()
    tags = []
    house.network.faults = inproc.Faults(lose=lambda message: tags.append(message.tag >> ops.TAG_SHIFT))
    house.client().call(0, ops.FSYNC, b"/f", 5)
    assert house.requests[0].fsync
    assert tags == [ops.TAG_FSYNC, ops.TAG_FSYNC_REPLY]


@pytest.mark.parametrize("size", [0, 1, 8192, 8193, 524288])
def test_data_of_a_read_lands_in_the_callers_memory(size):
    house = House()
    payload = random.Random(size).randbytes(size)
    house.answer = lambda service, request: service.reply(request, (len(payload), -1), data=memoryview(payload))
    memory = ctypes.create_string_buffer(b"\xaa" * (size + 8), size + 8)
    reply, tail = house.client().call(0, ops.READ, b"", 1, 0, 0, size, recv=(ctypes.addressof(memory), size))
    assert (reply.count, tail) == (size, b"")
    assert memory.raw == payload + b"\xaa" * 8


@pytest.mark.parametrize("size", [0, 1, 8192, 8193, 524288])
def test_data_of_a_write_arrives(size):
    house = House()
    payload = random.Random(size).randbytes(size)
    memory = ctypes.create_string_buffer(payload, max(size, 1))
    got = bytearray(size)

    async def handle(service, request):
        if request.bulk:
            await service.receive(request, memoryview(got))
        else:
            got[:] = request.tail[request.fields.hint:]
        service.reply(request, (size, 0))

    house.network.steps.clear()
    thread, stop = serve_in_thread(house, handle)
    try:
        reply, _ = house.client().call(0, ops.WRITE, b"/f", 1, 0, 0, size, 0, 2, 0, 0,
                                       send=(ctypes.addressof(memory), size))
    finally:
        stop()
        thread.join()
    assert reply.size == size and bytes(got) == payload


def serve_in_thread(house, handle):
    """Serve all services of ``house`` by coroutine ``handle`` on an event loop; -> (thread, function that stops it)."""
    started, box = threading.Event(), []

    async def main():
        loop, done, tasks = asyncio.get_running_loop(), asyncio.Event(), set()
        box.extend((loop, done))

        def ready(service):
            while True:
                for request in service.poll():
                    task = loop.create_task(handle(service, request))
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)
                if service.arm():
                    return

        for service in house.services:
            loop.add_reader(service.fileno(), ready, service)
        started.set()
        await done.wait()
        for service in house.services:
            loop.remove_reader(service.fileno())

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    assert started.wait(10)
    return thread, lambda: box[0].call_soon_threadsafe(box[1].set)


def test_a_bulk_write_that_is_refused_leaves_nothing_behind():
    house = House()
    house.answer = lambda service, request: service.fail(request, fail(errno.EACCES))
    memory = ctypes.create_string_buffer(100_000)
    with pytest.raises(PermissionError):
        house.client().call(0, ops.WRITE, b"", 1, 0, 0, 100_000, 0, 0, 0, 0,
                            send=(ctypes.addressof(memory), 100_000))
    assert house.services[0].pending == 0


def test_calls_to_many_servers_go_together():
    house = House(servers=3)
    house.answer = lambda service, request: (
        service.fail(request, fail(errno.ENOENT)) if service.number == 1 else House.echo(service, request))
    client = house.client()
    results = client.call_many([(i, ops.LOOKUP, b"/%d" % i, (), None, None) for i in range(3)])
    assert results[0][1] == b"/0" and results[2][1] == b"/2"
    assert isinstance(results[1], FileNotFoundError)
    assert client.counters["lookup"] == 3


def test_calls_to_many_servers_that_another_thread_has_just_left():
    """It connects anew between the preparation of the calls and their run."""
    house = House(servers=3)
    house.answer = House.echo
    client = house.client()
    calls = [(i, ops.LOOKUP, b"/%d" % i, (), None, None) for i in range(3)]
    client.call_many(calls)
    client._transport = None
    assert [result[1] for result in client.call_many(calls)] == [b"/0", b"/1", b"/2"]


def test_oneway_operations_have_no_reply():
    house = House()
    client = house.client()
    client.notify(0, ops.RELEASE, bytes(16))
    house.step()
    assert house.requests[0].op is ops.RELEASE and len(house.requests[0].tail) == 16


def test_a_lost_message_is_eio_with_the_server_named(capfd):
    house = House(faults=inproc.Faults(lose=is_reply))
    with pytest.raises(OSError) as caught:
        house.client().call(0, ops.LOOKUP, b"/a")
    assert caught.value.errno == errno.EIO
    assert "server 0 (127.0.0.1:1000) did not answer lookup" in capfd.readouterr().err


def test_a_dead_server_is_eio_named_once_and_comes_back(capfd):
    house = House(servers=2)
    client = house.client()
    client.call(1, ops.LOOKUP, b"/a")
    house.network.kill(1)
    for _ in range(3):
        with pytest.raises(OSError) as caught:
            client.call(1, ops.LOOKUP, b"/a")
        assert caught.value.errno == errno.EIO
    assert capfd.readouterr().err.count("server 1 (127.0.0.1:1001)") == 1
    client.call(0, ops.LOOKUP, b"/a")
    house.services[1] = house.start(1)
    assert client.call(1, ops.LOOKUP, b"/b")[1] == b"/b"


@pytest.mark.parametrize("op, fields, answered", [(ops.LOOKUP, (), True), (ops.MKDIR, (0o755,), False)])
def test_only_what_may_be_repeated_is_repeated(op, fields, answered, capfd):
    """The server dies with the request in hand and is back at once."""
    house = House()
    client = house.client()
    client.call(0, ops.LOOKUP, b"/")

    def die(service, request):
        house.network.kill(0)
        house.answer = lambda service, request: service.reply(request, (1 if request.op is ops.ARRIVED else ATTR,))
        house.services[0] = house.start(0)

    house.answer = die
    if answered:
        assert client.call(0, op, b"/x", *fields)[0].attr == ATTR
        assert house.requests[-1].id == house.requests[-2].id
    else:
        with pytest.raises(OSError) as caught:
            client.call(0, op, b"/x", *fields)
        assert caught.value.errno == errno.EIO


@pytest.mark.parametrize("what", ["came", "overtaken", "without its data"])
def test_what_a_server_that_began_anew_did_nothing_for_is_repeated(what, capfd):
    """A request that may not be repeated otherwise: the server knows which it had heard, and whose data never came."""
    house = House()
    client = house.client()
    client.call(0, ops.LOOKUP, b"/")
    made = []

    def begin_anew(service, request):
        [(conn, (floor, came, undone))] = service.arrivals()
        assert ((request.id in came), undone) == ((False, [request.id]) if request.unread else (True, []))
        if what == "overtaken":
            came = [came[0], request.id + 1]
        house.network.kill(0)
        house.answer = answer
        house.services[0] = Service(house.cluster, 0, house.config, house.network.transport(),
                                    [(conn, (floor, came, undone))])
        house.network.serve(house.services[0])

    def answer(service, request):
        if request.op is ops.ARRIVED:
            service.reply(request, (service.arrived(*request.fields),))
        else:
            made.append(request)
            service.reply(request, (ATTR,) if request.op is ops.MKDIR else (0, 0))

    house.answer = begin_anew
    if what == "came":
        with pytest.raises(OSError):
            client.call(0, ops.MKDIR, b"/x", 0o755)
        assert not made
    else:
        if what == "overtaken":
            client.call(0, ops.MKDIR, b"/x", 0o755)
        else:
            data = ctypes.create_string_buffer(1 << 20)
            client.call(0, ops.WRITE, b"/x", 1, 0, 0, 1 << 20, 0, 2, 0, 0, send=(ctypes.addressof(data), 1 << 20))
        assert len(made) == 1 and made[0].conn not in house.services[0]._left
    assert "died" in capfd.readouterr().err


def test_what_a_connection_leaves():
    conn = Conn(b"", 0)
    conn.newest.extend([5, 7, 6])
    conn.unread.add(7)
    assert [may_have_come(conn.left(), number) for number in (4, 5, 6, 7, 8)] == [False, True, True, False, False]
    conn.newest.extend(range(10, 10 + NEWEST_MAX))
    found = [may_have_come(conn.left(), number) for number in (4, 6, 7, 9, 10, 50)]
    assert found == [True, True, False, True, True, False]


def test_a_stale_cluster_file_is_noticed(capfd):
    house = House(servers=2)
    client = Client(cluster_of(1), house.config, house.network.transport())
    with pytest.raises(OSError):
        client.call(0, ops.LOOKUP, b"/")
    assert "the cluster file is stale" in capfd.readouterr().err


def test_too_long_a_tail_is_refused_on_both_sides():
    house = House()
    with pytest.raises(OSError) as caught:
        house.client().call(0, ops.LOOKUP, bytes(100_000))
    assert caught.value.errno == errno.EMSGSIZE
    house.client().call(0, ops.LOOKUP, b"/")
    conn = house.requests[-1].conn
    request = type("R", (), {"op": ops.LOOKUP, "conn": conn, "unread": 0, "id": 1, "bulk": 0, "fsync": False})
    with pytest.raises(OSError):
        house.services[0].reply(request, (ATTR,), bytes(100_000))


def test_only_servers_send_what_is_between_servers():
    house = House()
    with pytest.raises(PermissionError):
        house.client().call(0, ops.INVALIDATE, b"/a")
    assert house.requests == []


def test_servers_call_each_other():
    house = House(servers=2)

    async def handle(service, request):
        if service.number == 0:
            reply, tail = await service.call_peer(1, ops.EMPTY, request.tail)
            service.reply(request, (ATTR,), tail + bytes((reply.empty,)))
        elif request.tail == b"/missing":
            service.fail(request, fail(errno.ENOENT))
        else:
            service.reply(request, (1,), b"from one")

    async def guarded(service, request):
        try:
            await handle(service, request)
        except OSError as error:
            service.fail(request, error)

    house.network.steps.clear()
    thread, stop = serve_in_thread(house, guarded)
    try:
        client = house.client()
        assert client.call(0, ops.LOOKUP, b"/d")[1] == b"from one\1"
        with pytest.raises(FileNotFoundError):
            client.call(0, ops.LOOKUP, b"/missing")
        house.network.kill(1)
        house.services[0]._lose(1, "test")
        with pytest.raises(OSError) as caught:
            client.call(0, ops.LOOKUP, b"/d")
        assert caught.value.errno == errno.EIO
    finally:
        stop()
        thread.join()


def test_servers_send_each_other_data():
    """Little with the message, much on its own; what may not be repeated fails when the other one dies."""
    house, sizes = House(servers=2), []

    async def handle(service, request):
        if service.number == 1:
            memory = bytearray(request.tail) or bytearray(request.bulk)
            if request.bulk:
                await service.receive(request, memoryview(memory))
            sizes.append((request.bulk, bytes(memory)))
            if len(memory) == 7:
                house.services[0]._lose(1, "test")
                return
            service.reply(request)
            return
        size = int(request.tail)
        try:
            await service.call_peer(1, ops.STORE, b"", 1, 2, 3, data=bytes(range(250)) * (size // 250) or b"x" * size)
        except OSError as error:
            service.fail(request, error)
        else:
            service.reply(request, (ATTR,))

    house.network.steps.clear()
    thread, stop = serve_in_thread(house, handle)
    try:
        client = house.client()
        for size in (250, 100_000):
            client.call(0, ops.LOOKUP, b"%d" % size)
        assert sizes == [(0, bytes(range(250))), (100_000, bytes(range(250)) * 400)]
        with pytest.raises(OSError) as caught:
            client.call(0, ops.LOOKUP, b"7")
        assert caught.value.errno == errno.EIO
    finally:
        stop()
        thread.join()


def send_raw(house, tag, data):
    house.network.send(inproc.Message(b"", house.services[0].address, tag, data))


def test_garbage_never_leaves_poll():
    house = House()
    client = house.client()
    client.call(0, ops.LOOKUP, b"/")
    dice = random.Random(42)
    service = house.services[0]
    for _ in range(3000):
        kind = dice.choice((0, 1, 1, 1, 2, 3, 4, 5, 6, 7, 15))
        data = dice.randbytes(dice.choice((0, 1, 15, 16, 31, 32, 33, 100, 5000)))
        if dice.random() < 0.7:  # a known connection, then anything
            op = dice.choice((0, 1, 13, 17, 40, 65535))
            data = ops.REQUEST.pack(op, 0, 1, dice.getrandbits(64), 0, 0, dice.getrandbits(dice.choice((0, 32))),
                                    dice.getrandbits(32) if dice.random() < 0.5 else max(len(data) - 8, 0)) + data
        send_raw(house, kind << ops.TAG_SHIFT | dice.choice((1, 1, 2, dice.getrandbits(60))), data)
        for request in service.poll():
            service.fail(request, fail(errno.EINVAL))
    assert service.counters["garbage"] > 1000
    assert client.call(0, ops.LOOKUP, b"/still here")[1] == b"/still here"


@pytest.mark.parametrize("length", [0, 3, 5, 1 << 31])
def test_a_lying_length_is_answered_with_eproto(length):
    house = House()
    client = house.client()
    client.call(0, ops.LOOKUP, b"/")
    header = ops.REQUEST.pack(ops.LOOKUP.number, 0, 1, 99, 0, 0, 0, length) + b"/abc"
    answers = []
    house.network.faults = inproc.Faults(lose=lambda message: answers.append(message) or False)
    send_raw(house, ops.TAG_REQUEST << ops.TAG_SHIFT | 1, header)
    house.step()
    assert ops.REPLY.unpack(answers[-1].data).status == errno.EPROTO


@pytest.mark.parametrize("seed", range(20))
def test_corrupted_replies_raise_oserror_only(seed):
    house = House(faults=inproc.Faults(corrupt=is_reply, seed=seed))
    try:
        house.client().call(0, ops.LOOKUP, b"/a")
    except (OSError, Restart):
        pass


def test_delayed_replies_come_when_nothing_else_moves():
    house = House(faults=inproc.Faults(delay=1.0))
    assert house.client().call(0, ops.LOOKUP, b"/a")[1] == b"/a"


def test_a_forgotten_visitor_gets_nothing():
    house = House()
    client = house.client()
    requests = []
    house.answer = lambda service, request: requests.append((service, request))
    with pytest.raises(OSError):
        client.call(0, ops.LOOKUP, b"/a")
    service, request = requests[0]
    service.forget(request.conn)
    sent = house.network.sent
    service.reply(request, (ATTR,))
    assert house.network.sent == sent


def test_a_child_after_fork_connects_anew():
    house = House()
    client = house.client()
    client.call(0, ops.LOOKUP, b"/")
    client.forget_after_fork()
    client.call(0, ops.LOOKUP, b"/")
    assert house.requests[0].conn != house.requests[1].conn
    client.close()


def test_kinds_of_visitors_are_distinct():
    assert len({door.KIND_CLIENT, door.KIND_SERVER, door.KIND_ADMIN}) == 3
