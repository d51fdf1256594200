"""Rank the matches of all queries in one pass over tiles, and score each query.

Legend: ``Q`` queries of the query set, ``M`` matches of a run of queries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from mmga.common.distributed import Group
from mmga.common.errors import UserError
from mmga.common.monitor import Monitor
from mmga.ops.ranking import Masks, Matches, Tile, count_preceding, read_matches
from mmga.retrieval.protocols.selection import Pairs, Selection
from mmga.retrieval.tiles.sources import BlockSource, Source

PAIR_LIMIT = 1 << 21
"""Matches and ignored items of the queries that are ranked together."""
MASK_COLUMNS = 4096
"""Columns of a mask of pairs that a condition leaves out."""


@dataclass(slots=True)
class PerQuery:
    """Figures of every row of the query set; NaN (0 for counts) where it was not ranked.

    Attributes:
        average_precision: float64 [Q].
        inverse_negative_penalty: float64 [Q], matches / rank of the last one.
        first_rank: rank of the first match, int64 [Q].
        num_matches: int64 [Q].
        tied: pairs of a match and another item at equal distance, int64 [Q].
    """

    average_precision: np.ndarray
    inverse_negative_penalty: np.ndarray
    first_rank: np.ndarray
    num_matches: np.ndarray
    tied: np.ndarray

    @classmethod
    def empty(cls, num_matches: np.ndarray) -> PerQuery:
        """Return figures of queries none of which was ranked yet."""
        count = len(num_matches)
        nan, zero = np.full(count, np.nan), np.zeros(count, np.int64)
        return cls(nan, nan.copy(), zero, num_matches.copy(), zero.copy())

    def gathered(self, queries: np.ndarray, column: Group) -> PerQuery:
        """Return the figures of the queries of all processes.

        Args:
            queries: rows of the query set that this process ranked.
            column: processes that ranked the others.
        """
        if column.world == 1:
            return self
        own = [queries]
        for name in _RANKED:
            own.append(getattr(self, name)[queries].view(np.int64))
        number, *found = column.rows(torch.from_numpy(np.stack(own, 1))).numpy().T
        whole = PerQuery.empty(self.num_matches)
        for name, values in zip(_RANKED, found, strict=True):
            figures = getattr(whole, name)
            figures[number] = np.ascontiguousarray(values).view(figures.dtype)
        return whole


_RANKED = ("average_precision", "inverse_negative_penalty", "first_rank", "tied")


class PairObserver(Protocol):
    """Observe the tiles and matches of a pass while it ranks."""

    def tile(self, pairs: Pairs, rows: slice, tile: Tile, removed: Tensor | None) -> None:
        """Observe a tile, each once, and the pairs [R, W] of it that a condition leaves out."""
        ...

    def matches(self, pairs: Pairs, matches: Matches) -> None:
        """Observe the matches of a run of queries, after its tiles."""
        ...


def rank(
    source: Source,
    selection: Selection,
    monitor: Monitor,
    *,
    observer: PairObserver | None = None,
    phase: str = "ranks",
    group: Group | None = None,
) -> PerQuery:
    """Rank the matches of all selected queries and return the scores of each query.

    Processes of a group count what each one's items add, for the same queries at a time.

    Args:
        source: tiles whose rows are `selection.queries` and whose columns `selection.gallery`.
        selection: what counts for which query.
        monitor: is told of pairs of (query, item) done and in all, after each tile.
        observer: takes every tile and all matches as well.
        phase: name of this pass for `monitor`.
        group: the processes that hold the items; `source` is a `BlockSource` of this one's.

    Raises:
        UserError: a key is NaN.
    """
    group = group or Group()
    scores = PerQuery.empty(selection.num_matches)
    count = _Count(source, selection, monitor, observer, phase)
    most = None
    if isinstance(source, BlockSource):
        most = -int(group.most(-source.max_rows))  # runs of queries are the same for all
    for pairs in selection.pairs(PAIR_LIMIT, most):
        count.observed = 0
        for matches in _attempts(source, pairs, group):
            with group.together():
                count(pairs, matches)
            add_up(matches, group)
            # NaN differs from itself, and is refused below.
            if not bool(matches.mismatched.any()) or bool(matches.nearest.isnan().any()):
                break
        else:
            raise RuntimeError("two products of the same features and shape differ on this machine")
        if observer is not None:
            observer.matches(pairs, matches)
        count.done += pairs.count * source.columns
        score(scores, selection, pairs, matches)
    return scores


def _attempts(source: Source, pairs: Pairs, group: Group) -> Iterator[Matches]:
    """Yield matches with keys from ever costlier readings, for a BLAS that rounds by shape.

    The tiles' own values hold: counting stops where a key differs from them.
    """
    if not isinstance(source, BlockSource):
        yield matches_of(pairs, torch.empty(0, dtype=source.dtype, device=source.device))
        return

    def shared(read: Callable[[], Tensor]) -> Tensor:
        with group.together():
            keys = read()
        return group.union(keys)

    yield matches_of(pairs, shared(lambda: source.match_keys(pairs)))
    keys = shared(lambda: source.match_keys(pairs, whole_tiles=True))
    yield matches_of(pairs, keys)
    yield matches_of(pairs, shared(lambda: _keys_in_tiles(source, pairs, keys)))


def add_up(matches: Matches, group: Group) -> None:
    """Add up, in place, what the processes of a group counted with the items of each."""
    if group.world == 1:
        return
    nan = matches.nearest.isnan()
    counts = torch.cat([matches.preceding, matches.tied, matches.mismatched, nan.long()])
    matches.preceding, matches.tied, matches.mismatched, nans = group.sum(counts).split(
        [len(matches.preceding), *(len(matches.tied),) * 3]
    )
    matches.nearest[nans > 0] = torch.nan


def matches_of(pairs: Pairs, keys: Tensor) -> Matches:
    """Return the matches of `pairs`, nothing counted yet.

    Args:
        pairs: a run of queries.
        keys: of the matches, [M]; empty where tiles of whole rows will give them.
    """
    match_start, match_item, ignored_start, ignored_item = (
        torch.from_numpy(part).to(keys.device)
        for part in (
            pairs.match_start,
            pairs.match_item,
            pairs.ignored_start,
            pairs.ignored_item,
        )
    )
    if len(match_item) and not len(keys):
        return Matches.unread(match_start, match_item, ignored_start, ignored_item, keys.dtype)
    return Matches.of(match_start, match_item, keys, ignored_start, ignored_item)


@dataclass(slots=True)
class _Count:
    """Count the tiles of a run of queries, up to the first one whose keys of matches differ.

    Attributes:
        source: see `rank`, as the other attributes.
        done: pairs of the runs before.
        observed: tiles of this run that the observer has taken already.
    """

    source: Source
    selection: Selection
    monitor: Monitor
    observer: PairObserver | None
    phase: str
    done: int = 0
    observed: int = 0

    def __call__(self, pairs: Pairs, matches: Matches) -> None:
        """Count for `matches`, whose keys are set unless tiles are whole rows."""
        device, done, number = matches.match_key.device, self.done, 0
        total = len(self.selection.queries) * self.source.columns
        cameras = self.selection.cameras(device)
        for rows, whole in self.source.tiles(pairs.start, pairs.stop):
            if not isinstance(self.source, BlockSource):
                read_matches(whole, rows, matches)
            queries = slice(pairs.start + rows.start, pairs.start + rows.stop)
            items = slice(whole.offset, whole.offset + whole.width)
            for part, masks in masked(items, self.selection, queries, cameras, device):
                tile = whole.cut(slice(part.start - items.start, part.stop - items.start))
                count_preceding(tile, rows, matches, masks)
                if self.observer is not None and number >= self.observed:
                    self.observer.tile(pairs, rows, tile, masks[2])
                number += 1
            done += whole.values.numel()
            self.monitor.step(self.phase, done, total)
            last = rows.stop == pairs.count
            if last and device.type == "cpu" and bool(matches.mismatched.any()):
                break  # elsewhere reading it would wait for the device
        self.observed = max(self.observed, number)


Cameras = tuple[Tensor, Tensor]
"""Camera codes of all queries and all items of a selection that leaves out whole cameras."""


def masked(
    items: slice,
    selection: Selection,
    queries: slice,
    cameras: Cameras | None,
    device: torch.device,
) -> Iterator[tuple[slice, Masks]]:
    """Yield items of a tile in parts, each with the pairs of it that are left out.

    Args:
        items: the tile's columns among the selection's gallery.
        selection: what counts for which query.
        queries: the tile's rows among the selection's queries.
        cameras: `selection.cameras`.
        device: of the tile.
    """
    # The mask of a condition must not be a whole gallery wide.
    whole = selection.labels.exclusion is None
    width = max(1, items.stop - items.start) if whole else MASK_COLUMNS
    row_camera = None if cameras is None else cameras[0][queries]
    for left in range(items.start, items.stop, width):
        part = slice(left, min(left + width, items.stop))
        column_camera = None if cameras is None else cameras[1][part]
        removed = None
        if not whole:
            removed = torch.from_numpy(selection.excludes(queries, part)).to(device)
        yield part, (row_camera, column_camera, removed)


def _keys_in_tiles(source: Source, pairs: Pairs, like: Tensor) -> Tensor:
    """Return the keys of the matches of `pairs` as the tiles have them, zero where none has."""
    keys = torch.zeros_like(like)
    item = torch.from_numpy(pairs.match_item).to(like.device)
    row = torch.from_numpy(pairs.match_row).to(like.device)
    for rows, tile in source.tiles(pairs.start, pairs.stop):
        inside = (row >= rows.start) & (row < rows.stop) & (item >= tile.offset)
        inside &= item < tile.offset + tile.values.shape[1]
        at = torch.nonzero(inside).squeeze(1)
        keys[at] = tile.at(row[at] - rows.start, item[at])
    return keys


def score(scores: PerQuery, selection: Selection, pairs: Pairs, matches: Matches) -> None:
    """Turn the ranks of a run of queries into their scores, in float64."""
    queries = selection.queries[pairs.start : pairs.stop]
    nan = matches.nearest.isnan().cpu().numpy()
    if nan.any():
        at = int(queries[np.flatnonzero(nan)[0]])
        raise UserError(f"query {at}: a distance is NaN; distances must be numbers")
    scores.tied[queries] = matches.tied.cpu().numpy()

    rank = matches.ranks().cpu().numpy()  # [M]
    sizes = np.diff(pairs.match_start)
    hit = np.arange(len(rank)) - np.repeat(pairs.match_start[:-1], sizes) + 1
    precision = hit / rank
    if selection.protocol.precision == "trapezoid":
        before = np.where(rank == 1, 1.0, (hit - 1) / np.maximum(rank - 1, 1))
        precision = (before + precision) / 2
    matched = sizes > 0
    first = pairs.match_start[:-1][matched]
    last = pairs.match_start[1:][matched] - 1
    total = np.bincount(pairs.match_row, precision, minlength=len(queries))
    of = queries[matched]
    scores.average_precision[of] = total[matched] / sizes[matched]
    scores.inverse_negative_penalty[of] = sizes[matched] / rank[last]
    scores.first_rank[of] = rank[first]
