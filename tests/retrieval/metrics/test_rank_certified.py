"""Certified ranks against brute force in float64, on features made to be nearly tied."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from certified_cases import KINDS, decaying, nearly_tied, some_subspace
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mmga
from mmga.common.errors import UserError
from mmga.common.monitor import Monitor
from mmga.ops import certified as ops
from mmga.ops import reference
from mmga.ops._library import has_kernel
from mmga.retrieval.bounds import approximation as subspaces
from mmga.retrieval.bounds import planner
from mmga.retrieval.bounds import stages as cascades
from mmga.retrieval.bounds.approximation import Projection
from mmga.retrieval.bounds.stages import Stages
from mmga.retrieval.evaluate import evaluate, evaluate_distances
from mmga.retrieval.features import Features
from mmga.retrieval.features.vectors import VectorSet
from mmga.retrieval.metrics.rank_certified import CertifiedPass, plan
from mmga.retrieval.protocols.protocol import protocol_named
from mmga.retrieval.protocols.selection import Labels, select

CASES = settings(
    max_examples=150,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
)


@pytest.fixture(autouse=True)
def _kernels_are_active():
    if mmga.ops.backends()["cpu"].startswith("active"):
        assert has_kernel("count_certain", "CPU") and has_kernel("refine_pairs", "CPU")


def float64_keys(query, gallery, metric):
    """All keys, by the one order of float64 arithmetic."""
    x, y = query.features.float(), gallery.features.float()
    if metric == "euclidean":
        return reference.interleaved_sum((x.double()[:, None] - y.double()[None]).square())
    s = reference.interleaved_sum(x.double()[:, None] * y.double()[None])
    own, other = reference.squared_norms(x)[:, None], reference.squared_norms(y)
    norms = torch.from_numpy(np.sqrt(own.numpy()) * np.sqrt(other.numpy()))
    return torch.where(norms > 0, 1 - s / norms, 1.0)


def integers(scores):
    return [scores.first_rank.tolist(), scores.num_matches.tolist(), scores.tied.tolist()]


def figures(scores):
    return [scores.average_precision.tolist(), scores.inverse_negative_penalty.tolist()]


def problem(query, gallery, metric, protocol="market1501"):
    selection = select(protocol_named(protocol), Labels.of(query, gallery))
    rows = (selection.queries, selection.gallery)
    sides = [
        VectorSet([side.rows], metric, [torch.from_numpy(chosen)])
        for side, chosen in zip((query, gallery), rows, strict=True)
    ]
    return *sides, selection


def ranked(query, gallery, metric, cascade, protocol="market1501", **options):
    sides = problem(query, gallery, metric, protocol)
    return CertifiedPass(*sides, cascade, **options).rank(Monitor())


def bytes_of(*sides):
    return subspaces.Int8(max(float(side.features.norm(dim=1).max()) for side in sides))


@pytest.mark.program_settings
@CASES
@given(
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 10_000),
    metric=st.sampled_from(["cosine", "euclidean"]),
    protocol=st.sampled_from(["market1501", "no-camera", "other-cameras"]),
    directions=st.sampled_from(["none", "fitted", "random", "skewed", "bytes"]),
    dimensions=st.sampled_from([1, 4, 7, 12]),
    tile=st.sampled_from([(1152, 2048), (1, 1), (4, 17), (64, 64)]),
    block=st.sampled_from([256, 8]),
)
def test_ranks_are_those_of_float64(
    kind, seed, metric, protocol, directions, dimensions, tile, block
):
    # Of 64 dimensions, four are mixed on the way to 8 bits.
    query, gallery = nearly_tied(kind, seed, width=64 if directions == "bytes" else 24)
    try:
        expected = evaluate_distances(
            float64_keys(query, gallery, metric), query, gallery, protocol
        ).per_query
    except UserError:  # no query has a match
        return
    cascade = Stages()
    if directions == "bytes":
        cascade = Stages(bytes_of(query, gallery))
    elif directions != "none":
        cascade = Stages(some_subspace(directions, 24, dimensions, seed, gallery.features))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subspaces, "BLOCK", block)
        patch.setattr(subspaces, "FINE_BLOCK", block)
        scores = ranked(query, gallery, metric, cascade, protocol, tile=tile)
    assert integers(scores) == integers(expected)
    np.testing.assert_array_equal(figures(scores), figures(expected))
    assert cascade.stages[0].pairs > 0
    assert cascade.stages[-1].undecided == 0


@pytest.mark.parametrize("planted", ["radius", "rounding", "integers", "bytes"])
def test_a_bound_that_is_too_small_is_caught(monkeypatch, planted):
    """The cases above tell a wrong bound from a right one."""
    if planted == "radius":
        original = Projection.approximate

        def approximate(self, *given):
            whole = original(self, *given)
            return dataclasses.replace(whole, radius=whole.radius * 0.3)

        monkeypatch.setattr(Projection, "approximate", approximate)
    elif planted == "bytes":
        of_bytes = subspaces.Int8.of

        def too_sure(self, *given):
            whole = of_bytes(self, *given)
            return dataclasses.replace(whole, radius=whole.radius * 0.1, slack=whole.slack * 0.1)

        monkeypatch.setattr(subspaces.Int8, "of", too_sure)
    elif planted == "integers":
        exactly = torch.zeros(1, dtype=torch.float64)

        def int16(rows, norms, metric):
            nothing = exactly.expand(len(rows)).contiguous()
            return subspaces.Approximation(ops.int16_rows(rows, norms)[0], nothing, nothing)

        monkeypatch.setattr(cascades, "int16", int16)
    else:
        monkeypatch.setattr(subspaces, "gamma", lambda roundings: 0.0)
        monkeypatch.setattr(subspaces, "_OTHER_ROUNDINGS", 0)
        monkeypatch.setattr(ops, "thresholds", lambda start, key, slack: (key.float(), key.float()))
    wrong = 0
    for seed in range(1, 40):
        kind = "flat" if planted in ("radius", "bytes") else "last bits"
        query, gallery = nearly_tied(kind, seed)
        expected = evaluate_distances(
            float64_keys(query, gallery, "cosine"), query, gallery
        ).per_query
        tile = bytes_of(query, gallery) if planted == "bytes" else None
        if planted in ("radius", "integers"):
            tile = Projection.of_sample(gallery.features, 12)
        cascade = Stages(tile)
        wrong += figures(ranked(query, gallery, "cosine", cascade)) != figures(expected)
    assert wrong > 0


@pytest.mark.parametrize("seed", range(20))
def test_parallel_features_of_different_length_tie(seed):
    """Keys need square roots that are correctly rounded: torch's are not in builds with MKL."""
    draw = np.random.default_rng(seed)
    base = draw.standard_normal((6, 16)).astype(np.float32)
    x = base[draw.integers(0, 6, 60)] * draw.integers(1, 8, (60, 1)).astype(np.float32)
    query = Features(x[:10], draw.integers(0, 5, 10))
    gallery = Features(x[10:], draw.integers(0, 5, 50))
    keys = float64_keys(query, gallery, "cosine")
    expected = evaluate_distances(keys, query, gallery, "no-camera")
    found = evaluate(query, gallery, protocol="no-camera", exact="certified")
    assert integers(found.per_query) == integers(expected.per_query)
    np.testing.assert_array_equal(figures(found.per_query), figures(expected.per_query))


