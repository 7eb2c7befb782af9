# SPDX-License-Identifier: Apache-2.0
"""The process that stands between a job and its servers: it starts them, watches them and always ends them.

The keeper has a session of its own, so that neither Ctrl-C nor a killed launcher takes it along: when the launcher is
gone, even by ``kill -9``, the pipe ``control`` ends and the keeper stops the servers and removes what was temporary.
When the keeper itself is killed, the kernel ends the servers (PR_SET_PDEATHSIG).
"""
import contextlib
import ctypes
import os
import resource
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections import namedtuple

from . import cluster as clusters
from . import leftovers

HOST = "127.0.0.1"
START_S = 30
STOP_S = 10
BACKLOG = 1024
LIMITS = resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE, resource.RLIMIT_CPU, resource.RLIMIT_AS, resource.RLIMIT_DATA
LIBRARY = "libmadfs_intercept.so"
_PR_SET_PDEATHSIG = 1

Plan = namedtuple("Plan", "count mount cluster store port temporary lock", defaults=(0, None, -1))
Plan.__doc__ = """What to start: ``count`` servers for ``mount`` (str), described in the file ``cluster``, with their
data below the directory ``store``; ``port`` is the first port or 0 for any; ``temporary`` is a directory to remove at
the end or None; ``lock`` is the descriptor of the lock that a standing set holds until its end, or -1."""


class LaunchError(Exception):
    """Something cannot be started; the message says what is wrong and what to do, in one line."""


class _Stop(Exception):
    """The launcher has gone or asked for the end."""


class Server:
    """One server process; ``process`` is None until it was started."""

    def __init__(self, number, store, port):
        self.number, self.port, self.process, self.pidfd, self.told = number, port, None, -1, 0
        self.store = os.path.join(store, f"server-{number}")
        self.log = self.store + ".log"

    def listen(self):
        """A listening socket on the server's port, which is chosen at the first call.  Raises LaunchError."""
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((HOST, self.port))
            listener.listen(BACKLOG)
        except OSError as error:
            listener.close()
            raise LaunchError(f"server {self.number} cannot listen on {HOST}:{self.port}: {error.strerror}; "
                              "choose another --port, or leave it out") from None
        self.port = listener.getsockname()[1]
        return listener

    def spawn(self, listener, cluster_path, environment):
        """Start the process on ``listener``; returns the descriptor on which it says that it serves."""
        ready, told = os.pipe()
        command = [sys.executable, "-P", "-m", "pymadfs.server", "--cluster", cluster_path, "--number",
                   str(self.number),
                   "--store", self.store, "--listen-fd", str(listener.fileno()), "--ready-fd", str(told)]
        try:
            with open(self.log, "ab") as log:
                self.told = log.tell()
                self.process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log, env=environment,
                    pass_fds=(listener.fileno(), told), preexec_fn=_die_with(os.getpid()))
        finally:
            os.close(told)
            listener.close()
        self.pidfd = os.pidfd_open(self.process.pid)
        return ready

    def alive(self):
        return self.process is not None and self.process.returncode is None

    def reap(self):
        """After the process ended: returns in words how."""
        status = self.process.wait()
        os.close(self.pidfd)
        self.pidfd = -1
        how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        said = self.last_words()
        hint = "; is a limit of processes or memory too low (ulimit -u, -v)?" if status == -signal.SIGABRT else ""
        return f"{how}, saying: {said}{hint}" if said and status else how

    def last_words(self):
        """The last line that this process wrote to its log, or nothing."""
        with open(self.log, errors="replace") as log:
            log.seek(max(self.told, os.path.getsize(self.log) - 4096))
            lines = log.read().split("\n")
        return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")


