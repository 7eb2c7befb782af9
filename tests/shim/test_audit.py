# SPDX-License-Identifier: Apache-2.0
"""Nothing escapes: with Syscall User Dispatch (audit.c) every system call instruction traps while programs run, and
each that may concern files has to be one that the shim rewrote.
"""
import shutil
import struct
import subprocess
from collections import namedtuple
from pathlib import Path

import pytest
from support import MPIRUN, ROOT, call

from pymadfs.launch import LIBRARY

AUDIT_BYTES = 1 << 20
Audit = namedtuple("Audit", "processes threads traps judged reported text lines done")

THREADS = """
import os, subprocess, sys, threading
def work(n):
    with open(f'{sys.argv[1]}/{n}', 'w') as f: f.write('x' * n)
    assert os.path.getsize(f'{sys.argv[1]}/{n}') == n and os.listdir('/')
threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
[t.start() for t in threads]; [t.join() for t in threads]
print(subprocess.run(['ls', sys.argv[1]], capture_output=True, text=True).stdout.split(), flush=True)
pid = os.fork()
if not pid:
    with open(f'{sys.argv[1]}/child', 'w') as f: f.write('y')
    os._exit(0)
os.waitpid(pid, 0); print(open(f'{sys.argv[1]}/child').read(), flush=True)
os.posix_spawnp('cat', ['cat', f'{sys.argv[1]}/child'], os.environ); os.wait()
"""

LATE = """
long late_open(const char *path) {
  long r; register long r10 __asm__("r10") = 0644;
  __asm__ volatile("mov $257, %%eax; syscall" : "=a"(r) : "D"(-100L), "S"(path), "d"(66L), "r"(r10)
                   : "rcx", "r11", "memory");
  return r;
}
"""

# syscall(number, a, b, c) as machine code in memory that belongs to no file.
ANONYMOUS = """
import ctypes, mmap
memory = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
memory.write(bytes.fromhex('4889f8' '4889f7' '4889d6' '4889ca' '4d89c2' '0f05' 'c3'))
at = ctypes.addressof(ctypes.c_char.from_buffer(memory))
call = ctypes.CFUNCTYPE(ctypes.c_long, ctypes.c_long, ctypes.c_long, ctypes.c_char_p, ctypes.c_long)(at)
assert call(39, 0, b'', 0) > 0           # getpid: it never concerns files
print(call(257, -100, b'/dev/null', 0) > 0)  # openat
"""


@pytest.fixture(scope="session")
def auditor(tmp_path_factory, compiler):
    """Path of audit.c as a library.  Skips where the kernel has no Syscall User Dispatch."""
    directory = tmp_path_factory.mktemp("auditor")
    probe = directory / "probe.c"
    probe.write_text("#include <sys/prctl.h>\nint main(void) { return prctl(59, 0, 0, 0, 0) != 0; }\n")
    if subprocess.run([compiler(directory / "probe", probe)], check=False).returncode:
        pytest.skip("this kernel has no Syscall User Dispatch (Linux 5.11, CONFIG_GENERIC_ENTRY)")
    return compiler(directory / "libaudit.so", Path(__file__).with_name("audit.c"), flags=["-fPIC", "-shared"])


@pytest.fixture
def audited(auditor, tmp_path):
    """Runs a program with ``runner`` (run, on_mount) and the auditor behind the shim; the Audit."""
    def audited(runner, *argv, library=LIBRARY, **options):
        path = tmp_path / "audit"
        path.write_bytes(bytes(AUDIT_BYTES))
        environment = {"MADFS_AUDIT": str(path), "LD_PRELOAD": f"{library}:{auditor}", **options.pop("environment", {})}
        done = runner(*argv, environment=environment, **options)
        data = path.read_bytes()
        head = struct.Struct("<6Q")
        return Audit(*head.unpack_from(data), data[head.size:].rstrip(b"\0").decode().splitlines(), done)

    return audited


def clean(audit, *, processes=1, threads=1, output=None):
    """Assert that the program did what it should, that it was watched, and that nothing escaped."""
    assert audit.done.returncode == 0, audit.done.stderr
    if output is not None:
        assert audit.done.stdout == output
    assert audit.processes >= processes and audit.threads >= threads and audit.judged > 20
    assert audit.lines == [] and audit.reported == 0


# --- that it would notice -------------------------------------------------------------------------------------------


def test_anonymous_code_is_noticed(audited, on_mount):
    audit = audited(on_mount, "python3", "-c", ANONYMOUS)
    assert audit.done.stdout == "True\n", audit.done.stderr
    assert audit.reported == 1 and audit.lines[0].startswith("system call 257 of process")
    assert "unpatched site" in audit.lines[0]


def test_library_that_is_loaded_late(audited, on_mount, compiler, tmp_path):
    (tmp_path / "late.c").write_text(LATE)
    library = compiler(tmp_path / "late.so", tmp_path / "late.c", flags=["-shared", "-fPIC"])
    code = f"""
import ctypes
library = ctypes.CDLL({str(library)!r})
print(library.late_open(b'/dev/null') >= 0)
"""
    clean(audited(on_mount, "python3", "-c", code), output="True\n")


