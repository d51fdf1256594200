"""Command lines: options from a dataclass, one-line errors, exit codes.

Exit codes: 0 done, 2 the user's input is wrong (one sentence on stderr), 130 Ctrl-C, 143 SIGTERM,
1 anything else, with its traceback.
"""

import contextlib
import dataclasses
import difflib
import io
import re
import sys
import typing
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

from mmga.common import threads
from mmga.common.errors import PeerError, UserError

Options = TypeVar("Options")


def flag(name: str) -> str:
    """Return the flag of an option."""
    return "--" + name.replace("_", "-")


def changed(options: Any, *names: str) -> list[str]:
    """Return those of the named options that were given other values than their defaults."""
    defaults = {field.name: field.default for field in dataclasses.fields(options)}
    return [name for name in names if getattr(options, name) != defaults[name]]


def run(
    verb: str,
    options_class: type[Options],
    body: Callable[[Options], int | None],
    argv: Sequence[str] | None = None,
    default: Callable[[list[str]], Options] | None = None,
) -> None:
    """Parse `argv` into `options_class`, call `body` and leave with the right exit code.

    Args:
        verb: the command's name, for messages.
        options_class: a dataclass; the string below a field is its help.
        body: does the work; its return value, if any, is the exit code.
        argv: words of the command line, `sys.argv[1:]` if None.
        default: returns the options that the words change, given the words.

    Raises:
        SystemExit: always but for success.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    threads.wait_asleep()
    try:
        start = default(words) if default is not None else None
        options = parse(verb, options_class, words, start)
        code = body(options) or 0
    except PeerError as error:
        raise SystemExit(error.code) from None
    except UserError as error:
        _fail(verb, str(error))
    except KeyboardInterrupt:
        print(f"mmga {verb}: interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:
        # The reader of our output has left (`| head`): not an error of ours.
        sys.stderr.close()
        raise SystemExit(0) from None
    if code:
        raise SystemExit(code)


def parse(
    verb: str, options_class: type[Options], words: list[str], default: Options | None = None
) -> Options:
    """Return the options that `words` spell; `--help` prints and leaves with 0.

    Raises:
        SystemExit: with code 2 and one line on stderr, if the words spell none.
    """
    import tyro

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            options: Options = tyro.cli(
                options_class,
                prog=f"mmga {verb}",
                args=words,
                default=typing.cast(Options, default),
                # Nested sections give flat flags.
                config=(tyro.conf.AvoidSubcommands, tyro.conf.OmitArgPrefixes),
            )
            return options
    except SystemExit as leave:
        if not leave.code:
            raise
        _fail(verb, _one_sentence(said.getvalue(), options_class, verb))


def _fail(verb: str, sentence: str) -> NoReturn:
    print(f"mmga {verb}: error: {' '.join(sentence.split())}", file=sys.stderr)
    raise SystemExit(2) from None


def _one_sentence(boxed: str, options_class: type[Any], verb: str) -> str:
    """Return the parser's boxed message as one line, with the nearest option's name."""
    lines = []
    for line in boxed.splitlines()[1:]:  # the first is the box's title
        text = line.strip("│|╰╯+ ")
        if not set(text) <= set("─-"):
            lines.append(text)
        elif lines:  # a rule before the text belongs to the title
            break
    sentence = " ".join(lines) or "the options could not be read"
    unknown = re.search(r"Unrecognized options: (--?[\w-]+)", sentence)
    if unknown:
        names = [flag(name) for name in _field_names(options_class)]
        near = difflib.get_close_matches(unknown.group(1), names, 1)
        hint = f"did you mean {near[0]}?" if near else f"see mmga {verb} --help"
        sentence = f"unknown option {unknown.group(1)}; {hint}"
    return sentence


def _field_names(options_class: type[Any]) -> list[str]:
    """Return the names of a dataclass' fields and of those of its sections."""
    hints = typing.get_type_hints(options_class)
    names = []
    for field in dataclasses.fields(options_class):
        if dataclasses.is_dataclass(hints[field.name]):
            names += _field_names(hints[field.name])
        else:
            names.append(field.name)
    return names
