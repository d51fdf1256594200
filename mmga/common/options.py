"""Options of a command: a dataclass read from words, with its help.

Each field is a flag; nested sections give flat flags. An error is one sentence (`UserError`), and
both errors and help are the same text on a terminal and through a pipe, without colours.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import shlex
import shutil
import sys
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from mmga.common.errors import UserError

Options = TypeVar("Options")

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
class _Option:
    """One flag: its type taken apart, its default and its help."""

    flag: str
    former: tuple[str, ...]
    kind: Any  # of one value: int, float, str, Path, bool or a Literal
    count: int | None  # of values; None for any number
    several: bool
    optional: bool
    shown: str
    default: Any
    help: str
    group: str

    @property
    def choices(self) -> tuple[Any, ...]:
        is_choice = typing.get_origin(self.kind) is Literal
        return typing.get_args(self.kind) if is_choice else ()

    @property
    def required(self) -> bool:
        return self.default is dataclasses.MISSING

    def expected(self) -> str:
        """Return what a value must be, in words."""
        if self.choices:
            *others, last = map(str, self.choices)
            return f"{', '.join(others)} or {last}" if others else last
        return _EXPECTED[self.kind]

    def converted(self, word: str) -> Any:
        """Return one value.

        Raises:
            UserError: the word spells none.
        """
        if self.choices:
            by_word = {str(choice): choice for choice in self.choices}
            if word in by_word:
                return by_word[word]
            near = difflib.get_close_matches(word, by_word, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(f"{self.flag}: expected {self.expected()}, found {word!r}{hint}")
        if not word:
            raise UserError(f"{self.flag}: expected {self.expected()}, found an empty word")
        try:
            value = self.kind(word)
        except ValueError:
            value = None
        if value is None or (self.kind in (int, float) and not abs(value) < _LARGEST):
            raise UserError(f"{self.flag}: expected {self.expected()}, found {word!r}")
        return value

    def value(self, words: list[str]) -> Any:
        """Return the value that the words after the flag spell.

        Raises:
            UserError: they spell none, or are too few.
        """
        if self.optional and words == ["None"]:
            return None
        if self.count is not None and len(words) < self.count:
            many = f"{self.count} values, each" if self.count > 1 else "a value:"
            raise UserError(f"{self.flag} needs {many} {self.expected()}")
        values = tuple(self.converted(word) for word in words)
        return values if self.several else values[0]


def parse(
    options_class: type[Options], words: Sequence[str], default: Options | None = None
) -> Options:
    """Return the options that `words` spell.

    Args:
        options_class: a dataclass.
        words: of the command line.
        default: options that the words change; those of the class if None.

    Raises:
        UserError: they spell none.
    """
    options = _options_of(options_class, default)
    by_flag = {one.flag: one for one in options}
    former = {name: one for one in options for name in one.former}
    found: dict[str, Any] = {}
    rest = list(words[1:] if words[:1] == ["--"] else words)  # torchrun's separator
    last = ""
    while rest:
        word = rest.pop(0)
        if not _is_flag(word):
            raise UserError(f"unexpected word {word!r}{last}; flags begin with --")
        name, equals, attached = word.partition("=")
        name = name.replace("_", "-")
        option = by_flag.get(name) or former.get(name)
        positive = option is not None or not name.startswith("--no-")
        if option is None and not positive:
            name = f"--{name[5:]}"
            option = by_flag.get(name) or former.get(name)
        if option is None or (not positive and option.kind is not bool):
            raise UserError(_unknown(word.partition("=")[0], [*by_flag, *former]))
        if name in former:
            was, now = (name, option.flag) if positive else (_no(name), _no(option.flag))
            print(f"note: {was} is called {now} now", file=sys.stderr)
        if option.flag in found and option.several:
            raise UserError(f"{option.flag} is given twice; put its values after one {option.flag}")
        if option.kind is bool:
            if equals:
                raise UserError(f"{option.flag} takes no value; give {option.flag} or leave it out")
            found[option.flag] = positive
            last = f" after {option.flag}, which takes no value"
            continue
        values = [attached] if equals else []
        while not equals and rest and len(values) != option.count and not _is_flag(rest[0]):
            values.append(rest.pop(0))
        found[option.flag] = option.value(values)
        takes = "one value" if option.count == 1 else f"{option.count} values"
        last = f" after {option.flag}, which takes {takes}"
    for option in options:
        if option.required and option.flag not in found:
            raise UserError(f"{option.flag} is missing: {_uncapitalised(option.help)}")
    return _built(options_class, default, found)


def asks_for_help(words: Sequence[str]) -> bool:
    """Return whether a word asks for help."""
    return any(word in ("-h", "--help") for word in words)


def help_text(
    program: str,
    options_class: type[Any],
    default: Any = None,
    about: str | None = None,
    width: int | None = None,
) -> str:
    """Return the help of a command: purpose, examples, options by group, remarks.

    Args:
        program: the command as it is typed.
        options_class: a dataclass; its docstring is the purpose, the string below a field its help,
            `GROUPS` maps the option at which a group begins to the group's title.
        default: options whose values are shown as the defaults.
        about: the command module's documentation, whose indented or plain command lines are the
            examples and whose paragraphs, after the first line, are the remarks.
        width: columns; those of the terminal (at most 100) if None.
    """
    if width is None:
        width = min(shutil.get_terminal_size().columns, 100)
    options = _options_of(options_class, default)
    needed = [f"{one.flag} {_values(one)} " for one in options if one.required]
    purpose = " ".join(str(options_class.__doc__).strip().split("\n\n")[0].split())
    parts = [f"usage: {program} {''.join(needed)}[options]", textwrap.fill(purpose, width)]
    commands, remarks = examples(about or "")
    if commands:
        parts.append("\n".join(["examples:", *(_wrapped(*one, width) for one in commands)]))
    groups: dict[str, list[str]] = {}
    for option in options:
        groups.setdefault(option.group, []).append(_entry(option, width))
    groups.setdefault("other options", []).append("  -h, --help\n      Show this help and leave.")
    for title, entries in groups.items():
        parts.append("\n".join([textwrap.fill(f"{title}:", width), *entries]))
    parts += [textwrap.fill(remark, width, break_on_hyphens=False) for remark in remarks]
    return "\n\n".join(parts) + "\n"


def examples(about: str) -> tuple[list[tuple[str, str]], list[str]]:
    """Return the commands of a module's documentation, each with its comment, and its remarks."""
    commands, remarks = [], []
    for paragraph in textwrap.dedent(about.partition("\n")[2]).strip().split("\n\n"):
        words = []
        for line in paragraph.splitlines():
            if re.match(r"\s*(mmga|python -m|torchrun) ", line):
                command, _, comment = line.partition("  #")
                commands.append((command.strip(), comment.strip()))
            else:
                words.append(line.strip())
        if any(words):
            remarks.append(" ".join(words))
    return commands, remarks


