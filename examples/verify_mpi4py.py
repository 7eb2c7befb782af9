# SPDX-License-Identifier: Apache-2.0
"""An ordinary mpi4py program that knows nothing of MadFS: ranks write, other ranks read back and compare each byte.

    madfs-mpirun -n 4 python examples/verify_mpi4py.py /madfs/job
"""
import hashlib
import os
import sys

from mpi4py import MPI

BLOCK = 47008
BLOCKS = 40


def block(rank, number):
    """What rank ``rank`` writes as its block ``number``: BLOCK bytes."""
    return hashlib.shake_128(f"{rank} {number}".encode()).digest(BLOCK)


def main():
    comm = MPI.COMM_WORLD
    rank, ranks = comm.Get_rank(), comm.Get_size()
    other = (rank + 1) % ranks
    directory = sys.argv[1]
    if rank == 0:
        os.makedirs(directory, exist_ok=True)
    comm.Barrier()

    with open(f"{directory}/python-{rank}", "wb") as file:
        file.writelines(block(rank, number) for number in range(BLOCKS))
    shared = os.open(f"{directory}/python-shared", os.O_RDWR | os.O_CREAT, 0o644)
    for number in range(BLOCKS):
        os.pwrite(shared, block(rank, number), (number * ranks + rank) * BLOCK)
    os.fsync(shared)
    comm.Barrier()

    with open(f"{directory}/python-{other}", "rb") as file:
        own = b"".join(block(other, number) for number in range(BLOCKS))
        assert file.read() == own, f"rank {rank}: the file of rank {other} is not what it wrote"
    for number in range(BLOCKS):
        got = os.pread(shared, BLOCK, (number * ranks + other) * BLOCK)
        assert got == block(other, number), f"rank {rank}: block {number} of rank {other} in the shared file is wrong"
    os.close(shared)
    comm.Barrier()

    if rank == 0:
        names = sorted(os.listdir(directory))
        expected = {f"python-{number}" for number in range(ranks)} | {"python-shared"}
        assert expected <= set(names), f"the directory lacks {expected - set(names)}"
        print(f"{ranks} ranks in {directory}: verified {2 * ranks * BLOCKS * BLOCK} bytes in {ranks + 1} files")


try:
    main()
except BaseException as error:
    print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    MPI.COMM_WORLD.Abort(1)
