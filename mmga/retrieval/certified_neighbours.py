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

from mmga.errors import UserError
from mmga.ops.certified import ExactLists, narrow_pairs, nearest_of, open_pairs
from mmga.ops.distance import metric_number
from mmga.ops.neighbours import NearestLists, Neighbours, pair_products
from mmga.ops.ranking import Tile
from mmga.retrieval.certified import EXACT, beyond_bounds
from mmga.retrieval.items import TILE, Items, squared_from
from mmga.retrieval.plan import CANDIDATES, candidates_of, directions_of, spread
from mmga.retrieval.stream import Progress
from mmga.retrieval.subspace import (
    Approximation,
    Subspace,
    as_integers,
    as_they_are,
    blocked_product,
    bound_between,
)

# Neighbours beyond k that a first look at tiles of the features asks for: where more than these
# nearly tie with the k-th, the item gets a second look.
_SPARE = 8
# Items among which each item's farthest is looked for first.
_SAMPLE = 1024
# Rows of a tile of the second look, in tiles: the features of its items come through the caches for
# exact products, and the fewer such blocks, the less often.
_ROW_TILES = 4
_PILOT = 48
# Costs of a pair in products of one dimension: looking at it, and a dimension of a product of
# integers, which is bound by the way of two features through the caches.
_COUNTING, _INTEGERS = 40, 3
# Operations of all products below which there is nothing to save.
_SMALL = 1e11


class _Looks:
    """All items at the level of the tiles."""

    def __init__(self, items: Items, subspace: Subspace | None, tile: int) -> None:
        self.items, self.subspace, self.tile = items, subspace, tile
        n, cosine = len(items), items.metric == "cosine"
        self._rows: Tensor | None = None
        self.terms = items.terms
        parts = []
        if subspace is not None:
            width = subspace.directions.shape[1]
            self._rows = torch.empty(n, width)
            if cosine:  # coordinates are of the normalised features
                self.terms = torch.ones_like(items.terms)
        for begin in range(0, n, TILE):
            part = slice(begin, min(begin + TILE, n))
            norms = items.norms[part]
            if subspace is None or self._rows is None:
                parts.append(as_they_are(items.block(begin, begin + 1), norms, items.metric))
            else:
                block = items.block(part.start, part.stop).contiguous()
                subspace.coordinates(block, norms, items.metric, self._rows[part])
                parts.append(subspace.approximate(self._rows[part], norms, items.metric))
        self._radius = torch.cat([part.radius for part in parts])
        self._slack = torch.cat([part.slack for part in parts])

    def cut(self, begin: int, end: int) -> Approximation:
        """Return some items, of which the rows may be valid until the next call only."""
        rows = self.items.block(begin, end) if self._rows is None else self._rows[begin:end]
        return Approximation(rows, self._radius[begin:end], self._slack[begin:end])

    def integers(self, items: slice) -> Approximation:
        """Return some items as integers."""
        rows = self.items.block(items.start, items.stop).contiguous()
        return as_integers(rows, self.items.norms[items], self.items.metric)

    def widths(self) -> Tensor:
        """Return by how much an item's keys may be off at most, float64 [N]."""
        factor = 2.0 if self.items.metric == "euclidean" else 1.0
        return factor * self._radius * self._radius.max() + (self._slack + self._slack.max())


