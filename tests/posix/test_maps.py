# SPDX-License-Identifier: Apache-2.0
"""Mappings of files do on the mount what they do on a local directory: maps.c."""
import re
import subprocess
from pathlib import Path

import pytest
from support import TIMEOUT_S

SOURCE = Path(__file__).with_name("maps.c")
NAMES = re.findall(r'{"(\w+)", \w+}', SOURCE.read_text())


@pytest.fixture(scope="session")
def maps(tmp_path_factory):
    path = tmp_path_factory.mktemp("maps") / "maps"
    subprocess.run(["gcc", "-std=gnu11", "-O1", "-w", "-o", path, SOURCE], check=True, timeout=TIMEOUT_S)
    return path


def test_all_of_them_are_found():
    assert len(NAMES) == SOURCE.read_text().count("static void ") - len(("caught", "say", "result", "xsay", "content",
                                                                          "try", "wait_for"))


@pytest.mark.parametrize("name", NAMES)
def test_maps(runner, maps, name):
    assert runner.same(f"{maps} {name} && echo done").endswith(b"done\n")


def test_nothing_stays_in_memory(runner, maps):
    """Images go with the last mapping of a file, also when somebody was killed."""
    from pymadfs import cluster

    runner.same(f"{maps} killed; {maps} ends; {maps} children")
    description = cluster.read(runner.loaded["MADFS_CLUSTER"])
    shared = Path(cluster.shared_directory(description.secret).decode())
    assert sorted(path.name for path in shared.iterdir()) == ["live"]
    assert (shared / "live").read_bytes()[:4] == bytes(4)
    assert shared.stat().st_mode & 0o777 == 0o700


def test_library_on_the_mount(runner):
    """The linker maps what it writes; the loader maps it to be executed."""
    runner.same("printf 'int f(void){return 4;}' > a.c; gcc -shared -fPIC -o libf.so a.c; "
                "python3 -c 'import ctypes; f = ctypes.CDLL(\"./libf.so\"); print(f.f()); "
                "print(open(\"/proc/self/maps\").read().count(\"r-xp\") > 1)'; rm libf.so")
