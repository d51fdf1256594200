"""`mmga <verb>` and `python -m mmga <verb>`: the same as `python -m mmga.<verb>`."""

import difflib
import importlib
import sys

VERBS = {
    "train": "train MMGA",
    "eval": "CMC, mAP, mINP and re-ranking from features",
    "masks": "body-part masks of a data set, made or imported",
    "extract": "features of a folder of images",
    "export": "a trained network as one file: torch.export or ONNX",
    "search": "the nearest gallery items of each query",
    "visualize": "sheets of attention maps and ranked lists",
    "doctor": "what is active here, and what is wrong with a set of features",
}


def main(argv: list[str] | None = None) -> None:
    """Hand over to the verb's own command."""
    words = sys.argv[1:] if argv is None else argv
    if not words or words[0] in ("-h", "--help"):
        print("usage: mmga <verb> [options]; mmga <verb> --help for its options\n")
        for verb, what in VERBS.items():
            print(f"  {verb:<10} {what}")
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
