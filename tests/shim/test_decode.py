# SPDX-License-Identifier: Apache-2.0
"""The length decoder against capstone, on real code."""
import bisect
import ctypes
import os
import platform
import random
import site
import struct
import time

import capstone
import pytest
from capstone import x86_const
from doors import KINDS

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="the decoder of x86_64")

PT_LOAD, PT_GNU_EH_FRAME, EXECUTABLE = 1, 0x6474E550, 1
LIBC = ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"]
FOLDERS = ["/usr/lib", "/usr/local/lib", "/opt", *site.getsitepackages(), os.path.dirname(os.__file__), "/usr/bin"]
SECONDS = 12
SOME, LENGTH_MAX = 2000, 15  # instructions disassembled at once, bytes of one
BASE = 0x1000000  # so that every branch target is printed in hexadecimal


def functions(image):
    """``[(file offset, end)]`` of the functions that .eh_frame_hdr of an ELF image lists."""
    if image[:4] != b"\x7fELF" or image[4] != 2 or struct.unpack_from("<H", image, 18)[0] != 62:
        return []
    at, = struct.unpack_from("<Q", image, 32)
    size, count = struct.unpack_from("<HH", image, 54)
    headers = [struct.unpack_from("<IIQQQQ", image, at + n * size) for n in range(count)]
    texts = [(offset, address, length) for kind, flags, offset, address, _, length in headers
             if kind == PT_LOAD and flags & EXECUTABLE]
    found = []
    for kind, _, offset, address, _, _ in headers:
        if kind != PT_GNU_EH_FRAME or image[offset + 1:offset + 4] != b"\x1b\x03\x3b":
            continue
        entries, = struct.unpack_from("<I", image, offset + 8)
        starts = [address + struct.unpack_from("<i", image, offset + 12 + 8 * n)[0] for n in range(entries)]
        for text_offset, text, length in texts:
            inside = [start for start in starts if text <= start < text + length]
            ends = [*inside[1:], text + length]
            found += [(start - text + text_offset, end - text + text_offset) for start, end in zip(inside, ends)]
    return found


@pytest.fixture(scope="module")
def disassembler():
    return capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)


def decode(door, code):
    lengths, kinds = (ctypes.c_uint8 * len(code))(), (ctypes.c_uint8 * len(code))()
    count = door.door_decode(bytes(code), ctypes.c_size_t(len(code)), lengths, kinds)
    return list(zip(lengths[:count], kinds[:count]))


def compare(door, disassembler, code):
    """Number of instructions that were compared; both stop where either finds none."""
    ours, at, n = decode(door, code), 0, 0
    while n < len(ours):
        count, length, again = compare_some(ours[n:n + SOME], disassembler, code[at:at + SOME * LENGTH_MAX])
        n, at = n + count, at + length
        if not again:
            return n
    return n


def compare_some(ours, disassembler, code):
    """``(instructions compared, their length, whether there is more to compare)``."""
    theirs, at, n = list(disassembler.disasm_lite(bytes(code), BASE)), 0, 0
    for (length, kind), (_, size, name, operands) in zip(ours, theirs):
        n += 1
        if name.split()[-1] in ("ud0", "ud1"):  # of which capstone does not see the operands
            return n, at + length, True
        assert length == size, f"{code[at:at + 15].hex(' ')} is {name} {operands} of {size} bytes, not of {length}"
        found = f"{code[at:at + 15].hex(' ')} is {name} {operands}, not {KINDS[kind]}"
        assert KINDS[kind] == kind_of(name, operands), found
        at += size
    if len(ours) < min(len(theirs), SOME):
        _, size, name, _ = theirs[len(ours)]
        assert unwanted(name, code[at:]), f"{code[at:at + size].hex(' ')} is {name} to capstone, and nothing to us"
    return n, at, n == SOME


def unwanted(name, code):
    """What capstone knows and we refuse on purpose: 16-bit branches, AMD's XOP."""
    return name.startswith(("j", "call")) or code[0] == 0x8F


