# SPDX-License-Identifier: Apache-2.0
"""madfs fsck finds what is wrong with a store, tells each thing once, and mends it; it finds nothing else."""
import os
import stat
import subprocess
import sys

import pytest
from support import MADFS, call

from pymadfs import cli
from pymadfs.layout import chunk_server, home, owner
from pymadfs.ops import INO_HOME_SHIFT
from pymadfs.server import meta
from pymadfs.server.chunks import name_of
from pymadfs.server.kv import RocksKV

SERVERS = 3

FILL = """
import os
os.makedirs("d/e/f")
for name in ("a", "d/b", "d/e/c", "d/e/f/g"):
    with open(name, "wb") as file:
        file.write(b"x" * 100)
with open("big", "wb") as file:
    file.write(b"y" * 3_000_000)
os.link("a", "d/link")
os.symlink("a", "s")
os.rename("d/b", "moved")
"""


@pytest.fixture
def store(tmp_path):
    """The path of the store of three servers that are stopped, with some files in it."""
    path = str(tmp_path / "store")
    done = call([*MADFS, "run", "--servers", SERVERS, "--store", path, "--", "sh", "-c",
                 f"cd /madfs && '{sys.executable}' -c '{FILL}'"])
    assert done.returncode == 0, done.stderr
    return path


def fsck(store, *options):
    """``(exit status, lines of output)``."""
    done = call([*MADFS, "fsck", "--store", store, *options])
    assert all(" keys, server " in line for line in done.stderr.splitlines()), done.stderr  # how far it is
    return done.returncode, done.stdout.splitlines()


class Stores:
    """The databases of all servers, to do damage to."""

    def __init__(self, store):
        self.store = store
        self.kvs = [RocksKV(f"{store}/server-{number}/kv") for number in range(SERVERS)]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for kv in self.kvs:
            kv.commit()
            kv.close()

    def entry(self, path):
        """``(store, key, value)`` of a name."""
        kv, key = self.kvs[owner(path, SERVERS)], meta.entry_key(path)
        return kv, key, kv.get(key)

    def inode(self, ino):
        kv, key = self.kvs[home(ino)], meta.inode_key(ino)
        return kv, key, kv.get(key)


def lose_a_directory(stores):
    kv, key, _ = stores.entry(b"/d/e")
    kv.delete(key)


def lose_an_inode(stores):
    kv, key, _ = stores.inode(meta.ino_of(stores.entry(b"/moved")[2]))
    kv.delete(key)


def miscount_links(stores):
    kv, key, value = stores.inode(meta.ino_of(stores.entry(b"/d/link")[2]))
    kv.put(key, meta.changed(value, nlink=7))


def miscount_directories(stores):
    kv, key, value = stores.entry(b"/d")
    kv.put(key, meta.changed(value, nlink=9))


def leave_an_inode_without_a_name(stores):
    ino = 1 << INO_HOME_SHIFT | 999_999
    kv, key, _ = stores.inode(ino)
    kv.put(key, meta.new_attr(ino, stat.S_IFREG | 0o644, 0, 0, 0, size=3, chunk_size=1 << 19))
    kv.put(meta.data_key(ino), b"abc")


def leave_data_without_an_inode(stores):
    ino = 2 << INO_HOME_SHIFT | 999_999
    kv = stores.kvs[home(ino)]
    kv.put(meta.data_key(ino), b"abc")
    kv = stores.kvs[chunk_server(ino, 5, SERVERS)]
    kv.put(meta.chunk_key(ino, 5), b"")
    chunk_file(stores, ino, 5)


def leave_a_chunk_file_without_a_key(stores):
    chunk_file(stores, meta.ino_of(stores.entry(b"/a")[2]), 4)


def chunk_file(stores, ino, chunk):
    path = f"{stores.store}/server-{chunk_server(ino, chunk, SERVERS)}/{name_of(ino, chunk)}"
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(b"left over")


def cut_a_record_short(stores):
    kv, key, value = stores.entry(b"/d/e/c")
    kv.put(key, value[:40])


def overwrite_a_record(stores):
    kv, key, value = stores.entry(b"/d/e/f/g")
    kv.put(key, bytes(reversed(range(len(value)))))


def overwrite_an_inode(stores):
    kv, key, value = stores.inode(meta.ino_of(stores.entry(b"/moved")[2]))
    kv.put(key, b"\xff" * len(value))


