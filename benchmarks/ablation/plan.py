"""The sizes of the experiment: persons, pictures, steps. Imports no torch."""

import os
from dataclasses import dataclass

CHALLENGES = ("pose", "misalignment", "occlusion", "clutter")
SEVERITIES = (1, 2, 3)

Setting = tuple[str, int]
"""A challenge and its severity."""

TESTS: dict[str, Setting] = {"clean": ("clean", 1)} | {
    f"{challenge}-{severity}": (challenge, severity)
    for challenge in CHALLENGES
    for severity in SEVERITIES
}
"""Tests by name: the same persons, cameras and shots, one challenge raised in each."""

QUARTERS = (25, 50, 75, 100)
"""Shares of the steps, in percent, after which a run is tested."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Sizes of the experiment.

    Attributes:
        train_persons: training identities.
        validation_persons: identities on which the learning rate is chosen.
        test_persons: test identities.
        train_images: pictures of a training identity in each camera that sees it.
        test_images: pictures of any other identity in each camera; the first one is a query.
        size: (H, W) of the pictures.
        population: of the persons, see `mmga.data.synthetic.population`.
        seed: of the pictures, the same for every run.
        p: identities in a batch.
        k: images of each.
        pad: pixels of padding before the random crop.
        epochs: of a run, a multiple of four.
        least_steps: steps that a run must have taken to count.
        lr: learning rate of every row; chosen by `benchmarks.ablation.tuning`.
        log_every: steps between lines of metrics.jsonl.
    """

    train_persons: int = 300
    validation_persons: int = 50
    test_persons: int = 150
    train_images: int = 5
    test_images: int = 3
    size: tuple[int, int] = (96, 48)
    population: str = "uniform"
    seed: int = 0
    p: int = 16
    k: int = 4
    pad: int = 3
    epochs: int = 28
    least_steps: int = 1500
    lr: float = 2e-3
    log_every: int = 10


SMOKE = Plan(
    train_persons=6,
    validation_persons=4,
    test_persons=4,
    train_images=2,
    test_images=2,
    size=(48, 24),
    p=6,
    k=2,
    epochs=4,
    least_steps=1,
)
"""Sizes under MMGA_SMOKE=1: they show that everything runs, and nothing else."""


def current_plan() -> Plan:
    """Return the plan that the environment asks for."""
    return SMOKE if os.environ.get("MMGA_SMOKE") == "1" else Plan()
