"""The surroundings of a person: a camera's places, objects behind the person and in front.

Positions are in pixels of the frame. An object is a list of solids without a label, made of the
same tiles as persons: hung clothes are garments of the wardrobe, bystanders wear them.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from mmga.data.synthetic.appearance import Appearance
from mmga.data.synthetic.body import Spot, View, body_solids
from mmga.data.synthetic.camera import Camera
from mmga.data.synthetic.garment import Fashion
from mmga.data.synthetic.pose import sample_pose
from mmga.data.synthetic.render import Box, Canvas, Light, Solid
from mmga.data.synthetic.streams import stream
from mmga.data.synthetic.textures import (
    PATTERNS,
    TILE_HEIGHT,
    Atlas,
    patterned,
    sample_colours,
    smooth_noise,
)

GROUND = 200
"""Row of a panorama, in pixels at 128 high, on which the person stands."""

PANORAMA = (288, 448)
"""Rows and columns of a panorama, in pixels at 128 high."""

Kind: TypeAlias = "Callable[[Spot, int], list[Solid]]"
"""A kind of object: makes its solids at a spot, with an offset into the map of creases."""

OCCLUDERS = ("bystander", "post", "low", "side", "plants", "railing")


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Assets:
    """Textures and bystanders that scenes are made of.

    Attributes:
        texels: the atlas' texels.
        tiles: numbers of tiles for boards, bags, poles; the latter half faint, as walls are.
        bystanders: persons who share the identities' wardrobe but are none of them.
    """

    texels: np.ndarray
    tiles: list[int]
    bystanders: list[Appearance]

    def wall(self, rng: np.random.Generator) -> int:
        """Sample a tile for a wall or a floor, mostly a faint one."""
        half = len(self.tiles) // 2
        return self.tiles[rng.integers(half if rng.random() < 0.8 else 0, len(self.tiles))]

    def bystander(self, rng: np.random.Generator) -> Appearance:
        """Sample a bystander."""
        return self.bystanders[rng.integers(len(self.bystanders))]


def add_tiles(atlas: Atlas, fashion: Fashion, rng: np.random.Generator, count: int) -> list[int]:
    """Put tiles for scenes into the atlas and return their numbers."""
    bold, faint = [], []
    for i in range(count // 2):
        # Every other tile has the colours of the split's clothes.
        colours = rng.permutation(fashion.colours(rng)) if i % 2 else sample_colours(rng, 2)
        pattern = PATTERNS[rng.integers(len(PATTERNS))] if rng.random() < 0.8 else "plain"
        bold.append(atlas.add(patterned(pattern, colours[:2], rng)))
        colours = fashion.colours(rng).copy() if i % 2 else sample_colours(rng, 2)
        colours[0] += 0.4 * (colours[0].mean() - colours[0])
        colours[1] = 0.75 * colours[0] + 0.25 * colours[1]
        pattern = PATTERNS[rng.integers(len(PATTERNS))]
        faint.append(atlas.add(patterned(pattern, colours, rng)))
    return bold + faint


def board(tile: int, box: Box, texel: float, crease: int, gain: float = 1.0) -> Solid:
    """Return a flat upright rectangle; `texel` is the size of one texel in pixels."""
    left, top, right, bottom = box
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


def paint_panorama(assets: Assets, camera: Camera, unit: float, *key: int | str) -> np.ndarray:
    """Paint a place that a camera looks at.

    Args:
        assets: textures and bystanders.
        camera: the camera; its pitch sets how much of the ground is visible.
        unit: pixels per pixel of a picture 128 high.
        key: key of the stream.

    Returns:
        uint8 [PANORAMA[0] * unit, PANORAMA[1] * unit, 3].
    """
    rng = stream(*key)
    objects = Objects(rng, assets, camera.pitch)
    height, width = (round(side * unit) for side in PANORAMA)
    # The steeper a camera looks, the higher in the picture the ground ends.
    horizon = (GROUND - 12 - rng.uniform(0.4, 1.3) * 190 * camera.pitch) * unit
    canvas = Canvas(np.full((height, width, 3), 128, np.float32))
    texel = rng.uniform(1.0, 2.5) * unit
    solids = [
        board(assets.wall(rng), (-2, -2, width + 2, bottom), texel, objects.crease(), gain)
        for bottom, gain in ((height + 2, 1.0), (horizon, 0.95))
    ]
    for _ in range(rng.integers(3, 7)):
        middle, half = rng.uniform(0, width), rng.uniform(10, 40) * unit
        box = middle - half, horizon - rng.uniform(40, 130) * unit, middle + half, horizon
        tile, texel = objects.tile(), rng.uniform(0.8, 2.0) * unit
        solids.append(board(tile, box, texel, objects.crease(), rng.uniform(0.7, 1.1)))
    for _ in range(rng.integers(3, 8)):
        middle, base = rng.uniform(0, width), horizon - rng.uniform(5, 90) * unit
        half, tall = rng.uniform(4, 18) * unit, rng.uniform(8, 40) * unit
        box = middle - half, base - tall, middle + half, base
        tile, texel = objects.tile(), rng.uniform(0.6, 1.5) * unit
        solids.append(board(tile, box, texel, objects.crease(), rng.uniform(0.6, 1.15)))
    # Markings on the ground.
    for _ in range(rng.integers(2, 6)):
        middle, row = rng.uniform(0, width), rng.uniform(horizon, height)
        half, tall = rng.uniform(20, 160) * unit, rng.uniform(2, 14) * unit
        box = middle - half, row, middle + half, row + tall
        solids.append(board(objects.tile(), box, 2 * unit, objects.crease(), 0.95))
    feet = np.sort(rng.uniform(horizon, (GROUND + 10) * unit, rng.integers(5, 12)))
    for foot in feet.tolist():
        kind = objects.kind()
        scale = rng.uniform(85, 125) * unit
        solids += kind(Spot(rng.uniform(0, width), foot, scale), objects.crease())
    canvas.paint(solids, assets.texels, Light(0.75, 0.0, 0.2, 0.3))
    stains = 1 + 0.06 * smooth_noise(rng, height, width, max(1, round(12 * unit)))
    return np.clip(canvas.colour * stains[..., None], 0, 255).astype(np.uint8)


def cut_frame(
    panorama: np.ndarray,
    size: tuple[int, int],
    origin: tuple[float, float],
    zoom: float,
    place: tuple[float, float],
) -> np.ndarray:
    """Cut a frame out of a panorama, interpolated.

    Beyond its edges a panorama continues as its mirror image, so that there always is scene.

    Args:
        panorama: uint8 [., ., 3].
        size: (H, W) of the frame.
        origin: pixel (x, y) of the frame that shows `place`.
        zoom: frame pixels per panorama pixel.
        place: pixel (x, y) of the panorama.

    Returns:
        float32 [H, W, 3].
    """
    rows = place[1] + (np.arange(size[0]) - origin[1]) / zoom
    columns = place[0] + (np.arange(size[1]) - origin[0]) / zoom
    upper, lower, down = _mirrored(rows, panorama.shape[0])
    left, right, across = _mirrored(columns, panorama.shape[1])
    first = int(min(left.min(), right.min()))
    strip = panorama[:, first : int(max(left.max(), right.max())) + 1]
    above = strip[upper].astype(np.float32)
    above += down[:, None, None] * (strip[lower] - above)
    frame = above.take(left - first, axis=1)
    frame += across[:, None] * (above.take(right - first, axis=1) - frame)
    return frame


def _mirrored(places: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the pixels before and after each place, and its share of the way between them."""
    base = np.floor(places)
    low = base.astype(np.int64)
    before, after = (
        np.where(index < size, index, 2 * size - 1 - index)
        for index in (low % (2 * size), (low + 1) % (2 * size))
    )
    return before, after, (places - base).astype(np.float32)


