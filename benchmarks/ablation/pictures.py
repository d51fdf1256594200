"""The pictures of the experiment: rendered once, stored as uint8 arrays, read by every run."""

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import torch

import mmga.data.synthetic
from benchmarks.ablation.plan import TESTS, Plan
from mmga.common.errors import UserError
from mmga.common.files import atomic_path
from mmga.common.progress import Progress
from mmga.data.dataset import DataSet, ImageSet, ImageTensors, Subset
from mmga.data.masks import PartMask
from mmga.data.synthetic import SyntheticImages, synthetic

Pair = tuple[ImageSet, ImageSet]
"""Queries and gallery."""


class Pictures:
    """Training, validation and test sets of a plan, in a folder.

    The folder's name is a digest of the plan and of the renderer's sources: pictures of another
    plan or renderer are never taken for these.

    Args:
        root: folder that holds the pictures of all plans.
        plan: of the experiment.
        progress: told how many pictures are rendered.
    """

    def __init__(self, root: Path, plan: Plan, progress: Progress | None = None) -> None:
        self.plan, self.progress = plan, progress
        self.digest = digest(plan)
        self.folder = root / f"pictures-{self.digest[:12]}"

    def train(self) -> ImageSet:
        """Return the training images, with masks."""
        plan = self.plan
        return self._read("train", {"num_train": plan.train_persons}, plan.train_images)[0]

    def validation(self) -> Pair:
        """Return queries and gallery of the validation identities: the training's mild mixture."""
        plan = self.plan
        return self._pair("validation", {"num_val": plan.validation_persons})

    def test(self, name: str) -> Pair:
        """Return queries and gallery of a test of TESTS."""
        challenge, severity = TESTS[name]
        options = {"num_test": self.plan.test_persons, "severity": severity}
        return self._pair(name, {**options, "challenge": challenge})

    def _pair(self, name: str, options: dict[str, object]) -> Pair:
        whole, queries = self._read(name, options, self.plan.test_images)
        return Subset(whole, np.flatnonzero(queries)), Subset(whole, np.flatnonzero(~queries))

    def data_set(self, train: ImageSet) -> DataSet:
        """Return the data set of a run: its training images and the clean test."""
        return DataSet("synthetic", train, *self.test("clean"))

    def prepare(self) -> None:
        """Render all sets that are missing."""
        self.train()
        self.validation()
        for name in TESTS:
            self.test(name)

    def _read(
        self, name: str, options: dict[str, object], images: int
    ) -> tuple[ImageTensors, np.ndarray]:
        """Return the images of a set and whether each is a query; render them where missing."""
        file = self.folder / f"{name}.npz"
        if not file.is_file():
            self._render(file, options, images)
        try:
            with np.load(file, allow_pickle=False) as stored:
                arrays = {key: stored[key] for key in stored.files}
        except (OSError, ValueError, EOFError) as error:
            raise UserError(
                f"{file} cannot be read ({error}); remove it, it will be rendered anew"
            ) from error
        masks = [PartMask(labels) for labels in torch.from_numpy(arrays["labels"])]
        pictures = torch.from_numpy(arrays["images"])
        return (
            ImageTensors(pictures, arrays["pids"], arrays["camids"], masks=masks),  # type: ignore[arg-type]
            arrays["queries"],
        )

    def _render(self, file: Path, options: dict[str, object], images: int) -> None:
        plan = self.plan
        sizes = {"num_train": 0, "num_val": 0, "num_test": 0} | options
        data = synthetic(
            plan.seed,
            size=plan.size,
            images_per_camera=images,
            population=plan.population,
            progress=self.progress,
            **sizes,  # type: ignore[arg-type]
        )
        sides: Pair | tuple[ImageSet] = data.val or (data.query, data.gallery)
        if sizes["num_train"]:
            sides = (data.train,)
        parts = []
        for side in sides:
            assert isinstance(side, SyntheticImages)
            parts.append(
                {
                    "images": torch.stack(list(side.images)).numpy(),
                    "labels": side.labels.numpy(),
                    "queries": np.full(len(side), side is not sides[-1]),
                    "pids": side.pids,
                    "camids": side.camids,
                }
            )
        arrays = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        with atomic_path(file) as temporary, temporary.open("wb") as out:
            np.savez(out, **arrays)  # type: ignore[arg-type]


def digest(plan: Plan) -> str:
    """Return a digest that identifies a plan's pictures: of sizes and the renderer's sources."""
    found = hashlib.sha256()
    sizes = dataclasses.asdict(plan)
    for name in ("p", "k", "pad", "epochs", "least_steps", "lr", "log_every"):
        del sizes[name]
    found.update(repr(sorted(sizes.items())).encode())
    folder = Path(str(mmga.data.synthetic.__file__)).parent
    for source in sorted(folder.glob("*.py")):
        if source.stem not in ("__main__", "audit", "sheet"):
            found.update(source.read_bytes())
    return found.hexdigest()
