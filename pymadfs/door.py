# SPDX-License-Identifier: Apache-2.0
"""The door: the TCP connection by which two processes of a job meet, and which stays open as their sign of life.

    server -> client    GREETING  magic, protocol, version, nonce
    client -> server    ANSWER    magic, protocol, kind, proof of the secret, pid, length; then its transport's address
    server -> client    WELCOME   status, connection id, server number, number of servers, length; then its address

Nothing more is sent; end of file means that the other side died.  The client uses a descriptor only, because it runs
inside other people's programs; the server is an asyncio protocol without importing asyncio before it serves.
"""
import _blake2
import errno
import os
import time

import pymadfs

from .log import log
from .ops import PROTOCOL, Record
from .transport import Visit

MAGIC = b"MADFS\0"
KIND_CLIENT, KIND_SERVER, KIND_ADMIN = 1, 2, 3

GREETING = Record("Greeting", "magic:6s protocol:H version:16s nonce:16s")
ANSWER = Record("Answer", "magic:6s protocol:H kind:B proof:32s pid:I length:H")
WELCOME = Record("Welcome", "status:H conn:I number:I servers:I length:H")
assert (GREETING.size, ANSWER.size, WELCOME.size) == (40, 47, 16)

REFUSALS, REFUSALS_S = 10, 10
PATIENCE_S = 5
"""Seconds a server waits for the answer to its greeting."""

ADDRESS_MAX = 16 << 10
"""Bytes of a transport's address; more is garbage."""

_REASONS = {
    errno.EACCES: "it belongs to another job (wrong secret): use that job's cluster file",
    errno.EPROTO: "it speaks another version of the protocol: run the same version of MadFS everywhere",
}


def proof(secret, nonce, kind, pid, address):
    """32 bytes that only who knows ``secret`` can make, for this greeting and this address only."""
    text = nonce + bytes((kind,)) + pid.to_bytes(4, "little") + address
    return _blake2.blake2b(text, key=secret, digest_size=32).digest()


def knock(host, port, secret, kind, address, timeout_ms):
    """Meet the server at ``host:port`` as ``kind``; ``address`` (bytes) is how it reaches us.  Waits ``timeout_ms``.

    Returns a Visit; raises OSError whose strerror says what is wrong and what to do.
    """
    connection = _binding().ux_dial(host.encode(), port, timeout_ms)
    if connection < 0:
        raise _refusal(-connection, host, timeout_ms)
    try:
        greeting = GREETING.unpack(_exactly(connection, GREETING.size))
        if greeting.magic != MAGIC:
            raise OSError(errno.EPROTO, "what listens there is not a MadFS server: is the cluster file stale?")
        version = greeting.version.rstrip(b"\0").decode("ascii", "replace")
        if (greeting.protocol, version) != (PROTOCOL, pymadfs.__version__):
            raise OSError(errno.EPROTO,
                          f"it runs MadFS {version} with protocol {greeting.protocol}, this is {pymadfs.__version__} "
                          f"with {PROTOCOL}: run the same version everywhere")
        pid = os.getpid()
        known = proof(secret, greeting.nonce, kind, pid, address)
        _send(connection, ANSWER.pack(MAGIC, PROTOCOL, kind, known, pid, len(address)) + address)
        welcome = WELCOME.unpack(_exactly(connection, WELCOME.size))
        if welcome.status:
            raise OSError(welcome.status, _REASONS.get(welcome.status) or "it refuses: " + os.strerror(welcome.status))
        peer_address = _exactly(connection, welcome.length)
        os.set_blocking(connection, False)
    except BlockingIOError:
        os.close(connection)
        raise _refusal(errno.ETIMEDOUT, host, timeout_ms) from None
    except BaseException:
        os.close(connection)
        raise
    return Visit(connection, welcome.conn, welcome.number, welcome.servers, peer_address)


def _binding():
    from ._ucx_cffi import lib  # here: who only looks at files needs no UCX
    return lib


def _refusal(code, host, timeout_ms):
    if code == errno.ETIMEDOUT:
        return OSError(code, f"no answer within {timeout_ms} ms")
    if code == errno.ENOENT:
        return OSError(code, f"nobody knows a host of the name {host!r}: correct the cluster file")
    return OSError(code, os.strerror(code))


def _exactly(connection, count):
    data = b""
    while len(data) < count:
        piece = os.read(connection, count - len(data))
        if not piece:
            raise OSError(errno.ECONNRESET, "it closed the connection; its log says why")
        data += piece
    return data


