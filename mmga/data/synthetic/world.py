"""A split of the synthetic data: its persons, places and pictures."""

import dataclasses
import functools
import math

import numpy as np

from mmga.data.synthetic.camera import Camera, develop, draw_camera, draw_exposure
from mmga.data.synthetic.challenge import Levels, draw_levels
from mmga.data.synthetic.figure import View, draw_figure, extent
from mmga.data.synthetic.garment import Fashion
from mmga.data.synthetic.person import draw_persons
from mmga.data.synthetic.population import population_named
from mmga.data.synthetic.pose import draw_pose
from mmga.data.synthetic.render import Canvas, Solid
from mmga.data.synthetic.scene import (
    GROUND,
    PANORAMA,
    Stock,
    add_tiles,
    draw_clutter,
    draw_occluders,
    draw_panorama,
    look,
)
from mmga.data.synthetic.streams import stream, uniform
from mmga.data.synthetic.textures import Atlas

PLACES = 3
"""Panoramas per camera and split."""

Box = tuple[float, float, float, float]


@dataclasses.dataclass(frozen=True, slots=True)
class Shot:
    """Which picture: a person, a camera and a running number.

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
    """A rendered picture with its truth.

    Attributes:
        image: uint8 [3, H, W].
        labels: uint8 [H, W], 0 scene, 1 upper, 2 bottom, 3 carried.
        levels: how far each challenge was turned up.
        backdrop: key of the scene behind the person; equal keys are the same scene.
        box: of the body before occlusion, pixels (left, top, right, bottom); may leave the frame.
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


