"""Cheap approximations of feature vectors and bounds on their inner-product error.

The features themselves, rounded to 8 or 16 bits, or projected on a few directions. With an
orthonormal basis B (up to rounding) and coordinates x^ = B'x, an inner product differs from
that of the coordinates by at most the product of the two residuals' norms, |x - Bx^|, and rounding.
docs/certified.md derives every term.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmga.ops.certified import (
    UNIT,
    Bound,
    float_products_,
    gamma,
    int8_products_,
    int8_rows,
    int16_rows,
)
from mmga.ops.distance import exact_sqrt, squared_norms
from mmga.ops.reference import INTEGER_LENGTH

EXACT = ("certified", "float32")
"""Orders of distances that nearly tie: that of float64 arithmetic, or of float32 tiles."""
BLOCK, FINE_BLOCK = 1024, 256
"""Terms that a product sums at once, of features and for coordinates: the error of a sum grows with
their number, and more sums than one cost passes over the tile."""
WIDEST_BYTES = 1 << 17
"""Dimensions up to which an inner product of numbers of 8 bits fits 32."""

# float32 roundings of a key outside its inner product (terms, their products, the difference, the
# interval's ends) with room to spare; the roundings of float64 are far below one of them.
_OTHER_ROUNDINGS = 32
# float32 roundings on the way to numbers of 8 bits, relative to a feature's norm: six of sums and
# differences, two of what is left, with room to spare.
_MIXING = 16
# Bounds on what underflows in float32, of a squared distance and of the rounding error of a row.
_UNDERFLOW, _LOST = 2.0**-106, 2.0**-54
# Factor on radii and slacks for their own rounding to float32 and in float32.
_OUTWARD = 1 + 2.0**-20


def roundings(width: int, block: int) -> int:
    """Return how many roundings a term of `float_products_` goes through at most."""
    return min(width, block) + -(-width // block) + 1


@dataclass(frozen=True, slots=True)
class Approximation:
    """Rows that approximate features, and bounds on the error of their inner products.

    The features are normalised first if the metric is cosine.

    Attributes:
        rows: float32 [N, K], or int16 or int8 [N, D] (`ops.certified.int16_rows`, `int8_rows`).
        radius: float64 [N], bound on the norm of what `rows` leave out.
        slack: float64 [N], this side's share of the rounding errors of a key.
        unit: float32 [N], scale of a row's numbers of 8 bits; else None.
    """

    rows: Tensor
    radius: Tensor
    slack: Tensor
    unit: Tensor | None = None

    def cut(self, rows: slice | Tensor) -> Approximation:
        """Return that of some of the features."""
        unit = None if self.unit is None else self.unit[rows]
        return Approximation(self.rows[rows], self.radius[rows], self.slack[rows], unit)

    @classmethod
    def joined(cls, parts: Sequence[Approximation]) -> Approximation:
        """Return those of several sets of features, one set after the other."""
        units = [part.unit for part in parts if part.unit is not None]
        return cls(
            torch.cat([part.rows for part in parts]),
            torch.cat([part.radius for part in parts]),
            torch.cat([part.slack for part in parts]),
            torch.cat(units) if units else None,
        )


def tile_products(one: Approximation, other: Approximation, out: Tensor) -> Tensor:
    """Write the inner products of a tile's rows and columns to `out`, float32 [R, W]."""
    if one.unit is None or other.unit is None:
        return float_products_(one.rows, other.rows, BLOCK, out)
    return int8_products_(one.rows, other.rows, one.unit, other.unit, out)


def bound_between(query: Approximation, gallery: Approximation, metric: str) -> Bound:
    """Return how far the keys of the pairs of two approximations may be from the exact ones."""
    factor = 2.0 if metric == "euclidean" else 1.0
    return Bound(factor * query.radius, gallery.radius, query.slack, gallery.slack)


def identity(rows: Tensor, norms: Tensor, metric: str) -> Approximation:
    """Return the exact features with the rounding bound of a float32 product.

    Args:
        rows: float32 [N, D].
        norms: squared norms, float64 [N].
        metric: cosine or euclidean.
    """
    error = (gamma(roundings(rows.shape[1], BLOCK)) + _OTHER_ROUNDINGS * UNIT) * _OUTWARD
    return Approximation(rows, torch.zeros_like(norms), _slack(error, norms, metric))


