# SPDX-License-Identifier: Apache-2.0
"""``madfs doctor``: what of a command will not be intercepted, said before it runs.

A :class:`Finding` that breaks (severity ``error``) means that something does not see the mount; a ``warning`` may
matter, a ``note`` is worth knowing.  The programs of a command are found by :func:`programs`, judged by their files
(:func:`blocked`), and their system call instructions by the shim itself, which rewrites them as it would and ends the
process before the program begins (MADFS_SCAN).
"""
import ctypes
import os
import platform
import re
import resource
import shlex
import shutil
import stat
import subprocess
from collections import namedtuple

from . import elf, keeper, launch

Finding = namedtuple("Finding", "severity subject problem fix")
ERROR, WARNING, NOTE = "error", "warning", "note"

MACHINES = {"x86_64": 62, "aarch64": 183}
SCRIPTS_MAX = 5  # interpreters that are scripts themselves: Linux gives up after so many
SCAN_S = 30
FILES_MIN, MEMORY_MIN = 64, 1 << 30  # descriptors and bytes of address space that a process with the client needs
_PR_GET_MDWE = 66

SHELLS = ("sh", "bash", "dash", "ksh", "zsh", "ash")
_ENV_MOVES = {"PATH", "-", "-i", "--ignore-environment", "-C", "--chdir"}  # then env looks elsewhere than we do
LOADERS = ("ld-linux", "ld64.so", "ld-musl", "ld.so")
VSYSCALL = re.compile(  # mov $ADDRESS to a register or to memory, movabs, call *ADDRESS
    rb"\xc7(?:[\xc0-\xc7]|[\x40-\x47].|\x44\x24.|[\x80-\x87].{4})\x00[\x00\x04\x08]\x60\xff|"
    rb"[\xb8-\xbf]\x00[\x00\x04\x08]\x60\xff{5}|\xff\x14\x25\x00[\x00\x04\x08]\x60\xff", re.DOTALL)
INT80 = re.compile(rb"\xb8[\x00-\xff][\x00\x01]\x00\x00(?:[\x89\x8b\x31][\xc0-\xff]){0,6}\xcd\x80", re.DOTALL)
LIBRARIES = {
    "liburing": ("makes requests through io_uring, which is answered with ENOSYS under MadFS",
                 "nothing, if the program falls back to read and write; most do"),
    "libasan": ("is the address sanitizer, whose check of the order of libraries is switched off",
                "add verify_asan_link_order=0 when the program defines __asan_default_options itself"),
}
_REPORT = re.compile(r"madfs: patched (\d+) of (\d+) system call sites in (\d+) objects; (\d+) never concern files, "
                     r"(\d+) left")
_LEFT = re.compile(r"madfs: (\d+) system call sites are left unchanged in (.*)")


# --- one program ----------------------------------------------------------------------------------------------------


def blocked(path):
    """Why the program at ``path`` cannot be preloaded: ``(problem, fix)``, or None when it can.

    A file that cannot be read, and a script, is not judged.
    """
    try:
        status = os.stat(path)
        if not elf.is_elf(path):
            return None
        program = elf.Elf(path)
    except OSError:
        return None
    except ValueError:
        if elf.is_32_bit(path):
            return ("is a 32-bit program; it cannot be preloaded and does not see the mount", "build it for 64 bits")
        return ("is no whole program: its header is damaged or cut off", "build or copy it again")
    if program.machine != MACHINES.get(platform.machine()):
        return ("is built for another kind of processor; it cannot be preloaded and does not see the mount",
                f"build it for {platform.machine()}")
    if not program.interpreted() and not os.path.basename(path).startswith(LOADERS):
        return ("is statically linked; it cannot be preloaded and does not see the mount", "link it dynamically")
    if os.path.basename(program.interpreter() or "").startswith("ld-musl"):
        return ("runs with musl instead of the GNU libc; it is not intercepted and does not see the mount",
                "build it with the GNU libc")
    return _privileged(path, status)


def _privileged(path, status):
    if (status.st_mode & stat.S_ISUID and status.st_uid != os.getuid()) or (
            status.st_mode & stat.S_ISGID and status.st_gid != os.getgid()):
        return ("runs with the rights of another user (setuid, setgid), so the loader ignores the preload",
                "run a copy without these bits")
    try:
        os.getxattr(path, "security.capability")
    except OSError:
        return None
    if os.geteuid() == 0:
        return None  # nothing is gained by them, and the loader does not mind
    return ("has file capabilities, so the loader ignores the preload", "run a copy, which has none")


