# SPDX-License-Identifier: Apache-2.0
"""The table and its counterparts: everything that ops.py declares is there, once, and everything generated is fresh."""
import re
import shutil
import struct
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import ROOT

from pymadfs import generate, ops

RECORDS = [record for op in ops.OPS.values() for record in (op.request, op.reply)]
RECORDS += [value for value in vars(ops).values() if isinstance(value, ops.Record)]

# struct code -> values it can hold
VALUES = {code: st.integers(0, 2 ** bits - 1) for code, bits in (("B", 8), ("H", 16), ("I", 32), ("Q", 64))}
VALUES |= {code: st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) for code, bits in (("i", 32), ("q", 64))}


def source(path):
    return (ROOT / path).read_text()


def codes(record):
    """The struct codes of a Record's fields, in order."""
    return re.findall(r"(\d*s|[A-Za-z])", record.format)


def values(record):
    """A strategy for tuples that fit ``record``."""
    return st.tuples(*(VALUES[code] if code in VALUES else st.binary(min_size=int(code[:-1]), max_size=int(code[:-1]))
                       for code in codes(record)))


def test_generated_files_are_fresh():
    assert generate.stale() == [], generate.FIX


def test_check_names_what_is_stale(tmp_path, monkeypatch, capsys):
    for name in generate.OUTPUTS:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    monkeypatch.setattr(generate, "stale", lambda check=generate.stale: check(tmp_path))
    assert generate.main(["--check"]) == 0
    name = next(iter(generate.OUTPUTS))
    (tmp_path / name).write_text("old\n")
    assert generate.main(["--check"]) == 1
    message = capsys.readouterr().err
    assert name in message and generate.FIX in message


def test_numbers_are_unique_and_fit():
    assert len({op.name for op in ops.OPS.values()}) == len(ops.OPS)
    assert all(number == op.number and 0 < number < 1 << 16 for number, op in ops.OPS.items())
    with pytest.raises(ValueError, match="taken"):
        ops.Op(next(iter(ops.OPS)), "another", "", "")
    with pytest.raises(ValueError, match="twice"):
        ops.Syscall("read", "read(fd(a0), a1, a2)")


def test_every_op_is_bound_to_the_constant_of_its_name():
    for op in ops.OPS.values():
        assert getattr(ops, op.name.upper()) is op, f"call it {op.name.upper()} in ops.py"


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.name)
def test_records_round_trip(record):
    @settings(max_examples=30)
    @given(values(record))
    def check(fields):
        packed = b"before" + record.pack(*fields) + b"after"
        assert record.unpack(packed, len("before")) == fields
        assert len(packed) == record.size + len("beforeafter")

    check()
    if record.size:
        with pytest.raises(struct.error):
            record.unpack(bytes(record.size - 1))


@pytest.mark.parametrize("op", ops.OPS.values(), ids=lambda op: op.name)
def test_every_op_says_what_it_means(op):
    assert op.doc.endswith("."), f"{op.name}: its doc is one sentence or more"
    assert op.data in (None, "request", "reply")
    assert not (op.oneway and codes(op.reply)), f"{op.name}: an operation without a reply has no reply fields"


def test_every_op_has_its_handler():
    from pymadfs.server import handlers

    names = {op.name for op in ops.OPS.values()}
    served = {op.name for op in handlers.HANDLERS}
    assert served == names, f"without a handler in server/handlers.py: {names - served}; unknown: {served - names}"


def test_every_canonical_call_has_its_function():
    text = "".join(path.read_text() for path in (ROOT / "pymadfs/syscalls").glob("*.py"))
    defined = dict(re.findall(r"^def (\w+)\(([^)]*)\)", text, re.MULTILINE))
    for name, kinds in ops.canonical_calls().items():
        assert name in defined, f"{name} is in ops.py and not in pymadfs/syscalls/: write it there"
        arguments = [argument for argument in defined[name].split(",") if argument.strip()]
        assert len(arguments) == len(kinds), f"{name} takes {len(arguments)} arguments and ops.py gives it {len(kinds)}"


def test_every_shim_row_has_its_function():
    text = "".join(path.read_text() for path in sorted((ROOT / "intercept").glob("*.c")))
    for row in ops.SYSCALLS.values():
        if row.shim:
            assert re.search(rf"\bmadfs_shim_{row.target} = ", text), f"write madfs_shim_{row.target} in intercept/"


def test_every_row_is_in_the_kernel_headers(tmp_path):
    rows = [row for row in ops.SYSCALLS.values() if row.name not in ops.NEWER and row.only in (None, "x86_64")]
    numbers = "".join(f"SYS_{row.name},\n" for row in rows)
    (tmp_path / "rows.c").write_text(f"#include <sys/syscall.h>\nint rows[] = {{\n{numbers}}};\n")
    done = subprocess.run(["gcc", "-fsyntax-only", tmp_path / "rows.c"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_call_numbers_do_not_depend_on_the_process():
    command = "from pymadfs import ops; print(*ops.canonical_calls())"
    said = {subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True,
                           env={"PYTHONHASHSEED": seed}).stdout for seed in ("1", "2")}
    assert len(said) == 1 and said.pop().split() == list(ops.canonical_calls())


@pytest.mark.parametrize(("call", "parsed"), [
    ("openat(at(a0, a1), a2, 0)", [("at", "a0", "a1"), ("int", "a2"), ("int", "0")]),
    ("symlinkat(str(a0), at(AT_FDCWD, a1))", [("str", "a0"), ("at", "AT_FDCWD", "a1")]),
    ("mmap(fd(a4), a0, a1)", [("fd", "a4"), ("int", "a0"), ("int", "a1")]),
    ("creat(O_CREAT|O_WRONLY|O_TRUNC)", [("int", "O_CREAT|O_WRONLY|O_TRUNC")]), ("fork()", [])])
def test_arguments(call, parsed):
    assert ops.arguments(call) == parsed
