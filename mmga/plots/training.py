"""Training curves of runs, from their metrics.jsonl."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmga.common.errors import UserError
from mmga.plots.style import INCH, LINES, PAGE, fitted, new_figure, percent, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Records = Sequence[Mapping[str, object]]
"""Lines of a metrics.jsonl: each has a kind (train, val, eval), a step and metrics by name."""
Curve = tuple[list[float], list[float]]
"""Steps and values."""
_Value = Callable[[Mapping[str, object]], object]

_LOSSES: dict[str, str] = {
    "loss": "loss, all terms",
    "triplet": "triplet loss",
    "id": "identity loss",
    "mask": "mask loss (RMSE)",
}
_RATE = "learning rate"
_TESTS: dict[str, str] = {"mAP": "mAP", "rank1": "rank-1"}
_IOU = "IoU, attention and mask"
_KINDS = {"train": ("", ""), "val": ("validation", "o"), "eval": ("test", "s")}
"""Kinds of lines: what a legend says of them, and their marker."""


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, object]]:
    """Return the lines of a metrics.jsonl; one that was cut off in the middle is left out.

    Args:
        path: a run's folder, or the file.

    Raises:
        UserError: there is no such file, or none of its lines holds a kind and a step.
    """
    file = Path(path) / "metrics.jsonl" if Path(path).is_dir() else Path(path)
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise UserError(
            f"{file} cannot be read ({error.strerror}); name the folder of a run"
        ) from error
    found = []
    for line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict) and "kind" in record and _is_number(record.get("step")):
            found.append(record)
    if not found:
        raise UserError(
            f'{file}: expected lines such as {{"kind": "train", "step": 10, ...}}, found '
            f"{len(lines)} others; name the folder of a run"
        )
    return found


@styled
def training_curves(runs: Mapping[str, Records], *, width: float = PAGE) -> Figure:
    """Draw losses, learning rate and tests of one run or several, one metric a panel.

    Args:
        runs: of `read_metrics`, by the names that a legend gives them.
        width: of the figure, in mm.

    Raises:
        UserError: no run has a metric that is drawn, or matplotlib is not installed.
    """
    wanted: dict[str, _Value] = {title: itemgetter(key) for key, title in _LOSSES.items()}
    wanted[_RATE] = itemgetter("lr")
    wanted |= {title: itemgetter(key) for key, title in _TESTS.items()}
    wanted[_IOU] = _mean_iou
    panels = {title: _curves(runs, value, title) for title, value in wanted.items()}
    panels = {title: curves for title, curves in panels.items() if curves}
    if not panels:
        raise UserError(
            f"runs: expected losses or tests by step, found none in {', '.join(runs) or 'no run'}"
        )
    columns = min(len(panels), 4 if width >= 150 else 2)
    rows = -(-len(panels) // columns)
    figure = new_figure(width, rows * 0.85 * width / columns + 8 + 4 * len(runs))
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for axes, (title, curves) in zip(grid.flat, panels.items(), strict=False):
        for (name, kind), (steps, values) in curves.items():
            style = _style(list(runs).index(name), kind)
            style["marker"] = style["marker"] or ("." if len(steps) == 1 else None)
            axes.plot(steps, values, **style)
        axes.set_title(title)
        axes.set_xlabel("step")
        axes.set_xlim(0)
        shares = title in (*_TESTS.values(), _IOU)
        axes.yaxis.set_major_formatter(percent if shares else "{x:g}")
    used = {one for curves in panels.values() for one in curves}
    _legend(figure, [one for one in used if len(runs) > 1 or one[1] != "train"], list(runs))
    return figure


def _curves(runs: Mapping[str, Records], value: _Value, title: str) -> dict[tuple[str, str], Curve]:
    """Return the curves of a metric by run and kind; those without a point are left out.

    Losses and rates are those of training, all others of tests.
    """
    kinds = ("train",) if title in (*_LOSSES.values(), _RATE) else ("val", "eval")
    found = {}
    for name, records in runs.items():
        for kind in kinds:
            points = []
            for record in records:
                with contextlib.suppress(KeyError, TypeError):
                    if record["kind"] == kind and _is_number(number := value(record)):
                        points.append((record["step"], number))
            if points:
                found[name, kind] = tuple(map(list, zip(*points, strict=True)))
    return found  # type: ignore[return-value]


def _mean_iou(record: Mapping[str, object]) -> float:
    """Return the mean IoU of the attention maps that a line has one of."""
    maps: Any = record["attention"]
    found = [fit["iou"] for fit in maps.values() if _is_number(fit["iou"])]
    return sum(found) / len(found) if found else math.nan


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _style(place: int, kind: str) -> dict[str, Any]:
    """Return how the curve of a kind is drawn, of the run at a place."""
    return {**LINES[place % len(LINES)], "marker": _KINDS[kind][1] or None, "linewidth": 1.0}


def _legend(figure: Figure, used: Sequence[tuple[str, str]], names: Sequence[str]) -> None:
    """Explain the curves above the figure, those of a run in one column."""
    from matplotlib.lines import Line2D

    handles = []
    for name, kind in sorted(
        used, key=lambda one: (names.index(one[0]), list(_KINDS).index(one[1]))
    ):
        words = [name] if len(names) > 1 else []
        label = ", ".join([*words, _KINDS[kind][0] or "training"])
        handles.append(Line2D([], [], label=label, **_style(names.index(name), kind)))
    if handles:
        columns = 3 if figure.get_figwidth() * INCH >= 150 else 1
        room = figure.get_figwidth() * INCH / columns - 14
        labels = [fitted(str(one.get_label()), room) for one in handles]
        figure.legend(handles, labels, loc="outside upper left", ncols=columns)
