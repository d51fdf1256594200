"""Certified neighbour lists against brute force in float64, on features that nearly tie."""

import dataclasses

import numpy as np
import pytest
import torch
from certified_cases import KINDS, decaying, nearly_tied, some_subspace
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mmga
from mmga.common.errors import UserError
from mmga.ops import certified as ops
from mmga.ops import reference
from mmga.ops._library import has_kernel
from mmga.ops.ranking import Tile
from mmga.retrieval.bounds import approximation, planner
from mmga.retrieval.features.sharded_matrix import ShardedMatrix
from mmga.retrieval.features.vectors import VectorSet, exact_pair_keys, squared_distances
from mmga.retrieval.neighbours import certified_knn as searching
from mmga.retrieval.neighbours import knn, one_look, search_plan
from mmga.retrieval.neighbours.certified_knn import (
    certified_nearest,
    certified_neighbours,
    exact_order,
)
from mmga.retrieval.neighbours.search_plan import cheapest_tiles

KERNEL = mmga.ops.backends()["cpu"].startswith("active")


@pytest.fixture(autouse=True)
def _kernels_are_active():
    if KERNEL:
        assert has_kernel("filter_candidates", "CPU") and has_kernel("insert_candidates", "CPU")


def some_items(kind, seed, count=66, width=24, metric="cosine"):
    query, gallery = nearly_tied(kind, seed, queries=6, items=count - 6, width=width)
    return VectorSet([query.rows, gallery.rows], metric)


def bytes_of(items):
    return approximation.Int8(float(items.norms.max()) ** 0.5)


def brute_force(items, k):
    """The k nearest by (float64 distance, index), and the largest distance of each item."""
    n = len(items)
    every = torch.arange(n)
    all_ = items.exact_distances(every.repeat_interleave(n), every.repeat(n)).view(n, n)
    index = all_.sort(dim=1, stable=True).indices[:, :k]
    return index.int(), all_.gather(1, index), all_.amax(1)


def lists_of(items, k, tiles, farthest=True):
    """The k nearest of every item of a set through these tiles."""
    if isinstance(tiles, approximation.Int8):
        return one_look.Look(items, items, k, farthest=farthest, own_at_zero=True).run()
    return certified_neighbours(items, k, tiles=tiles, farthest=farthest)


def patch_tiles_of_bytes(patch, tile):
    """Make tiles of 8-bit rows this large."""
    for name in ("_LEAST_TILE", "_LARGEST_TILE", "_PANEL"):
        patch.setattr(one_look, name, tile)


@pytest.mark.program_settings
@settings(
    max_examples=100,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
)
@given(
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 10_000),
    metric=st.sampled_from(["cosine", "euclidean"]),
    directions=st.sampled_from(["none", "fitted", "random", "skewed", "bytes"]),
    dimensions=st.sampled_from([1, 5, 12]),
    k=st.sampled_from([1, 4, 21, 66]),
    tile=st.sampled_from([512, 16, 40]),
    block=st.sampled_from([256, 8]),
    farthest=st.booleans(),
)
def test_lists_are_those_of_float64(
    kind, seed, metric, directions, dimensions, k, tile, block, farthest
):
    items = some_items(kind, seed, width=64 if directions == "bytes" else 24, metric=metric)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(approximation, "BLOCK", block)
        patch.setattr(approximation, "FINE_BLOCK", block)
        patch.setattr(searching, "TILE", tile)
        patch_tiles_of_bytes(patch, tile)
        chosen = None
        if directions == "bytes":
            chosen = bytes_of(items)
        elif directions != "none":
            chosen = some_subspace(directions, 24, dimensions, seed, items.block(0, 66))
        found = lists_of(items, k, chosen, farthest)
    index, distance, maxima = brute_force(items, k)
    assert torch.equal(found.index, index)
    assert torch.equal(found.distances, distance.float())
    if farthest:
        assert torch.equal(found.maxima, maxima.float())
    else:
        assert found.maxima.isnan().all()


def copied(items):
    """The same vectors in pieces, which are copied to be read, as those of files are."""
    rows = items.block(0, len(items))
    pieces = ShardedMatrix([rows[:29].clone(), rows[29:30].clone(), rows[30:].clone()])
    pieces = VectorSet([pieces], items.metric, norms=items.norms)
    assert not pieces.placeable
    return pieces


