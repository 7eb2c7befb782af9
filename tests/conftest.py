# SPDX-License-Identifier: Apache-2.0
"""What all tests share: the commands, servers to talk to, and the proof that a test left nothing behind."""
import gc
import logging
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from support import MADFS, call

# Tests may call the commands by name, also when the virtual environment is not activated.
os.environ["PATH"] += os.pathsep + os.path.dirname(sys.executable)
# They end programs as a terminal does, also when whoever runs them has put them in the background.
for number in signal.SIGHUP, signal.SIGINT, signal.SIGQUIT:
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
# What programs print must not depend on what whoever runs the tests prefers.
os.environ.pop("PYTHONUNBUFFERED", None)
# Many tests compare with a local directory, and file systems on disks are more alike than tmpfs is to them.
if b"tmpfs" in subprocess.check_output(["stat", "-f", "-c", "%T", tempfile.gettempdir()]):
    os.environ["TMPDIR"] = tempfile.tempdir = "/var/tmp"


@pytest.fixture(scope="session")
def others_may_run_it():
    """Skips where only the owner can reach this checkout, as below /root: others' programs cannot load the shim."""
    try:
        call([*MADFS, "--version"], user=65534, group=65534, extra_groups=[]).check_returncode()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this checkout lies where others may not read")


@pytest.fixture
def madfs(tmp_path):
    """Runs ``madfs`` with the given arguments; its temporary directories are below ``tmp_path/tmp``."""
    (tmp_path / "tmp").mkdir()

    def run(*arguments, environment=None, **options):
        return call([*MADFS, *arguments], environment={"TMPDIR": str(tmp_path / "tmp"), **(environment or {})},
                    **options)

    return run


@pytest.fixture(scope="session")
def cluster_file(tmp_path_factory):
    """Path of the cluster file of two servers that live as long as the test session."""
    directory = tmp_path_factory.mktemp("cluster")
    path = str(directory / "cluster")
    done = call([*MADFS, "up", "--servers", "2", "--store", directory / "store", "--cluster", path])
    assert done.returncode == 0, done.stderr
    yield path
    done = call([*MADFS, "down", "--cluster", path])
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def on_mount(cluster_file):
    """Runs a program under the preload on the servers of ``cluster_file``."""
    from pymadfs import cli

    variables = cli.preload_environment(cluster_file)

    def run(*argv, environment=None, **options):
        return call(argv, environment={**variables, **(environment or {})}, **options)

    return run


# --- nothing left behind --------------------------------------------------------------------------------------------


def children():
    """Process ids of this process's living children; the dead that nobody waited for count as well."""
    found = set()
    for task in Path("/proc/self/task").iterdir():
        try:
            found.update(map(int, (task / "children").read_text().split()))
        except (FileNotFoundError, ProcessLookupError):
            continue  # The thread has ended.
    return found


def descriptors():
    """Open descriptors of this process -> what they are."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue  # The one by which the directory was listed.
    return found


def processes_naming(text):
    """Command lines, by process id, of all processes in whose command line ``text`` appears."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if text in line:
                found[int(entry.name)] = line
    return found


@pytest.fixture(autouse=True)
def nothing_left_behind(request):
    """Fail a test that leaves a process or a descriptor behind."""
    processes, files = children(), descriptors()
    yield
    if descriptors() != files:
        gc.collect()  # what nobody refers to any more closes now
    left = children() - processes
    assert not left, f"processes {sorted(left)} are still there after the test: end them, and wait for them"
    directory = request.node.funcargs.get("tmp_path")
    if directory is not None:
        named = processes_naming(str(directory))
        assert not named, f"processes of the test are still there: {named}"
    opened = {fd: what for fd, what in descriptors().items() if files.get(fd) != what
              and "anon_inode:[eventpoll]" not in what}
    assert not opened, f"descriptors are still open after the test: {opened}"


@pytest.fixture(autouse=True)
def nothing_unobserved():
    """Fail a test when an exception of a task or future was seen by nobody: asyncio says so when it is freed."""
    records = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = records.append  # type: ignore[method-assign]
    logger = logging.getLogger("asyncio")
    logger.addHandler(handler)
    yield
    logger.removeHandler(handler)
    unseen = [record.getMessage() for record in records if "never retrieved" in record.getMessage()]
    assert not unseen, "an exception was seen by nobody, await it or ask for it: " + "\n".join(unseen)