def warning(argv):
    """One line about the first program of ``argv`` that will not be on MadFS, or None."""
    for path, certain in programs(argv):
        if certain is not None and (why := blocked(path)):
            return f"{path} {why[0]}: {why[1]}"
    return None


def programs(argv, environment=None):
    """The programs that the command ``argv`` names: pairs of a path and whether it is certain to be executed, or of a
    name and None where ``env`` does not find it.

    Certain are the program itself, the interpreters of its ``#!`` lines and what ``env`` executes; an argument that is
    an executable file may be executed, too (``nice ./a.out``, ``mpirun -n 2 ./a.out``, ``sh -c ./a.out``).
    """
    environment = os.environ if environment is None else environment
    found = {}
    words = list(argv)
    if os.path.basename(words[0]) in SHELLS and "-c" in words[1:-1]:
        script = words[words.index("-c") + 1]
        try:
            split = shlex.shlex(script, posix=True, punctuation_chars=True)
            split.whitespace_split = True
            words += split
        except ValueError:
            words += script.split()
    for index, word in enumerate(words):
        path = shutil.which(word, path=environment.get("PATH", os.defpath)) if index == 0 or "/" in word else None
        if path and os.path.isfile(path):
            chain, missing = _chain(path, words[1:] if index == 0 else [], environment)
            for interpreter in chain:
                found.setdefault(interpreter, index == 0)
            if missing and index == 0:
                found.setdefault(missing, None)
    return list(found.items())


def _chain(path, arguments, environment):
    """``path``, its ``#!`` interpreters, and what ``env`` among them executes, as a list; and a name that ``env`` does
    not find, or None."""
    seen = [path]
    for _ in range(SCRIPTS_MAX):
        if os.path.basename(path) == "env":
            name = _executed_by_env(arguments)
            following = shutil.which(name, path=environment.get("PATH", os.defpath)) if name else None
            if not following:
                return seen, None if _ENV_MOVES.intersection(word.partition("=")[0] for word in arguments) else name
            arguments = []
        else:
            try:
                line = elf.shebang(path)
            except OSError:
                return seen, None
            following, arguments = (line[0], (line[1] or "").split()) if line else (None, [])
        if not following:
            return seen, None
        path = following
        seen.append(path)
    return seen, None


def _executed_by_env(words):
    """What ``env`` with these arguments executes, or None."""
    words = list(words)
    while words:
        word = words.pop(0)
        split = re.fullmatch(r"(?:-S|--split-string=)(.+)|(?:-S|--split-string)()", word, re.DOTALL)
        if word in ("-u", "--unset", "-C", "--chdir"):
            del words[:1]
        elif split:
            words[:0] = (split[1] or (words.pop(0) if words else "")).split()
        elif "=" not in word and not word.startswith("-"):
            return word
    return None


def _missing(word):
    """Why ``word`` names no program: ``(problem, fix)``."""
    if "/" not in word:
        return "is no executable file and not in PATH", "name the program"
    if os.path.isdir(word):
        return "is a directory", "name the program"
    if not os.path.exists(word):
        return ("is a link that leads nowhere" if os.path.islink(word) else "does not exist", "name the program")
    return ("is not executable", "chmod +x, or name its interpreter before it") if os.path.isfile(word) else (
        "is no file", "name the program")


def _not_found(word, mount, environment):
    if os.path.normpath(word).startswith(mount + "/") and not _inside(mount, environment):
        return Finding(NOTE, word, "lies on the mount and cannot be looked at before it runs",
                       "examine the original that is copied there")
    return Finding(ERROR, word, *_missing(word))


def _inside(mount, environment):
    """Whether this process is one of a job and sees its mount."""
    libraries = environment.get("LD_PRELOAD", "").replace(":", " ").split()
    return environment.get("MADFS_MOUNT") == mount and keeper.LIBRARY in map(os.path.basename, libraries)


def _refused(path):
    """Why the kernel will not execute ``path``, although it has the right to: ``(problem, fix)``, or None."""
    try:
        if elf.is_elf(path) or elf.shebang(path):
            return None
    except FileNotFoundError:
        return ("is the interpreter of a script and does not exist", "install it, or correct the `#!` line")
    except OSError:
        return None if os.path.isfile(path) else ("is the interpreter of a script and no file", "correct the `#!` line")
    return ("is neither a program nor a script with a `#!` line; only shells run such a file, of themselves",
            "begin it with a `#!` line, or say `sh FILE`")


