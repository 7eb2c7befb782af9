# SPDX-License-Identifier: Apache-2.0
"""The few verbs we use of RocksDB, and a dict with the same verbs for tests.  Keys and values: ``docs/format.md``.

A store collects changes (``put``, ``delete``) and shows them to ``get`` at once; ``commit`` hands them to the database
as one atomic batch, by way of a journal: what ``commit`` has returned from survives ``kill -9``, and the database gets
several batches as one, which ``settle`` does.  What ``sync_fds`` were fsynced after that survives power loss.  ``lazy``
puts wait for the next ``commit(lazily=True)``: directory times need no batch of their own.
"""
import errno
import os
import time
from abc import ABC, abstractmethod

from rocksdict import AccessType, BlockBasedOptions, Cache, DBCompressionType, Options, Rdict, WriteBatch

from pymadfs.errors import fail
from pymadfs.log import log

from .journal import Journal

CACHE_ENTRIES_MAX = 1 << 17
CACHE_VALUE_BYTES_MAX = 1 << 10
WRITE_BUFFER_BYTES = 64 << 20
WAL_BYTES_MAX = 256 << 20
SETTLE_BYTES = 64 << 10  # more than this at once saves nothing more, and others wait meanwhile
BLOCK_CACHE_BYTES = 64 << 20
REOPEN_SECONDS_MIN = 1.0


