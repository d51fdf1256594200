"""`python -m mmga.data.synthetic`: audit the synthetic persons, or draw a sheet of them.

python -m mmga.data.synthetic --audit
python -m mmga.data.synthetic --sheet persons.png --challenge occlusion --severity 3
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from mmga.common import cli
from mmga.common.options import Flag


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """Audit the built-in synthetic persons, or draw a sheet of them."""

    audit: bool = False
    """Print what background, camera, silhouette and colours alone retrieve; 1 if a limit breaks."""
    sheet: Path | None = None
    """Write a PNG of training pictures and of their masks."""
    num_train: Annotated[int, Flag(name="persons", former=("num-train",))] = 60
    """Training identities."""
    num_test: Annotated[int, Flag(name="test-persons", former=("num-test",))] = 150
    """Test identities."""
    images_per_camera: int = 4
    """Pictures of an identity in each camera that sees it."""
    rho: float = 0.5
    """Probability, 0 to 1, with which a picture shows its tracklet's backdrop."""
    challenge: Annotated[str, Flag(value="NAME")] = "mixed"
    """Difficulty of the images: mixed, clean, pose, misalignment, occlusion or clutter."""
    severity: int = 1
    """Severity of the difficulty, 1 to 3."""
    seed: Annotated[int, Flag(name="data-seed", former=("seed",))] = 0
    """Seed of the generated images."""


def body(options: Options) -> int:
    """Run the audit, draw the sheet, or both; return 1 if the audit fails."""
    from mmga.common.errors import UserError
    from mmga.common.progress import bar
    from mmga.data.synthetic.audit import audit, table
    from mmga.data.synthetic.dataset import synthetic
    from mmga.data.synthetic.sheet import write_sheet

    if not options.audit and options.sheet is None:
        raise UserError("nothing to do: give --audit, --sheet FILE or both")
    with bar() as progress:
        data = synthetic(
            seed=options.seed,
            num_train=options.num_train,
            num_test=options.num_test if options.audit else 0,
            images_per_camera=options.images_per_camera,
            rho=options.rho,
            challenge=options.challenge,
            severity=options.severity,
            train_challenge=options.challenge,
            train_severity=options.severity,
            progress=progress,
        )
        figures = audit(data, progress) if options.audit else []
    if options.sheet is not None:
        write_sheet(options.sheet, data.train)
        print(f"sheet: {options.sheet}")
    if figures:
        print(table(figures))
    return 0 if all(figure.passed for figure in figures) else 1


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    cli.run("data.synthetic", Options, body, argv)


if __name__ == "__main__":
    main()
