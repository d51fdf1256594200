"""Findings in features before an evaluation."""

import numpy as np
import pytest
from unit_rows import unit

from mmga.retrieval.features import Features
from mmga.retrieval.protocols.preflight import check


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
        ({}, {"pids": [-1] * 6}, "gallery: no row has a known pid that is not junk"),
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


def clusters(count, seed, people=20, noise=0.5):
    generator = np.random.default_rng(seed)
    centres = np.random.default_rng(9).standard_normal((people, 8))
    pids = np.arange(count) % people
    rows = centres[pids] + noise * generator.standard_normal((count, 8))
    return rows.astype(np.float32), pids


@pytest.mark.parametrize("metric", ["cosine", "euclidean", None])
def test_identities_that_are_no_nearer_than_others(metric):
    (asked, q_pids), (rows, g_pids) = clusters(80, 0), clusters(200, 1)
    query = Features(asked, q_pids, q_pids * 0)
    shuffled = rows[np.random.default_rng(2).permutation(200)]
    words = "pairs of one identity are no nearer than pairs of two"
    for values, found in ((rows, 0), (shuffled, 1)):
        gallery = Features(values, g_pids, 1 + g_pids % 2)
        said = [str(one) for one in check(query, gallery, metric=metric) if words in one.what]
        assert len(said) == found
    assert "rows sorted apart from their labels" in said[0]
    bare = Features(asked, q_pids), Features(shuffled, g_pids)
    assert any(words in one.what for one in check(*bare, "market1501", metric)), "without cameras"
    one_set = Features(shuffled, g_pids)
    said = check(one_set, protocol="all-vs-all", metric=metric)
    assert any(words in one.what for one in said)
    assert not any(
        words in one.what for one in check(Features(rows, g_pids), protocol="all-vs-all")
    )


def test_weak_features_and_small_sets_raise_no_alarm():
    for people, count, noise in ((20, 200, 3.0), (3, 6, 0.5)):
        (asked, q_pids), (rows, g_pids) = (clusters(count, seed, people, noise) for seed in (3, 4))
        query = Features(asked, q_pids, q_pids * 0)
        findings = check(query, Features(rows, g_pids, 1 + g_pids % 2), metric="cosine")
        assert findings == []


def test_findings_are_those_of_the_protocol():
    rows, pids = clusters(40, 0)
    bare = Features(rows[:20], pids[:20]), Features(rows[20:], pids[20:])
    assert check(*bare, "no-camera", "cosine") == []
    (one, other) = check(*bare, "market1501-matlab", "cosine")
    assert one.stops and other.stops
    assert "protocol market1501-matlab needs them; " in str(one)
    assert check(*bare, "viper", "cosine") == []
    assert not any("normalised" in one.what for one in check(*bare, "no-camera", "cosine"))
    assert any("normalised" in one.what for one in check(*bare, "no-camera", "euclidean"))
    (lone,) = check(Features(rows[:21], pids[:21]), protocol="all-vs-all", metric="cosine")
    assert "19 of 20 ids have a single image, the first is row 1" in lone.what
    whole = Features(rows, pids, paths=[str(i) for i in range(40)])
    both = whole.select(slice(0, 20)), whole
    assert check(*both, "no-camera", "cosine") == []


def test_viper_with_one_person_or_cameras_of_two_writings():
    rows = np.eye(4, dtype=np.float32)
    names, numbers = (Features(rows, [0, 0, 1, 1], camids) for camids in (["a"] * 4, [1] * 4))
    found = [one for one in check(names, numbers, "viper") if one.stops]
    assert "camids: the query has strings" in str(found[0])
    single = Features(rows, [0] * 4, [2] * 4)
    (found,) = (one for one in check(numbers, single, "viper") if one.stops)
    assert "needs two persons at least" in str(found)


def test_rows_that_were_written_twice():
    gallery = Features(unit(3), [0, 1, 2], [1, 1, 2], ["a.jpg", "b.jpg", "a.jpg"])
    query = Features(unit(3, seed=1), [0, 1, 2], [0, 0, 0], ["c.jpg", "d.jpg", "e.jpg"])
    (found,) = (str(one) for one in check(query, gallery))
    assert found.startswith("gallery: 1 paths stand at several rows, the first is a.jpg")
