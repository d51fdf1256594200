"""Log of a run: metrics.jsonl, one JSON object a line, and TensorBoard events."""

import contextlib
import io
import itertools
import json
import logging
import math
import os
import platform
import time
from collections.abc import Mapping
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
        self._file: IO[bytes] | None = None
        self._board: _Board | None = None
        if not writes:
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._cut(step)
            self._file = self.path.open("ab", buffering=0)
            self._board = _Board(folder / "tensorboard", step + 1)
        except ImportError:
            logger.warning("no TensorBoard events are written: pip install tensorboard")
        except OSError as error:
            raise _failure(self.path, error) from error

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
            UserError: the disk is full or can no longer be written.
        """
        if self._file is None:
            return
        line = json.dumps(_json({"kind": kind, "step": step, **metrics}), allow_nan=False) + "\n"
        try:
            _append(self._file, line.encode())
            if self._board is not None:
                self._board.write(step, _scalars(kind, metrics))
        except OSError as error:
            raise _failure(self.path, error) from error

    def last(self, kind: str, step: int) -> dict[str, Any]:
        """Return the metrics of the line of this kind and step, empty where there is none."""
        if self._file is None:
            return {}
        for line in reversed(self.path.read_text().splitlines()):
            found = json.loads(line)
            if found.get("kind") == kind and found["step"] == step:
                return {name: found[name] for name in found if name not in ("kind", "step")}
        return {}

    def close(self) -> None:
        """Close the files; nothing is left to be written."""
        for file in (self._file, self._board):
            if file is not None:
                with contextlib.suppress(OSError):
                    file.close()


class _Board:
    """TensorBoard events, written by the calling thread, so that it has the error of a full disk.

    Args:
        folder: of the events.
        first: step from which on events of earlier writers are void.
    """

    def __init__(self, folder: Path, first: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder.mkdir(exist_ok=True)
        now, machine = time.time(), platform.node()
        name = f"events.out.tfevents.{int(now):010d}.{machine}.{os.getpid()}.{next(_numbers)}"
        self._file = (folder / name).open("ab", buffering=0)
        self._event, self._summary, self._records = Event, Summary, RecordWriter
        self._write(Event(wall_time=now, file_version="brain.Event:2"))
        start = SessionLog(status=SessionLog.START)
        self._write(Event(wall_time=now, step=first, session_log=start))

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write the scalars of a step."""
        values = [self._summary.Value(tag=tag, simple_value=one) for tag, one in scalars.items()]
        summary = self._summary(value=values)
        self._write(self._event(wall_time=time.time(), step=step, summary=summary))

    def _write(self, event: Any) -> None:
        record = io.BytesIO()
        self._records(record).write(event.SerializeToString())
        _append(self._file, record.getvalue())

    def close(self) -> None:
        self._file.close()


_numbers = itertools.count()


def _append(file: IO[bytes], record: bytes) -> None:
    """Append a record to an unbuffered file, or leave the file as it was and raise an OSError."""
    start = os.fstat(file.fileno()).st_size
    rest = memoryview(record)
    try:
        while rest:
            rest = rest[file.write(rest) :]
    except OSError:
        with contextlib.suppress(OSError):
            file.truncate(start)
        raise


def _json(value: Any) -> Any:
    """Return a value with null for numbers that JSON has not: an IoU where neither has a pixel."""
    if isinstance(value, Mapping):
        return {name: _json(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _scalars(kind: str, metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers among metrics, and one level below, by the tags of TensorBoard."""
    found = {}
    for name, value in metrics.items():
        inner = value if isinstance(value, dict) else {None: value}
        for key, item in inner.items():
            if isinstance(item, int | float):
                found[f"{kind}/{name}" if key is None else f"{kind}/{name}/{key}"] = float(item)
    return found


def _failure(path: Path, error: OSError) -> UserError:
    return UserError(
        f"{path.parent} could not be written: {error.strerror}; make room and go on with --resume"
    )


def _step(line: str) -> float:
    """Return a line's step; infinity for a line that was cut off in the middle, or is none."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return math.inf
    step = found.get("step") if isinstance(found, dict) else None
    return step if isinstance(step, int | float) else math.inf
