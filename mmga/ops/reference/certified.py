"""Ranks and neighbours from approximate tiles with a bound on their error.

The key of row i and column j may be off by
row_radius[i] * column_radius[j] + (row_slack[i] + column_slack[j]).

Arguments that recur, beside `ranking`'s (tiles are float32):
    row_radius: [R], with `column_radius` [W], `row_slack` [R] and `column_slack` [W]; float32 for
        keys of a tile, float64 for keys of pairs.
    x: features of the tile's rows, float32 [R, D], or their `int16_rows`.
    y: features of the tile's columns, [W, D], likewise. With them, `row_term` float64 [R] and
        `column_term` float64 [W] are norms (cosine) or squared norms (euclidean).
    pairs: int32 [P, 2], rows and columns of a tile.
    near_row: [R], with `near_column` [W], in the dtype of the bound: a pair is wanted if its key
        may be at most one of the two.
    far_row: [R], with `far_column` [W]: a pair is also wanted if its key may be at least one.
    first_item: item number of the tile's first row.
    first_other: item number of the tile's first column.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmga.ops.reference.distance import METRICS, pair_sums, ranking_keys
from mmga.ops.reference.ranking import counted_items, row_keys


def count_certain(
    values: Tensor,
    row_term: Tensor,
    column_term: Tensor,
    metric: int,
    offset: int,
    row_radius: Tensor,
    column_radius: Tensor,
    column_slack: Tensor,
    match_start: Tensor,
    match_item: Tensor,
    lower: Tensor,
    upper: Tensor,
    ignored_start: Tensor,
    ignored_item: Tensor,
    row_camera: Tensor | None,
    column_camera: Tensor | None,
    removed: Tensor | None,
    preceding: Tensor,
) -> Tensor:
    """Count, for every match, the items of a tile that certainly rank before it.

    Args:
        lower: float32 [M], the match's key less the row's slack, rounded down: an item precedes
            the match if its key, with radius and column slack added, is below it.
        upper: float32 [M], the match's key plus the row's slack, rounded up: an item does not
            precede the match if its key, with radius and column slack taken off, is above it.

    Returns:
        The undecided pairs, int32 [P, 4], ascending: row, column, and the first and the end of the
        row's matches of which it is unknown whether the column's item precedes them.
    """
    cameras = row_camera, column_camera
    columns = torch.arange(values.shape[1], device=values.device)
    undecided = []
    for row in range(values.shape[0]):
        keys = row_keys(row, values, row_term, column_term, metric)  # [W]
        counted = counted_items(
            row, offset, len(keys), ignored_start, ignored_item, cameras, removed
        )

        mine = slice(int(match_start[row]), int(match_start[row + 1]))
        width = row_radius[row] * column_radius + column_slack
        before = (keys + width) < lower[mine][:, None]  # [m, W]
        after = (keys - width) > upper[mine][:, None]
        preceding[mine] += (before & counted).sum(1)
        first, last = after.sum(0), (~before).sum(0)
        pending = torch.nonzero(counted & (first < last)).squeeze(1)
        undecided.append(
            torch.stack(
                [torch.full_like(pending, row), columns[pending], first[pending], last[pending]], 1
            )
        )
    return torch.cat(undecided).to(torch.int32)


def count_certain_int8(
    x: Tensor,
    y: Tensor,
    row_unit: Tensor,
    column_unit: Tensor,
    row_term: Tensor,
    column_term: Tensor,
    metric: int,
    offset: int,
    row_radius: Tensor,
    column_radius: Tensor,
    column_slack: Tensor,
    match_start: Tensor,
    match_item: Tensor,
    lower: Tensor,
    upper: Tensor,
    ignored_start: Tensor,
    ignored_item: Tensor,
    row_camera: Tensor | None,
    column_camera: Tensor | None,
    removed: Tensor | None,
    preceding: Tensor,
) -> Tensor:
    """Count as `count_certain` in the tile of `int8_products_`, but nothing of undecided pairs.

    Returns:
        The pairs that are undecided for a match of their row, int32 [P, 4], ascending: row, column,
        and all matches of the row: 0 and their number.
    """
    values = torch.empty(len(x), len(y), dtype=torch.float32, device=x.device)
    int8_products_(x, y, row_unit, column_unit, values)
    undecided = count_certain(
        values,
        row_term,
        column_term,
        metric,
        offset,
        row_radius,
        column_radius,
        column_slack,
        match_start,
        match_item,
        lower,
        upper,
        ignored_start,
        ignored_item,
        row_camera,
        column_camera,
        removed,
        preceding,
    )
    for row, _, _, last in undecided.tolist():  # take back what these have been counted for
        preceding[int(match_start[row]) + last : int(match_start[row + 1])] -= 1
    undecided[:, 2] = 0
    undecided[:, 3] = match_start.diff()[undecided[:, 0].long()].to(torch.int32)
    return undecided


INTEGER_LENGTH = 2.0**15
# Entries and squared norms below which rows become 0: their scales would not be float32 numbers.
LEAST_ENTRY, LEAST_SQUARED = 2.0**-100, 2.0**-170
"""Length of integer rows. That of a rounded row is below 2^15.5, so that by Cauchy's inequality no
part of an inner product leaves 32 bits."""


def int16_rows(x: Tensor, norms: Tensor) -> tuple[Tensor, Tensor]:
    """Round features, brought to length 2^15 in float32, to integers of at most 32767.

    Args:
        x: float32 [N, D], D at most 2^24.
        norms: their squared norms, float64 [N]; rows below 2^-170 become 0.

    Returns:
        int16 [N, D] and float64 [N], the length of the rounding error, in the integers' unit.
    """
    short = norms < LEAST_SQUARED
    scale = torch.where(short, 0.0, INTEGER_LENGTH / norms.sqrt()).float()
    scaled = x * scale[:, None]
    whole = scaled.round().clamp(-32767, 32767)
    error = (scaled - whole).double().norm(dim=1)
    return whole.to(torch.int16), torch.where(short & (norms > 0), INTEGER_LENGTH, error)


def mixed(x: Tensor) -> Tensor:
    """Spread each entry of a row [N, D] over others, by an orthogonal map times a power of two.

    Rows are viewed as [count, D / count], their entries multiplied by signs (the last bits of
    SplitMix64 of their places) and these rows combined by a Hadamard matrix. Without it, a few
    entries that are much larger than the others, as transformers have them, would leave the others
    next to no bits. Inner products grow by `count`, the largest power of four up to 64 that divides
    D and leaves 16 columns or more (1: nothing is mixed).
    """
    width = x.shape[1]
    count = mixed_entries(width)
    signs = []
    for place in range(1, width + 1):
        z = place * 0x9E3779B97F4A7C15 % 2**64
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        signs.append(-1.0 if (z ^ (z >> 31)) & 1 else 1.0)
    rows = x * torch.tensor(signs, dtype=x.dtype, device=x.device)
    half = 1
    while half < count:
        upper, lower = rows.view(len(x), count // (2 * half), 2, -1).unbind(2)
        rows = torch.stack([upper + lower, upper - lower], 2)
        half *= 2
    return rows.reshape(x.shape)


def mixed_entries(width: int) -> int:
    """Return how many entries of rows of this width `mixed` combines."""
    count = 1
    while count < 64 and width % (4 * count) == 0 and width // (4 * count) >= 16:
        count *= 4
    return count


def int8_rows(x: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """Round `mixed` rows to integers, of which the largest is `most`.

    Rows of entries below 2^-100 become 0. Kernels may lose squares of errors below 2^-126.

    Args:
        x: float32 [N, D].
        most: 1 to 127.

    Returns:
        int8 [N, D]; the float32 unit [N] of each row's numbers, with which their inner products are
        about those of x; and float64 [N], the length of the rounding error.
    """
    rows, shrink = mixed(x), mixed_entries(x.shape[1]) ** -0.5
    largest = rows.abs().amax(1) if x.shape[1] else x.new_zeros(len(x))
    # A quotient of tensors: torch takes that of a number as a product with the reciprocal.
    scale = torch.where(largest < LEAST_ENTRY, 0.0, torch.full_like(largest, most) / largest)
    unit = largest / most
    numbers = (rows * scale[:, None]).round()
    rest = rows - numbers * unit[:, None]
    return numbers.to(torch.int8), unit * shrink, rest.double().norm(dim=1) * shrink


def rounded_rows(
    x: Tensor,
    more_x: Tensor | None,
    place_x: Tensor | None,
    scale_x: Tensor | None,
    chosen: Tensor,
    norms: Tensor,
    most: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return `int8_rows` and `int16_rows` of chosen vectors.

    Args:
        x: float32, float16 or int8 [M, D], and after them `more_x`, if any, of the same dtype.
        place_x: int64 [N], the row of each vector; None: its number.
        scale_x: float32 [rows], what the numbers of each row are multiplied with; None: 1.
        chosen: int64 [R], numbers of vectors.
        norms: float64 [R], their squared norms.
        most: the largest number of 8 bits.
    """
    rows = _placed(x, more_x, place_x, scale_x)[chosen]
    return *int8_rows(rows, most), *int16_rows(rows, norms)


