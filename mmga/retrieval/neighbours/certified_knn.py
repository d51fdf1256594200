"""The k nearest of every item in the order of float64 distances, from cheap tiles.

A first look at approximate distances gives each item k others; the k-th smallest of their exact
distances is a limit that its k nearest lie within. A second look lists all pairs that may lie
within the limit of one of their items, or be the farthest of one, and computes those exactly. Tiles
of the features themselves are so good that nearly no item needs the second look.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from mmga.common.errors import UserError
from mmga.ops.certified import ExactLists, narrow_pairs, nearest_of, open_pairs
from mmga.ops.distance import metric_number
from mmga.ops.neighbours import NearestLists, Neighbours, pair_products
from mmga.ops.ranking import Tile
from mmga.retrieval.bounds.approximation import (
    EXACT,
    Tiles,
    as_they_are,
    beyond_bounds,
    bound_between,
    tile_products,
)
from mmga.retrieval.bounds.candidates import spread
from mmga.retrieval.neighbours.cost_model import first_part
from mmga.retrieval.neighbours.looks import Looks
from mmga.retrieval.neighbours.vectors import TILE, Items, squared_from
from mmga.retrieval.tiles.sources import Progress

# Neighbours beyond k that a first look at tiles of the features asks for: where more than these
# nearly tie with the k-th, the item gets a second look.
_SPARE = 8
# Items among which each item's farthest is looked for first.
_SAMPLE = 1024
# Rows of a tile of the second look, in tiles: the features of its items come through the caches for
# exact products, and the fewer such blocks, the less often.
_ROW_TILES = 4


def certified_neighbours(
    items: Items,
    k: int,
    progress: Progress | None = None,
    tiles: Tiles = None,
    *,
    kept: Tensor | None = None,
    tile: int | None = None,
    farthest: bool = True,
) -> Neighbours:
    """Return the k nearest of every item among all, itself included at distance 0.

    Args:
        items: N items.
        k: 1 to N.
        progress: called as (phase, done, total).
        tiles: what they come from: coordinates in some directions, features of 8 bits, or None: the
            features.
        kept: [Q, N - Q] float32, filled with the squared distances of the first Q items to the
            others as tiles of the features have them; None with other tiles.
        tile: rows and columns of a tile; `TILE` if None.
        farthest: each item's largest distance is wanted, too; else it is NaN.

    Returns:
        Lists in the order of (float64 distance, index) with squared distances rounded to float32.
        Each item's largest distance is exact unless tiles are of the features, else the tiles'.
    """
    n = len(items)
    looks = Looks(items, tiles, tile or TILE)
    wanted = k if tiles is not None else min(n, k + _SPARE)
    first = _first_look(looks, wanted, progress, kept)
    # Exact distances of what was found, in the order that counts.
    owner = torch.arange(n).repeat_interleave(wanted)
    found = items.exact_distances(owner, first.index.reshape(-1).long()).view(n, wanted)
    index, distance = nearest_of(first.index, found, k)
    limits = distance[:, -1].contiguous()
    if tiles is not None:
        lists = ExactLists(limits, k)
        lists.add_self(torch.arange(n))
        lists.maxima.copy_(_some_far(looks) if farthest else torch.tensor(torch.inf))
        _second_look(looks, lists, limits, progress)
        index, distance = lists.result()
        maxima = lists.maxima.float()
    else:
        maxima = first.maxima
        if wanted < n:
            _mend(looks, index, distance, limits, first.distances[:, -1].double(), progress)
    if not farthest:
        maxima = torch.full_like(maxima, torch.nan)
    return Neighbours(index, distance.float(), maxima)


def exact_order(items: Items, exact: str | None) -> str:
    """Return whose order neighbours of these items shall have: certified or float32.

    Args:
        items: what is searched.
        exact: one of the two, or None for certified where there are bounds: on the CPU, and for
            features of usual lengths.

    Raises:
        UserError: it shall be certified and cannot.
    """
    if exact not in (None, *EXACT):
        raise UserError(f"exact: expected {' or '.join(EXACT)}, found {exact!r}")
    obstacle = beyond_bounds("the set", items.norms)
    if items.device.type != "cpu":
        obstacle = f"on {items.device.type} devices"
    if exact == "certified" and obstacle is not None:
        raise UserError(f"exact: certified neighbours are not found {obstacle}; use 'float32'")
    return "float32" if exact == "float32" or obstacle is not None else "certified"


def _first_look(looks: Looks, k: int, progress: Progress | None, kept: Tensor | None) -> Neighbours:
    """Return the k nearest by the tiles' distances."""
    n, cosine = len(looks.items), looks.items.metric == "cosine"
    lists = NearestLists(n, k)
    lists.add_self()
    # Products of few coordinates are small: larger tiles, of which no result depends.
    size = looks.tile if looks.tiles is None else 2 * looks.tile
    tile = torch.empty(size * size)
    places = list(_places(n, size))
    for done, (own, other) in enumerate(places, 1):
        rows = looks.cut(own, min(own + size, n))
        columns = looks.cut(other, min(other + size, n))
        values = tile[: len(rows.rows) * len(columns.rows)].view(len(rows.rows), -1)
        tile_products(first_part(looks.tiles, rows), first_part(looks.tiles, columns), values)
        terms, others = looks.terms[own : own + size], looks.terms[other : other + size]
        lists.add(values, terms, others, own, other, cosine=cosine, symmetric=True, kept=kept)
        if progress is not None:
            progress("neighbours", done, len(places))
    return lists.result()


