"""Features and matrices whose distances are exact, and the comparison of re-ranked distances."""

import numpy as np
import torch


def grid(count, dimensions, top, seed):
    """Integer features: every product, norm and distance is exact in float32."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, top + 1, (count, dimensions), generator=generator).float()


def squared(x):
    return (x[:, None] - x[None]).square().sum(-1).double()


def split(d, queries):
    return d[:queries, queries:], d[:queries, :queries], d[queries:, queries:]


def assert_equal(actual, expected):
    """Values to 1e-6, and the same order wherever final values differ by more than 1e-9."""
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6)
    order = np.argsort(actual, axis=1, kind="stable")
    steps = np.diff(np.take_along_axis(expected, order, axis=1), axis=1)
    assert (steps > -1e-9).all()
