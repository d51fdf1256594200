"""Clothes and bags, and the wardrobe that persons share."""

import dataclasses
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from mmga.data.synthetic.textures import (
    FRONT,
    PATTERNS,
    TILE_HEIGHT,
    TILE_SHAPE,
    TILE_WIDTH,
    Atlas,
    patterned,
    plain,
    sample_colours,
    sample_contrast,
)

_ROWS = np.arange(TILE_HEIGHT)[:, None]
Item = TypeVar("Item")


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Top:
    """A garment of the upper body.

    Attributes:
        body: its tile around the trunk, row 0 at the hem, float32; persons add their print to it.
        sleeve: number of the sleeves' tile.
        long: whether sleeves reach to the wrist, not to the elbow.
        hem: how far it hangs below the hips, as a share of the body's height.
        loose: thickness that it adds to the body, as a share of the body's height.
        hood: whether a hood lies on the back.
    """

    body: np.ndarray
    sleeve: int
    long: bool
    hem: float
    loose: float
    hood: bool


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Bottom:
    """A garment of the lower body.

    Attributes:
        tile: number of its tile, row 0 at the hem.
        skirt: True for a skirt, False for legs.
        length: how far it reaches: 1 to the knee, 2 to the ankle.
        loose: thickness that it adds to the legs, as a share of the body's height.
    """

    tile: int
    skirt: bool
    length: float
    loose: float


@dataclasses.dataclass(frozen=True, slots=True)
class Bag:
    """A bag, worn on one side.

    Attributes:
        kind: `backpack`, `shoulder` or `hand`.
        side: 1 left, -1 right; ignored for a backpack.
        tile: number of its tile.
        strap: number of its straps' tile.
        size: factor on its size.
    """

    kind: str
    side: int
    tile: int
    strap: int
    size: float


class Fashion:
    """Colour schemes and patterns of a split's clothes and bags.

    Few schemes and many patterns make garments that have their colours in common with many others,
    so that persons are told apart by shapes and places of colours, not by colours alone.

    Args:
        rng: the stream of fashions.
        count: number of schemes.
        patterns: of clothes and bags.
        contrast: whether a scheme is a dark, a light and a bright colour.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        count: int,
        patterns: tuple[str, ...] = PATTERNS,
        contrast: bool = False,
    ) -> None:
        self.patterns = patterns
        self.schemes = [
            sample_contrast(rng) if contrast else sample_colours(rng, 3) for _ in range(count)
        ]
        self._orders = [rng.permutation(len(patterns)) for _ in range(2 * count)]

    def cloth(self, garment: int, bottom: bool) -> tuple[str, np.ndarray]:
        """Return pattern and colours [3, 3] of a garment; no two tops share both if they can."""
        scheme = garment % len(self.schemes)
        order = self._orders[2 * scheme + bottom]
        pattern = self.patterns[order[garment // len(self.schemes) % len(order)]]
        return pattern, self.schemes[scheme]

    def pattern(self, rng: np.random.Generator) -> str:
        """Sample a pattern for anything but a garment."""
        return self.patterns[rng.integers(len(self.patterns))]

    def colours(self, rng: np.random.Generator) -> np.ndarray:
        """Sample a scheme [3, 3] for anything but a garment."""
        return self.schemes[rng.integers(len(self.schemes))]


def sample_top(rng: np.random.Generator, atlas: Atlas, pattern: str, colours: np.ndarray) -> Top:
    """Sample a garment of the upper body and put its sleeves' tile into the atlas."""
    kind = str(rng.choice(["tee", "shirt", "hoodie", "jacket", "coat", "vest"]))
    body = patterned(pattern, colours, rng)
    sleeve = body if rng.random() < 0.6 else plain(colours[rng.integers(2)])
    if kind == "jacket" and rng.random() < 0.6:
        # Open in front: the shirt below shows.
        body = np.where((FRONT < 5)[..., None], colours[2], body)
    elif kind in ("jacket", "coat", "hoodie"):
        body = np.where((FRONT < 1)[..., None], body * 0.55, body)
    if kind in ("tee", "shirt"):
        neckline = (_ROWS > TILE_HEIGHT - 1 - (4 - FRONT * 0.6)) & (FRONT < 7)
        body = np.where(neckline[..., None], body * 0.7, body)
    if kind in ("hoodie", "jacket"):
        # A welt at the hem and pockets at the sides of the front.
        body = np.where((_ROWS < 2)[..., None], body * 0.75, body)
    if kind == "vest":
        sleeve = plain(colours[2])
    return Top(
        body=body.astype(np.float32),
        sleeve=atlas.add(sleeve),
        long=kind != "tee",
        hem={"tee": 0.02, "shirt": 0.025, "hoodie": 0.03, "coat": 0.14}.get(kind, 0.03)
        + rng.uniform(-0.01, 0.02),
        loose={"tee": 0.003, "shirt": 0.004, "vest": 0.008}.get(kind, 0.01) + rng.uniform(0, 0.004),
        hood=kind == "hoodie",
    )


