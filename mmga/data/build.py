"""Data sets, transforms and loaders from a configuration."""

import dataclasses
import logging
from typing import Any

import torch

from mmga.common.distributed import Group
from mmga.common.memory import parse
from mmga.common.progress import Progress
from mmga.config import Config, check
from mmga.data.dataset import DataSet, ImageSet, concatenated
from mmga.data.loader import Loading, TrainLoader
from mmga.data.readers.by_name import load
from mmga.data.sampler import SAMPLERS
from mmga.data.transforms import EvalTransform, TrainTransform

logger = logging.getLogger(__name__)


def load_data(
    config: Config, progress: Progress | None = None, *, training: bool = True
) -> DataSet:
    """Read or render the data set of a configuration; without `training` render no image for it.

    Raises:
        UserError: a folder or file is missing or does not hold what it should.
    """
    data = config.data
    if data.data != "synthetic":
        check(config)
        found = load(data)
        found.need(*(() if training else ("query", "gallery")))
        return found
    from mmga.data.synthetic import synthetic

    return synthetic(
        data.data_seed,
        num_train=data.persons if training else 0,
        num_test=data.test_persons,
        size=(data.height, data.width),
        challenge=data.challenge,
        severity=data.severity,
        schemes=data.schemes,
        population=data.population,
        progress=progress,
    )


def load_mixture(
    config: Config, progress: Progress | None = None
) -> tuple[ImageSet, dict[str, DataSet]]:
    """Read the training images of a configuration, joined over its data sets, and the test sets.

    Raises:
        UserError: a folder or file is missing or does not hold what it should.
    """
    data = config.data
    trained = (data.data, *data.also)
    tested = data.test or trained
    sets: dict[str, DataSet] = {}
    for name in dict.fromkeys((*trained, *tested)):
        changes: Any = {"root": data.root_of(name), "masks": data.masks_of(name)}
        if name in trained and data.masks is not None and changes["masks"] is None:
            logger.warning("no masks of %s: there is no %s", name, data.masks / name)
        own = dataclasses.replace(data, data=name, also=(), test=(), **changes)
        alone = dataclasses.replace(config, data=own)
        sets[name] = load_data(alone, progress, training=name in trained)
        if name in trained:
            sets[name].need("train")
        if name in data.test:
            sets[name].need("query", "gallery")
    train = sets[data.data].train
    if data.also:
        train = concatenated({name: sets[name].train for name in trained})
    tests: dict[str, DataSet] = {name: sets[name] for name in tested if sets[name].has_test}
    for name in tested:
        if name not in tests:
            logger.warning("%s holds no query and no gallery: it is not tested on", name)
    return train, tests


def eval_transform(config: Config) -> EvalTransform:
    """Return the resizing that a configuration evaluates with."""
    return EvalTransform(
        size=(config.data.height, config.data.width), interpolation=config.batch.interpolation
    )


def train_loader(
    config: Config, images: ImageSet, device: torch.device, group: Group
) -> TrainLoader:
    """Return the training batches of a configuration, this process' share of each.

    Raises:
        UserError: too few identities have two images, or `--cache` is no size.
    """
    data, batch = config.data, config.batch
    return TrainLoader(
        images,
        SAMPLERS[batch.sampler](images.pids, batch.p, batch.k, config.run.seed),
        TrainTransform(
            size=(data.height, data.width),
            interpolation=batch.interpolation,
            flip=batch.flip,
            pad=batch.pad,
            erasing=batch.erasing,
            erasing_fill=batch.erasing_fill,
            erase_mask=batch.erase_mask,
            part_drop=batch.part_drop,
            new_background=batch.new_background,
        ),
        seed=config.run.seed,
        loading=Loading(data.workers, device, data.skip_broken),
        cache=parse(data.cache, "--cache") or 0,
        group=group,
    )
