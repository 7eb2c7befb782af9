# SPDX-License-Identifier: Apache-2.0
"""Threads and processes of every kind (tasks.c): on the mount as on a local directory; 100 times in a row in the long
form."""
import re
import subprocess
from pathlib import Path

import pytest
from support import TIMEOUT_S

SOURCE = Path(__file__).with_name("tasks.c")
CASES = re.findall(r'\{"(\w+)", \w+\}', SOURCE.read_text())


@pytest.fixture(scope="session")
def tasks(tmp_path_factory):
    path = tmp_path_factory.mktemp("tasks") / "tasks"
    subprocess.run(["gcc", "-O1", "-Wall", "-Wextra", "-Werror", "-o", path, SOURCE, "-lpthread"], check=True,
                   timeout=TIMEOUT_S)
    return path


def same(runner, tasks, case, local, mount, rounds):
    for directory, environment in ((local, runner.plain), (mount, runner.loaded)):
        subprocess.run(["mkdir", "-p", directory], env=environment, check=True, timeout=TIMEOUT_S)
        done = subprocess.run([tasks, case, directory, str(rounds)], env=environment, text=True, capture_output=True,
                              stdin=subprocess.DEVNULL, timeout=TIMEOUT_S + 5 * rounds, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, "ok\n", "")
    subprocess.run(["rm", "-r", mount], env=runner.loaded, check=True, timeout=TIMEOUT_S)


@pytest.mark.parametrize("case", CASES)
def test_tasks(runner, tasks, tmp_path, case):
    same(runner, tasks, case, tmp_path / "local", f"{runner.mount}/tasks-{case}", 2)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("case", CASES)
def test_a_hundred_times(runner, tasks, tmp_path, case):
    same(runner, tasks, case, tmp_path / "local", f"{runner.mount}/tasks-{case}", 100)