def _placed(
    first: Tensor, more: Tensor | None, place: Tensor | None, scale: Tensor | None
) -> Tensor:
    rows = (first if more is None else torch.cat([first, more])).to(torch.float32)
    rows = rows if scale is None else rows * scale[:, None]
    return rows if place is None else rows[place]


def int8_products_(
    x: Tensor, y: Tensor, row_unit: Tensor, column_unit: Tensor, out: Tensor
) -> None:
    """Write the inner products of rows of `int8_rows`, exact but for the rounding of the result.

    Args:
        x: int8 [R, D], D at most 2^17.
        y: int8 [W, D].
        row_unit: float32 [R], unit of each row's numbers.
        column_unit: float32 [W].
        out: float32 [R, W].
    """
    products = x.double() @ y.double().T
    out.copy_((products.to(torch.float32) * row_unit[:, None]) * column_unit)


def float_products_(x: Tensor, y: Tensor, block: int, out: Tensor) -> None:
    """Write the inner products of rows, summing few terms at once.

    Args:
        x: float32 [R, D].
        y: float32 [W, D].
        block: terms of a sum; the sums of blocks are added up.
        out: float32 [R, W].
    """
    torch.mm(x[:, :block], y[:, :block].T, out=out)
    for start in range(block, x.shape[1], block):
        terms = slice(start, start + block)
        # addmm_ may begin with `out`: one long sum. And autocast leaves `out=` alone.
        out += torch.mm(x[:, terms], y[:, terms].T, out=torch.empty_like(out))


