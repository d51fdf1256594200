"""Log of a run: metrics.jsonl, one JSON object a line, and TensorBoard events."""

import json
import logging
import math
from pathlib import Path
from typing import IO, Any

from mmga.common.errors import UserError
from mmga.common.files import atomic_path

logger = logging.getLogger(__name__)


class RunLog:
    """Appends metrics to `metrics.jsonl` and to `tensorboard/` below a run's folder.

    Args:
        folder: the run's folder.
        step: the run's position; lines and events after it, left over from a run that was killed
            after its last checkpoint, are cut off.
        writes: whether this process writes; of several, one does.
    """

    def __init__(self, folder: Path, step: int, writes: bool = True) -> None:
        self.path = folder / "metrics.jsonl"
        self._file: IO[str] | None = None
        self._board: Any = None
        if not writes:
            return
        folder.mkdir(parents=True, exist_ok=True)
        self._cut(step)
        self._file = self.path.open("a")
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            logger.warning("no TensorBoard events are written: pip install tensorboard")
        else:
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def _cut(self, step: int) -> None:
        if not self.path.is_file():
            return
        lines = self.path.read_text(errors="replace").splitlines()
        kept = [line for line in lines if _step(line) <= step]
        with atomic_path(self.path) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in kept))

    def write(self, kind: str, step: int, metrics: dict[str, Any]) -> None:
        """Append one line `{"kind", "step", **metrics}`, and its numbers as TensorBoard scalars.

        Raises:
            UserError: the disk is full.
        """
        if self._file is None:
            return
        try:
            self._file.write(json.dumps({"kind": kind, "step": step, **metrics}) + "\n")
            self._file.flush()
            self._draw(kind, step, metrics)
        except OSError as error:
            raise UserError(
                f"{self.path.parent} could not be written: {error.strerror}; make room and --resume"
            ) from error

    def last(self, kind: str, step: int) -> dict[str, Any]:
        """Return the metrics of the line of this kind and step, empty where there is none."""
        if self._file is None:
            return {}
        for line in reversed(self.path.read_text().splitlines()):
            found = json.loads(line)
            if found.get("kind") == kind and found["step"] == step:
                return {name: found[name] for name in found if name not in ("kind", "step")}
        return {}

    def _draw(self, kind: str, step: int, metrics: dict[str, Any]) -> None:
        if self._board is None:
            return
        for name, value in metrics.items():
            if isinstance(value, dict):
                for key, item in value.items():
                    if isinstance(item, int | float):
                        self._board.add_scalar(f"{kind}/{name}/{key}", item, step)
            elif isinstance(value, int | float):
                self._board.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        """Flush and close the files."""
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()


def _step(line: str) -> float:
    """Return a line's step; infinity for a line that was cut off in the middle, or is none."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return math.inf
    step = found.get("step") if isinstance(found, dict) else None
    return step if isinstance(step, int | float) else math.inf
