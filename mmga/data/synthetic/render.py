"""The renderer paints shaded, textured, anti-aliased solids of revolution, back to front.

Persons, bystanders, hung clothes, bags, walls and poles are all lists of `Solid`, so that no
artefact separates a person from the scene: textures, palette, shading and edge softness are the
same code.

A solid has a straight axis and a half-width that varies along it. A pixel is located by its share t
along the axis and its signed offset s across; s over the half-width gives the angle around the
solid, hence the texel and the shading; the distance to the outline gives the coverage of the pixel.

Legend: `N` solids, `M` pixels in the bounding boxes of all solids, `K` of these near a solid, `H W`
the frame.
"""

import dataclasses
import operator
from collections.abc import Sequence

import numpy as np

from mmga.data.masks import BACKGROUND
from mmga.data.synthetic.streams import stream
from mmga.data.synthetic.textures import TILE_HEIGHT, TILE_WIDTH, smooth_noise

STATIONS = 9
"""Half-widths given along a solid's axis, evenly spaced, the first at t = 0."""

Box = tuple[float, float, float, float]
"""(left, top, right, bottom) in pixels."""

_FOLDS = 128
_FOLD_MAP = np.clip(
    0.6 * smooth_noise(stream("folds", 0), _FOLDS, _FOLDS, 5)
    + 0.5 * smooth_noise(stream("folds", 1), _FOLDS, _FOLDS, 2),
    -2,
    2,
).astype(np.float32)


@dataclasses.dataclass(slots=True)
class Solid:
    """One solid in frame pixels (x to the right, y down).

    Attributes:
        start: axis at t = 0, (x, y).
        end: axis at t = 1.
        widths: half-widths at t = 0 .. 1, evenly spaced, two or more.
        tile: number of its tile in the atlas.
        label: value of the label map, BACKGROUND, UPPER, BOTTOM or OTHER (`mmga.data.masks`).
        angle: angle around the axis that faces the camera, radians, 0 is the front.
        rows: the part of the tile that t = 0 .. 1 covers, as shares of its height; beyond 1 it
            repeats.
        caps: how far the two ends bulge, as shares of the half-width there: 1 is round, 0.1 flat.
        span: 0 for a round solid; a board shows `span` radians of the tile without foreshortening.
        folds: strength of creases.
        crease: offset into the map of creases.
        gain: brightness of the solid.
    """

    start: tuple[float, float]
    end: tuple[float, float]
    widths: Sequence[float]
    tile: int
    label: int = BACKGROUND
    angle: float = 0.0
    rows: tuple[float, float] = (0.0, 0.999)
    caps: tuple[float, float] = (1.0, 1.0)
    span: float = 0.0
    folds: float = 0.0
    crease: int = 0
    gain: float = 1.0

    def __post_init__(self) -> None:
        """Resample the half-widths to STATIONS."""
        last = len(self.widths) - 1
        if last == 1:
            first, step = self.widths[0], self.widths[1] - self.widths[0]
            self.widths = [first + step * i / (STATIONS - 1) for i in range(STATIONS)]
        elif last != STATIONS - 1:
            places = np.linspace(0, last, STATIONS)
            self.widths = np.interp(places, np.arange(last + 1), self.widths).tolist()


_TABLE = np.dtype(
    [
        ("start", "f4", 2),
        ("end", "f4", 2),
        ("widths", "f4", STATIONS),
        ("tile", "i4"),
        ("label", "i4"),
        ("angle", "f4"),
        ("rows", "f4", 2),
        ("caps", "f4", 2),
        ("span", "f4"),
        ("folds", "f4"),
        ("crease", "i4"),
        ("gain", "f4"),
    ]
)
"""Solids as the rows of an array; the fields are those of `Solid`."""

_as_row = operator.attrgetter(*(field.name for field in dataclasses.fields(Solid)))


@dataclasses.dataclass(frozen=True, slots=True)
class Light:
    """A distant light: share of ambient light and direction (right, up, towards the camera)."""

    ambient: float = 0.6
    right: float = 0.3
    up: float = 0.3
    front: float = 0.6


