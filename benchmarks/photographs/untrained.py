"""The backbone as ImageNet leaves it, in stripes: the least that a trained network must exceed."""

import json
from pathlib import Path

import torch

from benchmarks.photographs.pictures import PARTIAL_FOLDER, Pictures, listed, of_kinds
from benchmarks.photographs.plan import PARTIAL
from benchmarks.photographs.trial import scored
from mmga.common.files import atomic_path
from mmga.data.dataset import ImageFiles, ImageSet, label_columns
from mmga.data.transforms import EvalTransform
from mmga.extraction.embedder import Embedder, embed_images, whole_embeddings
from mmga.models.pooled import Pooled
from mmga.retrieval.features import Features

STRIPES = (1, 6)
SIZES = ((128, 64), (256, 128))
"""Heights and widths to which the photographs of Partial-REID are resized."""

Figures = dict[str, dict[str, dict[str, float]]]
"""Figures by setting and test."""


def test(pictures: Pictures, weights: Path, results: Path) -> Figures:
    """Score the untrained backbone on Partial-REID and on the clean tests, and keep the figures.

    Args:
        pictures: of the plan.
        weights: ImageNet weights of the backbone.
        results: untrained.json is written there.
    """
    found: Figures = {}
    partial = ImageFiles.of_rows(
        pictures.photos / PARTIAL_FOLDER, listed(pictures.photos, PARTIAL_FOLDER)
    )
    for stripes in STRIPES:
        network = Pooled(pictures.plan.backbone, str(weights), stripes=stripes).eval()
        for size in SIZES:
            embedder = Embedder(
                "pooled",
                EvalTransform(size=size),
                whole_embeddings(network, "pooled"),
                torch.device("cpu"),
                flip=False,
            )
            tests = {name: of_kinds(partial, name) for name in PARTIAL}
            if size == pictures.plan.size:
                splits = range(pictures.plan.splits)
                tests |= {f"clean, split {i}": pictures.test(i, "clean") for i in splits}
            found[f"{stripes} stripes, {size[0]} x {size[1]}"] = {
                name: scored(*(_features(embedder, side) for side in pair)).figures()
                for name, pair in tests.items()
            }
    with atomic_path(results / "untrained.json") as temporary:
        temporary.write_text(json.dumps(found, indent=1) + "\n")
    return found


def _features(embedder: Embedder, images: ImageSet) -> Features:
    (rows, _), places = embed_images(embedder, images, batch_size=64)
    return Features(rows.numpy(), **label_columns(images, places.numpy()))
