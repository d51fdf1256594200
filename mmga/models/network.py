"""The body-part mask guided attention network (Cai, Wang, Cheng, CVPR Workshops 2019).

Legend: `B` images, `C` channels, `h w` feature map, `P` parts of one branch, `D` embedding.
"""

import copy
import os
import typing
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from mmga.common.errors import UserError
from mmga.config import ModelConfig
from mmga.models.attention import Attention
from mmga.models.backbone import build_backbone, stages_of
from mmga.models.head import Head, make_reduction
from mmga.ops.attention import attention_multiply, attention_pool
from mmga.ops.reference import stripe_rows

PARTS = ("whole", "upper", "bottom")

OPENING = 2.0
"""Logit at which module 1 starts: sigmoid 0.88, so that layer3 sees features near their scale."""

# Numbers of stripes of each branch (8: MGN, Wang et al., ACM MM 2018, section 3.1).
_STRIPES: dict[int, dict[str, tuple[int, ...]]] = {
    3: {"whole": (1,), "upper": (1,), "bottom": (1,)},
    8: {"whole": (1,), "upper": (1, 2), "bottom": (1, 3)},
}

_CHOICES = {
    name: typing.get_args(hint)
    for name, hint in typing.get_type_hints(ModelConfig).items()
    if typing.get_origin(hint) is typing.Literal
}


class Output(NamedTuple):
    """Output of the network in training.

    Attributes:
        embeddings: per head [B, D], for the triplet loss.
        logits: per head [B, N], for the identity loss; empty without classifiers.
        attention: sigmoid maps [B, 1, h, w] named whole0 (module 1), whole, upper, bottom.
        attention_logits: the same maps before the sigmoid, as multiplied into the features; the
            gradient of any loss with respect to a map is taken here.
        features: per head [B, D], concatenated in the test; the embeddings without a bnneck.
    """

    embeddings: dict[str, torch.Tensor]
    logits: dict[str, torch.Tensor]
    attention: dict[str, torch.Tensor]
    attention_logits: dict[str, torch.Tensor]
    features: dict[str, torch.Tensor]


