"""Extract the features of image sets with a network of this package."""

import logging
from typing import TYPE_CHECKING

import numpy as np
import torch

from mmga.common.distributed import Group, gather
from mmga.common.errors import UserError
from mmga.common.progress import Progress
from mmga.config import Config
from mmga.data.build import eval_transform
from mmga.data.dataset import ImageSet, Subset, label_columns
from mmga.extraction.embedder import Embedder, embed_images, part_embeddings, whole_embeddings
from mmga.models import MMGA

if TYPE_CHECKING:
    from mmga.retrieval.features import Features

logger = logging.getLogger(__name__)

BATCH = 64
"""Images that are extracted at once."""


def embedder_of(
    network: MMGA, config: Config, *, name: str = "mmga", parts: bool = False
) -> Embedder:
    """Return a network as the extractor that its configuration evaluates, of whole or of parts.

    Raises:
        UserError: the network has no attention maps of parts.
    """
    embed = part_embeddings(network) if parts else whole_embeddings(network, name)
    device = next(network.parameters()).device
    return Embedder(
        name,
        eval_transform(config),
        embed,
        device,
        config.run.flip_test,
        network,
        f"{'parts' if parts else 'whole'} {config.model}",
    )


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
    share = np.arange(start, min(end, len(images)))

    def done(count: int) -> None:
        if progress is not None:
            progress(phase, count, len(share))

    with group.together():
        broken: dict[str, str] = {}
        was_training = network.training
        (rows, _), places = embed_images(
            embedder_of(network.eval(), config),
            Subset(images, share),
            batch_size=BATCH,
            workers=config.data.workers,
            broken=broken if config.data.skip_broken else None,
            progress=done,
        )
        network.train(was_training)
        if broken:
            logger.warning("%s: %d images were left out as broken", phase, len(broken))
        rows = rows if len(rows) else torch.empty(0, network.dim, dtype=torch.float32, device="cpu")
        places = torch.from_numpy(share)[places]
    sizes = group.table([len(rows)])[:, 0].long().tolist()
    rows = gather(rows.to(group.device), sizes, group).cpu()
    places = gather(places.to(group.device), sizes, group).cpu()
    with group.together():
        if not len(rows):
            raise UserError(f"{phase}: there is no image to extract features from")
    return Features(rows.numpy(), **label_columns(images, places.numpy()))
