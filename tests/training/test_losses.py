import dataclasses
import math

import pytest
import torch

from mmga.config import LossConfig
from mmga.models import Output
from mmga.training.losses import (
    Masks,
    batch_hard_triplet,
    identity_loss,
    mask_iou,
    mask_loss,
    mask_rmse,
    total_loss,
)

MAPS = {"whole0": (8, 4), "whole": (4, 2), "upper": (4, 2), "bottom": (4, 2)}


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(7)


def _attention(generator, count=5):
    return {
        name: torch.rand(count, 1, *size, generator=generator).requires_grad_()
        for name, size in MAPS.items()
    }


def _labels(generator, count=5):
    return torch.randint(0, 4, (count, 16, 8), generator=generator, dtype=torch.uint8)


def _naive_mask_loss(attention, labels, parts, has_mask):
    """The formula, pixel by pixel, in float64."""
    terms = {}
    for name, maps in attention.items():
        h, w = maps.shape[-2:]
        a, b = labels.shape[1] // h, labels.shape[2] // w
        values = []
        for i in range(len(labels)):
            if not has_mask[i] or (name in ("upper", "bottom") and not parts[i]):
                continue
            total = 0.0
            for r in range(h):
                for c in range(w):
                    block = labels[i, r * a : (r + 1) * a, c * b : (c + 1) * b].flatten().tolist()
                    inside = {
                        "upper": [v == 1 for v in block],
                        "bottom": [v == 2 for v in block],
                    }.get(name, [v != 0 for v in block])
                    total += (maps[i, 0, r, c].item() - sum(inside) / len(inside)) ** 2
            values.append(math.sqrt(total / (h * w) + 1e-8))
        if values:
            terms[name] = sum(values) / len(values)
    return sum(terms.values()) / len(terms)


@pytest.mark.parametrize(
    ("parts", "has_mask"),
    [
        ([1, 1, 1, 1, 1], [1, 1, 1, 1, 1]),
        ([1, 0, 1, 0, 1], [1, 1, 0, 0, 1]),
        ([0, 0, 0, 0, 0], [1, 1, 1, 0, 1]),
    ],
    ids=["parsed", "mixed", "silhouettes"],
)
def test_mask_loss_equals_the_formula(generator, parts, has_mask):
    attention, labels = _attention(generator), _labels(generator)
    parts, has_mask = torch.tensor(parts).bool(), torch.tensor(has_mask).bool()
    loss, _ = mask_loss(attention, labels, parts, has_mask)
    expected = _naive_mask_loss(attention, labels, parts, has_mask)
    assert loss.item() == pytest.approx(expected, rel=1e-5)  # float32 against float64


def test_unknown_images_have_no_influence(generator):
    attention, labels = _attention(generator), _labels(generator)
    parts = torch.tensor([True, False, True, True, True])
    has_mask = torch.tensor([True, True, False, True, True])
    loss, _ = mask_loss(attention, labels, parts, has_mask)
    loss.backward()
    for name in MAPS:
        silhouette_is_known = name in ("whole0", "whole")
        assert attention[name].grad[1].any() == silhouette_is_known
        assert not attention[name].grad[2].any()
        assert attention[name].grad[0].any()
    labels[2] = 3
    again, _ = mask_loss(attention, labels, parts, has_mask)
    assert again.item() == loss.item()


def test_an_invisible_part_is_known_to_be_empty(generator):
    attention = _attention(generator, 1)
    labels = torch.ones(1, 16, 8, dtype=torch.uint8)
    yes = torch.tensor([True])
    _, terms = mask_loss(attention, labels, yes, yes)
    expected = attention["bottom"].square().mean().add(1e-8).sqrt()
    torch.testing.assert_close(terms["bottom"], expected)


