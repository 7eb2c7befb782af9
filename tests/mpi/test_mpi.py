# SPDX-License-Identifier: Apache-2.0
"""Unmodified MPI programs on the mount, four ranks, every byte verified, under MPICH and under OpenMPI."""
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FLAVOURS = {
    "mpich": {"mpirun": ["mpirun.mpich"], "mpicc": "mpicc.mpich", "io": []},
    "openmpi": {"mpirun": ["mpirun.openmpi", "--allow-run-as-root", "--oversubscribe"], "mpicc": "mpicc.openmpi",
                "io": ["--mca", "io", "romio321"]},
}
OMPIO = ["--mca", "io", "ompio"]  # what OpenMPI takes when nobody says; MPICH has ROMIO only


@pytest.fixture(params=FLAVOURS)
def flavour(request, tmp_path):
    """A flavour's commands; both are in packages.txt, so a missing one is a failure, not a skip."""
    found = FLAVOURS[request.param]
    assert shutil.which(found["mpirun"][0]), f"{found['mpirun'][0]} is missing: see packages.txt"
    environment = {**os.environ, "MPI4PY_MPIABI": request.param}
    # mpi4py looks for MPICH under its upstream name, which Debian's library does not have.
    alias = tmp_path / "libmpi.so.12"
    alias.symlink_to("/usr/lib/x86_64-linux-gnu/libmpich.so.12")
    if request.param == "mpich":
        environment["LD_LIBRARY_PATH"] = str(tmp_path)
    return {**found, "environment": environment}


def build(flavour, source, tmp_path):
    program = tmp_path / Path(source).stem
    subprocess.run([flavour["mpicc"], "-O2", "-o", program, source], check=True, timeout=60)
    return str(program)


def run(flavour, *arguments, launcher="wrapper", io=()):
    """Run four ranks on three servers; returns standard output.  ``launcher``: madfs-mpirun, or mpirun under madfs
    run."""
    options = [*flavour["mpirun"][1:], *io, "-n", "4"]
    mpirun = ["madfs-mpirun"] if launcher == "wrapper" else [flavour["mpirun"][0]]
    environment = {**flavour["environment"], "MADFS_MPIRUN": flavour["mpirun"][0]}
    done = subprocess.run(["madfs", "run", "--servers", "3", "--", *mpirun, *options, *map(str, arguments)],
                          env=environment,
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("launcher", ["wrapper", "plain"])
def test_c_program(flavour, tmp_path, launcher):
    program = build(flavour, ROOT / "examples" / "verify_mpi.c", tmp_path)
    assert "verified" in run(flavour, program, "/madfs/job", "4", launcher=launcher)  # MiB per rank


def test_mpi4py(flavour):
    assert "verified" in run(flavour, sys.executable, ROOT / "examples" / "verify_mpi4py.py", "/madfs/job")


def test_mpi_io(flavour, tmp_path):
    program = build(flavour, Path(__file__).with_name("mpiio.c"), tmp_path)
    for io in [flavour["io"], OMPIO] if flavour["io"] else [[]]:
        assert "verified" in run(flavour, program, "/madfs/shared-file", io=io), io
