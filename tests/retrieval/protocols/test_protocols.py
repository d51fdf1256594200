"""Pooled queries, drawn galleries and repeated halves, held against their rules written out."""

import dataclasses
import itertools

import naive_evaluation as naive
import numpy as np
import pytest
import torch

from mmga.common.errors import UserError
from mmga.retrieval.evaluate import evaluate, evaluate_distances
from mmga.retrieval.evaluator import Evaluator
from mmga.retrieval.explain import explain, table
from mmga.retrieval.features import Features
from mmga.retrieval.protocols.protocol import PROTOCOLS
from mmga.retrieval.repeated import half_of
from mmga.retrieval.reranking.settings import KReciprocal


def some(count, people, cameras, seed, width=6):
    generator = np.random.default_rng(seed)
    return Features(
        generator.standard_normal((count, width)).astype(np.float32),
        generator.integers(-1, people, count),
        generator.integers(0, cameras, count),
    )


@pytest.mark.program_settings
@pytest.mark.parametrize("pool", ["mean", "max"])
def test_multi_query_pools_by_identity_and_camera(pool):
    query, gallery = some(30, 5, 2, 0), some(40, 5, 2, 1)
    vectors, pids, camids = [], [], []
    for pid, camid in itertools.product(range(5), range(2)):
        mine = query.features[torch.from_numpy((query.pids == pid) & (query.camids == camid))]
        if not len(mine):
            continue
        unit = mine / mine.norm(dim=1, keepdim=True)
        one = unit.mean(0) if pool == "mean" else unit.amax(0)
        vectors.append((one / one.norm()).double().numpy())
        pids.append(pid)
        camids.append(camid)
    unit = gallery.features.double().numpy()
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    expected = naive.evaluate(
        1 - np.array(vectors) @ unit.T, pids, gallery.pids, camids, gallery.camids, "multi-query"
    )
    report = evaluate(query, gallery, protocol="multi-query", pool=pool)
    assert report.mAP == pytest.approx(expected["mAP"], abs=1e-12)
    assert report.cmc.tolist() == pytest.approx(expected["cmc"])
    assert report.excluded["junk_queries"] == (query.pids == -1).sum()


def every_drawn_gallery(distances, q_pids, g_pids, q_camids, g_camids, max_rank):
    """CMC and mAP over all ways to draw one image of each identity, written out."""
    cmc, mean_precision, valid = np.zeros(max_rank), 0.0, 0
    for query in range(len(q_pids)):
        kept = naive.kept_items(
            query, q_pids[query], q_camids[query], g_pids, g_camids, "cuhk03-single-shot"
        )
        groups = {}
        for item in kept:
            groups.setdefault(g_pids[item], []).append(item)
        if q_pids[query] == -1 or q_pids[query] not in groups:
            continue
        valid += 1
        ranks = []
        for drawn in itertools.product(*groups.values()):
            order = sorted(drawn, key=lambda item: (distances[query, item], item))
            ranks.append([g_pids[item] for item in order].index(q_pids[query]) + 1)
        ranks = np.array(ranks)
        cmc += (ranks[:, None] <= np.arange(1, max_rank + 1)).mean(0)
        mean_precision += (1 / ranks).mean()
    return cmc / valid, mean_precision / valid


