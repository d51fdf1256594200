"""The pairs of queries and gallery items that count under a protocol.

Legend: ``Q`` queries, ``G`` gallery items.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mmga.common import ids
from mmga.common.arrays import among
from mmga.common.distributed import Group
from mmga.common.errors import UserError
from mmga.common.progress import Progress
from mmga.retrieval.features import JUNK, UNKNOWN, Features, common_labels
from mmga.retrieval.protocols.pair_condition import Exclusion
from mmga.retrieval.protocols.protocol import Protocol

Array = np.ndarray


class NoMatch(UserError):
    """No query has a match."""


@dataclass(slots=True)
class Labels:
    """Labels of both sides in one numbering.

    Attributes:
        query_pids: int64 [Q], JUNK and UNKNOWN among them.
        gallery_pids: int64 [G], likewise.
        query_camids: int64 [Q], or None.
        gallery_camids: int64 [G], or None.
        query_paths: unicode [Q], or None.
        gallery_paths: unicode [G], or None.
        exclusion: a condition on pairs that are left out, or None.
        pid_names: where pids of a side were strings, the name of pid i at place i; else None.
        camid_names: likewise for cameras.
    """

    query_pids: Array
    gallery_pids: Array
    query_camids: Array | None = None
    gallery_camids: Array | None = None
    query_paths: Array | None = None
    gallery_paths: Array | None = None
    exclusion: Exclusion | None = None
    pid_names: Array | None = None
    camid_names: Array | None = None

    @property
    def num_cameras(self) -> int | None:
        """Number of distinct known cameras of both sides, None where one has none."""
        if self.query_camids is None or self.gallery_camids is None:
            return None
        return len(np.setdiff1d(np.union1d(self.query_camids, self.gallery_camids), UNKNOWN))

    @classmethod
    def of(
        cls, query: Features, gallery: Features, exclude: str | None = None, cameras: bool = True
    ) -> Labels:
        """Return the labels of two sets of features.

        Args:
            query: the query features.
            gallery: the gallery features.
            exclude: a condition on pairs that are left out (see `Exclusion`).
            cameras: those of both sides are compared, and must be written alike.

        Raises:
            UserError: one side has strings where the other has integers, or the condition does not
                fit their columns.
        """
        query_pids, gallery_pids, pid_names = common_labels(
            "pids", query.pids, query.pid_names, gallery.pids, gallery.pid_names
        )
        query_camids, gallery_camids, camid_names = query.camids, gallery.camids, None
        if query.camids is not None and gallery.camids is not None:
            query_camids, gallery_camids, camid_names = common_labels(
                "camids",
                query.camids,
                query.camid_names,
                gallery.camids,
                gallery.camid_names,
                strict=cameras,
            )
        exclusion = None if exclude is None else Exclusion.of(exclude, query, gallery)
        return cls(
            query_pids,
            gallery_pids,
            query_camids,
            gallery_camids,
            query.paths,
            gallery.paths,
            exclusion,
            pid_names,
            camid_names,
        )

    def unknown(self, side: Literal["query", "gallery"], cameras: bool) -> Array:
        """Return the rows of a side of which the identity or, if asked, the camera is not known.

        Junk is not among them.

        Args:
            side: of which set.
            cameras: an unknown camera counts, too.
        """
        pids, camids = self.query_pids, self.query_camids
        if side == "gallery":
            pids, camids = self.gallery_pids, self.gallery_camids
        missing = pids == UNKNOWN
        if cameras and camids is not None:
            missing = missing | (camids == UNKNOWN)
        return np.asarray(missing & (pids != JUNK))


@dataclass(slots=True)
class Pairs:
    """Matches and ignored items of the queries ``start`` to ``stop`` of a `Selection`.

    Lists of one query are consecutive and ascend; ``*_start`` [queries + 1] says where they begin.
    Items are positions in the selection's gallery.

    Attributes:
        start: first query.
        stop: query after the last.
        match_start: int64 [queries + 1].
        match_item: the kept items of the query's identity, int64.
        ignored_start: int64 [queries + 1].
        ignored_item: every item that is not counted: the matches (they are ranked among
            themselves) and what the protocol removes one by one, int64.
    """

    start: int
    stop: int
    match_start: Array
    match_item: Array
    ignored_start: Array
    ignored_item: Array

    @property
    def count(self) -> int:
        """Number of queries."""
        return self.stop - self.start

    @property
    def match_row(self) -> Array:
        """Query of each match, counted from `start`, int64."""
        return np.repeat(np.arange(self.count), np.diff(self.match_start))


@dataclass(slots=True)
class Selection:
    """Which queries are ranked against which gallery items under a protocol.

    Attributes:
        protocol: the rules.
        queries: rows of the query set to be ranked, int64 [Q'].
        gallery: rows of the gallery set that take part, ascending, int64 [G'].
        eligible_queries: rows of the query set that are neither junk nor unknown, ascending.
        num_matches: kept matches of every row of the query set, int64 [Q].
        num_kept: gallery items that every row of the query set ranks, int64 [Q]; 0 for junk.
        query_camera: code of the camera whose items are all removed, int32 [Q'], or None.
        gallery_camera: int32 [G'], or None.
        excluded: counts of what is left out, and why.
        distractors: number of gallery items whose identity no query has.
    """

    protocol: Protocol
    queries: Array
    gallery: Array
    eligible_queries: Array
    num_matches: Array
    num_kept: Array
    query_camera: Array | None
    gallery_camera: Array | None
    excluded: dict[str, int]
    distractors: int
    labels: Labels = field(repr=False)
    # Positions in `gallery` of the identities of queries, sorted by (pid, position).
    _by_pid: Array = field(repr=False)
    _sorted_pids: Array = field(repr=False)
    _path_items: dict[int, Array] = field(repr=False)  # query row -> positions of its own path

    @property
    def by_identity(self) -> bool:
        """Whether the items that no count holds are a query's identity and whole cameras alone."""
        return not self._path_items and self.labels.exclusion is None

    def of_queries(self, places: Array) -> Selection:
        """Return the same of some of the queries.

        Args:
            places: in `queries`, ascending int64.
        """
        camera = None if self.query_camera is None else self.query_camera[places]
        return dataclasses.replace(self, queries=self.queries[places], query_camera=camera)

    def cameras(self, device: torch.device) -> tuple[Tensor, Tensor] | None:
        """Return the camera codes of queries and items on a device, None without such."""
        if self.query_camera is None or self.gallery_camera is None:
            return None
        codes = self.query_camera, self.gallery_camera
        query, gallery = (torch.from_numpy(code).to(device) for code in codes)
        return query, gallery

    def pairs(self, limit: int, rows: int | None = None) -> Iterator[Pairs]:
        """Yield the queries in runs of at most `rows` whose lists hold at most `limit` items.

        A single query may hold more.
        """
        pids = self.labels.query_pids[self.queries]
        low = np.searchsorted(self._sorted_pids, pids, "left")
        sizes = np.searchsorted(self._sorted_pids, pids, "right") - low
        ends = np.cumsum(sizes)
        start = 0
        while start < len(pids):
            before = ends[start - 1] if start else 0
            stop = int(np.searchsorted(ends, before + limit, "right"))
            stop = max(stop, start + 1)
            if rows is not None:
                stop = min(stop, start + rows)
            yield self._pairs(start, stop, low[start:stop], sizes[start:stop])
            start = stop

    def excludes(self, rows: slice, columns: slice) -> Array:
        """Return which pairs of some queries and items the condition leaves out, bool [R, W].

        Pairs that are left out for their camera are not among them.

        Args:
            rows: places in `queries`.
            columns: places in `gallery`.
        """
        assert self.labels.exclusion is not None
        holds = self.labels.exclusion.block(self.queries[rows], self.gallery[columns])
        if self.query_camera is not None and self.gallery_camera is not None:
            holds &= self.query_camera[rows, None] != self.gallery_camera[columns]
        return holds

    def _pairs(self, start: int, stop: int, low: Array, sizes: Array) -> Pairs:
        row, item = own_items(self._by_pid, low, sizes)
        query = self.queries[start:stop][row]
        kept = ~removed(self.protocol, self.labels, query, self.gallery[item])
        match_start = starts(row[kept], stop - start)
        ignored_row, ignored_item = row, item
        extra = []
        if self._path_items:
            for at, query_row in enumerate(self.queries[start:stop].tolist()):
                items = self._path_items.get(query_row, _NOTHING)
                extra.append((np.full(len(items), at), items))
        if extra:
            ignored_row = np.concatenate([row, *(rows for rows, _ in extra)])
            ignored_item = np.concatenate([item, *(items for _, items in extra)])
            order = np.lexsort((ignored_item, ignored_row))
            ignored_row, ignored_item = ignored_row[order], ignored_item[order]
        return Pairs(
            start,
            stop,
            match_start,
            item[kept],
            starts(ignored_row, stop - start),
            ignored_item,
        )


_NOTHING = np.empty(0, np.int64)
_COUNTED_ROWS, _COUNTED_COLUMNS = 256, 4096


def starts(rows: Array, count: int) -> Array:
    """Return where each row's run begins in ascending `rows`: int64 [count + 1]."""
    return np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=count))]).astype(np.int64)