def test_threads_and_shards_change_nothing():
    query, gallery = nearly_tied("last bits", 8, queries=40, items=700, width=64, persons=9)
    expected = figures(evaluate(query, gallery, exact="certified").per_query)
    third = len(gallery) // 3
    cut = [gallery.features[:third], gallery.features[third:]]
    shards = Features(cut, gallery.pids, gallery.camids)
    threads = torch.get_num_threads()
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        try:
            assert figures(evaluate(query, shards, exact="certified").per_query) == expected
        finally:
            torch.set_num_threads(threads)


def test_a_query_with_many_matches():
    query, gallery = nearly_tied("rotated", 4, queries=5, items=500, width=40, persons=1)
    tiles = None, Projection.of_sample(gallery.features, 8), bytes_of(query, gallery)
    for cascade in map(Stages, tiles):
        expected = evaluate_distances(
            float64_keys(query, gallery, "euclidean"), query, gallery, "other-cameras"
        ).per_query
        scores = ranked(query, gallery, "euclidean", cascade, "other-cameras")
        assert scores.num_matches.max() > 128
        assert integers(scores) == integers(expected)


def test_the_condition_of_exclude_holds():
    query, gallery = nearly_tied("grid", 5, queries=20, items=300)
    options = {"exclude": "camid == query.camid + 1", "protocol": "no-camera"}
    keys = float64_keys(query, gallery, "cosine")
    expected = evaluate_distances(keys, query, gallery, **options)
    report = evaluate(query, gallery, exact="certified", **options)
    assert figures(report.per_query) == figures(expected.per_query)


