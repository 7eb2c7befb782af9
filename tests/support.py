# SPDX-License-Identifier: Apache-2.0
"""Where things are, and how the tests call the commands."""
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pymadfs import ops

ROOT = Path(__file__).resolve().parent.parent
MADFS = [sys.executable, "-P", "-m", "pymadfs.cli"]
MPIRUN = [sys.executable, "-P", "-m", "pymadfs.mpirun"]
TIMEOUT_S = 60
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root may do all that is compared here")
HEADERS = ("/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "/usr/include/aarch64-linux-gnu/asm/unistd.h",
           "/usr/include/asm-generic/unistd.h")


def call(argv, *, environment=None, **options):
    """Run ``argv`` to its end; returns what subprocess.run does, with the output as text.

    ``environment`` is added to the test's own.
    """
    options = {"capture_output": True, "text": True, "timeout": TIMEOUT_S, "stdin": subprocess.DEVNULL, **options}
    return subprocess.run(list(map(str, argv)), env={**clean_environment(), **(environment or {})}, check=False,
                          **options)


def clean_environment():
    """The environment without settings of MadFS that whoever runs the tests may have."""
    return {name: value for name, value in os.environ.items() if not name.startswith("MADFS_")}


def call_numbers():
    """Name -> number of the system calls of this machine."""
    text = next(Path(path).read_text() for path in HEADERS if os.path.exists(path) and (
        "x86_64" in path) == (os.uname().machine == "x86_64"))
    return {**{name: int(number) for name, number in re.findall(r"#define __NR_(\w+)\s+(\d+)", text)}, **ops.NEWER}
