"""What is said where memory ends, or what is needed cannot be loaded."""

from __future__ import annotations

import re
import resource
import sys

from pyro_seq.errors import UserError

MEGABYTE = 10**6
LEAST = 600 * MEGABYTE  # of address space: with less, what torch stands on aborts as it is loaded
LESS = "a smaller batch, window or model needs less, and so do fewer samples"
OUT_OF_MEMORY = f"out of memory: {LESS}"
NO_MEMORY = r"can't allocate memory|annot allocate memory|map segment|bad_alloc|not enough memory"


def check_limit() -> None:
    """Raise `UserError` where the process's address space is too little for torch to be loaded."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY and limit < LEAST and "torch" not in sys.modules:
        raise UserError(
            f"the process may take {limit // MEGABYTE:,} MB of address space (ulimit -v), "
            f"and {LEAST // MEGABYTE:,} MB are the least that torch is loaded with"
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error that is no `MemoryError` says the same."""
    if isinstance(error, RuntimeError):
        return (
            type(error).__name__ == "OutOfMemoryError"
            or re.search(NO_MEMORY, str(error)) is not None
        )
    return False


def what_did_not_load(error: BaseException) -> str | None:
    """Say what is wrong where a needed package cannot be imported; `None` for other errors."""
    if not isinstance(error, ImportError) or (error.name or "").startswith("pyro_seq"):
        return None
    what = str(error).strip().splitlines()
    reason = what[0] if what else type(error).__name__
    if re.search(NO_MEMORY, str(error)):
        too_little = "a limit (ulimit -v) or the machine leaves too little"
        return f"out of memory while torch and other packages were loaded ({reason}): {too_little}"
    return (
        f"a package that is needed cannot be loaded: {reason}; installing pyro_seq again may "
        "put it right"
    )
