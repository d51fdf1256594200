"""The one renderer: shaded, textured, anti-aliased solids of revolution, painted back to front.

Persons, bystanders, hung clothes, bags, walls and poles are all lists of `Solid`, so that nothing
but what they show tells a person from the scene: textures, palette, shading and edge softness are
the same code.

A solid has a straight axis and a half-width that varies along it. A pixel is located by its share t
along the axis and its signed offset s across; s over the half-width gives the angle around the
solid, hence the texel and the shading; the distance to the outline gives the coverage of the pixel.

Legend: `N` solids, `M` pixels touched by all solids' boxes together, `H W` the frame.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from mmga.data.synthetic.streams import stream
from mmga.data.synthetic.textures import TILE_HEIGHT, TILE_WIDTH, smooth_noise

STATIONS = 9
"""Half-widths given along a solid's axis, evenly spaced, the first at t = 0."""

NOT_BODY, UPPER, BOTTOM, OTHER = 0, 1, 2, 3
"""Labels of solids: of a part mask, `mmga.data.masks`."""

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
        label: NOT_BODY, UPPER, BOTTOM or OTHER.
        angle: angle around the axis that faces the camera, radians, 0 is the front.
        rows: the part of the tile that t = 0 .. 1 covers, as shares of its height; beyond 1 it
            repeats.
        caps: how far the two ends bulge, as shares of the half-width there: 1 is round, 0.1 flat.
        curved: False for boards, which show `span` radians of the tile without foreshortening.
        span: see `curved`.
        folds: strength of creases.
        crease: offset into the map of creases.
        gain: brightness of the solid.
        opacity: 1, less for shadows.
    """

    start: tuple[float, float]
    end: tuple[float, float]
    widths: Sequence[float]
    tile: int
    label: int = NOT_BODY
    angle: float = 0.0
    rows: tuple[float, float] = (0.0, 0.999)
    caps: tuple[float, float] = (1.0, 1.0)
    curved: bool = True
    span: float = np.pi
    folds: float = 0.0
    crease: int = 0
    gain: float = 1.0
    opacity: float = 1.0

    def numbers(self) -> list[float]:
        """Return all attributes as one row of the table that `paint` works on."""
        widths = self.widths
        if len(widths) == 2:
            first, last = widths
            widths = [first + (last - first) * i / (STATIONS - 1) for i in range(STATIONS)]
        elif len(widths) != STATIONS:
            places = np.linspace(0, len(widths) - 1, STATIONS)
            widths = np.interp(places, np.arange(len(widths)), widths).tolist()
        return [
            *self.start,
            *self.end,
            self.tile,
            self.label,
            self.angle,
            *self.rows,
            *self.caps,
            self.curved,
            self.span,
            self.folds,
            self.crease,
            self.gain,
            self.opacity,
            *widths,
        ]


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

    @property
    def colour(self) -> np.ndarray:
        """Colours so far, float32 [H, W, 3]."""
        return self._pixels[..., :3]

    @property
    def cover(self) -> np.ndarray:
        """Cover so far, float32 [H, W, 3]."""
        return self._pixels[..., 3:]

    def labels(self) -> np.ndarray:
        """Return the label map, uint8 [H, W]: body where it covers at least half of a pixel.

        Such a pixel belongs to the part that covers most of it.
        """
        cover = self.cover
        return np.where(cover.sum(-1) >= 0.5, cover.argmax(-1) + 1, 0).astype(np.uint8)

    def paint(self, solids: Sequence[Solid], texels: np.ndarray, light: Light) -> None:
        """Paint solids in order, each over what is there.

        The arithmetic runs over the boxes of all solids at once, because NumPy's cost per call
        would otherwise exceed that per pixel; only the blending is a loop.

        Args:
            solids: back to front.
            texels: `Atlas.texels`.
            light: the light of the scene.
        """
        if not solids:
            return
        table = np.array([solid.numbers() for solid in solids], np.float32)  # [N, 17 + STATIONS]
        height, width, _ = self._pixels.shape
        ends, widths = table[:, :4], table[:, 17:]
        reach = widths.max(1) * np.maximum(1.0, table[:, 9:11].max(1)) + 1.0  # [N]
        left = np.maximum(np.floor(np.minimum(ends[:, 0], ends[:, 2]) - reach), 0).astype(np.int64)
        top = np.maximum(np.floor(np.minimum(ends[:, 1], ends[:, 3]) - reach), 0).astype(np.int64)
        right = np.minimum(np.ceil(np.maximum(ends[:, 0], ends[:, 2]) + reach) + 1, width)
        bottom = np.minimum(np.ceil(np.maximum(ends[:, 1], ends[:, 3]) + reach) + 1, height)
        across = np.maximum(right.astype(np.int64) - left, 0)
        down = np.maximum(bottom.astype(np.int64) - top, 0)
        counts = across * down  # [N]
        first = np.concatenate(([0], np.cumsum(counts)))
        if not first[-1]:
            return
        source, alpha = _shade(table, left, top, across, down, texels, light)
        for i in np.flatnonzero(counts):
            part = slice(first[i], first[i + 1])
            box = self._pixels[top[i] : top[i] + down[i], left[i] : left[i] + across[i]]
            a = alpha[part].reshape(down[i], across[i], 1)
            box += a * (source[part].reshape(down[i], across[i], 6) - box)


def _shade(
    table: np.ndarray,
    left: np.ndarray,
    top: np.ndarray,
    across: np.ndarray,
    down: np.ndarray,
    texels: np.ndarray,
    light: Light,
) -> tuple[np.ndarray, np.ndarray]:
    """Return what each pixel of each box would be painted with.

    Args:
        table: solids, float32 [N, 17 + STATIONS].
        left: first column of each box [N].
        top: first row of each box [N].
        across: columns of each box [N].
        down: rows of each box [N].
        texels: the atlas.
        light: the light.

    Returns:
        colour and one-hot label, float32 [M, 6]; coverage, float32 [M].
    """
    axis_x, axis_y = table[:, 2] - table[:, 0], table[:, 3] - table[:, 1]
    length = np.maximum(np.hypot(axis_x, axis_y), 1e-3)
    axis_x, axis_y = axis_x / length, axis_y / length

    # Share along the axis and offset across it are linear in a row: start there, then step.
    solid_of_row = np.repeat(np.arange(len(table)), down)  # [rows of all boxes]
    row = np.arange(len(solid_of_row)) - np.repeat(np.cumsum(down) - down, down)
    dx = (left - table[:, 0])[solid_of_row]
    dy = (top - table[:, 1])[solid_of_row] + row
    ux, uy = axis_x[solid_of_row], axis_y[solid_of_row]
    wide = across[solid_of_row]
    start = np.cumsum(wide) - wide
    owner = np.repeat(solid_of_row, wide)  # [M]
    total = len(owner)
    column = (np.arange(total) - np.repeat(start, wide)).astype(np.float32)
    per_length = (axis_x / length)[solid_of_row]
    along = ((dx * ux + dy * uy) / length[solid_of_row]).astype(np.float32)
    aside = (dy * ux - dx * uy).astype(np.float32)
    t = np.repeat(along, wide) + column * np.repeat(per_length, wide)
    s = np.repeat(aside, wide) - column * np.repeat(uy, wide)

    # Nothing is painted far beside the axis or far beyond its ends.
    widest = table[:, 17:].max(1)
    ends = widest * table[:, 9:11].max(1) / length + 1.0 / length
    near = (np.abs(s) < np.repeat((widest + 1.0)[solid_of_row], wide)) & (
        np.abs(t - 0.5) < np.repeat((ends + 0.5).astype(np.float32)[solid_of_row], wide)
    )
    kept = np.flatnonzero(near)
    owner, t, s = owner[kept], t[kept], s[kept]

    # Half-width there, and the distance to the outline to first order.
    inside = np.minimum(np.maximum(t, 0.0), 1.0)
    beyond = t - inside
    caps = np.ascontiguousarray(table[:, 9:11]).reshape(-1)
    cap = caps[2 * owner + (beyond > 0)]
    lengths = length[owner]
    beyond *= lengths / cap
    place = inside * np.float32(STATIONS - 1)
    station = np.minimum(place.astype(np.int64), STATIONS - 2)
    index = owner * STATIONS + station
    stations = np.ascontiguousarray(table[:, 17:])
    low = stations.reshape(-1)[index]
    steps = np.diff(stations, axis=1, append=stations[:, -1:])
    step = steps.reshape(-1)[index]
    half = low + step * (place - station.astype(np.float32))
    distance = np.sqrt(s * s + beyond * beyond) + np.float32(1e-6)
    # On the axis itself the gradient of |s| vanishes; there any value at least 1 will do.
    slope = step * (STATIONS - 1) / lengths
    slope[beyond != 0] = 0.0
    gradient = np.sqrt((s * s + (beyond / cap) ** 2) / (distance * distance) + slope * slope)
    cover = (half - distance) / np.maximum(gradient, 1.0) + np.float32(0.5)
    painted = np.flatnonzero(cover > 0)
    owner, inside, s, half = owner[painted], inside[painted], s[painted], half[painted]
    kept = kept[painted]
    cover = np.minimum(cover[painted], 1.0) * table[:, 16][owner]

    # Texel: the angle around the solid, asin to within 0.02.
    u = np.clip(s / np.maximum(half, 0.3), -1.0, 1.0)
    square = u * u
    curved = table[:, 11][owner] > 0
    bulge = np.where(curved, 1.0 + np.float32(np.pi / 2 - 1) * square, table[:, 12][owner])
    turn = table[:, 6][owner] + u * bulge
    across_tile = (turn * np.float32(TILE_WIDTH / (2 * np.pi)) + TILE_WIDTH * 4.5).astype(np.int64)
    rows = table[:, 7:9]
    v = rows[:, 0][owner] + inside * (rows[:, 1] - rows[:, 0])[owner]
    tile_row = (v * TILE_HEIGHT).astype(np.int64)
    texel = (table[:, 4].astype(np.int64) * TILE_HEIGHT)[owner] + (tile_row & (TILE_HEIGHT - 1))
    texel = texel * TILE_WIDTH + (across_tile & (TILE_WIDTH - 1))

    # Light and creases.
    lit = light.right * u + light.up * (0.4 + 0.6 * inside) + light.front * np.sqrt(1.0 - square)
    lit = light.ambient + (1 - light.ambient) * np.clip(lit, 0.0, 1.5)
    lit = np.where(curved, lit, np.float32(0.85 * light.ambient + 0.25))
    crease = table[:, 14].astype(np.int64)[owner]
    fold = _FOLD_MAP.reshape(-1)[
        ((tile_row + crease) & (_FOLDS - 1)) * _FOLDS + ((across_tile + crease * 7) & (_FOLDS - 1))
    ]
    lit *= (1.0 + table[:, 13][owner] * fold) * table[:, 15][owner]

    marks = np.zeros((len(table), 6), np.float32)
    body = np.flatnonzero(table[:, 5])
    marks[body, table[body, 5].astype(np.int64) + 2] = 1.0
    found = marks[owner]
    found[:, :3] = texels.take(texel, axis=0)
    found[:, :3] *= lit.astype(np.float32)[:, None]
    source = np.zeros((total, 6), np.float32)
    source[kept] = found
    alpha = np.zeros(total, np.float32)
    alpha[kept] = cover
    return source, alpha
