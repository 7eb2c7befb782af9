# SPDX-License-Identifier: Apache-2.0
"""madfs doctor: what will not be intercepted, said before; what became of the calls, counted; and no silence."""
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import MPIRUN, ROOT, TIMEOUT_S, call

from pymadfs import doctor, elf, launch, trace

ROW = re.compile(r"(?:madfs: )?(\w+) +(\d+) +(\d+) +(\d+) +(\d+)(?:  (.*))?")


def compile_c(directory, text="int main(void) { return 5; }", *flags, name="program"):
    (directory / f"{name}.c").write_text(text)
    done = subprocess.run(["gcc", "-o", directory / name, directory / f"{name}.c", *flags], capture_output=True,
                          text=True, timeout=TIMEOUT_S, check=False)
    if done.returncode and "-m32" in flags:
        pytest.skip("gcc makes no 32-bit programs here: package gcc-multilib")
    assert done.returncode == 0, done.stderr
    return directory / name


@pytest.fixture
def static(tmp_path):
    return compile_c(tmp_path, 'int main(void) { return 5; }', "-static", name="static")


def rows(text):
    """Name of a call -> its four counts and the reason, of a table of --trace."""
    found = {match[1]: (*map(int, match.groups()[1:5]), match[6]) for match in map(ROW.fullmatch, text.splitlines())
             if match}
    assert found, text
    return found


def severities(findings, word=""):
    return [finding.severity for finding in findings if word in doctor.line(finding)]


# --- one program ----------------------------------------------------------------------------------------------------


def test_ordinary_programs_have_nothing_to_say():
    for name in ("/bin/sh", "/bin/true", shutil.which("python3")):
        assert doctor.blocked(name) is None
        assert doctor.warning([name]) is None


def test_static_programs(tmp_path, static):
    assert "static" in doctor.warning([str(static)])
    assert "static" in doctor.warning([str(compile_c(tmp_path, "int main(void) { return 0; }", "-static-pie"))])
    assert doctor.warning([str(compile_c(tmp_path, "int main(void) { return 0; }", "-no-pie", name="fixed"))]) is None


def test_the_loader_itself_is_no_static_program():
    loader = elf.Elf("/bin/true").interpreter()
    assert os.path.exists(loader) and doctor.blocked(loader) is None


def test_interpreters_of_scripts(tmp_path, static):
    script = tmp_path / "script"
    script.touch(mode=0o755)
    for line in (f"#!{static}", f"#! {static} -x", "#!/usr/bin/env static", "#!/usr/bin/env -S static -x"):
        script.write_text(f"{line}\n")
        environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
        assert (str(static), True) in doctor.programs([str(script)], environment), line
    again = tmp_path / "again"
    again.write_text(f"#!{script}\n")
    again.chmod(0o755)
    assert (str(script), True) in doctor.programs([str(again)])
    script.write_text(f"#!{script}\n")
    assert doctor.warning([str(script)]) is None  # in circles: Linux says so itself


@pytest.mark.parametrize("command", ["nice -n 1 {}", "env A=1 {} x", "sh -c '{} > /madfs/x'",
                                     "bash -c 'true; ({};true)&'", "mpirun -n 2 {}"])
def test_programs_among_the_arguments(static, command):
    import shlex

    argv = shlex.split(command.format(static))
    if shutil.which(argv[0]):
        assert str(static) in [path for path, _ in doctor.programs(argv)]
        assert "static" in doctor.warning(argv)


def test_another_processor_and_32_bits(tmp_path):
    foreign = tmp_path / "foreign"
    data = bytearray(Path("/bin/true").read_bytes())
    data[18:20] = (0xF3).to_bytes(2, "little")
    foreign.write_bytes(data)
    foreign.chmod(0o755)
    assert "processor" in doctor.warning([str(foreign)])
    data[4] = 1
    foreign.write_bytes(data)
    assert "32-bit" in doctor.warning([str(foreign)])


def test_privileges(tmp_path, monkeypatch):
    program = tmp_path / "program"
    shutil.copy("/bin/true", program)
    program.chmod(0o4755)
    assert doctor.blocked(program) is None  # its owner runs it
    monkeypatch.setattr(os, "getuid", lambda: os.stat(program).st_uid + 1)
    assert "setuid" in doctor.blocked(program)[0]
    program.chmod(0o755)
    assert doctor.blocked(program) is None
    monkeypatch.setattr(os, "getxattr", lambda path, name: b"1" if name == "security.capability" else None)
    monkeypatch.setattr(os, "geteuid", lambda: 1)
    assert "capabilities" in doctor.blocked(program)[0]