@pytest.mark.program_settings
def test_half_precision_is_widened():
    query, gallery = nearly_tied("flat", 2, items=200)
    half = Features(gallery.features.half(), gallery.pids, gallery.camids)
    widened = Features(half.features.float(), gallery.pids, gallery.camids)
    assert figures(evaluate(query, half).per_query) == figures(evaluate(query, widened).per_query)


def planned(monkeypatch, query, gallery, multiplies_int8):
    """The plan with and without 8-bit products."""
    with monkeypatch.context() as patch:
        patch.setattr(planner, "multiplies_int8", lambda: multiplies_int8)
        patch.setattr(planner, "int8_rate", lambda width: 4.0)
        return plan(*problem(query, gallery, "cosine"))


def test_the_plan_takes_few_directions_where_they_pay(monkeypatch):
    query, gallery = decaying(1000, 512), decaying(20000, 512, 1)
    cascade = planned(monkeypatch, query, gallery, False)
    assert isinstance(cascade.tiles, Projection)
    plain, few = (ranked(query, gallery, "cosine", one) for one in (Stages(), cascade))
    assert figures(few) == figures(plain)
    assert cascade.stages[0].undecided < 0.5 * cascade.stages[0].pairs
    flat = torch.randn(21000, 512, generator=torch.Generator().manual_seed(0))
    query = Features(flat[:1000], query.pids, query.camids)
    gallery = Features(flat[1000:], gallery.pids, gallery.camids)
    assert planned(monkeypatch, query, gallery, False).tiles is None


def test_the_plan_takes_bytes_where_they_pay(monkeypatch):
    g = torch.Generator().manual_seed(0)
    names, count = decaying(1000, 8), 20000
    persons = torch.randn(2000, 512, generator=g)
    sides = []
    for pids, camids in (
        (names.pids, names.camids),
        (np.arange(count) % 2000, np.arange(count) % 3),
    ):
        x = persons[torch.from_numpy(pids)] + torch.randn(len(pids), 512, generator=g)
        sides.append(Features(x, pids, camids))
    query, gallery = sides
    assert planned(monkeypatch, query, gallery, False).tiles is None
    cascade = planned(monkeypatch, query, gallery, True)
    assert isinstance(cascade.tiles, subspaces.Int8)
    plain, few = (ranked(query, gallery, "cosine", one) for one in (Stages(), cascade))
    assert figures(few) == figures(plain)
    assert [stage.precision for stage in cascade.stages] == ["int8", "int16", "float64"]
    assert cascade.stages[0].undecided < 0.01 * cascade.stages[0].pairs
    # Where every match lies among the others, 8 bits decide nothing.
    lost = Features(torch.randn(count, 512, generator=g), gallery.pids, gallery.camids)
    assert planned(monkeypatch, query, lost, True).tiles is None


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_bounds_hold_what_bytes_leave_out(metric):
    lengths = torch.logspace(-1, 1, 300)[:, None]
    x = torch.nn.functional.normalize(decaying(300, 200).features) * lengths
    x[0], x[1] = 0, torch.eye(200)[3]
    norms = reference.squared_norms(x)
    found = subspaces.Int8(float(norms.max()) ** 0.5).of(x, norms, metric)
    inner = subspaces.tile_products(found, found, torch.empty(300, 300)).double()
    bound = subspaces.bound_between(found, found, metric)
    width = bound.row_radius[:, None] * bound.column_radius
    width = width + bound.row_slack[:, None] + bound.column_slack
    wide, factor = x.double(), 2 if metric == "euclidean" else 1
    if metric == "cosine":
        wide = wide / norms.sqrt()[:, None].clamp_min(1e-300)
    error = factor * (wide @ wide.T - inner).abs()
    assert (error <= width).all() and error.max() > 0.02 * width.max()