def own_items(by_pid: Array, low: Array, sizes: Array) -> tuple[Array, Array]:
    """Return (row, item) of every gallery item with the identity of a row, ascending by both."""
    row = np.repeat(np.arange(len(low)), sizes)
    first = np.repeat(np.cumsum(sizes) - sizes, sizes)
    return row, by_pid[np.repeat(low, sizes) + np.arange(len(row)) - first]


def removed(protocol: Protocol, labels: Labels, query: Array, item: Array) -> Array:
    """Return which of the pairs (query row, gallery row) of one identity the protocol removes."""
    out = np.zeros(len(query), dtype=bool)
    if protocol.camera != "none":
        assert labels.query_camids is not None
        assert labels.gallery_camids is not None
        out |= labels.query_camids[query] == labels.gallery_camids[item]
    out |= own_image(protocol, labels, query, item)
    if labels.exclusion is not None:
        out |= labels.exclusion.pairs(query, item)
    return out


def own_image(protocol: Protocol, labels: Labels, query: Array, item: Array) -> Array:
    """Return which of the pairs (query row, gallery row) show the query itself."""
    if protocol.own_image == "index":
        return np.asarray(query == item)
    if (
        protocol.own_image == "path"
        and labels.query_paths is not None
        and labels.gallery_paths is not None
    ):
        return np.asarray(labels.query_paths[query] == labels.gallery_paths[item])
    return np.zeros(len(query), dtype=bool)


