"""Take one training step: forward, losses of all processes' images, gradients, update.

Legend: `W` processes. Losses and gradients are those of one process that has the whole batch (but
for batch normalisation, whose statistics are each process' own unless synced).
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmga.common.distributed import Group, gather, gather_with_gradient
from mmga.common.errors import UserError
from mmga.config import Config
from mmga.data.loader import Batch
from mmga.data.sampler import IdentitySampler
from mmga.models import MMGA, Output
from mmga.training.losses import Masks, WholeBatch, total_loss

SYNC_BELOW = 32
"""Images of a process below which statistics of batch normalisation are synced over processes."""


def freeze_statistics(network: nn.Module) -> None:
    """Make batch normalisation use its running statistics without updating them."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def synced(config: Config, device: torch.device, world: int) -> bool:
    """Return whether batch normalisation is to be synced over processes.

    Raises:
        UserError: it is asked for on a CPU, where torch has none.
    """
    norm = config.run.norm
    if norm == "synced" and device.type != "cuda":
        raise UserError(
            f"--norm synced needs CUDA devices, this run is on {device.type}; use local or frozen"
        )
    few = config.batch.p * config.batch.k / world < SYNC_BELOW
    return world > 1 and device.type == "cuda" and (norm == "synced" or (norm == "auto" and few))


def wrap(network: MMGA, config: Config, device: torch.device, group: Group) -> Any:
    """Return the network wrapped for its process group and compiled, as a step calls it.

    The wrapper shares the network's parameters.
    """
    forward: Any = network
    if group.world > 1:
        # An unguided auxiliary map has no gradient; everything else has one.
        unused = config.model.attention == "auxiliary" and not config.loss.mask_weight
        forward = nn.parallel.DistributedDataParallel(
            network,
            device_ids=[device] if device.type == "cuda" else None,
            find_unused_parameters=unused,
        )
    if config.run.compile:
        forward = torch.compile(forward)
    return forward


def whole_batch(output: Output, batch: Batch, group: Group) -> tuple[WholeBatch | None, int]:
    """Return the batch of all processes and its number of images; None where this one has all."""
    known = batch.has_mask.sum().item()
    halves = (batch.has_mask & batch.parts).sum().item()
    table = group.table([len(batch), known, halves, halves])  # [W, 4]
    sizes = table[:, 0].long().tolist()
    if group.world == 1:
        return None, sizes[0]
    names = list(output.embeddings)
    wide = torch.cat([output.embeddings[name] for name in names], dim=1).float()
    widths = [output.embeddings[name].shape[1] for name in names]
    rows = gather_with_gradient(wide, sizes, group).split(widths, dim=1)
    shares = (table.sum(0) / group.world).to(batch.images.device, torch.float32)
    whole = WholeBatch(
        embeddings=dict(zip(names, rows, strict=True)),
        classes=gather(batch.pids, sizes, group),
        counts=shares[1:],
        images=table[:, 0].mean().item(),
    )
    return whole, sum(sizes)


def guides(batch: Batch, guide: str) -> Masks:
    """Return the masks that guide the images of a batch.

    With the guide `other` each image is given the mask, transformed as it was, of another
    identity's image.
    """
    masks = Masks(batch.labels, batch.parts, batch.has_mask)
    if guide != "other":
        return masks
    partners = strangers(batch.pids)
    return Masks(*(values[partners] for values in masks))


def check_guides(config: Config, sampler: IdentitySampler, pids: np.ndarray, group: Group) -> None:
    """Raise a `UserError` where a batch has too few identities for the guide `other`."""
    if config.loss.guide == "other":
        for batch in sampler.batches(0, group.rank, group.world):
            strangers(torch.from_numpy(pids[batch]))


def strangers(pids: Tensor) -> Tensor:
    """Return a permutation of a batch, int64 [B], that maps each image to another identity's.

    Raises:
        UserError: more than half of the images are of one identity.
    """
    order = torch.argsort(pids, stable=True)
    most = int(torch.unique(pids, return_counts=True)[1].max())
    if 2 * most > len(pids):
        raise UserError(
            f"{most} of the {len(pids)} images of a batch are of one identity, so that not every "
            "image finds another identity's mask; choose another --p (an epoch's last batch holds "
            "the identities that are left), or guide by the images' own masks"
        )
    partners = torch.empty_like(order)
    partners[order] = order.roll(-most)  # sorted, no identity reaches further than `most`
    return partners