def test_no_mask_at_all_gives_zero(generator):
    attention = _attention(generator)
    no = torch.zeros(5, dtype=torch.bool)
    loss, _ = mask_loss(attention, _labels(generator), no, no)
    assert loss.item() == 0
    loss.backward()
    assert all(not maps.grad.any() for maps in attention.values())
    assert mask_loss({}, _labels(generator), no, no)[0].item() == 0


def test_perfect_maps_have_a_finite_gradient():
    labels = torch.ones(2, 16, 8, dtype=torch.uint8)
    maps = torch.ones(2, 1, 8, 4, requires_grad=True)
    yes = torch.ones(2, dtype=torch.bool)
    loss, _ = mask_loss({"whole": maps}, labels, yes, yes)
    loss.backward()
    assert loss.item() == pytest.approx(1e-4)
    assert not maps.grad.any()


def test_whole_only_guides_every_map_by_the_whole_body(generator):
    maps = torch.rand(3, 1, 4, 2, generator=generator)
    labels, yes = _labels(generator, 3), torch.ones(3, dtype=torch.bool)
    config, both = LossConfig(guide="whole"), {"whole": maps, "upper": maps}
    _, terms = mask_loss(both, labels, yes, yes, config=config)
    assert terms["upper"] == terms["whole"]
    _, terms = mask_loss({"whole": maps, "upper": maps}, labels, yes, yes)
    assert terms["upper"] != terms["whole"]


def test_two_halves_with_the_mean_count_average_to_the_whole(generator):
    # What a process group computes: each process its images, divided by the mean count.
    attention, labels = _attention(generator, 6), _labels(generator, 6)
    parts = torch.tensor([1, 0, 0, 0, 1, 1]).bool()
    has_mask = torch.tensor([1, 1, 0, 1, 1, 1]).bool()
    whole, _ = mask_loss(attention, labels, parts, has_mask)
    counts = torch.tensor([5.0, 3.0, 3.0]) / 2
    halves = [
        mask_loss(
            {name: maps[rows] for name, maps in attention.items()},
            labels[rows],
            parts[rows],
            has_mask[rows],
            counts=counts,
        )[0]
        for rows in (slice(0, 3), slice(3, 6))
    ]
    torch.testing.assert_close(sum(halves) / 2, whole)


def test_rmse_and_iou_of_single_images():
    maps = torch.tensor([[[[0.9, 0.1], [0.6, 0.2]]], [[[0.0, 0.0], [0.0, 0.0]]]])
    masks = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]]])
    expected = math.sqrt((0.01 + 0.01 + 0.36 + 0.64) / 4 + 1e-8)
    assert mask_rmse(maps, masks).tolist() == pytest.approx([expected, 1e-4], rel=1e-5)
    iou = mask_iou(maps, masks)
    assert iou[0].item() == pytest.approx(1 / 3)
    assert iou[1].isnan()


def _naive_triplet(embeddings, pids, margin):
    values = []
    for a, anchor in enumerate(embeddings):
        positives, negatives = [], []
        for i, other in enumerate(embeddings):
            distance = math.dist(anchor, other)
            if pids[i] != pids[a]:
                negatives.append(distance)
            elif i != a:
                positives.append(distance)
        if positives and negatives:
            values.append(max(0.0, margin + max(positives) - min(negatives)))
    return sum(values) / len(values) if values else 0.0


@pytest.mark.parametrize("margin", [0.0, 0.3, 1.2])
@pytest.mark.parametrize(
    "pids", [[0, 0, 1, 1, 2, 2, 2, 5], [0, 0, 0, 0], [0, 1, 2, 3], [3, 3, 8]], ids=str
)
def test_triplet_equals_a_loop(generator, pids, margin):
    embeddings = torch.randn(len(pids), 6, generator=generator)
    loss = batch_hard_triplet(embeddings, torch.tensor(pids), margin)
    expected = _naive_triplet(embeddings.double().tolist(), pids, margin)
    assert loss.item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_triplet_gradient_in_float64_by_differences(generator):
    embeddings = torch.randn(6, 3, generator=generator)
    pids = torch.tensor([0, 0, 1, 1, 2, 2])
    embeddings.requires_grad_()
    batch_hard_triplet(embeddings, pids).backward()
    step, numeric = 1e-5, torch.zeros_like(embeddings)
    for i in range(6):
        for j in range(3):
            shifted = [embeddings.detach().double().clone() for _ in range(2)]
            shifted[0][i, j] += step
            shifted[1][i, j] -= step
            high, low = (_naive_triplet(s.tolist(), pids.tolist(), 1.2) for s in shifted)
            numeric[i, j] = (high - low) / (2 * step)
    torch.testing.assert_close(embeddings.grad, numeric, rtol=1e-3, atol=1e-4)