# --- the whole command ----------------------------------------------------------------------------------------------


def test_clean_command(madfs):
    done = madfs("doctor", "--", "ls", "-l")
    assert (done.returncode, done.stderr) == (0, "")
    assert int(re.fullmatch(r"ok: (\d+) system call instructions would be intercepted at the start of ls\n",
                            done.stdout)[1]) > 200


def test_nothing_is_executed(madfs, tmp_path):
    program = compile_c(tmp_path, '#include <stdio.h>\nint main(void) { return !fopen("ran", "w"); }')
    assert madfs("doctor", "--", program, cwd=tmp_path).returncode == 0
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\ntouch ran\n")
    script.chmod(0o755)
    assert madfs("doctor", "--", script, cwd=tmp_path).returncode == 0
    assert not (tmp_path / "ran").exists()


def test_static_command(madfs, static, tmp_path):
    done = madfs("doctor", "--", static)
    assert done.returncode == 1 and done.stdout.count("\n") == 1
    assert done.stdout.startswith(f"error: {static} is statically linked") and "fix: link it dynamically" in done.stdout
    traced = madfs("doctor", "--trace", "--", static)
    assert traced.returncode == 1 and traced.stdout == done.stdout, "it is not run when something is wrong"
    assert madfs("doctor", "--", "/nonexistent/program").returncode == 1
    assert madfs("doctor", "--", "nice", static).returncode == 0, "perhaps it is not executed"


def test_sites_that_cannot_be_rewritten(madfs, tmp_path):
    program = compile_c(tmp_path, """
int main(void) { long r; __asm__ volatile("jmp 2f\\n 1: syscall\\n jmp 3f\\n 2: mov $39, %%eax\\n jmp 1b\\n 3:"
                                          : "=a"(r) : : "rcx", "r11", "memory"); return r < 0; }
""", "-O1")
    done = madfs("doctor", "--", program)
    if done.returncode == 0:  # the shim found a way: then there is nothing to say
        assert done.stdout.startswith("ok: ")
    left = compile_c(tmp_path, '__asm__(".globl odd\\nodd: mov %rdi, %rax\\n .byte 0xeb, 0\\n syscall\\n ret\\n'
                     '.byte 0x06\\n");\nlong odd(long);\nint main(void) { return odd(39) < 0; }', name="left")
    report = subprocess.run([left], env={"LD_PRELOAD": launch.LIBRARY, "MADFS_SCAN": "1"}, capture_output=True,
                            text=True, timeout=TIMEOUT_S, check=False)
    assert report.returncode == 0 and "madfs: patched" in report.stderr
    number = int(re.search(r"(\d+) left", report.stderr)[1])
    done = madfs("doctor", "--", left)
    assert done.returncode == (1 if number else 0)
    assert (f"has {number} system call instructions that cannot be rewritten" in done.stdout) == bool(number)


def test_missing_library_and_loader(tmp_path):
    compile_c(tmp_path, "int f(void) { return 1; }", "-shared", "-fPIC", name="libgone.so")
    program = compile_c(tmp_path, "int f(void); int main(void) { return f(); }", tmp_path / "libgone.so",
                        f"-Wl,-rpath,{tmp_path}")
    assert severities(doctor.examine([str(program)], "/madfs")[0], "libgone") == []
    (tmp_path / "libgone.so").unlink()
    assert severities(doctor.examine([str(program)], "/madfs")[0], "libgone.so") == ["error"]
    odd = compile_c(tmp_path, "int main(void) { return 0; }", "-Wl,--dynamic-linker=/nonexistent/ld.so", name="odd")
    assert severities(doctor.examine([str(odd)], "/madfs")[0], "/nonexistent/ld.so") == ["error"]


def test_libraries_that_lie_on_the_mount(tmp_path):
    """They are not on this node, and will be found."""
    compile_c(tmp_path, "int f(void) { return 1; }", "-shared", "-fPIC", name="libthere.so")
    program = compile_c(tmp_path, "int f(void); int main(void) { return f(); }", "-L", tmp_path, "-lthere",
                        "-Wl,-rpath,/madfs/lib", "-Wl,--dynamic-linker=/lib64/ld-linux-x86-64.so.2")
    assert severities(doctor.examine([str(program)], "/madfs")[0], "libthere.so") == ["note"]
    assert severities(doctor.examine([str(program)], "/other")[0], "libthere.so") == ["error"]
    searching = {**os.environ, "LD_LIBRARY_PATH": "/lib:/other/lib"}
    assert severities(doctor.examine([str(program)], "/other", searching)[0], "libthere.so") == ["note"]
    loader = compile_c(tmp_path, "int main(void) { return 0; }", "-Wl,--dynamic-linker=/madfs/ld.so", name="odd")
    assert severities(doctor.examine([str(loader)], "/madfs")[0], "/madfs/ld.so") == ["note"]
    auditing = {**os.environ, "LD_AUDIT": "/madfs/audit.so", "LD_PRELOAD": "/madfs/lib.so"}
    assert severities(doctor.examine(["true"], "/madfs", auditing)[0], "LD_AUDIT") == ["warning"]
    assert severities(doctor.examine(["true"], "/madfs", auditing)[0], "/madfs/lib.so") == ["note"]


