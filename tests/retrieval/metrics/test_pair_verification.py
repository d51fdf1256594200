"""Thresholds, open set and bootstrap, held against their definitions written out."""

import json

import naive_evaluation as naive
import numpy as np
import pytest

from mmga import eval as command
from mmga.common.errors import UserError
from mmga.retrieval.evaluate import evaluate
from mmga.retrieval.features import Features, save_both
from mmga.retrieval.metrics.bootstrap import bootstrap, compare
from mmga.retrieval.metrics.verification import BINS, Counts, figures
from mmga.retrieval.tiles import sources


def sets(seed=0, queries=40, items=240, people=12, noise=1.0):
    generator = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((people, 8))
    q_pids = np.random.default_rng(5).integers(0, people + 6, queries)  # six are strangers
    g_pids = np.random.default_rng(6).integers(-1, people, items)

    def rows(pids):
        known = centres[np.clip(pids, 0, people - 1)] * (pids < people)[:, None]
        return (known + noise * generator.standard_normal((len(pids), 8))).astype(np.float32)

    cameras = np.random.default_rng(7)
    return (
        Features(rows(q_pids), q_pids, cameras.integers(0, 3, queries)),
        Features(rows(g_pids), g_pids, cameras.integers(0, 3, items)),
    )


def pairs_written_out(query, gallery, metric, cross_camera):
    q, g = query.features.double().numpy(), gallery.features.double().numpy()
    if metric == "cosine":
        q, g = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (q, g))
        distances = 1 - q @ g.T
    else:
        distances = np.linalg.norm(q[:, None] - g[None], axis=2)
    genuine, impostor, best = [], [], []
    for row in range(len(query)):
        kept = naive.kept_items(
            row, query.pids[row], query.camids[row], gallery.pids, gallery.camids, "market1501"
        )
        mine = [item for item in kept if gallery.pids[item] == query.pids[row]]
        genuine += [distances[row, item] for item in mine]
        impostor += [
            distances[row, item]
            for item in kept
            if gallery.pids[item] != query.pids[row]
            and not (cross_camera and gallery.camids[item] == query.camids[row])
        ]
        nearest = min(kept, key=lambda item: distances[row, item])
        best.append((distances[row, nearest], nearest in mine, bool(mine)))
    return np.array(genuine), np.array(impostor), best


@pytest.mark.program_settings
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("cross_camera", [False, True])
def test_rates_and_thresholds(metric, cross_camera):
    query, gallery = sets()
    report = evaluate(query, gallery, metric=metric, verification=True, cross_camera=cross_camera)
    found = report.extra["verification"]
    genuine, impostor, best = pairs_written_out(query, gallery, metric, cross_camera)
    assert (found["genuine_pairs"], found["impostor_pairs"]) == (len(genuine), len(impostor))
    assert found["tpr_at_fpr"][0]["tpr"] is None, "1e-4 is not resolvable"
    assert "not resolvable" in found["tpr_at_fpr"][0]["note"]
    for row in found["tpr_at_fpr"][1:]:
        threshold = row["threshold"]
        assert (impostor <= threshold + 1e-6).mean() <= row["fpr"] + 2 / len(impostor)
        # One bin more would accept too many.
        wider = threshold + found["bin_width"] + 1e-6
        assert (impostor <= wider).sum() > row["fpr"] * len(impostor)
        assert row["tpr"] == pytest.approx((genuine <= threshold).mean(), abs=2 / len(genuine))
    thresholds = np.sort(np.concatenate([genuine, impostor]))
    miss = np.array([(genuine > t).mean() for t in thresholds])
    accept = np.array([(impostor <= t).mean() for t in thresholds])
    at = np.abs(miss - accept).argmin()
    assert found["eer"] == pytest.approx((miss[at] + accept[at]) / 2, abs=0.01)

    strangers = np.sort([distance for distance, _, matched in best if not matched])
    row = found["dir_at_far"][1]
    limit = strangers[int(0.1 * len(strangers))]
    right = [hit and distance < limit for distance, hit, matched in best if matched]
    assert row["dir"] == pytest.approx(np.mean(right))
    assert "TPR at FPR 0.01" in report.table()


