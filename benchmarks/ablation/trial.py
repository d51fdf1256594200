"""One run: a row with a seed, trained, tested at every quarter of its steps, written as JSON."""

import dataclasses
import json
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.ablation.degrade import DegradedMasks
from benchmarks.ablation.pictures import Pair, Pictures
from benchmarks.ablation.plan import QUARTERS, TESTS
from benchmarks.ablation.rows import configuration, row_named
from mmga.common.errors import UserError
from mmga.common.files import atomic_path
from mmga.config import Config, as_dict, load_config
from mmga.extraction.extract import extract
from mmga.models import MMGA
from mmga.models import checkpoint as checkpoints
from mmga.training import trainer

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("mmga", "csrc", "benchmarks/ablation")
"""Folders that a run's figures depend on; its results are written elsewhere."""

SCALE = 10_000
"""Average precisions are stored as integers of this fraction."""


@dataclasses.dataclass(frozen=True, slots=True)
class Scores:
    """Scores of a network on one test.

    Attributes:
        precisions: average precision of each query, float64 [Q].
        first: whether the first answer was right, bool [Q].
        pids: identity of each query, int64 [Q].
    """

    precisions: np.ndarray
    first: np.ndarray
    pids: np.ndarray

    def figures(self) -> dict[str, float]:
        """Return mAP and rank-1 as fractions."""
        return {"mAP": float(self.precisions.mean()), "rank1": float(self.first.mean())}


def score(network: MMGA, pair: Pair, config: Config) -> Scores:
    """Score a network on queries and gallery under the Market rule."""
    from mmga.retrieval.evaluate import evaluate

    query, gallery = (extract(network, side, config) for side in pair)
    found = evaluate(query, gallery).figures.per_query
    assert found is not None  # the Market rule always gives it
    ranked = np.isfinite(found.average_precision)
    return Scores(
        found.average_precision[ranked], found.first_rank[ranked] == 1, pair[0].pids[ranked]
    )


def result_files(results: Path, name: str, seed: int) -> tuple[Path, Path]:
    """Return the JSON file of a run and the file of its queries' average precisions."""
    stem = results / f"{name}-seed{seed}"
    return stem.with_suffix(".json"), stem.with_suffix(".npz")


def run(
    name: str, seed: int, pictures: Pictures, out: Path, results: Path, *, threads: int = 1
) -> bool:
    """Train and test a row with a seed, from where an earlier sitting stopped.

    Args:
        name: of the row.
        seed: of the run.
        pictures: of the plan.
        out: folder for checkpoints.
        results: folder for results; a run that has one is finished.
        threads: of torch.

    Returns:
        Whether there was anything to do.

    Raises:
        UserError: `out` holds the run with another configuration or other pictures, or the plan's
            epochs give fewer steps than it asks for.
    """
    report, precisions = result_files(results, name, seed)
    if report.is_file() and precisions.is_file():
        return False
    config = configuration(name, seed, pictures.plan, threads)
    trial = _Trial(name, pictures, config, out / f"{name}-seed{seed}")
    trial.train()
    trial.finish(report, precisions)
    return True


