"""Tables of the finished runs on photographs, as Markdown."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.ablation.statistics import spread
from benchmarks.ablation.summary import attention_table
from benchmarks.photographs.plan import HARD, PARTIAL, TESTS
from benchmarks.photographs.rows import row_named
from benchmarks.photographs.statistics import Difference, Outcome, difference, last_gain, read

OPTIONS = ("6a", "6b", "6c")

PAIRS = (
    *(("6", "4"), ("4", "1"), ("6", "1"), ("6", "A"), ("6", "B"), ("A", "4"), ("6S", "4S")),
    *((option, row) for option in OPTIONS for row in ("6", "4")),
)
"""Rows that are compared."""

GROUPS = {
    "clean": ("clean",),
    "the three harder": HARD,
    "misaligned": ("misaligned",),
    "occluded": ("occluded",),
    "clutter": ("clutter",),
    "clutter, silhouettes": ("clutter-silhouettes",),
    "occluded to whole": ("occluded-whole",),
    "partial to whole": ("partial-whole",),
}
"""Tests over which a difference is averaged, by their title."""

TITLES = {"mAP": "mAP", "rank1": "rank-1"}
"""Figures by their names in result files."""

Rows = dict[str, list[Outcome]]


def summary(results: Path) -> str:
    """Return all tables of a folder's finished runs."""
    rows, viper = read(results), read(results, "viper")
    parts = ["# Photographs\n"]
    if rows:
        parts += [
            _figures(rows, "mAP"),
            _figures(rows, "rank1"),
            _differences(rows, "mAP", ""),
            _differences(rows, "rank1", ""),
            _differences(rows, "mAP", "/parts"),
            _ways(rows),
            _curves(rows),
            _attention(rows),
            _cost(rows),
        ]
    if viper:
        parts.append(_viper(viper))
    untrained = results / "untrained.json"
    if untrained.is_file():
        parts.append(_untrained(untrained))
    return "\n".join(part for part in parts if part)


