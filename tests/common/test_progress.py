"""Where stderr is no terminal, only phases that last are told, each with its own time left."""

import re
import time

import pytest
from terminal import on_a_terminal

from mmga.common.progress import bar, begin, describe


def test_a_phase_that_begins_again_starts_its_clock_again(monkeypatch, capsys):
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with bar() as progress:
        progress("query", 1, 4)
        clock[0] = 1000.0 + 3.0
        progress("query", 3, 4)
        progress("query", 4, 4)
        clock[0] = 1000.0 + 100.0
        progress("query", 1, 4)
        clock[0] = 1000.0 + 104.0
        progress("query", 2, 4)
    assert capsys.readouterr().err.splitlines() == [
        "query: 3/4, 3 s, ETA 1 s",
        "query: 4/4, 3 s, ETA 0 s",
        "query: 2/4, 4 s, ETA 4 s",
    ]


def test_short_phases_are_not_told(capsys):
    with bar() as progress:
        for done in range(5):
            progress("rank", done, 4)
    assert capsys.readouterr().err == ""


DRAWN = """
from mmga.common.progress import bar
with bar() as progress:
    for done in range(4):
        progress("rank", done, 3)
"""


@pytest.mark.parametrize(
    ("environment", "colours", "bars"),
    [
        ({"TERM": "xterm-256color"}, True, True),
        ({"TERM": "xterm-256color", "NO_COLOR": "1"}, False, True),
        ({"TERM": "dumb"}, False, False),
    ],
)
def test_bars_keep_to_what_the_terminal_is_said_to_show(environment, colours, bars, monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    code, said = on_a_terminal(["-c", DRAWN], **environment)
    assert code == 0
    assert bool(re.search(r"\x1b\[[\d;]*m", said)) == colours
    assert ("3/3" in said) == bars
    assert bars or said == ""


def test_a_phase_that_goes_on_counts_its_own_items_alone(monkeypatch, capsys):
    """After a resume at 100 of 110, five steps in ten seconds leave ten seconds."""
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with bar() as progress:
        begin(progress, "train", 100)
        clock[0] = 1010.0
        describe(progress, "train", "loss 3.2")
        progress("train", 105, 110)
    assert capsys.readouterr().err == "train: 105/110, 10 s, ETA 10 s; loss 3.2\n"


def test_a_described_phase_is_told_at_its_end_however_short(capsys):
    with bar() as progress:
        for done in (1, 2):
            describe(progress, "train", f"loss {done}")
            progress("train", done, 2)
    assert capsys.readouterr().err == "train: 2/2, 0 s, ETA 0 s; loss 2\n"
