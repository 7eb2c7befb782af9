# SPDX-License-Identifier: Apache-2.0
"""What races in host.c, cancel.cc and programs that are executed, 100 times in a row (docs/interception.md)."""
import subprocess

import pytest
from support import ROOT

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]
TIMES = 100


@pytest.mark.parametrize("name", ["cancel", "threads", "vforks", "forks", "spawn", "spawn_open", "signals", "closing",
                                  "limit", "lock_waits", "cancel_lock", "jumps", "alternate", "faults", "passing"])
def test_host(run, programs, name):
    for _ in range(TIMES):
        done = run(programs / "host", name)
        assert (done.stdout, done.stderr, done.returncode) == ("ok\n", "", 0)


def test_destructors(run, tmp_path):
    subprocess.run(["g++", "-O2", "-o", tmp_path / "cancel", ROOT / "tests" / "shim" / "cancel.cc", "-lpthread"],
                   check=True)
    for _ in range(TIMES):
        done = run(tmp_path / "cancel")
        assert (done.stdout, done.stderr, done.returncode) == ("10\n", "", 0)


def test_redirections(bash):
    """Children in the background that append to one file, and a shell that waits for them."""
    for n in range(TIMES):
        assert bash(f"""
            for i in 1 2 3; do (echo $i; exec cat /dev/null) >> /madfs/{n} & done; wait
            {{ sort; echo end; }} < /madfs/{n} > /madfs/{n}.sorted 2>&1; cat /madfs/{n}.sorted
            rm /madfs/{n} /madfs/{n}.sorted
        """) == "1\n2\n3\nend\n"


def test_system_in_every_rank(on_mount):
    """IO500 calls system("sync") in each process while the others are at work."""
    code = """
import os
for n in range(25):
    with open(f'/madfs/rank-{os.getpid()}', 'w') as file:
        file.write('x' * n)
        assert os.system('sync') == 0
    assert os.path.getsize(f'/madfs/rank-{os.getpid()}') == n
os.unlink(f'/madfs/rank-{os.getpid()}')
"""
    script = (f"for i in 1 2 3 4; do python3 -c \"{code}\" & all+=($!); done; "
              "for i in ${all[@]}; do wait $i || exit; done")
    done = on_mount("bash", "-c", script, timeout=600)
    assert (done.returncode, done.stderr) == (0, "")
