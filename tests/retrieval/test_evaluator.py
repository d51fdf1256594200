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


def test_batches_in_memory_that_is_written_again():
    query, gallery = (Features(unit(8, seed=seed), [0, 1] * 4, [seed] * 8) for seed in (0, 1))
    evaluator = Evaluator()
    rows, pids = torch.empty(4, query.dimension), np.empty(4, np.int64)
    camids, times = torch.empty(4, dtype=torch.int64), np.empty(4)
    for side, features in (("query", query), ("gallery", gallery)):
        for at in (slice(0, 4), slice(4, 8)):
            rows[:], pids[:] = features.features[at], features.pids[at]
            camids[:], times[:] = torch.from_numpy(features.camids[at]), at.start
            evaluator.update(side, rows, pids, camids, columns={"time": times})
    report, expected = evaluator.compute(), evaluate(query, gallery)
    assert (report.mAP, report.num_cameras) == (expected.mAP, 2)
    evaluator.options["exclude"] = "time != query.time"
    assert evaluator.compute().excluded["expression"] == 32


def test_large_ids_beside_unknown_ones():
    evaluator = Evaluator(protocol="no-camera")
    evaluator.update("query", unit(2), [2**60, 2**60 + 1])
    evaluator.update("query", unit(2), [None, 3])
    evaluator.update("gallery", unit(3), [2**60, 2**60 + 1, 3])
    report = evaluator.compute()
    assert (report.num_valid_query, report.excluded["unknown_queries"]) == (3, 1)


def test_arguments_are_checked_before_the_first_batch():
    with pytest.raises(TypeError, match="protocl"):
        Evaluator(protocl="market1501")
    with pytest.raises(UserError, match="protocol: expected market1501"):
        Evaluator(protocol="market")


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
