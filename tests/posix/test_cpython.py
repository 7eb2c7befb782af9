# SPDX-License-Identifier: Apache-2.0
"""CPython's own tests of what touches files, run by the system's Python with all their files on the mount.

The package libpython3.11-testsuite has them for /usr/bin/python3.11.  Each module runs from a working directory on the
mount.  None of their tests is left out; what is left to ``make test-long`` is in the tables below, with the reason.
"""
import os
import re
import signal
import subprocess

import pytest

PYTHON = "/usr/bin/python3.11"

# Module -> tests of it, at least, that are run and not skipped.
QUICK = {
    "test_fcntl": 10, "test_mmap": 36, "test_os": 260, "test_pathlib": 300, "test_posix": 130, "test_shutil": 135,
    "test_tarfile": 500, "test_tempfile": 100,
}
# Of these, what is slow: (module, test) -> why.
SLOW = {
    ("test_os", "test_walk_many_open_files"): "lists 12,000 directories, a request to each server for each",
    ("test_os", "test_fd_leak"): "lists 6,000 directories",
    ("test_pathlib", "test_glob_many_open_files"): "lists 12,000 directories",
}
# Module -> the same, and why it is slow on any file system.
LONG = {
    "test_zipfile": (280, "writes archives with 65,536 members"),
    "test_subprocess": (290, "waits for the time limits of its programs and starts hundreds of them"),
}
LIMIT_S = 240


@pytest.fixture(scope="module")
def directory(runner):
    """A directory on the mount for the modules' files."""
    path = f"{runner.mount}/cpython"
    subprocess.run(["mkdir", path], env=runner.loaded, check=True, timeout=30)
    yield path
    subprocess.run(["rm", "-rf", path], env=runner.loaded, check=True, timeout=60)


def run(runner, directory, module, choice, limit_s):
    """``(status, output)`` of the module's tests, after ``limit_s`` seconds at most: then all of it is ended, with the
    stacks of what still ran.  ``choice``: options that choose tests."""
    command = f"cd {directory} && exec {PYTHON} -m test -v --timeout {limit_s - 10} {choice} {module}"
    child = subprocess.Popen(["sh", "-c", command], env={**runner.loaded, "TMPDIR": directory}, text=True,
                             errors="replace", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                             stderr=subprocess.STDOUT, start_new_session=True)
    try:
        output, _ = child.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        output = child.communicate()[0] + f"\nended after {limit_s} seconds"
    return child.returncode, output


def check(runner, directory, module, choice, at_least, limit_s):
    """Assert that the tests that are chosen pass, and that there are ``at_least`` so many."""
    if not os.path.exists(PYTHON) or subprocess.run([PYTHON, "-c", "import test." + module], timeout=60).returncode:
        pytest.skip(f"{PYTHON} has no test.{module}: package libpython3.11-testsuite")
    status, output = run(runner, directory, module, choice, limit_s)
    where = re.search("^(ERROR|FAIL): ", output, re.MULTILINE)
    told = output[where.start():] if where else output[-3000:]
    assert status == 0, told
    ran = re.search(r"^Ran (\d+) tests? in .*\n\nOK(?: \(.*?skipped=(\d+).*\))?$", output, re.MULTILINE)
    assert ran, told
    done = int(ran[1]) - int(ran[2] or 0)
    assert done >= at_least, f"{done} tests of {module} were run, and {ran[2]} skipped"


@pytest.mark.parametrize("module", QUICK)
def test_module(runner, directory, module):
    later = "".join(f" -i {test}" for of, test in SLOW if of == module)
    check(runner, directory, module, later, QUICK[module], LIMIT_S)


@pytest.mark.long
@pytest.mark.parametrize("module, test", SLOW)
def test_slow_part(runner, directory, module, test):
    check(runner, directory, module, f"-m {test}", 2, LIMIT_S)


@pytest.mark.long
@pytest.mark.timeout(700)
@pytest.mark.parametrize("module", LONG)
def test_slow_module(runner, directory, module):
    check(runner, directory, module, "", LONG[module][0], 600)
