"""Progress, seconds by phase and peak memory of one computation."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from mmga.common.memory import Peak
from mmga.common.progress import Progress


@dataclass(slots=True)
class Monitor:
    """Report the progress of a computation, and record its time and memory.

    Attributes:
        progress: called as (phase, done, total), or None.
        seconds: seconds by phase.
        peak: samples the memory.
    """

    progress: Progress | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    peak: Peak = field(default_factory=Peak)

    def step(self, phase: str, done: int, total: int) -> None:
        """Report progress and sample the memory."""
        self.peak.sample()
        if self.progress is not None:
            self.progress(phase, done, total)

    def add(self, phase: str, seconds: float) -> None:
        """Add seconds to a phase."""
        self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds

    @contextlib.contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the seconds of a block to a phase."""
        begun = time.perf_counter()
        yield
        self.add(phase, time.perf_counter() - begun)
