# SPDX-License-Identifier: Apache-2.0
"""The kernel's structures and numbers as programs lay them out in memory, for x86_64 and the generic table (aarch64).

Each ``pack_*`` takes an ``ops.ATTR`` and returns the bytes to store at the caller's address.
"""

import posix
from struct import Struct

X86_64 = posix.uname().machine == "x86_64"

# --- numbers that the posix module does not name --------------------------------------------------------------------

AT_SYMLINK_NOFOLLOW, AT_REMOVEDIR, AT_EACCESS, AT_NO_AUTOMOUNT, AT_EMPTY_PATH = 0x100, 0x200, 0x200, 0x800, 0x1000
AT_SYMLINK_FOLLOW = 0x400
AT_STATX_SYNC_TYPE = 0x6000
O_LARGEFILE = 0o100000 if X86_64 else 0o400000  # the kernel shows it in F_GETFL of every 64-bit program
RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2
FIONREAD = 0x541B
FICLONE, FICLONERANGE, FIDEDUPERANGE = 0x40049409, 0x4020940D, 0xC0189436
RWF_HIPRI, RWF_DSYNC, RWF_SYNC, RWF_NOWAIT, RWF_APPEND, RWF_NOAPPEND, RWF_ATOMIC, RWF_DONTCACHE = (
    1 << bit for bit in range(8)
)
RWF_NOSIGNAL = 1 << 8
SYNC_FILE_RANGE_KNOWN, POSIX_FADV_NOREUSE = 7, 5
FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_COLLAPSE_RANGE = 1, 2, 8
FALLOC_FL_ZERO_RANGE, FALLOC_FL_INSERT_RANGE, FALLOC_FL_UNSHARE_RANGE = 0x10, 0x20, 0x40
SIGXFSZ = 25
MAP_SHARED, MAP_PRIVATE, MAP_SHARED_VALIDATE, MAP_TYPE, MAP_ANONYMOUS = 1, 2, 3, 0xF, 0x20
MAP_GROWSDOWN, MAP_POPULATE, MAP_HUGETLB = 0x100, 0x8000, 0x40000
MS_ASYNC, MS_INVALIDATE, MS_SYNC = 1, 2, 4
PROT_READ, PROT_WRITE, PROT_EXEC = 1, 2, 4
SEEK_SET, SEEK_CUR, SEEK_END, SEEK_DATA, SEEK_HOLE = range(5)
F_GETLK, F_SETLK, F_SETLKW = 5, 6, 7
F_OFD_GETLK, F_OFD_SETLK, F_OFD_SETLKW = 36, 37, 38
F_RDLCK, F_WRLCK, F_UNLCK = 0, 1, 2
LOCK_SH, LOCK_EX, LOCK_NB, LOCK_UN, LOCK_MAND = 1, 2, 4, 8, 32
STATX_BASIC_STATS, STATX_BTIME, STATX_RESERVED = 0x7FF, 0x800, 0x80000000
IOV_MAX = 1024
NAME_MAX, PATH_MAX = 255, 4096
PATH_LONGEST = 8191  # bytes of an absolute path: where a program is and what it gives, which is below PATH_MAX
RW_MAX = 0x7FFFF000  # what one read or write transfers at most
OFFSET_MAX = (1 << 63) - 1
USER_END = 0x7FFFFFFFF000 if X86_64 else 1 << 52  # no program has memory from here on
PAGE = 4096  # addresses below are never mapped: they are NULL pointers with an offset
MAGIC = 0x4D414446  # statfs f_type, "MADF"

# One device number for the mount; no driver of Linux has major 0x3ad.
DEV_MAJOR, DEV_MINOR = 0x3AD, 0xF5
DEVICE = posix.makedev(DEV_MAJOR, DEV_MINOR)

# --- layouts --------------------------------------------------------------------------------------------------------

_STAT = Struct("<QQQIIIIQqqqqQqQqQ24x" if X86_64 else "<QQIIIIQQqiiqqQqQqQ8x")
assert _STAT.size == (144 if X86_64 else 128)
_STATX = Struct("<IIQIIIHHQQQQqIiqIiqIiqIiIIIIQII96x")
assert _STATX.size == 256
_STATFS = Struct("<qqQQQQQiiqqq32x")
assert _STATFS.size == 120
_FLOCK = Struct("<hh4xqqi4x")
assert _FLOCK.size == 32
_DIRENT = Struct("<QqHB")
_OLD_DIRENT = Struct("<QqH")
TIMESPECS = Struct("<qqqq")
UTIMBUF = Struct("<qq")
OPEN_HOW = Struct("<QQQ")
XATTR_ARGS = Struct("<QII")
IOVEC = Struct("<Qq")
INT = Struct("<i")

