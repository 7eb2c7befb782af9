# SPDX-License-Identifier: Apache-2.0
"""The commands, run for real: what they start, what they pass on, what they say and that nothing stays behind."""
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from support import MADFS, TIMEOUT_S, call, clean_environment

from pymadfs import cli, cluster, keeper, launch

# Prints "ready", then the names of the signals that come in until one line of input or its end arrives; exits with 3.
LISTENER = """
import os, select, signal, sys
reading, writing = os.pipe2(os.O_NONBLOCK)
for name in sys.argv[1:]:
    signal.signal(getattr(signal, name), lambda *_: None)
signal.set_wakeup_fd(writing)
print("ready", flush=True)
while True:
    ready, _, _ = select.select([reading, 0], [], [])
    if reading in ready:
        for number in os.read(reading, 64):
            print(signal.Signals(number).name, flush=True)
    else:
        sys.exit(3)
"""


def start(*arguments, tmp_path=None, **options):
    """A ``madfs`` process with pipes; ``tmp_path`` is where its temporary directories go."""
    environment = {**clean_environment(), **({"TMPDIR": str(tmp_path)} if tmp_path else {})}
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
    return subprocess.Popen([*MADFS, *map(str, arguments)], env=environment, **options)


def wait_for_end(pids):
    """Wait until none of the processes ``pids`` exists any more, or fail."""
    for pid in pids:
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            assert select.select([fd], [], [], TIMEOUT_S)[0], f"process {pid} did not end"
        finally:
            os.close(fd)


