"""Filter-and-refine stages: each decides the pairs it can bound and passes on the rest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mmga.common.distributed import Group
from mmga.ops.certified import Bound, Int8Tile
from mmga.ops.distance import exact_term, key_terms, metric_number
from mmga.ops.ranking import Tile
from mmga.retrieval.bounds.approximation import (
    Approximation,
    Approximator,
    Int8,
    Projection,
    bound_between,
    identity,
    int16,
    tile_products,
)


@dataclass(frozen=True, slots=True)
class StagedRows:
    """Some vectors at every stage.

    Attributes:
        metric: cosine or euclidean.
        exact_term: float64 [N], norms (cosine) or squared norms (euclidean).
        tile_term: float32 [N] for the keys of the tile.
        stages: the approximation of each stage; at the last, the vectors themselves.
    """

    metric: str
    exact_term: Tensor
    tile_term: Tensor
    stages: list[Approximation]

    def __len__(self) -> int:
        return len(self.exact_term)

    def cut(self, rows: slice) -> StagedRows:
        """Return some of the vectors."""
        return StagedRows(
            self.metric,
            self.exact_term[rows],
            self.tile_term[rows],
            [stage.cut(rows) for stage in self.stages],
        )

    def int8_tile(self, items: StagedRows, offset: int) -> tuple[Int8Tile, Bound]:
        """Return what `tile` does, of 8-bit rows that are multiplied where that is needed."""
        one, other = self.stages[0], items.stages[0]
        assert one.unit is not None and other.unit is not None
        terms, number = (self.tile_term, items.tile_term), metric_number(self.metric)
        tile = Int8Tile(one.rows, other.rows, one.unit, other.unit, *terms, number, offset)
        return tile, bound_between(one, other, self.metric)

    def tile(self, items: StagedRows, offset: int, values: Tensor) -> tuple[Tile, Bound]:
        """Return the tile of approximate keys against `items`, and how far these may be off.

        Args:
            items: the columns.
            offset: number of the first of them.
            values: float32 memory for at least N x W products.
        """
        used = values[: len(self) * len(items)].view(len(self), len(items))
        tile_products(self.stages[0], items.stages[0], used)
        number = metric_number(self.metric)
        tile = Tile(used, offset, number, self.tile_term, items.tile_term)
        return tile, bound_between(self.stages[0], items.stages[0], self.metric)

    def refinements(
        self, items: StagedRows
    ) -> Iterator[tuple[Approximation, Approximation, Bound | None]]:
        """Yield both sides at each stage after the tile, and its bound: None where exact."""
        for one, other in zip(self.stages[1:], items.stages[1:], strict=True):
            exact = one is self.stages[-1]
            yield one, other, None if exact else bound_between(one, other, self.metric)


@dataclass(slots=True)
class Stage:
    """Pairs that one stage was given and left undecided.

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
class Stages:
    """The stages of a pass, and an account of the pairs at each.

    Attributes:
        tiles: approximates the vectors of tiles, before integers of 16 bits; None: tiles are of the
            features themselves, which leave next to nothing.
        stages: the tile, the integers of 16 bits unless tiles are of features, and the exact one.
    """

    tiles: Approximator | None = None
    stages: list[Stage] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Start the account."""
        precision = "int8" if isinstance(self.tiles, Int8) else "float32"
        self.stages = [Stage(self.dimensions or None, precision), Stage(None, "float64")]
        if self.tiles is not None:
            self.stages.insert(1, Stage(None, "int16"))

    @property
    def dimensions(self) -> int:
        """Coordinates of the tile, 0 without a projection."""
        return self.tiles.basis.shape[1] if isinstance(self.tiles, Projection) else 0

    def row_bytes(self, width: int) -> int:
        """Return the bytes of one feature of so many dimensions at all stages."""
        if self.tiles is None:
            return 4 * width
        return 4 * width + 2 * width + (4 * self.dimensions or width)

    def add_up(self, group: Group) -> None:
        """Add up the accounts of the processes of a group, in place."""
        counts = [[stage.pairs, stage.undecided] for stage in self.stages]
        for stage, (pairs, undecided) in zip(
            self.stages,
            group.sum(torch.tensor(counts, dtype=torch.int64, device="cpu")).tolist(),
            strict=True,
        ):
            stage.pairs, stage.undecided = pairs, undecided

    def as_dict(self) -> dict[str, object]:
        """Return the account as reports show it."""
        return {
            "levels": [
                {
                    "dimensions": stage.dimensions,
                    "precision": stage.precision,
                    "pairs": stage.pairs,
                    "undecided": stage.undecided,
                }
                for stage in self.stages
            ],
            "rescued": self.stages[-1].pairs,
        }

    def rows(self, features: Tensor, norms: Tensor, metric: str) -> StagedRows:
        """Return features at every stage.

        Args:
            features: float32 [N, D].
            norms: squared norms, float64 [N].
            metric: cosine or euclidean.
        """
        term = exact_term(norms, metric)
        exact = Approximation(features, torch.zeros_like(norms), torch.zeros_like(norms))
        if self.tiles is None:
            stages = [identity(features, norms, metric), exact]
            return StagedRows(metric, term, key_terms(norms, metric), stages)
        tile = self.tiles.of(features, norms, metric)
        stages = [tile, int16(features, norms, metric), exact]
        return StagedRows(metric, term, approximate_terms(norms, metric), stages)


def approximate_terms(norms: Tensor, metric: str) -> Tensor:
    """Return the terms of keys from approximations, which with cosine are of normalised vectors."""
    terms = key_terms(norms, metric)
    return torch.ones_like(terms) if metric == "cosine" else terms
