# SPDX-License-Identifier: Apache-2.0
"""Starting servers on this node, running a program under the preload, and ending both."""
import contextlib
import errno
import fcntl
import glob
import os
import re
import resource
import select
import shutil
import signal
import socket
import sys
import tempfile
import time

from . import __version__, elf, keeper, leftovers
from . import cluster as clusters
from .config import Config, chunk_size
from .keeper import LaunchError

SERVERS_MAX = 4
PORT_MAX = 65535
LIBRARY = os.path.join(os.path.dirname(os.path.abspath(__file__)), "_lib", keeper.LIBRARY)
RUNTIME, UCX = "libmadfs_runtime.so", "libmf*.so.0"
# What a program needs to run at all, and we to serve it: no mount lies in or above one of these.
NEEDED = ("/proc", "/sys", "/dev/null", "/dev/pts", "/dev/shm/madfs", "/bin", "/sbin", "/lib", "/lib64", "/etc",
          "/usr/bin", "/usr/sbin", "/usr/lib", "/usr/lib64", LIBRARY, sys.executable)
MOUNT_MAX = 1000  # bytes, so that there is room for paths below it
FORWARDED = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2}
ANSWER_MS = 5000  # for a server that was started again to say how far it is
ENDING = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
CLUSTER = "cluster"  # the name of the cluster file of servers that live as long as a job
STATUS_NOT_FOUND, STATUS_NOT_EXECUTABLE = 127, 126


class Ended(BaseException):
    """A signal that ends this process arrived; ``number`` is its."""

    def __init__(self, number):
        super().__init__(number)
        self.number = number


def open_streams():
    """Make standard streams of ours where there are none, so that nothing else gets their numbers; programs that are
    executed do not inherit them."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def raise_signals():
    """From now on the signals that end a program raise Ended, so that what was begun is ended in order."""
    def arrived(number, _):
        raise Ended(number)

    for number in ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, arrived)


@contextlib.contextmanager
def signals_wait():
    """Signals that arrive within come at its end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class CommandError(Exception):
    """The program cannot be executed; ``status`` is what a shell would answer."""

    def __init__(self, message, status):
        super().__init__(message)
        self.status = status


# --- what the caller asked for --------------------------------------------------------------------------------------


