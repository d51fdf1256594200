"""The synthetic persons as a data set: interface, determinism, sharing."""

import numpy as np
import pytest
import torch

from mmga.common.errors import UserError
from mmga.data.synthetic import synthetic
from mmga.data.synthetic.world import World, WorldOptions


@pytest.fixture(scope="module")
def data():
    return synthetic(seed=3, num_train=8, num_val=3, num_test=4, images_per_camera=3)


def test_sets_follow_the_image_set_protocol(data):
    for images in (data.train, data.query, data.gallery, *data.val):
        assert len(images) == len(images.pids) == len(images.camids) == len(images.paths)
        assert images.pids.dtype == images.camids.dtype == np.int64
        image, mask = images.image(0), images.mask(0)
        assert image.shape == (3, 128, 64) and image.dtype == torch.uint8
        assert mask.parts and mask.labels.shape == (128, 64)
        assert mask.labels.max() <= 3
        assert len(set(images.paths)) == len(images)
    first = data.train
    assert first.paths[0] == f"train/0001_c{first.camids[0]}_000.png"


def test_identities_are_disjoint_and_queries_have_matches(data):
    train, val, test = (set(s.pids.tolist()) for s in (data.train, data.val[0], data.query))
    assert not train & val and not train & test and not val & test
    assert set(data.gallery.pids.tolist()) == test
    for pid, camid in zip(data.query.pids, data.query.camids, strict=True):
        assert ((data.gallery.pids == pid) & (data.gallery.camids != camid)).any()


def test_a_picture_depends_on_its_shot_alone(data):
    order = np.random.default_rng(0).permutation(len(data.train))
    world = World(3, "train", 8, WorldOptions())
    for i in order[:12].tolist():
        picture = world.picture(data.train.shots[i])
        assert np.array_equal(picture.image, data.train.image(i).numpy())
        assert np.array_equal(picture.labels, data.train.mask(i).labels.numpy())
    other = World(4, "train", 8, WorldOptions()).picture(data.train.shots[0])
    assert not np.array_equal(other.image, data.train.image(0).numpy())


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("challenge", "rain"),
        ("severity", 4),
        ("rho", 1.5),
        ("images_per_camera", 1),
        ("num_train", -1),
        ("cameras", 1),
        ("size", (8, 8)),
    ],
)
def test_arguments_out_of_range_are_named(argument, value):
    with pytest.raises(UserError, match=argument):
        synthetic(**{argument: value})
