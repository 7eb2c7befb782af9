# SPDX-License-Identifier: Apache-2.0
"""Rewriting, byte for byte: patterns/x86_64/NAME.in.S becomes NAME.out.S, or is refused and stays as it is."""
import ctypes
import mmap
import platform
import re
import subprocess
from pathlib import Path

import pytest
from doors import TIERS

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="patterns of x86_64")

FOLDER = Path(__file__).parent / "patterns" / "x86_64"
NAMES = sorted(path.name.removesuffix(".in.S") for path in FOLDER.glob("*.in.S"))
STUBS_AT, STUBS_APART, ROOM = 0x10000, 0x100, 0x20000  # as in pattern.h
IDLE = 202
QUESTION = [b"\x0f\xb7\xc8\x49\xbb", b"\x41\x0f\xb6\x0c\x0b\xe3\x17\x49\xbb", b"\x48\xb9", b"\x3e\xff\xe1"]
ASKED = re.compile(b".{8}".join(map(re.escape, QUESTION)), re.DOTALL)


def assemble(source, directory, section=".text"):
    """The bytes of a section of an assembler file."""
    target = directory / (source.stem + ".o")
    subprocess.run(["gcc", "-c", "-I", FOLDER, "-o", target, source], check=True)
    binary = directory / (source.stem + section + ".bin")
    subprocess.run(["objcopy", "-O", "binary", "--only-section", section, target, binary], check=True)
    return binary.read_bytes() if binary.exists() else b""


def blank(code):
    """``code`` without the addresses in its stubs' questions."""
    return ASKED.sub(bytes(8).join(QUESTION), bytes(code))


def rewrite(door, function, padding):
    """``(memory, names of the tiers)`` after rewriting ``function``, which is followed by ``padding``."""
    area = mmap.mmap(-1, ROOM)
    memory = (ctypes.c_uint8 * ROOM).from_buffer(area)
    area[:len(function) + len(padding)] = function + padding
    for number in range(512):
        door.door_class(number, number != IDLE)
    base = ctypes.addressof(memory)
    records, tiers, sizes = (ctypes.c_void_p * 192)(), (ctypes.c_uint8 * 64)(), (ctypes.c_uint8 * 64)()
    count = door.door_rewrite(
        ctypes.c_void_p(base), ctypes.c_size_t(0), ctypes.c_size_t(len(function)),
        ctypes.c_size_t(len(function) + len(padding)), ctypes.c_void_p(base + STUBS_AT), ctypes.c_size_t(STUBS_APART),
        records, tiers, sizes)
    result = bytes(area[:])
    del memory
    return result, [TIERS[tier] for tier in tiers[:count]]


@pytest.mark.parametrize("name", NAMES)
def test_pattern(door, tmp_path, name):
    source = FOLDER / f"{name}.in.S"
    function, padding = assemble(source, tmp_path), assemble(source, tmp_path, ".pad")
    memory, tiers = rewrite(door, function, padding)
    said = re.search(r"// sites: (.*)", source.read_text())[1].split()
    assert tiers == ([] if said == ["none"] else said)
    expected = FOLDER / f"{name}.out.S"
    if not expected.exists():
        assert memory[:len(function)] == function, "a refused function must stay as it is"
        return
    wanted = assemble(expected, tmp_path)
    got = compared = blank(memory)
    # Bytes that are never executed again (0 in NAME.out.S, at the end of what was overwritten) may be anything.
    for at in range(len(function) + len(padding)):
        if at < len(wanted) and wanted[at] == 0 and got[at] != 0 and not is_executed(wanted, at):
            compared = compared[:at] + b"\0" + compared[at + 1:]
    wanted = blank(wanted)
    assert compared[:len(function)].hex(" ") == wanted[:len(function)].hex(" ")
    assert compared[STUBS_AT:len(wanted)].hex(" ") == wanted[STUBS_AT:].hex(" ")


def is_executed(code, at):
    """Whether the byte is within the four of a jump's distance."""
    return any(code[start] == 0xE9 for start in range(max(0, at - 4), at))


def test_operand_out_of_reach_of_the_stub(door):
    """lea -0x70000000(%rip), %rsi cannot be said from a stub that is 1.5 GiB further up."""
    far = 0x60000000
    area = mmap.mmap(-1, far + ROOM, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    code = b"\x48\x8d\x35" + (-0x70000000).to_bytes(4, "little", signed=True) + b"\x0f\x05\xc3"
    area[:len(code)] = code
    memory = (ctypes.c_uint8 * len(area)).from_buffer(area)
    base = ctypes.addressof(memory)
    records, tiers, sizes = (ctypes.c_void_p * 192)(), (ctypes.c_uint8 * 64)(), (ctypes.c_uint8 * 64)()
    for number in range(512):
        door.door_class(number, 1)
    count = door.door_rewrite(
        ctypes.c_void_p(base), ctypes.c_size_t(0), ctypes.c_size_t(len(code)), ctypes.c_size_t(len(code)),
        ctypes.c_void_p(base + far), ctypes.c_size_t(STUBS_APART), records, tiers, sizes)
    assert count == 1 and TIERS[tiers[0]] == "LEFT"
    assert bytes(memory[:len(code)]) == code, "what cannot be rewritten stays as it is"