def test_surroundings(tmp_path, monkeypatch):
    (tmp_path / "mount" / "files").mkdir(parents=True)
    assert severities(doctor.examine(["true"], str(tmp_path / "mount"))[0], "mount hides") == ["warning"]
    environment = {**os.environ, "LD_PRELOAD": "/nonexistent/lib.so"}
    assert severities(doctor.examine(["true"], "/madfs", environment)[0], "/nonexistent/lib.so") == ["warning"]
    monkeypatch.setattr(launch, "LIBRARY", str(tmp_path / "lib.so"))
    assert severities(doctor.examine(["true"], "/madfs")[0], "is missing") == ["error"]


def test_limits_are_seen(madfs):
    script = "ulimit -n 40; exec \"$@\""
    done = call(["bash", "-c", script, "bash", *__import__("support").MADFS, "doctor", "--", "true"])
    assert done.returncode == 0 and "RLIMIT_NOFILE 40" in done.stdout


def test_old_doors_are_seen(tmp_path):
    """The vsyscall page and int 0x80."""
    old = compile_c(tmp_path, "int main(void) { long (*t)(long *) = (void *)0xffffffffff600400UL; return t == 0; }\n"
                    '__asm__("movq $0xffffffffff600400, %rax");', name="old")
    assert severities(doctor.examine([str(old)], "/madfs")[0], "vsyscall") == ["note"]
    if platform.machine() == "x86_64":
        text = ('long f(void) { long r; __asm__("mov $20, %%eax\\nint $0x80" : "=a"(r)); return r; }'
                "int main(void) { return 0; }")
        wrong = compile_c(tmp_path, text, name="wrong")
        assert severities(doctor.examine([str(wrong)], "/madfs")[0], "int 0x80") == ["note"]


@pytest.mark.parametrize("spelling", [
    "long (*t)(long *) = (void *)0xffffffffff600400UL; return t(0) == 0;",
    "volatile unsigned long there[9]; there[3] = 0xffffffffff600800UL; return there[3] == 0;",
    '__asm__("movabs $0xffffffffff600000, %%rax" : : : "rax"); return 0;'])
@pytest.mark.parametrize("level", ["-O0", "-O2"])
def test_ways_to_the_vsyscall_page(tmp_path, spelling, level):
    if platform.machine() != "x86_64":
        pytest.skip("only x86_64 has it")
    old = compile_c(tmp_path, f"int main(void) {{ {spelling} }}", level)
    assert severities(doctor.examine([str(old)], "/madfs")[0], "vsyscall") == ["note"]


@pytest.fixture
def odd(tmp_path):
    """A directory with what is no program of the ordinary kind."""
    program = compile_c(tmp_path, "int main(void) { return 0; }", name="program")
    content = {"text": b"just text\n", "empty": b"", "mark": b"#!", "lost": b"#!/nonexistent/sh\n",
               "short": b"\x7fELF\2\1", "dos": b"#!/bin/sh\r\necho\r\n",
               "wild": program.read_bytes()[:32] + b"\xff" * 8 + program.read_bytes()[40:],
               "script": b"#! /bin/sh\necho\n", "old": b"\x7fELF\1\1" + bytes(60)}
    for name, data in content.items():
        (tmp_path / name).write_bytes(data)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "plain").write_bytes(program.read_bytes())
    (tmp_path / "leads-nowhere").symlink_to("nothing")
    os.mkfifo(tmp_path / "fifo")
    os.mkfifo(tmp_path / "waits", 0o755)
    for name, line in (("of-fifo", tmp_path / "waits"), ("by-env", "/usr/bin/env -S A=1 none-such -x")):
        (tmp_path / name).write_text(f"#!{line}\n")
        (tmp_path / name).chmod(0o755)
    return tmp_path


