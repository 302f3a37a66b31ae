"""The `pyroseq` command: parses, calls, prints. Everything heavy is imported inside the commands, so that `--help` is quick."""

from __future__ import annotations

import sys
from typing import Any

import click

from pyro_seq import __version__
from pyro_seq.cli.demo import demo
from pyro_seq.cli.text import text
from pyro_seq.errors import UserError

INTERRUPTED = 130


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="pyroseq")
def pyroseq() -> None:
    """Probabilistic models of sequences: train them, generate from them, and learn how likely a sequence is."""


pyroseq.add_command(text)
pyroseq.add_command(demo)


def main(arguments: list[str] | None = None) -> None:
    """Run the command; a user's mistake, a full disk or an unreadable file is one line on stderr and exit code 2."""
    try:
        code = pyroseq.main(args=arguments, prog_name="pyroseq", standalone_mode=False)
    except click.exceptions.Abort:
        _fail("interrupted", INTERRUPTED)
    except click.ClickException as error:
        _fail(error.format_message() + _help_hint(error), 2)
    except UserError as error:
        _fail(str(error), 2)
    except KeyboardInterrupt as error:
        _fail(str(error) or "interrupted", INTERRUPTED)
    except BrokenPipeError:  # the reader of our output has gone, as with `| head`
        sys.stderr.close()
        sys.exit(1)
    except MemoryError:
        _fail("out of memory: lower text.batch_size, text.window or model.hidden_size", 2)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{error.strerror or error}", 2)
    else:
        sys.exit(code if isinstance(code, int) else 0)


def _help_hint(error: click.ClickException) -> str:
    context: Any = getattr(error, "ctx", None)
    return f" (see {context.command_path} --help)" if context is not None else ""


def _fail(message: str, code: int) -> None:
    sys.stderr.write(f"pyroseq: {' '.join(message.split())}\n")
    sys.exit(code)
