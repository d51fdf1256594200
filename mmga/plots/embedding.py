"""A map of features in two dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mmga.common import ids
from mmga.common.errors import UserError, whole_number
from mmga.ops.distance import unit_rows
from mmga.plots.style import (
    GREY,
    LINES,
    MARKERS,
    PAGE,
    SMALL,
    fitted,
    new_figure,
    styled,
)
from mmga.retrieval.features import JUNK, UNKNOWN, Features
from mmga.retrieval.features.features import common_labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NAMED = 7
"""Identities or cameras with a colour of their own; all others are grey."""


@styled
def embedding_map(
    features: Features,
    others: Features | None = None,
    *,
    points: int = 2000,
    seed: int = 0,
    width: float = PAGE,
) -> Figure:
    """Draw features at their first two principal components, by identity and by camera.

    The identities, or cameras, with the most rows have a colour and a marker of their own. Features
    of equal identity should stand together, those of equal camera should not.

    Args:
        features: each row is normalised to length 1; junk is left out.
        others: further rows of the same kind, such as the gallery beside the queries.
        points: rows that are drawn at most, by the seed.
        seed: of which rows these are.
        width: of the figure, in mm.

    Raises:
        UserError: there are fewer than three rows, the sides do not fit each other, or matplotlib
            is not installed.
    """
    sides = [features] if others is None else [features, others]
    pids, pid_names = _common("pids", sides)
    rows = np.flatnonzero(pids != JUNK)
    if whole_number("points", points) < 3 or len(rows) < 3:
        raise UserError(f"points: expected three rows at least, found {min(points, len(rows))}")
    if len(rows) > points:
        rows = np.sort(np.random.default_rng(seed).choice(rows, points, replace=False))
    places, shares = principal_components(unit_rows(_rows(sides, rows).flatten(1)))
    panels = [("identity", pids[rows], pid_names)]
    if all(side.camids is not None for side in sides):
        camids, camid_names = _common("camids", sides)
        panels.append(("camera", camids[rows], camid_names))
    figure = new_figure(width if len(panels) > 1 else width / 2, width / 2 + 16)
    drawn = figure.subplots(1, len(panels), squeeze=False, sharex=True, sharey=True)[0]
    for axes, (name, codes, names) in zip(drawn, panels, strict=True):
        _scatter(axes, places, codes, names)
        axes.set_xlabel(f"first component ({shares[0]:.1%} of the variance)")
        room = width / 2 / 4 - 8
        handles, labels = axes.get_legend_handles_labels()
        axes.legend(
            handles,
            [fitted(label, room) for label in labels],
            title=f"{name} (of {len(np.unique(codes[codes != UNKNOWN]))})",
            title_fontsize=SMALL,
            loc="lower center",
            bbox_to_anchor=(0.5, 1),
            ncols=4,
            handletextpad=0.1,
            markerscale=1.4,
            columnspacing=0.8,
        )
    drawn[0].set_ylabel(f"second component ({shares[1]:.1%} of the variance)")
    return figure


def _common(name: str, sides: Sequence[Features]) -> tuple[np.ndarray, np.ndarray | None]:
    """Return pids or camids of all rows in one numbering, and their names."""
    names = f"{name.removesuffix('s')}_names"
    one, other, words = common_labels(
        name,
        *(getattr(side, key) for side in (sides[0], sides[-1]) for key in (name, names)),
    )
    return np.concatenate((one, other)[: len(sides)]), words


def _rows(sides: Sequence[Features], rows: np.ndarray) -> Tensor:
    """Return rows of all sides as they are numbered one after the other, float32."""
    own = len(sides[0])
    if len({tuple(side.rows.shape[1:]) for side in sides}) > 1:
        raise UserError(f"others: expected rows of {sides[0].dimension} values, as the first has")
    taken = [sides[0].rows.take(torch.from_numpy(rows[rows < own]))]
    taken += [side.rows.take(torch.from_numpy(rows[rows >= own] - own)) for side in sides[1:]]
    return torch.cat([found.float().cpu() for found in taken])


def _scatter(axes: Axes, places: np.ndarray, codes: np.ndarray, names: np.ndarray | None) -> None:
    """Draw places [N, 2], in grey but for the codes with the most rows."""
    named, _ = ids.most_frequent(codes, _NAMED)
    others = ~np.isin(codes, named)
    size = float(np.clip(9000 / max(1, len(codes)), 6, 14))
    if others.any():
        x, y = places[others].T
        axes.scatter(x, y, s=0.4 * size, c="#C4C4C4", linewidths=0, label="others", zorder=1)
    for place, (code, word) in enumerate(zip(named, ids.words(named, names), strict=True)):
        x, y = places[codes == code].T
        axes.scatter(
            x,
            y,
            s=size,
            c=LINES[place]["color"],
            marker=MARKERS[place],
            linewidths=0.02 * size,
            edgecolors="white",
            label=word,
            zorder=2,
        )
    axes.spines[:].set_color(GREY)
    axes.margins(0.04)


def principal_components(vectors: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return vectors at their first two principal components, and the shares of the variance.

    Args:
        vectors: float [N, D].

    Returns:
        Places float64 [N, 2], each component such that its farthest vector is positive; shares [2].
    """
    values = vectors.double().cpu()
    values = values - values.mean(0)
    wide = values.shape[1] > len(values)
    squares, axes = torch.linalg.eigh(values @ values.T if wide else values.T @ values)
    squares, axes = squares.flip(0)[:2].clamp(min=0), axes.flip(1)[:, :2]
    places = axes * squares.sqrt() if wide else values @ axes
    if places.shape[1] < 2:  # features of one value
        places = torch.nn.functional.pad(places, (0, 1))
        squares = torch.nn.functional.pad(squares, (0, 1))
    far = places.gather(0, places.abs().argmax(0, keepdim=True)).sign()
    total = values.square().sum().clamp(min=torch.finfo(torch.float64).tiny)
    return (places * far).numpy(), (squares / total).numpy()