@pytest.mark.parametrize(("name", "said"), [
    ("text", "text is neither a program nor a script"), ("empty", "empty is neither"), ("mark", "mark is neither"),
    ("lost", "/nonexistent/sh is the interpreter of a script and does not exist"), ("dos", r"'/bin/sh\r' is"),
    ("short", "short is no whole program"), ("wild", "wild is no whole program"),
    ("old", "old is a 32-bit program"), ("plain", "plain is not executable"),
    ("leads-nowhere", "leads-nowhere is a link that leads nowhere"), ("fifo", "fifo is no file"),
    ("waits", "waits is no file"), ("of-fifo", "waits is the interpreter of a script and no file"),
    ("by-env", "none-such is no executable file and not in PATH"),
    (".", "is a directory"), ("none", "none does not exist")])
def test_what_is_no_program(madfs, odd, name, said):
    done = madfs("doctor", "--", f"{odd}/{name}")
    assert done.returncode == 1 and done.stdout.count("\n") == 1 and said in done.stdout, done
    assert done.stdout.startswith("error: ") and "; fix: " in done.stdout and not done.stderr


def test_running_what_is_no_program(madfs, odd):
    """Nobody waits for the other end of a FIFO."""
    done = madfs("run", "--servers", 1, "--", f"{odd}/waits")
    assert (done.returncode, done.stdout) == (126, "") and "waits is not an executable file" in done.stderr


def test_env_that_looks_elsewhere(odd):
    for word in ("PATH=/nonexistent", "-i", "--chdir=/"):
        assert ("none-such", None) not in doctor.programs(["env", word, "none-such"])
    assert ("none-such", None) in doctor.programs(["env", "A=1", "none-such"])
    assert ("none-such", None) not in doctor.programs(["nice", f"{odd}/by-env"])


def test_programs_that_cannot_be_read(madfs, odd, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).endswith("program") or mode != os.R_OK)
    assert severities(doctor.examine([f"{odd}/program"], "/madfs")[0], "cannot be read") == ["note"]


def test_within_a_job(madfs, static):
    """The doctor sees the mount then: nothing is hidden by it, and what lies there is looked at."""
    script = f"cp {static} /madfs/there; madfs doctor -- /madfs/there; madfs doctor -- /madfs/none; exit 0"
    done = madfs("run", "--servers", 1, "--", "sh", "-c", script)
    said = [line for line in done.stdout.splitlines() if not line.startswith("note")]
    assert len(said) == 2 and "static" in said[0] and "/madfs/none does not exist" in said[1], done


def test_what_is_one(madfs, odd, static):
    for argv in (["script"], ["program"], ["sh", "text"], ["nice", "./program"]):
        done = madfs("doctor", "--", *(f"{odd}/{word}" if (odd / word).exists() else word for word in argv))
        assert done.returncode == 0 and done.stdout.startswith("ok: "), (argv, done)
    for argv in (["env", "-u", "HOME", static], ["env", "-C", "/", "A=1", static], ["env", "-S", f"A=1 {static} x"],
                 ["env", f"-S{static}"], ["env", "-i", "--", static]):
        assert madfs("doctor", "--", *argv).returncode == 1, argv


def test_libraries_beside_the_program(tmp_path):
    """$ORIGIN is where the program lies, not where a link to it does."""
    (tmp_path / "home").mkdir()
    compile_c(tmp_path / "home", "int f(void) { return 1; }", "-shared", "-fPIC", name="libbeside.so")
    compile_c(tmp_path / "home", "int f(void); int main(void) { return f(); }", tmp_path / "home" / "libbeside.so",
              "-Wl,-rpath,$ORIGIN")
    (tmp_path / "link").symlink_to("home/program")
    findings, patched = doctor.examine([str(tmp_path / "link")], "/madfs")
    assert severities(findings, "link") == severities(findings, "home") == [] and patched


# --- after the run --------------------------------------------------------------------------------------------------


def test_trace_counts_the_whole_tree(madfs):
    script = ("echo a > /madfs/x; env -i cat /madfs/x; (cat /madfs/x); "
              f"{sys.executable} -c \"import os; os.getxattr('/madfs/x', 'user.a')\" 2>&-; test -e /madfs/none; exit 3")
    done = madfs("doctor", "--trace", "--servers", 1, "--", "bash", "-c", script)
    assert done.returncode == 0, done.stderr
    assert "bash ended with status 3\n" in done.stdout and "\na\na\n" in done.stdout
    counts = rows(done.stdout)
    assert counts["openat"][0] == 3 and counts["write"][0] == 1 and counts["read"][0] >= 4
    assert counts["getxattr"][0:3] == (0, 0, 0) or counts["getxattr"][1] == 1
    assert counts["newfstatat"][1] == 1  # /madfs/none
    assert int(re.search(r"(\d+) programs on MadFS", done.stdout)[1]) >= 5
    assert not list((Path(os.environ.get("TMPDIR", "/tmp"))).glob("madfs-trace*"))