def test_process_without_the_shim_is_not_judged(audited, on_mount):
    audit = audited(on_mount, "true", environment={"LD_PRELOAD": "", "MADFS_PRELOAD": "0"})
    assert audit.done.returncode == 0 and audit.traps == 0


# --- that nothing escapes -------------------------------------------------------------------------------------------


def test_shell_tools(audited, on_mount):
    script = """
set -e; d=/madfs/audit-$$; mkdir $d; cd $d
seq 1000 > a; cp a b; cat a b | sort -n | uniq -c | tail -1; mkdir -p x/y; mv b x/y; ln -s a l; tar cf t.tar a x
tar xf t.tar -C x; find . -type f | wc -l; ls -lR > list; grep -c 99 a; sed -i s/1/2/ a; head -1 a; rm -r x
dd if=a of=c bs=100 2>/dev/null; cmp a c; env -i cat a | wc -l; (exec 5<> h; echo five >&5); cat h; cd /; rm -rf $d
"""
    clean(audited(on_mount, "bash", "-c", script), processes=20, output="      2 1000\n5\n19\n2\n1000\nfive\n")


def test_python_with_threads_and_children(audited, on_mount):
    names = [str(n) for n in range(8)]
    on_mount("mkdir", "/madfs/threads")
    clean(audited(on_mount, "python3", "-c", THREADS, "/madfs/threads"), processes=3, threads=10,
          output=f"{names}\ny\ny")


@pytest.mark.parametrize("name", ["threads", "stacks", "forks", "vforks", "spawn", "spawn_open", "signals", "registers",
                                  "closing", "answers", "requests", "passing"])
def test_host(audited, run, programs, libraries, name):
    audit = audited(run, programs / "host", name, library=libraries / Path(LIBRARY).name)
    assert (audit.done.stdout, audit.done.returncode) == ("ok\n", 0), audit.done.stderr
    assert audit.lines == [] and audit.judged > 10


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    path = tmp_path_factory.mktemp("audited") / "tasks"
    subprocess.run(["gcc", "-O1", "-o", path, ROOT / "tests" / "posix" / "tasks.c", "-lpthread"], check=True)
    return path


@pytest.mark.parametrize("case", ["nested_vfork", "vfork_changes", "spawned", "third_clone", "forks_of_threads",
                                  "daemons", "unshared", "fork_at_the_first_touch"])
def test_tasks(audited, on_mount, tasks, case):
    """Threads and processes of all kinds: tests/posix/tasks.c."""
    directory = f"/madfs/audit-{case}"
    assert on_mount("mkdir", directory).returncode == 0
    clean(audited(on_mount, tasks, case, directory, "1"), output="ok\n")


def test_bash_with_jobs(audited, on_mount):
    script = """
cd /madfs; mkdir jobs; cd jobs; exec 3<> both; for i in 1 2 3; do (echo $i >> log; read -t 1 x < log) & done; wait
coproc cat; echo hello >&${COPROC[1]}; read line <&${COPROC[0]}; echo $line >&3; eval "exec ${COPROC[1]}>&-"; wait
trap 'echo trapped >> log' USR1; kill -USR1 $$; cat <(echo one) <(cat both) > sum; sort log | tail -1; wc -l < sum
printf '#!/bin/sh\necho script\n' > run; chmod +x run; ./run | tee out; diff out <(./run)
"""
    clean(audited(on_mount, "bash", "-c", script), processes=5, output="trapped\n2\nscript\n")


def test_compiler(audited, on_mount, tmp_path):
    script = "cd /madfs && printf 'int main(void){return 3;}' > a.c && gcc -O2 -o a.out a.c; ./a.out; test $? = 3"
    clean(audited(on_mount, "bash", "-c", script), processes=5)


@pytest.mark.parametrize("flavour", ["mpich", "openmpi"])
def test_mpi_job(audited, on_mount, cluster_file, auditor, tmp_path, flavour):
    mpicc, mpirun = (shutil.which(f"{name}.{flavour}") for name in ("mpicc", "mpirun"))
    if not mpicc or not mpirun:
        pytest.skip(f"no {flavour}: packages mpich, libmpich-dev, openmpi-bin, libopenmpi-dev")
    program = tmp_path / "verify"
    subprocess.run([mpicc, "-O2", "-o", program, ROOT / "examples" / "verify_mpi.c"], check=True)
    variables = {"MADFS_MPIRUN": mpirun, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
                 "OMPI_MCA_rmaps_base_oversubscribe": "1", "LD_PRELOAD": str(auditor)}
    audit = audited(call, *[[*MPIRUN, "--madfs-cluster", cluster_file, "-n", "2", program, "/madfs/audit-mpi"]],
                    environment=variables)
    assert "verified" in audit.done.stdout
    clean(audit, processes=2, threads=2)
