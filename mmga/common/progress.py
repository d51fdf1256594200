"""Progress bars with an ETA for commands; library code only calls `Progress`."""

import contextlib
import sys
from collections.abc import Callable, Iterator

Progress = Callable[[str, int, int], None]
"""Called as `progress(phase, done, total)`, as often as the caller likes."""


@contextlib.contextmanager
def bar() -> Iterator[Progress]:
    """Yield a `Progress` that draws one line a phase on stderr: share, speed and time left.

    Where stderr is no terminal, or one that cannot move its cursor (TERM=dumb), a phase prints one
    plain line when it starts lasting (two seconds) and one when it is done, so that logs stay
    readable.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskID,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    if not sys.stderr.isatty() or console.is_dumb_terminal:
        yield _plain()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as drawn:
        tasks: dict[str, TaskID] = {}
        before: dict[str, int] = {}

        def update(phase: str, done: int, total: int) -> None:
            if phase not in tasks:
                tasks[phase] = drawn.add_task(phase, total=total)
            elif done < before[phase]:  # the phase has begun again
                drawn.reset(tasks[phase])
            before[phase] = done
            drawn.update(tasks[phase], completed=done, total=total)

        yield update


def _plain() -> Progress:
    import time

    started: dict[str, float] = {}
    shown: dict[str, float] = {}
    before: dict[str, int] = {}

    def update(phase: str, done: int, total: int) -> None:
        now = time.monotonic()
        if done < before.get(phase, 0):  # the phase has begun again
            started.pop(phase)
            shown.pop(phase, None)
        before[phase] = done
        start = started.setdefault(phase, now)
        elapsed = now - start
        due = elapsed > 2 and now - shown.get(phase, 0.0) > 10
        finished = done >= total and phase in shown
        if not (due or finished):
            return
        shown[phase] = now
        left = elapsed * (total - done) / max(done, 1)
        print(f"{phase}: {done}/{total}, {elapsed:.0f} s, ETA {left:.0f} s", file=sys.stderr)

    return update
