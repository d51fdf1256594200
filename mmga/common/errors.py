"""Exceptions for mistakes in the user's input, and checks of single numbers."""

import contextlib
import operator
import os
import re
import sys
from numbers import Real
from typing import Any


class UserError(ValueError):
    """A mistake in the user's input.

    The message is one sentence that names the argument or file, what was expected, what was found
    and what to do. Commands print it without a traceback and leave with its code.

    Attributes:
        code: exit code: 2, or 1 where it is no mistake but the end of another process.
    """

    code = 2


class PeerError(UserError):
    """An error of another process of the same run, which reports it; this process only exits."""

    def __init__(self, message: str, code: int = 2) -> None:
        super().__init__(message)
        self.code = code


def say_error(verb: str, sentence: str) -> None:
    """Print one line of a command on stderr, in which nothing steers a terminal."""
    line = " ".join(sentence.split())
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    with contextlib.suppress(OSError):  # of stderr: there is nobody to tell
        print(f"{f'mmga {verb}'.rstrip()}: error: {line}", file=sys.stderr, flush=True)


def first_line(error: Exception) -> str:
    """Return the first line of an error's text, or its type where it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def whole_number(name: str, given: Any) -> int:
    """Return an integer of any kind, such as NumPy's, as Python's.

    Raises:
        UserError: it is none.
    """
    try:
        return operator.index(given)
    except TypeError:
        raise UserError(f"{name} must be an integer, got {given!r}") from None


def set_number(name: str, least: int, most: int = 1 << 20) -> int:
    """Return the whole number that a variable of the environment is set to, by torchrun.

    Raises:
        UserError: it is not set, or to something else.
    """
    given = os.environ.get(name, "")
    if not (re.fullmatch("[0-9]{1,18}", given) and least <= int(given) <= most):
        raise UserError(
            f"{name}: expected a whole number from {least} to {most}, found {given!r}; start the "
            "processes with torchrun, which sets it, or unset WORLD_SIZE"
        )
    return int(given)


def real_number(name: str, given: Any) -> float:
    """Return a number of any kind, such as NumPy's float32, as a float.

    Raises:
        UserError: it is none.
    """
    if not isinstance(given, Real):
        raise UserError(f"{name} must be a number, got {given!r}")
    return float(given)
