"""Curves of reports: CMC, ROC, DET, and the distances that they count."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch

from mmga.common.errors import UserError, whole_number
from mmga.plots.style import (
    BLACK,
    BLUE,
    COLUMN,
    GREY,
    LINES,
    MARKERS,
    VERMILLION,
    legend_above,
    new_figure,
    percent,
    styled,
)
from mmga.retrieval.metrics.report import Figures, Report
from mmga.retrieval.metrics.verification import Counts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Reports = Report | Mapping[str, Report]
"""One report, or several by the names that a legend gives them."""

_POINTS = 2000
"""Points that a curve is drawn with."""
_SHOWN = 0.95
"""Largest rate of a DET curve."""
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@styled
def cmc(reports: Reports, *, ranks: int = 20, width: float = COLUMN) -> Figure:
    """Draw CMC: the share of queries whose first match is at a rank or better.

    Of a report that was re-ranked, both curves are drawn.

    Args:
        reports: one, or several by name.
        ranks: length of the axis.
        width: of the figure, in mm.

    Raises:
        UserError: a value is out of range, or matplotlib is not installed.
    """
    if whole_number("ranks", ranks) < 1:
        raise UserError(f"ranks: expected at least 1, found {ranks}")
    figure = new_figure(width, 0.6 * width)
    axes = figure.add_subplot()
    for place, (name, figures) in enumerate(_rankings(reports)):
        curve = figures.cmc[:ranks]
        axes.plot(
            np.arange(1, len(curve) + 1),
            curve,
            **LINES[place % len(LINES)],
            marker=MARKERS[place % len(MARKERS)],
            markevery=[at - 1 for at in (1, 5, 10, 20, 50) if at <= len(curve)],
            label=f"{name}: rank-1 {curve[0]:.1%}, mAP {figures.mAP:.1%}",
        )
    axes.set_xlabel("rank")
    axes.set_ylabel("queries with a match so far")
    ticks = [at for at in (1, 5, 10, 20, 30, 40, 50) if at <= ranks]
    axes.set_xticks(ticks if len(ticks) > 1 else range(1, ranks + 1))
    axes.yaxis.set_major_formatter(percent)
    low, _ = axes.get_ylim()
    axes.set_ylim(max(low, 0), 1.01)
    legend_above(figure, axes)
    return figure


@styled
def roc(reports: Reports, *, width: float = COLUMN) -> Figure:
    """Draw ROC: genuine pairs that a threshold accepts, against impostor pairs that it accepts.

    Args:
        reports: one, or several by name, evaluated with ``verification=True``.
        width: of the figure, in mm.

    Raises:
        UserError: a report counts no pairs, or matplotlib is not installed.
    """
    figure = new_figure(width, 0.62 * width)
    axes = figure.add_subplot()
    least = 1.0
    for place, (name, report, counts) in enumerate(_counted(reports)):
        false, true = rates(counts)
        least = min(least, 1 / counts.impostors)
        label = f"{name}: EER {report.extra['verification']['eer']:.2%}"
        axes.plot(false, true, **LINES[place % len(LINES)], label=label)
    low = 10 ** np.floor(np.log10(least))
    axes.plot(at := np.geomspace(low, 1, 200), at, color=GREY, linewidth=0.8, label="chance")
    axes.set_xscale("log")
    axes.set_xlim(low, 1)
    axes.set_ylim(0, 1.01)
    _decades(axes, low)
    axes.set_xlabel("false positive rate (impostor pairs accepted)")
    axes.set_ylabel("true positive rate")
    axes.yaxis.set_major_formatter(percent)
    legend_above(figure, axes)
    return figure


@styled
def det(reports: Reports, *, width: float = COLUMN) -> Figure:
    """Draw DET: genuine pairs refused against impostor pairs accepted, both as normal deviates.

    Args:
        reports: one, or several by name, evaluated with ``verification=True``.
        width: of the figure, in mm.

    Raises:
        UserError: a report counts no pairs, or matplotlib is not installed.
    """
    figure = new_figure(width, 0.8 * width)
    axes = figure.add_subplot()
    least = [0.01, 0.01]
    for place, (name, report, counts) in enumerate(_counted(reports)):
        false, true = rates(counts)
        inside = (false > 0) & (false <= _SHOWN) & (true >= 1 - _SHOWN) & (true < 1)
        style = LINES[place % len(LINES)]
        label = f"{name}: EER {report.extra['verification']['eer']:.2%}"
        axes.plot(false[inside], 1 - true[inside], **style, label=label)
        if inside.any():
            least = [
                max(min(least[0], false[inside].min()), 1e-5),
                max(min(least[1], (1 - true[inside]).min()), 1e-5),
            ]
    axes.set_xscale("function", functions=(_deviate, _share))
    axes.set_yscale("function", functions=(_deviate, _share))
    for axis, low in zip((axes.xaxis, axes.yaxis), least, strict=True):
        axis.set_ticks(_spread(low))
        axis.set_ticks([], minor=True)
        axis.set_major_formatter(percent)
    axes.set(xlim=(least[0], _SHOWN), ylim=(least[1], _SHOWN))
    equal = np.geomspace(1e-6, 0.5, 100)
    axes.plot(equal, equal, color=GREY, linewidth=0.8, label="equal errors")
    axes.tick_params(axis="x", labelrotation=45)
    axes.set_xlabel("false positive rate (impostor pairs accepted)")
    axes.set_ylabel("false negative rate")
    legend_above(figure, axes)
    return figure


@styled
def distances(report: Report, *, bins: int = 100, width: float = COLUMN) -> Figure:
    """Draw how the distances of genuine and of impostor pairs are distributed.

    Args:
        report: evaluated with ``verification=True``.
        bins: of the histogram; pairs at infinite distance are in none.
        width: of the figure, in mm.

    Raises:
        UserError: the report counts no pairs, or matplotlib is not installed.
    """
    if whole_number("bins", bins) < 1:
        raise UserError(f"bins: expected at least 1, found {bins}")
    ((_, _, counts),) = _counted({"": report})
    figure = new_figure(width, 0.54 * width)
    axes = figure.add_subplot()
    taken = np.flatnonzero(counts.genuine[:-1] + counts.impostor[:-1])
    step = max(1, -(-(int(taken[-1]) + 1 - int(taken[0])) // bins))
    start = int(taken[0]) // step
    edges = counts.width * step * (start + np.arange(-(-int(taken[-1] + 1) // step) - start + 1))
    sides = (
        ("genuine", counts.genuine, BLUE, "-"),
        ("impostor", counts.impostor, VERMILLION, "--"),
    )
    for name, found, colour, style in sides:
        coarse = np.add.reduceat(found[:-1], np.arange(0, len(found) - 1, step))
        shares = coarse[start : start + len(edges) - 1] / max(1, found.sum())
        label = f"{name}: {found.sum():,} pairs"
        axes.stairs(shares, edges, fill=True, color=colour, alpha=0.2)
        axes.stairs(shares, edges, color=colour, linestyle=style, label=label, linewidth=1.2)
    for row in report.extra["verification"]["tpr_at_fpr"]:
        if row["fpr"] == 1e-3 and row["threshold"] is not None:
            label = f"FPR 0.1%: TPR {row['tpr']:.1%}, distance {row['threshold']:.4g}"
            axes.axvline(row["threshold"], color=BLACK, linewidth=0.8, linestyle=":", label=label)
    unit = "" if report.metric is None else f"{report.metric} "
    axes.set_xlabel(f"{unit}distance")
    axes.set_ylabel("share of the pairs, by bin")
    axes.set_ylim(0)
    axes.yaxis.set_major_formatter(percent)
    legend_above(figure, axes)
    return figure


def rates(counts: Counts) -> tuple[np.ndarray, np.ndarray]:
    """Return false and true positive rates of all thresholds, ascending from (0, 0), thinned.

    Args:
        counts: pairs by distance.

    Returns:
        Both float64 [points]; some 2,000 thresholds, spread over the logarithms of both rates.
    """
    false = np.concatenate([[0], counts.false_accepts]) / counts.impostors
    true = np.concatenate([[0], counts.true_accepts]) / counts.genuines
    turns = np.flatnonzero(np.diff(false, append=2) + np.diff(true, append=2))
    false, true = false[turns], true[turns]
    if len(turns) <= _POINTS:
        return false, true
    wanted = np.geomspace(1 / counts.impostors, 1, _POINTS // 4)
    chosen = [np.searchsorted(false, wanted), np.searchsorted(1 - true[::-1], wanted)]
    chosen[1] = len(true) - 1 - chosen[1]
    chosen += [np.searchsorted(rate, np.linspace(0, 1, _POINTS // 4)) for rate in (false, true)]
    at = np.unique(np.clip(np.concatenate([[0], *chosen, [len(true) - 1]]), 0, len(true) - 1))
    return false[at], true[at]


def _rankings(reports: Reports) -> Iterator[tuple[str, Figures]]:
    """Yield the rankings of reports by the names that a legend gives them."""
    one = isinstance(reports, Report)
    for name, report in named(reports):
        yield ("plain" if one else name), report.figures
        if report.reranked is not None:
            yield ("re-ranked" if one else f"{name}, re-ranked"), report.reranked


def named(reports: Reports) -> list[tuple[str, Report]]:
    """Return reports with their names; one alone is called by its protocol.

    Raises:
        UserError: there is none.
    """
    if isinstance(reports, Report):
        return [(reports.protocol, reports)]
    if not reports:
        raise UserError("reports: expected at least one, found none")
    return list(reports.items())


def _counted(reports: Reports) -> Iterator[tuple[str, Report, Counts]]:
    """Yield reports with their counts of pairs.

    Raises:
        UserError: one has none, or no pairs of one of both kinds.
    """
    for name, report in named(reports):
        counts = report.pair_counts
        if counts is None:
            raise UserError(
                f"report {name} counts no pairs: evaluate with verification=True, under a protocol "
                "with one gallery"
            )
        for kind, found in (("genuine", counts.genuine), ("impostor", counts.impostor)):
            if not found[:-1].any():
                raise UserError(f"report {name} has no {kind} pairs at finite distances to draw")
        yield name, report, counts


def _decades(axes: Axes, low: float) -> None:
    """Mark powers of ten from `low` to 1 below axes, eight at most."""
    powers = range(round(np.log10(low)), 1)
    shown = [power for power in powers if power % -(-len(powers) // 8) == 0]
    names = [f"10{str(power).translate(_RAISED)}" if power else "1" for power in shown]
    axes.set_xticks([10.0**power for power in shown], names)
    axes.xaxis.set_minor_formatter("")


def _spread(low: float) -> list[float]:
    """Return rates from `low` up for an axis of deviates, those that have room for their text."""
    rates = [10.0**power for power in range(int(np.ceil(np.log10(low) - 1e-9)), 0)]
    rates = sorted([*rates, 0.05, 0.2, 0.4, 0.6, 0.8, _SHOWN])
    places = _deviate(np.array(rates))
    kept = [len(rates) - 1]
    for at in range(len(rates) - 2, -1, -1):
        if places[kept[-1]] - places[at] >= 0.075 * (places[-1] - places[0]):
            kept.append(at)
    return [rates[at] for at in reversed(kept)]


def _deviate(share: np.ndarray) -> np.ndarray:
    shares = torch.from_numpy(np.clip(np.asarray(share, np.float64), 1e-9, 1 - 1e-9))
    return np.asarray(torch.special.ndtri(shares).numpy())


def _share(deviate: np.ndarray) -> np.ndarray:
    return np.asarray(torch.special.ndtr(torch.from_numpy(np.asarray(deviate, np.float64))).numpy())
