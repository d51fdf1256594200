"""Style of every plot: colours, sizes in mm, figures without pyplot, and files.

Colours are those of Okabe and Ito, which readers of any colour vision tell apart; what they say is
said by a line's style, a marker or a sign, too.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

from mmga.common.errors import UserError
from mmga.common.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMN, PAGE = 88.0, 180.0
"""Widths in mm of a column and of a page of a paper."""
INCH, POINT = 25.4, 25.4 / 72
"""Lengths in mm."""
_HIGHEST = 7000
"""Height in mm that a PNG can have."""
FORMATS = ("png", "svg", "pdf")

BLACK, GREY = "#000000", "#767676"
ORANGE, SKY, GREEN = "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILLION, PURPLE = "#0072B2", "#D55E00", "#CC79A7"
_STYLES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 0.6)), (0, (8, 2)))
LINES: list[dict[str, Any]] = [
    {"color": colour, "linestyle": style}
    for colour, style in zip(
        (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK), _STYLES, strict=True
    )
]
"""Colours and styles of lines, in their order; more lines begin again."""
MARKERS = "os^DvPX<>*"

TEXT, SMALL = 8.0, 7.0
"""Sizes of type, in points."""

_RC: dict[str, Any] = {
    "font.size": TEXT,
    "axes.titlesize": TEXT,
    "axes.labelsize": TEXT,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "legend.fontsize": SMALL,
    "legend.frameon": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E3E3E3",
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.3,
    "lines.markersize": 4.0,
    "image.cmap": "cividis",
    "image.interpolation": "nearest",
    "text.parse_math": False,  # names may hold dollar signs
    "savefig.dpi": 220,
    "savefig.facecolor": "white",
    "pdf.fonttype": 42,  # text that journals accept and programs can edit
    "svg.hashsalt": "mmga",  # the same plot is the same file
}

Given = ParamSpec("Given")


def styled(draw: Callable[Given, Figure]) -> Callable[Given, Figure]:
    """Draw in this style, whatever the settings of the program that calls.

    Raises:
        UserError: matplotlib is not installed.
    """

    @functools.wraps(draw)
    def inside(*args: Given.args, **kwargs: Given.kwargs) -> Figure:
        with _style():
            return draw(*args, **kwargs)

    return inside


def need_matplotlib(what: str = "drawing") -> None:
    """Raise a `UserError` where matplotlib is not installed, which says what needs it."""
    try:
        import matplotlib.style  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"{what} needs matplotlib, which is not installed: pip install 'mmga[train]'"
        ) from error


@contextmanager
def _style() -> Iterator[None]:
    need_matplotlib()
    import matplotlib.style

    with matplotlib.style.context(["default", _RC]), warnings.catch_warnings():
        # Letters that the font lacks are drawn as boxes.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def new_figure(width: float, height: float, *, constrained: bool = True) -> Figure:
    """Return an empty figure of a size in mm; matplotlib places its axes where `constrained`."""
    from matplotlib.figure import Figure

    if not 20 <= width <= 1000:
        raise UserError(f"width: expected from 20 to 1000 mm, found {width:g}")
    if height > _HIGHEST:
        raise UserError(
            f"the picture would be {height:.0f} mm high, more than {_HIGHEST}; ask for fewer rows"
        )
    size = width / INCH, height / INCH
    return Figure(figsize=size, layout="constrained" if constrained else None)


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure as .png, .svg or .pdf, by the suffix; the same figure gives the same bytes.

    Raises:
        UserError: another suffix, or the file cannot be written.
    """
    kind = Path(path).suffix.lower().removeprefix(".")
    if kind not in FORMATS:
        raise UserError(f"{path}: expected a name that ends in .png, .svg or .pdf")
    dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    with _style(), atomic_path(path) as temporary:
        figure.savefig(temporary, metadata=dates.get(kind))


def shortened(text: str, most: int) -> str:
    """Return a text of at most so many characters, without its middle where it is longer."""
    if len(text) <= most:
        return text
    kept = max(most - 1, 1)
    return f"{text[: kept - kept // 2]}…{text[len(text) - kept // 2 :]}"


def text_width(line: str, size: float) -> float:
    """Return the width in mm of a line of text at a size in points."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    found = text_to_path.get_text_width_height_descent(line, FontProperties(size=size), False)
    return float(found[0]) * POINT


def fitted(line: str, room: float, size: float = SMALL) -> str:
    """Return a line of text, shortened to a room in mm at a size in points."""
    short, most = line, len(line)
    while most > 1 and text_width(short, size) > room:
        most = min(most - 1, int(most * room / text_width(short, size)) + 1)
        short = shortened(line, most)
    return short


def legend_above(figure: Figure, axes: Axes) -> None:
    """Add a legend of one axes above all of the figure, which grows by its height."""
    handles, labels = axes.get_legend_handles_labels()
    width, height = figure.get_size_inches()
    names = [fitted(label, width * INCH - 14) for label in labels]
    figure.set_size_inches(width, height + 4.2 * len(names) / INCH)
    figure.legend(handles, names, loc="outside upper left")


def percent(value: float, _: object = None) -> str:
    """Return a share as per cent, as it stands at an axis."""
    return f"{100 * value:.6g}%"
