# SPDX-License-Identifier: Apache-2.0
"""What ``--trace`` counts: the file that all processes of a job on this node map (intercept/trace.c), and its table.

    file := header, call*       one call for each system call number: its name, and a count for each outcome
"""
import struct
from collections import namedtuple

from . import ops

MAGIC, ROWS = 0x3145434152544D46, 512

Counts = namedtuple("Counts", "emulated failed passed refused")
OUTCOMES = Counts._fields
_HEADER = struct.Struct("<QIIQQ")
_CALL = struct.Struct(f"<32s{len(OUTCOMES)}Q")
SIZE = _HEADER.size + ROWS * _CALL.size

Report = namedtuple("Report", "processes sites_left calls")
Report.__doc__ = "``calls``: name of a system call -> its Counts; ``sites_left``: instructions that were not rewritten."


def create(path):
    """Make the file at ``path`` for MADFS_TRACE.  Raises OSError."""
    with open(path, "xb") as file:
        file.truncate(SIZE)


def read(path):
    """The Report in the file at ``path``; one without processes when none used it.  Raises OSError."""
    with open(path, "rb") as file:
        data = file.read(SIZE)
    magic, rows, outcomes, processes, left = _HEADER.unpack_from(data)
    if (magic, rows, outcomes) != (MAGIC, ROWS, len(OUTCOMES)):
        return Report(0, 0, {})
    calls = {}
    for name, *counts in _CALL.iter_unpack(data[_HEADER.size:]):
        if any(counts):
            calls[name.rstrip(b"\0").decode()] = Counts(*counts)
    return Report(processes, left, calls)


def table(report):
    """The lines of ``report``, the most frequent calls first."""
    if not report.processes:
        return ["no process of the job was on MadFS"]
    lines = [f"{report.processes} programs on MadFS; {report.sites_left} system call instructions not rewritten; calls "
             "that concerned the mount:"]
    if report.calls:
        lines.append(f"{'call':20}" + "".join(f"{outcome:>10}" for outcome in OUTCOMES) + "  why")
    for name, counts in sorted(report.calls.items(), key=lambda item: (-sum(item[1]), item[0])):
        lines.append(f"{name:20}" + "".join(f"{count:>10}" for count in counts) + _why(name, counts))
    lines += ["emulated: answered; failed: answered with an error; passed: left to the kernel; refused: not supported"]
    return lines


def _why(name, counts):
    row = ops.SYSCALLS.get(name)
    if row and counts.refused:
        return f"  {row.refuse}: {row.note}"
    if row and counts.passed and row.kernel:
        return f"  {row.kernel}"
    if row and counts.failed and row.note != "complete":
        return f"  {row.note}"
    return ""
