"""The settings of k-reciprocal re-ranking and its named variants; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from mmga.common.errors import UserError, real_number, whole_number

Variant = Literal["zhong", "torchreid", "fastreid"]
VARIANTS = ("zhong", "torchreid", "fastreid")
HALVES = ("python", "matlab")


@dataclass(frozen=True, slots=True)
class KReciprocal:
    """k-reciprocal re-ranking (Zhong et al., "Re-ranking person re-identification with
    k-reciprocal encoding", CVPR 2017).

    Raises:
        UserError: a setting is out of its range.
    """  # noqa: D205

    k1: int = 20
    """Neighbours that make the k-reciprocal sets, at least 1; all items where there are fewer."""
    k2: int = 6
    """Neighbours whose encodings are averaged, at least 1; all items where there are
    fewer; 1 averages nothing."""
    lambda_value: float = 0.3
    """Weight of the original distance, 0 to 1; 1 gives the original order."""
    variant: Variant = "zhong"
    """zhong: squared distances over their row's maximum. torchreid: the same squared once more
    (d^4), as torchreid and layumi compute. fastreid: lists of k1 (not k1 + 1), weights
    softmax(-d), the distance of the metric mixed in without normalisation."""
    half: Literal["python", "matlab"] = "python"
    """Length of the half list: around(k1 / 2) + 1, or round((k1 + 1) / 2) as in evaluation.m."""

    def __post_init__(self) -> None:
        """Check every field."""
        for name in ("k1", "k2"):
            value = getattr(self, name)
            if isinstance(value, bool) or not hasattr(value, "__index__") or value < 1:
                raise UserError(f"{name} must be an integer of at least 1, got {value!r}")
            object.__setattr__(self, name, whole_number(name, value))
        share = real_number("lambda_value", self.lambda_value)
        if not 0 <= share <= 1:
            raise UserError(f"lambda_value must be from 0 to 1, got {self.lambda_value!r}")
        object.__setattr__(self, "lambda_value", share)
        if self.variant not in VARIANTS:
            raise UserError(f"variant must be one of {', '.join(VARIANTS)}, got {self.variant!r}")
        if self.half not in HALVES:
            raise UserError(f"half must be one of {', '.join(HALVES)}, got {self.half!r}")

    @classmethod
    def preset(cls, name: str) -> KReciprocal:
        """Return the settings that a published code base uses.

        Args:
            name: zhong (20, 6, 0.3), torchreid, fastreid, or transreid (50, 15, 0.3).

        Raises:
            UserError: no such preset.
        """
        if name not in PRESETS:
            raise UserError(f"preset must be one of {', '.join(PRESETS)}, got {name!r}")
        return PRESETS[name]

    def as_dict(self) -> dict[str, Any]:
        """Return the settings as a report shows them."""
        shown = ("k1", "k2", "lambda_value", "variant")
        return {name: getattr(self, name) for name in shown} | (
            {} if self.half == "python" else {"half": self.half}
        )

    @property
    def list_length(self) -> int:
        """Items in a neighbour list, self among them."""
        return self.k1 if self.variant == "fastreid" else self.k1 + 1

    @property
    def half_length(self) -> int:
        """Items in a half list, self among them."""
        # (k1 + 1) / 2 with halves rounded up, or k1 / 2 with halves to even, as numpy.around.
        length = (self.k1 + 2) // 2 if self.half == "matlab" else round(self.k1 / 2) + 1
        return min(length, self.list_length)

    @property
    def divides(self) -> bool:
        """Whether distances are divided by the largest of their row."""
        return self.variant != "fastreid"

    def neighbours_needed(self, items: int) -> int:
        """Return how many neighbours of each of so many items the computation reads."""
        return min(max(self.list_length, self.k2), items)


def check_rule(rerank: object) -> None:
    """Raise a `UserError` unless an argument is settings of re-ranking, or None."""
    if rerank is not None and not isinstance(rerank, KReciprocal):
        raise UserError(
            f"rerank: expected mmga.KReciprocal(...) or None, found {rerank!r}; "
            "mmga.KReciprocal() has the published settings"
        )


PRESETS = {
    "zhong": KReciprocal(),
    "torchreid": KReciprocal(variant="torchreid"),
    "fastreid": KReciprocal(variant="fastreid"),
    "transreid": KReciprocal(k1=50, k2=15, lambda_value=0.3),
}