def kind_of(name, operands):
    name = name.split()[-1]
    direct = operands.startswith("0x")
    if name == "jmp":
        return "JUMP" if direct else "INDIRECT"
    if name in ("jrcxz", "jecxz") or name.startswith("loop"):
        return "LOOP"
    if name.startswith("j"):
        return "BRANCH"
    return {"call": "CALL", "lcall": "CALL", "ljmp": "INDIRECT", "ret": "RETURN", "retf": "RETURN", "retfq": "RETURN",
            "iretd": "RETURN", "iretq": "RETURN", "iret": "RETURN", "syscall": "SYSCALL", "endbr64": "MARK",
            "endbr32": "MARK"}.get(name, "STOP" if name in STOPS else "PLAIN")


STOPS = {"hlt", "ud2", "int3", "int", "int1", "ud0", "ud1", "sysenter", "sysexit", "sysret", "sysretq", "xbegin"}


@pytest.mark.parametrize("path", LIBC)
def test_all_of_the_c_library(door, disassembler, path):
    with open(path, "rb") as file:
        image = file.read()
    compared = sum(compare(door, disassembler, image[start:end]) for start, end in functions(image))
    assert compared > 20_000


def objects():
    """Paths of the libraries and programs of this machine, each file once, in an order that mixes them."""
    found = {}
    for folder in FOLDERS:
        for directory, _, names in os.walk(folder):
            for name in names:
                path = os.path.join(directory, name)
                if (".so" in name or directory.endswith("/bin")) and os.path.isfile(path) and os.access(path, os.R_OK):
                    info = os.stat(path)
                    if info.st_size > 64:
                        found.setdefault((info.st_dev, info.st_ino), path)
    paths = sorted(found.values())
    random.Random(1).shuffle(paths)
    return paths


def compare_neighbourhoods(door, disassembler, path):
    """Number of instructions compared in those functions of an object that have the bytes of a system call."""
    compared = 0
    with open(path, "rb") as file:
        if file.read(4) != b"\x7fELF":
            return compared
        image = b"\x7fELF" + file.read()  # not mapped: mmap.find() of Python before 3.11.5 reads behind the last page
    at, found = image.find(b"\x0f\x05"), []
    if at >= 0:
        found = sorted(functions(image))
    starts, last = [start for start, _ in found], None
    while at >= 0 and found:
        n = bisect.bisect_right(starts, at) - 1
        if n >= 0 and at < found[n][1] and n != last:
            compared += compare(door, disassembler, image[found[n][0]:found[n][1]])
            last = n
        at = image.find(b"\x0f\x05", at + 1)
    return compared


def test_functions_with_sites_of_some_objects(door, disassembler):
    until, compared = time.monotonic() + SECONDS, 0
    for path in objects():
        compared += compare_neighbourhoods(door, disassembler, path)
        if time.monotonic() > until:
            break
    assert compared > 1_000


@pytest.mark.long
def test_functions_with_sites_of_all_objects(door, disassembler):
    compared = {path: compare_neighbourhoods(door, disassembler, path) for path in objects()}
    assert sum(map(bool, compared.values())) > 100
    print(f"{sum(compared.values())} instructions of {sum(map(bool, compared.values()))} objects, "
          f"of {len(compared)}")


@pytest.mark.parametrize("code", [
    "c4e27df32d00000000", "62f17c48580500000000", "62f3fd4816c001", "c5f877", "c4e379140001", "660f78c00102",
    "f20f78c00304",
    "48b80102030405060708", "66b80102", "a10102030405060708", "67a101020304", "c8010203", "f6c001", "f6d0",
    "66f7c00102",
    "66480fc7f0", "f30f1efa", "0f0fc0b4", "66e90102", "c7f800000000", "0f1f8400000000", "64488b042500000000"])
def test_forms_that_are_rare(door, disassembler, code):
    code = bytes.fromhex(code) + b"\x90" * 16
    compare(door, disassembler, code)


def test_random_bytes_do_no_harm(door):
    source = random.Random(1)
    for _ in range(2000):
        code = source.randbytes(source.randrange(1, 40))
        assert sum(length for length, _ in decode(door, code)) <= len(code)


def test_names_are_those_of_capstone():
    assert x86_const.X86_INS_SYSCALL
