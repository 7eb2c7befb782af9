# SPDX-License-Identifier: Apache-2.0
"""How many requests the system calls of a program cost: the budget of the design, counted by the servers themselves
under the shim.  tests/unit/test_budget.py has more calls, and what servers ask of each other."""
import subprocess
import sys

import pytest
from flatbuffers import flexbuffers

from pymadfs import cluster, rpc
from pymadfs.config import Config
from pymadfs.ops import STATUS

# Nobody waits for these: what became of times and openings is told later.
BEHIND = {"release", "accessed", "dirinfo", "times", "touch", "status", "groups", "held"}

# Each line that comes is executed; then it says so.
PROGRAM = r"""
import os, sys
os.chdir(sys.argv[1])
files = {}
def make(name, size=0):
    fd = os.open(name, os.O_CREAT | os.O_RDWR, 0o644)
    if size: assert os.write(fd, b"x" * size) == size
    os.close(fd)
for number in range(60): make(f"warm-{number}"); make(f"sub/warm-{number}")
print("ready", flush=True)
for line in sys.stdin:
    exec(line)
    print("done", flush=True)
"""

CALLS = [
    ("make('f')", {"open": 1}),
    ("os.stat('f')", {"lookup": 1}),
    ("os.access('f', os.R_OK)", {"lookup": 1}),
    ("os.chmod('f', 0o600)", {"setattr": 1}),
    ("os.utime('f')", {"setattr": 1}),
    ("os.truncate('f', 10)", {"setattr": 1}),
    ("os.close(os.open('f', os.O_RDWR))", {"open": 1}),
    ("os.close(os.open('f', os.O_RDWR | os.O_CREAT | os.O_TRUNC))", {"open": 1}),
    ("make('f', 100)", {"open": 1, "write": 1}),
    ("fd = os.open('f', os.O_RDONLY); assert len(os.read(fd, 4096)) == 100; os.close(fd)", {"open": 1}),
    ("files['f'] = os.open('f', os.O_RDWR)", {"open": 1}),
    ("os.lseek(files['f'], 0, os.SEEK_SET)", {}),
    ("os.fstat(files['f'])", {"getattr": 1}),
    ("os.pwrite(files['f'], b'y' * 4096, 0)", {"write": 1}),
    ("os.pread(files['f'], 4096, 0)", {"read": 1}),
    ("os.fsync(files['f'])", {"fsync": 1}),
    ("os.ftruncate(files['f'], 5)", {"setattr": 1}),
    ("os.fchmod(files['f'], 0o644)", {"setattr": 1}),
    ("os.close(files.pop('f'))", {}),
    ("os.symlink('f', 'l')", {"symlink": 1}),
    ("os.readlink('l')", {"lookup": 1}),
    ("os.lstat('l')", {"lookup": 1}),
    ("os.unlink('l')", {"unlink": 1}),
    ("os.unlink('f')", {"unlink": 1}),
    ("make('r'); os.rename('r', 'sub/r'); os.unlink('sub/r')", None),
]


@pytest.fixture
def asked(standing):
    """``(environment, function)``: what the servers were asked since it was last called, by name."""
    description = cluster.read(standing)
    client = rpc.Client(description, Config())
    before = {}

    def since():
        nonlocal before
        now = {}
        for server in range(client.servers):
            _, tail = client.call(server, STATUS)
            for name, count in flexbuffers.Loads(tail)["operations"].items():
                now[name] = now.get(name, 0) + count
        found = {name: count - before.get(name, 0) for name, count in now.items() if name not in BEHIND}
        before = now
        return {name: count for name, count in found.items() if count}

    yield since
    client.close()


def test_what_system_calls_cost(runner, asked):
    top = f"{runner.mount}/requests"
    subprocess.run(["mkdir", "-p", f"{top}/sub"], env=runner.loaded, check=True, timeout=30)
    program = subprocess.Popen([sys.executable, "-S", "-E", "-c", PROGRAM, top], env=runner.loaded, text=True,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert program.stdout.readline() == "ready\n"
        for line, expected in CALLS:
            asked()
            program.stdin.write(line + "\n")
            program.stdin.flush()
            assert program.stdout.readline() == "done\n", line
            found = asked()
            if expected is None:  # a rename: one request, and one between the servers where they are two
                install = found.pop("install", 0) + found.pop("count", 0)
                assert found == {"open": 1, "rename": 1, "unlink": 1} and install <= 2, (line, found)
            else:
                assert found == expected, line
    finally:
        program.kill()
        program.communicate()
    subprocess.run(["rm", "-r", top], env=runner.loaded, check=True, timeout=30)
