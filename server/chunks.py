# SPDX-License-Identifier: Apache-2.0
"""Stored bytes of chunks: small files in the key-value store, all else in one sparse file per chunk.  Synchronous.

    D ino                                   bytes of chunk 0 while they are few
    data / <2 hex digits> / <ino>.<chunk>   chunk file (hexadecimal), sparse; exists when C ino chunk does

Bookkeeping (keys, descriptors, what is dirty) belongs to one thread; only ``Piece.read``, ``Piece.write`` and
``remove_files`` may run on others, on pieces that are pinned so that nobody closes their descriptor meanwhile.
"""
import errno
import os
import resource
from collections import OrderedDict
from hashlib import blake2b

from pymadfs.errors import fail
from pymadfs.log import log

from . import allocation
from .meta import chunk_key, chunk_of, chunks_prefix, data_key

OPEN_FILES_MAX = 512
OPEN_FILES_SHARE = 4  # at most one in so many descriptors: clients and the database need the others
DIRTY_FILES_MAX = 1 << 16
DIRECTORIES = 256
CUT_PAGE = 1024
HEADROOM_BYTES_MAX = 64 << 20
HEADROOM_SHARE = 16  # at most one part in so many of the disk
HEADROOM_CHECK_BYTES = 1 << 20


class Piece:
    """An open chunk file; ``key`` is its inode and chunk numbers, ``users`` counts transfers under way."""

    __slots__ = ("fd", "key", "users")

    def __init__(self, key, fd):
        self.key, self.fd, self.users = key, fd, 0

    def read(self, offset, length):
        """Up to ``length`` stored bytes from ``offset``; fewer at the end of what is stored."""
        return os.pread(self.fd, length, offset)

    def write(self, offset, data):
        """Store all of ``data`` (bytes-like) at ``offset``."""
        view = memoryview(data)
        while view:
            count = os.pwrite(self.fd, view, offset)
            offset += count
            view = view[count:]