class Keeper:
    """Starts the servers of ``plan``, says so through ``report`` (a function of a line; it returns 0 when nobody
    listens any more) and runs until it is to stop.

    ``control`` is a descriptor whose end means stop, or -1: then only SIGTERM ends the keeper.
    """

    def __init__(self, plan, report, control):
        self.plan, self.report, self.control = plan, report, control
        self.servers = [Server(number, plan.store, plan.port and plan.port + number) for number in range(plan.count)]
        self.secret = secrets.token_bytes(32)
        self.environment = plain_environment(os.environ)
        self.wakeup, self.heal = _signals_as_bytes(signal.SIGTERM, signal.SIGINT, signal.SIGHUP), False

    def run(self):
        """The whole life; returns the exit status."""
        leftovers.sweep()
        leftovers.hold(self.secret)  # until this process ends
        leftovers.mark(self.plan.temporary)
        try:
            if self.plan.lock >= 0:
                self.write(lambda: os.write(self.plan.lock, b"%d\n" % os.getpid()))
            self.start(self.servers)
            if self.report("ready") or self.control >= 0:
                self.watch()
        except LaunchError as error:
            self.report(f"error {error}")
            return 1
        except _Stop:
            return 0
        finally:
            self.stop()
        return 0

    def start(self, servers):
        """Start ``servers`` and wait until each serves; the cluster file names them.  Raises LaunchError."""
        listeners = [server.listen() for server in servers]
        if not os.path.exists(self.plan.cluster):
            self.describe()  # The servers read it: their ports and the secret.
        try:
            self.spawn(servers, listeners)
        finally:
            self.describe()

    def spawn(self, servers, listeners):
        waiting = {}
        for server, listener in zip(servers, listeners, strict=True):
            waiting[server.spawn(listener, self.plan.cluster, self.environment)] = server
        deadline, failed = time.monotonic() + START_S, []
        while waiting:
            ready = self.wait(waiting, deadline)
            if not ready and time.monotonic() >= deadline:
                failed += [_given_up(fd, server) for fd, server in waiting.items()]
                break
            for fd in ready:  # the others are waited for whatever becomes of one
                server, said = waiting.pop(fd), os.read(fd, 64)
                os.close(fd)
                if not said.strip():
                    failed.append(f"server {server.number} did not start: it {server.reap()}")
                self.report(f"started {len(servers) - len(waiting)}")
        if failed:
            raise LaunchError("; ".join(failed))

    def describe(self):
        """Write the cluster file as things stand; the process id of a server that does not run is 0."""
        servers = [clusters.Server(server.number, HOST, server.port, server.process.pid if server.alive() else 0,
                                   server.store)
                   for server in self.servers]
        self.write(lambda: clusters.Cluster(self.plan.mount, self.secret, servers).write(self.plan.cluster))

    def write(self, function):
        """Call ``function``, which writes the cluster file or its lock.  Raises LaunchError."""
        try:
            function()
        except OSError as error:
            raise LaunchError(f"the cluster file {self.plan.cluster} cannot be written: {error.strerror}; choose "
                              "another place with --cluster, or TMPDIR") from None

    def watch(self):
        """Until the end: tell of servers that died, start them again when asked to (SIGHUP)."""
        while self.control >= 0 or any(server.alive() for server in self.servers):
            living = {server.pidfd: server for server in self.servers if server.alive()}
            for fd in self.wait(living, None):
                server = living[fd]
                pid, how = server.process.pid, server.reap()
                say(f"madfs: server {server.number} ({HOST}:{server.port}, pid {pid}) {how}; calls that need it "
                    "fail with EIO"
                    + ("" if self.control >= 0 else f" until `madfs up --cluster {self.plan.cluster}` starts it again"))
            while self.heal:  # also when it was asked for while servers were started
                self.heal = False
                self.restart()

    def restart(self):
        """Start again what died; the new cluster file tells `madfs up` that it is done."""
        try:
            self.start([server for server in self.servers if not server.alive()])
        except LaunchError as error:
            say(f"madfs: {error}")

    def wait(self, fds, deadline):
        """Those of ``fds`` that are readable; none after ``deadline`` or a signal.  Raises _Stop when it is to end."""
        poller = select.poll()
        for fd in (*fds, self.wakeup, self.control):
            if fd >= 0:
                poller.register(fd, select.POLLIN)
        timeout_ms = None if deadline is None else max(0, (deadline - time.monotonic()) * 1000)
        ready = {fd for fd, _ in poller.poll(timeout_ms)}
        if self.wakeup in ready:
            signals = os.read(self.wakeup, 64)
            self.heal = self.heal or signal.SIGHUP in signals
            if signal.SIGTERM in signals or signal.SIGINT in signals:
                raise _Stop
        if self.control in ready:
            raise _Stop
        return ready & set(fds)

    def stop(self):
        """End every server, gracefully first, and remove what is temporary."""
        living = {server.pidfd: server for server in self.servers if server.alive()}
        for server in living.values():
            server.process.terminate()
        deadline = time.monotonic() + STOP_S
        while living:
            poller = select.poll()
            for fd in living:
                poller.register(fd, select.POLLIN)
            ended = poller.poll(max(0, (deadline - time.monotonic()) * 1000))
            if not ended:
                server = living.popitem()[1]
                server.process.kill()
                say(f"madfs: server {server.number} did not stop within {STOP_S} s and {server.reap()}")
            for fd, _ in ended:
                living.pop(fd).reap()
        _remove(self.plan.cluster, lock_path(self.plan.cluster))
        if self.plan.lock >= 0 and os.fstat(2).st_size == 0:
            _remove(log_path(self.plan.cluster))  # Nothing was worth saying.
        leftovers.remove(self.secret)
        if self.plan.temporary:
            shutil.rmtree(self.plan.temporary, ignore_errors=True)


