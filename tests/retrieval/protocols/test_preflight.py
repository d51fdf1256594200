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
