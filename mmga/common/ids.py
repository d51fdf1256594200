"""One rule for identities and cameras that are written as text: unknown, junk, number or name."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_UNKNOWN = frozenset(("", "nan", "none", "null", "na", "n/a"))
JUNK = -1
"""The pid of junk detections."""


def unknown(values: Sequence[str] | np.ndarray) -> np.ndarray:
    """Return the places of values that are empty or say that they are missing, int64, ascending."""
    found = [str(value).strip().lower() in _UNKNOWN for value in values]
    return np.flatnonzero(np.asarray(found, bool))


def numbered(values: Sequence[str]) -> np.ndarray:
    """Return text as int64: whole numbers (7, 7.0) as they are, else names in sorted order.

    Among names, -1 and -1.0 stay junk.
    """
    whole = _whole(values)
    if whole is not None:
        return whole
    junk = np.asarray([is_junk(value) for value in values], bool)
    codes = np.full(len(values), JUNK, np.int64)
    names = np.asarray(values, np.str_)[~junk]
    codes[~junk] = np.unique(names, return_inverse=True)[1]
    return codes


def is_junk(value: str) -> bool:
    """Return whether a name is -1, however it is written."""
    try:
        return float(value) == JUNK
    except ValueError:
        return False


def _whole(values: Sequence[str]) -> np.ndarray | None:
    try:
        return np.array([int(value) for value in values], np.int64)
    except (ValueError, OverflowError):
        pass
    try:
        numbers = np.array([float(value) for value in values])
    except ValueError:
        return None
    if not np.isfinite(numbers).all() or (numbers != np.floor(numbers)).any():
        return None
    return numbers.astype(np.int64) if np.abs(numbers).max(initial=0) < 2**53 else None
