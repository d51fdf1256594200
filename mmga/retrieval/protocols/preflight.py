"""Check two sets of features for what would spoil an evaluation, and name the fix."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch

from mmga.common import ids
from mmga.common.errors import UserError
from mmga.ops.distance import METRICS, squared_norms
from mmga.retrieval.features import JUNK, UNKNOWN, Features
from mmga.retrieval.features.duplicates import duplicated_items
from mmga.retrieval.protocols import chance
from mmga.retrieval.protocols.protocol import PROTOCOLS, Protocol, protocol_named
from mmga.retrieval.protocols.selection import Labels, select

# Ids beyond this lose digits in every tool that holds them as float64 (MATLAB, JSON readers).
_FLOAT64_IDS = 2**53
_SQUARED_UNIT_TOLERANCE = 1e-2
# Pairs of a sample that tells whether identities are near each other.
_SAMPLED_QUERIES, _SAMPLED_ITEMS = 500, 16


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong or odd.

    Attributes:
        side: query, gallery or both.
        what: what was found.
        fix: what to do.
        stops: no evaluation is possible as it is.
    """

    side: str
    what: str
    fix: str
    stops: bool = False

    def __str__(self) -> str:
        return f"{self.side}: {self.what}; {self.fix}"


def check(
    query: Features,
    gallery: Features | None = None,
    protocol: str | Protocol = "market1501",
    metric: str | None = None,
) -> list[Finding]:
    """Look through the features of an evaluation.

    Args:
        query: features of the queries.
        gallery: features of the gallery; None for protocols of one set.
        protocol: whose rules are meant.
        metric: the distance that is meant; None if that is open.

    Returns:
        What was found, empty if nothing.

    Raises:
        UserError: there is no such protocol or metric.
    """
    rules = protocol_named(protocol)
    if metric not in (None, *METRICS):
        raise UserError(f"metric: expected {' or '.join(METRICS)}, found {metric!r}")
    sides = {"query": query} if gallery is None else {"query": query, "gallery": gallery}
    of_labels: list[Finding] = []
    findings: list[Finding] = []
    norms = []
    for side, features in sides.items():
        of_labels += _labels(side, features, rules)
        found, side_norms = _values(side, features, metric)
        findings += found
        norms.append(side_norms)
    if gallery is not None:
        findings += _both_sides(query, gallery, norms, rules)
    findings += _matches(query, query if gallery is None else gallery, rules)
    if not any(one.stops for one in findings):
        if any(one.stops for one in of_labels):  # cameras are missing
            rules = PROTOCOLS["no-camera"]
        findings += _nearness(query, query if gallery is None else gallery, rules, metric)
    return of_labels + findings


def checked(
    query: Features, gallery: Features | None, protocol: str, metric: str, findings: list[Finding]
) -> list[str]:
    """Return what `check` looked at, in words: the sets, and the kinds of faults."""
    sides = {"query": query} if gallery is None else {"query": query, "gallery": gallery}
    lines = []
    for side, features in sides.items():
        counts = {"identities": len(np.setdiff1d(features.pids, (JUNK, UNKNOWN)))}
        if features.camids is not None:
            counts["cameras"] = len(np.setdiff1d(features.camids, UNKNOWN))
        shape = " x ".join(map(str, features.rows.shape))
        kind = str(features.rows.stored).removeprefix("torch.")
        lines.append(
            f"{side}: {shape} {kind}, "
            + ", ".join(f"{what}: {count}" for what, count in counts.items())
            + f", paths: {'no' if features.paths is None else 'yes'}"
        )
    compared = query.visibility is None and not any(one.stops for one in findings)
    lines.append(
        "ids, cameras, values, norms, images on both sides, matches under protocol "
        + protocol
        + (f", {metric} distances of a sample of pairs" if compared else "")
    )
    return [f"checked: {line}" for line in lines]


def _both_sides(
    query: Features, gallery: Features, norms: list[torch.Tensor], rules: Protocol
) -> list[Finding]:
    """Return what is wrong between the sides, and images that are on both."""
    if query.rows.shape[1:] != gallery.rows.shape[1:]:
        return [
            Finding(
                "both",
                f"rows of {list(query.rows.shape[1:])} and {list(gallery.rows.shape[1:])} values",
                "extract both with one network",
                stops=True,
            )
        ]
    findings = []
    shared: np.ndarray = np.empty(0)
    if query.paths is not None and gallery.paths is not None:
        shared = np.intersect1d(query.paths, gallery.paths)
    if len(shared) and rules.own_image == "path":
        return []  # the protocol leaves them out
    same = duplicated_items(query.rows, norms[0], gallery.rows, norms[1])
    if len(same):
        findings.append(
            Finding(
                "gallery",
                f"{len(same)} items have exactly the features of a query, the first is row "
                f"{same[0]}",
                "leave query images out of the gallery, or give paths and use protocol "
                "no-camera, which leaves a query's own image out",
            )
        )
    if len(shared):
        findings.append(
            Finding(
                "gallery",
                f"{len(shared)} paths stand on both sides, the first is {shared[0]}",
                "leave query images out of the gallery",
            )
        )
    return findings


