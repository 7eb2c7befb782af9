# SPDX-License-Identifier: Apache-2.0
"""A directory of a million entries: listed in windows, with a bounded number of records in memory."""
import itertools
import sys

import pytest
from support import ROOT

sys.path.append(str(ROOT / "tests" / "unit"))
from real_servers import RealServers

from pymadfs import listing
from pymadfs.client import FileSystem
from pymadfs.config import Config
from pymadfs.layout import owner
from pymadfs.ops import DIRENT
from pymadfs.server.kv import RocksKV
from pymadfs.server.meta import entry_key, new_attr

pytestmark = pytest.mark.long
ENTRIES, SERVERS = 1_000_000, 3
BATCH = 20_000


def test_a_million_entries(tmp_path):
    """The entries are put into the stores as creates would leave them: through the mount it would take half an hour."""
    numbers = itertools.count()
    servers = RealServers(tmp_path / "stores", SERVERS, lambda: RocksKV(str(tmp_path / f"kv{next(numbers)}")))
    fs = FileSystem(servers, Config({}), b"/madfs", lambda address, data: None)
    fs.mkdir(b"/d", 0o755)
    ino = fs.lookup(b"/d")[1].ino
    for number in range(ENTRIES):
        path = b"/d/file.%08d" % number
        kv = servers.world.kvs[owner(path, SERVERS)]
        kv.put(entry_key(path), new_attr(number + (1 << 20), 0o100644, 0, 0, 1))
        if number % BATCH == BATCH - 1:
            for each in servers.world.kvs:
                each.commit()
    after, seen, last, windows, done = 0, 0, 0, 0, False
    while not done:
        window = listing.read(fs, b"/d", ino, after)
        assert len(window.entries) <= 2 + listing.WINDOW_BYTES // DIRENT.size
        for place, _, _, name in window.entries:
            assert place >= last
            last = place
            seen += name not in (b".", b"..")
        after, done, windows = window.entries[-1][0], window.done, windows + 1
    assert seen == ENTRIES and windows > 100
    servers.close()
