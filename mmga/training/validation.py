"""Evaluate a network on query and gallery sets and record the setting."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mmga.common.distributed import Group
from mmga.common.progress import Progress
from mmga.config import Config
from mmga.data.dataset import DataSet, ImageSet
from mmga.extraction.extract import extract
from mmga.models import MMGA
from mmga.training import attention_metrics

METRICS = ("mAP", "mINP", "rank1", "rank5", "rank10", "num_valid_query")


def score(
    network: MMGA,
    sides: Mapping[str, ImageSet],
    config: Config,
    *,
    train: ImageSet | None = None,
    protocol: str = "market1501",
    progress: Progress | None = None,
    group: Group | None = None,
) -> dict[str, Any]:
    """Return mAP, rank-1, ... of a network, and the fit of its attention maps.

    In a group of processes each extracts a share of the features; the first one ranks them, which
    takes a fraction of that time, and measures the attention maps.

    Args:
        network: left in the mode it was in.
        sides: the sets `query` and `gallery`.
        config: image size, mirror image and loading are taken from it.
        train: images of the mean mask with which attention maps are compared; None measures none.
        protocol: of the evaluation.
        progress: called with (phase, images done, images in all).
        group: the processes.

    Returns:
        The metrics; empty in all processes but the first.
    """
    from mmga.retrieval.evaluate import evaluate
    from mmga.retrieval.protocols.protocol import of_test_split

    group = group or Group()
    query, gallery = (
        extract(network, images, config, phase=name, progress=progress, group=group)
        for name, images in sides.items()
    )
    metrics: dict[str, Any] = {}
    with group.together():
        if group.leads:
            rules = of_test_split(protocol)
            report = evaluate(query, gallery, protocol=rules, progress=progress).as_dict()
            metrics = {name: report[name] for name in METRICS}
            if train is not None:
                fits = attention_metrics.measure(network, train, sides["query"], config, progress)
                metrics["attention"] = {name: asdict(fit) for name, fit in fits.items()}
            metrics["setting"] = setting(network, config) | {"protocol": report["protocol"]}
    return metrics


def score_all(
    network: MMGA,
    sets: Mapping[str, DataSet],
    config: Config,
    *,
    train: ImageSet,
    progress: Progress | None = None,
    group: Group | None = None,
) -> dict[str, Any]:
    """Return the metrics of one data set; of several the mean, and each set's own under `sets`.

    The arguments are those of `score`, with the data sets by name in place of their sides; the
    protocol is the configuration's or, where it names none, each set's own.
    """
    found = {
        name: score(
            network,
            {"query": data.query, "gallery": data.gallery},
            config,
            train=train,
            protocol=config.run.protocol or data.protocol,
            progress=progress,
            group=group,
        )
        for name, data in sets.items()
    }
    rows = list(found.values())
    if len(rows) == 1 or not rows[0]:
        return rows[0]
    mean = {name: sum(row[name] for row in rows) / len(rows) for name in METRICS[:-1]}
    return mean | {"sets": found}


def setting(network: MMGA, config: Config) -> dict[str, Any]:
    """Return the setting that must be reported with a network's metrics."""
    model = config.model
    weights = Path(model.backbone_weights or model.weights).name
    return {
        "trained_on": [config.data.data, *config.data.also],
        "ema": config.optimizer.ema,
        "flip": config.run.flip_test,
        "feature": f"{len(network.head_names)} heads, {network.dim} values",
        "size": f"{config.data.height}x{config.data.width}",
        "backbone": model.backbone,
        "pretrained": weights,
    }
