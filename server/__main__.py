# SPDX-License-Identifier: Apache-2.0
"""``madfs-server``: one server of a job.  Started by ``madfs``; arguments are for those who start it otherwise."""
import argparse
import functools
import os
import sys

import anyio

from pymadfs.cluster import ClusterError
from pymadfs.cluster import read as read_cluster
from pymadfs.config import Config

from .service import StartError, run
from .watchdog import arrivals


class Parser(argparse.ArgumentParser):
    """Argparse that says in one line what is wrong and what to do."""

    def error(self, message):
        self.exit(2, f"{self.prog}: {message}; see `{self.prog} --help`\n")


def arguments(argv):
    parser = Parser(prog="madfs-server", description="One server of a MadFS cluster.")
    parser.add_argument("--cluster", required=True, metavar="FILE", help="the cluster file")
    parser.add_argument("--number", required=True, type=int, metavar="N", help="which of its servers this is, from 0")
    parser.add_argument("--store", metavar="DIR", help="where to keep the data; default: what the cluster file says")
    parser.add_argument("--cpu", type=int, metavar="K", help="run the network on this processor")
    parser.add_argument("--listen-fd", type=int, metavar="FD", help="an inherited socket that listens already")
    parser.add_argument("--ready-fd", type=int, metavar="FD", help="descriptor to write the port to when serving")
    parser.add_argument("--arrivals-fd", type=int, metavar="FD", help="what this process left when it began anew")
    return parser.parse_args(argv)


def announce(number, ready_fd, host, port):
    """Say that clients can come."""
    print(f"madfs-server {number} ready {host}:{port}", flush=True)
    if ready_fd is not None:
        os.write(ready_fd, b"%d\n" % port)
        os.close(ready_fd)


def main(argv=None):
    """Run a server until it is told to stop; returns the exit status: 0, or 2 when it cannot start."""
    options = arguments(argv)
    try:
        cluster = read_cluster(options.cluster)
        if not 0 <= options.number < len(cluster.servers):
            last = len(cluster.servers) - 1
            raise StartError(f"--number {options.number}: {options.cluster} has servers 0 to {last}")
        if options.cpu is not None and options.cpu not in os.sched_getaffinity(0):
            raise StartError(f"--cpu {options.cpu}: this process may not run there; "
                             f"choose one of {sorted(os.sched_getaffinity(0))}")
        store = options.store or cluster.servers[options.number].store
        config = Config()
        ready = functools.partial(announce, options.number, options.ready_fd)
        serve = functools.partial(run, cluster, options.number, store, config, listen_fd=options.listen_fd,
                                  cpu=options.cpu, ready=ready,
                                  arrivals=arrivals(options.arrivals_fd))
        anyio.run(serve, backend_options={"use_uvloop": True})
    except (ClusterError, StartError, ValueError) as error:
        print(f"madfs-server: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