def _send(connection, data):
    while data:
        data = data[os.write(connection, data):]


def guard(service):
    """Protocol factory for ``loop.create_server``: lets visitors in to ``service``.

    ``service`` has ``secret``, ``number``, ``servers``, ``address``, ``accept(kind, address, process) -> conn`` and
    ``forget(conn)``.
    """
    refusals = _Refusals()
    return lambda: _Visitor(service, refusals)


class _Refusals:
    """Says who was refused, at most REFUSALS lines in REFUSALS_S seconds: whoever knocks a thousand times a second
    shall not fill the disk with it."""

    def __init__(self):
        self._since: float = -REFUSALS_S
        self._lines = self._silent = 0

    def say(self, text):
        now = time.monotonic()
        if now - self._since >= REFUSALS_S:
            if self._silent:
                log(f"{self._silent} more visitors were refused")
            self._since, self._lines, self._silent = now, 0, 0
        self._lines += 1
        if self._lines < REFUSALS:
            log(text)
        elif self._lines == REFUSALS:
            log(f"{text}; more of them within {REFUSALS_S} s are only counted")
        else:
            self._silent += 1


class _Visitor:
    """One connection, as asyncio's Protocol: greeted, let in, and forgotten when it ends."""

    def __init__(self, service, refusals):
        self._service, self._refusals = service, refusals
        self._conn = self._transport = self._timer = None
        self._data = b""
        self._nonce = os.urandom(16)

    def connection_made(self, transport):
        import asyncio
        self._transport = transport
        _binding().ux_watch(transport.get_extra_info("socket").fileno())
        self._timer = asyncio.get_running_loop().call_later(PATIENCE_S, self._refuse, 0, "says nothing")
        transport.write(GREETING.pack(MAGIC, PROTOCOL, pymadfs.__version__.encode(), self._nonce))

    def data_received(self, data):
        if self._timer is None:
            return None  # let in already, or refused: nothing more is expected
        self._data += data
        if not MAGIC.startswith(self._data[:len(MAGIC)]):
            return self._refuse(0, "is not MadFS")
        if len(self._data) < ANSWER.size:
            return None
        answer = ANSWER.unpack(self._data)
        if answer.protocol != PROTOCOL:
            return self._refuse(errno.EPROTO, f"speaks protocol {answer.protocol}, this is {PROTOCOL}")
        if answer.length > ADDRESS_MAX or len(self._data) > ANSWER.size + answer.length:
            return self._refuse(0, "sends garbage")
        if len(self._data) == ANSWER.size + answer.length:
            self._let_in(answer, self._data[ANSWER.size:])
        return None

    def _let_in(self, answer, address):
        service = self._service
        expected = proof(service.secret, self._nonce, answer.kind, answer.pid, address)
        if not _equal(expected, answer.proof):
            return self._refuse(errno.EACCES, "does not know the secret")
        if answer.kind not in (KIND_CLIENT, KIND_SERVER, KIND_ADMIN):
            return self._refuse(errno.EPROTO, f"is of unknown kind {answer.kind}")
        try:
            self._conn = service.accept(answer.kind, address, self._process(answer.pid))
        except OSError as error:
            return self._refuse(errno.EPROTO, f"cannot be reached: {error}")
        self._end_timer()
        own = service.address
        self._transport.write(WELCOME.pack(0, self._conn, service.number, service.servers, len(own)) + own)
        return None

    def _process(self, pid):
        """``(pid, whether it runs on this host, its host)`` of the visitor."""
        ends = [self._transport.get_extra_info(name) for name in ("peername", "sockname")]
        hosts = [end[0] if end else "" for end in ends]
        return pid, hosts[0] == hosts[1], hosts[0]

    def _refuse(self, status, why):
        self._end_timer()
        name = self._transport.get_extra_info("peername")
        self._refusals.say(f"server {self._service.number}: visitor {name[0] if name else '?'} refused: it {why}")
        if status:
            self._transport.write(WELCOME.pack(status, 0, 0, 0, 0))
        self._transport.close()

    def _end_timer(self):
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._data = b""

    def connection_lost(self, error):
        self._end_timer()
        if self._conn is not None:
            self._service.forget(self._conn)
            self._conn = None

    def eof_received(self):
        return False  # close

    def pause_writing(self):
        """A greeting fits every buffer."""

    def resume_writing(self):
        """See pause_writing."""


def _equal(left, right):
    """Compare without telling by the time taken where they differ."""
    difference = len(left) ^ len(right)
    for a, b in zip(left, right):
        difference |= a ^ b
    return difference == 0
