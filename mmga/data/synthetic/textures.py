"""Colours, and the tiles that texture all surfaces: clothes, skin, bags, walls, furniture.

A tile is a small uint8 picture [TILE_HEIGHT, TILE_WIDTH, 3]. On a body part its columns run once
around the part (column TILE_WIDTH / 2 is the front, larger columns lie to the wearer's left) and
its rows from the part's first end to its second. Flat things repeat it.
"""

import numpy as np

TILE_HEIGHT = 32
TILE_WIDTH = 64
TILE_SHAPE = (TILE_HEIGHT, TILE_WIDTH, 3)

PALETTE = np.array(
    [
        (28, 28, 32),
        (46, 48, 54),
        (84, 86, 90),
        (132, 134, 136),
        (186, 186, 182),
        (226, 224, 218),
        (30, 42, 78),
        (58, 84, 132),
        (112, 144, 182),
        (132, 36, 40),
        (186, 62, 56),
        (46, 84, 60),
        (104, 116, 72),
        (116, 84, 58),
        (170, 142, 104),
        (202, 164, 66),
        (92, 58, 98),
        (196, 136, 148),
    ],
    np.float32,
)
"""Colours of cloth, bags, walls and furniture alike, RGB 0 to 255 [18, 3]."""

_WEIGHTS = np.array([10, 8, 6, 6, 5, 6, 8, 6, 4, 4, 4, 4, 4, 4, 5, 2, 2, 2], np.float64)

SKIN = np.array([(228, 188, 160), (208, 162, 130), (172, 124, 92), (120, 80, 58), (84, 56, 42)])
HAIR = np.array([(26, 22, 20), (48, 34, 26), (84, 58, 38), (142, 108, 66), (120, 118, 116)])

PATTERNS = (
    "plain",
    "narrow hoops",
    "hoops",
    "wide hoops",
    "stripes",
    "wide stripes",
    "check",
    "wide check",
    "dots",
    "wide dots",
    "diagonal",
    "wide diagonal",
    "chevron",
    "camouflage",
    "fine camouflage",
    "halves",
    "block",
)
"""Patterns of cloth. All but `plain` show both colours on half of the cloth, so that the share of a
colour does not reveal the pattern."""

