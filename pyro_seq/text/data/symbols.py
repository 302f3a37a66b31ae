"""Number the symbols of large texts once: what a start needs of a text is kept, and mapped then.

Of a text that is `WORTH_KEEPING` there are three entries (`MappedCache`). The first is the text's
SHA-256 by its path, inode, size and times of change, so that its bytes are hashed once for as long
as nobody touches the file. The second is how often each character stands in the text, by that hash.
The third is the text's symbols by the hash and the vocabulary, with the ends of lines where each
line is a sequence. A file that was moved or copied is hashed once more, and its symbols are there.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_seq.errors import UserError
from pyro_seq.runs.mapped import WORTH_KEEPING, Columns, MappedCache, is_settled, stamp_of
from pyro_seq.text.reading import file_size, read_bytes
from pyro_seq.text.vocabulary import CODE_POINTS, Vocabulary, count_characters
from pyro_seq.text.windows import line_ends

VERSION = 1  # raised whenever a text makes other symbols or counts
NOTHING_KEPT = MappedCache()


def fingerprint(path: Path, cache: MappedCache = NOTHING_KEPT) -> str:
    """Return the SHA-256 of a file's bytes."""
    if file_size(path) >= WORTH_KEEPING and is_settled(before := os.stat(path)):
        where = [os.path.realpath(path), *stamp_of(before)]

        def make(columns: Columns) -> None:
            digest = np.frombuffer(_hashed(path), np.uint8)
            _check_untouched(path, before)
            columns.add("sha256", digest)

        kept = cache.kept(f"hash {where}", make, what=str(path), size=32)
        if kept is not None:
            return kept["sha256"].tobytes().hex()
    return _hashed(path).hex()


def vocabulary_of_file(path: Path, cache: MappedCache = NOTHING_KEPT, **options: Any) -> Vocabulary:
    """Return the vocabulary of a file; options and errors are those of `Vocabulary.of_file`."""

    def count(path: Path) -> NDArray[np.int64]:
        if file_size(path) < WORTH_KEEPING:
            return count_characters(path)

        before = os.stat(path)

        def make(columns: Columns) -> None:
            counts = count_characters(path)
            _check_untouched(path, before)
            columns.add("characters", np.flatnonzero(counts).astype(np.int32))
            columns.add("counts", counts[counts > 0])

        key = f"characters {VERSION} {fingerprint(path, cache)}"
        kept = cache.kept(key, make, what=str(path), size=16 * CODE_POINTS)
        if kept is None:
            return count_characters(path)
        counts = np.zeros(CODE_POINTS, np.int64)
        counts[kept["characters"]] = kept["counts"]
        return counts

    return Vocabulary.of_file(path, count=count, **options)


def symbols_of_file(
    path: Path, vocabulary: Vocabulary, cache: MappedCache = NOTHING_KEPT
) -> tuple[NDArray[Any], NDArray[np.int64] | None]:
    """Return (the symbols of a file, where its lines end if each is a sequence).

    Of a large file both are mapped. Errors are those of `Vocabulary.encode_file`.
    """
    if (size := file_size(path)) >= WORTH_KEEPING and cache.folder is not None:
        before, words = os.stat(path), json.dumps(vocabulary.to_json())
        key = f"symbols {VERSION} {fingerprint(path, cache)} {words}"
        kept = cache.kept(
            key,
            lambda columns: _encode(path, vocabulary, columns, before),
            what=str(path),
            size=size * vocabulary.dtype.itemsize,
        )
        if kept is not None:
            return kept["symbols"], kept.get("ends")
    symbols, _ = vocabulary.encode_file(path)
    return symbols, line_ends(symbols, vocabulary.end) if vocabulary.line_end else None


def _encode(path: Path, vocabulary: Vocabulary, columns: Columns, before: os.stat_result) -> None:
    """Write a file's symbols, and where its lines end, block by block."""
    length = 0
    columns.add("symbols", np.zeros(0, vocabulary.dtype))
    if vocabulary.line_end:
        columns.add("ends", np.zeros(0, np.int64))
    for encoded, _ in vocabulary.encode_pieces(path):
        columns.add("symbols", encoded)
        if vocabulary.line_end:
            columns.add("ends", np.flatnonzero(encoded == vocabulary.end) + (length + 1))
        length += len(encoded)
    _check_untouched(path, before)


def _hashed(path: Path) -> bytes:
    digest = hashlib.sha256()
    for chunk in read_bytes(path):
        digest.update(chunk)
    return digest.digest()


def _check_untouched(path: Path, before: os.stat_result) -> None:
    """Raise `UserError` if a file is another now than before it was read."""
    if stamp_of(os.stat(path)) != stamp_of(before):
        raise UserError(f"{path} changed while it was read: copy it first")
