# SPDX-License-Identifier: Apache-2.0
"""``python -m bench``: list the benchmarks; ``python -m bench NAME [--json] [--quick]``: run one."""
import argparse
import importlib
import json
import pkgutil
import subprocess
import sys

import bench
from pymadfs.keeper import LaunchError

from . import common


def benchmarks():
    """Name -> module of every benchmark: a module of this package with a function ``run(quick)`` that yields rows."""
    found = {}
    for module in pkgutil.iter_modules(bench.__path__):
        if module.name not in ("__main__", "common"):
            found[module.name] = importlib.import_module(f"bench.{module.name}")
    return found


def show(row, as_json, where):
    ratio = row.value / row.baseline if row.baseline else None
    if as_json:
        record = {**row._asdict(), "ratio": ratio, **where}
        print(json.dumps(record), flush=True)
    else:
        against = f"{row.baseline:14,.1f} {ratio:8.3f}" if row.baseline else ""
        print(f"{row.name:40} {row.value:14,.1f} {row.unit:8} {against}", flush=True)


class Parser(argparse.ArgumentParser):
    """Argparse that says in one line what is wrong."""

    def error(self, message):
        self.exit(2, f"{self.prog}: {message}; `{self.prog}` lists what there is\n")


def main(argv=None):
    """Returns the exit status: 1 when a part failed, after the rows that there were."""
    known = benchmarks()
    parser = Parser(prog="python -m bench", description=bench.__doc__.splitlines()[0])
    parser.add_argument("name", nargs="?", choices=sorted(known), help="which benchmark; none: list them")
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions: to see that it runs, not to quote")
    options = parser.parse_args(argv)
    if options.name is None:
        for name, module in sorted(known.items()):
            print(f"{name:12} {module.__doc__.splitlines()[0]}")
        return 0
    where = {"commit": common.commit(), "machine": common.machine()}
    if not options.json:
        print(f"{'name':40} {'value':>14} {'unit':8} {'baseline':>14} {'ratio':>8}")
    try:
        for row in known[options.name].run(options.quick):
            show(row, options.json, where)
    except (OSError, RuntimeError, LaunchError, subprocess.CalledProcessError) as error:
        print(f"bench {options.name}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
