"""Verification and open-set figures: which threshold, and what it costs.

Genuine pairs are the kept pairs of equal pid, impostor pairs the kept pairs of different pid. Their
distances are counted in bins of equal width, tile by tile in the pass that ranks; a pair is
accepted where its distance is at most the threshold, which is always the upper edge of a bin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mmga.common.errors import UserError
from mmga.common.grid import Grid
from mmga.ops.ranking import Impostors, Matches, Tile, count_impostors
from mmga.retrieval.features import UNKNOWN
from mmga.retrieval.protocols.selection import Pairs, Selection
from mmga.retrieval.tiles.share import QueryShare

BINS = 1 << 16
TARGETS = (1e-4, 1e-3, 1e-2)
FALSE_ALARMS = (0.01, 0.1)
# Of the identities with a match, this share plays stranger where the data has none.
STRANGERS = 0.5


@dataclass(slots=True)
class Counts:
    """Pairs by distance.

    Attributes:
        genuine: int64 [bins + 1]; the last are pairs at infinite distance.
        impostor: int64 [bins + 1].
        width: width of a bin in the metric's own unit.
        best: smallest distance of each ranked query to a kept item of a known identity, float64
            [Q'].
        best_is_match: whether that item is a match (by index where distances tie), bool [Q'].
        mated: whether the query has a match of a known identity, bool [Q'].
        removed: number of identities that were taken from the gallery to play strangers.
    """

    genuine: np.ndarray
    impostor: np.ndarray
    width: float
    best: np.ndarray
    best_is_match: np.ndarray
    mated: np.ndarray
    removed: int

    @property
    def genuines(self) -> int:
        """Number of genuine pairs."""
        return int(self.genuine.sum())

    @property
    def impostors(self) -> int:
        """Number of impostor pairs."""
        return int(self.impostor.sum())

    @property
    def true_accepts(self) -> np.ndarray:
        """Genuine pairs that the upper edge of each bin accepts, int64 [bins]."""
        return np.cumsum(self.genuine[:-1])

    @property
    def false_accepts(self) -> np.ndarray:
        """Impostor pairs that the upper edge of each bin accepts, int64 [bins]."""
        return np.cumsum(self.impostor[:-1])


class PairCounter:
    """Counts all kept pairs by distance while they are ranked."""

    def __init__(
        self,
        selection: Selection,
        largest: float,
        squared: bool,
        cross_camera: bool = False,
        strangers: float | None = None,
        seed: int = 0,
        *,
        asked: QueryShare | None = None,
    ) -> None:
        """Start all counts at zero.

        Args:
            selection: what is kept; it must hold queries without a match too.
            largest: an upper bound of the distances, in the metric's own unit.
            squared: keys are squared distances.
            cross_camera: leave out impostor pairs of one camera.
            strangers: share of the identities whose items open-set figures take from the gallery;
                None: `STRANGERS` where every query has a match, else none.
            seed: seed of which identities these are.
            asked: the queries that this process ranks; None: all.

        Raises:
            UserError: cameras are missing, or the share is none.
        """
        self._selection, self._squared = selection, squared
        self._grid = Grid() if asked is None else asked.grid
        self.width = largest / BINS
        units = self.width * np.arange(1, BINS + 1)
        edges = units**2 if squared else units
        edges[-1] = np.finfo(np.float64).max  # rounding may exceed the bound, which is a distance
        self._edges = torch.from_numpy(edges)
        self._genuine = np.zeros(BINS + 1, np.int64)
        self._impostor = np.zeros(BINS + 1, np.int64)
        count = len(selection.queries)
        self._nearest, self._first_key = np.full(count, np.inf), np.full(count, np.inf)
        last = np.iinfo(np.int64).max
        self._nearest_item, self._first_item = np.full(count, last), np.full(count, last)
        self._cross_camera = cross_camera
        self._places = np.arange(count) if asked is None else asked.places.numpy()
        self._row_camera, self._column_camera = _cameras(selection, cross_camera)
        self._run: tuple[Pairs, Impostors] | None = None
        self._choose_strangers(strangers, seed)

    def _choose_strangers(self, share: float | None, seed: int) -> None:
        if share is not None and not 0 <= share < 1:
            raise UserError(f"strangers: expected a share from 0 up to 1, found {share}")
        labels, selection = self._selection.labels, self._selection
        pids = labels.query_pids[selection.queries]
        matched = selection.num_matches[selection.queries] > 0
        people = np.unique(pids[matched])
        if share is None:
            share = STRANGERS if matched.all() else 0.0
        drawn = np.random.default_rng(seed).permutation(people)[: round(share * len(people))]
        self.removed = len(drawn)
        self._mated = matched & ~np.isin(pids, drawn)
        known = ~np.isin(labels.gallery_pids[selection.gallery], drawn)
        self._known = torch.from_numpy(known) if len(drawn) else None

    def tile(self, pairs: Pairs, rows: slice, tile: Tile, removed: Tensor | None) -> None:
        """Count a tile; called once for each tile of a run of queries.

        Args:
            pairs: the run.
            rows: which of its queries the tile's rows are.
            tile: [R, W].
            removed: bool [R, W], pairs that a condition leaves out, or None.
        """
        device = tile.values.device
        if self._run is None or self._run[0] is not pairs:
            self._take()
            self._run = (
                pairs,
                Impostors.of(
                    self._edges.to(device),
                    torch.from_numpy(pairs.ignored_start).to(device),
                    torch.from_numpy(pairs.ignored_item).to(device),
                ),
            )
        _, impostors = self._run
        columns = slice(tile.offset, tile.offset + tile.values.shape[1])
        queries = self._places[pairs.start + rows.start : pairs.start + rows.stop]
        with_cameras = self._row_camera is not None and self._column_camera is not None
        count_impostors(
            tile,
            rows,
            impostors,
            (
                self._row_camera[queries].to(device) if with_cameras else None,  # type: ignore[index]
                self._column_camera[columns].to(device) if with_cameras else None,  # type: ignore[index]
                removed,
            ),
            self._cross_camera and self._selection.query_camera is None,
            None if self._known is None else self._known[columns].to(device),
        )

    def matches(self, pairs: Pairs, matches: Matches) -> None:
        """Count the matches of a run of queries, whose keys are those of the tiles."""
        keys = matches.match_key.cpu().double().numpy()
        items = matches.match_item.cpu().numpy()
        place = np.searchsorted(self._edges.numpy(), keys)
        self._genuine += np.bincount(place, minlength=BINS + 1)
        matched = np.diff(pairs.match_start) > 0
        first = pairs.match_start[:-1][matched]
        queries = self._places[pairs.start : pairs.stop][matched]
        self._first_key[queries] = keys[first]
        self._first_item[queries] = items[first]

    def _take(self) -> None:
        """Keep what was counted of the run that is done."""
        if self._run is None:
            return
        pairs, impostors = self._run
        self._impostor += impostors.counts.cpu().numpy()
        queries = self._places[pairs.start : pairs.stop]
        self._nearest[queries] = impostors.nearest.cpu().numpy()
        self._nearest_item[queries] = impostors.nearest_item.cpu().numpy()
        self._run = None

    def _add_up(self) -> None:
        """Add up what the processes counted; those of a row have all matches of its queries."""
        whole, column = self._grid.whole, self._grid.column
        self._impostor = whole.sum(torch.from_numpy(self._impostor)).numpy()
        own = torch.from_numpy(self._nearest)
        nearest = whole.least(own)
        item = torch.from_numpy(self._nearest_item)
        item = torch.where(own == nearest, item, torch.iinfo(torch.int64).max)
        self._nearest, self._nearest_item = nearest.numpy(), whole.least(item).numpy()
        self._genuine = column.sum(torch.from_numpy(self._genuine)).numpy()
        self._first_key = column.least(torch.from_numpy(self._first_key)).numpy()
        self._first_item = column.least(torch.from_numpy(self._first_item)).numpy()

    def counts(self) -> Counts:
        """Return what was counted."""
        self._take()
        self._add_up()
        first_key = np.where(self._mated, self._first_key, np.inf)
        is_match = self._mated & (
            (first_key < self._nearest)
            | ((first_key == self._nearest) & (self._first_item < self._nearest_item))
        )
        best = np.minimum(first_key, self._nearest)
        return Counts(
            self._genuine,
            self._impostor,
            self.width,
            np.sqrt(best) if self._squared else best,
            is_match,
            self._mated,
            self.removed,
        )


def _cameras(selection: Selection, cross_camera: bool) -> tuple[Tensor | None, Tensor | None]:
    """Return camera codes of queries and items, int32, where pairs of one camera are left out."""
    if selection.query_camera is not None and selection.gallery_camera is not None:
        return torch.from_numpy(selection.query_camera), torch.from_numpy(selection.gallery_camera)
    if not cross_camera:
        return None, None
    labels = selection.labels
    if labels.query_camids is None or labels.gallery_camids is None:
        raise UserError("cross_camera needs the camids of both sides, which are missing")
    query, gallery = (
        labels.query_camids[selection.queries],
        labels.gallery_camids[selection.gallery],
    )
    codes = np.unique(np.concatenate([query, gallery]), return_inverse=True)[1].astype(np.int32)
    row, column = codes[: len(query)], codes[len(query) :]
    row[query == UNKNOWN], column[gallery == UNKNOWN] = -1, -2  # of no camera in common
    return torch.from_numpy(row), torch.from_numpy(column)


def figures(counts: Counts, targets: Sequence[float] = TARGETS) -> dict[str, object]:
    """Return ROC, EER, thresholds and open-set rates as plain values.

    Args:
        counts: of `PairCounter`.
        targets: false positive rates whose threshold is wanted.
    """
    matched = counts.mated
    # Pairs at infinite distance are pairs, which no threshold accepts.
    impostors, genuines = counts.impostors, counts.genuines
    false_accepts, true_accepts = counts.false_accepts, counts.true_accepts
    edges = counts.width * np.arange(1, BINS + 1)
    result: dict[str, object] = {
        "genuine_pairs": genuines,
        "impostor_pairs": impostors,
        "bin_width": counts.width,
        "tpr_at_fpr": [],
        "eer": None,
        "dir_at_far": [],
        "mated_queries": int(matched.sum()),
        "stranger_queries": int((~matched).sum()),
        "removed_identities": counts.removed,
    }
    rows = []
    for target in targets:
        row: dict[str, object] = {"fpr": target, "tpr": None, "threshold": None}
        if impostors and target >= 1 / impostors and genuines:
            # The largest edge whose rate of false accepts keeps within the target.
            at = int(np.searchsorted(false_accepts / impostors, target, "right")) - 1
            row["tpr"] = float(true_accepts[at] / genuines) if at >= 0 else 0.0
            row["threshold"] = float(edges[at]) if at >= 0 else None
            row["note"] = None
            if at < 0:
                row["note"] = (
                    f"0.00%, no threshold: {int(false_accepts[0])} of {impostors} impostor "
                    f"pairs are within a distance of {edges[0]:.2g}"
                )
        else:
            row["note"] = f"not resolvable with {impostors} impostor pairs"
        rows.append(row)
    result["tpr_at_fpr"] = rows
    if impostors and genuines:
        miss = 1 - true_accepts / genuines
        accept = false_accepts / impostors
        at = int(np.argmin(np.abs(miss - accept)))
        result["eer"] = float((miss[at] + accept[at]) / 2)
    strangers = np.sort(counts.best[~matched])
    open_set = []
    for target in FALSE_ALARMS:
        entry: dict[str, object] = {"far": target, "dir": None, "threshold": None, "note": None}
        if len(strangers) and target >= 1 / len(strangers) and matched.any():
            # Accept d <= t for the largest t that accepts at most this share of strangers.
            allowed = int(target * len(strangers) + 1e-9)
            limit = strangers[allowed] if allowed < len(strangers) else np.inf
            accepted = counts.best < limit
            entry["dir"] = float((accepted & counts.best_is_match)[matched].mean())
            below = counts.best[accepted]
            entry["threshold"] = float(below.max()) if len(below) else None
            if not len(below):
                entry["note"] = (
                    f"0.00%, no threshold: {allowed + 1} of {len(strangers)} queries without "
                    "a mate are as near to an item as any query is"
                )
        else:
            entry["note"] = f"not resolvable with {len(strangers)} queries without a mate"
        open_set.append(entry)
    result["dir_at_far"] = open_set
    return result
