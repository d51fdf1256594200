"""Fields of a dataclass as options: flag, type, default and help of each."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import difflib
import inspect
import itertools
import sys
import textwrap
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

Instance = TypeVar("Instance")

_LARGEST = 2.0**63  # what counters hold; no number that people give is as large
_NAMES = {int: "INT", float: "FLOAT", Path: "PATH", str: "TEXT"}
_EXPECTED = {int: "a whole number", float: "a number", Path: "a path", str: "a value"}


@dataclass(frozen=True)
class Flag:
    """How a field is shown, as a part of its annotation: ``Annotated[str, Flag(value="FILE")]``.

    Args:
        name: the flag without dashes, where it is not the field's name.
        value: stands for the value in the help.
        former: earlier names, which are still read, with a note.
    """

    name: str | None = None
    value: str | None = None
    former: tuple[str, ...] = ()


FeatureFiles = Annotated[tuple[str, ...], Flag(value="FILE")]
"""Files of features: one, several shards or a pattern."""
FeatureFile = Annotated[str | None, Flag(value="FILE")]
OutputFile = Annotated[str | None, Flag(value="FILE")]
Size = Annotated[str | None, Flag(value="SIZE")]
"""Bytes, such as 512M or 2G."""
Device = Annotated[str, Flag(value="DEVICE")]
"""auto, cpu, cuda or cuda:N."""


@dataclass(frozen=True)
class Option:
    """One flag: its type taken apart, its default and its help."""

    place: str  # of the field, such as settings.data.height
    flag: str
    former: tuple[str, ...]
    kind: Any  # of one value: int, float, str, Path, bool or a Literal
    nargs: int | str | None  # as argparse has it: None for one value, a tuple's number, "*"
    optional: bool
    metavar: str
    default: Any
    help: str
    group: str

    @property
    def choices(self) -> dict[str, Any]:
        """Values by their words, where only some are allowed."""
        return {str(choice): choice for choice in typing.get_args(self.kind)}

    @property
    def required(self) -> bool:
        """Whether there is no default."""
        return self.default is dataclasses.MISSING

    @property
    def expected(self) -> str:
        """What a value must be, in words."""
        return _EXPECTED.get(self.kind) or " or ".join(", ".join(self.choices).rsplit(", ", 1))

    @property
    def most(self) -> int:
        """Number of values that the flag takes at most."""
        if isinstance(self.nargs, str):
            return sys.maxsize
        return 0 if self.kind is bool else self.nargs or 1

    def names(self) -> Iterator[tuple[str, str]]:
        """Yield what can be typed for the option, each with its present name."""
        for name in (self.flag[2:], *self.former):
            yield f"--{name}", self.flag
            if self.kind is bool:
                yield f"--no-{name}", f"--no-{self.flag[2:]}"

    def converted(self, word: str) -> Any:
        """Return the value that a word spells, or raise an argparse.ArgumentTypeError."""
        if self.optional and word == "None":
            return None
        try:
            value = self.choices[word] if self.choices else self.kind(word)
            if word and (self.kind not in (int, float) or abs(value) < _LARGEST):
                return value
        except (ValueError, KeyError):
            pass
        near = difflib.get_close_matches(word, self.choices, 1)
        found = repr(word) if word else "an empty word"
        hint = f"; did you mean {near[0]}?" if near else ""
        raise argparse.ArgumentTypeError(f"expected {self.expected}, found {found}{hint}")

    def miscounted(self) -> str:
        """Return what is wrong where argparse counts too few values or, after a bool, one."""
        if self.kind is bool:
            return f" takes no value; give {self.flag} or leave it out"
        if self.nargs:
            return f" needs {self.nargs} values, each {self.expected}"
        return " needs a value" + (f": {self.expected}" if self.kind is not str else "")

    def what(self) -> str:
        """Return the help as a part of a sentence."""
        text = self.help.rstrip(".")
        return text[:1].lower() + text[1:] if text[1:2].islower() else text

    def described(self) -> str:
        """Return the help with the choices and the default."""
        listed = "" if self.metavar.startswith("{") else ", ".join(self.choices)
        default = self.default
        if self.kind is bool:
            default = "yes" if default else "no"
        elif isinstance(default, tuple):
            default = " ".join(map(str, default))
        note = "" if default in (None, "") else f"(default: {default})"
        choices = f"One of {listed}." if listed else ""
        parts = (self.help, choices, "(required)" if self.required else note)
        return " ".join(filter(None, parts))


def blank(options_class: type[Instance]) -> Instance:
    """Return the default options; required ones are MISSING."""
    missing = dataclasses.MISSING
    fields = dataclasses.fields(typing.cast(Any, options_class))
    needed = [one.name for one in fields if one.default is one.default_factory is missing]
    return options_class(**dict.fromkeys(needed, missing))


def options_of(start: Any, group: str = "options", prefix: str = "") -> Iterator[Option]:
    """Yield the options of a dataclass and of its sections, with its values as defaults."""
    hints = typing.get_type_hints(type(start), include_extras=True)
    groups: Mapping[str, str] = getattr(start, "GROUPS", {})
    helps = _field_docs(type(start))
    for field in dataclasses.fields(start):
        default, place = getattr(start, field.name), f"{prefix}{field.name}"
        if dataclasses.is_dataclass(default):
            title = str(default.__doc__).strip().rstrip(".")
            yield from options_of(default, title, f"{place}.")
            continue
        group = groups.get(field.name, group)
        yield _option(place, hints[field.name], default, helps.get(field.name, ""), group)


def _option(place: str, hint: Any, default: Any, help: str, group: str) -> Option:
    """Take a field's annotation apart."""
    about, nargs, optional, kind = Flag(), None, False, hint
    while (origin := typing.get_origin(kind)) not in (None, Literal):
        arguments = typing.get_args(kind)
        if origin is Annotated:
            about = next((one for one in arguments if isinstance(one, Flag)), about)
        elif origin is tuple:
            nargs = "*" if arguments[-1] is Ellipsis else len(arguments)
        else:
            optional = type(None) in arguments
        kind = next(one for one in arguments if one is not type(None))
    metavar = "{" + ",".join(map(str, typing.get_args(kind))) + "}"
    if not 2 < len(metavar) < 48:
        metavar = about.value or _NAMES.get(kind, "NAME")
    flag = "--" + (about.name or place.rpartition(".")[2]).replace("_", "-")
    return Option(place, flag, about.former, kind, nargs, optional, metavar, default, help, group)


def _field_docs(options_class: type[Any]) -> dict[str, str]:
    """Return the string below each field of a dataclass; none where its source is not there."""
    docs = {}
    for one in reversed(options_class.__mro__[:-1]):  # bases first, without object
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(one)))
        except (OSError, TypeError, SyntaxError):
            continue
        for field, below in itertools.pairwise(typing.cast(ast.ClassDef, tree.body[0]).body):
            match field, below:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(ast.Constant(str(text))):
                    docs[name] = " ".join(text.split())
    return docs


def changed(start: Any, given: Mapping[str, Any], prefix: str = "") -> Any:
    """Return a dataclass with the values that are given, by the places of the options."""
    changes = {}
    for field in dataclasses.fields(start):
        old, place = getattr(start, field.name), f"{prefix}{field.name}"
        if dataclasses.is_dataclass(old):
            changes[field.name] = changed(old, given, f"{place}.")
        elif place in given:
            changes[field.name] = given[place]
    return dataclasses.replace(start, **changes)
