# SPDX-License-Identifier: Apache-2.0
"""What copies from one descriptor to another, between all kinds of them: transfers.c."""
import subprocess
from pathlib import Path


def test_all_kinds(runner, tmp_path):
    program = tmp_path / "transfers"
    source = Path(__file__).with_name("transfers.c")
    subprocess.run(["gcc", "-std=gnu11", "-O1", "-w", "-o", program, source], check=True, timeout=60)
    (tmp_path / "host").mkdir()
    assert runner.same(f"{program} {tmp_path}/host", timeout=120).count(b"\n") > 1000
