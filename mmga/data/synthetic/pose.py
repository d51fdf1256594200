"""Poses as joint angles, and the positions of a skeleton's joints.

The body's own frame: left is to the wearer's left, up, and forward; the unit is the body's height.
"""

import dataclasses
import math
from typing import NamedTuple

import numpy as np


class Point(NamedTuple):
    """A point of the body's frame, or a direction."""

    left: float
    up: float
    forward: float

    def moved(self, left: float = 0.0, up: float = 0.0, forward: float = 0.0) -> "Point":
        """Return the point after a shift."""
        return Point(self.left + left, self.up + up, self.forward + forward)

    def along(self, direction: "Point", length: float) -> "Point":
        """Return the point at a distance in a direction."""
        return self.moved(*(length * part for part in direction))

    def towards(self, other: "Point", share: float) -> "Point":
        """Return the point at a share of the way to another one."""
        return Point(*(a + (b - a) * share for a, b in zip(self, other, strict=True)))


@dataclasses.dataclass(frozen=True, slots=True)
class Limb:
    """Angles of an arm or a leg, radians.

    Attributes:
        swing: of the upper segment, forward positive.
        spread: away from the body.
        bend: of elbow or knee, the natural way.
    """

    swing: float
    spread: float
    bend: float


@dataclasses.dataclass(frozen=True, slots=True)
class Pose:
    """Angles of the whole body, radians.

    Attributes:
        lean: of the trunk, forward.
        sway: of the trunk, to the left.
        turn: of the head, to the left.
        nod: of the head, forward.
        legs: left, right.
        arms: left, right.
    """

    lean: float
    sway: float
    turn: float
    nod: float
    legs: tuple[Limb, Limb]
    arms: tuple[Limb, Limb]


@dataclasses.dataclass(frozen=True, slots=True)
class Build:
    """Proportions of a body; lengths as shares of its height.

    Attributes:
        legs: height of the hips.
        shoulders: distance of each shoulder from the spine.
        hips: distance of each hip joint from the spine.
        girth: factor on the thickness of the trunk.
        limbs: factor on the thickness of arms and legs.
        head: factor on the size of the head.
    """

    legs: float = 0.5
    shoulders: float = 0.09
    hips: float = 0.05
    girth: float = 1.0
    limbs: float = 1.0
    head: float = 1.0


SWING, SPREAD, BEND = range(3)
"""Columns of a table of limbs, in the order of `Limb`."""

ACTIONS = ("run", "reach", "bend", "crouch", "phone", "star", "carry")
"""Actions of the pose challenge, beyond walking and standing."""


def sample_build(rng: np.random.Generator) -> Build:
    """Sample the proportions of a person."""
    return Build(
        legs=rng.normal(0.5, 0.008),
        shoulders=rng.normal(0.09, 0.004),
        hips=rng.normal(0.05, 0.002),
        girth=rng.normal(1.0, 0.07),
        limbs=rng.normal(1.0, 0.06),
        head=rng.normal(1.0, 0.03),
    )


def sample_pose(rng: np.random.Generator, level: float = 0.0) -> Pose:
    """Sample a pose.

    Args:
        rng: the stream of poses.
        level: 0 for walking and standing, up to 3 for strong actions.
    """
    phase = rng.uniform(0, 2 * math.pi)
    stride = rng.uniform(0.15, 0.42) if rng.random() < 0.8 else rng.uniform(0, 0.06)
    lean, sway = rng.normal(0.03, 0.04), rng.normal(0, 0.03)
    turn, nod = rng.normal(0, 0.3), rng.normal(0.08, 0.1)
    bends = rng.uniform(0.1, 0.6, 2)
    spread = rng.uniform(0.06, 0.2, 2)
    action = ACTIONS[rng.integers(len(ACTIONS))]
    strength = level / 3 * rng.uniform(0.8, 1.1)
    sides, reach = rng.permutation(2), rng.uniform(0.6, 1.0)
    tilt = rng.normal(0, 0.2) * strength

    if action == "run" and strength:
        stride = max(stride, 0.35) + 0.45 * strength
    swing = stride * math.sin(phase)
    lift = 0.06 + 1.1 * stride * np.maximum(0, [math.cos(phase), -math.cos(phase)])
    # A row for the left and one for the right limb.
    legs = np.array([[swing, 0.02, lift[0]], [-swing, 0.02, lift[1]]])
    arms = np.array([[-0.8 * swing, spread[0], bends[0]], [0.8 * swing, spread[1], bends[1]]])
    near = sides[0]
    if action == "run":
        lean += 0.3 * strength
        arms[:, BEND] += 1.1 * strength
    elif action == "reach":
        arms[near, SWING] += 2.6 * strength * reach
        arms[near, BEND] *= 1 - 0.5 * strength
    elif action == "bend":
        lean += 1.15 * strength
        arms[:, SWING] += 1.3 * strength
        legs[:, BEND] += 0.3 * strength
    elif action == "crouch":
        lean += 0.35 * strength
        legs[:, SWING] += 1.35 * strength
        legs[:, BEND] += 2.0 * strength
    elif action == "phone":
        arms[near, SWING] += 0.6 * strength
        arms[near, BEND] += 2.0 * strength
        nod += 0.4 * strength
    elif action == "star":
        arms[:, SPREAD] += 0.22 * strength
        arms[:, SPREAD] += 1.2 * strength * reach
        legs[:, SPREAD] += 0.22 * strength
    elif action == "carry":
        arms[:, SWING] += 0.5 * strength
        arms[:, BEND] += 1.2 * strength
        lean -= 0.12 * strength
    left_leg, right_leg, left_arm, right_arm = (Limb(*limb.tolist()) for limb in (*legs, *arms))
    turn *= 1 + strength
    return Pose(lean, sway + tilt, turn, nod, (left_leg, right_leg), (left_arm, right_arm))