def owe_a_link_count(stores):
    """A debt to a directory that is gone, as a crash may leave it: it is told at the start, and refused."""
    stores.kvs[1].put(meta.debt_key(1 << INO_HOME_SHIFT | 999), meta.DEBT.pack(0, -1, 5) + b"/nowhere")


def forget_the_key_of_a_chunk(stores):
    kv = stores.kvs[chunk_server(meta.ino_of(stores.entry(b"/big")[2]), 2, SERVERS)]
    kv.delete(meta.chunk_key(meta.ino_of(stores.entry(b"/big")[2]), 2))


DAMAGES = {
    cut_a_record_short: ("the record of /d/e/c", 1),
    overwrite_a_record: ("the record of /d/e/f/g", 1),
    overwrite_an_inode: ("is damaged", 1),
    forget_the_key_of_a_chunk: ("was never acknowledged", 1),
    lose_a_directory: ("the directory /d/e does not exist", 1),
    lose_an_inode: ("/moved is a name of inode", 1),
    miscount_links: ("has 2 names and a link count of 7: /a, /d/link", 1),
    miscount_directories: ("/d has 1 directories in it and a link count of 9", 1),
    leave_an_inode_without_a_name: ("has no name, and nobody has it open", 1),
    leave_data_without_an_inode: ("belongs to no file", 2),
    leave_a_chunk_file_without_a_key: ("was never acknowledged", 1),
}
LOSSES = {cut_a_record_short, overwrite_a_record, overwrite_an_inode, forget_the_key_of_a_chunk}  # of what is looked at


def test_a_store_in_order_is_found_in_order(store):
    assert fsck(store) == (0, ["4 directories, 7 other names on 3 servers: nothing is wrong"])


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damage_is_told_and_mended(store, damage):
    with Stores(store) as stores:
        damage(stores)
    message, times = DAMAGES[damage]
    status, lines = fsck(store)
    assert status == 4 and sum(message in line for line in lines if line.startswith("wrong: ")) == times, lines
    assert fsck(store)[0] == 4  # looking changes nothing
    status, lines = fsck(store, "--repair")
    assert status == 1 and lines[-1].endswith("nothing is wrong"), lines
    assert any(line.startswith("mended: ") and message in line for line in lines)
    assert fsck(store)[0] == 0


@pytest.mark.parametrize("damage", [owe_a_link_count], ids=lambda damage: damage.__name__)
def test_what_a_start_settles_is_no_damage(store, damage):
    with Stores(store) as stores:
        damage(stores)
    assert fsck(store)[0] == 0


def test_all_damage_at_once_is_mended_and_the_rest_stays(store):
    with Stores(store) as stores:
        for damage in DAMAGES.keys() - LOSSES:
            damage(stores)
    assert fsck(store, "--repair")[0] == 1
    done = call([*MADFS, "run", "--store", store, "--", "sh", "-c",
                 "cd /madfs && cat a d/link d/e/c d/e/f/g s | wc -c && wc -c <big && ls -d d/e moved"])
    assert done.stdout.split() == ["500", "3000000", "d/e"], done.stderr


def test_fsck_of_a_cluster_at_work(cluster_file):
    environment = {**os.environ, **cli.preload_environment(cluster_file)}
    script = "mkdir -p /madfs/w; cd /madfs/w; while :; do mkdir d; echo x > d/f; mv d/f g; ln g h; rm -r d g h; done"
    with subprocess.Popen(["sh", "-c", f"echo go; {script}"], env=environment, stdout=subprocess.PIPE) as worker:
        try:
            assert worker.stdout.readline() == b"go\n"
            done = call([*MADFS, "fsck", "--cluster", cluster_file])
            refused = call([*MADFS, "fsck", "--cluster", cluster_file, "--repair"])
        finally:
            worker.kill()
    assert done.returncode == 0 and "nothing is wrong" in done.stdout, done.stdout + done.stderr
    assert refused.returncode == 2 and "end them, or leave out --repair" in refused.stderr


@pytest.mark.parametrize(("options", "message"), [
    (["--store", "/nowhere"], "is not a store of servers"),
    (["--cluster", "/nowhere/cluster"], "cannot read the cluster file"),
    (["--store", "/nowhere", "--cluster", "/nowhere/cluster"], "leave out --cluster"),
])
def test_wrong_usage(options, message):
    done = call([*MADFS, "fsck", *options])
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1
