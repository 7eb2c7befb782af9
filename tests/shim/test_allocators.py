# SPDX-License-Identifier: Apache-2.0
"""Programs with an allocator of their own, which is locked during a fork: allocator.c."""
import shutil
import subprocess
from pathlib import Path

import pytest
from support import ROOT
from test_neighbours import SYSTEM, good

from pymadfs.launch import LIBRARY

WHEN = {"first_use": 0, "constructor": 1, "none": 2}


@pytest.fixture(scope="module", params=WHEN)
def program(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("allocator") / request.param
    subprocess.run(["gcc", "-std=gnu11", "-O1", f"-DWHEN={WHEN[request.param]}", "-o", path,
                    ROOT / "tests" / "shim" / "allocator.c", "-lpthread"], check=True, timeout=60)
    return path


def check(on_mount, program, forks, **options):
    good(on_mount("sh", "-c", f"rm -f /madfs/handlers; {program} {forks}", **options))
    said = on_mount("cat", "/madfs/handlers").stdout
    assert sorted(said) == sorted("bpc" * forks)


def test_fork_while_threads_allocate(on_mount, program):
    check(on_mount, program, 15)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_fork_a_hundred_times(on_mount, program):
    for _ in range(100):
        check(on_mount, program, 15)


@pytest.mark.parametrize("name", ["libtcmalloc_minimal.so.4", "libjemalloc.so.2"])
@pytest.mark.parametrize("first", [False, True])
def test_fork_with_a_preloaded_allocator(on_mount, program, name, first):
    path = SYSTEM / name
    if not path.exists():
        pytest.skip(f"there is no {name}: package libjemalloc2 or libtcmalloc-minimal4")
    preload = f"{path}:{LIBRARY}" if first else f"{LIBRARY}:{path}"
    check(on_mount, program, 10, environment={"LD_PRELOAD": preload})


@pytest.mark.long
def test_cargo(on_mount, tmp_path):
    """rustc carries jemalloc, and starts the linker with fork()."""
    cargo = shutil.which("cargo") or shutil.which("cargo", path=Path.home() / ".cargo" / "bin")
    if not cargo:
        pytest.skip("there is no cargo")
    script = (f"cd /madfs && rm -rf hello && {cargo} new --quiet --vcs none hello && cd hello && "
              f"{cargo} build --offline --quiet && ./target/debug/hello && cd .. && rm -rf hello")
    done = on_mount("bash", "-c", script)
    if "rustup" in done.stderr:
        pytest.skip("cargo has no toolchain")
    good(done, "Hello, world!\n")
