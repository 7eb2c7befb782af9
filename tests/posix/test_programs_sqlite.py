# SPDX-License-Identifier: Apache-2.0
"""sqlite on the mount: all journal modes, two writers and a reader at once, each a process of its own; and what a
writer that was killed leaves is recovered by another process."""
import subprocess
import sys

import pytest
from test_together import processes

MODES = ["DELETE", "TRUNCATE", "PERSIST", "MEMORY", "WAL", "OFF"]
WRITERS, ROWS = ("a", "b"), 25
TIMEOUT_S = 120

# A line of standard input is a start sign; the reader counts until it is told to end.
WORKER = """
import select, sqlite3, sys
mode, path, name, count = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
db = sqlite3.connect(path, timeout=60, isolation_level=None)
got = db.execute(f"pragma journal_mode={mode}").fetchone()[0]
assert got == mode.lower(), got
db.execute("create table if not exists rows (name, number, data, unique (name, number))")
print("ready", flush=True); sys.stdin.readline()
seen = 0
def work(number):
    global seen
    if name == "reader":
        now = db.execute("select count(*) from rows").fetchone()[0]
        assert now >= seen, (now, seen)
        seen = now
        return
    db.execute("begin immediate")
    db.execute("insert into rows values (?, ?, ?)", (name, number, "x" * (number % 7) * 500))
    db.execute("commit")
    print(number, flush=True)
for number in range(count):
    work(number)
while name == "reader" and not select.select([sys.stdin], [], [], 0)[0]:
    work(0)
db.close()
print("done", flush=True)
"""


def worker(mode, path, name, count):
    return [sys.executable, "-c", WORKER, mode, path, name, str(count)]


def rows(runner, path, mode):
    """Rows of each writer; the integrity of the database is checked."""
    query = ("import sqlite3, sys; db = sqlite3.connect(sys.argv[1]); "
             "ask = lambda what: db.execute(what).fetchall(); "
             "print(ask('pragma journal_mode')[0][0], ask('pragma integrity_check')); "
             "print(*[f'{n}={c}' for n, c in ask('select name, count(*) from rows group by name')])")
    done = subprocess.run([sys.executable, "-c", query, path], env=runner.loaded, check=True, capture_output=True,
                          text=True, timeout=TIMEOUT_S)
    state, counts = done.stdout.splitlines()
    # Only WAL is a property of the file; the others are of a connection.
    assert state == f"{'wal' if mode == 'WAL' else 'delete'} [('ok',)]"
    return dict(item.split("=") for item in counts.split())


@pytest.fixture
def database(runner):
    path = f"{runner.mount}/sqlite-{next(runner.numbers)}"
    subprocess.run(["mkdir", path], env=runner.loaded, check=True, timeout=60)
    yield f"{path}/db"
    subprocess.run(["rm", "-rf", path], env=runner.loaded, check=True, timeout=60)


@pytest.mark.parametrize("mode", MODES)
def test_two_writers_and_a_reader(runner, database, mode):
    commands = [worker(mode, database, name, ROWS if name != "reader" else 1) for name in (*WRITERS, "reader")]
    with processes(commands[:1], runner.loaded) as first:  # makes the database: pragmas of others may be refused then
        assert first[0].stdout.readline() == "ready\n"
        with processes(commands[1:], runner.loaded) as others:
            for process in others:
                assert process.stdout.readline() == "ready\n"
            for process in (*first, *others):
                process.stdin.write("go\n")
                process.stdin.flush()
            for process in (first[0], others[0]):
                said = [process.stdout.readline().strip() for _ in range(ROWS + 1)]
                assert said == [*map(str, range(ROWS)), "done"]
            others[1].stdin.write("end\n")
            others[1].stdin.flush()
            assert others[1].stdout.readline() == "done\n"
    assert rows(runner, database, mode) == {name: str(ROWS) for name in WRITERS}


@pytest.mark.parametrize("mode", ["DELETE", "WAL"])
def test_a_writer_that_is_killed(runner, database, mode):
    """What was committed is there; the next process rolls back, or forward, what was not."""
    with processes([worker(mode, database, "a", 100000)], runner.loaded) as started:
        process = started[0]
        assert process.stdout.readline() == "ready\n"
        process.stdin.write("go\n")
        process.stdin.flush()
        for _ in range(20):
            committed = int(process.stdout.readline())
        process.kill()
        tail = process.stdout.read().split()
        committed = max([committed, *map(int, tail[:-1] if tail else [])])
    kept = int(rows(runner, database, mode)["a"])
    assert kept >= committed + 1
    with processes([worker(mode, database, "b", ROWS)], runner.loaded) as started:
        process = started[0]
        assert process.stdout.readline() == "ready\n"
        out, _ = process.communicate("go\n", timeout=TIMEOUT_S)
        assert out.split()[-1] == "done"
    assert rows(runner, database, mode) == {"a": str(kept), "b": str(ROWS)}