def test_single_shot_is_the_exact_expectation():
    generator = np.random.default_rng(2)
    q_pids, g_pids = np.array([0, 1, 2, 3, -1]), generator.integers(-1, 5, 16)
    q_camids, g_camids = np.zeros(5, int), generator.integers(0, 2, 16)
    distances = generator.integers(0, 6, (5, 16)) / 4
    query = Features(torch.zeros(5, 1), q_pids, q_camids)
    gallery = Features(torch.zeros(16, 1), g_pids, g_camids)
    arguments = (distances, query, gallery, "cuhk03-single-shot")
    report = evaluate_distances(*arguments, max_rank=7)
    cmc, precision = every_drawn_gallery(distances, q_pids, g_pids, q_camids, g_camids, 7)
    assert report.cmc.tolist() == pytest.approx(cmc.tolist(), abs=1e-12)
    assert report.extra["single_shot"]["drawn_mAP"] == pytest.approx(precision, abs=1e-12)
    full = naive.evaluate(distances, q_pids, g_pids, q_camids, g_camids, "market1501")
    assert report.mAP == pytest.approx(full["mAP"])

    drawn = evaluate_distances(*arguments, max_rank=7, trials=4000, seed=5)
    # 4,000 draws of a mean of four queries: a standard error below 0.004.
    assert drawn.cmc.tolist() == pytest.approx(cmc.tolist(), abs=0.016)
    again = evaluate_distances(*arguments, max_rank=7, trials=4000, seed=5)
    assert again.cmc.tolist() == drawn.cmc.tolist()
    with pytest.raises(UserError, match="trials"):
        evaluate(query, gallery, trials=3)


@pytest.mark.program_settings
def test_single_shot_from_features():
    query, gallery = some(20, 6, 2, 3), some(60, 6, 2, 4)
    report = evaluate(query, gallery, metric="euclidean", protocol="cuhk03-single-shot")
    keys = (query.features[:, None] - gallery.features[None]).square().sum(2).numpy()
    given = evaluate_distances(keys, query, gallery, "cuhk03-single-shot")
    assert report.cmc.tolist() == pytest.approx(given.cmc.tolist(), abs=1e-9)


@pytest.mark.program_settings
def test_viper_averages_halves_in_both_directions():
    generator = np.random.default_rng(0)
    centres = generator.standard_normal((40, 5))
    sides = [
        Features(
            (centres + generator.standard_normal((40, 5))).astype(np.float32),
            np.arange(40),
            np.full(40, camera),
        )
        for camera in (0, 1)
    ]
    report = evaluate(*sides, metric="euclidean", protocol="viper", max_rank=20)
    found = []
    for split in range(10):
        persons = half_of(np.arange(40), split)
        assert len(persons) == 20
        for one, other in (sides, sides[::-1]):
            x, y = one.features[persons].double(), other.features[persons].double()
            distances = ((x[:, None] - y[None]) ** 2).sum(2).numpy()
            found.append(naive.evaluate(distances, persons, persons, rule="no-camera"))
    assert report.mAP == pytest.approx(np.mean([one["mAP"] for one in found]))
    assert report.rank1 == pytest.approx(np.mean([one["cmc"][0] for one in found]))
    halves = np.mean(np.reshape([one["cmc"][0] for one in found], (10, 2)), axis=1)
    error = report.extra["splits"]["rank1"]["standard_error"]
    assert error == pytest.approx(halves.std(ddof=1) / np.sqrt(10))


def test_viper_needs_no_camids_and_names_itself():
    sides = [some(30, 30, 1, seed) for seed in (0, 1)]
    sides = [
        Features(side.features, np.arange(30), np.full(30, at)) for at, side in enumerate(sides)
    ]
    bare = [Features(side.features, side.pids) for side in sides]
    with_cameras, without = (evaluate(*both, protocol="viper") for both in (sides, bare))
    assert without.mAP == with_cameras.mAP
    assert without.cmc.tolist() == with_cameras.cmc.tolist()
    assert without.protocol == with_cameras.protocol == "viper"
    one_camera = [Features(side.features, side.pids, np.zeros(30)) for side in sides]
    with pytest.raises(UserError, match="own camera only"):
        evaluate(*one_camera, protocol="viper")