def select(
    protocol: Protocol,
    labels: Labels,
    every_query: bool = False,
    by_identity: bool = True,
    progress: Progress | None = None,
    group: Group | None = None,
) -> Selection:
    """Apply a protocol to labels.

    Args:
        protocol: the rules.
        labels: labels of both sides.
        every_query: rank queries without a match too (verification needs their impostors).
        by_identity: queries of one identity stand together, so that a block of queries has few
            distinct matches; else they keep their order.
        progress: called as (phase, done, total) while excluded pairs are counted.
        group: processes that have all labels, and count a share of the excluded pairs each.

    Raises:
        NoMatch: no query has a match.
        UserError: cameras are needed and absent.
    """
    for side, pids in (("query", labels.query_pids), ("gallery", labels.gallery_pids)):
        if len(pids) and (pids == UNKNOWN).all():
            raise UserError(_nothing_left(side, pids))
    if protocol.needs_cameras:
        for side, camids in (("query", labels.query_camids), ("gallery", labels.gallery_camids)):
            if camids is None or (len(camids) and (camids == UNKNOWN).all()):
                raise UserError(
                    f"protocol {protocol.name} needs the camids of the {side}, which are missing; "
                    f"give them, or choose protocol {protocol.without_cameras}"
                )
    unknown = [labels.unknown(side, protocol.needs_cameras) for side in ("query", "gallery")]
    gallery = np.flatnonzero((labels.gallery_pids != JUNK) & ~unknown[1])
    gallery_pids = labels.gallery_pids[gallery]
    eligible = query_rows = np.flatnonzero((labels.query_pids != JUNK) & ~unknown[0])
    if by_identity:
        query_rows = query_rows[np.argsort(labels.query_pids[query_rows], kind="stable")]
    by_pid = np.flatnonzero(among(gallery_pids, labels.query_pids[query_rows]))
    by_pid = by_pid[np.argsort(gallery_pids[by_pid], kind="stable")]
    selection = Selection(
        protocol=protocol,
        queries=query_rows,
        gallery=gallery,
        eligible_queries=eligible,
        num_matches=np.zeros(len(labels.query_pids), np.int64),
        num_kept=np.zeros(len(labels.query_pids), np.int64),
        query_camera=None,
        gallery_camera=None,
        excluded={},
        distractors=len(gallery) - len(by_pid),
        labels=labels,
        _by_pid=by_pid,
        _sorted_pids=gallery_pids[by_pid],
        _path_items=_paths_of_others(protocol, labels, query_rows, gallery),
    )
    excluded_twice = _count_pairs(selection)
    for name, rows in (("unknown", unknown[1]), ("unknown_queries", unknown[0])):
        if rows.any():
            selection.excluded[name] = int(rows.sum())
    if protocol.camera == "all":
        _remove_cameras(selection)
    matched = selection.num_matches[query_rows] > 0
    selection.excluded["queries_without_match"] = int((~matched).sum())
    if labels.exclusion is not None:
        _count_excluded(selection, excluded_twice, progress, group or Group())
    if not matched.any():
        raise NoMatch(_no_match(protocol, labels, query_rows, gallery))
    if not every_query:
        selection.queries = query_rows[matched]
        if selection.query_camera is not None:
            selection.query_camera = selection.query_camera[matched]
    return selection


