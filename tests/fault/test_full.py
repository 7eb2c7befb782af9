# SPDX-License-Identifier: Apache-2.0
"""A disk that becomes full under the servers: who writes hears of it, nothing is lost, and removing files helps."""
import os
import subprocess
import sys

import pytest
from support import MADFS

SCRIPT = """
import ctypes, errno, os, sys, time
libc = ctypes.CDLL(None, use_errno=True)
libc.fallocate64.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
M = 1 << 20
def room(): s = os.statvfs("."); return s.f_bavail * s.f_frsize
def wait_for(condition):
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)
def content(number, length): return (b"%07d " % number) * (length // 8)
def attempt(call, *arguments):
    try: return call(*arguments)
    except OSError as error:
        assert error.errno == errno.ENOSPC, error
        return None
os.chdir(sys.argv[1])
s = os.statvfs(".")
assert 150 * M < s.f_blocks * s.f_frsize <= 160 * M and s.f_namemax == 255 and s.f_files >= s.f_ffree, s  # counted once
start = room()
with open("first", "wb") as file: file.write(content(0, 32 * M)); os.fsync(file.fileno())
taken = start - room()
assert 32 * M <= taken < 34 * M, taken
os.unlink("first"); wait_for(lambda: room() > start - 2 * M)

reserved = os.open("reserved", os.O_RDWR | os.O_CREAT)
assert libc.fallocate64(reserved, 0, 0, 8 * M) == 0
kept, refused = [], 0
for number in range(400):
    fd = os.open(f"f{number}", os.O_WRONLY | os.O_CREAT)
    data, done = content(number, M if number % 3 else 1600), 0
    while done < len(data):
        count = attempt(os.write, fd, data[done:])
        if count is None: break
        done += count
    assert os.fstat(fd).st_size == done, (number, done, os.fstat(fd).st_size)
    if done < len(data):
        log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for length in (M, 3 * M, 100):
            size = os.fstat(log).st_size
            written = attempt(os.write, log, content(number, length)) or 0
            assert os.fstat(log).st_size == size + written, (number, size, written)
        os.close(log)
    os.close(fd)
    kept.append(done)
    refused += done < len(data)
    if refused == 5: break
assert refused == 5 and sum(kept) > 80 * M, (refused, sum(kept))
more = os.open("more", os.O_RDWR | os.O_CREAT)
assert libc.fallocate64(more, 0, 0, 30 * M) == -1 and ctypes.get_errno() == errno.ENOSPC and os.fstat(more).st_size == 0
for at in range(0, 8 * M, M): assert os.pwrite(reserved, content(at, M), at) == M  # what was promised
for number, length in enumerate(kept):
    with open(f"f{number}", "rb") as file: assert file.read(length) == content(number, 2 * M)[:length], number
for number, length in enumerate(kept):  # nothing of what was refused shows behind the end
    os.truncate(f"f{number}", 2 * M)
    with open(f"f{number}", "rb") as file: assert not file.read()[length:].strip(b"\\0"), number
for number in range(len(kept)): os.unlink(f"f{number}")
os.unlink("log")
wait_for(lambda: room() > 60 * M)
with open("again", "wb") as file: file.write(content(7, 40 * M))
with open("again", "rb") as file: assert file.read() == content(7, 40 * M)
assert os.pread(reserved, 8, 3 * M) == content(3 * M, 8)
print("fine")
"""


# Processes that append to one file and make another one longer, while others fill the disk.
SEVERAL = """
import errno, os, pickle, random, sys
M, PROCESSES = 1 << 20, 6
os.chdir(sys.argv[1])
def writes(number):
    chance, done = random.Random(number), []
    log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    plain = os.open("plain", os.O_WRONLY | os.O_CREAT)
    rest = os.open(f"rest-{number}", os.O_WRONLY | os.O_CREAT)
    refusals = count = 0
    while refusals < 8:
        count += 1
        length = chance.choice((96, 5000, 300_000, M, 3 * M, 8 * M, 20 * M)) & ~7
        at = (count * PROCESSES + number) * 2 * M
        act = (number + count % 2) % 3
        try:
            if act == 0: done.append(("log", 0, os.write(log, (b"%02d%05d|" % (number, count)) * (length // 8))))
            elif act == 1: done.append(("plain", at, os.pwrite(plain, b"p" * min(length, 2 * M), at)))
            else: os.write(rest, b"r" * M)
        except OSError as error:
            assert error.errno == errno.ENOSPC, error
            refusals += 1
    return done
results = []
for number in range(PROCESSES):
    ours, theirs = os.pipe()
    if not os.fork():
        os.write(theirs, pickle.dumps(writes(number)))
        os._exit(0)
    os.close(theirs)
    results.append(ours)
done = []
for ours in results:
    with os.fdopen(ours, "rb") as file: done += pickle.load(file)
appended = sum(count for name, _, count in done if name == "log")
assert appended > M and os.stat("log").st_size == appended, (os.stat("log").st_size, appended)
with open("log", "rb") as file: assert b"\\0" not in file.read()
end = max(at + count for name, at, count in done if name == "plain")
assert os.stat("plain").st_size == end, (os.stat("plain").st_size, end)
print("fine")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")
@pytest.mark.parametrize("script", [SCRIPT, SEVERAL], ids=["one", "several"])
def test_a_full_disk_loses_nothing_and_is_left_again(tmp_path, script):
    """On a real file system of 160 MiB, in a mount namespace of its own."""
    small = tmp_path / "small"
    small.mkdir()
    (tmp_path / "script.py").write_text(script)
    command = " ".join([*MADFS, "run", "--servers", "3", "--store", f"{small}/store", "--", sys.executable,
                        f"{tmp_path}/script.py", "/madfs"])
    done = subprocess.run(["unshare", "-m", "sh", "-c", f"mount -t tmpfs -o size=160m none {small} && {command}"],
                          text=True, capture_output=True, timeout=120)
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip("this container may not mount: " + done.stderr.strip())
    assert done.stdout == "fine\n", done.stderr