class MMGA(nn.Module):
    """A backbone with mask guided whole-body and part attention at two scales.

    In training `forward` returns an `Output`; in evaluation it returns the L2-normalised vector
    [B, D of all heads] of the images as given (no mirror image). The default of every switch is
    named first; where the paper's text leaves a choice open, the reason is in the documentation.

    Args:
        num_classes: training identities; 0 builds no classifiers.
        backbone: any torchvision ResNet, `tiny` (ResNet-18's wiring at 16-32-64-128 channels),
            `resnet50_ibn_a`, `osnet_x1_0` and their sizes, or `timm:NAME` or `torchvision:NAME`,
            which are cut by the strides of their features (`mmga.models.stages`).
        weights: None or `none` for random weights, a file as below, or torchvision's or timm's
            name, such as `IMAGENET1K_V1` or `a1_in1k`.
        backbone_weights: a file of weights, in place of `weights`; read by
            `mmga.models.pretrained`.
        allow_partial_weights: take a file that fits less than 90% of the backbone's parameters.
        frozen_stages: stages that stay as loaded, statistics of batch normalisation included: 0
            none, 1 the stem, 2 layer1 as well, 3 layer2 as well.
        attention: `both` modules, the `first` alone, or `none`; `auxiliary` computes the spatial
            maps of both but multiplies nothing (no channel attention is built), so that masks are
            an auxiliary task alone.
        combine: `product` multiplies by S * C, `residual` by (1 + S) * C.
        branches: `copies` gives each part its own layer3[1:] and layer4, `shared` one to all;
            `single` is one whole-body branch, which without attention is the plain ResNet baseline.
        heads: 3 (one a branch) or 8 (with MGN's stripes, 2 on upper and 3 on bottom).
        neck: `none` or `bnneck`.
        pool: `max`, `avg` or `gem` (its exponent is learned, from 3).
        spatial_kernel: 1 or 3, the size of all three convolutions of a spatial attention.
        read0: `layer1` or `layer2`, the stage at whose output module 1 is read.
        reduction: one per `head`, or one `shared`.
        classifier: `kaiming` (fan_out) or `normal` (N(0, .001), no bias).
        embed_dim: D of one head; None uses the pooled features as they are.

    Raises:
        UserError: an argument has no such value, or weights cannot be had.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: str = "resnet50",
        weights: str | None = None,
        *,
        backbone_weights: str | os.PathLike[str] | None = None,
        allow_partial_weights: bool = False,
        frozen_stages: int = 0,
        attention: str = "both",
        combine: str = "product",
        branches: str = "copies",
        heads: int = 3,
        neck: str = "none",
        pool: str = "max",
        spatial_kernel: int = 1,
        read0: str = "layer1",
        reduction: str = "head",
        classifier: str = "kaiming",
        embed_dim: int | None = 256,
    ) -> None:
        super().__init__()
        self.options: dict[str, Any] = {
            "num_classes": num_classes,
            "backbone": backbone,
            "attention": attention,
            "combine": combine,
            "branches": branches,
            "heads": heads,
            "neck": neck,
            "pool": pool,
            "spatial_kernel": spatial_kernel,
            "read0": read0,
            "reduction": reduction,
            "classifier": classifier,
            "embed_dim": embed_dim,
        }
        """Arguments that build the same network again (weights and frozen stages aside)."""
        _check(self.options)
        self.combine, self.pool, self.read0 = combine, pool, read0
        self.parts = PARTS[:1] if branches == "single" else PARTS
        self._stripes = {part: _STRIPES[heads][part] for part in self.parts}
        self.head_names = tuple(name for part in self.parts for name in self._heads_of(part))

        network = build_backbone(
            backbone, weights, backbone_weights, allow_partial=allow_partial_weights
        )
        stages = stages_of(network, backbone)
        self.stem, self.layer1, self.layer2 = stages.stem, stages.layer1, stages.layer2
        self.layer3, self._layout, self._last = stages.layer3, stages.layout, stages.last
        if frozen_stages not in range(4):
            raise UserError(f"frozen_stages must be 0 to 3, got {frozen_stages!r}")
        self._frozen = (self.stem, self.layer1, self.layer2)[:frozen_stages]
        for stage in self._frozen:
            stage.requires_grad_(False)
        names = ("shared",) if branches == "shared" else self.parts
        self.branches = nn.ModuleDict({name: copy.deepcopy(stages.tail) for name in names})

        widths = stages.widths
        self._add_attention(widths)
        self.exponent = nn.Parameter(torch.tensor(3.0)) if pool == "gem" else None
        dim = widths[3] if embed_dim is None else embed_dim
        self.dim = dim * len(self.head_names)
        """Length of the test vector."""
        self.reductions = nn.ModuleDict()
        if embed_dim is not None:
            for name in ("shared",) if reduction == "shared" else self.head_names:
                self.reductions[name] = make_reduction(widths[3], dim, neck)
        self.heads = nn.ModuleDict(
            {name: Head(dim, num_classes, neck, classifier) for name in self.head_names}
        )

    def _add_attention(self, widths: Sequence[int]) -> None:
        """Add both attention modules, as far as the options ask for them.

        Args:
            widths: channels of the four stages.
        """
        attention, kernel = self.options["attention"], self.options["spatial_kernel"]
        multiply = attention != "auxiliary"
        self.attention1 = self.attention2 = None
        if attention != "none":
            read = widths[0] if self.read0 == "layer1" else widths[1]
            self.attention1 = Attention(read, widths[1] if multiply else None, kernel, OPENING)
        if attention in ("both", "auxiliary"):
            target = widths[3] if multiply else None
            self.attention2 = nn.ModuleDict(
                {part: Attention(widths[2], target, kernel) for part in self.parts}
            )

    def train(self, mode: bool = True) -> "MMGA":
        """Set training or evaluation mode; frozen stages stay in evaluation mode."""
        super().train(mode)
        for stage in self._frozen:
            stage.eval()
        return self

    def forward(
        self, images: torch.Tensor, maps: Mapping[str, torch.Tensor] | None = None
    ) -> Output | torch.Tensor:
        """Return an `Output` in training, the L2-normalised vector [B, D] in evaluation.

        Args:
            images: normalised float images [B, 3, H, W].
            maps: spatial maps [B, 1, h, w] in [0, 1] to use in place of the predicted ones, by
                name (whole0, whole, upper, bottom): the true masks, as an upper bound of attention.
        """
        output = self.outputs(images, maps)
        return output if self.training else nn.functional.normalize(_concatenate(output))

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """Return the test vector [B, D] before normalisation, as views are to be summed."""
        return _concatenate(self.outputs(images))

    def attention(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the sigmoid maps [B, 1, h, w] named whole0, whole, upper, bottom."""
        return self.outputs(images).attention

    def outputs(
        self, images: torch.Tensor, maps: Mapping[str, torch.Tensor] | None = None
    ) -> Output:
        """Return everything that the network computes, in training as in evaluation."""
        given = {name: torch.logit(m, eps=1e-4) for name, m in (maps or {}).items()}
        size, layout = images.shape[2:], self._layout
        x1 = self.layer1(self.stem(images))
        x2 = self.layer2(x1)
        map2 = layout.to_map(x2, size)  # [B, C, h, w]
        spatial: dict[str, torch.Tensor] = {}
        channel: dict[str, torch.Tensor | None] = {}
        if self.attention1 is not None:
            read = layout.to_map(x1, size) if self.read0 == "layer1" else map2
            logits, channels = self.attention1(read, (map2.shape[2], map2.shape[3]))
            spatial["whole0"] = given.get("whole0", logits)
            if channels is not None:
                map2 = attention_multiply(map2, spatial["whole0"], channels, self.combine)
                x2 = layout.with_map(x2, map2)
        x3 = self.layer3(x2)
        map3 = layout.to_map(x3, size)
        if self.attention2 is not None:
            # The maps fit the branches' last features: rounded up, where a stride is left.
            last = (-(-map3.shape[2] // self._last), -(-map3.shape[3] // self._last))
            for part in self.parts:
                logits, channel[part] = self.attention2[part](map3, last)
                spatial[part] = given.get(part, logits)

        pooled: dict[str, torch.Tensor] = {}  # per head [B, C]
        for name, branch in self.branches.items():
            features = layout.to_map(branch(x3), size)
            parts = self.parts if name == "shared" else (name,)
            most = max(n for part in parts for n in self._stripes[part])
            if features.shape[2] < most:
                raise UserError(
                    f"images of {size[0]} pixels give backbone {self.options['backbone']} "
                    f"{features.shape[2]} rows of features, and heads 8 needs {most}; "
                    "raise --height"
                )
            for stripes in sorted({n for part in parts for n in self._stripes[part]}):
                members = [part for part in parts if stripes in self._stripes[part]]
                rows = self._pool(features, members, spatial, channel, stripes)
                for index, part in enumerate(members):
                    for stripe in range(stripes):
                        pooled[_head_name(part, stripes, stripe)] = rows[:, index, stripe]
        return self._finish(pooled, spatial)

    def _pool(
        self,
        x: torch.Tensor,
        parts: list[str],
        spatial: Mapping[str, torch.Tensor],
        channel: Mapping[str, torch.Tensor | None],
        stripes: int,
    ) -> torch.Tensor:
        """Pool one feature map [B, C, h, w] for each of P parts to [B, P, stripes, C]."""
        weights = [channel[part] for part in parts if channel.get(part) is not None]
        exponent: Any = 3.0 if self.exponent is None else self.exponent
        if weights:
            logits = torch.cat([spatial[part] for part in parts], dim=1)  # [B, P, h, w]
            gates = torch.stack(weights, dim=1)  # type: ignore[arg-type]  # [B, P, C]
            return attention_pool(x, logits, gates, self.pool, self.combine, stripes, exponent)
        rows = [x[:, :, a:b] for a, b in stripe_rows(x.shape[2], stripes)]
        if self.pool == "max":
            # One position takes the gradient of a maximum, as in attention_pool.
            rows = [row.flatten(2).max(2).values for row in rows]
        elif self.pool == "avg":
            rows = [row.mean((2, 3)) for row in rows]
        else:
            rows = [
                row.float().clamp(min=1e-6).pow(exponent).mean((2, 3)).pow(1 / exponent).to(x.dtype)
                for row in rows
            ]
        return torch.stack(rows, dim=1)[:, None].expand(-1, len(parts), -1, -1)

    def _finish(
        self, pooled: Mapping[str, torch.Tensor], spatial: dict[str, torch.Tensor]
    ) -> Output:
        embeddings, logits, features = {}, {}, {}
        for name in self.head_names:
            embedding = pooled[name]
            if len(self.reductions):
                key = "shared" if "shared" in self.reductions else name
                embedding = self.reductions[key](embedding)
            embeddings[name] = embedding
            features[name], scores = self.heads[name](embedding)
            if scores is not None:
                logits[name] = scores
        attention = {name: torch.sigmoid(value) for name, value in spatial.items()}
        return Output(embeddings, logits, attention, spatial, features)

    def _heads_of(self, part: str) -> list[str]:
        return [_head_name(part, n, i) for n in self._stripes[part] for i in range(n)]


def _check(options: Mapping[str, Any]) -> None:
    """Raise a `UserError` if an option has no such value."""
    for name, choices in _CHOICES.items():
        if options[name] not in choices:
            raise UserError(
                f"{name} must be one of {', '.join(map(str, choices))}, got {options[name]!r}"
            )
    if options["branches"] == "single" and options["heads"] != 3:
        raise UserError(f"heads must be left at 3 where branches is single, got {options['heads']}")


def _head_name(part: str, stripes: int, stripe: int) -> str:
    return part if stripes == 1 else f"{part}_{stripe}"


def _concatenate(output: Output) -> torch.Tensor:
    return torch.cat(list(output.features.values()), dim=1)