def _labels(side: str, features: Features, rules: Protocol) -> list[Finding]:
    findings = []
    for note in features.notes:
        if "stored as" in note:
            findings.append(Finding(side, note, "store ids as int64 or strings"))
        elif "rounded" in note:
            findings.append(Finding(side, note, "save them as float32 to be sure what is ranked"))
        elif "unknown" in note:
            findings.append(Finding(side, note, "evaluations leave such rows out and count them"))
        else:
            findings.append(Finding(side, note, "check that this is what is meant"))
    names = {"pids": features.pids, "camids": features.camids}
    for name, labels in names.items():
        if labels is not None and np.abs(labels[labels != UNKNOWN]).max(initial=0) > _FLOAT64_IDS:
            findings.append(
                Finding(side, f"{name} beyond 2^53", "use strings: other tools round such numbers")
            )
    if not rules.needs_cameras:
        pass
    elif features.camids is None or (features.camids == UNKNOWN).all():
        findings.append(
            Finding(
                side,
                f"camids are missing, and protocol {rules.name} needs them",
                f"give them, or use protocol {rules.without_cameras}",
                stops=True,
            )
        )
    elif (
        len(features) > 1
        and len(cameras := np.setdiff1d(features.camids, UNKNOWN)) == 1
        and (side == "gallery")
    ):
        findings.append(
            Finding(
                side,
                f"all camids are {ids.written(cameras, features.camid_names)[0]}",
                "check how cameras are read from the file names, or use protocol "
                f"{rules.without_cameras}",
            )
        )
    if features.paths is not None:
        distinct, counts = np.unique(features.paths, return_counts=True)
        if len(distinct) < len(features):
            findings.append(
                Finding(
                    side,
                    f"{int((counts > 1).sum())} paths stand at several rows, the first is "
                    f"{distinct[counts > 1][0]}",
                    "leave out the rows that were written twice",
                )
            )
    junk = int((features.pids == JUNK).sum())
    if junk and side == "query":
        findings.append(Finding(side, f"{junk} queries have pid {JUNK} (junk)", "leave them out"))
    return findings


def _values(
    side: str, features: Features, metric: str | None
) -> tuple[list[Finding], torch.Tensor]:
    findings = []
    norms = torch.cat([squared_norms(shard.flatten(1)).cpu() for shard in features.rows.values()])
    whole = norms
    if features.visibility is not None:
        unseen = torch.nonzero((features.visibility == 0).all(1)).squeeze(1)
        if len(unseen):
            findings.append(
                Finding(
                    side,
                    f"{len(unseen)} rows have no visible part, the first is row {int(unseen[0])}",
                    "leave them out: they stand last for every query",
                )
            )
        # What is normalised is each part; an unseen one may be any number.
        of_parts = torch.cat(
            [squared_norms(shard.flatten(0, 1)).cpu() for shard in features.rows.values()]
        )
        norms = of_parts.reshape(features.visibility.shape)
        anything = (features.visibility == 0) & torch.isfinite(norms)
        norms = norms.masked_fill(anything, 1.0).flatten()
    parts = len(norms) // len(whole)
    what, of = ("rows", "") if features.visibility is None else ("parts", "of ")
    bad = torch.nonzero(~torch.isfinite(norms)).squeeze(1)
    if len(bad):
        findings.append(
            Finding(
                side,
                f"{len(bad)} {what} hold NaN or infinity, the first is {of}row "
                f"{int(bad[0]) // parts}",
                "extract them again; float16 overflows at 65504, float32 at 3.4e38",
                stops=True,
            )
        )
    zero = torch.nonzero(norms == 0).squeeze(1)
    if len(zero):
        findings.append(
            Finding(
                side,
                f"{len(zero)} {what} are zero, the first is {of}row {int(zero[0]) // parts}",
                "extract them again: they are at cosine distance 1 from everything",
            )
        )
    usual = norms[torch.isfinite(norms) & (norms > 0)]
    if (
        metric != "cosine"
        and len(usual)
        and bool(((usual - 1).abs() > _SQUARED_UNIT_TOLERANCE).any())
    ):
        low, high = (float(value.sqrt()) for value in (usual.min(), usual.max()))
        findings.append(
            Finding(
                side,
                f"{what} are not normalised (norms {low:.3g} to {high:.3g})",
                "use metric cosine, which normalises, unless the lengths are meant",
            )
        )
    return findings, whole