def first_dimensions(dimensions: int) -> int:
    """Return how many coordinates the first look takes, which must find some near items."""
    return max(min(dimensions, CANDIDATES[0]), dimensions // 2)


def certified_neighbours(
    items: Items,
    k: int,
    progress: Progress | None = None,
    subspace: Subspace | None = None,
    *,
    kept: Tensor | None = None,
    tile: int | None = None,
) -> Neighbours:
    """Return the k nearest of every item among all, itself included at distance 0.

    Args:
        items: N items.
        k: 1 to N.
        progress: called as (phase, done, total).
        subspace: directions of the tiles' coordinates; None: tiles of the features.
        kept: [Q, N - Q] float32, filled with the squared distances of the first Q items to the
            others as tiles of the features have them; None with a subspace.
        tile: rows and columns of a tile; `TILE` if None.

    Returns:
        Lists in the order of (float64 distance, index) with squared distances rounded to float32.
        Each item's largest distance is exact where tiles are of coordinates, else the tiles'.
    """
    n = len(items)
    looks = _Looks(items, subspace, tile or TILE)
    wanted = k if subspace is not None else min(n, k + _SPARE)
    first = _first_look(looks, wanted, progress, kept)
    # Exact distances of what was found, in the order that counts.
    owner = torch.arange(n).repeat_interleave(wanted)
    found = items.exact_distances(owner, first.index.reshape(-1).long()).view(n, wanted)
    index, distance = nearest_of(first.index, found, k)
    limits = distance[:, -1].contiguous()
    if subspace is not None:
        lists = ExactLists(limits, k)
        lists.add_self(torch.arange(n))
        lists.maxima.copy_(_some_far(looks))
        _second_look(looks, lists, limits, progress)
        index, distance = lists.result()
        maxima = lists.maxima.float()
    else:
        maxima = first.maxima
        if wanted < n:
            _mend(looks, index, distance, limits, first.distances[:, -1].double(), progress)
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


def subspace_for(items: Items, k: int, seed: int = 0) -> Subspace | None:
    """Return directions whose coordinates make the search cheaper, or None.

    The choice follows from counts of operations and of undecided pairs, not from a clock: the same
    items give the same directions.

    Args:
        items: N items.
        k: neighbours wanted.
        seed: of the directions.
    """
    n, width = len(items), items.dimension
    operations = float(n) * n * width
    if operations < _SMALL:
        return None
    subspace = directions_of(items.take, n, width, items.metric, operations, seed)
    if subspace is None:
        return None
    candidates = candidates_of(subspace)
    shares = _undecided_shares(items, subspace, candidates, k)
    # Half of all pairs: two looks at coordinates, made once, and integers of undecided pairs.
    costs: dict[int, float] = {0: width + _COUNTING}
    for c in candidates:
        made = 2.0 * width * c / n
        looks = c + first_dimensions(c) + 2 * _COUNTING
        costs[c] = looks + made + min(1.0, 2 * shares[c]) * _INTEGERS * width
    best = min(costs, key=costs.__getitem__)
    return subspace.first(best) if best else None


def _undecided_shares(
    items: Items, subspace: Subspace, candidates: list[int], k: int
) -> dict[int, float]:
    """Return the share of an item's pairs that its limits leave undecided, by coordinates."""
    n, metric = len(items), items.metric
    chosen, others = spread(n, _PILOT), spread(n, 4096)
    rows, norms = items.take(chosen), items.norms[chosen]
    # Products of float32: only the estimate depends on them.
    exact = torch.cat(
        [rows @ items.block(b, min(b + TILE, n)).T for b in range(0, n, TILE)], 1
    ).double()
    if metric == "cosine":
        exact *= torch.where(norms > 0, norms.rsqrt(), 0.0)[:, None] * items.terms

    def keys(inner: Tensor, places: Tensor) -> Tensor:
        return 1 - inner if metric == "cosine" else norms[:, None] + items.norms[places] - 2 * inner

    def coordinates(x: Tensor, squared: Tensor) -> Tensor:
        room = torch.empty(len(x), subspace.directions.shape[1])
        return subspace.coordinates(x, squared, metric, room)

    # A first look takes an item's nearest from those that are near indeed, by few coordinates.
    exact = keys(exact, torch.arange(n))
    near = exact.topk(min(n, 8 * k), dim=1, largest=False).indices  # [P, 8k]
    flat = near.reshape(-1)
    own, other = coordinates(rows, norms), coordinates(items.take(others), items.norms[others])
    theirs = coordinates(items.take(flat), items.norms[flat]).view(*near.shape, -1)
    shares = {}
    for c in candidates:
        first = first_dimensions(c)
        inner = (theirs[..., :first] @ own[:, :first, None]).squeeze(2).double()
        found = near.gather(1, keys(inner, near).topk(k, dim=1, largest=False).indices)
        limit = exact.gather(1, found).amax(1, keepdim=True)
        inner = (own[:, :first] @ other[:, :first].T).double()
        far = others[keys(inner, others).argmax(1, keepdim=True)]
        few = subspace.first(c)
        one, all_ = (
            few.approximate(rows_[:, :c].contiguous(), items.norms[places], metric)
            for rows_, places in ((own, chosen), (other, others))
        )
        bound = bound_between(one, all_, metric)
        width = bound.row_radius[:, None] * bound.column_radius + bound.row_slack[:, None]
        width = width + bound.column_slack
        guess = keys((one.rows @ all_.rows.T).double(), others)
        wanted = (guess - width <= limit) | (guess + width >= exact.gather(1, far))
        shares[c] = float(wanted.double().mean())
    return shares


def _first_look(
    looks: _Looks, k: int, progress: Progress | None, kept: Tensor | None
) -> Neighbours:
    """Return the k nearest by the tiles' distances."""
    n, cosine = len(looks.items), looks.items.metric == "cosine"
    width = looks.items.dimension
    if looks.subspace is not None:
        width = first_dimensions(looks.subspace.directions.shape[1])
    lists = NearestLists(n, k)
    lists.add_self()
    # Products of few coordinates are small: larger tiles, of which no result depends.
    size = looks.tile if looks.subspace is None else 2 * looks.tile
    tile = torch.empty(size * size)
    tiles = list(_tiles(n, size))
    for done, (own, other) in enumerate(tiles, 1):
        rows, columns = (looks.cut(at, min(at + size, n)).rows for at in (own, other))
        values = tile[: len(rows) * len(columns)].view(len(rows), -1)
        blocked_product(rows[:, :width], columns[:, :width], values)
        terms, others = looks.terms[own : own + size], looks.terms[other : other + size]
        lists.add(values, terms, others, own, other, cosine=cosine, symmetric=True, kept=kept)
        if progress is not None:
            progress("neighbours", done, len(tiles))
    return lists.result()


def _some_far(looks: _Looks) -> Tensor:
    """Return the exact distance of each item to one that seems far, float64 [N].

    The one is the farthest of a sample by the coordinates of the first look: the larger, the fewer
    pairs are in question as the farthest.
    """
    items, n = looks.items, len(looks.items)
    sample = spread(n, _SAMPLE)
    rows = torch.cat([looks.cut(int(i), int(i) + 1).rows for i in sample])
    rows = rows[:, : first_dimensions(rows.shape[1])].contiguous()
    own = items.norms[sample].float() / 2 if items.metric == "euclidean" else 0.0
    far = torch.empty(n, dtype=torch.int64)
    for begin in range(0, n, TILE):
        part = slice(begin, min(begin + TILE, n))
        near = looks.cut(part.start, part.stop).rows[:, : rows.shape[1]] @ rows.T - own
        far[part] = sample[near.argmin(1)]
    return items.exact_distances(torch.arange(n), far)


def _second_look(
    looks: _Looks, lists: ExactLists, limits: Tensor, progress: Progress | None
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
    tiles = [(own, other) for own in range(0, n, height) for other in range(own, n, size)]
    for done, (own, other) in enumerate(tiles, 1):
        mine, theirs = slice(own, min(own + height, n)), slice(other, min(other + size, n))
        rows, columns = looks.cut(mine.start, mine.stop), looks.cut(theirs.start, theirs.stop)
        values = tile[: len(rows.rows) * len(columns.rows)].view(len(rows.rows), -1)
        blocked_product(rows.rows, columns.rows, values)
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
            progress("certain neighbours", done, len(tiles))


def _mend(
    looks: _Looks,
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
    doubtful = torch.nonzero(seen - scale * looks.widths() <= limits).squeeze(1)
    for begin in range(0, len(doubtful), TILE):
        chosen = doubtful[begin : begin + TILE]
        rows = items.take(chosen)
        own = as_they_are(rows, items.norms[chosen], items.metric)
        lists = ExactLists(limits[chosen], index.shape[1])
        nowhere = torch.full((len(chosen),), torch.inf, dtype=torch.float64)
        for other in range(0, n, TILE):
            theirs = slice(other, min(other + TILE, n))
            columns = looks.cut(theirs.start, theirs.stop)
            values = blocked_product(rows, columns.rows, torch.empty(len(rows), len(columns.rows)))
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


def _tiles(n: int, size: int) -> itertools.chain[tuple[int, int]]:
    """Return where the tiles on and above the diagonal begin, those on it first."""
    starts = range(0, n, size)
    return itertools.chain(
        ((own, own) for own in starts),
        ((own, other) for own in starts for other in range(own + size, n, size)),
    )
