# SPDX-License-Identifier: Apache-2.0
"""libmadfs_runtime.so in processes of many kinds: C and Python, threads, forks, MPI."""
import ast
import json
import os
import re
import shutil
import subprocess

import pytest
from support import call, clean_environment

HERE = os.path.dirname(os.path.abspath(__file__))
EIO, ENOMEM, ENAMETOOLONG, ENOSYS = -5, -12, -36, -38
HOST_PATH = -5000

# Settings that a user may have for the application's UCX and Python; ours must not see them.
HOSTILE = {"UCX_TLS": "no_such_transport", "UCX_MEM_EVENTS": "y", "UCX_HANDLE_ERRORS": "bt,freeze",
           "UCX_ERROR_SIGNALS": "SEGV,BUS", "UCX_LOG_LEVEL": "info", "PYTHONHOME": "/nonexistent",
           "PYTHONPATH": "/nonexistent", "PYTHONVERBOSE": "1", "PYTHONMALLOC": "debug"}
HOSTILE_UCX = {name: value for name, value in HOSTILE.items() if name.startswith("UCX")}


def output(program, *arguments, environment=None, launcher=()):
    """What the program printed, once it has ended well."""
    done = call([*launcher, program, *arguments], environment=environment, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def ask(python, library, check, environment=None):
    return json.loads(output(python, f"{HERE}/host.py", library, check, environment=environment).stdout)


@pytest.fixture(scope="module")
def plain(compiled):
    return compiled("plain")


# --- calls ----------------------------------------------------------------------------------------------------------


def test_arguments_and_results(standin, pythons):
    found = ask(pythons[0], standin, "calls")
    assert found["identity"][:3] == [0, 7, 2 ** 62]
    assert ast.literal_eval(found["describe"]) == (5 << 20 | 3, b"/madfs/a\xff/", b"", -1)
    assert found["number"] == [ENOSYS, ENOSYS, EIO]
    assert found["same"]


def test_exceptions_become_errnos(standin, pythons):
    found = ask(pythons[0], standin, "calls")
    assert found["fail"] == [-2, -4095]
    assert found["identity"][3] == EIO, "a negative result is a defect"
    assert found["odd"] == [EIO, ENOMEM, EIO, EIO, ENAMETOOLONG, EIO, EIO, EIO, EIO, EIO, EIO, 1]
    assert found["escape"] == [HOST_PATH, "/etc/passwd", 1]
    assert found["errno"] == 77, "the application's errno is its own"


def test_shim_functions(standin, pythons):
    found = ask(pythons[0], standin, "shim")
    results, refused = ast.literal_eval(found["answer"])
    assert results == [42, (0x8001, b"r\0ecord", b"/madfs/file"), 1 << 40, None, True, False, 100, b"abc", None, 0o27,
                       b"kept\0"]
    assert refused == [("ValueError", None), ("OSError", ENAMETOOLONG * -1), ("OSError", 24), ("OSError", 9),
                       ("TypeError", None), ("OSError", 9), ("OSError", 14), ("OSError", 14), ("TypeError", None),
                       ("OSError", 22), ("TypeError", None)]
    assert found["seen"] == [["open_fd", 5, "record", "/madfs/x", 1], ["offset_set", 10, -1],
                             ["cwd", "/madfs/here", 1 << 63],
                             ["open_fd", 0, "", "/full", 0]]


def test_defects_are_logged_with_a_traceback(standin, pythons, tmp_path):
    log = tmp_path / "log"
    done = output(pythons[0], f"{HERE}/host.py", standin, "log", environment={"MADFS_LOG": str(log)})
    assert done.stderr == ""
    text = log.read_text()
    assert text.startswith("line 0\nline 1\nmadfs: odd() failed:\nTraceback")
    assert re.search(r'File "<frozen pymadfs.syscalls>", line \d+, in odd\nKeyError: .a defect.\nexiting\n$', text)
    again = output(pythons[0], f"{HERE}/host.py", standin, "log")
    assert again.stderr == text, "without MADFS_LOG it is standard error"


# --- the interpreter ------------------------------------------------------------------------------------------------


def test_interpreter_takes_nothing_from_outside(standin, plain, pythons):
    found = ask(pythons[0], standin, "state", {"PYTHONDEVMODE": "1"})
    path, streams, isolated, utf8_mode, collecting, frozen = ast.literal_eval(found["interpreter"])
    assert (path, streams, isolated, utf8_mode) == ([], [True, True, True], 1, 1)
    assert collecting and frozen
    output(plain, standin, "start", environment=HOSTILE)


def test_client_modules_need_nothing_that_is_not_frozen(standin, pythons):
    modules = ast.literal_eval(ask(pythons[0], standin, "state")["modules"])
    assert "pymadfs.rpc" in modules and "pymadfs._ucx_cffi" in modules
    heavy = {"re", "enum", "typing", "dataclasses", "logging", "asyncio", "threading", "json", "socket"}
    assert not heavy & set(modules), "these cost more than all the rest of the start"


def test_standard_streams_may_be_closed_or_odd(standin, plain):
    shell = 'exec "$0" "$1" start 0</ 2>&-'  # a directory makes an ordinary Python give up
    assert output("sh", "-c", shell, plain, standin).stdout == "done\n"


def test_wrong_abi_is_one_line(standin, pythons):
    error = ask(pythons[0], standin, "abi")["error"]
    assert "install them together" in error and "\n" not in error


def opened(library, program, check, trace):
    """Paths that a host asked the kernel for from the loading of the library on."""
    assert shutil.which("strace"), "install strace (packages.txt)"
    output(program, library, check, launcher=["strace", "-f", "-o", trace, "-e", "trace=%file"])
    lines = trace.read_text().splitlines()
    begin = next(number for number, line in enumerate(lines) if library in line and "openat" in line)
    named = re.compile(r'\((?:AT_FDCWD, )?"([^"]+)"')
    return {found[1] for line in lines[begin:] if (found := named.search(line))}


def test_start_reads_the_library_and_the_machine_only(runtime, standin, plain, tmp_path):
    folder = re.escape(os.path.dirname(runtime))
    allowed = re.compile(rf"{folder}(/|$)|/(proc|sys|lib|lib64|usr/lib)/|/etc/|/madfs-runtime$")
    asked = opened(runtime, plain, "start", tmp_path / "trace")
    assert [path for path in asked if not allowed.match(path)] == []
    asked |= opened(standin, plain, "modules", tmp_path / "trace")
    assert [path for path in asked if ".py" in path or "encodings" in path or "site-packages" in path] == []


# --- the library ----------------------------------------------------------------------------------------------------


def test_exports(runtime):
    listing = subprocess.check_output(["nm", "-D", "--defined-only", "-P", runtime], text=True)
    exported = {line.split()[0] for line in listing.splitlines()}
    events = {f"vBs_async_{name}" for name in ("add_timer", "modify_handler", "remove_handler", "set_event_handler")}
    assert exported == {"madfs_runtime_start", "Getenv", "Fopen", "Scandir", "Uct_iface_open"} | events


def test_needs_only_libc_and_its_own_ucx(runtime):
    listing = subprocess.check_output(["readelf", "-d", runtime], text=True)
    needed = set(re.findall(r"NEEDED.*\[(.*)\]", listing))
    ours = {name for name in needed if name.startswith("libmf")}
    assert needed - ours <= {"libc.so.6", "libm.so.6", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}
    assert ours >= {"libmfp.so.0", "libmft.so.0", "libmfs.so.0", "libmfm.so.0"}
    folder = os.path.dirname(runtime)
    for name in ours:
        listing = subprocess.check_output(["nm", "-D", "-P", f"{folder}/{name}"], text=True)
        assert not re.search(r"^(uc[mpst]_|ini_parse|void_class)", listing, re.MULTILINE), f"{name} has public names"


def test_thread_local_storage_is_small(runtime):
    """The static block has room for few bytes of libraries loaded late."""
    header = subprocess.check_output(["readelf", "-lW", runtime], text=True)
    size = next(int(line.split()[5], 16) for line in header.splitlines() if line.split()[:1] == ["TLS"])
    assert size <= 128


# --- hosts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("check", ["threads", "destructors", "cancel", "fork", "clone", "exit", "stack"])
def test_c_host(standin, plain, check):
    assert output(plain, standin, check).stdout == "done\n"


@pytest.mark.parametrize("check", ["threads", "fork"])
def test_host_that_is_not_position_independent(standin, compiled, check):
    assert output(compiled("fixed", "-no-pie"), standin, check).stdout == "done\n"


def test_sanitized_host(standin, compiled):
    """The host's allocator and its checks are used by the runtime too; forks are left out, they hang in its locks."""
    program = compiled("sanitized", "-fsanitize=address")
    for check in ("threads", "destructors", "exit"):
        assert output(program, standin, check, environment={"ASAN_OPTIONS": "detect_leaks=0"}).stdout == "done\n"


def test_python_hosts(standin, pythons):
    """Python of the same and of another build, in whose process two interpreters then are."""
    for python in pythons:
        found = ask(python, standin, "threads")
        assert (found["wrong"], found["states"]) == ([], 1)
        found = ask(python, standin, "forks")
        assert (found["statuses"], found["forked"]) == ([0] * 5, 0)
        assert ask(python, standin, "hygiene")["worker"] == "True"


def test_ucx_leaves_the_host_alone(standin, pythons):
    """No hook in libc's functions, no signal handler, no public library; the user's UCX settings are not for us."""
    for environment in ({}, HOSTILE_UCX):
        done = output(pythons[0], f"{HERE}/host.py", standin, "hygiene", environment=environment)
        found = json.loads(done.stdout)
        assert found["worker"] == "True" and found["same"]
        assert found["libraries"] and not [name for name in found["libraries"] if not name.startswith("libmf")]
        assert done.stderr == ""


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("mpi", ["mpich", "openmpi"])
def test_mpi_host(standin, compiled, mpi, when):
    assert shutil.which(f"mpicc.{mpi}"), f"install {mpi} (packages.txt)"
    program = compiled(f"host-{mpi}", "-DWITH_MPI", compiler=f"mpicc.{mpi}")
    environment = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
                   "OMPI_MCA_rmaps_base_oversubscribe": "1"}
    done = output(program, standin, when, launcher=[f"mpirun.{mpi}", "-n", "2"], environment=environment)
    assert done.stdout.count("done") == 2


def test_start_fails_in_one_line(runtime, plain, tmp_path):
    """A library without its own UCX beside it says so."""
    lonely = tmp_path / "libmadfs_runtime.so"
    shutil.copy(runtime, lonely)
    done = subprocess.run([plain, lonely, "start"], capture_output=True, text=True, env=clean_environment())
    assert done.returncode == 1 and "libmfp.so.0: cannot open shared object file" in done.stdout