def _given_up(fd, server):
    """End a server that does not come to serve, so that it can be started again; -> what is said of it."""
    os.close(fd)
    said = server.last_words()
    server.process.kill()
    server.reap()
    return f"server {server.number} did not start within {START_S} s and was ended: {said}"


def fork(prepare, standing=False):
    """Fork a keeper for the Plan that ``prepare()`` returns in it; returns ``(pid, report, control)``.

    ``report`` is a file of lines: "plan COUNT TEMPORARY", "started N", then "ready" or "error TEXT".  Closing the
    descriptor ``control`` ends the keeper.  The one of a standing set detaches: it writes to the log beside its cluster
    file, ``control`` is -1, SIGTERM ends it, and so does the end of ``report`` before it was ready.  The caller blocks
    signals.
    """
    report_in, report_out = os.pipe()
    control_in, control_out = (-1, -1) if standing else os.pipe()
    if sys.stdout:
        sys.stdout.flush()
    pid = os.fork()
    if pid:
        os.close(report_out)
        if control_in >= 0:
            os.close(control_in)
        return pid, os.fdopen(report_in, encoding="utf-8", errors="surrogateescape"), control_out
    status = 1
    try:
        status = _child(prepare, report_out, control_in)
    except OSError as error:
        os.write(report_out, f"error the servers cannot be started: {error}\n".encode(errors="replace"))
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _child(prepare, report, control):
    os.setsid()
    os.umask(0o077)  # not the job's, which may take from us what we make
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    _close_others(report, control)

    def tell(line):
        try:
            return os.write(report, line.encode(errors="surrogateescape") + b"\n")
        except OSError:
            return 0  # The launcher is gone; the end of `control` says so too.

    try:
        plan = prepare()
    except LaunchError as error:
        tell(f"error {error}")
        return 1
    tell(f"plan {plan.count} {plan.temporary or ''}")
    if control < 0:
        os.dup2(os.open(log_path(plan.cluster), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), 2)
    os.chdir("/")
    for limit in LIMITS:  # what the job may do is not what its servers may
        _, most = resource.getrlimit(limit)
        resource.setrlimit(limit, (most, most))
    keeper = Keeper(plan, tell, control)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # It has handlers now for what came meanwhile.
    return keeper.run()


def _remove(*paths):
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def lock_path(cluster):
    """The file that the keeper of a standing set locks and writes its process id to."""
    return f"{cluster}.lock"


def log_path(cluster):
    """The file that the keeper of a standing set says things to."""
    return f"{cluster}.log"


def say(line):
    """One line on standard error, whole; where that cannot be written there is nobody to tell."""
    with contextlib.suppress(OSError):
        os.write(2, line.encode(errors="replace") + b"\n")


def plain_environment(environment):
    """``environment`` without our preload, for programs that are not to be clients: the servers, mpirun."""
    plain = {name: value for name, value in environment.items()
             if name not in ("MADFS_STATE", "MADFS_CWD", "LD_PRELOAD")}
    others = other_preloads(environment)
    if others:
        plain["LD_PRELOAD"] = ":".join(others)
    plain["MADFS_PRELOAD"] = "0"  # else our own preload would put itself back
    return plain


def other_preloads(environment):
    """The libraries in LD_PRELOAD of ``environment`` that are not ours."""
    libraries = environment.get("LD_PRELOAD", "").replace(":", " ").split()
    return [library for library in libraries if os.path.basename(library) != LIBRARY]


def _die_with(parent):
    """What a child runs before its program, so that the kernel ends it together with ``parent`` (a process id)."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def before_exec():
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return before_exec


def _signals_as_bytes(*signals):
    """A descriptor that delivers the number of each of ``signals`` that arrives, as one byte."""
    reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    for number in signals:
        signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    return reading


def _close_others(*kept):
    """Close what the launcher had open, except standard streams and ``kept``: pipes of the caller must be able to
    end."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) not in kept:
            with contextlib.suppress(OSError):
                os.close(int(name))
