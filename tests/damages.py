# SPDX-License-Identifier: Apache-2.0
"""What may be wrong with stores: functions that do it to three of them which nobody uses, and what fsck says of each.

``stores`` has ``kvs``, the databases by number; ``entry(path)`` and ``inode(number)``, each (database, key, value);
``data(server)``, the directory that the names of chunk files start from.
"""
import os
import stat

from pymadfs.layout import chunk_server, home, owner
from pymadfs.ops import ATTR, INO_HOME_SHIFT
from pymadfs.server import meta, rename
from pymadfs.server.chunks import name_of

SERVERS = 3


class Stores:
    """``kvs`` of stores whose directories are ``tops``."""

    def __init__(self, kvs, tops):
        self.kvs, self._tops = kvs, tops

    def data(self, server):
        return self._tops[server]

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
    path = f"{stores.data(chunk_server(ino, chunk, SERVERS))}/{name_of(ino, chunk)}"
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


def lose_a_chunk_file(stores):
    ino = meta.ino_of(stores.entry(b"/big")[2])
    os.unlink(f"{stores.data(chunk_server(ino, 3, SERVERS))}/{name_of(ino, 3)}")


def embed_an_inode_twice(stores):
    """Two names with one inode within each, on its home."""
    _, _, value = stores.entry(b"/a")
    ino = meta.ino_of(stores.entry(b"/d/e/c")[2])
    path = next(path for path in (b"/twice-%d" % number for number in range(100)) if owner(path, SERVERS) == home(ino))
    kv, key, _ = stores.entry(path)
    kv.put(key, stores.entry(b"/d/e/c")[2])


def embed_an_inode_that_has_a_record(stores):
    ino = meta.ino_of(stores.entry(b"/d/e/c")[2])
    kv, key, _ = stores.inode(ino)
    kv.put(key, stores.entry(b"/d/e/c")[2])


def store_an_inode_on_two_servers(stores):
    ino = meta.ino_of(stores.entry(b"/moved")[2])
    stores.kvs[(home(ino) + 1) % SERVERS].put(meta.inode_key(ino), stores.inode(ino)[2])


def give_two_directories_one_number(stores):
    kv, key, value = stores.entry(b"/d/e/f")
    kv.put(key, meta.changed(value, ino=meta.ino_of(stores.entry(b"/d")[2])))


def put_a_name_on_a_wrong_server(stores):
    kv, key, value = stores.entry(b"/d/e/c")
    stores.kvs[(owner(b"/d/e/c", SERVERS) + 1) % SERVERS].put(key, value)
    kv.delete(key)


def put_a_link_on_a_wrong_server(stores):
    kv, key, value = stores.entry(b"/s")
    stores.kvs[(owner(b"/s", SERVERS) + 1) % SERVERS].put(key, value)
    kv.delete(key)


def put_a_directory_on_a_wrong_server(stores):
    kv, key, value = stores.entry(b"/d/e")
    stores.kvs[(owner(b"/d/e", SERVERS) + 1) % SERVERS].put(key, value)
    kv.delete(key)


def copy_a_name_to_a_wrong_server(stores):
    _, key, value = stores.entry(b"/d/link")
    stores.kvs[(owner(b"/d/link", SERVERS) + 1) % SERVERS].put(key, value)


def name_a_directory_twice(stores):
    kv, key, _ = stores.entry(b"/d/again")
    kv.put(key, meta.pointer(meta.ino_of(stores.entry(b"/d/e")[2]), stat.S_IFDIR | 0o755))


def leave_attributes_of_nobody(stores):
    ino = 1 << INO_HOME_SHIFT | 888_888
    stores.kvs[1].put(meta.xattrs_key(ino), b"\x06\x01\0\0\0user.xy")


def damage_intents(stores):
    """One of each kind of record of what is under way; servers start all the same."""
    for number, key in enumerate((meta.intent_key(5), meta.debt_key(6), meta.purge_key(7), b"TI" + bytes(8),
                                  b"TF" + bytes(8), b"SE" + bytes(8) + meta.entry_key(b"/d/x"), b"ST" + bytes(8))):
        stores.kvs[number % SERVERS].put(key, b"\xff" * (number + 9))
    stores.kvs[2].put(meta.debt_key(8), meta.DEBT.pack(77 << INO_HOME_SHIFT, -1, 5))  # of a server that there is not
    stores.kvs[0].put(meta.applied_key(1, 2)[:9], b"")


def owe_a_link_count(stores):
    """A debt to a directory that is gone, as a crash may leave it: it is told at the start, and refused."""
    stores.kvs[1].put(meta.debt_key(1 << INO_HOME_SHIFT | 999), meta.DEBT.pack(0, -1, 5) + b"/nowhere")


def leave_a_rename_of_nothing(stores):
    """A rename whose second half another server refuses: it is taken back at the start."""
    _, _, value = stores.entry(b"/a")
    move = rename.Move(1 << INO_HOME_SHIFT | 77, 0, b"/gone", b"/nowhere/x", 0, 0, b"", value[:ATTR.size], b"")
    stores.kvs[owner(b"/gone", SERVERS)].put(meta.intent_key(move.number), rename.pack(move))


def leave_a_removal_of_nothing(stores):
    stores.kvs[1].put(meta.purge_key(1 << INO_HOME_SHIFT | 66), meta.PURGE.pack(10_000_000, 1 << 19))


def leave_a_frozen_name(stores):
    """A rename of a directory that was never committed."""
    for kv in stores.kvs:
        kv.put(b"TF" + (3).to_bytes(8, "big"), b"\0\0\0\0\0\0\0\0\x02\0\x03\0/d/dd")


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
    lose_a_chunk_file: ("has lost its file: its bytes are gone", 1),
    embed_an_inode_twice: ("exists twice, on servers", 1),
    embed_an_inode_that_has_a_record: ("exists twice, on servers", 1),
    store_an_inode_on_two_servers: ("exists twice, on servers", 1),
    give_two_directories_one_number: ("exists twice, on servers", 1),
    put_a_name_on_a_wrong_server: ("/d/e/c is on server", 1),
    put_a_link_on_a_wrong_server: ("/s is on server", 1),
    put_a_directory_on_a_wrong_server: ("/d/e is on server", 1),
    copy_a_name_to_a_wrong_server: ("/d/link is on server", 1),
    name_a_directory_twice: ("/d/again is a further name of the directory /d/e", 1),
    leave_attributes_of_nobody: ("extended attributes on server 1 belong to inode", 1),
    damage_intents: ("is damaged", 9),
}
LOSSES = {cut_a_record_short, overwrite_a_record, overwrite_an_inode, forget_the_key_of_a_chunk,
          lose_a_chunk_file}  # of what is looked at
ALONE = {put_a_name_on_a_wrong_server, put_a_directory_on_a_wrong_server}  # others do something to the same name
SETTLED = [owe_a_link_count, leave_a_rename_of_nothing, leave_a_removal_of_nothing, leave_a_frozen_name]
