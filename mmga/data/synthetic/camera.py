"""Cameras: viewpoint, and the effects of optics, sensor and encoder on a picture."""

import dataclasses
import functools

import numpy as np

from mmga.data.synthetic.render import Light
from mmga.data.synthetic.streams import stream


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Camera:
    """A camera.

    Attributes:
        number: from 0.
        pitch: how far it looks down, radians.
        gains: of red, green and blue, float32 [3]; its colour cast.
        tone: of its curve, positive darkens the middle, negative lightens it.
        saturation: 1 keeps colours, 0 makes them grey.
        haze: share of white veil.
        blur: standard deviation of its optics in pixels of a picture 128 high.
        noise: standard deviation of its sensor's noise, 0 to 255.
        quality: of its JPEG encoder.
        light: its usual light.
    """

    number: int
    pitch: float
    gains: np.ndarray
    tone: float
    saturation: float
    haze: float
    blur: float
    noise: float
    quality: int
    light: Light


@dataclasses.dataclass(frozen=True, slots=True)
class Exposure:
    """Conditions of one picture of a camera.

    Attributes:
        light: the light of the moment.
        gain: brightness.
        warmth: drift of the colour cast, from blue (negative) to red.
        blur: factor on the camera's blur.
        shadow: where a shadow falls across the scene, see `_shadow`; depth 0 for none.
        grain: offset of the noise.
    """

    light: Light
    gain: float
    warmth: float
    blur: float
    shadow: tuple[float, float, float, float]
    grain: int


def sample_camera(number: int, *key: int | str) -> Camera:
    """Sample camera `number` of the world that `key` names."""
    rng = stream(*key, "camera", number)
    cast = np.exp(np.clip(rng.normal(0, 0.1, 3), -0.14, 0.14))
    return Camera(
        number=number,
        pitch=rng.uniform(0.05, 0.5),
        gains=(cast / cast.mean() * np.exp(np.clip(rng.normal(0, 0.12), -0.2, 0.2))).astype(
            np.float32
        ),
        tone=rng.uniform(-0.3, 0.35),
        saturation=rng.uniform(0.45, 1.0),
        haze=rng.uniform(0.0, 0.1),
        blur=rng.uniform(0.35, 0.85),
        noise=rng.uniform(2.0, 8.0),
        quality=int(rng.integers(45, 90)),
        light=Light(
            ambient=rng.uniform(0.5, 0.75),
            right=rng.uniform(-0.5, 0.5),
            up=rng.uniform(0.1, 0.5),
            front=rng.uniform(0.35, 0.8),
        ),
    )


def sample_exposure(rng: np.random.Generator, camera: Camera) -> Exposure:
    """Sample the light and the exposure of one picture."""
    usual = camera.light
    ambient, right, up, front = rng.normal(0, 0.1, 4).tolist()
    return Exposure(
        light=Light(
            ambient=min(max(usual.ambient + 0.6 * ambient, 0.35), 0.85),
            right=usual.right + 2.0 * right,
            up=usual.up + 0.5 * up,
            front=usual.front + 0.5 * front,
        ),
        gain=float(np.exp(np.clip(rng.normal(0, 0.2), -0.4, 0.4))),
        warmth=float(rng.normal(0, 0.06)),
        blur=float(np.exp(rng.normal(0, 0.25))),
        shadow=(
            float(rng.uniform(0.25, 0.5) if rng.random() < 0.5 else 0.0),
            float(rng.uniform(0, 2 * np.pi)),
            float(rng.uniform(-0.3, 0.3)),
            float(rng.uniform(0.01, 0.12)),
        ),
        grain=int(rng.integers(1 << 40)),
    )


def develop(colour: np.ndarray, camera: Camera, exposure: Exposure) -> np.ndarray:
    """Turn a composited frame into a picture: cast, tone, blur, noise, JPEG.

    Args:
        colour: float32 [H, W, 3], 0 to 255.
        camera: the camera.
        exposure: the moment.

    Returns:
        uint8 [3, H, W].
    """
    height, width, _ = colour.shape
    gains = camera.gains * exposure.gain
    gains = gains * np.array([1 + exposure.warmth, 1, 1 - exposure.warmth], np.float32)
    # Cast and saturation are one 3 x 3 matrix.
    grey = np.array([0.299, 0.587, 0.114], np.float32)
    mix = np.eye(3, dtype=np.float32) * camera.saturation + (1 - camera.saturation) * grey
    mix = (mix * gains[:, None]).astype(np.float32)
    frame = np.dot(mix, colour.reshape(-1, 3).T)  # [3, H * W]
    np.maximum(frame, 0.0, out=frame)
    frame *= np.float32(1 / 255)
    if exposure.shadow[0]:
        frame *= _shadow(exposure.shadow, height, width).reshape(-1)
    bent = frame * frame if camera.tone > 0 else np.sqrt(frame)
    frame += np.float32(abs(camera.tone)) * (bent - frame)
    frame *= np.float32(255 * (1 - camera.haze))
    frame += np.float32(200 * camera.haze)
    frame = _blur(frame.reshape(3, height, width), camera.blur * exposure.blur * height / 128)
    # Sensor noise grows with the light that falls on a pixel.
    frame += (camera.noise * _grain(exposure.grain, frame.size)).reshape(frame.shape) * (
        np.float32(0.6) + frame * np.float32(0.4 / 255)
    )
    return jpeg(np.clip(frame, 0, 255), camera.quality)


