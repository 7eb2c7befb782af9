# SPDX-License-Identifier: Apache-2.0
"""The generated table, as C sees it: what is too new for the headers is left out, anything else unknown is an error."""
import re
import subprocess

from support import ROOT

from pymadfs import generate, ops

TABLE = (ROOT / "intercept" / "syscalls.def").read_text()


def compiles(sources, tmp_path, table):
    (tmp_path / "syscalls.def").write_text(table)
    for name in ("dispatch.c", "intercept.h", "host.h"):
        (tmp_path / name).write_bytes((sources / name).read_bytes())
    command = ["gcc", "-std=gnu11", "-D_GNU_SOURCE", "-fsyntax-only", f"-I{tmp_path}", f"-I{sources}/x86_64",
               tmp_path / "dispatch.c"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_recent_calls_are_fenced():
    assert "#ifdef SYS_fchmodat2\nSYSCALL(fchmodat2," in TABLE
    fenced = set(re.findall(r"#ifdef SYS_(\w+)", TABLE))
    assert fenced == generate.RECENT & ops.SYSCALLS.keys()


def test_a_misspelt_call_stops_the_build(sources, tmp_path):
    assert compiles(sources, tmp_path, TABLE).returncode == 0
    done = compiles(sources, tmp_path, TABLE.replace("SYSCALL(unlinkat,", "SYSCALL(unlinkatt,"))
    assert done.returncode != 0 and "SYS_unlinkatt" in done.stderr


def test_an_architecture_without_the_old_calls_has_rows_for_the_new_ones():
    rows = re.sub(r"#ifdef __x86_64__\n.*\n#endif\n", "", TABLE)
    assert "SYSCALL(openat," in rows and "SYSCALL(open," not in rows
    assert {row.target for row in ops.SYSCALLS.values() if not row.shim and not row.refuse and row.only} <= {
        row.target for row in ops.SYSCALLS.values() if not row.only} | {"futimesat", "utime"}
