"""What doctor finds, the peers' signatures, and evaluation inside a loop."""

import contextlib

import naive_evaluation as naive
import numpy as np
import pytest
import torch

from mmga import compat
from mmga.common.errors import UserError
from mmga.retrieval.evaluate import evaluate
from mmga.retrieval.evaluator import Evaluator
from mmga.retrieval.features import Features
from mmga.retrieval.protocols.preflight import check


def unit(count, width=8, seed=0):
    rows = np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_nothing_is_found_where_nothing_is_wrong():
    query = Features(unit(3), [0, 1, 2], [0, 0, 0])
    gallery = Features(unit(6, seed=1), [0, 1, 2, 0, 1, 2], [1, 1, 1, 2, 2, 2])
    assert check(query, gallery) == []


@pytest.mark.parametrize(
    ("query", "gallery", "found"),
    [
        ({"camids": None}, {}, "query: camids are missing"),
        ({}, {"camids": [1] * 6}, "gallery: all camids are 1"),
        ({"features": 3 * unit(3)}, {}, "not normalised (norms 3 to 3)"),
        ({"features": unit(3) * [[1], [0], [1]]}, {}, "1 rows are zero, the first is row 1"),
        ({"features": unit(3) * [[1], [np.inf], [1]]}, {}, "1 rows hold NaN or infinity"),
        ({"pids": [0, 1, 9]}, {}, "1 of 3 ids are not in the gallery, the first is that of row 2"),
        ({"camids": [1, 0, 0]}, {"camids": [1, 1, 1, 1, 2, 2]}, "matches in their own camera only"),
        ({"pids": [0, 1, 2**53 + 1]}, {}, "pids beyond 2^53"),
        ({"pids": np.array([0.0, 1, 2])}, {}, "stored as float64"),
        ({}, {"features": np.concatenate([unit(3)[1:2], unit(5, seed=1)])}, "features of a query"),
        ({"paths": list("abc")}, {"paths": list("xyzwca")}, "2 paths stand on both sides"),
        ({"pids": ["a", "b", "c"]}, {}, "strings"),
        ({"features": unit(3, 4)}, {}, "rows of [4] and [8] values"),
        ({"pids": [0, 1, -1]}, {}, "1 queries have pid -1"),
    ],
)
def test_findings(query, gallery, found):
    sides = [
        {"features": unit(3), "pids": [0, 1, 2], "camids": [0, 0, 0], **query},
        {
            "features": unit(6, seed=1),
            "pids": [0, 1, 2, 0, 1, 2],
            "camids": [1, 1, 1, 2, 2, 2],
            **gallery,
        },
    ]
    for side in sides:
        side["features"] = np.asarray(side["features"], np.float32)
    findings = [str(one) for one in check(*(Features(**side) for side in sides))]
    assert any(found in one for one in findings), findings
    assert all("; " in one for one in findings), "every finding says the fix"


def given(seed=0, junk=False):
    generator = np.random.default_rng(seed)
    low = -1 if junk else 0
    return (
        generator.random((8, 30)),
        generator.integers(low, 4, 8),
        generator.integers(low, 4, 30),
        generator.integers(0, 2, 8),
        generator.integers(0, 2, 30),
    )


@pytest.mark.parametrize("junk", [False, True])
def test_torchreid_and_fastreid(junk):
    distmat, q_pids, g_pids, q_camids, g_camids = given(junk=junk)
    # The peers know no junk: -1 is an identity.
    shift = 10
    expected = naive.evaluate(distmat, q_pids + shift, g_pids + shift, q_camids, g_camids)
    cmc, mean = compat.evaluate_rank(distmat, q_pids, g_pids, q_camids, g_camids)
    assert len(cmc) == 30, "no more ranks than the gallery has items"
    assert cmc.tolist() == pytest.approx(expected["cmc"][:30])
    assert mean == pytest.approx(expected["mAP"])
    cmc, precision, penalty = compat.fastreid_evaluate_rank(
        distmat, q_pids, g_pids, q_camids, g_camids, 10
    )
    assert len(cmc) == 10
    scored = [one for one in expected["per_query"] if one]
    assert precision.tolist() == pytest.approx([one[0] for one in scored])
    assert penalty.tolist() == pytest.approx([one[1] for one in scored])


def test_evaluator_in_a_loop():
    query = Features(unit(10), np.arange(10) % 4, np.zeros(10, int))
    gallery = Features(unit(20, seed=1), np.arange(20) % 4, np.ones(20, int))
    evaluator = Evaluator(metric="euclidean")
    for side, features in (("query", query), ("gallery", gallery)):
        for start in range(0, len(features), 6):
            at = slice(start, start + 6)
            evaluator.update(
                side,
                features.features[at].clone().requires_grad_(),
                torch.from_numpy(features.pids[at]),
                features.camids[at],
            )
    assert evaluator.compute().mAP == evaluate(query, gallery, metric="euclidean").mAP
    evaluator.reset()
    with pytest.raises(UserError, match="no batch was added"):
        evaluator.compute()


def test_duplicates_are_counted():
    query = Features(unit(4), [0, 1, 2, 3], [0] * 4)
    rows = np.concatenate([unit(4)[2:], unit(6, seed=1)])
    report = evaluate(query, Features(rows, np.arange(8) % 4, [1] * 8))
    assert report.duplicates == 2


def test_re_ranking_squares_what_it_is_given():
    from mmga.retrieval.reranking.rerank import rerank_distances
    from mmga.retrieval.reranking.settings import KReciprocal

    rows = np.random.default_rng(0).random((12, 3))
    distances = np.linalg.norm(rows[:, None] - rows[None], axis=2)
    q_g, q_q, g_g = distances[:4, 4:], distances[:4, :4], distances[4:, 4:]
    expected = rerank_distances(q_g**2, q_q**2, g_g**2, KReciprocal(4, 2, 0.3), squared=True)
    np.testing.assert_allclose(compat.re_ranking(q_g, q_q, g_g, 4, 2), expected, rtol=1e-6)


def test_jaccard_is_dense_and_symmetric():
    pytest.importorskip("mmga.retrieval.reranking.jaccard")
    dense = compat.compute_jaccard_distance(torch.from_numpy(unit(30)), k1=5, k2=2)
    assert dense.shape == (30, 30)
    assert np.array_equal(dense, dense.T)
    assert (np.diag(dense) < 1e-6).all()
    assert (dense == 1).any()


def test_doctor_fails_where_no_evaluation_is_possible(tmp_path, capsys):
    from mmga import doctor

    pids = np.arange(6) % 3
    good = Features(np.eye(6, 4, dtype=np.float32) + 0.1, pids, np.arange(6) % 2)
    good.save(tmp_path / "good.npz")
    bad = np.eye(6, 4, dtype=np.float32)
    bad[1, 1] = np.nan
    others = {
        "good": (good.features.numpy(), pids, 0),
        "nan": (bad, pids, 2),
        "wide": (np.eye(6, 5, dtype=np.float32), pids, 2),
        "strangers": (np.eye(6, 4, dtype=np.float32), pids + 90, 2),
        "names": (np.eye(6, 4, dtype=np.float32), pids.astype(str), 2),
    }
    for name, (features, ids, code) in others.items():
        Features(features, ids, (np.arange(6) + 1) % 2).save(tmp_path / f"{name}.npz")
        words = ["--query", str(tmp_path / "good.npz"), "--gallery", str(tmp_path / f"{name}.npz")]
        with pytest.raises(SystemExit) if code else contextlib.nullcontext() as leave:
            doctor.main(words)
        assert not code or leave.value.code == code, name
        capsys.readouterr()
