"""Re-ranking: who wins at what size.

`pytest benchmarks/test_rerank.py --benchmark-only`. Sets are simulated (17 images of a person,
cosine of two of them 0.5) of 2,000 items, or MMGA_BENCHMARK_ITEMS: 19281 is Market-1501's size,
5783 the clustering set of a user of cluster-contrast. Providers: `numpy` (dense arrays and loops,
as peers compute it), `reference`, `cpu`, and `product`, the matrix product that bounds a stage.
Every provider's results are held against another's before it is timed; the dense ones are left
out above 8,000 items.
"""

import functools
import os
import time
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import mmga
from mmga.ops import backends, reference
from mmga.ops.neighbours import Neighbours
from mmga.retrieval.features.sharded_matrix import ShardedMatrix
from mmga.retrieval.features.vectors import VectorSet
from mmga.retrieval.neighbours.knn import float32_neighbours
from mmga.retrieval.neighbours.sparse import to_scipy
from mmga.retrieval.neighbours.tile_sizes import TILE

ITEMS = int(os.environ.get("MMGA_BENCHMARK_ITEMS", "2000"))
DENSE_LIMIT = 8000
ROUNDS = 5


@functools.cache
def simulated(items: int, dimension: int) -> tuple[Tensor, Tensor]:
    """Normalised features [N, D] and the person of each."""
    generator = torch.Generator().manual_seed(0)
    person = torch.randint(0, -(-items // 17), (items,), generator=generator)
    centres = torch.randn(int(person.max()) + 1, dimension, generator=generator)
    noise = torch.randn(items, dimension, generator=generator)
    return torch.nn.functional.normalize(centres[person] + noise, dim=1), person


@functools.cache
def neighbours(items: int) -> Neighbours:
    return float32_neighbours(VectorSet([ShardedMatrix([simulated(items, 256)[0]])], "cosine"), 21)


def sparse_part(stages: Any, near: Neighbours, queries: int) -> tuple[Tensor, Tensor, Tensor]:
    """Jaccard rows of the queries to the gallery from neighbour lists, by one provider's stages."""
    sets = stages.reciprocal_sets(near.index, 21)
    half = stages.reciprocal_sets(near.index, 11)
    joined = stages.expand_sets(*sets, *half)
    distances = stages.listed_distances(*joined, near.index, near.distances)
    distances = distances.masked_fill(distances < 0, 1.0)  # the same stand-in for every provider
    weights = stages.encode(joined[0], distances, near.maxima.double())
    rows = stages.average_rows(*joined, weights, near.index, 6)
    inverted = stages.transpose_rows(*rows, queries)
    return stages.jaccard_rows(*rows, *inverted, torch.arange(queries), None, False)


def numpy_encoding(rank: np.ndarray, d: Any, lists: int, half: int, softmax: bool) -> np.ndarray:
    """Dense V [N, N] as peers build it, one row at a time; `d(i, members)` gives distances."""
    n = len(rank)
    near, candidates = (
        [rank[i, :k][(rank[rank[i, :k], :k] == i).any(1)] for i in range(n)] for k in (lists, half)
    )
    v = np.zeros((n, n), dtype=np.float32)
    for i in range(n):
        members = near[i]
        for j in near[i]:
            common = np.intersect1d(candidates[j], near[i], assume_unique=True)
            if 3 * len(common) > 2 * len(candidates[j]):
                members = np.append(members, candidates[j])
        members = np.unique(members)
        distances = d(i, members)
        weights = np.exp(-(distances - distances.min() if softmax else distances))
        v[i, members] = weights / weights.sum()
    return np.stack([v[rank[i, :6]].mean(axis=0) for i in range(n)])


def numpy_jaccard(v: np.ndarray, rows: int) -> np.ndarray:
    """Dense Jaccard distances [rows, N] by inverted index, as peers compute them."""
    holders = [np.flatnonzero(v[:, column]) for column in range(len(v))]
    result = np.empty((rows, len(v)), dtype=np.float32)
    for i in range(rows):
        shared = np.zeros(len(v), dtype=np.float32)
        for column in np.flatnonzero(v[i]):
            shared[holders[column]] += np.minimum(v[i, column], v[holders[column], column])
        result[i] = 1 - shared / (2 - shared)
    return np.maximum(result, 0)


def numpy_sparse_part(near: Neighbours, queries: int) -> np.ndarray:
    rank, maxima = near.index.numpy(), near.maxima.double().numpy()
    listed = [
        dict(zip(*pair, strict=True))
        for pair in zip(rank.tolist(), near.distances.double().tolist(), strict=True)
    ]

    def distances(i: int, members: np.ndarray) -> np.ndarray:
        known = [listed[i].get(j, listed[j].get(i, 1.0)) for j in members.tolist()]
        return np.array(known) / maxima[i]

    v = numpy_encoding(rank, distances, 21, 11, softmax=False)
    return numpy_jaccard(v, queries)[:, queries:]


def numpy_clustering(x: np.ndarray, seconds: dict[str, float] | None = None) -> np.ndarray:
    """The rule of SpCL and cluster-contrast on dense arrays; `seconds` gets its stages'.

    The nearest are found by a partial sort: a full one, which some peers do, takes three times as
    long.
    """
    clock = [time.perf_counter()]

    def stage(name: str) -> None:
        clock.append(time.perf_counter())
        if seconds is not None:
            seconds[name] = clock[-1] - clock[-2]

    d = x @ x.T
    np.maximum(2 - 2 * d, 0, out=d)
    np.fill_diagonal(d, 0)
    stage("distances")
    near = np.sort(np.argpartition(d, 29, axis=1)[:, :30], axis=1)  # ties go by index
    order = np.argsort(np.take_along_axis(d, near, axis=1), axis=1, kind="stable")
    rank = np.take_along_axis(near, order, axis=1)
    stage("neighbours")
    v = numpy_encoding(rank, lambda i, members: d[i, members], 30, 16, softmax=True)
    stage("encoding")
    result = numpy_jaccard(v, len(x))
    stage("Jaccard distances")
    return result


def dense(rows: tuple[Tensor, Tensor, Tensor], first: int, columns: int) -> np.ndarray:
    offsets, column, values = rows
    result = np.ones((len(offsets) - 1, columns))
    row = torch.arange(len(offsets) - 1).repeat_interleave(offsets.diff())
    result[row, column.long() - first] = values
    return result


def require(provider: str) -> None:
    """Skip with the reason why a provider is absent."""
    if provider == "cpu" and not backends()["cpu"].startswith("active"):
        pytest.skip(f"cpu: {backends()['cpu']}")
    if provider in ("numpy", "reference") and ITEMS > DENSE_LIMIT:
        pytest.skip(f"{provider}: dense, or slow, beyond {DENSE_LIMIT} items")


def timed(benchmark: Any, group: str, call: Any, provider: str) -> Any:
    benchmark.group = f"{group}, {ITEMS} items"
    rounds = 1 if provider in ("numpy", "reference") else ROUNDS
    return benchmark.pedantic(call, rounds=rounds, warmup_rounds=int(rounds > 1))


@pytest.mark.parametrize("provider", ["numpy", "reference", "cpu"])
def test_sparse_part(benchmark, provider):
    """Neighbours given -> Jaccard rows of the queries, k1 20, k2 6 (Market: 3,368 of 19,281)."""
    require(provider)
    near, queries = neighbours(ITEMS), ITEMS * 3368 // 19281
    calls = {
        "numpy": lambda: numpy_sparse_part(near, queries),
        "reference": lambda: sparse_part(reference, near, queries),
        "cpu": lambda: sparse_part(torch.ops.mmga, near, queries),
    }
    found = timed(benchmark, "sparse part", calls[provider], provider)
    if ITEMS <= DENSE_LIMIT:
        if provider != "numpy":
            found = dense(found, queries, ITEMS - queries)
        expected = dense(calls["cpu"](), queries, ITEMS - queries)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)  # numpy's V is float32


@pytest.mark.parametrize("provider", ["numpy", "cpu", "cpu, up to 0.62"])
def test_clustering(benchmark, provider):
    """Features (D = 256) -> Jaccard distances of the set to itself, k1 30, k2 6."""
    require(provider.split(",")[0])
    x, _ = simulated(ITEMS, 256)
    calls = {
        "numpy": lambda: numpy_clustering(x.numpy()),
        "cpu": lambda: mmga.jaccard_distance(x),
        "cpu, up to 0.62": lambda: mmga.jaccard_distance(x, max_distance=0.62),
    }
    found = timed(benchmark, "Jaccard for clustering", calls[provider], provider)
    if provider == "numpy":
        matrix = to_scipy(calls["cpu"]())
        row = np.repeat(np.arange(ITEMS), np.diff(matrix.indptr))
        expected = np.ones((ITEMS, ITEMS))
        expected[row, matrix.indices] = matrix.data
        # A near-tie of two float32 products may be decided differently in some rows.
        assert (np.abs(found - expected) > 1e-4).mean() < 1e-4


@pytest.mark.parametrize("dimension", [512, 2048])
@pytest.mark.parametrize("provider", ["product", "cpu"])
def test_neighbours(benchmark, provider, dimension):
    """The 21 nearest of every item, against the product of each pair of tiles alone."""
    require(provider)
    x, _ = simulated(ITEMS, dimension)
    tile = torch.empty(TILE, TILE)
    starts = range(0, ITEMS - TILE + 1, TILE)

    def product() -> None:
        for row in starts:
            for column in starts[row // TILE :]:
                torch.mm(x[row : row + TILE], x[column : column + TILE].t(), out=tile)

    calls = {
        "product": product,
        "cpu": lambda: float32_neighbours(VectorSet([ShardedMatrix([x])], "cosine"), 21),
    }
    found = timed(benchmark, f"neighbours, D = {dimension}", calls[provider], provider)
    if provider == "cpu":
        some = slice(0, 100)
        d = (2 - 2 * (x[some] @ x.t())).double()
        taken = d.gather(1, found.index[some].long())
        expected = d.topk(21, largest=False).values
        torch.testing.assert_close(taken.sort().values, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("provider", ["product", "cpu"])
def test_features_to_metrics(benchmark, provider):
    """Plain and re-ranked metrics, D = 2048, against half of the one-shot N x N product."""
    require(provider)
    x, person = simulated(ITEMS, 2048)
    queries = ITEMS * 3368 // 19281
    camids = np.arange(ITEMS) % 6
    query, gallery = (
        mmga.Features(x[part], person[part], camids[part])
        for part in (slice(0, queries), slice(queries, ITEMS))
    )
    half = x[: ITEMS // 2]
    calls = {
        "product": lambda: half @ x.t(),
        "cpu": lambda: mmga.evaluate(query, gallery, rerank=mmga.KReciprocal()),
    }
    report = timed(benchmark, "features to re-ranked metrics", calls[provider], provider)
    if provider == "cpu":
        if ITEMS <= DENSE_LIMIT:
            matrix = mmga.rerank(query, gallery)
            expected = mmga.evaluate_distances(matrix, query, gallery)
            assert report.reranked.mAP == pytest.approx(expected.mAP, abs=1e-9)
        benchmark.extra_info["peak_memory_bytes"] = report.peak_memory_bytes
