"""From a run to its parts again (device, data set, network), and from images to features."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from mmga.checkpoint import load_checkpoint, load_weights
from mmga.config import Config, ModelConfig, check, merged, recipe_config
from mmga.data.dataset import DataSet, ImageSet
from mmga.data.loader import Batch, eval_batches
from mmga.data.transforms import EvalTransform
from mmga.errors import UserError
from mmga.models import MMGA
from mmga.progress import Progress

if TYPE_CHECKING:
    from mmga.retrieval.features import Features

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Run:
    """A trained run, ready to be used.

    Attributes:
        folder: the run's folder.
        config: its configuration.
        network: in evaluation mode, on the device asked for.
        step: steps it was trained for.
    """

    folder: Path
    config: Config
    network: MMGA
    step: int


def resolve_device(name: str) -> torch.device:
    """Return the device that `auto`, `cpu`, `cuda` or `cuda:N` means here.

    Raises:
        UserError: there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"--device must be auto, cpu, cuda or cuda:N, got {name!r}") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices; "
            "use cpu or another number"
        )
    return device


def build_network(config: ModelConfig, num_classes: int) -> MMGA:
    """Build the network that a configuration describes, with `num_classes` identities."""
    return MMGA(
        num_classes,
        config.backbone,
        None if config.weights == "none" else config.weights,
        backbone_weights=config.backbone_weights,
        attention=config.attention,
        combine=config.combine,
        branches=config.branches,
        heads=config.heads,
        neck=config.neck,
        pool=config.pool,
        spatial_kernel=config.spatial_kernel,
        read0=config.read0,
        reduction=config.reduction,
        classifier=config.classifier,
    )


def open_run(path: Path, device: str = "auto") -> Run:
    """Load a trained run from its folder or from one of its checkpoints.

    Raises:
        UserError: there is no checkpoint, or it is truncated or foreign.
    """
    file = path / "last.safetensors" if path.is_dir() else path
    checkpoint = load_checkpoint(file)
    base = recipe_config(checkpoint.config.get("recipe", "mgn"))
    config = merged(base, checkpoint.config, where=str(file))
    # The checkpoint holds every weight: nothing is to be downloaded.
    bare = merged(config, {"model": {"weights": "none", "backbone_weights": None}}, where=str(file))
    network = build_network(bare.model, checkpoint.num_classes)
    load_weights(network, checkpoint, file)
    network.to(resolve_device(device)).eval()
    return Run(file.parent, config, network, checkpoint.progress.step)


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
            progress=progress,
        )
    from mmga.data.datasets import load

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
) -> "Features":
    """Return the features of all images of a set, in their order.

    Args:
        network: left in the mode it was in.
        images: the set.
        config: image size, mirror image and loading are taken from it.
        phase: name of the progress bar.
        progress: called with (phase, images done, images in all).

    Raises:
        UserError: an image cannot be decoded and is not to be skipped.
    """
    from mmga.retrieval.features import Features

    device = next(network.parameters()).device
    was_training = network.training
    network.eval()
    rows, kept = [], []
    broken: dict[str, str] = {}
    batches = eval_batches(
        images,
        eval_transform(config),
        workers=config.data.workers,
        device=device,
        skip_broken=config.data.skip_broken,
        broken=broken,
        masks=False,
    )
    done = 0
    for batch in batches:
        rows.append(embed(network, batch, config.run.flip_test).cpu())
        kept.append(batch.indices.cpu())
        done += len(batch)
        if progress is not None:
            progress(phase, done, len(images))
    network.train(was_training)
    if not rows:
        raise UserError(f"{phase}: there is no image to extract features from")
    if broken:
        logger.warning("%s: %d images were left out as broken", phase, len(broken))
    places = torch.cat(kept).numpy()
    return Features(
        torch.cat(rows).numpy(),
        images.pids[places],
        images.camids[places],
        np.array(images.paths)[places],
    )
