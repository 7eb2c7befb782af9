# SPDX-License-Identifier: Apache-2.0
"""What a program starts with: reading ELF files, and stages that were abandoned."""
import fcntl
import os
import shutil
import subprocess

import fake_shim
import pytest

fake_shim.install()

from pymadfs.syscalls import startup  # noqa: E402


def test_paths():
    assert startup.normal(b"/a//b/./../c/") == b"/a/c"
    assert startup.normal(b"/../..") == b"/"
    assert (startup.above(b"/a/b"), startup.above(b"/a")) == (b"/a", b"/")


def test_object(tmp_path):
    """Names, search paths and the loader, and that copies can be told of others."""
    (tmp_path / "empty.c").write_text("int main(void) { return 0; }")
    library, program = tmp_path / "dir" / "lib.so", tmp_path / "program"
    library.parent.mkdir()
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, tmp_path / "empty.c"], check=True)
    subprocess.run(["gcc", "-o", program, tmp_path / "empty.c", "-Wl,--no-as-needed", library,
                    "-Wl,--enable-new-dtags,-rpath,$ORIGIN/x:/y"], check=True)
    with open(program, "r+b", buffering=0) as file:
        item = startup.Object(file.fileno())
        assert (item.runpath, item.rpath) == (b"$ORIGIN/x:/y", b"") and item.interpreter.startswith(b"/lib")
        (name, at, value), *_ = item.needed
        assert name == os.fsencode(library)
        item.need_by_name(at, value, name)
        loader = tmp_path / "loader"
        shutil.copy(os.fsdecode(item.interpreter), loader)
        item.interpret_by(os.fsencode(loader))
        again = startup.Object(file.fileno())
        assert again.needed[0][0] == b"lib.so" and again.interpreter == os.fsencode(loader)
    found = {**os.environ, "LD_LIBRARY_PATH": str(library.parent)}
    assert subprocess.run([program], env=found, timeout=30, check=False).returncode == 0


@pytest.mark.parametrize("data", [b"", b"#!/bin/sh\n", b"\x7fELF\1\1" + bytes(60), b"\x7fELF\2\1" + bytes(58)])
def test_what_is_no_object(tmp_path, data):
    (tmp_path / "file").write_bytes(data)
    with open(tmp_path / "file", "rb") as file, pytest.raises(ValueError):
        startup.Object(file.fileno())


def test_cache_of_the_loader_is_read():
    path = startup.cached().get(b"libc.so.6")
    assert path is None or os.path.exists(path)


def test_abandoned_stages_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(startup, "ABANDONED_S", -1)
    for name in ("stage-1-1", "stage-1-2", "other"):
        (tmp_path / name / "lib" / "deep").mkdir(parents=True)
        (tmp_path / name / "lib" / "lib.so").write_text("x")
    held = os.open(tmp_path / "stage-1-2", os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_SH)
        startup.sweep(os.fsencode(tmp_path))
        assert sorted(os.listdir(tmp_path)) == ["other", "stage-1-2"]
    finally:
        os.close(held)
    monkeypatch.setattr(startup, "ABANDONED_S", 1000)
    startup.sweep(os.fsencode(tmp_path))
    assert sorted(os.listdir(tmp_path)) == ["other", "stage-1-2"]
