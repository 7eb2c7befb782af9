# SPDX-License-Identifier: Apache-2.0
"""Images of files that are mapped to be shared: what the kernel's page cache is to a file of the kernel's.

An image is a file of memory (tmpfs) that all processes of a user, job and node map instead of the file itself, so loads
and stores are coherent among them and cost nothing.  Beside it lies its state::

    /dev/shm/madfs-USER-JOB/live       how many images there are; its lock is held while one is made or removed
    /dev/shm/madfs-USER-JOB/INODE      the image: as long as the file
    /dev/shm/madfs-USER-JOB/INODE.s    state := header, path, one byte per block (1: filled), base

The base is what the servers were last known to have.  Bytes in which the image differs from it are what programs
stored: these alone are written back, so that nodes that store into different parts of a page do not disturb one
another.  Reading and writing of a file that has an image goes through both.

A lock that a descriptor of the image holds says that somebody maps it; the kernel drops it with the last copy of that
descriptor.  An image nobody holds was left by processes that were killed: whoever finds it writes it back.
"""

import errno
import fcntl
import posix
from _thread import allocate_lock
from struct import Struct

import _shim
from pymadfs import abi
from pymadfs.client import S_IFREG, File

from .sharing import NAMES

BLOCK = 64 << 10  # what is filled at a time
WINDOW = 64  # blocks that are read in one go
COMPARED = 4  # blocks that are compared in one go: both copies fit into the processor's cache
JOIN = 64  # changes that are less than this many bytes apart travel as one
RUNS_MAX = 64  # changes that travel together
SWEPT_MAX = 16  # images looked at when one is made
SIZE_MAX = 1 << 60  # bytes of a file with an image
FLAGS_AT, BASE_AT = 8192, 1 << 46

_HEADER = Struct("<QQqQIIH")  # size, reach, mtime (ns), valid, whether there is a base, chunk size, length of the path
_VALID, _STALE = 1, 2  # STALE: the servers have what the image may not know
_ZEROS = bytes(BLOCK)
_SHARED = abi.PROT_READ | abi.PROT_WRITE


class Gone(Exception):
    """The image was removed: nobody maps the file any more."""


def filled(data, length):
    """``data`` with zeros behind it, ``length`` bytes in all."""
    return data if len(data) == length else data + bytes(length - len(data))