class _Trial:
    """A run in progress: its folder, its sittings and its scores so far."""

    def __init__(self, name: str, pictures: Pictures, config: Config, folder: Path) -> None:
        self.name, self.plan, self.pictures = name, pictures.plan, pictures
        self.config, self.folder = config, folder
        self.steps = 0
        self._sittings: list[dict[str, Any]] = self._earlier()
        self._began = time.perf_counter(), time.process_time()
        self._attention: dict[str, Any] = {}

    def _earlier(self) -> list[dict[str, Any]]:
        saved, sittings = self.folder / "config.yaml", self.folder / "sittings.json"
        if not saved.is_file():
            return []
        if load_config(saved) != self.config:
            raise UserError(
                f"{self.folder} holds a run with another configuration; remove it, or name "
                "another --out"
            )
        if not sittings.is_file():
            return []
        found: list[dict[str, Any]] = json.loads(sittings.read_text())
        if any(sitting["pictures"] != self.pictures.digest for sitting in found):
            raise UserError(
                f"{self.folder} holds a run on other pictures; remove it, or name another --out"
            )
        return found

    def train(self) -> None:
        """Train to the end, testing at every quarter."""
        self._sittings.append(sitting(self.pictures.digest))
        self._note()
        train = self.pictures.train()
        if row_named(self.name).degraded:
            train = DegradedMasks(train, self.plan.seed)
        result = trainer.train(
            self.config,
            self.folder,
            resume=(self.folder / "last.safetensors").is_file(),
            data=self.pictures.data_set(train),
            progress=self.pictures.progress,
            observe=self._observe,
        )
        self.steps = result.steps
        self._attention = result.metrics.get("attention", {})
        self._note()
        if self.steps < self.plan.least_steps:
            raise UserError(
                f"a run of {self.plan.epochs} epochs took {self.steps} steps, the plan asks for "
                f"{self.plan.least_steps} or more; raise its epochs"
            )

    def _observe(self, network: MMGA, position: checkpoints.Position) -> None:
        """Test after a quarter of the epochs, unless an earlier sitting did."""
        self._note()
        share = 100 * position.epoch / self.plan.epochs
        if share not in QUARTERS or self._quarter(int(share)).is_file():
            return
        arrays: dict[str, Any] = {"steps": position.step}
        for test in TESTS:
            scores = score(network, self.pictures.test(test), self.config)
            arrays[f"{test}/precisions"] = scores.precisions
            arrays[f"{test}/first"] = scores.first
            arrays[f"{test}/pids"] = scores.pids
        with atomic_path(self._quarter(int(share))) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)
        self._note()

    def _quarter(self, share: int) -> Path:
        return self.folder / f"test-{share}.npz"

    def _note(self) -> None:
        """Write the time of this sitting, so that a kill loses an epoch of it at most."""
        wall, process = self._began
        self._sittings[-1] |= {
            "seconds": round(time.perf_counter() - wall, 1),
            "cpu_seconds": round(time.process_time() - process, 1),
        }
        with atomic_path(self.folder / "sittings.json") as temporary:
            temporary.write_text(json.dumps(self._sittings, indent=1))

    def finish(self, report: Path, precisions: Path) -> None:
        """Write the results; the JSON file last, so that its presence marks a finished run."""
        figures: dict[str, dict[str, Any]] = {}
        kept: dict[str, np.ndarray] = {}
        for share in QUARTERS:
            with np.load(self._quarter(share), allow_pickle=False) as stored:
                tests = {}
                for test in TESTS:
                    scores = Scores(
                        stored[f"{test}/precisions"],
                        stored[f"{test}/first"],
                        stored[f"{test}/pids"],
                    )
                    tests[test] = {k: round(v, 5) for k, v in scores.figures().items()}
                    if share == QUARTERS[-1]:
                        scaled = np.rint(scores.precisions * SCALE).astype(np.uint16)
                        kept[test] = scaled
                        kept[f"{test}/pids"] = scores.pids.astype(np.int16)
                figures[str(share)] = {"steps": int(stored["steps"]), "tests": tests}
        with atomic_path(precisions) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **kept)  # type: ignore[arg-type]
        found = {
            "schema": 1,
            "row": self.name,
            "what": row_named(self.name).what,
            "seed": self.config.run.seed,
            "steps": self.steps,
            "images_per_step": self.plan.p * self.plan.k,
            "pictures": self.pictures.digest,
            "figures": figures,
            "attention": {
                name: {k: round(v, 5) for k, v in fit.items()}
                for name, fit in self._attention.items()
            },
            "seconds": round(sum(s["seconds"] for s in self._sittings), 1),
            "cpu_seconds": round(sum(s["cpu_seconds"] for s in self._sittings), 1),
            "sittings": self._sittings,
            "plan": dataclasses.asdict(self.plan),
            "config": as_dict(self.config),
        }
        with atomic_path(report) as temporary:
            temporary.write_text(json.dumps(found, indent=1) + "\n")


def sitting(pictures: str) -> dict[str, Any]:
    """Return sources, machine and settings of one part of a run."""
    return {
        "commit": commit(),
        "machine": machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "pictures": pictures,
    }


def commit() -> str:
    """Return the commit of the sources, with `+` where they differ from it; `unknown` without."""

    def git(*words: str) -> str:
        run = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True)
        return run.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", *SOURCES)
        return git("rev-parse", "--short=12", "HEAD") + "+" * bool(changed)
    except (OSError, subprocess.CalledProcessError):  # no git here, or no repository
        return "unknown"


def machine() -> str:
    """Return the processor's name and the number of cores."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
    return f"{name}, {os.cpu_count()} cores"
