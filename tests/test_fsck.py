# SPDX-License-Identifier: Apache-2.0
"""madfs fsck finds what is wrong with a store, tells each thing once, and mends it; it finds nothing else."""
import contextlib
import os
import signal
import subprocess
import sys

import damages
import pytest
from damages import ALONE, DAMAGES, LOSSES, SERVERS, SETTLED, Stores
from support import MADFS, call

from pymadfs import cli
from pymadfs.server.kv import RocksKV

FILL = """
import os
import signal
os.makedirs("d/e/f")
for name in ("a", "d/b", "d/e/c", "d/e/f/g"):
    with open(name, "wb") as file:
        file.write(b"x" * 100)
with open("big", "wb") as file:
    file.write(b"y" * 3_000_000)
os.link("a", "d/link")
os.symlink("a", "s")
os.rename("d/b", "moved")
"""


@pytest.fixture
def store(tmp_path):
    """The path of the store of three servers that are stopped, with some files in it."""
    path = str(tmp_path / "store")
    done = call([*MADFS, "run", "--servers", SERVERS, "--store", path, "--", "sh", "-c",
                 f"cd /madfs && '{sys.executable}' -c '{FILL}'"])
    assert done.returncode == 0, done.stderr
    return path


def fsck(store, *options):
    """``(exit status, lines of output)``."""
    done = call([*MADFS, "fsck", "--store", store, *options])
    assert all(" keys, server " in line for line in done.stderr.splitlines()), done.stderr  # how far it is
    return done.returncode, done.stdout.splitlines()


@contextlib.contextmanager
def opened(store):
    """The stores below a directory, to do damage to."""
    tops = [f"{store}/server-{number}" for number in range(SERVERS)]
    kvs = [RocksKV(f"{top}/kv") for top in tops]
    try:
        yield Stores(kvs, tops)
    finally:
        for kv in kvs:
            kv.commit()
            kv.close()


def test_a_store_in_order_is_found_in_order(store):
    assert fsck(store) == (0, ["4 directories, 7 other names on 3 servers: nothing is wrong"])


def test_damage_is_told_and_mended(store, damage=damages.lose_a_directory):
    """One kind; tests/unit/test_fsck_damage.py has the others."""
    with opened(store) as stores:
        damage(stores)
    message, times = DAMAGES[damage]
    status, lines = fsck(store)
    assert status == 4 and sum(message in line for line in lines if line.startswith("wrong: ")) == times, lines
    assert fsck(store)[0] == 4  # looking changes nothing
    status, lines = fsck(store, "--repair")
    assert status == 1 and lines[-1].endswith("nothing is wrong"), lines
    assert any(line.startswith("mended: ") and message in line for line in lines)
    assert fsck(store)[0] == 0


def test_what_a_start_settles_is_no_damage(store):
    with opened(store) as stores:
        for damage in SETTLED:
            damage(stores)
    status, lines = fsck(store)
    assert status == 0 and "nothing is wrong" in lines[-1], lines
    assert len(lines) == 1, "and nothing is under way any more"


def test_all_damage_at_once_is_mended_and_the_rest_stays(store):
    with opened(store) as stores:
        for damage in [each for each in DAMAGES if each not in LOSSES | ALONE | {damages.lose_a_directory}]:
            damage(stores)
        damages.lose_a_directory(stores)  # others need it
    assert fsck(store, "--repair")[0] == 1
    done = call([*MADFS, "run", "--store", store, "--", "sh", "-c",
                 "cd /madfs && cat a d/link d/e/c d/e/f/g s | wc -c && wc -c <big && ls -d d/e moved"])
    assert done.stdout.split() == ["500", "3000000", "d/e"], done.stderr


def test_a_live_cluster_with_damage(tmp_path, store):
    """While programs are busy exactly what is wrong is told; when they have ended it is mended, and nobody restarts."""
    chosen = [damages.lose_a_directory, damages.miscount_links,
              damages.leave_data_without_an_inode, damages.lose_a_chunk_file, damages.embed_an_inode_twice,
              damages.put_a_link_on_a_wrong_server, damages.leave_attributes_of_nobody, damages.damage_intents]
    with opened(store) as stores:
        for damage in chosen:
            damage(stores)
    path = str(tmp_path / "cluster")
    assert call([*MADFS, "up", "--store", store, "--cluster", path]).returncode == 0
    environment = {**os.environ, **cli.preload_environment(path)}
    workers = [subprocess.Popen(["sh", "-c", f"n={number}; mkdir -p /madfs/w$n; cd /madfs/w$n; echo go; {BUSY}"],
                                env=environment, stdout=subprocess.PIPE, start_new_session=True) for number in range(3)]
    try:
        for worker in workers:
            assert worker.stdout.readline() == b"go\n"
        found = call([*MADFS, "fsck", "--cluster", path])
    finally:
        for worker in workers:
            os.killpg(worker.pid, signal.SIGKILL)  # what it runs, too
            worker.communicate()
    try:
        wrong = [line for line in found.stdout.splitlines() if line.startswith("wrong: ")]
        expected = 1 + sum(DAMAGES[damage][1] for damage in chosen)
        assert any("/d has 0 directories in it and a link count of 3" in line for line in wrong), "the lost one counted"
        assert found.returncode == 4 and len(wrong) == expected, found.stdout
        for damage in chosen:
            message, times = DAMAGES[damage]
            assert sum(message in line for line in wrong) == times, (message, wrong)
        mended = call([*MADFS, "fsck", "--cluster", path, "--repair"])
        assert mended.returncode == 1 and mended.stdout.endswith("nothing is wrong\n"), mended.stdout + mended.stderr
        shown = call(["sh", "-c", "cd /madfs && cat a d/link d/e/c d/e/f/g s moved | wc -c"], environment=environment)
        assert shown.stdout.split() == ["600"], shown.stderr
        assert call([*MADFS, "fsck", "--cluster", path]).returncode == 0
    finally:
        assert call([*MADFS, "down", "--cluster", path]).returncode == 0


BUSY = """
while :; do
  mkdir d d/e; echo x > d/f; mv d/f g; ln g h; mv d k; setfattr -n user.a -v 1 g 2>/dev/null
  head -c 1500000 /dev/zero > big; : > big; head -c 600000 /dev/zero > big; rm -r k g h big
done
"""


def test_fsck_of_a_cluster_at_work(cluster_file):
    environment = {**os.environ, **cli.preload_environment(cluster_file)}
    script = "mkdir -p /madfs/w; cd /madfs/w; while :; do mkdir d; echo x > d/f; mv d/f g; ln g h; rm -r d g h; done"
    with subprocess.Popen(["sh", "-c", f"echo go; {script}"], env=environment, stdout=subprocess.PIPE) as worker:
        try:
            assert worker.stdout.readline() == b"go\n"
            done = call([*MADFS, "fsck", "--cluster", cluster_file])
            refused = call([*MADFS, "fsck", "--cluster", cluster_file, "--repair"])
        finally:
            worker.kill()
    assert done.returncode == 0 and "nothing is wrong" in done.stdout, done.stdout + done.stderr
    assert refused.returncode == 2 and "end them, or leave out --repair" in refused.stderr


@pytest.mark.parametrize(("options", "message"), [
    (["--store", "/nowhere"], "is not a store of servers"),
    (["--cluster", "/nowhere/cluster"], "cannot read the cluster file"),
    (["--store", "/nowhere", "--cluster", "/nowhere/cluster"], "leave out --cluster"),
])
def test_wrong_usage(options, message):
    done = call([*MADFS, "fsck", *options])
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1
