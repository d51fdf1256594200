"""One training run: a visible loop that can be stopped anywhere and resumed bit for bit.

Every random draw is a function of (seed, epoch, index) or of (seed, step), so that a resumed run
takes the same steps, bit for bit on the CPU, as one that was not interrupted.
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

from mmga.common.distributed import Group, join
from mmga.common.errors import UserError
from mmga.common.progress import Progress, begin, describe
from mmga.config import Config, check, save_config
from mmga.data.build import train_loader
from mmga.data.dataset import DataSet
from mmga.data.loader import Batch, TrainLoader
from mmga.models import MMGA
from mmga.models import checkpoint as checkpoints
from mmga.models.checkpoint import Position
from mmga.models.loading import check_size
from mmga.training.attention_metrics import mean_mask
from mmga.training.lr_schedule import learning_rate, mask_weight
from mmga.training.run_folder import changes, opened
from mmga.training.run_log import RunLog
from mmga.training.setup import Sets, State, prepare
from mmga.training.step import NotFinite, Step, check_guides, freeze_statistics, wrap
from mmga.training.validation import score, score_all

logger = logging.getLogger(__name__)

Observer = Callable[[MMGA, Position], None]
"""Receives the network between two epochs and leaves it unchanged."""

GRADIENT_EVERY = 10
"""Lines of metrics.jsonl between two that hold the gradients of the attention maps."""


class Stopped(Exception):
    """SIGTERM or Ctrl-C arrived; the run was saved and can be resumed.

    Attributes:
        code: exit code of a command that was stopped so: 143, or 130 for Ctrl-C.
    """

    def __init__(self, code: int) -> None:
        super().__init__(f"stopped and saved (exit code {code})")
        self.code = code


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
    tell: Callable[[str], None] = logger.info,
) -> Result:
    """Train as `config` says and leave everything in `folder`.

    The folder then holds config.yaml, metrics.jsonl, tensorboard/, last.safetensors, the
    optimizer's state beside it and, where identities are held out, best.safetensors. Under torchrun
    the processes share every batch, and the first one writes. The folder is locked meanwhile.

    Args:
        config: the whole configuration; a resumed run takes only some changes of it.
        folder: the run's folder.
        resume: go on from the folder's last checkpoint; a run that torchrun began and starts again
            (`--max-restarts`) does so anyway.
        data: the data set, if the caller has it already.
        progress: called with ("train", steps done, steps in all) and by evaluations.
        observe: called by the first process with the network and the run's position, after every
            epoch that leaves a checkpoint and once more when a run is resumed from one.
        tell: called by the first process with sentences on where and how a resumed run goes on.

    Raises:
        UserError: the input is wrong, another process trains in the folder, a file cannot be
            written, or the loss is no longer finite. Under torchrun one process raises it and the
            others a PeerError.
        Stopped: SIGTERM or Ctrl-C arrived; the checkpoint was written. A second Ctrl-C raises
            KeyboardInterrupt at once.
    """
    check(config)
    check_size(config)
    device = prepare(config)
    with join(device) as group, opened(folder, resume, group) as resume:
        with group.together():
            last, saved, changed = folder / "last.safetensors", None, []
            if resume:
                saved = checkpoints.load_checkpoint(last)
                changed = changes(saved.config, config, folder)
            sets = Sets.load(config, data, progress)
            if group.leads:
                sets.check_files(config, progress)
            loader = train_loader(config, sets.train, device, group)
            loader.steps(0)  # refuses a P that cannot be dealt to the processes
            check_guides(config, loader.sampler, sets.train.pids, group)
        state = State.start(config, loader, device, group, resume=resume)
        with group.together():
            position = Position() if saved is None else state.restore(saved, last)
            del saved  # a second copy of all weights
            finished = position.epoch >= config.run.epochs
            log = RunLog(folder, position.step, writes=group.leads)
            if group.leads and not finished:
                save_config(config, folder / "config.yaml")
        if resume and group.leads:
            tell(_where(position, config, changed))
        prior = None
        if config.loss.guide == "mean":
            with group.together():
                prior = mean_mask(sets.train, config).to(device)
        forward = wrap(state.network, config, device, group)
        step = Step(forward, state.optimizer, config, group, sets.train.paths, prior)
        try:
            with _signals() as stopped:
                training = _Training(
                    folder, state, sets, loader, step, log, stopped, progress, observe
                )
                return training.run(position)
        except NotFinite as error:
            with contextlib.suppress(UserError):  # a full disk must not hide the loss
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
    stopped: Callable[[], int]
    progress: Progress | None
    observe: Observer | None

    @property
    def config(self) -> Config:
        return self.state.config

    @property
    def group(self) -> Group:
        return self.step.group

    def run(self, position: Position) -> Result:
        """Take the steps that are left."""
        run = self.config.run
        steps = 0 if self.progress is None else self.loader.all_steps(run.epochs)
        begin(self.progress, "train", position.step)
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
            self.step.mask_weight = mask_weight(self.config.loss, epoch, run.epochs)
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
                speed = images / (seconds + time.perf_counter() - began)
                place = {"epoch": epoch + 1, "lr": rate, "images_per_second": round(speed, 1)}
                if logged:
                    self._write("train", step, {**place, **losses})
                if self.progress is not None:
                    describe(self.progress, "train", _line({**place, **losses}, run.epochs))
                    self.progress("train", step, steps)
                if self.group.any(bool(self.stopped())):
                    self._save(Position(epoch, offset, step))
                    raise Stopped(self.stopped() or 143)
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
        shared: Any = {"progress": self._report, "group": self.group}
        with self.state.evaluated():
            self.group.broadcast(network)
            if sets.validation is not None and self._missing("val", step):
                protocol = self.config.run.protocol or "market1501"
                metrics = score(network, sets.validation, self.config, protocol=protocol, **shared)
                self._write("val", step, {"epoch": epoch, **metrics})
                self._keep_best(Position(epoch, 0, step), metrics)
            due = bool(sets.tests) and (last or sets.validation is None)
            if due and self._missing("eval", step):
                metrics = score_all(network, sets.tests, self.config, train=sets.train, **shared)
                self._write("eval", step, {"epoch": epoch, **metrics})
        return metrics or self.log.last("eval", step)

    def _report(self, phase: str, done: int, total: int) -> None:
        """Report the progress of an evaluation, and end it where a signal has arrived.

        The checkpoint was written before. Several processes, which have to stay together, end
        between two steps alone.
        """
        if self.progress is not None:
            self.progress(phase, done, total)
        if self.group.world == 1 and self.stopped():
            raise Stopped(self.stopped())

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


def _where(position: Position, config: Config, changed: list[str]) -> str:
    """Return a sentence on where a resumed run goes on, and with what it goes on otherwise."""
    epochs = config.run.epochs
    if position.epoch >= epochs:
        unused = f", so that nothing is changed by {', '.join(changed)}" if changed else ""
        return f"the run is finished, at step {position.step} after {position.epoch} epochs{unused}"
    others = f", with {', '.join(changed)}" if changed else ""
    return f"goes on after step {position.step}, in epoch {position.epoch + 1} of {epochs}{others}"


def _line(values: dict[str, Any], epochs: int) -> str:
    """Return the state of training as one line: epoch, losses, accuracy, rate and speed."""
    parts = ", ".join(f"{name} {values[name]:.3g}" for name in ("triplet", "id", "mask"))
    return (
        f"epoch {values['epoch']}/{epochs}, loss {values['loss']:.3g} ({parts}), "
        f"identity accuracy {values['accuracy']:.1%}, lr {values['lr']:.3g}, "
        f"{values['images_per_second']:.0f} images/s"
    )


@contextlib.contextmanager
def _signals() -> Iterator[Callable[[], int]]:
    """Yield a function that returns the exit code of the signal that has arrived, or 0.

    SIGTERM and the first Ctrl-C are noted, in the main thread alone; a second Ctrl-C interrupts.
    """
    arrived = 0

    def handle(signum: int, frame: Any) -> None:
        nonlocal arrived
        if signum == signal.SIGINT:
            if arrived == 130:
                raise KeyboardInterrupt
            os.write(2, b"\nnote: stopping and saving; Ctrl-C again ends at once, without\n")
        arrived = 128 + signum

    before = {}
    try:
        for one in (signal.SIGTERM, signal.SIGINT):
            before[one] = signal.signal(one, handle)
    except ValueError:  # only the main thread may set handlers
        yield lambda: 0
        return
    try:
        yield lambda: arrived
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
