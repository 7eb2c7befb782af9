# SPDX-License-Identifier: Apache-2.0
"""What fsck asks of a server: everything it stores, in pages, and to put one thing right if it is still wrong."""
import os

import pytest
from server_world import CHUNK, code, run

from pymadfs.ops import ATTR, INVENTORY, ITEM, MEND, MEND_DIRECTORY, MEND_ENTRY, MEND_LINKS
from pymadfs.server.inventory import PAGE_KEYS
from pymadfs.server.meta import entry_key, inode_key, path_of

NOBODY = 65534


async def stored(world, number, **user):
    """[(key, attributes as stored)] and the number of pages."""
    cursor, found, pages = b"", [], 0
    while cursor or not pages:
        reply, tail = await world.ask(number, INVENTORY, cursor, **user)
        cursor, items, pages = tail[:reply.cursor], tail[reply.cursor:], pages + 1
        while items:
            key_length, value_length, _ = ITEM.unpack(items[:ITEM.size])
            end = ITEM.size + key_length + value_length
            found.append((items[ITEM.size:ITEM.size + key_length], items[ITEM.size + key_length:end]))
            items = items[end:]
    return found, pages


@run
async def test_all_that_is_stored_is_told_in_pages(world):
    names = {world.path_on(0, skip=skip) for skip in range(PAGE_KEYS + 20)}
    for name in names:
        await world.create(name)
    attr = await world.create(world.path_on(0, stem=b"long"))
    await world.write(attr, world.path_on(0, stem=b"long"), 0, b"x" * CHUNK * 4)
    found, pages = await stored(world, 0)
    told = {path_of(key): ATTR.unpack(value) for key, value in found if key[:1] == b"E"}
    assert names < told.keys() and pages > 2
    assert told[world.path_on(0, stem=b"long")].size == CHUNK * 4
    assert sum(key[:1] == b"f" for key, _ in found) == 2, "chunk files 0 and 3 lie here"


@run
async def test_only_root_and_the_owner_may_ask(world):
    for op, tail, fields in ((INVENTORY, b"", ()), (MEND, b"/f", (MEND_ENTRY, 1, 0))):
        with pytest.raises(OSError) as error:
            await world.ask(0, op, tail, *fields, uid=NOBODY)
        assert code(error) == "EPERM"
        await world.ask(0, op, tail, *fields, uid=os.getuid())
    for action, tail in ((99, b"/f"), (MEND_ENTRY, b""), (MEND_DIRECTORY, b"f")):
        with pytest.raises(OSError) as error:
            await world.ask(0, MEND, tail, action, 1, 0)
        assert code(error) == "EINVAL"


@run
async def test_only_what_is_still_wrong_is_mended(world):
    path = world.path_on(0)
    attr = await world.create(path)
    await world.mkdir(b"/d")
    directory = await world.stat(b"/d")
    for action, ino, number, name in ((MEND_ENTRY, attr.ino, 0, path), (MEND_LINKS, attr.ino, 2, b""),
                                      (MEND_DIRECTORY, attr.ino, 5, path)):
        reply, _ = await world.ask(0, MEND, name, action, ino, number)
        assert not reply.done, action
    assert await world.stat(path) == attr

    await world.link(attr.ino, world.path_on(1), path)  # the inode has left its entry
    reply, _ = await world.ask(0, MEND, b"", MEND_LINKS, attr.ino, 7)
    assert reply.done and (await world.stat(path)).nlink == 7
    owner = world.owner(b"/d")
    reply, _ = await world.ask(owner, MEND, b"/d", MEND_DIRECTORY, directory.ino, 4)
    assert reply.done and (await world.stat(b"/d")).nlink == 4
    world.servers[0].kv.delete(inode_key(attr.ino))
    world.servers[0].commit()
    reply, _ = await world.ask(0, MEND, path, MEND_ENTRY, attr.ino, 0)
    assert reply.done and not world.keys(entry_key(path))