def _is_flag(word: str) -> bool:
    return bool(re.match(r"--?[^\W\d]", word)) or word == "--"


def _no(flag: str) -> str:
    return f"--no-{flag[2:]}"


def _unknown(word: str, flags: list[str]) -> str:
    """Return the sentence about a flag that does not exist, with the nearest one that does."""
    plain = "--" + word.lstrip("-").replace("_", "-")
    longer = [flag for flag in flags if len(plain) > 4 and flag.startswith(plain)]
    near = sorted(longer, key=len) or difflib.get_close_matches(plain, flags, 1)
    hint = f"did you mean {near[0]}?" if near else "--help lists all"
    return f"unknown option {word}; {hint}"


def _uncapitalised(sentence: str) -> str:
    sentence = sentence.rstrip(".")
    return sentence[:1].lower() + sentence[1:] if sentence[1:2].islower() else sentence


def _options_of(options_class: type[Any], default: Any) -> list[_Option]:
    return list(_walk(options_class, default, "options"))


def _walk(options_class: type[Any], default: Any, group: str) -> Iterator[_Option]:
    """Yield the options of a dataclass and of its sections."""
    hints = typing.get_type_hints(options_class, include_extras=True)
    groups: Mapping[str, str] = getattr(options_class, "GROUPS", {})
    helps = _field_docs(options_class)
    for field in dataclasses.fields(options_class):
        value = _start(field, default)
        if dataclasses.is_dataclass(hints[field.name]):
            section: Any = hints[field.name]
            yield from _walk(section, value, str(section.__doc__).strip().rstrip("."))
            continue
        group = groups.get(field.name, group)
        yield _option(field.name, hints[field.name], value, helps.get(field.name, ""), group)


