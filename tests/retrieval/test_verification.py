"""Thresholds, open set and bootstrap, held against their definitions written out."""

import json

import naive_evaluation as naive
import numpy as np
import pytest

from mmga import eval as command
from mmga.errors import UserError
from mmga.retrieval.evaluate import evaluate
from mmga.retrieval.features import Features, save_both
from mmga.retrieval.uncertainty import bootstrap, compare


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
