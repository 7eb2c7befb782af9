# SPDX-License-Identifier: Apache-2.0
"""Locks under race, a hundred times: nobody is in twice, and who is killed on the way leaves nothing behind."""
import subprocess
import sys

import pytest
from support import TIMEOUT_S, clean_environment
from test_soak import standing

from pymadfs import cli

assert standing  # a fixture

pytestmark = pytest.mark.long

ROUNDS = 100

# Adds one to a number under a lock; some are killed while they hold it or wait for it, which adds nothing.
RACER = """
import fcntl, os, signal, sys
path, kind, victim = sys.argv[1:4]
with open(path, "r+") as file:
    if victim == "waiting":
        signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        signal.setitimer(signal.ITIMER_REAL, 0.01)
    getattr(fcntl, kind)(file, fcntl.LOCK_EX)
    if victim != "no":
        os.kill(os.getpid(), signal.SIGKILL)
    number = int(file.read() or 0)
    file.seek(0)
    file.write(str(number + 1))
"""


@pytest.mark.parametrize("kind", ["flock", "lockf"])
def test_everybody_gets_a_turn(standing, kind):
    environment = {**clean_environment(), **cli.preload_environment(str(standing))}
    path = f"{environment['MADFS_MOUNT']}/race-{kind}"
    subprocess.run(["touch", path], env=environment, check=True, timeout=TIMEOUT_S)
    for index in range(ROUNDS):
        victims = ["no", "no", "holding" if index % 2 else "waiting", "no"]
        racers = [subprocess.Popen([sys.executable, "-c", RACER, path, kind, victim], env=environment)
                  for victim in victims]
        for racer, victim in zip(racers, victims):
            racer.communicate(timeout=TIMEOUT_S)
            assert racer.returncode == (0 if victim == "no" else -9)
    said = subprocess.run(["cat", path], env=environment, capture_output=True, timeout=TIMEOUT_S, check=True).stdout
    assert said == b"%d" % (3 * ROUNDS)