def int16(rows: Tensor, norms: Tensor, metric: str) -> Approximation:
    """Quantise features to integers of 16 bits, whose products are exact.

    Args:
        rows: float32 [N, D].
        norms: squared norms, float64 [N].
        metric: cosine or euclidean.
    """
    return int16_bounded(*int16_rows(rows, norms), norms, metric)


def int16_bounded(numbers: Tensor, error: Tensor, norms: Tensor, metric: str) -> Approximation:
    """Return the bounds of features that are rounded already (`ops.certified.int16_rows`)."""
    width = numbers.shape[1]
    # With a and b of norm 1 and integers a^ and b^ that are e and f away from them,
    # |<a, b> - <a^, b^>| <= e + f + e f.
    away = (error * (1 + gamma(width)) / INTEGER_LENGTH + 4 * UNIT) * _OUTWARD
    # Roundings of float64 in both keys, of D / 8 + 8 terms each, relative to the norms.
    other = 2.0**-40 + width * 2.0**-53
    if metric == "cosine":
        return Approximation(numbers, away, away + other)
    # That times 2 |q| |g| as a product of two radii: e + f + e f <= (m + e) (m + f) / m, best where
    # m is about e and f.
    usual = (width / 12) ** 0.5 / INTEGER_LENGTH
    return Approximation(
        numbers, exact_sqrt(norms) * (usual + away) / usual**0.5 * _OUTWARD, other * norms
    )


@dataclass(frozen=True, slots=True)
class Int8:
    """Quantise features to 8 bits, each row by a unit of its own.

    Attributes:
        longest: the largest norm of any feature, which squared distances need.
    """

    longest: float

    def __str__(self) -> str:
        return "8-bit features"

    def of(self, rows: Tensor, norms: Tensor, metric: str) -> Approximation:
        """Return features as numbers of 8 bits, whose products are exact.

        Args:
            rows: float32 [N, D].
            norms: squared norms, float64 [N].
            metric: cosine or euclidean.
        """
        return self.bounded(*int8_rows(rows), norms, metric)

    def bounded(
        self, numbers: Tensor, unit: Tensor, error: Tensor, norms: Tensor, metric: str
    ) -> Approximation:
        """Return the bounds of features that are rounded already (`ops.certified.int8_rows`)."""
        length = exact_sqrt(norms)
        # Where features of norm 1 are e and f away from their approximations, inner products are
        # off by at most e + f + e f.
        away = (error + _LOST) * (1 + gamma(numbers.shape[1]))
        away = away * torch.where(norms > 0, 1 / length, 0.0)
        away = ((away + _MIXING * UNIT) * _OUTWARD).clamp_max(1)
        unit = torch.where(away < 1, unit, 0.0)
        slack = _slack(_OTHER_ROUNDINGS * UNIT * _OUTWARD, norms, metric)
        if metric == "cosine":
            unit = torch.where(norms > 0, unit / length, 0.0).to(torch.float32)
            return Approximation(numbers, away, slack + away, unit)
        # 2 |q| |g| (e + f + e f), of which neither length is above the longest.
        radius = length * away * _OUTWARD
        return Approximation(numbers, radius, slack + 2 * self.longest * radius, unit)


def _slack(error: float, norms: Tensor, metric: str) -> Tensor:
    """Return each side's share of an error relative to the product of the norms.

    A squared distance is off by twice that, at most by the error times the sum of the squared
    norms; a cosine by the error itself, of which each side bears half.
    """
    if metric == "cosine":
        return torch.full_like(norms, error / 2)
    return error * norms + _UNDERFLOW


