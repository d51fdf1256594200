"""Audit the pictures: how well persons are retrieved by something other than the person.

The limits are those of `mmga.data.synthetic.audit`, and three that depend on row 1's mAP on the
clean test: colours alone, with and without the true mask, must stay below half of it, and it must
be neither near chance nor near perfect.
"""

import json
from pathlib import Path

import numpy as np

from benchmarks.ablation.plan import Plan
from mmga.common.progress import Progress
from mmga.data.synthetic import audit as synthetic_audit
from mmga.data.synthetic import synthetic
from mmga.data.synthetic.audit import ProbeResult, table

__all__ = ["audit", "bounds", "table"]

LEAST, MOST = 0.40, 0.75
"""Allowed range of row 1's mAP on the clean test."""

PROBE_PERSONS = 60
"""Training identities that the patch probe learns from."""


def audit(plan: Plan, results: Path, progress: Progress | None = None) -> list[ProbeResult]:
    """Audit the clean test of a plan, with limits from row 1 where a run of it is finished.

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
    probes = synthetic_audit.audit(data, progress)
    reached = [
        json.loads(file.read_text())["figures"]["100"]["tests"]["clean"]["mAP"]
        for file in sorted(results.glob("1-seed*.json"))
    ]
    return bounds(probes, float(np.mean(reached))) if reached else probes


def bounds(probes: list[ProbeResult], row1: float) -> list[ProbeResult]:
    """Return the results with the limits that row 1's mAP on the clean test sets.

    Args:
        probes: of `mmga.data.synthetic.audit.audit`.
        row1: mAP, a fraction, mean over the finished seeds.
    """
    limited = [
        ProbeResult(probe.name, probe.value, row1 / 2)
        if probe.name.startswith("colour stripes")
        else probe
        for probe in probes
    ]
    return [
        *limited,
        ProbeResult("row 1, clean, at most", row1, MOST),
        ProbeResult("row 1, clean, short of 40", max(0.0, LEAST - row1), 0.0),
    ]
