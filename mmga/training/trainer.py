"""One training run: a visible loop that can be stopped anywhere and goes on as if it had not been.

Every source of chance is a function of (seed, epoch, index) or of (seed, step), so that a resumed
run takes the same steps, bit for bit on the CPU, as one that ran through.
"""

import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mmga.common.device import resolve_device
from mmga.common.distributed import Group, environment, join
from mmga.common.errors import UserError
from mmga.common.memory import parse
from mmga.common.progress import Progress
from mmga.config import Config, as_dict, check, save_config
from mmga.data.build import load_mixture
from mmga.data.dataset import DataSet, ImageSet, count_masks
from mmga.data.holdout import hold_out
from mmga.data.loader import Batch, Loading, TrainLoader
from mmga.data.sampler import SAMPLERS
from mmga.data.transforms import TrainTransform
from mmga.models import MMGA
from mmga.models import checkpoint as checkpoints
from mmga.models.loading import build_network
from mmga.training.attention_metrics import mean_mask
from mmga.training.ema import WeightAverage
from mmga.training.lr_schedule import learning_rate
from mmga.training.run_log import RunLog
from mmga.training.step import NotFinite, Step, freeze_statistics, synced, wrap
from mmga.training.validation import score, score_all

logger = logging.getLogger(__name__)

Observer = Callable[[MMGA, checkpoints.Progress], None]
"""Looks at a network between two epochs and leaves it as it was."""

GRADIENT_EVERY = 10
"""Lines of metrics.jsonl between two that hold the gradients of the attention maps."""


class Stopped(Exception):
    """SIGTERM arrived; the run was saved and can be resumed."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a finished run leaves behind.

    Attributes:
        folder: the run's folder.
        steps: optimizer steps taken in all.
        images_per_second: training speed of all processes, loading included; 0 without a step.
        figures: of the last evaluation: mAP, rank1, ... and the fit of the attention maps; empty
            in all processes but the first.
    """

    folder: Path
    steps: int
    images_per_second: float
    figures: dict[str, Any]


def train(
    config: Config,
    folder: Path,
    *,
    resume: bool = False,
    data: DataSet | None = None,
    progress: Progress | None = None,
    observe: Observer | None = None,
) -> Result:
    """Train as `config` says and leave everything in `folder`.

    The folder then holds config.yaml, metrics.jsonl, tensorboard/, last.safetensors, the
    optimizer's state beside it and, where identities are held out, best.safetensors. Under torchrun
    the processes share every batch, and the first one writes.

    Args:
        config: the whole configuration.
        folder: the run's folder.
        resume: go on from the folder's last checkpoint.
        data: the data set, if the caller has it already.
        progress: called with ("train", steps done, steps in all) and by evaluations.
        observe: called by the first process with the network and where the run stands, after every
            epoch that leaves a checkpoint and once more when a run is resumed from one.

    Raises:
        UserError: the input is wrong, or the loss is no longer finite. Under torchrun one process
            raises it and the others a PeerError.
        Stopped: SIGTERM arrived; the checkpoint was written.
    """
    check(config)
    device = prepare(config)
    with join(device) as group:
        return _train(config, folder, resume, data, progress, observe, device, group)


