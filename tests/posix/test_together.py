# SPDX-License-Identifier: Apache-2.0
"""One file in the hands of several processes, each with a client of its own."""
import contextlib
import json
import random
import signal
import subprocess
import sys

import pytest

APPENDER = """
import os, sys
path, letter, count, size = sys.argv[1], sys.argv[2].encode(), int(sys.argv[3]), int(sys.argv[4])
fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
print("ready", flush=True); sys.stdin.readline()
for number in range(count):
    record = (letter + b"%08d" % number) * (size // 9 + 1)
    assert os.write(fd, record[:size]) == size
    if number == 5: print("under way", flush=True)
"""

# Does what it is told and says what came of it: [call, number, ...] and back a number, text or errno.
WORKER = """
import ctypes, errno, json, os, sys, zlib
libc = ctypes.CDLL(None, use_errno=True)
libc.fallocate64.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
adds = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND)
def data(seed, length): return (b"%d," % seed * (length // 2 + 1))[:length]
def extents():
    found, at = 0, 0
    while True:
        try:
            begin = os.lseek(fd, at, os.SEEK_DATA)
            at = os.lseek(fd, begin, os.SEEK_HOLE)
        except OSError: return found
        found += len(os.pread(fd, at - begin, begin).replace(b"\\0", b""))
def do(name, *a):
    if name == "write": return os.pwrite(fd, data(*a[1:]), a[0])
    if name == "append": return os.write(adds, data(*a))
    if name == "read": return zlib.crc32(os.pread(fd, a[1], a[0]))
    if name == "truncate": return os.ftruncate(fd, *a)
    if name == "empty": return os.close(os.open(sys.argv[1], os.O_WRONLY | os.O_TRUNC))
    if name == "fallocate": return libc.fallocate64(fd, *a) and ctypes.get_errno()
    if name == "size": return os.fstat(fd).st_size
    if name == "copy": return os.copy_file_range(fd, fd, a[2], a[0], a[1])
    if name == "extents": return extents()
    if name == "fsync": return os.fsync(fd)
for line in sys.stdin:
    try: result = do(*json.loads(line))
    except OSError as error: result = errno.errorcode[error.errno]
    print(json.dumps(result), flush=True)
"""


@contextlib.contextmanager
def processes(commands, environment):
    """The running commands, with pipes to and from each; whatever happens, they end."""
    started = [subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
               for command in commands]
    try:
        yield started
    finally:
        for process in started:
            if process.poll() is None and sys.exc_info()[0]:
                process.kill()
            process.communicate(timeout=60)


def content(runner, path):
    return subprocess.run(["cat", path], env=runner.loaded, check=True, capture_output=True, timeout=60).stdout


def append_together(runner, path, size, count, victim):
    """Records of ``size`` bytes by four processes, of which ``victim`` is killed; returns the file."""
    letters = "abcd"
    commands = [[sys.executable, "-c", APPENDER, path, letter, str(count), str(size)] for letter in letters]
    with processes(commands, runner.loaded) as started:
        for process in started:
            assert process.stdout.readline() == "ready\n"
        for process in started:
            process.stdin.write("go\n")
            process.stdin.flush()
        if victim is not None:
            assert started[victim].stdout.readline() == "under way\n"
            started[victim].send_signal(signal.SIGKILL)
    assert all(process.returncode == 0 for process in started if victim is None or process is not started[victim])
    return content(runner, path)


