"""A backbone alone, its last features averaged: what pre-training gives without any training."""

import os

import torch
from torch import nn

from mmga.models.backbone import build_backbone, stages_of
from mmga.ops.reference import stripe_rows


class Pooled(nn.Module):
    """A backbone with stride 1 in its last stage, and average pooling.

    Args:
        backbone: as `MMGA` takes it.
        weights: as `MMGA` takes them: a file or a name.
        stripes: horizontal stripes that are pooled by themselves and concatenated.
        allow_partial_weights: take a file that fits less than 90% of the parameters.

    Raises:
        UserError: the backbone or its weights are not known or do not fit.
    """

    def __init__(
        self,
        backbone: str,
        weights: str | os.PathLike[str] | None = None,
        stripes: int = 1,
        allow_partial_weights: bool = False,
    ) -> None:
        super().__init__()
        given = None if weights is None else str(weights)
        network = build_backbone(backbone, given, allow_partial=allow_partial_weights)
        stages = stages_of(network, backbone)
        parts = (stages.stem, stages.layer1, stages.layer2, stages.layer3, stages.tail)
        self.features = nn.Sequential(*parts)
        self._layout, self.stripes = stages.layout, stripes

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return features [B, stripes * C] of normalised images [B, 3, H, W], each of length 1."""
        x = self._layout.to_map(self.features(images), images.shape[2:])
        rows = stripe_rows(x.shape[2], self.stripes)
        pooled = [nn.functional.normalize(x[:, :, a:b].mean((2, 3))) for a, b in rows]
        return nn.functional.normalize(torch.cat(pooled, dim=1))