def _count_pairs(selection: Selection) -> Array:
    """Count the matches, and the pairs of one identity that the protocol leaves out, in place.

    Returns:
        Pairs of every row of the query set that both the protocol and the condition leave out,
        int64 [Q].
    """
    protocol, labels = selection.protocol, selection.labels
    same_camera = own_images = 0
    excluded_twice = np.zeros(len(labels.query_pids), np.int64)
    for pairs in selection.pairs(1 << 22):
        rows = selection.queries[pairs.start : pairs.stop]
        selection.num_matches[rows] = np.diff(pairs.match_start)
        row = np.repeat(np.arange(len(rows)), np.diff(pairs.ignored_start))
        query = rows[row]
        item = selection.gallery[pairs.ignored_item]
        own = own_image(protocol, labels, query, item)
        camera = _one_camera(protocol, labels, query, item)
        left_out = np.bincount(row[own | camera], minlength=len(rows))
        selection.num_kept[rows] = len(selection.gallery) - left_out
        own_images += int(own.sum())
        same_camera += int((camera & ~own).sum())
        if labels.exclusion is not None:
            # Where whole cameras are left out, `_count_excluded` leaves them out as well.
            ruled = own & ~camera if protocol.camera == "all" else own | camera
            both = labels.exclusion.pairs(query[ruled], item[ruled])
            np.add.at(excluded_twice, query[ruled][both], 1)
    selection.excluded |= {
        "junk": int((labels.gallery_pids == JUNK).sum()),
        "junk_queries": int((labels.query_pids == JUNK).sum()),
        "same_camera": same_camera,
        "own_image": own_images,
    }
    return excluded_twice


def _remove_cameras(selection: Selection) -> None:
    """Leave out every item of a query's camera, in place: number the cameras, count the pairs."""
    labels, queries = selection.labels, len(selection.queries)
    assert labels.query_camids is not None
    assert labels.gallery_camids is not None
    camids = labels.query_camids[selection.queries], labels.gallery_camids[selection.gallery]
    codes, inverse = np.unique(np.concatenate(camids), return_inverse=True)
    inverse = inverse.astype(np.int32)
    selection.query_camera, selection.gallery_camera = inverse[:queries], inverse[queries:]
    query, gallery = (
        np.bincount(side, minlength=len(codes)).astype(np.int64)
        for side in (selection.query_camera, selection.gallery_camera)
    )
    selection.excluded["same_camera"] = int(query @ gallery)
    selection.num_kept[selection.queries] = len(inverse) - queries - gallery[inverse[:queries]]


def _one_camera(protocol: Protocol, labels: Labels, query: Array, item: Array) -> Array:
    """Return which of the pairs (query row, gallery row) of one identity are of one camera."""
    if protocol.camera == "none":
        return np.zeros(len(query), dtype=bool)
    assert labels.query_camids is not None
    assert labels.gallery_camids is not None
    return np.asarray(labels.query_camids[query] == labels.gallery_camids[item])


