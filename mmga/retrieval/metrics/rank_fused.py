"""Ranks counted by the kernels that form the products, in a precision of one's choice.

For CUDA devices; imports Triton. `mmga.retrieval.metrics.rank` counts in tiles instead, in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mmga.common.memory import Peak
from mmga.ops.ranking import Matches
from mmga.ops.triton import ranking as triton_ranking
from mmga.ops.triton.ranking import Thresholds
from mmga.retrieval.metrics.rank import PAIR_LIMIT, PerQuery, matches_of, score
from mmga.retrieval.protocols.protocol import Pairs, Selection
from mmga.retrieval.tiles.problem import Context, refuse_precision
from mmga.retrieval.tiles.sources import NARROWEST, FeatureBlocks, Progress, tile_within


@dataclass(frozen=True, slots=True)
class Codes:
    """Whom queries and items show, and by which camera; pairs of equal codes are left out.

    Attributes:
        query_pid: int32 [Q'].
        gallery_pid: int32 [G'].
        query_camera: int32 [Q'], or None where whole cameras are not left out.
        gallery_camera: int32 [G'], likewise.
    """

    query_pid: Tensor
    gallery_pid: Tensor
    query_camera: Tensor | None
    gallery_camera: Tensor | None

    @classmethod
    def of(cls, selection: Selection, device: torch.device) -> Codes:
        """Number the identities of a selection."""
        labels, count = selection.labels, len(selection.queries)
        pids = labels.query_pids[selection.queries], labels.gallery_pids[selection.gallery]
        code = np.unique(np.concatenate(pids), return_inverse=True)[1].astype(np.int32)

        def near(codes: np.ndarray) -> Tensor:
            return torch.from_numpy(codes).to(device)

        if selection.query_camera is None or selection.gallery_camera is None:
            return cls(near(code[:count]), near(code[count:]), None, None)
        cameras = near(selection.query_camera), near(selection.gallery_camera)
        return cls(near(code[:count]), near(code[count:]), *cameras)


class CountingSource(FeatureBlocks):
    """Queries and blocks of the gallery, from which matches' keys and ranks come without a tile.

    Attributes:
        precision: one of `mmga.ops.precision.PRECISIONS`.
    """

    precision = "ieee"

    def match_keys(self, pairs: Pairs) -> Tensor:
        """Return the keys of the matches of `pairs`, float32 [M], as `count` forms them."""
        count = pairs.stop - pairs.start
        item, place = np.unique(pairs.match_item, return_inverse=True)
        row = np.repeat(np.arange(count), np.diff(pairs.match_start))
        keys = torch.empty(len(row), device=self.device)
        for left in range(0, len(item), self._width):  # as many as one block of the gallery holds
            right = min(left + self._width, len(item))
            inside = np.flatnonzero((place >= left) & (place < right))
            start = np.searchsorted(row[inside], np.arange(count + 1))
            block = self._gallery.take(
                self._gallery_rows[item[left:right]], self._buffer()[: right - left]
            )
            keys[torch.from_numpy(inside).to(self.device)] = triton_ranking.match_keys(
                self._queries(pairs.start, pairs.stop)[:count],
                block.to(self.device),
                self._row_term[pairs.start : pairs.stop],
                self._column_term[torch.from_numpy(item[left:right]).to(self.device)],
                self._metric,
                torch.from_numpy(start).to(self.device),
                torch.from_numpy(place[inside] - left).to(self.device),
                precision=self.precision,
            )
        return keys

    def count(self, pairs: Pairs, matches: Matches, codes: Codes) -> Iterator[int]:
        """Count all items for the matches of `pairs`; yield how many items each block had."""
        count, rows = pairs.stop - pairs.start, slice(pairs.start, pairs.stop)
        queries, thresholds = self._queries(pairs.start, pairs.stop)[:count], Thresholds.of(matches)
        for left, right, block in self._blocks():
            columns = slice(left, right)
            triton_ranking.count_preceding(
                queries,
                block[: right - left],
                self._row_term[rows],
                self._column_term[columns],
                self._metric,
                codes.query_pid[rows],
                codes.gallery_pid[columns],
                matches,
                row_camera=_part(codes.query_camera, rows),
                column_camera=_part(codes.gallery_camera, columns),
                thresholds=thresholds,
                offset=left,
                precision=self.precision,
            )
            yield right - left


def count_ranks(
    source: CountingSource,
    selection: Selection,
    progress: Progress | None = None,
    peak: Peak | None = None,
) -> PerQuery:
    """Rank the matches of all selected queries, as `passes.rank` does in tiles.

    Args:
        source: of the queries and items of `selection`.
        selection: what counts for which query; `selection.by_identity` holds.
        progress: called with pairs of (query, item) done and in all.
        peak: looks at the memory after each block.
    """
    scores = PerQuery.empty(selection.num_matches)
    codes = Codes.of(selection, source.device)
    done, total = 0, len(selection.queries) * source.columns
    for pairs in selection.pairs(PAIR_LIMIT, source.max_rows):
        matches = matches_of(pairs, source.match_keys(pairs))
        for items in source.count(pairs, matches, codes):
            done += items * (pairs.stop - pairs.start)
            if progress is not None:
                progress("ranks", done, total)
            if peak is not None:
                peak.look()
        score(scores, selection, pairs, matches)
    return scores


def _part(codes: Tensor | None, of: slice) -> Tensor | None:
    return None if codes is None else codes[of]


def rank_fused(context: Context, precision: str) -> PerQuery:
    """Rank the selection of an evaluation by products of another precision, see `mmga.evaluate`.

    Raises:
        UserError: single pairs are left out, or a key could overflow.
    """
    if not context.selection.by_identity:
        refuse_precision(
            precision, "leaves out identities and cameras, not pairs by condition or path"
        )
    if not _squares_fit(context):
        refuse_precision(precision, "keeps float32's range, which these features exceed")
    assert context.room is not None  # a CUDA device
    source = CountingSource(
        context.query.rows,
        context.selection.queries,
        context.query_norms,
        context.gallery.rows,
        context.selection.gallery,
        context.gallery_norms,
        context.metric,
        context.device,
        context.memory,
        (NARROWEST, tile_within(context.room, context.gallery.rows.shape[1])[1]),
    )
    source.precision = precision
    return count_ranks(source, context.selection, context.progress, context.peak)


def _squares_fit(context: Context) -> bool:
    """Return whether no key of any pair overflows: it is at most the square of |x| + |y|."""
    longest = sum(norms.max().sqrt() for norms in (context.query_norms, context.gallery_norms))
    return bool(longest**2 < torch.finfo(torch.float32).max)
