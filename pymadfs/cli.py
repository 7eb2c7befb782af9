# SPDX-License-Identifier: Apache-2.0
"""The command ``madfs``: run a program on servers of its own, or keep servers standing on this node."""
import argparse
import contextlib
import json
import os
import shutil
import signal
import stat
import sys
import time
from collections import Counter

from . import __version__, doctor, fsck, keeper, launch, rpc, trace
from .config import SETTINGS
from .launch import CommandError, LaunchError

FSCK_WAITS_S = 2  # for programs that have just been ended

EPILOG = """settings are environment variables:
""" + "\n".join(f"  {setting.variable:18} {setting.doc}" for setting in SETTINGS)


class Parser(argparse.ArgumentParser):
    """Argparse that says in one line what is wrong and what to do."""

    def error(self, message):
        self.exit(2, f"{self.prog}: {message}; see `{self.prog} --help`\n")

    def _print_message(self, message, file=None):
        if file is sys.stderr:
            keeper.say(message.removesuffix("\n"))
        elif status := guard(self.prog, lambda: tell(message.removesuffix("\n"))):
            sys.exit(status)


def parser():
    """The whole command line."""
    top = Parser(prog="madfs", description="A file system for the time of a job: madfs run -- PROGRAM", epilog=EPILOG,
                 formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("--version", action="version", version=f"madfs {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)

    run = commands.add_parser("run", help="run a program on MadFS; its servers live as long as it does",
                              usage="madfs run [options] -- PROGRAM [ARGUMENT...]", allow_abbrev=False)
    add_run_options(run)
    run.add_argument("program", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    run.set_defaults(function=command_run, parser=run)

    examine = commands.add_parser("doctor", help="say what of a program MadFS would not reach, before it runs",
                                  usage="madfs doctor [options] -- PROGRAM [ARGUMENT...]", allow_abbrev=False)
    add_run_options(examine)
    examine.add_argument("program", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    examine.set_defaults(function=command_doctor, parser=examine)

    up = commands.add_parser("up", help="start servers that stay, and print the path of their cluster file",
                             allow_abbrev=False)
    add_server_options(up)
    add_cluster_option(up)
    up.add_argument("--port", type=port, default=0, metavar="P",
                    help="server 0 listens on P, server 1 on P+1, ... (any free one)")
    up.set_defaults(function=command_up, parser=up)

    down = commands.add_parser("down", help="end the servers of `madfs up`", allow_abbrev=False)
    add_cluster_option(down)
    down.set_defaults(function=command_down, parser=down)

    status = commands.add_parser("status", help="say what each server does", allow_abbrev=False)
    add_cluster_option(status)
    status.add_argument("--json", action="store_true", help="one JSON object per server and line")
    status.set_defaults(function=command_status, parser=status)

    check = commands.add_parser("fsck", help="check that all that the servers have makes one file system",
                                allow_abbrev=False, epilog="Exit status: 0 nothing is wrong, 1 it was mended, 4 "
                                "something is wrong, 8 it could not be checked, 2 wrong usage.")
    add_cluster_option(check)
    check.add_argument("--store", type=path, metavar="DIR", help="check the store DIR, which no server uses now")
    check.add_argument("--repair", action="store_true", help="mend what is wrong; no program may use the file system")
    check.set_defaults(function=command_fsck, parser=check)
    return top


def add_run_options(options, prefix="--"):
    """Options of a job; ``prefix`` sets them apart from those of mpirun."""
    add_server_options(options, prefix)
    add_cluster_option(options, prefix, "use the servers described in FILE (MADFS_CLUSTER) instead of starting some")
    options.add_argument(f"{prefix}chunk-size", dest="chunk_size", type=checked(launch.check_chunk_size), metavar="B",
                         help="bytes in a chunk of a new file, as 470080 or 1M (512K)")
    options.add_argument(f"{prefix}summary", dest="summary", action="store_true",
                         help="say at the end what the servers did")
    options.add_argument(f"{prefix}trace", dest="trace", action="store_true",
                         help="count the system calls that concern the mount, and say at the end what became of them")


def add_server_options(options, prefix="--"):
    options.add_argument(f"{prefix}servers", dest="servers", type=count, metavar="N",
                         help="how many servers to start (half of the cores, at most 4)")
    options.add_argument(f"{prefix}mount", dest="mount", type=checked(launch.check_mount), metavar="PATH",
                         help="where the file system appears (MADFS_MOUNT or /madfs)")
    options.add_argument(f"{prefix}store", dest="store", type=path, metavar="DIR",
                         help="keep the data in DIR (default: a directory in TMPDIR that is removed at the end)")


def add_cluster_option(options, prefix="--",
                       text="the cluster file (MADFS_CLUSTER, or one in XDG_RUNTIME_DIR or ~/.madfs)"):
    options.add_argument(f"{prefix}cluster", dest="cluster", type=path, metavar="FILE", help=text)


def count(text):
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 4096):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of servers from 1 to 4096")
    return int(text)


def port(text):
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"{text!r} is not a port from 1 to 65535")
    return int(text)


def path(text):
    """An empty name is one that a script forgot to set: what it stands for would be lost."""
    if not text:
        raise argparse.ArgumentTypeError("the name is empty")
    return text


def checked(check):
    """``check`` as an argparse type: its LaunchError becomes the message."""
    def convert(text):
        try:
            return check(text)
        except LaunchError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
    return convert


# --- the commands ---------------------------------------------------------------------------------------------------


def tell(*lines):
    """Write ``lines`` to standard output, at once.  Raises LaunchError when that fails, or Ended when nobody reads."""
    try:
        print(*lines, sep="\n", flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), 1)  # else the rest of it is tried again at the end
        if isinstance(error, BrokenPipeError):
            raise launch.Ended(signal.SIGPIPE) from None
        raise LaunchError(f"standard output cannot be written: {error.strerror}; direct it to a place with "
                          "room") from None


def program_of(options):
    """What to run, which ``options`` must have.  Raises LaunchError."""
    argv = options.program
    if not argv:
        raise LaunchError(f"there is no program; say `madfs {options.command} -- PROGRAM [ARGUMENT...]`")
    if argv[0].startswith("-"):
        raise LaunchError(f"unknown option {argv[0]}; see `madfs {options.command} --help`")
    return argv


def command_run(options):
    argv = program_of(options)

    def prepare(cluster, mount, more=()):
        command = launch.command(argv, mount, os.environ)
        launch.find_program(command[0], os.environ)
        if warning := doctor.warning(command):
            keeper.say(f"madfs run: warning: {warning}")
        variables = launch.preload_variables(cluster, mount, os.environ, options.chunk_size)
        return command, {**os.environ, **variables, **dict(more)}

    return run_job(options, prepare)


def command_doctor(options):
    """0: everything will be intercepted; 1: something will not.  With --trace, the program runs when nothing is
    wrong."""
    argv = program_of(options)
    config = launch.configuration()
    cluster = options.cluster or ("" if options.servers or options.store else config.cluster)
    mount = launch.read_cluster(cluster).mount if cluster else options.mount or config.mount
    findings, patched = doctor.examine(argv, launch.check_mount(mount))
    for finding in findings:
        tell(doctor.line(finding))
    if any(finding.severity == doctor.ERROR for finding in findings):
        return 1
    tell(f"ok: {patched} system call instructions would be intercepted at the start of {argv[0]}" if patched else
         f"ok: nothing is known against {argv[0]}")
    if not options.trace:
        return 0
    report = []
    status = command_run_quietly(options, report)
    ended = f"ended with status {status}" if status >= 0 else f"was ended by {signal.Signals(-status).name}"
    tell(*trace.table(report[0]), f"{argv[0]} {ended}")
    return 1 if report[0].sites_left or not report[0].processes else 0


def command_run_quietly(options, report):
    """Run the program of ``options`` and put what was counted into the list ``report``; returns its exit status."""
    def prepare(cluster, mount, more=()):
        variables = launch.preload_variables(cluster, mount, os.environ, options.chunk_size)
        environment = {**os.environ, **variables, **dict(more)}
        return launch.command(options.program, mount, os.environ), environment

    status = run_job(options, prepare, report)
    return os.waitstatus_to_exitcode(status)


def run_job(options, prepare, report=None):
    """Run what ``prepare(cluster file, mount)`` returns, ``(argv, environment)``, on the servers ``options`` ask for.

    With a cluster file, given or in MADFS_CLUSTER, its servers are used and left running; else they are started and
    ended. Returns the exit status, or ends this process by the signal that ended the program. With a list ``report``
    the wait status is returned, and what ``--trace`` counted is appended to it instead of printed.
    """
    config = launch.configuration()
    launch.check_library()
    launch.check_runtime()
    own = options.servers or options.store
    path = options.cluster or ("" if own else config.cluster)
    if path and (own or options.mount):
        raise LaunchError("--cluster names servers that run: leave out --servers, --store and --mount")
    if path and not options.summary and not options.trace:
        return launch.execute(*prepare(path, launch.read_cluster(path).mount))
    with contextlib.ExitStack() as stack:
        if path:
            cluster, mount = path, launch.read_cluster(path).mount
        else:
            running = stack.enter_context(launch.start(options.mount or config.mount, servers=options.servers,
                                                       store=options.store))
            cluster, mount = running.cluster, running.mount
        status = watch_job(prepare, cluster, mount, options, report)
    return launch.end_like(status) if report is None else status


def watch_job(prepare, cluster, mount, options, report):
    """Run a job to its end on the servers of ``cluster``, as run_job(); returns its wait status."""
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        variables = {}
        if options.trace:
            directory = launch.private_directory()
            stack.callback(shutil.rmtree, directory, ignore_errors=True)
            variables["MADFS_TRACE"] = os.path.join(directory, "trace")
            trace.create(variables["MADFS_TRACE"])
        argv, environment = prepare(cluster, mount, variables)
        status = launch.run(argv, environment)
        counted_calls = trace.read(variables["MADFS_TRACE"]) if options.trace else None
    if report is not None:
        report.append(counted_calls)
    elif counted_calls:
        for text in trace.table(counted_calls):
            keeper.say(f"madfs: {text}")
    if options.summary:
        print_summary(launch.read_cluster(cluster), time.monotonic() - started)
    return status


def preload_environment(cluster):
    """Variables to add to the environment of a program that shall use the servers of the file ``cluster``.

    Raises LaunchError when the file or the preload library cannot be used.
    """
    return launch.preload_variables(cluster, launch.read_cluster(cluster).mount, os.environ)


def command_up(options):
    path = os.path.abspath(options.cluster or launch.default_cluster(os.environ))
    started = launch.standing(path) is None
    if started:
        launch.start_standing(path, options.mount or launch.configuration().mount, servers=options.servers,
                              store=options.store, port=options.port)
        # Whoever is told that this command was ended by a signal can count on it that no servers run.
        signal.pthread_sigmask(signal.SIG_BLOCK, launch.FORWARDED)
    else:
        check_same(options, launch.read_cluster(path))
        launch.heal_standing(path)
    servers = launch.read_cluster(path).servers
    try:
        tell(path)
    except BaseException:
        if started:  # nobody would know of them
            launch.stop_standing(path)
        raise
    keeper.say(f"madfs: {len(servers)} servers run; use them with `madfs run --cluster {path} -- PROGRAM`, "
               f"end them with `madfs down --cluster {path}`")
    return 0


def check_same(options, cluster):
    """That ``options`` ask for nothing that the running ``cluster`` is not.  Raises LaunchError."""
    stores = [os.path.dirname(server.store) for server in cluster.servers]
    for option, asked, running in (("--servers", options.servers, len(stores)),
                                   ("--mount", options.mount, cluster.mount),
                                   ("--store", options.store and os.path.abspath(options.store), stores[0]),
                                   ("--port", options.port or None, cluster.servers[0].port)):
        if asked is not None and asked != running:
            raise LaunchError(f"servers run already with {option} {running}, not {asked}; end them first with "
                              f"`madfs down --cluster {cluster.path}`")


def command_down(options):
    path = os.path.abspath(options.cluster or launch.default_cluster(os.environ))
    launch.stop_standing(path)
    return 0


def command_status(options):
    cluster = launch.read_cluster(options.cluster or launch.default_cluster(os.environ))
    answers = launch.statistics(cluster)
    for server, answer in zip(cluster.servers, answers, strict=True):
        row = {"server": server.number, "alive": answer is not None, "host": server.host, "port": server.port,
               "pid": server.pid, "store": server.store, **(answer or {})}
        tell(json.dumps(row) if options.json else status_line(row))
    return 0 if all(answer is not None for answer in answers) else 1


def command_fsck(options):
    """0: nothing is wrong; 1: it was mended; 4: something is wrong; 8: it could not be checked."""
    if options.store and options.cluster:
        raise LaunchError("--store is checked by servers of its own: leave out --cluster")
    with contextlib.ExitStack() as stack:
        if options.store:
            if not os.path.isdir(os.path.join(options.store, "server-0")):
                raise LaunchError(f"{options.store} is not a store of servers: name the directory given to --store")
            running = stack.enter_context(launch.start(launch.configuration().mount, store=options.store))
            path = running.cluster
        else:
            path = options.cluster or launch.default_cluster(os.environ)
        cluster = launch.read_cluster(path)
        client = rpc.Client(cluster, launch.configuration(), uid=os.geteuid(), gid=os.getegid())
        stack.callback(client.close)
        try:
            return run_fsck(client, cluster, options.repair)
        except OSError as error:
            keeper.say(f"madfs fsck: the servers could not be asked: {error.strerror or error}; see `madfs status`")
            return fsck.TROUBLE


def _in_use(cluster):
    """Whether somebody but the servers, who visit each other, and we are connected to one."""
    return any((answer or {}).get("connections", 0) > len(cluster.servers) for answer in launch.statistics(cluster))


def run_fsck(client, cluster, repair):
    """Check, and mend if ``repair``; prints what is wrong and returns the exit status."""
    until = time.monotonic() + FSCK_WAITS_S
    while (busy := _in_use(cluster)) and repair:  # who has just been ended may not be gone yet
        if time.monotonic() >= until:
            raise LaunchError("programs use the file system: end them, or leave out --repair")
        time.sleep(0.1)
    mended, wrong = 0, None
    for _ in range(fsck.REPAIRS_MAX):
        census, wrong = fsck.check(client, lambda text: keeper.say(f"madfs fsck: {text}"),
                                   fsck.LOOKS_BUSY if busy else fsck.LOOKS)
        if not repair or not wrong:
            break
        done = fsck.mend(client, wrong)
        mended += len(done)
        for text in done:
            tell(f"mended: {text}")
        if not done:
            break
    for problem in wrong:
        tell(f"wrong: {problem.text}")
    for what, number in sorted(census.waiting.items()):
        tell(f"under way: {counted(number, what)}")
    kinds = Counter(stat.S_ISDIR(entry.mode) for entry in census.entries.values())
    tell(f"{kinds[True]} {'directory' if kinds[True] == 1 else 'directories'}, "
         f"{counted(kinds[False], 'other name')} on {counted(len(cluster.servers), 'server')}: "
         f"{counted(len(wrong), 'problem') if wrong else 'nothing is wrong'}")
    return fsck.WRONG if wrong else fsck.MENDED if mended else fsck.CLEAN


def status_line(row):
    head = f"server {row['server']}  {row['host']}:{row['port']}  pid {row['pid']}"
    if not row["alive"]:
        return f"{head}  does not answer"
    return (f"{head}  up {row['uptime_s']:.0f} s  {counted(row['files'], 'file')}  {human(row['bytes'])}  "
            f"{counted(sum(row['operations'].values()), 'operation')}  {row['store']}")


def print_summary(cluster, seconds):
    """What the servers did, for the end of a job of ``seconds``."""
    answers = [answer for answer in launch.statistics(cluster) if answer is not None]
    total = {key: sum(answer[key] for answer in answers) for key in ("files", "bytes", "bytes_in", "bytes_out")}
    operations = sum(count for answer in answers for count in answer["operations"].values())
    keeper.say(f"madfs: {len(answers)} of {len(cluster.servers)} servers answered {operations} operations in "
               f"{seconds:.1f} s, {operations / seconds:.0f}/s")
    keeper.say(f"madfs: {human(total['bytes_in'])} written, {human(total['bytes_out'])} read; at the end "
               f"{counted(total['files'], 'file')} of {human(total['bytes'])}")


def human(size_bytes):
    """``"512 B"``, ``"2.9 MiB"``."""
    if size_bytes < 1 << 10:
        return f"{size_bytes} B"
    power = min(4, (size_bytes.bit_length() - 1) // 10)
    return f"{size_bytes / (1 << 10 * power):.1f} {'KMGT'[power - 1]}iB"


def counted(number, noun):
    return f"{number} {noun}" + ("s" if number != 1 else "")


def guard(name, function):
    """Run ``function`` and turn its errors into one line and an exit status; returns the status."""
    try:
        launch.open_streams()
        launch.raise_signals()
        return function()
    except LaunchError as error:
        keeper.say(f"{name}: {error}")
        return 2
    except CommandError as error:
        keeper.say(f"{name}: {error}")
        return error.status
    except launch.Ended as ended:
        return launch.end_like(ended.number)


def main(argv=None):
    """Entry point of ``madfs``; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    split = argv.index("--") if "--" in argv else len(argv)
    options, unknown = parser().parse_known_args(argv[:split])
    if unknown:
        options.parser.error(f"unknown argument {unknown[0]}")
    takes_program = options.command in ("run", "doctor")
    if argv[split:] and not takes_program:
        options.parser.error("only `madfs run` and `madfs doctor` take a program after --")
    if takes_program:
        options.program += argv[split if options.program else split + 1:]
    return guard(f"madfs {options.command}", lambda: options.function(options))


if __name__ == "__main__":
    sys.exit(main())
