"""Part features against their definition in float64, whatever the tiles, threads and files."""

import json

import naive_evaluation as naive
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from mmga import eval as command
from mmga.common.errors import UserError
from mmga.ops import distance, reference
from mmga.ops.distance import part_keys
from mmga.retrieval.evaluate import evaluate
from mmga.retrieval.evaluator import Evaluator
from mmga.retrieval.features import Features, load_features, save_both
from mmga.retrieval.features.vectors import VectorSet
from mmga.retrieval.protocols.preflight import check
from mmga.retrieval.reranking.settings import KReciprocal
from mmga.retrieval.tiles import parts as module

RULES = ("market1501", "market1501-matlab", "no-camera", "other-cameras")


def distances_written_out(query, gallery, metric):
    """The definition in float64 loops; infinite where no part is seen on both sides."""
    found = np.full((len(query), len(gallery)), np.inf)
    q, g = query.parts.double().numpy(), gallery.parts.double().numpy()
    v, w = query.visibility.double().numpy(), gallery.visibility.double().numpy()
    for row in range(len(query)):
        for item in range(len(gallery)):
            total = weights = 0.0
            for part in range(q.shape[1]):
                weight = v[row, part] * w[item, part]
                if metric == "euclidean":
                    d = np.sqrt(((q[row, part] - g[item, part]) ** 2).sum())
                else:
                    lengths = np.linalg.norm(q[row, part]) * np.linalg.norm(g[item, part])
                    d = 1 - (q[row, part] @ g[item, part] / lengths if lengths else 0)
                total += weight * d
                weights += weight
            if weights:
                found[row, item] = total / weights
    return found


def sides(data, count, parts=3):
    """A side whose distances are exact in float32: places on a line, weights of 0, 1/2 and 1."""

    def several(values, size):
        return np.array(data.draw(st.lists(st.sampled_from(values), min_size=size, max_size=size)))

    places = several([-2, -1, 0, 1, 3], count * parts).reshape(count, parts, 1)
    # Weights are such that their sums are powers of two, or the pair sees nothing in common.
    seen = np.array([[1, 0, 0], [0.5, 0.5, 0], [0, 1, 0], [0, 0, 1], [0, 0.5, 0.5], [0, 0, 0]])
    visibility = seen[several(range(len(seen)), count)]
    return Features(
        None,
        several([-1, 0, 1, 2], count),
        several([0, 1], count),
        parts=places.astype(data.draw(st.sampled_from([np.float16, np.float32]))),
        visibility=visibility,
    )


@pytest.mark.program_settings
@pytest.mark.parametrize("rule", RULES)
@settings(
    max_examples=40,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
)
@given(data=st.data())
def test_equals_the_definition(rule, data):
    query, gallery = (
        sides(data, data.draw(st.integers(1, 5))),
        sides(data, data.draw(st.integers(1, 9))),
    )
    matrix = distances_written_out(query, gallery, "euclidean")
    labels = (query.pids, gallery.pids, query.camids, gallery.camids)
    assume((query.pids != -1).any() and (gallery.pids != -1).any())
    assume(naive.has_valid_query(matrix, *labels, rule))
    expected = naive.evaluate(matrix, *labels, rule)
    report = evaluate(query, gallery, metric="euclidean", protocol=rule)
    assert report.mAP == pytest.approx(expected["mAP"], abs=1e-12)
    assert report.mINP == pytest.approx(expected["mINP"], abs=1e-12)
    assert report.cmc.tolist() == pytest.approx(expected["cmc"], abs=1e-12)
    ranked = matrix[query.pids != -1][:, gallery.pids != -1]
    assert report.extra["parts"]["pairs_without_common_part"] == np.isinf(ranked).sum()


def made(count, people=15, parts=5, width=24, seed=0, given_visibility=False, whole=False):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(people, parts, width, generator=torch.Generator().manual_seed(9))
    pids = torch.randint(0 if whole else -1, people, (count,), generator=generator)
    values = centres[pids.clamp_min(0)] + 2 * torch.randn(count, parts, width, generator=generator)
    values[::9] = values[0].clone()  # ties
    visibility = torch.rand(count, parts, generator=generator)
    visibility = (visibility > 0.6).float() if given_visibility else visibility.clamp_max(0.9)
    visibility[::9] = visibility[0].clone()
    camids = torch.randint(0, 3, (count,), generator=generator)
    return Features(None, pids, camids, parts=values, visibility=visibility)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("given_visibility", [False, True], ids=["weights", "masks"])
