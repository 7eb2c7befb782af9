# SPDX-License-Identifier: Apache-2.0
"""Programs, scripts and libraries that lie on the mount."""
import errno
import shutil
import subprocess

import pytest

CAT = shutil.which("cat")


def install(*paths):
    """Commands of a shell that put `cat` on the mount."""
    return "".join(f"{CAT} {CAT} > {path}; chmod 755 {path}; " for path in paths)


def test_program(bash):
    assert bash(install("/madfs/p") + "echo hello > /madfs/f; /madfs/p /madfs/f; cd /madfs; ./p f; PATH=/madfs:$PATH; "
                "hash -r; p f; exec p f") == "hello\n" * 4


def test_program_knows_its_name(bash):
    assert bash(install("/madfs/cat") + "cd /madfs; ./cat /proc/self/comm; readlink /proc/self/exe") == \
        f"cat\n{shutil.which('readlink')}\n"
    assert bash("cat $(command -v readlink) > /madfs/l; chmod +x /madfs/l; /madfs/l /proc/self/exe; "
                "readlink /proc/self/exe") == f"/madfs/l\n{shutil.which('readlink')}\n"


def test_what_is_not_executed(run, bash):
    bash("mkdir /madfs/d; echo text > /madfs/f; chmod 644 /madfs/f; echo 'echo plain' > /madfs/plain; "
         "chmod +x /madfs/plain")
    code = """
import errno, os, subprocess
for path in ("/madfs/d", "/madfs/f", "/madfs/none", "/madfs/plain", "/madfs/" + "x" * 4096):
    for run in (lambda: os.execv(path, ["x"]), lambda: subprocess.run([path], check=True),
                lambda: os.posix_spawn(path, ["x"], {})):
        try: run()
        except OSError as error: print(errno.errorcode[error.errno], end=" ")
    print()
"""
    assert [line.split() for line in run("python3", "-c", code).stdout.splitlines()] == [
        [name] * 3 for name in ("EACCES", "EACCES", "ENOENT", "ENOEXEC", "ENAMETOOLONG")]
    assert bash("/madfs/plain") == "plain\n"  # as the shell does with a file that the kernel does not know


@pytest.mark.parametrize(("first", "expected"), [
    ("#!/bin/sh", ["/madfs/s", "a", "b"]), ("#! /bin/sh  ", ["/madfs/s", "a", "b"]),
    ("#!/bin/sh -u", ["/madfs/s", "a", "b"]), ("#!/usr/bin/env sh", ["/madfs/s", "a", "b"])])
def test_script(run, bash, first, expected):
    bash(f"printf '%s\\n' '{first}' 'for word in \"$0\" \"$@\"; do echo \"$word\"; done' > /madfs/s; chmod +x /madfs/s")
    done = run("/bin/bash", "-c", "exec -a ignored /madfs/s a b")
    assert (done.stdout.split(), done.stderr) == (expected, "")
    assert bash("cd /madfs; ./s").split() == ["./s"]


def test_script_with_an_argument_of_its_own(bash):
    assert bash("printf '#!/bin/echo  one  two \\n' > /madfs/s; chmod +x /madfs/s; /madfs/s three") == \
        "one  two /madfs/s three\n"


@pytest.mark.parametrize("first", ["#!", "#!   ", "#!" + "/x" * 200])
def test_bad_first_lines(run, bash, first):
    bash(f"echo '{first}' > /madfs/s; chmod +x /madfs/s")
    code = "import os\ntry: os.execv('/madfs/s', ['s'])\nexcept OSError as error: print(error.errno)"
    assert run("python3", "-c", code).stdout == f"{errno.ENOEXEC}\n"


def test_interpreter_on_the_mount(bash, tmp_path):
    """For scripts on the mount and on the host, and when the interpreter is a script itself."""
    (tmp_path / "host").write_text("#!/madfs/cat\nfrom the host\n")
    (tmp_path / "host").chmod(0o755)
    assert bash(install("/madfs/cat") + f"""
        printf '#!/madfs/cat\\nscript\\n' > /madfs/s; printf '#!/madfs/outer\\n' > /madfs/inner
        printf '#!/bin/echo outer\\n' > /madfs/outer
        chmod +x /madfs/s /madfs/inner /madfs/outer
        /madfs/s; {tmp_path}/host; cd {tmp_path}; ./host; /madfs/inner x
    """) == "#!/madfs/cat\nscript\n" + "#!/madfs/cat\nfrom the host\n" * 2 + "outer /madfs/outer /madfs/inner x\n"


def test_interpreters_without_end(run, bash):
    bash("echo '#!/madfs/s' > /madfs/s; chmod +x /madfs/s")
    code = "import os\ntry: os.execv('/madfs/s', ['s'])\nexcept OSError as error: print(error.errno)"
    assert run("python3", "-c", code).stdout == f"{errno.ELOOP}\n"


