"""`python -m mmga.demo`: every stage on synthetic persons, from training to pictures.

    mmga demo
    mmga demo --out runs/other --seed 1

Train, extract, evaluate with and without re-ranking, draw; then print the files. Its metrics are of
generated persons, not of any real data set.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path

from mmga.common import cli
from mmga.common.errors import UserError
from mmga.config import merged, recipe_config

SMOKE = {
    "data": {"persons": 12, "test_persons": 8},
    "batch": {"p": 6},
    "run": {"epochs": 1, "log_every": 2},
}
"""With MMGA_SMOKE=1 every stage runs, at a size that tests only that it runs."""


@dataclass(frozen=True, slots=True)
class Options:
    """Train on synthetic persons, evaluate and draw."""

    out: Path = Path("runs/demo")
    """Folder of the run; an earlier demo there is gone on with."""
    seed: int = 0
    """Seed of initialisation, sampling and augmentation."""


def body(options: Options) -> int:
    """Run every stage and print the results."""
    from mmga import extract, train, visualize
    from mmga.eval import main as evaluate

    started = time.monotonic()
    settings = merged(recipe_config("synthetic"), {"run": {"seed": options.seed}}, where="demo")
    if os.environ.get("MMGA_SMOKE") == "1":
        settings = merged(settings, SMOKE, where="demo")
    folder = options.out
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {folder} is a file; name a folder")
    resume = (folder / "last.safetensors").is_file()
    print(f"1/4 training on synthetic persons: {folder}", flush=True)
    train.body(train.Options(out=folder, resume=resume, settings=settings))
    print("2/4 extracting features", flush=True)
    extract.body(extract.Options(run=folder))
    print("3/4 evaluating, plain and re-ranked", flush=True)
    query, gallery = str(folder / "query.npz"), str(folder / "gallery.npz")
    evaluate(
        ["--query", query, "--gallery", gallery, "--rerank", "--json", str(folder / "eval.json")]
    )
    print("4/4 drawing", flush=True)
    visualize.body(visualize.Options(run=folder, gallery=(str(folder / "gallery.npz"),)))
    _print_attention(folder)
    print(f"done in {time.monotonic() - started:.0f} s; look at:")
    for name, what in {
        "attention.png": "attention maps beside true masks",
        "ranked.png": "whom the network finds: right ones ticked, wrong ones crossed",
        "eval.json": "all metrics",
        "metrics.jsonl": "losses and metrics by step; tensorboard --logdir shows the same",
        "config.yaml": "everything that was set",
    }.items():
        print(f"  {folder / name}: {what}")
    return 0


_FIT = {"rmse": 6, "mean_rmse": 10, "iou": 6, "mean_iou": 10}
"""Columns of `_print_attention` and their widths."""


def _print_attention(folder: Path) -> None:
    """Print how the attention maps fit held-out masks, from the run's last evaluation."""
    import json

    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    fits = [line["attention"] for line in lines if line["kind"] == "eval"][-1]
    print("attention against held-out masks (RMSE, lower is better; IoU, higher is better):")
    print(f"  {'map':<8} {'RMSE':>6} {'mean mask':>10} {'IoU':>6} {'mean mask':>10}")
    for name, fit in fits.items():
        cells = {key: "-" if fit[key] is None else f"{fit[key]:.3f}" for key in _FIT}
        print(f"  {name:<8} " + " ".join(f"{cells[key]:>{wide}}" for key, wide in _FIT.items()))


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    cli.run("demo", Options, body, argv)


if __name__ == "__main__":
    main()
