"""Ranks and neighbours by filter and refine: bounded approximate keys, then float64 for the rest.

Specified by the functions of the same names in `mmga.ops.reference`; docs/certified.md derives the
bounds.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mmga.ops import _extension, reference
from mmga.ops._library import LIBRARY, by_triton, define, has_kernel, triton_serves
from mmga.ops.ranking import COUNT_ALL, Masks, Matches, Tile

# Candidates beyond k that a list collects before it is sorted, which lowers its limit.
_SPARE = 16

UNIT = 2.0**-24
"""Half the distance from 1 to the next float32: the relative error of one rounding."""


def gamma(roundings: int) -> float:
    """Return the relative error bound of a number of float32 roundings in a row.

    An inner product of n terms is wrong by at most gamma(n) <|x|, |y|>, whatever the order of the
    sum and with or without fused multiply-add (Higham, Accuracy and Stability, section 3.1).
    """
    return roundings * UNIT / (1 - roundings * UNIT)


class Bound(NamedTuple):
    """Bound on the error of the keys of a tile, as in `reference.certified`.

    Attributes:
        row_radius: float64 [R].
        column_radius: float64 [W].
        row_slack: float64 [R].
        column_slack: float64 [W].
    """

    row_radius: Tensor
    column_radius: Tensor
    row_slack: Tensor
    column_slack: Tensor

    def tile(self, rows: slice, columns: slice) -> Bound:
        """Return the bound of some rows and columns."""
        return Bound(
            self.row_radius[rows],
            self.column_radius[columns],
            self.row_slack[rows],
            self.column_slack[columns],
        )


class PairVectors(NamedTuple):
    """Vectors of a tile's rows and columns, from which keys of single pairs are computed.

    Attributes:
        x: float32 [R, D], or their `int16_rows`.
        y: [W, D], likewise.
        row_term: float64 [R], norms (cosine) or squared norms (euclidean) of the features.
        column_term: float64 [W].
        metric: index into `reference.METRICS`.
    """

    x: Tensor
    y: Tensor
    row_term: Tensor
    column_term: Tensor
    metric: int


def thresholds(match_start: Tensor, match_key: Tensor, row_slack: Tensor) -> tuple[Tensor, Tensor]:
    """Return the float32 limits below and above which a key certainly differs from a match's.

    Args:
        match_start: int64 [R + 1].
        match_key: float64 [M].
        row_slack: float64 [R], error of a row's keys whatever the column.

    Returns:
        float32 [M] and [M], rounded away from the keys.
    """
    slack = torch.repeat_interleave(row_slack, match_start.diff())
    infinity = torch.tensor(torch.inf, dtype=torch.float32, device=match_key.device)
    lower = (match_key - slack).to(torch.float32).nextafter(-infinity)
    upper = (match_key + slack).to(torch.float32).nextafter(infinity)
    return lower, upper


def count_certain(
    tile: Tile | Int8Tile,
    rows: slice,
    matches: Matches,
    limits: tuple[Tensor, Tensor],
    bound: Bound,
    masks: Masks = COUNT_ALL,
) -> Tensor:
    """Count the items that certainly precede the matches of a tile's rows.

    A tile of 8-bit rows is never held: its products are compared where they are computed.

    Args:
        limits: `thresholds` of the matches, which include the row slack.
        bound: of this tile.

    Returns:
        The undecided pairs, int32 [P, 4].
    """
    ends = slice(rows.start, rows.stop + 1)
    if isinstance(tile, Int8Tile):
        count, of_tile = _COUNT_CERTAIN_INT8, tuple(tile)
    else:
        count, of_tile = _COUNT_CERTAIN, (*tile.arguments(), tile.offset)
    undecided: Tensor = count(
        *of_tile,
        bound.row_radius.to(torch.float32),
        bound.column_radius.to(torch.float32),
        bound.column_slack.to(torch.float32),
        matches.match_start[ends],
        matches.match_item,
        *limits,
        matches.ignored_start[ends],
        matches.ignored_item,
        *masks,
        matches.preceding,
    )
    return undecided


class Int8Tile(NamedTuple):
    """A tile of inner products of `int8_rows` that are computed where they are needed.

    Attributes:
        x: int8 [R, D].
        y: int8 [W, D].
        row_unit: float32 [R], with `column_unit` [W]: units of the numbers.
        column_unit: see `row_unit`.
        row_term: float32 [R], with `column_term` [W]: as those of `ranking.Tile`.
        column_term: see `row_term`.
        metric: index into `reference.METRICS`: cosine or euclidean.
        offset: item number of the first column.
    """

    x: Tensor
    y: Tensor
    row_unit: Tensor
    column_unit: Tensor
    row_term: Tensor
    column_term: Tensor
    metric: int
    offset: int

    @property
    def width(self) -> int:
        """Columns."""
        return len(self.y)

    def cut(self, columns: slice) -> Int8Tile:
        """Return some columns, given their places."""
        return self._replace(
            y=self.y[columns],
            column_unit=self.column_unit[columns],
            column_term=self.column_term[columns],
            offset=self.offset + columns.start,
        )


def int16_rows(x: Tensor, norms: Tensor) -> tuple[Tensor, Tensor]:
    """Round features of length 2^15 to integers (`reference.int16_rows`)."""
    numbers, error = _INT16_ROWS(x, norms)
    return numbers, error


def multiplies_int8() -> bool:
    """Return whether products of `int8_rows` are fast: the processor has instructions for them."""
    return bool(_extension.int8_instructions()) and has_kernel("int8_products_", "CPU")


def int8_most(width: int, device: torch.device) -> int:
    """Return the largest number of 8 bits that features so wide are rounded to.

    Without VNNI, products of fewer bits are faster (csrc/cpu/int8_products.h). Wider bounds cost
    more: the wider the features, the narrower similarities are spread.
    """
    if device.type != "cpu" or _extension.int8_instructions() != "AVX2":
        return 127
    return 63 if width <= 1024 else 90


def int8_rate(width: int) -> float:
    """Return how many products of 8 bits take the time of one of float32 on the CPU."""
    most = int8_most(width, torch.device("cpu"))
    return {127: 4.0, 90: 1.9, 63: 2.3}[most]


def device_multiplies_int8(device: torch.device) -> bool:
    """Return whether a CUDA device has tensor cores and all kernels for products of 8 bits."""
    return (
        device.type == "cuda"
        and all(has_kernel(name, "CUDA") for name in ("collect_candidates_", "add_candidates_"))
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )


def int8_rows(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Round rows to integers of 8 bits (`reference.int8_rows`), at most `int8_most`."""
    numbers, unit, error = _INT8_ROWS(x, int8_most(x.shape[1], x.device))
    return numbers, unit, error


