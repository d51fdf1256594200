"""A split of the synthetic data: its persons, places and pictures."""

import dataclasses
import math
from typing import NamedTuple

import numpy as np

from mmga.common.errors import UserError
from mmga.data.synthetic.appearance import sample_appearances
from mmga.data.synthetic.body import Spot, View, body_solids, extent
from mmga.data.synthetic.camera import Camera, develop, sample_camera, sample_exposure
from mmga.data.synthetic.challenge import SETTINGS, SEVERITIES, Levels, sample_levels
from mmga.data.synthetic.garment import Fashion
from mmga.data.synthetic.population import POPULATIONS
from mmga.data.synthetic.pose import sample_pose
from mmga.data.synthetic.render import Box, Canvas, Solid
from mmga.data.synthetic.scene import (
    GROUND,
    PANORAMA,
    Assets,
    Objects,
    add_tiles,
    cut_frame,
    paint_panorama,
)
from mmga.data.synthetic.streams import stream, uniform
from mmga.data.synthetic.textures import Atlas

PLACES = 3
"""Panoramas per camera and split."""


@dataclasses.dataclass(frozen=True, slots=True)
class Shot:
    """The key of a picture: a person, a camera and a running number.

    Attributes:
        person: number of the person in the world, from 0.
        camera: number of the camera, from 0.
        frame: number of the picture of this person in this camera, from 0.
    """

    person: int
    camera: int
    frame: int


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """A rendered picture with its ground truth.

    Attributes:
        image: uint8 [3, H, W].
        labels: uint8 [H, W], 0 scene, 1 upper, 2 bottom, 3 carried.
        levels: level of each challenge.
        backdrop: key of the scene behind the person; equal keys are the same scene.
        box: of the body before occlusion, pixels (left, top, right, bottom); may exceed the frame.
        scene: frame before the person was painted, float32 [H, W, 3].
        composed: frame before the camera's sensor, float32 [H, W, 3].
        cover: share of upper, bottom and carried in each pixel, float32 [H, W, 3].
    """

    image: np.ndarray
    labels: np.ndarray
    levels: Levels
    backdrop: tuple[int, ...]
    box: Box
    scene: np.ndarray
    composed: np.ndarray
    cover: np.ndarray


class _Framing(NamedTuple):
    """Placement of a person in the frame.

    Attributes:
        spot: place and scale of the person.
        box: of the body before occlusion.
        height: of an average person there, in pixels; the scale of objects.
        zoom: frame pixels per panorama pixel.
    """

    spot: Spot
    box: Box
    height: float
    zoom: float


@dataclasses.dataclass(frozen=True, slots=True)
class WorldOptions:
    """Options of a world.

    Attributes:
        cameras: number of cameras.
        size: (H, W) of the pictures.
        rho: probability with which a picture shows the tracklet's backdrop, not one of its own.
        challenge: a setting of `mmga.data.synthetic.challenge`.
        severity: 1 to 3.
        share: least number of persons who wear each garment.
        schemes: number of colour schemes of their clothes; 0 for as many as the population has.
        population: a key of `mmga.data.synthetic.population.POPULATIONS`.
    """

    cameras: int = 6
    size: tuple[int, int] = (128, 64)
    rho: float = 0.5
    challenge: str = "mixed"
    severity: int = 1
    share: int = 5
    schemes: int = 0
    population: str = "varied"

    def __post_init__(self) -> None:
        """Raise a UserError where a value is out of range."""
        for name, values in (("challenge", SETTINGS), ("population", POPULATIONS)):
            value = getattr(self, name)
            require(value in values, name, f"one of {', '.join(values)}", repr(value))
        require(self.severity in SEVERITIES, "severity", "1, 2 or 3", repr(self.severity))
        size = len(self.size) == 2 and min(self.size) >= 16
        require(size, "size", "(height, width) of 16 or more", self.size)
        require(self.cameras >= 2, "cameras", "2 or more", self.cameras)
        require(self.share >= 1, "share", "1 or more", self.share)
        require(self.schemes >= 0, "schemes", "0 or more", self.schemes)
        require(0.0 <= self.rho <= 1.0, "rho", "0 to 1", self.rho)


