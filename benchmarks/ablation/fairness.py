"""Whether the pictures are a fair test: what retrieves persons without looking at persons.

The limits of `mmga.data.synthetic.audit`, and three that hang on what row 1 reached: colours alone,
with and without the true mask, must stay below half of its mAP, and that mAP on the clean test must
be neither near chance nor near perfect.
"""

import json
from pathlib import Path

import numpy as np

from benchmarks.ablation.plan import Plan
from mmga.common.progress import Progress
from mmga.data.synthetic import audit as synthetic_audit
from mmga.data.synthetic import synthetic
from mmga.data.synthetic.audit import Figure, table

__all__ = ["audit", "bounds", "table"]

LEAST, MOST = 0.40, 0.75
"""What row 1 must reach on the clean test, mAP."""

PROBE_PERSONS = 60
"""Training identities that the patch probe learns from."""


def audit(plan: Plan, results: Path, progress: Progress | None = None) -> list[Figure]:
    """Audit the clean test of a plan, beside row 1's figures where a run of it is finished.

    Args:
        plan: of the experiment.
        results: folder of finished runs.
        progress: told how many pictures are described.
    """
    data = synthetic(
        plan.seed,
        num_train=min(PROBE_PERSONS, plan.train_persons),
        num_test=plan.test_persons,
        size=plan.size,
        images_per_camera=plan.test_images,
        challenge="clean",
        population=plan.population,
        progress=progress,
    )
    figures = synthetic_audit.audit(data, progress)
    reached = [
        json.loads(file.read_text())["figures"]["100"]["tests"]["clean"]["mAP"]
        for file in sorted(results.glob("1-seed*.json"))
    ]
    return bounds(figures, float(np.mean(reached))) if reached else figures


def bounds(figures: list[Figure], row1: float) -> list[Figure]:
    """Return the figures with the limits that row 1's mAP on the clean test sets.

    Args:
        figures: of `mmga.data.synthetic.audit.audit`.
        row1: mAP, a fraction, mean over the finished seeds.
    """
    limited = [
        Figure(figure.name, figure.value, row1 / 2)
        if figure.name.startswith("colour stripes")
        else figure
        for figure in figures
    ]
    return [
        *limited,
        Figure("row 1, clean, at most", row1, MOST),
        Figure("row 1, clean, short of 40", max(0.0, LEAST - row1), 0.0),
    ]
