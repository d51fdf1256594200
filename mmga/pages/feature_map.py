"""Features in two dimensions: the directions in which they differ most."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from mmga.common import ids
from mmga.common.ids import UNKNOWN
from mmga.ops.distance import unit_rows
from mmga.plots.embedding import principal_components
from mmga.retrieval.tiles.parts import visible
from mmga.retrieval.tiles.problem import RankingProblem

POINTS = 2400
"""Items that are drawn."""
GROUPS = 8
"""Identities or cameras that are told apart."""
_SEED = 0


@dataclass(frozen=True, slots=True)
class FeatureMap:
    """Some items in two dimensions.

    Attributes:
        place: float64 [M, 2].
        side: 0 for queries, 1 for items of the gallery, int64 [M].
        identities: names of those with the lowest average precision.
        identity: place in `identities`, -1 for others, int64 [M].
        cameras: names of those with the most items here; none where cameras are not known.
        camera: place in `cameras`, -1 for others, int64 [M].
        share: of the variance that the two directions hold.
    """

    place: np.ndarray
    side: np.ndarray
    identities: list[str]
    identity: np.ndarray
    cameras: list[str]
    camera: np.ndarray
    share: float


def feature_map(problem: RankingProblem, hardest: np.ndarray) -> FeatureMap:
    """Project the images of the hardest identities and a sample of all others by PCA.

    Args:
        problem: queries, gallery and labels.
        hardest: rows of queries, by ascending average precision.
    """
    selection, labels = problem.selection, problem.selection.labels
    pids = labels.query_pids[hardest]
    people = pids[np.sort(np.unique(pids, return_index=True)[1])][:GROUPS]
    random = np.random.default_rng(_SEED)
    sides, rows = [], []
    sets = [(selection.queries, labels.query_pids)]
    if problem.gallery is not problem.query:
        sets.append((selection.gallery, labels.gallery_pids))
    total = sum(len(kept) for kept, _ in sets)
    for side, (kept, side_pids) in enumerate(sets):
        drawn = random.random(len(kept)) < POINTS / total
        chosen = kept[drawn | np.isin(side_pids[kept], people)]
        sides.append(np.full(len(chosen), side))
        rows.append(chosen)
    vectors = torch.cat(
        [_vectors(problem, side, chosen) for side, chosen in enumerate(rows) if len(chosen)]
    )
    place, shares = principal_components(vectors)
    both = np.concatenate([side[chosen] for (_, side), chosen in zip(sets, rows, strict=True)])
    camids = np.full(len(both), UNKNOWN)
    if labels.query_camids is not None and labels.gallery_camids is not None:
        of_sides = (labels.query_camids, labels.gallery_camids)[: len(rows)]
        camids = np.concatenate([side[at] for side, at in zip(of_sides, rows, strict=True)])
    cameras, _ = ids.most_frequent(camids, GROUPS)
    return FeatureMap(
        place,
        np.concatenate(sides),
        ids.words(people, labels.pid_names),
        _places(both, people),
        ids.words(cameras, labels.camid_names),
        _places(camids, cameras),
        float(shares.sum()),
    )


def _places(codes: np.ndarray, named: np.ndarray) -> np.ndarray:
    """Return the place of each code among the named ones, -1 for others."""
    found = np.full(len(codes), -1)
    for place, code in enumerate(named.tolist()):
        found[codes == code] = place
    return found


def _vectors(problem: RankingProblem, side: int, rows: np.ndarray) -> torch.Tensor:
    features = (problem.query, problem.gallery)[side]
    chosen = features.rows.select(torch.from_numpy(rows).to(features.rows.device))
    vectors = chosen.block(0, len(rows)).to(torch.float32).cpu()
    if problem.metric == "cosine":
        vectors = unit_rows(vectors)
    if features.visibility is not None:
        vectors = vectors * visible(features.visibility[torch.from_numpy(rows)])[..., None]
    return vectors.flatten(1)