def _figures(rows: Rows, figure: str) -> str:
    """Return mean and standard deviation over splits, by row, way of comparison and test."""
    tests = [*TESTS, *PARTIAL]
    lines = [
        f"{TITLES[figure]}, %: mean and standard deviation over splits\n",
        f"| row | | splits | {' | '.join(tests)} |",
        "|---" * (3 + len(tests)) + "|",
    ]
    for name, runs in rows.items():
        for way in ("", "/parts"):
            if not all(run.has(tests[0] + way) for run in runs):
                continue
            what = row_named(name).what + (", parts by visibility" if way else "")
            cells = [_mean([run.report["tests"][t + way][figure] for run in runs]) for t in tests]
            lines.append(f"| {name} | {what} | {len(runs)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _mean(values: Sequence[float]) -> str:
    deviation = spread(values)
    mean = f"{100 * float(np.mean(values)):.1f}"
    return mean if deviation is None else f"{mean} ± {100 * deviation:.1f}"


def _differences(rows: Rows, figure: str, way: str) -> str:
    compared = "parts by visibility" if way else "whole vectors"
    return _difference_table(
        f"Differences in {TITLES[figure]}, points, {compared}",
        (
            (
                f"{ours} - {theirs}",
                group,
                difference(
                    rows.get(ours, []), rows.get(theirs, []), [test + way for test in tests], figure
                ),
            )
            for ours, theirs in PAIRS
            for group, tests in GROUPS.items()
        ),
    )


def _ways(rows: Rows) -> str:
    """Return what the comparison of visible parts changes, by row."""
    return _difference_table(
        "Parts by visibility less whole vectors, the same networks, mAP, points",
        (
            (name, group, difference(runs, runs, [f"{test}/parts|{test}" for test in tests]))
            for name, runs in rows.items()
            for group, tests in GROUPS.items()
        ),
    )


def _difference_table(title: str, found: Iterable[tuple[str, str, Difference | None]]) -> str:
    """Return a table of differences by rows and test; an empty string without any."""
    lines = [
        f"{title}: 95% interval over identities, by split\n",
        "| rows | test | difference | interval | by split | |",
        "|---" * 6 + "|",
    ]
    lines += [
        f"| {rows} | {group} | {' | '.join(one.points())} | {one.verdict()} |"
        for rows, group, one in found
        if one is not None
    ]
    return "" if len(lines) == 3 else "\n".join(lines) + "\n"


def _curves(rows: Rows) -> str:
    epochs = sorted({int(e) for runs in rows.values() for e in runs[0].report["validation"]})
    if not epochs:
        return ""
    lines = [
        "Validation mAP, %, by epoch (mean over splits), and gain since three quarters or before\n",
        f"| row | {' | '.join(map(str, epochs))} | gain |",
        "|---" * (2 + len(epochs)) + "|",
    ]
    for name, runs in rows.items():
        cells = [
            f"{100 * float(np.mean([run.report['validation'][str(e)] for run in runs])):.1f}"
            for e in epochs
        ]
        gain = float(np.mean([last_gain(run.report["validation"]) for run in runs]))
        lines.append(f"| {name} | {' | '.join(cells)} | {100 * gain:+.1f} |")
    return "\n".join(lines) + "\n"


def _attention(rows: Rows) -> str:
    table = attention_table(
        {name: [run.report["attention"] for run in runs] for name, runs in rows.items()}
    )
    return table and (
        "Attention maps on the clean test's queries against the parser's masks, mean over splits"
        f"\n\n{table}\n"
    )


def _cost(rows: Rows) -> str:
    runs = [run for some in rows.values() for run in some if not run.report["resumed"]]
    if not runs:
        return ""
    speeds = [run.report["images_per_second"] for run in runs]
    minutes = [run.report["cpu_seconds"] / 60 for run in runs]
    return (
        f"{len(runs)} runs without interruption: {np.median(speeds):.0f} images/s in training, "
        f"{np.median(minutes):.1f} CPU minutes (medians).\n"
    )


def _viper(rows: Rows) -> str:
    lines = [
        "VIPeR alone, 316 persons to train, 316 to test, random halves\n",
        "| row | | splits | rank-1 | mAP | rank-1 by parts |",
        "|---" * 6 + "|",
    ]
    for name, runs in rows.items():
        tests = [run.report["tests"] for run in runs]
        parts = [test["clean/parts"]["rank1"] for test in tests if "clean/parts" in test]
        lines.append(
            f"| {name} | {row_named(name).what} | {len(runs)} | "
            f"{_mean([test['clean']['rank1'] for test in tests])} | "
            f"{_mean([test['clean']['mAP'] for test in tests])} | "
            f"{_mean(parts) if parts else ''} |"
        )
    for ours, theirs in PAIRS:
        found = difference(rows.get(ours, []), rows.get(theirs, []), ["clean"], "rank1")
        if found is not None:
            value, interval, by_split = found.points()
            lines.append(
                f"\n{ours} - {theirs}, rank-1: {value} points ({interval} over identities; "
                f"by split {by_split})."
            )
    return "\n".join(lines) + "\n"


def _untrained(file: Path) -> str:
    lines = [
        "The backbone with ImageNet's weights, not trained: rank-1 and mAP, %\n",
        "| setting | test | rank-1 | mAP |",
        "|---" * 4 + "|",
    ]
    for setting, tests in json.loads(file.read_text()).items():
        clean = [figures for test, figures in tests.items() if test.startswith("clean")]
        shown = {test: [figures] for test, figures in tests.items() if test in PARTIAL}
        for test, some in {**shown, **({"clean": clean} if clean else {})}.items():
            cells = [_mean([figures[key] for figures in some]) for key in ("rank1", "mAP")]
            lines.append(f"| {setting} | {test} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
