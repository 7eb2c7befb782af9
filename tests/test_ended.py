# SPDX-License-Identifier: Apache-2.0
"""Signals to the commands at every stage: how they end, and that nothing stays behind."""
import contextlib
import os
import select
import signal
import subprocess
import time
from pathlib import Path

import pytest
from support import MADFS, TIMEOUT_S, clean_environment

from pymadfs import leftovers, mpirun

# What a command has made when the signal comes: a path in its TMPDIR.
STAGES = {"directory": "madfs-*", "store": "madfs-*/server-0.log", "cluster": "madfs-*/cluster",
          "database": "madfs-*/server-0/kv", "program": "program"}


def start(arguments, tmp_path, **environment):
    return subprocess.Popen([*map(str, arguments)], cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, start_new_session=True,
                            env={**clean_environment(), "TMPDIR": str(tmp_path), **environment})


def wait_until(reached):
    deadline = time.monotonic() + TIMEOUT_S
    while not reached():
        assert time.monotonic() < deadline
        os.sched_yield()


def processes_with(text):
    """Process ids of those whose environment has ``text``."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if os.fsencode(text) in path.read_bytes():
                found.append(int(path.parent.name))
    return found


def wait_for_end(pids):
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            fd = os.pidfd_open(pid)
            assert select.select([fd], [], [], TIMEOUT_S)[0], f"process {pid} did not end"
            os.close(fd)


def nothing_is_left(tmp_path, waits=False):
    """Neither a process nor a file of what ran with TMPDIR ``tmp_path``; ``waits``: it may take a moment."""
    if waits:
        wait_for_end(processes_with(f"TMPDIR={tmp_path}"))
    assert processes_with(f"TMPDIR={tmp_path}") == []
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGKILL"])
def test_run_is_ended_at_any_stage(tmp_path, name, stage):
    number = getattr(signal, name)
    process = start([*MADFS, "run", "--servers", 2, "--", "sh", "-c", ": > program; exec sleep 100"],
                    tmp_path)
    wait_until(lambda: list(tmp_path.glob(STAGES[stage])))
    os.killpg(process.pid, number)
    _, errors = process.communicate(timeout=TIMEOUT_S)
    assert (process.returncode, errors) == (-number, "")
    (tmp_path / "program").unlink(missing_ok=True)
    nothing_is_left(tmp_path, waits=name == "SIGKILL")


@pytest.mark.parametrize("stage", ["cluster.lock", "cluster.log", "madfs-*", "cluster", "madfs-*/server-0/kv"])
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_up_is_ended_at_any_stage(tmp_path, name, stage):
    """Who is told that `madfs up` was ended by a signal can count on it that no servers run."""
    number = getattr(signal, name)
    process = start([*MADFS, "up", "--servers", 2, "--cluster", "cluster"], tmp_path)
    wait_until(lambda: list(tmp_path.glob(stage)))
    process.send_signal(number)
    output, _ = process.communicate(timeout=TIMEOUT_S)
    if process.returncode == 0:
        assert output == f"{tmp_path}/cluster\n"
        assert subprocess.run([*MADFS, "down", "--cluster", tmp_path / "cluster"], timeout=TIMEOUT_S).returncode == 0
    else:
        assert process.returncode == -number
    nothing_is_left(tmp_path, waits=name == "SIGKILL")


def test_status_of_a_shell_is_the_usual_one(tmp_path):
    for number in (signal.SIGINT, signal.SIGTERM):
        command = f'{" ".join(MADFS)} run --servers 1 -- sh -c "kill -{number.value} \\$\\$"; echo $?'
        done = subprocess.run(["bash", "-c", command], env=clean_environment(), capture_output=True, text=True,
                              timeout=TIMEOUT_S)
        assert done.stdout == f"{128 + number}\n"


@pytest.mark.parametrize("flavour", [name for name in ("mpich", "openmpi") if mpirun.shutil.which(f"mpirun.{name}")])
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_mpirun_is_ended_with_all_ranks(tmp_path, flavour, name):
    number = getattr(signal, name)
    environment = {"MADFS_MPIRUN": f"mpirun.{flavour}", "OMPI_ALLOW_RUN_AS_ROOT": "1",
                   "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMPI_MCA_rmaps_base_oversubscribe": "1"}
    process = start([*MADFS[:-1], "pymadfs.mpirun", "--madfs-servers", 1, "-n", 2, "sh", "-c",
                     f": > {tmp_path}/rank$$; exec sleep 100"], tmp_path, **environment)
    wait_until(lambda: len(list(tmp_path.glob("rank*"))) == 2)
    process.send_signal(number)
    process.communicate(timeout=TIMEOUT_S)  # The status is mpirun's.
    for path in tmp_path.glob("rank*"):
        path.unlink()
    wait_for_end(processes_with(f"TMPDIR={tmp_path}"))
    assert list(tmp_path.glob("madfs-*")) == []


def test_what_killed_keepers_leave_is_swept(tmp_path, monkeypatch):
    monkeypatch.setattr(leftovers.tempfile, "tempdir", str(tmp_path))
    process = start([*MADFS, "run", "--servers", 1, "--", "sh", "-c", ": > program; exec sleep 100"], tmp_path)
    wait_until((tmp_path / "program").exists)
    leftovers.sweep()
    assert len(list(tmp_path.glob("madfs-*/server-0"))) == 1, "a job that lives is left alone"
    pids = processes_with(f"TMPDIR={tmp_path}")
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)  # so that none sees another one end
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    process.communicate(timeout=TIMEOUT_S)
    wait_for_end(pids)
    assert len(list(tmp_path.glob("madfs-*"))) == 1
    leftovers.sweep()
    assert list(tmp_path.glob("madfs-*")) == []
