# SPDX-License-Identifier: Apache-2.0
"""What a job has in the node's memory is removed when the job ends, whoever ends it and however."""
import glob
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support import MADFS, TIMEOUT_S, call, clean_environment

from pymadfs import cluster, leftovers

# Has a file mapped to be shared, so that there is an image, says so and waits.
MAPPER = """
import mmap, os, sys
if "nobody" in sys.argv: os.setgid(65534); os.setuid(65534)
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o666); os.ftruncate(fd, 5000)
memory = mmap.mmap(fd, 5000); memory[:5] = b"bytes"
if "killed" in sys.argv: os.kill(os.getpid(), 9)
print("mapped", flush=True); sys.stdin.readline()
"""


def of_job(secret):
    """Names in /dev/shm that belong to a job."""
    job = cluster.shared_directory(secret).rpartition(b"-")[2]
    return [*glob.glob(b"/dev/shm/madfs-*-" + job), *filter(os.path.exists, [cluster.node_directory(secret)[0]])]


def ended(*pids):
    for pid in pids:
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        assert select.select([fd], [], [], TIMEOUT_S)[0], f"process {pid} did not end"
        os.close(fd)


def parent(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.usefixtures("others_may_run_it")
def test_run_leaves_nothing(madfs):
    script = f"""cat $MADFS_CLUSTER; chmod 777 /madfs; : > /madfs/f; chmod 666 /madfs/f
for user in "" nobody; do {sys.executable} -c '{MAPPER}' /madfs/f $user < /dev/null > /dev/null; done
ls -d /dev/shm/madfs-* | wc -l >&2"""
    done = madfs("run", "--servers", "2", "--", "bash", "-c", script)
    assert done.returncode == 0 and int(done.stderr) > 0, done.stderr
    assert of_job(cluster.parse(done.stdout).secret) == []


def test_killed_processes_leave_nothing(madfs):
    """The job ends in order, its processes do not."""
    done = madfs("run", "--servers", "1", "--", "bash", "-c", f"cat $MADFS_CLUSTER; {sys.executable} -c '{MAPPER}' "
                 "/madfs/f killed 2> /dev/null; ls -d /dev/shm/madfs-*/$(stat -c %i /madfs/f) >&2")
    assert "madfs-" in done.stderr, "the image of a killed process is there until the job ends"
    assert of_job(cluster.parse(done.stdout).secret) == []


@pytest.mark.parametrize("victims", ["launcher", "keeper", "both"])
def test_after_kill_of_those_that_end_the_job(tmp_path, victims):
    environment = {**clean_environment(), "TMPDIR": str(tmp_path)}
    process = subprocess.Popen([*MADFS, "run", "--servers", "1", "--", "bash", "-c",
                                f"cat $MADFS_CLUSTER; echo; exec {sys.executable} -c '{MAPPER}' /madfs/f"],
                               env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True)
    description = cluster.parse("".join(iter(process.stdout.readline, "\n")))
    assert process.stdout.readline() == "mapped\n" and of_job(description.secret)
    keeper = parent(description.servers[0].pid)
    if victims == "both":
        os.kill(process.pid, signal.SIGSTOP)  # so that it does not see the other one end
    if victims != "launcher":
        os.kill(keeper, signal.SIGKILL)
    if victims != "keeper":
        process.kill()
    process.communicate("\n", timeout=TIMEOUT_S)
    ended(keeper, description.servers[0].pid)
    if victims == "both":
        assert of_job(description.secret), "nobody was left to remove it"
        leftovers.sweep()
    assert of_job(description.secret) == []


def test_down_and_up_after_the_keeper_was_killed(tmp_path):
    path = tmp_path / "cluster"
    arguments = ["--cluster", path, "--store", tmp_path / "store"]
    for again in (["down", "--cluster", path], ["up", *arguments]):
        assert call([*MADFS, "up", "--servers", "1", *arguments]).returncode == 0
        description = cluster.read(str(path))
        assert of_job(description.secret)
        keeper = parent(description.servers[0].pid)
        os.kill(keeper, signal.SIGKILL)
        ended(keeper, description.servers[0].pid)
        call([*MADFS, *again])
        assert of_job(description.secret) == []
    other = cluster.read(str(path))
    leftovers.sweep()
    assert of_job(other.secret), "a job that lives is left alone"
    assert call([*MADFS, "down", "--cluster", path]).returncode == 0
    assert of_job(other.secret) == []


def test_a_process_that_outlives_its_servers_ends_quietly(tmp_path):
    """When all of a set are killed the job is over, with what it had in memory; who had a file mapped is only told of
    the servers."""
    path = tmp_path / "cluster"
    assert call([*MADFS, "up", "--servers", "1", "--cluster", path, "--store", tmp_path / "store"]).returncode == 0
    description = cluster.read(str(path))
    process = subprocess.Popen([*MADFS, "run", "--cluster", path, "--", sys.executable, "-c", MAPPER, "/madfs/f"],
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "mapped\n"
    server = description.servers[0].pid
    keeper = parent(server)
    os.kill(server, signal.SIGKILL)
    ended(server, keeper)
    _, errors = process.communicate("\n", timeout=TIMEOUT_S)
    assert "Traceback" not in errors and "server 0" in errors, errors
