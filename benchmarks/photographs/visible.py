"""Partial-REID compared by visible stripes: features of six stripes, each weighted by its body.

A stripe's feature is the mean over its positions of the last feature map, weighted by a map of the
body; its visibility is that map's mean (as Miao et al., ICCV 2019, compare occluded persons). The
map is the network's own attention to the whole body, the parser's mask, or 1 everywhere.
"""

import json
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d, normalize

from benchmarks.photographs.pictures import Pictures
from benchmarks.photographs.plan import PARTIAL
from benchmarks.photographs.trial import scored
from mmga.common.files import atomic_path
from mmga.data.dataset import ImageSet
from mmga.data.transforms import normalise
from mmga.models import MMGA
from mmga.models.loading import load_run
from mmga.models.pooled import Pooled
from mmga.ops.reference import stripe_rows
from mmga.retrieval.features import Features

STRIPES = 6

Figures = dict[str, dict[str, dict[str, float]]]
"""Figures by network and map, and by test."""


def test(pictures: Pictures, weights: Path, out: Path, results: Path) -> Figures:
    """Score the finished runs of rows with attention, and the untrained backbone.

    Args:
        pictures: of the plan.
        weights: ImageNet weights of the backbone.
        out: folder of the runs.
        results: folder of their results; visible.json is written there.
    """
    found: Figures = {}
    untrained = Pooled(pictures.plan.backbone, str(weights)).eval()
    networks: list[tuple[str, nn.Module]] = [("untrained", untrained)]
    for file in sorted(results.glob("[46]*-split*.json")):
        networks.append((file.stem, load_run(out / file.stem).network.eval()))
    for name, network in networks:
        for test_name in PARTIAL:
            query, gallery = (_features(network, side) for side in pictures.partial_test(test_name))
            for body in query:
                figures = scored(query[body], gallery[body]).figures()
                found.setdefault(f"{name}, {body}", {})[test_name] = figures
    with atomic_path(results / "visible.json") as temporary:
        temporary.write_text(json.dumps(found, indent=1) + "\n")
    return found


@torch.inference_mode()
def _features(network: nn.Module, images: ImageSet) -> dict[str, Features]:
    """Return the features of visible stripes by the map that says what is visible."""
    rows: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    for start in range(0, len(images), 64):
        places = range(start, min(start + 64, len(images)))
        batch = normalise(torch.stack([images.image(place) for place in places]))
        maps: dict[str, torch.Tensor] = {}
        if isinstance(network, MMGA):
            last: list[torch.Tensor] = []
            hook = network.branches["shared"].register_forward_hook(
                lambda _, given, returned, last=last: last.append(returned)
            )
            attention = network.attention(batch)
            hook.remove()
            x, maps["attention"] = last[0], attention["whole"]
        else:
            x = network.features(batch)  # type: ignore[operator]
        size = (x.shape[2], x.shape[3])
        labels = torch.stack([_body(images, place) for place in places])
        maps["parser"] = adaptive_avg_pool2d(labels[:, None], size)
        maps["everything"] = torch.ones_like(maps["parser"])
        for body, weight in maps.items():
            rows.setdefault(body, []).append(_stripes(x, weight))
    found = {}
    for body, parts in rows.items():
        features, visible = (torch.cat(values).numpy() for values in zip(*parts, strict=True))
        found[body] = Features(
            parts=features,
            visibility=np.clip(visible, 0, 1),
            pids=images.pids,
            camids=images.camids,
        )
    return found


def _stripes(x: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the features [B, P, C] of the stripes of a map [B, C, h, w], and their visibility."""
    features, visible = [], []
    for top, bottom in stripe_rows(x.shape[2], min(STRIPES, x.shape[2])):
        own = weight[:, :, top:bottom]
        total = (x[:, :, top:bottom] * own).sum((2, 3))
        features.append(normalize(total / own.sum((2, 3)).clamp(min=1e-6)))
        visible.append(own.mean((2, 3))[:, 0])
    return torch.stack(features, 1), torch.stack(visible, 1)


def _body(images: ImageSet, place: int) -> torch.Tensor:
    mask = images.mask(place)
    if mask is None:
        return torch.zeros(images.image(place).shape[-2:], dtype=torch.float32, device="cpu")
    return (mask.labels > 0).float()