def pair_keys(
    x: Tensor,
    y: Tensor,
    row_term: Tensor,
    column_term: Tensor,
    rows: Tensor,
    columns: Tensor,
    metric: int,
) -> Tensor:
    """Return the keys of pairs of rows in float64.

    From float32, with `pair_sums`: 1 - <x, y> / (row_term * column_term), 1 where that divisor is
    0, or the squared distance. From `int16_rows`: with the exact product c of the integers in units
    of 2^-30, which is nearly the cosine: 1 - c, or
    max(0, (row_term + column_term) - 2 c sqrt(row_term * column_term)).

    Args:
        rows: int64 [P].
        columns: int64 [P].
        metric: cosine or euclidean.

    Returns:
        float64 [P].
    """
    one, other = row_term[rows], column_term[columns]
    squared = metric == METRICS.index("euclidean")
    if x.dtype == torch.int16:
        cosines = (x[rows].long() * y[columns].long()).sum(1).double() / INTEGER_LENGTH**2
        if not squared:
            return 1 - cosines
        return ((one + other) - 2 * (cosines * (one * other).sqrt())).clamp_min(0)
    sums = pair_sums(x, y, rows, columns, metric)
    if squared:
        return sums
    norms = one * other
    return torch.where(norms > 0, 1 - sums / norms, 1.0)


