# SPDX-License-Identifier: Apache-2.0
"""The generated table, as C sees it: what is too new for the headers is left out, anything else unknown is an error."""
import re
import subprocess
from pathlib import Path

import pytest
from support import ROOT

from pymadfs import ops

TABLE = (ROOT / "intercept" / "syscalls.def").read_text()


def compiles(sources, tmp_path, table):
    (tmp_path / "syscalls.def").write_text(table)
    for name in ("dispatch.c", "intercept.h", "host.h"):
        (tmp_path / name).write_bytes((sources / name).read_bytes())
    command = ["gcc", "-std=gnu11", "-D_GNU_SOURCE", "-fsyntax-only", f"-I{tmp_path}", f"-I{sources}/x86_64",
               tmp_path / "dispatch.c"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


HEADERS = {"x86_64": "/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "aarch64": "/usr/include/asm-generic/unistd.h"}
# No system calls, or those of other architectures that use the same list.
OTHERS = re.compile(r"\w+_time64|clock_\w+64|timer_\w+64|timerfd_\w+64|arch_specific_syscall|syscalls|sync_file_range2")


@pytest.mark.parametrize("machine", HEADERS)
def test_every_system_call_is_accounted_for(machine):
    """It has a row, or a place in the list of those that carry neither a path nor a descriptor."""
    names = dict(re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", Path(HEADERS[machine]).read_text()))
    names = {{"fstatat": "newfstatat"}.get(name, name) for name in names if not OTHERS.fullmatch(name)}
    assert len(names) > 290
    assert not names - ops.SYSCALLS.keys() - ops.NO_NAMES
    if machine == "aarch64":
        assert not {name for name in names if name in ops.SYSCALLS and ops.SYSCALLS[name].only == "x86_64"}
    assert not ops.NO_NAMES & ops.SYSCALLS.keys()


def test_rows_for_the_kernel_say_why():
    assert all(row.kernel is None or len(row.kernel) > 10 for row in ops.SYSCALLS.values())
    assert "| `poll` (x86_64) | `poll()` | the kernel | passed |" in (ROOT / "docs" / "operations.md").read_text()


def test_numbers_that_the_headers_may_lack():
    known = dict(re.findall(r"#define __NR_(\w+)\s+(\d+)", Path(HEADERS["x86_64"]).read_text()))
    assert all(known.get(name, str(number)) == str(number) for name, number in ops.NEWER.items())
    assert ops.NEWER.keys() <= ops.SYSCALLS.keys() and len(set(ops.NEWER.values())) == len(ops.NEWER)
    assert "#ifndef SYS_fchmodat2\n#define SYS_fchmodat2 452\n#endif" in TABLE


def test_a_misspelt_call_stops_the_build(sources, tmp_path):
    assert compiles(sources, tmp_path, TABLE).returncode == 0
    done = compiles(sources, tmp_path, TABLE.replace("SYSCALL(unlinkat,", "SYSCALL(unlinkatt,"))
    assert done.returncode != 0 and "SYS_unlinkatt" in done.stderr


def test_an_architecture_without_the_old_calls_has_rows_for_the_new_ones():
    rows = re.sub(r"#ifdef __x86_64__\n.*\n#endif\n", "", TABLE)
    assert "SYSCALL(openat," in rows and "SYSCALL(open," not in rows
    answered = [row for row in ops.SYSCALLS.values() if not row.shim and not row.refuse and not row.kernel]
    everywhere = {row.target for row in answered if not row.only} | {"futimesat", "utime", "getdents"}
    assert {row.target for row in answered if row.only} <= everywhere