# --- the whole command ----------------------------------------------------------------------------------------------


def examine(argv, mount, environment=None):
    """All findings about the command ``argv`` with the file system at ``mount``, and how many sites were rewritten.

    Returns ``(findings, patched)``.
    """
    environment = os.environ if environment is None else environment
    findings = [*_installation(mount, environment), *_process()]
    broken = any(finding.severity == ERROR for finding in findings)
    patched = 0
    named = programs(argv, environment)
    if not named or not named[0][1]:
        findings.append(_not_found(argv[0], mount, environment))
    if os.path.basename(argv[0]) == "valgrind":
        findings.append(Finding(NOTE, argv[0], "will report about the client's Python, too",
                                "look for reports that begin in the program"))
    for path, certain in named:
        if certain is None:
            findings.append(_not_found(path, mount, environment))
        elif why := blocked(path) or (certain and _refused(path)):
            findings.append(Finding(ERROR if certain else WARNING, path if path.isprintable() else repr(path), *why))
        elif not os.access(path, os.R_OK):
            findings.append(Finding(NOTE, path, "cannot be read, and is not examined",
                                    "try it with `madfs doctor --trace`"))
        elif not broken and elf.is_elf(path):
            more, sites = _objects(path, mount, environment, certain)
            findings += more
            patched += sites
    return list(dict.fromkeys(findings)), patched


def _installation(mount, environment):
    """Findings about the preload library, the mount path and what else is preloaded."""
    try:
        launch.check_library()
    except launch.LaunchError as error:
        problem, _, fix = str(error).rpartition("; ")
        yield Finding(ERROR, launch.LIBRARY, problem or str(error), fix or "build it with `make build`")
    if not _inside(mount, environment) and os.path.isdir(mount) and os.listdir(mount):
        yield Finding(WARNING, mount, "is a directory of this node with files in it, which the mount hides",
                      "say --mount with another path")
    for library in keeper.other_preloads(environment):
        path = library if "/" in library else None
        if path and path.startswith(mount + "/"):
            yield Finding(NOTE, library, "is in LD_PRELOAD and is looked for on the mount", "nothing, if it lies there")
        elif path and not os.path.exists(path):
            yield Finding(WARNING, library, "is in LD_PRELOAD and does not exist; the loader says so in every process",
                          "take it out of LD_PRELOAD")
        else:
            yield Finding(NOTE, library, "is in LD_PRELOAD; it stays, behind the library of MadFS",
                          "nothing, unless it replaces system calls itself")
    if mount + "/" in environment.get("LD_AUDIT", ""):
        yield Finding(WARNING, "LD_AUDIT", "names libraries on the mount, which the loader does not find there",
                      "copy them to this node")
    for library in environment.get("LD_PRELOAD", "").replace(":", " ").split():
        if os.path.basename(library) == keeper.LIBRARY and not _same(library, launch.LIBRARY):
            yield Finding(WARNING, library, "is in LD_PRELOAD and belongs to another installation of MadFS; it is "
                          "replaced", "take it out of LD_PRELOAD")


def _same(path, other):
    return os.path.realpath(path) == os.path.realpath(other)


