# SPDX-License-Identifier: Apache-2.0
"""Odd counts, lengths, addresses and offsets of readv, pwritev2 and their like: run on the mount and on a local
directory by ``test_vectors.py``."""
import ctypes
import errno
import mmap
import os
import struct
import sys

libc = ctypes.CDLL(None, use_errno=True)
LONG = ctypes.c_long
X86 = {"read": 0, "write": 1, "pread": 17, "pwrite": 18, "readv": 19, "writev": 20, "preadv": 295, "pwritev": 296,
       "preadv2": 327, "pwritev2": 328}
ARM = {"read": 63, "write": 64, "pread": 67, "pwrite": 68, "readv": 65, "writev": 66, "preadv": 69, "pwritev": 70,
       "preadv2": 286, "pwritev2": 287}
NUMBERS = X86 if os.uname().machine == "x86_64" else ARM
SIZE, LONGEST = 1 << 20, (1 << 63) - 1
KERNEL = 1 << 63
APPEND, NO_SUCH_FLAG = 0x10, 1 << 30

area = mmap.mmap(-1, 2 * SIZE)
base = ctypes.addressof(ctypes.c_char.from_buffer(area))
libc.mprotect(LONG(base + SIZE), LONG(SIZE), 0)  # what is behind the buffer belongs to somebody else


def raw(name, *arguments):
    result = libc.syscall(LONG(NUMBERS[name]), *(LONG(a) if isinstance(a, int) else a for a in arguments))
    return errno.errorcode[ctypes.get_errno()] if result == -1 else result


def vector(*parts):
    return ctypes.create_string_buffer(
        b"".join(struct.pack("QQ", at % (1 << 64), length % (1 << 64)) for at, length in parts) + bytes(16))


VECTORS = {
    "plain": (vector((base, 5), (base + 100, 5)), 2), "none": (vector((base, 5)), 0),
    "empty": (vector((base, 0), (base, 0)), 2), "negative": (vector((base, 5)), -1),
    "most": (vector(*((base + at, 1) for at in range(1024))), 1024), "too many": (vector((base, 1)), 1025),
    "2^31": (vector((base, 5)), 1 << 31), "2^32": (vector((base, 5)), 1 << 32),
    "2^32+1": (vector((base, 5)), (1 << 32) + 1), "longest": (vector((base, LONGEST)), 1),
    "negative length": (vector((base, 5), (base, -1)), 2), "empty and negative": (vector((base, 0), (base, KERNEL)), 2),
    "sum": (vector((base, LONGEST), (base, LONGEST)), 2), "sum just": (vector((base, LONGEST - 4), (base, 5)), 2),
    "nowhere": (vector((16, 5)), 1), "second nowhere": (vector((base, 5), (16, 5)), 2),
    "kernel": (vector((KERNEL, 5)), 1), "kernel and nothing": (vector((KERNEL, 0)), 1),
    "second kernel": (vector((base, 5), (KERNEL + 4096, 5)), 2), "end": (vector((base + SIZE - 3, 10)), 1),
    "null and nothing": (vector((0, 0)), 1), "null": (vector((0, 4)), 1), "last": (vector(((1 << 64) - 8, 16)), 1),
}


def main():
    os.chdir(sys.argv[1])
    os.mkdir("d")
    both = os.open("f", os.O_RDWR | os.O_CREAT)
    files = {"both": both, "append": os.open("f", os.O_RDWR | os.O_APPEND), "path": os.open("f", os.O_PATH),
             "directory": os.open("d", os.O_RDONLY), "closed": 99}

    def show(name, call, *arguments):
        os.ftruncate(both, 0)
        os.pwrite(both, b"0123456789" * 10, 0)
        ctypes.memset(base, 65, 2000)
        for fd in both, files["append"]:
            os.lseek(fd, 3, os.SEEK_SET)
        result = raw(call, files[name], *arguments)
        size = os.fstat(both).st_size
        if result not in (size, size - 3):  # how much of a huge buffer one write takes is nobody's concern
            print(result, os.lseek(both, 0, os.SEEK_CUR), size, end=" ")
        return area[:12], os.pread(both, 12, 0)

    for name in sys.argv[2:]:
        for what, (array, count) in VECTORS.items():
            long = "longest" in what
            for call in "readv", "writev":
                print(name, what, call, show(name, call, array, count))
            for offset in (0, 50, 100, -1, LONGEST, KERNEL):
                print(name, what, offset, show(name, "preadv", array, count, offset, 0))
                if not long or offset != 50:
                    print(name, what, offset, show(name, "pwritev", array, count, offset, 0))
                for flags in 0, APPEND, NO_SUCH_FLAG:
                    print(name, what, offset, flags, show(name, "preadv2", array, count, offset, 0, flags & ~APPEND),
                          show(name, "pwritev2", array, count, offset, 0, flags))
        for count in 0, 5, LONGEST, -1, KERNEL:
            for at in base + SIZE - 10, 16, KERNEL + 4096:
                print(name, count, show(name, "read", at, count), show(name, "write", at, count))
                for offset in 0, 97, 100, -1, LONGEST - 2:
                    print(name, count, offset, show(name, "pread", at, count, offset),
                          show(name, "pwrite", at, count, offset))
        for what, (array, count) in VECTORS.items():  # at the end of the file, and before and behind it
            for place in 99, 100, 1000:
                os.lseek(both, place, os.SEEK_SET)
                print(name, what, place, raw("readv", files[name], array, count), os.lseek(both, 0, os.SEEK_CUR))
        for place in 99, 100, 1000:
            buffers = (base + SIZE - 3, 10), (16, 5), (KERNEL, 5), (base + SIZE, 0), (16, LONGEST)
            for number, (at, count) in enumerate(buffers):
                os.lseek(both, place, os.SEEK_SET)
                print(name, number, place, raw("read", files[name], at, count), os.lseek(both, 0, os.SEEK_CUR))


if __name__ == "__main__":
    main()