class Canvas:
    """A frame and how much of each pixel each label covers.

    Attributes:
        colour: float32 [H, W, 3], 0 to 255.
        cover: float32 [H, W, 3], share of UPPER, BOTTOM and OTHER in each pixel; the rest is scene.
    """

    def __init__(self, colour: np.ndarray) -> None:
        height, width, _ = colour.shape
        self._pixels = np.zeros((height, width, 6), np.float32)
        self._pixels[..., :3] = colour
        self.colour, self.cover = self._pixels[..., :3], self._pixels[..., 3:]

    def labels(self) -> np.ndarray:
        """Return the label map, uint8 [H, W]: body where it covers at least half of a pixel.

        Such a pixel belongs to the part that covers most of it.
        """
        cover = self.cover
        return np.where(cover.sum(-1) >= 0.5, cover.argmax(-1) + 1, 0).astype(np.uint8)

    def paint(self, solids: Sequence[Solid], texels: np.ndarray, light: Light) -> None:
        """Paint solids in order, each over the colours so far.

        The arithmetic runs over the boxes of all solids at once, because NumPy's cost per call
        would otherwise exceed that per pixel; only the blending is a loop.

        Args:
            solids: back to front.
            texels: `Atlas.texels`.
            light: the light of the scene.
        """
        if not solids:
            return
        table = np.array([_as_row(solid) for solid in solids], _TABLE)  # [N]
        height, width, _ = self._pixels.shape
        start, end = table["start"], table["end"]
        reach = table["widths"].max(1) * np.maximum(1.0, table["caps"].max(1)) + 1.0  # [N]
        first = np.floor(np.minimum(start, end) - reach[:, None])  # [N, 2]
        last = np.ceil(np.maximum(start, end) + reach[:, None])
        corner = np.maximum(first, 0).astype(np.int64)
        size = np.minimum(last + 1, (width, height)).astype(np.int64) - corner
        size = np.maximum(size, 0)
        ends = np.cumsum(size.prod(1))
        if not ends[-1]:
            return
        source, alpha = _shade(table, corner, size, texels, light)
        for (left, top), (across, down), stop in zip(corner, size, ends, strict=True):
            part = slice(stop - across * down, stop)
            box = self._pixels[top : top + down, left : left + across]
            a = alpha[part].reshape(down, across, 1)
            box += a * (source[part].reshape(down, across, 6) - box)


def _shade(
    table: np.ndarray, corner: np.ndarray, size: np.ndarray, texels: np.ndarray, light: Light
) -> tuple[np.ndarray, np.ndarray]:
    """Return the paint of each pixel of each solid's box.

    Args:
        table: solids [N] of _TABLE.
        corner: first column and row of each box, int64 [N, 2].
        size: columns and rows of each box, int64 [N, 2].
        texels: the atlas.
        light: the light.

    Returns:
        colour and one-hot label, float32 [M, 6]; coverage, float32 [M].
    """
    place, owner, t, s = _near_pixels(table, corner, size)
    cover, inside, half = _coverage(table, owner, t, s)
    painted = np.flatnonzero(cover > 0)
    place, owner, inside = place[painted], owner[painted], inside[painted]
    across = np.clip(s[painted] / np.maximum(half[painted], 0.3), -1.0, 1.0)
    total = size.prod(1).sum()
    source = np.zeros((total, 6), np.float32)
    source[place] = _surface(table, owner, inside, across, texels, light)
    alpha = np.zeros(total, np.float32)
    alpha[place] = np.minimum(cover[painted], 1.0)
    return source, alpha


