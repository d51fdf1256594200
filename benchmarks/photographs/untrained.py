"""The backbone as ImageNet leaves it, in stripes: the least that a trained network must exceed."""

import json
from pathlib import Path
from typing import Any

import torch

from benchmarks.photographs.pictures import Pictures
from benchmarks.photographs.plan import PARTIAL
from benchmarks.photographs.trial import scored
from mmga.common.files import atomic_path
from mmga.data.dataset import ImageSet, label_columns
from mmga.data.transforms import EvalTransform
from mmga.extraction.embedder import Embedder, embed_images, whole_embeddings
from mmga.models.pooled import Pooled
from mmga.retrieval.features import Features

STRIPES = (1, 6)


def test(pictures: Pictures, weights: Path, results: Path) -> str:
    """Return and keep mAP and rank-1 of the untrained backbone on Partial-REID and five splits."""
    found: dict[str, Any] = {}
    plan = pictures.plan
    for stripes in STRIPES:
        network = Pooled(plan.backbone, str(weights), stripes=stripes).eval()
        transform = EvalTransform(size=plan.size)
        embedder = Embedder(
            "pooled",
            transform,
            whole_embeddings(network, "pooled"),
            torch.device("cpu"),
            flip=False,
        )

        def features(images: ImageSet, embedder: Embedder = embedder) -> Features:
            (rows, _), places = embed_images(embedder, images, batch_size=64)
            return Features(rows.numpy(), **label_columns(images, places.numpy()))

        tests = {name: pictures.partial_test(name) for name in PARTIAL}
        tests |= {f"clean {i}": pictures.test(i, "clean") for i in range(plan.splits)}
        found[f"{stripes} stripes"] = {
            name: scored(*map(features, pair)).figures() for name, pair in tests.items()
        }
    with atomic_path(results / "untrained.json") as temporary:
        temporary.write_text(json.dumps(found, indent=1) + "\n")
    return json.dumps(found, indent=1)
