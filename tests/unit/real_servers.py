# SPDX-License-Identifier: Apache-2.0
"""The servers' real handlers behind the methods of rpc.Client, on an event loop that runs while a call waits."""

import asyncio
import ctypes

from server_world import World

from pymadfs.errors import Restart
from pymadfs.identity import Who
from pymadfs.server.kv import MemoryKV
from pymadfs.wire import EAGER_LIMIT


class RealServers:
    """``count`` servers with their stores below ``path``; ``make_kv()`` makes the key-value store of each."""

    def __init__(self, path, count=3, make_kv=MemoryKV):
        self.loop = asyncio.new_event_loop()
        self.world = self.loop.run_until_complete(self._make(path, count, make_kv))
        self.servers, self.who = count, Who(0, 0)

    @staticmethod
    async def _make(path, count, make_kv):
        return World(path, count, make_kv)

    def call(self, server, op, tail=b"", *fields, send=None, recv=None):
        return self.loop.run_until_complete(self._ask(server, op, tail, fields, send, recv))

    def call_many(self, calls):
        return self.loop.run_until_complete(self._all(calls))

    async def _all(self, calls):
        return await asyncio.gather(*[self._ask(*call) for call in calls], return_exceptions=True)

    def door(self, server):
        return -1

    def notify(self, server, op, tail=b"", *fields):
        self.call(server, op, tail, *fields)

    def identify(self, uid, gid, groups=()):
        self.who = Who(uid, gid, 0, frozenset(groups))

    def close(self):
        """Stop the servers; fails when a handler raised anything but an OSError or Restart."""
        self.loop.run_until_complete(self.world.quiet())
        self.loop.run_until_complete(self.world.stop())
        self.loop.run_until_complete(self._end())
        self.loop.close()

    @staticmethod
    async def _end():
        """Forget the times of directories that are on their way to another server."""
        late = asyncio.all_tasks() - {asyncio.current_task()}
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)

    async def _ask(self, server, op, tail, fields, send, recv):
        data = ctypes.string_at(*send) if send else b""
        bulk = len(data) > EAGER_LIMIT
        try:
            reply, back = await self.world.ask(
                server,
                op,
                tail if bulk else tail + data,
                *fields,
                uid=self.who.uid,
                gid=self.who.gid,
                groups=self.who.groups,
                payload=data if bulk else b"",
            )
        except Restart as restart:
            raise Restart(restart.prefix, bytes(restart.target)) from None
        if recv:
            assert len(back) <= recv[1]
            ctypes.memmove(recv[0], back, len(back))
            back = b""
        return reply, back