def test_distances_of_tiles(metric, given_visibility):
    query, gallery = (
        made(count, seed=count, given_visibility=given_visibility) for count in (70, 230)
    )
    matrix = distances_written_out(query, gallery, metric)
    rows = np.arange(69, -1, -2), np.arange(3, 230)
    sides, seen_parts = [], []
    for side, chosen in zip((query, gallery), rows, strict=True):
        norms = distance.squared_norms(side.parts.flatten(0, 1)).reshape(len(side), 5)
        at = torch.from_numpy(chosen)
        sides.append(VectorSet([side.rows], metric, [at], norms=norms[at]))
        seen_parts.append(side.visibility[at])
    source = module.PartSource(*sides, tuple(seen_parts), tile=(64, 64))
    seen = torch.full((35, 227), torch.nan)
    for span, tile in source.tiles(0, 35):
        seen[span, tile.offset : tile.offset + tile.values.shape[1]] = tile.keys()
    # 24 products of size 2 to 5 and a root: float32 rounds the sum of squares (some 300) in 2e-5.
    assert np.allclose(seen.numpy(), matrix[rows[0]][:, rows[1]], rtol=1e-5, atol=2e-5)
    assert np.isinf(matrix).any() == given_visibility


def integers(report):
    scores = report.per_query
    return (
        scores.first_rank.tolist(),
        np.nan_to_num(scores.average_precision).tolist(),
        np.nan_to_num(scores.inverse_negative_penalty).tolist(),
        scores.tied.tolist(),
        report.extra,
    )


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_same_integers_for_any_tiles_threads_shards_and_memory(monkeypatch, metric):
    query, gallery = made(150, seed=1), made(500, seed=2)
    options = {"metric": metric, "verification": True}
    expected = integers(evaluate(query, gallery, **options))
    assert sum(expected[3]) > 0, "the case must hold ties"
    threads = torch.get_num_threads()
    for tile, limit, count in (((64, 64), 1 << 21, 1), ((128, 192), 400, 2), ((64, 704), 999, 1)):
        monkeypatch.setattr(module, "TILE", tile)
        monkeypatch.setattr("mmga.retrieval.metrics.rank.PAIR_LIMIT", limit)
        torch.set_num_threads(count)
        try:
            assert integers(evaluate(query, gallery, **options)) == expected
        finally:
            torch.set_num_threads(threads)
    pieces = [gallery.parts[:99], gallery.parts[99:100], gallery.parts[100:]]
    shards = Features(
        None, gallery.pids, gallery.camids, parts=pieces, visibility=gallery.visibility
    )
    assert integers(evaluate(query, shards, memory="3M", **options)) == expected
    with pytest.raises(UserError, match="its 5 parts; give at least"):
        evaluate(query, gallery, memory="100K")


def test_one_part_is_a_plain_feature():
    query, gallery = made(60, parts=1, seed=1), made(300, parts=1, seed=2)
    for one in (query, gallery):
        one.visibility.fill_(1)
    plain = [Features(side.parts[:, 0], side.pids, side.camids) for side in (query, gallery)]
    for rule in (*RULES, "cuhk03-single-shot", "viper", "multi-query"):
        found, wanted = (
            evaluate(*both, protocol=rule, metric="cosine") for both in ((query, gallery), plain)
        )
        # Equal numbers but for the rounding of keys, which ties of these features do not meet.
        assert found.mAP == pytest.approx(wanted.mAP, abs=1e-9)
        assert found.cmc == pytest.approx(wanted.cmc, abs=1e-9)
        assert found.excluded == wanted.excluded
        assert found.duplicates == wanted.duplicates
    both = evaluate(query, protocol="all-vs-all").mAP, evaluate(plain[0], protocol="all-vs-all").mAP
    assert both[0] == pytest.approx(both[1], abs=1e-9)


@pytest.mark.parametrize("pool", ["mean", "max"])
def test_multi_query_pools_part_by_part(pool):
    query, gallery = made(40, people=4, seed=1, given_visibility=True), made(200, people=4, seed=2)
    chosen = query.pids != -1
    values, seen = query.parts[chosen].double().numpy(), query.visibility[chosen].numpy()
    values = values / np.linalg.norm(values, axis=2, keepdims=True)
    pids, camids = query.pids[chosen], query.camids[chosen]
    groups = sorted(set(zip(pids.tolist(), camids.tolist(), strict=True)))
    pooled, visibility = np.zeros((len(groups), 5, 24)), np.zeros((len(groups), 5))
    for at, (pid, camid) in enumerate(groups):
        for part in range(5):
            mine = (pids == pid) & (camids == camid) & (seen[:, part] > 0)
            if mine.any():
                visibility[at, part] = 1
                images = values[mine, part]
                pooled[at, part] = images.mean(0) if pool == "mean" else images.max(0)
    one = Features(None, *np.array(groups).T, parts=pooled, visibility=visibility)
    expected = evaluate(one, gallery)
    found = evaluate(query, gallery, protocol="multi-query", pool=pool)
    assert found.mAP == pytest.approx(expected.mAP, abs=1e-6)
    assert found.num_valid_query == expected.num_valid_query


