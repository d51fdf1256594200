"""Conditions on pairs such as ``camid == query.camid and abs(time - query.time) < 30``.

A bare name is a column of the gallery item, ``query.<name>`` one of the query. The text is parsed
and translated to array operations; it is never run as Python.
"""

from __future__ import annotations

import ast
import difflib
import operator
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NoReturn

import numpy as np

from mmga.common import ids
from mmga.common.errors import UserError
from mmga.retrieval.features import Features

_LABELS = ("pid", "camid")
Array = np.ndarray
Kind = Literal["number", "string", "truth"]
# Takes rows of the query set and of the gallery, of shapes that broadcast, to values.
Value = Callable[[Array, Array], Array]

# Pairs whose intermediate values stay in a cache.
_PAIRS = 1 << 15
_COLUMNS = 4096

_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    # Of NaN neither == nor != is true.
    ast.NotEq: lambda one, other: (one != other) & (one == one) & (other == other),
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
# Sums of integers are exact; products may leave 64 bits and are taken as float64.
_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: lambda one, other: np.multiply(one, other, dtype=np.float64),
    ast.Div: operator.truediv,
}
_ALLOWED = (
    "columns, query.<column>, numbers, 'strings', comparisons (== is equality), and, or, not, "
    "+ - * /, abs() and parentheses are allowed"
)