@settings(max_examples=100, derandomize=True, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 10_000),
    metric=st.sampled_from(["cosine", "euclidean"]),
    k=st.sampled_from([1, 4, 21, 66]),
    tile=st.sampled_from([8, 16, 40]),
    tiles=st.sampled_from([1, 2, 4, 100]),
    step=st.sampled_from([3, 1024]),
    in_place=st.booleans(),
    own_at_zero=st.booleans(),
    farthest=st.booleans(),
)
def test_lists_of_rows_that_are_held_in_turn_are_those_of_float64(
    kind, seed, metric, k, tile, tiles, step, in_place, own_at_zero, farthest
):
    items = some_items(kind, seed, width=64, metric=metric)
    items = items if in_place else copied(items)
    met = []

    def look(height, progress=None):
        with pytest.MonkeyPatch.context() as patch:
            patch_tiles_of_bytes(patch, tile)
            patch.setattr(one_look, "_LEAST_STEP", step)
            patch.setattr(one_look, "_PASSED_ON", 4 * step * one_look._PAIR_BYTES * k)
            patch.setattr(one_look, "_rows_at_once", lambda *given: height)
            words = {"farthest": farthest, "own_at_zero": own_at_zero, "progress": progress}
            return one_look.Look(items, items, k, **words).run()

    found = look(tiles * tile, lambda phase, done, total: met.append((done, total)))
    if own_at_zero:
        index, distance, maxima = brute_force(items, k)
    else:
        other = look(0)
        index, distance, maxima = other.index, other.distances, other.maxima
    assert torch.equal(found.index, index.int())
    assert torch.equal(found.distances, distance.float())
    if farthest:
        assert torch.equal(found.maxima, maxima.float())
    once = met[: met.index((len(items) ** 2, len(items) ** 2)) + 1]  # then come rows that were lost
    assert once == sorted(once)


