"""How attention maps are judged: beside the mean mask, and only where the truth is known."""

import numpy as np
import pytest
import torch

from mmga.training.attention_metrics import MeanMask, fit


def masks(count=40, seed=0):
    """Upright boxes at random places: targets [N, 3, h, w] of whole, upper, bottom."""
    random = np.random.default_rng(seed)
    targets = torch.zeros(count, 3, 8, 4)
    for image in targets:
        left = int(random.integers(0, 3))
        image[0, 1:7, left : left + 2] = 1
        image[1, 1:4, left : left + 2] = 1
        image[2, 4:7, left : left + 2] = 1
    return targets


def judged(maps, targets, known):
    train = masks(seed=1)
    mean = MeanMask(train, torch.ones(len(train), 3, dtype=torch.bool))
    names = list(maps)
    return fit(maps, dict.fromkeys(names, targets), known, dict.fromkeys(names, mean))


def test_a_perfect_map_beats_the_mean_mask():
    targets = masks()
    known = torch.ones(len(targets), 3, dtype=torch.bool)
    maps = {name: targets[:, i : i + 1] for i, name in enumerate(("whole", "upper", "bottom"))}
    for result in judged(maps, targets, known).values():
        assert result.rmse == pytest.approx(1e-4, abs=1e-6)  # the root of the formula's 1e-8
        assert result.iou == 1
        assert result.mean_rmse > 0.2
        assert result.mean_iou < 0.8
        assert result.images == 40


def test_the_mean_mask_itself_ties_with_the_mean_mask():
    targets, train = masks(), masks(seed=1)
    mean = train.mean(0)[0].expand(len(targets), 1, 8, 4)
    known = torch.ones(len(targets), 3, dtype=torch.bool)
    result = judged({"whole0": mean}, targets, known)["whole0"]
    assert result.rmse == pytest.approx(result.mean_rmse, abs=1e-6)


def test_what_is_unknown_is_left_out():
    targets = masks()
    known = torch.zeros(len(targets), 3, dtype=torch.bool)
    known[:10, 0] = True
    spoilt = targets.clone()
    spoilt[10:] = 1 - spoilt[10:]
    maps = {"whole": targets[:, :1], "upper": targets[:, 1:2]}
    results = judged(maps, spoilt, known)
    assert set(results) == {"whole"}
    assert results["whole"].images == 10
    assert results["whole"].iou == 1
