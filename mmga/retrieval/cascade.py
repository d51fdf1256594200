"""The levels through which pairs of features go until their order is certain."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from mmga.ops.distance import key_terms
from mmga.retrieval.subspace import Approximation, Subspace, as_they_are


@dataclass(frozen=True, slots=True)
class Block:
    """Some features at every level.

    Attributes:
        features: float32 [N, D].
        exact_term: float64 [N], norms (cosine) or squared norms (euclidean).
        tile_term: float32 [N] for the keys of the tile.
        level_term: float64 [N] for the keys of the levels after it.
        levels: the approximations of the tile and of the levels after it.
    """

    features: Tensor
    exact_term: Tensor
    tile_term: Tensor
    level_term: Tensor
    levels: list[Approximation]

    def cut(self, rows: slice) -> Block:
        """Return those of some of the features."""
        return Block(
            self.features[rows],
            self.exact_term[rows],
            self.tile_term[rows],
            self.level_term[rows],
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


@dataclass(slots=True)
class Cascade:
    """The levels through which pairs go, and what they did.

    Attributes:
        subspace: directions of the coordinates, or None where tiles come from the features.
        dimensions: coordinates of the tile and of the levels after it, ascending; empty without
            a subspace.
        levels: the tile, the levels after it, and the exact one.
    """

    subspace: Subspace | None = None
    dimensions: tuple[int, ...] = ()
    levels: list[Level] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Start the account of the levels."""
        first, *others = self.dimensions or (None,)
        self.levels = [Level(first, "float32"), *(Level(k, "float64") for k in others)]
        self.levels.append(Level(None, "float64"))

    @property
    def most(self) -> int:
        """The most coordinates of a level."""
        return self.dimensions[-1] if self.dimensions else 0

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
            coordinates: float32 [N, K] with the most coordinates of a level, written.
        """
        cosine = metric == "cosine"
        exact_term = norms.sqrt() if cosine else norms
        tile_term, level_term = key_terms(norms, metric), norms
        if self.subspace is None:
            levels = [as_they_are(features, norms, metric)]
        else:
            self.subspace.coordinates(features, norms, metric, coordinates)
            levels = [
                self.subspace.approximate(coordinates, norms, metric, k) for k in self.dimensions
            ]
            if cosine:  # coordinates are of the normalised features
                tile_term, level_term = torch.ones_like(tile_term), torch.ones_like(norms)
        return Block(features, exact_term, tile_term, level_term, levels)
