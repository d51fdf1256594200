"""Set up a training run: device, data sets, and the state that a checkpoint holds."""

import contextlib
import dataclasses
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmga.common.distributed import Group, own_device
from mmga.common.errors import UserError
from mmga.common.progress import Progress
from mmga.config import Config, as_dict
from mmga.data.build import load_mixture
from mmga.data.dataset import DataSet, ImageSet, Subset, count_masks
from mmga.data.holdout import hold_out
from mmga.data.loader import TrainLoader
from mmga.data.masks import LOSSLESS, mask_names
from mmga.data.preflight import check_files
from mmga.models import MMGA
from mmga.models import checkpoint as checkpoints
from mmga.models.backbone import with_synced_norms
from mmga.models.loading import build_network
from mmga.retrieval.features import JUNK
from mmga.retrieval.protocols.protocol import Protocol, protocol_named
from mmga.retrieval.protocols.selection import Labels, select
from mmga.training.ema import WeightAverage
from mmga.training.step import synced

logger = logging.getLogger(__name__)


def prepare(config: Config) -> torch.device:
    """Set threads and determinism, and return the device: under torchrun, this process' own.

    Raises:
        UserError: there is no such device, or one is named for several processes.
    """
    run = config.run
    if run.threads:
        torch.set_num_threads(run.threads)
    if run.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
    torch.use_deterministic_algorithms(run.deterministic)
    return own_device(run.device)


@dataclass(frozen=True, slots=True)
class Sets:
    """Image sets of a run.

    Attributes:
        train: training images.
        validation: query and gallery of held-out identities, None where none are held out.
        tests: data sets to test on, by name.
    """

    train: ImageSet
    validation: dict[str, ImageSet] | None
    tests: dict[str, DataSet]

    @classmethod
    def load(cls, config: Config, data: DataSet | None, progress: Progress | None) -> "Sets":
        """Return the sets of a configuration, read unless the caller has them already.

        Raises:
            UserError: a set cannot be read, masks or identities are too few, or no query of a test
                split can have a match.
        """
        rules = _rules(config)
        if data is None:
            images, tests = load_mixture(config, progress)
        else:
            images, tests = data.train, {data.name: data} if data.has_test else {}
        _check_masks(config, images)
        tests = {name: one for name, one in tests.items() if len(one.query) or len(one.gallery)}
        for name, one in tests.items():
            _check_tests(name, one, rules or protocol_named(one.protocol))
        if not config.data.val_ids:
            return cls(images, None, tests)
        cameras = rules is None or rules.needs_cameras
        train, query, gallery = hold_out(images, config.data.val_ids, cameras=cameras)
        return cls(train, {"query": query, "gallery": gallery}, tests)

    def check_files(self, config: Config, progress: Progress | None) -> None:
        """Raise a `UserError` where a file that is read later is not there, or is no image."""
        attention = config.model.attention != "none"
        for name, sides in {"training": {"training": self.train}, **self._sides()}.items():
            check_files(
                sides,
                skip_broken=config.data.skip_broken,
                masks=sides[f"{name} query"] if attention and name != "training" else None,
                progress=progress,
            )

    def _sides(self) -> dict[str, dict[str, ImageSet]]:
        return {
            name: {f"{name} query": one.query, f"{name} gallery": one.gallery}
            for name, one in self.tests.items()
        }


def _rules(config: Config) -> Protocol | None:
    """Return the protocol that a configuration names, None where it leaves that to the data.

    Raises:
        UserError: there is none of that name, or it needs more than queries and a gallery.
    """
    name = config.run.protocol
    if name is None:
        return None
    try:
        rules = protocol_named(name)
    except UserError as error:
        raise UserError(f"--{error}") from error
    if rules.splits or rules.pools or rules.own_image == "index":
        raise UserError(
            f"--protocol {name} is no protocol of a split's queries and gallery, which training "
            "evaluates; evaluate by it with mmga eval --run"
        )
    return rules


def _check_tests(name: str, data: DataSet, rules: Protocol) -> None:
    """Raise a `UserError` where no query of a test split can have a match."""
    query, gallery = data.query, data.gallery
    for side, images in (("query", query), ("gallery", gallery)):
        if not len(images):
            raise UserError(
                f"the test split of {name} has no {side} image; give it both sides, or none"
            )
    if rules.splits or rules.pools:
        return
    paths = np.array(query.paths), np.array(gallery.paths)
    labels = Labels(query.pids, gallery.pids, query.camids, gallery.camids, *paths)
    try:
        select(rules, labels)
    except UserError as error:
        shared = len(np.setdiff1d(np.intersect1d(query.pids, gallery.pids), [JUNK]))
        cameras = " and ".join(
            str(sorted(set(side.camids.tolist()))[:5]) for side in (query, gallery)
        )
        ways = "give the gallery other images of each query's identity"
        if rules.camera != "none":
            ways = (
                "give the gallery images of each query's identity by another camera, or choose "
                "--protocol no-camera"
            )
        raise UserError(
            f"the test split of {name} cannot be evaluated: no query has a match in the gallery "
            f"({shared} identities are in both, cameras {cameras}); {ways}"
        ) from error


def _check_masks(config: Config, images: ImageSet) -> None:
    """Count the masks of the training set; refuse a folder that covers less than half of it.

    Raises:
        UserError: masks were named, fewer than half of the images have one, and nothing allows it.
    """
    wanted = config.loss.mask_weight and config.model.attention != "none"
    if {config.data.data, *config.data.also} == {"synthetic"} or not wanted:
        return
    covered = count_masks(images)
    if config.data.masks is None:  # a table may name masks itself
        if not covered:
            logger.warning("no --masks: attention is trained without guidance")
        return
    logger.info("%d of %d training images have a mask", covered, len(images))
    if covered < len(images) / 2 and not config.data.allow_missing_masks:
        raise UserError(
            f"--masks {config.data.masks}: {covered} of {len(images)} training images have a mask; "
            f"check the folder and the file names ({_looked_for(config, images)}), or add "
            "--allow-missing-masks"
        )


