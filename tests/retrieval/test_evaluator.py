"""Evaluation of batches in a loop."""

import numpy as np
import pytest
import torch
from unit_rows import unit

from mmga.common.errors import UserError
from mmga.retrieval.evaluate import evaluate
from mmga.retrieval.evaluator import Evaluator
from mmga.retrieval.features import Features


@pytest.mark.program_settings
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


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_buffers_that_are_filled_again(kind):
    rows, pids, camids = unit(40), np.arange(40) % 5, np.arange(40) // 5 % 3
    seconds = np.arange(40.0)
    held = [np.empty((10, rows.shape[1]), np.float32), *(np.empty(10, int) for _ in range(2))]
    time = np.empty(10)
    evaluator = Evaluator(exclude="time > query.time + 20")
    for start in range(0, 40, 10):
        at = slice(start, start + 10)
        for buffer, values in zip((*held, time), (rows, pids, camids, seconds), strict=True):
            buffer[:] = values[at]
        side = "gallery" if start else "query"
        evaluator.update(side, *(kind(one) for one in held), columns={"time": kind(time)})
    sides = [
        Features(rows[at], pids[at], camids[at], columns={"time": seconds[at]})
        for at in (slice(10), slice(10, 40))
    ]
    expected = evaluate(*sides, exclude="time > query.time + 20")
    found = evaluator.compute()
    assert found.mAP == expected.mAP and found.excluded == expected.excluded
