"""Compare attention maps with held-out masks, and with a prior that needs no image.

A network that has learned only the usual position of persons predicts the training set's mean mask
for every image; a map is useful where it fits better than that.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from mmga.common.errors import UserError
from mmga.common.progress import Progress
from mmga.config import Config
from mmga.data.build import eval_transform
from mmga.data.dataset import ImageSet
from mmga.data.loader import Loading, eval_batches
from mmga.data.masks import part_targets
from mmga.models import MMGA
from mmga.training.losses import GUIDING_PARTS, mask_iou, mask_rmse

_THRESHOLDS = torch.arange(1, 20, dtype=torch.float32, device="cpu") / 20


@dataclass(frozen=True, slots=True)
class Fit:
    """Fit of one attention map to the masks.

    Attributes:
        rmse: mean over images of the root mean square difference to the mask (the mask loss).
        mean_rmse: the same for the training set's mean mask.
        iou: mean over images of intersection over union, map and mask cut at 0.5.
        mean_iou: the same for the mean mask, cut where it fits the training masks best.
        images: images with a known mask of this part.
    """

    rmse: float
    mean_rmse: float
    iou: float
    mean_iou: float
    images: int


class MeanMask:
    """The mean of the training masks at one map size, and the threshold that fits them best."""

    def __init__(self, targets: torch.Tensor, known: torch.Tensor) -> None:
        """Average training targets, float [N, 3, h, w], where known, bool [N, 3]."""
        weight = known[:, :, None, None].float()
        self.mean = (targets * weight).sum(0) / weight.sum(0).clamp(min=1)  # [3, h, w]
        self.threshold = torch.empty(3, dtype=torch.float32, device="cpu")
        for part in range(3):
            masks = targets[known[:, part], part]
            scores = [_iou(self.cut(part, t), masks) for t in _THRESHOLDS]
            self.threshold[part] = _THRESHOLDS[int(np.argmax(scores))]

    def cut(self, part: int, threshold: float | torch.Tensor) -> torch.Tensor:
        """Return the mean mask of a part cut at a threshold, float [h, w] of 0 and 1."""
        return (self.mean[part] >= threshold).float()


def mean_mask(images: ImageSet, config: Config) -> torch.Tensor:
    """Return the mean mask of a set's images, float32 [3, H, W] of whole, upper and bottom.

    Raises:
        UserError: no image has a mask.
    """
    size = (config.data.height, config.data.width)
    total, count = (
        torch.zeros(3, *size, dtype=torch.float64, device="cpu"),
        torch.zeros(3, dtype=torch.float32, device="cpu"),
    )
    loading = Loading(config.data.workers, skip_broken=config.data.skip_broken)
    for batch in eval_batches(images, eval_transform(config), loading):
        targets, known = part_targets(batch.labels, batch.parts, batch.has_mask, size)
        total += (targets * known[:, :, None, None]).sum(0, dtype=torch.float64)
        count += known.sum(0)
    if not count[0]:
        raise UserError(
            "--guide mean needs masks, and no training image has one; name them with --masks"
        )
    return (total / count.clamp(min=1)[:, None, None]).float()


@torch.inference_mode()
def measure(
    network: MMGA,
    train: ImageSet,
    held_out: ImageSet,
    config: Config,
    progress: Progress | None = None,
) -> dict[str, Fit]:
    """Compare a network's attention maps on held-out images with their masks.

    Args:
        network: left in the mode it was in.
        train: images of the mean mask.
        held_out: images that were not trained on.
        config: image size and loading are taken from it.
        progress: called with (phase, images done, images in all).

    Returns:
        A fit by map; empty where the network has no attention or no held-out image has a mask.
    """
    was_training = network.training
    network.eval()
    held = _Collected(held_out, config, "attention", progress, network=network)
    network.train(was_training)
    sizes = {name: _size(maps) for name, maps in held.maps.items()}
    if not sizes or not held.known.any():
        return {}
    taught = _Collected(train, config, "mean mask", progress, sizes=set(sizes.values()))
    means = {size: MeanMask(targets, taught.known) for size, targets in taught.targets.items()}
    return fit(
        held.maps,
        {name: held.targets[size] for name, size in sizes.items()},
        held.known,
        {name: means[size] for name, size in sizes.items()},
    )


class _Collected:
    """Attention maps and targets of a whole set, on the CPU.

    Attributes:
        maps: float [N, 1, h, w] by name, of a network.
        targets: float [N, 3, h, w] by map size.
        known: bool [N, 3].
    """

    def __init__(
        self,
        images: ImageSet,
        config: Config,
        phase: str,
        progress: Progress | None,
        *,
        network: MMGA | None = None,
        sizes: Collection[tuple[int, int]] = (),
    ) -> None:
        device = torch.device("cpu") if network is None else next(network.parameters()).device
        maps, targets, known = defaultdict(list), defaultdict(list), []
        loading = Loading(config.data.workers, device, config.data.skip_broken)
        for batch in eval_batches(images, eval_transform(config), loading):
            if network is not None:
                drawn = network.attention(batch.images)
                sizes = {_size(value) for value in drawn.values()}
                for name, value in drawn.items():
                    maps[name].append(value.cpu())
            seen = batch.has_mask.new_zeros(len(batch), 3)
            for size in sizes:
                target, seen = part_targets(batch.labels, batch.parts, batch.has_mask, size)
                targets[size].append(target.cpu())
            known.append(seen.cpu())
            if progress is not None:
                progress(phase, sum(map(len, known)), len(images))
        self.maps = {name: torch.cat(values) for name, values in maps.items()}
        self.targets = {size: torch.cat(values) for size, values in targets.items()}
        self.known = torch.cat(known)


def _size(maps: torch.Tensor) -> tuple[int, int]:
    return maps.shape[-2], maps.shape[-1]


def fit(
    maps: Mapping[str, torch.Tensor],
    targets: Mapping[str, torch.Tensor],
    known: torch.Tensor,
    means: Mapping[str, MeanMask],
) -> dict[str, Fit]:
    """Compare attention maps with held-out masks.

    Args:
        maps: float [N, 1, h, w] in [0, 1] by name.
        targets: float [N, 3, h, w] for each map's name, at its size.
        known: bool [N, 3].
        means: the training set's mean mask at each map's size.
    """
    fits = {}
    for name, value in maps.items():
        part = GUIDING_PARTS[name]
        rows = known[:, part]
        if not rows.any():  # silhouettes know no halves
            continue
        mask, drawn = targets[name][rows, part], value[rows, 0].float()  # [M, h, w]
        mean = means[name].mean[part].expand_as(mask)
        fits[name] = Fit(
            rmse=mask_rmse(drawn, mask).mean().item(),
            mean_rmse=mask_rmse(mean, mask).mean().item(),
            iou=_iou(drawn, mask),
            mean_iou=_iou(means[name].cut(part, means[name].threshold[part]), mask),
            images=int(rows.sum()),
        )
    return fits


def _iou(drawn: torch.Tensor, masks: torch.Tensor) -> float:
    """Return the mean intersection over union of the images in which either has a pixel."""
    return mask_iou(drawn.expand_as(masks), masks).nanmean().item()
