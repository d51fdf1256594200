import numpy as np
from unit_rows import unit

from mmga.retrieval.evaluate import evaluate
from mmga.retrieval.features import Features


def test_duplicates_are_counted():
    query = Features(unit(4), [0, 1, 2, 3], [0] * 4)
    rows = np.concatenate([unit(4)[2:], unit(6, seed=1)])
    report = evaluate(query, Features(rows, np.arange(8) % 4, [1] * 8))
    assert report.duplicates == 2
