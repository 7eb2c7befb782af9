# SPDX-License-Identifier: Apache-2.0
"""What goes over the wire, for both ends: ids, tags, and codecs of header and fields.

A call is one small message each way: REQUEST, the operation's fields, its tail; REPLY, the reply's fields, its tail.
Data of more than ``eager_max`` bytes goes as a message of its own between the two memories.  Tags: a request carries
the connection, a reply and bulk for the caller carry the request id, bulk for the server both::

    kind << 60 | conn                               TAG_REQUEST, TAG_FSYNC
    kind << 60 | request id                         TAG_REPLY, TAG_FSYNC_REPLY, TAG_BULK_OUT
    kind << 60 | conn << 28 | low bits of the id    TAG_BULK_IN

Request ids are ``31 random bits << 28 | counter``: unique in the job, so that a server can recognise a repetition.
"""
import errno
import itertools
import os
import struct

from . import ops
from .errors import fail, from_status
from .ops import REPLY, REQUEST
from .transport import HEAD_MAX

EAGER_LIMIT = 64 << 10
"""Bytes: a larger ``eager_max`` would not leave room for header and paths in a small message."""
GROUP_SETS_MAX = 4096
"""Sets of supplementary groups that a connection can tell apart."""
ID_BITS = 28
"""Bits of a request id that count; those above are the caller's."""
ID_LOW = (1 << ID_BITS) - 1

REQUEST_TAG, FSYNC_TAG, REPLY_TAG, FSYNC_REPLY_TAG, BULK_IN_TAG, BULK_OUT_TAG = (
    kind << ops.TAG_SHIFT
    for kind in (ops.TAG_REQUEST, ops.TAG_FSYNC, ops.TAG_REPLY, ops.TAG_FSYNC_REPLY, ops.TAG_BULK_IN, ops.TAG_BULK_OUT))


def codec(record, header):
    """Header and fields in one go."""
    both = struct.Struct("<" + header.format + record.format)
    assert both.size <= HEAD_MAX
    return both


class Made(dict):
    """Values are made by ``make(key)`` when they are first asked for: a client uses few operations."""

    def __init__(self, make):
        super().__init__()
        self._make = make

    def __missing__(self, key):
        value = self[key] = self._make(key)
        return value


REQUEST_CODECS = Made(lambda op: codec(op.request, REQUEST))
REPLY_CODECS = Made(lambda op: codec(op.reply, REPLY))
FIELDS_AT = REPLY.size
reply_header = struct.Struct("<" + REPLY.format).unpack_from
request_header = struct.Struct("<" + REQUEST.format).unpack_from


def bulk_in_tag(conn, request_id):
    return BULK_IN_TAG | conn << ID_BITS | request_id & ID_LOW


def new_ids():
    return itertools.count(int.from_bytes(os.urandom(4), "little") >> 1 << ID_BITS)


def real_transport():
    from .transport.ucx import Ucx  # not before somebody wants it: it loads libucp
    return Ucx


class Peer:
    """A server we have met: ``handle`` of the ``transport``, whose ``ask`` is at hand, ``conn`` (our id there),
    ``door`` (descriptor or -1) and, in a server, the event ``loop`` that watches it."""

    __slots__ = ("ask", "conn", "door", "handle", "loop", "transport")

    def __init__(self, transport, handle, conn, door, loop=None):
        self.transport, self.ask = transport, transport.ask
        self.handle, self.conn, self.door, self.loop = handle, conn, door, loop

    def shut_door(self):
        door, self.door = self.door, -1
        if door >= 0:
            os.close(door)


def decode(data, op):
    """The reply in ``data`` (bytes) -> (fields, tail); raises what it says, OSError EPROTO when it is garbage."""
    status = reply_header(data)[1]
    if status:
        raise from_status(status, data[FIELDS_AT:])
    end = REPLY_CODECS[op].size
    if len(data) < end:
        raise fail(errno.EPROTO)
    return op.reply.unpack(data, FIELDS_AT), data[end:]
