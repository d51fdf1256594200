"""Check the GPU side of mmga: build, test, sanitize, measure. `make gpu-check`.

Eight minutes at most on a machine with a GPU, no network needed; results are written after every
step, the most valuable first, so that a cut leaves what was done. Without a GPU every step that
needs none runs; the others are skipped, and what is written says that nothing was measured.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import functools
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_check.report import RESULTS, ROOT, Figure, Step, write
from mmga.common.errors import UserError

SECONDS = 480
REHEARSAL = ROOT / "build" / "gpu_check" / "rehearsal.json"
# Steps in their order, by worth, and the seconds after which each is stopped: up to the sanitizer
# they fit the time together, and compiled training takes what is left. The last two need no card.
LIMITS = {
    "build": 110,
    "kernels": 80,
    "rates": 10,
    "plain": 20,
    "counting": 10,
    "reranked": 15,
    "reranked_msmt17": 20,
    "reranked_500k": 35,
    "attention": 50,
    "neighbours": 40,
    "jaccard": 15,
    "training": 35,
    "sanitizer": 40,
    "training_compiled": 120,
    "compile": 240,
    "emulation": 240,
}
NEEDS_NO_CARD = ("build", "compile", "emulation")


def card_of(device: torch.device | None) -> str | None:
    """Return the name of the GPU, None where there is none."""
    return None if device is None else torch.cuda.get_device_name(device)


class Failed(Exception):
    """A step did not do what it must; the text says what."""


class TookTooLong(Failed):
    """A program was still running when its time was over."""


class OutOfTime(Exception):
    """A step's time is over."""


@contextlib.contextmanager
def stopped_after(seconds: float) -> Iterator[None]:
    """Raise `OutOfTime` in what runs in this process for longer."""

    def stop(*_: object) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Skipped(Exception):
    """A step cannot run here; the text says why."""


def run(words: list[Any], seconds: float, **environment: str) -> str:
    """Run a program and return what it printed.

    Raises:
        Failed: it exits with another code than 0, or takes too long.
    """
    try:
        done = subprocess.run(
            [str(word) for word in words],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=seconds,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        )
    except subprocess.TimeoutExpired:
        raise TookTooLong(f"{words[0]} took more than {seconds:.0f} s") from None
    if done.returncode:
        raise Failed(f"exit {done.returncode}: {(done.stdout + done.stderr)[-3000:]}")
    return done.stdout + done.stderr


def build(card: str | None, seconds: float) -> None:
    """Compile the kernels; with a card the CUDA library must come out."""
    mode = "on" if card is not None else os.environ.get("MMGA_CUDA", "auto")
    jobs = os.environ.get("MAX_JOBS", str(min(16, os.cpu_count() or 1)))
    words = [sys.executable, "setup.py", "build_ext", "--inplace"]
    own = {}
    if card is not None:  # for this card alone: a third of the time
        own["CUDAARCHS"] = "{}{}".format(*torch.cuda.get_device_capability())
    run(words, seconds, MMGA_CUDA=mode, MMGA_WERROR="1", MAX_JOBS=jobs, **own)


def compile_kernels(card: str | None, seconds: float) -> None:
    """Machine code of all kernels for sm_80, sm_90 and sm_100, and that none spills."""
    pytest(
        ["tests/test_build.py", "tests/ops", "-k", "spill or cuda_file or cuda_library"], seconds
    )


def emulation(card: str | None, seconds: float) -> None:
    """The CUDA kernels' source and the Triton kernels on the CPU."""
    files = [*sorted((ROOT / "tests" / "ops").glob("test_cuda_*.py"))]
    files.append(ROOT / "tests" / "ops" / "test_streaming.py")
    files.append(ROOT / "tests" / "retrieval" / "features" / "test_transfer.py")
    if card is None:  # on a card Triton's kernels run there
        files += sorted((ROOT / "tests" / "ops").glob("test_*_triton.py"))
    pytest([*files, "-m", "not cuda", "-k", "not compile"], seconds)


def kernels(card: str | None, seconds: float) -> None:
    """Every test that needs a card, and Triton's, which take one if it is there."""
    ours = [*sorted((ROOT / "tests" / "ops").glob("test_cuda_*.py"))]
    ours += [ROOT / "tests" / "ops" / "test_streaming.py"]
    ours += [ROOT / "tests" / "retrieval" / "features" / "test_transfer.py"]
    pytest([*ours, "-m", "cuda"], seconds / 2, MMGA_REQUIRE_KERNELS="cpu,cuda,triton")
    files = sorted((ROOT / "tests" / "ops").glob("test_*_triton.py"))
    pytest([*files, "-k", "not compile"], seconds / 2, MMGA_REQUIRE_KERNELS="triton")


def pytest(words: list[Any], seconds: float, **environment: str) -> None:
    """Run tests, of which some must be there and none may fail."""
    said = run([sys.executable, "-m", "pytest", *words], seconds, **environment)
    if not re.search(r"\b[1-9]\d* passed", said):
        raise Failed(f"no test ran: {said[-500:]}")