class Projection:
    """An orthonormal basis, up to a known defect, in which features are nearly contained.

    Attributes:
        basis: float32 [D, K]; the first k columns are the best k directions.
        defect: bound on the spectral norm of B'B - I.
    """

    def __init__(self, basis: Tensor) -> None:
        """Measure how far `basis` [D, K] is from orthonormal."""
        self.basis = basis
        wide = basis.double()
        gram = wide.T @ wide
        gram.diagonal().sub_(1)
        self.defect = float(gram.norm()) * _OUTWARD + 1e-12

    @classmethod
    def of_sample(cls, sample: Tensor, dimensions: int, seed: int = 0) -> Projection:
        """Find the directions in which a sample is largest, by a randomised subspace iteration.

        Source: Halko, Martinsson and Tropp, SIAM Review 2011, algorithm 4.4. Costs 8 K n D
        operations; any basis gives right ranks, a good one gives fewer undecided pairs.

        Args:
            sample: float32 [n, D], of the lengths that shall be approximated.
            dimensions: how many, at most min(n, D).
            seed: of the first directions.
        """
        count = min(dimensions + 8, *sample.shape)
        generator = torch.Generator(device=sample.device).manual_seed(seed)
        start = torch.randn(
            len(sample), count, generator=generator, dtype=torch.float32, device=sample.device
        )
        basis = torch.linalg.qr(sample.T @ start).Q  # [D, count]
        basis = torch.linalg.qr(sample.T @ (sample @ basis)).Q
        # Within their span, the directions by the share of the sample that they hold.
        moments = (sample @ basis).double()
        vectors = torch.linalg.eigh(moments.T @ moments).eigenvectors.flip(1)
        ordered = basis.double() @ vectors[:, :dimensions]
        return cls(torch.linalg.qr(ordered).Q.to(torch.float32))

    def __str__(self) -> str:
        return f"{self.basis.shape[1]} coordinates"

    def of(self, rows: Tensor, norms: Tensor, metric: str) -> Approximation:
        """Return features as their coordinates.

        Args:
            rows: float32 [N, D].
            norms: squared norms, float64 [N].
            metric: cosine or euclidean.
        """
        return self.approximate(self.coordinates(rows, norms, metric), norms, metric)

    def first(self, dimensions: int) -> Projection:
        """Return the projection on the first directions."""
        return Projection(self.basis[:, :dimensions].contiguous())

    @property
    def error(self) -> float:
        """Bound on the error of the coordinates of a feature of norm 1 (epsilon)."""
        basis = (self.basis.shape[1] * (1 + self.defect)) ** 0.5  # Frobenius norm
        return gamma(roundings(len(self.basis), FINE_BLOCK)) * basis + 4 * UNIT

    def coordinates(self, x: Tensor, norms: Tensor, metric: str) -> Tensor:
        """Return the coordinates of features, normalised first if the metric is cosine.

        Args:
            x: float32 [N, D].
            norms: squared norms, float64 [N].
            metric: cosine or euclidean.

        Returns:
            float32 [N, K].
        """
        out = x.new_empty(len(x), self.basis.shape[1])
        float_products_(x, self.basis.T, FINE_BLOCK, out)
        if metric == "cosine":
            out.mul_(torch.where(norms > 0, norms.rsqrt(), 0.0).to(torch.float32)[:, None])
        return out

    def approximate(self, coordinates: Tensor, norms: Tensor, metric: str) -> Approximation:
        """Return coordinates of features with the bound on what they leave out.

        Args:
            coordinates: float32 [N, K].
            norms: squared norms of the features, float64 [N].
            metric: cosine or euclidean.
        """
        dimensions = coordinates.shape[1]
        squared = squared_norms(coordinates)  # |x^|^2
        length = norms if metric == "euclidean" else (norms > 0).double()  # |x|^2
        epsilon = self.error
        # |x - Bx^|^2 = |x|^2 - |x^|^2 + 2 <x^, x^ - B'x> + <x^, (B'B - I) x^>
        rest = length - squared + 2 * epsilon * (squared * length).sqrt() + self.defect * squared
        radius = (rest.clamp_min(0) + 2.0**-40 * length).sqrt() * _OUTWARD
        error = gamma(dimensions) + 3 * self.defect + 2 * epsilon + _OTHER_ROUNDINGS * UNIT
        return Approximation(coordinates, radius, _slack(1.02 * error, norms, metric))


Approximator = Projection | Int8
"""Approximates the vectors of tiles."""
