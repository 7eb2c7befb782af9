# SPDX-License-Identifier: Apache-2.0
"""What clients call their renames of directories: a client that lost the coordinator asks again, and must not be told
ENOENT because its rename is done.

A ticket is stored with the commit of its rename and outlives it; the last ones are kept.
"""
from pymadfs.ops import Record

TICKETS = b"ST"
NUMBER = Record("Ticket", "number:Q")
KEPT = 256  # of clients that have not heard how their rename ended, at most


def ticket_key(ticket):
    return TICKETS + ticket.to_bytes(8, "big")


class Tickets:
    """The tickets of committed renames in the store ``kv``: ``number(ticket)`` of the rename, or None."""

    def __init__(self, kv):
        self._kv = kv
        found = [(NUMBER.unpack(value).number, int.from_bytes(key[-8:], "big"))
                 for key, value in kv.scan(TICKETS, b"", 2 * KEPT) if len(value) == NUMBER.size]
        self._known = {ticket: number for number, ticket in sorted(found)}  # oldest first

    def number(self, ticket):
        # A batch that was refused takes the ticket back.
        return self._known.get(ticket) if self._kv.get(ticket_key(ticket)) is not None else None

    def put(self, ticket, number):
        """With the batch that commits the rename."""
        self._known.pop(ticket, None)
        while len(self._known) >= KEPT:
            old = next(iter(self._known))
            del self._known[old]
            self._kv.delete(ticket_key(old))
        self._known[ticket] = number
        self._kv.put(ticket_key(ticket), NUMBER.pack(number))
