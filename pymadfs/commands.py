# SPDX-License-Identifier: Apache-2.0
"""Where the commands begin.  What they are made of takes a while to import: Ctrl-C during it ends them without a word,
as it ends other programs, and not with a traceback."""
import signal


def _begin():
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def madfs():
    _begin()
    from .cli import main

    return main()


def madfs_mpirun():
    _begin()
    from .mpirun import main

    return main()