def require(right: bool, name: str, expected: str, found: object) -> None:
    """Raise a UserError that names an argument unless its value is right."""
    if not right:
        raise UserError(f"{name} must be {expected}, got {found}")


class World:
    """Persons of one split and the places where cameras see them.

    A picture depends on the seed, the split and its `Shot` alone: every choice is sampled from
    a stream keyed by these and by its purpose, so that a challenge changes nothing but what it
    names, and neither order nor workers matter.

    Args:
        seed: of persons, places and pictures.
        split: `train`, `val` or `test`; persons and places of different splits are unrelated,
            cameras are the same.
        persons: number of identities.
        options: sizes, challenge and population.
    """

    def __init__(self, seed: int, split: str, persons: int, options: WorldOptions) -> None:
        population = POPULATIONS[options.population]
        self.seed, self.split, self.options, self.size = seed, split, options, options.size
        self.unit = options.size[0] / 128
        self.scene_contrast = population.scene_contrast
        self.cameras = [sample_camera(i, seed) for i in range(options.cameras)]
        atlas = Atlas()
        schemes = options.schemes or population.schemes or max(3, persons // (10 * options.share))
        key = (seed,) if population.common else (seed, split)
        fashion = Fashion(
            stream(*key, "fashion"), schemes, population.patterns, population.contrast
        )
        wardrobe = stream(seed, split, "wardrobe")
        self.persons, bystanders = sample_appearances(
            wardrobe, atlas, fashion, persons, max(20, persons // 4), options.share
        )
        tiles = add_tiles(atlas, fashion, stream(seed, split, "tiles"), 120)
        self.assets = Assets(atlas.texels, tiles, bystanders)
        self._panoramas: dict[tuple[int, int], np.ndarray] = {}

    def panorama(self, camera: Camera, place: int) -> np.ndarray:
        """Return a place of a camera, painted when first asked for."""
        name = camera.number, place
        if name not in self._panoramas:
            painted = paint_panorama(
                self.assets, camera, self.unit, self.seed, self.split, "panorama", *name
            )
            if self.scene_contrast != 1:
                mean = painted.mean((0, 1))
                painted = (mean + self.scene_contrast * (painted - mean)).astype(painted.dtype)
            self._panoramas[name] = painted
        return self._panoramas[name]

    def seen_by(self, person: int) -> list[int]:
        """Return the cameras that see a person: two to four of them."""
        rng = stream(self.seed, self.split, person, "cameras")
        count = len(self.cameras)
        few = min(count, int(rng.integers(min(2, count), 5)))
        return sorted(rng.choice(count, few, replace=False).tolist())

    def backdrop(self, shot: Shot) -> tuple[int, ...]:
        """Return the key of the scene behind a shot: the tracklet's, with probability rho."""
        tracklet = (shot.person, shot.camera)
        own = uniform(self.seed, self.split, *tracklet, shot.frame, "tracklet")
        return tracklet if own < self.options.rho else (*tracklet, shot.frame)

    def picture(self, shot: Shot, with_person: bool = True) -> Picture:
        """Render a shot.

        Args:
            shot: key of the picture.
            with_person: False omits the person and changes nothing else.
        """
        person, camera = self.persons[shot.person], self.cameras[shot.camera]
        key = (self.seed, self.split, shot.person, shot.camera, shot.frame)
        challenge, severity = self.options.challenge, self.options.severity
        levels = sample_levels(stream(*key, "levels"), challenge, severity)
        walk = uniform(self.seed, self.split, shot.person, shot.camera, "walk")
        rng = stream(*key, "view")
        view = View(
            2 * math.pi * walk + rng.normal(0, 0.35),
            camera.pitch + rng.normal(0, 0.04),
            rng.normal(0, 0.03),
        )
        fill, aside, raised = rng.uniform(0.8, 0.93), rng.normal(0, 0.04), rng.normal(0, 0.015)
        crease = int(rng.integers(4096))
        exposure = sample_exposure(rng, camera)
        pose = sample_pose(stream(*key, "pose"), levels.pose)
        framing = self._framed(extent(person, pose, view), fill, aside, raised)
        if levels.misalignment:
            framing = self._misaligned(stream(*key, "misalignment"), levels.misalignment, framing)
        backdrop = self.backdrop(shot)
        canvas = Canvas(self._scene(backdrop, camera, framing, rng))
        upright = framing.spot._replace(scale=framing.height)
        clutter_stream = stream(self.seed, self.split, "clutter", *backdrop)
        behind = Objects(clutter_stream, self.assets, camera.pitch).clutter(levels.clutter, upright)
        canvas.paint(behind, self.assets.texels, exposure.light)
        scene = canvas.colour.copy()
        solids: list[Solid] = []
        if with_person:
            solids = body_solids(person, pose, view, framing.spot, crease)
        in_front = Objects(stream(*key, "occlusion"), self.assets, camera.pitch)
        solids += in_front.occluders(levels.occlusion, framing.box, framing.height)
        canvas.paint(solids, self.assets.texels, exposure.light)
        image = develop(canvas.colour, camera, exposure)
        composed, cover = canvas.colour, canvas.cover
        box, labels = framing.box, canvas.labels()
        return Picture(image, labels, levels, backdrop, box, scene, composed, cover)

    def _framed(self, outline: Box, fill: float, aside: float, raised: float) -> _Framing:
        """Frame a person.

        Args:
            outline: its box at a height of one pixel with feet at (0, 0).
            fill: share of the frame's height that it fills; less for wide or crouching poses.
            aside: how far right of the frame's centre, as a share of the width.
            raised: how far below it, as a share of the height.
        """
        height, width = self.size
        left, top, right, bottom = outline
        scale = min(fill * height / (bottom - top), 0.94 * width / (right - left), 1.2 * height)
        x = width * (0.5 + aside) - scale * (left + right) / 2
        y = height * (0.5 + raised) - scale * (top + bottom) / 2
        box = x + scale * left, y + scale * top, x + scale * right, y + scale * bottom
        return _Framing(Spot(x, y, scale), box, fill * 120 * self.unit, fill * 128 / 112)

    def _misaligned(self, rng: np.random.Generator, level: float, framing: _Framing) -> _Framing:
        """Return the framing by a detector that misses the person, at a level above 0, up to 3.

        One side of the body is cut by 9 to 15% per level of its extent, and as much scene appears
        at the opposite side.
        """
        height, width = self.size
        grow = math.exp(rng.uniform(-0.05, 0.1) * level)
        cut = level * rng.uniform(0.09, 0.15)
        side = rng.integers(4)
        left, top, right, bottom = (grow * edge for edge in framing.box)
        x = width * (0.5 + rng.normal(0, 0.03)) - (left + right) / 2
        y = height * (0.5 + rng.normal(0, 0.02)) - (top + bottom) / 2
        if side == 0:
            y = -cut * (bottom - top) - top
        elif side == 1:
            y = height + cut * (bottom - top) - bottom
        elif side == 2:
            x = -cut * (right - left) - left
        else:
            x = width + cut * (right - left) - right
        spot = framing.spot
        return _Framing(
            Spot(spot.x * grow + x, spot.y * grow + y, spot.scale * grow),
            (left + x, top + y, right + x, bottom + y),
            framing.height * grow,
            framing.zoom * grow,
        )

    def _scene(
        self, backdrop: tuple[int, ...], camera: Camera, framing: _Framing, rng: np.random.Generator
    ) -> np.ndarray:
        """Cut the scene behind a person out of one of the camera's panoramas."""
        place = stream(self.seed, self.split, "backdrop", *backdrop)
        panorama = self.panorama(camera, int(place.integers(PLACES)))
        column = place.uniform(32, PANORAMA[1] - 32) + rng.normal(0, 1.5)
        row = GROUND + place.uniform(-8, 12) + rng.normal(0, 1.0)
        feet = column * self.unit, row * self.unit
        return cut_frame(panorama, self.size, framing.spot[:2], framing.zoom, feet)
