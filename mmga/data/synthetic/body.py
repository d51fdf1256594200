"""The solids of a person in a pose, as a camera sees them."""

import dataclasses
import functools
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from mmga.data.masks import BACKGROUND, BOTTOM, OTHER, UPPER
from mmga.data.synthetic.appearance import Appearance
from mmga.data.synthetic.garment import Bag
from mmga.data.synthetic.pose import Point, Pose, joints
from mmga.data.synthetic.render import Box, Solid

_PERSPECTIVE = 0.1

# Half-widths of the trunk from hips to neck, to the side and to the front, without clothes.
_SIDE = np.array([0.088, 0.084, 0.077, 0.077, 0.084, 0.093, 0.098, 0.088, 0.034])
_DEPTH = np.array([0.068, 0.064, 0.060, 0.060, 0.066, 0.070, 0.066, 0.054, 0.030])
_LOOSE = np.array([1.3, 1.3, 1.2, 1, 1, 1, 0.8, 0.5, 0])
_HEAD_SIDE = np.array([0.024, 0.037, 0.043, 0.046, 0.048, 0.049, 0.048, 0.045, 0.039])

Width = TypeVar("Width", float, np.ndarray)


@dataclasses.dataclass(frozen=True, slots=True)
class View:
    """Direction from which a camera sees a person.

    Attributes:
        yaw: 0 faces the camera, a quarter turn positive shows the wearer's right side.
        pitch: how far the camera looks down, radians.
        roll: of the camera, radians.
    """

    yaw: float
    pitch: float
    roll: float = 0.0


class Spot(NamedTuple):
    """A standing place: the pixel (x, y) between the feet and a person's height there in pixels."""

    x: float
    y: float
    scale: float


class _Projection:
    """Projects the body's frame of a person at a spot to pixels."""

    def __init__(self, view: View, spot: Spot) -> None:
        self.spot = spot
        self._turn = math.sin(view.yaw), math.cos(view.yaw)
        self._tip = math.sin(view.pitch), math.cos(view.pitch)
        self._roll = math.sin(view.roll), math.cos(view.roll)

    def depth(self, point: Point) -> float:
        """Return the distance towards the camera on the ground plane."""
        return point.forward * self._turn[1] - point.left * self._turn[0]

    def __call__(self, point: Point) -> tuple[float, float]:
        """Return the pixel (x, y) of a point."""
        right = point.left * self._turn[1] + point.forward * self._turn[0]
        up = point.up * self._tip[1] - self.depth(point) * self._tip[0]
        scale = self.scale(point)
        right, up = right * scale, up * scale
        sin, cos = self._roll
        return self.spot.x + right * cos + up * sin, self.spot.y - up * cos + right * sin

    def scale(self, point: Point) -> float:
        """Return pixels per body height at a point; nearer points look larger."""
        towards = self.depth(point) * self._tip[1] + (point.up - 0.5) * self._tip[0]
        return 1.0 / (1.0 - _PERSPECTIVE * towards) * self.spot.scale


def extent(person: Appearance, pose: Pose, view: View) -> Box:
    """Return the box of a person one pixel high with feet at (0, 0)."""
    project = _Projection(view, Spot(0.0, 0.0, 1.0))
    points = np.array([project(point) for point in joints(pose, person.build).values()])
    left, top = points.min(0) - (0.035, 0.0)
    right, bottom = points.max(0)
    return float(left), float(top), float(right) + 0.035, float(bottom) + 0.02


@dataclasses.dataclass(slots=True)
class _Segment:
    """A solid in the body's frame.

    Attributes:
        start: axis at t = 0.
        end: axis at t = 1.
        widths: half-widths as shares of the body's height.
        tile: number of its tile.
        label: UPPER, BOTTOM or OTHER.
        caps: as in `Solid`.
        rows: as in `Solid`.
        folds: as in `Solid`.
        turn: angle around the axis relative to the body.
        gain: brightness.
    """

    start: Point
    end: Point
    widths: Sequence[float] | np.ndarray
    tile: int
    label: int
    caps: tuple[float, float] = (1.0, 1.0)
    rows: tuple[float, float] = (0.0, 0.999)
    folds: float = 0.0
    turn: float = 0.0
    gain: float = 1.0


_upper = functools.partial(_Segment, label=UPPER)
_bottom = functools.partial(_Segment, label=BOTTOM)
_carried = functools.partial(_Segment, label=OTHER)


