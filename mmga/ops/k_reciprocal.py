"""k-reciprocal encoding as sparse rows: sets, weights and Jaccard distances, stage by stage.

Specified by the functions of the same names in `mmga.ops.reference`.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from mmga.ops import _library, reference


class CsrRows(NamedTuple):
    """Sparse rows: `values[offsets[i] : offsets[i + 1]]` belong to `columns[...]` of row i.

    Offsets are int64 [N + 1], columns int32 [E] ascending within a row, values float64 [E]. Sets
    are the first two alone.
    """

    offsets: Tensor
    columns: Tensor
    values: Tensor

    def cut(self, first: int, last: int) -> "CsrRows":
        """Return rows first to last."""
        begin, end = int(self.offsets[first]), int(self.offsets[last])
        offsets = self.offsets[first : last + 1] - begin
        return CsrRows(offsets, self.columns[begin:end], self.values[begin:end])


def _unknown() -> torch.SymInt:
    return torch.library.get_ctx().new_dynamic_size()


def _fake_sets(offsets: Tensor) -> tuple[Tensor, Tensor]:
    return offsets.new_empty(offsets.shape), offsets.new_empty(_unknown(), dtype=torch.int32)


def _fake_rows(offsets: Tensor, rows: int | torch.SymInt) -> tuple[Tensor, Tensor, Tensor]:
    entries = _unknown()
    return (
        offsets.new_empty(rows + 1),
        offsets.new_empty(entries, dtype=torch.int32),
        offsets.new_empty(entries, dtype=torch.float64),
    )


def _fake_reciprocal_sets(neighbours: Tensor, k: int) -> tuple[Tensor, Tensor]:
    return _fake_sets(neighbours.new_empty(neighbours.shape[0] + 1, dtype=torch.int64))


_reciprocal_sets = _library.define(
    "reciprocal_sets(Tensor neighbours, int k) -> (Tensor, Tensor)",
    reference.reciprocal_sets,
    _fake_reciprocal_sets,
)
_expand_sets = _library.define(
    "expand_sets(Tensor offsets, Tensor columns, Tensor half_offsets, Tensor half_columns)"
    " -> (Tensor, Tensor)",
    reference.expand_sets,
    lambda offsets, columns, half_offsets, half_columns: _fake_sets(offsets),
)
_listed_distances = _library.define(
    "listed_distances(Tensor offsets, Tensor columns, Tensor neighbours, Tensor distances)"
    " -> Tensor",
    reference.listed_distances,
    lambda offsets, columns, neighbours, distances: columns.new_empty(
        columns.shape, dtype=torch.float64
    ),
)
_encode = _library.define(
    "encode(Tensor offsets, Tensor distances, Tensor? maxima) -> Tensor",
    reference.encode,
    lambda offsets, distances, maxima: torch.empty_like(distances),
)
_average_rows = _library.define(
    "average_rows(Tensor offsets, Tensor columns, Tensor values, Tensor neighbours, int k2)"
    " -> (Tensor, Tensor, Tensor)",
    reference.average_rows,
    lambda offsets, columns, values, neighbours, k2: _fake_rows(offsets, offsets.shape[0] - 1),
)
_transpose_rows = _library.define(
    "transpose_rows(Tensor offsets, Tensor columns, Tensor values, int first)"
    " -> (Tensor, Tensor, Tensor)",
    reference.transpose_rows,
    lambda offsets, columns, values, first: _fake_rows(offsets, offsets.shape[0] - 1),
)
_jaccard_rows = _library.define(
    "jaccard_rows(Tensor offsets, Tensor columns, Tensor values, Tensor inverted_offsets,"
    " Tensor inverted_rows, Tensor inverted_values, Tensor rows, float? max_distance,"
    " bool upper) -> (Tensor, Tensor, Tensor)",
    reference.jaccard_rows,
    lambda offsets, columns, values, inv_offsets, inv_rows, inv_values, rows, *rest: _fake_rows(
        offsets, rows.shape[0]
    ),
)
_prefix_rows = _library.define(
    "prefix_rows(Tensor offsets, Tensor columns, Tensor values, float max_distance)"
    " -> (Tensor, Tensor, Tensor)",
    reference.prefix_rows,
    lambda offsets, columns, values, limit: _fake_rows(offsets, offsets.shape[0] - 1),
)
_jaccard_join = _library.define(
    "jaccard_join(Tensor offsets, Tensor columns, Tensor values, Tensor heavy_offsets,"
    " Tensor heavy_columns, Tensor heavy_values, Tensor index_offsets, Tensor index_rows,"
    " Tensor index_values, Tensor rows, float max_distance) -> (Tensor, Tensor, Tensor)",
    reference.jaccard_join,
    lambda offsets, *rest: _fake_rows(offsets, rest[-2].shape[0]),
)
_symmetrise = _library.define(
    "symmetrise(Tensor offsets, Tensor columns, Tensor values) -> (Tensor, Tensor, Tensor)",
    reference.symmetrise,
    lambda offsets, columns, values: _fake_rows(offsets, offsets.shape[0] - 1),
)


_mix_distances = _library.define(
    "mix_distances(Tensor squared, Tensor? maxima, Tensor offsets, Tensor columns, Tensor values,"
    " int first, float lambda_value, int power, float scale) -> Tensor",
    reference.mix_distances,
    lambda squared, *rest: squared.new_empty(squared.shape, dtype=torch.float64),
)

_take_overlaps = _library.define(
    "take_overlaps_(Tensor(a!) values, Tensor begin, Tensor end, Tensor item, Tensor jaccard,"
    " Tensor shift, int first) -> ()",
    reference.take_overlaps_,
)


def expanded_sets(
    neighbours: Tensor, list_length: int, half_length: int, wanted: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the expanded k-reciprocal set of every item (Zhong et al., steps 2 and 3).

    Args:
        neighbours: [N, K] int32, nearest first in the order of (distance, index).
        list_length: length of a neighbour list, self included, k1 + 1 in the paper.
        half_length: the same for the sets that are joined.
        wanted: items whose sets are wanted, int64 [M]; those of others are empty. None: all.
    """
    _check_lists(neighbours, list_length, "list_length")
    _check_lists(neighbours, half_length, "half_length")
    if neighbours.numel() and not 0 <= int(neighbours.min()) <= int(neighbours.max()) < len(
        neighbours
    ):
        raise ValueError(f"neighbours must be indices of its own {len(neighbours)} rows")
    sets = _reciprocal_sets(neighbours, list_length)
    half = _reciprocal_sets(neighbours, half_length)
    if wanted is not None:
        offsets, theirs = _entries_of(sets[0], wanted)
        sets = offsets, sets[1][theirs]
    joined: tuple[Tensor, Tensor] = _expand_sets(*sets, *half)
    return joined