def test_from_python(run, bash):
    bash(install("/madfs/p") + "echo text > /madfs/f; printf '#!/madfs/p\\nx\\n' > /madfs/s; chmod +x /madfs/s")
    code = """
import os, subprocess
run = lambda *words, **options: print(subprocess.check_output(words, **options), flush=True)
run("/madfs/p", "/madfs/f")
run("p", "f", cwd="/madfs", env={**os.environ, "PATH": "/nowhere:/madfs"})
run("/madfs/s", close_fds=False)
pid = os.posix_spawn("/madfs/p", ["p", "/madfs/f"], os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, 2, 1)])
assert os.waitpid(pid, 0)[1] == 0
for n in range(20): subprocess.run(["/madfs/p", "/dev/null"], check=True)
script = os.open("/madfs/s", os.O_RDONLY | os.O_CLOEXEC)
try:
    os.execve(script, ["s"], os.environ)
except FileNotFoundError:  # as in Linux: the interpreter would not have it
    os.set_inheritable(script, True)
os.execve(script, ["s"], os.environ)
"""
    done = run("python3", "-c", code)
    assert done.stdout == "b'text\\n'\n" * 2 + "b'#!/madfs/p\\nx\\n'\n" + "#!/madfs/p\nx\n"
    assert done.stderr == "text\n"


def test_link_to_a_program_of_the_host(bash):
    assert bash("mkdir /madfs/d; /madfs/d/../../bin/echo out") == "out\n"


def test_nothing_of_it_is_left_open(run, bash):
    bash(install("/madfs/p") + "echo > /madfs/f")
    code = """
import os
before = set(os.listdir("/proc/self/fd"))
for path in ("/madfs/f", "/madfs/none"):
    for n in range(5):
        try: os.execv(path, ["x"])
        except OSError: pass
print(len(set(os.listdir("/proc/self/fd")) - before) < 6, flush=True)
os.execv("/madfs/p", ["p", "/proc/self/maps"])
"""
    out = run("python3", "-c", code).stdout
    assert out.startswith("True\n") and "/memfd:p" in out


PR_SET_MDWE, PR_SET_SECCOMP = 65, 22


def test_memory_that_may_not_become_executable(run, bash):
    """PR_SET_MDWE, as systemd's MemoryDenyWriteExecute sets it, holds for the programs that are executed, too."""
    bash("echo text > /madfs/f")
    code = f"""
import ctypes, os
if ctypes.CDLL(None).prctl({PR_SET_MDWE}, 1, 0, 0, 0): print("text")  # a kernel before 6.3
else: os.execvp("cat", ["cat", "/madfs/f"])
"""
    done = run("python3", "-c", code)
    assert (done.stdout, done.stderr) == ("text\n", "")


def test_filter_installed_later(run):
    """A program that may only read, write and end itself can still do so: nothing of ours happens on the way."""
    code = f"""
import ctypes, os
libc = ctypes.CDLL(None)
os.stat("/madfs"); print("before", flush=True)
if libc.prctl({PR_SET_SECCOMP}, 1, 0, 0, 0) == 0:
    libc.write(1, b"after\\n", 6)
    libc.syscall(60, 3)
"""
    done = run("python3", "-c", code)
    assert (done.stdout, done.returncode) == ("before\nafter\n", 3)


def test_program_that_is_not_relocatable(run, tmp_path):
    (tmp_path / "fixed.c").write_text('#include <unistd.h>\nint main(void) { return access("/madfs", F_OK); }\n')
    subprocess.run(["gcc", "-no-pie", "-o", tmp_path / "fixed", tmp_path / "fixed.c"], check=True)
    assert run(tmp_path / "fixed").returncode == 0


def test_library_on_the_mount(run, bash, tmp_path):
    """Its system calls are rewritten, too."""
    source = tmp_path / "late.c"
    source.write_text("""
int counter = 5;
long late_open(const char *path) {
  long r; register long r10 __asm__("r10") = 0644;
  __asm__ volatile("mov $257, %%eax; syscall" : "=a"(r) : "D"(-100L), "S"(path), "d"(66L), "r"(r10)
                   : "rcx", "r11", "memory");
  counter++;
  return r;
}
""")
    subprocess.run(["gcc", "-shared", "-fPIC", "-O2", "-o", tmp_path / "late.so", source], check=True)
    bash(f"cat {tmp_path}/late.so > /madfs/late.so")
    code = """
import ctypes, os
late = ctypes.CDLL('/madfs/late.so')
print(late.late_open(b'/madfs/late') >= 0, os.path.exists('/madfs/late'), ctypes.c_int.in_dll(late, 'counter').value)
os.chdir('/madfs'); print(ctypes.CDLL('./late.so')._handle == late._handle)
"""
    assert run("python3", "-c", code).stdout == "True True 6\nTrue\n"
