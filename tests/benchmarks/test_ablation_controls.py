"""The controls of the ablation: each takes away what it says, and nothing else."""

import json

import numpy as np
import pytest
import torch

from mmga.common.errors import UserError
from mmga.config import check, merged, recipe_config
from mmga.data.dataset import DataSet, ImageTensors
from mmga.data.loader import Batch, TrainLoader
from mmga.data.masks import PartMask
from mmga.data.sampler import SAMPLERS
from mmga.data.transforms import TrainTransform, replace_background
from mmga.training import trainer
from mmga.training.attention_metrics import mean_mask
from mmga.training.losses import mask_loss
from mmga.training.step import guides, strangers

SIZE = (32, 16)


def images(persons=4, each=3, masks=True):
    random = np.random.default_rng(0)
    count = persons * each
    pictures = torch.from_numpy(random.integers(1, 256, (count, 3, *SIZE), dtype=np.uint8))
    labels = [torch.zeros(SIZE, dtype=torch.uint8) for _ in range(count)]
    for i, label in enumerate(labels):
        label[4 + i : 14 + i, 3:9] = 1
        label[14 + i :, 3:9] = 2
    return ImageTensors(
        pictures,
        np.repeat(np.arange(persons), each),
        np.arange(count) % 2,
        masks=[PartMask(label) for label in labels] if masks else None,
    )


def config(**sections):
    start = merged(recipe_config("synthetic"), {"data": {"height": 32, "width": 16}}, where="test")
    return merged(start, sections, where="test")


@pytest.mark.parametrize("counts", [[2, 2, 2], [4, 4], [1, 3, 2, 2], [5, 4, 1]])
def test_strangers_are_all_of_another_identity(counts):
    pids = torch.repeat_interleave(torch.tensor([7, 3, 9, 1][: len(counts)]), torch.tensor(counts))
    pids = pids[torch.randperm(len(pids))]
    partners = strangers(pids)
    assert (pids[partners] != pids).all()
    assert sorted(partners.tolist()) == list(range(len(pids)))


def test_strangers_need_enough_identities():
    with pytest.raises(UserError, match="3 of the 5 images of a batch are of one identity"):
        strangers(torch.tensor([1, 1, 1, 2, 2]))


def batch():
    there = images()
    labels = torch.stack([there.mask(i).labels for i in range(len(there))])
    return Batch(
        images=torch.randn(len(there), 3, *SIZE),
        pids=torch.from_numpy(there.pids),
        camids=torch.from_numpy(there.camids),
        labels=labels,
        parts=torch.arange(len(there)) % 3 > 0,
        has_mask=torch.arange(len(there)) % 5 > 0,
        indices=torch.arange(len(there)),
    )


def test_other_guides_by_the_mask_of_another_identity():
    """Control B: every mask of the batch is used once, none by its own image."""
    one = batch()
    labels, parts, has_mask = guides(one, "other")
    for i in range(len(one)):
        (j,) = [j for j in range(len(one)) if torch.equal(one.labels[j], labels[i])]
        assert one.pids[j] != one.pids[i]
        assert parts[i] == one.parts[j] and has_mask[i] == one.has_mask[j]
    for guide in ("own", "mean", "whole"):
        assert all(
            a is b
            for a, b in zip(guides(one, guide), (one.labels, one.parts, one.has_mask), strict=True)
        )


def test_the_mean_mask_is_the_target_of_every_image():
    """Control A: maps that equal the mean mask at their size have no loss; own masks do not."""
    there, settings = images(), config()
    prior = mean_mask(there, settings)
    labels = torch.stack([there.mask(i).labels for i in range(len(there))])
    torch.testing.assert_close(prior[1], (labels == 1).float().mean(0))
    torch.testing.assert_close(prior[0], (labels > 0).float().mean(0))
    known = torch.ones(len(there), dtype=torch.bool)
    maps = {
        name: torch.nn.functional.adaptive_avg_pool2d(prior[part, None], size)
        .expand(len(there), 1, *size)
        .clone()
        for name, part, size in (
            ("whole0", 0, (8, 4)),
            ("whole", 0, (4, 2)),
            ("upper", 1, (4, 2)),
            ("bottom", 2, (4, 2)),
        )
    }
    loss, terms = mask_loss(maps, labels, known, known, prior=prior)
    assert loss < 2e-4 and len(terms) == 4
    # Whatever the image's own mask is.
    other, _ = mask_loss(maps, labels.flip(0), known, known, prior=prior)
    torch.testing.assert_close(other, loss, rtol=0, atol=0)
    assert mask_loss(maps, labels, known, known)[0] > 0.05
    # The prior also has its own gradient: it pulls every image's map to the mean.
    wrong = {name: torch.full_like(value, 0.5).requires_grad_() for name, value in maps.items()}
    mask_loss(wrong, labels, known, known, prior=prior)[0].backward()
    pull = wrong["whole0"].grad
    assert torch.equal(pull[0], pull[-1]) and pull.abs().sum() > 0


