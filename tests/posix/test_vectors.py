# SPDX-License-Identifier: Apache-2.0
"""What reads and writes with odd vectors, counts and offsets give: as on a local directory."""
import os
import sys

import pytest
from support import TIMEOUT_S

SCRIPT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "vectors.py")


@pytest.mark.parametrize("files", ["both", "directory", pytest.param("append path closed", marks=pytest.mark.long)])
def test_odd_vectors(runner, files):
    assert runner.same(f"{sys.executable} {SCRIPT} . {files}", TIMEOUT_S).count(b"\n") > 300
