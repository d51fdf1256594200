"""Compare attention maps with held-out masks, and with a prior that needs no image.

A network that has learned only the usual position of persons predicts the training set's mean mask
for every image; a map is useful where it fits better than that.
"""

from collections.abc import Mapping, Sequence
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

_THRESHOLDS = torch.arange(1, 20) / 20


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
        """Average the training targets.

        Args:
            targets: float [N, 3, h, w].
            known: bool [N, 3].
        """
        weight = known[:, :, None, None].float()
        self.mean = (targets * weight).sum(0) / weight.sum(0).clamp(min=1)  # [3, h, w]
        self.threshold = torch.empty(3)
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
    total, count = torch.zeros(3, *size, dtype=torch.float64), torch.zeros(3)
    for batch in eval_batches(images, eval_transform(config), Loading(config.data.workers)):
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
        progress: called with ("attention", images done, images in all).

    Returns:
        A fit by map; empty where the network has no attention or no held-out image has a mask.
    """
    device = next(network.parameters()).device
    was_training = network.training
    network.eval()
    drawn: dict[str, list[torch.Tensor]] = {}
    held = _Targets()
    transform = eval_transform(config)
    workers = config.data.workers
    for batch in eval_batches(held_out, transform, Loading(workers, device)):
        maps = network.attention(batch.images)
        for name, value in maps.items():
            drawn.setdefault(name, []).append(value.cpu())
        held.add(
            batch.labels, batch.parts, batch.has_mask, [_size(value) for value in maps.values()]
        )
        if progress is not None:
            progress("attention", len(held), len(held_out))
    network.train(was_training)
    sizes = {name: _size(values[0]) for name, values in drawn.items()}
    if not sizes or not held.any_known():
        return {}
    taught = _Targets()
    for batch in eval_batches(train, transform, Loading(workers)):
        taught.add(batch.labels, batch.parts, batch.has_mask, list(sizes.values()))
        if progress is not None:
            progress("mean mask", len(taught), len(train))
    means = {size: MeanMask(*taught.at(size)) for size in set(sizes.values())}
    return fit(
        {name: torch.cat(values) for name, values in drawn.items()},
        {name: held.at(size)[0] for name, size in sizes.items()},
        held.known(),
        {name: means[size] for name, size in sizes.items()},
    )


class _Targets:
    """Targets of many batches, at each map size."""

    def __init__(self) -> None:
        self._targets: dict[tuple[int, int], list[torch.Tensor]] = {}
        self._known: list[torch.Tensor] = []

    def __len__(self) -> int:
        return sum(map(len, self._known))

    def add(
        self,
        labels: torch.Tensor,
        parts: torch.Tensor,
        has_mask: torch.Tensor,
        sizes: Sequence[tuple[int, int]],
    ) -> None:
        for size in set(sizes):
            targets, known = part_targets(labels, parts, has_mask, size)
            self._targets.setdefault(size, []).append(targets.cpu())
        if sizes:
            self._known.append(known.cpu())

    def known(self) -> torch.Tensor:
        return torch.cat(self._known)

    def any_known(self) -> bool:
        return bool(self._known) and bool(self.known().any())

    def at(self, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.cat(self._targets[size]), self.known()


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
    """Return the mean intersection over union, leaving out images in which both are empty."""
    return mask_iou(drawn.expand_as(masks), masks).nanmean().item()