def listed_distances(sets: tuple[Tensor, Tensor], neighbours: Tensor, distances: Tensor) -> Tensor:
    """Return d(i, j) of each entry of the sets, [E] (`reference.listed_distances`)."""
    _library.refuse_gradient("listed_distances", distances)
    listed: Tensor = _listed_distances(*sets, neighbours, distances)
    return listed


def encode(sets: tuple[Tensor, Tensor], distances: Tensor, maxima: Tensor | None) -> CsrRows:
    """Return V: exp(-d) over each set, divided by its sum (step 4, `reference.encode`)."""
    _library.refuse_gradient("encode", distances)
    return CsrRows(*sets, _encode(sets[0], distances, maxima))


def _entries_of(offsets: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Return offsets of rows of which all but the wanted are empty, and which entries stay."""
    sizes = offsets.diff()
    kept = torch.zeros_like(sizes, dtype=torch.bool)
    kept[wanted] = True
    return torch.cat([offsets[:1], (sizes * kept).cumsum(0)]), kept.repeat_interleave(sizes)


def keep_rows(rows: CsrRows, wanted: Tensor) -> CsrRows:
    """Return rows of which all but the wanted ones, int64 [M], are empty."""
    offsets, theirs = _entries_of(rows.offsets, wanted)
    return CsrRows(offsets, rows.columns[theirs], rows.values[theirs])


def average_rows(
    rows: CsrRows, neighbours: Tensor, k2: int, wanted: Tensor | None = None
) -> CsrRows:
    """Return the mean of the rows of each item's first k2 neighbours (step 5).

    Args:
        rows: of N items.
        neighbours: [N, K] int32.
        k2: 1 to K.
        wanted: items whose means are wanted, int64 [M]; those of others are empty. None: all.
    """
    _check_lists(neighbours, k2, "k2")
    if wanted is None:
        return CsrRows(*_average_rows(*rows, neighbours, k2))
    # The others' neighbours are one more item, whose row is empty.
    count = len(neighbours)
    lists = neighbours.new_full((count + 1, k2), count)
    lists[wanted] = neighbours[wanted, :k2]
    offsets = torch.cat([rows.offsets, rows.offsets[-1:]])
    means = CsrRows(*_average_rows(offsets, rows.columns, rows.values, lists, k2))
    return means.cut(0, count)


def transpose_rows(rows: CsrRows, first: int = 0) -> CsrRows:
    """Return the inverted index of the rows from `first` on."""
    return CsrRows(*_transpose_rows(*rows, first))


def jaccard_rows(
    rows: CsrRows,
    inverted: CsrRows,
    chosen: Tensor,
    max_distance: float | None = None,
    *,
    upper: bool = False,
) -> CsrRows:
    """Return the Jaccard distances of chosen rows to those in the inverted index (step 6).

    Args:
        inverted: `transpose_rows` of V.
        chosen: [M] int64, rows of V.
    """
    return CsrRows(*_jaccard_rows(*rows, *inverted, chosen, max_distance, upper))


class JaccardJoin:
    """The Jaccard distances of a set up to a limit, found by a prefix filter.

    Faster than `jaccard_rows`, which sums all overlaps, where few pairs are that near.
    """

    def __init__(self, rows: CsrRows, max_distance: float) -> None:
        """Index the heavy entries of V, [N, N], for distances up to a limit in [0, 1)."""
        self._rows, self._limit = rows, max_distance
        self._heavy = heavy_rows(rows, max_distance)
        self._index = transpose_rows(self._heavy)

    def upper(self, chosen: Tensor) -> CsrRows:
        """Return the distances of rows [M] int64 to the items from each one's own on, [M, N]."""
        return join_rows(self._rows, self._heavy, self._index, chosen, self._limit)


def heavy_rows(rows: CsrRows, max_distance: float) -> CsrRows:
    """Return the heavy entries of rows of V, for a prefix filter (`reference.prefix_rows`)."""
    return CsrRows(*_prefix_rows(*rows, max_distance))


def join_rows(
    rows: CsrRows, heavy: CsrRows, index: CsrRows, chosen: Tensor, max_distance: float
) -> CsrRows:
    """Return the Jaccard distances up to `max_distance` of chosen rows (`reference.jaccard_join`).

    Args:
        rows: V.
        heavy: `heavy_rows` of V, of the chosen rows at least.
        index: the inverted index of heavy rows: of all items, or of those that are looked for,
            but a back end without this kernel finds others, too.
        chosen: [M] int64, rows of V.
        max_distance: the one of the heavy rows.
    """
    return CsrRows(*_jaccard_join(*rows, *heavy, *index, chosen, max_distance))


def symmetrise(rows: CsrRows) -> CsrRows:
    """Return the symmetric matrix [N, N] whose upper half, diagonal included, the rows hold."""
    return CsrRows(*_symmetrise(*rows))


def mix_distances(
    squared: Tensor,
    maxima: Tensor | None,
    overlaps: CsrRows,
    first: int,
    lambda_value: float,
    *,
    power: int = 1,
    scale: float = 1.0,
) -> Tensor:
    """Return the final distances (1 - lambda) J + lambda d' (step 7, `reference.mix_distances`).

    Args:
        overlaps: the rows' Jaccard distances; it holds none outside the gallery.
    """
    final: Tensor = _mix_distances(squared, maxima, *overlaps, first, lambda_value, power, scale)
    return final


def take_overlaps_(
    values: Tensor,
    ranges: tuple[Tensor, Tensor],
    item: Tensor,
    jaccard: Tensor,
    shift: Tensor,
    first: int,
) -> None:
    """Take (1 - J) shift off the values of pairs that overlap (`reference.take_overlaps_`).

    Args:
        ranges: where the pairs of each row begin and end among all.
    """
    _take_overlaps(values, *ranges, item, jaccard, shift, first)


def _check_lists(neighbours: Tensor, length: int, name: str) -> None:
    if neighbours.dtype != torch.int32 or neighbours.ndim != 2:
        raise TypeError(
            f"neighbours must be int32 [N, K], got {neighbours.dtype} {tuple(neighbours.shape)}"
        )
    if not 1 <= length <= neighbours.shape[1]:
        raise ValueError(
            f"{name} must be from 1 to the {neighbours.shape[1]} neighbours given, got {length}"
        )