def test_the_test_half_of_viper_is_not_halved_again():
    """Features of a run that were extracted to files."""
    for persons, halves in ((316, False), (632, True), (315, True)):
        both = [Features(some(persons, 2, 1, seed).features, np.arange(persons)) for seed in (0, 1)]
        report = evaluate(*both, protocol="viper")
        assert report.extra["splits"]["splits"] == (10 if halves else 1)
        assert report.extra["splits"]["persons"] == (persons // 2 if halves else persons)


def test_viper_of_persons_who_are_a_half_already():
    sides = [some(12, 12, 1, seed) for seed in (0, 1)]
    query, gallery = (Features(side.features, np.arange(12)) for side in sides)
    rules = dataclasses.replace(PROTOCOLS["viper"], splits="directions")
    report = evaluate(query, gallery, protocol=rules)
    single = [
        evaluate(*both, protocol="no-camera") for both in ((query, gallery), (gallery, query))
    ]
    assert report.mAP == pytest.approx(np.mean([one.mAP for one in single]))
    assert report.extra["splits"]["persons"] == 12
    assert report.extra["splits"]["mAP"]["standard_error"] is None
    assert "one test half of 12 persons in both directions" in report.notes[-1]


def test_single_shot_without_cameras():
    generator = np.random.default_rng(3)
    q_pids, g_pids = np.array([0, 1, 2, -1]), generator.integers(-1, 4, 14)
    distances = generator.integers(0, 6, (4, 14)) / 4
    cameras = np.zeros(4, int), np.ones(14, int)  # of no effect
    cmc, precision = every_drawn_gallery(distances, q_pids, g_pids, *cameras, 6)
    sides = Features(torch.zeros(4, 1), q_pids), Features(torch.zeros(14, 1), g_pids)
    report = evaluate_distances(distances, *sides, "single-shot", max_rank=6)
    assert report.cmc.tolist() == pytest.approx(cmc.tolist(), abs=1e-12)
    assert report.extra["single_shot"]["drawn_mAP"] == pytest.approx(precision, abs=1e-12)
    drawn = evaluate_distances(distances, *sides, "single-shot", max_rank=6, trials=4000, seed=1)
    assert drawn.cmc.tolist() == pytest.approx(cmc.tolist(), abs=0.02)


def test_vehicleid_draws_a_gallery_from_one_set():
    features = some(60, 9, 1, 5)
    report = evaluate(
        Features(features.features, features.pids),
        protocol="vehicleid",
        trials=4,
        seed=7,
        max_rank=8,
    )
    kept = np.flatnonzero(features.pids != -1)
    expected = []
    for trial in range(4):
        generator, gallery = np.random.default_rng([7, trial]), []
        own = [kept[features.pids[kept] == pid] for pid in range(9)]
        for rows, at in zip(own, generator.integers(0, [len(rows) for rows in own]), strict=True):
            gallery.append(rows[at])
        asked = np.setdiff1d(kept, gallery)
        x = torch.nn.functional.normalize(features.features.double()).numpy()
        distances = 1 - x[asked] @ x[gallery].T
        pids = features.pids[asked], features.pids[gallery]
        expected.append(naive.evaluate(distances, *pids, rule="no-camera", max_rank=8))
    assert report.cmc.tolist() == pytest.approx(np.mean([one["cmc"] for one in expected], axis=0))
    assert report.mAP == pytest.approx(np.mean([one["mAP"] for one in expected]))
    assert report.extra["splits"]["splits"] == 4
    assert evaluate(features, protocol="vehicleid").extra["splits"]["splits"] == 10
    with pytest.raises(UserError, match="none of the 3 identities has two images"):
        evaluate(Features(torch.rand(3, 4), [1, 2, 3]), protocol="vehicleid")


@pytest.mark.parametrize(
    ("protocol", "instead"),
    [
        ("market1501", "no-camera"),
        ("market1501-matlab", "no-camera with ap trapezoid"),
        ("cuhk03-single-shot", "single-shot"),
        ("other-cameras", "no-camera"),
        ("multi-query", "no-camera"),
    ],
)
def test_missing_cameras_are_said_of_the_protocol_that_was_asked_for(protocol, instead):
    query, gallery = (Features(torch.rand(6, 4), np.arange(6) % 3) for _ in range(2))
    with pytest.raises(UserError, match=f"protocol {protocol} needs the camids") as error:
        evaluate(query, gallery, protocol=protocol)
    assert str(error.value).endswith(f"choose protocol {instead}")


@pytest.mark.parametrize("protocol", ["no-camera", "market1501", "single-shot"])
def test_trapezoid_average_precision_of_any_protocol(protocol):
    query, gallery = some(20, 5, 2, 0), some(50, 5, 2, 1)
    keys = (query.features[:, None] - gallery.features[None]).double().square().sum(2).numpy()
    labels = query.pids, gallery.pids, query.camids, gallery.camids
    report = evaluate(query, gallery, metric="euclidean", protocol=protocol, ap="trapezoid")
    assert report.as_dict()["ap"] == "trapezoid"
    rule = "market1501" if protocol == "market1501" else "no-camera"
    total = []
    for row in np.flatnonzero(query.pids != -1):
        kept = naive.kept_items(row, query.pids[row], query.camids[row], *labels[1::2], rule)
        kept.sort(key=lambda item: (keys[row, item], item))
        hits = [r for r, item in enumerate(kept, 1) if gallery.pids[item] == query.pids[row]]
        areas = [((h - 1) / (r - 1) if r > 1 else 1) + h / r for h, r in enumerate(hits, 1)]
        total.append(np.mean(areas) / 2)
    assert report.mAP == pytest.approx(np.mean(total))
    given = evaluate_distances(keys, query, gallery, protocol, ap="trapezoid")
    assert given.mAP == pytest.approx(report.mAP)
    plain = evaluate(query, gallery, metric="euclidean", protocol=protocol)
    assert plain.ap == "hits"
    assert "ap" not in plain.as_dict(), "hits are meant where nothing is said"
    assert plain.mAP != pytest.approx(report.mAP)


def test_average_precision_overrides_the_protocols_own():
    query, gallery = some(20, 5, 2, 0), some(50, 5, 2, 1)
    assert evaluate(query, gallery, protocol="market1501-matlab").ap == "trapezoid"
    hits = evaluate(query, gallery, protocol="market1501-matlab", ap="hits")
    assert hits.mAP == evaluate(query, gallery).mAP
    assert hits.as_dict()["ap"] == "hits"
    with pytest.raises(UserError, match="ap: expected hits or trapezoid, found 'area'"):
        evaluate(query, gallery, ap="area")
    evaluator = Evaluator(ap="trapezoid")
    for side, features in (("query", query), ("gallery", gallery)):
        evaluator.update(side, features.features, features.pids, features.camids)
    assert evaluator.compute().ap == "trapezoid"


def test_names_of_identities_and_cameras_stand_in_messages_and_tables(tmp_path):
    rows = torch.rand(4, 3)
    query = Features(rows[:2], ["ann", "bob"], ["door", "door"])
    with pytest.raises(UserError, match=r"queries \(ann, bob\) and of the gallery \(cy, dan\)"):
        evaluate(query, Features(rows[2:], ["cy", "dan"], ["hall", "hall"]))
    with pytest.raises(UserError, match=r"query camids door, gallery camids door"):
        evaluate(query, Features(rows[2:], ["ann", "bob"], ["door", "door"]))
    report = evaluate(query, Features(rows[2:], ["ann", "bob"], ["hall", "hall"]))
    report.to_csv(tmp_path / "q.csv")
    assert [line.split(",")[1:3] for line in (tmp_path / "q.csv").read_text().splitlines()[1:]] == [
        ["ann", "door"],
        ["bob", "door"],
    ]


def test_options_that_a_protocol_cannot_honour():
    query, gallery = some(9, 3, 2, 0), some(9, 3, 2, 1)
    with pytest.raises(UserError, match="leave out gallery"):
        evaluate(query, gallery, protocol="all-vs-all")
    with pytest.raises(UserError, match="gallery: missing"):
        evaluate(query)
    with pytest.raises(UserError, match="plain figures only"):
        evaluate(query, gallery, protocol="viper", rerank=KReciprocal())
    with pytest.raises(UserError, match="needs features, not distances"):
        evaluate_distances(np.zeros((9, 9)), query, gallery, "multi-query")
    with pytest.raises(UserError, match="protocol: expected market1501"):
        evaluate(query, gallery, protocol="market")


def test_explain_adds_up():
    query, gallery = some(30, 8, 3, 0), some(60, 6, 3, 1)
    steps = explain(query, gallery, "market1501-matlab", "other-cameras")
    assert [step["rule"] for step in steps] == [None, "camera", "unmatched", "precision"]
    assert steps[0]["mAP"] == evaluate(query, gallery, protocol="market1501-matlab").mAP
    assert steps[-1]["mAP"] == evaluate(query, gallery, protocol="other-cameras").mAP
    changes = sum(step["change"]["mAP"] for step in steps[1:])
    assert changes == pytest.approx(steps[-1]["mAP"] - steps[0]["mAP"])
    assert "unmatched: zero -> skip" in table(steps)
    with pytest.raises(UserError, match="cannot be compared rule by rule"):
        explain(query, gallery, "market1501", "viper")


def test_distances_of_two_sets_are_no_single_set():
    one, other = some(8, 3, 2, 0), some(8, 3, 2, 1)
    distances = torch.cdist(one.features, other.features)
    with pytest.raises(UserError, match="rows and columns of distmat must be the same items"):
        evaluate_distances(distances, one, other, "all-vs-all")
    paths = [[f"{name}/{row}.jpg" for row in range(8)] for name in "ab"]
    sides = [Features(one.features, one.pids, None, names) for names in paths]
    with pytest.raises(UserError, match="but their paths differ"):
        evaluate_distances(distances, *sides, "all-vs-all")
    square = torch.cdist(one.features, one.features)
    same = evaluate_distances(square, one, one, "all-vs-all")
    assert same.mAP == pytest.approx(evaluate(one, protocol="all-vs-all", metric="euclidean").mAP)
    with pytest.raises(UserError, match="trials: expected 0 under protocol market1501, found 5"):
        evaluate_distances(distances, one, other, trials=5)


def test_repeated_evaluations_count_what_takes_part_in_none():
    pids = [-1, None, *range(10)] * 2
    rows = np.random.default_rng(0).standard_normal((24, 6)).astype(np.float32)
    one = Features(rows, pids)
    drawn = evaluate(one, protocol="vehicleid").excluded
    assert (drawn["junk_queries"], drawn["unknown_queries"], drawn["junk"]) == (2, 2, 0)
    cameras = [0, 0, None, *[0] * 21], [1] * 24  # one person's is unknown, in some halves
    sides = [Features(rows, [*pids[:-1], 11 + at], camids) for at, camids in enumerate(cameras)]
    report = evaluate(*sides, protocol="viper")
    assert (report.excluded["junk"], report.excluded["junk_queries"]) == (2, 2)
    assert 0 < report.excluded["unknown"] - 2 <= 10
    assert "without the 2 that one side alone shows" in report.notes[-1]
    assert "2 queries with pid -1" in report.table()


def test_cameras_of_two_writings_matter_where_cameras_are_asked_for_alone():
    rows, pids = np.eye(4, dtype=np.float32), [0, 0, 1, 1]
    names, numbers = (
        Features(rows, pids, ["a", "b", "a", "b"]), Features(rows, pids, [1, 2, 3, 4])
    )  # fmt: skip
    assert evaluate(names, numbers, protocol="no-camera").num_valid_query == 4
    with pytest.raises(UserError, match="camids: the query has strings"):
        evaluate(names, numbers)
    unknown = Features(rows, [None] * 4, numbers.camids)
    named = Features(rows, ["x", "x", "y", "y"], numbers.camids)
    with pytest.raises(UserError, match="gallery: all 4 pids are unknown"):
        evaluate(named, unknown)
