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