class World:
    """Persons of one split and the places where cameras see them.

    A picture depends on the seed, the split and its `Shot` alone: every choice is drawn from a
    stream keyed by these and by what it decides, so that a challenge changes nothing but what it
    names, and neither order nor workers matter.

    Args:
        seed: of everything.
        split: `train`, `val` or `test`; persons and places of different splits are unrelated,
            cameras are the same.
        persons: number of identities.
        cameras: number of cameras.
        size: (H, W) of the pictures.
        rho: probability with which a picture shows the tracklet's backdrop, not one of its own.
        challenge: a setting of `mmga.data.synthetic.challenge`.
        severity: 1 to 3.
        share: how many persons at least wear each garment.
        schemes: number of colour schemes of their clothes; 0 for as many as the population has.
        population: a key of `mmga.data.synthetic.population.POPULATIONS`.
    """

    def __init__(
        self,
        seed: int,
        split: str,
        persons: int,
        cameras: int = 6,
        size: tuple[int, int] = (128, 64),
        rho: float = 0.5,
        challenge: str = "mixed",
        severity: int = 1,
        share: int = 5,
        schemes: int = 0,
        population: str = "varied",
    ) -> None:
        people = population_named(population)
        self.seed, self.split, self.size, self.rho = seed, split, size, rho
        self.challenge, self.severity = challenge, severity
        self.unit = size[0] / 128
        self.loudness = people.loudness
        self.cameras = [draw_camera(i, seed) for i in range(cameras)]
        atlas = Atlas()
        passers = max(20, persons // 4)
        schemes = schemes or people.schemes or max(3, persons // (10 * share))
        key = (seed,) if people.common else (seed, split)
        fashion = Fashion(
            stream(*key, "fashion"), schemes, people.patterns, contrast=people.contrast
        )
        self.persons, passing = draw_persons(
            atlas, fashion, persons, passers, seed, split, share=share
        )
        tiles = add_tiles(atlas, fashion, stream(seed, split, "tiles"), 120)
        self.stock = Stock(atlas.texels, tiles, passing)

    @functools.cached_property
    def _panoramas(self) -> dict[tuple[int, int], np.ndarray]:
        return {}

    def panorama(self, camera: Camera, place: int) -> np.ndarray:
        """Return a place of a camera, drawn when first asked for."""
        name = camera.number, place
        if name not in self._panoramas:
            drawn = draw_panorama(
                self.stock, camera, self.unit, self.seed, self.split, "panorama", *name
            )
            if self.loudness != 1:
                mean = drawn.mean((0, 1))
                drawn = (mean + self.loudness * (drawn - mean)).astype(drawn.dtype)
            self._panoramas[name] = drawn
        return self._panoramas[name]

    def seen_by(self, person: int) -> list[int]:
        """Return the cameras that see a person: two to four of them."""
        rng = stream(self.seed, self.split, person, "cameras")
        count = len(self.cameras)
        few = min(count, int(rng.integers(min(2, count), 5)))
        return sorted(rng.choice(count, few, replace=False).tolist())

    def backdrop(self, shot: Shot) -> tuple[int, ...]:
        """Return the key of the scene behind a shot; shots of a tracklet share it at times."""
        tracklet = (shot.person, shot.camera)
        own = uniform(self.seed, self.split, *tracklet, shot.frame, "tracklet")
        return tracklet if own < self.rho else (*tracklet, shot.frame)

    def picture(self, shot: Shot, with_person: bool = True) -> Picture:
        """Render a shot.

        Args:
            shot: which.
            with_person: False leaves the person out and everything else as it is.
        """
        height, width = self.size
        person, camera = self.persons[shot.person], self.cameras[shot.camera]
        key = (self.seed, self.split, shot.person, shot.camera, shot.frame)
        levels = draw_levels(stream(*key, "levels"), self.challenge, self.severity)

        # Viewpoint, pose and place in the frame.
        walk = uniform(self.seed, self.split, shot.person, shot.camera, "walk")
        rng = stream(*key, "view")
        view = View(
            2 * math.pi * walk + rng.normal(0, 0.35),
            camera.pitch + rng.normal(0, 0.04),
            rng.normal(0, 0.03),
        )
        fill, aside, raised = rng.uniform(0.8, 0.93), rng.normal(0, 0.04), rng.normal(0, 0.015)
        crease = int(rng.integers(4096))
        exposure = draw_exposure(rng, camera)
        pose = draw_pose(stream(*key, "pose"), levels.pose)
        left, top, right, bottom = extent(person, pose, view)
        scale = min(fill * height / (bottom - top), 0.94 * width / (right - left), 1.2 * height)
        origin = (
            width * (0.5 + aside) - scale * (left + right) / 2,
            height * (0.5 + raised) - scale * (top + bottom) / 2,
        )
        nominal = fill * 120 * self.unit
        zoom = fill * 128 / 112
        box: Box = (
            origin[0] + scale * left,
            origin[1] + scale * top,
            origin[0] + scale * right,
            origin[1] + scale * bottom,
        )
        grow, shift = 1.0, (0.0, 0.0)
        if levels.misalignment:
            missed = stream(*key, "misalignment")
            grow, shift = _misalign(missed, levels.misalignment, box, self.size)
        origin = origin[0] * grow + shift[0], origin[1] * grow + shift[1]
        box = tuple(side * grow + shift[i % 2] for i, side in enumerate(box))  # type: ignore[assignment]
        scale, nominal, zoom = scale * grow, nominal * grow, zoom * grow

        # The scene, the person, what stands in front.
        backdrop = self.backdrop(shot)
        frame = self._scene(backdrop, camera, origin, zoom, rng)
        canvas = Canvas(frame)
        things = draw_clutter(
            stream(self.seed, self.split, "clutter", *backdrop),
            self.stock,
            levels.clutter,
            origin,
            nominal,
            camera.pitch,
        )
        canvas.paint(things, self.stock.texels, exposure.light)
        scene = canvas.colour.copy()
        solids: list[Solid] = []
        if with_person:
            solids = draw_figure(person, pose, view, origin, scale, crease)
        solids += draw_occluders(
            stream(*key, "occlusion"), self.stock, levels.occlusion, box, nominal, camera.pitch
        )
        canvas.paint(solids, self.stock.texels, exposure.light)
        image = develop(canvas.colour, camera, exposure)
        return Picture(
            image, canvas.labels(), levels, backdrop, box, scene, canvas.colour, canvas.cover
        )

    def _scene(
        self,
        backdrop: tuple[int, ...],
        camera: Camera,
        origin: tuple[float, float],
        zoom: float,
        rng: np.random.Generator,
    ) -> np.ndarray:
        place = stream(self.seed, self.split, "backdrop", *backdrop)
        panorama = self.panorama(camera, int(place.integers(PLACES)))
        column = place.uniform(32, PANORAMA[1] - 32) + rng.normal(0, 1.5)
        row = GROUND + place.uniform(-8, 12) + rng.normal(0, 1.0)
        spot = (column * self.unit, row * self.unit)
        return look(panorama, self.size, origin, zoom, spot)


def _misalign(
    rng: np.random.Generator, level: float, box: Box, size: tuple[int, int]
) -> tuple[float, tuple[float, float]]:
    """Draw how a detector misses a person.

    One side of the body is cut by 9 to 15% per level of its extent, and as much scene appears at
    the opposite side.

    Args:
        rng: the stream of misalignment.
        level: above 0, up to 3.
        box: of the body, pixels (left, top, right, bottom).
        size: (H, W).

    Returns:
        factor on all coordinates, and the shift (x, y) after it.
    """
    height, width = size
    grow = math.exp(rng.uniform(-0.05, 0.1) * level)
    cut = level * rng.uniform(0.09, 0.15)
    side = rng.integers(4)
    left, top, right, bottom = (grow * edge for edge in box)
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
    return grow, (x, y)
