# SPDX-License-Identifier: Apache-2.0
"""Every call with every flag on every path in a world of permissions, as several users: results, errnos and changes are
those of a local directory.  Where several things are wrong at once, it is Linux's order of checks that is compared."""
import os
import platform
import subprocess
import sys

import pytest
from support import TIMEOUT_S

WORLD = os.path.join(os.path.dirname(os.path.abspath(__file__)), "world.py")
PARTS = {"single": 499, "open": 7993, "rename": 2003, "link": 2003}  # every how-manieth of the calls is made
USERS = ("root", "user", "member")
LONG_STEP = 7

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="compares users, which only root can become"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="makes system calls by their numbers on x86_64")]


def made(directory, environment, *arguments, timeout=TIMEOUT_S):
    subprocess.run(["mkdir", directory], env=environment, check=True, timeout=TIMEOUT_S)
    done = subprocess.run([sys.executable, "-S", "-E", WORLD, directory, *map(str, arguments)], env=environment,
                          capture_output=True, text=True, timeout=timeout, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    subprocess.run(["rm", "-rf", directory], env=environment, check=True, timeout=TIMEOUT_S)
    return done.stdout.splitlines()


def compare(runner, everybodys, number, *arguments, timeout=TIMEOUT_S):
    ours = made(f"{runner.mount}/world-{arguments[0]}-{number}", runner.loaded, *arguments, timeout=timeout)
    local = made(f"{everybodys}/world", runner.plain, *arguments, timeout=timeout)
    different = [(here, there) for here, there in zip(local, ours, strict=True) if here != there]
    assert different == []
    return len(local)


@pytest.mark.parametrize("part", PARTS)
def test_same_in_a_world_of_permissions(runner, everybodys, part):
    for number, user in enumerate(USERS):
        assert compare(runner, everybodys, number, part, user, PARTS[part], 40 * number) > 25


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("part", PARTS)
def test_same_in_a_world_of_permissions_everywhere(runner, everybodys, part, user):
    step = LONG_STEP * (20 if part == "open" else 1)
    for phase in range(3):
        assert compare(runner, everybodys, f"{user}-{phase}", part, user, step, phase, timeout=1000) > 2000
