"""Exit codes and one-line errors of every command."""

import gc
import os
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Annotated, Literal

import pytest
from terminal import on_a_terminal

from mmga.__main__ import VERBS, main
from mmga.common import cli
from mmga.common.errors import UserError
from mmga.common.options import Flag


@dataclass(frozen=True)
class Section:
    k1: int = 20
    """Neighbours."""


@dataclass(frozen=True)
class Options:
    name: str = "x"
    """A name."""
    variant: Literal["zhong", "torchreid"] = "zhong"
    weight: float | None = None
    rerank: bool = False
    pair: tuple[int, int] | None = None
    files: Annotated[tuple[str, ...], Flag(value="FILE", former=("shards",))] = ()
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
    assert seen == [Options("y", section=Section(3))]


def test_processes_of_torchrun_are_refused_where_they_share_nothing(capsys, monkeypatch):
    seen = []
    for rank, expected in (
        ("1", ""),
        (
            "0",
            "mmga eval: error: mmga eval runs in one process, and torchrun started 2; start it "
            "without torchrun\n",
        ),
    ):
        for name, value in (("WORLD_SIZE", "2"), ("RANK", rank), ("LOCAL_RANK", rank)):
            monkeypatch.setenv(name, value)
        code, said = code_of(seen.append, [], capsys)
        assert code == 2 and seen == []
        assert said.err == expected
    assert code_of(seen.append, ["--help"], capsys)[0] == 0
    cli.run("eval", Options, seen.append, [], shared=True)
    monkeypatch.delenv("LOCAL_RANK")  # left in the environment by something else
    cli.run("eval", Options, seen.append, [])
    assert len(seen) == 2


def test_values_of_every_type(capsys):
    words = "--weight=-1e-3 --pair -1 2 --files a b --variant torchreid --rerank --name None"
    options = cli.parse("eval", Options, words.split())
    assert options == Options("None", "torchreid", -1e-3, True, (-1, 2), ("a", "b"))
    given = cli.parse("eval", Options, ["--weight", "None", "--no-rerank", "--files"], options)
    assert (given.weight, given.rerank, given.files) == (None, False, ())
    assert (given.pair, given.variant) == ((-1, 2), "torchreid")
    assert cli.parse("eval", Options, ["--weight", "-1e-3"]).weight == -1e-3


def test_a_former_name_is_read_with_a_note(capsys):
    assert cli.parse("eval", Options, ["--shards", "a"]).files == ("a",)
    assert capsys.readouterr().err == "note: --shards is called --files now\n"


def test_messages_hold_nothing_that_steers_a_terminal(capsys):
    def body(options):
        raise UserError("x\x1b[2J\u202e.npz does not exist")

    assert code_of(body, [], capsys)[1].err == (
        "mmga eval: error: x\\x1b[2J\\u202e.npz does not exist\n"
    )


