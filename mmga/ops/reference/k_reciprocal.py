"""k-reciprocal encoding (Zhong et al., CVPR 2017) as sparse rows.

N items, K neighbours a row (self among them), in the order of (distance, index). Sparse rows are
CSR arrays: offsets int64 [N + 1], columns int32 [E] ascending within a row and, where they have
weights, values float64 [E].

Arguments that recur:
    neighbours: int32 [N, K], nearest first.
    offsets: with `columns` and `values`: sparse rows over N columns, those of V from
        `average_rows` on.
    rows: int64 [M], the chosen rows.
    max_distance: largest Jaccard distance that is returned.
"""

from __future__ import annotations

import torch
from torch import Tensor


def reciprocal_sets(neighbours: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return for every item the j among its first k neighbours that have it among theirs.

    Args:
        k: length of the lists compared, self included; 1 to K.

    Returns:
        CSR offsets and columns.
    """
    forward = neighbours[:, :k].long()  # [N, k]
    items = torch.arange(len(neighbours), device=neighbours.device)
    mutual = (neighbours[forward, :k] == items[:, None, None]).any(2)  # [N, k]
    rows = items[:, None].expand_as(forward)[mutual]
    return _csr(rows * len(items) + forward[mutual], len(items), len(items))


def expand_sets(
    offsets: Tensor, columns: Tensor, half_offsets: Tensor, half_columns: Tensor
) -> tuple[Tensor, Tensor]:
    """Return each set R(i) joined with every C(j), j in R(i), of which it holds over two thirds.

    Args:
        offsets: of the sets R, like `columns`.
        half_offsets: of the sets C of the half list, like `half_columns`.

    Returns:
        CSR offsets and columns.
    """
    n = len(offsets) - 1
    rows = _rows(offsets)
    own = rows * n + columns  # ascending, since rows and columns are
    pair, entry = _join(columns, half_offsets)  # for pair (i, j): every l in C(j)
    key = rows[pair] * n + half_columns[entry]
    inside = _contains(own, key)
    sizes = half_offsets[1:] - half_offsets[:-1]
    common = torch.zeros(len(columns), dtype=torch.int64, device=offsets.device)
    common.index_add_(0, pair, inside.long())
    accepted = 3 * common > 2 * sizes[columns.long()]
    return _csr(torch.cat([own, key[accepted[pair]]]).unique(), n, n)


def listed_distances(
    offsets: Tensor, columns: Tensor, neighbours: Tensor, distances: Tensor
) -> Tensor:
    """Return d(i, j) of each entry from i's list or else from j's, -1 where neither has it.

    Args:
        distances: [N, K] of `neighbours`, float32 or float64.

    Returns:
        [E] float64.
    """
    n = len(offsets) - 1
    items = torch.arange(n, device=offsets.device)[:, None]
    listed, order = (items * n + neighbours).reshape(-1).sort()
    values = distances.reshape(-1).double()[order]
    rows = _rows(offsets)
    result = torch.full((len(columns),), -1.0, dtype=torch.float64, device=offsets.device)
    for key in (columns * n + rows, rows * n + columns):  # the item's own list comes last and wins
        place = torch.searchsorted(listed, key).clamp(max=max(len(listed) - 1, 0))
        found = listed[place] == key if len(listed) else torch.zeros_like(key, dtype=torch.bool)
        result[found] = values[place[found]]
    return result


def encode(offsets: Tensor, distances: Tensor, maxima: Tensor | None) -> Tensor:
    """Return the weights exp(-d) of each row, divided by their sum.

    Args:
        distances: d of each entry, [E] float64.
        maxima: [N] float64, by which a row's distances are divided first (0: the row's are 0).
            None: no division, and the row's smallest distance is subtracted, which leaves the
            quotient as it is and keeps exp from vanishing.

    Returns:
        [E] float64.
    """
    rows = _rows(offsets)
    if maxima is None:
        least = torch.full((len(offsets) - 1,), torch.inf, dtype=torch.float64, device="cpu")
        least = least.to(offsets.device).scatter_reduce_(0, rows, distances, "amin")
        scaled = distances - least[rows]
    else:
        scaled = torch.where(maxima[rows] > 0, distances / maxima[rows], 0.0)
    weights = torch.exp(-scaled)
    total = torch.zeros(len(offsets) - 1, dtype=torch.float64, device=offsets.device)
    return weights / total.index_add_(0, rows, weights)[rows]


def average_rows(
    offsets: Tensor, columns: Tensor, values: Tensor, neighbours: Tensor, k2: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return for every item the mean of the rows of its first k2 neighbours, 1 <= k2 <= K.

    Returns:
        CSR offsets, columns and values.
    """
    n = len(offsets) - 1
    chosen = neighbours[:, :k2].reshape(-1)
    pair, entry = _join(chosen, offsets)
    key, place = ((pair // k2) * n + columns[entry]).unique(return_inverse=True)
    total = torch.zeros(len(key), dtype=torch.float64, device=offsets.device)
    total.index_add_(0, place, values[entry])
    return *_csr(key, n, n), total / k2


def transpose_rows(
    offsets: Tensor, columns: Tensor, values: Tensor, first: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the inverted index of the rows from `first` on: for each column, rows and values.

    Returns:
        CSR offsets [N + 1], rows (ascending within a column) and values.
    """
    n = len(offsets) - 1
    begin = int(offsets[first])
    rows, kept = _rows(offsets)[begin:], columns[begin:].long()
    order = torch.argsort(kept, stable=True)
    counts = torch.bincount(kept, minlength=n)
    return _offsets(counts), rows[order].to(torch.int32), values[begin:][order]


def jaccard_rows(
    offsets: Tensor,
    columns: Tensor,
    values: Tensor,
    inverted_offsets: Tensor,
    inverted_rows: Tensor,
    inverted_values: Tensor,
    rows: Tensor,
    max_distance: float | None,
    upper: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the Jaccard distances of chosen rows to the rows of an inverted index.

    J = 1 - m / (2 - m) with m = sum over l of min(V(i, l), V(j, l)), clamped to [0, 1].

    Args:
        inverted_offsets: of the inverted index, like `inverted_rows` and `inverted_values`.
        max_distance: None: entries with J < 1 are returned.
        upper: leave out the entries before a row's own.

    Returns:
        CSR offsets [M + 1], columns (ascending) and values of J.
    """
    n = len(offsets) - 1
    counts, found, distances = [], [], []
    for i in rows.tolist():
        mine = slice(int(offsets[i]), int(offsets[i + 1]))
        pair, entry = _join(columns[mine], inverted_offsets)
        shared = torch.minimum(values[mine][pair], inverted_values[entry])
        overlap = torch.zeros(n, dtype=torch.float64, device=offsets.device)
        overlap.index_add_(0, inverted_rows[entry].long(), shared)
        jaccard = (1 - overlap / (2 - overlap)).clamp(0, 1)
        kept = jaccard < 1 if max_distance is None else jaccard <= max_distance
        if upper:
            kept[:i] = False
        found.append(kept.nonzero()[:, 0].to(torch.int32))
        distances.append(jaccard[kept])
        counts.append(len(found[-1]))
    nothing = columns.new_empty(0), values.new_empty(0)
    lengths = torch.tensor(counts, dtype=torch.int64, device=offsets.device)
    return _offsets(lengths), torch.cat([nothing[0], *found]), torch.cat([nothing[1], *distances])


LIGHT_SHARE, LIGHTER = 0.35, 0.7
"""Share of the least overlap that a row's light entries may sum to, and the factor between the
weights tried as the least of its heavy ones."""


def prefix_rows(
    offsets: Tensor, columns: Tensor, values: Tensor, max_distance: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the heavy entries of each row of V, for a prefix filter.

    The light entries sum to at most a share of the overlap that items within `max_distance`, below
    1, have: so small that the heavy entries of two such items share some of it.

    Returns:
        CSR offsets [N + 1], columns and values.
    """
    rest = LIGHT_SHARE * 2 * (1 - max_distance) / (2 - max_distance)
    kept = torch.zeros(len(values), dtype=torch.bool, device=values.device)
    for i in range(len(offsets) - 1):
        mine = slice(int(offsets[i]), int(offsets[i + 1]))
        weights = values[mine]
        least = float(weights.max()) if len(weights) else 0.0
        while least > 0 and float(weights[weights < least].sum()) > rest:
            least *= LIGHTER
        kept[mine] = weights >= least
    counts = torch.bincount(_rows(offsets)[kept], minlength=len(offsets) - 1)
    return _offsets(counts), columns[kept], values[kept]


def jaccard_join(
    offsets: Tensor,
    columns: Tensor,
    values: Tensor,
    heavy_offsets: Tensor,
    heavy_columns: Tensor,
    heavy_values: Tensor,
    index_offsets: Tensor,
    index_rows: Tensor,
    index_values: Tensor,
    rows: Tensor,
    max_distance: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the Jaccard distances up to `max_distance` of chosen rows, from each row's own on.

    These are `jaccard_rows` of V and its inverted index with `upper`. The heavy rows and their
    inverted index find the candidates, and change nothing.

    Args:
        heavy_offsets: of `prefix_rows` of V, like `heavy_columns` and `heavy_values`.
        index_offsets: of the inverted index of the heavy rows, like `index_rows` and
            `index_values`.
        max_distance: the one of the heavy rows, below 1.

    Returns:
        CSR offsets [M + 1], columns (ascending) and values of J.
    """
    inverted = transpose_rows(offsets, columns, values, 0)
    return jaccard_rows(offsets, columns, values, *inverted, rows, max_distance, True)


def symmetrise(offsets: Tensor, columns: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the symmetric matrix whose upper half, diagonal included, the rows hold.

    Returns:
        CSR offsets [N + 1], columns (ascending) and values.
    """
    n, rows = len(offsets) - 1, _rows(offsets)
    above = columns > rows
    all_rows = torch.cat([rows, columns[above].long()])
    all_columns = torch.cat([columns.long(), rows[above]])
    order = torch.argsort(all_rows * n + all_columns)
    counts = torch.bincount(all_rows, minlength=n)
    found = all_columns[order].to(torch.int32), torch.cat([values, values[above]])[order]
    return _offsets(counts), *found


def mix_distances(
    squared: Tensor,
    maxima: Tensor | None,
    offsets: Tensor,
    columns: Tensor,
    values: Tensor,
    first: int,
    lambda_value: float,
    power: int,
    scale: float,
) -> Tensor:
    """Return final distances (1 - lambda) J + lambda d', d' from squared distances d.

    Args:
        squared: d, [R, G], float32 or float64.
        maxima: [R] float64, d' = (d / maximum)^power, 0 where the maximum is; None: d' = scale d.
        offsets: of the rows' Jaccard distances, like `columns` and `values`; gallery item g is
            column first + g; a missing entry is 1.
        first: item of the gallery's first.
        lambda_value: weight of d'.
        power: 1 or 2: whether distances and maxima are squared (once more) before they are divided.
        scale: factor of d where it is not divided.

    Returns:
        [R, G] float64.
    """
    original = squared.double()
    if maxima is None:
        original = original * scale
    else:
        largest = maxima[:, None]
        if power == 2:
            original, largest = original * original, largest * largest
        original = torch.where(largest > 0, original / largest, 0.0)
    distances = torch.ones_like(original)
    distances[_rows(offsets), columns.long() - first] = values
    return (1 - lambda_value) * distances + lambda_value * original


def take_overlaps_(
    values: Tensor,
    begin: Tensor,
    end: Tensor,
    item: Tensor,
    jaccard: Tensor,
    shift: Tensor,
    first: int,
) -> None:
    """Take (1 - J) shift off the values of pairs that overlap.

    Args:
        values: a tile, float32 [R, W].
        begin: int64 [R], where the pairs of each row begin among all.
        end: int64 [R].
        item: int64 [E], ascending in each row; item `first` is column 0.
        jaccard: J, float64 [E].
        shift: float64 [R].
        first: item of the tile's first column.
    """
    counts = end - begin
    row = torch.arange(len(begin), device=begin.device).repeat_interleave(counts)
    within = torch.arange(len(row), device=begin.device) - (counts.cumsum(0) - counts)[row]
    pair = begin[row] + within
    taken = ((jaccard[pair] - 1) * shift[row]).to(torch.float32)
    values[row, item[pair] - first] += taken


def _offsets(counts: Tensor) -> Tensor:
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def _rows(offsets: Tensor) -> Tensor:
    """Return the row of each entry, int64 [E]."""
    items = torch.arange(len(offsets) - 1, device=offsets.device)
    return items.repeat_interleave(offsets[1:] - offsets[:-1])


def _csr(keys: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Return offsets and columns of entries given as row * columns + column, in any order."""
    keys = keys.sort().values
    counts = torch.bincount(keys // columns, minlength=rows)
    return _offsets(counts), (keys % columns).to(torch.int32)


def _join(chosen: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Return, for every entry of every chosen row in turn, (place in `chosen`, entry)."""
    chosen = chosen.long()
    sizes = offsets[chosen + 1] - offsets[chosen]
    places = torch.arange(len(chosen), device=offsets.device)
    pair = places.repeat_interleave(sizes)
    begin = (offsets[chosen] - (sizes.cumsum(0) - sizes))[pair]
    return pair, torch.arange(len(pair), device=offsets.device) + begin


def _contains(ordered: Tensor, keys: Tensor) -> Tensor:
    """Return whether each key is in an ascending tensor."""
    if not len(ordered):
        return torch.zeros_like(keys, dtype=torch.bool)
    place = torch.searchsorted(ordered, keys).clamp(max=len(ordered) - 1)
    return ordered[place] == keys
