# SPDX-License-Identifier: Apache-2.0
"""Servers that are stopped, that die in the middle of bulk data, that have few descriptors or a store without leave to
write: what is acknowledged is there, what fails says so, and nobody hangs."""
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from support import MADFS, call
from test_servers import kill, standing

from pymadfs import cluster

assert standing  # a fixture

MANY = 600
FILES = f"""
import os, sys
os.chdir(sys.argv[1])
content = lambda number: b"%07d\\n" % number * 2000
for number in range({MANY}):
    with open(f"f{{number}}", "wb") as file: file.write(content(number))
for number in range({MANY}):
    with open(f"f{{number}}", "rb") as file: assert file.read() == content(number), number
print("whole")
"""

# Writes a file of 64 MiB again and again, each time with another byte, and says which it was; at the first error, how
# much of that turn was acknowledged.
BULK = """
import os, sys, time
fd = os.open(sys.argv[1] + "/bulk", os.O_CREAT | os.O_RDWR)
for turn in range(1, 250):
    began = time.monotonic()
    done = 0
    try:
        while done < 64 << 20: done += os.pwrite(fd, bytes((turn,)) * ((64 << 20) - done), done)
    except OSError as error:
        print("error", error.errno, time.monotonic() - began, done, flush=True)
        break
    print("written", turn, flush=True)
"""

READ = """
import sys
found = []
with open(sys.argv[1] + "/bulk", "rb") as file:
    while block := file.read(1 << 19):
        assert len(set(block)) == 1, "a torn chunk"
        found.append(block[0])
print(*found)
"""


def test_a_server_with_few_descriptors():
    """More files than the server may open; the limit is the keeper's, so servers of their own."""
    limited = ["sh", "-c", 'ulimit -n 256; exec "$@"', "sh"]
    done = call([*limited, *MADFS, "run", "--servers", "2", "--", sys.executable, "-c", FILES, "/madfs"], timeout=120)
    assert done.stdout == "whole\n", done.stderr


def stop_and_go_on(standing, seconds):
    path, _, environment = standing
    script = ("import os, sys\nos.chdir(sys.argv[1])\nos.listdir('.')\n"  # which meets all servers
              "print('begins', flush=True)\nsys.stdin.readline()\n"
              "for i in range(20): open(f'f{i}', 'x').write('x' * 5000 * i)\n"
              "for i in range(20): assert open(f'f{i}').read() == 'x' * 5000 * i\nprint('done')")
    client = subprocess.Popen([sys.executable, "-c", script, environment["MADFS_MOUNT"]], env=environment, text=True,
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    pid = cluster.read(path).servers[1].pid
    try:
        assert client.stdout.readline() == "begins\n"
        os.kill(pid, signal.SIGSTOP)
        client.stdin.write("go\n")
        client.stdin.flush()
        with pytest.raises(subprocess.TimeoutExpired):
            client.wait(seconds)
        os.kill(pid, signal.SIGCONT)
        assert client.communicate(timeout=30)[0] == "done\n"
    finally:
        os.kill(pid, signal.SIGCONT)
        client.kill()
        client.communicate()


def test_a_stopped_server_is_waited_for(standing):
    stop_and_go_on(standing, 2)


@pytest.mark.long
def test_a_server_that_is_stopped_for_long_is_waited_for(standing):
    stop_and_go_on(standing, 10)


def test_a_server_dies_within_bulk_data(standing):
    """EIO in time; afterwards each chunk is of one write: of the last whole one, or of the one that failed."""
    path, store, environment = standing
    writer = subprocess.Popen([sys.executable, "-c", BULK, environment["MADFS_MOUNT"]], env=environment, text=True,
                              stdout=subprocess.PIPE)
    assert writer.stdout.readline() == "written 1\n"
    killed = time.monotonic()
    kill(path, 1)
    lines = writer.communicate(timeout=60)[0].splitlines()
    assert time.monotonic() - killed < 20
    assert lines[-1].startswith("error 5") and float(lines[-1].split()[2]) < 5, lines
    last = len(lines)  # acknowledged: the first, and all but the error
    subprocess.run([*MADFS, "up", "--cluster", path, "--store", store], check=True, timeout=60)
    done = subprocess.run([sys.executable, "-c", READ, environment["MADFS_MOUNT"]], env=environment, text=True,
                          capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    chunks = [int(text) for text in done.stdout.split()]
    assert len(chunks) == 128 and set(chunks) <= {last, last + 1}
    acknowledged = int(lines[-1].split()[3]) >> 19
    assert set(chunks[:acknowledged]) <= {last + 1}
    assert call([*MADFS, "fsck", "--cluster", path]).returncode == 0


def test_a_store_that_is_removed_under_the_servers(standing):
    """What cannot be stored gets EIO and nothing else; what is in the database goes on; the servers end in order."""
    path, store, environment = standing
    subprocess.run(["sh", "-c", "echo small > $MADFS_MOUNT/small"], env=environment, check=True, timeout=30)
    for number in range(2):
        shutil.move(f"{store}/server-{number}/data", f"{store}/data-{number}")
    script = ("import os, sys\nos.chdir(sys.argv[1])\nfor number in range(8):\n"
              "    try: os.write(os.open(f'f{number}', os.O_CREAT | os.O_WRONLY), b'x' * 20000)\n"
              "    except OSError as error: print(error.errno)\nprint(open('small').read())")
    done = subprocess.run([sys.executable, "-c", script, environment["MADFS_MOUNT"]], env=environment, text=True,
                          capture_output=True, timeout=60)
    assert done.stdout == "5\n" * 8 + "small\n\n", done.stderr
    for number in range(2):
        shutil.move(f"{store}/data-{number}", f"{store}/server-{number}/data")
        with open(f"{store}/server-{number}.log") as file:
            assert file.read().count("were removed under the server") == 1