def _some_far(looks: Looks) -> Tensor:
    """Return the exact distance of each item to one that seems far, float64 [N].

    The one is the farthest of a sample by the tiles: the larger, the fewer pairs are in question as
    the farthest.
    """
    items, n = looks.items, len(looks.items)
    sample = spread(n, _SAMPLE)
    far_away = looks.take(sample)
    own = items.norms[sample].float() / 2 if items.metric == "euclidean" else 0.0
    far = torch.empty(n, dtype=torch.int64)
    tile = torch.empty(TILE, len(sample))
    for begin in range(0, n, TILE):
        end = min(begin + TILE, n)
        near = tile_products(looks.cut(begin, end), far_away, tile[: end - begin])
        far[begin:end] = sample[(near - own).argmin(1)]
    return items.exact_distances(torch.arange(n), far)


def _second_look(
    looks: Looks, lists: ExactLists, limits: Tensor, progress: Progress | None
) -> None:
    """Offer all pairs that may lie within the limit of one of their items, or be its farthest."""
    items, n = looks.items, len(looks.items)
    cosine = items.metric == "cosine"
    number, scale = metric_number(items.metric), 2.0 if cosine else 1.0
    near, far = limits / scale, lists.maxima / scale  # as keys of the tiles
    terms = items.norms.sqrt() if cosine else items.norms
    size = looks.tile
    height = _ROW_TILES * size
    tile = torch.empty(height * size)
    places = [(own, other) for own in range(0, n, height) for other in range(own, n, size)]
    for done, (own, other) in enumerate(places, 1):
        mine, theirs = slice(own, min(own + height, n)), slice(other, min(other + size, n))
        rows, columns = looks.cut(mine.start, mine.stop), looks.cut(theirs.start, theirs.stop)
        values = tile[: len(rows.rows) * len(columns.rows)].view(len(rows.rows), -1)
        tile_products(rows, columns, values)
        wanted = (near[mine], near[theirs]), (far[mine], far[theirs])
        pairs = open_pairs(
            Tile(values, other, number, looks.terms[mine], looks.terms[theirs]),
            bound_between(rows, columns, items.metric),
            *wanted,
            first_item=own,
            symmetric=True,
        )
        if own == other:
            own_integers = looks.integers(mine)
        integers = looks.integers(theirs)
        pairs = narrow_pairs(
            pairs,
            own_integers.rows,
            integers.rows,
            terms[mine],
            terms[theirs],
            number,
            bound_between(own_integers, integers, items.metric),
            *wanted,
        )
        distances = _exact(items, mine, theirs, pairs)
        lists.offer(pairs, distances, own, other, both=True)
        for part in (mine, theirs):
            torch.div(lists.maxima[part], scale, out=far[part])
        if progress is not None:
            progress("certain neighbours", done, len(places))


def _mend(
    looks: Looks,
    index: Tensor,
    distance: Tensor,
    limits: Tensor,
    seen: Tensor,
    progress: Progress | None,
) -> None:
    """Replace the lists of items whose k nearest may be others than those found, in place.

    Args:
        looks: all items.
        index: int32 [N, k].
        distance: float64 [N, k].
        limits: float64 [N], the largest of `distance`.
        seen: float64 [N], distances by the tiles up to which every item was seen.
        progress: called as (phase, done, total).
    """
    items, n = looks.items, len(looks.items)
    scale = 2.0 if items.metric == "cosine" else 1.0
    # What rows of this width may be off depends on their norms alone.
    error = as_they_are(items.block(0, 1), items.norms, items.metric).slack
    widths = scale * (error + error.max())
    doubtful = torch.nonzero(seen - widths <= limits).squeeze(1)
    for begin in range(0, len(doubtful), TILE):
        chosen = doubtful[begin : begin + TILE]
        rows = items.take(chosen)
        own = as_they_are(rows, items.norms[chosen], items.metric)
        lists = ExactLists(limits[chosen], index.shape[1])
        nowhere = torch.full((len(chosen),), torch.inf, dtype=torch.float64)
        for other in range(0, n, TILE):
            theirs = slice(other, min(other + TILE, n))
            columns = looks.cut(theirs.start, theirs.stop)
            values = tile_products(own, columns, torch.empty(len(rows), len(columns.rows)))
            endless = torch.full((len(columns.rows),), torch.inf, dtype=torch.float64)
            pairs = open_pairs(
                Tile(
                    values,
                    other,
                    metric_number(items.metric),
                    looks.terms[chosen],
                    looks.terms[theirs],
                ),
                bound_between(own, columns, items.metric),
                (limits[chosen] / scale, -endless),
                (nowhere, endless),
                first_item=0,
                symmetric=False,
            )
            row, column = pairs.long().unbind(1)
            exact = items.exact_distances(chosen[row], column + other)
            lists.offer(pairs, exact, 0, other, both=False)
        index[chosen], distance[chosen] = lists.result()
        if progress is not None:
            progress("certain neighbours", min(begin + TILE, len(doubtful)), len(doubtful))


def _exact(items: Items, rows: slice, columns: slice, pairs: Tensor) -> Tensor:
    """Return the exact squared distances of pairs of a tile, float64 [P]."""
    row, column = pairs.long().unbind(1)
    products = pair_products(
        items.block(rows.start, rows.stop).contiguous(),
        items.block(columns.start, columns.stop).contiguous(),
        row,
        column,
    )
    return squared_from(
        products, items.norms[rows][row], items.norms[columns][column], items.metric
    )


def _places(n: int, size: int) -> itertools.chain[tuple[int, int]]:
    """Return where the tiles on and above the diagonal begin, those on it first."""
    starts = range(0, n, size)
    return itertools.chain(
        ((own, own) for own in starts),
        ((own, other) for own in starts for other in range(own + size, n, size)),
    )
