# SPDX-License-Identifier: Apache-2.0
"""The door of the benchmarks: what it lists, what it prints, and what it says when something is wrong."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import TIMEOUT_S, clean_environment

import bench.__main__ as main
from bench.common import Row

ROOT = Path(__file__).parent.parent


def bench(*arguments, **environment):
    return subprocess.run([sys.executable, "-m", "bench", *arguments], cwd=ROOT, capture_output=True, text=True,
                          env={**clean_environment(), **environment}, timeout=4 * TIMEOUT_S)


def test_lists_and_refuses_in_one_line():
    assert [line.split()[0] for line in bench().stdout.splitlines()] == sorted(main.benchmarks())
    done = bench("nope", "--json")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("python -m bench: ") and "'nope'" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.long
def test_one_object_per_line_also_without_git():
    done = bench("rpc", "--quick", "--json", PATH=os.path.dirname(sys.executable) + ":/bin", GIT_DIR="/nonexistent")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0 and len(rows) == 6, done.stderr
    assert all(list(row) == ["name", "value", "unit", "baseline", "ratio", "commit", "machine"] for row in rows)
    assert {row["commit"] for row in rows} == {"unknown"}
    assert all(row["baseline"] is None or row["ratio"] == row["value"] / row["baseline"] for row in rows)


@pytest.mark.parametrize("error", [RuntimeError("it failed\nhere"), FileNotFoundError(2, "No such file", "cc")])
def test_a_part_that_fails(monkeypatch, capsys, error):
    class Broken:
        """Breaks."""

        @staticmethod
        def run(quick):
            yield Row("good", 3.0, "us", 1.5)
            raise error

    monkeypatch.setattr(main, "benchmarks", lambda: {"broken": Broken})
    assert main.main(["broken", "--json"]) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)["ratio"] == 2
    assert captured.err.startswith("bench broken: ") and captured.err.count("\n") == 1
