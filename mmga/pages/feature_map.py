"""Features in two dimensions: the directions in which they differ most."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from mmga.ops.distance import unit_rows
from mmga.plots.embedding import principal_components
from mmga.retrieval.tiles.parts import visible
from mmga.retrieval.tiles.problem import RankingProblem

POINTS = 2400
"""Items that are drawn."""
PEOPLE = 8
"""Identities that are told apart."""
_SEED = 0


@dataclass(frozen=True, slots=True)
class FeatureMap:
    """Some items in two dimensions.

    Attributes:
        place: float64 [M, 2].
        side: 0 for queries, 1 for items of the gallery, int64 [M].
        row: of their set, int64 [M].
        people: identities with the lowest average precision, codes of the problem's labels.
        identity: place in `people`, -1 for others, int64 [M].
        share: of the variance that the two directions hold.
    """

    place: np.ndarray
    side: np.ndarray
    row: np.ndarray
    people: np.ndarray
    identity: np.ndarray
    share: float


def feature_map(problem: RankingProblem, hardest: np.ndarray) -> FeatureMap:
    """Project the images of the hardest identities and a sample of all others by PCA.

    Args:
        problem: queries, gallery and labels.
        hardest: rows of queries, by ascending average precision.
    """
    selection, labels = problem.selection, problem.selection.labels
    pids = labels.query_pids[hardest]
    people = pids[np.sort(np.unique(pids, return_index=True)[1])][:PEOPLE]
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
    both = np.concatenate(
        [side_pids[chosen] for (_, side_pids), chosen in zip(sets, rows, strict=True)]
    )
    identity = np.full(len(both), -1)
    for number, pid in enumerate(people.tolist()):
        identity[both == pid] = number
    share = float(shares.sum())
    return FeatureMap(place, np.concatenate(sides), np.concatenate(rows), people, identity, share)


def _vectors(problem: RankingProblem, side: int, rows: np.ndarray) -> torch.Tensor:
    features = (problem.query, problem.gallery)[side]
    chosen = features.rows.select(torch.from_numpy(rows).to(features.rows.device))
    vectors = chosen.block(0, len(rows)).to(torch.float32).cpu()
    if problem.metric == "cosine":
        vectors = unit_rows(vectors)
    if features.visibility is not None:
        vectors = vectors * visible(features.visibility[torch.from_numpy(rows)])[..., None]
    return vectors.flatten(1)
