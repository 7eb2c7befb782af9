# SPDX-License-Identifier: Apache-2.0
"""Every system call with pointers, each of them wrong in turn: on the mount as on a local directory, and no crash."""
import json
import re
import subprocess
import sys

import pytest
from pointer_calls import CALLS, WITHOUT
from support import AS_ROOT, ROOT, TIMEOUT_S, call_numbers

from pymadfs import ops

SCRIPT = ROOT / "tests" / "posix" / "pointers.py"

REASONS = {
    "(name_to_handle_at|fanotify_mark|mount|pivot_root|move_mount|open_tree_attr|mount_setattr|file_getattr|"
    "file_setattr|cachestat|finit_module|kexec_file_load|quotactl_fd) ":
        "refused: of what else may be wrong, the paths are looked at, one after the other",
    "io_uring_setup ": "refused: no rings",
    "mmap 1 0=.* directory": "a directory can be mapped nowhere, so nobody looks where",
    "get(sock|peer)name 0 1=cut": "the kernel has a longer name of the socket, and puts it there first",
}
"""What may fail for another reason -> why.  Each must differ somewhere."""


def results(directory, environment, how_many):
    command = [sys.executable, SCRIPT, directory, json.dumps(call_numbers()), how_many]
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          timeout=TIMEOUT_S, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def test_every_row_with_pointers_is_here():
    assert set(CALLS) | WITHOUT == set(ops.SYSCALLS) and not set(CALLS) & WITHOUT


@AS_ROOT
@pytest.mark.parametrize(("how_many", "least"), [("some", 4000), pytest.param("all", 11000, marks=pytest.mark.long)])
def test_bad_pointers_are_as_locally(runner, everybodys, how_many, least):
    local = results(f"{everybodys}/pointers", runner.plain, how_many)
    ours = results(f"{runner.mount}/pointers-{how_many}", runner.loaded, how_many)
    assert len(local) > least and ours.keys() == local.keys()
    different = {what: (ours[what], local[what]) for what in local if ours[what] != local[what]}
    reasons = {what: {reason for reason in REASONS if re.match(reason, what) and str(ours[what]).startswith("E")}
               for what in different}
    assert {what: different[what] for what in different if not reasons[what]} == {}
    assert how_many == "some" or set().union(*reasons.values()) == set(REASONS), "what does not differ needs no reason"
