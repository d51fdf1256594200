"""`mmga <verb>` and `python -m mmga <verb>`: the same as `python -m mmga.<verb>`."""

import difflib
import importlib
import sys

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
    if not words or words[0] in ("-h", "--help"):
        print("usage: mmga <verb> [options]\n")
        for verb in VERBS:
            print(f"  {verb:<10} {_summary(verb)}")
        print("\nmmga <verb> --help shows examples and options, mmga --version the version")
        return
    if words[0] == "--version":
        from mmga.common.version import __version__

        print(__version__)
        return
    if words[0] not in VERBS:
        near = difflib.get_close_matches(words[0], VERBS, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(VERBS)}"
        print(f"mmga: error: no verb {words[0]!r}; {hint}", file=sys.stderr)
        raise SystemExit(2)
    importlib.import_module(f"mmga.{words[0]}").main(words[1:])


if __name__ == "__main__":
    main()
