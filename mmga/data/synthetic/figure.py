"""A person in a pose, seen by a camera: which solids that is."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from mmga.data.synthetic.garment import Bag
from mmga.data.synthetic.person import Person
from mmga.data.synthetic.pose import Point, Pose, joints
from mmga.data.masks import BACKGROUND as NOT_BODY, BOTTOM, OTHER, UPPER
from mmga.data.synthetic.render import Solid

_PERSPECTIVE = 0.1

# Half-widths of the trunk from hips to neck, to the side and to the front, without clothes.
_SIDE = np.array([0.088, 0.084, 0.077, 0.077, 0.084, 0.093, 0.098, 0.088, 0.034])
_DEPTH = np.array([0.068, 0.064, 0.060, 0.060, 0.066, 0.070, 0.066, 0.054, 0.030])
_HEAD_SIDE = np.array([0.024, 0.037, 0.043, 0.046, 0.048, 0.049, 0.048, 0.045, 0.039])


@dataclasses.dataclass(frozen=True, slots=True)
class View:
    """How a person is seen.

    Attributes:
        yaw: 0 faces the camera, a quarter turn positive shows the wearer's right side.
        pitch: how far the camera looks down, radians.
        roll: of the camera, radians.
    """

    yaw: float
    pitch: float
    roll: float = 0.0


class _Projection:
    """From the body's frame to pixels of a person who is `scale` pixels high, feet at `origin`."""

    def __init__(self, view: View, origin: tuple[float, float], scale: float) -> None:
        self.view, self.origin, self.scale = view, origin, scale
        self._turn = math.sin(view.yaw), math.cos(view.yaw)
        self._tip = math.sin(view.pitch), math.cos(view.pitch)
        self._roll = math.sin(view.roll), math.cos(view.roll)

    def depth(self, point: Point) -> float:
        """Distance towards the camera on the ground plane."""
        return point[2] * self._turn[1] - point[0] * self._turn[0]

    def __call__(self, point: Point) -> tuple[float, float]:
        """Return the pixel (x, y) of a point."""
        right = point[0] * self._turn[1] + point[2] * self._turn[0]
        near = self.depth(point)
        up = point[1] * self._tip[1] - near * self._tip[0]
        grow = self.grow(point) * self.scale
        right, up = right * grow, up * grow
        sin, cos = self._roll
        return (
            self.origin[0] + right * cos + up * sin,
            self.origin[1] - up * cos + right * sin,
        )

    def grow(self, point: Point) -> float:
        """Return how much larger a point's surroundings look for being nearer."""
        towards = self.depth(point) * self._tip[1] + (point[1] - 0.5) * self._tip[0]
        return 1.0 / (1.0 - _PERSPECTIVE * towards)


def extent(person: Person, pose: Pose, view: View) -> tuple[float, float, float, float]:
    """Return the box (left, top, right, bottom) of a person one pixel high with feet at (0, 0)."""
    project = _Projection(view, (0.0, 0.0), 1.0)
    points = np.array([project(point) for point in joints(pose, person.build).values()])
    left, top = points.min(0) - (0.035, 0.0)
    right, bottom = points.max(0)
    return float(left), float(top), float(right) + 0.035, float(bottom) + 0.02


def draw_figure(
    person: Person,
    pose: Pose,
    view: View,
    origin: tuple[float, float],
    scale: float,
    crease: int,
    body: bool = True,
    gain: float = 1.0,
) -> list[Solid]:
    """Return the solids of a person, back to front.

    Args:
        person: who.
        pose: how.
        view: seen from where.
        origin: pixel of the point between the feet.
        scale: height of the body in pixels.
        crease: offset into the map of creases, to make no two pictures equal.
        body: True labels the solids with their part, False leaves them scene (a bystander).
        gain: brightness.
    """
    return _Figure(person, pose, view, origin, scale, crease, body, gain).solids()


