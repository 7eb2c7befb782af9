# SPDX-License-Identifier: Apache-2.0
"""A client is closed while other threads are inside calls: they end with a clear error, and nothing crashes."""
import sys

import pytest
from support import call

SCRIPT = """
import errno, os, sys, threading
import pymadfs

DATA = b"x" * (3 << 20)

def stat(mount, name):
    mount.stat("/")

def names(mount, name):
    mount.mkdir(name); mount.rmdir(name)

def write(mount, name):
    with mount.open(name, "wb", buffering=0) as file:
        file.write(DATA)

def read(mount, name):
    with mount.open("data", "rb", buffering=0) as file:
        file.readinto(bytearray(len(DATA)))

def repeat(action, mount, name, ready, errors):
    try:
        while True:
            action(mount, name)
            ready.release()
    except OSError as error:
        errors.append((error.errno, str(error)))
    ready.release()

with pymadfs.connect(sys.argv[1]) as mount, mount.open("data", "wb") as file:
    file.write(DATA)
for turn in range(int(sys.argv[2])):
    mount, ready, errors = pymadfs.connect(sys.argv[1]), threading.Semaphore(0), []
    actions = [stat, names, write, read, stat, read]
    threads = [threading.Thread(target=repeat, args=(action, mount, f"{os.getpid()}-{turn}-{number}", ready, errors))
               for number, action in enumerate(actions)]
    for thread in threads:
        thread.start()
    for _ in range(turn % 7):
        ready.acquire()
    mount.close()
    for thread in threads:
        thread.join()
    assert [code for code, _ in errors] == [errno.ESHUTDOWN] * len(actions), errors
    try:
        mount.listdir()
    except OSError as error:
        assert error.errno == errno.ESHUTDOWN and "closed" in str(error), error
    else:
        raise SystemExit("a call after close() was answered")
    mount.close()
print("done")
"""


@pytest.mark.parametrize("turns", [12, pytest.param(300, marks=pytest.mark.long)])
def test_close_while_threads_are_inside(cluster_file, turns):
    done = call([sys.executable, "-c", SCRIPT, cluster_file, turns], timeout=250)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