class Objects:
    """Samples the objects of one scene, as large as they would be beside a person.

    Args:
        rng: the stream of objects.
        assets: textures and bystanders.
        pitch: how far the camera looks down, radians.
    """

    def __init__(self, rng: np.random.Generator, assets: Assets, pitch: float) -> None:
        self.rng, self.assets, self.pitch = rng, assets, pitch
        self._kinds: tuple[Kind, ...] = (
            self._top,
            self._trousers,
            self._bag,
            self._pole,
            self._bin,
            self._sign,
            self._plant,
        )

    def crease(self) -> int:
        """Sample an offset into the map of creases."""
        return int(self.rng.integers(128))

    def tile(self) -> int:
        """Sample a tile."""
        return self.assets.tiles[self.rng.integers(len(self.assets.tiles))]

    def kind(self) -> Kind:
        """Sample a kind of object other than a bystander."""
        return self._kinds[self.rng.integers(len(self._kinds))]

    def clutter(self, level: float, spot: Spot) -> list[Solid]:
        """Sample objects beside and behind a person, more of them and closer with the level.

        Args:
            level: 0 for none, up to 3.
            spot: where the person stands.
        """
        if level <= 0:
            return []
        rng = self.rng
        count = max(1, round(1.6 * level + rng.uniform(-0.5, 0.5)))
        # From far to near: an object stands higher in the picture the farther it is.
        distances = np.sort(rng.uniform(0.0, 1.0, count))[::-1]
        solids: list[Solid] = []
        for distance in distances.tolist():
            kind = self._bystander if rng.random() < 0.4 else self.kind()
            x = spot.x + rng.choice([-1, 1]) * rng.uniform(0.06, 0.34) * spot.scale
            y = spot.y - (0.02 + 0.35 * math.sin(self.pitch) * distance) * spot.scale
            scale = spot.scale * rng.uniform(0.85, 1.1) * (1 - 0.2 * distance)
            solids += kind(Spot(x, y, scale), self.crease())
        return solids

    def occluders(self, level: float, box: Box, scale: float) -> list[Solid]:
        """Sample objects in front of a person that hide about 15% of it per level.

        Args:
            level: 0 for none, up to 3.
            box: of the person.
            scale: height of the person in pixels.
        """
        if level <= 0:
            return []
        rng = self.rng
        left, top, right, bottom = box
        width, height = right - left, bottom - top
        share = 0.15 * level * rng.uniform(0.8, 1.2)
        kind = OCCLUDERS[rng.integers(len(OCCLUDERS))]
        side, crease, tile = int(rng.choice([-1, 1])), self.crease(), self.tile()
        edge = left if side < 0 else right
        low = bottom + scale
        if kind == "low":
            front = left - scale, bottom - share * height, right + scale, low
            return [board(tile, front, scale / 112, crease)]
        if kind == "side":
            inner, outer = edge - side * share * width, edge + side * scale
            high = top - scale if rng.random() < 0.5 else top + rng.uniform(0.0, 0.25) * height
            front = min(inner, outer), high, max(inner, outer), low
            return [board(tile, front, scale / 112, crease)]
        if kind == "post":
            half = share * width * 0.45
            x = left + rng.uniform(0.25, 0.75) * width
            axis, widths = ((x, low), (x, top - scale)), (half, half)
            return [Solid(*axis, widths, tile, rows=(0.0, 6.0), folds=0.05, crease=crease)]
        if kind == "railing":
            return self._railing(box, scale, share, tile, crease)
        if kind == "plants":
            solids: list[Solid] = []
            for _ in range(round(2 + 3 * level)):
                x = left + rng.uniform(-0.1, 1.1) * width
                spot = Spot(x, bottom + 0.15 * scale, scale * (0.8 + 0.25 * level))
                solids += self._plant(spot, self.crease())
            return solids
        x = edge + side * (0.12 - 0.5 * share) * scale
        y = bottom + rng.uniform(0.02, 0.1) * scale
        return self._bystander(Spot(x, y, scale * rng.uniform(1.0, 1.15)), self.crease())

    def _railing(self, box: Box, scale: float, share: float, tile: int, crease: int) -> list[Solid]:
        left, top, right, bottom = box
        line = bottom - min(0.3 + 0.6 * share, 0.75) * (bottom - top)
        gap = 0.09 * scale
        half = gap * min(0.12 + 0.6 * share, 0.42)
        start = left - scale + self.rng.uniform(0, gap)
        post = functools.partial(Solid, caps=(0.1, 0.1), folds=0.04, crease=crease)
        bars = [
            post((x, bottom + scale), (x, line), (half, half), tile)
            for x in np.arange(start, right + scale, gap).tolist()
            if left - 0.3 * scale < x < right + 0.3 * scale
        ]
        rail = left - scale, line - 0.03 * scale, right + scale, line + 0.02 * scale
        return [*bars, board(tile, rail, 1.0, crease)]

    def _bystander(self, spot: Spot, crease: int) -> list[Solid]:
        view = View(self.rng.uniform(0, 2 * math.pi), self.pitch)
        pose = sample_pose(self.rng, self.rng.choice([0.0, 1.5]))
        person = self.assets.bystander(self.rng)
        return body_solids(person, pose, view, spot, crease, labelled=False)

    def _hanging_angle(self) -> float:
        """Sample an angle that shows a hung garment from the front or from behind."""
        return float(self.rng.choice([0.0, math.pi])) + self.rng.normal(0, 0.4)

    def _top(self, spot: Spot, crease: int) -> list[Solid]:
        rng, (x, y, scale) = self.rng, spot
        low = y - rng.uniform(0.35, 0.8) * scale
        person = self.assets.bystander(rng)
        top = person.top
        wide, tall = rng.uniform(0.07, 0.11) * scale, (0.34 + top.hem) * scale
        cloth = functools.partial(Solid, angle=self._hanging_angle(), folds=0.12)
        widths = 0.026 * scale, 0.034 * scale
        sleeve = functools.partial(cloth, widths=widths, tile=top.sleeve, caps=(0.2, 0.8))
        drop = rng.uniform(0.1, 0.3) if top.long else rng.uniform(0.05, 0.12)
        solids = []
        for sign in (-1, 1):
            shoulder = x + sign * 0.9 * wide, low - 0.88 * tall
            cuff = shoulder[0] + sign * rng.uniform(0.02, 0.1) * scale, shoulder[1] + drop * scale
            solids.append(sleeve(cuff, shoulder, crease=crease + sign))
        profile = tuple(wide * w for w in (1, 1, 0.97, 0.97, 1, 1.02, 1.02, 0.9, 0.3))
        axis, caps = ((x, low), (x, low - tall)), (0.15, 0.4)
        solids.append(cloth(*axis, profile, person.torso_tile, caps=caps, crease=crease))
        return solids

    def _trousers(self, spot: Spot, crease: int) -> list[Solid]:
        rng, (x, y, scale) = self.rng, spot
        low = y - rng.uniform(0.1, 0.6) * scale
        bottom = self.assets.bystander(rng).bottom
        cloth = functools.partial(Solid, tile=bottom.tile, angle=self._hanging_angle())
        if bottom.skirt:
            axis, widths = ((x, low), (x, low - 0.28 * scale)), (0.12 * scale, 0.08 * scale)
            return [cloth(*axis, widths, caps=(0.15, 0.15), folds=0.14, crease=crease)]
        leg = functools.partial(cloth, widths=(0.032 * scale, 0.05 * scale), caps=(0.15, 0.3))
        high = low - (0.48 if bottom.length >= 2 else 0.26) * scale
        solids = []
        for sign in (-1, 1):
            hem = x + sign * rng.uniform(0.03, 0.07) * scale, low
            hip = x + sign * 0.035 * scale, high
            solids.append(leg(hem, hip, folds=0.12, crease=crease + sign))
        return solids

    def _bag(self, spot: Spot, crease: int) -> list[Solid]:
        rng, (x, y, scale) = self.rng, spot
        half, tall = rng.uniform(0.05, 0.1) * scale, rng.uniform(0.12, 0.26) * scale
        base = y - rng.choice([0.0, 0.4]) * scale
        tile, angle, widths = self.tile(), rng.uniform(-1, 1), (half, half, 0.85 * half)
        shape = functools.partial(Solid, angle=angle, caps=(0.4, 0.5), folds=0.06, crease=crease)
        bag = shape((x, base), (x, base - tall), widths, tile)
        strap = (x, base - tall), (x, base - 1.5 * tall)
        return [Solid(*strap, (0.3 * half, 0.1 * half), self.tile()), bag]

    def _pole(self, spot: Spot, crease: int) -> list[Solid]:
        x, y, scale = spot
        half = self.rng.uniform(0.015, 0.045) * scale
        axis, caps = ((x, y), (x, y - 2.5 * scale)), (0.2, 0.2)
        shape = functools.partial(Solid, rows=(0.0, 4.0), folds=0.04, crease=crease)
        return [shape(*axis, (half, half), self.tile(), caps=caps)]

    def _bin(self, spot: Spot, crease: int) -> list[Solid]:
        rng, (x, y, scale) = self.rng, spot
        half, tall = rng.uniform(0.08, 0.2) * scale, rng.uniform(0.25, 0.5) * scale
        tile, angle, widths = self.tile(), rng.uniform(-3, 3), (0.9 * half, half)
        shape = functools.partial(Solid, angle=angle, caps=(0.25, 0.25), folds=0.06, crease=crease)
        return [shape((x, y), (x, y - tall), widths, tile)]

    def _sign(self, spot: Spot, crease: int) -> list[Solid]:
        rng, (x, y, scale) = self.rng, spot
        half, tall = rng.uniform(0.08, 0.25) * scale, rng.uniform(0.2, 0.6) * scale
        base = y - rng.choice([0.0, 0.5]) * scale
        box = x - half, base - tall, x + half, base
        return [board(self.tile(), box, scale / 112, crease)]

    def _plant(self, spot: Spot, crease: int) -> list[Solid]:
        rng, (x, y, scale) = self.rng, spot
        widths = 0.02 * scale, 0.06 * scale, 0.02 * scale
        tile = self.tile()
        leaves = []
        for i in range(rng.integers(3, 6)):
            tip = x + rng.normal(0, 0.1) * scale, y - rng.uniform(0.2, 0.7) * scale
            leaves.append(Solid((x, y), tip, widths, tile, folds=0.2, crease=crease + i))
        return leaves
