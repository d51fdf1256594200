"""`python -m mmga.train`: train MMGA.

    mmga train --out runs/synthetic                        # built-in synthetic persons
    mmga train --recipe bot --data market1501 --root DIR --masks DIR --out runs/market
    mmga train --resume --out runs/market                  # go on after an interruption
    mmga train --data market1501 --also msmt17 --test dukemtmc viper  # across data sets
    torchrun --nproc-per-node 8 -m mmga.train -- --recipe bot --data msmt17  # one run on eight GPUs

Values come from the recipe, then from --config FILE.yaml, then from flags; the defaults shown are
those of --recipe or --config, if given. A name in brackets is the data set that an option belongs
to. Marks say where a default comes from: [PAPER] the paper or notes on it, [AUTHOR] the first
author's public code, [TRICKS] "Bag of Tricks" (Luo et al., CVPRW 2019), [OURS] this project.
"""

import contextlib
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmga.common import cli
from mmga.common.errors import UserError
from mmga.config import Config, check, load_config, recipe_config, to_yaml


@dataclass(frozen=True, slots=True)
class Options:
    """Train MMGA."""

    out: Path = Path("runs/train")
    """Folder of the run."""
    config: Path | None = None
    """YAML file with sections data, model, loss, optimizer, batch and run."""
    resume: bool = False
    """Go on from the last checkpoint of --out, with its configuration."""
    print_config: bool = False
    """Print the whole configuration as YAML and leave."""
    settings: Config = field(default_factory=Config)


def _flag(words: list[str], name: str) -> str | None:
    """Return the value that follows `name` among `words`, before they are parsed."""
    for word, following in zip(words, [*words[1:], None], strict=True):
        if word == name:
            return following
        if word.startswith(f"{name}="):
            return word.split("=", 1)[1]
    return None


def starting_point(words: list[str]) -> Options:
    """Return the options that flags change: of the run to resume, a YAML file or a recipe."""
    out, config = _flag(words, "--out"), _flag(words, "--config")
    recipe = _flag(words, "--recipe")
    if "--resume" in words:
        if config is not None or recipe is not None:
            raise UserError(
                "--resume takes the run's own configuration; leave out --config and --recipe"
            )
        saved = Path(out or Options().out) / "config.yaml"
        if not saved.is_file():
            raise UserError(f"--resume: there is no run in {saved.parent}; train without it")
        return Options(settings=load_config(saved))
    if config is not None:
        base = recipe_config(recipe) if recipe is not None else None
        return Options(settings=load_config(config, base))
    real = _flag(words, "--data") not in (None, "synthetic")
    return Options(settings=recipe_config(recipe or ("mgn" if real else "synthetic")))


def body(options: Options) -> int:
    """Train, evaluate, and print the folder of the run."""
    if options.print_config:
        print(to_yaml(options.settings), end="")
        return 0
    check(options.settings)
    from mmga.common import memory
    from mmga.common.distributed import environment
    from mmga.common.progress import bar
    from mmga.training import trainer

    memory.keep_freed()
    leads = environment()[0] == 0
    try:
        with bar() if leads else contextlib.nullcontext() as progress:
            result = trainer.train(
                options.settings, options.out, resume=options.resume, progress=progress, tell=_note
            )
    except trainer.Stopped as stopped:
        if leads:
            print(
                f"mmga train: stopped and saved; go on with: "
                f"python -m mmga.train --resume --out {options.out}",
                file=sys.stderr,
            )
        return stopped.code
    if not leads:
        return 0
    speed = f" at {result.images_per_second:.0f} images/s" if result.images_per_second else ""
    print(f"trained {result.steps} steps{speed}; everything is in {result.folder}")
    print(_figures(result.metrics, options.settings))
    if options.settings.optimizer.ema and result.metrics:
        print(f"of the weights' moving average, decay {options.settings.optimizer.ema:g}")
    print("next:")
    for command in _next(options.out, tested=bool(result.metrics)):
        print(f"  {command}")
    return 0


def _note(sentence: str) -> None:
    print(f"note: {sentence}", file=sys.stderr)


_COLUMNS = {
    "mAP": "mAP", "mINP": "mINP", "rank1": "rank-1", "rank5": "rank-5", "rank10": "rank-10",
}  # fmt: skip


def _figures(metrics: dict[str, Any], config: Config) -> str:
    """Return the figures of a test as `mmga eval` shows them, one line for each data set."""
    if not metrics:
        return "there is no test split: nothing was evaluated"
    rows = metrics.get("sets") or {(config.data.test or (config.data.data,))[0]: metrics}
    if len(rows) > 1:
        rows = {**rows, "mean": metrics}
    lines = [f"{'tested on':<16}" + "".join(f"{label:>8}" for label in _COLUMNS.values())]
    for name, row in rows.items():
        values = [row.get(one) for one in _COLUMNS]
        cells = "".join(f"{'-' if value is None else f'{value:.2%}':>8}" for value in values)
        lines.append(f"{name:<16}{cells}")
    protocols = {
        f"protocol {row['setting']['protocol']}, cosine": None
        for row in rows.values()
        if "protocol" in row.get("setting", {})
    }
    return "\n".join([*lines, *protocols])


def _next(folder: Path, *, tested: bool) -> list[str]:
    """Return commands that go on from a trained run."""
    lines = [f"python -m mmga.extract --run {folder} --images DIR --out gallery.npz"]
    if tested:
        lines = [
            f"python -m mmga.eval --run {folder} --rerank",
            f"python -m mmga.visualize --run {folder}",
            *lines,
        ]
    return lines


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    cli.run("train", Options, body, argv, default=starting_point, shared=True)


if __name__ == "__main__":
    main()