_ROWS = np.arange(TILE_HEIGHT)[:, None]
_COLUMNS = np.arange(TILE_WIDTH)[None, :]
FRONT = np.abs(_COLUMNS - TILE_WIDTH // 2)
"""Distance of each column from the front, in columns [1, TILE_WIDTH]."""


def sample_colour(rng: np.random.Generator) -> np.ndarray:
    """Sample a colour near one of the palette's, float32 [3]."""
    base = PALETTE[rng.choice(len(PALETTE), p=_WEIGHTS / _WEIGHTS.sum())]
    return np.clip(base + rng.normal(0, 5, 3), 8, 247).astype(np.float32)


def sample_colours(rng: np.random.Generator, count: int) -> np.ndarray:
    """Sample colours, each distinguishable from its predecessor, float32 [count, 3]."""
    colours = [sample_colour(rng)]
    while len(colours) < count:
        colour = sample_colour(rng)
        if np.abs(colour - colours[-1]).sum() > 90:
            colours.append(colour)
    return np.stack(colours)


_DARK = np.array([(26, 26, 30), (40, 40, 70), (60, 30, 30)], np.float32)
_LIGHT = np.array([(228, 226, 220), (210, 200, 170), (200, 215, 230)], np.float32)
_BRIGHT = np.array([(196, 36, 40), (36, 150, 64), (40, 72, 196), (222, 190, 44)], np.float32)


def sample_contrast(rng: np.random.Generator) -> np.ndarray:
    """Sample a dark and a light colour, in any order, and a bright one, float32 [3, 3]."""
    dark, light = _DARK[rng.integers(len(_DARK))], _LIGHT[rng.integers(len(_LIGHT))]
    first, second = (light, dark) if rng.random() < 0.5 else (dark, light)
    colours = np.stack((first, second, _BRIGHT[rng.integers(len(_BRIGHT))]))
    return np.clip(colours + rng.normal(0, 4, (3, 3)), 8, 247).astype(np.float32)


def plain(colour: np.ndarray) -> np.ndarray:
    """Return a tile of one colour, float32 [TILE_HEIGHT, TILE_WIDTH, 3]."""
    return np.broadcast_to(np.asarray(colour, np.float32), TILE_SHAPE).copy()


def smooth_noise(rng: np.random.Generator, height: int, width: int, cell: int) -> np.ndarray:
    """Return periodic smooth noise of unit deviation, float32 [height, width].

    Args:
        rng: the stream to sample from.
        height: rows.
        width: columns.
        cell: size of a blob in pixels.
    """
    fy = np.fft.fftfreq(height)[:, None]
    fx = np.fft.rfftfreq(width)[None, :]
    spectrum = np.fft.rfft2(rng.standard_normal((height, width)))
    field = np.fft.irfft2(
        spectrum * np.exp(-((fy**2 + fx**2) * (cell * 2.0) ** 2)), (height, width)
    )
    return ((field - field.mean()) / (field.std() + 1e-9)).astype(np.float32)


def patterned(pattern: str, colours: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a tile of cloth.

    Args:
        pattern: one of PATTERNS.
        colours: two colours [2, 3]; the first covers more.
        rng: the stream of positions.

    Returns:
        float32 [TILE_HEIGHT, TILE_WIDTH, 3].
    """
    first, second = (np.asarray(c, np.float32) for c in colours[:2])
    shape = (TILE_HEIGHT, TILE_WIDTH)
    rows, columns = _ROWS + rng.integers(TILE_HEIGHT), _COLUMNS
    scale = 2 if pattern.startswith("wide") else 1
    kind = pattern.split()[-1]
    if kind == "plain":
        where = np.zeros(shape, bool)
    elif kind == "hoops":
        period = {"narrow hoops": 5, "hoops": 8, "wide hoops": 16}[pattern]
        where = rows % period < period / 2
    elif kind == "stripes":
        where = columns % (8 * scale) < 4 * scale
    elif kind == "check":
        where = (rows // (4 * scale) + columns // (4 * scale)) % 2 == 0
    elif kind == "dots":
        period = 8 * scale
        shift = (rows // (period // 2) % 2) * (period // 2)
        y = rows % (period // 2) - period / 4 + 0.5
        x = (columns + shift) % period - period / 2 + 0.5
        where = y**2 + (0.7 * x) ** 2 < (0.24 * period) ** 2
    elif kind == "diagonal":
        where = (rows * 2 + columns) % (16 * scale) < 8 * scale
    elif kind == "chevron":
        where = (rows + np.abs(columns % 16 - 8)) % 8 < 4
    elif kind == "camouflage":
        where = smooth_noise(rng, *shape, cell=2 if pattern.startswith("fine") else 4) > 0
    elif kind == "halves":
        where = columns < TILE_WIDTH // 2
    elif kind == "block":
        where = _ROWS >= TILE_HEIGHT // 2
    else:
        raise ValueError(f"pattern {pattern!r} is not one of {', '.join(PATTERNS)}")
    return np.where(np.broadcast_to(where, shape)[..., None], second, first)


class Atlas:
    """All tiles of a split, addressed by number."""

    def __init__(self) -> None:
        self._tiles: list[np.ndarray] = []
        self._stacked: np.ndarray | None = None

    def add(self, tile: np.ndarray) -> int:
        """Round a tile to uint8, store it and return its number."""
        self._tiles.append(np.clip(np.rint(tile), 0, 255).astype(np.uint8))
        self._stacked = None
        return len(self._tiles) - 1

    @property
    def texels(self) -> np.ndarray:
        """All tiles as one table of colours, uint8 [tiles * TILE_HEIGHT * TILE_WIDTH, 3]."""
        if self._stacked is None:
            self._stacked = np.stack(self._tiles).reshape(-1, 3)
        return self._stacked
