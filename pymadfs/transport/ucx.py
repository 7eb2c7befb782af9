# SPDX-License-Identifier: Apache-2.0
"""The real transport: libucp through ``_ucx.c``.  The interface is described in :mod:`pymadfs.transport`."""
import errno
import os
import struct
from _functools import partial

from .. import door
from .._ucx_cffi import ffi, lib
from ..ops import TAG_SHIFT
from . import HEAD_MAX, MESSAGE_MAX, TRANSFER, Slot, Transport

assert (lib.UX_HEAD_MAX, lib.UX_MESSAGE_MAX, lib.UX_TRANSFER) == (HEAD_MAX, MESSAGE_MAX, TRANSFER)

ADDRESS_ROOM = 8192
EVENTS = 64
_KINDS_OF_A_SERVER = 0b1100 << TAG_SHIFT  # it is asked for requests, fsyncs and replies to it: kinds without these bits
_events = struct.Struct("<QQIiI4x")
_EVENT_SIZE = _events.size
assert ffi.sizeof("ux_event_t") == _EVENT_SIZE

SETTINGS = {
    # Shared memory tells of a dead peer too; without it UCX would use TCP on one node whenever that is asked for.
    "POSIX_ERROR_HANDLING": "y",
    "SYSV_ERROR_HANDLING": "y",
    # Shared memory is System V's alone: POSIX's costs a descriptor for each peer, a quarter of a client's start, and
    # leaves files behind when a process is killed.
    "TLS": "^posix",
    # Places in a queue of shared memory, instead of 256: the same at both ends, or they hang.  See NEAR.
    "SYSV_FIFO_SIZE": "128",
    "POSIX_FIFO_SIZE": "128",
    # What does not fit into one piece begins with a question (rendezvous).  Otherwise it comes in pieces that nobody
    # asked for, and UCX waits for the rest for ever when their sender is killed (docs/decisions/0076).
    "RNDV_THRESH": "intra:8k,inter:60k",
    # Registered memory is not remembered: without hooks in the application's memory functions (_ucx.c) it may be stale.
    "RCACHE_ENABLE": "n",
    # Bulk over TCP in larger pieces than 8 KiB: 512 KiB in 0.19 ms instead of 0.5 (docs/decisions).
    "TCP_TX_SEG_SIZE": "64k",
    "TCP_RX_SEG_SIZE": "256k",
}
"""UCX settings that are not UCX's defaults, with the reason."""

NEAR = {"TLS": "sysv,cma,self", "SYSV_RX_BUFS_GROW": "160"}
"""For a client whose servers are on its machine: looking for the devices of TCP is a quarter of its start, and so is
writing to each of the 512 buffers that UCX makes at first.  A queue needs one for each place, and some beside them."""
TRANSPORTS = "^posix", "^sysv", "^posix,sysv"
"""What is tried: one kind of shared memory, System V's first.  POSIX shared memory needs a descriptor whenever UCX maps
more of another process's memory: where there are none left, that fails in the middle of a send."""

PURE_US = 4
"""Microseconds to poll without giving the processor away."""
SPIN_US = 50
"""Microseconds to poll, giving the processor away in between, before sleeping: about what a sleep and a wake cost."""