def rounded_rows(vectors: PlacedVectors, chosen: Tensor, norms: Tensor) -> tuple[Tensor, ...]:
    """Return what `int8_rows` and `int16_rows` do of chosen vectors, read once and not copied.

    Args:
        vectors: in memory.
        chosen: int64 [R], numbers of vectors.
        norms: float64 [R], their squared norms.
    """
    most = int8_most(vectors.first.shape[1], vectors.first.device)
    rounded: tuple[Tensor, ...] = _ROUNDED_ROWS(*vectors[:4], chosen, norms, most)
    return rounded


def int8_products_(
    x: Tensor, y: Tensor, row_unit: Tensor, column_unit: Tensor, out: Tensor
) -> Tensor:
    """Write inner products of rows of `int8_rows` to `out` (`reference.int8_products_`)."""
    _INT8_PRODUCTS(x, y, row_unit, column_unit, out)
    return out


def float_products_(x: Tensor, y: Tensor, block: int, out: Tensor) -> Tensor:
    """Write inner products of float32 rows to `out` (`reference.float_products_`)."""
    _FLOAT_PRODUCTS(x, y, block, out)
    return out


def refine_pairs(
    undecided: Tensor,
    vectors: PairVectors,
    offset: int,
    rows: slice,
    matches: Matches,
    bound: Bound | None = None,
) -> Tensor:
    """Refine undecided pairs by keys of their vectors.

    Args:
        undecided: int32 [P, 4] of a tile.
        vectors: of the tile's rows and columns.
        offset: item number of the tile's first column.
        bound: on the error of these keys; None: they are exact.

    Returns:
        The pairs that are still undecided; none if the keys are exact.
    """
    ends = slice(rows.start, rows.stop + 1)
    still: Tensor = _REFINE_PAIRS(
        undecided,
        *vectors,
        *((None,) * 4 if bound is None else bound),
        offset,
        matches.match_start[ends],
        matches.match_item,
        matches.match_key,
        matches.preceding,
        matches.tied[rows],
    )
    return still