_NS = 1_000_000_000
_pack_stat, _pack_statx = _STAT.pack, _STATX.pack
_S_IFMT, _S_IFDIR = 0o170000, 0o040000
DIRECTORY_SIZE = 4096
BLOCK_SIZE_MAX = 4 << 20  # st_blksize: programs allocate buffers of this size


def pack_stat(attr):
    """``struct stat`` of an ATTR."""
    ino, size, blocks, atime, mtime, ctime, mode, nlink, uid, gid, rdev, chunk_size, _, _, _ = attr
    if mode & _S_IFMT == _S_IFDIR:
        size, blocks, chunk_size = DIRECTORY_SIZE, DIRECTORY_SIZE // 512, 0
    block = chunk_size if 0 < chunk_size < BLOCK_SIZE_MAX else _block(chunk_size)
    if X86_64:
        return _pack_stat(
            DEVICE,
            ino,
            nlink,
            mode,
            uid,
            gid,
            0,
            rdev,
            size,
            block,
            blocks,
            atime // _NS,
            atime % _NS,
            mtime // _NS,
            mtime % _NS,
            ctime // _NS,
            ctime % _NS,
        )
    return _pack_stat(
        DEVICE,
        ino,
        mode,
        nlink,
        uid,
        gid,
        rdev,
        0,
        size,
        block,
        0,
        blocks,
        atime // _NS,
        atime % _NS,
        mtime // _NS,
        mtime % _NS,
        ctime // _NS,
        ctime % _NS,
    )


def pack_statx(attr):
    """``struct statx`` of an ATTR, with STATX_BASIC_STATS and STATX_BTIME."""
    ino, size, blocks, atime, mtime, ctime, mode, nlink, uid, gid, rdev, chunk_size, _, _, btime = attr
    if mode & _S_IFMT == _S_IFDIR:
        size, blocks, chunk_size = DIRECTORY_SIZE, DIRECTORY_SIZE // 512, 0
    block = chunk_size if 0 < chunk_size < BLOCK_SIZE_MAX else _block(chunk_size)
    return _pack_statx(
        STATX_BASIC_STATS | STATX_BTIME,
        block,
        0,
        nlink,
        uid,
        gid,
        mode,
        0,
        ino,
        size,
        blocks,
        0,
        atime // _NS,
        atime % _NS,
        0,
        btime // _NS,
        btime % _NS,
        0,
        ctime // _NS,
        ctime % _NS,
        0,
        mtime // _NS,
        mtime % _NS,
        0,
        rdev >> 8 & 0xFFF,
        rdev & 0xFF | rdev >> 12 & 0xFFF00,
        DEV_MAJOR,
        DEV_MINOR,
        0,
        0,
        0,
    )


def _block(chunk_size):
    """st_blksize: one chunk where that is a sensible buffer."""
    return BLOCK_SIZE_MAX if chunk_size else DIRECTORY_SIZE


def pack_statfs(block, blocks, free, available, files, files_free):
    """``struct statfs``; the counts are in units of ``block`` bytes."""
    return _STATFS.pack(
        MAGIC, block, blocks, free, available, files, files_free, DEV_MAJOR, DEV_MINOR, NAME_MAX, block, 0
    )


def pack_dirent(name, ino, kind, position):
    """``struct linux_dirent64``; ``position`` is where the entry after this one begins."""
    length = (_DIRENT.size + len(name) + 8) & ~7
    return (_DIRENT.pack(ino, position, length, kind) + name).ljust(length, b"\0")


def pack_old_dirent(name, ino, kind, position):
    """``struct linux_dirent``, whose type is in its last byte."""
    length = (_OLD_DIRENT.size + len(name) + 2 + 7) & ~7
    return (_OLD_DIRENT.pack(ino, position, length) + name).ljust(length - 1, b"\0") + bytes((kind,))


def pack_flock(kind, whence, start, length, pid):
    """``struct flock``."""
    return _FLOCK.pack(kind, whence, start, length, pid)


def unpack_flock(data):
    """``(type, whence, start, length, pid)`` of a ``struct flock``."""
    return _FLOCK.unpack(data)


FLOCK_SIZE = _FLOCK.size
