"""One run: a row on a split, trained, tested, written as JSON and the figures of its queries."""

import dataclasses
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import normalize

from benchmarks.ablation import trial as ablation
from benchmarks.ablation.trial import SCALE, commit, machine
from benchmarks.photographs.pictures import Pair, Pictures
from benchmarks.photographs.plan import PARTIAL, TESTS
from benchmarks.photographs.rows import configuration, row_named
from mmga.common.files import atomic_path
from mmga.common.progress import Progress
from mmga.config import Config, as_dict
from mmga.data.build import eval_transform
from mmga.data.dataset import ImageSet, label_columns
from mmga.data.loader import eval_batches
from mmga.extraction.embedder import visibility
from mmga.models import MMGA
from mmga.models.loading import load_run
from mmga.retrieval.evaluate import evaluate
from mmga.retrieval.features import Features
from mmga.training import trainer


@dataclasses.dataclass(frozen=True)
class Scores(ablation.Scores):
    """Scores on one test, as they are kept in files."""

    def figures(self) -> dict[str, float]:
        """Return mAP and rank-1 as fractions."""
        return {name: round(value, 5) for name, value in super().figures().items()}

    def kept(self, name: str) -> dict[str, np.ndarray]:
        """Return arrays for a file, average precisions as integers of 1 / SCALE."""
        return {
            f"{name}/precisions": np.rint(self.precisions * SCALE).astype(np.uint16),
            f"{name}/first": self.first,
            f"{name}/pids": self.pids.astype(np.int16),
        }


def scored(query: Features, gallery: Features) -> Scores:
    """Score features of queries and gallery under the Market rule."""
    found = evaluate(query, gallery).figures.per_query
    assert found is not None and query.pids is not None  # the Market rule always gives it
    ranked = np.isfinite(found.average_precision)
    return Scores(
        found.average_precision[ranked],
        found.first_rank[ranked] == 1,
        np.asarray(query.pids)[ranked],
    )


@torch.inference_mode()
def described_images(
    network: MMGA, images: ImageSet, config: Config
) -> tuple[Features, Features | None]:
    """Return the test vectors of images and, with part attention, their parts and visibilities."""
    network.eval()
    rows, seen = [], []
    for batch in eval_batches(images, eval_transform(config), masks=False):
        output = network.outputs(batch.images)
        rows.append(torch.stack([output.features[name] for name in network.head_names], dim=1))
        if network.attention2 is not None:
            maps = {part: visibility(output.attention[part]) for part in network.parts}
            seen.append(
                torch.stack([maps[name.split("_")[0]] for name in network.head_names], dim=1)
            )
    whole = torch.cat(rows)  # [N, P, D]
    labels = label_columns(images, np.arange(len(images)))
    vectors = Features(normalize(whole.flatten(1)).numpy(), **labels)
    if not seen:
        return vectors, None
    parts = normalize(whole, dim=2).numpy()
    return vectors, Features(parts=parts, visibility=torch.cat(seen).numpy(), **labels)


def score(network: MMGA, pair: Pair, config: Config) -> Iterator[tuple[str, Scores]]:
    """Yield a network's scores on a test, and, with part attention, those by visible parts."""
    query, gallery = (described_images(network, side, config) for side in pair)
    yield "", scored(query[0], gallery[0])
    if query[1] is not None and gallery[1] is not None:
        yield "/parts", scored(query[1], gallery[1])


def result_files(results: Path, stem: str) -> tuple[Path, Path]:
    """Return the JSON file of a run and the file of its queries' figures."""
    return results / f"{stem}.json", results / f"{stem}.npz"


def run(
    name: str,
    split: int,
    pictures: Pictures,
    weights: Path,
    out: Path,
    results: Path,
    *,
    viper: bool = False,
    progress: Progress | None = None,
) -> bool:
    """Train and test a row on a split, from where an earlier sitting stopped.

    Args:
        name: of the row.
        split: of the pooled sets, or of VIPeR.
        pictures: of the plan.
        weights: ImageNet weights of the backbone.
        out: folder for checkpoints.
        results: folder for results; a run that has one is finished.
        viper: whether the run is of VIPeR alone.
        progress: told how far training is.

    Returns:
        Whether there was anything to do.
    """
    stem = f"viper-{name}-split{split}" if viper else f"{name}-split{split}"
    report, queries = result_files(results, stem)
    if report.is_file() and queries.is_file():
        return False
    config = configuration(name, split, pictures.plan, weights, viper=viper)
    folder = out / stem
    began = time.perf_counter(), time.process_time()
    data = pictures.viper(split) if viper else pictures.data_set(split)
    resume = (folder / "last.safetensors").is_file()
    result = trainer.train(config, folder, resume=resume, data=data, progress=progress)
    cost = {
        "images_per_second": round(result.images_per_second, 1),
        "seconds": round(time.perf_counter() - began[0], 1),
        "cpu_seconds": round(time.process_time() - began[1], 1),
        "resumed": resume,
    }
    network = load_run(folder).network
    figures: dict[str, dict[str, float]] = {}
    kept: dict[str, Any] = {}
    for test, pair in _tests(pictures, split, data if viper else None):
        for way, scores in score(network, pair, config):
            figures[test + way] = scores.figures()
            kept |= scores.kept(test + way)
    with atomic_path(queries) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **kept)
    found = {
        "schema": 1,
        "row": name,
        "what": row_named(name).what,
        "split": split,
        "sets": "viper" if viper else "pooled",
        "steps": result.steps,
        "tests": figures,
        "validation": curve(folder),
        "attention": {
            drawn: {key: round(value, 5) for key, value in fit.items()}
            for drawn, fit in result.metrics.get("attention", {}).items()
        },
        **cost,
        "commit": commit(),
        "machine": machine(),
        "torch": torch.__version__,
        "plan": dataclasses.asdict(pictures.plan),
        "config": described(config),
    }
    with atomic_path(report) as temporary:
        temporary.write_text(json.dumps(found, indent=1) + "\n")
    shutil.rmtree(folder / "tensorboard", ignore_errors=True)
    return True


def _tests(pictures: Pictures, split: int, viper: Any = None) -> Iterator[tuple[str, Pair]]:
    if viper is not None:
        yield "clean", (viper.query, viper.gallery)
        return
    for test in TESTS:
        yield test, pictures.test(split, test)
    for test in PARTIAL:
        yield test, pictures.partial_test(test)


def curve(folder: Path) -> dict[str, float]:
    """Return the validation mAP by epoch, and the training losses beside it."""
    found = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        entry = json.loads(line)
        if entry.get("kind") == "val":
            found[str(entry["epoch"])] = round(entry["mAP"], 5)
    return found


def described(config: Config) -> dict[str, Any]:
    """Return a configuration as nested mappings, the weights by their file's name alone."""
    values = as_dict(config)
    values["model"]["weights"] = Path(values["model"]["weights"]).name
    return values
