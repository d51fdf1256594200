"""Command lines: what is common to all commands, one-line errors, exit codes.

Exit codes: 0 done, 2 the user's input is wrong (one sentence on stderr), 130 Ctrl-C, 143 SIGTERM,
1 anything else, with its traceback.
"""

import contextlib
import dataclasses
import gc
import io
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO, TypeVar

from mmga.common import options as flags
from mmga.common import threads
from mmga.common.errors import PeerError, UserError, say_error

Options = TypeVar("Options")
Given = TypeVar("Given")
Result = TypeVar("Result")


def flag(name: str) -> str:
    """Return the flag of an option."""
    return "--" + name.replace("_", "-")


def changed(options: Any, *names: str) -> list[str]:
    """Return those of the named options that were given other values than their defaults."""
    defaults = {field.name: field.default for field in dataclasses.fields(options)}
    return [name for name in names if getattr(options, name) != defaults[name]]


def check_overwriting(options: Any, read: Sequence[str], written: Sequence[str]) -> None:
    """Refuse an output that is one of the inputs, or another output.

    Args:
        options: of the command.
        read: names of those that are paths of inputs, or several.
        written: names of those that are paths of outputs.

    Raises:
        UserError: one is.
    """
    taken: dict[Path, str] = {}
    for name in (*read, *written):
        value = getattr(options, name)
        for path in value if isinstance(value, tuple) else [value] if value else []:
            before = taken.setdefault(Path(path).resolve(), flag(name))
            if name in written and before != flag(name):
                raise UserError(f"{flag(name)}: {path} is given as {before}, too; name another")


def run(
    verb: str,
    options_class: type[Options],
    body: Callable[[Options], int | None],
    argv: Sequence[str] | None = None,
    default: Callable[[list[str]], Options] | None = None,
    *,
    shared: bool = False,
) -> None:
    """Parse `argv` into `options_class`, call `body` and leave with the right exit code.

    Args:
        verb: the command's name, for messages.
        options_class: a dataclass; its help is made by `mmga.common.options.help_text`.
        body: does the work; its return value, if any, is the exit code.
        argv: words of the command line, `sys.argv[1:]` if None.
        default: returns the options that the words change, given the words.
        shared: processes that torchrun started share the work; else they are refused.

    Raises:
        SystemExit: always but for success.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    threads.wait_asleep()
    with exit_codes(verb):
        try:
            start = _call(default, words, shared) if default is not None else None
        except UserError:
            if not flags.asks_for_help(words):
                raise
            start = None
        options = parse(verb, options_class, words, start)
        if not shared:
            _check_alone(verb)
        code = _call(body, options, shared)
    if code:
        raise SystemExit(code)


@contextlib.contextmanager
def exit_codes(verb: str) -> Iterator[None]:
    """Leave with the exit code of what ends the commands inside, told in one line on stderr.

    Args:
        verb: the command's name, for messages; empty for `mmga` itself.

    Raises:
        SystemExit: always but for success.
    """
    if sys.stderr is None:  # closed: there is nobody to tell
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    _print_anything()
    try:
        if sys.stdout is None:
            raise UserError("standard output is closed; send it to a file or to /dev/null")
        yield
        sys.stdout.flush()
    except PeerError as error:
        raise SystemExit(error.code) from None
    except UserError as error:
        _fail(verb, str(error), error.code)
    except KeyboardInterrupt:
        print(f"mmga {verb}: interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:
        # The reader of our output has left (`| head`): not an error of ours.
        raise SystemExit(0) from None
    except OSError as error:  # of the machine: a full disk, a folder without rights
        if error.strerror is None:
            raise
        place = error.filename or ("" if _flushed(sys.stdout) else "standard output")
        _fail(verb, ": ".join(str(part) for part in (place, error.strerror) if part))
    finally:
        for stream in (sys.stdout, sys.stderr):
            if not _flushed(stream):  # Python would try again at its end, and leave with 120
                with contextlib.suppress(OSError), open(os.devnull, "w") as nowhere:
                    os.dup2(nowhere.fileno(), stream.fileno())


def _flushed(stream: TextIO | None) -> bool:
    """Write what a stream still holds; return whether it took it."""
    try:
        if stream is not None:
            stream.flush()
    except OSError:
        return False
    return True


def _call(function: Callable[[Given], Result], given: Given, shared: bool) -> Result:
    """Call a function; what ends it before all processes of a run have met ends these, too.

    Raises:
        Exception: the function's, or a PeerError where another process tells it.
    """
    if not (shared and _several()):
        return function(given)
    # Connections that end are told in one sentence, not by torch in pages.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        return function(given)
    except Exception as error:
        from mmga.common import meeting

        raise meeting.refuse(error) from error.__cause__


def parse(
    verb: str, options_class: type[Options], words: list[str], default: Options | None = None
) -> Options:
    """Return the options that `words` spell; `--help` prints and leaves with 0.

    Raises:
        SystemExit: with code 2 and one line on stderr, if the words spell none.
    """
    if flags.asks_for_help(words):
        about = sys.modules[options_class.__module__].__doc__
        print(flags.help_text(f"mmga {verb}", options_class, default, about), end="", flush=True)
        raise SystemExit(0)
    try:
        return flags.parse(options_class, words, default)
    except UserError as error:
        if _several() and os.environ.get("RANK", "0") != "0":
            raise SystemExit(2) from None  # torchrun gives all the same words; the first one tells
        _fail(verb, str(error))


@contextlib.contextmanager
def imports() -> Iterator[None]:
    """Import torch, and what needs it, in two thirds of the time, and leave the process as fast.

    Torch makes some 180,000 objects that live until the end, and Python looks through all of them
    for garbage again and again, once more at its end. Inside, it looks at none, and later never
    at these.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def wrapped(line: str, indent: int) -> str:
    """Return a line in as many as the terminal's width takes; as it is where stdout is none."""
    if not sys.stdout.isatty():
        return line
    width = max(shutil.get_terminal_size().columns, indent + 20)
    return textwrap.fill(line, width, subsequent_indent=" " * indent, break_on_hyphens=False)


def _several() -> bool:
    """Return whether this process is one of several of a run."""
    world = os.environ.get("WORLD_SIZE", "")
    return world.isdecimal() and int(world) > 1


def _check_alone(verb: str) -> None:
    """Refuse processes that would all do the same and write the same files."""
    if "LOCAL_RANK" in os.environ and _several():
        kind = UserError if os.environ.get("RANK", "0") == "0" else PeerError  # the first one tells
        raise kind(
            f"mmga {verb} runs in one process, and torchrun started {os.environ['WORLD_SIZE']}; "
            "start it without torchrun"
        )


def _print_anything() -> None:
    """Print what the locale cannot encode as escapes, not as an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _fail(verb: str, sentence: str, code: int = 2) -> NoReturn:
    """Print one line and leave."""
    say_error(verb, sentence)
    raise SystemExit(code) from None
