"""Numbers that are looked up among others."""

import numpy as np
import pytest

from mmga.common import arrays


@pytest.mark.parametrize("kind", [np.int64, np.float64])
@pytest.mark.parametrize("wanted", [[], [3], [-1, 3, 3, 900, 2**40]])
def test_among_finds_what_isin_finds(monkeypatch, kind, wanted):
    monkeypatch.setattr(arrays, "_BLOCK", 100)
    values = np.random.default_rng(0).integers(-5, 1000, 1003).astype(kind)
    found = arrays.among(values, np.array(wanted, kind))
    np.testing.assert_array_equal(found, np.isin(values, wanted))
    assert found.sum() >= len(set(wanted) - {2**40})
