"""Cameras: where they look from, and what their sensors and encoders do to a picture."""

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
        gamma: exponent of its tone curve.
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
    gamma: float
    saturation: float
    haze: float
    blur: float
    noise: float
    quality: int
    light: Light


@dataclasses.dataclass(frozen=True, slots=True)
class Exposure:
    """What varies from picture to picture of a camera.

    Attributes:
        light: the light of the moment.
        gain: brightness.
        warmth: drift of the colour cast, from blue (negative) to red.
        blur: factor on the camera's blur.
    """

    light: Light
    gain: float
    warmth: float
    blur: float


def draw_camera(number: int, *key: int | str) -> Camera:
    """Draw camera `number` of the world that `key` names."""
    rng = stream(*key, "camera", number)
    cast = np.exp(rng.normal(0, 0.13, 3))
    return Camera(
        number=number,
        pitch=rng.uniform(0.05, 0.5),
        gains=(cast / cast.mean() * np.exp(rng.normal(0, 0.12))).astype(np.float32),
        gamma=float(np.exp(rng.normal(0, 0.16))),
        saturation=rng.uniform(0.55, 1.15),
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


def draw_exposure(rng: np.random.Generator, camera: Camera) -> Exposure:
    """Draw the light and the exposure of one picture."""
    usual = camera.light
    ambient, right, up, front = rng.normal(0, 0.1, 4).tolist()
    return Exposure(
        light=Light(
            ambient=min(max(usual.ambient + 0.6 * ambient, 0.35), 0.85),
            right=usual.right + 2.0 * right,
            up=usual.up + 0.5 * up,
            front=usual.front + 0.5 * front,
        ),
        gain=float(np.exp(rng.normal(0, 0.16))),
        warmth=float(rng.normal(0, 0.04)),
        blur=float(np.exp(rng.normal(0, 0.25))),
    )


def develop(
    colour: np.ndarray, camera: Camera, exposure: Exposure, rng: np.random.Generator
) -> np.ndarray:
    """Turn a composited frame into a picture: cast, tone, blur, noise, JPEG.

    Args:
        colour: float32 [H, W, 3], 0 to 255.
        camera: the camera.
        exposure: the moment.
        rng: the stream of sensor noise.

    Returns:
        uint8 [3, H, W].
    """
    height, width, _ = colour.shape
    gains = camera.gains * exposure.gain
    gains = gains * np.array([1 + exposure.warmth, 1, 1 - exposure.warmth], np.float32)
    # Cast and saturation are one 3 x 3 matrix.
    grey = np.array([0.299, 0.587, 0.114], np.float32)
    mix = np.eye(3, dtype=np.float32) * camera.saturation + (1 - camera.saturation) * grey
    frame = np.maximum(colour.reshape(-1, 3) @ (mix.T * gains), 0.0).reshape(height, width, 3)
    frame = 255.0 * (frame / 255.0) ** np.float32(camera.gamma)
    frame = frame * (1 - camera.haze) + 200.0 * camera.haze
    frame = _blur(frame.astype(np.float32), camera.blur * exposure.blur * height / 128)
    noise = rng.standard_normal((height, width, 3), dtype=np.float32)
    frame += camera.noise * noise * (0.6 + 0.4 * frame / 255.0)
    return jpeg(np.clip(frame, 0, 255), camera.quality).transpose(2, 0, 1)


def _blur(frame: np.ndarray, sigma: float) -> np.ndarray:
    """Blur with a Gaussian, edges repeated; [H, W, 3]."""
    if sigma < 0.15:
        return frame
    radius = max(1, int(np.ceil(2.2 * sigma)))
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2).astype(np.float32)
    weights /= weights.sum()
    for axis in (0, 1):
        size = frame.shape[axis]
        pad = [(radius, radius) if a == axis else (0, 0) for a in range(3)]
        padded = np.pad(frame, pad, mode="edge")
        total = np.zeros_like(frame)
        for i, weight in enumerate(weights):
            cut = [slice(None)] * 3
            cut[axis] = slice(i, i + size)
            total += weight * padded[tuple(cut)]
        frame = total
    return frame


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
    """Lose what JPEG with 4:2:0 chroma loses (ITU-T T.81, tables of annex K).

    Entropy coding loses nothing, so quantising the cosine coefficients is all there is; done here,
    the pictures do not hang on the version of a codec.

    Args:
        frame: float32 [H, W, 3], 0 to 255.
        quality: 1 to 100, as libjpeg scales its tables.

    Returns:
        uint8 [H, W, 3].
    """
    height, width, _ = frame.shape
    pad = (-height % 16, -width % 16)
    if any(pad):
        frame = np.pad(frame, ((0, pad[0]), (0, pad[1]), (0, 0)), mode="edge")
    planes = np.moveaxis(frame @ _TO_YCC.T, -1, 0)  # [3, H, W]
    luma_table, chroma_table = _tables(quality)
    luma = _quantise(planes[:1] - 128, luma_table)[0] + 128
    full = planes.shape[1:]
    chroma = planes[1:].reshape(2, full[0] // 2, 2, full[1] // 2, 2).mean((2, 4))
    chroma = _quantise(chroma, chroma_table).repeat(2, axis=1).repeat(2, axis=2)
    picture = np.stack((luma, chroma[0], chroma[1]), -1) @ _FROM_YCC.T
    return np.clip(np.rint(picture[:height, :width]), 0, 255).astype(np.uint8)


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
    both = rows.reshape(-1, 8) @ _DCT.T
    both = both.reshape(-1, 8, width // 8, 8)  # [C * H/8, 8, W/8, 8]
    steps = table[:, None, :]
    both = np.rint(both / steps) * steps
    rows = (both.reshape(-1, 8) @ _DCT).reshape(-1, 8, width)
    return (_DCT.T @ rows).reshape(count, height, width)
