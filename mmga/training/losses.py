"""Losses: L = L_tri + a L_id + lambda L_mask, of triplets, identities and masks.

Legend: `B` images, `A` anchors, `D` embedding, `N` identities, `H W` image, `h w` attention map;
parts are ordered whole, upper, bottom everywhere. All is computed in float32, autocast or not.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mmga.config import LossConfig
from mmga.data.masks import part_targets
from mmga.models.network import Output

GUIDING_PARTS = {"whole0": 0, "whole": 0, "upper": 1, "bottom": 2}
"""Index of the part, whole, upper or bottom, that guides a map."""


class Masks(NamedTuple):
    """Masks of a batch.

    Attributes:
        labels: uint8 [B, H, W], as in `part_targets`.
        parts: bool [B], False for silhouettes.
        has_mask: bool [B].
    """

    labels: Tensor
    parts: Tensor
    has_mask: Tensor


@dataclass(frozen=True, slots=True)
class WholeBatch:
    """A batch that several processes share, for the losses of one of them.

    Attributes:
        embeddings: per head [A, D], of all processes with their gradient; triplets are mined among
            them.
        classes: int64 [A].
        counts: float [3], images with known whole, upper and bottom, mean over processes.
        images: number of images, mean over processes; the identity loss is divided by it.
    """

    embeddings: Mapping[str, Tensor]
    classes: Tensor
    counts: Tensor
    images: float


def mask_rmse(maps: Tensor, targets: Tensor) -> Tensor:
    """Return sqrt(mean over pixels of (S - M)^2 + 1e-8) of each image, float32 [B].

    Args:
        maps: attention in [0, 1], [B, 1, h, w] or [B, h, w].
        targets: masks in [0, 1], the same number of values.
    """
    difference = maps.float().flatten(1) - targets.float().flatten(1)  # [B, h w]
    return difference.square().mean(1).add(1e-8).sqrt()


def mask_iou(maps: Tensor, targets: Tensor, threshold: float = 0.5) -> Tensor:
    """Return the intersection over union of map and mask, both cut at a threshold.

    Args:
        maps: attention in [0, 1], [B, 1, h, w] or [B, h, w].
        targets: masks in [0, 1], the same number of values.
        threshold: least value inside.

    Returns:
        float32 [B]; NaN, to be excluded from means, where neither has a pixel inside.
    """
    inside = maps.flatten(1) >= threshold
    true = targets.flatten(1) >= threshold
    return (inside & true).sum(1).float() / (inside | true).sum(1)


def mask_loss(
    attention: Mapping[str, Tensor],
    labels: Tensor,
    parts: Tensor,
    has_mask: Tensor,
    *,
    counts: Tensor | None = None,
    config: LossConfig | None = None,
    prior: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the mask guided attention loss: RMSE between maps and masks.

    Each term is the mean over the images whose target is known: an image without a mask counts
    nowhere, a silhouette in the terms of the whole body alone. The loss is the mean over the terms
    that have an image; 0, with zero gradient, where no image of the batch has a mask.

    Args:
        attention: sigmoid maps [B, 1, h, w] named whole0, whole, upper, bottom, or some of them.
        labels: uint8 [B, H, W], as in `part_targets`.
        parts: bool [B], False for silhouettes.
        has_mask: bool [B].
        counts: float [3], by how many images with known whole, upper and bottom each term is
            divided; by default those of the batch. In a process group: the mean over processes.
        config: whose `guide` may be the whole body for every map (an ablation), and whose
            `mask_blur` blurs the masks; by default LossConfig().
        prior: float [3, H, W], masks that are every image's target in place of its own (a control:
            position alone); the images that count are the same.

    Returns:
        The loss and its terms by name, scalars.
    """
    if not attention:
        return labels.new_zeros((), dtype=torch.float32), {}
    config = config or LossConfig()
    cache: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
    terms: dict[str, Tensor] = {}
    present = []
    for name, maps in attention.items():
        size = (maps.shape[-2], maps.shape[-1])
        if size not in cache:
            own, known = part_targets(labels, parts, has_mask, size, config.mask_blur)
            if prior is not None:
                pooled = torch.nn.functional.adaptive_avg_pool2d(prior, size)  # [3, h, w]
                own = pooled.expand_as(own)
            cache[size] = own, known
        targets, known = cache[size]
        part = 0 if config.guide == "whole" else GUIDING_PARTS[name]
        count = known[:, part].sum() if counts is None else counts[part]
        rmse = mask_rmse(maps, targets[:, part])
        # The smallest share of an image among W processes is 1/W, so no count between 0 and 1e-6.
        terms[name] = rmse.where(known[:, part], 0).sum() / count.clamp(min=1e-6)
        present.append(count > 0)
    there = torch.stack(present)
    loss = (torch.stack(list(terms.values())) * there).sum() / there.sum().clamp(min=1)
    return loss, terms