class Ucx(Transport):
    """One UCX worker.  ``near``: all peers are said to be on this machine; ``beside`` is for those who are not.

    Raises OSError ENODEV that says why when UCX cannot be initialised.
    """

    def __init__(self, config, transports=None, near=False):
        self._config = config
        message = ffi.new("char[]", 512)
        self._near = near
        transports = transports or config.transports
        choices = [{"TLS": each} for each in ((transports,) if transports else TRANSPORTS)]
        for choice in [NEAR, *choices] if near and not transports else choices:
            settings = {**SETTINGS, **choice}
            strings = [ffi.new("char[]", text.encode()) for pair in settings.items() for text in pair]
            self._u = lib.ux_open(ffi.new("char *[]", strings), len(settings), message, 512)
            if self._u:
                break
        else:
            why = ffi.string(message).decode(errors="replace")
            raise OSError(errno.ENODEV, f"UCX cannot start: {why}; MADFS_UCX_TLS is {config.transports!r}, empty "
                                        "lets UCX choose")
        self.queued = not set((transports or "sysv").split(",")) <= {"tcp", "self"}
        spin_us = SPIN_US if config.spin_us < 0 else config.spin_us
        self._u = ffi.gc(self._u, lib.ux_free)  # a thread may yet come with it after close()
        self._closed = False
        lib.ux_patience(self._u, min(PURE_US, spin_us) * 1000, spin_us * 1000)
        room = ffi.new("char[]", ADDRESS_ROOM)
        length = lib.ux_address(self._u, room, ADDRESS_ROOM)
        if length < 0:
            raise OSError(-length, "UCX has no address")
        self.address = ffi.buffer(room, length)[:]
        # The hot ones without a Python frame of ours.
        self.ask = partial(lib.ux_ask, self._u)
        self.call = partial(lib.ux_call, self._u)
        self._room = ffi.new("ux_event_t[]", EVENTS)
        self._events = ffi.buffer(self._room)
        self._poll = partial(lib.ux_poll, self._u, _KINDS_OF_A_SERVER, self._room)

    # --- both sides -------------------------------------------------------------------------------------------------

    def connect(self, address, door):
        handle = lib.ux_connect(self._u, address, len(address), door)
        if handle < 0:
            raise OSError(-handle, f"no transport reaches it: {os.strerror(-handle)}; MADFS_UCX_TLS is "
                                   f"{self._config.transports!r} here")
        return handle

    def another(self):
        return Ucx(self._config, near=self._near)

    def beside(self):
        return None if self._config.transports else Ucx(self._config, "tcp")

    def disconnect(self, peer):
        lib.ux_disconnect(self._u, peer)

    def alive(self, peer):
        return lib.ux_alive(self._u, peer)

    def close(self):
        self._closed = True
        lib.ux_close(self._u)

    def abandon(self):
        if not self._closed:
            lib.ux_abandon(self._u)
        ffi.gc(self._u, None)  # other threads of the parent may have been in there

    # --- calling ----------------------------------------------------------------------------------------------------

    def knock(self, server, secret, kind, timeout_ms):
        try:
            return door.knock(server.host, server.port, secret, kind, self.address, timeout_ms)
        except OSError as error:
            if error.errno != errno.ECONNRESET:
                raise
        # It ended at this moment, and may be back already: one that began anew keeps its socket.
        return door.knock(server.host, server.port, secret, kind, self.address, timeout_ms)

    def slot(self):
        handle = lib.ux_call_new()
        if not handle:
            raise MemoryError
        handle = ffi.gc(handle, lib.ux_call_free)
        return Slot(handle, ffi.buffer(lib.ux_call_head(handle), HEAD_MAX),
                    ffi.buffer(lib.ux_call_reply(handle), MESSAGE_MAX))

    def prepare(self, *arguments):
        lib.ux_prepare(*arguments)

    def run(self, handles, timeout_us):
        lib.ux_run(self._u, ffi.new("ux_call_t *[]", handles), len(handles), timeout_us)
        return [lib.ux_result(handle) for handle in handles]

    def length(self, handle):
        return lib.ux_length(handle)

    # --- serving ----------------------------------------------------------------------------------------------------

    def fileno(self):
        return lib.ux_fd(self._u)

    def arm(self):
        return lib.ux_arm(self._u) == 1

    def __getattr__(self, name):
        if name != "arena":
            raise AttributeError(name)
        memory = lib.ux_arena(self._u)
        if not memory:
            raise MemoryError
        self.arena = ffi.buffer(memory, lib.UX_SLOTS * MESSAGE_MAX)  # made at the first poll: a client has none
        return self.arena

    def poll(self, spin_us, limit):
        count = self._poll(min(EVENTS, limit), spin_us)
        if count <= 0:
            return ()
        return _events.iter_unpack(self._events[:count * _EVENT_SIZE])

    def send(self, peer, tag, head, tail):
        memory = tail if type(tail) is bytes else ffi.from_buffer(tail)
        return lib.ux_send(self._u, peer, tag, head, len(head), memory, len(tail))

    def send_bulk(self, peer, tag, data):
        memory = ffi.from_buffer(data)
        return lib.ux_transfer_send(self._u, peer, tag, int(ffi.cast("uintptr_t", memory)), len(memory))

    def receive_bulk(self, tag, view):
        memory = ffi.from_buffer(view, require_writable=True)
        return lib.ux_transfer_receive(self._u, tag, int(ffi.cast("uintptr_t", memory)), len(memory))

    def cancel(self, token):
        lib.ux_transfer_cancel(self._u, token)

    def discard(self, tag):
        return lib.ux_transfer_receive(self._u, tag, 0, 0)

    def purge(self, tag, mask):
        lib.ux_purge(self._u, tag, mask)
