"""`mmga <verb>` and `python -m mmga <verb>`: the same as `python -m mmga.<verb>`."""

import difflib
import importlib
import sys

from mmga.common import cli
from mmga.common.errors import UserError
from mmga.common.version import __version__

VERBS = ("train", "eval", "masks", "extract", "export", "search", "visualize", "doctor", "demo")


def _summary(verb: str) -> str:
    """Return the first line of a command's documentation, without the command."""
    line = str(importlib.import_module(f"mmga.{verb}").__doc__).splitlines()[0]
    return line.split("`: ", 1)[1].rstrip(".")


def main(argv: list[str] | None = None) -> None:
    """Run the command of a verb."""
    words = sys.argv[1:] if argv is None else argv
    if words[:1] == ["help"]:
        words = [*words[1:2], "--help"]
    if words and words[0] in VERBS:
        importlib.import_module(f"mmga.{words[0]}").main(words[1:])
        return
    with cli.exit_codes(""):
        _answer(words)


def _answer(words: list[str]) -> None:
    """Print what `mmga` says without a verb.

    Raises:
        UserError: the first word is no verb.
    """
    if not words or words[0] in ("-h", "--help"):
        print("usage: mmga <verb> [options]\n")
        for verb in VERBS:
            print(f"  {verb:<10} {_summary(verb)}")
        print("\nmmga <verb> --help shows examples and options, mmga --version the version")
    elif words[0] == "--version":
        print(__version__)
    else:
        near = difflib.get_close_matches(words[0], VERBS, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(VERBS)}"
        raise UserError(f"no verb {words[0]!r}; {hint}")


if __name__ == "__main__":
    main()
