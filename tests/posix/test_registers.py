# SPDX-License-Identifier: Apache-2.0
"""Arguments of 32 bits are that, whatever else is in their registers (registers.c)."""
import subprocess
from pathlib import Path

from support import TIMEOUT_S


def test_upper_halves(runner, tmp_path):
    program = tmp_path / "registers"
    subprocess.run(["gcc", "-O1", "-Wall", "-Wextra", "-Werror", "-o", program,
                    Path(__file__).with_name("registers.c")], check=True, timeout=TIMEOUT_S)
    # What a file system has of fallocate is its own affair.
    seen = runner.same(f"{program} | sed 's/^fallocate.*//'").decode()
    assert seen.count("\n") > 60
    assert seen.endswith("signal 11\n")
