"""Charts of a report page by Bokeh, as JSON that its script draws.

`bokeh.min.js` of Bokeh 3.9 is 1.27 MB and starts in a fifth of the time of `plotly.min.js`, which
is 4.8 MB in Plotly 7.1 (0.2 against 1.1 s, cold, on two busy cores). It needs no `eval`, which the
page's policy forbids. Colours are stand-ins of `COLOURS`, which the page's script replaces by those
of the light or the dark scheme. No line, marker or area is told from another by its colour alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmga.pages.feature_map import FeatureMap
from mmga.pages.pairs import Thresholds

INK, QUIET, GRID, PAPER = "#010203", "#010204", "#010205", "#010206"
"""Stand-ins for text, axes, grid and background."""
COLOURS = {
    INK: ("#1f2933", "#e6e9ee"),
    QUIET: ("#5b6875", "#9aa7b5"),
    GRID: ("#e3e7ec", "#2c343f"),
    PAPER: ("#ffffff", "#171c24"),
    "#010207": ("#0072b2", "#56b4e9"),
    "#010208": ("#d55e00", "#f0883e"),
    "#010209": ("#009e73", "#2fc79a"),
    "#01020a": ("#aa4499", "#dd88cc"),
    "#01020b": ("#8a6d00", "#e6c84f"),
    "#01020c": ("#332288", "#a79cf0"),
    "#01020d": ("#882255", "#e07aa5"),
    "#01020e": ("#44734f", "#8fce9f"),
}
"""Colours of the light and of the dark scheme; series have those of Okabe and Ito, and of Tol."""
SERIES = list(COLOURS)[4:]
_DASHES = ("solid", "dashed", "dotted", "dotdash", "dashdot")
_MARKERS = (
    *("circle", "square", "triangle", "diamond"),
    *("inverted_triangle", "hex", "star", "plus"),
)
_FONT = "system-ui, sans-serif"


@dataclass(frozen=True, slots=True)
class Curve:
    """A CMC curve.

    Attributes:
        name: stands in the legend.
        cmc: shares at ranks 1, 2, ...
    """

    name: str
    cmc: Sequence[float]


def cmc(curves: Sequence[Curve]) -> dict[str, Any]:
    """Draw CMC curves."""
    longest = max(len(curve.cmc) for curve in curves)
    lowest = min(min(curve.cmc) for curve in curves)
    plot = _figure("Rank", "Queries found by that rank", 360)
    plot.x_range.start, plot.x_range.end = 0.5, longest + 0.5
    plot.y_range.start = max(0.0, np.floor(lowest * 10 - 0.5) / 10)
    plot.y_range.end = 1.01
    _percent_axis(plot.yaxis)
    for number, curve in enumerate(curves):
        rank = list(range(1, len(curve.cmc) + 1))
        values = [float(value) for value in curve.cmc]
        colour, name = SERIES[number % len(SERIES)], _short(curve.name)
        plot.line(
            rank, values, line_color=colour, line_width=2, line_dash=_DASHES[number % len(_DASHES)],
            legend_label=name,
        )  # fmt: skip
        marks = [at for at in range(len(rank)) if at < 5 or (at + 1) % 5 == 0]
        dots = plot.scatter(
            [rank[at] for at in marks], [values[at] for at in marks], size=7,
            marker=_MARKERS[number % len(_MARKERS)], line_color=colour, fill_color=PAPER,
            line_width=1.5, legend_label=name,
        )  # fmt: skip
        _hover(plot, [dots], [("rank", "@x"), ("found", "@y{0.0%}")])
    _legend(plot, "bottom_right")
    return _item(plot)


def roc(found: Thresholds, title: str) -> dict[str, Any]:
    """Draw the rate of true accepts, or with title DET of misses, over that of false accepts."""
    false = found.false_accepts / found.impostors
    true = found.true_accepts / found.genuines
    det = title == "DET"
    seen = false > 0
    values = 1 - true if det else true
    keep = seen & (values > 0) if det else seen
    plot = _figure(
        "False positive rate",
        "False negative rate" if det else "True positive rate",
        320,
        x_axis_type="log",
        y_axis_type="log" if det else "linear",
    )
    plot.line(false[keep].tolist(), values[keep].tolist(), line_color=SERIES[0], line_width=2)
    if not det:
        _percent_axis(plot.yaxis)
    from bokeh.models import FixedTicker

    lowest = int(np.floor(np.log10(false[seen][0])))
    plot.xaxis.ticker = FixedTicker(
        ticks=[10.0**power for power in range(0, lowest - 1, -1 if lowest > -5 else -2)]
    )
    at = found.balanced
    place = [float(false[at])] if keep[at] else [], [float(values[at])] if keep[at] else []
    point = _source(title.lower(), *place)
    dot = plot.scatter(
        "x", "y", source=point, size=13, marker="diamond", fill_color=SERIES[1], line_color=PAPER,
        line_width=1.5,
    )  # fmt: skip
    _hover(plot, [dot], [("false positives", "@x{0.0000%}"), (values_name(det), "@y{0.00%}")])
    return _item(plot)


def values_name(det: bool) -> str:
    """Return what the axis of a DET or ROC curve shows."""
    return "false negatives" if det else "true positives"


def histogram(found: Thresholds) -> dict[str, Any]:
    """Draw the distances of genuine and impostor pairs, each as shares of their kind."""
    plot = _figure("Distance", "Share of the pairs of a kind", 320)
    left, right = found.edges[:-1].tolist(), found.edges[1:].tolist()
    for name, counts, total, colour, hatch in (
        ("genuine: one identity", found.genuine, found.genuines, SERIES[0], None),
        (
            *("impostor: two identities", found.impostor, found.impostors),
            *(SERIES[1], "right_diagonal_line"),
        ),
    ):  # fmt: skip
        share = (counts / total).tolist()
        bars = plot.quad(
            left=left, right=right, bottom=0, top=share, fill_color=colour, fill_alpha=0.3,
            line_color=colour, line_alpha=0.7, hatch_pattern=hatch, hatch_color=colour,
            hatch_alpha=0.7, hatch_scale=7, legend_label=name,
        )  # fmt: skip
        _hover(plot, [bars], [(name.split(":")[0], "@top{0.00%}"), ("distance", "@left to @right")])
    from bokeh.models.annotations import Span

    plot.add_layout(
        Span(
            location=float(found.threshold[found.balanced]),
            dimension="height",
            line_color=INK,
            line_width=2,
            line_dash="dashed",
            name="threshold",
        )
    )
    plot.y_range.start = 0
    # The legend stands above all bars.
    plot.y_range.end = 1.3 * max(
        (found.genuine / found.genuines).max(), (found.impostor / found.impostors).max()
    )
    _percent_axis(plot.yaxis, "0.[0]%")
    _legend(plot, "top_left")
    return _item(plot)


def scatter(found: FeatureMap, groups: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """Draw the map of the features.

    Args:
        found: the places.
        groups: group of each item, -1 for none, int64 [M].
        names: of the groups.
    """
    plot = _figure("First direction", "Second direction", 460)
    for axis in plot.axis:  # lengths along the directions mean nothing
        axis.major_label_text_color = axis.major_tick_line_color = None
    others = groups < 0
    if others.any():
        plot.scatter(
            found.place[others, 0].tolist(), found.place[others, 1].tolist(), size=4,
            marker="circle", fill_color=QUIET, line_color=None, fill_alpha=0.4,
            legend_label="others",
        )  # fmt: skip
    for number, name in enumerate(names):
        for side, size in ((1, 7), (0, 11)):
            mine = (groups == number) & (found.side == side)
            if not mine.any():
                continue
            colour = SERIES[number % len(SERIES)]
            plot.scatter(
                found.place[mine, 0].tolist(), found.place[mine, 1].tolist(), size=size,
                marker=_MARKERS[number % len(_MARKERS)], line_color=colour, line_width=1.5,
                fill_color=colour if side == 0 else PAPER, fill_alpha=0.85,
                legend_label=_short(name),
            )  # fmt: skip
    _legend(plot, "right")
    return _item(plot)


def _figure(x: str, y: str, height: int, **axes: Any) -> Any:
    from bokeh.models import DataRange1d
    from bokeh.plotting import figure

    plot = figure(
        height=height,
        sizing_mode="stretch_width",
        toolbar_location=None,
        tools="",
        x_axis_label=x,
        y_axis_label=y,
        background_fill_color=PAPER,
        border_fill_color=PAPER,
        outline_line_color=None,
        x_range=DataRange1d(),
        y_range=DataRange1d(),
        min_border_right=14,
        **axes,
    )
    for axis in plot.axis:
        axis.axis_label_text_color = axis.major_label_text_color = QUIET
        axis.axis_label_text_font = axis.major_label_text_font = _FONT
        axis.axis_label_text_font_style = "normal"
        axis.axis_label_text_font_size = "12px"
        axis.major_label_text_font_size = "11px"
        axis.axis_line_color = axis.major_tick_line_color = GRID
        axis.minor_tick_line_color = None
    for grid in plot.grid:
        grid.grid_line_color = GRID
    return plot


def _percent_axis(axes: Any, form: str = "0%") -> None:
    from bokeh.models import NumeralTickFormatter

    for axis in axes:
        axis.formatter = NumeralTickFormatter(format=form)


def _legend(plot: Any, place: str) -> None:
    for legend in plot.legend:
        legend.location = place if place != "right" else "center"
        legend.label_text_color, legend.label_text_font = INK, _FONT
        legend.label_text_font_size = "12px"
        legend.background_fill_color, legend.background_fill_alpha = PAPER, 0.85
        legend.border_line_color = None
        legend.padding, legend.spacing = 6, 2
    if place == "right" and plot.legend:
        plot.add_layout(plot.legend[0], "below")
        plot.legend[0].orientation = "horizontal"
        plot.legend[0].ncols = 3


def _hover(plot: Any, renderers: list[Any], tooltips: list[tuple[str, str]]) -> None:
    from bokeh.models import HoverTool

    plot.add_tools(HoverTool(renderers=renderers, tooltips=tooltips))


def _source(name: str, x: list[float], y: list[float]) -> Any:
    from bokeh.models import ColumnDataSource

    return ColumnDataSource({"x": x, "y": y}, name=name)


def _item(plot: Any) -> dict[str, Any]:
    from bokeh.embed import json_item

    return dict(json_item(plot))


def _short(name: str) -> str:
    return name if len(name) <= 28 else f"{name[:12]}…{name[-15:]}"


def script() -> str:
    """Return the source of Bokeh's script, from its package."""
    from bokeh.resources import Resources

    resources = Resources(mode="inline", components=["bokeh"], log_level="warn")
    return "\n".join(resources.js_raw)