def test_bootstrap_draws_identities():
    query, gallery = sets()
    report = evaluate(query, gallery)
    found = bootstrap(report, 400, seed=1)
    assert found["mAP"].value == pytest.approx(report.mAP)
    assert found["mAP"].low < report.mAP < found["mAP"].high
    assert bootstrap(report, 400, seed=1) == found
    # Against the draws written out.
    scores, pids = report.per_query.average_precision, query.pids
    valid = ~np.isnan(scores)
    people = np.unique(pids[valid])
    generator = np.random.default_rng(3)
    means = []
    for _ in range(3000):
        drawn = generator.choice(people, len(people))
        rows = np.concatenate([np.flatnonzero(valid & (pids == pid)) for pid in drawn])
        means.append(scores[rows].mean())
    assert found["mAP"].standard_error == pytest.approx(np.std(means), rel=0.15)


def test_paired_comparison():
    query, gallery = sets(noise=1.0)
    better = evaluate(*sets(noise=0.7))
    plain = evaluate(query, gallery)
    found = compare(plain, better)
    assert found["mAP"]["value"] == pytest.approx(better.mAP - plain.mAP)
    assert found["mAP"]["low"] > 0
    assert found["mAP"]["p"] < 0.05
    assert compare(plain, plain)["mAP"]["p"] == 1
    with pytest.raises(UserError, match="same queries in the same order"):
        compare(plain, evaluate(query.select(np.arange(39, -1, -1)), gallery))


def test_command(tmp_path, capsys):
    save_both(tmp_path / "one.npz", *sets())
    save_both(tmp_path / "two.npz", *sets(noise=0.7))
    command.main(
        ["--features", str(tmp_path / "one.npz"), "--compare", str(tmp_path / "two.npz"),
         "--bootstrap", "50", "--verification", "--json", str(tmp_path / "o.json")]
    )  # fmt: skip
    found = json.loads((tmp_path / "o.json").read_text())
    assert found["compare"]["difference"]["mAP"]["value"] > 0
    assert set(found["bootstrap"]) == {"mAP", "rank1"}
    assert found["verification"]["eer"] > 0
    assert "EER" in capsys.readouterr().out


@pytest.mark.parametrize("strangers", [None, 0.3])
def test_identities_play_strangers_where_there_are_none(strangers):
    query, gallery = sets(queries=120)
    known = np.isin(query.pids, gallery.pids)
    query = query.select(
        np.flatnonzero(known & (evaluate(query, gallery).per_query.num_matches > 0))
    )
    options = {"verification": True, "strangers": strangers, "seed": 4}
    report = evaluate(query, gallery, **options)
    found = report.extra["verification"]
    people = np.unique(query.pids)
    share = 0.5 if strangers is None else strangers
    removed = np.random.default_rng(4).permutation(people)[: round(share * len(people))]
    assert found["removed_identities"] == len(removed) > 0
    assert "identities were taken from the gallery" in report.table()
    # The same from a gallery without them.
    left = gallery.select(np.flatnonzero(~np.isin(gallery.pids, removed)))
    _, _, best = pairs_written_out(query, left, "cosine", False)
    assert found["mated_queries"] == sum(matched for _, _, matched in best)
    alarms = np.sort([distance for distance, _, matched in best if not matched])
    limit = alarms[int(0.1 * len(alarms))]
    right = [hit and distance < limit for distance, hit, matched in best if matched]
    assert found["dir_at_far"][1]["dir"] == pytest.approx(np.mean(right))
    # Neither ranks nor pairs know of it.
    assert report.mAP == evaluate(query, gallery, exact="float32").mAP
    whole = evaluate(query, gallery, verification=True, strangers=0).extra["verification"]
    assert whole["impostor_pairs"] == found["impostor_pairs"]
    assert whole["dir_at_far"][0]["note"] == "not resolvable with 0 queries without a mate"


