# SPDX-License-Identifier: Apache-2.0
"""A process that becomes another user goes on with what it has mapped, reads and writes what others map, and maps
anew."""
import os
import subprocess
import sys

import pytest

SCRIPT = """
import mmap, os, sys
top = sys.argv[1]
os.mkdir(top); os.chmod(top, 0o777); os.chdir(top)
for name in ("mine", "other"):
    with open(name, "wb") as file:
        file.write(b"." * 8192)
    os.chmod(name, 0o666)

def leave():
    os.setgroups([]); os.setgid(65534); os.setuid(65534)

def in_child(work):
    child = os.fork()
    if child == 0:
        work()
        sys.exit(0)
    print(os.waitpid(child, 0)[1], flush=True)

def inherited():
    leave()
    shared[5:8] = b"new"
    shared.flush()
    with open("other", "r+b") as file:
        print(file.read(5), file.write(b"more"), os.pread(fd, 9, 0), os.pwrite(fd, b"zz", 20), flush=True)
    shared.close()

def anew():
    leave()
    with open("other", "r+b") as file:
        again = mmap.mmap(file.fileno(), 0)
        again[:4] = b"anew"
        print(os.pread(file.fileno(), 12, 0), flush=True)
        in_child(lambda: again.__setitem__(slice(4, 8), b"fork"))
        print(again[:12], flush=True)

in_child(anew)
fd = os.open("mine", os.O_RDWR)
shared = mmap.mmap(fd, 8192)
shared[:5] = b"start"
in_child(inherited)
print(shared[:9])
shared.close()
print(os.pread(fd, 30, 0), open("other", "rb").read(16))
for _ in range(20):
    os.seteuid(65534); first = open("other", "rb").read(3); os.seteuid(0)
    assert first == open("mine", "rb").read(0) + open("other", "rb").read(3)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_as_locally(runner, everybodys):
    found = []
    for directory, environment in ((f"{everybodys}/d", runner.plain), (f"{runner.mount}/maps-of-users", runner.loaded)):
        done = subprocess.run([sys.executable, "-c", SCRIPT, directory], env=environment, timeout=60,
                              capture_output=True, text=True, check=False)
        found.append((done.returncode, done.stdout, done.stderr))
    assert found[0][0] == 0, found[0]
    assert found[1] == found[0]