def body_solids(
    person: Appearance, pose: Pose, view: View, spot: Spot, crease: int, labelled: bool = True
) -> list[Solid]:
    """Return the solids of a person, back to front.

    Args:
        person: build, head and outfit.
        pose: angles of the joints.
        view: direction of the camera.
        spot: standing place.
        crease: offset into the map of creases, to make no two pictures equal.
        labelled: True labels the solids with their part, False leaves them scene (a bystander).
    """
    project = _Projection(view, spot)
    solids = []
    for segment in _Body(person, pose, view, project).segments():
        first, last = project.scale(segment.start), project.scale(segment.end)
        steps = len(segment.widths) - 1
        solids.append(
            Solid(
                project(segment.start),
                project(segment.end),
                [w * (first + (last - first) * i / steps) for i, w in enumerate(segment.widths)],
                segment.tile,
                segment.label if labelled else BACKGROUND,
                angle=segment.turn - view.yaw,
                rows=segment.rows,
                caps=segment.caps,
                folds=segment.folds,
                crease=crease + 13 * segment.label + len(segment.widths),
                gain=segment.gain,
            )
        )
    return solids


class _Body:
    """Builds the segments of one person, as ordered for one view."""

    def __init__(self, person: Appearance, pose: Pose, view: View, project: _Projection) -> None:
        self.person, self.pose, self.view, self.project = person, pose, view, project
        self.joints = joints(pose, person.build)
        self.sin, self.cos = math.sin(view.yaw), math.cos(view.yaw)

    def segments(self) -> list[_Segment]:
        """Order the parts by depth: far limbs, trunk, head, near limbs."""
        behind: list[_Segment] = []
        ahead: list[_Segment] = []
        for side in ("left", "right"):
            near = self._depth(f"elbow_{side}", f"wrist_{side}", f"shoulder_{side}") > -0.035
            (ahead if near else behind).extend(self._arm(side))
        legs = sorted(
            ("left", "right"), key=lambda side: self._depth(f"knee_{side}", f"hip_{side}")
        )
        lower = [segment for side in legs for segment in self._leg(side)]
        trunk = [self._hips(), *self._skirt(), self._torso()]
        head = self._head()
        for bag in self.person.bags:
            for segment, near in self._bag(bag):
                if bag.kind == "backpack":
                    (trunk if near else behind).append(segment)
                else:
                    # Below the arm that carries it or hangs over it.
                    (ahead if near else behind).insert(0, segment)
        return [*behind, *lower, *trunk, *head, *ahead]

    def _depth(self, *names: str) -> float:
        return sum(self.project.depth(self.joints[name]) for name in names) / len(names)

    def _spine(self, share: float) -> Point:
        """Return a point of the trunk's axis, at 0 the hips and at 1 the base of the neck."""
        return self.joints["hips"].towards(self.joints["chest"], share)

    def _across(self, side: Width, depth: Width) -> Width:
        """Return the half-width that an oval shows at this yaw."""
        side, depth = side * self.cos, depth * self.sin
        return np.sqrt(side * side + depth * depth)

    def _joints(self, side: str, *names: str) -> Iterable[Point]:
        return (self.joints[f"{name}_{side}"] for name in names)

    def _arm(self, side: str) -> list[_Segment]:
        limbs, top, skin = self.person.build.limbs, self.person.top, self.person.skin_tile
        shoulder, elbow, wrist, finger = self._joints(side, "shoulder", "elbow", "wrist", "finger")
        gain = 1.0 if self.project.depth(elbow) > -0.03 else 0.85
        bare = functools.partial(_upper, tile=skin, gain=gain)
        sleeve = functools.partial(_upper, tile=top.sleeve, folds=0.1, gain=gain)
        armpit, middle = 0.027 * limbs + 0.7 * top.loose, 0.026 * limbs + top.loose
        hand = bare(wrist, finger, (0.015 * limbs, 0.012 * limbs))
        if top.long:
            cuff = 0.020 * limbs + 0.7 * top.loose
            return [
                hand,
                sleeve(wrist, elbow, (cuff, middle), caps=(0.3, 1), rows=(0.0, 0.45)),
                sleeve(elbow, shoulder, (middle, armpit), caps=(1, 0.8), rows=(0.45, 0.99)),
            ]
        widths = middle + 0.003, armpit
        return [
            hand,
            bare(wrist, elbow, (0.019 * limbs, 0.023 * limbs)),
            bare(elbow, shoulder, (0.023 * limbs, 0.026 * limbs)),
            sleeve(
                elbow.towards(shoulder, 0.35), shoulder, widths, caps=(0.2, 0.8), rows=(0.4, 0.99)
            ),
        ]

    def _leg(self, side: str) -> list[_Segment]:
        limbs, bottom = self.person.build.limbs, self.person.bottom
        hip, knee, ankle, toe = self._joints(side, "hip", "knee", "ankle", "toe")
        other = "right" if side == "left" else "left"
        far = self._depth(f"knee_{side}") < self._depth(f"knee_{other}") - 0.02
        part = functools.partial(_bottom, gain=0.82 if far else 1.0)
        bare = functools.partial(part, tile=self.person.skin_tile)
        cloth = functools.partial(part, tile=bottom.tile, folds=0.1)
        heel, thigh = ankle.moved(up=-0.018, forward=-0.02), 0.054 * limbs + bottom.loose
        shoe = part(toe, heel, (0.018, 0.024), self.person.shoe_tile, caps=(0.8, 0.9))
        if bottom.length >= 2 and not bottom.skirt:
            hem, middle = 0.027 * limbs + bottom.loose, 0.037 * limbs + bottom.loose
            return [
                shoe,
                cloth(ankle, knee, (hem, middle), caps=(0.3, 1), rows=(0.0, 0.5)),
                cloth(knee, hip, (middle, thigh), caps=(1, 1), rows=(0.5, 0.9)),
            ]
        parts = [
            shoe,
            bare(ankle, knee, (0.020 * limbs, 0.033 * limbs)),
            bare(knee, hip, (0.034 * limbs, 0.052 * limbs)),
        ]
        if not bottom.skirt:
            hem_at = knee.towards(hip, 1.05 - bottom.length)
            widths = 0.046 * limbs + bottom.loose, thigh
            parts.append(cloth(hem_at, hip, widths, caps=(0.2, 1), rows=(0.0, 0.9)))
        return parts

    def _hips(self) -> _Segment:
        girth, bottom = self.person.build.girth, self.person.bottom
        widths = self._across(_SIDE[:2] * girth, _DEPTH[:2] * girth) + 0.5 * bottom.loose
        low, high = self._spine(-0.1), self._spine(0.3)
        rows = 0.85, 0.999
        return _bottom(low, high, widths, bottom.tile, caps=(0.6, 0.3), rows=rows, folds=0.08)

    def _skirt(self) -> list[_Segment]:
        girth, bottom = self.person.build.girth, self.person.bottom
        if not bottom.skirt:
            return []
        left, right = self.joints["knee_left"], self.joints["knee_right"]
        middle = Point(*((a + b) / 2 for a, b in zip(left, right, strict=True)))
        reach = 0.95 * bottom.length
        hem = self.joints["hips"].towards(middle, reach)
        apart = abs(self.project(left)[0] - self.project(right)[0]) / self.project.spot.scale / 2
        waist = self._across(_SIDE[0] * girth, _DEPTH[0] * girth)
        flare = max(waist * 1.15, apart * reach + 0.05)
        top = self._spine(0.2)
        return [_bottom(hem, top, (flare, waist), bottom.tile, caps=(0.15, 0.5), folds=0.16)]

    def _torso(self) -> _Segment:
        build, top = self.person.build, self.person.top
        side, depth = _SIDE * build.girth, _DEPTH * build.girth
        side[4:8] *= build.shoulders / 0.09 / build.girth
        widths = self._across(side, depth) + top.loose * _LOOSE
        low, high = self._spine(-top.hem / 0.335), self._spine(1.02)
        # A long hem hangs down instead of following a bent trunk.
        if top.hem > 0.06:
            hips = self.joints["hips"]
            low = Point(hips.left, hips.up - top.hem, 0.5 * hips.forward)
            widths[0] *= 1.08
        tile = self.person.torso_tile
        return _upper(low, high, widths, tile, caps=(0.15, 0.5), folds=0.11)

    def _head(self) -> list[_Segment]:
        person, size, turn = self.person, self.person.build.head, self.pose.turn
        chest, chin, crown = (self.joints[name] for name in ("chest", "chin", "crown"))
        hair = functools.partial(_upper, tile=person.hair_tile)
        yaw = self.view.yaw + turn
        ahead = 0.018
        low, high = chin.moved(0, -0.012, ahead), crown.moved(0, -0.022 * size, ahead)
        widths = _HEAD_SIDE * size * math.sqrt(math.cos(yaw) ** 2 + (1.18 * math.sin(yaw)) ** 2)
        neck = _upper(
            self._spine(0.95), chin.moved(up=0.02), (0.030, 0.027), person.skin_tile, gain=0.85
        )
        head = _upper(low, high, widths, person.head_tile, caps=(0.6, 0.6), turn=-turn)
        back: list[_Segment] = []
        if person.hair == "long":
            tail = chest.moved(0, -0.045, -0.05)
            nape = crown.moved(-0.02 * math.sin(turn), -0.05, -0.02)
            back.append(hair(tail, nape, (0.036 * size, 0.050 * size), caps=(0.4, 1), folds=0.15))
        elif person.hair == "bun":
            knot = crown.moved(0, -0.03, -0.045)
            back.append(hair(knot, knot.moved(up=0.01), (0.024, 0.024)))
        elif person.hair == "cap":
            brow = crown.moved(0, -0.052, 0.05)
            peak = brow.moved(0.045 * math.sin(turn), -0.008, 0.045 * math.cos(turn))
            visor = hair(peak, brow, (0.024, 0.034), caps=(0.5, 0.5), gain=0.85)
            return [neck, head, visor] if math.cos(yaw) > -0.2 else [visor, neck, head]
        if person.top.hood:
            nape = chest.moved(0, -0.02, -0.035)
            wide = self._across(0.058, 0.04)
            fold, sleeve = nape.moved(0, 0.05, 0.01), person.top.sleeve
            back.append(_upper(nape, fold, (wide, 0.75 * wide), sleeve, folds=0.1))
        return [*back, neck, head] if self.cos > 0 else [neck, head, *back]

    def _bag(self, bag: Bag) -> list[tuple[_Segment, bool]]:
        """Return the segments of a bag, each with whether it is in front of the trunk."""
        if bag.kind == "backpack":
            return self._backpack(bag)
        return self._handbag(bag) if bag.kind == "hand" else self._shoulder_bag(bag)

    def _backpack(self, bag: Bag) -> list[tuple[_Segment, bool]]:
        low, high = self._spine(0.22).moved(forward=-0.1), self._spine(0.93).moved(forward=-0.085)
        wide = self._across(0.078, 0.052) * bag.size
        widths = wide, wide, wide, 0.8 * wide
        pack = _carried(low, high, widths, bag.tile, caps=(0.45, 0.6), folds=0.06, turn=math.pi)
        parts = [(pack, self.cos < 0.05)]
        if self.cos > 0.15:
            for sign in (-1.0, 1.0):
                hips = self.joints["hips"]
                foot = Point(sign * 0.075, hips.up + 0.13, hips.forward + 0.055)
                top = self.joints["chest"].moved(sign * 0.058, -0.035, 0.04)
                parts.append((self._strap(foot, top, bag), True))
        return parts

    def _handbag(self, bag: Bag) -> list[tuple[_Segment, bool]]:
        hand = self.joints["finger_left" if bag.side > 0 else "finger_right"]
        low, high = hand.moved(up=-0.15 * bag.size), hand.moved(up=-0.03)
        wide = self._across(0.03, 0.07) * bag.size
        near = self.project.depth(hand) > -0.035
        pouch = _carried(low, high, (wide, wide), bag.tile, caps=(0.3, 0.3))
        grip = _carried(high, hand, (0.02, 0.008), bag.strap, caps=(0.3, 0.3))
        return [(grip, near), (pouch, near)]

    def _shoulder_bag(self, bag: Bag) -> list[tuple[_Segment, bool]]:
        """Return a pouch on one hip and its strap across the trunk from the other shoulder."""
        sign, hips = float(bag.side), self.joints["hips"]
        low = hips.moved(sign * 0.115, -0.075 * bag.size, -0.01)
        high = hips.moved(sign * 0.11, 0.055 * bag.size, -0.01)
        wide = self._across(0.034, 0.085) * bag.size
        pouch = _carried(low, high, (wide, wide, 0.9 * wide), bag.tile, caps=(0.35, 0.25))
        # Of the strap the half on the side that the camera sees is drawn.
        depth = 0.05 if self.cos > 0 else -0.05
        foot = hips.moved(sign * 0.09, 0.05, 0.7 * depth)
        top = self.joints["chest"].moved(-sign * 0.05, -0.012, 0.5 * depth)
        return [
            (pouch, self.project.depth(low) > -0.04),
            (self._strap(foot, top, bag), True),
        ]

    def _strap(self, foot: Point, top: Point, bag: Bag) -> _Segment:
        return _carried(foot, top, (0.009, 0.010), bag.strap, caps=(0.3, 0.3))
