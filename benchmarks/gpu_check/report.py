"""Results of a check, as JSON that tells a measurement from a rehearsal."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mmga.common.errors import UserError
from mmga.common.files import atomic_path

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
STATES = ("done", "skipped", "failed")


@dataclass(slots=True)
class Figure:
    """One measurement and the two times that no version can beat.

    Attributes:
        name: workload and provider.
        seconds: median.
        bytes: that must move, if counted.
        operations: that must be done, if counted.
        rate: of these operations: `ieee`, `tf32`, `bf16` or `int8`.
        more: anything else.
    """

    name: str
    seconds: float
    bytes: int | None = None
    operations: int | None = None
    rate: str = "ieee"
    more: dict[str, Any] = field(default_factory=dict)

    def beside(self, rates: dict[str, float]) -> dict[str, Any]:
        """Return the figure with the card's measured rates and the floors they make."""
        found: dict[str, Any] = {"name": self.name, "seconds": self.seconds}
        floors = []
        if self.bytes is not None:
            rate = rates["copy_bytes_per_second"]
            floors.append(self.bytes / rate)
            found |= {"bytes": self.bytes, "copy_bytes_per_second": rate}
        if self.operations is not None:
            rate = rates[f"{self.rate}_operations_per_second"]
            floors.append(self.operations / rate)
            found |= {
                "operations": self.operations,
                "products_in": self.rate,
                "operations_per_second": rate,
            }
        if floors:
            found |= {"floor_seconds": max(floors), "share_of_floor": max(floors) / self.seconds}
        return found | self.more


@dataclass(slots=True)
class Step:
    """Outcome of a step.

    Attributes:
        name: of the step.
        state: one of `STATES`.
        reason: why it was skipped or how it failed.
        seconds: it took.
        figures: what it measured.
    """

    name: str
    state: str
    reason: str = ""
    seconds: float = 0.0
    figures: list[dict[str, Any]] = field(default_factory=list)


def write(
    path: Path,
    card: str | None,
    rates: dict[str, float] | None,
    steps: list[Step],
    facts: dict[str, Any],
) -> None:
    """Write what was found.

    Raises:
        UserError: nothing was measured, and the file would lie among results.
    """
    if card is None and path.resolve().is_relative_to(RESULTS):
        raise UserError(
            f"{path}: expected a file outside {RESULTS.name}, since nothing was measured; found no "
            "GPU on this machine"
        )
    content = {
        "schema": 1,
        "card": card,
        "rehearsal": card is None,
        **facts,
        "rates": rates,
        "steps": [asdict(step) for step in steps],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        Path(temporary).write_text(json.dumps(content, indent=1) + "\n")
