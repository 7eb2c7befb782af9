# SPDX-License-Identifier: Apache-2.0
"""The built runtime, one made from standin/, and hosts that load them."""
import os
import shutil
import subprocess
import sys

import pytest
from support import ROOT

HERE = os.path.dirname(os.path.abspath(__file__))


@pytest.fixture(scope="session")
def runtime():
    """Path of the built library."""
    path = ROOT / "pymadfs" / "_lib" / "libmadfs_runtime.so"
    assert path.exists(), f"{path} is missing: make build"
    return str(path)


@pytest.fixture(scope="session")
def standin(tmp_path_factory):
    """Path of a runtime that is the built one but for ``standin/syscalls.py``, in place of the package."""
    path = tmp_path_factory.mktemp("standin") / "libmadfs_runtime.so"
    command = [sys.executable, "setup.py", "-q", "runtime", "--overlay", f"{HERE}/standin", "--output", str(path)]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return str(path)


@pytest.fixture(scope="session")
def compiled(tmp_path_factory):
    """Compiles host.c: ``compiled(name, *arguments, compiler="gcc")`` is the program's path."""
    folder = tmp_path_factory.mktemp("hosts")

    def build(name, *arguments, compiler="gcc"):
        program = folder / name
        if not program.exists():
            subprocess.run([compiler, "-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", *arguments,
                            f"{HERE}/host.c", "-o", str(program), "-ldl", "-lpthread"], check=True)
        return str(program)

    return build


@pytest.fixture(scope="session")
def pythons():
    """Every Python found on PATH that has ctypes, with the tests' own first; each with another version or prefix."""
    found = {}
    names = [sys.executable, "/usr/bin/python3"] + [f"python3.{minor}" for minor in range(8, 15)]
    for name in names:
        path = shutil.which(name)
        probe = path and subprocess.run([path, "-c", "import ctypes, sys; print(sys.version, sys.base_prefix)"],
                                        capture_output=True, text=True)
        if probe and probe.returncode == 0:
            found.setdefault(probe.stdout, path)
    return list(found.values())
