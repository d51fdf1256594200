"""Poses as joint angles, and where they put the joints of a skeleton.

The body's own frame: left is to the wearer's left, up, and forward; the unit is the body's height.
"""

import dataclasses
import math

import numpy as np

Point = tuple[float, float, float]
"""(left, up, forward)."""


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


ACTIONS = ("run", "reach", "bend", "crouch", "phone", "star", "carry")
"""What people do at pose challenges beyond walking and standing."""


def draw_build(rng: np.random.Generator) -> Build:
    """Draw the proportions of a person."""
    return Build(
        legs=rng.normal(0.5, 0.008),
        shoulders=rng.normal(0.09, 0.004),
        hips=rng.normal(0.05, 0.002),
        girth=rng.normal(1.0, 0.07),
        limbs=rng.normal(1.0, 0.06),
        head=rng.normal(1.0, 0.03),
    )


def draw_pose(rng: np.random.Generator, level: float = 0.0) -> Pose:
    """Draw a pose.

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
    legs = [[swing, 0.02, lift[0]], [-swing, 0.02, lift[1]]]
    arms = [[-0.8 * swing, spread[0], bends[0]], [0.8 * swing, spread[1], bends[1]]]
    near = int(sides[0])
    if not strength:
        pass
    elif action == "run":
        lean += 0.3 * strength
        for arm in arms:
            arm[2] += 1.1 * strength
    elif action == "reach":
        arms[near][0] += 2.6 * strength * reach
        arms[near][2] *= 1 - 0.5 * strength
    elif action == "bend":
        lean += 1.15 * strength
        for arm in arms:
            arm[0] += 1.3 * strength
        for leg in legs:
            leg[2] += 0.3 * strength
    elif action == "crouch":
        lean += 0.35 * strength
        for leg in legs:
            leg[0] += 1.35 * strength
            leg[2] += 2.0 * strength
    elif action == "phone":
        arms[near][0] += 0.6 * strength
        arms[near][2] += 2.0 * strength
        nod += 0.4 * strength
    elif action == "star":
        for limb in (*arms, *legs):
            limb[1] += 0.22 * strength
        for arm in arms:
            arm[1] += 1.2 * strength * reach
    elif action == "carry":
        for arm in arms:
            arm[0] += 0.5 * strength
            arm[2] += 1.2 * strength
        lean -= 0.12 * strength
    return Pose(
        lean,
        sway + tilt,
        turn * (1 + strength),
        nod,
        (Limb(*legs[0]), Limb(*legs[1])),
        (Limb(*arms[0]), Limb(*arms[1])),
    )


UPPER_ARM, FOREARM, HAND = 0.165, 0.15, 0.05
SHIN, ANKLE, FOOT = 0.235, 0.04, 0.1
TRUNK, NECK, HEAD = 0.335, 0.03, 0.14


def joints(pose: Pose, build: Build) -> dict[str, Point]:
    """Return the joints of a body that stands on the ground at the origin.

    Returns:
        points by name: hips, chest (base of the neck), chin, crown, and with the suffixes
        `_left`, `_right`: shoulder, elbow, wrist, finger, hip, knee, ankle, toe.
    """
    found: dict[str, Point] = {"hips": (0.0, 0.0, 0.0)}
    trunk = _direction(pose.lean, pose.sway)
    chest = _along((0.0, 0.0, 0.0), trunk, TRUNK)
    found["chest"] = chest
    found["chin"] = _along(chest, _direction(0.5 * pose.lean + 0.5 * pose.nod, pose.sway), NECK)
    upright = _direction(0.5 * pose.lean + pose.nod, 0.5 * pose.sway)
    found["crown"] = _along(found["chin"], upright, HEAD * build.head)
    thigh = build.legs - SHIN - ANKLE
    lowest = 0.0
    for side, sign, leg, arm in (
        ("left", 1.0, pose.legs[0], pose.arms[0]),
        ("right", -1.0, pose.legs[1], pose.arms[1]),
    ):
        base = _along((0.0, 0.0, 0.0), trunk, TRUNK - 0.048)
        shoulder = (
            base[0] + sign * build.shoulders * math.cos(pose.sway),
            base[1] - sign * build.shoulders * math.sin(pose.sway),
            base[2],
        )
        elbow = _along(shoulder, _hanging(arm.swing, sign * arm.spread), UPPER_ARM)
        fore = _hanging(arm.swing + arm.bend, sign * arm.spread * 0.6)
        wrist = _along(elbow, fore, FOREARM)
        found[f"shoulder_{side}"], found[f"elbow_{side}"] = shoulder, elbow
        found[f"wrist_{side}"], found[f"finger_{side}"] = wrist, _along(wrist, fore, HAND)
        hip = (sign * build.hips, 0.0, 0.0)
        knee = _along(hip, _hanging(leg.swing, sign * leg.spread), thigh)
        shin = leg.swing - leg.bend
        ankle = _along(knee, _hanging(shin, sign * leg.spread * 0.5), SHIN)
        toe = (
            ankle[0] + sign * 0.015,
            ankle[1] + FOOT * math.sin(0.45 * shin) - 0.5 * ANKLE,
            ankle[2] + FOOT * math.cos(0.45 * shin),
        )
        found[f"hip_{side}"], found[f"knee_{side}"] = hip, knee
        found[f"ankle_{side}"], found[f"toe_{side}"] = ankle, toe
        lowest = min(lowest, ankle[1] - ANKLE, toe[1] - 0.5 * ANKLE)
    return {name: (left, up - lowest, front) for name, (left, up, front) in found.items()}


def _direction(forward: float, left: float) -> Point:
    return (
        math.sin(left) * math.cos(forward),
        math.cos(left) * math.cos(forward),
        math.sin(forward),
    )


def _hanging(forward: float, left: float) -> Point:
    return (
        math.sin(left) * math.cos(forward) if abs(forward) < 1.5 else math.sin(left),
        -math.cos(left) * math.cos(forward),
        math.sin(forward),
    )


def _along(start: Point, direction: Point, length: float) -> Point:
    return (
        start[0] + direction[0] * length,
        start[1] + direction[1] * length,
        start[2] + direction[2] * length,
    )
