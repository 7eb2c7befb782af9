# SPDX-License-Identifier: Apache-2.0
"""Locks when a server dies and comes back: their holders have them still, nobody else gets them, who waits goes on."""
import subprocess
import sys

import pytest
from test_servers import kill, standing

assert standing  # a fixture

HOLDER = """
import fcntl, sys
file = open(sys.argv[1], "r+")
getattr(fcntl, sys.argv[2])(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.readline()
getattr(fcntl, sys.argv[2])(file, fcntl.LOCK_UN)
print("released", flush=True)
sys.stdin.read()
"""

TRY = """
import fcntl, sys
try:
    getattr(fcntl, sys.argv[2])(open(sys.argv[1], "r+"), fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError as error:
    print(error.errno)
else:
    print("got it")
"""


def python(environment, code, *arguments):
    return subprocess.Popen([sys.executable, "-c", code, *arguments], env=environment, stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE, text=True)


def end(process):
    if process.poll() is None:
        process.kill()
        process.communicate(timeout=60)


def both_restart(path, store, meanwhile=lambda: None):
    """One after the other, so that they come back where their clients know them; ``meanwhile`` happens when one is
    away, then when the other is."""
    for number in (0, 1):
        kill(path, number)
        meanwhile()
        subprocess.run(["madfs", "up", "--servers", "2", "--cluster", path, "--store", store], check=True, timeout=60)


@pytest.mark.parametrize("kind", ["flock", "lockf"])
def test_a_server_that_comes_back_knows_the_holders(standing, kind):
    path, store, environment = standing
    file = environment["MADFS_MOUNT"] + "/f"
    subprocess.run(["touch", file], env=environment, check=True, timeout=60)
    holders = [python(environment, HOLDER, file, kind)]
    assert holders[0].stdout.readline() == "held\n"
    both_restart(path, store)
    trial = python(environment, TRY, file, kind)
    assert trial.communicate(timeout=60)[0] == "11\n"
    holders.append(python(environment, HOLDER, file, kind))
    print("now", file=holders[0].stdin, flush=True)
    assert holders[0].stdout.readline() == "released\n"
    assert holders[1].stdout.readline() == "held\n"
    both_restart(path, store, lambda: end(holders[1]))
    holders.append(python(environment, HOLDER, file, kind))
    assert holders[2].stdout.readline() == "held\n"
    for holder in (holders[0], holders[2]):
        holder.communicate(timeout=60)
