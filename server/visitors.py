# SPDX-License-Identifier: Apache-2.0
"""What rpc.py keeps: requests, visitors, and other servers that it calls."""
from collections import deque

from pymadfs.ops import Op
from pymadfs.wire import ID_LOW

NEWEST_MAX = 16
"""Requests of a connection of which is known that they came, when the server begins anew."""


class Request:
    """What a caller asks: ``op`` (Op), ``fields`` (named tuple), ``tail`` (bytes); ``id``, ``conn``, ``uid``, ``gid``,
    ``groups`` (supplementary ones); ``bulk``: bytes that follow as a message of their own, or the room for such a
    message; ``fsync``: came under fsync's tags; ``unread``: bytes of bulk that the caller sends and nobody has received
    yet.
    """

    __slots__ = ("bulk", "conn", "fields", "fsync", "gid", "groups", "id", "op", "tail", "uid", "unread")
    op: Op
    id: int
    conn: int
    uid: int
    gid: int
    groups: frozenset
    fields: tuple
    tail: bytes
    bulk: int
    fsync: bool
    unread: int

    def __repr__(self):
        return f"<{self.op.name} {self.id & ID_LOW} of {self.conn}: {self.fields}>"


class Conn:
    """A visitor let in: transport ``handle`` (None until its first request), ``address``, ``kind`` (door.KIND_*),
    tokens of its ``transfers``, sets of ``groups`` by number, the ``newest`` request ids that came, and those of
    requests whose data is still to come, so that nothing was done for them (``unread``)."""

    __slots__ = ("address", "groups", "handle", "kind", "newest", "transfers", "unread")

    def __init__(self, address, kind):
        self.address, self.handle, self.kind, self.transfers, self.groups = address, None, kind, set(), {}
        self.newest, self.unread = deque(maxlen=NEWEST_MAX), set()

    def left(self):
        """What who goes on in our place has to know: ``(floor, ids that came, ids for which nothing was done)``.

        What is below ``floor`` may have come, too.  Ids grow, but threads of a client overtake each other.
        """
        full = len(self.newest) == NEWEST_MAX
        return min(self.newest) if full else 0, sorted(set(self.newest) - self.unread), sorted(self.unread)


def may_have_come(left, request_id):
    """Whether anything may have been done for a request of a connection that has ``left()`` that."""
    floor, came, undone = left
    return request_id in came or request_id < floor and request_id not in undone


class Lost(Exception):
    """Another server died while it had our call."""


class ServerPeer:
    """Another server as we call it: ``peer`` (wire.Peer) once met, ``meeting`` (Future) before, ``calls`` under way."""

    __slots__ = ("calls", "meeting", "peer")

    def __init__(self):
        self.calls, self.meeting, self.peer = set(), None, None