def _matches(query: Features, gallery: Features, rules: Protocol) -> list[Finding]:
    """Return which queries have no match, and why."""
    try:
        # VIPeR's cameras may be absent, but where they are given they count.
        sides_are_cameras = rules.splits in ("halves", "directions")
        labels = Labels.of(query, gallery, cameras=rules.needs_cameras or sides_are_cameras)
    except UserError as error:
        return [Finding("both", str(error), "nothing else about ids could be looked at", True)]
    if gallery is query:
        return _lone_identities(labels.query_pids)
    known, held = (
        np.setdiff1d(pids, (JUNK, UNKNOWN)) for pids in (labels.query_pids, labels.gallery_pids)
    )
    absent = np.setdiff1d(known, held)
    findings = [
        Finding(side, "no row has a known pid that is not junk", "give identities", True)
        for side, pids in (("query", known), ("gallery", held))
        if not len(pids)
    ]
    if len(absent) and len(held):
        findings.append(
            Finding(
                "query",
                f"{len(absent)} of {len(known)} ids are not in the gallery, the first is that of "
                f"row {int(np.flatnonzero(labels.query_pids == absent[0])[0])}",
                "check that both sides number ids alike; queries of these are left out",
                stops=len(absent) == len(known),
            )
        )
    if sides_are_cameras and len(known) - len(absent) == 1:
        findings.append(
            Finding(
                "both",
                f"protocol {rules.name} needs two persons at least on both sides, found 1",
                "give camera a as query and camera b as gallery",
                stops=True,
            )
        )
    if not rules.needs_cameras or labels.query_camids is None or labels.gallery_camids is None:
        return findings
    alone = 0
    first = None
    order = np.argsort(labels.gallery_pids, kind="stable")
    pids, camids = labels.gallery_pids[order], labels.gallery_camids[order]
    present = np.flatnonzero(np.isin(labels.query_pids, np.setdiff1d(known, absent)))
    for row in present:
        low, high = np.searchsorted(pids, labels.query_pids[row] + np.array([0, 1]))
        if (camids[low:high] == labels.query_camids[row]).all():
            alone += 1
            first = row if first is None else first
    if alone:
        findings.append(
            Finding(
                "query",
                f"{alone} queries have matches in their own camera only, the first is row {first}",
                f"check the camids; under protocol {rules.name} such queries have no match",
                stops=alone == len(present) and rules.unmatched == "skip",
            )
        )
    return findings


def _lone_identities(pids: np.ndarray) -> list[Finding]:
    """Return which identities of a set that is ranked against itself have a single image."""
    identities, counts = np.unique(pids[~np.isin(pids, (JUNK, UNKNOWN))], return_counts=True)
    lone = identities[counts == 1]
    if not len(lone):
        return []
    return [
        Finding(
            "query",
            f"{len(lone)} of {len(identities)} ids have a single image, the first is row "
            f"{int(np.flatnonzero(pids == lone[0])[0])}",
            "such images are no queries; check the ids if many should have several",
            stops=len(lone) == len(identities),
        )
    ]


def _nearness(
    query: Features, gallery: Features, rules: Protocol, metric: str | None
) -> list[Finding]:
    """Return whether items of the same identity are nearer to queries than other items are."""
    if query.visibility is not None or gallery.visibility is not None:
        return []
    itself = gallery is query
    if itself:  # of any protocol of one set
        rules = PROTOCOLS["all-vs-all"]
    try:
        selection = select(rules, Labels.of(query, gallery, cameras=rules.needs_cameras))
    except UserError as error:
        return [Finding("both", str(error), "no evaluation is possible as it is", stops=True)]
    generator = np.random.default_rng(0)
    pids = selection.labels.query_pids
    nearer, asked = [], []
    chosen = generator.permutation(len(selection.queries))[:_SAMPLED_QUERIES]
    sample = dataclasses.replace(selection, queries=selection.queries[np.sort(chosen)])
    if selection.query_camera is not None:
        sample.query_camera = selection.query_camera[np.sort(chosen)]
    for pairs in sample.pairs(1 << 20):
        for at in range(pairs.count):
            row = sample.queries[pairs.start + at]
            matches = pairs.match_item[pairs.match_start[at] : pairs.match_start[at + 1]]
            drawn = generator.integers(0, len(selection.gallery), _SAMPLED_ITEMS)
            others = selection.gallery[drawn]
            others = others[selection.labels.gallery_pids[others] != pids[row]]
            if not len(matches) or not len(others):
                continue
            match = selection.gallery[generator.choice(matches)]
            near = _distances(query, gallery, row, np.append(others, match), metric)
            nearer.append(np.mean((near[-1] < near[:-1]) + 0.5 * (near[-1] == near[:-1])))
            asked.append(row)
    if not chance.no_better(np.asarray(nearer) - 0.5, pids[asked]):
        return []
    return [
        Finding(
            "both",
            f"pairs of one identity are no nearer than pairs of two, so that rank-1 will be no "
            f"better than chance: of {len(nearer)} matches that were drawn, a match is nearer than "
            f"another item in {np.mean(nearer):.1%} of the comparisons",
            chance.CAUSES,
        )
    ]


def _distances(
    query: Features, gallery: Features, row: int, items: np.ndarray, metric: str | None
) -> np.ndarray:
    """Return the distances of a query to some items, float64."""
    one = query.rows.take(torch.tensor([row], dtype=torch.int64, device="cpu")).cpu().double()
    other = gallery.rows.take(torch.from_numpy(items)).cpu().double()
    if metric != "euclidean":
        one, other = (
            torch.nn.functional.normalize(rows, dim=1, eps=1e-300) for rows in (one, other)
        )
    distances: np.ndarray = (one - other).square().sum(1).numpy()
    return distances
