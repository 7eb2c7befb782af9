# SPDX-License-Identifier: Apache-2.0
"""Descriptors, processes and workers: descriptors.py sees the same on the mount and on a local directory."""
import inspect
import os
import subprocess

import descriptors
import pytest
from support import TIMEOUT_S

PROGRAM = os.path.abspath(descriptors.__file__)
CASES = [name for name, value in vars(descriptors).items()
         if inspect.isfunction(value) and not name.startswith("_") and not inspect.signature(value).parameters]


@pytest.mark.parametrize("case", CASES)
def test_same_as_local(request, runner, tmp_path, case):
    if case == "limits_are_the_programs":
        request.getfixturevalue("others_may_run_it")
    seen = []
    ours = f"{runner.mount}/descriptors-{case}"
    for directory, environment in ((str(tmp_path), runner.plain), (ours, runner.loaded)):
        subprocess.run(["mkdir", "-p", directory], env=environment, check=True, timeout=TIMEOUT_S)
        done = subprocess.run(["/usr/bin/python3", PROGRAM, case, directory], env=environment, text=True,
                              stdin=subprocess.DEVNULL, capture_output=True, timeout=2 * TIMEOUT_S, check=False)
        assert (done.returncode, done.stderr) == (0, ""), done.stdout
        seen.append(done.stdout)
    assert seen[1] == seen[0]
