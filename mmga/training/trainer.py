"""One training run: a visible loop that can be stopped anywhere and resumed bit for bit.

Every random draw is a function of (seed, epoch, index) or of (seed, step), so that a resumed run
takes the same steps, bit for bit on the CPU, as one that was not interrupted.
"""

import contextlib
import logging
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mmga.common.distributed import Group, join
from mmga.common.errors import UserError
from mmga.common.progress import Progress
from mmga.config import Config, check, save_config
from mmga.data.build import train_loader
from mmga.data.dataset import DataSet
from mmga.data.loader import Batch, TrainLoader
from mmga.models import MMGA
from mmga.models import checkpoint as checkpoints
from mmga.models.checkpoint import Position
from mmga.training.attention_metrics import mean_mask
from mmga.training.lr_schedule import learning_rate
from mmga.training.run_log import RunLog
from mmga.training.setup import Sets, State, check_folder, prepare
from mmga.training.step import NotFinite, Step, freeze_statistics, wrap
from mmga.training.validation import score, score_all

logger = logging.getLogger(__name__)

Observer = Callable[[MMGA, Position], None]
"""Receives the network between two epochs and leaves it unchanged."""

GRADIENT_EVERY = 10
"""Lines of metrics.jsonl between two that hold the gradients of the attention maps."""


class Stopped(Exception):
    """SIGTERM arrived; the run was saved and can be resumed."""


