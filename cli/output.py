"""Standard output in whatever encoding it has: nothing is replaced in silence.

What an encoding cannot carry is escaped. In JSON an escape means the very character, so nothing is
lost; elsewhere the reader must know, so it is counted, and said at the end.
"""

from __future__ import annotations

import codecs
import io
from typing import IO, Any

import click

HANDLER = "pyroseq-escaped"
# click takes a stream that calls itself ASCII for a mistake, and writes UTF-8 to it
ASCII = "pyroseq_ascii"


def _ascii(name: str) -> codecs.CodecInfo | None:
    """ASCII by another name."""
    of = codecs.lookup("ascii")
    options: Any = {
        "incrementalencoder": of.incrementalencoder,
        "incrementaldecoder": of.incrementaldecoder,
    }
    return (
        codecs.CodecInfo(
            of.encode, of.decode, of.streamreader, of.streamwriter, name=ASCII, **options
        )
        if name == ASCII
        else None
    )


codecs.register(_ascii)


class Output:
    """Makes a stream escape what its encoding cannot carry, and counts that where it is not JSON.

    Attributes:
        lost: how many characters were escaped outside JSON.
    """

    def __init__(self, stream: IO[str] | None) -> None:
        self.lost, self.encoding = 0, getattr(stream, "encoding", None) or "its encoding"
        if isinstance(stream, io.TextIOWrapper):
            codecs.register_error(HANDLER, self._escaped)
            is_ascii = codecs.lookup(self.encoding).name == "ascii"
            stream.reconfigure(encoding=ASCII if is_ascii else None, errors=HANDLER)

    def words(self) -> str:
        """Return what was escaped, and what to do about it."""
        which = (
            "1 character of the output is"
            if self.lost == 1
            else f"{self.lost:,} characters of the output are"
        )
        remedy = "PYTHONIOENCODING=utf-8 writes everything as it is"
        return f"{which} written as \\u…, which {self.encoding} has no code for; {remedy}"

    def _escaped(self, error: UnicodeError) -> tuple[str | bytes, int]:
        """The error handler: an escape for each such character; bytes in names of files as they
        are.
        """
        if not isinstance(error, UnicodeEncodeError):
            raise error
        character = error.object[error.start]
        code = ord(character)
        if _writes_json():
            units = character.encode("utf-16-be", "surrogatepass")
            return "".join(
                f"\\u{int.from_bytes(units[i : i + 2]):04x}" for i in range(0, len(units), 2)
            ), error.start + 1
        if 0xDC80 <= code <= 0xDCFF:
            return bytes([code - 0xDC00]), error.start + 1
        self.lost += 1
        return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}", error.start + 1


def _writes_json() -> bool:
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.params.get("as_json"))