def refine_pairs(
    undecided: Tensor,
    x: Tensor,
    y: Tensor,
    row_term: Tensor,
    column_term: Tensor,
    metric: int,
    row_radius: Tensor | None,
    column_radius: Tensor | None,
    row_slack: Tensor | None,
    column_slack: Tensor | None,
    offset: int,
    match_start: Tensor,
    match_item: Tensor,
    match_key: Tensor,
    preceding: Tensor,
    tied: Tensor,
) -> Tensor:
    """Refine the undecided pairs of `count_certain` by keys in float64.

    Args:
        undecided: int32 [P, 4], of a tile.
        metric: cosine or euclidean.
        row_radius: None where x and y are the features themselves: the keys are then exact, and
            equal ones ordered by item.
        match_key: float64 [M].

    Returns:
        The pairs that are still undecided, int32 [P', 4].
    """
    row, column, first, last = undecided.long().unbind(1)
    keys = pair_keys(x, y, row_term, column_term, row, column, metric)
    still = []
    for p in range(len(undecided)):
        start = int(match_start[row[p]])
        open_ = torch.arange(start + int(first[p]), start + int(last[p]), device=x.device)
        theirs, key = match_key[open_], keys[p]
        if row_radius is None or column_radius is None or row_slack is None or column_slack is None:
            equal = theirs == key
            tied[row[p]] += equal.sum()
            precedes = (key < theirs) | (equal & (column[p] + offset < match_item[open_]))
            preceding[open_] += precedes.long()
            continue
        width = row_radius[row[p]] * column_radius[column[p]] + (
            row_slack[row[p]] + column_slack[column[p]]
        )
        before, after = key + width < theirs, key - width > theirs
        preceding[open_] += before.long()
        left = open_[~before & ~after] - start
        if len(left):
            still.append(
                torch.stack([row[p], column[p], left[0], left[-1] + 1])  # matches ascend
            )
    return torch.stack(still).to(torch.int32) if still else undecided.new_empty(0, 4)


def filter_candidates(
    values: Tensor,
    row_term: Tensor,
    column_term: Tensor,
    metric: int,
    row_radius: Tensor,
    column_radius: Tensor,
    row_slack: Tensor,
    column_slack: Tensor,
    near_row: Tensor,
    near_column: Tensor,
    far_row: Tensor,
    far_column: Tensor,
    first_item: int,
    first_other: int,
    symmetric: bool,
) -> Tensor:
    """List the pairs of a tile that may be near enough, or far enough, for one of their items.

    Args:
        symmetric: leave out pairs whose row item is not below the column's.

    Returns:
        int32 [P, 2], ascending.
    """
    keys = values
    if metric != METRICS.index("given"):  # which has no terms
        keys = ranking_keys(values, row_term[:, None], column_term, metric)
    width = row_radius[:, None] * column_radius + (row_slack[:, None] + column_slack)
    least, most = keys - width, keys + width
    wanted = (least <= torch.maximum(near_row[:, None], near_column)) | (
        most >= torch.minimum(far_row[:, None], far_column)
    )
    if symmetric:
        item = torch.arange(first_item, first_item + len(values), device=values.device)
        other = torch.arange(first_other, first_other + values.shape[1], device=values.device)
        wanted &= item[:, None] < other
    return torch.nonzero(wanted).to(torch.int32).contiguous()


def filter_int8_candidates(
    x: Tensor,
    y: Tensor,
    row_unit: Tensor,
    column_unit: Tensor,
    row_term: Tensor,
    column_term: Tensor,
    metric: int,
    row_radius: Tensor,
    column_radius: Tensor,
    row_slack: Tensor,
    column_slack: Tensor,
    near_row: Tensor,
    near_column: Tensor,
    far_row: Tensor,
    far_column: Tensor,
    first_item: int,
    first_other: int,
    symmetric: bool,
) -> Tensor:
    """Return `filter_candidates` of the tile of `int8_products_`, int32 [P, 2]."""
    values = torch.empty(len(x), len(y), dtype=torch.float32, device=x.device)
    int8_products_(x, y, row_unit, column_unit, values)
    bounds = row_radius, column_radius, row_slack, column_slack
    limits = near_row, near_column, far_row, far_column
    return filter_candidates(
        values,
        row_term,
        column_term,
        metric,
        *bounds,
        *limits,
        first_item,
        first_other,
        symmetric,
    )


def refine_candidates(
    pairs: Tensor,
    x: Tensor,
    y: Tensor,
    row_term: Tensor,
    column_term: Tensor,
    metric: int,
    row_radius: Tensor,
    column_radius: Tensor,
    row_slack: Tensor,
    column_slack: Tensor,
    near_row: Tensor,
    near_column: Tensor,
    far_row: Tensor,
    far_column: Tensor,
) -> Tensor:
    """Return the pairs that may still be near or far enough by better keys, int32 [P', 2].

    Args:
        metric: cosine or euclidean.
    """
    row, column = pairs.long().unbind(1)
    keys = pair_keys(x, y, row_term, column_term, row, column, metric)
    width = row_radius[row] * column_radius[column] + (row_slack[row] + column_slack[column])
    wanted = (keys - width <= torch.maximum(near_row[row], near_column[column])) | (
        keys + width >= torch.minimum(far_row[row], far_column[column])
    )
    return pairs[wanted].contiguous()