def test_radii_hold_what_bytes_leave_out_of_short_rows():
    lengths = 2.0 ** torch.linspace(-150, 0, 151, dtype=torch.float64)[:, None]
    x = (torch.randn(151, 64, generator=torch.Generator().manual_seed(0)) * lengths).float()
    found = subspaces.Int8(9.0).of(x, reference.squared_norms(x), "euclidean")
    count = reference.mixed_entries(64)
    rest = reference.mixed(x.double()) / count**0.5 - found.rows.double() * found.unit[:, None]
    assert (rest.norm(dim=1) <= found.radius).all()
    assert (found.radius <= 1.01 * x.double().norm(dim=1)).all() and (found.unit[:90] == 0).all()


def test_radii_hold_what_coordinates_leave_out():
    gallery = decaying(500, 256).features
    subspace = Projection.of_sample(gallery[:200], 48)
    norms = reference.squared_norms(gallery)
    for metric in ("cosine", "euclidean"):
        x = gallery.double() / (norms.sqrt()[:, None] if metric == "cosine" else 1)
        for k in (16, 48):
            few = subspace.first(k)
            coordinates = few.coordinates(gallery, norms, metric)
            found = few.approximate(coordinates, norms, metric)
            rest = x - found.rows.double() @ few.basis.double().T
            assert (rest.norm(dim=1) <= found.radius).all()
            assert (found.radius**2 <= rest.norm(dim=1) ** 2 + 1e-3 * x.norm(dim=1) ** 2).all()
            # The bound covers every pair, and is not a trivial one.
            bound = subspaces.bound_between(found, found, metric)
            width = bound.row_radius[:, None] * bound.column_radius
            width = width + bound.row_slack[:, None] + bound.column_slack
            exact, near = x @ x.T, (found.rows @ found.rows.T).double()
            factor = 2 if metric == "euclidean" else 1
            error = factor * (exact - near).abs()
            assert (error <= width).all() and error.max() > 0.02 * width.max()


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("length", [2.0**-19, 1.0, 2.0**19])
def test_bounds_hold_what_integers_leave_out(metric, length):
    x = torch.nn.functional.normalize(decaying(300, 200).features) * length
    x[0], x[1] = 0, torch.eye(200)[3] * length  # the largest integer is below the length
    norms = reference.squared_norms(x)
    found = subspaces.int16(x, norms, metric)
    bound = subspaces.bound_between(found, found, metric)
    width = bound.row_radius[:, None] * bound.column_radius
    width = width + bound.row_slack[:, None] + bound.column_slack
    terms = norms.sqrt() if metric == "cosine" else norms
    every = torch.arange(300)
    pairs = every.repeat_interleave(300), every.repeat(300)
    number = ("given", "cosine", "euclidean").index(metric)
    keys = [
        reference.pair_keys(rows, rows, terms, terms, *pairs, number) for rows in (x, found.rows)
    ]
    error = (keys[0] - keys[1]).abs().view(300, 300)
    assert (error <= width).all() and error.max() > 0.02 * width.max()
    assert width.max() < 1e-3 * (1 if metric == "cosine" else 2 * length**2)