@pytest.mark.parametrize("metric", [1, 2])
def test_the_kernel_equals_the_reference(kernel, metric):
    op = kernel("part_keys")
    products = torch.randn(4, 7, 2200)[:, :, 30:2140]
    row, column = torch.rand(4, 9)[:, 1:8], torch.rand(4, 2200)[:, :2110]
    weights = (torch.rand(4, 7) > 0.5).float(), torch.rand(4, 2110).round()
    found, expected = torch.empty(7, 2110), torch.empty(7, 2110)
    part_keys(products, row, column, *weights, metric, found)
    reference.part_keys(products, row, column, *weights, metric, expected)
    assert torch.equal(found, expected)
    assert expected.isinf().any()
    assert not expected.isinf().all()
    if metric == 2:
        torch.library.opcheck(op.default, (products, row, column, *weights, metric, found))
    with pytest.raises(ValueError, match="no gradient"):
        part_keys(products.clone().requires_grad_(), row, column, *weights, metric, found)


@pytest.mark.parametrize("name", ["f.npz", "folder", "f.safetensors", "f.mat", "f.h5", "f.pt"])
def test_containers(tmp_path, name):
    pytest.importorskip({"f.mat": "scipy", "f.h5": "h5py"}.get(name, "numpy"))
    query, gallery = made(6, seed=1), made(9, seed=2)
    query.save(tmp_path / name)
    save_both(tmp_path / ("both-" + name), query, gallery)
    for found, wanted in (
        (load_features(tmp_path / name), query),
        (load_features(tmp_path / ("both-" + name), "gallery"), gallery),
    ):
        assert torch.equal(found.parts, wanted.parts)
        assert torch.equal(found.visibility, wanted.visibility)
        assert found.pids.tolist() == wanted.pids.tolist()


def test_command_doctor_and_report(tmp_path, capsys):
    query, gallery = (
        made(40, seed=1, given_visibility=True),
        made(200, seed=2, given_visibility=True),
    )
    query.save(tmp_path / "q.npz")
    gallery.save(tmp_path / "g.safetensors")
    words = ["--query", f"{tmp_path}/q.npz", "--gallery", f"{tmp_path}/g.safetensors"]
    command.main([*words, "--json", f"{tmp_path}/o.json"])
    assert "pairs see none in common and stand last" in capsys.readouterr().out
    found = json.loads((tmp_path / "o.json").read_text())
    assert found["parts"]["pairs_without_common_part"] > 0
    findings = " ".join(map(str, check(query, gallery)))
    assert "rows have no visible part" in findings
    assert "parts are not normalised" in findings


def test_what_does_not_fit():
    query, gallery = made(20, seed=1), made(50, seed=2)
    plain = Features(gallery.parts.flatten(1), gallery.pids, gallery.camids)
    for call, sentence in (
        (lambda: evaluate(query, plain), "query has parts, gallery the other"),
        (lambda: evaluate(query, made(50, parts=4)), "must come from one network"),
        (lambda: evaluate(query, gallery, rerank=KReciprocal()), "no neighbour graph"),
        (lambda: evaluate(query, gallery, device="meta"), "device must be auto, cpu, cuda"),
    ):
        with pytest.raises(UserError, match=sentence):
            call()
    values = query.parts.clone()
    values[7, 2, 3] = torch.nan
    broken = Features(None, query.pids, query.camids, parts=values, visibility=query.visibility)
    with pytest.raises(UserError, match=r"query: 1 of 20 rows .* row 7"):
        evaluate(broken, gallery)
    zero = query.parts.clone()
    zero[3, 1] = 0
    some = Features(None, query.pids, query.camids, parts=zero, visibility=query.visibility)
    assert evaluate(some, gallery).zero_vectors == 1


def test_batches_in_a_loop():
    query, gallery = made(20, seed=1), made(90, seed=2)
    times = {"query": np.arange(20) % 7, "gallery": np.arange(90) % 7}
    evaluator = Evaluator(exclude="time == query.time")
    for name, side in (("query", query), ("gallery", gallery)):
        for start in range(0, len(side), 16):
            rows = np.arange(start, min(start + 16, len(side)))
            batch = side.select(rows)
            evaluator.update(
                name, None, batch.pids, batch.camids, parts=batch.parts,
                visibility=batch.visibility, columns={"time": times[name][rows]},
            )  # fmt: skip
    found = evaluator.compute()
    for name, side in (("query", query), ("gallery", gallery)):
        side.columns["time"] = times[name]
    expected = evaluate(query, gallery, exclude="time == query.time")
    assert (found.mAP, found.excluded) == (expected.mAP, expected.excluded)
    assert found.extra == expected.extra
    with pytest.raises(UserError, match="all shards must hold the same"):
        evaluator.update("query", None, [1], [1], parts=query.parts[:1])
        evaluator.compute()