def insert_candidates(
    index: Tensor,
    distance: Tensor,
    counts: Tensor,
    maxima: Tensor,
    pairs: Tensor,
    distances: Tensor,
    limits: Tensor,
    first_item: int,
    first_other: int,
    both: bool,
    k: int,
) -> None:
    """Insert exact distances of pairs into the lists of their items.

    A list holds the candidates within its item's limit; once all its slots are taken, it keeps the
    k nearest by (distance, index), the last of which is the new limit.

    Args:
        index: int32 [N, S], S > k, the candidates of each item; the first `counts` are in use.
        distance: float64 [N, S].
        counts: int32 [N].
        maxima: float64 [N], raised to the largest distance of each item.
        distances: float64 [P].
        limits: float64 [N], distances up to which candidates are kept, lowered as lists fill.
        both: insert into the list of the column's item, too.
        k: candidates that each list must keep.
    """
    for (row, column), value in zip(pairs.tolist(), distances.tolist(), strict=True):
        sides = [(first_item + row, first_other + column)]
        for item, other in sides + ([sides[0][::-1]] if both else []):
            maxima[item] = max(float(maxima[item]), value)
            if value > float(limits[item]):
                continue
            count = int(counts[item])
            index[item, count], distance[item, count] = other, value
            counts[item] = count + 1
            if count + 1 == index.shape[1]:
                mine = sorted(zip(distance[item].tolist(), index[item].tolist(), strict=True))[:k]
                distance[item, :k] = distance.new_tensor([d for d, _ in mine])
                index[item, :k] = index.new_tensor([i for _, i in mine])
                counts[item] = k
                limits[item] = min(float(limits[item]), mine[-1][0])


def collect_candidates_(
    candidates: Tensor,
    counts: Tensor,
    limits: Tensor,
    far_candidates: Tensor | None,
    far_counts: Tensor | None,
    far_limits: Tensor | None,
    k: int,
    x: Tensor,
    y: Tensor,
    row_unit: Tensor,
    column_unit: Tensor,
    row_term: Tensor,
    column_term: Tensor,
    row_radius: Tensor,
    column_radius: Tensor,
    row_slack: Tensor,
    column_slack: Tensor,
    fine_x: Tensor,
    fine_y: Tensor,
    fine_row_term: Tensor,
    fine_column_term: Tensor,
    fine_row_radius: Tensor,
    fine_column_radius: Tensor,
    fine_row_slack: Tensor,
    fine_column_slack: Tensor,
    metric: int,
    own: Tensor | None,
    first_row: int,
    first_other: int,
    mirrored: bool,
    seen: int,
    total: int,
) -> None:
    """Add the columns of a tile that may be among each row's k nearest to the rows' lists.

    Keys of 8-bit rows leave out most columns, those of 16-bit rows bound the others. A row's limit
    is about the k-th least upper bound among its candidates, which are kept where their lower bound
    is within it. A list that they do not fit, with one slot to spare, is lost: its count is -1.
    Kernels may list less, but all of the k nearest. If `total` is given, they expect columns in
    random order and keep fewer while few were seen: a list that in the end has fewer than k upper
    bounds within its limit may lack some.

    Args:
        candidates: int32 [L, S, 3], S > k: items, and bits of two float32, bounds of their keys.
        counts: int32 [L], of candidates in use.
        limits: float32 [L], lowered.
        far_candidates: with the others of its kind, lists of the farthest, of keys times -1, or
            None.
        x: int8 [R, D], with y [W, D]; units, terms and bounds as those of `filter_int8_candidates`.
        fine_x: int16 [R, D], with `fine_y` [W, D]; float64 terms and bounds of their keys.
        own: int64 [R], the item that each row is and which is no candidate of it, or None.
        first_row: list of the first row.
        mirrored: lists of the columns' items get the rows, too; a tile may meet itself.
        seen: columns that the rows have met before; 0 where a tile meets itself.
        total: columns of all tiles, if these come in random order; else 0.
    """
    values = row_unit.new_empty(len(x), len(y))
    int8_products_(x, y, row_unit, column_unit, values)
    lists = (candidates, counts, limits), (far_candidates, far_counts, far_limits)
    items = torch.arange(len(y), device=x.device) + first_other
    for row in range(len(x)):
        keys = row_keys(row, values, row_term, column_term, metric)
        width = row_radius[row] * column_radius + (row_slack[row] + column_slack)
        of_columns = items if mirrored else items[:0]
        wanted = keys - width <= _loosest(limits, first_row + row, of_columns)
        if far_limits is not None:
            wanted |= -keys - width <= _loosest(far_limits, first_row + row, of_columns)
        wanted &= own is None or items != own[row]
        wanted &= not mirrored or items >= first_row + row  # once, where a tile meets itself
        chosen = wanted.nonzero()[:, 0]
        mine = torch.full_like(chosen, row)
        fine = pair_keys(fine_x, fine_y, fine_row_term, fine_column_term, mine, chosen, metric)
        error = fine_row_slack[row] + fine_column_slack[chosen]
        error += fine_row_radius[row] * fine_column_radius[chosen]
        _add_candidates(first_row + row, items[chosen], fine, error, lists, k)
        others = items[chosen] != first_row + row
        for c in others.nonzero()[:, 0].tolist() if mirrored else []:
            other, at = items.new_tensor([first_row + row]), slice(c, c + 1)
            _add_candidates(int(items[chosen[c]]), other, fine[at], error[at], lists, k)