def batch_hard_triplet(embeddings: Tensor, pids: Tensor, margin: float = 1.2) -> Tensor:
    """Return the batch-hard triplet loss (Hermans et al., 2017, section 2), Euclidean.

    The mean over anchors of max(0, margin + d(hardest positive) - d(hardest negative)). An image is
    no positive of itself, and an anchor without a positive or a negative counts nowhere.

    Args:
        embeddings: [B, D], not normalised.
        pids: int64 [B].
        margin: of the triplet.

    Returns:
        A scalar; 0 where no anchor has both.
    """
    distances = _euclidean(embeddings, embeddings)  # [B, B]
    same = pids[:, None] == pids[None]
    others = ~torch.eye(len(pids), dtype=torch.bool, device=pids.device)
    positive = distances.masked_fill(~(same & others), -torch.inf).amax(1)  # [B]
    negative = distances.masked_fill(same, torch.inf).amin(1)
    valid = (positive > -torch.inf) & (negative < torch.inf)
    # Infinities are replaced before the subtraction: their gradient would be NaN, not zero.
    hinge = torch.relu(margin + positive.where(valid, 0) - negative.where(valid, 0))
    return hinge.where(valid, 0).sum() / valid.sum().clamp(min=1)


def identity_loss(logits: Tensor, classes: Tensor, smoothing: float = 0.0) -> Tensor:
    """Return the cross-entropy of identities, optionally with label smoothing.

    Args:
        logits: [B, N].
        classes: int64 [B] in 0 .. N - 1.
        smoothing: share of the target spread evenly over all N classes.
    """
    return torch.nn.functional.cross_entropy(logits.float(), classes, label_smoothing=smoothing)


def total_loss(
    output: Output,
    classes: Tensor,
    masks: Masks,
    config: LossConfig,
    *,
    prior: Tensor | None = None,
    whole: WholeBatch | None = None,
) -> dict[str, Tensor]:
    """Return the training loss of one batch and its parts.

    In a process group each process gives its own images, and the mean over processes of every
    value is that of one process with all images.

    Args:
        output: of the network in training.
        classes: int64 [B], identities as class labels.
        masks: that guide the attention maps.
        config: weights of the losses; with `mask_weight` 0 the mask loss is still reported.
        prior: see `mask_loss`.
        whole: the batch of all processes; by default this one's is the whole.

    Returns:
        Scalars: `loss` (the total), `triplet`, `id`, `mask`, and `mask_<map>` for each map, which
        is 0 where no image of the batch knows it.
    """
    embeddings, pids, share, counts = output.embeddings, classes, 1.0, None
    if whole is not None:
        embeddings, pids, counts = dict(whole.embeddings), whole.classes, whole.counts
        share = len(classes) / whole.images
    triplet = torch.stack(
        [batch_hard_triplet(rows, pids, config.margin) for rows in embeddings.values()]
    ).mean()
    identities = [
        identity_loss(scores, classes, config.smoothing) * share
        for scores in output.logits.values()
    ]
    identity = torch.stack(identities).mean() if identities else triplet.new_zeros(())
    mask, terms = mask_loss(
        output.attention,
        *masks,
        counts=counts,
        config=config,
        prior=prior,
    )
    total = triplet + config.id_weight * identity
    if config.mask_weight:
        total = total + config.mask_weight * mask
    return {
        "loss": total,
        "triplet": triplet,
        "id": identity,
        "mask": mask,
        **{f"mask_{name}": term for name, term in terms.items()},
    }


def _euclidean(x: Tensor, y: Tensor) -> Tensor:
    """Return Euclidean distances [A, B]; a distance of zero has gradient zero."""
    with torch.autocast(x.device.type, enabled=False):
        x, y = x.float(), y.float()
        squared = x.square().sum(1)[:, None] + y.square().sum(1)[None] - 2 * x @ y.T
    return squared.clamp(min=1e-12).sqrt()
