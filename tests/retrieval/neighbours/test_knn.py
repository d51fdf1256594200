"""Public searches against brute force in float64, for every k, number of threads and shards."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mmga
from mmga.retrieval.features.sharded_matrix import ShardedMatrix
from mmga.retrieval.features.vectors import VectorSet, exact_pair_keys, squared_distances
from mmga.retrieval.neighbours import search_plan

KINDS = ["duplicates", "near ties", "denormals", "zeros", "flat", "low rank"]
METRICS = ["cosine", "euclidean"]


def features(kind, seed, count, width=40):
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((count, width))
    if kind == "low rank":
        rows = rng.standard_normal((count, 2)) @ rng.standard_normal((2, width))
    rows = rows.astype(np.float32)
    some = rng.integers(0, 3, count) == 0
    if kind == "duplicates":
        rows = rows[rng.integers(0, max(1, count // 4), count)]
    elif kind == "near ties":  # a few vectors, each off by last bits
        rows = rows[rng.integers(0, 3, count) % count]
        up = rng.integers(0, 2, rows.shape) == 0
        rows = np.where(up, np.nextafter(rows, np.float32(np.inf)), rows)
    elif kind == "denormals":
        rows[some, 1:] *= np.float32(1e-41)
    elif kind == "zeros":
        rows[some] = 0
    return rows


def exact_order(query, gallery, metric):
    """All gallery items by (float64 distance, index), and their squared distances."""
    queries, items = (
        VectorSet([ShardedMatrix([torch.from_numpy(side)])], metric) for side in (query, gallery)
    )
    q, g = len(query), len(gallery)
    pairs = torch.arange(q).repeat_interleave(g), torch.arange(g).repeat(q)
    keys = exact_pair_keys(queries, pairs[0], items, pairs[1]).view(q, g)
    index = keys.sort(dim=1, stable=True).indices
    return index, squared_distances(keys.gather(1, index), metric)


def seen(squared, metric):
    """Distances as users see them."""
    shown = squared.sqrt() if metric == "euclidean" else squared / 2
    return torch.where(shown < 2.0**-50, 0.0, shown)


@settings(max_examples=120, derandomize=True, deadline=None)
@given(
    st.sampled_from(KINDS),
    st.integers(0, 999),
    st.integers(1, 40),
    st.sampled_from(METRICS),
    st.sampled_from(["first", "second", "last but one", "last"]),
    st.booleans(),
)
def test_lists_are_those_of_float64(kind, seed, count, metric, which, planned):
    gallery = features(kind, seed, count)
    query = np.concatenate([features(kind, seed + 1, 5), gallery[:3]])
    k = {"first": 1, "second": 2, "last but one": count - 1, "last": count}[which]
    k = min(max(k, 1), count)
    if kind == "denormals":
        gallery[1::3] *= np.float32(1e-41)
    if not np.any(query) or not np.any(gallery):
        gallery[0, 0] = query[0, 0] = 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search_plan, "_SMALL", 0 if planned else 1e10)
        found = mmga.nearest(torch.from_numpy(query), gallery, k, metric)
        graph = mmga.kneighbors_graph(gallery, k, metric, include_self=True)
    index, squared = exact_order(query, gallery, metric)
    assert torch.equal(found[1], index[:, :k])
    torch.testing.assert_close(
        found[0].double(), seen(squared, metric)[:, :k], rtol=1e-6, atol=1e-30
    )
    own, squared = exact_order(gallery, gallery, metric)
    itself = own == torch.arange(count)[:, None]
    order = squared.masked_fill(itself, -1).sort(dim=1, stable=True)  # itself is the first
    expected = own.gather(1, order.indices)[:, :k].sort(dim=1)
    assert torch.equal(graph.col_indices().view(count, k).long(), expected.values)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("k", [1, 2, 2048, 2499, 2500])
def test_every_length_of_lists(metric, k):
    gallery = features("flat", 3, 2500, 12)
    gallery[1000:1200] = gallery[:200]  # duplicates, of which each knows the other
    query = np.concatenate([features("flat", 4, 30, 12), gallery[:10]])
    index, squared = exact_order(query, gallery, metric)
    found = mmga.nearest(torch.from_numpy(query), gallery, k, metric)
    assert torch.equal(found[1], index[:, :k])
    torch.testing.assert_close(found[0].double(), seen(squared, metric)[:, :k], rtol=1e-6, atol=0)
    assert k < 2 or (found[0][30:, :2] == 0).all()


def test_long_lists_of_a_set_itself():
    rows = features("flat", 5, 2100, 8)
    graph = mmga.kneighbors_graph(rows, 2048, "euclidean", "connectivity", include_self=True)
    expected = exact_order(rows[::50], rows, "euclidean")[0][:, :2048].sort(dim=1).values
    assert torch.equal(graph.col_indices().view(2100, 2048)[::50].long(), expected)


def all_searches(rows, query, metric):
    graph = mmga.kneighbors_graph(rows, 7, metric)
    near = mmga.neighbours_within(rows, 0.6 if metric == "cosine" else 8.0, metric)
    parts = [(one.crow_indices(), one.col_indices(), one.values()) for one in (graph, near)]
    wider = [] if metric == "euclidean" else [mmga.augment_gallery(rows, 4)]
    return [*mmga.nearest(query, rows, 9, metric), *parts[0], *parts[1], *wider]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("planned", [False, True])
def test_threads_and_shards_change_nothing(tmp_path, metric, planned, monkeypatch):
    monkeypatch.setattr(search_plan, "_SMALL", 0 if planned else 1e10)
    rows = np.concatenate([features(kind, 6, 90) for kind in ("duplicates", "near ties", "flat")])
    query = torch.from_numpy(features("near ties", 6, 20))
    shards = []
    for place, part in enumerate(np.split(rows, [1, 100, 255])):
        np.save(tmp_path / f"{place}.npy", part)
        shards.append(np.load(tmp_path / f"{place}.npy", mmap_mode="c"))
    sharded = mmga.Features(shards, np.arange(270))
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(all_searches(rows, query, metric))
            found.append(all_searches(sharded, query, metric))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))
