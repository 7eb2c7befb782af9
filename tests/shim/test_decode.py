# SPDX-License-Identifier: Apache-2.0
"""The length decoder against capstone, on real code."""
import ctypes
import glob
import mmap
import platform
import struct
import time

import capstone
import pytest
from capstone import x86_const
from doors import KINDS

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="the decoder of x86_64")

PT_LOAD, PT_GNU_EH_FRAME, EXECUTABLE = 1, 0x6474E550, 1
LIBC = ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"]
OTHERS = sorted(glob.glob("/usr/lib/x86_64-linux-gnu/lib*.so*"))
SECONDS = 15  # for all of OTHERS
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
    ours = decode(door, code)
    theirs = list(disassembler.disasm_lite(bytes(code), BASE))
    at = 0
    for (length, kind), (_, size, name, operands) in zip(ours, theirs):
        assert length == size, f"{code[at:at + 15].hex(' ')} is {name} {operands} of {size} bytes, not of {length}"
        found = f"{code[at:at + 15].hex(' ')} is {name} {operands}, not {KINDS[kind]}"
        assert KINDS[kind] == kind_of(name, operands), found
        at += size
    if len(ours) < len(theirs):
        _, size, name, _ = theirs[len(ours)]
        assert unwanted(name, code[at:]), f"{code[at:at + size].hex(' ')} is {name} to capstone, and nothing to us"
    return min(len(ours), len(theirs))


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


def test_functions_with_sites_of_other_libraries(door, disassembler):
    until, compared = time.monotonic() + SECONDS, 0
    for path in OTHERS:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as image:
            if image.find(b"\x0f\x05") < 0:
                continue
            for start, end in functions(image):
                if image.find(b"\x0f\x05", start, end) >= 0:
                    compared += compare(door, disassembler, image[start:end])
        if time.monotonic() > until:
            break
    assert compared > 1_000


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
    import random

    source = random.Random(1)
    for _ in range(2000):
        code = source.randbytes(source.randrange(1, 40))
        assert sum(length for length, _ in decode(door, code)) <= len(code)


def test_names_are_those_of_capstone():
    assert x86_const.X86_INS_SYSCALL
