"""Arrow columns as the numpy columns that an engine promises."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from steersman.core.errors import DataError

_UNSIGNED = pa.decimal128(20, 0)
_LARGEST = 2**64 - 1


def column(name: str, values: pa.ChunkedArray) -> np.ndarray:
    """One column as `Engine.query` promises it; a decimal of 20 digits is an unsigned 64 bit number.

    Raises:
        DataError: its type is none of those.
    """
    return _array(name, values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values)


def _array(name: str, values: pa.Array) -> np.ndarray:
    kind = values.type
    if pa.types.is_temporal(kind):
        raise DataError(f"column {name} is a time ({kind})", hint="select epoch_us(...) of it", field=name)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind):
        return values.to_numpy(zero_copy_only=False).astype(object)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _lists(name, values)
    if pa.types.is_floating(kind):
        return values.cast(pa.float64()).fill_null(np.nan).to_numpy(zero_copy_only=False)
    if kind == _UNSIGNED:
        return _with_nulls(_unsigned(name, values), values)
    if pa.types.is_integer(kind):
        return _with_nulls(values.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64), values)
    if pa.types.is_boolean(kind):
        return _with_nulls(values.fill_null(False).to_numpy(zero_copy_only=False), values)
    raise DataError(f"column {name} is a {kind}", hint="select its parts", field=name)


def _with_nulls(plain: np.ndarray, values: pa.Array) -> np.ndarray:
    if not values.null_count:
        return plain
    out = plain.astype(object)
    out[values.is_null().to_numpy(zero_copy_only=False)] = None
    return out


def _unsigned(name: str, values: pa.Array) -> np.ndarray:
    try:
        return values.fill_null(0).cast(pa.uint64()).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid:
        raise DataError(f"column {name} has numbers that are not in 0..{_LARGEST}", field=name) from None


def _lists(name: str, values: pa.Array) -> np.ndarray:
    """Each list gets the treatment of a column of its own."""
    flat, lengths = values.flatten(), values.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    ends = np.cumsum(lengths)
    # A list of whole numbers is i64 unless it has a null itself, whatever the others have.
    apart = flat.null_count > 0 and not pa.types.is_floating(flat.type) and not pa.types.is_string(flat.type)
    inner = None if apart else _array(name, flat)
    out = np.empty(len(values), dtype=object)
    absent = values.is_null().to_numpy(zero_copy_only=False)
    for i, (end, length) in enumerate(zip(ends.tolist(), lengths.tolist(), strict=True)):
        if not absent[i]:
            out[i] = _array(name, flat.slice(end - length, length)) if inner is None else inner[end - length : end]
    return out
