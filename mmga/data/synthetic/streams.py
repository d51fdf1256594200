"""Random streams keyed by their purpose, so that nothing depends on the order of sampling."""

import zlib

import numpy as np

_MASK = (1 << 64) - 1


def _mix(state: int, value: int) -> int:
    # One round of splitmix64 (Steele, Lea & Flood 2014), enough to separate neighbouring keys.
    state = (state + value + 0x9E3779B97F4A7C15) & _MASK
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
    return state ^ (state >> 31)


def stream(*key: int | str) -> np.random.Generator:
    """Return the generator that belongs to a key, always in the same state.

    Args:
        key: integers and words, for instance `(seed, "train", person, camera, frame, "pose")`.
    """
    low, high = _digest(key)
    return np.random.Generator(np.random.Philox(key=low | high << 64))


def uniform(*key: int | str) -> float:
    """Return the one number in [0, 1) that belongs to a key; cheaper than a stream."""
    return (_digest(key)[0] >> 11) / (1 << 53)


def _digest(key: tuple[int | str, ...]) -> tuple[int, int]:
    low, high = 0, 0x6D6D6761
    for part in key:
        value = zlib.crc32(part.encode()) | 1 << 40 if isinstance(part, str) else int(part)
        low = _mix(low, value & _MASK)
        high = _mix(high ^ low, value & _MASK)
    return low, high
