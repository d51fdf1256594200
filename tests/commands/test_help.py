"""Help of every command: examples that parse, widths, defaults; one name for one meaning."""

import importlib
import re
import shlex
from collections import defaultdict

import pytest

from mmga.__main__ import VERBS, main
from mmga.common import options

MODULES = {verb: f"mmga.{verb}" for verb in VERBS} | {
    "data.synthetic": "mmga.data.synthetic.__main__",
    "bodyparts.train": "mmga.bodyparts.train",
}


def parts(verb):
    module = importlib.import_module(MODULES[verb])
    return module, module.Options


def help_of(verb, width=80):
    module, options_class = parts(verb)
    return options.help_text(f"mmga {verb}", options_class, None, module.__doc__, width)


def entries(verb):
    """Return flag -> (values, help) as they are printed."""
    found = {}
    for one in re.split(r"\n(?=  --)", help_of(verb, 2000))[1:]:
        head, _, body = one.partition("\n")
        flag, _, values = head.strip().partition(" ")
        found[flag.rstrip(",")] = (values, body.split("\n\n")[0].strip())
    return found


@pytest.mark.parametrize("verb", MODULES)
def test_examples_are_read(verb, capsys):
    module, options_class = parts(verb)
    text = help_of(verb).partition("examples:\n")[2].partition("\n\n")[0].replace("\\\n", " ")
    lines = [shlex.split(line, comments=True) for line in text.splitlines()]
    lines = [words for words in lines if words]
    assert lines
    for words in lines:
        first = words.index("mmga") + 2 if words[0] == "mmga" else words.index("-m") + 2
        words = words[first:]
        start = getattr(module, "starting_point", lambda words: None)
        default = start(words) if "--resume" not in words else None
        options.parse(options_class, words, default)
    assert capsys.readouterr().err == ""  # none uses a former name


@pytest.mark.parametrize("width", [60, 80, 100])
@pytest.mark.parametrize("verb", MODULES)
def test_help_keeps_to_its_width(verb, width):
    text = help_of(verb, width)
    assert [line for line in text.splitlines() if len(line) > width] == []
    assert "None" not in text and "|" not in text


@pytest.mark.parametrize("verb", MODULES)
def test_help_explains_its_marks_and_shows_defaults(verb):
    text = help_of(verb, 2000)
    explained = set(re.findall(r"\[([A-Z]{3,})\]", text.splitlines()[-1]))
    assert set(re.findall(r"\[([A-Z]{3,})\]", text)) <= explained
    for option in options._options_of(parts(verb)[1], None):
        body = entries(verb)[option.flag][1]
        assert len(body) > 8, option.flag
        if option.required:
            assert "(required)" in body
        elif option.default not in (None, ()):
            assert "(default: " in body


def test_one_flag_means_one_thing():
    """A flag of two commands takes the same values, and its help begins alike."""
    meanings = defaultdict(set)
    for verb in MODULES:
        for flag, (values, body) in entries(verb).items():
            if flag in ("--out", "--format"):  # each command writes something of its own
                continue
            one = (
                values.split(" ")[0].replace("PATH", "FILE")
                if flag not in ("--gallery", "--images")
                else ""
            )
            meanings[flag].add((one, " ".join(re.findall(r"\w+", body)[:2])))
    assert {flag: found for flag, found in meanings.items() if len(found) > 1} == {}


def test_one_meaning_has_one_flag():
    flags = defaultdict(set)
    for verb in MODULES:
        for flag, (_, body) in entries(verb).items():
            flags[re.split(r" \(|\.$|[.;:] ", body)[0]].add(flag)
    assert {text: found for text, found in flags.items() if len(found) > 1} == {}


@pytest.mark.parametrize(
    ("verb", "former", "now"),
    [
        ("eval", "--pool max", "--query-pool"),
        ("masks", "--out m --batch 3", "--batch-size"),
        ("masks", "--out m --weights a b", "--detector-weights"),
        ("extract", "--no-flip", "--no-flip-test"),
        ("visualize", "--run r --top 3", "--topk"),
    ],
)
def test_former_names_are_read(verb, former, now, capsys):
    words = shlex.split(former)
    found = options.parse(parts(verb)[1], words)
    assert capsys.readouterr().err.strip().endswith(f" is called {now} now")
    again = former.replace(next(one for one in reversed(words) if one[:2] == "--"), now)
    assert options.parse(parts(verb)[1], shlex.split(again)) == found


@pytest.mark.parametrize("words", [[], ["help"], ["-h"], ["--help"]])
def test_the_verbs_are_listed(words, capsys):
    main(words)
    said = capsys.readouterr().out
    assert all(re.search(rf"^  {verb} +\w", said, re.MULTILINE) for verb in VERBS)
    assert max(map(len, said.splitlines())) <= 80


def test_help_of_a_verb(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["help", "export"])
    assert capsys.readouterr().out.startswith("usage: mmga export --run PATH [options]\n")


def test_a_wrong_flag_is_not_likened_by_its_dashes(capsys):
    """--topk of another command has nothing in common with --k2."""
    from mmga import eval as command

    with pytest.raises(SystemExit) as leave:
        command.main(["--topk", "5"])
    said = capsys.readouterr().err
    assert (leave.value.code, said.endswith("unknown option --topk; --help lists all\n")) == (
        2,
        True,
    )
