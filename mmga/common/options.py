"""Options of a command: a dataclass that argparse reads from words, with its help.

Each field is a flag; nested sections give flat flags. An error is one sentence (`UserError`), and
both errors and help are the same text on a terminal and through a pipe, without colours.
"""

from __future__ import annotations

import argparse
import difflib
import functools
import re
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from mmga.common.errors import UserError
from mmga.common.option_fields import (
    Device,
    FeatureFile,
    FeatureFiles,
    Flag,
    Option,
    OutputFile,
    Size,
    blank,
    changed,
    options_of,
)

__all__ = [
    "Device", "FeatureFile", "FeatureFiles", "Flag", "OutputFile", "Size",
    "asks_for_help", "help_text", "parse",
]  # fmt: skip

Options = TypeVar("Options")

_FLAG = r"--?[^\W\d]|--$"  # begins a word that is a flag, not a value
_Names = Mapping[str, tuple[str, Option]]  # what can be typed -> the present name, the option


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
    start = default or blank(options_class)
    options = list(options_of(start))
    names = {typed: (now, one) for one in options for typed, now in one.names()}
    words = _renamed(words[1:] if words[:1] == ["--"] else words, names)  # torchrun's separator
    try:
        given, unread = _parser(options).parse_known_args(words)
    except argparse.ArgumentError as error:
        _, option = names[str(error.argument_name).split("/")[0]]
        converting = isinstance(error.__context__, argparse.ArgumentTypeError)
        sentence = f": {error.message}" if converting else option.miscounted()
        raise UserError(f"{option.flag}{sentence}") from None
    if unread:
        is_flag = re.match(_FLAG, unread[0])
        raise UserError(_unknown(unread[0], names) if is_flag else _unexpected(words, names))
    for option in options:  # by argparse this would be said before a flag is called unknown
        if option.required and option.place not in given:
            raise UserError(f"{option.flag} is missing: {option.what()}")
    return changed(start, vars(given))


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
    width = min(shutil.get_terminal_size().columns, 100) if width is None else width
    options = _options_of(options_class, default)
    commands, remarks = _examples(about or "", width)
    parser = _parser(options, width)
    needed = [f"{one.flag} {one.metavar} " for one in options if one.required]
    parser.usage = f"{program} {''.join(needed)}[options]"
    purpose = " ".join(str(options_class.__doc__).strip().split("\n\n")[0].split())
    parser.description = textwrap.fill(purpose, width)
    if commands:
        parser.description += "\n".join(["\n\nexamples:", *commands])
    parser.epilog = "\n\n".join(remarks)
    others = parser.add_argument_group("other options")
    others.add_argument("-h", "--help", action="help", help="Show this help and leave.")
    return parser.format_help()


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Breaks no line within a flag."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False)


class _Once(argparse.Action):
    """Takes the values of a tuple; a second time it refuses."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        if self.dest in namespace:
            flag = self.option_strings[0]
            raise UserError(f"{flag} is given twice; put its values after one {flag}")
        setattr(namespace, self.dest, tuple(values))


def _parser(options: list[Option], width: int = 100) -> argparse.ArgumentParser:
    """Return a parser whose namespace holds what is given, by the places of the options."""
    parser = argparse.ArgumentParser(
        formatter_class=functools.partial(_Formatter, max_help_position=6, width=width),
        argument_default=argparse.SUPPRESS,
        add_help=False,
        allow_abbrev=False,
        exit_on_error=False,
    )
    vars(parser)["color"] = False  # of Python 3.14
    parser._negative_number_matcher = re.compile(rf"(?!{_FLAG})-")  # -1e-3 is a value, too
    titles = dict.fromkeys(one.group for one in options)
    groups = {one: parser.add_argument_group(textwrap.fill(one, width - 1)) for one in titles}
    for one in options:
        settings: dict[str, Any] = {"action": argparse.BooleanOptionalAction}
        if one.kind is not bool:
            settings = {"type": one.converted, "nargs": one.nargs, "metavar": one.metavar}
            settings["action"] = "store" if one.nargs is None else _Once
        argument = groups[one.group].add_argument(one.flag, dest=one.place, **settings)
        argument.help = one.described().replace("%", "%%")
    return parser


def _renamed(words: Sequence[str], names: _Names) -> list[str]:
    """Return the words with the present names of flags, and print a note for each former one."""
    renamed = []
    for word in words:
        typed, equals, value = word.partition("=")
        dashed = typed.replace("_", "-")
        now, _ = names.get(dashed, (typed, None))
        if dashed in names and dashed != now:
            print(f"note: {dashed} is called {now} now", file=sys.stderr)
        renamed.append(f"{now}{equals}{value}")
    return renamed


def _unknown(word: str, names: _Names) -> str:
    """Return the sentence about a flag that does not exist, with the nearest one that does."""
    typed = word.partition("=")[0]
    plain = "--" + typed.lstrip("-").replace("_", "-")
    longer = [name for name in names if len(plain) > 4 and name.startswith(plain)]
    bare = {name[2:]: name for name in names}  # the dashes make no two names alike
    words = plain[2:], plain.removeprefix("--no-")
    alike = [bare[name] for one in words for name in difflib.get_close_matches(one, bare, 1)]
    near = sorted(longer, key=len) or alike
    hint = f"did you mean {names[near[0]][0]}?" if near else "--help lists all"
    return f"unknown option {typed}; {hint}"


def _unexpected(words: list[str], names: _Names) -> str:
    """Return the sentence about the first word that no flag takes; flags before it are known."""
    after, room = "", 0
    for word in words:
        name, equals, _ = word.partition("=")
        if name in names:
            option = names[name][1]
            room = 0 if equals else option.most
            takes = {0: "no value", 1: "one value"}.get(option.most, f"{option.most} values")
            after = f" after {option.flag}, which takes {takes}"
        elif room:
            room -= 1
        else:
            break
    return f"unexpected word {word!r}{after}; flags begin with --"


def _options_of(options_class: type[Any], default: Any) -> list[Option]:
    return list(options_of(default or blank(options_class)))


def _examples(about: str, width: int) -> tuple[list[str], list[str]]:
    """Return the commands of a module's documentation and its remarks, within so many columns."""
    commands, remarks = [], []
    for paragraph in textwrap.dedent(about.partition("\n")[2]).strip().split("\n\n"):
        words = []
        for line in paragraph.splitlines():
            if re.match(r"\s*(mmga|python -m|torchrun) ", line):
                commands.append(_example(line, width))
            else:
                words.append(line.strip())
        if any(words):
            remarks.append(textwrap.fill(" ".join(words), width, break_on_hyphens=False))
    return commands, remarks


def _example(line: str, width: int) -> str:
    """Return a command below its comment, to be pasted as it is."""
    command, _, comment = line.partition("  #")
    lines = textwrap.wrap(f"#{comment}", width - 2, subsequent_indent="# ") if comment else []
    pieces = textwrap.wrap(
        re.sub(" (?!-)", "\xa0", command.strip()),  # no break between a flag and its values
        width - 4,
        subsequent_indent="    ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    lines.append(" \\\n".join(pieces).replace("\xa0", " "))
    return textwrap.indent("\n".join(lines), "  ")
