"""From a run to its parts again (device, data set, network), and from images to features."""

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mmga.common.device import resolve_device
from mmga.common.distributed import Group, gather
from mmga.common.errors import UserError
from mmga.common.progress import Progress
from mmga.config import Config, check
from mmga.data.dataset import DataSet, ImageSet, Subset, concatenated
from mmga.data.loader import Batch, eval_batches
from mmga.data.transforms import EvalTransform
from mmga.models import MMGA
from mmga.models.loading import load_trained

if TYPE_CHECKING:
    from mmga.retrieval.features import Features

logger = logging.getLogger(__name__)

BATCH = 64
"""Images that are extracted at once."""


@dataclass(frozen=True, slots=True)
class Run:
    """A trained run, ready to be used.

    Attributes:
        folder: the run's folder.
        config: its configuration.
        network: in evaluation mode, on the device asked for.
        step: steps it was trained for.
        averaged: whether its weights are the moving average (`--ema`) of training.
    """

    folder: Path
    config: Config
    network: MMGA
    step: int
    averaged: bool = False


def open_run(path: Path, device: str = "auto") -> Run:
    """Load a trained run from its folder or from one of its checkpoints.

    Where training kept a moving average of the weights, that average is loaded.

    Raises:
        UserError: there is no checkpoint, or it is truncated or foreign.
    """
    trained = load_trained(path)
    network = trained.network.to(resolve_device(device))
    return Run(trained.file.parent, trained.config, network, trained.step, trained.averaged)


def load_data(
    config: Config, progress: Progress | None = None, *, training: bool = True
) -> DataSet:
    """Read or render the data set of a configuration.

    Args:
        config: names the data set and its switches.
        progress: told how many images are rendered.
        training: whether the training images are wanted; without them nothing is rendered for it.

    Raises:
        UserError: a folder or file is missing or does not hold what it should.
    """
    data = config.data
    if data.data == "synthetic":
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
    from mmga.data.readers.by_name import load

    check(config)
    return load(
        data.data,
        data.root,
        masks=data.masks,
        label_set=data.label_set,
        halved_at=data.halved_at,
        split=data.split,
        splits_file=data.splits_file,
        direction=data.direction,
        boxes=data.boxes,
        with_val=data.with_val,
        distractors=data.distractors,
    )


def load_mixture(
    config: Config, progress: Progress | None = None
) -> tuple[ImageSet, dict[str, DataSet]]:
    """Read what a configuration trains on, joined where it names several sets, and tests on.

    Args:
        config: names the data sets and their switches.
        progress: told how many images are rendered.

    Returns:
        The training images, and the data sets to test on by name.

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
    train = sets[data.data].train
    if data.also:
        train = concatenated({name: sets[name].train for name in trained})
    return train, {name: sets[name] for name in tested}


def eval_transform(config: Config) -> EvalTransform:
    """Return the resizing that a configuration evaluates with."""
    return EvalTransform(
        size=(config.data.height, config.data.width), interpolation=config.batch.interpolation
    )


@torch.inference_mode()
def embed(network: MMGA, batch: Batch, flip: bool) -> torch.Tensor:
    """Return L2-normalised features [B, D]; `flip` sums those of the mirror image (MGN's test)."""
    features = network.embed(batch.images)
    if flip:
        features = features + network.embed(batch.images.flip(-1))
    return torch.nn.functional.normalize(features.float())


def extract(
    network: MMGA,
    images: ImageSet,
    config: Config,
    *,
    phase: str = "extract",
    progress: Progress | None = None,
    group: Group | None = None,
) -> "Features":
    """Return the features of all images of a set, in their order.

    In a group of processes each extracts a share, and all get the whole. Shares are whole batches,
    so that a batch, and with it every feature's last bit, is the same for any number of processes.

    Args:
        network: left in the mode it was in.
        images: the set.
        config: image size, mirror image and loading are taken from it.
        phase: name of the progress bar.
        progress: called with (phase, images done, images in all).
        group: the processes that share the work; by default this one alone.

    Raises:
        UserError: an image cannot be decoded and is not to be skipped.
    """
    from mmga.retrieval.features import Features

    group = group or Group()
    own = np.array_split(np.arange(0, len(images), BATCH), group.world)[group.rank]
    start, end = (int(own[0]), int(own[-1]) + BATCH) if len(own) else (0, 0)
    with group.together():
        rows, places = _own_rows(
            network, images, np.arange(start, min(end, len(images))), config, phase, progress
        )
    sizes = group.table([len(rows)])[:, 0].long().tolist()
    rows = gather(rows.to(group.device), sizes, group).cpu()
    places = gather(places.to(group.device), sizes, group).cpu()
    with group.together():
        if not len(rows):
            raise UserError(f"{phase}: there is no image to extract features from")
    kept = places.numpy()
    return Features(
        rows.numpy(), images.pids[kept], images.camids[kept], np.array(images.paths)[kept]
    )


def _own_rows(
    network: MMGA,
    images: ImageSet,
    share: np.ndarray,
    config: Config,
    phase: str,
    progress: Progress | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return features [n, D] and places [n] of the images of a share that can be read."""
    device = next(network.parameters()).device
    was_training = network.training
    network.eval()
    rows = [torch.empty(0, network.dim)]
    kept = [torch.empty(0, dtype=torch.int64)]
    broken: dict[str, str] = {}
    batches = eval_batches(
        Subset(images, share),
        eval_transform(config),
        workers=config.data.workers,
        device=device,
        skip_broken=config.data.skip_broken,
        broken=broken,
        masks=False,
        batch_size=BATCH,
    )
    done = 0
    for batch in batches:
        rows.append(embed(network, batch, config.run.flip_test).cpu())
        kept.append(torch.from_numpy(share)[batch.indices.cpu()])
        done += len(batch)
        if progress is not None:
            progress(phase, done, len(share))
    network.train(was_training)
    if broken:
        logger.warning("%s: %d images were left out as broken", phase, len(broken))
    return torch.cat(rows), torch.cat(kept)