class Exclusion:
    """A condition on pairs of a query and a gallery item, bound to the columns of both.

    Attributes:
        text: the condition as it was given.
    """

    def __init__(self, text: str, query: Mapping[str, Array], gallery: Mapping[str, Array]) -> None:
        """Parse a condition and look its columns up.

        Args:
            text: the condition.
            query: columns of the query set by name, each [Q].
            gallery: columns of the gallery, each [G].

        Raises:
            UserError: the text is no condition, or names a column that is not there or cannot be
                compared so.
        """
        self.text = text
        self._value = _Translation(text, query, gallery).condition()

    @classmethod
    def of(cls, text: str, query: Features, gallery: Features) -> Exclusion:
        """Bind a condition to two sets of features (see `columns_of`).

        Identities and cameras are equal where they spell the same, as to every protocol.
        """
        columns = columns_of(query), columns_of(gallery)
        for name in _LABELS:
            _spell_alike(name, *columns)
        return cls(text, *columns)

    def pairs(self, query: Array, item: Array) -> Array:
        """Return for which of the pairs (query row, gallery row), [K] each, it holds."""
        with np.errstate(all="ignore"):
            return np.broadcast_to(self._value(query, item), query.shape)

    def block(self, query: Array, items: Array) -> Array:
        """Return for which pairs of queries [R] and items [W] it holds, bool [R, W]."""
        holds = np.empty((len(query), len(items)), bool)
        with np.errstate(all="ignore"):
            for left in range(0, len(items), _COLUMNS):
                right = min(left + _COLUMNS, len(items))
                height = max(1, _PAIRS // (right - left))
                for top in range(0, len(query), height):
                    rows = query[top : top + height, None]
                    holds[top : top + height, left:right] = self._value(
                        rows, items[None, left:right]
                    )
        return holds


def columns_of(features: Features) -> dict[str, Array]:
    """Return what a condition may name: pid, camid, path and all further columns."""
    own = features.arrays_without_rows()
    columns = dict(features.columns)
    for name, column in (("pid", "pids"), ("camid", "camids"), ("path", "paths")):
        if column in own:
            columns[name] = np.asarray(own[column])
    return columns


def _spell_alike(name: str, *sides: dict[str, Array]) -> None:
    """Write a column of identities or cameras as strings on all sides if one side does, in place.

    Numbers among them have one writing; unknown ones are empty.
    """
    if not any(name in side and side[name].dtype.kind == "U" for side in sides):
        return
    for side in sides:
        if name in side:
            distinct, inverse = np.unique(side[name], return_inverse=True)
            words = [ids.plain(value) for value in distinct]
            spelled = ["" if word is None else ids.key(str(word)) for word in words]
            side[name] = np.asarray(spelled, np.str_)[inverse.reshape(-1)]


class _Translation:
    """From text to a function of rows, with sentences for everything that does not fit."""

    def __init__(self, text: str, query: Mapping[str, Array], gallery: Mapping[str, Array]) -> None:
        self._text = text
        self._columns = {"query": query, "gallery": gallery}
        self._words = np.empty(0, np.str_)  # strings are compared by their places in it

    def condition(self) -> Value:
        tree = self._parsed()
        self._words = self._vocabulary(tree)
        try:
            kind, value = self._translate(tree)
        except RecursionError:
            raise UserError("exclude: the condition is nested too deeply") from None
        if kind != "truth":
            self._fail(tree, f"found a {kind}, expected a condition such as camid == query.camid")
        return value

    def _parsed(self) -> ast.expr:
        text = self._text
        if not text.strip():
            raise UserError(
                "exclude: expected a condition such as camid == query.camid, found none"
            )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SyntaxWarning)
                # In parentheses, so that blanks and line ends before the condition do not matter.
                return ast.parse(f"({text}\n)", mode="eval").body
        except SyntaxError as error:
            at = max(1, min((error.offset or 2) - 1, len(text)))
            if error.lineno not in (None, 1):
                at = len(text)
            reason = (error.msg or "not a condition").split(".")[0].rstrip("?")
            raise UserError(f"exclude: {reason} at position {at} of {text!r}; {_ALLOWED}") from None
        except (ValueError, MemoryError, RecursionError):
            raise UserError(f"exclude: {text[:60]!r} is not a condition; {_ALLOWED}") from None

    def _fail(self, node: ast.AST, what: str) -> NoReturn:
        line, column = getattr(node, "lineno", 1), getattr(node, "col_offset", 1)
        lines = f"({self._text}\n)".split("\n")
        before = sum(len(one) + 1 for one in lines[: line - 1])
        # ast counts bytes.
        at = before + len(lines[line - 1].encode()[:column].decode(errors="ignore"))
        raise UserError(f"exclude: {what}, at position {max(1, at)} of {self._text!r}") from None

    def _vocabulary(self, tree: ast.expr) -> Array:
        """Return every string that is compared, sorted."""
        found: list[Array] = []
        for node in ast.walk(tree):
            if isinstance(node, ast.Compare):
                _spell_constants(node)
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(np.array([node.value]))
            elif isinstance(node, ast.Name | ast.Attribute):
                for columns in self._columns.values():
                    name = node.id if isinstance(node, ast.Name) else node.attr
                    values = columns.get(name)
                    if values is not None and values.dtype.kind in "US":
                        found.append(np.unique(values.astype(np.str_)))
        return np.unique(np.concatenate(found)) if found else self._words

    def _translate(self, node: ast.expr) -> tuple[Kind, Value]:
        if isinstance(node, ast.BoolOp):
            return self._connected(node)
        if isinstance(node, ast.UnaryOp):
            return self._unary(node)
        if isinstance(node, ast.BinOp):
            return self._arithmetic(node)
        if isinstance(node, ast.Compare):
            return self._compared(node)
        if isinstance(node, ast.Constant):
            return self._constant(node)
        if isinstance(node, ast.Name):
            return self._column(node, "gallery", node.id)
        if isinstance(node, ast.Attribute):
            if not (isinstance(node.value, ast.Name) and node.value.id == "query"):
                self._fail(node, "only query.<column> may have a dot")
            return self._column(node, "query", node.attr)
        if isinstance(node, ast.Call):
            if not (isinstance(node.func, ast.Name) and node.func.id == "abs"):
                self._fail(node, "the only function is abs()")
            if len(node.args) != 1 or node.keywords or isinstance(node.args[0], ast.Starred):
                self._fail(node, "abs() takes one number")
            inner = self._of_kind(node.args[0], "number")
            return "number", lambda q, g: np.abs(inner(q, g))
        self._fail(node, f"{_spoken(node)} is not allowed; {_ALLOWED}")

    def _of_kind(self, node: ast.expr, wanted: Kind) -> Value:
        kind, value = self._translate(node)
        if kind != wanted:
            expected = "a condition" if wanted == "truth" else f"a {wanted}"
            found = "a condition" if kind == "truth" else f"a {kind}"
            self._fail(node, f"expected {expected}, found {found}")
        return value

    def _connected(self, node: ast.BoolOp) -> tuple[Kind, Value]:
        values = [self._of_kind(one, "truth") for one in node.values]
        every = isinstance(node.op, ast.And)

        def connected(q: Array, g: Array) -> Array:
            result = values[0](q, g)
            for value in values[1:]:
                if not result.any() if every else result.all():
                    break  # nothing that follows changes it
                result = result & value(q, g) if every else result | value(q, g)
            return result

        return "truth", connected

    def _unary(self, node: ast.UnaryOp) -> tuple[Kind, Value]:
        if isinstance(node.op, ast.Not):
            truth = self._of_kind(node.operand, "truth")
            return "truth", lambda q, g: ~truth(q, g)
        if isinstance(node.op, ast.UAdd | ast.USub):
            number = self._of_kind(node.operand, "number")
            if isinstance(node.op, ast.UAdd):
                return "number", number
            return "number", lambda q, g: -number(q, g)
        self._fail(node, f"{_spoken(node.op)} is not allowed; {_ALLOWED}")

    def _arithmetic(self, node: ast.BinOp) -> tuple[Kind, Value]:
        combine = _ARITHMETIC.get(type(node.op))
        if combine is None:
            self._fail(node, f"{_spoken(node.op)} is not allowed; {_ALLOWED}")
        one, other = self._of_kind(node.left, "number"), self._of_kind(node.right, "number")
        return "number", lambda q, g: combine(one(q, g), other(q, g))

    def _compared(self, node: ast.Compare) -> tuple[Kind, Value]:
        sides = [node.left, *node.comparators]
        found = [self._translate(side) for side in sides]
        steps = []
        for place, sign in enumerate(node.ops):
            compare = _COMPARISONS.get(type(sign))
            if compare is None:
                self._fail(sides[place + 1], f"{_spoken(sign)} is not allowed; {_ALLOWED}")
            kinds = found[place][0], found[place + 1][0]
            if kinds[0] != kinds[1]:
                self._fail(sides[place + 1], f"a {kinds[0]} cannot be compared with a {kinds[1]}")
            if kinds[0] == "truth" and not isinstance(sign, ast.Eq | ast.NotEq):
                self._fail(sides[place + 1], "conditions have no order; use == or !=")
            steps.append((found[place][1], compare, found[place + 1][1]))

        def compared(q: Array, g: Array) -> Array:
            one, compare, other = steps[0]
            result: Array = np.asarray(compare(one(q, g), other(q, g)))
            for one, compare, other in steps[1:]:  # a < b < c
                result = result & compare(one(q, g), other(q, g))
            return result

        return "truth", compared

    def _constant(self, node: ast.Constant) -> tuple[Kind, Value]:
        given = node.value
        if isinstance(given, str):
            place = np.asarray(np.searchsorted(self._words, given))
            return "string", lambda q, g: place
        if isinstance(given, bool) or not isinstance(given, int | float):
            self._fail(node, f"{given!r} is not allowed; {_ALLOWED}")
        exact = isinstance(given, int) and abs(given) < 2**63
        try:
            number = np.asarray(given, np.int64 if exact else np.float64)
        except OverflowError:
            self._fail(node, "a number is too large")
        return "number", lambda q, g: number

    def _column(self, node: ast.expr, side: str, name: str) -> tuple[Kind, Value]:
        columns = self._columns[side]
        if name not in columns:
            prefix = "query." if side == "query" else ""
            near = difflib.get_close_matches(name, columns, 1, 0.5)
            meant = f"; did you mean {prefix}{near[0]}?" if near else ""
            if name == "query" and side == "gallery":
                meant = "; a column of the query is written query.<column>"
            self._fail(
                node,
                f"the {side} has no column {name} (it has {_listed(columns)}){meant}",
            )
        values = columns[name]
        if values.ndim != 1:
            self._fail(node, f"column {name} holds {values.shape[1:]} values for each row, not one")
        kind = values.dtype.kind
        if kind in "US":
            text = values.astype(np.str_)
            values = np.searchsorted(self._words, text)
            if name in _LABELS and (text == "").any():  # unknown, which equals nothing
                values = np.where(text == "", np.nan, values)
        elif kind in "iu" and not (kind == "u" and values.dtype.itemsize == 8):
            values = values.astype(np.int64)  # differences of unsigned numbers would wrap
        elif kind in "fu":
            values = values.astype(np.float64)
        elif kind != "b":
            self._fail(
                node,
                f"column {name} is of type {values.dtype}; store it as numbers (a time as seconds) "
                "or strings",
            )
        spoken: Kind = "string" if kind in "US" else "truth" if kind == "b" else "number"
        if side == "query":
            return spoken, lambda q, g: values[q]
        return spoken, lambda q, g: values[g]


def _spell_constants(node: ast.Compare) -> None:
    """Give strings that are compared with identities or cameras the one writing of these."""
    sides = [node.left, *node.comparators]
    named = {getattr(side, "id", getattr(side, "attr", None)) for side in sides}
    for side in sides:
        if named & {*_LABELS} and isinstance(side, ast.Constant) and isinstance(side.value, str):
            side.value = ids.key(side.value)


def _spoken(node: ast.AST) -> str:
    names: dict[type[ast.AST], str] = {
        ast.Pow: "**",
        ast.Mod: "%",
        ast.FloorDiv: "//",
        ast.BitAnd: "& (for which and is meant)",
        ast.BitOr: "| (for which or is meant)",
        ast.Invert: "~ (for which not is meant)",
        ast.Is: "is (for which == is meant)",
        ast.IsNot: "is not (for which != is meant)",
        ast.Subscript: "[]",
    }
    return names.get(type(node), type(node).__name__.lower())


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"
