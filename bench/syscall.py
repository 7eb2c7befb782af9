# SPDX-License-Identifier: Apache-2.0
"""Cost of interception for a program that does not use the mount: per call (ns) and per process (ms)."""
import os
import shutil
import statistics
import subprocess
import tempfile
import time

import pymadfs
from pymadfs import cli

from . import common

ROUNDS, BATCHES, STARTS = 15, 200, 40


def per_call(program, kind, environment, path="/dev/null"):
    return float(common.capture(["taskset", "-c", "1", program, kind, BATCHES, path], env=environment))


def start_ms(arguments, environment):
    begin = time.perf_counter()
    subprocess.run(arguments, env=environment, check=True, stdout=subprocess.DEVNULL)
    return (time.perf_counter() - begin) * 1e3


def added(measure, plain, loaded, rounds):
    """Median over ``rounds`` of (with ``loaded`` less with ``plain``), and of plain; the two take turns."""
    pairs = [(measure(plain), measure(loaded)) for _ in range(rounds)]
    return statistics.median(b - a for a, b in pairs), statistics.median(a for a, _ in pairs)


def shim_alone(directory):
    """Environment of a program under a copy of the shim in ``directory`` (str), whose client takes no time."""
    shutil.copy(os.path.join(os.path.dirname(pymadfs.__file__), "_lib", "libmadfs_intercept.so"), directory)
    runtime = common.compile_program("null_runtime.c", directory, "-fPIC", "-shared", "-fvisibility=hidden")
    os.rename(runtime, os.path.join(directory, "libmadfs_runtime.so"))
    return {**os.environ, "LD_PRELOAD": os.path.join(directory, "libmadfs_intercept.so"), "MADFS_MOUNT": "/madfs",
            "MADFS_VERSION": pymadfs.__version__}


def of_the_shim(program, directory, rounds):
    """Rows of what the shim alone costs for a call on the mount, and for the descriptor of an open file."""
    plain, alone = dict(os.environ), shim_alone(directory)
    found = []
    for _ in range(rounds):
        entered, opened = (per_call(program, kind, alone, "/madfs/x") for kind in ("access", "open"))
        found.append((entered, opened - 2 * entered, *(per_call(program, kind, plain) for kind in ("access", "open"))))
    entered, descriptor, access, opened = (statistics.median(column) for column in zip(*found))
    yield common.Row("entered", entered, "ns", access)
    yield common.Row("descriptor", descriptor, "ns", opened)


def run(quick=False):
    starts = 5 if quick else STARTS
    with tempfile.TemporaryDirectory(prefix="madfs-bench-") as directory, common.servers(1) as cluster:
        plain, loaded = dict(os.environ), {**os.environ, **cli.preload_environment(cluster)}
        program = common.compile_program("syscall_cost.c", directory)
        for kind in ("getppid", "pread"):
            cost, alone = added(lambda env, kind=kind: per_call(program, kind, env), plain, loaded,
                                3 if quick else ROUNDS)
            yield common.Row(f"{kind}_added", cost, "ns", alone)
        yield from of_the_shim(program, directory, 3 if quick else ROUNDS)
        cost, alone = added(lambda env: start_ms(["/bin/true"], env), plain, loaded, starts)
        yield common.Row("start_added", cost, "ms", alone)
        cost, alone = added(lambda path: start_ms(["stat", path], loaded), "/tmp", loaded["MADFS_MOUNT"], starts)
        yield common.Row("first_touch_added", cost, "ms", alone)
