"""Make photographs of persons look like crops of surveillance cameras, with their masks.

Boxes are misaligned and cut persons off, other scenes stand behind them, others walk by and things
stand in front; light, resolution, blur, noise and JPEG are those of cheap cameras.

Legend: `H W` crop, `C` channels.
"""

import dataclasses
import io
import math
import random
from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.functional import affine_grid, grid_sample, interpolate

from mmga.bodyparts.ccp import Photo
from mmga.bodyparts.parser import resized
from mmga.data.masks import BACKGROUND

PROBABILITIES = {
    "generated": 0.15,
    "nobody": 0.04,
    "scene": 0.55,
    "passer-by": 0.3,
    "in front": 0.3,
    "cut off": 0.2,
    "jpeg": 0.6,
    "blur": 0.4,
    "noise": 0.4,
    "shadow": 0.3,
}
"""How often a crop is a generated person, shows nobody, has another scene, and so on."""

LOWEST, HIGHEST = 56, 176
"""Heights in pixels that crops are reduced to."""

Box = tuple[float, float, float, float]
"""Centre x and y, width and height, in pixels."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Person:
    """A photograph and the box of its body: first and last row and column."""

    image: torch.Tensor
    labels: torch.Tensor
    top: int
    bottom: int
    left: int
    right: int


class Crops:
    """Makes crops at random.

    Args:
        photos: of one person each.
        generated: further crops with their labels, which are not cut out.
        size: (H, W) of the crops.
        seed: the same one makes the same crops.

    Attributes:
        size: (H, W) of the crops.
    """

    def __init__(
        self,
        photos: Sequence[Photo],
        generated: Sequence[tuple[torch.Tensor, torch.Tensor]],
        size: tuple[int, int],
        seed: int,
    ) -> None:
        self.size = size
        self._persons = [_person(photo.image, photo.labels) for photo in photos]
        self._generated = [_person(image, labels) for image, labels in generated]
        self._seed = seed
        self._random = random.Random(seed)
        self._noise = torch.Generator("cpu")

    def batch(self, number: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a batch of a number: it depends on nothing but that and the seed.

        Returns:
            Images float32 [count, 3, H, W] of values 0 to 255, and labels uint8 [count, H, W] of
            BACKGROUND, UPPER, BOTTOM, OTHER; OTHER is body of unknown half.
        """
        self._random.seed(f"{self._seed} {number}")
        self._noise.manual_seed(self._random.getrandbits(48))
        pairs = [self._crop() for _ in range(count)]
        images, labels = zip(*pairs, strict=True)
        return torch.stack(images), torch.stack(labels)

    def _crop(self) -> tuple[torch.Tensor, torch.Tensor]:
        if self._generated and self._happens("generated"):
            image, labels = self._generated_crop()
        elif self._happens("nobody"):
            image = self._scene()
            labels = torch.zeros(self.size, dtype=torch.uint8, device="cpu")
        else:
            image, labels = self._composed()
        return self._degraded(self._lit(image, 0.8)), labels

    def _generated_crop(self) -> tuple[torch.Tensor, torch.Tensor]:
        person = self._random.choice(self._generated)
        height, width = person.labels.shape
        zoom = self._between(0.8, 1.1)
        box = (
            width * self._between(0.45, 0.55),
            height * self._between(0.45, 0.55),
            width * zoom * self._between(0.9, 1.1),
            height * zoom,
        )
        image, labels, _ = self._seen(person, box)
        return image, labels

    def _composed(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a person in front of a scene, with others behind and things in front."""
        person = self._random.choice(self._persons)
        image, labels, alpha = self._seen(person, self._misaligned(person))
        if self._happens("scene"):
            image = self._lit(image, 0.6) * alpha + self._scene() * (1 - alpha)
        if self._happens("passer-by"):
            other, _, theirs = self._passer_by()
            theirs = theirs * (1 - alpha)
            image = other * theirs + image * (1 - theirs)
        if self._happens("in front"):
            cover, hidden = self._in_front()
            image = cover * hidden + image * (1 - hidden)
            labels = labels.masked_fill(hidden[0] > 0.5, BACKGROUND)
        return image, labels

    def _misaligned(self, person: _Person) -> Box:
        """Return a box round a person, at times too large, too small or off."""
        height = float(person.bottom + 1 - person.top)
        share = self._between(0.95, 1.3) if self._random.random() < 0.8 else self._between(0.8, 1.6)
        top = person.top - self._random.random() * (share - 1) * height
        if self._happens("cut off"):
            share = self._between(0.35, 0.9)
            from_top = self._random.random() < 0.75
            top = person.top - 0.03 * height if from_top else person.bottom - share * height
        top += self._random.gauss(0, 0.02) * height
        box_height = share * height
        width = box_height * self._between(0.34, 0.58)
        centre = (person.left + person.right) / 2 + self._random.gauss(0, 0.08) * width
        return centre, top + box_height / 2, width, box_height

    def _passer_by(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return another person, smaller or at the side of the crop."""
        person = self._random.choice(self._persons)
        share = self._between(0.9, 3.0)
        height = share * (person.bottom + 1 - person.top)
        width = height * self._between(0.34, 0.58)
        # The larger they are, the further at the side, so that nobody takes them for the person.
        away = self._between(0.3 if share > 1.8 else 0.42, 0.65) * self._random.choice((-1, 1))
        middle = ((person.left + person.right) / 2, (person.top + person.bottom) / 2)
        box = (middle[0] + away * width, middle[1] - self._between(-0.1, 0.25) * height)
        image, labels, alpha = self._seen(person, (*box, width, height))
        return self._lit(image, 0.6), labels, alpha

    def _in_front(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what stands before a person, and where, float [1, H, W]."""
        height, width = self.size
        hidden = torch.zeros((1, height, width), dtype=torch.float32, device="cpu")
        kind = self._random.random()
        if kind < 0.2:
            other, _, theirs = self._passer_by()
            return other, theirs
        if kind < 0.55:  # from below: a car, a bench, a hedge
            top = round(height * self._between(0.55, 0.95))
            left = 0 if self._random.random() < 0.6 else round(width * self._between(0, 0.5))
            hidden[:, top:, left : left + round(width * self._between(0.5, 1.0))] = 1
        elif kind < 0.8:  # from a side: a wall, a door
            wide = round(width * self._between(0.05, 0.4))
            hidden[:, round(height * self._between(0, 0.5)) :, :wide] = 1
            if self._random.random() < 0.5:
                hidden = hidden.flip(-1)
        else:  # a pole, a sign, a railing
            shares = self._random.choice(((0.1, 0.5), (0.04, 1.0), (1.0, 0.08), (0.2, 0.3)))
            high, wide = max(round(height * shares[0]), 2), max(round(width * shares[1]), 2)
            top = self._random.randint(0, height - high)
            left = self._random.randint(0, width - wide)
            hidden[:, top : top + high, left : left + wide] = 1
        return self._scene(), hidden

    def _scene(self) -> torch.Tensor:
        """Return a scene without a person, float [3, H, W]: a strip beside one, or a plain wall."""
        for _ in range(4):
            person = self._random.choice(self._persons)
            width = person.labels.shape[1]
            gaps = ((0, person.left), (person.right + 1, width))
            start, end = max(gaps, key=lambda gap: gap[1] - gap[0])
            if end - start >= 0.08 * width and self._random.random() < 0.85:
                strip = person.image[:, :, start:end]
                high = round(strip.shape[1] * self._between(0.3, 1.0))
                top = self._random.randint(0, strip.shape[1] - high)
                strip = strip[None, :, top : top + high].float()
                if self._random.random() < 0.5:
                    strip = strip.flip(-1)
                scene = interpolate(strip, self.size, mode="bilinear", align_corners=False)[0]
                return self._lit(scene, 0.8)
        coarse = (self._random.randint(1, 6), self._random.randint(1, 4))
        patches, grey = (
            torch.rand((1, 3, *size), generator=self._noise, dtype=torch.float32, device="cpu")
            for size in (coarse, (1, 1))
        )
        wall = 255 * (0.7 * grey + 0.3 * patches)
        return interpolate(wall, self.size, mode="bilinear", align_corners=False)[0]

    def _seen(self, person: _Person, box: Box) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return what a box shows, turned a little and at times mirrored.

        Returns:
            Image float [3, H, W], labels uint8 [H, W] and the body, float [1, H, W] in [0, 1].
        """
        height, width = person.labels.shape
        x, y, across, down = box
        angle = math.radians(self._random.gauss(0, 3))
        mirror = -1.0 if self._random.random() < 0.5 else 1.0
        cos, sin = math.cos(angle), math.sin(angle)
        rows = (
            (mirror * cos * across / width, -sin * down / width, 2 * x / width - 1),
            (mirror * sin * across / height, cos * down / height, 2 * y / height - 1),
        )
        theta = torch.tensor([rows], dtype=torch.float32, device="cpu")
        grid = affine_grid(theta, [1, 1, *self.size], align_corners=False)
        image = grid_sample(
            person.image[None].float(), grid, padding_mode="border", align_corners=False
        )
        labels = person.labels[None, None].float()
        body = grid_sample((labels > 0).float(), grid, align_corners=False)
        nearest = grid_sample(labels, grid, mode="nearest", align_corners=False)
        return image[0], nearest[0, 0].byte(), body[0]

    def _lit(self, image: torch.Tensor, strength: float) -> torch.Tensor:
        """Return an image [3, H, W] in another light."""
        amount = strength
        gamma = math.exp(self._random.gauss(0, 0.25) * amount)
        gain = math.exp(self._random.gauss(-0.04, 0.25) * amount)
        tints = [gain * math.exp(self._random.gauss(0, 0.06) * amount) for _ in range(3)]
        colour = 1 - self._random.random() * 0.6 * amount
        contrast = math.exp(self._random.gauss(-0.1, 0.2) * amount)
        x = (image / 255).clamp(0, 1) ** gamma
        x = x * torch.tensor(tints, dtype=torch.float32, device="cpu")[:, None, None]
        grey = x.mean(0, keepdim=True)
        x = grey + (x - grey) * colour
        mean = grey.mean()
        x = mean + (x - mean) * contrast
        if self._happens("shadow"):
            steep = self._between(-4, 4)
            ramp = torch.linspace(-1, 1, x.shape[-2], dtype=torch.float32, device="cpu")[:, None]
            side = torch.linspace(-1, 1, x.shape[-1], dtype=torch.float32, device="cpu")[None]
            shade = torch.sigmoid(steep * ramp + self._between(-4, 4) * side)
            x = x * (1 - self._between(0, 0.6) * amount * shade)
        return (x * 255).clamp(0, 255)

    def _degraded(self, image: torch.Tensor) -> torch.Tensor:
        """Return an image [3, H, W] as a cheap camera keeps it, enlarged to H x W again."""
        high = round(math.exp(self._between(math.log(LOWEST), math.log(HIGHEST))))
        size = (high, max(round(high * self._between(0.35, 0.52)), 16))
        x = resized(image[None], size)
        if self._happens("blur"):
            x = _blurred(x, self._between(0.3, 1.4), self._random.random() < 0.25)
        if self._happens("noise"):
            noise = torch.randn(x.shape, generator=self._noise, dtype=torch.float32, device="cpu")
            x = x + noise * self._between(1, 9)
        x = x.clamp(0, 255)
        if self._happens("jpeg"):
            x = _as_jpeg(x, self._random.randint(20, 92))
        return resized(x, self.size)[0]

    def _happens(self, what: str) -> bool:
        return self._random.random() < PROBABILITIES[what]

    def _between(self, low: float, high: float) -> float:
        return self._random.uniform(low, high)


def _as_jpeg(x: torch.Tensor, quality: int) -> torch.Tensor:
    """Return an image [1, 3, H, W] as it comes back from a JPEG file."""
    from PIL import Image

    file = io.BytesIO()
    pixels = x[0].round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    with Image.open(file) as picture:
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float()


def _blurred(x: torch.Tensor, sigma: float, in_motion: bool) -> torch.Tensor:
    """Return images [1, C, H, W] blurred by a Gaussian, or along the rows alone by motion."""
    reach = max(math.ceil(2 * sigma), 1)
    steps = torch.arange(-reach, reach + 1, dtype=torch.float32, device="cpu")
    kernel = torch.exp(-0.5 * (steps / sigma) ** 2)
    kernel = (kernel / kernel.sum()).expand(x.shape[1], 1, 1, -1)
    pad = torch.nn.functional.pad
    conv = torch.nn.functional.conv2d
    x = conv(pad(x, (reach, reach, 0, 0), mode="replicate"), kernel, groups=x.shape[1])
    if in_motion:
        return x
    upright = kernel.transpose(-1, -2)
    return conv(pad(x, (0, 0, reach, reach), mode="replicate"), upright, groups=x.shape[1])


def _person(image: torch.Tensor, labels: torch.Tensor) -> _Person:
    rows = labels.any(1).nonzero()[:, 0]
    columns = labels.any(0).nonzero()[:, 0]
    if not len(rows):
        return _Person(image, labels, 0, labels.shape[0] - 1, 0, labels.shape[1] - 1)
    return _Person(image, labels, int(rows[0]), int(rows[-1]), int(columns[0]), int(columns[-1]))