class Image:
    """The image of one file as this process has it open.  ``with image:`` keeps every other process and thread out."""

    def __init__(self, ino, data, state):
        self.ino, self.data, self.state = ino, data, state
        self.hold = -1  # descriptor that says that this process maps it
        self.pending = 0  # mappings that are being made
        self.file = None
        self.guard = allocate_lock()

    def __enter__(self):
        self.guard.acquire()
        try:
            if self.state < 0:
                raise Gone
            fcntl.lockf(self.state, fcntl.LOCK_EX)
            if self.gone():
                fcntl.lockf(self.state, fcntl.LOCK_UN)
                raise Gone
            self._load()
        except BaseException:
            self.guard.release()
            raise
        _shim.lift(1)
        return self

    def __exit__(self, *_):
        _shim.lift(0)
        fcntl.lockf(self.state, fcntl.LOCK_UN)
        self.guard.release()

    def close(self):
        """Whoever is about to use it finds it Gone."""
        with self.guard:
            for fd in (self.data, self.state):
                if fd >= 0:
                    posix.close(fd)
            self.data = self.state = -1

    def gone(self):
        """Whether somebody removed it."""
        return self.data < 0 or posix.fstat(self.data).st_nlink == 0

    def _load(self):
        header = filled(posix.pread(self.state, _HEADER.size, 0), _HEADER.size)
        self.size, self.reach, self.mtime, self.valid, self.based, chunk_size, length = _HEADER.unpack(header)
        if self.file is None and self.valid:
            path = posix.pread(self.state, length, _HEADER.size)
            self.file = File(self.ino, S_IFREG, path, chunk_size)

    def _save(self):
        path, chunk_size = self.file.path, self.file.chunk_size
        posix.pwrite(
            self.state,
            _HEADER.pack(self.size, self.reach, self.mtime, self.valid, self.based, chunk_size, len(path)) + path,
            0,
        )

    # --- all of the following: within `with image:` -----------------------------------------------------------------

    def _flags(self, first, last):
        return filled(posix.pread(self.state, last - first, FLAGS_AT + first), last - first)

    def _runs(self, wanted, offset, end, most=WINDOW):
        """``(offset, length)`` of what is filled (1) or not (0) of a range, at most ``most`` blocks each."""
        end = min(end, self.size)
        if offset >= end:
            return
        first = offset // BLOCK
        flags = self._flags(first, -(-end // BLOCK))
        at = flags.find(wanted)
        while at >= 0:
            stop = at + 1
            while stop < len(flags) and flags[stop] == wanted and stop - at < most:
                stop += 1
            begin = max(offset, (first + at) * BLOCK)
            yield begin, min(end, (first + stop) * BLOCK) - begin
            at = flags.find(wanted, stop)

    def fill(self, fs, offset, end):
        """Read from the servers what is missing of a range.  Holes are not read: a file may be larger than memory."""
        offset -= offset % BLOCK
        data = -1  # nothing is known to lie before it
        for begin, length in list(self._runs(0, offset, -(-end // BLOCK) * BLOCK)):
            if data < begin and length > BLOCK:
                data = self._next_data(fs, begin)
            if data < begin + length:
                self._store(begin, self._fetch(fs, begin, length), fresh=True)
            posix.pwrite(self.state, b"\1" * -(-length // BLOCK), FLAGS_AT + begin // BLOCK)

    def _next_data(self, fs, offset):
        try:
            return fs.seek(self.file, offset, False)
        except OSError as error:
            if error.errno == errno.ENXIO:  # the rest is a hole
                return SIZE_MAX
            raise

    def _fetch(self, fs, offset, length):
        """What the servers have there; zeros behind the end."""
        address = _shim.map(0, length, _SHARED, abi.MAP_PRIVATE | abi.MAP_ANONYMOUS, -1, 0)
        try:
            fs.read(self.file, offset, ((address, length),))
            return _shim.load(address, length)
        finally:
            _shim.unmap(address, length)

    def _store(self, offset, data, fresh=False):
        """Put bytes that the servers have into image and base.  Zeros need no memory where nothing was."""
        for at in range(0, len(data), BLOCK):
            block = data[at : at + BLOCK]
            if not fresh or block != _ZEROS[: len(block)]:
                posix.pwrite(self.data, block, offset + at)
                if self.based:
                    posix.pwrite(self.state, block, BASE_AT + offset + at)

    def begin_base(self):
        """From now on somebody may store: remember what there was."""
        if self.based:
            return
        for begin, length in self._runs(1, 0, self.size):
            block = posix.pread(self.data, length, begin)
            if block.strip(b"\0"):
                posix.pwrite(self.state, block, BASE_AT + begin)
        self.based = 1
        self._save()

    def write_back(self, fs, offset=0, end=SIZE_MAX):
        """Carry to the servers what was stored in a range.  What lies behind the file's end is lost, as in Linux."""
        if not self.based:
            return
        changes, amount, there = [], 0, -1
        for begin, length in self._runs(1, offset, end, COMPARED):
            if there < begin:
                there = min(self._memory(self.data, begin), self._memory(self.state, BASE_AT + begin) - BASE_AT)
            if there >= begin + length:
                continue  # nobody touched it
            now = posix.pread(self.data, length, begin)
            base = filled(posix.pread(self.state, length, BASE_AT + begin), length)
            if now == base[: len(now)]:
                continue
            for start, stop in _shim.differences(now, base[: len(now)], JOIN):
                changes.append((begin + start, now[start:stop]))
                amount += stop - start
                if len(changes) >= RUNS_MAX or amount >= WINDOW * BLOCK:
                    self._send(fs, changes)
                    changes, amount = [], 0
        if changes:
            self._send(fs, changes)

    @staticmethod
    def _memory(fd, offset):
        """Where a file of memory has some, at or after ``offset``."""
        try:
            return posix.lseek(fd, offset, abi.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return BASE_AT + SIZE_MAX
            raise

    def _send(self, fs, changes):
        size = fs.getattr(self.file).size
        if size < self.size:
            self.resize(fs, size)
        kept = [(offset, data[: size - offset]) for offset, data in changes if offset < size]
        if not kept:
            return
        total = sum(len(data) for _, data in kept)
        address = _shim.map(0, total, _SHARED, abi.MAP_PRIVATE | abi.MAP_ANONYMOUS, -1, 0)
        try:
            changes, at = [], address
            for offset, data in kept:
                _shim.store(at, data)
                changes.append((offset, at, len(data)))
                at += len(data)
            fs.write_pieces(self.file, changes)
        finally:
            _shim.unmap(address, total)
        for offset, data in kept:
            posix.pwrite(self.state, data, BASE_AT + offset)
        if not self.valid & _STALE:
            self.valid |= _STALE  # the time of the file changed
            self._save()

    def renew(self, fs, attr):
        """Take over what changed on the servers since the image was filled, when something did."""
        if not self.valid:
            self.valid, self.mtime = _VALID, attr.mtime_ns
            self._save()
            self.resize(fs, attr.size)
            return
        if attr.size != self.size:
            self.resize(fs, attr.size)
        if attr.mtime_ns != self.mtime or self.valid & _STALE:
            self.refresh(fs, 0, self.size)
            self.mtime, self.valid = attr.mtime_ns, _VALID
            self._save()

    def refresh(self, fs, offset, end):
        """Read a range again: bytes that nobody on this node stored become those of the servers."""
        offset -= offset % abi.PAGE
        for begin, length in list(self._runs(1, offset, end)):
            new = self._fetch(fs, begin, length)
            old = filled(posix.pread(self.state if self.based else self.data, length,
                                     begin + (BASE_AT if self.based else 0)), length)
            if new == old:
                continue
            address = _shim.map(0, length, _SHARED, abi.MAP_SHARED, self.data, begin)
            try:
                _shim.merge(address, old, new)
            finally:
                _shim.unmap(address, length)
            if self.based:
                posix.pwrite(self.state, new, BASE_AT + begin)

    def resize(self, fs, size):
        """The file has this size now."""
        old = self.size
        if size < old:
            for begin, length in self._runs(1, size - size % BLOCK, old):
                begin, length = max(begin, size), begin + length - max(begin, size)
                if self.based and length > 0:
                    posix.pwrite(self.state, bytes(length), BASE_AT + begin)
            first, last = -(-size // BLOCK), -(-old // BLOCK)
            if last > first:
                posix.pwrite(self.state, bytes(last - first), FLAGS_AT + first)
        elif old % BLOCK and self._flags(old // BLOCK, old // BLOCK + 1)[0]:
            self.size = min(size, -(-old // BLOCK) * BLOCK)
            self._store(old, self._fetch(fs, old, self.size - old))  # also over what was stored behind the end
        self.size = size
        posix.ftruncate(self.data, size)
        self._save()
        if self.reach > old:  # somebody mapped what was behind the end
            self.fill(fs, old, min(self.reach, size))

    def put(self, offset, data):
        """Bytes that were just written to the servers."""
        for begin, length in list(self._runs(1, offset, offset + len(data))):
            self._store(begin, data[begin - offset : begin - offset + length])


def scattered(segments, data, skip=0):
    """Copy ``data`` to memory, ``(address, length)`` pieces, from byte ``skip`` of them on."""
    for address, length in segments:
        part = data[: length - skip] if skip < length else b""
        if part:
            _shim.store(address + skip, part)
            data = data[len(part) :]
        skip = max(0, skip - length)


def gathered(segments, total):
    """The first ``total`` bytes of segments, each an address or bytes."""
    whole = b"".join([_shim.load(a, n) if isinstance(a, int) else bytes(a[:n]) for a, n in segments])
    return whole[:total]


class Images:
    """The images of this user, job and node.  ``fs`` is a FileSystem that asks the servers only."""

    def __init__(self, directory, live, fs):
        self.directory, self.fs = directory, fs
        self.known = {}  # inode number -> Image
        self.counting = allocate_lock()  # of Image.pending
        # Of `known`, which has every Image that is open: there is one of a file at most, because record locks do not
        # keep two of one process apart, and closing one drops those of the other.  Taken after _lock(), for moments.
        self.opening = allocate_lock()
        self.live = live
        self.locks = set()  # descriptors of _lock()

    # --- making and removing ----------------------------------------------------------------------------------------

    def _lock(self):
        """A descriptor that keeps others from making and removing images, until _unlock()."""
        fd = posix.open(self.directory + b"/live", NAMES)
        self.locks.add(fd)
        fcntl.flock(fd, fcntl.LOCK_EX)
        return fd

    def _unlock(self, fd):
        fcntl.flock(fd, fcntl.LOCK_UN)  # a child may have a copy of the descriptor
        self.locks.discard(fd)
        posix.close(fd)

    def _open(self, ino, flags=0):
        """The image of a file, or None when there is none."""
        name = b"%s/%d" % (self.directory, ino)
        try:
            state = posix.open(name + b".s", NAMES | flags, 0o600)
            try:
                return Image(ino, posix.open(name, NAMES | flags, 0o600), state)
            except OSError:
                posix.close(state)
                raise
        except FileNotFoundError:
            return None
        except PermissionError:  # the process is another user's by now
            if flags:
                raise
            return None

    def _remove(self, image):
        name = b"%s/%d" % (self.directory, image.ino)
        posix.unlink(name)
        posix.unlink(name + b".s")
        self.live[0] -= 1

    @staticmethod
    def _orphan(image):
        """Whether nobody maps it.  A lock of this process's own counts like another's."""
        with image.guard:  # another thread may be about to close it
            if image.data < 0:
                return True  # it has seen to it
            try:
                fcntl.flock(image.data, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            fcntl.flock(image.data, fcntl.LOCK_UN)
            return True

    def _recover(self, image):
        """Write back what killed processes left, and remove it.  REQUIRES: _lock()."""
        with image:
            if image.valid:
                try:
                    image.write_back(self.fs)
                except OSError as error:
                    if error.errno not in (errno.ENOENT, errno.ESTALE):  # it was removed meanwhile
                        raise
        self._remove(image)

    def _sweep(self):
        """Recover some of what killed processes left, so that it does not stay in memory.  REQUIRES: _lock()."""
        names = [name for name in posix.listdir(self.directory) if name.isdigit() and int(name) not in self.known]
        for name in names[:SWEPT_MAX]:
            image = self._known(int(name))
            if image and image.hold < 0:
                if self._orphan(image):
                    self._recover(image)
                with self.opening:
                    self._forget(image)

    def _known(self, ino):
        """The Image of a file, opened if need be, or None."""
        with self.opening:
            image = self.known.get(ino)
            if image and image.hold < 0 and image.gone():
                image = self._forget(image)
            if image is None:
                image = self._open(ino)
                if image:
                    self.known[ino] = image
            return image

    def _forget(self, image):
        """Close an Image.  REQUIRES: opening."""
        if self.known.get(image.ino) is image:
            del self.known[image.ino]
        image.close()

    def find(self, ino):
        """The image of a file when somebody on this node maps it, else None."""
        while True:
            image = self.known.get(ino)
            if image and image.hold >= 0:
                return image
            image = self._known(ino)
            if image is None:
                return None
            with self.opening:
                if image.hold >= 0 or not self._orphan(image):
                    return image
            lock = self._lock()
            try:
                with self.opening:
                    mine = self.known.get(ino) is image
                if mine and image.hold < 0 and self._orphan(image):
                    if not image.gone():
                        self._recover(image)
                    with self.opening:
                        self._forget(image)
            finally:
                self._unlock(lock)

    def attach(self, file, end, stores):
        """The Image of a file that is about to be mapped up to ``end``; release() follows when that is done."""
        lock = self._lock()
        try:
            image = self.known.get(file.ino)
            if image is None or image.hold < 0:
                image = self._hold(file)
            with self.counting:
                image.pending += 1
        finally:
            self._unlock(lock)
        try:
            with image:
                image.file = File(file.ino, file.mode, file.path, file.chunk_size)
                image.renew(self.fs, self.fs.getattr(image.file))
                if stores:
                    image.begin_base()
                if end > image.reach:
                    image.reach = end
                    image._save()
        except BaseException:
            self.release(image)
            raise
        return image

    def _hold(self, file):
        """Open or make an image and say that this process maps it.  REQUIRES: _lock()."""
        image = self._known(file.ino)
        if image and self._orphan(image):
            self._recover(image)
            with self.opening:
                image = self._forget(image)
        if image is None:
            if self.live[0]:
                self._sweep()
            self.live[0] += 1
            with self.opening:
                image = self.known[file.ino] = self._open(file.ino, posix.O_CREAT | posix.O_EXCL)
        image.hold = posix.open(b"%s/%d" % (self.directory, file.ino), NAMES)
        fcntl.flock(image.hold, fcntl.LOCK_SH)
        self.fs.reopen(file)  # a mapping keeps a file that is closed and removed
        return image

    def release(self, image):
        """What attach() was for is done, or failed."""
        with self.counting:
            image.pending -= 1
        self.ended(image.ino)

    def ended(self, ino, at_exit=False):
        """Perhaps nothing of a file is mapped any more in this process: then the last one on the node removes the
        image."""

        def mapped():
            return image.hold < 0 or image.pending or _shim.is_mapped(ino) and not at_exit

        image = self.known.get(ino)
        if image is None or mapped():
            return
        self.write_back(image)
        try:
            lock = self._lock()
        except FileNotFoundError:
            return  # the job is over, and so is all that it had in this node's memory
        except PermissionError:  # the process is another user's by now: who uses the file next removes the image
            lock = None
        try:
            if mapped():
                return  # another thread was faster, or maps it again
            posix.close(image.hold)
            image.hold = -1
            if lock is not None and self._orphan(image):
                self._recover(image)
            with self.opening:
                self._forget(image)
            self.fs.ended(ino)
        finally:
            if lock is not None:
                self._unlock(lock)

    def write_back(self, image, offset=0, end=SIZE_MAX):
        """Carry stores to the servers; those into a file that is gone are lost, as in Linux."""
        try:
            with image:
                image.write_back(self.fs, offset, end)
        except Gone:
            return
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ESTALE):
                raise

    def all(self):
        """The images that this process maps."""
        return [image for image in list(self.known.values()) if image.hold >= 0]

    def after_fork_child(self):
        """Locks that other threads of the parent hold are nobody's here."""
        self.counting, self.opening = allocate_lock(), allocate_lock()
        while self.locks:
            posix.close(self.locks.pop())
        for image in self.known.values():
            image.guard = allocate_lock()
            image.pending = 0

    # --- what FileSystem asks when there are images ------------------------------------------------------------------

    def read(self, file, offset, segments):
        """As FileSystem.read: bytes of the image where it has them."""
        image, total = self.find(file.ino), sum(length for _, length in segments)
        if image is None:
            return self.fs.read(file, offset, segments)
        try:
            with image:
                if offset + total <= image.size and not any(image._runs(0, offset, offset + total)):
                    scattered(segments, posix.pread(image.data, total, offset))
                    return total
                done = self.fs.read(file, offset, segments)
                for begin, length in image._runs(1, offset, offset + done):
                    scattered(segments, posix.pread(image.data, length, begin), begin - offset)
        except Gone:
            return self.read(file, offset, segments)
        return done

    def write(self, file, offset, segments, extend):
        """As FileSystem.write."""
        return self._write(file, segments, lambda: (offset, self.fs.write(file, offset, segments, extend)))[1]

    def append(self, file, segments, length):
        """As FileSystem.append."""
        return self._write(file, segments, lambda: self.fs.append(file, segments, length))

    def _write(self, file, segments, write):
        image = self.find(file.ino)
        if image is None:
            return write()
        try:
            with image:
                offset, done = write()
                if image.valid:
                    if offset + done > image.size:
                        image.resize(self.fs, offset + done)
                    image.put(offset, gathered(segments, done))
        except Gone:
            return self._write(file, segments, write)
        return offset, done

    def _with(self, ino, work):
        image = self.find(ino)
        if image:
            try:
                with image:
                    if image.valid:
                        work(image)
            except Gone:
                self._with(ino, work)

    def resized(self, ino, size):
        """The file has a new size."""
        self._with(ino, lambda image: image.size == size or image.resize(self.fs, size))

    def changed(self, ino, offset=0, end=SIZE_MAX):
        """The servers changed a range by themselves (fallocate and its like)."""
        self._with(ino, lambda image: image.refresh(self.fs, offset, end))

    def synced(self, ino, offset=0, end=SIZE_MAX):
        """What was stored in a range goes to the servers."""
        image = self.find(ino)
        if image:
            self.write_back(image, offset, end)

    def exiting(self):
        """The process ends, or becomes another program: nothing is mapped any more."""
        for image in self.all():
            self.ended(image.ino, at_exit=True)
