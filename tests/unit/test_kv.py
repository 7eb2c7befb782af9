# SPDX-License-Identifier: Apache-2.0
"""Both key-value stores: the same verbs, the same answers; durability of the real one."""
import errno
import os
import random
import signal
import subprocess
import sys

import pytest

from pymadfs.server import journal
from pymadfs.server import kv as kv_module
from pymadfs.server.journal import Journal
from pymadfs.server.kv import MemoryKV, RocksKV


@pytest.fixture(params=["memory", "rocks"])
def kv(request, tmp_path):
    store = MemoryKV() if request.param == "memory" else RocksKV(str(tmp_path / "kv"))
    yield store
    store.close()


def test_random_changes_against_a_dict(kv, monkeypatch):
    monkeypatch.setattr(kv_module, "CACHE_ENTRIES_MAX", 16)
    chance, model = random.Random(5), {}
    for _ in range(2000):
        key = b"k%d" % chance.randrange(60)
        action = chance.random()
        if action < 0.3:
            model[key] = chance.randbytes(chance.choice((0, 5, 3000)))
            kv.put(key, model[key])
        elif action < 0.4:
            model.pop(key, None)
            kv.delete(key)
        elif action < 0.5:
            model[key] = b"lazy" + key
            kv.lazy(key, model[key])
        elif action < 0.6:
            kv.commit(lazily=action < 0.55)
        assert kv.get(key) == model.get(key)
    kv.commit(lazily=True)
    kv.cache.clear()
    assert dict(kv.scan(b"k", b"", 1000)) == model
    assert all(kv.get(key) == value for key, value in model.items())


def test_scan_begins_after_and_ends_with_the_prefix(kv):
    for name in (b"a", b"b", b"ba", b"bb", b"bc", b"c"):
        kv.put(name, name)
    kv.commit()
    assert [key for key, _ in kv.scan(b"b", b"", 9)] == [b"b", b"ba", b"bb", b"bc"]
    assert [key for key, _ in kv.scan(b"b", b"a", 9)] == [b"bb", b"bc"]
    assert [key for key, _ in kv.scan(b"b", b"aa", 1)] == [b"bb"]
    assert kv.scan(b"d", b"", 9) == []


class Full:
    """A database that has no room left."""

    def __init__(self, real):
        self.get, self.close, self.items = real.get, real.close, real.items

    def put(self, *change):
        raise Exception("IO error: No space left on device: While appending")

    delete = write = put


@pytest.fixture
def full(tmp_path, monkeypatch):
    """A store whose database has become full, and a function that makes room."""
    monkeypatch.setattr(kv_module, "REOPEN_SECONDS_MIN", 0.0)
    store = RocksKV(str(tmp_path / "kv"))
    store.put(b"a", b"1")
    store.commit()
    store.settle()
    opens = store._open
    store._db = Full(store._db)

    def no_room(access=None):
        if access is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        return Full(opens())

    def make_room():
        store._db.close()
        store._open = opens

    store._open = no_room
    yield store, make_room
    store._db.close()
    store.journal.close()


def test_what_the_journal_took_stays_when_the_database_refuses_it(full):
    store, make_room = full
    store.put(b"a", b"2")
    store.put(b"b", b"2" * 2000)
    store.commit()
    with pytest.raises(OSError) as error:
        store.settle()
    assert error.value.errno == errno.ENOSPC
    store.cache.clear()
    assert store.get(b"a") == b"2" and store.scan(b"", b"", 9) == [(b"a", b"2"), (b"b", b"2" * 2000)]
    store.put(b"b", b"3")
    store.put(b"c", b"3")
    with pytest.raises(OSError) as error:
        store.commit()  # nothing new is taken
    assert error.value.errno == errno.ENOSPC
    assert store.get(b"b") == b"2" * 2000 and store.get(b"c") is None
    make_room()
    store.delete(b"a")
    store.commit()
    store.settle()
    assert store._db.get(b"b") == b"2" * 2000 and store._db.get(b"a") is None


def test_a_refused_batch_that_the_journal_has_no_room_for_leaves_nothing(full):
    store, make_room = full
    store.put(b"a", b"2")
    store.put(b"b", bytes(2 << 20))
    with pytest.raises(OSError) as error:
        store.commit()
    assert error.value.errno == errno.ENOSPC
    assert store.get(b"a") == b"1" and store.get(b"b") is None
    make_room()
    store.put(b"b", bytes(2 << 20))
    store.commit()
    assert store.get(b"b") == store._db.get(b"b") == bytes(2 << 20) and store.get(b"a") == b"1"


def test_the_journal_gives_back_what_was_not_cleared(tmp_path, monkeypatch):
    path = str(tmp_path / "journal")
    first = Journal(path)
    assert first.add({b"a": b"1", b"b": b"", b"c": b"3" * 3000}) and first.add({b"a": None, b"b": b"2"})
    assert not first.add({b"big": bytes(1 << 20)})
    assert Journal(path).left == {b"a": None, b"b": b"2", b"c": b"3" * 3000}
    first.clear()
    assert first.add({b"d": b"4"})
    assert Journal(path).left == {b"d": b"4"}
    monkeypatch.setattr(journal, "boot_id", lambda: b"another boot    ")
    after_power_loss = Journal(path)
    assert after_power_loss.left == {} and after_power_loss.used == 0
    assert after_power_loss.add({b"e": b"5"}) and Journal(path).left == {b"e": b"5"}