def test_the_report_tells_what_settled_the_pairs():
    query, gallery = nearly_tied("flat", 2)
    report = evaluate(query, gallery)
    values = report.as_dict()
    assert values["exact"] == "certified"
    first, last = values["certified"]["levels"]
    assert first["pairs"] == last["undecided"] + 6 * len(
        select(protocol_named("market1501"), Labels.of(query, gallery)).gallery
    )
    assert values["certified"]["rescued"] == last["pairs"] == first["undecided"]
    assert "pairs by features in float32" in report.table(verbose=True)
    cascade = Stages(Projection.of_sample(gallery.features, 12))
    ranked(query, gallery, "cosine", cascade)
    assert [stage.precision for stage in cascade.stages] == ["float32", "int16", "float64"]
    assert [level.dimensions for level in cascade.stages] == [12, None, None]
    for one, after in itertools.pairwise(cascade.stages):
        assert one.undecided == after.pairs
    assert cascade.stages[1].undecided < 0.1 * cascade.stages[1].pairs
    assert evaluate(query, gallery, exact="float32").as_dict()["exact"] == "float32"
    given = evaluate_distances(float64_keys(query, gallery, "cosine"), query, gallery)
    assert given.as_dict()["exact"] == "given"


def test_what_cannot_be_certified_is_said():
    query, gallery = nearly_tied("flat", 2)
    with pytest.raises(UserError, match="exact: certified ranks are not made together with veri"):
        evaluate(query, gallery, exact="certified", verification=True)
    assert evaluate(query, gallery, verification=True).exact == "float32"
    with pytest.raises(UserError, match="not made of galleries that are drawn"):
        evaluate(query, gallery, exact="certified", protocol="cuhk03-single-shot")
    with pytest.raises(UserError, match="exact: expected certified or float32, found 'yes'"):
        evaluate(query, gallery, exact="yes")


def test_tiles_shrink_to_the_memory_given():
    query, gallery = nearly_tied("grid", 1, queries=300, items=3000)
    expected = figures(evaluate(query, gallery).per_query)
    assert figures(evaluate(query, gallery, memory="2M").per_query) == expected
    with pytest.raises(UserError, match="cannot hold one tile of 38 x 64 and its features"):
        evaluate(query, gallery, memory="20K")


def test_near_duplicates_are_ranked_by_their_squared_differences():
    generator = np.random.default_rng(3)
    centres = generator.standard_normal((40, 96)) * 4
    ids = np.repeat(np.arange(40), 12)
    # Differences near the last bits of float32: |q|^2 + |g|^2 - 2qg has no digit of them.
    x = (centres[ids // 4 * 4] * (1 + 3e-7 * generator.standard_normal((480, 96)))).astype(
        np.float32
    )
    cameras = np.tile(np.arange(12), 40)
    query = mmga.Features(x[::6], ids[::6], cameras[::6])
    gallery = mmga.Features(x, ids, cameras)
    report = mmga.evaluate(query, gallery, metric="euclidean", exact="certified")
    wide = torch.from_numpy(x).double()
    distances = torch.stack([((row - wide) ** 2).sum(1) for row in wide[::6]])
    expected = mmga.evaluate_distances(distances, query, gallery)
    assert 0.1 < expected.mAP < 0.9
    assert report.mAP == expected.mAP and list(report.cmc) == list(expected.cmc)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("kind", ["last bits", "rotated"])
def test_near_ties_have_one_order_at_any_scale(metric, kind):
    query, gallery = nearly_tied(kind, 4)
    rule = mmga.KReciprocal(5, 2)
    expected = evaluate(query, gallery, metric=metric, rerank=rule)
    for power in (-38, -25, 21, 30, 46 if metric == "cosine" else 30):
        moved = [
            Features(torch.ldexp(one.features, torch.tensor(power)), one.pids, one.camids)
            for one in (query, gallery)
        ]
        report = evaluate(*moved, metric=metric, rerank=rule)
        assert report.exact == "certified"
        assert figures(report.per_query) == figures(expected.per_query)
        assert figures(report.reranked.per_query) == figures(expected.reranked.per_query)
