"""CMC, mAP and mINP: ours against a sort of the matrix, from a matrix and from features.

`pytest benchmarks/test_ranking.py --benchmark-only`. The workload is Market-1501's shape with
simulated features of about 15 matches a query; MMGA_BENCHMARK_SCALE divides both sides (default 1).
Providers: `numpy` and `torch` (argsort of the whole matrix, then the Market rule on each row: what
peers do), `argsort` (NumPy's alone; fast-reid's Cython evaluation takes 1.4 to 1.65 times as long),
`product` (the bare one-shot product), `tiles` (tiles of float32 products without counting),
`float32` (these with counting) and `mmga`. What evaluates is held against the same mAP before it is
timed.
"""

import os

import numpy as np
import pytest
import torch

from mmga.retrieval.evaluate import evaluate, evaluate_distances
from mmga.retrieval.features import Features
from mmga.retrieval.tiles.sources import TILE, tile_height

SCALE = int(os.environ.get("MMGA_BENCHMARK_SCALE", "1"))
QUERIES, ITEMS, PEOPLE, DISTRACTORS = 3368 // SCALE, 15913 // SCALE, 750 // SCALE, 2798 // SCALE
WIDTHS = (2048, 512, 256)
# Noise around an identity's centre that leaves mAP near .9 at each width.
NOISE = {2048: 2.9, 512: 2.0, 256: 1.65}
ROUNDS = 5


def simulated(width: int) -> tuple[Features, Features]:
    """Return normalised features in which an identity is a centre with noise around it."""
    generator = torch.Generator().manual_seed(width)
    centres = torch.randn(PEOPLE, width, generator=generator)
    known = ITEMS - DISTRACTORS
    pids = (
        torch.arange(QUERIES) % PEOPLE,
        torch.cat(
            [
                torch.randint(0, PEOPLE, (known,), generator=generator),
                torch.full((DISTRACTORS,), 10**6),
            ]
        ),
    )
    sides = []
    for labels in pids:
        rows = NOISE[width] * torch.randn(len(labels), width, generator=generator)
        of_known = labels < PEOPLE
        rows[of_known] += centres[labels[of_known]]
        camids = torch.randint(0, 6, (len(labels),), generator=generator)
        sides.append(Features(torch.nn.functional.normalize(rows), labels, camids))
    return sides[0], sides[1]


@pytest.fixture(scope="module", params=WIDTHS, ids=lambda width: f"D{width}")
def sides(request: pytest.FixtureRequest) -> tuple[Features, Features]:
    return simulated(request.param)


@pytest.fixture(scope="module")
def given() -> tuple[torch.Tensor, Features, Features]:
    query, gallery = simulated(256)
    return 1 - query.features @ gallery.features.T, query, gallery


def by_order(order: np.ndarray, query: Features, gallery: Features) -> float:
    """Return mAP by the Market rule from each row's sorted items."""
    assert query.camids is not None
    assert gallery.camids is not None
    total, valid = 0.0, 0
    for row in range(len(query)):
        pids = gallery.pids[order[row]]
        mine = pids == query.pids[row]
        kept = ~(mine & (gallery.camids[order[row]] == query.camids[row]))
        hits = np.flatnonzero(mine[kept]) + 1
        if len(hits):
            total += float((np.arange(1, len(hits) + 1) / hits).mean())
            valid += 1
    return total / valid


def numpy_argsort(matrix: torch.Tensor, query: Features, gallery: Features) -> float:
    return by_order(np.argsort(matrix.numpy(), axis=1, kind="stable"), query, gallery)


def torch_argsort(matrix: torch.Tensor, query: Features, gallery: Features) -> float:
    return by_order(torch.argsort(matrix, dim=1, stable=True).numpy(), query, gallery)


def counted(matrix: torch.Tensor, query: Features, gallery: Features) -> float:
    return evaluate_distances(matrix, query, gallery).mAP


def argsort(matrix: torch.Tensor, query: Features, gallery: Features) -> None:
    np.argsort(matrix.numpy(), axis=1)


FROM_MATRIX = {
    "mmga": counted,
    "numpy": numpy_argsort,
    "torch": torch_argsort,
    "argsort": argsort,
}


@pytest.mark.benchmark(group="from a matrix")
@pytest.mark.parametrize("provider", FROM_MATRIX)
def test_from_matrix(benchmark, given, provider):
    matrix, query, gallery = given
    run = FROM_MATRIX[provider]
    if provider != "argsort":
        expected = counted(matrix, query, gallery)
        assert run(matrix, query, gallery) == pytest.approx(expected, abs=1e-9)
    rounds = ROUNDS if provider == "mmga" else 1
    benchmark.pedantic(run, (matrix, query, gallery), rounds=rounds)


def product(query: Features, gallery: Features) -> None:
    query.features @ gallery.features.T


def tiles(query: Features, gallery: Features) -> None:
    """The products of an evaluation, whole tiles and zero-padded ones alike, and nothing else."""
    width = TILE[1]
    height = tile_height(len(query))
    tile = torch.empty(height, width)
    rows = torch.nn.functional.pad(query.features, (0, 0, 0, -len(query) % height))
    last = torch.zeros(width, gallery.dimension)
    for left in range(0, len(gallery), width):
        block = gallery.features[left : left + width]
        if len(block) < width:
            last[: len(block)] = block
            block = last
        for top in range(0, len(rows), height):
            torch.mm(rows[top : top + height], block.T, out=tile)


def float32(query: Features, gallery: Features) -> None:
    evaluate(query, gallery, exact="float32")


FROM_FEATURES = {"mmga": evaluate, "float32": float32, "tiles": tiles, "product": product}


@pytest.mark.benchmark(group="from features")
@pytest.mark.parametrize("provider", FROM_FEATURES)
def test_from_features(benchmark, sides, provider):
    query, gallery = sides
    if provider == "mmga":
        matrix = 1 - query.features @ gallery.features.T
        # Two float32 products may order near ties differently.
        expected = counted(matrix, query, gallery)
        assert evaluate(query, gallery).mAP == pytest.approx(expected, abs=1e-4)
    benchmark.pedantic(FROM_FEATURES[provider], (query, gallery), rounds=ROUNDS, warmup_rounds=1)
