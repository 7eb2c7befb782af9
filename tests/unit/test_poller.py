# SPDX-License-Identifier: Apache-2.0
"""The server's poller: at the end nobody polls a network that is closed, whatever was still to be called."""
import asyncio
import os
from types import SimpleNamespace

from pymadfs.server.service import Poller


class Network:
    """Counts polls, and those after its end."""

    pending = 0
    probing = 0

    def __init__(self):
        self.reading, self.writing = os.pipe()
        self.polls, self.closed = 0, False

    def fileno(self):
        return self.reading

    def poll(self, spin_us, limit):
        assert not self.closed, "a network that is closed was polled"
        self.polls += 1
        return ()

    def arm(self):
        return True

    def close(self):
        self.closed = True
        os.close(self.reading)
        os.close(self.writing)


def test_nothing_is_polled_after_the_end():
    """The descriptor and a request to look soon wake it at once: the first forgets the second, which stop() then cannot
    cancel.  With a client that died within a message, servers waited for good for the lock of freed memory."""
    async def life():
        network, loop = Network(), asyncio.get_running_loop()
        failures = []
        loop.set_exception_handler(lambda _, context: failures.append(context["exception"]))
        server = SimpleNamespace(rpc=network, config=SimpleNamespace(spin_us=0), busy=False, conns=set(),
                                 kv=SimpleNamespace(owed=0), posted=None)
        poller = Poller(server, loop, 1, lambda: None)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert network.polls
        poller.soon()
        poller._wake()
        poller.stop()
        network.close()
        await asyncio.sleep(0)
        poller.soon()  # who is told of the end of its call asks for a look
        await asyncio.sleep(0)
        assert not failures

    asyncio.run(life())
