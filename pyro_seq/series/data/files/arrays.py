"""Read arrays of npy and npz files, whose sizes are looked at before anything is loaded."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Mapping
from tokenize import TokenError
from typing import IO

import numpy as np
from numpy.typing import NDArray

from pyro_seq.errors import UserError, did_you_mean
from pyro_seq.series.data.files.encoded import ALWAYS_ALLOWED, MOST_GROWTH
from pyro_seq.series.data.files.raw import Raw, unique_names

Array = NDArray[np.generic]
NPY, ZIP = b"\x93NUMPY", b"PK\x03\x04"
ENTRIES = ("values", "lengths", "known", "static", "columns", "ids")
SERIES = "series"  # the column that names series
MOST_MEMBERS, MOST_HEADER = 100_000, 2**16


def is_npz(data: bytes) -> bool:
    """Tell whether a file is a zip of arrays, by the names in it."""
    if not data.startswith(ZIP):
        return False
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return b".npy" in data[:2000]
    return bool(names) and all(name.endswith(".npy") for name in names)


def read_arrays(data: bytes, where: str) -> Raw:
    """Return the series of an npy file, `[T]`, `[T, C]` or `[N, T, C]`, or of an npz file.

    An npz file has `values` of these shapes, and may have `lengths [N]`, `known [N, T, K]`,
    `static [N, S]`, and the names `columns [C]` and `ids [N]`; or it has one array `[T]` or
    `[T, C]` for each series, under the series' name.

    Args:
        data: the bytes of the file.
        where: its name, for messages.

    Raises `UserError` for an array of Python objects, of another shape, or larger than the file.
    """
    if data.startswith(NPY):
        return _table(where, {"values": npy_array(io.BytesIO(data), len(data), where)})
    arrays = npz_arrays(data, where)
    if "values" not in arrays:
        return _ragged(where, arrays)
    for name in arrays:
        if name not in ENTRIES:
            raise UserError(
                f"{where}: array {name!r} is none that belongs to 'values'"
                + did_you_mean(name, ENTRIES)
            )
    return _table(where, arrays)


def npz_arrays(data: bytes, where: str) -> dict[str, Array]:
    """Return the arrays of an npz file, whose sizes are looked at before any is unpacked."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            size = sum(member.file_size for member in members)
            if len(members) > MOST_MEMBERS or size > max(MOST_GROWTH * len(data), ALWAYS_ALLOWED):
                raise UserError(
                    f"{where} grows to {size:,} bytes in {len(members):,} arrays as it is "
                    "unpacked; save it by numpy.savez, which does not pack, if this is meant"
                )
            found: dict[str, Array] = {}
            for member in members:
                name = member.filename.removesuffix(".npy")
                if name in found:
                    raise UserError(f"{where} has two arrays {name!r}")
                with archive.open(member) as file:
                    found[name] = npy_array(file, member.file_size, f"{where}, array {name!r}")
            return found
    except UserError:
        raise
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, RuntimeError) as error:
        raise UserError(f"{where} is no whole npz file: {str(error).splitlines()[0]}") from None


def npy_array(file: IO[bytes], size: int, where: str) -> Array:
    """Return the array of an npy file once its header fits the file's size."""
    form = np.lib.format
    try:
        version = form.read_magic(file)
        read = form.read_array_header_1_0 if version == (1, 0) else form.read_array_header_2_0
        shape, fortran, dtype = read(file, max_header_size=MOST_HEADER)
    except (
        ValueError,
        TypeError,
        EOFError,
        SyntaxError,
        MemoryError,
        RecursionError,
        TokenError,
    ) as error:
        raise UserError(f"{where} has no header of an array: {_line(error)}") from None
    if dtype.hasobject or dtype.kind not in "biufU":
        what = "Python objects, which are not read" if dtype.hasobject else f"entries of {dtype}"
        raise UserError(f"{where} has {what}; it must have numbers, truth values or text")
    count = 1
    for extent in shape:
        count *= int(extent)
    if min(shape, default=0) < 0 or count * dtype.itemsize > size:
        raise UserError(f"{where} says that its shape is {list(shape)}, and the file is shorter")
    content = file.read(count * dtype.itemsize)
    if len(content) < count * dtype.itemsize:
        raise UserError(f"{where} is cut short")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")


def _line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]


