# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks share: compiling their C programs, a cluster of their own, rows of results."""
import os
import platform
import subprocess
import sys
import tempfile
from collections import namedtuple
from contextlib import contextmanager
from pathlib import Path

from pymadfs import cluster

HERE = Path(__file__).parent

Row = namedtuple("Row", "name value unit baseline")
"""One result.  ``baseline`` is the same quantity of what it is compared with, in the same unit, or None."""


def machine():
    """What the figures were measured on, in a few words."""
    model = "unknown CPU"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return f"{model}, {os.cpu_count()} CPUs, Linux {platform.release()}"


def commit():
    """Commit of the checkout, with ``+`` when it has uncommitted changes; ``unknown`` outside a checkout."""
    try:
        found = subprocess.run(["git", "describe", "--always", "--dirty=+"], cwd=HERE, capture_output=True, text=True)
    except OSError:
        return "unknown"  # there is no git
    return found.stdout.strip() or "unknown"


def compile_program(source, directory, *flags):
    """Compile ``bench/<source>`` into ``directory``; returns the program's path.  Raises CalledProcessError."""
    program = Path(directory) / Path(source).stem
    subprocess.run(["cc", "-O2", "-o", program, HERE / source, *flags], check=True)
    return str(program)


def command(*arguments):
    """The ``madfs`` command of this interpreter's environment, as a list."""
    return [sys.executable, "-m", "pymadfs.cli", *map(str, arguments)]


def capture(arguments, **options):
    """Standard output of a command that must succeed; RuntimeError with what it said when it does not."""
    done = subprocess.run(list(map(str, arguments)), capture_output=True, text=True, **options)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, arguments))} failed with status {done.returncode}: "
                           f"{done.stderr}{done.stdout}")
    return done.stdout


def pin(pid, cpu):
    """Bind every thread of process ``pid`` to ``cpu``."""
    for task in os.listdir(f"/proc/{pid}/task"):
        os.sched_setaffinity(int(task), {cpu})


@contextmanager
def servers(count, *, pin_to=None):
    """A standing cluster of ``count`` servers for the duration; yields the path of its cluster file.

    ``pin_to`` binds the servers to that CPU (they then see one core, and so poll rather than sleep only when told).
    """
    with tempfile.TemporaryDirectory(prefix="madfs-bench-") as directory:
        path = os.path.join(directory, "cluster")
        store = os.path.join(directory, "store")
        capture(command("up", "--servers", count, "--cluster", path, "--store", store))
        try:
            if pin_to is not None:
                for server in cluster.read(path).servers:
                    pin(server.pid, pin_to)
            yield path
        finally:
            capture(command("down", "--cluster", path))