def test_trace_says_why_a_call_was_refused(madfs):
    done = madfs("run", "--trace", "--servers", 1, "--", "python3", "-c", """
import ctypes, os, select
libc = ctypes.CDLL(None, use_errno=True)
assert libc.chroot(b'/madfs') == -1
fd = os.open('/madfs/f', os.O_CREAT | os.O_RDWR)
poll = select.epoll()
try: poll.register(fd)
except PermissionError: print('as a file')
""")
    assert (done.returncode, done.stdout) == (0, "as a file\n")
    counts = rows(done.stderr)
    assert counts["chroot"] == (0, 0, 0, 1, "EINVAL: the mount exists for intercepted calls only")
    assert counts["epoll_ctl"][2] == 1 and "EPERM" in counts["epoll_ctl"][4]


def test_trace_says_which_signal_ended_the_program(madfs):
    done = madfs("doctor", "--trace", "--servers", 1, "--", "sh", "-c", "kill -9 $$")
    assert done.stdout.endswith("sh was ended by SIGKILL\n"), done


def test_nothing_is_counted_without_trace(madfs, tmp_path):
    assert madfs("run", "--servers", 1, "--", "sh", "-c", "test -z \"$MADFS_TRACE\" && : > /madfs/x").returncode == 0
    empty = tmp_path / "empty"
    trace.create(empty)
    assert trace.table(trace.read(empty)) == ["no process of the job was on MadFS"]


def test_trace_file_that_cannot_be_used(madfs, tmp_path):
    for path in (tmp_path / "none", __file__):
        before = Path(__file__).read_bytes()
        done = madfs("run", "--servers", 1, "--", "true", environment={"MADFS_TRACE": str(path)})
        assert done.returncode == 0 and "MADFS_TRACE" in done.stderr and Path(__file__).read_bytes() == before


# --- no silence -----------------------------------------------------------------------------------------------------


def test_static_children_are_warned_about(madfs, static, tmp_path):
    """Only when they are given something of ours; the program itself sees nothing of it."""
    script = tmp_path / "script"
    script.write_text(f"#!{static}\n")
    script.chmod(0o755)
    for line, warned in ((f"{static}", 0), (f"{static} > /madfs/x", 1), (f"{static} --out=/madfs/y", 1),
                         (f"{static} /madfs2/y", 0), (f"cd /madfs; {static}", 1), (f"cd /madfs; {script}", 1),
                         (f"cp {static} /madfs/s; /madfs/s", 1), (f"cd /madfs; MADFS_PRELOAD=0 {static}", 0),
                         ("exec 3> /madfs/x; " + f"for i in 1 2 3; do {static} < /madfs/x; done", 1)):
        done = madfs("run", "--servers", 1, "--", "sh", "-c", f"eval '{line}'; exit 7")
        assert done.returncode == 7, line
        lines = [text for text in done.stderr.splitlines() if text.startswith("madfs: warning:")]
        assert len(lines) == warned, (line, done.stderr)
        assert all("statically linked" in text and "/madfs" in text for text in lines)


def test_warning_goes_where_standard_error_goes(madfs, static):
    done = madfs("run", "--servers", 1, "--", "sh", "-c", f"eval '{static} > /madfs/o 2> /madfs/e'; cat /madfs/e")
    assert "statically linked" in done.stdout


def test_mpirun_warns_about_static_ranks(static, tmp_path):
    if not any(shutil.which(name) for name in ("mpirun", "mpiexec")):
        pytest.skip("no mpirun: packages mpich, openmpi-bin")
    from pymadfs import mpirun

    assert "static" in mpirun.rank_warning(["-n", "2", str(static), "x"], "/madfs")
    assert "static" in mpirun.rank_warning(["-n", "2", "true", ":", "-n", "1", str(static)], "/madfs")
    assert mpirun.rank_warning(["-n", "2", "true", str(static)[:3]], "/madfs") is None
    done = call([*MPIRUN, "--madfs-servers", "1", "-n", "1", static], environment={"TMPDIR": str(tmp_path)},
                cwd=ROOT)
    assert "madfs-mpirun: warning:" in done.stderr and "statically linked" in done.stderr