def _table(where: str, arrays: Mapping[str, Array]) -> Raw:
    values = arrays["values"]
    if not 1 <= values.ndim <= 3 or 0 in values.shape:
        raise UserError(
            f"{where}: 'values' has shape {list(values.shape)}; series are [T], [T, C] or "
            "[N, T, C], and no extent is 0"
        )
    single = values.ndim < 3
    values = values.reshape(1, values.shape[0], -1) if single else values
    count, steps, width = values.shape
    lengths = _lengths(where, arrays, count, steps)
    names = _names(where, arrays, "columns", width) or [
        "value" if width == 1 else f"value {i + 1}" for i in range(width)
    ]
    ids = _names(where, arrays, "ids", count) or [str(i) for i in range(count)]
    seen = (np.arange(steps) < lengths[:, None]).reshape(-1)
    parts = {n: values[:, :, i].reshape(-1)[seen] for i, n in enumerate(names)}
    roles: dict[str, str] = {}
    for name in ("known", "static"):
        if name not in arrays:
            continue
        extra, wide = arrays[name], (count, steps) if name == "known" else (count,)
        if single and extra.shape[:1] == wide[1:] + (() if name == "known" else (1,)):
            extra = extra[None] if name == "known" else extra
        if extra.shape[: len(wide)] != wide or extra.ndim > len(wide) + 1:
            raise UserError(
                f"{where}: {name!r} has shape {list(extra.shape)}, which does not begin with "
                f"{list(wide)} as 'values' does"
            )
        extra = extra.reshape(*wide, -1)
        for i in range(extra.shape[-1]):
            column = extra[..., i] if name == "known" else np.repeat(extra[:, i], steps)
            roles[f"{name} {i + 1}"] = name
            parts[f"{name} {i + 1}"] = column.reshape(-1)[seen]
    series = np.repeat(np.array(ids, object), lengths)
    steps_of = np.concatenate([np.arange(n) for n in lengths])
    return _raw(where, parts, series, steps_of, roles, single)


def _lengths(where: str, arrays: Mapping[str, Array], count: int, steps: int) -> NDArray[np.int64]:
    if "lengths" not in arrays:
        return np.full(count, steps)
    given = arrays["lengths"]
    fits = given.shape == (count,) and given.dtype.kind in "iu"
    lengths = given.astype(np.int64) if fits else np.zeros(1, np.int64)
    if not ((lengths >= 1) & (lengths <= steps)).all():
        raise UserError(f"{where}: 'lengths' must be {count} whole numbers from 1 to {steps}")
    return lengths


def _names(where: str, arrays: Mapping[str, Array], entry: str, count: int) -> list[str] | None:
    names = arrays.get(entry)
    if names is None:
        return None
    if names.shape != (count,) or len(set(names.tolist())) < count:
        raise UserError(f"{where}: {entry!r} must be {count} names that differ")
    return [str(name) for name in names]


def _ragged(where: str, arrays: Mapping[str, Array]) -> Raw:
    """Return one series for each array, all with as many columns."""
    if not arrays:
        raise UserError(f"{where} has no arrays")
    width = None
    columns, series, steps = [], [], []
    for name, array in arrays.items():
        if not 1 <= array.ndim <= 2 or 0 in array.shape:
            raise UserError(
                f"{where}: array {name!r} has shape {list(array.shape)}; without an array 'values' "
                "each array is a series, [T] or [T, C]"
            )
        array = array.reshape(len(array), -1)
        if width is not None and array.shape[1] != width:
            raise UserError(
                f"{where}: array {name!r} has {array.shape[1]} columns, and the first {width}"
            )
        width = array.shape[1]
        columns.append(array)
        series.append(np.repeat(np.array([name], object), len(array)))
        steps.append(np.arange(len(array)))
    if len({array.dtype.kind == "U" for array in columns}) > 1:
        raise UserError(f"{where}: some arrays have text, and others numbers")
    joined = np.concatenate(columns)
    names = ["value"] if width == 1 else [f"value {i + 1}" for i in range(width or 0)]
    parts = {name: joined[:, i] for i, name in enumerate(names)}
    return _raw(where, parts, np.concatenate(series), np.concatenate(steps), {}, False)


def _raw(
    where: str,
    parts: Mapping[str, Array],
    series: NDArray[np.object_],
    steps: NDArray[np.int64],
    roles: Mapping[str, str],
    single: bool,
) -> Raw:
    import pandas as pd

    native = {n: a.astype(a.dtype.newbyteorder("=")) for n, a in parts.items()}
    frame = pd.DataFrame(native)
    names, _, _ = unique_names([str(name) for name in frame.columns])
    frame.columns = pd.Index(names)
    raw = Raw.of_file(where, frame, steps)
    raw.roles = dict(roles)  # type: ignore[arg-type]
    raw.series = series
    if not single:
        name = SERIES
        while name in frame:
            name += "'"
        frame.insert(0, name, series)
        raw.id = name
    else:
        raw.series = None
    return raw
