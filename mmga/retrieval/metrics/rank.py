"""One pass over all tiles: ranks of the matches, and per-query figures from them.

Legend: ``Q`` queries of the query set, ``M`` matches of a run of queries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from mmga.common.errors import UserError
from mmga.common.memory import Peak
from mmga.ops.ranking import Matches, Tile, count_preceding, read_matches
from mmga.retrieval.protocols.protocol import Pairs, Selection
from mmga.retrieval.tiles.sources import BlockSource, Progress, Source

# Matches and ignored items of the queries that are ranked together.
PAIR_LIMIT = 1 << 21
MASK_COLUMNS = 4096


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


class PairObserver(Protocol):
    """What looks at the tiles and matches of a pass while it ranks."""

    def tile(self, pairs: Pairs, rows: slice, tile: Tile, removed: Tensor | None) -> None:
        """Take a tile, each once, and the pairs [R, W] of it that a condition leaves out."""
        ...

    def matches(self, pairs: Pairs, matches: Matches) -> None:
        """Take the matches of a run of queries, after its tiles."""
        ...


def rank(
    source: Source,
    selection: Selection,
    *,
    observer: PairObserver | None = None,
    phase: str = "ranks",
    progress: Progress | None = None,
    peak: Peak | None = None,
) -> PerQuery:
    """Rank the matches of all selected queries and return what each query scores.

    Args:
        source: tiles whose rows are `selection.queries` and whose columns `selection.gallery`.
        selection: what counts for which query.
        observer: takes every tile and all matches as well.
        phase: name of this pass for `progress`.
        progress: called with pairs of (query, item) done and in all.
        peak: looks at the memory after each tile.

    Raises:
        UserError: a key is NaN.
    """
    scores = PerQuery.empty(selection.num_matches)
    done, total = 0, len(selection.queries) * source.columns

    def tile_is_done(tile: Tile) -> None:
        nonlocal done
        done += tile.values.numel()
        if progress is not None:
            progress(phase, done, total)
        if peak is not None:
            peak.look()

    most = source.max_rows if isinstance(source, BlockSource) else None
    for pairs in selection.pairs(PAIR_LIMIT, most):
        before, observed = done, 0
        for matches in _attempts(source, pairs):
            done = before
            tiles = _count(source, selection, pairs, matches, tile_is_done, observer, observed)
            # NaN differs from itself, and is refused below.
            if not bool(matches.moved.any()) or bool(matches.nearest.isnan().any()):
                break
            observed = max(observed, tiles)
        else:
            raise RuntimeError("two products of the same features and shape differ on this machine")
        if observer is not None:
            observer.matches(pairs, matches)
        score(scores, selection, pairs, matches)
    return scores


def _attempts(source: Source, pairs: Pairs) -> Iterator[Matches]:
    """Yield matches with keys from ever costlier readings, for a BLAS that rounds by shape.

    The tiles' own values hold: counting stops where a key differs from them.
    """
    if not isinstance(source, BlockSource):
        yield _unread(pairs, source.device, source.dtype)
        return
    yield matches_of(pairs, source.match_keys(pairs))
    keys = source.match_keys(pairs, whole_tiles=True)
    yield matches_of(pairs, keys)
    yield matches_of(pairs, _keys_in_tiles(source, pairs, keys))


def matches_of(pairs: Pairs, keys: Tensor) -> Matches:
    """Return the matches of `pairs` with their keys [M], nothing counted yet."""
    device = keys.device
    return Matches.of(
        torch.from_numpy(pairs.match_start).to(device),
        torch.from_numpy(pairs.match_item).to(device),
        keys,
        torch.from_numpy(pairs.ignored_start).to(device),
        torch.from_numpy(pairs.ignored_item).to(device),
    )


def _unread(pairs: Pairs, device: torch.device, dtype: torch.dtype) -> Matches:
    return Matches.unread(
        torch.from_numpy(pairs.match_start).to(device),
        torch.from_numpy(pairs.match_item).to(device),
        torch.from_numpy(pairs.ignored_start).to(device),
        torch.from_numpy(pairs.ignored_item).to(device),
        dtype,
    )


def _count(
    source: Source,
    selection: Selection,
    pairs: Pairs,
    matches: Matches,
    tile_is_done: Callable[[Tile], None],
    observer: PairObserver | None,
    observed: int,
) -> int:
    """Count the tiles of `pairs`, up to the first one whose keys of matches differ.

    Args:
        source: see `rank`.
        selection: see `rank`.
        pairs: the queries.
        matches: with their keys, unless tiles are whole rows, from which they are read.
        tile_is_done: called after each tile.
        observer: see `rank`.
        observed: tiles at the beginning that the observer has taken already.

    Returns:
        The number of tiles that an observer has taken.
    """
    row_camera = column_camera = None
    device = matches.match_key.device
    if selection.query_camera is not None and selection.gallery_camera is not None:
        row_camera = torch.from_numpy(selection.query_camera[pairs.start : pairs.stop]).to(device)
        column_camera = torch.from_numpy(selection.gallery_camera).to(device)
    number, last = 0, pairs.stop - pairs.start
    for rows, whole in source.tiles(pairs.start, pairs.stop):
        if not isinstance(source, BlockSource):
            read_matches(whole, rows, matches)
        # What a condition leaves out is a mask of the tile, which must not be a whole gallery wide.
        narrow = None if selection.labels.exclusion is None else MASK_COLUMNS
        for tile in whole.split(narrow):
            columns = slice(tile.offset, tile.offset + tile.values.shape[1])
            removed = None
            if narrow is not None:
                queries = slice(pairs.start + rows.start, pairs.start + rows.stop)
                removed = torch.from_numpy(selection.excludes(queries, columns)).to(device)
            count_preceding(
                tile,
                rows,
                matches,
                None if row_camera is None else row_camera[rows],
                None if column_camera is None else column_camera[columns],
                removed,
            )
            if observer is not None and number >= observed:
                observer.tile(pairs, rows, tile, removed)
            number += 1
        tile_is_done(whole)
        if rows.stop == last and device.type == "cpu" and bool(matches.moved.any()):
            break  # elsewhere looking would wait for the device
    return number


def _keys_in_tiles(source: Source, pairs: Pairs, like: Tensor) -> Tensor:
    """Return the keys of the matches of `pairs` as the tiles have them."""
    keys = torch.empty_like(like)
    item = torch.from_numpy(pairs.match_item).to(like.device)
    row = torch.repeat_interleave(
        torch.arange(pairs.stop - pairs.start), torch.from_numpy(np.diff(pairs.match_start))
    ).to(like.device)
    for rows, tile in source.tiles(pairs.start, pairs.stop):
        inside = (row >= rows.start) & (row < rows.stop) & (item >= tile.offset)
        inside &= item < tile.offset + tile.values.shape[1]
        at = torch.nonzero(inside).squeeze(1)
        keys[at] = tile.at(row[at] - rows.start, item[at])
    return keys


def score(scores: PerQuery, selection: Selection, pairs: Pairs, matches: Matches) -> None:
    """Turn the ranks of a run of queries into their figures, in float64."""
    queries = selection.queries[pairs.start : pairs.stop]
    nan = matches.nearest.isnan().cpu().numpy()
    if nan.any():
        at = int(queries[np.flatnonzero(nan)[0]])
        raise UserError(f"query {at}: a distance is NaN; distances must be numbers")
    scores.tied[queries] = matches.tied.cpu().numpy()

    rank = matches.ranks().cpu().numpy()  # [M]
    sizes = np.diff(pairs.match_start)
    row = np.repeat(np.arange(len(queries)), sizes)
    hit = np.arange(len(rank)) - np.repeat(pairs.match_start[:-1], sizes) + 1
    precision = hit / rank
    if selection.protocol.precision == "trapezoid":
        before = np.where(rank == 1, 1.0, (hit - 1) / np.maximum(rank - 1, 1))
        precision = (before + precision) / 2
    matched = sizes > 0
    first = pairs.match_start[:-1][matched]
    last = pairs.match_start[1:][matched] - 1
    total = np.bincount(row, precision, minlength=len(queries))
    of = queries[matched]
    scores.average_precision[of] = total[matched] / sizes[matched]
    scores.inverse_negative_penalty[of] = sizes[matched] / rank[last]
    scores.first_rank[of] = rank[first]
