# SPDX-License-Identifier: Apache-2.0
"""The ordinary Python API over the servers' real handlers."""

import ctypes
import errno
import io
import os
import stat
import subprocess
import sys

import pytest
from real_servers import RealServers

import pymadfs
from pymadfs.client import FileSystem
from pymadfs.config import Config


@pytest.fixture
def mount(tmp_path):
    config = Config({})
    config.chunk_size = 4096
    servers = RealServers(tmp_path / "stores")
    with pymadfs.Mount(
        FileSystem(servers, config, b"/madfs", lambda at, data: ctypes.memmove(at, data, len(data)))
    ) as mount:
        yield mount


def failure(code):
    return pytest.raises(OSError, match=os.strerror(code))


def test_bytes(mount):
    data = os.urandom(100_000)
    with mount.open("/a", "wb") as file:
        assert file.write(data) == len(data)
    assert mount.stat("a").st_size == len(data)
    with mount.open("a", "rb") as file:
        assert file.read() == data
        assert file.seek(-10, os.SEEK_END) == len(data) - 10 and file.read(99) == data[-10:]
    with mount.open(b"/a", "r+b") as file:
        file.seek(50_000)
        file.write(b"here")
        file.truncate(60_000)
    with mount.open("a", "rb", buffering=0) as raw:
        buffer = bytearray(70_000)
        assert raw.readinto(buffer) == 60_000 and buffer[50_000:50_004] == b"here"
        assert raw.read(1) == b"" and raw.tell() == 60_000
        raw.sync()
        with pytest.raises(io.UnsupportedOperation):
            raw.write(b"x")
        with pytest.raises(OSError):
            raw.seek(-1)
    with pytest.raises(ValueError, match="closed"):
        raw.read(1)


def test_text_and_appending(mount):
    with mount.open("t", "w", encoding="utf-8") as file:
        print("grüße", "two", sep="\n", file=file)
    for _ in range(2):
        with mount.open("t", "a", encoding="utf-8") as file:
            file.write("more\n")
    with mount.open("t", encoding="utf-8") as file:
        assert list(file) == ["grüße\n", "two\n", "more\n", "more\n"]
    with mount.open("t", "ab", buffering=0) as raw:
        raw.seek(0)
        assert raw.write(memoryview(b"end")) == 3 and raw.tell() == mount.stat("t").st_size
    with failure(errno.EEXIST):
        mount.open("t", "x")
    for mode, options in (("rw", {}), ("q", {}), ("rbt", {}), ("r", {"buffering": 0}), ("rb", {"encoding": "utf-8"})):
        with pytest.raises(ValueError):
            mount.open("t", mode, **options)


def test_names(mount):
    mount.mkdir("d", 0o750)
    assert stat.S_IMODE(mount.stat("d").st_mode) == 0o750
    mount.open("d/f", "w").close()
    mount.symlink("f", "d/l")
    mount.symlink("/etc", "out")
    assert mount.listdir() == ["d", "out"] and mount.listdir("d") == ["f", "l"] and mount.listdir(b"d/") == [b"f", b"l"]
    assert mount.readlink("d/l") == "f" and mount.readlink(b"d/l") == b"f"
    assert stat.S_ISLNK(mount.lstat("d/l").st_mode) and stat.S_ISREG(mount.stat("d/l").st_mode)
    mount.rename("d/f", "g")
    assert not mount.exists("d/l") and mount.exists("g") and mount.exists("/d/../g")
    mount.replace("g", "d/f")
    mount.truncate("d/l", 100)
    mount.chmod("d/f", 0o600)
    mount.chown("d/l", -1, 5)
    mount.chown("d/l", 6, -1, follow_symlinks=False)
    mount.utime("d/f", ns=(5, 7_000_000_001))
    found = mount.stat("d/f")
    assert (found.st_size, found.st_mode & 0o777, found.st_uid, found.st_gid) == (100, 0o600, 0, 5)
    assert (found.st_atime_ns, found.st_mtime_ns, found.st_mtime) == (5, 7_000_000_001, 7.000000001)
    assert mount.lstat("d/l").st_uid == 6
    mount.utime("d/f")
    assert mount.stat("d/f").st_mtime > 10**9
    mount.unlink("d/l")
    mount.remove("d/f")
    mount.rmdir("d")
    assert mount.statvfs()[0] > 0
    for call, code in (
        (lambda: mount.stat("none"), errno.ENOENT),
        (lambda: mount.open("/", "r"), errno.EISDIR),
        (lambda: mount.truncate("x", -1), errno.EINVAL),
        (lambda: mount.readlink("/"), errno.EINVAL),
        (lambda: mount.listdir("out"), errno.ENOTCONN),
        (lambda: mount.open("out/x", "w"), errno.ENOTCONN),
    ):
        with pytest.raises(OSError) as raised:
            call()
        assert raised.value.errno == code
    assert raised.value.filename == "out/x" and "/etc/x" in str(raised.value)


def test_the_package_is_light():
    code = "import sys; before = set(sys.modules); import pymadfs; print(*set(sys.modules) - before); pymadfs.Mount"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    assert done.stdout.split() == ["pymadfs"]
    with pytest.raises(AttributeError):
        _ = pymadfs.nothing


def test_connect_says_what_is_wrong(tmp_path):
    with pytest.raises(Exception, match="cannot read the cluster file"):
        pymadfs.connect(tmp_path / "none")
