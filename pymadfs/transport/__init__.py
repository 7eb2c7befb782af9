# SPDX-License-Identifier: Apache-2.0
"""What :mod:`pymadfs.rpc` asks of a transport.  ``ucx.Ucx`` is the real one, ``inproc.Network.transport()`` the tests'.

Messages carry a 64-bit tag; the receiver of a reply or of bulk names the tag it waits for.  Small messages are one
piece of at most ``MESSAGE_MAX`` bytes; bulk goes from memory to memory in a message of its own.
"""
from collections import namedtuple

MESSAGE_MAX = 73728
"""Bytes of one small message with its header."""

HEAD_MAX = 512
"""Bytes of the header and the fixed fields of an operation."""

MESSAGE, TRANSFER = 0, 1
"""``what`` of an event: a message came; a bulk transfer ended."""

Visit = namedtuple("Visit", "door conn number servers address")
"""What a knock at a server's door gives: the socket's descriptor (or -1), whose end of file means that the server died,
our connection id there, the server's number, how many servers there are, the address to connect to."""


Slot = namedtuple("Slot", "handle head reply")
"""Memory of one call at a time: the transport's ``handle``, ``head`` (writable, HEAD_MAX bytes), ``reply``
(MESSAGE_MAX)."""


class Transport:
    """The interface.  Times are microseconds; addresses of memory are integers; failures are negative errnos.

    Both sides:

    - ``address`` (bytes): what others connect to.
    - ``connect(address, door) -> peer`` (int): ``door`` is a descriptor or -1; raises OSError.  ``disconnect(peer)``
    ends
      what is under way with it.  ``alive(peer)``.  ``close()``.

    Calling side, any thread:

    - ``knock(server, secret, kind, timeout_ms) -> Visit``: raises OSError whose strerror says what is wrong.
    - ``another()``: a transport of the same kind, to send to this one.
    - ``beside()``: one for servers that this one cannot reach, because their memory is another user's; or None.
    - ``queued``: whether others put messages into a queue in our memory, where one that is killed can leave a gap.
    - ``slot() -> Slot``
    - ``call(handle, peer, tag, reply_tag, head_length, tail, tail_length, send, send_length, recv, recv_room, bulk_tag,
      fixed, timeout_us) -> int``: see ``ux_call`` in ``_ucx.h``; the length of the reply; 0 when it says that the
      operation failed (``length(handle)`` then has its length); -ETIMEDOUT, -ECONNRESET (the peer died), -ENOTCONN (it
      was dead before anything was sent), -EPROTO (the reply is garbage).
    - ``ask(handle, peer, tag, reply_tag, head_length, tail, tail_length, fixed, timeout_us)``: the same without data.
    - ``prepare(...)``: the arguments of ``call`` but the time; ``run(handles, timeout_us) -> list`` of what ``call``
    returns.
    - ``abandon()``: in a child after fork; -> the transport to go on with, or None for a new one.

    Serving side, one thread:

    - ``arena``: buffer in which messages lie until the next poll.
    - ``poll(spin_us, limit) -> iterable of (tag, offset, length, status, what)``; of a transfer, ``tag`` is its token.
    - ``fileno()``, ``arm() -> bool``: True when it is safe to sleep on the descriptor.
    - ``send(peer, tag, head, tail)``: copies; -errno or 0.
    - ``send_bulk(peer, tag, data)`` and ``receive_bulk(tag, view)`` -> token > 0, 0 when already done, or -errno; the
      caller keeps the memory until the transfer's event.  ``cancel(token)``: its event comes soon.
      ``discard(tag)``: like receive_bulk, but the bytes go nowhere.  ``purge(tag, mask)``: let go of what came
      under tags that equal ``tag`` in the bits of ``mask`` and nobody asked for.
    """
