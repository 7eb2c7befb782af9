# SPDX-License-Identifier: Apache-2.0
"""Directories that are removed while somebody works in them or has them open: as on a local directory."""
import os
import subprocess
import sys

import pytest
from support import TIMEOUT_S

SCRIPT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "removed.py")

HOW = ["self", "again", "replaced", "path", "elsewhere", pytest.param("child", marks=pytest.mark.long),
       pytest.param("user", marks=pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user"))]


def run(directory, how, environment):
    """What the script prints; the directory is removed by a process of another tree when it asks for that."""
    outside = {name: value for name, value in environment.items() if name != "MADFS_STATE"}
    subprocess.run(["mkdir", directory], env=environment, check=True, timeout=TIMEOUT_S)
    process = subprocess.Popen([sys.executable, SCRIPT, directory, how], env=environment, text=True,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        if how == "elsewhere":
            assert process.stdout.readline() == "remove\n"
            subprocess.run(["rmdir", directory + "/gone"], env=outside, check=True, timeout=TIMEOUT_S)
        said, _ = process.communicate("\n", timeout=TIMEOUT_S)
    finally:
        process.kill()
        process.wait()
        subprocess.run(["rm", "-rf", directory], env=environment, timeout=TIMEOUT_S)
    assert process.returncode == 0, said
    return said.splitlines()


@pytest.mark.parametrize("how", HOW)
def test_a_directory_that_is_gone(runner, everybodys, how, request):
    if how == "user":
        request.getfixturevalue("others_may_run_it")
    here = run(f"{everybodys}/removed", how, runner.plain)
    there = run(f"{runner.mount}/removed", how, runner.loaded)
    assert there == here