def _train(
    config: Config,
    folder: Path,
    resume: bool,
    data: DataSet | None,
    progress: Progress | None,
    observe: Observer | None,
    device: torch.device,
    group: Group,
) -> Result:
    last = folder / "last.safetensors"
    with group.together():
        if resume and not last.is_file():
            raise UserError(f"--resume: there is no checkpoint {last}; train without it")
        if not resume and last.is_file():
            raise UserError(
                f"{folder} already holds a run; add --resume to go on with it, or name another "
                "--out"
            )
        if data is None:
            images, tests = load_mixture(config, progress)
        else:
            images, tests = data.train, {data.name: data}
        _check_masks(config, images)
        sets = _Sets.of(images, tests, config.data.val_ids)
        loader = _loader(config, sets.train, device, group)
        loader.steps(0)  # refuses a P that cannot be dealt to the processes
        sync = synced(config, device, group.world)
    # The first process of each machine goes ahead: weights are downloaded once.
    for turn in (True, False):
        with group.together():
            if (group.local_rank == 0) == turn:
                torch.manual_seed(config.run.seed)
                network = build_network(config.model, len(loader.sampler.classes)).to(device)
    if sync:
        network = torch.nn.SyncBatchNorm.convert_sync_batchnorm(network)
    elif group.world > 1 and group.leads and config.run.norm == "auto":
        logger.info("batch normalisation is local to each process")
    if config.run.channels_last:
        network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(
        parameter_groups(network, config.optimizer.attention_lr),
        lr=config.optimizer.lr,
        betas=(0.9, config.optimizer.beta2),
        weight_decay=config.optimizer.weight_decay,
        amsgrad=config.optimizer.amsgrad,
    )
    average = None
    if config.optimizer.ema:
        average = WeightAverage(network, config.optimizer.ema)
    position = checkpoints.Progress()
    with group.together():
        if resume:
            position = _restore(last, network, optimizer, average)
        log = RunLog(folder, position.step, writes=group.leads)
        if group.leads:
            save_config(config, folder / "config.yaml")
    prior = None
    if config.loss.guide == "mean":
        with group.together():
            prior = mean_mask(sets.train, config).to(device)
    forward = wrap(network, config, device, group)
    step = Step(forward, optimizer, config, group, sets.train.paths, prior)
    training = _Training(
        config,
        folder,
        network,
        optimizer,
        average,
        step,
        loader,
        sets,
        log,
        progress,
        observe,
        group,
    )
    try:
        with _sigterm() as stopped:
            return training.run(position, stopped)
    except NotFinite as error:
        log.write("stopped", error.step, {"reason": str(error), "paths": error.paths})
        raise
    finally:
        log.close()


@dataclass(frozen=True, slots=True)
class _Sets:
    """What is trained on, validated on (where identities are held out) and tested on."""

    train: ImageSet
    validation: dict[str, ImageSet] | None
    tests: dict[str, DataSet]

    @classmethod
    def of(cls, images: ImageSet, tests: dict[str, DataSet], val_ids: int) -> "_Sets":
        if not val_ids:
            return cls(images, None, tests)
        train, query, gallery = hold_out(images, val_ids)
        return cls(train, {"query": query, "gallery": gallery}, tests)


def _loader(config: Config, images: ImageSet, device: torch.device, group: Group) -> TrainLoader:
    batch = config.batch
    return TrainLoader(
        images,
        SAMPLERS[batch.sampler](images.pids, batch.p, batch.k, config.run.seed),
        TrainTransform(
            size=(config.data.height, config.data.width),
            interpolation=batch.interpolation,
            flip=batch.flip,
            pad=batch.pad,
            erasing=batch.erasing,
            erasing_fill=batch.erasing_fill,
            erase_mask=batch.erase_mask,
            new_background=batch.new_background,
        ),
        seed=config.run.seed,
        loading=Loading(config.data.workers, device, config.data.skip_broken),
        cache=parse(config.data.cache, "--cache") or 0,
        group=group,
    )


def _restore(
    last: Path,
    network: MMGA,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage | None,
) -> checkpoints.Progress:
    """Load a checkpoint into a run's parts and return where it stood."""
    checkpoint = checkpoints.load_checkpoint(last)
    checkpoints.load_weights(network, checkpoint, last)
    state = checkpoints.load_optimizer_state(last, checkpoint)
    try:
        optimizer.load_state_dict(state)
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(
            f"optimizer state {checkpoint.optimizer_file} beside {last} belongs to another network "
            f"({error}); restore the file or train anew"
        ) from error
    if average is not None:
        if checkpoint.average is None:
            raise UserError(
                f"checkpoint {last} holds no moving average of the weights, which --ema asks for; "
                "resume without --ema"
            )
        average.load(checkpoint.average)
    return checkpoint.progress


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
    _, world, local = environment()
    if world > 1 and run.device.startswith("cuda:"):
        raise UserError(f"--device {run.device} names one device for {world} processes; use cuda")
    device = resolve_device(run.device)
    return resolve_device(f"cuda:{local}") if world > 1 and device.type == "cuda" else device


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


