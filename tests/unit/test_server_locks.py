# SPDX-License-Identifier: Apache-2.0
"""Locks at the servers: waiting, deadlocks across servers, whose life they depend on, and restarts."""
import asyncio
import os
import subprocess
from fcntl import F_RDLCK, F_UNLCK, F_WRLCK

import pytest
from server_world import code, run

from pymadfs.layout import home
from pymadfs.ops import LOCK, LOCK_ASK, LOCK_RECORD, LOCK_TRY, LOCK_WAIT, LOCK_WHOLE, LOCKWAITS, OWNER_FILE
from pymadfs.server import locking

FILE = OWNER_FILE | 5


class Locker:
    """An owner of locks on one file, which speaks through ``conn``."""

    def __init__(self, world, attr, owner, conn, opener=0):
        self.world, self.ino, self.owner, self.conn, self.opener = world, attr.ino, owner, conn, opener

    def ask(self, kind, start=0, end=10, how=LOCK_TRY, space=LOCK_RECORD):
        fields = self.ino, self.owner, self.opener, start, end, kind, how, space
        return self.world.ask(home(self.ino), LOCK, b"/f", *fields, conn=self.conn)

    async def wait(self, kind, start=0, end=10, space=LOCK_RECORD):
        """As a client does: ask again when sent back."""
        while True:
            try:
                return await self.ask(kind, start, end, LOCK_WAIT, space)
            except OSError as error:
                if error.errno != 11:
                    raise


async def refused(name, future):
    with pytest.raises(OSError) as error:
        await future
    assert code(error) == name


async def blocked(*futures):
    done, _ = await asyncio.wait(futures, timeout=0.01)
    assert not done


@run
async def test_record_locks_wait_for_each_other(world):
    attr = await world.create(b"/f")
    a, b, c = (Locker(world, attr, owner, conn) for owner, conn in ((7, 1), (8, 2), (9, 3)))
    await a.ask(F_WRLCK)
    await refused("EAGAIN", b.ask(F_RDLCK, 5, 6))
    reply, _ = await b.ask(F_RDLCK, 5, 6, LOCK_ASK)
    assert (reply.type, reply.start, reply.end, reply.owner) == (F_WRLCK, 0, 10, 7)
    waiting = [asyncio.ensure_future(each.wait(F_RDLCK, 5, 6)) for each in (b, c)]
    await blocked(*waiting)
    await a.ask(F_UNLCK)
    await asyncio.gather(*waiting)
    await a.ask(F_WRLCK, 20, 30)
    again = asyncio.ensure_future(a.wait(F_WRLCK))
    await blocked(again)
    await refused("EDEADLOCK", b.wait(F_WRLCK, 20, 30))
    server = world.servers[home(attr.ino)]
    server.forget(2)
    server.forget(3)
    await again
    reply, _ = await a.ask(F_WRLCK, 0, 10, LOCK_ASK)
    assert reply.type == F_UNLCK


@run
async def test_a_waiting_lock_is_sent_back_in_time_and_keeps_its_place(world):
    attr = await world.create(b"/f")
    server = world.servers[home(attr.ino)]
    server.config.timeout_ms = 3
    a, b, c = (Locker(world, attr, owner, owner) for owner in (1, 2, 3))
    await a.ask(F_WRLCK)
    await refused("EAGAIN", b.ask(F_WRLCK, how=LOCK_WAIT))
    first, second = (asyncio.ensure_future(each.wait(F_WRLCK)) for each in (c, b))
    await blocked(first, second)
    assert [waiter.lock.owner for waiter in server.locking.locks.waiting] == [2, 3]
    await a.ask(F_UNLCK)
    done, _ = await asyncio.wait([first, second], return_when=asyncio.FIRST_COMPLETED)
    await asyncio.wait([first, second], timeout=0.02)
    holder = c if first in done else b
    await holder.ask(F_UNLCK)
    await asyncio.gather(first, second)


