"""Query expansion and database-side augmentation: features averaged with their neighbours.

alpha query expansion: Radenovic et al., "Fine-tuning CNN image retrieval with no human annotation",
TPAMI 2019, section 3.4; database-side augmentation is the same of the gallery (Arandjelovic and
Zisserman, CVPR 2012). Both work on normalised features, so the metric is cosine.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmga.common.distributed import Group
from mmga.common.errors import UserError, real_number, whole_number
from mmga.common.memory import parse
from mmga.common.progress import Progress
from mmga.ops.distance import unit_rows
from mmga.ops.neighbours import Neighbours
from mmga.ops.precision import float32_products
from mmga.retrieval.features.vectors import VectorSet
from mmga.retrieval.neighbours.knn import (
    ArrayLike,
    feature_rows,
    nearest_items,
    search,
    vector_sets,
    without_self,
)
from mmga.retrieval.neighbours.shared_knn import (
    SharedItems,
    check_certified,
    held_vectors,
    merged_bytes,
)
from mmga.retrieval.neighbours.shared_set import BLOCK, SharedSet
from mmga.retrieval.neighbours.tile_sizes import check_memory, search_bytes

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

# Numbers of neighbours that are copied together.
_COPIED = 1 << 22


@float32_products()
def expand_queries(
    query: ArrayLike,
    gallery: ArrayLike | None,
    neighbours: int = 10,
    alpha: float = 3.0,
    *,
    exact: str | None = None,
    memory: str | int | None = None,
    progress: Progress | None = None,
    group: ProcessGroup | Group | bool | None = None,
) -> Tensor:
    """Return each query averaged with its nearest gallery items, weighted by cosine^alpha.

    Args:
        query: `Features`, or a tensor or array [Q, D].
        gallery: likewise, [G, D].
        neighbours: gallery items averaged with a query (which has weight 1); 0 leaves it alone.
        alpha: exponent of the cosine, at least 0; 0 is the plain average. Items with a cosine of
            0 or less have no weight.
        exact: whose order counts where items nearly tie for the last place, see `mmga.nearest`.
        memory: bound on what is allocated beyond the features, such as ``"2G"``.
        progress: called as (phase, done, total).
        group: of torch.distributed, True for the default one: each process gives its own rows of
            the gallery, None for none, and all the same queries. On the CPU, and certified.

    Returns:
        [Q, D] float32, normalised (a zero vector stays one).

    Raises:
        UserError: an argument is out of its range, widths differ, `memory` does not suffice, or a
            value is not finite.
    """
    settings = _Settings(neighbours, alpha, exact, memory, progress)
    if (processes := Group.of(group)).world > 1:
        return _expanded_by_all(query, gallery, settings, processes)
    queries, items = vector_sets(query, gallery, "cosine")
    settings.check(len(items), "neighbours of query expansion")
    if neighbours == 0:
        return unit_rows(queries.take(torch.arange(len(queries), device="cpu")))
    settings.check_room(queries, search_bytes(queries, items, neighbours))
    found = nearest_items(queries, items, neighbours, exact=exact, progress=progress)
    return _averaged(queries, found, alpha, items)


@float32_products()
def augment_gallery(
    gallery: ArrayLike | None,
    neighbours: int = 10,
    alpha: float = 3.0,
    *,
    exact: str | None = None,
    memory: str | int | None = None,
    progress: Progress | None = None,
    group: ProcessGroup | Group | bool | None = None,
) -> Tensor:
    """Return each gallery item averaged with its nearest others, weighted by cosine^alpha.

    Args:
        gallery: `Features`, or a tensor or array [G, D].
        neighbours: others averaged with an item (which has weight 1); 0 leaves it alone.
        alpha: as in `expand_queries`.
        exact: as in `expand_queries`.
        memory: likewise.
        progress: called as (phase, done, total).
        group: of torch.distributed, True for the default one: each process gives its own rows of
            the gallery, None for none, and gets those averaged. On the CPU, and certified.

    Returns:
        [G, D] float32, normalised (a zero vector stays one).

    Raises:
        UserError: as in `expand_queries`.
    """
    settings = _Settings(neighbours, alpha, exact, memory, progress)
    if (processes := Group.of(group)).world > 1:
        return _augmented_by_all(gallery, settings, processes)
    items = VectorSet([feature_rows(gallery, "gallery")], "cosine")
    settings.check(len(items) - 1, "neighbours of database-side augmentation")
    if neighbours == 0:
        return unit_rows(items.take(torch.arange(len(items), device="cpu")))
    k = neighbours + 1
    spare = settings.check_room(items, search_bytes(items, items, k))
    found = search(items, k, exact=exact, farthest=False, spare=spare, progress=progress)
    return _averaged(items, without_self(found.neighbours), alpha, items)


@dataclass(frozen=True, slots=True)
class _Settings:
    """Arguments of `expand_queries`, see there."""

    neighbours: int
    alpha: float
    exact: str | None
    memory: str | int | None
    progress: Progress | None

    def check(self, most: int, name: str) -> None:
        """Raise a `UserError` where an argument is out of its range."""
        if not 0 <= whole_number(name, self.neighbours) <= most:
            raise UserError(f"{name} must be from 0 to the {most} there are, got {self.neighbours}")
        if not real_number("alpha", self.alpha) >= 0:
            raise UserError(f"alpha must be at least 0, got {self.alpha}")

    def check_room(self, own: VectorSet | None, needed: int) -> int | None:
        """Return what a search and the averages leave of the memory.

        Raises:
            UserError: it does not suffice.
        """
        count, averages = 0 if own is None else len(own), 4 * _COPIED
        if own is not None:
            averages += 8 * count * own.dimension
        return check_memory(parse(self.memory), needed + averages, f"averages of {count} features")


def _expanded_by_all(
    query: ArrayLike, gallery: ArrayLike | None, settings: _Settings, group: Group
) -> Tensor:
    """Return what `expand_queries` makes of a gallery that all processes hold."""
    with group.together():
        check_certified(settings.exact)
        queries = VectorSet([feature_rows(query, "query")], "cosine")
        own = None if gallery is None else feature_rows(gallery, "gallery")
    group.agree("the settings", f"{settings.neighbours} {settings.alpha}")
    group.agree("the queries", queries.norms.cpu().numpy().tobytes())
    vectors, counts = held_vectors("gallery", own, "cosine", group, queries)
    k = settings.neighbours
    with group.together():
        settings.check(sum(counts), "neighbours of query expansion")
        if k == 0:
            return unit_rows(queries.take(torch.arange(len(queries), device="cpu")))

    def search_own(items: VectorSet, fewer: int) -> Neighbours:
        needed = search_bytes(queries, items, fewer) + merged_bytes(len(queries), k, group)
        settings.check_room(queries, needed + BLOCK)
        progress = settings.progress
        return nearest_items(queries, items, fewer, exact="certified", progress=progress)

    found = SharedItems(vectors, counts, group).nearest(queries, k, search_own)
    items = SharedSet.of(vectors, [counts[group.rank]], "cosine", group)
    return _averaged(queries, found, settings.alpha, items)


def _augmented_by_all(gallery: ArrayLike | None, settings: _Settings, group: Group) -> Tensor:
    """Return what `augment_gallery` makes of this process' rows, of the gallery of all."""
    with group.together():
        check_certified(settings.exact)
        own = None if gallery is None else feature_rows(gallery, "gallery")
    group.agree("the settings", f"{settings.neighbours} {settings.alpha}")
    vectors, counts = held_vectors("gallery", own, "cosine", group)
    items = SharedSet.of(vectors, [counts[group.rank]], "cosine", group)
    k = settings.neighbours + 1
    with group.together():
        settings.check(len(items) - 1, "neighbours of database-side augmentation")
        spare = settings.check_room(vectors, items.search_bytes(k))
    if settings.neighbours == 0:
        none = torch.empty(0, items.width, dtype=torch.float32, device="cpu")
        return none if vectors is None else unit_rows(vectors.block(0, len(vectors)))
    found = items.nearest(k, farthest=False, spare=spare, progress=settings.progress)
    return _averaged(vectors, without_self(found, items.numbers), settings.alpha, items)


