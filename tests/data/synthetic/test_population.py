"""The population `uniform`: colours tell little; `varied` stays what it was."""

import hashlib

import numpy as np
import pytest

from mmga.common.errors import UserError
from mmga.data.synthetic import synthetic
from mmga.data.synthetic.population import POPULATIONS
from mmga.data.synthetic.world import World, WorldOptions


def test_varied_is_the_default():
    digests = []
    for options in ({}, {"population": "varied"}):
        data = synthetic(4, num_train=2, num_test=1, size=(48, 24), images_per_camera=2, **options)
        found = hashlib.sha256()
        for images in (data.train, data.query, data.gallery):
            for i in range(len(images)):
                found.update(images.image(i).numpy().tobytes())
        digests.append(found.hexdigest())
    assert digests[0] == digests[1]


def test_all_splits_of_uniform_wear_the_same_colours():
    def colours(split, population):
        world = World(1, split, 30, WorldOptions(population=population))
        tops = {person.top_number: person.top.body for person in world.persons}
        return np.concatenate([body.reshape(-1, 3) for body in tops.values()])

    def shared(population):
        known = {tuple(colour) for colour in colours("train", population)}
        return np.mean([tuple(colour) in known for colour in colours("test", population)])

    assert shared("uniform") > 0.6
    assert shared("varied") < 0.05
    # Dark and light, little between.
    values = colours("test", "uniform").mean(1)
    assert (values < 75).mean() > 0.3 and (values > 180).mean() > 0.3


def test_patterns_of_uniform_show_both_colours_on_every_height():
    uniform = POPULATIONS["uniform"]
    assert not {"plain", "halves", "block", "wide hoops"} & set(uniform.patterns)


def test_places_of_uniform_are_faint():
    places = []
    for population in ("varied", "uniform"):
        there = World(1, "train", 6, WorldOptions(population=population))
        places.append(there.panorama(there.cameras[0], 0).astype(float))
    contrasts = [place.std((0, 1)).mean() for place in places]
    assert contrasts[1] < 0.6 * contrasts[0]


def test_an_unknown_population_is_named():
    with pytest.raises(UserError, match="population must be one of varied, uniform, got 'x'"):
        synthetic(num_train=1, num_test=1, population="x")