def filter_candidates(
    tile: Tile,
    bound: Bound,
    near: tuple[Tensor, Tensor],
    far: tuple[Tensor, Tensor],
    *,
    first_item: int,
    symmetric: bool,
) -> Tensor:
    """List the pairs of a tile that may be near or far enough, int32 [P, 2].

    Args:
        bound: of this tile.
        near: float64 [R] and [W], keys up to which pairs are wanted for a row and for a column.
        far: float64 [R] and [W], keys from which they are.
    """
    pairs: Tensor = _FILTER_CANDIDATES(
        *tile.arguments(), *_limits(bound, near, far), first_item, tile.offset, symmetric
    )
    return pairs


def filter_int8_candidates(
    tile: Int8Tile,
    bound: Bound,
    near: tuple[Tensor, Tensor],
    far: tuple[Tensor, Tensor],
    *,
    first_item: int,
    symmetric: bool,
) -> Tensor:
    """List what `filter_candidates` lists, of a tile of which no more than a strip is held."""
    *arguments, offset = tile
    pairs: Tensor = _FILTER_INT8_CANDIDATES(
        *arguments, *_limits(bound, near, far), first_item, offset, symmetric
    )
    return pairs


def _limits(
    bound: Bound, near: tuple[Tensor, Tensor], far: tuple[Tensor, Tensor]
) -> tuple[Tensor, ...]:
    """Return bounds and thresholds in float32, thresholds rounded outward."""
    infinity = torch.tensor(torch.inf, dtype=torch.float32, device=near[0].device)
    return (
        *(part.to(torch.float32) for part in bound),
        *(side.to(torch.float32).nextafter(infinity) for side in near),
        *(side.to(torch.float32).nextafter(-infinity) for side in far),
    )


def refine_candidates(
    pairs: Tensor,
    vectors: PairVectors,
    bound: Bound,
    near: tuple[Tensor, Tensor],
    far: tuple[Tensor, Tensor],
) -> Tensor:
    """Return those of `filter_candidates` that better keys leave wanted."""
    wanted: Tensor = _REFINE_CANDIDATES(pairs, *vectors, *bound, *near, *far)
    return wanted


class ExactLists:
    """The k nearest of items by exact distances, from pairs inserted in any order.

    Memory: N (2k + 16) candidates of 12 bytes.

    Attributes:
        maxima: float64 [N], the largest distance inserted for each item.
    """

    def __init__(self, limits: Tensor, k: int) -> None:
        """Start with empty lists.

        Args:
            limits: float64 [N], upper bounds of each item's k-th smallest distance, infinity where
                there are none; the lists lower them.
            k: neighbours of each item.
        """
        count = len(limits)
        self.limits, self._k = limits.clone(), k
        slots = k + _SPARE
        self._index = torch.zeros((count, slots), dtype=torch.int32, device=limits.device)
        self._distance = torch.full((count, slots), torch.inf, dtype=torch.float64, device="cpu")
        self._counts = torch.zeros(count, dtype=torch.int32, device=limits.device)
        self.maxima = torch.zeros_like(limits)

    def add_self(self, items: Tensor, distances: Tensor | float = 0.0) -> None:
        """Insert item items[i] (int64 [N]) at its distance into the empty list of row i."""
        self._index[:, 0] = items
        self._distance[:, 0] = distances
        self._counts.fill_(1)

    def insert(
        self, pairs: Tensor, distances: Tensor, first_item: int, first_other: int, *, both: bool
    ) -> None:
        """Insert pairs of a tile (`reference.insert_candidates`)."""
        _INSERT_CANDIDATES(
            self._index,
            self._distance,
            self._counts,
            self.maxima,
            pairs,
            distances,
            self.limits,
            first_item,
            first_other,
            both,
            self._k,
        )

    def result(self) -> tuple[Tensor, Tensor]:
        """Return int32 [N, k] and float64 [N, k] in the order of (distance, index).

        Raises:
            RuntimeError: a list has fewer than k candidates within its limit: a bound was wrong.
        """
        if int(self._counts.min()) < self._k:
            raise RuntimeError("a neighbour within its limit was not found: a bound is too small")
        used = torch.arange(self._index.shape[1], device=self._index.device) < self._counts[:, None]
        return nearest_of(
            torch.where(used, self._index, torch.iinfo(torch.int32).max),
            torch.where(used, self._distance, torch.inf),
            self._k,
        )