def _process():
    """Findings about the limits of this process that the program will inherit."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        status = dict(line.split(":\t", 1) for line in file.read().splitlines() if ":\t" in line)
    if status.get("Seccomp", "0") == "2":
        yield Finding(WARNING, "this process", "runs under a seccomp filter, which the client's calls must pass",
                      "allow what docs/neighbours.md lists")
    if status.get("TracerPid", "0") != "0":
        yield Finding(NOTE, "this process", f"is traced by process {status['TracerPid']}", "nothing")
    if ctypes.CDLL(None).prctl(_PR_GET_MDWE, 0, 0, 0, 0) & 1:
        yield Finding(NOTE, "this process", "may not make written memory executable (PR_SET_MDWE); rewritten code is "
                      "mapped from a memfd instead", "nothing")
    for name, number, least in (("RLIMIT_NOFILE", resource.RLIMIT_NOFILE, FILES_MIN),
                                ("RLIMIT_AS", resource.RLIMIT_AS, MEMORY_MIN)):
        soft = resource.getrlimit(number)[0]
        if soft != resource.RLIM_INFINITY and soft < least:
            yield Finding(WARNING, "this process", f"has {name} {soft}; the client may find no room",
                          f"raise it to {least} or more with ulimit")
    try:
        os.close(os.memfd_create("madfs-doctor"))
    except OSError as error:
        yield Finding(ERROR, "this system", f"does not allow memfd_create: {error.strerror}",
                      "allow it in the container's seccomp profile")
    if not os.path.exists("/proc/self/maps"):
        yield Finding(ERROR, "/proc", "is not mounted", "mount it")


# --- its libraries --------------------------------------------------------------------------------------------------


def _objects(path, mount, environment, certain):
    """Findings about the program at ``path`` and all libraries it starts with, and how many sites are rewritten."""
    loader = elf.Elf(path).interpreter()
    there = launch.looks_for_libraries(path, mount, environment)
    if there and loader and loader.startswith(mount + "/"):
        return [Finding(NOTE, path, f"has its loader, {loader}, on the mount; its libraries are not examined",
                        "nothing, if it lies there")], 0
    if loader and not os.path.exists(loader):
        return [Finding(ERROR if certain else WARNING, path, f"needs the loader {loader}, which does not exist",
                        "install it, or build the program for this system")], 0
    if not loader or not os.path.basename(loader).startswith(("ld-linux", "ld64")):
        return [Finding(NOTE, path, "is not started by the loader of the GNU libc; its libraries are not examined",
                        "try it with `madfs doctor --trace`")], 0
    variables = {**environment, "MADFS_MOUNT": mount, "MADFS_VERSION": launch.__version__,
                 "LD_PRELOAD": ":".join([launch.LIBRARY, *keeper.other_preloads(environment)])}
    real = os.path.realpath(path)  # the loader would take $ORIGIN from a link that it is given
    listed = subprocess.run([loader, "--list", real], env=environment, capture_output=True, text=True, errors="replace",
                            timeout=SCAN_S, check=False)
    if there and listed.returncode:
        said = listed.stderr.strip().rpartition(real + ": ")[2]
        return [Finding(NOTE, path, f"starts with libraries that are not on this node ({said}); they are looked for on "
                        "the mount", "nothing, if they lie there")], 0
    findings = [Finding(ERROR if certain else WARNING, path, f"needs {name}, which is not found",
                        "install it or set LD_LIBRARY_PATH")
                for name in re.findall(r"^\s*(\S+) => not found", listed.stdout, re.MULTILINE)]
    libraries = re.findall(r"(?:=> |^\s*)(/\S+) \(0x", listed.stdout, re.MULTILINE)
    for library in [path, *libraries]:
        findings += _contents(library)
    if not findings or all(finding.severity == NOTE for finding in findings):
        more, patched = _scan(loader, real, variables)
        return findings + more, patched
    return findings, 0


def _contents(path):
    """Findings about one object by its name and its code."""
    for stem, (problem, fix) in LIBRARIES.items():
        if os.path.basename(path).startswith(stem):
            yield Finding(NOTE, path, problem, fix)
    try:
        texts = list(elf.Elf(path).texts())
    except (OSError, ValueError):
        return
    if any(VSYSCALL.search(text) for text in texts):
        yield Finding(NOTE, path, "calls the vsyscall page, which is not intercepted",
                      "nothing: time, gettimeofday and getcpu concern no files")
    if any(INT80.search(text) for text in texts):
        yield Finding(NOTE, path, "has bytes that look like 32-bit system calls (int 0x80), which are not intercepted",
                      "build it without them, if that is what they are")


def _scan(loader, path, variables):
    """What the shim says of the system call instructions of a program at its start.

    The loader is executed, not the program, so that no rights of its file matter: what is loaded is the same.
    """
    done = subprocess.run([loader, path], env={**variables, "MADFS_SCAN": "1"}, capture_output=True, text=True,
                          errors="replace", timeout=SCAN_S, check=False, stdin=subprocess.DEVNULL)
    report = next(filter(None, map(_REPORT.fullmatch, done.stderr.splitlines())), None)
    if not report:
        last = done.stderr.strip().splitlines()
        said = f": it says {last[-1]!r}" if last else ""
        return [Finding(ERROR, path, f"cannot be started with the preload library{said}", "see the message")], 0
    findings = [Finding(ERROR, name, f"has {number} system call instructions that cannot be rewritten",
                        "see whether they concern files; MADFS_STRICT=1 lets no program with such run")
                for number, name in re.findall(_LEFT, done.stderr)]
    return findings, int(report[1])


def line(finding):
    """``error: PATH PROBLEM; FIX``"""
    return f"{finding.severity}: {finding.subject} {finding.problem}; fix: {finding.fix}"
