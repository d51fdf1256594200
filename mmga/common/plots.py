"""Plots: attention maps beside true masks, ranked lists with right and wrong hits.

A footer explains the colours of each sheet.

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

_PARTS = {"upper body": 1, "bottom body": 2, "body, no half": 3, "background": 0}


_LINE, _NAME = 18, 15
"""Characters of a line above a picture, of the narrow letters of numbers and of names."""


def titled(*parts: str) -> str:
    """Return parts of a title in one line, or in a line each, of long names the ends."""
    if len(line := ", ".join(parts)) <= _LINE:
        return line
    half = _NAME // 2 - 1
    return "\n".join(p if len(p) <= _NAME else f"{p[:half]}..{p[-half:]}" for p in parts)


def attention_sheet(
    path: Path,
    images: torch.Tensor,
    maps: Mapping[str, torch.Tensor],
    labels: Sequence[torch.Tensor | None],
    titles: Sequence[str],
    note: str = "",
) -> None:
    """Draw one row an image: the image, its attention maps and the true mask, if there is one.

    Each map stands alone and laid over the image. The maps are float [N, 1, h, w] in [0, 1], named
    whole0, whole, upper, bottom; `note` is a line on all of them.
    """
    plt = _pyplot()
    names = [name for name in ("whole0", "whole", "upper", "bottom") if name in maps]
    columns = 1 + 2 * len(names) + 1
    height = 2.15 * len(images) + _FOOTER
    figure, axes = plt.subplots(
        len(images), columns, figsize=(max(0.95 * columns, _LEAST), height), squeeze=False
    )
    for row, image in enumerate(images):
        picture = image.permute(1, 2, 0).numpy()
        _show(axes[row][0], picture, titles[row])
        for place, name in enumerate(names):
            alone, over = axes[row][1 + 2 * place : 3 + 2 * place]
            value = maps[name][row, 0].float()
            size = picture.shape[:2]
            large = torch.nn.functional.interpolate(value[None, None], size, mode="nearest")
            drawn = _show(alone, large[0, 0].numpy(), name if row == 0 else "", value_range=(0, 1))
            _show(over, _laid_over(picture, drawn), "over image" if row == 0 else "")
        label = labels[row]
        truth = np.zeros_like(picture) if label is None else _PART_COLOURS[label.numpy()]
        title = "no mask" if label is None else "true mask" if row == 0 else ""
        _show(axes[row][-1], truth, title)
    _footer(figure, _part_patches(), note, bar=axes[0][1].images[0] if names else None)
    _save(figure, path)


def ranked_sheet(
    path: Path,
    queries: Sequence[torch.Tensor],
    hits: Sequence[Sequence[tuple[torch.Tensor, bool | None, str]]],
    titles: Sequence[str],
) -> None:
    """Draw one row a query: the query, then its nearest gallery images framed green or red.

    The hits of a query are in order: image, whether it is a true match (None where that is not
    known), a short line.
    """
    from matplotlib.patches import Patch

    plt = _pyplot()
    columns = 1 + max(len(row) for row in hits)
    height = 2.3 * len(queries) + _FOOTER
    figure, axes = plt.subplots(
        len(queries), columns, figsize=(max(0.95 * columns, _LEAST), height), squeeze=False
    )
    for row, (query, found) in enumerate(zip(queries, hits, strict=True)):
        for axis in axes[row]:
            axis.axis("off")
        _show(axes[row][0], query.permute(1, 2, 0).numpy(), titles[row], frame=QUERY)
        for column, (image, right, line) in enumerate(found, start=1):
            colour = None if right is None else RIGHT if right else WRONG
            _show(axes[row][column], image.permute(1, 2, 0).numpy(), line, frame=colour)
    named = (("query", QUERY), ("same identity", RIGHT), ("another identity", WRONG))
    patches = [Patch(facecolor="none", edgecolor=c, linewidth=3, label=n) for n, c in named]
    _footer(
        figure,
        patches,
        "nearest first; above each: cosine distance, camera",
    )
    _save(figure, path)


def mask_sheet(
    path: Path,
    images: Sequence[torch.Tensor | None],
    labels: Sequence[torch.Tensor | None],
    titles: Sequence[str],
    columns: int = 8,
) -> None:
    """Draw images beside their masks, several pairs a row.

    Masks without images are drawn alone.
    """
    plt = _pyplot()
    columns = max(1, min(columns, len(images)))
    rows = -(-len(images) // columns)
    # Masks made from names alone need no empty columns for their images.
    each = 1 if all(image is None for image in images) else 2
    figure, axes = plt.subplots(
        rows,
        each * columns,
        figsize=(max(0.95 * each * columns, _LEAST), 2.15 * rows + _FOOTER),
        squeeze=False,
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
    _footer(figure, _part_patches())
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
) -> Any:
    low, high = value_range if value_range is not None else (None, None)
    drawn = axis.imshow(picture, vmin=low, vmax=high, cmap="magma", interpolation="nearest")
    axis.axis("on")
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_title(title, fontsize=7, pad=3)
    for spine in axis.spines.values():
        spine.set_visible(frame is not None)
        if frame is not None:
            spine.set_color(frame)
            spine.set_linewidth(3)
    return drawn


def _laid_over(picture: np.ndarray, drawn: Any) -> np.ndarray:
    """Return a picture uint8 [H, W, 3], grey, below the colours of a map drawn by `_show`."""
    colours = drawn.to_rgba(drawn.get_array(), bytes=True)[..., :3].astype(np.float32)
    grey = picture.mean(-1, keepdims=True)
    return np.asarray((0.5 * grey + 0.5 * colours).astype(np.uint8))


def _part_patches() -> list[Any]:
    from matplotlib.patches import Patch

    return [
        Patch(facecolor=_PART_COLOURS[value] / 255, edgecolor="black", linewidth=0.5, label=name)
        for name, value in _PARTS.items()
    ]


_FOOTER, _LEAST = 0.65, 4.8
"""Height of the footer in inches, and the least width of a sheet for its legend."""


def _footer(figure: Any, patches: Sequence[Any], note: str = "", bar: Any = None) -> None:
    """Write the legend at the foot of a sheet, a note above it, and the colour bar of a map."""
    width, height = figure.get_size_inches()
    figure.tight_layout(
        pad=0.4, w_pad=0.3, h_pad=0.6, rect=(0, _FOOTER / height, 1, 1 - 0.1 / height)
    )
    figure.legend(handles=patches, loc="lower left", ncols=len(patches), fontsize=7, frameon=False)
    figure.text(0.1 / width, 0.4 / height, note, fontsize=8)
    if bar is not None:
        share = min(0.25, 2.0 / width)
        place = figure.add_axes((0.97 - share, 0.38 / height, share, 0.1 / height))
        figure.colorbar(bar, cax=place, orientation="horizontal").ax.tick_params(labelsize=6)
        place.set_title("attention", fontsize=7, pad=2)


def _save(figure: Any, path: Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)
    _pyplot().close(figure)