class Store(ABC):
    """What both stores share: the pending batch and a bounded write-through cache (present and absent keys)."""

    def __init__(self):
        self.cache = {}
        self.pending = {}
        self.pending_lazily = {}
        self.owed = {}  # committed to the journal only: see settle
        self._refused = False  # the database did not take what is owed
        self.journal = None  # or a Journal, where the database outlives the process

    def get(self, key):
        """Value of ``key`` (bytes), or None.  Sees what is not committed yet."""
        try:
            return self.cache[key]
        except KeyError:
            return self._load(key)

    def _load(self, key):
        for overlay in (self.pending, self.pending_lazily, self.owed):
            if key in overlay:
                return overlay[key]
        value = self._read(key)
        if len(self.cache) >= CACHE_ENTRIES_MAX:
            self._trim()
        if value is None or len(value) <= CACHE_VALUE_BYTES_MAX:
            self.cache[key] = value
        return value

    def _trim(self):
        """Forget the oldest quarter of the cache; what is not committed stays in its overlay."""
        for key in list(self.cache)[:CACHE_ENTRIES_MAX // 4]:
            del self.cache[key]

    def put(self, key, value):
        """Set ``key`` to ``value`` (both bytes) with the next commit."""
        self.pending[key] = value
        if self.pending_lazily:
            self.pending_lazily.pop(key, None)
        if value is None or len(value) <= CACHE_VALUE_BYTES_MAX:
            self.cache[key] = value
        else:
            self.cache.pop(key, None)

    def delete(self, key):
        """Remove ``key`` with the next commit; it need not exist."""
        self.put(key, None)

    def lazy(self, key, value):
        """Like ``put`` of a value of at most CACHE_VALUE_BYTES_MAX, but not before the next ``commit(lazily=True)``."""
        if key in self.pending:
            self.pending[key] = value
        else:
            self.pending_lazily[key] = value
        self.cache[key] = value

    def commit(self, lazily=False):
        """Commit what is pending as one batch.  Raises OSError and forgets the batch when it is refused."""
        if lazily and self.pending_lazily:
            self.pending.update(self.pending_lazily)
            self.pending_lazily = {}
        if not self.pending:
            return
        batch, self.pending = self.pending, {}
        try:
            if self._refused:
                self.settle()
            if self.journal is not None and self.journal.add(batch):
                self.owed.update(batch)
                return
            self.settle()
            self._write(batch)
        except OSError:
            for key in batch:
                self.cache.pop(key, None)
            raise

    @property
    def overdue(self):
        """Whether ``settle`` should be called now; it should be when there is nothing else to do, too."""
        return self.journal is not None and self.journal.used > SETTLE_BYTES

    def settle(self):
        """Bring the database what the journal keeps for it.  Raises OSError when it refuses; nothing is lost then, and
        ``commit`` refuses everything until it takes it."""
        if self.owed:
            try:
                self._write(self.owed)
            except OSError as error:
                if not self._refused:
                    log(f"the store takes no more: {error.strerror}; what is acknowledged is kept: make room there")
                self._refused = True
                raise
            self.owed, self._refused = {}, False
            self.journal.clear()

    def scan(self, prefix, after=b"", limit=1):
        """Up to ``limit`` committed ``(key, value)`` in order, keys beginning with ``prefix`` and above prefix + after.

        REQUIRES: nothing pending (commit first).  An empty ``after`` begins at the prefix itself.
        """
        assert not self.pending
        start = prefix + after
        try:
            self.settle()
            return self._range(prefix, start, limit)
        except OSError:
            if not self.owed:
                raise
        found = dict(self._range(prefix, start, limit + len(self.owed)))
        found.update((key, value) for key, value in self.owed.items()
                     if key.startswith(prefix) and (key > start or key == start == prefix))
        return [(key, found[key]) for key in sorted(found) if found[key] is not None][:limit]

    @abstractmethod
    def _read(self, key):
        """Value of ``key`` in the database, or None."""

    @abstractmethod
    def _write(self, batch):
        """Store all of the dict ``batch``, or nothing and raise OSError; None as value deletes."""

    @abstractmethod
    def _range(self, prefix, after, limit):
        """See scan; ``after`` is a whole key."""


class MemoryKV(Store):
    """A dict with the verbs of RocksKV.  It outlives a server object, so tests restart servers on it."""

    def __init__(self):
        super().__init__()
        self.items = {}
        self.error = None

    def _read(self, key):
        return self.items.get(key)

    def _write(self, batch):
        if self.error:
            raise self.error
        for key, value in batch.items():
            if value is None:
                self.items.pop(key, None)
            else:
                self.items[key] = value

    def _range(self, prefix, after, limit):
        keys = sorted(key for key in self.items if key.startswith(prefix) and (key > after or after == prefix == key))
        return [(key, self.items[key]) for key in keys[:limit]]

    def sync_fds(self):
        return []

    def close(self):
        self.pending, self.pending_lazily = {}, {}
        self.cache = {}


class RocksKV(Store):
    """RocksDB in directory ``path`` (str), made when missing.  Raises OSError when it cannot be opened."""

    def __init__(self, path):
        super().__init__()
        self.path = path
        self._logs = {}
        self._directory = None
        self._failed = False
        self._retry_at = 0.0
        self._db = self._open()
        self.journal = Journal(path + ".journal")
        if self.journal.left:
            self._write(self.journal.left)
        self.journal.clear()

    def _open(self, access=None):
        try:
            return Rdict(self.path, options(), access_type=access or AccessType.read_write())
        except Exception as error:
            raise converted(error) from None

    def _read(self, key):
        return self._db.get(key)

    def _write(self, batch):
        if self._failed:
            self._reopen()
        try:
            if len(batch) == 1:
                ((key, value),) = batch.items()
                if value is None:
                    self._db.delete(key)
                else:
                    self._db.put(key, value)
                return
            writes = WriteBatch(raw_mode=True)
            for key, value in batch.items():
                if value is None:
                    writes.delete(key)
                else:
                    writes.put(key, value)
            self._db.write(writes)
        except Exception as error:
            self._failed, self._retry_at = True, 0.0
            raise converted(error) from None

    def _reopen(self):
        """After a failed write RocksDB refuses all others until it is opened anew; while that fails, serve reads."""
        now = time.monotonic()
        if now < self._retry_at:
            raise fail(errno.ENOSPC, self.path)
        self._retry_at = now + REOPEN_SECONDS_MIN
        self._close_database()
        try:
            self._db, self._failed = self._open(), False
        except OSError:
            self._db = self._open(AccessType.read_only(False))
            raise

    def _close_database(self):
        try:
            self._db.close()
        except Exception:  # what it could not write was refused to the caller already
            self._db = None

    def _range(self, prefix, after, limit):
        found = []
        skip = after != prefix
        for key, value in self._db.items(from_key=after):
            if not key.startswith(prefix):
                break
            if skip and key == after:
                continue
            found.append((key, value))
            if len(found) >= limit:
                break
        return found

    def sync_fds(self):
        """Descriptors to fsync, in order, for everything committed so far to be on disk.

        All live logs, not only the newest: RocksDB does not sync a log that it has finished, and needs it until its
        table is written.  A new log's name needs its directory synced once.  Called by the sync thread only.
        """
        names = [name for name in os.listdir(self.path) if name.endswith(".log")]
        for name in [name for name in self._logs if name not in names]:
            os.close(self._logs.pop(name))
        fresh = [name for name in names if name not in self._logs]
        for name in fresh:
            try:
                self._logs[name] = os.open(os.path.join(self.path, name), os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:  # its table was written and synced meanwhile
                continue
        if self._directory is None:
            self._directory = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        return [*self._logs.values(), *([self._directory] if fresh else [])]

    def close(self):
        """Write what is pending and end.  Raises OSError when that fails."""
        try:
            self.commit(lazily=True)
            self.settle()
        finally:
            for fd in (*self._logs.values(), *([] if self._directory is None else [self._directory])):
                os.close(fd)
            self._logs, self._directory = {}, None
            self._close_database()
            self.journal.close()


def options():
    table = BlockBasedOptions()
    table.set_bloom_filter(10, False)
    table.set_block_cache(Cache(BLOCK_CACHE_BYTES))
    chosen = Options(raw_mode=True)
    chosen.create_if_missing(True)
    chosen.set_block_based_table_factory(table)
    chosen.set_write_buffer_size(WRITE_BUFFER_BYTES)
    # A create asks for a name that is not there: a filter answers that in half the time of a search.
    chosen.set_memtable_whole_key_filtering(True)
    chosen.set_memtable_prefix_bloom_ratio(0.1)
    chosen.set_max_total_wal_size(WAL_BYTES_MAX)
    chosen.set_compression_type(DBCompressionType.none())
    chosen.set_max_background_jobs(2)
    chosen.set_manifest_preallocation_size(64 << 10)
    chosen.set_keep_log_file_num(2)
    chosen.set_max_log_file_size(1 << 20)
    chosen.set_stats_dump_period_sec(0)
    chosen.set_stats_persist_period_sec(0)
    return chosen


def converted(error):
    """The OSError for an exception of rocksdict, whose only kind is its text."""
    text = str(error)
    if "No space left" in text:
        return fail(errno.ENOSPC)
    if "quota exceeded" in text:
        return fail(errno.EDQUOT)
    if "lock" in text.lower() and "unavailable" in text:
        return OSError(errno.EBUSY, text)
    return OSError(errno.EIO, text)
