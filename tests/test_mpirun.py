# SPDX-License-Identifier: Apache-2.0
"""madfs-mpirun: exactly the ranks are on MadFS, whichever mpirun it is; mpirun's options are left alone."""
import os
import stat

import pytest
from support import MPIRUN, call

from pymadfs import launch, mpirun

FLAVOURS = {"mpich": ["mpirun.mpich"], "openmpi": ["mpirun.openmpi", "--oversubscribe"]}

# What a rank says: its preload and its parent's, and whether it sees the mount.
RANK = ("p=$(tr '\\0' '\\n' < /proc/$PPID/environ | grep -c ^LD_PRELOAD); echo \"rank ${LD_PRELOAD##*/} parent $p\"; "
        "test -d $MADFS_MOUNT && echo mounted")


@pytest.fixture(params=FLAVOURS)
def flavour(request, monkeypatch):
    monkeypatch.setenv("OMPI_ALLOW_RUN_AS_ROOT", "1")
    monkeypatch.setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
    return FLAVOURS[request.param]


def run(flavour, *arguments, own=("--madfs-servers", "1"), environment=None):
    return call([*MPIRUN, *own, *flavour[1:], *arguments],
                environment={"MADFS_MPIRUN": flavour[0], **(environment or {})})


def test_exactly_the_ranks_are_preloaded(flavour):
    done = run(flavour, "-n", 2, "sh", "-c", RANK, ":", "-n", 1, "sh", "-c", RANK)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines.count("rank libmadfs_intercept.so parent 0") == 3
    assert lines.count("mounted") == 3


def test_uses_running_servers_and_ends_as_mpirun_does(flavour, cluster_file):
    environment = {"MADFS_CLUSTER": cluster_file}
    done = run(flavour, "-n", 2, "sh", "-c", "echo $MADFS_CLUSTER; exit 6", own=(), environment=environment)
    assert done.returncode == 6, done.stderr
    assert cluster_file in done.stdout


def test_within_madfs_run(flavour, madfs):
    done = madfs("run", "--servers", 1, "--", *MPIRUN, *flavour[1:], "-n", 2, "sh", "-c", RANK,
                 environment={"MADFS_MPIRUN": flavour[0]})
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines().count("rank libmadfs_intercept.so parent 0") == 2


@pytest.mark.parametrize(("own", "arguments", "word"), [
    (["--madfs-servers", "x"], ["-n", "1", "true"], "--madfs-servers"),
    (["--madfs-frobnicate=3"], ["-n", "1", "true"], "--madfs-frobnicate"),
    (["--madfs-cluster", "/nonexistent"], ["-n", "1", "true"], "/nonexistent"),
    ([], [], "no program"),
])
def test_wrong_usage(flavour, own, arguments, word):
    done = call([*MPIRUN, *own, *arguments], environment={"MADFS_MPIRUN": flavour[0]})
    assert done.returncode == 2
    assert done.stderr.startswith("madfs-mpirun: ") and done.stderr.count("\n") == 1, done.stderr
    assert word in done.stderr


@pytest.mark.parametrize(("arguments", "word"), [
    (["-n", "2", "/madfs/program", "x"], "env /madfs/PROGRAM"), (["-wdir", "/madfs", "true"], "env -C"),
    (["true", ":", "-n", "1", "/madfs/a"], "/madfs/a"), (["-n", "2", "env", "/madfs/program"], None),
    (["true", "/madfs/data"], None), (["-wdir", "/madfs2", "true"], None)])
def test_tells_what_mpirun_does_not_see(arguments, word):
    warning = mpirun.rank_warning(arguments, "/madfs")
    assert word in warning if word else warning is None


def test_own_options_come_first():
    assert mpirun.split(["--madfs-servers", "2", "--madfs-summary", "-n", "4", "a", "--madfs-servers"]) == (
        ["--madfs-servers", "2", "--madfs-summary"], ["-n", "4", "a", "--madfs-servers"])
    assert mpirun.split(["--madfs-store=x", "-n", "4"]) == (["--madfs-store=x"], ["-n", "4"])


def test_environment_of_every_application_context():
    assert mpirun.with_environment("hydra", ["-n", "1", "a", ":", "b"], {"X": "1"}) == [
        "-genv", "X", "1", "-n", "1", "a", ":", "b"]
    assert mpirun.with_environment("openmpi", ["-n", "1", "a", ":", "b"], {"X": "1"}) == [
        "-x", "X=1", "-n", "1", "a", ":", "-x", "X=1", "b"]


@pytest.mark.parametrize(("kind", "arguments"), [
    ("openmpi", ["-x", "LD_PRELOAD=libfoo.so", "a"]), ("hydra", ["-genv", "LD_PRELOAD", "libfoo.so", "a"]),
    ("openmpi", ["--app", "file"])])
def test_refuses_what_would_replace_the_preload(kind, arguments):
    with pytest.raises(launch.LaunchError):
        mpirun.check(kind, arguments)
    mpirun.check(kind, ["-n", "1", "a", "--app"])


@pytest.mark.parametrize(("said", "kind"), [
    ("Intel(R) MPI Library for Linux* OS, Version 2021.9", "hydra"), ("HYDRA build details:", "hydra"),
    ("mpirun (Open MPI) 5.0.3", "openmpi"), ("something else", None)])
def test_recognises_the_flavour_by_its_version(tmp_path, said, kind):
    command = tmp_path / "mpirun"
    command.write_text(f"#!/bin/sh\necho '{said}'\n")
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    if kind:
        assert mpirun.flavour(str(command), dict(os.environ)) == kind
    else:
        with pytest.raises(launch.LaunchError, match="MADFS_MPIRUN"):
            mpirun.flavour(str(command), dict(os.environ))


def test_no_mpirun_at_all(tmp_path):
    with pytest.raises(launch.LaunchError, match="install"):
        mpirun.find({"PATH": str(tmp_path)})
    with pytest.raises(launch.LaunchError, match="mpirun-of-mine"):
        mpirun.find({"PATH": os.environ["PATH"], "MADFS_MPIRUN": "mpirun-of-mine"})
