"""Choose how many threads compute, and how they wait for each other.

Both are read from the environment when torch is loaded. Threads that wait for each other by
spinning keep each other from running as soon as something else wants a core. On two cores beside
two other processes, a training of small matrices is tens of times slower. Threads that sleep at
once lose a third on a quiet machine, where they are woken thousands of times a second. Threads that
spin for a moment and then sleep lose a tenth to a sixth. So a training of the command spins, and a
watcher lets it sleep as long as its threads have to wait for a core. This module loads nothing, so
that it can come before everything else.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import types
from collections.abc import Callable

# About a tenth of a millisecond. OMP_WAIT_POLICY is for every OpenMP; GOMP_SPINCOUNT refines it for
# libgomp, which torch's own packages for Linux bring, and which torch's kernels, MKL and oneDNN
# share there.
WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "3000"}
SAYS_HOW_TO_WAIT = (*WAITING, "KMP_BLOCKTIME", "KMP_LIBRARY")
SAYS_HOW_MANY = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
SPINNING = {"GOMP_SPINCOUNT": "300000"}  # milliseconds, which is torch's own way
LOOK_EVERY = 0.25  # seconds
# seconds of waiting for a core, a second, of all threads together: from so many on threads sleep,
# and below so few for CALM looks they spin again
CONTENDED, QUIET, CALM = 0.1, 0.05, 8
# More threads are worth it where they shorten a step by a tenth. Each number is tried so often, but
# a third time only within so many seconds.
WORTH, TRIES, PATIENCE = 0.9, 3, 2.0

_words: str | None = None
_most = 1  # threads that a training may find out by itself whether it can use


def is_too_late() -> bool:
    """Tell whether torch is loaded, so that it reads nothing from the environment any more."""
    return "torch" in sys.modules


def wait_briefly() -> None:
    """Let threads spin for a moment and then sleep, unless torch is loaded or the user chose."""
    if not is_too_late() and not any(name in os.environ for name in SAYS_HOW_TO_WAIT):
        os.environ.update(WAITING)


def choose_threads(number: int | None, *, useful: int) -> None:
    """Let torch use `number` threads, or as many as are useful and have a core each.

    Without `number`, what the environment says (OMP_NUM_THREADS, MKL_NUM_THREADS) or a program that
    has loaded torch has chosen stands; else a training finds out how many of these it can use
    (`find_useful`). The number does not depend on how busy the machine is. Sums are rounded by that
    number, and a run that is gone on with is to end with the very weights of one that was not
    interrupted.

    Args:
        number: asked for by the user; `None`: not asked for.
        useful: more threads than so many bring the work nothing.
    """
    global _words, _most
    _words, _most = None, 1
    if number is None:
        if is_too_late() or any(name in os.environ for name in SAYS_HOW_MANY):
            return
        number = _most = min(available_cores(), useful)
        _words = _chosen(number)
    else:
        _words = _computing(number)
    if is_too_late():
        sys.modules["torch"].set_num_threads(number)
        return
    os.environ.update(dict.fromkeys(SAYS_HOW_MANY, str(number)))
    if number > 1 and all(os.environ.get(name) == value for name, value in WAITING.items()):
        _spin_while_quiet()


def is_open() -> bool:
    """Tell whether `find_useful` has anything to choose from."""
    return _most > 1


def find_useful(step: Callable[[], object]) -> None:
    """Let torch compute with as many threads as a step can use, unless the user has said how many.

    What counts is the processor time of the thread that calls: its share of the work, and all that
    cannot be shared. Other programs hardly change it, since neither waiting for a core nor for
    threads that sleep is in it; so of one work the number is the same on a busy machine.

    Args:
        step: is called some times for each number of threads, and must leave nothing behind.
    """
    global _words
    if not is_open():
        return
    torch, rest = sys.modules["torch"], Rest()
    numbers = sorted({*(2**i for i in range(_most.bit_length())), _most})
    spent = dict.fromkeys(numbers, float("inf"))
    if os.environ.items() >= SPINNING.items():  # else they would spin, where others have the cores
        rest.begin()
    begun, useful = time.monotonic(), _most
    try:
        for tried in range(TRIES):
            if tried > 1 and time.monotonic() - begun > PATIENCE:
                break
            for number in numbers:
                torch.set_num_threads(number)
                before = time.thread_time()
                step()
                spent[number] = min(spent[number], time.thread_time() - before)
        useful = next(n for n in numbers if WORTH * spent[n] <= min(spent.values()))
    finally:
        torch.set_num_threads(useful)
        rest.end()
    times = spent[1] / max(1e-9, spent[useful])
    more = f"one would take {times:.1f} times as long" if useful > 1 else "more gain too little"
    _words = _chosen(useful, f": {more}")


def go_on_with(number: int) -> None:
    """Compute with the number of threads that a training was begun with, unless the user chose."""
    global _words
    if is_open():
        sys.modules["torch"].set_num_threads(min(number, _most))
        _words = _chosen(min(number, _most), ", as before")


def _spin_while_quiet() -> None:
    """Let threads spin, and watch whether they should sleep, where both can be done: with libgomp,
    as much time as there are cores, and a kernel that says how long threads have waited.
    """
    if sys.platform != "linux" or share_of_time() is not None or waited_for_cores() is None:
        return
    for name in WAITING:
        del os.environ[name]
    os.environ.update(SPINNING)
    threading.Thread(target=_watch, name="pyro_seq: watches cores", daemon=True).start()


def waited_for_cores() -> float | None:
    """Return the seconds that the threads of this process were ready to run and had no core.

    `None` where the kernel does not say.
    """
    try:
        found = [
            _read(f"/proc/self/task/{task}/schedstat") for task in os.listdir("/proc/self/task")
        ]
    except OSError:
        return None
    waited = [int(text.split()[1]) for text in found if len(text.split()) == 3]
    return sum(waited) / 1e9 if waited else None


def _watch() -> None:
    """Let torch's threads sleep while cores are wanted by others, and spin while they are not."""
    rest, calm = Rest(), 0
    waited, seen = waited_for_cores() or 0.0, time.monotonic()
    while True:
        time.sleep(LOOK_EVERY)
        before, last = waited, seen
        waited, seen = waited_for_cores() or 0.0, time.monotonic()
        share = (waited - before) / (seen - last)
        calm = calm + 1 if share < QUIET else 0
        if share > CONTENDED:
            rest.begin()
        elif calm >= CALM:
            rest.end()


