"""Sheets of pictures: attention maps, ranked lists, masks.

Images are uint8 [3, H, W], labels are label maps [H, W] (`mmga.data.masks`). Pictures and the text
above them have places in mm; a footer explains colours, frames and signs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from mmga.common.errors import UserError
from mmga.plots.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    INCH,
    ORANGE,
    PAGE,
    SKY,
    SMALL,
    VERMILLION,
    fitted,
    new_figure,
    styled,
    text_width,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

Verdict = Literal["right", "wrong", "excluded", "unknown"]
"""Whether a gallery item is a match of a query, left out by the protocol, or not known."""


@dataclass(frozen=True, slots=True)
class Hit:
    """A gallery item in a query's list.

    Attributes:
        image: uint8 [3, H, W], None where there is none.
        verdict: what it is to the query.
        text: one or two short lines above the picture, after the verdict's sign.
    """

    image: Tensor | None
    verdict: Verdict
    text: str


@dataclass(frozen=True, slots=True)
class _Frame:
    """How a picture is framed: colour, style of the line, width in points, sign, meaning."""

    colour: str
    style: Literal["-"] | tuple[float, Sequence[float]]
    width: float
    sign: str
    meaning: str


_QUERY = _Frame(BLUE, "-", 1.8, "", "query")
_FRAMES = {
    "right": _Frame(GREEN, "-", 2.2, "✓ ", "✓ same identity"),
    "wrong": _Frame(VERMILLION, (0, (3, 1.2)), 1.8, "✗ ", "✗ another identity"),
    "excluded": _Frame(GREY, (0, (1, 1.2)), 1.4, "- ", "- left out by the protocol"),
    "unknown": _Frame(GREY, "-", 0.6, "", "identity not known"),
}

_COLOURS = {
    "background": "#000000",
    "upper body": ORANGE,
    "bottom body": SKY,
    "other body": "#999999",
}
_PALETTE = np.array(
    [[int(colour[at : at + 2], 16) for at in (1, 3, 5)] for colour in _COLOURS.values()], np.uint8
)
"""Colours of a label map: background, upper, bottom and other body."""

_LEAST = 7.0
"""Width in mm that a picture must have."""


@styled
def attention_sheet(
    images: Sequence[Tensor],
    maps: Mapping[str, Tensor],
    labels: Sequence[Tensor | None] | None = None,
    titles: Sequence[str] | None = None,
    *,
    note: str = "",
    alone: bool = False,
    width: float = PAGE,
) -> Figure:
    """Draw images beside their attention maps, laid over them, and their true masks.

    This is Figure 1 of the paper. Several images stand side by side where the width allows it.

    Args:
        images: uint8 [3, H, W] each, of one size.
        maps: float [N, 1, h, w] in [0, 1] by the names above their columns.
        labels: true masks, None where one is not known; the column is left out where none is.
        titles: one short line an image.
        note: a line below all of them.
        alone: draw each map by itself, too, with its own pixels.
        width: of the figure, in mm.

    Raises:
        UserError: there is no image, the width is too small, or matplotlib is not installed.
    """
    labels = labels or [None] * len(images)
    known = any(label is not None for label in labels)
    each = 2 if alone else 1
    columns = 1 + each * len(maps) + known
    footer = _Footer(_label_patches() if known else (), note, bar=bool(maps))
    grid = _grid(len(images), columns, width, 1, images, footer, least=13.0)
    for place, (image, label) in enumerate(zip(images, labels, strict=True)):
        first = place < grid.side
        title = "image" if first else ""
        if titles is not None:
            title = titles[place]
        picture = _pixels(image)
        grid.axes(place, 0, title).imshow(picture)
        column = 1
        for name, found in maps.items():
            value = found[place].detach().reshape(1, 1, *found.shape[-2:]).float().cpu()
            if alone:
                height, wide = picture.shape[:2]
                axes = grid.axes(place, column, name if first else "")
                extent = (-0.5, wide - 0.5, height - 0.5, -0.5)
                axes.imshow(value[0, 0].numpy(), vmin=0, vmax=1, cmap=_MAP, extent=extent)
            over = grid.axes(place, column + each - 1, "" if alone or not first else name)
            _lay_over(over, picture, value)
            column += each
        if known:
            axes = grid.axes(place, columns - 1, "true mask" if first else "")
            _show_labels(axes, label, picture.shape[:2])
    return grid.figure


@styled
def ranked_sheet(
    queries: Sequence[Tensor | None],
    hits: Sequence[Sequence[Hit]],
    titles: Sequence[str],
    *,
    note: str = "nearest first; above each: distance, camera",
    width: float = PAGE,
) -> Figure:
    """Draw a row for each query: the query, then its nearest gallery items, framed by verdict.

    Args:
        queries: uint8 [3, H, W] each, None where there is no picture.
        hits: of each query, nearest first.
        titles: up to three short lines above each query.
        note: a line below all of them.
        width: of the figure, in mm.

    Raises:
        UserError: there is no query, the width is too small, or matplotlib is not installed.
    """
    found = [hit for row in hits for hit in row]
    verdicts = {hit.verdict for hit in found}
    frames = [_QUERY, *(frame for name, frame in _FRAMES.items() if name in verdicts)]
    footer = _Footer([_frame_patch(frame) for frame in frames], note)
    texts = [*titles, *(hit.text for hit in found)]
    lines = max((text.count("\n") + 1 for text in texts), default=1)
    columns = 1 + max((len(row) for row in hits), default=0)
    pictures = [*queries, *(hit.image for hit in found)]
    grid = _grid(len(queries), columns, width, lines, pictures, footer)
    for place, (query, row) in enumerate(zip(queries, hits, strict=True)):
        _show(grid.axes(place, 0, titles[place]), query, _QUERY)
        for column, hit in enumerate(row, start=1):
            frame = _FRAMES[hit.verdict]
            _show(grid.axes(place, column, frame.sign + hit.text), hit.image, frame)
    return grid.figure


@styled
def mask_sheet(
    images: Sequence[Tensor | None],
    labels: Sequence[Tensor | None],
    titles: Sequence[str],
    *,
    width: float = 2 * PAGE,
) -> Figure:
    """Draw images beside their masks, several pairs a row; masks without images are drawn alone.

    Args:
        images: uint8 [3, H, W] each, or None.
        labels: label maps, None where there is no mask.
        titles: one short line a pair.
        width: of the figure, in mm.

    Raises:
        UserError: there is no pair, or matplotlib is not installed.
    """
    # Masks made from names alone need no empty columns for their images.
    beside = any(image is not None for image in images)
    shapes = [*images, *labels]
    footer = _Footer(_label_patches())
    grid = _grid(len(images), 1 + beside, width, 1, shapes, footer, least=15.0)
    for place, (image, label, title) in enumerate(zip(images, labels, titles, strict=True)):
        axes = grid.axes(place, 0, title)
        if image is not None:
            axes.imshow(_pixels(image))
        shape = (2, 1) if image is None else tuple(image.shape[-2:])
        _show_labels(grid.axes(place, 1) if beside else axes, label, shape)
    return grid.figure


_MAP = "magma"
_LINE, _GAP, _BETWEEN, _MARGIN, _MOST = 2.9, 1.4, 5.0, 1.5, 24.0
"""Height of a line of text, distances of pictures and of blocks, margin, and width of a picture at
most, in mm."""


@dataclass(frozen=True, slots=True)
class _Footer:
    """What explains a sheet at its foot.

    Attributes:
        handles: of a legend.
        note: a line above it.
        bar: whether the colours of attention are explained.
    """

    handles: Sequence[Patch] = ()
    note: str = ""
    bar: bool = False

    def columns(self, width: float) -> int:
        """Return the entries of the legend that stand in one line of so many mm."""
        sizes = [9 + text_width(str(one.get_label()), SMALL) for one in self.handles]
        for rows in range(1, len(sizes)):
            # A legend is filled column by column.
            if sum(max(sizes[at : at + rows]) for at in range(0, len(sizes), rows)) <= width:
                return -(-len(sizes) // rows)
        return 1

    def height(self, width: float) -> float:
        """Return the height in mm on a sheet of a width."""
        rows = -(-len(self.handles) // self.columns(width))
        return 2 + 4 * rows + 4.5 * self.bar + 3.5 * bool(self.note)

    def draw(self, figure: Figure) -> None:
        """Draw it at the foot of a figure."""
        width, height = (INCH * size for size in figure.get_size_inches())
        top = self.height(width) - 1
        if self.note:
            text = fitted(self.note, width - 2 * _MARGIN)
            figure.text(_MARGIN / width, (top - 2.5) / height, text, size=SMALL)
            top -= 3.5
        if self.bar:
            _colour_bar(figure, _MARGIN, top - 2.8)
        if self.handles:
            figure.legend(
                handles=self.handles,
                loc="lower left",
                ncols=self.columns(width),
                borderaxespad=0.3,
                handlelength=1.4,
                handleheight=1.0,
                columnspacing=1.2,
            )


def _colour_bar(figure: Figure, left: float, bottom: float) -> None:
    """Draw the colours of attention from 0 to 1 in one line, at a place in mm."""
    from matplotlib.cm import ScalarMappable

    width, height = (INCH * size for size in figure.get_size_inches())
    place = figure.add_axes(((left + 17) / width, bottom / height, 28 / width, 2.2 / height))
    bar = figure.colorbar(ScalarMappable(cmap=_MAP), cax=place, orientation="horizontal")
    bar.set_ticks([])
    bar.outline.set_linewidth(0.4)
    for x, text in ((left, "attention   0"), (left + 46, "1")):
        figure.text(x / width, bottom / height, text, size=SMALL)


@dataclass(frozen=True, slots=True)
class _Grid:
    """Places of pictures: blocks of columns side by side, lines of text above each picture.

    Attributes:
        figure: what is drawn on.
        columns: of a block.
        side: blocks side by side.
        cell: width and height of a picture in mm.
        lines: of text above a picture.
    """

    figure: Figure
    columns: int
    side: int
    cell: tuple[float, float]
    lines: int

    def axes(self, place: int, column: int, text: str = "") -> Axes:
        """Return the axes of a picture, below its text."""
        width, height = (INCH * size for size in self.figure.get_size_inches())
        row, beside = divmod(place, self.side)
        x = _MARGIN + (beside * self.columns + column) * (self.cell[0] + _GAP)
        x += beside * (_BETWEEN - _GAP)
        y = _MARGIN + row * (self.cell[1] + self.lines * _LINE + _GAP) + self.lines * _LINE
        box = (x / width, 1 - (y + self.cell[1]) / height, self.cell[0] / width)
        axes = self.figure.add_axes((*box, self.cell[1] / height), anchor="N", xticks=[], yticks=[])
        axes.grid(False)
        axes.spines[:].set_visible(False)
        for up, line in enumerate(reversed(text.split("\n") if text else [])):
            self.figure.text(
                (x + self.cell[0] / 2) / width,
                1 - (y - 1.3 - up * _LINE) / height,
                fitted(line, self.cell[0] + 0.8 * _GAP),
                size=SMALL,
                ha="center",
            )
        return axes


def _grid(
    blocks: int,
    columns: int,
    width: float,
    lines: int,
    shapes: Sequence[Tensor | None],
    footer: _Footer,
    least: float | None = None,
) -> _Grid:
    """Return an empty sheet with its footer.

    Args:
        blocks: of pictures.
        columns: pictures of a block.
        width: of the sheet at most, in mm.
        lines: of text above each picture.
        shapes: the pictures; the highest for its width gives the shape of all places.
        footer: what explains the sheet.
        least: width of a picture in mm down to which blocks stand side by side; None: one a row.

    Raises:
        UserError: there is no block, or pictures would be too small.
    """
    if not blocks:
        raise UserError("images: expected at least one, found none")
    room = width - 2 * _MARGIN
    side = 1
    if least is not None:
        block = columns * (least + _GAP) + _BETWEEN - _GAP
        side = max(1, min(blocks, int((room + _BETWEEN) / block)))
    gaps = side * (columns - 1) * _GAP + (side - 1) * _BETWEEN
    each = min((room - gaps) / (side * columns), _MOST)
    check_room(columns, width)
    ratios = [one.shape[-2] / one.shape[-1] for one in shapes if one is not None]
    height = each * min(max(ratios, default=2.0), 4.0)
    rows = -(-blocks // side)
    width = max(side * columns * each + gaps + 2 * _MARGIN, min(width, 60.0))
    whole = rows * (height + lines * _LINE + _GAP) + 2 * _MARGIN + footer.height(width)
    figure = new_figure(width, whole, constrained=False)
    footer.draw(figure)
    return _Grid(figure, columns, side, (each, height), lines)


def check_room(pictures: int, width: float = PAGE) -> None:
    """Refuse a row of pictures that would be too small.

    Raises:
        UserError: they are, on a sheet of a width in mm.
    """
    room = int((width - 2 * _MARGIN + _GAP) / (_LEAST + _GAP))
    if pictures > room:
        raise UserError(
            f"{pictures} pictures in a row do not fit a width of {width:g} mm, which has room for "
            f"{room}; ask for fewer, or for a wider sheet"
        )


def _pixels(image: Tensor) -> np.ndarray:
    return np.asarray(image.cpu().permute(1, 2, 0).numpy())


def _show(axes: Axes, image: Tensor | None, frame: _Frame) -> None:
    """Show a picture in a frame, or a grey one where there is none."""
    if image is None:
        axes.set_facecolor("#EFEFEF")
        axes.text(
            0.5, 0.5, "no\nimage", ha="center", va="center", size=SMALL, transform=axes.transAxes
        )
    else:
        axes.imshow(_pixels(image))
    axes.spines[:].set_visible(True)
    for spine in axes.spines.values():
        spine.set(color=frame.colour, linewidth=frame.width, linestyle=frame.style)


def _lay_over(axes: Axes, picture: np.ndarray, value: Tensor) -> None:
    """Show a picture in grey, uint8 [H, W, 3], below the colours of a map [1, 1, h, w]."""
    import matplotlib

    large = torch.nn.functional.interpolate(value, picture.shape[:2], mode="bilinear")[0, 0]
    colours = matplotlib.colormaps[_MAP](large.clamp(0, 1).numpy())[..., :3]
    grey = picture.mean(-1, keepdims=True) / 255
    axes.imshow((0.4 * grey + 0.6 * colours).clip(0, 1))


def _show_labels(axes: Axes, label: Tensor | None, shape: tuple[int, ...]) -> None:
    """Show a label map in its colours, or that there is none, in a picture of a shape."""
    if label is not None:
        axes.imshow(_PALETTE[label.cpu().numpy()])
        return
    axes.imshow(np.full((*shape, 3), 239, np.uint8))
    axes.text(0.5, 0.5, "no\nmask", ha="center", va="center", size=SMALL, transform=axes.transAxes)


def _label_patches() -> list[Patch]:
    from matplotlib.patches import Patch

    return [
        Patch(facecolor=colour, edgecolor=BLACK, linewidth=0.4, label=name)
        for name, colour in _COLOURS.items()
    ]


def _frame_patch(frame: _Frame) -> Patch:
    from matplotlib.patches import Patch

    return Patch(
        facecolor="none",
        edgecolor=frame.colour,
        linestyle=frame.style,
        linewidth=0.75 * frame.width,
        label=frame.meaning,
    )
