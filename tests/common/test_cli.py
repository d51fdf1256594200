"""Exit codes and one-line errors of every command."""

import subprocess
import sys
from dataclasses import dataclass, field

import pytest

from mmga.__main__ import VERBS, main
from mmga.common import cli
from mmga.common.errors import UserError


@dataclass(frozen=True)
class Section:
    k1: int = 20
    """Neighbours."""


@dataclass(frozen=True)
class Options:
    name: str = "x"
    """A name."""
    section: Section = field(default_factory=Section)


def code_of(body, words, capsys):
    try:
        cli.run("eval", Options, body, words)
    except SystemExit as leave:
        return leave.code, capsys.readouterr()
    return 0, capsys.readouterr()


def test_flags_reach_the_sections(capsys):
    seen = []
    assert code_of(seen.append, ["--k1", "3", "--name", "y"], capsys)[0] == 0
    assert seen == [Options("y", Section(3))]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--k", "3"], "unknown option --k; did you mean --k1?"),
        (["--nmae", "3"], "unknown option --nmae; did you mean --name?"),
        (["--k1", "many"], "Error parsing --k1: invalid literal for int() with base 10: 'many'"),
    ],
)
def test_parser_errors_are_one_line(words, sentence, capsys):
    code, out = code_of(lambda options: None, words, capsys)
    assert code == 2
    assert out.err.strip().splitlines() == [f"mmga eval: error: {sentence}"]
    assert out.out == ""


def test_a_user_error_is_one_line(capsys):
    def body(options):
        raise UserError("x.npz holds\n no pids")

    code, out = code_of(body, [], capsys)
    assert (code, out.err) == (2, "mmga eval: error: x.npz holds no pids\n")


def test_interruption_is_130(capsys):
    def body(options):
        raise KeyboardInterrupt

    assert code_of(body, [], capsys)[0] == 130


def test_other_errors_keep_their_traceback(capsys):
    with pytest.raises(ZeroDivisionError):
        cli.run("eval", Options, lambda options: 1 // 0, [])


def test_an_unknown_verb_names_the_nearest(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["evl"])
    assert capsys.readouterr().err == "mmga: error: no verb 'evl'; did you mean eval?\n"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_and_starts_without_torch(verb):
    """Help is instant: nothing heavy is imported before options are parsed."""
    code = (
        f"import sys\nfrom mmga.__main__ import main\n"
        f"try: main([{verb!r}, '--help'])\nexcept SystemExit as e: assert not e.code\n"
        f"heavy = {{'torch', 'torchvision', 'triton', 'scipy', 'matplotlib'}} & set(sys.modules)\n"
        f"sys.exit(f'imports {{heavy}}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"usage: mmga {verb}" in done.stdout