def _averaged(
    own: VectorSet | None, found: Neighbours, alpha: float, items: VectorSet | SharedSet
) -> Tensor:
    """Return vectors averaged with those found among the items, of which processes may hold some.

    Args:
        own: N vectors; None for none.
        found: numbers [N, K] of items, and squared distances.
        alpha: exponent of the weights.
        items: among which they were found.
    """
    if isinstance(items, VectorSet):
        everything, width = items, items.dimension
        rows = max(1, max(1, _COPIED // width) // found.index.shape[1])
        starts = range(0, len(found.index), rows)
        blocks: Iterator[slice] = (slice(begin, begin + rows) for begin in starts)

        def fetch(numbers: Tensor) -> tuple[VectorSet, Tensor]:
            return everything, numbers

    else:
        width, fetch = items.width, items.fetch
        blocks = items.blocks(len(found.index), found.index.shape[1])
    cosine = (1 - found.distances / 2).clamp(min=0)  # [N, K]
    weights = torch.where(cosine > 0, cosine**alpha, 0.0)
    result = torch.empty(0, width, dtype=torch.float32, device="cpu")
    if own is not None:
        result = own.take(torch.arange(len(own), device="cpu"))
        result *= own.terms[:, None]
    for part in blocks:
        near = found.index[part].long()
        of, at = fetch(near.flatten())
        weight = weights[part] * of.terms[at].view(near.shape)
        vectors = of.take(at).view(*near.shape, width)  # [r, K, D]
        result[part] += torch.einsum("rk,rkd->rd", weight, vectors)
    return unit_rows(result)
