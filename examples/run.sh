#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What `make run` does: an unmodified MPI program, four ranks, on two servers of its own.  `make run MPI=openmpi` takes
# the other MPI; without MPI it is MPICH where Debian's is installed, else whatever mpicc and mpirun are.
set -euo pipefail
cd "$(dirname "$0")/.."

suffix=${MPI:+.$MPI}
if [ -z "$suffix" ] && command -v mpicc.mpich >/dev/null; then suffix=.mpich; fi
command -v "mpicc$suffix" >/dev/null || { echo "make run: there is no mpicc$suffix: install MPICH or OpenMPI" >&2; exit 1; }
mkdir -p build
"mpicc$suffix" -std=c11 -O2 -Wall -Wextra -Werror -o build/verify_mpi examples/verify_mpi.c

# Four ranks also on a machine with fewer cores, and as root in a container.
export OMPI_MCA_rmaps_base_oversubscribe=1 PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
MADFS_MPIRUN="mpirun$suffix" exec .venv/bin/madfs-mpirun --madfs-servers 2 --madfs-summary -n 4 build/verify_mpi /madfs/job
