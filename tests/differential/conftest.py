# SPDX-License-Identifier: Apache-2.0
"""A standing cluster of three servers for the comparisons."""
import os
import shutil
import subprocess
import tempfile

import pytest
from support import MADFS

from pymadfs import cli


@pytest.fixture(scope="session")
def trio(tmp_path_factory):
    """The environment of programs on three servers; users other than this one can read the cluster file."""
    directory = tmp_path_factory.mktemp("trio")
    path = str(directory / "cluster")
    subprocess.run([*MADFS, "up", "--servers", "3", "--store", str(directory / "store"), "--cluster", path], check=True,
                   timeout=60)
    yield cli.preload_environment(path)
    subprocess.run([*MADFS, "down", "--cluster", path], check=True, timeout=60)


@pytest.fixture
def local():
    """A local directory that every user can enter; not one of pytest's, which closes those of all its sessions."""
    directory = tempfile.mkdtemp(prefix="madfs-differential-")
    os.chmod(directory, 0o755)
    yield f"{directory}/files"
    shutil.rmtree(directory, ignore_errors=True)