def parent(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def one_line(done, *words, name="madfs"):
    """Assert that a command said exactly one line, of its own, with ``words`` in it."""
    assert done.stderr.startswith(name) and done.stderr.count("\n") == 1, done.stderr
    for word in words:
        assert word in done.stderr


# --- madfs run: transparent -----------------------------------------------------------------------------------------


def test_program_sees_the_mount_and_its_status_is_ours(madfs):
    done = madfs("run", "--servers", 2, "--", "sh", "-c", "echo hello > /madfs/f && cat /madfs/f; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, "hello\n", "")


def test_without_dashes_and_with_arguments_that_look_like_ours(madfs):
    done = madfs("run", "--servers", 1, "echo", "--servers", "x", "--", "-h")
    assert (done.returncode, done.stdout) == (0, "--servers x -- -h\n")


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGSEGV", "SIGINT"])
def test_ends_by_the_signal_that_killed_the_program(madfs, name):
    number = getattr(signal, name)
    done = madfs("run", "--servers", 1, "--", "sh", "-c", f"kill -{number.value} $$")
    assert done.returncode == -number
    assert done.stderr == ""


@pytest.mark.parametrize("name", sorted(number.name for number in launch.FORWARDED))
def test_passes_signals_on_once(name):
    process = start("run", "--servers", 1, "--", sys.executable, "-c", LISTENER, name)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(getattr(signal, name))
    assert process.stdout.readline() == f"{name}\n"
    output, errors = process.communicate("done\n", timeout=TIMEOUT_S)
    assert (process.returncode, output, errors) == (3, "", "")


def test_interrupt_of_the_terminal_arrives_once():
    master, slave = os.openpty()
    process = start("run", "--servers", 1, "--", sys.executable, "-c", LISTENER, "SIGINT", stdin=slave, stdout=slave,
                    stderr=slave, preexec_fn=lambda: os.login_tty(os.dup(0)))
    os.close(slave)
    seen = b""
    try:
        while b"ready" not in seen:
            seen += os.read(master, 4096)
        os.write(master, b"\x03")
        while b"SIGINT" not in seen:
            seen += os.read(master, 4096)
        os.write(master, b"done\n")
        assert process.wait(TIMEOUT_S) == 3
        while True:
            seen += os.read(master, 4096)
    except OSError:
        pass  # The last process on the terminal has ended.
    finally:
        os.close(master)
    assert seen.count(b"SIGINT") == 1, seen
    assert b"1 of 1 servers" in seen  # progress, because somebody is watching


def test_standard_streams_are_the_programs(madfs):
    done = madfs("run", "--servers", 1, "--", "cat", stdin=None, input="through\n")
    assert done.stdout == "through\n"


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_the_programs_too(tmp_path, closed):
    script = f"ls -l /proc/self/fd > {tmp_path}/fds; echo hello > /madfs/f && cat /madfs/f > {tmp_path}/said"
    command = f"{' '.join(MADFS)} run --servers 1 -- sh -c '{script}' {closed}"
    done = subprocess.run(["sh", "-c", command], env=clean_environment(), input=b"", timeout=TIMEOUT_S)
    assert done.returncode == 0 and (tmp_path / "said").read_text() == "hello\n"
    assert "/dev/null" not in (tmp_path / "fds").read_text()


@pytest.mark.parametrize(("limit", "word"), [("-n 40", "open files"), ("-f 1000", "bytes of a file"),
                                             ("-v 400000", "bytes of memory"), ("-d 80000", "bytes of data")])
def test_limits_that_servers_cannot_live_with(limit, word):
    command = f"ulimit {limit}; {' '.join(MADFS)} run -- true"
    done = subprocess.run(["bash", "-c", command], env=clean_environment(), capture_output=True, text=True,
                          timeout=TIMEOUT_S)
    assert done.returncode == 2
    one_line(done, "ulimit", word)


def test_soft_limits_are_the_programs_and_not_the_servers(tmp_path):
    """A server that grew beyond its user's limit of file sizes, or ran longer than that of time, would be killed."""
    script = "ulimit -Sf 1000; ulimit -St 60; exec " + " ".join(MADFS) + """ run --servers 1 -- sh -c '
ulimit -f; ulimit -t; cat /proc/$(sed -n "s/^server 0 [^ ]* [^ ]* \\([0-9]*\\) .*/\\1/p" $MADFS_CLUSTER)/limits'"""
    done = subprocess.run(["bash", "-c", script], env=clean_environment(), capture_output=True, text=True,
                          timeout=TIMEOUT_S)
    assert done.stdout.split()[:2] == ["2000", "60"], done.stderr  # in blocks of 512 bytes
    kinds = "Max file size", "Max cpu time"
    limits = [line.split()[-3] for line in done.stdout.splitlines() if line.startswith(kinds)]
    assert limits == ["unlimited", "unlimited"]


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone can become nobody")
@pytest.mark.usefixtures("others_may_run_it")
def test_the_jobs_umask_is_not_the_servers():
    """Root may enter what no permission is left for; others may not."""
    nobody = {"user": 65534, "group": 65534, "extra_groups": []}
    directory = tempfile.mkdtemp()
    try:
        os.chown(directory, 65534, 65534)
        script = f"umask 777; {' '.join(MADFS)} run --servers 1 -- sh -c 'umask; echo hello > /madfs/f'"
        done = call(["bash", "-c", script], environment={"TMPDIR": directory, "HOME": directory}, **nobody)
        assert (done.returncode, done.stdout) == (0, "0777\n"), done.stderr
        assert os.listdir(directory) == []
    finally:
        shutil.rmtree(directory)


@pytest.mark.skipif(os.geteuid() != 0, reason="a /dev/shm of one's own needs root")
@pytest.mark.parametrize("options", ["size=64k", "size=1M,full", "ro"])
def test_shared_memory_that_is_full_or_missing(options):
    full = "head -c 2000000 /dev/zero > /dev/shm/full;" if options.endswith("full") else ""
    script = f"""mount -t tmpfs -o {options.partition(',full')[0]} none /dev/shm; {full}
{' '.join(MADFS)} run --servers 2 -- sh -c 'cp /bin/ls /madfs/f && cmp /bin/ls /madfs/f && echo same'"""
    done = subprocess.run(["unshare", "-m", "bash", "-c", script], env=clean_environment(), capture_output=True,
                          text=True, timeout=TIMEOUT_S)
    if "Operation not permitted" in done.stderr:
        pytest.skip("no namespaces here")
    assert done.stdout == "same\n" and done.returncode == 0, done.stderr


def test_program_on_the_mount(madfs, tmp_path):
    store = tmp_path / "store"
    assert madfs("run", "--store", store, "--", "cp", "/bin/echo", "/madfs/say").returncode == 0
    done = madfs("run", "--store", store, "--", "/madfs/say", "hello", "-n")
    assert (done.returncode, done.stdout) == (0, "hello -n\n"), done.stderr
    assert madfs("run", "--store", store, "--", "/madfs/none").returncode == 127


def test_other_preloads_stay(madfs):
    done = madfs("run", "--servers", 1, "--", "printenv", "LD_PRELOAD", environment={"LD_PRELOAD": "libm.so.6"})
    assert done.stdout == f"{launch.LIBRARY}:libm.so.6\n"


def test_run_within_run(madfs):
    inner = "echo in > /inner/f; cat /inner/f; echo $LD_PRELOAD; " + (
        "set -- $(grep '^server 0' $MADFS_CLUSTER); grep -c intercept /proc/$5/maps")
    done = madfs("run", "--servers", 1, "--", *MADFS, "run", "--servers", 1, "--mount", "/inner", "--", "sh", "-c",
                 inner)
    assert done.stdout == f"in\n{launch.LIBRARY}\n0\n", done.stderr


# --- madfs run: nothing stays ---------------------------------------------------------------------------------------


def test_removes_processes_and_files(madfs, tmp_path):
    done = madfs("run", "--servers", 2, "--", "sh", "-c",
                 "cat $MADFS_CLUSTER; dd if=/dev/zero of=/madfs/f bs=1M count=3 2>&1")
    description = cluster.parse(done.stdout.partition("3+0")[0])
    assert len(description.servers) == 2
    assert not any(os.path.exists(f"/proc/{server.pid}") for server in description.servers)
    assert os.listdir(tmp_path / "tmp") == []


def running(tmp_path, servers=2):
    """A launcher whose program waits for input: (process, its servers)."""
    process = start("run", "--servers", servers, "--", "sh", "-c", "cat $MADFS_CLUSTER; echo; read line",
                    tmp_path=tmp_path)
    text = "".join(iter(process.stdout.readline, "\n"))
    return process, cluster.parse(text).servers


def shared_memory_of(pids):
    """System V segments that one of the processes made."""
    with open("/proc/sysvipc/shm") as file:
        return [line for line in list(file)[1:] if int(line.split()[4]) in pids]


@pytest.mark.parametrize("victim", ["launcher", "keeper"])
def test_servers_end_when_somebody_is_killed(tmp_path, victim):
    process, servers = running(tmp_path)
    guardian, pids = parent(servers[0].pid), [server.pid for server in servers]
    assert shared_memory_of(pids)
    os.kill(process.pid if victim == "launcher" else guardian, signal.SIGKILL)
    wait_for_end([*pids, guardian])
    assert not shared_memory_of(pids)
    _, errors = process.communicate("done\n", timeout=TIMEOUT_S)
    assert process.returncode == (-signal.SIGKILL if victim == "launcher" else 0), errors
    assert ("keeper" in errors) == (victim == "keeper")
    assert os.listdir(tmp_path) == []


def test_tells_of_a_server_that_died(tmp_path):
    process, servers = running(tmp_path)
    os.kill(servers[1].pid, signal.SIGKILL)
    line = process.stderr.readline()
    assert line.startswith(f"madfs: server 1 (127.0.0.1:{servers[1].port}, pid {servers[1].pid}) was killed by SIGKILL")
    assert process.communicate("done\n", timeout=TIMEOUT_S) == ("", "")
    assert process.returncode == 0


def test_says_why_a_server_did_not_start(madfs, tmp_path):
    store = tmp_path / "store"
    assert madfs("run", "--servers", 2, "--store", store, "--", "true").returncode == 0
    shutil.move(store / "server-0", store / "0")
    shutil.move(store / "server-1", store / "server-0")
    shutil.move(store / "0", store / "server-1")
    done = madfs("run", "--store", store, "--", "true")
    assert done.returncode == 2
    one_line(done, "server ", "did not start")
    assert os.listdir(tmp_path / "tmp") == []


def test_a_store_that_lost_a_part_is_not_begun_anew(madfs, tmp_path):
    store = tmp_path / "store"
    assert madfs("run", "--servers", 2, "--store", store, "--", "cp", "-r", "/etc/default", "/madfs").returncode == 0
    for lose, word in (("server-0", "server-0"), ("server-1", "of 2 servers"), ("server-1/kv", "server-1"),
                       ("server-0/kv/CURRENT", "server 0")):
        shutil.move(store / lose, tmp_path / "lost")
        done = madfs("run", "--store", store, "--", "true")
        assert done.returncode == 2
        one_line(done, word)
        shutil.move(tmp_path / "lost", store / lose)
    done = madfs("run", "--store", store, "--", "diff", "-r", "/etc/default", "/madfs/default")
    assert (done.returncode, done.stderr) == (0, "")


# --- stores ---------------------------------------------------------------------------------------------------------


def test_store_keeps_everything(madfs, tmp_path):
    store = tmp_path / "store"
    write = ("mkdir /madfs/d; cd /madfs/d; seq 1 200000 > large; echo small > small; ln -s small link; "
             "md5sum /madfs/d/*")
    first = madfs("run", "--servers", 2, "--store", store, "--chunk-size", "64K", "--", "sh", "-c", write)
    again = madfs("run", "--store", store, "--", "sh", "-c", "md5sum /madfs/d/*")
    assert first.returncode == again.returncode == 0, first.stderr + again.stderr
    assert first.stdout.count("\n") == 3 and again.stdout == first.stdout
    other = madfs("run", "--servers", 3, "--store", store, "--", "true")
    assert other.returncode == 2
    one_line(other, "belongs to 2 servers", "--servers 2")


# --- madfs up, status, down -----------------------------------------------------------------------------------------


@pytest.fixture
def standing(madfs, tmp_path):
    """Cluster file and store of two standing servers."""
    path, store = tmp_path / "dir" / "cluster", tmp_path / "store"
    done = madfs("up", "--servers", 2, "--store", store, "--cluster", path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{path}\n"
    yield path, store
    if path.exists():
        assert madfs("down", "--cluster", path).returncode == 0
    assert set(os.listdir(tmp_path / "dir")) <= {"cluster.log"}  # it stays when it says something


def test_standing_servers_are_shared(madfs, standing):
    path, _ = standing
    assert path.stat().st_mode & 0o777 == 0o600
    assert madfs("run", "--cluster", path, "--", "sh", "-c", "echo kept > /madfs/f; exit 4").returncode == 4
    done = madfs("run", "--", "cat", "/madfs/f", environment={"MADFS_CLUSTER": str(path)})
    assert (done.returncode, done.stdout) == (0, "kept\n")


def test_status(madfs, standing):
    path, store = standing
    assert madfs("run", "--cluster", path, "--", "sh", "-c", "echo 1 > /madfs/a; echo 2 > /madfs/b").returncode == 0
    done = madfs("status", "--json", "--cluster", path)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0 and [row["server"] for row in rows] == [0, 1]
    assert all(row["alive"] and sum(row["operations"].values()) > 0 and row["uptime_s"] >= 0 for row in rows)
    assert sum(row["files"] for row in rows) == 2
    assert rows[0]["store"] == str(store / "server-0")
    text = madfs("status", "--cluster", path).stdout
    assert text.count("\n") == 2 and "operations" in text


def test_up_again_starts_what_died(madfs, standing):
    path, store = standing
    assert madfs("run", "--cluster", path, "--", "sh", "-c",
                 "for i in 1 2 3 4 5 6; do echo $i > /madfs/$i; done").returncode == 0
    before = cluster.read(path).servers
    os.kill(before[1].pid, signal.SIGKILL)
    wait_for_end([before[1].pid])
    status = madfs("status", "--cluster", path)
    assert status.returncode == 1 and "does not answer" in status.stdout
    done = madfs("up", "--servers", 2, "--store", store, "--cluster", path)
    assert (done.returncode, done.stdout) == (0, f"{path}\n"), done.stderr
    after = cluster.read(path).servers
    assert after[0] == before[0]
    assert after[1].port == before[1].port and after[1].pid != before[1].pid
    assert madfs("run", "--cluster", path, "--", "sh", "-c", "cat /madfs/*").stdout == "1\n2\n3\n4\n5\n6\n"
    assert "server 1" in Path(f"{path}.log").read_text()


def test_up_again_with_other_wishes(madfs, standing):
    path, _ = standing
    done = madfs("up", "--servers", 3, "--cluster", path)
    assert done.returncode == 2
    one_line(done, "--servers 2", "madfs down")


def test_down_when_nothing_runs(madfs, standing):
    path, _ = standing
    assert madfs("down", "--cluster", path).returncode == 0
    done = madfs("down", "--cluster", path)
    assert done.returncode == 2
    one_line(done, str(path))


def test_up_after_the_keeper_was_killed(madfs, standing):
    path, store = standing
    servers = cluster.read(path).servers
    os.kill(parent(servers[0].pid), signal.SIGKILL)
    wait_for_end([server.pid for server in servers])
    done = madfs("up", "--store", store, "--cluster", path)
    assert done.returncode == 0, done.stderr
    assert len(cluster.read(path).servers) == 2


def test_default_place_belongs_to_user_and_node():
    assert launch.default_cluster({"MADFS_CLUSTER": "/a/b"}) == "/a/b"
    assert launch.default_cluster({"XDG_RUNTIME_DIR": "/run/user/7"}) == "/run/user/7/madfs/cluster"
    assert socket.gethostname() in launch.default_cluster({})


# --- wrong usage ----------------------------------------------------------------------------------------------------

WRONG = {
    "unknown option": (["run", "--srevers", "3", "--", "true"], "--srevers"),
    "unknown command": (["runn", "--", "true"], "runn"),
    "no command": ([], "COMMAND"),
    "no program": (["run", "--"], "no program"),
    "no program at all": (["run", "--servers", "2"], "no program"),
    "no number": (["run", "--servers", "x", "--", "true"], "--servers"),
    "no servers": (["run", "--servers", "0", "--", "true"], "from 1"),
    "relative mount": (["run", "--mount", "madfs", "--", "true"], "absolute"),
    "mount at the root": (["run", "--mount", "/", "--", "true"], "hide"),
    "mount at the root, disguised": (["run", "--mount", "/a/..", "--", "true"], "hide"),
    "mount over MadFS": (["run", "--mount", os.path.dirname(launch.LIBRARY), "--", "true"], "hide"),
    "mount over the kernel's": (["run", "--mount", "/proc/self", "--", "true"], "hide"),
    "mount over the programs": (["run", "--mount", "/usr", "--", "true"], "hide"),
    "mount with a blank": (["run", "--mount", "/mad fs", "--", "true"], "blanks"),
    "mount too long": (["run", "--mount", "/" + "x/" * 1000, "--", "true"], "1000 bytes"),
    "no number, in other digits": (["run", "--servers", "\u00b2", "--", "true"], "from 1"),
    "chunk size": (["run", "--chunk-size", "12", "--", "true"], "4K"),
    "chunk size in words": (["run", "--chunk-size", "big", "--", "true"], "4K"),
    "no cluster file": (["run", "--cluster", "/nonexistent/cluster", "--", "true"], "/nonexistent/cluster"),
    "cluster and servers": (["run", "--cluster", "/x", "--servers", "2", "--", "true"], "--servers"),
    "store in a file": (["run", "--store", __file__, "--", "true"], "cannot be written"),
    "store in no place": (["run", "--store", "/proc/madfs", "--", "true"], "cannot be written"),
    "store without a name": (["run", "--store", "", "--", "true"], "empty"),
    "cluster file without a name": (["run", "--cluster", "", "--", "true"], "empty"),
    "cluster file that is a directory": (["run", "--cluster", "/tmp", "--", "true"], "is no file"),
    "up for a directory": (["up", "--cluster", "/tmp"], "is a directory"),
    "down without servers": (["down", "--cluster", "/nonexistent/cluster"], "madfs up"),
    "status without servers": (["status", "--cluster", "/nonexistent/cluster"], "madfs up"),
    "cluster in no place": (["up", "--cluster", "/proc/madfs/cluster"], "--cluster"),
    "cluster below a file": (["up", "--cluster", f"{__file__}/cluster"], "--cluster"),
    "down below a file": (["down", "--cluster", f"{__file__}/cluster"], "--cluster"),
    "program for up": (["up", "--", "true"], "madfs run"),
    "no program for doctor": (["doctor", "--"], "no program"),
    "unknown option of doctor": (["doctor", "--srevers", "3", "--", "true"], "--srevers"),
    "port": (["up", "--port", "70000"], "65535"),
    "more ports than there are": (["up", "--servers", "2", "--port", "65535", "--cluster", f"/dev/shm/{os.getpid()}"],
                                  "65535"),
}


@pytest.mark.parametrize(("arguments", "word"), WRONG.values(), ids=WRONG)
def test_wrong_usage_is_told_in_one_line(madfs, arguments, word):
    done = madfs(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    one_line(done, word)


def test_wrong_setting(madfs):
    done = madfs("run", "--", "true", environment={"MADFS_EAGER_MAX": "many"})
    assert done.returncode == 2
    one_line(done, "MADFS_EAGER_MAX", "many")


def test_messages_cannot_be_written(madfs):
    done = madfs("run", "--", "true", environment={"MADFS_LOG": "/nonexistent/log"})
    assert done.returncode == 2
    one_line(done, "MADFS_LOG", "/nonexistent/log")


def test_temporary_data_goes_nowhere_else(madfs, tmp_path):
    done = madfs("run", "--servers", 1, "--", "true", environment={"TMPDIR": str(tmp_path / "none")})
    assert done.returncode == 2
    one_line(done, "TMPDIR", str(tmp_path / "none"))


@pytest.mark.parametrize(("size", "word"), [("64M", "ok"), ("65M", "4K to 64M")])
def test_the_largest_chunk_size_works(madfs, size, word):
    done = madfs("run", "--servers", 1, "--chunk-size", size, "--", "sh", "-c",
                 "head -c 70000000 /dev/zero > /madfs/f && wc -c < /madfs/f && echo ok")
    assert word in done.stdout + done.stderr


def test_port_taken(madfs, tmp_path):
    with socket.socket() as taken:
        taken.bind((keeper.HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = madfs("up", "--servers", 1, "--cluster", tmp_path / "cluster", "--port", port)
    assert done.returncode == 2
    one_line(done, str(port), "--port")
    assert os.listdir(tmp_path) == ["tmp"] and os.listdir(tmp_path / "tmp") == []


@pytest.mark.parametrize(("old", "new", "word"), [
    ("madfs 1\n", "", "no cluster file"), ("madfs 1", "madfs 2", "version 2"), ("mount /", "mount ", "line 2"),
    ("secret ", "secret x", "line 3"), ("secret ", "secret ab", "line 3"), ("madfs 1\n", "madfs 1\0", "version"),
    ("127.0.0.1 ", "127.0.0.1 9", "line 4"), ("127.0.0.1 ", "127.0.0.1 -", "line 4"),
    ("server 0", "server 1", "numbered from 0"), ("server", "\0\udcff", "line 4")])
def test_damaged_cluster_file(madfs, cluster_file, tmp_path, old, new, word):
    path = tmp_path / "cluster"
    path.touch(0o600)
    path.write_text(Path(cluster_file).read_text().replace(old, new, 1), errors="surrogateescape")
    secret = cluster.read(cluster_file).secret.hex()
    for command in (["run", "--cluster", path, "--", "true"], ["status", "--cluster", path]):
        done = madfs(*command)
        assert done.returncode == 2
        one_line(done, str(path), word, "madfs up")
        assert secret[20:] not in done.stderr


def test_cluster_file_with_a_mount_over_the_system(madfs, cluster_file, tmp_path):
    path, found = tmp_path / "cluster", cluster.read(str(cluster_file))
    cluster.Cluster("/usr", found.secret, found.servers).write(str(path))
    done = madfs("run", "--cluster", path, "--", "true")
    assert done.returncode == 2
    one_line(done, "/usr", "hide")


def test_cluster_file_that_nobody_writes(madfs, tmp_path):
    os.mkfifo(tmp_path / "cluster", 0o600)
    done = madfs("status", "--cluster", tmp_path / "cluster")
    assert done.returncode == 2
    one_line(done, "is no file")


@pytest.mark.parametrize("arguments", ["--help", "run --help", "status --cluster {}", "doctor -- true"])
def test_nowhere_to_write_to(cluster_file, arguments):
    command = " ".join([*MADFS, arguments.format(cluster_file)])
    done = call(["bash", "-c", f"{command} > /dev/full"])
    assert done.returncode == 2
    one_line(done, "standard output", "No space left")
    done = call(["bash", "-c", f"{command} | true; echo ${{PIPESTATUS[0]}}"])  # true may end before or after it
    assert done.stdout.strip() in ("0", "141") and done.stderr == ""


def test_servers_whose_cluster_file_cannot_be_told(tmp_path):
    done = call(["bash", "-c", f"{' '.join(MADFS)} up --servers 1 --cluster {tmp_path}/cluster > /dev/full"])
    assert done.returncode == 2
    one_line(done, "standard output")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("where", ["2>&-", "2>/dev/full"])
def test_nobody_hears_what_is_wrong(where):
    assert call(["bash", "-c", f"{' '.join(MADFS)} runn {where}"]).returncode == 2


def test_another_jobs_cluster_file(madfs, cluster_file, tmp_path):
    path, found = tmp_path / "cluster", cluster.read(str(cluster_file))
    cluster.Cluster(found.mount, bytes(32), found.servers).write(str(path))
    done = madfs("run", "--cluster", path, "--", "cat", "/madfs/f")
    assert done.returncode == 1 and "Input/output error" in done.stderr
    assert "another job" in done.stderr and "start it again" not in done.stderr


def test_cluster_file_open_to_others(madfs, cluster_file, tmp_path):
    path = tmp_path / "cluster"
    shutil.copy(cluster_file, path)
    path.chmod(0o644)
    done = madfs("run", "--cluster", path, "--", "true")
    assert done.returncode == 2
    one_line(done, f"chmod 600 {path}")


@pytest.mark.parametrize(("program", "status", "word"),
                         [("no-such-program", 127, "not found"), (__file__, 126, "executable")])
def test_program_that_cannot_be_executed(madfs, program, status, word):
    done = madfs("run", "--servers", 1, "--", program)
    assert done.returncode == status
    one_line(done, program, word)


def compile_c(tmp_path, text, *flags, name="program"):
    (tmp_path / "x.c").write_text(text)
    subprocess.run(["gcc", "-o", tmp_path / name, tmp_path / "x.c", *flags], check=True, timeout=TIMEOUT_S)
    return tmp_path / name


def test_static_program_is_warned_about(madfs, tmp_path):
    program = compile_c(tmp_path, "int main(void) { return 5; }", "-static")
    done = madfs("run", "--servers", 1, "--", program)
    assert done.returncode == 5
    one_line(done, "warning", str(program), "statically linked")


@pytest.mark.parametrize(("source", "word"), [
    ('const char madfs_version[] = "0.0.1";', "is 0.0.1, this is"), ("int other;", "unknown version"),
    (None, "missing"), ("", "ELF")])
def test_preload_library_of_another_version(tmp_path, monkeypatch, capfd, source, word):
    library = tmp_path / "lib.so"
    if source:
        compile_c(tmp_path, source, "-shared", name="lib.so")
    elif source is not None:
        library.write_text("not a library")
    monkeypatch.setattr(launch, "LIBRARY", str(library))
    assert cli.main(["run", "--", "true"]) == 2
    captured = capfd.readouterr()
    assert captured.err.startswith("madfs run: the preload library") and captured.err.count("\n") == 1
    assert word in captured.err and "make build" in captured.err


@pytest.mark.parametrize("name", ["libmadfs_runtime.so", "libmfp.so.0"])
def test_libraries_that_are_damaged(tmp_path, name):
    folder = shutil.copytree(os.path.dirname(launch.LIBRARY), tmp_path / "lib")
    launch.check_runtime(str(folder))
    os.truncate(folder / name, 100_000)
    with pytest.raises(launch.LaunchError, match=rf"{name} cannot be used: .* truncated .*make build"):
        launch.check_runtime(str(folder))
    (folder / name).unlink()
    if name == launch.RUNTIME:
        with pytest.raises(launch.LaunchError, match=r"No such file .*make build"):
            launch.check_runtime(str(folder))


def test_help_is_short_and_names_every_setting(madfs):
    text = madfs("--help").stdout
    assert all(setting.variable in text for setting in cli.SETTINGS)
    for command in ("run", "doctor", "up", "down", "status"):
        assert command in text
        assert madfs(command, "--help").stdout.startswith(f"usage: madfs {command}")


def test_interrupted_while_python_starts(tmp_path):
    """The interpreter itself takes some milliseconds, and its site took longest: Ctrl-C in it gave a traceback."""
    (tmp_path / "sitecustomize.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    for name in ("madfs", "madfs-mpirun"):
        done = call([Path(sys.executable).with_name(name), "--version"], environment={"PYTHONPATH": str(tmp_path)})
        assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_interrupt_before_python_can_take_it(tmp_path):
    """SIGINT waits until the first statement: the interpreter's own start would answer it with a traceback."""
    if "--block-signal" not in call(["env", "--help"]).stdout:
        pytest.skip("env cannot block signals: coreutils before 8.31")
    shutil.copy(Path(sys.executable).with_name("madfs"), tmp_path)
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nkill -INT $$\necho waits\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    done = call([tmp_path / "madfs", "--version"])
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "waits\n", "")


def test_version(madfs):
    import pymadfs

    assert madfs("--version").stdout == f"madfs {pymadfs.__version__}\n"


def test_summary(madfs):
    done = madfs("run", "--servers", 2, "--summary", "--", "sh", "-c",
                 "head -c 3000000 /dev/zero > /madfs/f; cat /madfs/f | wc -c")
    assert done.returncode == 0 and done.stdout == "3000000\n"
    assert "2 of 2 servers" in done.stderr and "2.9 MiB written" in done.stderr and "1 file of 2.9 MiB" in done.stderr
