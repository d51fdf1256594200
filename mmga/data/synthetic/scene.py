"""What is around a person: a camera's places, things behind the person and things in front.

Positions are in pixels of the frame. A thing is a list of solids without a label, made of the same
tiles as persons: hung clothes are garments of the wardrobe, bystanders are figures who wear them.
"""

import dataclasses
import math

import numpy as np

from mmga.data.synthetic.camera import Camera
from mmga.data.synthetic.figure import View, draw_figure
from mmga.data.synthetic.garment import Fashion
from mmga.data.synthetic.person import Person
from mmga.data.synthetic.pose import draw_pose
from mmga.data.synthetic.render import Canvas, Light, Solid
from mmga.data.synthetic.streams import stream
from mmga.data.synthetic.textures import (
    PATTERNS,
    TILE_HEIGHT,
    Atlas,
    draw_colours,
    patterned,
    smooth_noise,
)

GROUND = 200
"""Row of a panorama, in pixels at 128 high, on which the person stands."""

PANORAMA = (288, 448)
"""Rows and columns of a panorama, in pixels at 128 high."""

THINGS = ("bystander", "top", "trousers", "bag", "pole", "bin", "sign", "plant")


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Stock:
    """What scenes are made of.

    Attributes:
        texels: the atlas' texels.
        tiles: numbers of tiles for boards, bags, poles; the latter half faint, as walls are.
        passers: bystanders, who share the identities' wardrobe but are none of them.
    """

    texels: np.ndarray
    tiles: list[int]
    passers: list[Person]

    def tile(self, rng: np.random.Generator) -> int:
        """Draw a tile."""
        return self.tiles[rng.integers(len(self.tiles))]

    def wall(self, rng: np.random.Generator) -> int:
        """Draw a tile for a wall or a floor, mostly a faint one."""
        half = len(self.tiles) // 2
        return self.tiles[rng.integers(half if rng.random() < 0.8 else 0, len(self.tiles))]

    def passer(self, rng: np.random.Generator) -> Person:
        """Draw a bystander."""
        return self.passers[rng.integers(len(self.passers))]