@pytest.mark.parametrize("size, count", [(9, 300), (1000, 200), (47008, 30), (700_000, 8)])
@pytest.mark.parametrize("victim", [None, 2])
def test_appended_records_are_whole(runner, size, count, victim):
    path = f"{runner.mount}/appended-{size}-{victim}"
    found = append_together(runner, path, size, count, victim)
    assert len(found) % size == 0
    seen: dict = {letter: [] for letter in b"abcd"}
    for at in range(0, len(found), size):
        record = found[at:at + size]
        assert record == (record[:9] * (size // 9 + 1))[:size] and record[0] in seen
        seen[record[0]].append(int(record[1:9]))
    for letter, numbers in seen.items():
        if victim is None or letter != b"abcd"[victim]:
            assert numbers == list(range(count))
        else:
            assert numbers == list(range(len(numbers))) and len(numbers) >= 6  # what it was told was written is there
    subprocess.run(["rm", path], env=runner.loaded, check=True, timeout=30)


FOLLOWED = """
import os, sys
path, how, sizes = sys.argv[1], sys.argv[2], [int(size) for size in sys.argv[3].split(",")]
fd = os.open(path, os.O_WRONLY | os.O_CREAT | (os.O_APPEND if how == "append" else 0))
print("ready", flush=True); sys.stdin.readline()
for number in range(int(sys.argv[4])):
    size = sizes[number % len(sizes)]
    assert os.write(fd, b"x" * size) == size
"""

FOLLOWER = """
import os, sys
fd, looks = os.open(sys.argv[1], os.O_RDONLY | os.O_CREAT), 0
print("ready", flush=True)
os.set_blocking(0, False)
ended = False
while not ended:
    try: ended = os.read(0, 1) is not None
    except BlockingIOError: pass
    size = os.fstat(fd).st_size
    begin = max(0, size - 3000000)
    found = os.pread(fd, 3100000, begin)
    assert len(found) >= size - begin and found.count(b"x") == len(found), (begin, size, found.count(b"\\0"))
    looks += 1
print(looks, os.fstat(fd).st_size, flush=True)
"""


@pytest.mark.parametrize("how, sizes, writers, count", [("append", (9, 1000, 47008), 3, 250),
                                                        ("append", (700_000, 1 << 21), 2, 40),
                                                        ("write", (47008, 700_000, 1 << 21, 9), 1, 160)])
def test_who_follows_a_file_sees_what_is_written(runner, how, sizes, writers, count):
    """Never zeros that become bytes a moment later."""
    path = f"{runner.mount}/followed"
    wrote = sum(sizes[number % len(sizes)] for number in range(count)) * writers
    command = [sys.executable, "-c", FOLLOWED, path, how, ",".join(map(str, sizes)), str(count)]
    with processes([[sys.executable, "-c", FOLLOWER, path]], runner.loaded) as (follower,):
        assert follower.stdout.readline() == "ready\n"
        with processes([command] * writers, runner.loaded) as started:
            for process in started:
                assert process.stdout.readline() == "ready\n"
            for process in started:
                process.stdin.write("go\n")
                process.stdin.flush()
        assert all(process.returncode == 0 for process in started)
        follower.stdin.write("!")
        follower.stdin.flush()
        looks, size = follower.stdout.readline().split()
    assert int(size) == wrote and int(looks) > 1
    subprocess.run(["rm", path], env=runner.loaded, check=True, timeout=30)


END = 3 << 20


def action(chance):
    offset = chance.choice((chance.randrange(END), chance.randrange(4096), chance.randrange(6) << 19))
    length = chance.choice((1, 100, 4096, 47008, 1 << 19, chance.randrange(1, 1 << 21)))
    name = chance.choice(("write", "write", "write", "append", "read", "truncate", "fallocate", "fallocate", "copy",
                          "size", "fsync", "empty" if chance.random() < 0.2 else "read"))
    match name:
        case "write":
            return name, offset, chance.randrange(1000), length
        case "append":
            return name, chance.randrange(1000), min(length, 100_000)
        case "read":
            return name, offset, length
        case "truncate":
            return name, offset
        case "fallocate":
            return name, chance.choice((0, 1, 3, 3, 16, 17)), offset, length
        case "copy":
            return name, offset, chance.randrange(END), length
    return (name,)


def play(runner, directory, seed, steps):
    """The same random calls by three processes on the mount, in turns, and by one on a local file."""
    chance = random.Random(seed)
    path = f"{runner.mount}/together-{seed}"
    with (processes([[sys.executable, "-c", WORKER, path]] * 3, runner.loaded) as ours,
          processes([[sys.executable, "-c", WORKER, f"{directory}/{seed}"]], runner.plain) as local):
        for step in range(steps):
            for call in (action(chance), ("read", 0, 2 * END), ("size",), ("extents",)):
                results = []
                for process in (chance.choice(ours), local[0]):
                    process.stdin.write(json.dumps(call) + "\n")
                    process.stdin.flush()
                    results.append(process.stdout.readline())
                assert results[0] == results[1], f"seed {seed}, step {step}: {call}"
    subprocess.run(["rm", path], env=runner.loaded, check=True, timeout=30)


@pytest.mark.parametrize("seed", range(3))
def test_random_calls_by_several_processes(runner, tmp_path, seed):
    play(runner, tmp_path, seed, 40)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100, 130))
def test_random_calls_by_several_processes_long(runner, tmp_path, seed):
    play(runner, tmp_path, seed, 200)
