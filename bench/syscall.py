# SPDX-License-Identifier: Apache-2.0
"""Cost of interception for a program that does not use the mount: per call (ns) and per process (ms)."""
import os
import statistics
import subprocess
import tempfile
import time

from pymadfs import cli

from . import common

ROUNDS, BATCHES, STARTS = 15, 200, 40


def per_call(program, kind, environment):
    return float(common.capture(["taskset", "-c", "1", program, kind, BATCHES], env=environment))


def start_ms(arguments, environment):
    begin = time.perf_counter()
    subprocess.run(arguments, env=environment, check=True, stdout=subprocess.DEVNULL)
    return (time.perf_counter() - begin) * 1e3


def added(measure, rounds):
    """Median over ``rounds`` of (with the shim less without), and of without; each round measures both, side by side."""
    plain, loaded = dict(os.environ), {**os.environ, **cli.preload_environment()}
    pairs = [(measure(plain), measure(loaded)) for _ in range(rounds)]
    return statistics.median(b - a for a, b in pairs), statistics.median(a for a, _ in pairs)


def run(quick=False):
    rounds = 3 if quick else ROUNDS
    with tempfile.TemporaryDirectory(prefix="madfs-bench-") as directory:
        program = common.compile_program("syscall_cost.c", directory)
        for kind in ("getppid", "pread"):
            cost, plain = added(lambda env, kind=kind: per_call(program, kind, env), rounds)
            yield common.Row(f"{kind}_added", cost, "ns", plain)
    cost, plain = added(lambda env: start_ms(["/bin/true"], env), 5 if quick else STARTS)
    yield common.Row("start_added", cost, "ms", plain)
    with common.servers(1) as cluster:
        touch = {**os.environ, **cli.preload_environment(cluster)}
        mount = touch["MADFS_MOUNT"]
        pairs = [(start_ms(["stat", "/tmp"], touch), start_ms(["stat", mount], touch)) for _ in range(5 if quick else STARTS)]
    yield common.Row("first_touch_added", statistics.median(b - a for a, b in pairs), "ms",
                     statistics.median(a for a, _ in pairs))
