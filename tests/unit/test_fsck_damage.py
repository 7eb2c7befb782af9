# SPDX-License-Identifier: Apache-2.0
"""Each kind of damage to stores is told once, in its own words, and mended; looking changes nothing."""
import os

import damages
import pytest
from damages import DAMAGES, SERVERS, Stores
from real_servers import RealServers

from pymadfs import fsck, links
from pymadfs.client import File, FileSystem
from pymadfs.config import Config
from pymadfs.layout import chunk_server
from pymadfs.server import meta
from pymadfs.server.chunks import name_of


@pytest.fixture
def servers(tmp_path, monkeypatch):
    monkeypatch.setattr(fsck, "PAUSE_S", 0)
    rpc = RealServers(tmp_path, SERVERS)
    fill(FileSystem(rpc, Config({}), b"/madfs", lambda address, data: None))
    yield rpc
    rpc.close()


def fill(fs):
    """What tests/test_fsck.py has in its store, too."""
    def make(path, size):
        path, attr = fs.open(path, os.O_CREAT | os.O_RDWR, 0o644)
        assert fs.write(File(attr.ino, attr.mode, path, attr.chunk_size), 0, [(b"x" * size, size)]) == size
        fs.ended(attr.ino)

    for path in (b"/d", b"/d/e", b"/d/e/f"):
        fs.mkdir(path, 0o755)
    for path in (b"/a", b"/d/b", b"/d/e/c", b"/d/e/f/g"):
        make(path, 100)
    make(b"/big", 3_000_000)
    links.link(fs, b"/a", b"/d/link")
    fs.symlink(b"a", b"/s")
    fs.rename(b"/d/b", b"/moved")
    fs.flush()


def do(rpc, damage):
    """To the stores of servers that died and come back."""
    async def restart():
        for number in range(SERVERS):
            if rpc.world.servers[number] is not None:
                rpc.world.crash(number)
        damage(Stores(rpc.world.kvs, [f"{rpc.world.path}/{number}" for number in range(SERVERS)]))
        for kv in rpc.world.kvs:
            kv.commit()
        for number in range(SERVERS):
            rpc.world.start(number)
        await rpc.world.quiet()
    rpc.loop.run_until_complete(restart())


def told(rpc):
    return [problem.text for problem in fsck.check(rpc)[1]]


# A server that starts after a crash removes these by itself.
SWEPT = damages.forget_the_key_of_a_chunk, damages.leave_a_chunk_file_without_a_key


@pytest.mark.parametrize("damage", [each for each in DAMAGES if each not in SWEPT], ids=lambda damage: damage.__name__)
def test_damage_is_told_and_mended(servers, damage):
    assert told(servers) == []
    do(servers, damage)
    message, times = DAMAGES[damage]
    texts = told(servers)
    assert len(texts) >= times and sum(message in text for text in texts) == times, texts
    assert told(servers) == texts, "looking changes nothing"
    for _ in range(fsck.REPAIRS_MAX):
        wrong = fsck.check(servers)[1]
        if not wrong:
            break
        assert fsck.mend(servers, wrong), wrong
        servers.loop.run_until_complete(servers.world.quiet())
    assert told(servers) == []
    do(servers, lambda stores: None)
    assert told(servers) == []
    lost = {damages.cut_a_record_short: b"/d/e/c", damages.overwrite_a_record: b"/d/e/f/g",
            damages.overwrite_an_inode: b"/moved", damages.lose_an_inode: b"/moved"}.get(damage)
    fs = FileSystem(servers, Config({}), b"/madfs", lambda address, data: None)
    for path in FILES:
        if path != lost:
            assert fs.lookup(path, follow=False)[1].size == FILES[path], path


FILES = {b"/a": 100, b"/d/e/c": 100, b"/d/e/f/g": 100, b"/big": 3_000_000, b"/d/link": 100, b"/s": 1, b"/moved": 100}


def test_what_a_start_settles_is_no_damage(servers):
    for damage in damages.SETTLED:
        do(servers, damage)
        census, wrong = fsck.check(servers)
        assert not wrong and not census.waiting, damage


def test_a_key_is_gone_before_its_file(servers):
    """A server that dies while it removes chunks leaves files without keys, which are removed at the next start, and no
    key without a file, which would be damage."""
    fs = FileSystem(servers, Config({}), b"/madfs", lambda address, data: None)
    ino = fs.lookup(b"/big")[1].ino
    victim = servers.world.servers[chunk_server(ino, 1, SERVERS)]
    path = f"{servers.world.path}/{victim.number}/{name_of(ino, 1)}"
    removing = []

    async def dies(function, *arguments):
        removing.append(os.path.exists(path) and victim.kv.get(meta.chunk_key(ino, 1)) is None)
        servers.world.crash(victim.number)
        raise OSError(5, "it died")

    victim.io = dies
    with pytest.raises(OSError):
        fs.truncate(b"/big", 10)
    assert removing == [True] and os.path.exists(path)
    do(servers, lambda stores: None)
    assert told(servers) == [] and not os.path.exists(path)
