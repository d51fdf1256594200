"""From features: neighbours by tiles, re-ranked distances with and without kept distances."""

import literal
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reranking_cases import assert_equal, grid, split, squared

import mmga
from mmga.ops import reference
from mmga.retrieval.features.sharded_matrix import ShardedMatrix
from mmga.retrieval.features.vectors import VectorSet
from mmga.retrieval.neighbours import certified_knn as certified_neighbours
from mmga.retrieval.neighbours import tile_sizes
from mmga.retrieval.neighbours.knn import float32_neighbours, nearest
from mmga.retrieval.reranking.distances import Reranking
from mmga.retrieval.reranking.rerank import rerank, rerank_distances
from mmga.retrieval.reranking.settings import KReciprocal

CASES = settings(max_examples=25, deadline=None, derandomize=True)


@pytest.fixture(params=[512, 64], ids=["one tile", "many tiles"])
def tile(request, monkeypatch):
    for module in (tile_sizes, certified_neighbours):
        monkeypatch.setattr(module, "TILE", request.param)
    return request.param


@pytest.mark.parametrize("count", [1, 64, 65, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_neighbours_within_equal_a_sort(tile, count, dtype):
    x = grid(count, 5, 3, count)
    k = min(count, 21)
    first = count // 3
    kept = torch.full((first, count - first), -1.0)
    sides = ShardedMatrix([x[: count // 2].to(dtype), x[count // 2 :].to(dtype)])
    found = float32_neighbours(VectorSet([sides], "euclidean"), k, kept=kept)
    d = squared(x).float()
    expected, order = reference.nearest_in_rows(d, k)
    assert torch.equal(found.index, order)
    assert torch.equal(found.distances, expected)
    assert torch.equal(found.maxima, d.amax(1))
    assert torch.equal(kept, d[:first, first:])


def test_neighbours_within_report_progress(tile):
    calls = []
    vectors = VectorSet([ShardedMatrix([grid(150, 3, 9, 0)])], "cosine")
    float32_neighbours(vectors, 5, progress=lambda *call: calls.append(call))
    total = 6 if tile == 64 else 1
    assert calls == [("neighbours", done, total) for done in range(1, total + 1)]


@pytest.mark.parametrize("after", [1, 3])
def test_an_interrupt_ends_the_pass_at_once(tile, after):
    x, calls = grid(150, 3, 9, 0), []

    def interrupted(*call):
        calls.append(call)
        if len(calls) == after:
            raise KeyboardInterrupt

    if tile == 512 and after > 1:  # there is but one tile
        pytest.skip("one tile, one call")
    with pytest.raises(KeyboardInterrupt):
        rerank(x[:50], x[50:], progress=interrupted)
    assert len(calls) == after
    assert torch.equal(rerank(x[:50], x[50:]), rerank(x[:50], x[50:], progress=lambda *c: None))


def test_neighbour_order_is_equal_for_any_number_of_threads():
    x = torch.randn(700, 96, generator=torch.Generator().manual_seed(0))
    before, outcomes = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            outcomes.append(float32_neighbours(VectorSet([ShardedMatrix([x])], "cosine"), 21))
    finally:
        torch.set_num_threads(before)
    for other in outcomes[1:]:
        assert torch.equal(other.index, outcomes[0].index)
        assert torch.equal(other.distances, outcomes[0].distances)


@pytest.mark.program_settings
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_nearest_equals_a_sort(tile, metric):
    x, y = grid(70, 6, 5, 1), grid(150, 6, 5, 2)
    x[3] = 0
    distances, index = nearest(x, y, 9, metric)
    expected = mmga.pairwise_distance(x, y, metric) if metric == "cosine" else torch.cdist(x, y)
    assert index.dtype == torch.int64
    torch.testing.assert_close(distances, expected.gather(1, index), rtol=0, atol=2e-6)
    order = expected.sort(dim=1, stable=True).values[:, :9]
    torch.testing.assert_close(distances, order, rtol=0, atol=2e-6)
    if metric == "euclidean":  # exact keys: the order is exact too
        d = (x[:, None] - y[None]).square().sum(-1)
        assert torch.equal(index, reference.nearest_in_rows(d, 9)[1].long())
    else:
        assert distances[3].tolist() == [1.0] * 9 and index[3].tolist() == list(range(9))


def test_mapped_files_and_shards(tmp_path):
    x = grid(100, 4, 6, 3)
    whole = mmga.Features(x, np.arange(100))
    whole.save(tmp_path / "whole")
    for number, part in enumerate((slice(0, 33), slice(33, 100))):
        mmga.Features(x[part].half(), np.arange(100)[part]).save(tmp_path / f"part-{number}.npz")
    mapped = mmga.load_features(tmp_path / "whole")
    shards = mmga.load_features(str(tmp_path / "part-*.npz"))
    expected = nearest(x[:20], x, 7)
    for gallery in (mapped, shards):
        distances, index = nearest(x[:20], gallery, 7)
        assert torch.equal(index, expected[1]) and torch.equal(distances, expected[0])
        assert torch.equal(rerank(x[:20], gallery), rerank(x[:20], x))


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_distances_of_pairs_in_place_equal_copied_ones(metric):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(90, 24, generator=generator)
    kept = torch.arange(0, 50, 2)
    items = VectorSet([ShardedMatrix([x[:40]]), ShardedMatrix([x[40:]])], metric, [None, kept])
    copied = VectorSet(
        [ShardedMatrix([x[:9], x[9:40]]), ShardedMatrix([x[40:60], x[60:]])], metric, [None, kept]
    )
    pairs = torch.randint(0, len(items), (2, 500), generator=generator)
    found = items.pair_distances(*pairs)
    assert torch.equal(found, copied.pair_distances(*pairs))
    rows = torch.cat([x[:40], x[40:][kept]]).double()
    if metric == "cosine":
        rows = torch.nn.functional.normalize(rows, dim=1)
    expected = (rows[pairs[0]] - rows[pairs[1]]).square().sum(1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_nearest_gives_arrays_for_arrays():
    x = grid(12, 4, 5, 1).numpy()
    distances, index = nearest(x, x, 2)
    assert isinstance(distances, np.ndarray) and index.dtype == np.int64


@CASES
@given(
    st.integers(2, 45),
    st.integers(1, 30),
    st.sampled_from([1, 2, 30]),
    st.sampled_from(["zhong", "torchreid", "fastreid"]),
    st.sampled_from([2, 7, 20]),
    st.integers(0, 2**31),
)
def test_features_give_what_their_distances_give(queries, gallery, top, variant, k1, seed):
    x = grid(queries + gallery, 3, top, seed)
    rule = KReciprocal(k1, 3, variant=variant)
    expected = rerank_distances(*split(squared(x), queries), rule, squared=True)
    actual = rerank(x[:queries], x[queries:], rule, metric="euclidean")
    assert_equal(actual.numpy(), expected.numpy())


@pytest.mark.parametrize("variant", ["zhong", "torchreid", "fastreid"])
def test_cosine_is_squared_euclidean_of_normalised_features(variant):
    x = torch.randn(90, 16, generator=torch.Generator().manual_seed(4))
    rule = KReciprocal(7, 3, variant=variant)
    y = torch.nn.functional.normalize(x.double(), dim=1)
    d = torch.cdist(y, y).square()
    expected = rerank_distances(
        *split(d, 20), KReciprocal(7, 3, 0.0, variant=variant), squared=True
    )
    actual = rerank(x[:20] * 3, x[20:], KReciprocal(7, 3, 0.0, variant=variant))
    np.testing.assert_allclose(actual, expected, atol=1e-6)
    mixed = rerank(x[:20], x[20:], rule)
    d_part = d[:20, 20:]
    if variant == "fastreid":  # mixes 1 - cos, half of the squared distance
        original = d_part / 2
    else:
        original = (d_part / d[:20].amax(1, keepdim=True)) ** (2 if variant == "torchreid" else 1)
    np.testing.assert_allclose(mixed, 0.7 * expected + 0.3 * original, atol=1e-6)


@pytest.mark.parametrize("memory", [None, 1], ids=["kept", "computed again"])
def test_blocks_are_rows_of_the_matrix(tile, memory):
    x = grid(330, 4, 6, 8)
    expected = rerank_distances(*split(squared(x), 130), squared=True)
    vectors = VectorSet([ShardedMatrix([x[:130]]), ShardedMatrix([x[130:]])], "euclidean")
    graph = Reranking(vectors, 130, KReciprocal(), memory=memory)
    chosen = torch.randperm(130, generator=torch.Generator().manual_seed(0))[:100]
    found = torch.full((100, 200), torch.nan, dtype=torch.float64)
    for rows, block in graph.blocks(chosen):
        found[rows] = block
    np.testing.assert_allclose(found, expected[chosen], rtol=0, atol=1e-12)
    assert set(graph.seconds) == {"neighbours", "encoding"}


def test_one_set_against_itself(tile):
    x = grid(140, 4, 6, 8)
    d = squared(x)
    graph = Reranking(VectorSet([ShardedMatrix([x])], "euclidean"), None, KReciprocal())
    found = torch.cat([block for _, block in graph.blocks(torch.arange(140))])
    v, dn = literal.zhong_encoding(d.numpy(), 20, 6)
    expected = 0.7 * literal.jaccard(v, range(140)) + 0.3 * dn
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_topk_is_the_head_of_the_order(tile):
    x = grid(200, 4, 6, 9)
    whole = rerank(x[:50], x[50:], metric="euclidean")
    distances, index = rerank(x[:50], x[50:], metric="euclidean", topk=10)
    order = whole.sort(dim=1, stable=True)
    assert torch.equal(index, order.indices[:, :10])
    assert torch.equal(distances, order.values[:, :10])


def test_junk_takes_no_part():
    x = grid(120, 4, 6, 10)
    pids = np.arange(90) % 11
    query = mmga.Features(x[:30], np.arange(30) % 11)
    junk = np.arange(90) % 7 == 2
    gallery = mmga.Features(x[30:], np.where(junk, -1, pids))
    found = rerank(query, gallery, metric="euclidean")
    assert torch.isinf(found[:, junk]).all()
    expected = rerank(x[:30], x[30:][torch.from_numpy(~junk)], metric="euclidean")
    assert torch.equal(found[:, torch.from_numpy(~junk)], expected)
    distances, index = rerank(query, gallery, metric="euclidean", topk=5)
    assert not junk[index].any()
    assert torch.equal(distances, found.gather(1, index))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: rerank(x, x[:, :3]), "one dimension"),
        (lambda x: rerank(x, x * np.nan), "finite"),
        (lambda x: rerank(x, x, metric="manhattan"), "metric"),
        (lambda x: rerank(x, x, topk=41), "topk must be from 1 to the 40"),
        (lambda x: rerank(x, x[:0]), "at least one"),
        (lambda x: rerank(x, "gallery"), "gallery must be Features"),
        (lambda x: nearest(x, x, 0), "k must be from 1 to the 40"),
        (lambda x: nearest(x[0], x, 1), "query must be"),
        (lambda x: nearest(x, x[:, :2], 1), "one dimension"),
    ],
)
def test_bad_input_is_one_sentence(call, message):
    with pytest.raises(mmga.UserError, match=message):
        call(grid(40, 4, 6, 9))


def test_a_matrix_that_does_not_fit_is_an_error():
    x = torch.zeros(1, 1).expand(3_000_000, 1)
    with pytest.raises(mmga.UserError, match="pass topk="):
        rerank(x, x)


def test_too_little_memory_says_how_much_is_enough():
    x = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
    words = {"topk": 5, "exact": "certified"}
    with pytest.raises(mmga.UserError, match="10 queries and 50 gallery items; give") as error:
        mmga.rerank(x[:10], x[10:], memory="4K", **words)
    least = str(error.value).rsplit(" ", 1)[1]
    found = mmga.rerank(x[:10], x[10:], memory=least, **words)
    assert torch.equal(found[1], mmga.rerank(x[:10], x[10:], **words)[1])