def sample_bottom(
    rng: np.random.Generator, atlas: Atlas, pattern: str, colours: np.ndarray
) -> Bottom:
    """Sample a garment of the lower body and put its tile into the atlas."""
    kind = str(rng.choice(["trousers", "wide", "shorts", "skirt"], p=[0.5, 0.2, 0.18, 0.12]))
    tile = patterned(pattern, colours, rng)
    if not rng.integers(4):
        # Piping down both sides.
        tile = np.where((np.abs(FRONT - TILE_WIDTH // 4) < 3)[..., None], colours[1], tile)
    elif not rng.integers(4):
        tile = np.where((_ROWS < 5)[..., None], colours[1], tile)
    return Bottom(
        tile=atlas.add(np.broadcast_to(tile, TILE_SHAPE)),
        skirt=kind == "skirt",
        length=float(rng.uniform(0.85, 1.15)) if kind in ("shorts", "skirt") else 2.0,
        loose={"wide": 0.014, "shorts": 0.008}.get(kind, 0.005),
    )


def sample_bag(rng: np.random.Generator, atlas: Atlas, kind: str, fashion: Fashion) -> Bag:
    """Sample a bag and put its tiles into the atlas."""
    colours = fashion.colours(rng)
    tile = patterned(fashion.pattern(rng), colours[1:], rng)
    # A pocket, so that a bag is not a patch of cloth.
    pocket = (_ROWS > 4) & (_ROWS < 14) & (FRONT < 9)
    tile = np.where(pocket[..., None], tile * 0.78, tile)
    return Bag(
        kind=kind,
        side=int(rng.choice([-1, 1])),
        tile=atlas.add(tile),
        strap=atlas.add(plain(tile.mean((0, 1)) * 0.7)),
        size=float(rng.uniform(0.85, 1.15)),
    )


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Print:
    """A motif on the chest or on the back of a top.

    Attributes:
        where: bool [TILE_HEIGHT, TILE_WIDTH].
        colour: float32 [3].
    """

    where: np.ndarray
    colour: np.ndarray

    def on(self, body: np.ndarray) -> np.ndarray:
        """Return a copy of a top's tile that carries the motif."""
        return np.where(self.where[..., None], self.colour, body)


def sample_print(rng: np.random.Generator, fashion: Fashion) -> Print:
    """Sample a motif, in front or on the back."""
    colour = fashion.colours(rng)[1]
    columns = np.arange(TILE_WIDTH)[None, :] - TILE_WIDTH // 2
    if rng.random() < 0.4:
        columns = (columns + TILE_WIDTH) % TILE_WIDTH - TILE_WIDTH // 2
    y, x = (_ROWS - 20) / 7.0, columns / 9.0
    inside = (abs(x) < 0.9) & (abs(y) < 0.9)
    shapes = (
        y**2 + x**2 < 0.8,
        (abs(y) < 0.75) & (abs(x) < 0.85),
        abs(y) + abs(x) < 1.0,
        inside & ((abs(y) < 0.28) | (abs(x) < 0.28)),
        inside & (np.floor(y * 3) % 2 == 0),
        (abs(x) < 0.9) & (abs(y) < 0.95) & (y > abs(x) * 1.6 - 0.9),
    )
    where = shapes[rng.integers(len(shapes))]
    return Print(np.broadcast_to(where, TILE_SHAPE[:2]), colour)


def assign_garments(
    rng: np.random.Generator, count: int, share: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """Assign tops and bottoms so that at least `share` persons wear each.

    No two persons wear the same pair where there are enough pairs (count >= 6 * share).

    Args:
        rng: the stream of outfits.
        count: number of persons.
        share: least number of persons who wear the same garment.

    Returns:
        top and bottom of each person, int64 [count]; number of tops, and as many bottoms.
    """
    garments = max(1, count // share)
    place = np.arange(count)
    tops = place % garments
    # Round r wears the tops once each, with bottoms shifted by an offset of its own.
    offsets = rng.permutation(garments)
    bottoms = (tops + offsets[(place // garments) % garments]) % garments
    order = rng.permutation(count)
    return (
        rng.permutation(garments)[tops][order],
        rng.permutation(garments)[bottoms][order],
        garments,
    )


def assign_shared(
    rng: np.random.Generator, count: int, stock: Sequence[Item], share: float
) -> list[Item | None]:
    """Assign the items of a small stock to a share of the persons; the others get None."""
    items: list[Item | None] = [stock[i % len(stock)] for i in range(round(count * share))]
    items += [None] * (count - len(items))
    return [items[i] for i in rng.permutation(count)]
