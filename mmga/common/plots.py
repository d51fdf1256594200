"""Plots: attention maps beside true masks, ranked lists with right and wrong hits.

Every sheet is a PNG. Images are uint8 [3, H, W], labels are label maps [H, W] (`mmga.data.masks`)
and a title is one short line an image. A `UserError` is raised if matplotlib is not installed or
the file cannot be written.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmga.common.errors import UserError
from mmga.common.files import atomic_path

RIGHT, WRONG, QUERY = "#2a9d3a", "#d1342f", "#3b6fb6"
"""Frame colours of a true match, of a false one and of the query itself."""

_PART_COLOURS = np.array([[0, 0, 0], [233, 154, 44], [66, 133, 200], [150, 150, 150]], np.uint8)
"""Background, upper, bottom and other body in a drawn label map."""


def attention_sheet(
    path: Path,
    images: torch.Tensor,
    maps: Mapping[str, torch.Tensor],
    labels: Sequence[torch.Tensor | None],
    titles: Sequence[str],
) -> None:
    """Draw one row an image: the image, its attention maps and the true mask, if there is one.

    The maps are float [N, 1, h, w] in [0, 1], named whole0, whole, upper, bottom.
    """
    plt = _pyplot()
    names = [name for name in ("whole0", "whole", "upper", "bottom") if name in maps]
    columns = 1 + len(names) + 1
    figure, axes = plt.subplots(
        len(images), columns, figsize=(1.0 * columns, 1.95 * len(images)), squeeze=False
    )
    for row, image in enumerate(images):
        picture = image.permute(1, 2, 0).numpy()
        _show(axes[row][0], picture, titles[row])
        for column, name in enumerate(names, start=1):
            value = maps[name][row, 0].float()
            size = picture.shape[:2]
            large = torch.nn.functional.interpolate(value[None, None], size, mode="nearest")[0, 0]
            _show(axes[row][column], large.numpy(), name if row == 0 else "", value_range=(0, 1))
        label = labels[row]
        truth = np.zeros_like(picture) if label is None else _PART_COLOURS[label.numpy()]
        _show(axes[row][-1], truth, "" if label is not None else "no mask")
        if row == 0:
            axes[row][-1].set_title("true mask" if label is not None else "no mask", fontsize=7)
    _save(figure, path)


def ranked_sheet(
    path: Path,
    queries: Sequence[torch.Tensor],
    hits: Sequence[Sequence[tuple[torch.Tensor, bool, str]]],
    titles: Sequence[str],
) -> None:
    """Draw one row a query: the query, then its nearest gallery images framed green or red.

    The hits of a query are in order: image, whether it is a true match, a short line.
    """
    plt = _pyplot()
    columns = 1 + max(len(row) for row in hits)
    figure, axes = plt.subplots(
        len(queries), columns, figsize=(0.95 * columns, 2.15 * len(queries)), squeeze=False
    )
    for row, (query, found) in enumerate(zip(queries, hits, strict=True)):
        for axis in axes[row]:
            axis.axis("off")
        _show(axes[row][0], query.permute(1, 2, 0).numpy(), titles[row], frame=QUERY)
        for column, (image, right, line) in enumerate(found, start=1):
            colour = RIGHT if right else WRONG
            _show(axes[row][column], image.permute(1, 2, 0).numpy(), line, frame=colour)
    _save(figure, path)


def mask_sheet(
    path: Path,
    images: Sequence[torch.Tensor | None],
    labels: Sequence[torch.Tensor | None],
    titles: Sequence[str],
    columns: int = 8,
) -> None:
    """Draw images beside their masks, several pairs a row: upper orange, bottom blue, other grey.

    Masks without images are drawn alone.
    """
    plt = _pyplot()
    columns = max(1, min(columns, len(images)))
    rows = -(-len(images) // columns)
    # Masks made from names alone need no empty columns for their images.
    each = 1 if all(image is None for image in images) else 2
    figure, axes = plt.subplots(
        rows, each * columns, figsize=(0.95 * each * columns, 2.0 * rows), squeeze=False
    )
    for axis in axes.flat:
        axis.axis("off")
    for place, (image, label, title) in enumerate(zip(images, labels, titles, strict=True)):
        row, column = divmod(place, columns)
        beside = axes[row][each * column + each - 1]
        if image is not None:
            _show(axes[row][each * column], image.permute(1, 2, 0).numpy(), title)
        if label is not None:
            _show(beside, _PART_COLOURS[label.numpy()], "" if image is not None else title)
        else:
            shape = (2, 1) if image is None else tuple(image.shape[-2:])
            _show(beside, np.zeros((*shape, 3), np.uint8), "no mask")
    _save(figure, path)


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise UserError(
            "drawing needs matplotlib, which is not installed: pip install matplotlib"
        ) from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def _show(
    axis: Any,
    picture: np.ndarray,
    title: str,
    *,
    frame: str | None = None,
    value_range: tuple[float, float] | None = None,
) -> None:
    low, high = value_range if value_range is not None else (None, None)
    axis.imshow(picture, vmin=low, vmax=high, cmap="magma", interpolation="nearest")
    axis.axis("on")
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_title(title, fontsize=7, pad=3)
    for spine in axis.spines.values():
        spine.set_visible(frame is not None)
        if frame is not None:
            spine.set_color(frame)
            spine.set_linewidth(3)


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout(pad=0.4, w_pad=0.3, h_pad=0.6)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)
    _pyplot().close(figure)
