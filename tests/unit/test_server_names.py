# SPDX-License-Identifier: Apache-2.0
"""Names over several servers: making, finding, removing, permissions."""
import asyncio
import errno
import os

import pytest
from server_world import World

from pymadfs.errors import Restart
from pymadfs.ops import LOOKUP, OPEN, SET_MODE, SETATTR


def run(test):
    """Run an ``async def test(world)`` with three servers."""
    def wrapper(tmp_path):
        async def main():
            world = World(tmp_path)
            try:
                await asyncio.wait_for(test(world), 20)
            finally:
                await world.stop()
        asyncio.run(main())
    wrapper.__name__ = test.__name__
    wrapper.__doc__ = test.__doc__
    return wrapper


def code(error):
    return errno.errorcode[error.value.errno]


@run
async def test_create_lookup_unlink(world):
    for index in range(12):
        path = b"/file%d" % index
        attr = await world.create(path)
        assert (await world.stat(path)).ino == attr.ino
    assert len(await world.names(b"/")) == 12
    with pytest.raises(OSError) as error:
        await world.create(b"/file1", os.O_CREAT | os.O_EXCL)
    assert code(error) == "EEXIST"
    for index in range(12):
        await world.unlink(b"/file%d" % index)
    assert await world.names(b"/") == []
    assert not world.keys(b"I") and not world.keys(b"P")