def _loosest(limits: Tensor, row: int, columns: Tensor) -> Tensor:
    """Return the limit of a row, or that of each column where it is larger."""
    return limits[columns].maximum(limits[row]) if len(columns) else limits[row]


Lists = tuple[Tensor | None, Tensor | None, Tensor | None]


def _add_candidates(
    row: int, items: Tensor, keys: Tensor, error: Tensor, lists: tuple[Lists, Lists], k: int
) -> None:
    """Add items to the lists of a row: those of the nearest and, of keys times -1, the farthest."""
    for (candidates, counts, limits), sign, kept in zip(lists, (1, -1), (k, 1), strict=True):
        if candidates is None or counts is None or limits is None or int(counts[row]) < 0:
            continue
        bounds = [
            _outward(sign * keys - error, -torch.inf),
            _outward(sign * keys + error, torch.inf),
        ]
        found = torch.stack(
            [items.to(torch.int32), *(bound.view(torch.int32) for bound in bounds)], 1
        )
        found = torch.cat([candidates[row, : counts[row]], found])
        low, high = found[:, 1:].contiguous().view(torch.float32).unbind(1)
        if len(found) >= kept:
            limits[row] = torch.minimum(limits[row], high.kthvalue(kept).values)
        found = found[low <= limits[row]]
        counts[row] = len(found) if len(found) < candidates.shape[1] else -1
        if len(found) < candidates.shape[1]:
            candidates[row, : len(found)] = found


def list_bits(bits: Tensor, columns: int) -> Tensor:
    """Return the row and the column of every bit, ascending, int32 [P, 2].

    Args:
        bits: int32 [R, W / 32], bit j of word i for column 32 i + j.
        columns: W.
    """
    place = torch.arange(32, dtype=torch.int32, device=bits.device)
    there = (bits[:, :, None] >> place & 1).reshape(len(bits), -1)[:, :columns]
    return there.nonzero().to(torch.int32).contiguous()


def add_candidates_(
    candidates: Tensor,
    counts: Tensor,
    limits: Tensor,
    far_candidates: Tensor | None,
    far_counts: Tensor | None,
    far_limits: Tensor | None,
    k: int,
    bits: Tensor,
    x: Tensor,
    y: Tensor,
    row_term: Tensor,
    column_term: Tensor,
    row_radius: Tensor,
    column_radius: Tensor,
    row_slack: Tensor,
    column_slack: Tensor,
    metric: int,
    first_row: int,
    first_item: int,
) -> None:
    """Add pairs of a tile to the lists of its rows, as `collect_candidates_` does.

    Kernels prune a list whenever its slots are taken, so that fewer are lost.

    Args:
        candidates: of `collect_candidates_`, with all other lists.
        bits: of the columns that may be wanted (`list_bits`).
        x: int16 [R, D], with `y` [W, D], terms, radii and slacks, all float64.
        first_row: list of the first row.
        first_item: item of the first column.
    """
    lists = (candidates, counts, limits), (far_candidates, far_counts, far_limits)
    row, column = list_bits(bits, len(y)).long().unbind(1)
    keys = pair_keys(x, y, row_term, column_term, row, column, metric)
    error = row_slack[row] + column_slack[column]
    error += row_radius[row] * column_radius[column]
    for number in row.unique().tolist():
        mine = row == number
        items = column[mine] + first_item
        _add_candidates(first_row + number, items, keys[mine], error[mine], lists, k)