class Rest:
    """A time in which libgomp's threads sleep instead of spinning.

    libgomp spins for a ten-thousandth of its count while it manages more threads than there are
    cores. Here further threads bring teams of their own, which do nothing, to more than that.
    """

    def __init__(self) -> None:
        self._over, self._parked = threading.Event(), list[threading.Thread]()

    def begin(self) -> None:
        """Begin the rest, if torch is there to be rested and computes with several threads."""
        torch = sys.modules.get("torch")
        loading = getattr(getattr(torch, "__spec__", None), "_initializing", True)
        if self._parked or torch is None or loading:
            return
        number, self._over = torch.get_num_threads(), threading.Event()
        if number > 1:
            more = -(-(cores_of_affinity() + 1 - number) // (number - 1))
            self._parked = [
                threading.Thread(target=self._park, args=(torch,), daemon=True)
                for _ in range(max(1, more))
            ]
        for thread in self._parked:
            thread.start()

    def _park(self, torch: types.ModuleType) -> None:
        torch.ones(2**17).add_(1)  # large enough for a team
        self._over.wait()

    def end(self) -> None:
        """End the rest: libgomp forgets a team when the thread that it belongs to has ended."""
        self._over.set()
        for thread in self._parked:
            thread.join()
        self._parked = []


def _computing(number: int) -> str:
    return f"computing with {number} thread{'s' * (number != 1)}"


def _chosen(number: int, why: str = "") -> str:
    cores = available_cores()
    there = f"{cores} core{'s' * (cores != 1)}"
    return f"{_computing(number)} on {there}{why}; --threads N takes another number"


def words() -> str | None:
    """Return what was chosen, once; `None` afterwards, and if the user chose."""
    global _words
    said, _words = _words, None
    return said


def cores_of_affinity() -> int:
    """Return the number of cores that the process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_cores() -> int:
    """Return the number of cores that the process may run on, or its container's share of time."""
    share = share_of_time()
    return (
        cores_of_affinity()
        if share is None
        else max(1, min(cores_of_affinity(), -int(-share // 1)))
    )


def share_of_time(process: str = "/proc/self/cgroup", root: str = "/sys/fs/cgroup") -> float | None:
    """Return the processor seconds a second that control groups allow; `None` without a limit.

    Args:
        process: the file that says which groups the process is in.
        root: where the groups are mounted, of version 1 or 2.
    """
    shares: list[float] = []
    for line in _read(process).splitlines():
        _, controllers, path = ([*line.split(":", 2), "", ""])[:3]
        if controllers and "cpu" not in controllers.split(","):
            continue
        mounted = f"{root}/{controllers}" if controllers else root
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for depth in range(len(parts) + 1):  # a limit holds for all groups below it
            share = _limit("/".join([mounted, *parts[:depth]]))
            if share is not None:
                shares.append(share)
    return min(shares, default=None)


def _limit(group: str) -> float | None:
    """Return a control group's quota of time over its period."""
    quota, period = ([*_read(f"{group}/cpu.max").split(), "", ""])[:2]
    if not quota:
        quota, period = (
            _read(f"{group}/cpu.cfs_quota_us").strip(),
            _read(f"{group}/cpu.cfs_period_us").strip(),
        )
    return (
        int(quota) / int(period)
        if quota.isdigit() and period.isdigit() and int(quota) and int(period)
        else None
    )


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
