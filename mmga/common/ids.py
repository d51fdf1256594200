"""One rule for identities and cameras: unknown, junk, number or name.

What is empty, None or NaN is unknown; -1 is junk; whole numbers are integers however they are
written (7, 7.0, "7", "7.0"); everything else is a name.
"""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

JUNK = -1
"""The pid of junk detections."""
UNKNOWN = int(np.iinfo(np.int64).min)
"""The code of an identity or a camera that is not known; also what NaN becomes as int64."""

_UNKNOWN = frozenset(("", "nan", "-nan", "none", "null", "na", "n/a", "#n/a", "<na>", "nat"))
# Digits with underscores, which int() and float() take, are names: 0001_1 is not 11.
_WHOLE = re.compile(r"[+-]?\d{1,40}", re.ASCII)
_DECIMAL = re.compile(r"[+-]?\d+\.\d*(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
_EXPONENT = re.compile(r"[+-]?\d+(\.\d*)?e[+-]?\d+", re.ASCII | re.IGNORECASE)
_EXACT = 2**53  # whole numbers below are exact as float64


def unknown(values: Sequence[str] | np.ndarray) -> np.ndarray:
    """Return the places of values that are empty or say that they are missing, int64, ascending."""
    return np.flatnonzero(np.asarray([_says_nothing(value) for value in values], bool))


def numbered(values: Sequence[str]) -> np.ndarray:
    """Return text as int64: whole numbers (7, 7.0) as they are, else names in sorted order.

    Among names, -1 and -1.0 stay junk. What is unknown becomes UNKNOWN.
    """
    return coded(values, junk=True)[0]


def coded(values: Sequence[str], *, junk: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """Return text as int64 and, where not all are whole numbers, the names of the codes."""
    plain = of_text(values)
    return (plain, None) if plain.dtype.kind == "i" else named(plain, junk=junk)


def of_text(values: Sequence[str]) -> np.ndarray:
    """Return a table's cells as int64 if all that are known are whole numbers, else as strings."""
    codes = np.full(len(values), UNKNOWN, np.int64)
    for place, value in enumerate(values):
        if not _says_nothing(value):
            number = _whole(value, exponents=True)
            if number is None or abs(number) >= 2**63:
                return np.asarray(values, np.str_)
            codes[place] = number
    return codes


def of_objects(values: np.ndarray) -> np.ndarray | None:
    """Return an array of objects as int64, float64 or strings; None if one is none of these.

    None, NaN and pandas' NA are unknown. Numbers among names are names.
    """
    cells = [None if _says_nothing(value) else value for value in values.tolist()]
    known = [cell for cell in cells if cell is not None]
    if all(isinstance(cell, numbers.Real) for cell in known):
        if all(float(cell).is_integer() and abs(cell) < 2**63 for cell in known):
            return np.array([UNKNOWN if cell is None else int(cell) for cell in cells], np.int64)
        return np.array([np.nan if cell is None else float(cell) for cell in cells])
    if not all(isinstance(cell, str | bytes | numbers.Real) for cell in known):
        return None
    return np.asarray(["" if cell is None else _text(cell) for cell in cells], np.str_)


def named(values: np.ndarray, *, junk: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return names as codes: the place of each among the distinct names, in sorted order.

    Args:
        values: strings [N]; several writings of one number (7, 7.0) are one name, the first.
        junk: -1 is junk and takes no place, as identities have it.

    Returns:
        Codes int64 [N], JUNK and UNKNOWN among them, and the names.
    """
    texts = [text.strip() for text in values.astype(np.str_).tolist()]
    codes: dict[str, int] = {}
    places: dict[str, int] = {}
    for name in sorted(set(texts)):
        spelled = key(name)
        if _says_nothing(name):
            codes[name] = UNKNOWN
        elif junk and spelled == str(JUNK):
            codes[name] = JUNK
        else:
            codes[name] = places.setdefault(spelled, len(places))
    first: dict[int, str] = {}
    for name, code in codes.items():
        first.setdefault(code, name)
    kept = np.asarray([first[code] for code in range(len(places))], np.str_)
    return np.asarray([codes[text] for text in texts], np.int64), kept


def key(name: str) -> str:
    """Return the one writing of a name: 7 for 7, 7.0, 07 and +7; other names as they are."""
    number = _whole(name)
    return name if number is None else str(number)


def is_number(name: str) -> bool:
    """Return whether a name is a whole number."""
    return _whole(name) is not None


def written(codes: np.ndarray, names: np.ndarray | None) -> np.ndarray:
    """Return codes as files hold them: names, integers, or with unknown ones float64 and NaN.

    Integers that float64 does not hold exactly are written as strings beside unknown ones.
    """
    missing = codes == UNKNOWN
    if names is not None:
        words = np.concatenate([names, np.array(["", str(JUNK)])])  # JUNK is the last
        return np.asarray(words[np.where(missing, len(names), codes)])
    if not missing.any():
        return codes
    if np.abs(np.where(missing, 0, codes)).max() < _EXACT:
        return np.where(missing, np.nan, codes)
    return np.where(missing, "", codes.astype(np.str_))


def plain(label: Any) -> Any:
    """Return a label out of `written` as an integer or a name, None where it is unknown."""
    value = label.item() if hasattr(label, "item") else label
    if isinstance(value, float):  # integers with unknown ones among them
        return None if math.isnan(value) else int(value)
    return None if value == "" else value


def words(codes: np.ndarray, names: np.ndarray | None) -> list[str]:
    """Return codes as people read them: names or integers, a question mark where unknown."""
    labels = (plain(label) for label in written(codes, names))
    return ["?" if label is None else str(label) for label in labels]


def most_frequent(codes: np.ndarray, most: int) -> tuple[np.ndarray, int]:
    """Return the known codes that stand most often, ascending, and how many others there are.

    Args:
        codes: int64 [N].
        most: codes that are returned at most; of equally frequent ones the lowest.
    """
    found, counts = np.unique(codes[codes != UNKNOWN], return_counts=True)
    kept = np.sort(np.argsort(-counts, kind="stable")[:most])
    return found[kept], len(found) - len(kept)


def _says_nothing(value: Any) -> bool:
    return str(_text(value)).strip().lower() in _UNKNOWN


def _text(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)


def _whole(text: str, *, exponents: bool = False) -> int | None:
    """Return the whole number that a text spells, None where it spells none."""
    text = text.strip()
    if _WHOLE.fullmatch(text):
        return int(text)
    if _DECIMAL.fullmatch(text) or (exponents and _EXPONENT.fullmatch(text)):
        number = float(text)
        if number.is_integer() and abs(number) < _EXACT:
            return int(number)
    return None
