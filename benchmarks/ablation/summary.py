"""Report finished runs as tables, statements and a figure."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.ablation.plan import CHALLENGES, QUARTERS, SEVERITIES
from benchmarks.ablation.rows import MAIN, ROWS
from benchmarks.ablation.statistics import (
    FLAT,
    HARD,
    Outcome,
    by_row,
    challenge_tests,
    difference,
    gain,
    spread,
)
from mmga.common.files import atomic_path


def summary(outcomes: Sequence[Outcome], seeds: Sequence[int] = (0, 1, 2)) -> str:
    """Return everything as Markdown.

    Args:
        outcomes: finished runs.
        seeds: of the experiment; those missing in the main rows are listed.
    """
    if not outcomes:
        return "No run is finished.\n"
    rows = by_row(outcomes)
    parts = [
        _runs(rows, seeds),
        _challenges(rows),
        _curves(rows),
        _differences(rows),
        _attention(rows),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _runs(rows: Mapping[str, list[Outcome]], seeds: Sequence[int]) -> str:
    done = {(run.row, run.seed) for runs in rows.values() for run in runs}
    missing = [f"{row} seed {seed}" for seed in seeds for row in MAIN if (row, seed) not in done]
    first = next(iter(rows.values()))[0].report
    lines = [
        f"Finished: {len(done)} runs of {first['steps']} steps of "
        f"{first['images_per_step']} images "
        f"({', '.join(f'{row} x {len(runs)}' for row, runs in rows.items())})."
    ]
    if missing:
        lines.append(f"Missing of the main rows: {', '.join(missing)}.")
    commits = sorted({s["commit"] for runs in rows.values() for r in runs for s in _sittings(r)})
    machines = sorted({s["machine"] for runs in rows.values() for r in runs for s in _sittings(r)})
    lines.append(f"Commit {', '.join(commits)}; {'; '.join(machines)}.")
    return " ".join(lines)


def _sittings(run: Outcome) -> list[dict[str, str]]:
    found: list[dict[str, str]] = run.report["sittings"]
    return found


def _challenges(rows: Mapping[str, list[Outcome]]) -> str:
    """Return mAP (rank-1) by challenge, each the mean over severities and seeds."""
    lines = [
        "| row | what | seeds | clean | "
        + " | ".join(CHALLENGES)
        + " | mean of the four | spread |",
        "|---" * (len(CHALLENGES) + 6) + "|",
    ]
    for name, runs in rows.items():
        cells = [
            _pair(runs, tests)
            for tests in (("clean",), *(challenge_tests(c) for c in CHALLENGES), HARD)
        ]
        deviation = spread([run.mean(HARD) for run in runs])
        lines.append(
            f"| {name} | {ROWS[name].what} | {len(runs)} | {' | '.join(cells)} | "
            f"{'-' if deviation is None else _percent(deviation)} |"
        )
    return "mAP (rank-1) in percent after all steps, mean over severities and seeds:\n\n" + (
        "\n".join(lines)
    )


def _pair(runs: Sequence[Outcome], tests: Sequence[str]) -> str:
    figures = [
        np.mean([run.mean(tests, figure=figure) for run in runs]) for figure in ("mAP", "rank1")
    ]
    return f"{_percent(figures[0])} ({_percent(figures[1])})"


def _curves(rows: Mapping[str, list[Outcome]]) -> str:
    """Return mAP over the challenges by share of the steps, and whether it still rises."""
    lines = [
        "| row | " + " | ".join(f"{share}%" for share in QUARTERS) + " | last quarter | flat |",
        "|---" * (len(QUARTERS) + 3) + "|",
    ]
    for name, runs in rows.items():
        cells = [_percent(np.mean([run.mean(HARD, share) for run in runs])) for share in QUARTERS]
        rise = gain(runs)
        flat = "yes" if abs(rise) < FLAT else "no"
        lines.append(f"| {name} | {' | '.join(cells)} | {100 * rise:+.1f} | {flat} |")
    return "mAP over the four challenges by share of the steps:\n\n" + "\n".join(lines)


def _differences(rows: Mapping[str, list[Outcome]]) -> str:
    """Return row 6 against every other row, with paired intervals."""
    if "6" not in rows:
        return "Row 6 is not there yet: nothing is compared."
    lines = [
        "| row 6 less row | seeds | difference | 95% interval | by seed | reads |",
        "|---" * 6 + "|",
    ]
    for name, runs in rows.items():
        found = difference(rows["6"], runs) if name != "6" else None
        if found is None:
            continue
        seeds = ", ".join(map(str, found.seeds))
        each = ", ".join(f"{100 * value:+.1f}" for value in found.by_seed)
        lines.append(
            f"| {name} | {seeds} | {100 * found.value:+.1f} | "
            f"{100 * found.low:+.1f} to {100 * found.high:+.1f} | {each} | {found.verdict()} |"
        )
    return "Points of mAP over the four challenges, paired over test identities:\n\n" + (
        "\n".join(lines)
    )


def _attention(rows: Mapping[str, list[Outcome]]) -> str:
    table = attention_table(
        {name: [run.report["attention"] for run in runs] for name, runs in rows.items()}
    )
    if not table:
        return ""
    return "Attention maps on the clean test's queries, whose masks no network saw:\n\n" + table


def attention_table(rows: Mapping[str, Sequence[Mapping[str, Mapping[str, float]]]]) -> str:
    """Return how attention maps fit masks, mean over runs; an empty string without maps.

    Args:
        rows: of each row its runs' fits, each by map and figure.
    """
    lines = [
        "| row | map | IoU | mean mask | RMSE | mean mask |",
        "|---" * 6 + "|",
    ]
    for name, runs in rows.items():
        for drawn in runs[0]:
            cells = [
                f"{np.mean([run[drawn][figure] for run in runs]):.3f}"
                for figure in ("iou", "mean_iou", "rmse", "mean_rmse")
            ]
            lines.append(f"| {name} | {drawn} | {' | '.join(cells)} |")
    return "\n".join(lines) if len(lines) > 2 else ""


def _percent(value: Any) -> str:
    return f"{100 * float(value):.1f}"


def draw(outcomes: Sequence[Outcome], path: Path) -> None:
    """Draw mAP over severity for each challenge, and over the steps, as a PNG.

    Raises:
        UserError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = by_row(outcomes)
    figure = Figure(figsize=(15, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(CHALLENGES) + 1, sharey=True)
    for panel, challenge in zip(panels, CHALLENGES, strict=False):
        panel.set_title(challenge)
        panel.set_xlabel("severity (0: clean)")
        panel.set_xticks([0, *SEVERITIES])
        for name, runs in rows.items():
            tests = ("clean", *challenge_tests(challenge))
            values = np.array([[100 * run.mean([test]) for test in tests] for run in runs])
            (line,) = panel.plot([0, *SEVERITIES], values.mean(0), marker="o", ms=3, label=name)
            if len(runs) > 1:
                panel.fill_between(
                    [0, *SEVERITIES],
                    values.min(0),
                    values.max(0),
                    alpha=0.15,
                    color=line.get_color(),
                )
    panel = panels[-1]
    panel.set_title("mean of the four")
    panel.set_xlabel("share of the steps, %")
    panel.set_xticks(QUARTERS)
    for name, runs in rows.items():
        values = np.array([[100 * run.mean(HARD, share) for share in QUARTERS] for run in runs])
        panel.plot(QUARTERS, values.mean(0), marker="o", ms=3, label=f"row {name}")
    panels[0].set_ylabel("mAP, %")
    panel.legend(fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)