class _Figure:
    def __init__(
        self,
        person: Person,
        pose: Pose,
        view: View,
        origin: tuple[float, float],
        scale: float,
        crease: int,
        body: bool,
        gain: float,
    ) -> None:
        self.person, self.pose, self.view = person, pose, view
        self.scale, self.crease, self.body, self.gain = scale, crease, body, gain
        self.project = _Projection(view, origin, scale)
        self.joints = joints(pose, person.build)
        self.front = math.cos(view.yaw)

    def solids(self) -> list[Solid]:
        """Order the parts by depth: far limbs, trunk, head, near limbs."""
        person = self.person
        behind: list[Solid] = []
        ahead: list[Solid] = []
        for side in ("left", "right"):
            near = self._depth(f"elbow_{side}", f"wrist_{side}", f"shoulder_{side}") > -0.035
            (ahead if near else behind).extend(self._arm(side))
        legs = sorted(
            ("left", "right"), key=lambda side: self._depth(f"knee_{side}", f"hip_{side}")
        )
        lower = [solid for side in legs for solid in self._leg(side)]
        trunk = [self._hips(), *self._skirt(), self._torso()]
        head = self._head()
        for bag in person.bags:
            for solid, near in self._bag(bag):
                if bag.kind == "backpack":
                    (trunk if near else behind).append(solid)
                else:
                    # Below the arm that carries it or hangs over it.
                    (ahead if near else behind).insert(0, solid)
        return [*behind, *lower, *trunk, *head, *ahead]

    def _depth(self, *names: str) -> float:
        return sum(self.project.depth(self.joints[name]) for name in names) / len(names)

    def _solid(
        self,
        start: Point,
        end: Point,
        widths: Sequence[float],
        tile: int,
        label: int,
        caps: tuple[float, float] = (1.0, 1.0),
        rows: tuple[float, float] = (0.0, 0.999),
        folds: float = 0.0,
        turn: float = 0.0,
        gain: float = 1.0,
    ) -> Solid:
        """Make a solid between two points of the body; widths are shares of the body's height."""
        first, last = self.scale * self.project.grow(start), self.scale * self.project.grow(end)
        steps = len(widths) - 1
        pixels = [w * (first + (last - first) * i / steps) for i, w in enumerate(widths)]
        return Solid(
            self.project(start),
            self.project(end),
            pixels,
            tile,
            label if self.body else NOT_BODY,
            angle=-self.view.yaw + turn,
            rows=rows,
            caps=caps,
            folds=folds,
            crease=self.crease + 13 * label + len(widths),
            gain=self.gain * gain,
        )

    def _between(self, one: str, other: str, share: float) -> Point:
        a, b = self.joints[one], self.joints[other]
        return (
            a[0] + (b[0] - a[0]) * share,
            a[1] + (b[1] - a[1]) * share,
            a[2] + (b[2] - a[2]) * share,
        )

    def _across(self, side: np.ndarray, depth: np.ndarray) -> np.ndarray:
        """Return the half-width that an oval trunk shows at this yaw."""
        sin, cos = math.sin(self.view.yaw), math.cos(self.view.yaw)
        return np.sqrt((side * cos) ** 2 + (depth * sin) ** 2)

    def _arm(self, side: str) -> list[Solid]:
        person, j = self.person, self.joints
        limbs, loose = person.build.limbs, person.top.loose
        shoulder, elbow, wrist = j[f"shoulder_{side}"], j[f"elbow_{side}"], j[f"wrist_{side}"]
        sleeve, skin = person.top.sleeve, person.skin_tile
        near = self.project.depth(elbow) > -0.03
        gain = 1.0 if near else 0.85
        thick = 0.027 * limbs + 0.7 * loose, 0.026 * limbs + loose, 0.020 * limbs + 0.7 * loose
        parts = [
            self._solid(
                wrist, j[f"finger_{side}"], (0.015 * limbs, 0.012 * limbs), skin, UPPER, gain=gain
            )
        ]
        if person.top.length >= 2:
            lower = (thick[2], thick[1])
            parts.append(
                self._solid(
                    wrist, elbow, lower, sleeve, UPPER, (0.3, 1), (0.0, 0.45), 0.1, gain=gain
                )
            )
            parts.append(
                self._solid(
                    elbow,
                    shoulder,
                    (thick[1], thick[0]),
                    sleeve,
                    UPPER,
                    (1, 0.8),
                    (0.45, 0.99),
                    0.1,
                    gain=gain,
                )
            )
        else:
            bare = 0.019 * limbs, 0.023 * limbs, 0.026 * limbs
            parts.append(self._solid(wrist, elbow, bare[:2], skin, UPPER, gain=gain))
            parts.append(self._solid(elbow, shoulder, bare[1:], skin, UPPER, gain=gain))
            cuff = self._between(f"elbow_{side}", f"shoulder_{side}", 0.35)
            parts.append(
                self._solid(
                    cuff,
                    shoulder,
                    (thick[1] + 0.003, thick[0]),
                    sleeve,
                    UPPER,
                    (0.2, 0.8),
                    (0.4, 0.99),
                    0.1,
                    gain=gain,
                )
            )
        return parts

    def _leg(self, side: str) -> list[Solid]:
        person, j = self.person, self.joints
        limbs, bottom = person.build.limbs, person.bottom
        hip, knee, ankle = j[f"hip_{side}"], j[f"knee_{side}"], j[f"ankle_{side}"]
        other = "right" if side == "left" else "left"
        far = self._depth(f"knee_{side}") < self._depth(f"knee_{other}") - 0.02
        gain = 0.82 if far else 1.0
        parts = [
            self._solid(
                j[f"toe_{side}"],
                (ankle[0], ankle[1] - 0.018, ankle[2] - 0.02),
                (0.018, 0.024),
                person.shoe_tile,
                BOTTOM,
                (0.8, 0.9),
                gain=gain,
            )
        ]
        if bottom.length >= 2 and not bottom.skirt:
            loose = bottom.loose
            hem, middle, thigh = 0.027 * limbs + loose, 0.037 * limbs + loose, 0.054 * limbs + loose
            parts.append(
                self._solid(
                    ankle,
                    knee,
                    (hem, middle),
                    bottom.tile,
                    BOTTOM,
                    (0.3, 1),
                    (0.0, 0.5),
                    0.1,
                    gain=gain,
                )
            )
            parts.append(
                self._solid(
                    knee,
                    hip,
                    (middle, thigh),
                    bottom.tile,
                    BOTTOM,
                    (1, 1),
                    (0.5, 0.9),
                    0.1,
                    gain=gain,
                )
            )
            return parts
        skin = person.skin_tile
        parts.append(
            self._solid(ankle, knee, (0.020 * limbs, 0.033 * limbs), skin, BOTTOM, gain=gain)
        )
        parts.append(
            self._solid(knee, hip, (0.034 * limbs, 0.052 * limbs), skin, BOTTOM, gain=gain)
        )
        if not bottom.skirt:
            hem_at = self._between(f"knee_{side}", f"hip_{side}", 1.05 - bottom.length)
            parts.append(
                self._solid(
                    hem_at,
                    hip,
                    (0.046 * limbs + bottom.loose, 0.054 * limbs + bottom.loose),
                    bottom.tile,
                    BOTTOM,
                    (0.2, 1),
                    (0.0, 0.9),
                    0.1,
                    gain=gain,
                )
            )
        return parts

    def _hips(self) -> Solid:
        build, loose = self.person.build, self.person.bottom.loose
        widths = self._across(_SIDE[:2] * build.girth, _DEPTH[:2] * build.girth) + 0.5 * loose
        low = self._between("hips", "chest", -0.1)
        high = self._between("hips", "chest", 0.3)
        return self._solid(
            low,
            high,
            (widths[0], widths[1]),
            self.person.bottom.tile,
            BOTTOM,
            (0.6, 0.3),
            (0.85, 0.999),
            0.08,
        )

    def _skirt(self) -> list[Solid]:
        bottom = self.person.bottom
        if not bottom.skirt:
            return []
        build, j = self.person.build, self.joints
        knees = j["knee_left"], j["knee_right"]
        middle = tuple((a + b) / 2 for a, b in zip(*knees, strict=True))
        reach = 0.95 * bottom.length
        hips = j["hips"]
        hem = (
            hips[0] + (middle[0] - hips[0]) * reach,
            hips[1] + (middle[1] - hips[1]) * reach,
            hips[2] + (middle[2] - hips[2]) * reach,
        )
        xs = [self.project(knee)[0] for knee in knees]
        apart = abs(xs[0] - xs[1]) / self.scale / 2
        waist = self._across(_SIDE[:1] * build.girth, _DEPTH[:1] * build.girth)[0]
        flare = max(waist * 1.15, apart * reach + 0.05)
        top = self._between("hips", "chest", 0.2)
        return [self._solid(hem, top, (flare, waist), bottom.tile, BOTTOM, (0.15, 0.5), folds=0.16)]

    def _torso(self) -> Solid:
        person = self.person
        girth, loose = person.build.girth, person.top.loose
        wide = person.build.shoulders / 0.09
        side, depth = _SIDE * girth, _DEPTH * girth
        side[4:8] *= wide / girth
        widths = self._across(side, depth) + loose * np.array([1.3, 1.3, 1.2, 1, 1, 1, 0.8, 0.5, 0])
        below = -person.top.hem / 0.335
        start = self._between("hips", "chest", below)
        # A long hem hangs down instead of following a bent trunk.
        if person.top.hem > 0.06:
            hips = self.joints["hips"]
            start = (hips[0], hips[1] - person.top.hem, 0.5 * hips[2])
            widths[0] *= 1.08
        return self._solid(
            start,
            self._between("hips", "chest", 1.02),
            widths.tolist(),
            person.torso_tile,
            UPPER,
            (0.15, 0.5),
            folds=0.11,
        )

    def _head(self) -> list[Solid]:
        person, j = self.person, self.joints
        size, turn = person.build.head, -self.pose.turn
        chin, crown, chest = j["chin"], j["crown"], j["chest"]
        yaw = self.view.yaw + self.pose.turn
        deep = math.sqrt(math.cos(yaw) ** 2 + (1.18 * math.sin(yaw)) ** 2)
        ahead = 0.018
        low = (chin[0], chin[1] - 0.012, chin[2] + ahead)
        high = (crown[0], crown[1] - 0.022 * size, crown[2] + ahead)
        widths = (_HEAD_SIDE * size * deep).tolist()
        neck = self._solid(
            self._between("hips", "chest", 0.95),
            (chin[0], chin[1] + 0.02, chin[2]),
            (0.030, 0.027),
            person.skin_tile,
            UPPER,
            gain=0.85,
        )
        head = self._solid(low, high, widths, person.head_tile, UPPER, (0.6, 0.6), turn=turn)
        back: list[Solid] = []
        forward = math.sin(self.pose.turn) * -1, math.cos(self.pose.turn)
        if person.hair == "long":
            tail = (chest[0], chest[1] - 0.045, chest[2] - 0.05)
            nape = (crown[0] + 0.02 * forward[0], crown[1] - 0.05, crown[2] - 0.02)
            back.append(
                self._solid(
                    tail,
                    nape,
                    (0.036 * size, 0.050 * size),
                    person.hair_tile,
                    UPPER,
                    (0.4, 1),
                    folds=0.15,
                )
            )
        elif person.hair == "bun":
            knot = (crown[0], crown[1] - 0.03, crown[2] - 0.045)
            up = (knot[0], knot[1] + 0.01, knot[2])
            back.append(self._solid(knot, up, (0.024, 0.024), person.hair_tile, UPPER))
        elif person.hair == "cap":
            brow = (crown[0], crown[1] - 0.052, crown[2] + 0.05)
            peak = (
                brow[0] + 0.045 * math.sin(self.pose.turn),
                brow[1] - 0.008,
                brow[2] + 0.045 * math.cos(self.pose.turn),
            )
            visor = self._solid(
                peak, brow, (0.024, 0.034), person.hair_tile, UPPER, (0.5, 0.5), gain=0.85
            )
            if math.cos(yaw) > -0.2:
                return [neck, head, visor]
            return [visor, neck, head]
        if person.top.hood:
            nape = (chest[0], chest[1] - 0.02, chest[2] - 0.035)
            fold = (nape[0], nape[1] + 0.05, nape[2] + 0.01)
            wide = float(self._across(np.array([0.058]), np.array([0.04]))[0])
            back.append(
                self._solid(nape, fold, (wide, 0.75 * wide), person.top.sleeve, UPPER, folds=0.1)
            )
        if self.front > 0:
            return [*back, neck, head]
        return [neck, head, *back]

    def _bag(self, bag: Bag) -> list[tuple[Solid, bool]]:
        """Return the solids of something carried, each with whether it is in front of the trunk."""
        if bag.kind == "backpack":
            return self._backpack(bag)
        return self._handbag(bag) if bag.kind == "hand" else self._shoulder_bag(bag)

    def _backpack(self, bag: Bag) -> list[tuple[Solid, bool]]:
        hips = self.joints["hips"]
        high = self._between("hips", "chest", 0.93)
        low = self._between("hips", "chest", 0.22)
        high = (high[0], high[1], high[2] - 0.085)
        low = (low[0], low[1], low[2] - 0.1)
        wide = float(self._across(np.array([0.078]), np.array([0.052]))[0]) * bag.size
        widths, caps = (wide, wide, wide, 0.8 * wide), (0.45, 0.6)
        pack = self._solid(low, high, widths, bag.tile, OTHER, caps, folds=0.06, turn=math.pi)
        parts = [(pack, self.front < 0.05)]
        if self.front > 0.15:
            for sign in (-1.0, 1.0):
                foot = (sign * 0.075, hips[1] + 0.13, hips[2] + 0.055)
                top = self._offset("chest", sign * 0.058, -0.035, 0.04)
                parts.append((self._strap(foot, top, bag), True))
        return parts

    def _handbag(self, bag: Bag) -> list[tuple[Solid, bool]]:
        hand = self.joints["finger_left" if bag.side > 0 else "finger_right"]
        low = (hand[0], hand[1] - 0.15 * bag.size, hand[2])
        high = (hand[0], hand[1] - 0.03, hand[2])
        wide = float(self._across(np.array([0.03]), np.array([0.07]))[0]) * bag.size
        near = self.project.depth(hand) > -0.035
        pouch = self._solid(low, high, (wide, wide), bag.tile, OTHER, (0.3, 0.3))
        grip = self._solid(high, hand, (0.02, 0.008), bag.strap, OTHER, (0.3, 0.3))
        return [(grip, near), (pouch, near)]

    def _shoulder_bag(self, bag: Bag) -> list[tuple[Solid, bool]]:
        """A pouch on one hip, its strap across the trunk from the other shoulder."""
        sign, hips = float(bag.side), self.joints["hips"]
        low = (hips[0] + sign * 0.115, hips[1] - 0.075 * bag.size, hips[2] - 0.01)
        high = (hips[0] + sign * 0.11, hips[1] + 0.055 * bag.size, hips[2] - 0.01)
        wide = float(self._across(np.array([0.034]), np.array([0.085]))[0]) * bag.size
        widths = (wide, wide, 0.9 * wide)
        pouch = self._solid(low, high, widths, bag.tile, OTHER, (0.35, 0.25))
        # Of the strap the half on the side that the camera sees is drawn.
        depth = 0.05 if self.front > 0 else -0.05
        foot = (hips[0] + sign * 0.09, hips[1] + 0.05, hips[2] + 0.7 * depth)
        strap = self._strap(foot, self._offset("chest", -sign * 0.05, -0.012, 0.5 * depth), bag)
        return [(pouch, self.project.depth(low) > -0.04), (strap, True)]

    def _strap(self, foot: Point, top: Point, bag: Bag) -> Solid:
        return self._solid(foot, top, (0.009, 0.010), bag.strap, OTHER, (0.3, 0.3))

    def _offset(self, name: str, left: float, up: float, forward: float) -> Point:
        point = self.joints[name]
        return point[0] + left, point[1] + up, point[2] + forward