@dataclass(frozen=True, slots=True)
class Result:
    """Outcome of a finished run.

    Attributes:
        folder: the run's folder.
        steps: optimizer steps taken in all.
        images_per_second: training speed of all processes, loading included; 0 without a step.
        metrics: of the last evaluation: mAP, rank1, ... and the fit of the attention maps; empty
            in all processes but the first.
    """

    folder: Path
    steps: int
    images_per_second: float
    metrics: dict[str, Any]


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
        observe: called by the first process with the network and the run's position, after every
            epoch that leaves a checkpoint and once more when a run is resumed from one.

    Raises:
        UserError: the input is wrong, or the loss is no longer finite. Under torchrun one process
            raises it and the others a PeerError.
        Stopped: SIGTERM arrived; the checkpoint was written.
    """
    check(config)
    device = prepare(config)
    with join(device) as group:
        with group.together():
            check_folder(folder, resume)
            sets = Sets.load(config, data, progress)
            loader = train_loader(config, sets.train, device, group)
            loader.steps(0)  # refuses a P that cannot be dealt to the processes
        state = State.start(config, len(loader.sampler.classes), device, group)
        with group.together():
            position = state.restore(folder / "last.safetensors") if resume else Position()
            log = RunLog(folder, position.step, writes=group.leads)
            if group.leads:
                save_config(config, folder / "config.yaml")
        prior = None
        if config.loss.guide == "mean":
            with group.together():
                prior = mean_mask(sets.train, config).to(device)
        forward = wrap(state.network, config, device, group)
        step = Step(forward, state.optimizer, config, group, sets.train.paths, prior)
        training = _Training(folder, state, sets, loader, step, log, progress, observe)
        try:
            with _sigterm() as stopped:
                return training.run(position, stopped)
        except NotFinite as error:
            log.write("stopped", error.step, {"reason": str(error), "paths": error.paths})
            raise
        finally:
            log.close()


@dataclass(slots=True)
class _Training:
    """The loop over epochs and steps."""

    folder: Path
    state: State
    sets: Sets
    loader: TrainLoader
    step: Step
    log: RunLog
    progress: Progress | None
    observe: Observer | None

    @property
    def config(self) -> Config:
        return self.state.config

    @property
    def group(self) -> Group:
        return self.step.group

    def run(self, position: Position, stopped: Callable[[], bool]) -> Result:
        """Take the steps that are left."""
        run = self.config.run
        # Epochs may differ by a batch or two: good enough for a time left.
        steps = self.loader.steps(0) * run.epochs
        step, start = position.step, position.step_in_epoch
        images, seconds = 0, 0.0
        metrics: dict[str, Any] = {}
        if position.epoch and not start:
            # Stopped between a checkpoint and the evaluation that was to follow it.
            self._show(position)
            metrics = self._evaluate(position.epoch, step)
        for epoch in range(position.epoch, run.epochs):
            rate = learning_rate(self.config.optimizer, epoch, run.epochs)
            self._begin_epoch(rate)
            began = time.perf_counter()
            for offset, batch in enumerate(self._batches(epoch, start), start + 1):
                step += 1
                torch.manual_seed(run.seed * 1_000_003 + step)  # for networks that draw
                logged = step % run.log_every == 0
                gradients = logged and (step // run.log_every) % GRADIENT_EVERY == 1
                losses = self.step.take(batch, step, gradients)
                if self.state.average is not None:
                    self.state.average.update(self.state.network, step)
                images += self.step.images
                if logged:
                    speed = images / (seconds + time.perf_counter() - began)
                    place = {"epoch": epoch + 1, "lr": rate, "images_per_second": round(speed, 1)}
                    self._write("train", step, {**place, **losses})
                if self.progress is not None:
                    self.progress("train", step, max(steps, step))
                if self.group.any(stopped()):
                    self._save(Position(epoch, offset, step))
                    raise Stopped
            seconds += time.perf_counter() - began
            start = 0
            if self._due(epoch + 1, run.checkpoint_every) or self._due(epoch + 1, run.eval_every):
                position = Position(epoch + 1, 0, step)
                self._save(position)
                self._show(position)
            metrics = self._evaluate(epoch + 1, step)
        if self.loader.broken:
            logger.warning("%d training images were left out as broken", len(self.loader.broken))
        return Result(self.folder, step, images / seconds if seconds else 0.0, metrics)

    def _begin_epoch(self, rate: float) -> None:
        """Set the learning rate, and put the network into training mode."""
        for group in self.state.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        self.state.network.train()
        if self.config.run.norm == "frozen":
            freeze_statistics(self.state.network)

    def _due(self, epoch: int, every: int) -> bool:
        """Return whether an action of every so many epochs is due after this one."""
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
            self.group.raise_first(error)
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

    def _write(self, kind: str, step: int, metrics: dict[str, Any]) -> None:
        with self.group.together():
            self.log.write(kind, step, metrics)

    def _save(self, position: Position) -> None:
        with self.group.together():
            if self.group.leads:
                self.state.save(self.folder, position)

    def _show(self, position: Position) -> None:
        """Show the network to the run's observer."""
        if self.observe is None:
            return
        with self.group.together(), self.state.evaluated():
            if self.group.leads:
                self.observe(self.state.network, position)

    def _evaluate(self, epoch: int, step: int) -> dict[str, Any]:
        """Validate and test where that is due after an epoch and not yet done.

        Test metrics come every so many epochs only where no identities are held out to validate
        on, and always after the last epoch; nothing is chosen on them.
        """
        last = epoch == self.config.run.epochs
        metrics: dict[str, Any] = {}
        if not self._due(epoch, self.config.run.eval_every):
            return metrics
        network, sets = self.state.network, self.sets
        shared: Any = {"progress": self.progress, "group": self.group}
        with self.state.evaluated():
            self.group.broadcast(network)
            if sets.validation is not None and self._missing("val", step):
                metrics = score(network, sets.validation, self.config, **shared)
                self._write("val", step, {"epoch": epoch, **metrics})
                self._keep_best(Position(epoch, 0, step), metrics)
            due = bool(sets.tests) and (last or sets.validation is None)
            if due and self._missing("eval", step):
                metrics = score_all(network, sets.tests, self.config, train=sets.train, **shared)
                self._write("eval", step, {"epoch": epoch, **metrics})
        return metrics or self.log.last("eval", step)

    def _missing(self, kind: str, step: int) -> bool:
        return not self.group.any(bool(self.log.last(kind, step)))

    def _keep_best(self, position: Position, metrics: dict[str, Any]) -> None:
        """Write best.safetensors where the validation's mAP is the highest so far."""
        best = self.folder / "best.safetensors"
        with self.group.together():
            if not self.group.leads:
                return
            before = -1.0
            if best.is_file():
                before = checkpoints.load_checkpoint(best).metrics.get("mAP", -1.0)
            if metrics["mAP"] > before:
                kept = {name: metrics.get(name, 0.0) for name in ("mAP", "rank1")}
                self.state.save(self.folder, position, kept)


@contextlib.contextmanager
def _sigterm() -> Iterator[Callable[[], bool]]:
    """Yield a function that tells whether SIGTERM has arrived (in the main thread alone)."""
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