def test_equal_embeddings_have_a_finite_gradient():
    embeddings = torch.ones(4, 3, requires_grad=True)
    loss = batch_hard_triplet(embeddings, torch.tensor([0, 0, 1, 1]), 1.2)
    loss.backward()
    assert loss.item() == pytest.approx(1.2)
    assert embeddings.grad.isfinite().all()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_identity_loss_equals_the_formula(generator, smoothing):
    logits = torch.randn(4, 5, generator=generator)
    classes = torch.tensor([0, 4, 2, 2])
    expected = 0.0
    for row, c in zip(logits.double(), classes.tolist(), strict=True):
        log_p = row - row.logsumexp(0)
        target = [(1 - smoothing) * (i == c) + smoothing / 5 for i in range(5)]
        expected -= sum(t * p for t, p in zip(target, log_p.tolist(), strict=True)) / 4
    assert identity_loss(logits, classes, smoothing).item() == pytest.approx(expected, rel=1e-5)


def test_the_total_is_the_weighted_sum(generator):
    attention, labels = _attention(generator, 4), _labels(generator, 4)
    heads = ("whole", "upper", "bottom")
    embeddings = {name: torch.randn(4, 6, generator=generator) for name in heads}
    logits = {name: torch.randn(4, 9, generator=generator) for name in heads}
    output = Output(embeddings, logits, attention, attention, embeddings)
    classes, yes = torch.tensor([1, 1, 8, 8]), torch.ones(4, dtype=torch.bool)
    masks = Masks(labels, yes, yes)
    weights = LossConfig(margin=0.5, id_weight=3, mask_weight=10, smoothing=0.1)
    parts = total_loss(output, classes, masks, weights)
    triplet = sum(batch_hard_triplet(e, classes, 0.5) for e in embeddings.values()) / 3
    identity = sum(identity_loss(x, classes, 0.1) for x in logits.values()) / 3
    mask, _ = mask_loss(attention, labels, yes, yes)
    torch.testing.assert_close(parts["triplet"], triplet)
    torch.testing.assert_close(parts["id"], identity)
    torch.testing.assert_close(parts["mask"], mask)
    torch.testing.assert_close(parts["loss"], triplet + 3 * identity + 10 * mask)
    blurred = dataclasses.replace(weights, mask_blur=0.1)
    soft, _ = mask_loss(attention, labels, yes, yes, config=blurred)
    assert abs(soft - mask) > 1e-4
    torch.testing.assert_close(total_loss(output, classes, masks, blurred)["mask"], soft)
    upper = output._replace(embeddings={"upper": embeddings["upper"]})
    only = total_loss(upper, classes, masks, weights)
    torch.testing.assert_close(
        only["triplet"], batch_hard_triplet(embeddings["upper"], classes, 0.5)
    )


def test_losses_stay_in_float32_under_autocast(generator):
    embeddings = torch.randn(4, 64, generator=generator) * 100
    pids = torch.tensor([0, 0, 1, 1])
    expected = batch_hard_triplet(embeddings, pids)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert batch_hard_triplet(embeddings, pids).item() == expected.item()
        loss = batch_hard_triplet(embeddings.bfloat16(), pids)
    assert loss.dtype == torch.float32