def add_tiles(atlas: Atlas, fashion: Fashion, rng: np.random.Generator, count: int) -> list[int]:
    """Put tiles for scenes into the atlas and return their numbers."""
    bold, faint = [], []
    for i in range(count // 2):
        # Every other tile keeps to the fashion of the split's clothes.
        colours = rng.permutation(fashion.colours(rng)) if i % 2 else draw_colours(rng, 2)
        pattern = PATTERNS[rng.integers(len(PATTERNS))] if rng.random() < 0.8 else "plain"
        bold.append(atlas.add(patterned(pattern, colours[:2], rng)))
        colours = fashion.colours(rng).copy() if i % 2 else draw_colours(rng, 2)
        colours[0] += 0.4 * (colours[0].mean() - colours[0])
        colours[1] = 0.75 * colours[0] + 0.25 * colours[1]
        pattern = PATTERNS[rng.integers(len(PATTERNS))]
        faint.append(atlas.add(patterned(pattern, colours, rng)))
    return bold + faint


def board(
    tile: int,
    left: float,
    right: float,
    top: float,
    bottom: float,
    texel: float = 1.0,
    crease: int = 0,
    gain: float = 1.0,
) -> Solid:
    """Return a flat upright rectangle; `texel` is the size of one texel in pixels."""
    middle, half = (left + right) / 2, (right - left) / 2
    return Solid(
        (middle, bottom),
        (middle, top),
        (half, half),
        tile,
        rows=(0.0, max((bottom - top) / (texel * TILE_HEIGHT), 0.05)),
        caps=(0.02, 0.02),
        span=half / texel * (2 * np.pi / 64),
        folds=0.06,
        crease=crease,
        gain=gain,
    )


def draw_panorama(stock: Stock, camera: Camera, unit: float, *key: int | str) -> np.ndarray:
    """Draw a place that a camera looks at.

    Args:
        stock: what to build it from.
        camera: decides how much of the ground is seen.
        unit: pixels per pixel of a picture 128 high.
        key: key of the stream.

    Returns:
        uint8 [PANORAMA[0] * unit, PANORAMA[1] * unit, 3].
    """
    rng = stream(*key)
    height, width = (round(side * unit) for side in PANORAMA)
    # The steeper a camera looks, the higher in the picture the ground ends.
    horizon = (GROUND - 12 - rng.uniform(0.4, 1.3) * 190 * camera.pitch) * unit
    light = Light(0.75, 0.0, 0.2, 0.3)
    canvas = Canvas(np.full((height, width, 3), 128, np.float32))
    texel = rng.uniform(1.0, 2.5) * unit
    solids = [
        board(stock.wall(rng), -2, width + 2, -2, height + 2, texel, int(rng.integers(128))),
        board(stock.wall(rng), -2, width + 2, -2, horizon, texel, int(rng.integers(128)), 0.95),
    ]
    for _ in range(rng.integers(3, 7)):
        middle, half = rng.uniform(0, width), rng.uniform(10, 40) * unit
        top = horizon - rng.uniform(40, 130) * unit
        solids.append(
            board(
                stock.tile(rng),
                middle - half,
                middle + half,
                top,
                horizon,
                rng.uniform(0.8, 2.0) * unit,
                int(rng.integers(128)),
                rng.uniform(0.7, 1.1),
            )
        )
    for _ in range(rng.integers(3, 8)):
        middle, base = rng.uniform(0, width), horizon - rng.uniform(5, 90) * unit
        half, tall = rng.uniform(4, 18) * unit, rng.uniform(8, 40) * unit
        solids.append(
            board(
                stock.tile(rng),
                middle - half,
                middle + half,
                base - tall,
                base,
                rng.uniform(0.6, 1.5) * unit,
                int(rng.integers(128)),
                rng.uniform(0.6, 1.15),
            )
        )
    # Markings on the ground.
    for _ in range(rng.integers(2, 6)):
        middle, row = rng.uniform(0, width), rng.uniform(horizon, height)
        half, tall = rng.uniform(20, 160) * unit, rng.uniform(2, 14) * unit
        solids.append(
            board(
                stock.tile(rng),
                middle - half,
                middle + half,
                row,
                row + tall,
                2 * unit,
                int(rng.integers(128)),
                0.95,
            )
        )
    spots = np.sort(rng.uniform(horizon, (GROUND + 10) * unit, rng.integers(5, 12)))
    for foot in spots.tolist():
        kind = THINGS[rng.integers(1, len(THINGS))]
        scale = rng.uniform(85, 125) * unit
        solids += draw_thing(rng, stock, kind, (rng.uniform(0, width), foot), scale, camera.pitch)
    canvas.paint(solids, stock.texels, light)
    stains = 1 + 0.06 * smooth_noise(rng, height, width, max(1, round(12 * unit)))
    return np.clip(canvas.colour * stains[..., None], 0, 255).astype(np.uint8)


def look(
    panorama: np.ndarray,
    size: tuple[int, int],
    origin: tuple[float, float],
    zoom: float,
    spot: tuple[float, float],
) -> np.ndarray:
    """Cut a frame out of a panorama, interpolated.

    Beyond its edges a panorama goes on as its mirror image, so that there always is scene.

    Args:
        panorama: uint8 [., ., 3].
        size: (H, W) of the frame.
        origin: pixel (x, y) of the frame that shows `spot`.
        zoom: frame pixels per panorama pixel.
        spot: pixel (x, y) of the panorama.

    Returns:
        float32 [H, W, 3].
    """
    rows = spot[1] + (np.arange(size[0]) - origin[1]) / zoom
    columns = spot[0] + (np.arange(size[1]) - origin[0]) / zoom
    upper, lower, down = _neighbours(rows, panorama.shape[0])
    left, right, across = _neighbours(columns, panorama.shape[1])
    first = int(min(left.min(), right.min()))
    strip = panorama[:, first : int(max(left.max(), right.max())) + 1]
    above = strip[upper].astype(np.float32)
    above += down[:, None, None] * (strip[lower] - above)
    frame = above.take(left - first, axis=1)
    frame += across[:, None] * (above.take(right - first, axis=1) - frame)
    return frame


def _neighbours(places: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    base = np.floor(places)
    share = (places - base).astype(np.float32)
    low = base.astype(np.int64)

    def fold(index: np.ndarray) -> np.ndarray:
        index = index % (2 * size)
        return np.where(index < size, index, 2 * size - 1 - index)

    return fold(low), fold(low + 1), share


def draw_thing(
    rng: np.random.Generator,
    stock: Stock,
    kind: str,
    foot: tuple[float, float],
    scale: float,
    pitch: float,
) -> list[Solid]:
    """Draw something as large as it would be beside a person.

    Args:
        rng: the stream of things.
        stock: what to make it of.
        kind: one of THINGS.
        foot: pixel (x, y) where it stands.
        scale: height of a person there, in pixels.
        pitch: of the camera.
    """
    x, y = foot
    crease = int(rng.integers(128))
    if kind == "bystander":
        view = View(rng.uniform(0, 2 * math.pi), pitch)
        pose = draw_pose(rng, rng.choice([0.0, 1.5]))
        return draw_figure(stock.passer(rng), pose, view, foot, scale, crease, body=False)
    if kind == "top":
        return _hung_top(rng, stock, x, y - rng.uniform(0.35, 0.8) * scale, scale, crease)
    if kind == "trousers":
        return _hung_trousers(rng, stock, x, y - rng.uniform(0.1, 0.6) * scale, scale, crease)
    if kind == "bag":
        half, tall = rng.uniform(0.05, 0.1) * scale, rng.uniform(0.12, 0.26) * scale
        base = y - rng.choice([0.0, 0.4]) * scale
        bag = Solid(
            (x, base),
            (x, base - tall),
            (half, half, 0.85 * half),
            stock.tile(rng),
            angle=rng.uniform(-1, 1),
            caps=(0.4, 0.5),
            folds=0.06,
            crease=crease,
        )
        strap = Solid(
            (x, base - tall), (x, base - 1.5 * tall), (0.3 * half, 0.1 * half), stock.tile(rng)
        )
        return [strap, bag]
    if kind == "pole":
        half = rng.uniform(0.015, 0.045) * scale
        return [
            Solid(
                (x, y),
                (x, y - 2.5 * scale),
                (half, half),
                stock.tile(rng),
                caps=(0.2, 0.2),
                rows=(0.0, 4.0),
                folds=0.04,
                crease=crease,
            )
        ]
    if kind == "bin":
        half, tall = rng.uniform(0.08, 0.2) * scale, rng.uniform(0.25, 0.5) * scale
        return [
            Solid(
                (x, y),
                (x, y - tall),
                (0.9 * half, half),
                stock.tile(rng),
                angle=rng.uniform(-3, 3),
                caps=(0.25, 0.25),
                folds=0.06,
                crease=crease,
            )
        ]
    if kind == "sign":
        half, tall = rng.uniform(0.08, 0.25) * scale, rng.uniform(0.2, 0.6) * scale
        base = y - rng.choice([0.0, 0.5]) * scale
        return [board(stock.tile(rng), x - half, x + half, base - tall, base, scale / 112, crease)]
    leaves: list[Solid] = []
    tile = stock.tile(rng)
    for _ in range(rng.integers(3, 6)):
        tip = (x + rng.normal(0, 0.1) * scale, y - rng.uniform(0.2, 0.7) * scale)
        leaves.append(
            Solid(
                (x, y),
                tip,
                (0.02 * scale, 0.06 * scale, 0.02 * scale),
                tile,
                folds=0.2,
                crease=crease + len(leaves),
            )
        )
    return leaves


def _hung_top(
    rng: np.random.Generator, stock: Stock, x: float, low: float, scale: float, crease: int
) -> list[Solid]:
    person = stock.passer(rng)
    top = person.top
    wide, tall = rng.uniform(0.07, 0.11) * scale, (0.34 + top.hem) * scale
    angle = float(rng.choice([0.0, math.pi])) + rng.normal(0, 0.4)
    drop = rng.uniform(0.1, 0.3) if top.length >= 2 else rng.uniform(0.05, 0.12)
    parts = []
    for sign in (-1, 1):
        shoulder = (x + sign * 0.9 * wide, low - 0.88 * tall)
        cuff = (shoulder[0] + sign * rng.uniform(0.02, 0.1) * scale, shoulder[1] + drop * scale)
        parts.append(
            Solid(
                cuff,
                shoulder,
                (0.026 * scale, 0.034 * scale),
                top.sleeve,
                angle=angle,
                caps=(0.2, 0.8),
                folds=0.12,
                crease=crease + sign,
            )
        )
    trunk = Solid(
        (x, low),
        (x, low - tall),
        tuple(wide * w for w in (1, 1, 0.97, 0.97, 1, 1.02, 1.02, 0.9, 0.3)),
        person.torso_tile,
        angle=angle,
        caps=(0.15, 0.4),
        folds=0.12,
        crease=crease,
    )
    return [*parts, trunk]


def _hung_trousers(
    rng: np.random.Generator, stock: Stock, x: float, low: float, scale: float, crease: int
) -> list[Solid]:
    bottom = stock.passer(rng).bottom
    tall = (0.48 if bottom.length >= 2 else 0.26) * scale
    angle = float(rng.choice([0.0, math.pi])) + rng.normal(0, 0.4)
    if bottom.skirt:
        return [
            Solid(
                (x, low),
                (x, low - 0.28 * scale),
                (0.12 * scale, 0.08 * scale),
                bottom.tile,
                angle=angle,
                caps=(0.15, 0.15),
                folds=0.14,
                crease=crease,
            )
        ]
    legs = [
        Solid(
            (x + sign * rng.uniform(0.03, 0.07) * scale, low),
            (x + sign * 0.035 * scale, low - tall),
            (0.032 * scale, 0.05 * scale),
            bottom.tile,
            angle=angle,
            caps=(0.15, 0.3),
            folds=0.12,
            crease=crease + sign,
        )
        for sign in (-1, 1)
    ]
    return legs


def draw_clutter(
    rng: np.random.Generator,
    stock: Stock,
    level: float,
    origin: tuple[float, float],
    scale: float,
    pitch: float,
) -> list[Solid]:
    """Draw things beside and behind a person, more of them and closer with the level.

    Args:
        rng: the stream of clutter.
        stock: what to make it of.
        level: 0 for none, up to 3.
        origin: pixel (x, y) where the person stands.
        scale: height of the person in pixels.
        pitch: of the camera.
    """
    if level <= 0:
        return []
    count = max(1, round(1.6 * level + rng.uniform(-0.5, 0.5)))
    # Drawn from far to near: a thing stands higher in the picture the farther it is.
    distances = np.sort(rng.uniform(0.0, 1.0, count))[::-1]
    solids: list[Solid] = []
    for distance in distances.tolist():
        kind = "bystander" if rng.random() < 0.4 else THINGS[rng.integers(1, len(THINGS))]
        side = rng.choice([-1, 1]) * rng.uniform(0.06, 0.34)
        foot = (
            origin[0] + side * scale,
            origin[1] - (0.02 + 0.35 * math.sin(pitch) * distance) * scale,
        )
        size = scale * rng.uniform(0.85, 1.1) * (1 - 0.2 * distance)
        solids += draw_thing(rng, stock, kind, foot, size, pitch)
    return solids


OCCLUDERS = ("bystander", "post", "low", "side", "plants", "railing")


def draw_occluders(
    rng: np.random.Generator,
    stock: Stock,
    level: float,
    box: tuple[float, float, float, float],
    scale: float,
    pitch: float,
) -> list[Solid]:
    """Draw things in front of a person that hide about 15% of it per level.

    Args:
        rng: the stream of occluders.
        stock: what to make them of.
        level: 0 for none, up to 3.
        box: of the person, pixels (left, top, right, bottom).
        scale: height of the person in pixels.
        pitch: of the camera.
    """
    if level <= 0:
        return []
    left, top, right, bottom = box
    share = 0.15 * level * rng.uniform(0.8, 1.2)
    kind = OCCLUDERS[rng.integers(len(OCCLUDERS))]
    side = int(rng.choice([-1, 1]))
    crease = int(rng.integers(128))
    tile = stock.tile(rng)
    width, height = right - left, bottom - top
    edge = left if side < 0 else right
    if kind == "low":
        line = bottom - share * height
        return [
            board(
                tile,
                left - scale,
                right + scale,
                line,
                bottom + scale,
                scale / 112,
                crease,
            )
        ]
    if kind == "side":
        inner = edge - side * share * width
        outer = edge + side * scale
        line = top - scale if rng.random() < 0.5 else top + rng.uniform(0.0, 0.25) * height
        return [
            board(
                tile,
                min(inner, outer),
                max(inner, outer),
                line,
                bottom + scale,
                scale / 112,
                crease,
            )
        ]
    if kind == "post":
        half = share * width * 0.45
        x = left + rng.uniform(0.25, 0.75) * width
        return [
            Solid(
                (x, bottom + scale),
                (x, top - scale),
                (half, half),
                tile,
                rows=(0.0, 6.0),
                folds=0.05,
                crease=crease,
            )
        ]
    if kind == "railing":
        line = bottom - min(0.3 + 0.6 * share, 0.75) * height
        gap = 0.09 * scale
        half = gap * min(0.12 + 0.6 * share, 0.42)
        start = left - scale + rng.uniform(0, gap)
        bars = [
            Solid(
                (x, bottom + scale),
                (x, line),
                (half, half),
                tile,
                caps=(0.1, 0.1),
                folds=0.04,
                crease=crease,
            )
            for x in np.arange(start, right + scale, gap).tolist()
            if left - 0.3 * scale < x < right + 0.3 * scale
        ]
        rail = board(
            tile, left - scale, right + scale, line - 0.03 * scale, line + 0.02 * scale, 1.0, crease
        )
        return [*bars, rail]
    if kind == "plants":
        solids: list[Solid] = []
        for _ in range(round(2 + 3 * level)):
            foot = (left + rng.uniform(-0.1, 1.1) * width, bottom + 0.15 * scale)
            solids += draw_thing(rng, stock, "plant", foot, scale * (0.8 + 0.25 * level), pitch)
        return solids
    foot = (edge + side * (0.12 - 0.5 * share) * scale, bottom + rng.uniform(0.02, 0.1) * scale)
    return draw_thing(rng, stock, "bystander", foot, scale * rng.uniform(1.0, 1.15), pitch)
