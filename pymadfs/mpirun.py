# SPDX-License-Identifier: Apache-2.0
"""``madfs-mpirun``: mpirun, of MPICH or OpenMPI, whose ranks run on MadFS.

Exactly the ranks get the preload, by mpirun's own options for the environment: neither mpirun nor its daemons are
rewritten, and none of mpirun's other options has to be understood.  Hydra's ``-genv`` reaches every rank of the job;
OpenMPI's ``-x`` reaches those of one application context, so it is repeated after each ``:``.
"""
import os
import shutil
import subprocess
import sys

from . import doctor, keeper, launch
from .cli import Parser, add_run_options, guard, run_job
from .launch import LaunchError

PREFIX = "--madfs-"
COMMANDS = ("mpirun", "mpiexec", "mpirun.mpich", "mpirun.openmpi")
VERSION_S = 30


def parser():
    """Our own options; all others are mpirun's."""
    options = Parser(prog="madfs-mpirun", allow_abbrev=False,
                     usage="madfs-mpirun [--madfs-...] [options of mpirun] PROGRAM ...",
                     description="Run an MPI job on MadFS. Options of its own come first; everything else is handed "
                                 "to mpirun, which is the one that MADFS_MPIRUN names or the first in PATH.")
    add_run_options(options, PREFIX)
    return options


def split(argv):
    """Our own options at the beginning of ``argv``, and the rest, which is mpirun's."""
    index = 0
    while index < len(argv) and (argv[index].startswith(PREFIX) or argv[index] in ("-h", "--help")):
        alone = "=" in argv[index] or argv[index] in ("-h", "--help", f"{PREFIX}summary", f"{PREFIX}trace")
        index += 1 if alone else 2
    return argv[:index], argv[index:]


def find(environment):
    """Path of the mpirun to use.  Raises LaunchError."""
    asked = environment.get("MADFS_MPIRUN")
    for name in [asked] if asked else COMMANDS:
        try:
            return launch.find_program(name, environment)
        except launch.CommandError:
            continue
    raise LaunchError(f"there is no {asked or 'mpirun in PATH'}; install MPICH or OpenMPI, or name the command in "
                      "MADFS_MPIRUN")


def flavour(command, environment):
    """"hydra" or "openmpi": whose options ``command`` understands.  Raises LaunchError."""
    try:
        answer = subprocess.run([command, "--version"], env=environment, capture_output=True, text=True,
                                errors="replace",
                                timeout=VERSION_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LaunchError(f"{command} --version failed ({error}); name another in MADFS_MPIRUN") from None
    said = (answer.stdout + answer.stderr).lower()
    if any(word in said for word in ("hydra", "intel(r) mpi", "mvapich")):
        return "hydra"
    if any(word in said for word in ("open mpi", "openrte", "open-mpi", "prrte")):
        return "openmpi"
    raise LaunchError(f"{command} is neither of MPICH's family nor OpenMPI's: name such a one in MADFS_MPIRUN, or use "
                      "`madfs run -- mpirun ...`")


def with_environment(kind, arguments, variables):
    """``arguments`` of an mpirun of ``kind`` with options that set ``variables`` (a dictionary) for every rank."""
    if kind == "hydra":
        return [word for name, value in variables.items() for word in ("-genv", name, value)] + arguments
    options = [word for name, value in variables.items() for word in ("-x", f"{name}={value}")]
    placed = list(options)
    for argument in arguments:
        placed += [argument, *options] if argument == ":" else [argument]
    return placed


def check(kind, arguments):
    """Refuse what would silently take the preload away from the ranks.  Raises LaunchError."""
    for before, argument in zip(["", *arguments], arguments, strict=False):
        if before in ("-x", "-env", "-genv", "--env", "--genv") and argument.partition("=")[0] == "LD_PRELOAD":
            raise LaunchError(f"{before} LD_PRELOAD would take the place of MadFS: export LD_PRELOAD before "
                              "madfs-mpirun instead")
    if kind == "openmpi" and arguments[:1] in (["--app"], ["-app"]):
        raise LaunchError("OpenMPI sets no variables for the ranks of an --app file: write its lines on the command "
                          "line, with ':'")


def rank_warning(arguments, mount):
    """One line about a program of the ranks that will not be on MadFS, or is not there for mpirun, or None.

    Without knowing mpirun's options, the program of each context is taken to be the first argument that is one.
    """
    contexts = [[]]
    for argument in arguments:
        if argument == ":":
            contexts.append([])
        else:
            contexts[-1].append(argument)
    for context in contexts:
        program = next((index for index, word in enumerate(context)
                        if not word.startswith("-") and shutil.which(word)), len(context))
        for word in context[:program]:
            if f"{word}/".startswith(f"{mount}/"):
                return (f"mpirun itself does not see {word}: start a program there with `env {mount}/PROGRAM`, and "
                        f"change to a directory there in the program or with `env -C`")
        if program < len(context) and (warning := doctor.warning(context[program:])):
            return warning
    return None


def main(argv=None):
    """Entry point of ``madfs-mpirun``; returns the exit status."""
    own, arguments = split(sys.argv[1:] if argv is None else argv)
    options = parser().parse_args(own)

    def job():
        plain = keeper.plain_environment(os.environ)
        command = find(plain)
        kind = flavour(command, plain)
        if not arguments:
            raise LaunchError("there is no program to run; say `madfs-mpirun -n 4 PROGRAM [ARGUMENT...]`")
        check(kind, arguments)

        def prepare(cluster, mount, more=()):
            if warning := rank_warning(arguments, mount):
                keeper.say(f"madfs-mpirun: warning: {warning}")
            variables = {name: value for name, value in plain.items() if name.startswith("MADFS_")}
            variables.update(launch.preload_variables(cluster, mount, os.environ, options.chunk_size), **dict(more))
            return [command, *with_environment(kind, arguments, variables)], plain

        return run_job(options, prepare)

    return guard("madfs-mpirun", job)


if __name__ == "__main__":
    sys.exit(main())
