"""Simulated features: what a network's output looks like to an evaluator, without any image.

A feature is a mean that all share, a part of its identity and a part of its own. The directions'
shares of the energy fall as those of published networks do (`decaying`), or are equal (`flat`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

CHUNK = 1 << 14
DISTRACTOR = 10**6
"""Identities from here on have one image each, and no part that images share."""


@dataclass(frozen=True)
class Population:
    """Features with labels.

    Attributes:
        features: float32 [N, D], norm 1.
        pids: int64 [N].
        camids: int64 [N].
    """

    features: Tensor
    pids: np.ndarray
    camids: np.ndarray


def decaying_energies(width: int) -> Tensor:
    """Return each direction's share of the energy: float64 [D], sum 1, the mean's first.

    The share left after 64, 128 and 256 directions is .0729, .0484 and .0289 (residual norms .27,
    .22, .17), half of all is the mean's, and shares fall smoothly.
    """
    i = torch.arange(1, width + 1, dtype=torch.float64)
    energy = torch.empty_like(i)
    for first, last, share in ((64, 128, 0.0245), (128, 256, 0.0195), (256, width, 0.0289)):
        piece = i[first:last] ** -1.64
        energy[first:last] = share * piece / piece.sum()
    energy[0] = 0.5
    piece = (i[1:64] + 20) ** -3
    energy[1:64] = (1 - 0.0729 - 0.5) * piece / piece.sum()
    return energy / energy.sum()


def simulate(
    pids: np.ndarray,
    camids: np.ndarray,
    width: int = 2048,
    spectrum: str = "decaying",
    likeness: float = 0.5,
    seed: int = 0,
) -> Population:
    """Draw a feature for every label.

    Args:
        pids: int64 [N]; see `DISTRACTOR`.
        camids: int64 [N].
        width: D.
        spectrum: ``decaying`` (see `decaying_energies`; images of a person differ by a share of the
            energy that varies from image to image), or ``flat``.
        likeness: with a flat spectrum, the cosine of two images of a person.
        seed: of everything.
    """
    generator = torch.Generator().manual_seed(seed)
    energy = (
        decaying_energies(width)
        if spectrum == "decaying"
        else torch.full((width,), 1 / width, dtype=torch.float64)
    )
    scale = energy.sqrt().to(torch.float32)
    mean = torch.zeros(width)
    if spectrum == "decaying":
        mean[0], scale[0] = scale[0].item(), 0.0
    known = np.unique(pids[pids < DISTRACTOR])
    persons = torch.randn(len(known), width, generator=generator) * scale
    axes = torch.nn.functional.normalize(torch.randn(6, width, generator=generator))
    features = torch.empty(len(pids), width)
    owner = torch.from_numpy(np.searchsorted(known, pids))
    is_person = torch.from_numpy(pids < DISTRACTOR)
    for start in range(0, len(pids), CHUNK):
        own = torch.randn(min(CHUNK, len(pids) - start), width, generator=generator) * scale
        part = slice(start, start + len(own))
        if spectrum == "decaying":
            share = torch.rand(len(own), 1, generator=generator) ** 2 * 0.55 + 0.08
        else:
            share = torch.full((len(own), 1), 1 - likeness)
        mine = is_person[part]
        share[~mine] = 1
        x = own * share.sqrt()
        x[mine] += persons[owner[part][mine]] * (1 - share[mine]).sqrt()
        x += mean
        for axis in axes:  # reflections: no direction is an axis of the features
            x -= 2 * (x @ axis)[:, None] * axis
        features[part] = torch.nn.functional.normalize(x)
    return Population(features, pids, camids)


def market_like(
    persons: int = 750,
    queries: int = 3368,
    gallery: int = 15913,
    distractors: int = 2798,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return pids and camids of queries and of a gallery of Market-1501's shape."""
    draw = np.random.default_rng(seed)
    query_pids = draw.integers(0, persons, queries)
    gallery_pids = np.concatenate(
        [draw.integers(0, persons, gallery - distractors), DISTRACTOR + np.arange(distractors)]
    )
    draw.shuffle(gallery_pids)
    return (
        query_pids,
        draw.integers(0, 6, queries),
        gallery_pids,
        draw.integers(0, 6, gallery),
    )
