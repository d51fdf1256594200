"""Feature sets whose distances nearly tie, and subspaces of every kind."""

import numpy as np
import torch

from mmga.retrieval.bounds.approximation import Projection
from mmga.retrieval.features import Features

KINDS = ("grid", "duplicates", "last bits", "rotated", "flat", "lengths")


def nearly_tied(kind, seed, queries=6, items=60, width=24, persons=4):
    """Return two sides whose distances tie or differ in the last bits."""
    g = torch.Generator().manual_seed(seed)
    draw = np.random.default_rng(seed)
    count = queries + items
    if kind == "grid":
        x = torch.randint(-1, 2, (count, width), generator=g).float()
    elif kind == "duplicates":
        x = torch.randn(3, width, generator=g)[torch.randint(0, 3, (count,), generator=g)]
    elif kind == "last bits":
        x = torch.randn(1, width, generator=g).expand(count, width).clone()
        flipped = torch.rand(count, width, generator=g) < 0.2
        x = torch.where(flipped, x.nextafter(x.new_tensor(torch.inf)), x)
    elif kind == "rotated":  # equal up to a rotation of the rest, of different lengths
        x = torch.randn(count, width, generator=g)
        x[:, : width // 2] = x[0, : width // 2]
        rest = x[:, width // 2 :]
        rest *= 0.01 / rest.norm(dim=1, keepdim=True)
        x @= torch.linalg.qr(torch.randn(width, width, generator=g)).Q
        x *= torch.tensor([0.5, 1.0, 3.0])[torch.randint(0, 3, (count, 1), generator=g)]
    else:
        x = torch.randn(count, width, generator=g)
    if kind == "lengths":  # from 1, or almost the shortest set, down to numbers below the normal
        exponents = torch.tensor([0, -1, -39, -41, -54, -58, -61, -75, -86, -105, -126, -140])
        chosen = exponents[torch.randint(0, len(exponents), (count,), generator=g)]
        chosen[[0, 1, -2, -1]] = 0
        x = (x.double() * 2.0 ** (chosen - 44 * (seed % 2))[:, None]).float()
    if seed % 3 == 0:
        x[seed % count] = 0
    pids, camids = draw.integers(0, persons, count), draw.integers(0, 3, count)
    pids[queries + draw.integers(0, items, 3)] = -1
    query = Features(x[:queries].clone(), pids[:queries], camids[:queries])
    gallery = Features(x[queries:].clone(), pids[queries:], camids[queries:])
    return query, gallery


def some_subspace(kind, width, dimensions, seed, sample):
    g = torch.Generator().manual_seed(seed)
    if kind == "fitted":
        return Projection.of_sample(sample, dimensions, seed)
    basis = torch.linalg.qr(torch.randn(width, dimensions, generator=g)).Q
    if kind == "skewed":  # a bound on how far it is from orthonormal must cover this
        basis = basis + 1e-3 * torch.randn(width, dimensions, generator=g)
    return Projection(basis)


def decaying(count, width, seed=0, persons=2000):
    """Features of persons in few directions, with some noise in all."""
    g = torch.Generator().manual_seed(seed)
    draw = np.random.default_rng(seed)
    pids, camids = draw.integers(0, persons, count), draw.integers(0, 4, count)
    scale = torch.arange(1, width + 1).float() ** -1.2
    means = torch.randn(persons, width, generator=torch.Generator().manual_seed(99)) * scale
    own = torch.randn(count, width, generator=g) * scale
    return Features(means[torch.from_numpy(pids)] + 0.3 * own, pids, camids)
