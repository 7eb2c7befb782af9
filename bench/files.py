# SPDX-License-Identifier: Apache-2.0
"""Files per second and MiB per second through the mount, beside the same program on tmpfs in the same run."""
import os
import statistics
import tempfile
from collections import defaultdict

from pymadfs import cli

from . import common

ROUNDS, FILES, MEBIBYTES = 3, 4000, 128


def measure(program, directory, clients, quick, environment, cpu):
    arguments = [program, directory, clients, FILES // 10 if quick else FILES, 16 if quick else MEBIBYTES]
    output = common.capture(arguments + ([cpu] if cpu is not None else []), env=environment)
    return {name: float(value) for name, value in map(str.split, output.splitlines())}


def compare(program, cluster, clients, quick, cpu):
    """Phase -> (median on the mount, median on tmpfs); the two take turns."""
    loaded = {**os.environ, **cli.preload_environment(cluster)}
    mount = loaded["MADFS_MOUNT"]
    ours, local = defaultdict(list), defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="madfs-bench-", dir="/dev/shm") as tmpfs:
        for _ in range(1 if quick else ROUNDS):
            for results, directory, environment in ((ours, mount, loaded), (local, tmpfs, dict(os.environ))):
                for phase, value in measure(program, directory, clients, quick, environment, cpu).items():
                    results[phase].append(value)
    return {phase: (statistics.median(ours[phase]), statistics.median(local[phase])) for phase in ours}


def run(quick=False):
    with tempfile.TemporaryDirectory(prefix="madfs-bench-") as directory:
        program = common.compile_program("files.c", directory)
        for clients in (1, 2, 4):
            # One client: server and client each have a core of their own.  More: they share what there is.
            apart = clients == 1 and os.cpu_count() > 1
            with common.servers(1, pin_to=0 if apart else None) as cluster:
                results = compare(program, cluster, clients, quick, 1 if apart else None)
            for phase, (value, baseline) in results.items():
                unit = "MiB/s" if phase.startswith(("write_", "read_")) or phase == "append_1MiB" else "ops/s"
                yield common.Row(f"{phase}.{clients}", value, unit, baseline)