UPPER_ARM, FOREARM, HAND = 0.165, 0.15, 0.05
SHIN, ANKLE, FOOT = 0.235, 0.04, 0.1
TRUNK, NECK, HEAD = 0.335, 0.03, 0.14


def joints(pose: Pose, build: Build) -> dict[str, Point]:
    """Return the joints of a body that stands on the ground at the origin.

    Returns:
        points by name: hips, chest (base of the neck), chin, crown, and with the suffixes
        `_left`, `_right`: shoulder, elbow, wrist, finger, hip, knee, ankle, toe.
    """
    hips = Point(0.0, 0.0, 0.0)
    trunk = _direction(pose.lean, pose.sway)
    chest = hips.along(trunk, TRUNK)
    chin = chest.along(_direction(0.5 * pose.lean + 0.5 * pose.nod, pose.sway), NECK)
    upright = _direction(0.5 * pose.lean + pose.nod, 0.5 * pose.sway)
    crown = chin.along(upright, HEAD * build.head)
    found = {"hips": hips, "chest": chest, "chin": chin, "crown": crown}
    lowest = 0.0
    for i, (side, sign) in enumerate((("left", 1.0), ("right", -1.0))):
        arm, leg = pose.arms[i], pose.legs[i]
        aside = sign * build.shoulders
        shoulder = hips.along(trunk, TRUNK - 0.048).moved(
            aside * math.cos(pose.sway), -aside * math.sin(pose.sway)
        )
        elbow = shoulder.along(_hanging(arm.swing, sign * arm.spread), UPPER_ARM)
        fore = _hanging(arm.swing + arm.bend, sign * arm.spread * 0.6)
        wrist = elbow.along(fore, FOREARM)
        hip = hips.moved(sign * build.hips)
        knee = hip.along(_hanging(leg.swing, sign * leg.spread), build.legs - SHIN - ANKLE)
        shin = leg.swing - leg.bend
        ankle = knee.along(_hanging(shin, sign * leg.spread * 0.5), SHIN)
        toe = Point(
            ankle.left + sign * 0.015,
            ankle.up + FOOT * math.sin(0.45 * shin) - 0.5 * ANKLE,
            ankle.forward + FOOT * math.cos(0.45 * shin),
        )
        limbs = {"shoulder": shoulder, "elbow": elbow, "wrist": wrist}
        limbs |= {"finger": wrist.along(fore, HAND), "hip": hip, "knee": knee}
        limbs |= {"ankle": ankle, "toe": toe}
        found |= {f"{name}_{side}": point for name, point in limbs.items()}
        lowest = min(lowest, ankle.up - ANKLE, toe.up - 0.5 * ANKLE)
    return {name: point.moved(up=-lowest) for name, point in found.items()}


def _direction(forward: float, left: float) -> Point:
    """Return the direction upright, leant forward and to the left."""
    return Point(
        math.sin(left) * math.cos(forward),
        math.cos(left) * math.cos(forward),
        math.sin(forward),
    )


def _hanging(forward: float, left: float) -> Point:
    """Return the direction straight down, swung forward and to the left."""
    sideways, down, ahead = _direction(forward, left)
    return Point(sideways if abs(forward) < 1.5 else math.sin(left), -down, ahead)
