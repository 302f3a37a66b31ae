"""Ctrl-C at any moment, also while modules load, is a line; so is what cannot be loaded."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pyro_seq.cli import main

# a child whose user presses Ctrl-C at the moment at which a module begins to load
PRESSED = """
import os, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background job ignores
class Pressed:
    def find_spec(self, name, path=None, target=None):
        if name == {name!r}:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
sys.meta_path.insert(0, Pressed())
{code}
"""
COMMAND = (
    "from pyro_seq.cli import main; sys.argv = ['pyroseq', 'text', 'generate', '--run-dir', "
    "{run!r}]; main()"
)
MODULE = (
    "import runpy; sys.argv = ['', 'text', 'generate', '--run-dir', {run!r}]; "
    "runpy.run_module('pyro_seq', run_name='__main__')"
)


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("name", "code"),
    [
        (name, COMMAND)
        for name in (
            "pyro_seq.cli.command",
            "click",
            "pyro_seq.cli.programs.play",
            "numpy",
            "pyro",
            "pyro_seq.infer.sampling",
        )
    ]
    + [(name, MODULE) for name in ("pyro_seq.cli.command", "torch")],
)
def test_interrupt_while_modules_are_loaded_is_a_line(name: str, code: str, trained: Path) -> None:
    words = [
        sys.executable,
        "-P",
        "-c",
        PRESSED.format(name=name, code=code.format(run=str(trained))),
    ]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stderr.strip(), done.stdout) == (130, "pyroseq: interrupted", "")


def test_interrupt_that_a_module_takes_for_something_else_is_still_one(trained: Path) -> None:
    code = "sys.modules['pyro_seq.cli.text_of_nobody'] = None\n" + COMMAND.format(run=str(trained))
    swallowed = """
import pyro_seq.cli.command as command
def run(arguments):
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
    except BaseException:
        raise ImportError("numpy failed to import") from None
command.run = run
"""
    done = subprocess.run(
        [
            sys.executable,
            "-P",
            "-c",
            (
                "import os, signal, sys, time\nsignal.signal(signal.SIGINT, "
                "signal.default_int_handler)\n"
            )
            + swallowed
            + code,
        ],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (130, "pyroseq: interrupted\n")


def test_ignored_interrupts_stay_ignored() -> None:
    code = (
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\nfrom pyro_seq.cli import main; "
        "main(['--version'])"
    )
    words = [sys.executable, "-P", "-c", PRESSED.format(name="click", code=code)]
    done = subprocess.run(words, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")


def test_program_that_calls_the_command_keeps_its_handlers() -> None:
    before = signal.getsignal(signal.SIGINT), sys.unraisablehook
    with pytest.raises(SystemExit):
        main(["--version"])
    assert (signal.getsignal(signal.SIGINT), sys.unraisablehook) == before


def limited(megabytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (megabytes * 10**6, megabytes * 10**6))


@pytest.mark.parametrize("megabytes", [200, 400, 599])
def test_too_little_address_space_for_torch_is_a_line(megabytes: int, trained: Path) -> None:
    words = [sys.executable, "-P", "-m", "pyro_seq", "text", "generate", "--run-dir", str(trained)]
    done = subprocess.run(
        words, capture_output=True, text=True, preexec_fn=lambda: limited(megabytes)
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == (
        f"pyroseq: the process may take {megabytes} MB of address space (ulimit -v), and 600 MB "
        "are the least that torch is loaded with\n"
    )


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            "ImportError('libtorch.so: failed to map segment from shared object')",
            "out of memory while torch and other packages were loaded",
        ),
        (
            "ModuleNotFoundError(\"No module named 'pyro'\", name='pyro')",
            "a package that is needed cannot be loaded: No module named 'pyro'",
        ),
    ],
)
def test_package_that_cannot_be_loaded_is_a_line(error: str, line: str, trained: Path) -> None:
    code = f"""
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            raise {error}
sys.meta_path.insert(0, Missing())
""" + COMMAND.format(run=str(trained))
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, env=os.environ
    )
    assert (
        done.returncode == 2
        and done.stderr.startswith(f"pyroseq: {line}")
        and done.stderr.count("\n") == 1
    )