def _shadow(shadow: tuple[float, float, float, float], height: int, width: int) -> np.ndarray:
    """Return the share of light that a shadow passes to each pixel, float32 [H, W].

    Args:
        shadow: depth, direction of its edge's normal, distance of the edge from the centre and
            width of the edge, the latter two as shares of the height.
        height: of the frame.
        width: of the frame.
    """
    depth, direction, distance, edge = shadow
    y = (np.arange(height, dtype=np.float32) / height - 0.5) * np.sin(direction)
    x = (np.arange(width, dtype=np.float32) - 0.5 * width) / height * np.cos(direction)
    inside = (y[:, None] + x[None] - distance) / edge
    return np.asarray(1.0 - depth * np.clip(inside + 0.5, 0, 1), np.float32)


_GRAINS = 1 << 20


@functools.cache
def _all_grain() -> np.ndarray:
    return stream("grain").standard_normal(_GRAINS, dtype=np.float32)


def _grain(start: int, count: int) -> np.ndarray:
    """Return `count` values of unit noise, cut from one precomputed array."""
    if count > _GRAINS // 2:
        return stream("grain", start).standard_normal(count, dtype=np.float32)
    start %= _GRAINS - count
    return _all_grain()[start : start + count]


def _blur(frame: np.ndarray, sigma: float) -> np.ndarray:
    """Blur planes [C, H, W] with a Gaussian, edges repeated."""
    if sigma < 0.15:
        return frame
    radius = max(1, int(np.ceil(2.2 * sigma)))
    weights = np.exp(-0.5 * (np.arange(radius + 1) / sigma) ** 2)
    weights = (weights / (2 * weights.sum() - weights[0])).astype(np.float32)
    return _filter(_filter(frame, weights, 1), weights, 2)


def _filter(frame: np.ndarray, weights: np.ndarray, axis: int) -> np.ndarray:
    """Filter planes along an axis with the symmetric kernel that `weights` are one half of."""
    radius, size = len(weights) - 1, frame.shape[axis]
    margins = [(radius, radius) if i == axis else (0, 0) for i in range(3)]
    padded = np.moveaxis(np.pad(frame, margins, mode="edge"), axis, 0)
    filtered = weights[0] * frame
    total = np.moveaxis(filtered, axis, 0)  # a view
    for i in range(1, radius + 1):
        before = padded[radius - i : radius - i + size]
        total += weights[i] * (before + padded[radius + i : radius + i + size])
    return filtered


_LUMINANCE = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ],
    np.float32,
)
_CHROMINANCE = np.full((8, 8), 99, np.float32)
_CHROMINANCE[:4, :4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]
_TO_YCC = np.array(
    [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]], np.float32
)
_FROM_YCC = np.linalg.inv(_TO_YCC).astype(np.float32)
_DCT = np.array(
    [
        [np.cos((2 * x + 1) * u * np.pi / 16) * np.sqrt((1 if u == 0 else 2) / 8) for x in range(8)]
        for u in range(8)
    ],
    np.float32,
)


def jpeg(frame: np.ndarray, quality: int) -> np.ndarray:
    """Apply the losses of JPEG with 4:2:0 chroma (ITU-T T.81, tables of annex K).

    Entropy coding is lossless, so only the quantisation of cosine coefficients is computed; done
    here, pictures do not depend on the version of a codec.

    Args:
        frame: float32 [3, H, W], 0 to 255.
        quality: 1 to 100, as libjpeg scales its tables.

    Returns:
        uint8 [3, H, W].
    """
    _, height, width = frame.shape
    pad = (-height % 16, -width % 16)
    if any(pad):
        frame = np.pad(frame, ((0, 0), (0, pad[0]), (0, pad[1])), mode="edge")
    full = frame.shape[1:]
    planes = np.dot(_TO_YCC, frame.reshape(3, -1)).reshape(3, *full)
    luma_table, chroma_table = _tables(quality)
    picture = np.empty_like(planes)
    picture[0] = _quantise(planes[:1] - 128, luma_table)[0]
    picture[0] += 128
    chroma = planes[1:, ::2] + planes[1:, 1::2]
    chroma = 0.25 * (chroma[..., ::2] + chroma[..., 1::2])
    chroma = _quantise(chroma, chroma_table)
    for row in (0, 1):
        picture[1:, row::2, ::2] = chroma
        picture[1:, row::2, 1::2] = chroma
    picture = np.dot(_FROM_YCC, picture.reshape(3, -1)).reshape(3, *full)[:, :height, :width]
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


@functools.cache
def _tables(quality: int) -> tuple[np.ndarray, np.ndarray]:
    scale = 5000 / quality if quality < 50 else 200 - 2 * quality
    luma, chroma = (
        np.clip(np.floor((table * scale + 50) / 100), 1, 255).astype(np.float32)
        for table in (_LUMINANCE, _CHROMINANCE)
    )
    return luma, chroma


def _quantise(planes: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Quantise the 8 x 8 cosine coefficients of planes [C, H, W]."""
    count, height, width = planes.shape
    rows = _DCT @ planes.reshape(-1, 8, width)  # [C * H/8, 8, W]
    both = np.dot(rows.reshape(-1, 8), _DCT.T)
    both = both.reshape(-1, 8, width // 8, 8)  # [C * H/8, 8, W/8, 8]
    steps = table[:, None, :]
    both = np.rint(both / steps) * steps
    rows = np.dot(both.reshape(-1, 8), _DCT).reshape(-1, 8, width)
    return (_DCT.T @ rows).reshape(count, height, width)
