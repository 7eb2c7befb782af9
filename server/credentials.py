# SPDX-License-Identifier: Apache-2.0
"""Groups of those who ask: announced once on a connection, and named by a number in each request."""
from pymadfs.ops import GROUPS

from .dispatch import serves


@serves(GROUPS)
def groups(server, request):
    tail = request.tail
    server.rpc.announced(request.conn, request.fields.number,
                         [int.from_bytes(tail[at:at + 4], "little") for at in range(0, len(tail) - 3, 4)])
    return (), b""