@dataclass(slots=True)
class _Training:
    """What the steps of a run share."""

    config: Config
    folder: Path
    network: MMGA
    optimizer: torch.optim.Optimizer
    average: WeightAverage | None
    step: Step
    loader: TrainLoader
    sets: _Sets
    log: RunLog
    progress: Progress | None
    observe: Observer | None
    group: Group

    def run(self, position: checkpoints.Progress, stopped: Callable[[], bool]) -> Result:
        """Take the steps that are left."""
        run = self.config.run
        # Epochs may differ by a batch or two: good enough for a time left.
        steps = self.loader.steps(0) * run.epochs
        step, start = position.step, position.step_in_epoch
        images, seconds = 0, 0.0
        figures: dict[str, Any] = {}
        if position.epoch and not start:
            # Stopped between a checkpoint and the evaluation that was to follow it.
            self._show(position)
            figures = self._evaluate(position.epoch, step)
        for epoch in range(position.epoch, run.epochs):
            rate = learning_rate(self.config.optimizer, epoch, run.epochs)
            for group in self.optimizer.param_groups:
                group["lr"] = rate * group["factor"]
            self.network.train()
            if run.norm == "frozen":
                freeze_statistics(self.network)
            began = time.perf_counter()
            for offset, batch in enumerate(self._batches(epoch, start), start + 1):
                step += 1
                torch.manual_seed(run.seed * 1_000_003 + step)  # for networks that draw
                logged = step % run.log_every == 0
                gradients = logged and (step // run.log_every) % GRADIENT_EVERY == 1
                losses = self.step.take(batch, step, gradients)
                if self.average is not None:
                    self.average.update(self.network, step)
                images += self.step.images
                if logged:
                    speed = images / (seconds + time.perf_counter() - began)
                    place = {"epoch": epoch + 1, "lr": rate, "images_per_second": round(speed, 1)}
                    self._write("train", step, {**place, **losses})
                if self.progress is not None:
                    self.progress("train", step, max(steps, step))
                if self.group.any(stopped()):
                    self._save(checkpoints.Progress(epoch, offset, step))
                    raise Stopped
            seconds += time.perf_counter() - began
            start = 0
            if self._due(epoch + 1, run.checkpoint_every) or self._due(epoch + 1, run.eval_every):
                position = checkpoints.Progress(epoch + 1, 0, step)
                self._save(position)
                self._show(position)
            figures = self._evaluate(epoch + 1, step)
        if self.loader.broken:
            logger.warning("%d training images were left out as broken", len(self.loader.broken))
        return Result(self.folder, step, images / seconds if seconds else 0.0, figures)

    def _due(self, epoch: int, every: int) -> bool:
        """Return whether something that happens every so many epochs does after this one."""
        return epoch == self.config.run.epochs or (every > 0 and epoch % every == 0)

    def _batches(self, epoch: int, start: int) -> Iterator[Batch]:
        """Yield this process' batches; an error of one process ends all."""
        batches = self.loader.epoch(epoch, start)
        while True:
            batch, error = None, None
            try:
                batch = next(batches, None)
            except Exception as caught:
                error = caught
            self.group.settle(error)
            if (
                self.group.world > 1
                and self.group.table([batch is None])[:, 0].unique().numel() > 1
            ):
                with self.group.together():
                    raise UserError(
                        "--skip-broken: every image of a process' share of a batch is broken, so "
                        "that the processes no longer keep step; replace the images"
                    )
            if batch is None:
                return
            yield batch

    def _write(self, kind: str, step: int, figures: dict[str, Any]) -> None:
        with self.group.together():
            self.log.write(kind, step, figures)

    def _save(
        self, position: checkpoints.Progress, figures: dict[str, float] | None = None
    ) -> None:
        """Write the checkpoint; with figures of a validation, the best one instead."""
        best = figures is not None
        # The best one holds the very weights that were validated, as plain weights.
        average = None if best or self.average is None else self.average.values
        with self.group.together():
            if not self.group.leads:
                return
            checkpoints.save_checkpoint(
                self.folder / ("best.safetensors" if best else "last.safetensors"),
                self.network,
                position,
                as_dict(self.config),
                len(self.loader.sampler.classes),
                None if best else self.optimizer.state_dict(),
                average=average,
                figures=figures,
            )

    def _inside_average(self) -> contextlib.AbstractContextManager[Any]:
        """Return a context in which the network has the weights that are evaluated."""
        if self.average is None:
            return contextlib.nullcontext()
        return self.average.inside(self.network)

    def _show(self, position: checkpoints.Progress) -> None:
        """Show the network to whoever observes the run."""
        if self.observe is None:
            return
        with self.group.together(), self._inside_average():
            if self.group.leads:
                self.observe(self.network, position)

    def _evaluate(self, epoch: int, step: int) -> dict[str, Any]:
        """Validate and test where that is due after an epoch and not yet done.

        Test figures come every so many epochs only where no identities are held out to validate
        on, and always after the last epoch; nothing is chosen on them.
        """
        last = epoch == self.config.run.epochs
        figures: dict[str, Any] = {}
        if not self._due(epoch, self.config.run.eval_every):
            return figures
        shared: Any = {"progress": self.progress, "group": self.group}
        with self._inside_average():
            self.group.broadcast(self.network)
            if self.sets.validation is not None and self._missing("val", step):
                figures = score(self.network, self.sets.validation, self.config, **shared)
                self._write("val", step, {"epoch": epoch, **figures})
                self._keep_best(checkpoints.Progress(epoch, 0, step), figures)
            if (last or self.sets.validation is None) and self._missing("eval", step):
                figures = score_all(
                    self.network, self.sets.tests, self.config, train=self.sets.train, **shared
                )
                self._write("eval", step, {"epoch": epoch, **figures})
        return figures or self.log.last("eval", step)

    def _missing(self, kind: str, step: int) -> bool:
        return not self.group.any(bool(self.log.last(kind, step)))

    def _keep_best(self, position: checkpoints.Progress, figures: dict[str, Any]) -> None:
        """Write best.safetensors where the validation's mAP is the highest so far."""
        best = self.folder / "best.safetensors"
        better = False
        with self.group.together():
            if self.group.leads:
                before = -1.0
                if best.is_file():
                    before = checkpoints.load_checkpoint(best).figures.get("mAP", -1.0)
                better = figures["mAP"] > before
        if self.group.any(better):
            self._save(position, {name: figures.get(name, 0.0) for name in ("mAP", "rank1")})


def _check_masks(config: Config, images: ImageSet) -> None:
    """Count the masks of the training set; refuse a folder that covers less than half of it.

    Raises:
        UserError: masks were named, fewer than half of the images have one, and nothing allows it.
    """
    wanted = config.loss.mask_weight and config.model.attention != "none"
    if {config.data.data, *config.data.also} == {"synthetic"} or not wanted:
        return
    if config.data.masks is None:
        logger.warning("no --masks: attention is trained without guidance")
        return
    covered = count_masks(images)
    logger.info("%d of %d training images have a mask", covered, len(images))
    if covered < len(images) / 2 and not config.data.allow_missing_masks:
        raise UserError(
            f"--masks {config.data.masks}: {covered} of {len(images)} training images have a mask; "
            "check the folder and the file names, or add --allow-missing-masks"
        )


@contextlib.contextmanager
def _sigterm() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether SIGTERM has arrived; outside the main thread it never."""
    arrived = False

    def handle(signum: int, frame: Any) -> None:
        nonlocal arrived
        arrived = True

    try:
        before = signal.signal(signal.SIGTERM, handle)
    except ValueError:  # only the main thread may set handlers
        yield lambda: False
        return
    try:
        yield lambda: arrived
    finally:
        signal.signal(signal.SIGTERM, before)