@run
async def test_a_circle_over_two_servers(world):
    here, there = [await world.create(world.path_on(number)) for number in (0, 1)]
    one, two = Locker(world, here, 1, 1), Locker(world, there, 2, 2)
    await one.ask(F_WRLCK)
    await two.ask(F_WRLCK)
    waits = [asyncio.ensure_future(Locker(world, there, 1, 1).wait(F_WRLCK)),
             asyncio.ensure_future(Locker(world, here, 2, 2).wait(F_WRLCK))]
    await refused("EDEADLOCK", waits[1])  # the one with the higher number gives way
    await blocked(waits[0])
    reply, tail = await world.ask(1, LOCKWAITS, conn=-1)
    assert tail == (1).to_bytes(8, "little") + (2).to_bytes(8, "little")
    await two.ask(F_UNLCK)
    await waits[0]


@run
async def test_an_open_file_lives_with_any_who_speak_for_it(world):
    attr = await world.create(b"/f")
    server = world.servers[home(attr.ino)]
    server.processes.update({1: (100, True, "here"), 2: (200, True, "here"), 3: (100, True, "elsewhere")})
    # Connection 2 locks a file that process 100 of its host opened, which has connection 1.
    await Locker(world, attr, FILE, 2, opener=100).ask(F_WRLCK, space=LOCK_WHOLE)
    server.forget(2)
    server.forget(3)
    other = Locker(world, attr, OWNER_FILE | 6, 4)
    await refused("EAGAIN", other.ask(F_RDLCK, space=LOCK_WHOLE))
    await other.ask(F_WRLCK)  # record locks are others
    waiting = asyncio.ensure_future(other.wait(F_RDLCK, space=LOCK_WHOLE))
    await blocked(waiting)
    server.forget(1)
    await waiting
    await other.ask(F_UNLCK)
    await other.ask(F_UNLCK, space=LOCK_WHOLE)
    await asyncio.sleep(0)
    assert not world.keys(b"AL") and not world.keys(b"AO") and not server.locking.speakers


@run
async def test_locks_outlive_a_restart_of_the_server(world):
    """Until the process is gone: never two holders."""
    attr = await world.create(b"/f")
    number = home(attr.ino)
    process = subprocess.Popen(["sleep", "60"])
    try:
        world.servers[number].processes.update({1: (process.pid, True, "here"), 2: (os.getpid(), True, "here")})
        await Locker(world, attr, 1, 1).ask(F_WRLCK)
        await Locker(world, attr, 2, 2).ask(F_WRLCK, 20, 30)
        world.crash(number)
        world.start(number)
        await refused("EAGAIN", Locker(world, attr, 3, 3).ask(F_WRLCK))
        await Locker(world, attr, 2, 2).ask(F_UNLCK, 20, 30)  # its holder goes on as if nothing had happened
        await Locker(world, attr, 3, 3).ask(F_WRLCK, 20, 30)
        waiting = asyncio.ensure_future(Locker(world, attr, 3, 3).wait(F_WRLCK))
        await blocked(waiting)
    finally:
        process.kill()
        process.wait()
    await waiting


@run
async def test_processes_of_other_hosts_have_some_time_after_a_restart(world):
    attr = await world.create(b"/f")
    number = home(attr.ino)
    world.servers[number].processes[1] = (os.getpid(), False, "there")
    await Locker(world, attr, 1, 1).ask(F_WRLCK)
    world.crash(number)
    world.start(number)
    waiting = asyncio.ensure_future(Locker(world, attr, 3, 3).wait(F_WRLCK))
    await blocked(waiting)
    world.servers[number].locking._absent_until -= locking.ABSENT_S
    await waiting


@run
async def test_a_refused_batch_leaves_no_lock(world):
    attr = await world.create(b"/f")
    kv = world.kvs[home(attr.ino)]
    kv.error = OSError(28, "full")
    await refused("ENOSPC", Locker(world, attr, 1, 1).ask(F_WRLCK))
    kv.error = None
    await Locker(world, attr, 2, 2).ask(F_WRLCK)