class PlacedVectors(NamedTuple):
    """Vectors where they are in memory, in one or two matrices.

    Attributes:
        first: float32, float16 or int8 [M, D].
        second: the rows after these, of the same dtype, or None.
        place: int64 [N], the row of each vector; None: its number.
        scale: float32, what the numbers of each row of int8 are multiplied with; None: 1.
        term: float64 [N], norms (cosine) or squared norms (euclidean).
    """

    first: Tensor
    second: Tensor | None
    place: Tensor | None
    scale: Tensor | None
    term: Tensor


class CandidatePlace(NamedTuple):
    """Where a tile is among those that candidates come from.

    Attributes:
        first_row: list of its first row.
        seen: columns that its rows have met before.
        mirrored: its columns are items with lists of their own, item i with list i, which get its
            pairs, too; or its rows themselves, which have not met any yet.
        total: items of all tiles, where these come in random order; 0: in any.
    """

    first_row: int
    seen: int
    mirrored: bool
    total: int


class CandidateLists:
    """What may be among each row's k nearest, and farthest, after a look at any number of tiles.

    Memory: 12 bytes a slot and row.
    """

    def __init__(
        self,
        rows: int,
        k: int,
        slots: int,
        far_slots: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        """Start with empty lists.

        Args:
            rows: R.
            k: nearest wanted.
            slots: candidates of a row, above k; a row with as many is lost.
            far_slots: the same for the farthest; 0: it is not wanted.
            device: of the rows.
        """
        self._k = k
        self._nearest = _empty_lists(rows, slots, device)
        self._farthest = _empty_lists(rows, far_slots, device) if far_slots else None

    def collect(
        self,
        tile: Int8Tile,
        bound: Bound,
        vectors: PairVectors,
        better: Bound,
        place: CandidatePlace,
        own: Tensor | None = None,
    ) -> None:
        """Look at all pairs of a tile (`reference.collect_candidates_`).

        Args:
            tile: some rows of the lists, and some columns.
            bound: of its keys.
            vectors: the same vectors as `int16_rows`.
            better: bound of keys of these.
            place: where the rows are, and what they have seen.
            own: int64 [R], the item that each row is, which is no candidate of it; None: rows are
                no items.
        """
        *sides, metric, offset = tile
        _COLLECT_CANDIDATES(
            *self._nearest,
            *(self._farthest or (None,) * 3),
            self._k,
            *sides,
            *(part.to(torch.float32) for part in bound),
            *vectors[:4],
            *better,
            metric,
            own,
            place.first_row,
            offset,
            place.mirrored,
            place.seen,
            place.total,
        )

    @property
    def lost(self) -> Tensor:
        """Rows whose lists may lack one of the k nearest, or the farthest, int64 [L]."""
        lost = _SURE_CANDIDATES(*self._nearest) < self._k
        if self._farthest is not None:
            lost |= _SURE_CANDIDATES(*self._farthest) < 1
        return lost.nonzero()[:, 0]

    def nearest(
        self,
        lists: Tensor,
        chosen: Tensor,
        order: Tensor | None,
        sides: tuple[PlacedVectors, PlacedVectors],
        metric: int,
        *,
        own: bool,
    ) -> tuple[Tensor, Tensor]:
        """Return the k nearest of some rows (`reference.settle_candidates`)."""
        candidates, counts, _ = self._nearest
        k = self._k + own
        near: tuple[Tensor, Tensor] = _SETTLE_CANDIDATES(
            candidates, counts, lists, chosen, order, *sides[0], *sides[1], metric, k, own, False
        )
        return near

    def farthest(
        self,
        lists: Tensor,
        chosen: Tensor,
        order: Tensor | None,
        sides: tuple[PlacedVectors, PlacedVectors],
        metric: int,
    ) -> Tensor:
        """Return likewise the largest distance of some rows, float64 [L]."""
        assert self._farthest is not None
        candidates, counts, _ = self._farthest
        distances: Tensor = _SETTLE_CANDIDATES(
            candidates, counts, lists, chosen, order, *sides[0], *sides[1], metric, 1, False, True
        )[1]
        return distances[:, 0]

    @property
    def longest(self) -> int:
        """The most candidates for the nearest that a row has, at least 1."""
        return max(1, int(self._nearest[1].max()))

    def listed(self, lists: Tensor, *, farthest: bool = False) -> tuple[Tensor, Tensor]:
        """Return the candidates of some rows' lists.

        Args:
            lists: int64 [R].
            farthest: those for the farthest are wanted.

        Returns:
            int32 [R, M], and bool [R, M] where there is one.
        """
        candidates, counts, _ = (self._farthest if farthest else None) or self._nearest
        counts = counts[lists]
        most = max(0, int(counts.max()))
        used = torch.arange(most, device=counts.device) < counts[:, None]
        return candidates[lists, :most, 0], used


def _empty_lists(rows: int, slots: int, device: torch.device | str) -> tuple[Tensor, ...]:
    """Return the candidates, counts and limits of empty lists."""
    return (
        torch.empty((rows, slots, 3), dtype=torch.int32, device=device),
        torch.zeros(rows, dtype=torch.int32, device=device),
        torch.full((rows,), torch.inf, dtype=torch.float32, device=device),
    )


def nearest_of(index: Tensor, distance: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the first k candidates of each row by (distance, index).

    Args:
        index: int32 [N, S].
        distance: float64 [N, S].
        k: candidates of each row that are returned.
    """
    near: tuple[Tensor, Tensor] = _NEAREST_OF(index, distance, k)
    return near


def _fake_undecided(first: Tensor, *inputs: object) -> Tensor:
    pairs = torch.library.get_ctx().new_dynamic_size()
    return first.new_empty((pairs, 4), dtype=torch.int32)


_COUNT_CERTAIN = define(
    "count_certain(Tensor values, Tensor row_term, Tensor column_term, int metric, int offset, "
    "Tensor row_radius, Tensor column_radius, Tensor column_slack, "
    "Tensor match_start, Tensor match_item, Tensor lower, Tensor upper, "
    "Tensor ignored_start, Tensor ignored_item, "
    "Tensor? row_camera, Tensor? column_camera, Tensor? removed, "
    "Tensor(a!) preceding) -> Tensor",
    reference.count_certain,
    _fake_undecided,
)
_COUNT_CERTAIN_INT8 = define(
    "count_certain_int8(Tensor x, Tensor y, Tensor row_unit, Tensor column_unit, "
    "Tensor row_term, Tensor column_term, int metric, int offset, "
    "Tensor row_radius, Tensor column_radius, Tensor column_slack, "
    "Tensor match_start, Tensor match_item, Tensor lower, Tensor upper, "
    "Tensor ignored_start, Tensor ignored_item, "
    "Tensor? row_camera, Tensor? column_camera, Tensor? removed, "
    "Tensor(a!) preceding) -> Tensor",
    reference.count_certain_int8,
    lambda x, *inputs: _fake_undecided(x.to(torch.int32)),
)
_INT16_ROWS = define(
    "int16_rows(Tensor x, Tensor norms) -> (Tensor, Tensor)",
    reference.int16_rows,
    lambda x, norms: (x.new_empty(x.shape, dtype=torch.int16), torch.empty_like(norms)),
)
_INT8_ROWS = define(
    "int8_rows(Tensor x, int most) -> (Tensor, Tensor, Tensor)",
    reference.int8_rows,
    lambda x, most: (
        x.new_empty(x.shape, dtype=torch.int8),
        x.new_empty(len(x)),
        x.new_empty(len(x), dtype=torch.float64),
    ),
)
_ROUNDED_ROWS = define(
    "rounded_rows(Tensor x, Tensor? more_x, Tensor? place_x, Tensor? scale_x, Tensor chosen, "
    "Tensor norms, int most) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    reference.rounded_rows,
    lambda x, more_x, place_x, scale_x, chosen, norms, most: (
        x.new_empty((len(chosen), x.shape[1]), dtype=torch.int8),
        x.new_empty(len(chosen), dtype=torch.float32),
        torch.empty_like(norms),
        x.new_empty((len(chosen), x.shape[1]), dtype=torch.int16),
        torch.empty_like(norms),
    ),
)
_INT8_PRODUCTS = define(
    "int8_products_(Tensor x, Tensor y, Tensor row_unit, Tensor column_unit, Tensor(a!) out) -> ()",
    reference.int8_products_,
)
_FLOAT_PRODUCTS = define(
    "float_products_(Tensor x, Tensor y, int block, Tensor(a!) out) -> ()",
    reference.float_products_,
)
_REFINE_PAIRS = define(
    "refine_pairs(Tensor undecided, Tensor x, Tensor y, Tensor row_term, Tensor column_term, "
    "int metric, Tensor? row_radius, Tensor? column_radius, Tensor? row_slack, "
    "Tensor? column_slack, int offset, Tensor match_start, Tensor match_item, Tensor match_key, "
    "Tensor(a!) preceding, Tensor(b!) tied) -> Tensor",
    reference.refine_pairs,
    _fake_undecided,
)


def _fake_pairs(first: Tensor, *inputs: object) -> Tensor:
    pairs = torch.library.get_ctx().new_dynamic_size()
    return first.new_empty((pairs, 2), dtype=torch.int32)


_FILTER_CANDIDATES = define(
    "filter_candidates(Tensor values, Tensor row_term, Tensor column_term, int metric, "
    "Tensor row_radius, Tensor column_radius, Tensor row_slack, Tensor column_slack, "
    "Tensor near_row, Tensor near_column, Tensor far_row, Tensor far_column, "
    "int first_item, int first_other, bool symmetric) -> Tensor",
    reference.filter_candidates,
    _fake_pairs,
)
_FILTER_INT8_CANDIDATES = define(
    "filter_int8_candidates(Tensor x, Tensor y, Tensor row_unit, Tensor column_unit, "
    "Tensor row_term, Tensor column_term, int metric, "
    "Tensor row_radius, Tensor column_radius, Tensor row_slack, Tensor column_slack, "
    "Tensor near_row, Tensor near_column, Tensor far_row, Tensor far_column, "
    "int first_item, int first_other, bool symmetric) -> Tensor",
    reference.filter_int8_candidates,
    lambda x, *inputs: _fake_pairs(x.to(torch.int32)),
)
_REFINE_CANDIDATES = define(
    "refine_candidates(Tensor pairs, Tensor x, Tensor y, Tensor row_term, Tensor column_term, "
    "int metric, Tensor row_radius, Tensor column_radius, Tensor row_slack, Tensor column_slack, "
    "Tensor near_row, Tensor near_column, Tensor far_row, Tensor far_column) -> Tensor",
    reference.refine_candidates,
    _fake_pairs,
)
_INSERT_CANDIDATES = define(
    "insert_candidates(Tensor(a!) index, Tensor(b!) distance, Tensor(c!) counts, "
    "Tensor(d!) maxima, Tensor pairs, Tensor distances, Tensor(e!) limits, int first_item, "
    "int first_other, bool both, int k) -> ()",
    reference.insert_candidates,
)
_COLLECT_CANDIDATES = define(
    "collect_candidates_(Tensor(a!) candidates, Tensor(b!) counts, Tensor(c!) limits, "
    "Tensor(d!)? far_candidates, Tensor(e!)? far_counts, Tensor(f!)? far_limits, int k, "
    "Tensor x, Tensor y, Tensor row_unit, "
    "Tensor column_unit, Tensor row_term, Tensor column_term, Tensor row_radius, "
    "Tensor column_radius, Tensor row_slack, Tensor column_slack, Tensor fine_x, Tensor fine_y, "
    "Tensor fine_row_term, Tensor fine_column_term, Tensor fine_row_radius, "
    "Tensor fine_column_radius, Tensor fine_row_slack, Tensor fine_column_slack, int metric, "
    "Tensor? own, int first_row, int first_other, bool mirrored, int seen, int total) -> ()",
    reference.collect_candidates_,
)
# Parts of the two operators on CUDA devices whose products are Triton's.
define(
    "list_bits(Tensor bits, int columns) -> Tensor",
    reference.list_bits,
    lambda bits, columns: _fake_pairs(bits),
)
define(
    "add_candidates_(Tensor(a!) candidates, Tensor(b!) counts, Tensor(c!) limits, "
    "Tensor(d!)? far_candidates, Tensor(e!)? far_counts, Tensor(f!)? far_limits, int k, "
    "Tensor bits, Tensor x, Tensor y, Tensor row_term, Tensor column_term, Tensor row_radius, "
    "Tensor column_radius, Tensor row_slack, Tensor column_slack, int metric, int first_row, "
    "int first_item) -> ()",
    reference.add_candidates_,
)
_SETTLE_CANDIDATES = define(
    "settle_candidates(Tensor candidates, Tensor counts, Tensor lists, Tensor chosen, "
    "Tensor? order, Tensor x, Tensor? more_x, Tensor? place_x, Tensor? scale_x, Tensor term_x, "
    "Tensor y, Tensor? more_y, Tensor? place_y, Tensor? scale_y, Tensor term_y, int metric, int k, "
    "bool own, bool farthest) -> (Tensor, Tensor)",
    reference.settle_candidates,
    lambda candidates, counts, lists, chosen, order, *sides: (
        candidates.new_empty(len(lists), sides[-3]),
        sides[4].new_empty(len(lists), sides[-3]),
    ),
)
_SURE_CANDIDATES = define(
    "sure_candidates(Tensor candidates, Tensor counts, Tensor limits) -> Tensor",
    reference.sure_candidates,
    lambda candidates, counts, limits: torch.empty_like(counts),
)
_NEAREST_OF = define(
    "nearest_of(Tensor index, Tensor distance, int k) -> (Tensor, Tensor)",
    reference.nearest_of,
    lambda index, distance, k: (index.new_empty(len(index), k), distance.new_empty(len(index), k)),
)


def int8_products_on_device(
    x: Tensor, y: Tensor, row_unit: Tensor, column_unit: Tensor, out: Tensor
) -> None:
    """Write what `reference.int8_products_` does, by the library that torch has for int8.

    It multiplies shapes that are multiples of 8, and more than 16 rows; others are padded.
    """
    rows, columns, width = len(x), len(y), x.shape[1]
    if not rows or not columns:
        return
    more = -width % 8 if width else 8
    x = torch.nn.functional.pad(x, (0, more, 0, max(0, 24 - rows)))
    y = torch.nn.functional.pad(y, (0, more, 0, -columns % 8))
    products = torch._int_mm(x, y.t())[:rows, :columns]
    out.copy_(products).mul_(row_unit[:, None]).mul_(column_unit)


if triton_serves():
    for _name in ("count_certain_int8", "collect_candidates_"):
        LIBRARY.impl(_name, by_triton("certified", _name), "CUDA")
    LIBRARY.impl("int8_products_", int8_products_on_device, "CUDA")