def test_a_journal_that_is_garbage_is_not_believed(tmp_path, capfd):
    path = tmp_path / "journal"
    Journal(str(path)).close()
    for damage in (b"", b"x" * 100, bytes(1 << 20), path.read_bytes()[:24] + b"\xff" * 8):
        path.write_bytes(damage)
        assert Journal(str(path)).left == {}
    path.write_bytes(path.read_bytes()[:24] + (100).to_bytes(8, "little") + b"\xff" * 1000)
    assert Journal(str(path)).left == {}


@pytest.mark.parametrize("damage", ["cut off", "garbage", "zeros", "length"])
def test_of_a_torn_journal_the_valid_prefix_is_kept(tmp_path, damage, capfd):
    """Torn at every byte: no crash, and what was before the tear is there."""
    path = tmp_path / "journal"
    whole = Journal(str(path))
    items = [(b"key%d" % number, b"v" * (3 * number)) for number in range(6)]
    ends = []
    for key, value in items:
        assert whole.add({key: value})
        ends.append(journal.HEADER.size + whole.used)
    whole.close()
    data = path.read_bytes()[:ends[-1]]
    for at in range(journal.HEADER.size, ends[-1]):
        torn = {"cut off": data[:at], "garbage": data[:at] + b"\xff" * (len(data) - at),
                "zeros": data[:at] + bytes(len(data) - at),
                "length": data[:24] + (at - journal.HEADER.size).to_bytes(8, "little") + data[32:]}[damage]
        path.write_bytes(torn)
        again = Journal(str(path))
        expected = dict(item for item, end in zip(items, ends) if end <= at)
        assert expected.items() <= again.left.items()
        assert len(again.left) <= len(expected) + 1  # within the bytes of a value a tear cannot be seen
        assert again.add({b"more": b"1"})
        again.close()
        reopened = Journal(str(path))
        assert reopened.left == {**again.left, b"more": b"1"}
        reopened.close()
    capfd.readouterr()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")
def test_a_full_disk_loses_nothing(tmp_path):
    """On a real file system of 4 MiB, in a mount namespace of its own."""
    script = f"""
import errno, os, time
from pymadfs.server import kv as module
module.REOPEN_SECONDS_MIN = 0.0
module.WRITE_BUFFER_BYTES = 1 << 20
kv = module.RocksKV({str(tmp_path / "small")!r} + "/kv")
acknowledged, filler = [], open({str(tmp_path / "small")!r} + "/filler", "wb", 0)
try:
    while True: filler.write(bytes(4096))
except OSError as error:
    assert error.errno == errno.ENOSPC
refused = 0
for index in range(3000):
    kv.put(b"key%d" % index, bytes(100))
    try:
        kv.commit()
        acknowledged.append(index)
        if index % 5 == 0: kv.settle()
    except OSError as error:
        assert error.errno == errno.ENOSPC, error
        refused += 1
        if refused > 3: break
assert refused
assert all(kv.get(b"key%d" % index) for index in acknowledged)
os.unlink({str(tmp_path / "small")!r} + "/filler")
filler.close()
kv.put(b"after", b"1")
kv.commit()
kv.close()
kv = module.RocksKV({str(tmp_path / "small")!r} + "/kv")
assert kv.get(b"after") == b"1" and all(kv.get(b"key%d" % index) for index in acknowledged)
assert kv.get(b"key%d" % index) is None
kv.close()
print("fine", len(acknowledged))
"""
    (tmp_path / "small").mkdir()
    mount = f"mount -t tmpfs -o size=4m none '{tmp_path}/small' && exec '{sys.executable}' -"
    command = ["unshare", "-m", "sh", "-c", mount]
    done = subprocess.run(command, input=script, text=True, capture_output=True, timeout=60)
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip("this container may not mount: " + done.stderr.strip())
    assert done.stdout.startswith("fine"), done.stderr


def test_what_was_committed_survives_kill_9(tmp_path):
    script = f"""
from pymadfs.server.kv import RocksKV
kv = RocksKV({str(tmp_path / "kv")!r})
for index in range(100000):
    kv.put(b"key%d" % index, b"value%d" % index)
    kv.put(b"other%d" % index, b"value%d" % index)
    kv.commit()
    print(index, flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    while int(process.stdout.readline()) < 500:
        pass
    process.send_signal(signal.SIGKILL)
    last = 500
    for line in process.stdout:
        if line.endswith(b"\n"):
            last = int(line)
    process.stdout.close()
    process.wait()
    store = RocksKV(str(tmp_path / "kv"))
    for index in range(last + 1):
        assert store.get(b"key%d" % index) == store.get(b"other%d" % index) == b"value%d" % index
    store.close()


def test_descriptors_to_sync_are_the_live_logs(tmp_path, monkeypatch):
    store = RocksKV(str(tmp_path / "kv"))
    store.put(b"a", b"1")
    store.commit()
    first = store.sync_fds()
    assert len(first) == 2  # the log, and the directory for its name
    for fd in first:
        os.fsync(fd)
    assert store.sync_fds() == first[:1]
    store._db.flush()  # a table is written, another log begins
    store.put(b"b", b"1")
    store.commit()
    names = {os.readlink(f"/proc/self/fd/{fd}") for fd in store.sync_fds()}
    assert any(name.endswith(".log") for name in names) and not any("deleted" in name for name in names)
    store.close()


def test_a_store_in_use_is_refused(tmp_path):
    store = RocksKV(str(tmp_path / "kv"))
    with pytest.raises(OSError):
        RocksKV(str(tmp_path / "kv"))
    store.close()