@pytest.mark.parametrize("count, first, last", [(308, 64, 128), (686, 256, 320)])
def test_rows_in_random_order_are_not_read_as_a_block(monkeypatch, count, first, last):
    """Of a tile whose first and last item are as far apart as those of a block."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(count, 64, generator=g)
    items = VectorSet([ShardedMatrix([part.clone()]) for part in x.chunk(3)], "cosine")
    assert items.in_place and not items.placeable
    tile = one_look._Order.of(items).items[first:last]
    assert tile[-1] - tile[0] == len(tile) - 1 and (tile.diff() != 1).any()
    patch_tiles_of_bytes(monkeypatch, 64)
    queries = VectorSet([ShardedMatrix([x[tile]])], "cosine")
    assert torch.equal(one_look.Look(queries, items, 1).run().index[:, 0].long(), tile)


@pytest.mark.parametrize("chosen", [False, True])
@pytest.mark.parametrize("sizes", [[[40]], [[30, 10]], [[25], [15]]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int8])
@pytest.mark.parametrize("scaled", [True, False])
def test_vectors_are_placed_where_they_are_stored(dtype, sizes, chosen, scaled):
    """One or two matrices, in one side or in two, of which some rows may be chosen."""
    g = torch.Generator().manual_seed(len(sizes))
    sides, places = [], []
    for shards in sizes:
        rows = (40 * torch.randn(sum(shards), 24, generator=g)).clamp(-128, 127).to(dtype)
        scale = torch.rand(len(rows), generator=g) + 0.1 if scaled else None
        pieces = [piece.clone() for piece in rows.split(shards)]
        sides.append(ShardedMatrix(pieces, scale if dtype == torch.int8 else None))
        places.append(torch.randperm(len(rows), generator=g)[:9] if chosen else None)
    vectors = VectorSet(sides, "cosine", places)
    some = torch.randperm(len(vectors), generator=g)
    copied, norms = vectors.take(some), vectors.norms[some]
    found = ops.rounded_rows(vectors.placed(), some, norms)
    expected = *ops.int8_rows(copied), *ops.int16_rows(copied, norms)
    assert all(map(torch.equal, found, expected))


def test_sides_of_unlike_numbers_are_not_placed():
    bytes_, scale = torch.ones(3, 8, dtype=torch.int8), torch.ones(3)
    scaled, plain = ShardedMatrix([bytes_], scale), ShardedMatrix([bytes_])
    half, single = ShardedMatrix([torch.ones(3, 8).half()]), ShardedMatrix([torch.ones(3, 8)])
    for sides in ((scaled, plain), (half, single), (single, single, single)):
        assert VectorSet(sides, "cosine").placed() is None


def test_mapped_files_are_met_as_they_lie(tmp_path):
    x = np.random.default_rng(0).standard_normal((50, 16)).astype(np.float16)
    for name in "ab":
        np.save(tmp_path / f"{name}.npy", x)
    files = [np.load(tmp_path / f"{name}.npy", mmap_mode="c") for name in "ab"]
    mapped = [
        knn.feature_rows(file, "x") for file in (files[0], mmga.Features(files, np.arange(100)))
    ]
    mapped += [mapped[0].cut(3, 9), knn.feature_rows(np.load(tmp_path / "a.npy", "r"), "x")]
    for rows in mapped:
        assert rows.mapped and one_look._Order.of(VectorSet([rows], "cosine")).total == 0
    for value in (x, files[0].astype(np.float32), np.load(tmp_path / "a.npy")):
        rows = knn.feature_rows(value, "x")
        assert not rows.mapped
        assert one_look._Order.of(VectorSet([rows], "cosine")).total == len(rows)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_set_meets_each_pair_once_where_memory_allows(monkeypatch, dtype):
    """Twice where a bound leaves no room for the lists of all rows."""
    count, k = 700, 3
    x = torch.randn(count, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    pairs, heights = [], set()
    collect = ops.CandidateLists.collect

    def counted(lists, tile, *given):
        pairs.append(len(tile.x) * len(tile.y))
        heights.add(len(tile.x))
        collect(lists, tile, *given)

    monkeypatch.setattr(ops.CandidateLists, "collect", counted)
    monkeypatch.setattr(search_plan, "_SMALL_LOOK", 0)
    monkeypatch.setattr(one_look, "MEMORY", 1 << 16)
    monkeypatch.setattr(one_look, "SET_MEMORY", 400_000)
    patch_tiles_of_bytes(monkeypatch, 64)
    vectors = VectorSet([ShardedMatrix([x])], "cosine")
    least = knn.search_bytes(vectors, vectors, k) + knn.RESULT_BYTES * count * k
    found = {}
    for memory, share in ((None, 0.5), (least, 1), (least + 100_000, 1), (least + 350_000, 0.5)):
        pairs.clear()
        heights.clear()
        found[memory] = mmga.nearest(x, x, k, memory=memory)
        assert share * count**2 <= sum(pairs) < (share + 0.1) * count**2
        assert max(heights) < count  # not all rows are held
    unit = torch.nn.functional.normalize(x.double())
    index = (unit @ unit.T).sort(dim=1, stable=True, descending=True).indices[:, :k]
    for distances, near in found.values():
        assert torch.equal(near, index)
        assert torch.equal(distances, found[None][0])


@settings(max_examples=60, derandomize=True, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 10_000),
    metric=st.sampled_from(["cosine", "euclidean"]),
    tiles=st.sampled_from(["features", "fitted", "bytes"]),
    k=st.sampled_from([1, 4, 21, 60]),
    tile=st.sampled_from([512, 16]),
    sample=st.sampled_from([1024, 24]),
)
def test_lists_of_other_queries_are_those_of_float64(kind, seed, metric, tiles, k, tile, sample):
    query, gallery = nearly_tied(kind, seed, queries=9, items=60, width=64)
    queries, items = (VectorSet([side.rows], metric) for side in (query, gallery))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(searching, "TILE", tile)
        patch.setattr(searching, "_SAMPLE", sample)
        patch_tiles_of_bytes(patch, tile)
        chosen = None
        if tiles == "fitted":
            chosen = some_subspace(tiles, 64, 8, seed, items.block(0, 60))
        if tiles == "bytes":
            found = one_look.Look(queries, items, k).run()
        else:
            found = certified_nearest(queries, items, k, chosen)
    every = torch.arange(9).repeat_interleave(60), torch.arange(60).repeat(9)
    keys = exact_pair_keys(queries, every[0], items, every[1]).view(9, 60)
    index = keys.sort(dim=1, stable=True).indices[:, :k]
    assert torch.equal(found.index, index.int())
    expected = squared_distances(keys.gather(1, index), metric).float()
    assert torch.equal(found.distances, expected)


@pytest.mark.parametrize("planted", ["rounding", "radius", "integers", "bytes", "shorts"])
def test_a_bound_that_is_too_small_is_caught(monkeypatch, planted):
    if planted == "rounding":
        monkeypatch.setattr(approximation, "gamma", lambda roundings: 0.0)
        monkeypatch.setattr(approximation, "_OTHER_ROUNDINGS", 0)
    else:
        owner, name = {
            "radius": (approximation.Projection, "approximate"),
            "integers": (searching, "int16"),
            "bytes": (approximation.Int8, "bounded"),
            "shorts": (one_look, "int16_bounded"),
        }[planted]
        original = getattr(owner, name)

        def too_sure(*given):
            found = original(*given)
            return dataclasses.replace(
                found, radius=found.radius * share, slack=found.slack * share - less
            )

        share = 0.0 if planted == "shorts" else 0.1
        less = 0.05 if planted == "bytes" else 0.0

        monkeypatch.setattr(owner, name, too_sure)
        if planted == "shorts":  # of vectors that are copied
            monkeypatch.setattr(approximation, name, too_sure)
    caught = 0
    for seed in range(1, 30):
        kind = "flat" if planted in ("radius", "bytes") else "last bits"
        items = some_items(kind, seed)
        chosen = None
        if planted in ("bytes", "shorts"):
            items = some_items(kind, seed, count=400, width=64)
            chosen = bytes_of(items)
        if planted in ("radius", "integers"):
            chosen = approximation.Projection.of_sample(items.block(0, 66), 8)
        try:
            found = lists_of(items, 4, chosen)
        except RuntimeError as error:
            assert "a bound is too small" in str(error)
            caught += 1
            break
        caught += not torch.equal(found.index, brute_force(items, 4)[0])
        if caught:
            break
    assert caught > 0


@pytest.mark.parametrize("tiles", ["projections", "bytes"])
def test_threads_change_nothing(tiles):
    items = VectorSet([decaying(9000, 32).rows], "euclidean")
    chosen = bytes_of(items)
    if tiles == "projections":
        chosen = approximation.Projection.of_sample(items.block(0, 512), 8)
    threads, found = torch.get_num_threads(), []
    for count in (1, 3):
        torch.set_num_threads(count)
        try:
            found.append(lists_of(items, 5, chosen))
        finally:
            torch.set_num_threads(threads)
    assert torch.equal(found[0].index, found[1].index)
    assert torch.equal(found[0].distances, found[1].distances)
    assert torch.equal(found[0].maxima, found[1].maxima)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("width", [1, 64, 130, 2100])
@pytest.mark.parametrize("metric", [0, 1, 2])
def test_filter_candidates_equal_the_references(symmetric, width, metric):
    g = torch.Generator().manual_seed(width)
    rows = 40
    sides = [torch.rand(n, generator=g) * 0.1 for n in (rows, width) * 3]
    limits = [
        torch.rand(rows, generator=g) * 0.2,
        torch.rand(width, generator=g) * 0.2,
        1 - torch.rand(rows, generator=g) * 0.2,
        1 - torch.rand(width, generator=g) * 0.2,
    ]
    arguments = (
        torch.rand(rows, width, generator=g),
        torch.rand(rows, generator=g) + 0.5 if metric else torch.empty(0),
        torch.rand(width, generator=g) + 0.5 if metric else torch.empty(0),
        metric,
        *sides[:4],
        *limits,
        30,
        20,
        symmetric,
    )
    found = torch.ops.mmga.filter_candidates(*arguments)
    assert torch.equal(found, reference.filter_candidates(*arguments))
    assert len(found) or width == 1


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("rows, columns, width", [(5, 7, 3), (50, 130, 64), (100, 2100, 257)])
@pytest.mark.parametrize("metric", [1, 2])
def test_filter_int8_candidates_equal_the_references(symmetric, rows, columns, width, metric):
    g = torch.Generator().manual_seed(width)
    sides = [torch.rand(n, generator=g) * 0.1 for n in (rows, columns) * 2]
    x, y = (
        torch.randint(-127, 128, (n, width), generator=g, dtype=torch.int8) for n in (rows, columns)
    )
    units = [torch.full((n,), 1 / 127 / width**0.5) for n in (rows, columns)]
    terms = [torch.ones(n) for n in (rows, columns)]
    keys = metric * (1 - (x.double() @ y.double().T) * units[0][0] ** 2)
    near = [torch.full((n,), float(keys.quantile(0.2))) for n in (rows, columns)]
    far = [torch.full((n,), float(keys.quantile(0.9))) for n in (rows, columns)]
    arguments = x, y, *units, *terms, metric, *sides, *near, *far, 12, 3, symmetric
    found = torch.ops.mmga.filter_int8_candidates(*arguments)
    assert torch.equal(found, reference.filter_int8_candidates(*arguments))
    assert (len(found) > 0 or (symmetric and rows < 12)) and len(found) < rows * columns


def test_offered_pairs_equal_the_references():
    g = torch.Generator().manual_seed(1)
    pairs = torch.stack([torch.randint(0, 30, (900,), generator=g) for _ in range(2)], 1)
    pairs = pairs.unique(dim=0).int()
    pairs = pairs[pairs[:, 0] != pairs[:, 1]].contiguous()
    distances = torch.randint(0, 9, (len(pairs),), generator=g).double()
    found = []
    for op in (torch.ops.mmga.insert_candidates, reference.insert_candidates):
        lists = ops.ExactLists(torch.full((40,), 7.0, dtype=torch.float64), 5)
        lists.add_self(torch.arange(40))
        state = lists._index, lists._distance, lists._counts, lists.maxima
        op(*state, pairs, distances, lists.limits, 10, 10, True, 5)
        used = torch.arange(lists._index.shape[1]) < lists._counts[:, None]
        state[0].masked_fill_(~used, -1)
        state[1].masked_fill_(~used, -1)
        found.append(state)
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
    assert int(found[0][2].max()) > 5
    if KERNEL:
        with pytest.raises(RuntimeError, match="is of no item"):
            torch.ops.mmga.insert_candidates(
                *found[0], pairs, distances, lists.limits, 30, 10, True, 5
            )


def test_opcheck():
    arguments = (torch.rand(3, 9), *(torch.rand(n) for n in (3, 9)), 1)
    arguments += (*(torch.rand(n) for n in (3, 9) * 4), 0, 3, True)
    torch.library.opcheck(
        torch.ops.mmga.filter_candidates.default,
        arguments,
        test_utils=("test_schema", "test_faketensor"),
    )
    lists = ops.ExactLists(torch.ones(12, dtype=torch.float64), 2)
    pairs = torch.tensor([[0, 1], [2, 4]], dtype=torch.int32)
    torch.library.opcheck(
        torch.ops.mmga.insert_candidates.default,
        (
            lists._index,
            lists._distance,
            lists._counts,
            lists.maxima,
            pairs,
            torch.rand(2, dtype=torch.float64),
            lists.limits,
            0,
            3,
            True,
            2,
        ),
        test_utils=("test_schema", "test_faketensor"),
    )


def test_directions_are_taken_where_they_pay(monkeypatch):
    monkeypatch.setattr(search_plan, "_SMALL", 1e8)
    monkeypatch.setattr(planner, "multiplies_int8", lambda: False)
    monkeypatch.setattr(planner, "_FIT_SHARE", 1.0)
    items = VectorSet([decaying(4000, 512).rows], "cosine")
    chosen = cheapest_tiles(items, items, 6)
    assert chosen is not None
    again = cheapest_tiles(items, items, 6)
    assert torch.equal(chosen.basis, again.basis)
    few = certified_neighbours(items, 6, tiles=chosen)
    assert torch.equal(few.index, certified_neighbours(items, 6).index)
    flat = torch.randn(4000, 512, generator=torch.Generator().manual_seed(0))
    assert cheapest_tiles(*[VectorSet([ShardedMatrix([flat])], "cosine")] * 2, 6) is None
    # Persons that stand apart from each other, in every direction: 8 bits find them.
    persons = torch.nn.functional.normalize(flat).repeat_interleave(5, 0)[:9000]
    noise = torch.randn(9000, 512, generator=torch.Generator().manual_seed(1))
    items = VectorSet([ShardedMatrix([persons + 0.02 * noise])], "cosine")
    monkeypatch.setattr(planner, "multiplies_int8", lambda: True)
    tiles = cheapest_tiles(items, items, 5)
    assert isinstance(tiles, approximation.Int8) and str(tiles) == "8-bit features"
    assert cheapest_tiles(items, items, 5, kept=10 * 9000**2) is None
    found = certified_neighbours(items, 5, tiles=tiles)
    assert torch.equal(found.index, certified_neighbours(items, 5).index)


def test_re_ranking_is_the_same_through_directions(monkeypatch):
    query, gallery = decaying(200, 256, persons=60), decaying(2000, 256, 1, persons=60)
    plain = mmga.evaluate(query, gallery, rerank=mmga.KReciprocal())
    asked = []

    def directions(items, columns, k, kept, farthest):
        asked.append(k)
        return approximation.Projection.of_sample(items.block(0, 512), 32)

    monkeypatch.setattr(knn, "cheapest_tiles", directions)
    few = mmga.evaluate(query, gallery, rerank=mmga.KReciprocal())
    assert asked == [21]
    np.testing.assert_allclose(
        few.reranked.per_query.average_precision,
        plain.reranked.per_query.average_precision,
        atol=1e-9,
    )
    assert few.reranked.mAP == pytest.approx(plain.reranked.mAP, abs=1e-12)


def test_clusters_from_certified_neighbours():
    features = decaying(600, 64, persons=30).features
    plain = mmga.jaccard_distance(features, exact="float32").to_dense()
    certain = mmga.jaccard_distance(features, exact="certified").to_dense()
    torch.testing.assert_close(certain, plain, atol=1e-5, rtol=0)


@pytest.mark.parametrize("tiles", ["features", "fitted", "bytes"])
@pytest.mark.parametrize("exponent", [-45, -52, -58, -61, -70, -80, -90, -110, -130, -141])
@pytest.mark.parametrize("longest", [1, 2.0**-45, 2.0**48])
@pytest.mark.parametrize("few", ["long", "short"])
def test_short_rows_among_others_have_the_order_of_float64(
    tiles, exponent, longest, few, monkeypatch
):
    g = torch.Generator().manual_seed(exponent)
    x = torch.randn(500, 64, generator=g)
    if few == "short":  # which are about as far from all others
        x[:] = torch.stack([x[0, torch.randperm(64, generator=g)] for _ in x])
    many = slice(8, None) if few == "long" else slice(8)
    x *= longest / 16
    x[many] = (x[many].double() * (2.0**exponent * 16 / longest)).float()
    items = VectorSet([ShardedMatrix([x])], "euclidean")
    assert exact_order(items, "certified") == "certified"
    chosen = None
    if tiles == "bytes":
        chosen = bytes_of(items)
    elif tiles == "fitted":
        chosen = some_subspace("fitted", 64, 12, 0, items.block(0, 500))
    monkeypatch.setattr(searching, "TILE", 64)
    patch_tiles_of_bytes(monkeypatch, 64)
    found = lists_of(items, 5, chosen)
    index, distance, maxima = brute_force(items, 5)
    assert torch.equal(found.index, index)
    assert torch.equal(found.distances, distance.float())
    assert torch.equal(found.maxima, maxima.float())


def test_what_cannot_be_certified_is_said():
    with pytest.raises(UserError, match="exact: expected certified or float32, found 'no'"):
        mmga.jaccard_distance(torch.rand(20, 8), exact="no")


def test_a_tile_of_keys_needs_no_terms():
    tile = Tile.of_keys(torch.tensor([[0.1, 0.5, 0.9]]))
    bound = ops.Bound(*(torch.zeros(n, dtype=torch.float64) for n in (1, 3, 1, 3)))
    endless = torch.full((3,), torch.inf, dtype=torch.float64)
    near = torch.tensor([0.2], dtype=torch.float64), -endless
    far = torch.tensor([0.8], dtype=torch.float64), endless
    pairs = ops.filter_candidates(tile, bound, near, far, first_item=0, symmetric=False)
    assert pairs.tolist() == [[0, 0], [0, 2]]


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("same", [True, False])
def test_duplicates_are_at_distance_zero(metric, same):
    g = torch.Generator().manual_seed(0)
    rows = torch.randn(300, 65, generator=g) * 10 ** torch.rand(300, 1, generator=g)
    gallery = torch.cat([rows, rows])
    distances, index = mmga.nearest(gallery if same else rows, gallery, 2, metric)
    assert not distances.any()
    place = torch.arange(300)
    assert torch.equal(index[:300], torch.stack([place, place + 300], 1))


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_near_duplicates_among_nearest_items_keep_their_order(metric):
    generator = np.random.default_rng(0)
    base = 10 * generator.standard_normal(64)
    near, query = (base + 1e-4 * generator.standard_normal((n, 64)) for n in (12, 3))
    gallery = np.concatenate([near, 10 * generator.standard_normal((200, 64))]).astype(np.float32)
    query = query.astype(np.float32)
    distances, index = mmga.nearest(query, gallery, 12, metric)
    wide = [side.astype(np.longdouble) for side in (query, gallery)]
    if metric == "cosine":
        wide = [side / np.sqrt((side * side).sum(1, keepdims=True)) for side in wide]
    squared = ((wide[0][:, None] - wide[1][None]) ** 2).sum(-1)
    wanted = np.sqrt(squared) if metric == "euclidean" else squared / 2
    assert index.tolist() == np.argsort(wanted, axis=1)[:, :12].tolist()
    found = np.take_along_axis(wanted, index, 1).astype(float)
    assert distances == pytest.approx(found, rel=1e-4)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_a_set_and_its_copy_have_the_same_neighbours(metric):
    draw = np.random.default_rng(1)
    x = draw.standard_normal((150, 64)).astype(np.float32)
    for to, of in draw.integers(0, 150, (40, 2)):
        x[to] = x[of]
    for k in (1, 3):
        found, again = mmga.nearest(x, x, k, metric), mmga.nearest(x, x.copy(), k, metric)
        np.testing.assert_array_equal(found[1], again[1])
        np.testing.assert_array_equal(found[0], again[0])
    first = [int(np.flatnonzero((x == row).all(1))[0]) for row in x]
    assert mmga.nearest(x, x, 1, metric)[1][:, 0].tolist() == first


@pytest.mark.skipif(not KERNEL, reason="needs the kernels")
@pytest.mark.parametrize("item", [-1, 4])
def test_candidates_that_are_no_items_are_refused(item):
    candidates = torch.zeros(1, 3, 3, dtype=torch.int32)
    candidates[0, 1, 0] = item
    features, term = torch.ones(4, 8), torch.ones(4, dtype=torch.float64)
    side = ops.PlacedVectors(features, None, None, None, term)
    lists = torch.zeros(1, dtype=torch.int64)
    counts = torch.tensor([2], dtype=torch.int32)
    with pytest.raises(RuntimeError, match=f"candidates: expected 0 to 3, found {item}"):
        torch.ops.mmga.settle_candidates(
            candidates, counts, lists, lists, None, *side, *side, 1, 1, False, False
        )


@pytest.mark.parametrize("shuffled", [True, False])
@pytest.mark.parametrize("metric", [1, 2])
@pytest.mark.parametrize("most", [3, 140])  # long lists are settled by parts of the columns
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int8])
def test_lists_of_any_length_are_settled_as_by_the_reference(dtype, most, metric, shuffled):
    lists, items, width, k = 260, 400, 600, 3
    g = torch.Generator().manual_seed(most)
    x = torch.randint(-3, 4, (items, width), generator=g).to(dtype)
    x[7] = x[300]  # the same distance from all
    scale = torch.rand(items, generator=g) + 0.5 if dtype == torch.int8 else None
    norms = reference.squared_norms(x.float() * (1 if scale is None else scale[:, None]))
    side = ops.PlacedVectors(x, None, None, scale, norms.sqrt() if metric == 1 else norms)
    counts = torch.randint(k, most + 1, (lists,), generator=g, dtype=torch.int32)
    candidates = torch.zeros(lists, most + 1, 3, dtype=torch.int32)
    for number, count in enumerate(counts.tolist()):
        some = torch.randperm(items, generator=g)[:count]
        candidates[number, :count, 0] = (some if shuffled else some.sort().values).int()
    chosen = torch.randint(items, (lists,), generator=g)
    order = torch.randperm(items, generator=g) if shuffled else None
    numbers = torch.randperm(lists, generator=g)
    given = candidates, counts, numbers, chosen, order, *side, *side, metric, k
    for own, farthest in ((False, False), (True, False), (False, True)):
        found = torch.ops.mmga.settle_candidates(*given, own, farthest)
        expected = reference.settle_candidates(*given, own, farthest)
        assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_every_float16_is_read_exactly():
    """Subnormal ones, too, at every place of a row."""
    every = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.float16)
    every = every[every.isfinite()]
    width = 31
    x = torch.ones(-(-len(every) // width) + 1, width, dtype=torch.float16)
    x[1:].view(-1)[: len(every)] = every
    count = len(x)
    side = ops.PlacedVectors(x, None, None, None, reference.squared_norms(x))
    candidates = torch.zeros(1, count + 1, 3, dtype=torch.int32)
    candidates[0, :count, 0] = torch.arange(count)
    zero = torch.zeros(1, dtype=torch.int64)
    counts = torch.tensor([count], dtype=torch.int32)
    given = candidates, counts, zero, zero, None, *side, *side, 2, count, False, False
    found = torch.ops.mmga.settle_candidates(*given)
    assert all(map(torch.equal, found, reference.settle_candidates(*given)))
    assert found[1].unique().numel() == count


@pytest.mark.parametrize("lists", [0, 1, 7, 70_000])
def test_candidates_that_are_surely_within_a_limit_are_counted(lists):
    generator = torch.Generator().manual_seed(lists)
    candidates = torch.zeros(lists, 5, 3, dtype=torch.int32)
    upper = torch.randint(-2, 3, (lists, 5), generator=generator).float()
    candidates.view(torch.float32)[:, :, 2] = upper
    counts = torch.randint(-1, 6, (lists,), dtype=torch.int32, generator=generator)
    limits = torch.randint(-2, 3, (lists,), generator=generator).float()
    limits[::11] = torch.inf
    given = candidates, counts, limits
    expected = [
        sum(value <= limit for value in values[: max(0, count)])
        for values, count, limit in zip(
            upper.tolist(), counts.tolist(), limits.tolist(), strict=True
        )
    ]
    assert torch.ops.mmga.sure_candidates(*given).tolist() == expected
    assert reference.sure_candidates(*given).tolist() == expected


@settings(max_examples=40, derandomize=True, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 10_000),
    metric=st.sampled_from(["cosine", "euclidean"]),
    k=st.sampled_from([1, 4, 21]),
)
def test_the_reference_collects_what_the_kernel_does(kind, seed, metric, k):
    items = some_items(kind, seed, count=40, width=64, metric=metric)
    found = lists_of(items, k, bytes_of(items))
    with pytest.MonkeyPatch.context() as patch:
        for name in (
            "collect_candidates_",
            "settle_candidates",
            "sure_candidates",
            "nearest_of",
        ):
            patch.setattr(ops, f"_{name.upper().rstrip('_')}", getattr(reference, name))
        expected = lists_of(items, k, bytes_of(items))
        patch_tiles_of_bytes(patch, 16)
        mirrored = lists_of(items, k, bytes_of(items))
    for other in (expected, mirrored):
        assert torch.equal(found.index, other.index)
        assert torch.equal(found.distances, other.distances)
        assert torch.equal(found.maxima, other.maxima)


@pytest.mark.parametrize("count", [1, 2, 63, 64, 65, 129, 200, 257, 449, 700])
@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("k", [1, 20])
@pytest.mark.parametrize("random_order", [True, False])
def test_items_of_a_tile_that_meets_itself_meet_all_others_once(
    count, own, metric, k, random_order
):
    """All are equally far from each other, so that lists keep whom they meet."""
    first, slots = 5, max(k, count) + 2
    lists = ops.CandidateLists(count + first, k, slots, slots)
    rows = torch.full((count, 24), 0.25)
    int8 = approximation.Int8(float(reference.squared_norms(rows).max()) ** 0.5)
    side = one_look._Side.of(rows, reference.squared_norms(rows), metric, int8)
    items = torch.arange(first, first + count)
    place = ops.CandidatePlace(first, 0, True, count * random_order)
    side.collect(lists, side, metric, first, place, items if own else None)
    for farthest in (False, True):
        index, used = lists.listed(torch.arange(count + first), farthest=farthest)
        assert not used[:first].any()
        for item in items.tolist():
            met = index[item, used[item]].sort().values
            assert torch.equal(met.long(), items[items != item] if own else items)


@pytest.mark.parametrize("k", [1, 4, 21])
@pytest.mark.parametrize("random_order", [True, False])
@pytest.mark.parametrize("kind", ["flat", "decaying", "alike"])
def test_sets_of_many_blocks_have_the_neighbours_of_float64(kind, random_order, k, monkeypatch):
    find, again = one_look.Look._find_symmetric, []

    def found_again(*given):
        again.append(find(*given))
        return again[0]

    monkeypatch.setattr(one_look.Look, "_find_symmetric", found_again)
    count = 2200 if kind == "flat" else 500
    if not random_order:
        order = one_look._Order.numbered(count, torch.device("cpu"))
        monkeypatch.setattr(one_look._Order, "of", lambda items: order)
    g = torch.Generator().manual_seed(k)
    rows = torch.randn(50 if kind == "alike" else count, 40, generator=g)
    sides = [ShardedMatrix([rows])] * (count // len(rows))
    items = VectorSet([decaying(count, 40).rows] if kind == "decaying" else sides, "cosine")
    found, (index, distances, farthest) = lists_of(items, k, bytes_of(items)), brute_force(items, k)
    assert torch.equal(found.index, index)
    assert torch.equal(found.distances, distances.float())
    assert torch.equal(found.maxima, farthest.float())
    if kind != "alike":  # of whom no list has room for all
        assert len(again[0]) <= 3 * random_order


@pytest.mark.parametrize(("height", "width"), [(0, 0), (0, 3), (3, 0)])
@pytest.mark.parametrize("mirrored", [True, False])
def test_lists_that_meet_nobody_stay_as_they_are(height, width, mirrored):
    rows = torch.ones(8, 24)
    side = one_look._Side.of(
        rows, reference.squared_norms(rows), "cosine", approximation.Int8(24**0.5)
    )
    lists = ops.CandidateLists(8, 1, 6)
    place = ops.CandidatePlace(0, 0, False, 0)
    side.cut(slice(0, 4)).collect(lists, side.cut(slice(4, 8)), "cosine", 4, place, None)
    before = [values.clone() for values in lists._nearest]
    place = ops.CandidatePlace(0, 0, mirrored, 0)
    given = side.cut(slice(0, width)), "cosine", height, place, None
    side.cut(slice(0, height)).collect(lists, *given)
    assert all(map(torch.equal, lists._nearest[1:], before[1:]))
    assert before[1].tolist() == [4] * 4 + [0] * 4


@pytest.mark.parametrize("farthest", [True, False])
def test_a_set_of_one_has_itself_alone(farthest):
    items = VectorSet([ShardedMatrix([torch.ones(1, 8)])], "cosine")
    found = lists_of(items, 1, bytes_of(items), farthest)
    assert found.index.tolist() == [[0]] and found.distances.tolist() == [[0.0]]
    assert found.maxima.tolist() == [0.0] if farthest else found.maxima.isnan().all()


@pytest.mark.parametrize(
    "values",
    [
        [torch.inf],
        [0.0],
        [0.0, torch.inf],
        [0.0, 5e-324, 1e-323],
        [0.0, 5e-324, 1.0, 1e300, torch.inf],
        [1.0, 1.0 + 2**-52, 1.0 + 2**-51],
        list(range(200)),
        [2.0**-i for i in range(200)],
    ],
)
def test_the_nearest_are_ordered_as_by_the_reference(values):
    g = torch.Generator().manual_seed(0)
    for slots in (0, 1, 2, 31, 300):
        chosen = torch.randint(len(values), (7, slots), generator=g)
        distance = torch.tensor(values, dtype=torch.float64)[chosen]
        index = torch.rand(7, slots, generator=g).argsort(1).int()
        for k in {0, min(1, slots), slots // 2, slots}:
            found = torch.ops.mmga.nearest_of(index, distance, k)
            expected = reference.nearest_of(index, distance, k)
            assert all(map(torch.equal, found, expected))