def _start(field: dataclasses.Field[Any], default: Any) -> Any:
    if default is not None:
        return getattr(default, field.name)
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _option(name: str, hint: Any, default: Any, help: str, group: str) -> _Option:
    """Take a field's annotation apart."""
    about, optional, several, kind = Flag(), False, False, hint
    count: int | None = 1
    while True:
        origin, arguments = typing.get_origin(kind), typing.get_args(kind)
        if origin is Annotated:
            about = next((one for one in arguments if isinstance(one, Flag)), about)
            kind = arguments[0]
        elif origin in (types.UnionType, typing.Union):
            optional = type(None) in arguments
            kind = next(one for one in arguments if one is not type(None))
        elif origin is tuple:
            several, count = True, None if arguments[-1] is Ellipsis else len(arguments)
            kind = arguments[0]
        else:
            break
    shown = about.value or ("NAME" if origin is Literal else _NAMES.get(kind, ""))
    flag = "--" + (about.name or name).replace("_", "-")
    former = tuple(f"--{one}" for one in about.former)
    return _Option(flag, former, kind, count, several, optional, shown, default, help, group)


def _field_docs(options_class: type[Any]) -> dict[str, str]:
    """Return the string below each field of a dataclass; none where its source is not there."""
    import ast
    import inspect
    import itertools

    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(options_class)))
    except (OSError, TypeError, SyntaxError):
        return {}
    statements = typing.cast(ast.ClassDef, tree.body[0]).body
    docs = {}
    for one, following in itertools.pairwise(statements):
        if (
            isinstance(one, ast.AnnAssign)
            and isinstance(one.target, ast.Name)
            and isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
        ):
            docs[one.target.id] = " ".join(str(following.value.value).split())
    return docs


def _built(options_class: type[Options], default: Any, found: Mapping[str, Any]) -> Options:
    """Return the options with the values of the flags that were found."""
    hints = typing.get_type_hints(options_class, include_extras=True)
    values = {}
    for field in dataclasses.fields(typing.cast(Any, options_class)):
        start, hint = _start(field, default), hints[field.name]
        if dataclasses.is_dataclass(hint):
            values[field.name] = _built(typing.cast(Any, hint), start, found)
        else:
            flag = _option(field.name, hint, start, "", "").flag
            values[field.name] = found.get(flag, start)
    return options_class(**values)


def _values(option: _Option) -> str:
    """Return what stands for the values of an option."""
    one = option.shown
    if option.choices and len(text := ",".join(map(str, option.choices))) < 46:
        one = f"{{{text}}}"
    if option.several and option.count is None:
        return f"{one} [{one} ...]"
    return " ".join([one] * (option.count or 1))


def _entry(option: _Option, width: int) -> str:
    """Return the lines of an option."""
    head = f"  {option.flag} {_values(option)}"
    if option.kind is bool:
        head = f"  {option.flag}, {_no(option.flag)}"
    sentences = [option.help]
    if option.choices and "{" not in head:
        sentences.append(f"One of {', '.join(map(str, option.choices))}.")
    if option.required:
        sentences.append("(required)")
    elif option.default not in (None, (), ""):
        sentences.append(f"(default: {_default(option)})")
    body = textwrap.fill(
        " ".join(filter(None, sentences)),
        max(width, 30),
        initial_indent=" " * 6,
        subsequent_indent=" " * 6,
        break_on_hyphens=False,
    )
    return f"{head}\n{body}" if body else head


def _default(option: _Option) -> str:
    value = option.default
    if option.kind is bool:
        return "yes" if value else "no"
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _wrapped(command: str, comment: str, width: int) -> str:
    """Return an example within so many columns, to be pasted as it is."""
    lines = []
    if comment:
        lines += textwrap.wrap(f"# {comment}", width - 2, subsequent_indent="# ")
    line = ""
    for words in _arguments(command):
        if line and len(line) + len(words) + 5 > width:
            lines.append(f"{line} \\")
            line = f"    {words}"
        else:
            line = f"{line} {words}" if line else words
    return textwrap.indent("\n".join([*lines, line]), "  ")


def _arguments(command: str) -> list[str]:
    """Return a command in pieces that stay on one line: the program, each flag with its values."""
    pieces: list[str] = []
    for word in shlex.split(command, posix=False):
        if pieces and not _is_flag(word):
            pieces[-1] += f" {word}"
        else:
            pieces.append(word)
    return pieces