def default_servers():
    """Servers on this node when nobody says: half of the cores, because clients need the others, and at most 4."""
    return min(SERVERS_MAX, max(1, len(os.sched_getaffinity(0)) // 2))


def configuration():
    """The settings in the environment.  Raises LaunchError that names a wrong one."""
    try:
        config = Config()
    except ValueError as error:
        raise LaunchError(str(error)) from None
    try:
        if config.log:
            # a FIFO that nobody reads is to be refused, not waited for
            os.close(os.open(config.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o600))
    except OSError as error:
        raise LaunchError(f"MADFS_LOG={config.log!r} cannot be written: {error.strerror}; name another file, or "
                          "leave it out") from None
    return config


def check_limits():
    """Raises LaunchError when the servers could not live with the limits (ulimit) of this process."""
    for limit, least, what in ((resource.RLIMIT_NOFILE, 64, "-n, open files"),
                               (resource.RLIMIT_FSIZE, 128 << 20, "-f, bytes of a file"),
                               (resource.RLIMIT_AS, 512 << 20, "-v, bytes of memory"),
                               (resource.RLIMIT_DATA, 192 << 20, "-d, bytes of data")):
        most = resource.getrlimit(limit)[1]
        if 0 <= most < least:
            raise LaunchError(f"the hard limit of {most} (ulimit {what}) is too low for servers, which need {least}; "
                              "raise it, or use servers that run with --cluster")


def check_mount(mount):
    """``mount`` in its shortest form.  Raises LaunchError."""
    if not mount.startswith("/") or re.search(r"[\x00-\x20#:]", mount):
        raise LaunchError(f"the mount {mount!r} is not an absolute path without blanks, '#' and ':'; say "
                          "--mount /madfs")
    mount = "/" + os.path.normpath(mount).lstrip("/")
    if any(f"{path}/".startswith(f"{mount}/") or f"{mount}/".startswith(f"{path}/") for path in ("/", *NEEDED)):
        raise LaunchError(f"the mount {mount} would hide the system or MadFS itself; choose a name of its "
                          "own, as /madfs")
    if len(os.fsencode(mount)) > MOUNT_MAX:
        raise LaunchError(f"the path of the mount has more than {MOUNT_MAX} bytes; say --mount /madfs")
    return mount


def check_chunk_size(text):
    """Bytes of a chunk.  Raises LaunchError."""
    try:
        return chunk_size(text)
    except ValueError:
        raise LaunchError(f"the chunk size {text!r} is not one from 4K to 64M; say for instance "
                          "--chunk-size 512K") from None


def prepare_store(store, count):
    """Make the directories of ``count`` servers (None: as many as there are, or the default) below the directory
    ``store``.

    Returns ``(absolute path, count)``.  A store keeps the number of its servers.  Raises LaunchError.
    """
    path = os.path.abspath(store)
    if re.search(r"[\x00-\x1f#]", path):
        raise LaunchError(f"the store {path!r} has a character in its name that the cluster file cannot "
                          "hold; rename it")
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
        numbers = sorted(int(name[7:]) for name in os.listdir(path) if re.fullmatch(r"server-\d+", name))
        there = len(numbers)
        if numbers != list(range(there)):
            lost = next(number for number in range(there) if number not in numbers)
            raise LaunchError(f"the store {path} has lost server-{lost}; put it back, or choose another with --store")
        if there and count and there != count:
            raise LaunchError(f"the store {path} belongs to {there} servers, not {count}; say --servers {there} or "
                              "leave it out")
        count = there or count or default_servers()
        for number in range(count):
            directory = os.path.join(path, f"server-{number}")
            os.makedirs(directory, mode=0o700, exist_ok=True)
            with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
                file.write(bytes(4096))  # a server on a full disk could not even say so
    except OSError as error:
        why = "it is not a directory" if isinstance(error, FileExistsError) else error.strerror
        raise LaunchError(f"the store {path} cannot be written: {why}; choose another with --store") from None
    return path, count


def private_directory():
    """A new directory that only we can enter, below TMPDIR: nowhere else, since what goes there may be much.

    Raises LaunchError.
    """
    place = os.path.abspath(os.environ.get("TMPDIR") or tempfile.gettempdir())
    try:
        return tempfile.mkdtemp(prefix="madfs-", dir=place)
    except OSError as error:
        raise LaunchError(f"no temporary directory can be made in {place!r}: {error.strerror}; set TMPDIR to a "
                          "directory with room") from None


def default_cluster(environment):
    """Where a standing set is described when nobody says: a place that belongs to the user and to the node."""
    if environment.get("MADFS_CLUSTER"):
        return os.path.abspath(environment["MADFS_CLUSTER"])
    if environment.get("XDG_RUNTIME_DIR"):
        return os.path.join(environment["XDG_RUNTIME_DIR"], "madfs", "cluster")
    return os.path.join(os.path.expanduser("~"), ".madfs", socket.gethostname(), "cluster")


# --- servers --------------------------------------------------------------------------------------------------------


class Running:
    """Servers that live as long as this object: ``cluster`` is the path of their cluster file."""

    def __init__(self, mount, pid, report, control):
        self.mount, self.cluster, self._temporary = mount, "", ""
        self._pid, self._report, self._control = pid, report, control

    def wait(self):
        """Wait until the servers serve.  Raises LaunchError."""
        _, self._temporary = _await_report(self._report)
        self.cluster = os.path.join(self._temporary, CLUSTER)

    def stop(self):
        """End the servers and remove what is temporary; returns when that is done.  Signals wait until then."""
        with signals_wait():
            if not self._pid:
                return
            os.close(self._control)
            _, status = os.waitpid(self._pid, 0)
            self._pid = 0
            if os.WIFSIGNALED(status):
                keeper.say(f"madfs: the keeper of the servers was killed by signal {os.WTERMSIG(status)}, they "
                           "ended with it")
                if self._temporary:
                    shutil.rmtree(self._temporary, ignore_errors=True)
                leftovers.sweep()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


def start(mount, *, servers=None, store=None):
    """Start servers for one job and wait until they serve; returns Running.  Raises LaunchError.

    ``servers`` is how many, ``store`` a directory whose content is kept; without it everything is removed at the end.
    """
    check_limits()
    mount, running = check_mount(mount), None
    try:
        with signals_wait():
            running = Running(mount, *keeper.fork(lambda: plan(mount, servers, store)))
        running.wait()
    except BaseException:
        if running:
            running.stop()
        raise
    return running


def plan(mount, servers, store):
    """What the keeper of a job's servers is to start.  It makes the directories itself, so that whatever becomes of us
    they are removed.  Raises LaunchError."""
    private = private_directory()
    try:
        path, count = prepare_store(store or private, servers)
    except BaseException:
        shutil.rmtree(private, ignore_errors=True)
        raise
    return keeper.Plan(count, mount, os.path.join(private, CLUSTER), path, temporary=private)


def start_standing(cluster, mount, *, servers=None, store=None, port=0):
    """Start servers that stay until ``stop_standing``; returns how many.  Raises LaunchError."""
    check_limits()
    mount, pid = check_mount(mount), 0
    try:
        with signals_wait():
            pid, report, _ = keeper.fork(lambda: standing_plan(cluster, mount, servers, store, port), standing=True)
        return _await_report(report)[0]
    except BaseException:
        if pid:
            with signals_wait():
                os.kill(pid, signal.SIGTERM)
                os.waitpid(pid, 0)
        raise


def standing_plan(cluster, mount, servers, store, port):
    """What the keeper of a standing set is to start, as plan()."""
    if os.path.isdir(cluster):
        raise LaunchError(f"the cluster file {cluster} is a directory; name a file with --cluster")
    try:
        os.makedirs(os.path.dirname(cluster), mode=0o700, exist_ok=True)
        lock = _lock(cluster)
    except OSError as error:
        raise LaunchError(f"cannot write beside the cluster file {cluster}: {error.strerror}; choose "
                          "another --cluster") from None
    job = None
    try:
        if not store:
            job = plan(mount, servers, None)
        path, count = prepare_store(store, servers) if store else (job.store, job.count)
        if port + count - 1 > PORT_MAX:
            raise LaunchError(f"{count} servers from --port {port} on would need ports above {PORT_MAX}; choose a "
                              "lower one")
    except BaseException:
        if job:
            shutil.rmtree(job.temporary, ignore_errors=True)
        os.unlink(keeper.lock_path(cluster))
        raise
    return keeper.Plan(count, mount, cluster, path, port, job and job.temporary, lock)


def standing(cluster):
    """Process id of the keeper of a running standing set, 0 while it starts, or None.  Raises LaunchError."""
    try:
        fd = os.open(keeper.lock_path(cluster), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise LaunchError(f"cannot look beside the cluster file {cluster}: {error.strerror}; choose another "
                          "--cluster") from None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return int(os.read(fd, 32) or 0)
    finally:
        os.close(fd)
    return None


def stop_standing(cluster):
    """End a standing set and wait until it has ended.  Raises LaunchError when none runs."""
    leftovers.sweep()
    _signal_keeper(cluster, signal.SIGTERM, keeper.STOP_S + 5)


def heal_standing(cluster):
    """Start the servers of a standing set that died, on their stores, also those that die meanwhile.  Raises
    LaunchError."""
    deadline = time.monotonic() + keeper.START_S + keeper.STOP_S
    while True:
        servers = _healed(cluster, deadline)
        left, silent = unfinished(servers, deadline)
        if not silent:
            break
        if time.monotonic() > deadline:
            raise LaunchError(f"server {', '.join(map(str, silent))} of {cluster} died again or does not answer; see "
                              f"{keeper.log_path(cluster)}, and say `madfs up` again")
    if left:
        keeper.say(f"madfs: {left} renames or link counts that waited for the servers are still under way")


def _healed(cluster, deadline):
    """The cluster after its keeper has started what it knows to be dead.  Raises LaunchError."""
    before = os.stat(cluster)
    _signal_keeper(cluster, signal.SIGHUP, 0)
    while os.path.samestat(before, os.stat(cluster)):  # The keeper replaces the file when it is done.
        if time.monotonic() > deadline:
            raise LaunchError(f"the servers of {cluster} did not start again; see {keeper.log_path(cluster)}")
        time.sleep(0.01)
    servers = read_cluster(cluster)
    dead = [str(server.number) for server in servers.servers if not server.pid]
    if dead:
        raise LaunchError(f"server {', '.join(dead)} of {cluster} did not start again; see {keeper.log_path(cluster)}")
    return servers


def unfinished(cluster, deadline):
    """Wait until nothing of ``cluster`` waits for a server that was dead, one does not answer, or until ``deadline``
    (monotonic seconds); returns how much does, and the numbers of the servers that do not answer."""
    from .ops import UNFINISHED
    from .rpc import Client

    config = configuration()
    config.timeout_ms = min(config.timeout_ms, ANSWER_MS)
    client = Client(cluster, config)
    calls = [(server.number, UNFINISHED, b"", (), None, None) for server in cluster.servers]
    try:
        while True:
            answers = client.call_many(calls)
            silent = [number for number, answer in enumerate(answers) if isinstance(answer, Exception)]
            left = sum(answer[0].count for answer in answers if not isinstance(answer, Exception))
            if silent or not left or time.monotonic() > deadline:
                return left, silent
            time.sleep(0.01)
    finally:
        client.close()


def _signal_keeper(cluster, number, wait_s):
    try:
        pidfd = os.pidfd_open(standing(cluster) or -1)
    except OSError:
        raise LaunchError(f"no servers of `madfs up` run for the cluster file {cluster}; name theirs "
                          "with --cluster") from None
    try:
        signal.pidfd_send_signal(pidfd, number)
        if wait_s:
            poller = select.poll()
            poller.register(pidfd, select.POLLIN)
            if not poller.poll(wait_s * 1000):
                raise LaunchError(f"the servers of {cluster} did not stop within {wait_s} s; "
                                  f"see {keeper.log_path(cluster)}")
    finally:
        os.close(pidfd)


def _lock(cluster):
    path = keeper.lock_path(cluster)
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(fd, 0)
            if os.path.samestat(os.fstat(fd), os.stat(path)):
                return fd
        except BlockingIOError:
            os.close(fd)
            raise LaunchError(f"servers for the cluster file {cluster} run already; end them with "
                              f"`madfs down --cluster {cluster}`") from None
        except FileNotFoundError:
            pass  # The last owner removed it between our open and our lock.
        os.close(fd)


def _await_report(report):
    """Read what the keeper says until the servers serve; returns how many they are and the path of what is temporary.

    Raises LaunchError with its reason when they do not serve.
    """
    said, count, temporary = "", "0", ""
    with report:
        for line in report:
            said = line.rstrip("\n")
            if said == "ready" or said.startswith("error "):
                break
            if said.startswith("plan "):
                _, count, temporary = said.split(" ", 2)
            else:
                progress(f"madfs: {said} of {count} servers")
    progress("")
    if said.startswith("error "):
        raise LaunchError(said.removeprefix("error "))
    if said != "ready":
        raise LaunchError("the process that starts the servers ended without a word; was it killed, or ended by "
                          "`madfs down`?")
    return int(count), temporary


def progress(line):
    """Show ``line`` in place of the last one, when somebody is watching; an empty one clears it."""
    if sys.stderr and sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{line}")
        sys.stderr.flush()


# --- the program ----------------------------------------------------------------------------------------------------


def check_library(path=None):
    """Path of the preload library, which has to be built and of our version.  Raises LaunchError."""
    path = path or LIBRARY
    try:
        version = elf.Elf(path).string(b"madfs_version")
    except FileNotFoundError:
        raise LaunchError(f"the preload library {path} is missing; build it with `make build`") from None
    except (OSError, ValueError) as error:
        raise LaunchError(f"the preload library {path} cannot be used: {error}; build it anew with "
                          "`make build`") from None
    if version != __version__.encode():
        of = (version or b"an unknown version").decode(errors="replace")
        raise LaunchError(f"the preload library {path} is {of}, this is {__version__}; build it anew with `make build`")
    if re.search(r"[\s:]", path):
        raise LaunchError(f"the preload library lies in {os.path.dirname(path)!r}: LD_PRELOAD cannot name a path "
                          "with blanks or colons; install MadFS elsewhere")
    return path


def check_runtime(folder=None):
    """That the libraries which the preload library loads into a program are there and whole.  Raises LaunchError."""
    folder = folder or os.path.dirname(LIBRARY)
    for path in (os.path.join(folder, RUNTIME), *glob.glob(os.path.join(glob.escape(folder), UCX))):
        try:
            elf.Elf(path)
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise LaunchError(f"the library {path} cannot be used: {why}; build it anew with `make build`") from None


def preload_variables(cluster, mount, environment, chunk_size=None):
    """The variables that put a program on MadFS; libraries that ``environment`` preloads stay, behind ours.

    ``cluster`` is the path of the cluster file, ``chunk_size`` bytes or None.  Raises LaunchError.
    """
    variables = {"LD_PRELOAD": ":".join([check_library(), *keeper.other_preloads(environment)]),
                 "MADFS_CLUSTER": os.path.abspath(cluster), "MADFS_MOUNT": mount, "MADFS_VERSION": __version__,
                 "MADFS_PRELOAD": "1"}
    if chunk_size:
        variables["MADFS_CHUNK_SIZE"] = str(chunk_size)
    return variables


def command(argv, mount, environment):
    """What to execute for ``argv``: a program on the mount, and one whose libraries may lie there, can be started only
    by one that is on it."""
    path = shutil.which(argv[0], path=environment.get("PATH", os.defpath))
    if os.path.normpath(argv[0]).startswith(mount + "/") or looks_for_libraries(path, mount, environment):
        return ["env", "--", *argv]
    return argv


def looks_for_libraries(path, mount, environment):
    """Whether the program at ``path`` may be given libraries, or a loader, from below ``mount``."""
    names = re.compile(rb"(^|[:; ])" + re.escape(os.fsencode(mount)) + rb"($|[/:; ])")
    if any(names.search(os.fsencode(environment.get(name, ""))) for name in ("LD_LIBRARY_PATH", "LD_PRELOAD")):
        return True
    try:
        with elf.regular(path or "") as file:
            return file.read(4) == b"\x7fELF" and os.fsencode(mount) + b"/" in file.read()
    except OSError:
        return False


def find_program(name, environment):
    """Path of the program ``name``.  Raises CommandError."""
    path = shutil.which(name, path=environment.get("PATH", os.defpath))
    if path and os.path.isfile(path):
        return path
    if os.path.exists(name):
        raise CommandError(f"{name} is not an executable file", STATUS_NOT_EXECUTABLE)
    raise CommandError(f"command not found: {name}", STATUS_NOT_FOUND)


def execute(argv, environment):
    """Replace this process by the program ``argv``.  Raises CommandError; does not return."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)  # Python ignores them, and that would be inherited.
    try:
        os.execve(find_program(argv[0], environment), argv, environment)
    except OSError as error:
        raise _not_executable(argv[0], error) from None


def run(argv, environment):
    """Run the program ``argv`` and pass on the signals that reach us; returns its wait status.  Raises CommandError.

    What the terminal sends (si_code > 0) reaches the program by itself, since it is in our process group.
    """
    watched = FORWARDED | {signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    try:
        try:
            pid = os.posix_spawn(find_program(argv[0], environment), argv, environment, setsigmask=before,
                                 setsigdef=(signal.SIGPIPE, signal.SIGXFSZ))
        except OSError as error:
            raise _not_executable(argv[0], error) from None
        while True:
            info = signal.sigwaitinfo(watched)
            if info.si_signo != signal.SIGCHLD:
                if info.si_code <= 0:
                    os.kill(pid, info.si_signo)
                continue
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                return status
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _not_executable(name, error):
    hint = "; it needs a first line such as #!/bin/sh" if error.errno == errno.ENOEXEC else ""
    return CommandError(f"cannot execute {name}: {error.strerror}{hint}", STATUS_NOT_EXECUTABLE)


def end_like(status):
    """The exit status for a wait status; when a signal ended the program, this process ends by the same one."""
    if not os.WIFSIGNALED(status):
        return os.waitstatus_to_exitcode(status)
    number = os.WTERMSIG(status)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # The program's core file is the one of interest.
    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
    os.kill(os.getpid(), number)
    return 128 + number


# --- what the servers say of themselves -----------------------------------------------------------------------------


def statistics(cluster):
    """What each server of ``cluster`` (a Cluster) answers to STATUS: a list of dictionaries, or None for a dead one."""
    from flatbuffers import flexbuffers

    from .ops import STATUS
    from .rpc import Client

    client = Client(cluster, configuration())
    try:
        answers = client.call_many([(server.number, STATUS, b"", (), None, None) for server in cluster.servers])
        return [None if isinstance(answer, Exception) else flexbuffers.Loads(bytes(answer[1])) for answer in answers]
    finally:
        client.close()


def read_cluster(path):
    """The cluster described at ``path``.  Raises LaunchError."""
    try:
        cluster = clusters.read(path)
    except clusters.ClusterError as error:
        raise LaunchError(str(error)) from None
    check_mount(cluster.mount)
    return cluster
