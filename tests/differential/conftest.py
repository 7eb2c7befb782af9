# SPDX-License-Identifier: Apache-2.0
"""A standing cluster of three servers for the comparisons."""
import os
import shutil
import subprocess

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
def local(tmp_path_factory):
    """A local directory that every user can enter."""
    directory = tmp_path_factory.mktemp("local")
    for above in (directory, *directory.parents):
        if above.stat().st_uid == os.getuid() and not above.stat().st_mode & 1:
            above.chmod(above.stat().st_mode | 0o11)
    yield str(directory / "files")
    shutil.rmtree(directory, ignore_errors=True)