def test_a_prior_leaves_images_without_mask_out():
    labels = torch.zeros(2, *SIZE, dtype=torch.uint8)
    maps = {"whole": torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 1, 4, 2)}
    known = torch.tensor([True, False])
    loss, _ = mask_loss(maps, labels, known, known, prior=torch.zeros(3, *SIZE))
    assert loss < 2e-4


def test_the_mean_mask_needs_masks():
    with pytest.raises(UserError, match="--guide mean needs masks"):
        mean_mask(images(masks=False), config())


def test_new_background_changes_only_what_the_mask_leaves_open():
    """Control D: on the body the image, off it the first other image without a body there."""
    there = images()
    image, labels = there.image(11), there.mask(11).labels
    others = [(there.image(i), there.mask(i).labels) for i in (0, 5)]
    before = image.clone()
    result = replace_background(image, labels, others)
    assert torch.equal(image, before)
    body = labels > 0
    assert torch.equal(result[:, body], image[:, body])
    first, second = others
    at_first = ~body & (first[1] == 0)
    at_second = ~body & ~at_first & (second[1] == 0)
    neither = ~body & ~at_first & ~at_second
    assert at_first.any() and at_second.any() and neither.any()
    assert torch.equal(result[:, at_first], first[0][:, at_first])
    assert torch.equal(result[:, at_second], second[0][:, at_second])
    assert torch.equal(result[:, neither], image[:, neither])


def loaded(probability, masks=True):
    there = images(masks=masks)
    transform = TrainTransform(size=SIZE, flip=0.5, erasing=0.3, pad=2, new_background=probability)
    loader = TrainLoader(there, SAMPLERS["bot"](there.pids, 4, 2, 0), transform, seed=3)
    return list(loader.epoch(1))


def test_the_loader_draws_all_else_as_without_new_backgrounds():
    plain, pasted = loaded(0.0), loaded(1.0)
    changed = 0
    for one, other in zip(plain, pasted, strict=True):
        assert torch.equal(one.indices, other.indices)
        assert torch.equal(one.labels, other.labels)
        body = (one.labels > 0)[:, None].expand_as(one.images)
        assert torch.equal(one.images[body], other.images[body])
        changed += int((one.images[~body] != other.images[~body]).sum())
    assert changed > 0
    again = loaded(1.0)
    assert all(torch.equal(a.images, b.images) for a, b in zip(pasted, again, strict=True))


def test_images_without_masks_keep_their_background():
    for one, other in zip(loaded(0.0, masks=False), loaded(1.0, masks=False), strict=True):
        assert torch.equal(one.images, other.images)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"batch": {"new_background": 1.5}}, "--new-background must be at most 1, got 1.5"),
        ({"batch": {"p": 1}, "loss": {"guide": "other"}}, "--p must be at least 2 for --guide"),
    ],
)
def test_values_that_do_not_fit(values, sentence):
    with pytest.raises(UserError, match=sentence):
        check(config(**values))


def test_each_guide_trains_by_its_own_loss(tmp_path):
    """From one start, the first step's mask loss differs between the guides, and nothing else."""
    there, losses = images(persons=4, each=4), {}
    for guide in ("own", "whole", "mean", "other"):
        settings = config(
            loss={"guide": guide},
            batch={"p": 4, "k": 2},
            run={"epochs": 1, "log_every": 1, "threads": 1},
        )
        seen = []
        trainer.train(
            settings,
            tmp_path / guide,
            data=DataSet("t", there, there, there),
            observe=lambda network, position, seen=seen: seen.append(position.epoch),
        )
        assert seen == [1]
        lines = (tmp_path / guide / "metrics.jsonl").read_text().splitlines()
        losses[guide] = json.loads(lines[0])
    assert len({found["id"] for found in losses.values()}) == 1
    assert len({found["mask"] for found in losses.values()}) == 4