class Chunks:
    """The chunks of the store directory ``path`` (str) with the keys of ``kv``.

    ``inline_max`` is how many bytes of a file stay in the key-value store.
    """

    def __init__(self, kv, path, inline_max):
        self.kv, self.inline_max = kv, inline_max
        self._lost = False
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._open_share = limit // OPEN_FILES_SHARE
        os.makedirs(os.path.join(path, "data"), exist_ok=True)
        self._directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.device = device_of(self._directory)
        self._open = OrderedDict()
        self._made = {int(name, 16) for name in os.listdir(os.path.join(path, "data")) if len(name) == 2}
        self._unsynced_names = set()
        self._dirty = {}
        self._all_dirty = False
        self._unchecked = HEADROOM_CHECK_BYTES
        self._full = False

    # --- reading and writing ----------------------------------------------------------------------------------------

    def read_inline(self, ino, offset, length):
        """Bytes of chunk 0 when the key-value store has them, else None."""
        data = self.kv.get(data_key(ino))
        return None if data is None else data[offset:offset + length]

    def write_inline(self, ino, offset, data):
        """Put ``data`` into chunk 0 within the key-value store, if the file is and stays small.  False: use a piece."""
        end = offset + len(data)
        if end > self.inline_max or self.kv.get(chunk_key(ino, 0)) is not None:
            return False
        self._check_space(len(data))
        key = data_key(ino)
        old = self.kv.get(key)
        if not old and not offset:
            self.kv.put(key, bytes(data))
        else:
            old = old or b""
            self.kv.put(key, b"%b%b%b" % (old[:offset].ljust(offset, b"\0"), data, old[end:]))
        return True

    def piece(self, ino, chunk):
        """The open chunk file, or None when nothing is stored there."""
        found = self._open.get((ino, chunk))
        if found is not None:
            self._open.move_to_end((ino, chunk))
            return found
        if self.kv.get(chunk_key(ino, chunk)) is None:
            return None
        try:
            return self._opened(ino, chunk, os.O_RDWR)
        except FileNotFoundError:  # a removal was cut short after the file and before the key
            return None

    def writable(self, ino, chunk, offset, length):
        """The open chunk file to store ``length`` bytes at ``offset`` in; made, with what was inline, when it does not
        exist.

        Raises ENOSPC while the disk is so full that removing files could fail for want of space, unless the chunk has
        so much allocated.
        """
        found = self.piece(ino, chunk)
        try:
            self._check_space(length)
        except OSError:
            if found is None or os.fstat(found.fd).st_blocks << 9 < offset + length:
                raise
        if found is None:
            try:
                found = self._make(ino, chunk)
            except FileNotFoundError:  # no errno of the caller's: somebody removed directories of ours
                if not self._lost:
                    log("the store's directories were removed under the server: what has no place any more gets EIO")
                self._lost = True
                raise fail(errno.EIO) from None
        self._mark_dirty(ino, chunk)
        return found

    def _make(self, ino, chunk):
        number = directory_of(ino, chunk)
        if number not in self._made:
            try:
                os.mkdir(f"data/{number:02x}", 0o700, dir_fd=self._directory)
            except FileExistsError:
                pass
            self._made.add(number)
            self._unsynced_names.add(None)  # the name of the directory itself
        inline = self.kv.get(data_key(ino)) if not chunk else None
        # What an earlier server left without its key was never acknowledged: start from nothing.
        found = self._opened(ino, chunk, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        self._unsynced_names.add(number)
        if inline is not None:
            try:
                found.write(0, inline)
            except OSError:
                self._drop((ino, chunk))
                raise
            self.kv.delete(data_key(ino))
        self.kv.put(chunk_key(ino, chunk), b"")
        return found

    def _opened(self, ino, chunk, flags):
        name = name_of(ino, chunk)
        try:
            fd = os.open(name, flags | os.O_CLOEXEC, 0o600, dir_fd=self._directory)
        except OSError as error:
            if error.errno != errno.EMFILE:
                raise
            self._close_idle(len(self._open))
            fd = os.open(name, flags | os.O_CLOEXEC, 0o600, dir_fd=self._directory)
        found = self._open[ino, chunk] = Piece((ino, chunk), fd)
        self._close_some()
        return found

    def rolled_back(self):
        """The last batch was not written: chunk files that it would have made known go; nobody else removes them."""
        for key in [key for key in self._open if self.kv.get(chunk_key(*key)) is None]:
            self._drop(key)
            self.remove_unknown(*key)

    def pin(self, piece):
        piece.users += 1

    def unpin(self, piece):
        """The transfer ended; a piece that was dropped meanwhile is closed."""
        piece.users -= 1
        if not piece.users and self._open.get(piece.key) is not piece:
            os.close(piece.fd)

    def _close_some(self):
        excess = len(self._open) - min(OPEN_FILES_MAX, self._open_share)
        if excess > 0:
            self._close_idle(excess, next(reversed(self._open)))

    def _close_idle(self, count, but=None):
        """Close up to ``count`` chunk files that no thread uses, but not that with the key ``but``."""
        idle = [key for key, piece in self._open.items() if not piece.users and key != but]
        for key in idle[:count]:
            os.close(self._open.pop(key).fd)

    def _drop(self, key):
        piece = self._open.pop(key, None)
        if piece is not None and not piece.users:
            os.close(piece.fd)

    def check_room(self):
        """Raises ENOSPC when the disk is too full for anything but removing files."""
        self._check_space(HEADROOM_CHECK_BYTES)

    def _check_space(self, length):
        """Keep room for the key-value store: the disk may be full for data, but never for removing some."""
        self._unchecked += length
        if self._unchecked >= HEADROOM_CHECK_BYTES or self._full:
            self._unchecked = 0
            room = os.statvfs(self._directory)
            self._full = room.f_bavail * room.f_frsize < self.headroom(room) + length
        if self._full:
            raise fail(errno.ENOSPC)

    @staticmethod
    def headroom(room):
        """Bytes of the disk that ``room`` (of statvfs) describes which are not for data."""
        return min(HEADROOM_BYTES_MAX, room.f_blocks * room.f_frsize // HEADROOM_SHARE)

    # --- removing ---------------------------------------------------------------------------------------------------

    def single(self, ino, size, chunk_size):
        """Whether nothing of a file of ``size`` bytes is stored but what the key-value store has inline here."""
        return size <= chunk_size and self.kv.get(chunk_key(ino, 0)) is None

    def cut_inline(self, ino, size):
        """Drop inline bytes from ``size`` on."""
        key = data_key(ino)
        data = self.kv.get(key)
        if data is not None and len(data) > size:
            if size:
                self.kv.put(key, data[:size])
            else:
                self.kv.delete(key)

    def cut_plan(self, ino, size, chunk_size):
        """Chunk files of ``ino`` with bytes from ``size`` on, a page of them: ``(work, more)``.

        ``work`` is a list of ``(chunk, bytes to keep)`` for ``cut_done`` and, once that is stored, ``remove_files``: a
        crash in between leaves files without keys, which the next start removes.  ``chunk_size`` may be 0 when
        ``size`` is.
        REQUIRES: nothing pending.
        """
        first, within = divmod(size, chunk_size) if size else (0, 0)
        found = self.numbers(ino, first, CUT_PAGE)
        work = [(chunk, within if chunk == first else 0) for chunk in found]
        for chunk, kept in work:
            if kept:
                self._mark_dirty(ino, chunk)
            else:
                self._drop((ino, chunk))
        return work, len(found) == CUT_PAGE

    def numbers(self, ino, first, limit):
        """Up to ``limit`` numbers of chunks with a chunk file here, from ``first`` on.  REQUIRES: nothing pending."""
        prefix = chunks_prefix(ino)
        after = chunk_key(ino, first - 1)[len(prefix):] if first else b""
        return [chunk_of(key) for key, _ in self.kv.scan(prefix, after, limit)]

    def drop(self, ino, chunk):
        """A chunk file is about to be removed: close it."""
        self._drop((ino, chunk))

    def mark_dirty(self, ino, chunk):
        """A chunk file is about to be changed by a thread: fsync must know."""
        self._mark_dirty(ino, chunk)

    def cut_done(self, ino, work):
        """The files will be removed next: forget their keys."""
        dirty = self._dirty.get(ino, set())
        for chunk, kept in work:
            if not kept:
                self._drop((ino, chunk))
                self.kv.delete(chunk_key(ino, chunk))
                dirty.discard(chunk)
        if not dirty:
            self._dirty.pop(ino, None)

    def remove_files(self, ino, work):
        """Cut or remove chunk files.  Returns the blocks of 512 bytes that this freed.  For any thread."""
        freed = 0
        for chunk, kept in work:
            name = name_of(ino, chunk)
            try:
                before = os.stat(name, dir_fd=self._directory).st_blocks
                if kept:
                    freed += before - self._shorten(name, kept)
                else:
                    os.unlink(name, dir_fd=self._directory)
                    freed += before
            except FileNotFoundError:
                continue
        return freed

    def _shorten(self, name, size):
        """Cut a chunk file to ``size`` bytes, also what is allocated above; -> its blocks."""
        fd = self.open_file(name)
        try:
            if os.fstat(fd).st_size < size:
                allocation.punch(fd, size, allocation.END - size)  # nothing is stored there, but may be allocated
            else:
                os.ftruncate(fd, size)
            return os.fstat(fd).st_blocks
        finally:
            os.close(fd)

    def open_file(self, name):
        """A descriptor of a chunk file.  For any thread."""
        return os.open(name, os.O_RDWR | os.O_CLOEXEC, dir_fd=self._directory)

    def exists(self, ino, chunk):
        """Whether a chunk has its file."""
        if self.is_open(ino, chunk):
            return os.fstat(self._open[ino, chunk].fd).st_nlink > 0
        try:
            os.stat(name_of(ino, chunk), dir_fd=self._directory)
        except FileNotFoundError:
            return False
        return True

    def is_open(self, ino, chunk):
        return (ino, chunk) in self._open

    def remove_unknown(self, ino, chunk):
        """Remove a chunk file that has no key, unless it is being made."""
        if not self.is_open(ino, chunk):
            try:
                os.unlink(name_of(ino, chunk), dir_fd=self._directory)
            except FileNotFoundError:
                return

    # --- holes ------------------------------------------------------------------------------------------------------

    def seek_file(self, ino, chunk, offset, whence):
        """Where in a chunk file data (SEEK_DATA) or a hole (SEEK_HOLE) begins at or after ``offset``; None when there
        is none, or no file.  For any thread."""
        try:
            fd = self.open_file(name_of(ino, chunk))
        except FileNotFoundError:
            return None
        try:
            return os.lseek(fd, offset, whence)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return None
        finally:
            os.close(fd)

    def room(self):
        """Bytes that data may still take, so that the headroom is left."""
        room = os.statvfs(self._directory)
        return room.f_bavail * room.f_frsize - self.headroom(room)

    def allocated(self, ino, found, wanted):
        """Bytes that the chunk files ``found`` have on disk, of those in the range ``wanted``.  For any thread."""
        total = 0
        for chunk in found:
            if chunk in wanted:
                try:
                    total += os.stat(name_of(ino, chunk), dir_fd=self._directory).st_blocks << 9
                except FileNotFoundError:
                    continue
        return total

    def directories(self):
        """Numbers of the directories that may have chunk files, in order."""
        return sorted(self._made)

    def files(self, directory):
        """``(inode, chunk)`` of the chunk files in directory 0 to 255, in order."""
        if directory not in self._made:
            return []
        try:
            fd = os.open(f"data/{directory:02x}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._directory)
        except FileNotFoundError:
            return []
        try:
            return sorted(tuple(int(part, 16) for part in name.split(".")) for name in os.listdir(fd))
        finally:
            os.close(fd)

    # --- durability -------------------------------------------------------------------------------------------------

    def _mark_dirty(self, ino, chunk):
        chunks = self._dirty.get(ino)
        if chunks is not None:
            chunks.add(chunk)
        elif len(self._dirty) < DIRTY_FILES_MAX:
            self._dirty[ino] = {chunk}
        else:
            self._all_dirty = True

    def sync_plan(self, ino):
        """What to sync so that all acknowledged bytes of ``ino`` are on disk: ``(pieces, directories, everything)``.

        Pieces come pinned; ``sync_done`` gives them back.  ``everything``: too many files were written to know which.
        """
        pieces = []
        for chunk in self._dirty.pop(ino, ()):
            piece = self.piece(ino, chunk)
            if piece is not None:
                self.pin(piece)
                pieces.append(piece)
        directories, self._unsynced_names = self._unsynced_names, set()
        everything, self._all_dirty = self._all_dirty, False
        return pieces, directories, everything

    def sync_done(self, plan, failed):
        pieces, directories, everything = plan
        for piece in pieces:
            if failed:
                self._mark_dirty(*piece.key)
            self.unpin(piece)
        if failed:
            self._unsynced_names |= directories
            self._all_dirty |= everything

    def sync_names(self, directories):
        """fsync the directories ``directories`` (numbers; None is the one that holds them).  For any thread."""
        for number in directories:
            name = "data" if number is None else f"data/{number:02x}"
            fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._directory)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    def statvfs(self):
        return os.statvfs(self._directory)

    def fileno(self):
        """Descriptor of the store's directory."""
        return self._directory

    def close(self):
        for piece in self._open.values():
            os.close(piece.fd)
        self._open.clear()
        os.close(self._directory)


def device_of(fd):
    """A number for the file system of ``fd``, the same in all processes of this node and hardly on another node."""
    try:
        with open("/proc/sys/kernel/random/boot_id", "rb") as file:
            node = file.read()
    except OSError:
        node = os.uname().nodename.encode()
    return int.from_bytes(blake2b(b"%b %d" % (node, os.fstat(fd).st_dev), digest_size=8).digest(), "little")


def directory_of(ino, chunk):
    return (ino * 31 + chunk) % DIRECTORIES


def name_of(ino, chunk):
    return f"data/{directory_of(ino, chunk):02x}/{ino:x}.{chunk:x}"