def sanitizer(card: str | None, seconds: float) -> None:
    """Memory and races of every CUDA kernel on small cases, by compute-sanitizer."""
    tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(tool).is_file():
        raise Skipped("compute-sanitizer is not installed")
    tests = sorted((ROOT / "tests" / "ops").glob("test_cuda_[ciknrv]*.py"))
    for check in ("memcheck", "racecheck"):
        options = ["--error-exitcode", "9", "--target-processes", "all", "--tool", check]
        program = [sys.executable, "-m", "pytest", "-x", "-m", "cuda", *tests]
        small = ["-k", "not many_rows and not far_apart and not 1100"]
        try:
            run([tool, *options, *program, *small], seconds / 2)
        except TookTooLong as error:
            raise Skipped(f"{check} found nothing until it was stopped: {error}") from None
        except Failed as error:
            if "Device not supported" in str(error):
                raise Skipped("compute-sanitizer does not support this device") from None
            raise


Measure = Callable[[torch.device, float], Iterator[Figure]]


def measures() -> dict[str, Measure]:
    """Return the benchmarks, whose modules are imported only where they run."""
    from benchmarks.gpu_check import attention, evaluation, training

    return {
        "attention": attention.figures,
        "plain": evaluation.plain,
        "counting": evaluation.counting,
        "reranked": evaluation.reranked,
        "reranked_msmt17": functools.partial(
            evaluation.reranked, sizes=evaluation.MSMT17, repeats=1
        ),
        "reranked_500k": functools.partial(
            evaluation.reranked, width=512, distractors=evaluation.DISTRACTORS, repeats=1
        ),
        "neighbours": evaluation.neighbours,
        "jaccard": evaluation.jaccard,
        "training": training.figures,
        "training_compiled": training.compiled,
    }


CHECKS: dict[str, Callable[[str | None, float], None]] = {
    "build": build,
    "compile": compile_kernels,
    "emulation": emulation,
    "kernels": kernels,
    "sanitizer": sanitizer,
}


def check(
    device: torch.device | None,
    chosen: list[str],
    say: Callable[[str], None],
    keep: Callable[[Any, list[Step]], None],
) -> tuple[str | None, dict[str, float] | None, list[Step]]:
    """Run steps and return the card's name, its rates and what became of each step.

    Args:
        device: the card, or None.
        chosen: names of steps.
        say: prints a line.
        keep: writes what was found so far, given the rates and the steps.
    """
    card, begun = card_of(device), time.monotonic()
    rates: dict[str, float] | None = None
    steps: list[Step] = []
    for name, most in LIMITS.items():
        step = Step(name, "done")
        at = time.monotonic()
        left = min(most, begun + SECONDS - at)
        try:
            if name not in chosen:
                raise Skipped("not asked for")
            if name not in NEEDS_NO_CARD and device is None:
                raise Skipped("no GPU on this machine")
            if left < 5:
                raise Skipped(f"the {SECONDS} s are over")
            if name in CHECKS:
                CHECKS[name](card, left)
            else:
                assert device is not None
                with stopped_after(left):
                    if rates is None:
                        from benchmarks.gpu_check.timing import measured_rates

                        rates = measured_rates(device)
                    if name != "rates":
                        # One by one, so that what was measured before a failure is kept.
                        for figure in measures()[name](device, at + left):
                            step.figures.append(figure.beside(rates))
        except OutOfTime:
            step.reason = f"stopped after {left:.0f} s"
        except Skipped as reason:
            step.state, step.reason = "skipped", str(reason)
        except Failed as error:
            step.state, step.reason = "failed", str(error)
        except Exception:
            step.state, step.reason = "failed", traceback.format_exc()[-3000:]
        step.seconds = round(time.monotonic() - at, 2)
        steps.append(step)
        keep(rates, steps)
        say(f"{name:14} {step.state:8} {step.seconds:6.1f} s  {step.reason.strip()[-300:]}")
    return card, rates, steps


def facts() -> dict[str, Any]:
    """Return when, from what and with what this was measured."""
    from mmga.ops import backends

    git = ["git", "-C", str(ROOT)]
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
    changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True)
    triton = None
    try:
        import triton as module

        triton = module.__version__
    except ImportError:
        pass
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": commit.stdout.strip() or None,
        "changed_files": len(changed.stdout.splitlines()) if commit.stdout else None,
        "command": "make gpu-check",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "triton": triton,
        },
        "backends": backends(),
    }


def default_path(card: str | None) -> Path:
    """Return where results go: those of a card among results, a rehearsal into the build folder."""
    if card is None:
        return REHEARSAL
    name = re.sub(r"\W+", "_", card).strip("_").lower()
    return RESULTS / f"gpu_{name}.json"


def main(argv: list[str] | None = None) -> int:
    """Run the check; 0 if nothing failed, 1 if a step did, 2 if an argument is wrong."""
    every = [*LIMITS]
    parser = argparse.ArgumentParser(prog="make gpu-check", description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument(
        "--only", nargs="+", choices=every, default=every, metavar="STEP",
        help=f"of {', '.join(every)}; all",
    )  # fmt: skip
    options = parser.parse_args(argv)
    device = torch.device("cuda", 0) if torch.cuda.is_available() else None
    path = options.json or default_path(card_of(device))
    if device is None:
        print("no GPU on this machine: a rehearsal, which measures nothing")
    known = facts()

    def keep(rates: dict[str, float] | None, steps: list[Step]) -> None:
        write(path, card_of(device), rates, steps, known)

    try:
        keep(None, [])
        _, _, steps = check(device, options.only, functools.partial(print, flush=True), keep)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    failed = [step.name for step in steps if step.state == "failed"]
    print(f"{path}: " + (f"failed: {', '.join(failed)}" if failed else "nothing failed"))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
