# SPDX-License-Identifier: Apache-2.0
"""Placement is a pure function, and the structures are what the kernel's headers say."""

import os
import struct

from hypothesis import given
from hypothesis import strategies as st

from pymadfs import abi, layout
from pymadfs.ops import ATTR, INO_HOME_SHIFT


@given(st.integers(0, 1 << 40), st.integers(0, 1 << 20), st.integers(1 << 12, 1 << 22))
def test_split_covers_the_range_once(offset, length, chunk_size):
    at = offset
    for chunk, within, piece in layout.split(offset, length, chunk_size):
        assert chunk * chunk_size + within == at and 0 < piece <= chunk_size - within
        at += piece
    assert at == offset + length


@given(st.binary(min_size=1, max_size=50), st.integers(1, 20))
def test_owner_is_a_server(path, servers):
    assert 0 <= layout.owner(path, servers) < servers


def test_chunks_go_round_from_home():
    ino = 2 << INO_HOME_SHIFT | 77
    assert layout.home(ino) == 2
    assert [layout.chunk_server(ino, chunk, 3) for chunk in range(5)] == [2, 0, 1, 2, 0]


def test_parent_and_join():
    assert [layout.parent(path) for path in (b"/a/b", b"/a", b"/")] == [b"/a", b"/", b"/"]
    assert layout.join(b"/", b"a") == b"/a" and layout.join(b"/a", b"b") == b"/a/b"


def attr(**changes):
    return ATTR.unpack(bytes(ATTR.size))._replace(**changes)


def test_stat_is_laid_out_as_the_kernel_does():
    found = attr(
        ino=7,
        size=1 << 40,
        blocks=9,
        atime_ns=10**18 + 1,
        mtime_ns=-1,
        ctime_ns=3,
        mode=0o100644,
        nlink=2,
        uid=4,
        gid=5,
        chunk_size=65536,
        btime_ns=5 * 10**9 + 6,
    )
    data = abi.pack_stat(found)
    if abi.X86_64:
        assert len(data) == 144
        assert struct.unpack_from("<QQQIII", data) == (abi.DEVICE, 7, 2, 0o100644, 4, 5)
        assert struct.unpack_from("<qqqqqqq", data, 48) == (1 << 40, 65536, 9, 10**9, 1, -1, 999_999_999)
    else:
        assert len(data) == 128
        assert struct.unpack_from("<QQIIII", data) == (abi.DEVICE, 7, 0o100644, 2, 4, 5)
    wide = abi.pack_statx(found)
    assert len(wide) == 256
    assert struct.unpack_from("<IIQIIIH", wide) == (0xFFF, 65536, 0, 2, 4, 5, 0o100644)
    assert struct.unpack_from("<QQQ", wide, 32) == (7, 1 << 40, 9)
    assert struct.unpack_from("<qI", wide, 80) == (5, 6)
    assert struct.unpack_from("<qI", wide, 112) == (-1, 999_999_999)
    assert os.makedev(*struct.unpack_from("<II", wide, 136)) == abi.DEVICE


def test_directories_have_one_size_and_block_sizes_are_bounded():
    directory = abi.pack_stat(attr(mode=0o040755, size=3))
    assert struct.unpack_from("<q", directory, 48)[0] == 4096
    huge = abi.pack_statx(attr(mode=0o100644, chunk_size=1 << 30))
    assert struct.unpack_from("<I", huge, 4)[0] == abi.BLOCK_SIZE_MAX


def test_the_kernel_reads_our_dirents():
    record = abi.pack_dirent(b"name", 5, 8, 1)
    assert len(record) == 24 and len(abi.pack_dirent(b"names", 5, 8, 1)) == 32
    assert struct.unpack_from("<QqHB", record) == (5, 1, 24, 8) and record[19:] == b"name\0"


def test_statfs():
    data = abi.pack_statfs(4096, 10, 5, 4, 3, 2)
    assert struct.unpack_from("<qqQQQQQ", data) == (0x4D414446, 4096, 10, 5, 4, 3, 2)
    assert struct.unpack_from("<qq", data, 64) == (255, 4096)