def _count_excluded(
    selection: Selection, twice: Array, progress: Progress | None, group: Group
) -> None:
    """Count the pairs that the condition alone leaves out, in place.

    Args:
        selection: the protocol is applied.
        twice: pairs of every row of the query set that the protocol leaves out, too, int64 [Q].
        progress: called as (phase, done, total).
        group: the processes, of which each counts some of the items.
    """
    assert selection.labels.exclusion is not None
    counts = np.zeros_like(twice)
    lefts = range(0, len(selection.gallery), _COUNTED_COLUMNS)[group.rank :: group.world]
    with group.together():
        for top in range(0, len(selection.queries), _COUNTED_ROWS):
            rows = slice(top, min(top + _COUNTED_ROWS, len(selection.queries)))
            for left in lefts:
                columns = slice(left, min(left + _COUNTED_COLUMNS, len(selection.gallery)))
                counts[selection.queries[rows]] += selection.excludes(rows, columns).sum(1)
            if progress is not None:
                progress("exclusion", rows.stop, len(selection.queries))
    counts = group.sum(torch.from_numpy(counts)).numpy() - twice
    selection.num_kept -= counts
    selection.excluded["expression"] = int(counts.sum())


def _paths_of_others(
    protocol: Protocol, labels: Labels, query_rows: Array, gallery: Array
) -> dict[int, Array]:
    """Return, per query, the items that carry its path but another identity."""
    if protocol.own_image != "path" or labels.query_paths is None or labels.gallery_paths is None:
        return {}
    places: dict[str, list[int]] = {}
    for position, path in enumerate(labels.gallery_paths[gallery].tolist()):
        places.setdefault(path, []).append(position)
    found = {}
    for row in query_rows.tolist():
        items = np.asarray(places.get(str(labels.query_paths[row]), []), np.int64)
        others = items[labels.gallery_pids[gallery[items]] != labels.query_pids[row]]
        if len(others):
            found[row] = others
    return found


def _no_match(protocol: Protocol, labels: Labels, query_rows: Array, gallery: Array) -> str:
    """Return the sentence that says which ids or cameras fail to overlap."""
    for side, pids, rows in (
        ("query", labels.query_pids, query_rows),
        ("gallery", labels.gallery_pids, gallery),
    ):
        if not len(rows):
            return _nothing_left(side, pids)
    query_pids = labels.query_pids[query_rows]
    gallery_pids = labels.gallery_pids[gallery]
    shared = np.intersect1d(query_pids, gallery_pids)
    if not len(shared):
        sides = [_some(pids, labels.pid_names) for pids in (query_pids, gallery_pids)]
        return (
            f"no query has a match: the pids of the queries ({sides[0]}) and of the gallery "
            f"({sides[1]}) have none in common; check that both were numbered in the same way"
        )
    if labels.exclusion is not None:
        return (
            f"no query has a match: of the {len(shared)} shared pids every pair is left out by the "
            f"protocol or by {labels.exclusion.text!r}; exclude less"
        )
    if protocol.camera != "none" and labels.query_camids is not None:
        assert labels.gallery_camids is not None
        cameras = [
            _some(camids, labels.camid_names)
            for camids in (labels.query_camids[query_rows], labels.gallery_camids[gallery])
        ]
        return (
            f"no query has a match: the {len(shared)} shared pids are seen by the query's own "
            f"camera only (query camids {cameras[0]}, gallery camids {cameras[1]}); check the "
            f"camids or choose protocol {protocol.without_cameras}"
        )
    return (
        f"no query has a match: the {len(shared)} shared pids belong to the query images "
        "themselves; give a gallery with further images of them"
    )


def _nothing_left(side: str, pids: Array) -> str:
    """Return the sentence that says why no row of a side takes part."""
    junk, unknown = int((pids == JUNK).sum()), int((pids == UNKNOWN).sum())
    if junk == len(pids):
        return f"{side}: all {junk} pids are {JUNK} (junk), so none can be ranked"
    give = "give identities, for example by a CSV table with a column pid (--query-columns)"
    if unknown == len(pids):
        return (
            f"{side}: all {unknown} pids are unknown (empty or NaN), so none can be ranked; {give}"
        )
    rest = len(pids) - junk - unknown
    return (
        f"{side}: of {len(pids)} rows {unknown} have an unknown pid, {junk} are junk (pid {JUNK}) "
        f"and {rest} have an unknown camid, so none can be ranked; {give}"
    )


def _some(values: Array, names: Array | None) -> str:
    """Return the first distinct values, by their names if any, and how many there are."""
    distinct = ids.written(np.unique(values), names)
    shown = ", ".join(str(value) for value in distinct[:3].tolist())
    return shown if len(distinct) <= 3 else f"{shown}, ... {len(distinct)} distinct"
