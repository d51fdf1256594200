"""Challenges of a test; each can be raised alone."""

import dataclasses

import numpy as np

CHALLENGES = ("pose", "misalignment", "occlusion", "clutter")
"""Difficulties of a picture."""

SETTINGS = ("clean", "mixed", *CHALLENGES)
"""Values of `challenge`: none raised, a random mixture, or one challenge alone."""

SEVERITIES = (1, 2, 3)

_MIXED = 0.4
"""Probability of each challenge in an image of the setting `mixed`."""


@dataclasses.dataclass(frozen=True, slots=True)
class Levels:
    """Level of each challenge in one image: 0 for none, at most 3."""

    pose: float = 0.0
    misalignment: float = 0.0
    occlusion: float = 0.0
    clutter: float = 0.0


def sample_levels(rng: np.random.Generator, challenge: str, severity: int) -> Levels:
    """Sample the levels of an image.

    A single challenge stands at `severity` in every image; in a mixture each is on in four images
    of ten, at any level up to `severity`.
    """
    if challenge == "clean":
        return Levels()
    if challenge != "mixed":
        return Levels(**{challenge: float(severity)})
    on = rng.random(len(CHALLENGES)) < _MIXED
    height = rng.uniform(0.3, 1.0, len(CHALLENGES)) * severity
    return Levels(**dict(zip(CHALLENGES, (on * height).tolist(), strict=True)))
