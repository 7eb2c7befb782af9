# SPDX-License-Identifier: Apache-2.0
"""What the serving side of rpc.py keeps: requests, visitors, and other servers that it calls."""
from .ops import Op

ID_BITS = 28
"""Bits of a request id that count; those above are the caller's."""
ID_LOW = (1 << ID_BITS) - 1


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
    tokens of its ``transfers``, sets of ``groups`` by number, the ``newest`` request id that came."""

    __slots__ = ("address", "groups", "handle", "kind", "newest", "transfers")

    def __init__(self, address, kind):
        self.address, self.handle, self.kind, self.transfers, self.groups = address, None, kind, set(), {}
        self.newest = 0


class Lost(Exception):
    """Another server died while it had our call."""


class ServerPeer:
    """Another server as we call it: ``peer`` (_Peer) once met, ``meeting`` (Future) until then, ``calls`` under way."""

    __slots__ = ("calls", "meeting", "peer")

    def __init__(self):
        self.calls, self.meeting, self.peer = set(), None, None
