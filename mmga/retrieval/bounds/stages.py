"""The levels through which pairs of features go until their order is certain."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from mmga.ops.distance import key_terms
from mmga.retrieval.bounds.approximation import (
    Approximation,
    Bytes,
    Subspace,
    Tiles,
    as_integers,
    as_they_are,
)


@dataclass(frozen=True, slots=True)
class Block:
    """Some features at every level.

    Attributes:
        exact_term: float64 [N], norms (cosine) or squared norms (euclidean).
        tile_term: float32 [N] for the keys of the tile.
        levels: what stands for the features at each level; at the last, they themselves.
    """

    exact_term: Tensor
    tile_term: Tensor
    levels: list[Approximation]

    def __len__(self) -> int:
        return len(self.exact_term)

    def cut(self, rows: slice) -> Block:
        """Return those of some of the features."""
        return Block(
            self.exact_term[rows],
            self.tile_term[rows],
            [level.cut(rows) for level in self.levels],
        )


@dataclass(slots=True)
class Level:
    """What one level of a cascade did.

    Attributes:
        dimensions: coordinates of a product; None for all of the features'.
        precision: of its arithmetic.
        pairs: pairs that it was given.
        undecided: pairs that it left.
    """

    dimensions: int | None
    precision: str
    pairs: int = 0
    undecided: int = 0

    def note(self, given: int, left: int) -> None:
        """Add pairs to the account."""
        self.pairs += given
        self.undecided += left


@dataclass(slots=True)
class Cascade:
    """The levels through which pairs go, and what they did.

    Attributes:
        tiles: what they come from: coordinates in some directions or features of 8 bits, both
            before integers of 16 bits; or None for the features, which leave next to nothing.
        levels: the tile, the integers of 16 bits unless tiles are of features, and the exact one.
    """

    tiles: Tiles = None
    levels: list[Level] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Start the account of the levels."""
        precision = "int8" if isinstance(self.tiles, Bytes) else "float32"
        self.levels = [Level(self.dimensions or None, precision), Level(None, "float64")]
        if self.tiles is not None:
            self.levels.insert(1, Level(None, "int16"))

    @property
    def dimensions(self) -> int:
        """Coordinates of the tile, 0 without directions."""
        return self.tiles.directions.shape[1] if isinstance(self.tiles, Subspace) else 0

    def row_bytes(self, width: int) -> int:
        """Return what one feature of so many dimensions takes at all levels."""
        if self.tiles is None:
            return 4 * width
        return 4 * width + 2 * width + (4 * self.dimensions or width)

    def as_dict(self) -> dict[str, object]:
        """Return the account as reports show it."""
        return {
            "levels": [
                {
                    "dimensions": level.dimensions,
                    "precision": level.precision,
                    "pairs": level.pairs,
                    "undecided": level.undecided,
                }
                for level in self.levels
            ],
            "rescued": self.levels[-1].pairs,
        }

    def block(self, features: Tensor, norms: Tensor, metric: str, coordinates: Tensor) -> Block:
        """Return features at every level.

        Args:
            features: float32 [N, D].
            norms: squared norms, float64 [N].
            metric: cosine or euclidean.
            coordinates: float32 [N, K] with the coordinates of the tile, written.
        """
        cosine = metric == "cosine"
        exact_term = norms.sqrt() if cosine else norms
        tile_term = key_terms(norms, metric)
        exact = Approximation(features, torch.zeros_like(norms), torch.zeros_like(norms))
        if self.tiles is None:
            levels = [as_they_are(features, norms, metric), exact]
            return Block(exact_term, tile_term, levels)
        if cosine:  # what stands for features is of the normalised ones
            tile_term = torch.ones_like(tile_term)
        tile = self.tiles.of(features, norms, metric, coordinates)
        return Block(exact_term, tile_term, [tile, as_integers(features, norms, metric), exact])
