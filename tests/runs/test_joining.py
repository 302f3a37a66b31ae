"""Joining other processes, and leaving them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

RANK = """
from pathlib import Path
import torch
from pyro_seq.runs import ranks

with ranks.joined():
    import torch._dynamo  # as torch's optimisers do when the first one is made
    assert ranks.total(torch.ones(())) == 2
print([(task / "comm").read_text() for task in Path("/proc/self/task").iterdir()])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks for threads in /proc")
def test_no_thread_of_the_group_outlives_it() -> None:
    """Threads that are there when the interpreter ends can abort it (SIGABRT)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    of_both = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    started = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", RANK],
            env={**os.environ, **of_both, "RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in started:
        said, _ = process.communicate(timeout=120)
        assert process.returncode == 0
        assert "gloo" not in said and "python" in said