def test_one_pass_whatever_the_tiles(monkeypatch):
    query, gallery = sets()
    passes = []
    original = sources.FeatureSource.tiles
    monkeypatch.setattr(
        sources.FeatureSource, "tiles", lambda *given: passes.append(1) or original(*given)
    )
    options = {"verification": True, "exclude": "camid == query.camid", "protocol": "no-camera"}
    expected = evaluate(query, gallery, **options)
    runs = len(passes)
    evaluate(query, gallery, exclude=options["exclude"], protocol="no-camera", exact="float32")
    assert len(passes) == 2 * runs, "verification must not read the tiles again"
    monkeypatch.setattr("mmga.retrieval.tiles.sources.TILE", (64, 64))
    again = evaluate(query, gallery, **options)
    assert again.extra == expected.extra
    # Under the condition no-camera keeps what other-cameras does.
    other = evaluate(query, gallery, verification=True, protocol="other-cameras")
    assert other.extra["verification"] == expected.extra["verification"]


def test_a_wanted_rate_and_options_that_do_nothing():
    query, gallery = sets()
    rows = evaluate(query, gallery, verification=True, fpr=0.05).extra["verification"]["tpr_at_fpr"]
    assert [row["fpr"] for row in rows] == [1e-4, 1e-3, 1e-2, 0.05]
    assert rows[-1]["tpr"] > rows[-2]["tpr"]
    for options, sentence in (
        ({"fpr": 0.1}, "belong to verification"),
        ({"verification": True, "fpr": 2.0}, "fpr: expected a rate"),
        ({"verification": True, "strangers": 1.0}, "strangers: expected a share"),
        ({"verification": True, "protocol": "viper"}, "viper"),
    ):
        with pytest.raises(UserError, match=sentence):
            evaluate(query, gallery, **options)
    bare = [Features(one.features, one.pids) for one in (query, gallery)]
    with pytest.raises(UserError, match="cross_camera needs the camids"):
        evaluate(*bare, protocol="no-camera", verification=True, cross_camera=True)


def test_a_rate_that_is_met_exactly_is_not_exceeded():
    impostor, genuine = np.zeros(BINS + 1, np.int64), np.zeros(BINS + 1, np.int64)
    impostor[10:110], genuine[0] = 1, 1  # the 29th of 100 impostors stands in bin 38
    counts = Counts(genuine, impostor, 1.0, np.zeros(1), np.ones(1, bool), np.ones(1, bool), 0)
    (row,) = figures(counts, [0.29])["tpr_at_fpr"]
    assert row["threshold"] == 39.0  # 0.29 * 100 is less than 29 in floating point


def test_unknown_cameras_are_not_one_camera():
    query, gallery = sets()
    unknown = [Features(one.features, one.pids, [None] * len(one)) for one in (query, gallery)]
    rules = {"protocol": "no-camera", "verification": True}
    apart, all_pairs = (
        evaluate(*unknown, **rules, cross_camera=across).extra["verification"]["impostor_pairs"]
        for across in (True, False)
    )
    assert apart == all_pairs


def test_only_systems_that_search_one_gallery_are_compared():
    query, gallery = sets()
    plain = evaluate(query, gallery)
    names = [
        Features(one.features, one.pids.astype(str), one.camids.astype(float))
        for one in (query, gallery)
    ]
    assert compare(plain, evaluate(*names))["mAP"]["value"] == 0
    with pytest.raises(UserError, match="the same gallery, found 240 and 239 items"):
        compare(plain, evaluate(query, gallery.select(slice(1, 240))))
    twice = np.append(np.arange(1, 240), 1)
    with pytest.raises(UserError, match="identities have other numbers of matches"):
        compare(plain, evaluate(query, gallery.select(twice)))


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_equal_features_of_two_identities_leave_no_threshold(metric):
    query, gallery = sets()
    rows, pids = gallery.features.clone(), gallery.pids.copy()
    rows[: len(query)], pids[: len(query)] = query.features, 500  # each query is someone else, too
    twins = Features(rows, pids, gallery.camids)
    found = evaluate(query, twins, metric=metric, verification=True).extra["verification"]
    row = found["tpr_at_fpr"][1]
    assert (row["tpr"], row["threshold"]) == (0.0, None)
    assert row["note"].startswith("0.00%, no threshold: ")  # float32 moves some of the zeros
    alone = evaluate(
        query, Features(rows, pids), protocol="no-camera", metric=metric, verification=True
    )
    assert "accept distances up to 0\n" not in alone.table()