def _near_pixels(
    table: np.ndarray, corner: np.ndarray, size: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Locate the pixels of all boxes that are near the box's own solid.

    Returns:
        number of each pixel among those of all boxes, number of its solid, share t along the
        solid's axis and offset s across it, [K] each.
    """
    axis = table["end"] - table["start"]
    length = _lengths(table)
    axis /= length[:, None]
    across, down = size.T
    # t and s are linear in a row: computed at its first pixel, then stepped.
    solid = np.repeat(np.arange(len(table)), down)  # [rows of all boxes]
    dx, dy = (corner - table["start"])[solid].T
    dy = dy + _counted(down)
    ux, uy = axis[solid].T
    along = ((dx * ux + dy * uy) / length[solid]).astype(np.float32)
    aside = (dy * ux - dx * uy).astype(np.float32)
    wide = across[solid]
    column = _counted(wide).astype(np.float32)  # [M]
    t = np.repeat(along, wide) + column * np.repeat((axis[:, 0] / length)[solid], wide)
    s = np.repeat(aside, wide) - column * np.repeat(uy, wide)
    # Far beside the axis or beyond its ends there is no paint.
    widest = table["widths"].max(1)
    beyond = widest * table["caps"].max(1) / length + 1.0 / length
    beside = (np.abs(s) < np.repeat((widest + 1.0)[solid], wide)) & (
        np.abs(t - 0.5) < np.repeat((beyond + 0.5).astype(np.float32)[solid], wide)
    )
    place = np.flatnonzero(beside)
    return place, np.repeat(solid, wide)[place], t[place], s[place]


def _lengths(table: np.ndarray) -> np.ndarray:
    return np.maximum(np.hypot(*(table["end"] - table["start"]).T), np.float32(1e-3))


def _counted(counts: np.ndarray) -> np.ndarray:
    """Return 0 .. count - 1 for each count, one after the other."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)


def _coverage(
    table: np.ndarray, owner: np.ndarray, t: np.ndarray, s: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the coverage of pixels, t clipped to [0, 1] and the half-width there, [K] each.

    The distance to the outline is exact to first order.
    """
    inside = np.minimum(np.maximum(t, 0.0), 1.0)
    beyond = t - inside
    cap = np.ascontiguousarray(table["caps"]).reshape(-1)[2 * owner + (beyond > 0)]
    lengths = _lengths(table)[owner]
    beyond *= lengths / cap
    position = inside * np.float32(STATIONS - 1)
    station = np.minimum(position.astype(np.int64), STATIONS - 2)
    index = owner * STATIONS + station
    widths = np.ascontiguousarray(table["widths"])
    step = np.diff(widths, axis=1, append=widths[:, -1:]).reshape(-1)[index]
    half = widths.reshape(-1)[index] + step * (position - station.astype(np.float32))
    distance = np.sqrt(s * s + beyond * beyond) + np.float32(1e-6)
    # On the axis itself the gradient of |s| vanishes; there any value at least 1 will do.
    slope = step * (STATIONS - 1) / lengths
    slope[beyond != 0] = 0.0
    gradient = np.sqrt((s * s + (beyond / cap) ** 2) / (distance * distance) + slope * slope)
    cover = (half - distance) / np.maximum(gradient, 1.0) + np.float32(0.5)
    return cover, inside, half


def _surface(
    table: np.ndarray,
    owner: np.ndarray,
    t: np.ndarray,
    u: np.ndarray,
    texels: np.ndarray,
    light: Light,
) -> np.ndarray:
    """Return colours and one-hot labels of painted pixels, float32 [., 6].

    Args:
        table: solids [N] of _TABLE.
        owner: number of each pixel's solid.
        t: share along the axis, [0, 1].
        u: offset across the axis as a share of the half-width, [-1, 1].
        texels: the atlas.
        light: the light.
    """
    # The angle around the solid, asin to within 0.02.
    square = u * u
    span = table["span"][owner]
    curved = span == 0
    bulge = np.where(curved, 1.0 + np.float32(np.pi / 2 - 1) * square, span)
    turn = table["angle"][owner] + u * bulge
    column = (turn * np.float32(TILE_WIDTH / (2 * np.pi)) + TILE_WIDTH * 4.5).astype(np.int64)
    first, last = table["rows"].T
    row = ((first[owner] + t * (last - first)[owner]) * TILE_HEIGHT).astype(np.int64)
    texel = (table["tile"] * TILE_HEIGHT)[owner] + (row & (TILE_HEIGHT - 1))
    texel = texel * TILE_WIDTH + (column & (TILE_WIDTH - 1))

    lit = light.right * u + light.up * (0.4 + 0.6 * t) + light.front * np.sqrt(1.0 - square)
    lit = light.ambient + (1 - light.ambient) * np.clip(lit, 0.0, 1.5)
    lit = np.where(curved, lit, np.float32(0.85 * light.ambient + 0.25))
    crease = table["crease"][owner]
    fold = _FOLD_MAP[(row + crease) & (_FOLDS - 1), (column + crease * 7) & (_FOLDS - 1)]
    lit *= (1.0 + table["folds"][owner] * fold) * table["gain"][owner]

    marks = np.zeros((len(table), 6), np.float32)
    body = np.flatnonzero(table["label"])
    marks[body, table["label"][body] + 2] = 1.0
    found = marks[owner]
    found[:, :3] = texels.take(texel, axis=0)
    found[:, :3] *= lit.astype(np.float32)[:, None]
    return found
