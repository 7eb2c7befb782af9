# SPDX-License-Identifier: Apache-2.0
"""The built shim beside a runtime in plain C, and programs to run under them."""
import json
import shutil
import subprocess
from pathlib import Path

import pytest
from support import ROOT, call

import pymadfs

HERE = Path(__file__).parent
LIBRARY = Path(pymadfs.__file__).parent / "_lib" / "libmadfs_intercept.so"
STRICT = ["-std=gnu11", "-D_GNU_SOURCE", "-O2", "-g", "-Wall", "-Wextra", "-Werror"]


def compile_c(output, *sources, flags=()):
    """Path of what gcc makes of ``sources``."""
    command = ["gcc", *STRICT, *flags, "-o", output, *sources, "-lpthread"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return output


@pytest.fixture(scope="session")
def compiler():
    """compile_c()."""
    return compile_c


@pytest.fixture(scope="session")
def libraries(tmp_path_factory):
    """Directory with the shim and the fake runtime: the shim looks for the runtime beside itself."""
    assert LIBRARY.is_file(), f"{LIBRARY} is missing: make build"
    directory = tmp_path_factory.mktemp("libraries")
    shutil.copy(LIBRARY, directory)
    compile_c(directory / "libmadfs_runtime.so", HERE / "fake_runtime.c", flags=["-fPIC", "-shared"])
    return directory


@pytest.fixture(scope="session")
def programs(tmp_path_factory):
    """Directory with the compiled test programs: sys, host."""
    directory = tmp_path_factory.mktemp("programs")
    for name in ("sys", "host"):
        compile_c(directory / name, HERE / f"{name}.c")
    return directory


@pytest.fixture
def variables(libraries, tmp_path):
    """The environment of a process under the shim, with a fake file system of its own."""
    return {"LD_PRELOAD": str(libraries / LIBRARY.name), "FAKE_STORE": str(tmp_path / "store"), "MADFS_STRICT": "1",
            "MADFS_VERSION": pymadfs.__version__}


@pytest.fixture
def run(variables):
    """Runs a program under the shim; returns what subprocess.run does."""
    def run(*argv, environment=None, **options):
        return call(argv, environment={**variables, **(environment or {})}, **options)

    return run


@pytest.fixture
def bash(run):
    """Output of a bash script under the shim, which must succeed."""
    def bash(script, **options):
        done = run("bash", "-c", script, **options)
        assert (done.returncode, done.stderr) == (0, ""), done
        return done.stdout

    return bash


@pytest.fixture
def system(run, programs):
    """Makes system calls (sys.c) under the shim; their results."""
    def system(line, shim=True, **options):
        words = line.split()
        done = run(programs / "sys", *words, **options) if shim else call([programs / "sys", *words], **options)
        assert (done.returncode, done.stderr) == (0, ""), done
        return [json.loads(text) for text in done.stdout.splitlines()]

    return system


@pytest.fixture(scope="session")
def sources():
    """The shim's own sources that a test build needs."""
    return ROOT / "intercept"


@pytest.fixture(scope="session")
def door(tmp_path_factory, sources):
    """The rewriting code as a library for ctypes: decoder.c's functions."""
    import ctypes

    flags = ["-fPIC", "-shared", "-fvisibility=hidden", "-mgeneral-regs-only", "-ffreestanding", f"-I{sources}",
             f"-I{sources}/x86_64"]
    files = [HERE / "decoder.c", sources / "raw.c", *(sources / "x86_64" / name for name in ("decode.c", "rewrite.c"))]
    directory = tmp_path_factory.mktemp("door")
    # entry.S has the scanning loops; its madfs_entry gives way to the one of decoder.c.
    text = (sources / "x86_64" / "entry.S").read_text().replace("madfs_entry", "unused_entry")
    (directory / "entry.S").write_text(text.replace("call    madfs_filter", "ud2"))
    (directory / "process.c").write_text("int madfs_memory_owner(void) { return 1; }\nvoid madfs_fault(void) {}\n")
    files += [directory / "entry.S", directory / "process.c"]
    return ctypes.CDLL(str(compile_c(directory / "door.so", *files, flags=flags)))
