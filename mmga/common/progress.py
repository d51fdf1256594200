"""Progress bars with an ETA for commands; library code only calls `Progress`."""

import contextlib
import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

Progress = Callable[[str, int, int], None]
"""Called as `progress(phase, done, total)`, as often as the caller likes."""


def begin(progress: Progress | None, phase: str, done: int) -> None:
    """Say that a phase begins with `done` items that others did: they tell nothing of its speed."""
    if isinstance(progress, _Told):
        progress.begin(phase, done)


def describe(progress: Progress | None, phase: str, text: str) -> None:
    """Give the line that stands beside the bar of a phase, where `progress` can show one."""
    if isinstance(progress, _Told):
        progress.describe(phase, text)


class _Told(ABC):
    """A `Progress` of a command, which shows more than three numbers."""

    @abstractmethod
    def __call__(self, phase: str, done: int, total: int) -> None: ...

    @abstractmethod
    def begin(self, phase: str, done: int) -> None: ...

    @abstractmethod
    def describe(self, phase: str, text: str) -> None: ...


@contextlib.contextmanager
def bar() -> Iterator[Progress]:
    """Yield a `Progress` that draws one line a phase on stderr: share, speed and time left.

    Where stderr is no terminal, or one that cannot move its cursor (TERM=dumb), a phase prints one
    plain line when it starts lasting (two seconds) and one when it is done, so that logs stay
    readable; a phase that is described prints at least the last one.
    """
    if not sys.stderr.isatty() or os.environ.get("TERM") in ("dumb", "unknown"):
        yield _Lines()
        return
    with _drawn() as shown:
        yield shown


@contextlib.contextmanager
def bar_of(shown: bool) -> Iterator[Progress | None]:
    """Yield `bar`'s `Progress` in the one process of several that shows it, None in the others."""
    with bar() if shown else contextlib.nullcontext() as progress:
        yield progress


@contextlib.contextmanager
def _drawn() -> "Iterator[_Told]":
    from rich.console import Console, RenderableType
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskID,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    lines: dict[str, str] = {}

    class Bars(Progress):
        def get_renderables(self) -> "Iterator[RenderableType]":
            yield from super().get_renderables()
            for line in lines.values():
                yield Text(line)

    class Drawn(_Told):
        def __init__(self) -> None:
            self.tasks: dict[str, TaskID] = {}
            self.before: dict[str, int] = {}

        def __call__(self, phase: str, done: int, total: int) -> None:
            if phase not in self.tasks:
                self.begin(phase, 0)
            elif done < self.before[phase]:  # the phase has begun again
                drawn.reset(self.tasks[phase])
            self.before[phase] = done
            drawn.update(self.tasks[phase], completed=done, total=total)
            if done >= total:
                lines.pop(phase, None)

        def begin(self, phase: str, done: int) -> None:
            self.tasks[phase] = drawn.add_task(phase, total=None, completed=done)
            self.before[phase] = done

        def describe(self, phase: str, text: str) -> None:
            lines[phase] = text

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=Console(stderr=True), transient=True) as drawn:
        yield Drawn()


class _Lines(_Told):
    """Plain lines, for logs."""

    def __init__(self) -> None:
        self.started: dict[str, float] = {}
        self.shown: dict[str, float] = {}
        self.first: dict[str, int] = {}
        self.before: dict[str, int] = {}
        self.lines: dict[str, str] = {}

    def __call__(self, phase: str, done: int, total: int) -> None:
        now = time.monotonic()
        if done < self.before.get(phase, 0):  # the phase has begun again
            self.started.pop(phase)
            self.shown.pop(phase, None)
            self.first.pop(phase, None)
        self.before[phase] = done
        elapsed = now - self.started.setdefault(phase, now)
        due = elapsed > 2 and now - self.shown.get(phase, 0.0) > 10
        line = self.lines.get(phase)
        if not (due or (done >= total and (phase in self.shown or line))):
            return
        self.shown[phase] = now
        left = elapsed * (total - done) / max(done - self.first.get(phase, 0), 1)
        told = f"{phase}: {done}/{total}, {elapsed:.0f} s, ETA {left:.0f} s"
        print(f"{told}; {line}" if line else told, file=sys.stderr)

    def begin(self, phase: str, done: int) -> None:
        self.started[phase] = time.monotonic()
        self.first[phase] = self.before[phase] = done

    def describe(self, phase: str, text: str) -> None:
        self.lines[phase] = text
