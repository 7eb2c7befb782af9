# SPDX-License-Identifier: Apache-2.0
"""A server that cannot be heard begins anew, except when it was told to stop."""
import asyncio
import os
import signal
import types

import pytest
import uvloop

from pymadfs.server import watchdog

uvloop.new_event_loop().close()  # libuv keeps a pipe for the signals of all loops

@pytest.fixture(autouse=True)
def dispositions():
    """The process's own, again afterwards."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, action in kept.items():
        signal.signal(number, action)


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
@pytest.mark.parametrize("told", [True, False])
def test_who_was_told_to_stop_does_not_begin_anew(told, new_loop):
    """Even when the loop has not heard of the signal yet as the last requests are answered."""
    stopped, begun = [], []

    async def scene():
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, stopped.append, True)

        def flush():
            if told:
                os.kill(os.getpid(), signal.SIGTERM)

        server = types.SimpleNamespace(loop=loop, unanswered=0, flush=flush)
        await watchdog.last_things(server, lambda: bool(stopped), lambda: begun.append(True))

    loop = new_loop()
    try:
        loop.run_until_complete(asyncio.wait_for(scene(), 10))
    finally:
        loop.close()
    assert bool(stopped) == told
    assert bool(begun) != told