def _outward(values: Tensor, end: float) -> Tensor:
    """Return values as float32, none of them farther from `end`."""
    rounded = values.to(torch.float32)
    return rounded.nextafter(torch.full_like(rounded, end))


_COUNTED = 1 << 16
"""Lists whose candidates are counted together."""


def sure_candidates(candidates: Tensor, counts: Tensor, limits: Tensor) -> Tensor:
    """Count the candidates of each list that are surely within its limit.

    Args:
        candidates: int32 [R, S, 3], see `collect_candidates_`.
        counts: int32 [R]; -1: the list is lost.
        limits: float32 [R].

    Returns:
        int32 [R]; of lists that are lost, 0.
    """
    sure = torch.empty_like(counts)
    most = max(0, int(counts.max())) if len(counts) else 0
    for begin in range(0, len(counts), _COUNTED):
        some = slice(begin, begin + _COUNTED)
        high = candidates[some].view(torch.float32)[:, :most, 2]
        used = torch.arange(most, device=counts.device) < counts[some, None]
        sure[some] = ((high <= limits[some, None]) & used).sum(1, dtype=torch.int32)
    return sure


def nearest_of(index: Tensor, distance: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the first k candidates of each row by (distance, index).

    Args:
        index: int32 [N, S].
        distance: float64 [N, S].
    """
    ordered, by_index = index.sort(dim=1)
    distance, by_distance = distance.gather(1, by_index).sort(dim=1, stable=True)
    return ordered.gather(1, by_distance[:, :k]), distance[:, :k].contiguous()


def settle_candidates(
    candidates: Tensor,
    counts: Tensor,
    lists: Tensor,
    chosen: Tensor,
    order: Tensor | None,
    x: Tensor,
    more_x: Tensor | None,
    place_x: Tensor | None,
    scale_x: Tensor | None,
    term_x: Tensor,
    y: Tensor,
    more_y: Tensor | None,
    place_y: Tensor | None,
    scale_y: Tensor | None,
    term_y: Tensor,
    metric: int,
    k: int,
    own: bool,
    farthest: bool,
) -> tuple[Tensor, Tensor]:
    """Return the first k candidates of some lists by (squared distance in float64, item).

    Args:
        candidates: of `collect_candidates_`, with `counts`; at least k, or k - 1 if `own`.
        lists: int64 [L], which lists.
        chosen: int64 [L], the vector of each.
        order: int64 [N], the item that each number of a candidate stands for; None: itself.
        x: float32, float16 or int8 [M, D], and after them `more_x`, if any: the vectors of lists.
        place_x: int64 [N], the row of each vector; None: its number.
        scale_x: float32 [rows], what the numbers of each row are multiplied with; None: 1.
        term_x: float64 [N], norms (cosine) or squared norms (euclidean) of the vectors.
        y: likewise the items.
        own: vectors are items, and each is at distance 0 from itself.
        farthest: the farthest come first instead.

    Returns:
        int32 [L, k] and float64 [L, k].
    """
    sides = _placed(x, more_x, place_x, scale_x), _placed(y, more_y, place_y, scale_y)
    near, distances = [], []
    for number, vector in zip(lists.tolist(), chosen.tolist(), strict=True):
        items = candidates[number, : counts[number], 0].long()
        items = items if order is None else order[items]
        mine = torch.full_like(items, vector)
        keys = pair_keys(sides[0], sides[1], term_x, term_y, mine, items, metric)
        squared = keys if metric == METRICS.index("euclidean") else (2 * keys).clamp_min(0)
        if own:
            items = torch.cat([items.new_tensor([vector]), items])
            squared = torch.cat([squared.new_zeros(1), squared])
        by_item = items.argsort()
        by_distance = squared[by_item].sort(stable=True, descending=farthest).indices[:k]
        near.append(items[by_item][by_distance].to(torch.int32))
        distances.append(squared[by_item][by_distance])
    if not near:
        return candidates.new_empty(0, k), term_x.new_empty(0, k)
    return torch.stack(near), torch.stack(distances)