def _looked_for(config: Config, images: ImageSet) -> str:
    """Return what was looked for as the mask of the first image without one."""
    path = next(path for i, path in enumerate(images.paths) if not count_masks(Subset(images, [i])))
    names = mask_names(path)
    masks = config.data.masks
    alone = masks is not None and masks.is_dir() and not config.data.also
    places = [f"{masks}/{name}" if alone else str(name) for name in names[:2]]
    return f"of {path} were looked for {' and '.join(places)}, with {' or '.join(LOSSLESS)}"


@dataclass(frozen=True, slots=True)
class State:
    """State of a run that changes from step to step, as checkpoints hold it.

    Attributes:
        config: the run's configuration.
        network: on its device.
        num_classes: training identities.
        training_set: description and digest of the training images.
        optimizer: over the network's parameters.
        average: moving average of the weights, or None.
    """

    config: Config
    network: MMGA
    num_classes: int
    training_set: str
    optimizer: torch.optim.Optimizer
    average: WeightAverage | None

    @classmethod
    def start(
        cls,
        config: Config,
        loader: TrainLoader,
        device: torch.device,
        group: Group,
        *,
        resume: bool = False,
    ) -> "State":
        """Return the state before the first step; pre-trained weights are not read to `resume`.

        Raises:
            UserError: the network cannot be built, or be synced over processes.
        """
        model, num_classes = config.model, len(loader.sampler.classes)
        if resume:  # the checkpoint holds every weight
            model = dataclasses.replace(model, weights="none", backbone_weights=None)
        with group.together():
            sync = synced(config, device, group.world)
        # The first process of each machine goes ahead: weights are downloaded once.
        for turn in (True, False):
            with group.together():
                if (group.local_rank == 0) == turn:
                    torch.manual_seed(config.run.seed)
                    network = build_network(model, num_classes).to(device)
        if sync:
            network = with_synced_norms(network)
        elif group.world > 1 and group.leads and config.run.norm == "auto":
            logger.info("batch normalisation is local to each process")
        if config.run.channels_last:
            network.to(memory_format=torch.channels_last)
        settings = config.optimizer
        optimizer = torch.optim.Adam(
            parameter_groups(network, settings.attention_lr),
            lr=settings.lr,
            betas=(0.9, settings.beta2),
            weight_decay=settings.weight_decay,
            amsgrad=settings.amsgrad,
        )
        average = WeightAverage(network, settings.ema) if settings.ema else None
        return cls(config, network, num_classes, loader.described(), optimizer, average)

    def restore(self, checkpoint: checkpoints.Checkpoint, last: Path) -> checkpoints.Position:
        """Load a checkpoint, read from the file `last`, and return its position.

        Raises:
            UserError: it belongs to another network or other images, or its optimizer's state
                cannot be read.
        """
        if checkpoint.training_set not in ("", self.training_set):
            raise UserError(
                f"--resume: {last.parent} was trained on other images: "
                f"{checkpoint.training_set}, now {self.training_set}; name the same data, or "
                "another --out without --resume"
            )
        checkpoints.load_weights(self.network, checkpoint, last)
        state = checkpoints.load_optimizer_state(last, checkpoint)
        settings = [
            {name: group[name] for name in ("factor", "betas", "weight_decay")}
            for group in self.optimizer.param_groups
        ]
        try:
            self.optimizer.load_state_dict(state)
        except (KeyError, ValueError, TypeError) as error:
            raise UserError(
                f"optimizer state {checkpoint.optimizer_file} beside {last} belongs to another "
                f"network ({error}); restore the file or train anew"
            ) from error
        for group, values in zip(self.optimizer.param_groups, settings, strict=True):
            group.update(values)  # as configured now, not as saved
        if self.average is not None:
            if checkpoint.average is None:
                raise UserError(
                    f"checkpoint {last} holds no moving average of the weights, which --ema asks "
                    "for; resume without --ema"
                )
            self.average.load(checkpoint.average)
        return checkpoint.position

    def save(
        self, folder: Path, position: checkpoints.Position, metrics: dict[str, float] | None = None
    ) -> None:
        """Write last.safetensors, from which the run can be resumed.

        With metrics of a validation, write best.safetensors instead: the very weights that were
        validated, for inference alone.
        """
        best = metrics is not None
        contents = checkpoints.Checkpoint(
            self.network.state_dict(),
            position,
            self.num_classes,
            as_dict(self.config),
            average=None if best or self.average is None else self.average.values,
            metrics=metrics or {},
            training_set=self.training_set,
        )
        file = folder / ("best.safetensors" if best else "last.safetensors")
        checkpoints.save_checkpoint(file, contents, None if best else self.optimizer.state_dict())

    def evaluated(self) -> contextlib.AbstractContextManager[Any]:
        """Return a context in which the network has the weights that are evaluated."""
        if self.average is None:
            return contextlib.nullcontext()
        return self.average.inside(self.network)


def parameter_groups(network: MMGA, attention_factor: float) -> list[dict[str, Any]]:
    """Return the optimizer's groups: the attention modules' rate is multiplied by a factor."""
    inside = {
        parameter
        for module in (network.attention1, network.attention2)
        if module is not None
        for parameter in module.parameters()
    }
    groups = [
        {"params": [p for p in network.parameters() if p not in inside], "factor": 1.0},
        {"params": [p for p in network.parameters() if p in inside], "factor": attention_factor},
    ]
    return [group for group in groups if group["params"]]
