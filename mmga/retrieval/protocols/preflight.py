"""Check two sets of features for what would spoil an evaluation, and name the fix."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from mmga.common.errors import UserError
from mmga.ops.distance import squared_norms
from mmga.retrieval.features import JUNK, UNKNOWN, Features
from mmga.retrieval.features.duplicates import duplicated_items
from mmga.retrieval.protocols.selection import Labels

# Ids beyond this lose digits in every tool that holds them as float64 (MATLAB, JSON readers).
_FLOAT64_IDS = 2**53
_SQUARED_UNIT_TOLERANCE = 1e-2


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


def check(query: Features, gallery: Features) -> list[Finding]:
    """Look through two sets of features.

    Returns:
        What was found, empty if nothing.
    """
    findings: list[Finding] = []
    norms = []
    for side, features in (("query", query), ("gallery", gallery)):
        findings += _labels(side, features)
        found, side_norms = _values(side, features)
        findings += found
        norms.append(side_norms)
    if query.rows.shape[1:] != gallery.rows.shape[1:]:
        findings.append(
            Finding(
                "both",
                f"rows of {list(query.rows.shape[1:])} and {list(gallery.rows.shape[1:])} values",
                "extract both with one network",
                stops=True,
            )
        )
    else:
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
    if query.paths is not None and gallery.paths is not None:
        shared = np.intersect1d(query.paths, gallery.paths)
        if len(shared):
            findings.append(
                Finding(
                    "gallery",
                    f"{len(shared)} paths stand on both sides, the first is {shared[0]}",
                    "leave query images out of the gallery",
                )
            )
    return findings + _matches(query, gallery)


def _labels(side: str, features: Features) -> list[Finding]:
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
    if features.camids is None or (features.camids == UNKNOWN).all():
        findings.append(Finding(side, "camids are missing", "give them, or use protocol no-camera"))
    elif len(features) > 1 and len(np.unique(features.camids)) == 1 and side == "gallery":
        findings.append(
            Finding(
                side,
                f"all camids are {features.camids[0]}",
                "check how cameras are read from the file names, or use protocol no-camera",
            )
        )
    junk = int((features.pids == JUNK).sum())
    if junk and side == "query":
        findings.append(Finding(side, f"{junk} queries have pid {JUNK} (junk)", "leave them out"))
    return findings


def _values(side: str, features: Features) -> tuple[list[Finding], torch.Tensor]:
    findings = []
    norms = torch.cat([squared_norms(shard.flatten(1)).cpu() for shard in features.rows.shards])
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
            [squared_norms(shard.flatten(0, 1)).cpu() for shard in features.rows.shards]
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
    if len(usual) and bool(((usual - 1).abs() > _SQUARED_UNIT_TOLERANCE).any()):
        low, high = (float(value.sqrt()) for value in (usual.min(), usual.max()))
        findings.append(
            Finding(
                side,
                f"{what} are not normalised (norms {low:.3g} to {high:.3g})",
                "use metric cosine, which normalises, unless the lengths are meant",
            )
        )
    return findings, whole


def _matches(query: Features, gallery: Features) -> list[Finding]:
    try:
        labels = Labels.of(query, gallery)
    except UserError as error:
        return [Finding("both", str(error), "nothing else about ids could be looked at", True)]
    ids = np.setdiff1d(labels.query_pids, (JUNK, UNKNOWN))
    absent = np.setdiff1d(ids, labels.gallery_pids)
    findings = []
    if not len(ids):
        findings.append(
            Finding("query", "no row has a known pid that is not junk", "give identities", True)
        )
    if len(absent):
        findings.append(
            Finding(
                "query",
                f"{len(absent)} of {len(ids)} ids are not in the gallery, the first is that of "
                f"row {int(np.flatnonzero(labels.query_pids == absent[0])[0])}",
                "check that both sides number ids alike; queries of these are left out",
                stops=len(absent) == len(ids),
            )
        )
    if labels.query_camids is not None and labels.gallery_camids is not None:
        alone = 0
        first = None
        order = np.argsort(labels.gallery_pids, kind="stable")
        pids, camids = labels.gallery_pids[order], labels.gallery_camids[order]
        for row in np.flatnonzero(np.isin(labels.query_pids, np.setdiff1d(ids, absent))):
            low, high = np.searchsorted(pids, labels.query_pids[row] + np.array([0, 1]))
            if (camids[low:high] == labels.query_camids[row]).all():
                alone += 1
                first = row if first is None else first
        if alone:
            findings.append(
                Finding(
                    "query",
                    f"{alone} queries have matches in their own camera only, the first is row "
                    f"{first}",
                    "check the camids; protocol market1501 leaves such queries out",
                )
            )
    return findings
