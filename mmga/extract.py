"""`python -m mmga.extract`: features of a trained run's test split, as files for mmga.eval.

python -m mmga.extract --run runs/x
python -m mmga.extract --run runs/x --data market1501 --root DIR --out features/
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mmga import cli
from mmga.config import Config, DataName, check

if TYPE_CHECKING:
    from mmga.progress import Progress
    from mmga.retrieval.features import Features


@dataclass(frozen=True, slots=True)
class Options:
    """Write the features of queries and gallery."""

    run: Path
    """Folder of a run, or one of its checkpoints."""
    out: Path | None = None
    """Folder for query.npz and gallery.npz; the run's own folder by default."""
    data: DataName | None = None
    """Another data set than the run was trained on."""
    root: Path | None = None
    """Folder of that data set."""
    split: int | None = None
    """Number of its split."""
    splits_file: Path | None = None
    """File of fixed splits."""
    workers: int = 0
    """Processes that load images."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""


def with_data(
    config: Config,
    data: DataName | None,
    root: Path | None,
    split: int | None = None,
    splits_file: Path | None = None,
    workers: int = 0,
) -> Config:
    """Return a run's configuration with another data set in its place, where one is named."""
    changes: dict[str, object] = {"workers": workers}
    given = {"data": data, "root": root, "split": split, "splits_file": splits_file}
    changes |= {name: value for name, value in given.items() if value is not None}
    if data is not None and data != config.data.data:
        # Masks and root belong to the set that the run was trained on.
        changes = {"masks": None, "root": None, "splits_file": None, **changes}
    changed = dataclasses.replace(config, data=dataclasses.replace(config.data, **changes))  # type: ignore[arg-type]
    check(changed)
    return changed


def features_of_run(
    options: Options, progress: "Progress | None" = None
) -> tuple["Features", "Features"]:
    """Return the features of queries and gallery of a run."""
    from mmga.extraction import extract, load_data, open_run

    run = open_run(options.run, options.device)
    config = with_data(
        run.config,
        options.data,
        options.root,
        options.split,
        options.splits_file,
        options.workers,
    )
    data = load_data(config, progress, training=False)
    query = extract(run.network, data.query, config, phase="query", progress=progress)
    return query, extract(run.network, data.gallery, config, phase="gallery", progress=progress)


def body(options: Options) -> int:
    """Extract and write."""
    from mmga.progress import bar

    with bar() as progress:
        query, gallery = features_of_run(options, progress)
    folder = options.out
    if folder is None:
        folder = options.run if options.run.is_dir() else options.run.parent
    for name, features in (("query", query), ("gallery", gallery)):
        features.save(folder / f"{name}.npz")
    print(
        f"{len(query)} queries and {len(gallery)} gallery items in {folder}; next: "
        f"python -m mmga.eval --query {folder}/query.npz --gallery {folder}/gallery.npz"
    )
    return 0


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    cli.run("extract", Options, body, argv)


if __name__ == "__main__":
    main()