@dataclass(slots=True)
class Step:
    """Takes optimizer steps.

    Attributes:
        forward: the network as `wrap` returns it.
        optimizer: over its parameters.
        config: of the run.
        group: the processes.
        paths: path of each training image, for messages.
        prior: float [3, H, W], the mean mask, where that guides every image.
        images: images of all processes in the last step.
        mask_weight: in place of the configuration's, for an epoch of a schedule.
    """

    forward: Any
    optimizer: torch.optim.Optimizer
    config: Config
    group: Group
    paths: Sequence[str]
    prior: Tensor | None = None
    images: int = 0
    mask_weight: float | None = None

    def take(self, batch: Batch, step: int, gradients: bool = False) -> dict[str, Any]:
        """Take one step.

        Args:
            batch: this process' images.
            step: its number, for messages.
            gradients: also return the gradient of each loss on each attention map.

        Returns:
            The losses of the whole batch, the share of images whose identity every classifier
            names first (`accuracy`, mean over classifiers) and the norm of the gradient before
            clipping, as floats.

        Raises:
            UserError: the loss or the gradient is not finite; the weights are then untouched.
        """
        losses, output = self.losses(batch)
        named = {**losses, "accuracy": self._accuracy(output, batch)}
        values = self.group.mean(torch.stack([v.float() for v in named.values()])).tolist()
        metrics: dict[str, Any] = dict(zip(named, values, strict=True))
        if not math.isfinite(metrics["loss"]):
            self._refuse("loss", metrics["loss"], step, batch)
        if gradients:
            metrics["map_gradients"] = self._map_gradients(losses, output)
        self.optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        norm = self._clip()
        if not math.isfinite(norm):
            self._refuse("gradient's norm", norm, step, batch)
        self.optimizer.step()
        return metrics | {"gradient_norm": norm}

    def losses(self, batch: Batch) -> tuple[dict[str, Tensor], Output]:
        """Return the network's output and this process' losses.

        The mean over processes of each loss is that of the whole batch.
        """
        run = self.config.run
        images = batch.images
        if run.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(
            images.device.type, torch.bfloat16, enabled=run.precision == "bfloat16"
        ):
            output: Output = self.forward(images)
            whole, self.images = whole_batch(output, batch, self.group)
            masks, weights = guides(batch, self.config.loss.guide), self.config.loss
            if self.mask_weight is not None:
                weights = dataclasses.replace(weights, mask_weight=self.mask_weight)
            losses = total_loss(output, batch.pids, masks, weights, prior=self.prior, whole=whole)
        return losses, output

    def _accuracy(self, output: Output, batch: Batch) -> Tensor:
        """Return this process' share of the identity accuracy; its mean over processes is whole."""
        right = [(scores.argmax(1) == batch.pids).float() for scores in output.logits.values()]
        if not right:
            return batch.images.new_full((), math.nan)
        return torch.stack(right).mean(0).sum() * (self.group.world / self.images)

    def _clip(self) -> float:
        """Clip the gradient if the configuration limits it, and return its norm before."""
        parameters = [
            p
            for group in self.optimizer.param_groups
            for p in group["params"]
            if p.grad is not None
        ]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
        limit = self.config.optimizer.clip_norm
        if limit and bool(norm.isfinite()):
            torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)
        return norm.item()

    def _refuse(self, what: str, value: float, step: int, batch: Batch) -> None:
        """Raise `NotFinite` with the step and its images, in every process of the group."""
        own = "\n".join(self.paths[index] for index in batch.indices.tolist())
        paths = [path for text in self.group.texts(own) for path in text.split("\n")]
        with self.group.together():
            raise NotFinite(what, value, step, paths)

    def _map_gradients(self, losses: dict[str, Tensor], output: Output) -> dict[str, float]:
        """Return the norm of each loss' gradient with respect to each attention map, `id/whole`.

        With max pooling the identity loss reaches a map only where a channel has its maximum.
        """
        names = list(output.attention_logits)
        keys, squares = [], []
        # Of the mask loss' parts, `mask_whole` and so on, the sum alone.
        for loss in (name for name in losses if name != "loss" and not name.startswith("mask_")):
            if not names or not losses[loss].requires_grad:
                continue
            gradients = torch.autograd.grad(
                losses[loss],
                [output.attention_logits[name] for name in names],
                retain_graph=True,
                allow_unused=True,
            )
            for name, gradient in zip(names, gradients, strict=True):
                keys.append(f"{loss}/{name}")
                squares.append(0.0 if gradient is None else gradient.float().square().sum().item())
        # Each process' losses are W times its share of the whole.
        whole = self.group.table(squares).sum(0).sqrt() / self.group.world
        return dict(zip(keys, whole.tolist(), strict=True))


class NotFinite(UserError):
    """The loss or the gradient is NaN or infinite.

    Attributes:
        step: number of the step.
        paths: images of the batch.
    """

    def __init__(self, what: str, value: float, step: int, paths: Sequence[str]) -> None:
        some = ", ".join(paths[:3]) + (", ..." if len(paths) > 3 else "")
        super().__init__(
            f"the {what} became {value} at step {step} (batch of {some}); "
            "lower --lr or set --clip-norm; the last good checkpoint and, in metrics.jsonl, the "
            "whole batch are in the run's folder"
        )
        self.step, self.paths = step, list(paths)