@pytest.mark.parametrize(
    "words",
    [
        ["eval", "--qury", "x"],
        ["eval", "--metric", "cosin"],
        ["eval", "--query", "none.npz", "--gallery", "none.npz"],
        ["train", "--config", "none.yaml"],
        ["evl"],
        ["search", "--help"],
        [],
    ],
)
def test_a_terminal_shows_what_a_pipe_shows(words):
    command = [sys.executable, "-m", "mmga", *words]
    environment = os.environ | {"COLUMNS": "80"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    colours = {"FORCE_COLOR": "1", "TERM": "xterm-256color", "COLUMNS": "80"}
    assert on_a_terminal(command[1:], **colours) == (done.returncode, done.stdout + done.stderr)
    assert done.returncode == (0 if not words or "--help" in words else 2)
    assert done.stdout or len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--k", "3"], "unknown option --k; did you mean --k1?"),
        (["--nmae", "3"], "unknown option --nmae; did you mean --name?"),
        (["--vari", "x"], "unknown option --vari; did you mean --variant?"),
        (["-k1", "3"], "unknown option -k1; did you mean --k1?"),
        (["--k1", "many"], "--k1: expected a whole number, found 'many'"),
        (["--k1=1.5"], "--k1: expected a whole number, found '1.5'"),
        (["--k1", "1" + 20 * "0"], f"--k1: expected a whole number, found '1{20 * '0'}'"),
        (["--k1"], "--k1 needs a value: a whole number"),
        (["--k1", "--rerank"], "--k1 needs a value: a whole number"),
        (["--name"], "--name needs a value"),
        (["--weight", "nan"], "--weight: expected a number, found 'nan'"),
        (["--name", ""], "--name: expected a value, found an empty word"),
        (
            ["--variant", "zhng"],
            "--variant: expected zhong or torchreid, found 'zhng'; did you mean zhong?",
        ),
        (["--pair", "1"], "--pair needs 2 values, each a whole number"),
        (["x"], "unexpected word 'x'; flags begin with --"),
        (
            ["--k1", "3", "4"],
            "unexpected word '4' after --k1, which takes one value; flags begin with --",
        ),
        (
            ["--k1", "4", "--name", "4", "4"],
            "unexpected word '4' after --name, which takes one value; flags begin with --",
        ),
        (
            ["--rerank", "yes"],
            "unexpected word 'yes' after --rerank, which takes no value; flags begin with --",
        ),
        (["--rerank=yes"], "--rerank takes no value; give --rerank or leave it out"),
        (["--no-k1"], "unknown option --no-k1; did you mean --k1?"),
        (
            ["--files", "a", "--files", "b"],
            "--files is given twice; put its values after one --files",
        ),
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


def test_what_the_machine_refuses_is_one_line(tmp_path, capsys):
    def body(options):
        (tmp_path / "none" / "x.txt").write_text("x")

    code, out = code_of(body, [], capsys)
    assert (code, out.out) == (2, "")
    assert out.err == f"mmga eval: error: {tmp_path}/none/x.txt: No such file or directory\n"


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    "words", ["", "--version", "search --help", "train --print-config", "doctor"]
)
def test_output_that_nobody_takes(words, unbuffered):
    """Python itself would write it again at its end, fail again, and leave with 120."""
    kept = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    command = f"{sys.executable} -m mmga {words}"
    verb = f"mmga {words.partition(' ')[0].strip('-').replace('version', '')}".strip()
    cases = {
        "> /dev/full": (2, ("standard output: No space left", "No space left on device")),
        ">&-": (2, ("standard output is closed; send it to a file or to /dev/null",)),
        "| true": (0, ()),
    }
    for where, (code, sentences) in cases.items():
        line = f"set -o pipefail; {command} {where}"
        done = subprocess.run(
            ["bash", "-c", line], capture_output=True, text=True, check=False, env=kept
        )
        assert done.returncode == code, (where, done.stderr)
        assert len(done.stderr.splitlines()) == bool(sentences), (where, done.stderr)
        assert done.stderr.startswith(tuple(f"{verb}: error: {one}" for one in sentences) or "")


@pytest.mark.parametrize("words", ["evl", "eval", "eval --metric cosin"])
@pytest.mark.parametrize("where", ["2> /dev/full", "2>&-"])
def test_an_error_that_nobody_hears(words, where):
    line = f"{sys.executable} -m mmga {words} {where}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")


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


def test_imports_leave_a_process_with_torch_alone(monkeypatch):
    """Whoever calls a command from a program keeps that program's garbage collection."""
    before = gc.get_freeze_count()
    monkeypatch.setitem(sys.modules, "torch", object())
    with cli.imports():
        assert gc.isenabled()
    assert (gc.isenabled(), gc.get_freeze_count()) == (True, before)


@pytest.mark.parametrize("enabled", [True, False])
def test_imports_restore_the_garbage_collection(monkeypatch, enabled):
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(cli.gc, "isenabled", lambda: enabled)
    steps = []
    for name in ("disable", "enable", "freeze"):
        monkeypatch.setattr(cli.gc, name, lambda name=name: steps.append(name))
    with pytest.raises(UserError), cli.imports():
        raise UserError("a package is missing")
    assert steps == (["disable", "freeze", "enable"] if enabled else [])
