"""The `pyroseq` command: parses, calls, prints.

Heavy modules are imported inside the commands, so that `--help` is quick.

This file is light, too, so that a signal which comes while the rest is being imported already finds
its handler.
"""

from __future__ import annotations

import sys
from typing import Any

from pyro_seq.cli.interrupts import INTERRUPTED, Interrupts, say_interrupted


def main(arguments: list[str] | None = None) -> None:
    """Run the command; a user's mistake, also in a pair's code, is one line and exit code 2.

    So is a full disk or an unreadable file. Ctrl-C is one line as well, and exit code 130, at any
    moment. `arguments` are the command line's if not given; then the process is the command's, and
    Ctrl-C goes on being said in no other way until its very end.
    """
    interrupts = Interrupts()
    try:
        from pyro_seq.cli.command import run

        run(arguments)
    except SystemExit:
        raise
    except BaseException:
        # what a module that was interrupted as it was loaded raises may be anything
        if not interrupts.received:
            raise
        say_interrupted()
        sys.exit(INTERRUPTED)
    finally:
        interrupts.end(of_process=arguments is None)


def __getattr__(name: str) -> Any:
    if name != "pyroseq":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pyro_seq.cli.command import pyroseq

    return pyroseq
