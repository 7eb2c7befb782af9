# SPDX-License-Identifier: Apache-2.0
"""One standing cluster of three servers for all comparisons, and a runner that does the same here and there."""
import itertools
import os
import shutil
import stat
import subprocess
import tempfile

import pytest

from pymadfs import cli


class Runner:
    """Runs a script in a fresh local directory and in a fresh directory on the mount, and compares all that can be
    seen."""

    def __init__(self, cluster, local):
        self.local = local
        self.loaded = {**os.environ, **cli.preload_environment(cluster), "LC_ALL": "C.UTF-8", "TZ": "UTC"}
        self.plain = {**os.environ, "LC_ALL": "C.UTF-8", "TZ": "UTC"}
        self.mount = self.loaded["MADFS_MOUNT"]
        self.numbers = itertools.count()

    def shell(self, script, directory, environment, timeout=60):
        """``script`` by bash in ``directory``; the directory's name in its output is replaced by D."""
        done = subprocess.run(["bash", "-c", f"cd {directory} || exit 99\numask 022\n{script}"], env=environment,
                              stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout)
        name = directory.encode()
        return done.returncode, done.stdout.replace(name, b"D"), done.stderr.replace(name, b"D")

    def both(self, script, timeout=60):
        """``((status, stdout, stderr), tree)`` of the script on the local directory and on the mount."""
        number = next(self.numbers)
        here, there = f"{self.local}/{number}", f"{self.mount}/compare-{number}"
        os.mkdir(here)
        subprocess.run(["mkdir", there], env=self.loaded, check=True, timeout=30)
        results = []
        for directory, environment in ((here, self.plain), (there, self.loaded)):
            seen = self.shell(script, directory, environment, timeout)
            copy = f"{self.local}/{number}.{len(results)}"
            # The tree is looked at through one and the same local directory, by a copier that keeps everything.
            subprocess.run(["cp", "-a", directory, copy], env=environment, check=True, timeout=60)
            results.append((seen, tree(copy)))
            shutil.rmtree(copy)
        subprocess.run(["rm", "-rf", there], env=self.loaded, check=True, timeout=60)
        return results

    def same(self, script, timeout=60):
        """Assert that the script does here what it does there; returns its standard output."""
        local, ours = self.both(script, timeout)
        assert ours[0] == local[0]
        assert ours[1] == local[1]
        return local[0][1]


def tree(top):
    """Relative path -> (type and mode, size, content or target) of everything below ``top``."""
    found = {}
    for directory, names, files in os.walk(top):
        for name in names + files:
            path = os.path.join(directory, name)
            info = os.lstat(path)
            if stat.S_ISLNK(info.st_mode):
                content = os.readlink(path)
            elif stat.S_ISREG(info.st_mode):
                with open(path, "rb") as file:
                    content = file.read()
            else:
                content = None
            size = None if stat.S_ISDIR(info.st_mode) else info.st_size
            found[os.path.relpath(path, top)] = (stat.filemode(info.st_mode), size, content)
    return found


@pytest.fixture(scope="session")
def standing(tmp_path_factory):
    """Path of the cluster file of three servers that live as long as the test session."""
    directory = tmp_path_factory.mktemp("standing")
    path = str(directory / "cluster")
    common = ["--cluster", path]
    subprocess.run(["madfs", "up", "--servers", "3", "--store", str(directory / "store"), *common], check=True,
                   timeout=60)
    yield path
    subprocess.run(["madfs", "down", *common], check=True, timeout=60)


@pytest.fixture(scope="session")
def runner(standing, tmp_path_factory):
    return Runner(standing, str(tmp_path_factory.mktemp("local")))


@pytest.fixture
def everybodys():
    """A local directory that everybody can reach, as a mount is; not one of pytest's, which closes those of all its
    sessions."""
    directory = tempfile.mkdtemp(prefix="madfs-everybodys-")
    os.chmod(directory, 0o755)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)
