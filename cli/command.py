"""The command as a whole: its programs, and what becomes of an error."""

from __future__ import annotations

import contextlib
import sys
from typing import Any, NoReturn

import click

from pyro_seq import __version__
from pyro_seq.cli.common import Programs
from pyro_seq.cli.demo import demo
from pyro_seq.cli.interrupts import INTERRUPTED
from pyro_seq.cli.memory import OUT_OF_MEMORY, is_out_of_memory, what_did_not_load
from pyro_seq.cli.output import Output
from pyro_seq.cli.pairs import pairs
from pyro_seq.cli.programs.frames import frames
from pyro_seq.cli.programs.midi import midi
from pyro_seq.cli.programs.play import play
from pyro_seq.cli.programs.seqgan import seqgan
from pyro_seq.cli.programs.series import series
from pyro_seq.cli.programs.text import text
from pyro_seq.cli.runs.share import share
from pyro_seq.cli.score import score
from pyro_seq.errors import UserError, said

WRONG = 2
LONGEST_MESSAGE = 2_000
NO_ARGUMENTS: Any = getattr(click.exceptions, "NoArgsIsHelpError", ())  # of newer versions of click


@click.group(
    cls=Programs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(__version__, prog_name="pyroseq")
def pyroseq() -> None:
    """Train probabilistic models of sequences, generate from them, and score sequences."""


pyroseq.add_command(text)
pyroseq.add_command(midi)
pyroseq.add_command(series)
pyroseq.add_command(frames)
pyroseq.add_command(seqgan)
pyroseq.add_command(play)
pyroseq.add_command(pairs)
pyroseq.add_command(score)
pyroseq.add_command(share)
pyroseq.add_command(demo)


def run(arguments: list[str] | None) -> NoReturn:
    """Run the command and end with its exit code; a user's error is one line on stderr."""
    output = Output(sys.stdout)
    try:
        code = pyroseq.main(args=arguments, prog_name="pyroseq", standalone_mode=False)
    except click.exceptions.Abort:
        _fail("interrupted", INTERRUPTED)
    except NO_ARGUMENTS as error:
        click.echo(error.format_message(), err=True)
        sys.exit(WRONG)
    except click.ClickException as error:
        _fail(error.format_message() + _help_hint(error), WRONG)
    except (UserError, UnicodeError) as error:
        _fail(said(error), WRONG)
    except MemoryError:
        _fail(OUT_OF_MEMORY, WRONG)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{error.strerror or error}", WRONG)
    except Exception as error:
        message = (
            OUT_OF_MEMORY
            if is_out_of_memory(error)
            else _fault_of_own_code(error) or what_did_not_load(error)
        )
        if message is None:
            raise
        _fail(message, WRONG)
    else:
        if output.lost:
            _say(output.words())
        sys.exit(code if isinstance(code, int) else 0)


def _fault_of_own_code(error: Exception) -> str | None:
    """An error that a pair of the user's own has raised, in words; `None` for others."""
    user_code = sys.modules.get("pyro_seq.config.user_code")
    found: str | None = None if user_code is None else user_code.fault_of_own_code(error)
    return found


def _help_hint(error: click.ClickException) -> str:
    context: Any = getattr(error, "ctx", None)
    return f" (see {context.command_path} --help)" if context is not None else ""


def _fail(message: str, code: int) -> NoReturn:
    """One line on stderr, whatever stands in the message, and the end."""
    _say(message)
    sys.exit(code)


def _say(message: str) -> None:
    line = " ".join(part.strip() for part in message.splitlines())
    shown = "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode()
        for c in line[:LONGEST_MESSAGE]
    )
    with contextlib.suppress(OSError, ValueError):  # nobody listens
        click.echo(f"pyroseq: {shown}{'…' * (len(line) > LONGEST_MESSAGE)}", err=True)
