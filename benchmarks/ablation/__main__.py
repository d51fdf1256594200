"""`python -m benchmarks.ablation`: do body-part masks help, and against what?

    python -m benchmarks.ablation                     # the main rows, seeds 0 1 2; hours on a CPU
    python -m benchmarks.ablation --rows 2 3 5 C E    # further rows
    python -m benchmarks.ablation --summary           # table and figure of the finished runs
    python -m benchmarks.ablation --audit             # fairness of the pictures
    python -m benchmarks.ablation --tune              # the learning rate of all rows

Start it from the repository's root. A stopped command resumes when called again; finished runs are
not repeated.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.ablation.plan import current_plan
from benchmarks.ablation.rows import MAIN, row_named
from mmga.common import cli
from mmga.common.errors import UserError
from mmga.config import check_ranges


@dataclass(frozen=True, slots=True)
class Options:
    """Train and test the rows of the ablation, or show their results."""

    rows: tuple[str, ...] = MAIN
    """Rows and controls: 0 to 6, A to E."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of each row; all rows of a seed are run before the next seed."""
    out: Path = Path("runs/ablation")
    """Folder of pictures and checkpoints."""
    results: Path = Path("benchmarks/results/ablation")
    """Folder of results, two files for each finished run."""
    threads: int = 1
    """CPU threads of torch."""
    prepare: bool = False
    """Render the pictures and exit."""
    audit: bool = False
    """Audit the pictures and exit, with 1 if a limit breaks."""
    tune: bool = False
    """Print the validation mAP of each learning rate and exit."""
    summary: bool = False
    """Print the tables of the finished runs, write summary.md and ablation.png beside them and
    exit."""


def body(options: Options) -> int:
    """Run the requested step; return the exit code."""
    for name in options.rows:
        row_named(name)
    check_ranges(options)
    if options.threads < 1:
        raise UserError(f"--threads must be at least 1, got {options.threads}")
    if options.summary:
        return _summary(options)
    import torch

    from benchmarks.ablation.pictures import Pictures
    from mmga.common.progress import bar
    from mmga.training import trainer

    torch.set_num_threads(options.threads)
    plan = current_plan()
    with bar() as progress:
        if options.audit:
            from benchmarks.ablation.fairness import audit, table

            figures = audit(plan, options.results, progress)
            print(table(figures))
            return 0 if all(figure.passed for figure in figures) else 1
        pictures = Pictures(options.out, plan, progress)
        pictures.prepare()
        if options.prepare:
            return 0
        if options.tune:
            from benchmarks.ablation.tuning import tune

            found = tune(pictures, options.out, options.results, threads=options.threads)
            for rate, value in found.items():
                print(f"lr {rate}: validation mAP {100 * value:.2f}%")
            return 0
        from benchmarks.ablation.trial import result_files, run

        try:
            for seed in options.seeds:
                for name in options.rows:
                    done = run(
                        name, seed, pictures, options.out, options.results, threads=options.threads
                    )
                    report, _ = result_files(options.results, name, seed)
                    print(f"row {name} seed {seed}: {'' if done else 'there already: '}{report}")
                    sys.stdout.flush()
        except trainer.Stopped:
            print(
                "mmga ablation: stopped and saved; the same command goes on from here",
                file=sys.stderr,
            )
            return 143
    return _summary(options)


def _summary(options: Options) -> int:
    from benchmarks.ablation.statistics import read
    from benchmarks.ablation.summary import draw, summary
    from mmga.common.files import atomic_path

    outcomes = read(options.results)
    text = summary(outcomes, options.seeds)
    print(text, end="")
    if outcomes:
        with atomic_path(options.results / "summary.md") as temporary:
            temporary.write_text(text)
        draw(outcomes, options.results / "ablation.png")
    return 0


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    cli.run("ablation", Options, body, argv)


if __name__ == "__main__":
    main()
