"""Every figure of docs/photographs.md is one of the result files."""

import json
import re

import numpy as np
import pytest
from paths import REPOSITORY

from benchmarks.photographs import statistics
from benchmarks.photographs.summary import summary

RESULTS = REPOSITORY / "benchmarks" / "results" / "photographs"
TEXT = (REPOSITORY / "docs" / "photographs.md").read_text()
README = re.search(
    r"^\| do masks help on photographs.*$", (REPOSITORY / "README.md").read_text(), re.MULTILINE
)[0]

WRITTEN = {
    epochs: (RESULTS / folder / "summary.md").read_text()
    for epochs, folder in {"4": "", "16": "long16"}.items()
}
"""Tables of the results, by the epochs that a section's heading names."""

SECTIONS = re.findall(r"^## [^\n]*\b(\d+) epochs\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL)

TESTS = {
    "clutter, the parser's mask": "clutter",
    "clutter, SDALF's silhouettes": "clutter, silhouettes",
    "Partial-REID, occluded to whole": "occluded to whole",
    "Partial-REID, cut out to whole": "partial to whole",
}
"""Tests whose titles differ in the tables of the results."""


def tables(text):
    """Return the tables of a Markdown text, cell by cell, with the line before each."""
    for title, table in re.findall(r"([^\n]*)\n\n((?:\|[^\n]*\|\n)+)", text):
        lines = [re.split(r" *\| *", line)[1:-1] for line in table.splitlines()]
        yield title, [lines[0], *lines[2:]]


def of_title(text, start):
    return next(table for title, table in tables(text) if title.startswith(start))


@pytest.mark.parametrize(("epochs", "folder"), [("4", ""), ("16", "long16")])
def test_the_written_tables_are_those_of_the_result_files(epochs, folder, monkeypatch):
    """All but the intervals, which take seconds."""
    monkeypatch.setattr(statistics, "interval", lambda shares, pids: (np.nan, np.nan))

    def without_intervals(text):
        text = re.sub(r"[+-](nan|\d+\.\d) to [+-](nan|\d+\.\d)", "", text)
        return re.sub(r"\| (higher|lower|not shown) \|$", "|", text, flags=re.MULTILINE)

    assert without_intervals(summary(RESULTS / folder)) == without_intervals(WRITTEN[epochs])


@pytest.mark.parametrize(("epochs", "section"), SECTIONS)
def test_means_are_those_of_the_results(epochs, section):
    for figure in ("mAP", "rank-1"):
        rows = {row[0]: row[3:] for row in reversed(of_title(WRITTEN[epochs], f"{figure}, %"))}
        for title, table in tables(section):
            if title.lower().startswith(figure.lower()):
                for name, *cells in table[1:]:
                    assert cells == rows[name.split(",")[0]], name


@pytest.mark.parametrize(("epochs", "section"), SECTIONS)
def test_differences_are_those_of_the_results(epochs, section):
    found = {}
    for rows, test, value, interval, _, verdict in of_title(WRITTEN[epochs], "Differences in mAP")[
        1:
    ]:
        bold = "" if verdict == "not shown" else "**"
        found[rows, test] = f"{bold}{value}{bold} ({interval})"
    shown = {}
    for _, (header, *lines) in tables(section):
        for column, title in enumerate(header):
            if pair := re.match(r"\w+ - \w+", title):
                shown |= {(pair[0], TESTS.get(line[0], line[0])): line[column] for line in lines}
    assert len(shown) >= 7 and shown == {key: found[key] for key in shown}


def test_other_intervals_and_series_by_split_are_of_the_results():
    said, known = " ".join(f"{TEXT} {README}".split()), "".join(WRITTEN.values())
    intervals = re.findall(
        r"([+-]\d+\.\d)\**(?: mAP)?(?: \(|, )(?:95% )?([+-]\d+\.\d to [+-]\d+\.\d)", said
    )
    series = re.findall(r"(?:[+-]\d+\.\d, ){2,}[+-]\d+\.\d(?! to)", said)
    assert len(intervals) > 20 and len(series) > 3
    known = known.replace(" points (", " | ")  # in the sentence on VIPeR
    assert [pair for pair in intervals if " | ".join(pair) not in known] == []
    assert [one for one in series if one not in known] == []


@pytest.mark.parametrize(
    ("start", "folder", "runs"),
    [
        ("row 6, 16 epochs", "long16", "6-split"),
        ("row 4, 16 epochs", "long16", "4-split"),
        ("row 6, 4 epochs", "", "6-split"),
        ("row 4, 4 epochs", "", "4-split"),
        ("row 6 with stripes", "large", "6S-split"),
        (r"not trained [^|]*128 x 64", "", "untrained"),
        ("not trained, 256 x 128", "large", "untrained"),
    ],
)
def test_visible_stripes_are_those_of_the_result_files(start, folder, runs):
    tests = json.loads((RESULTS / folder / "visible.json").read_text())
    shown = re.search(rf"^\| {start}[^|]*\| (.*) \|$", TEXT, re.MULTILINE)[1].split("|")
    for body, cell in zip(("everything", "attention", "parser"), shown, strict=True):
        found = [
            figures["occluded-whole"]
            for name, figures in tests.items()
            if name.startswith(runs) and name.endswith(body)
        ]
        said = ""
        if found:
            rank1, precision = (100 * np.mean([one[k] for one in found]) for k in ("rank1", "mAP"))
            said = f"{rank1:.1f} ({precision:.1f})"
        assert cell.strip(" *") == said, body
