"""The synthetic data set: image sets held in memory and the function that makes them."""

import dataclasses
from collections.abc import Sequence

import torch

from mmga.common.progress import Progress
from mmga.data.dataset import DataSet, ImageSet, ImageTensors
from mmga.data.masks import PartMask
from mmga.data.synthetic.world import Picture, Shot, World, WorldOptions, require


class SyntheticImages(ImageTensors):
    """Pictures of a world, rendered once into memory.

    Attributes:
        labels: label maps, uint8 [N, H, W].
        world: renders them.
        shots: person, camera and number of each picture.

    Args:
        name: first part of the paths, which are such as `train/0001_c2_003.png`.
        world: the world.
        shots: person, camera and number of each picture.
        first_pid: identity of person 0.
        progress: told how many are rendered.
    """

    def __init__(
        self,
        name: str,
        world: World,
        shots: Sequence[Shot],
        first_pid: int,
        progress: Progress | None = None,
    ) -> None:
        self.world, self.shots = world, shots
        pids = [first_pid + shot.person for shot in shots]
        camids = [1 + shot.camera for shot in shots]
        paths = [
            f"{name}/{pid:04d}_c{camid}_{shot.frame:03d}.png"
            for pid, camid, shot in zip(pids, camids, shots, strict=True)
        ]
        count = len(shots)
        images = torch.empty((count, 3, *world.size), dtype=torch.uint8, device="cpu")
        self.labels = torch.empty((count, *world.size), dtype=torch.uint8, device="cpu")
        for i, shot in enumerate(shots):
            picture = world.picture(shot)
            images[i] = torch.from_numpy(picture.image)
            self.labels[i] = torch.from_numpy(picture.labels)
            if progress is not None and (i % 32 == 31 or i + 1 == count):
                progress(f"drawing {name}", i + 1, count)
        masks = [PartMask(labels) for labels in self.labels]
        super().__init__(list(images), pids, camids, paths, masks)

    def picture(self, index: int, with_person: bool = True) -> Picture:
        """Render image `index` again with its ground truth, or its scene alone."""
        return self.world.picture(self.shots[index], with_person)


@dataclasses.dataclass(frozen=True, slots=True)
class SyntheticData(DataSet):
    """A data set with, on request, a validation pair.

    Attributes:
        val: query and gallery of the validation identities, None unless asked for.
    """

    val: tuple[ImageSet, ImageSet] | None = None


def synthetic(
    seed: int = 0,
    num_train: int = 48,
    num_val: int = 0,
    num_test: int = 40,
    size: tuple[int, int] = (128, 64),
    images_per_camera: int = 6,
    cameras: int = 6,
    rho: float = 0.5,
    challenge: str = "mixed",
    severity: int = 1,
    train_challenge: str = "mixed",
    train_severity: int = 1,
    share: int = 5,
    schemes: int = 0,
    population: str = "varied",
    progress: Progress | None = None,
) -> SyntheticData:
    """Make the built-in synthetic persons.

    Each identity is seen by two to four of the cameras, `images_per_camera` times by each.
    Training, validation and test have persons, clothes and places of their own and the cameras in
    common. A test person's first picture in each camera is a query, the others are the gallery.

    Args:
        seed: of persons, places and pictures; the same arguments make the same pictures, bit for
            bit on one machine.
        num_train: training identities; 0 renders no training set.
        num_val: validation identities; 0 for none.
        num_test: test identities; 0 renders no test set.
        size: (H, W) of the pictures.
        images_per_camera: pictures of an identity in each camera that sees it.
        cameras: number of cameras.
        rho: probability with which a picture shows its tracklet's backdrop.
        challenge: setting of validation and test: `clean`, `mixed`, or one of `pose`,
            `misalignment`, `occlusion`, `clutter`.
        severity: of that, 1 to 3.
        train_challenge: setting of training.
        train_severity: of that.
        share: least number of persons who wear each top, and each bottom; more is harder.
        schemes: number of colour schemes of a split's clothes; fewer is harder. 0 for as many
            as the population has.
        population: `varied`, or `uniform`, whose colours tell little; see
            `mmga.data.synthetic.population`.
        progress: told how many pictures are rendered.

    Raises:
        UserError: an argument is out of range.
    """
    for name, count in (("num_train", num_train), ("num_val", num_val), ("num_test", num_test)):
        require(count >= 0, name, "0 or more", count)
    require(images_per_camera >= 2, "images_per_camera", "2 or more", images_per_camera)
    hard = WorldOptions(cameras, size, rho, challenge, severity, share, schemes, population)
    mild = dataclasses.replace(hard, challenge=train_challenge, severity=train_severity)

    def pair(
        split: str, prefix: str, persons: int, first_pid: int
    ) -> tuple[SyntheticImages, SyntheticImages]:
        world = World(seed, split, persons, hard)
        shots = _shots(world, images_per_camera)
        first = [shot for shot in shots if shot.frame == 0]
        others = [shot for shot in shots if shot.frame > 0]
        return (
            SyntheticImages(f"{prefix}query", world, first, first_pid, progress),
            SyntheticImages(f"{prefix}gallery", world, others, first_pid, progress),
        )

    world = World(seed, "train", num_train, mild)
    train = SyntheticImages("train", world, _shots(world, images_per_camera), 1, progress)
    val = pair("val", "val_", num_val, 1 + num_train) if num_val else None
    query, gallery = pair("test", "", num_test, 1 + num_train + num_val)
    return SyntheticData("synthetic", train, query, gallery, val)


def _shots(world: World, images_per_camera: int) -> list[Shot]:
    return [
        Shot(person, camera, frame)
        for person in range(len(world.persons))
        for camera in world.seen_by(person)
        for frame in range(images_per_camera)
    ]
