"""One training run: a visible loop that can be stopped anywhere and goes on as if it had not been.

Every source of chance is a function of (seed, epoch, index) or of (seed, step), so that a resumed
run takes the same steps, bit for bit on the CPU, as one that ran through.
"""

import contextlib
import logging
import math
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from mmga import checkpoint as checkpoints
from mmga import guidance
from mmga.config import Config, as_dict, check, save_config
from mmga.data.dataset import DataSet, ImageSet, count_masks
from mmga.data.loader import Batch, TrainLoader
from mmga.data.sampler import SAMPLERS
from mmga.data.transforms import TrainTransform
from mmga.errors import UserError
from mmga.extraction import build_network, extract, load_data, resolve_device
from mmga.losses import total_loss
from mmga.models import MMGA, Output
from mmga.progress import Progress
from mmga.runlog import RunLog
from mmga.schedule import learning_rate

logger = logging.getLogger(__name__)

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
        images_per_second: training speed of this process, loading included; 0 if it took no step.
        figures: of the last evaluation: mAP, rank1, ... and the fit of the attention maps.
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
) -> Result:
    """Train as `config` says and leave everything in `folder`.

    The folder then holds config.yaml, metrics.jsonl, tensorboard/, last.safetensors and the
    optimizer's state beside it.

    Args:
        config: the whole configuration.
        folder: the run's folder.
        resume: go on from the folder's last checkpoint.
        data: the data set, if the caller has it already.
        progress: called with ("train", steps done, steps in all) and by evaluations.

    Raises:
        UserError: the input is wrong, or the loss is no longer finite.
        Stopped: SIGTERM arrived; the checkpoint was written.
    """
    check(config)
    last = folder / "last.safetensors"
    if resume and not last.is_file():
        raise UserError(f"--resume: there is no checkpoint {last}; train without it")
    if not resume and last.is_file():
        raise UserError(
            f"{folder} already holds a run; add --resume to go on with it, or name another --out"
        )
    device = prepare(config)
    if data is None:
        data = load_data(config, progress)
    _check_masks(config, data.train)
    batch = config.batch
    sampler = SAMPLERS[batch.sampler](data.train.pids, batch.p, batch.k, config.run.seed)
    loader = TrainLoader(
        data.train,
        sampler,
        TrainTransform(
            size=(config.data.height, config.data.width),
            interpolation=batch.interpolation,
            flip=batch.flip,
            pad=batch.pad,
            erasing=batch.erasing,
            erasing_fill=batch.erasing_fill,
            erase_mask=batch.erase_mask,
        ),
        seed=config.run.seed,
        workers=config.data.workers,
        device=device,
        skip_broken=config.data.skip_broken,
    )
    torch.manual_seed(config.run.seed)
    network = build_network(config.model, len(sampler.classes)).to(device)
    if config.run.channels_last:
        network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(
        parameter_groups(network, config.optimizer.attention_lr),
        lr=config.optimizer.lr,
        weight_decay=config.optimizer.weight_decay,
        amsgrad=config.optimizer.amsgrad,
    )
    position = checkpoints.Progress()
    if resume:
        checkpoint = checkpoints.load_checkpoint(last)
        checkpoints.load_weights(network, checkpoint, last)
        optimizer.load_state_dict(checkpoints.load_optimizer_state(last, checkpoint))
        position = checkpoint.progress
    save_config(config, folder / "config.yaml")
    log = RunLog(folder, position.step)
    training = _Training(config, folder, network, optimizer, loader, data, log, progress)
    try:
        with _sigterm() as stopped:
            return training.run(position, stopped)
    finally:
        log.close()


def prepare(config: Config) -> torch.device:
    """Set threads and determinism, and return the device."""
    if config.run.threads:
        torch.set_num_threads(config.run.threads)
    torch.use_deterministic_algorithms(config.run.deterministic)
    return resolve_device(config.run.device)


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
    loader: TrainLoader
    data: DataSet
    log: RunLog
    progress: Progress | None

    def run(self, position: checkpoints.Progress, stopped: Callable[[], bool]) -> Result:
        """Take the steps that are left."""
        run = self.config.run
        forward: Any = torch.compile(self.network) if run.compile else self.network
        # Epochs may differ by a batch or two: good enough for a time left.
        steps = self.loader.steps(0) * run.epochs
        step, start = position.step, position.step_in_epoch
        images, seconds = 0, 0.0
        figures: dict[str, Any] = {}
        for epoch in range(position.epoch, run.epochs):
            rate = learning_rate(self.config.optimizer, epoch, run.epochs)
            for group in self.optimizer.param_groups:
                group["lr"] = rate * group["factor"]
            self.network.train()
            began = time.perf_counter()
            for offset, batch in enumerate(self.loader.epoch(epoch, start), start + 1):
                step += 1
                torch.manual_seed(run.seed * 1_000_003 + step)  # for networks that draw
                logged = step % run.log_every == 0
                gradients = logged and (step // run.log_every) % GRADIENT_EVERY == 1
                losses = self._step(forward, batch, step, gradients)
                images += len(batch)
                if logged:
                    speed = images / (seconds + time.perf_counter() - began)
                    place = {"epoch": epoch + 1, "lr": rate, "images_per_second": round(speed, 1)}
                    self.log.write("train", step, {**place, **losses})
                if self.progress is not None:
                    self.progress("train", step, max(steps, step))
                if stopped():
                    self._save(checkpoints.Progress(epoch, offset, step))
                    raise Stopped
            seconds += time.perf_counter() - began
            start = 0
            last = epoch + 1 == run.epochs
            if last or (epoch + 1) % run.checkpoint_every == 0:
                self._save(checkpoints.Progress(epoch + 1, 0, step))
            if last or (run.eval_every and (epoch + 1) % run.eval_every == 0):
                figures = self._evaluate()
                self.log.write("eval", step, {"epoch": epoch + 1, **figures})
        return Result(self.folder, step, images / seconds if seconds else 0.0, figures)

    def _step(self, forward: Any, batch: Batch, step: int, gradients: bool) -> dict[str, Any]:
        """Take one step and return the losses, as floats."""
        run, weights = self.config.run, self.config.loss
        images = batch.images
        if run.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(
            images.device.type, torch.bfloat16, enabled=run.precision == "bfloat16"
        ):
            output: Output = forward(images)
            losses = total_loss(
                output,
                batch.pids,
                batch.labels,
                batch.parts,
                batch.has_mask,
                margin=weights.margin,
                id_weight=weights.id_weight,
                mask_weight=weights.mask_weight,
                smoothing=weights.smoothing,
            )
        total = losses["loss"].item()
        if not math.isfinite(total):
            names = [self.data.train.paths[i] for i in batch.indices[:3].tolist()]
            raise UserError(
                f"the loss became {total} at step {step} (batch of {', '.join(names)}, ...); "
                "lower --lr or set --clip-norm; the last good checkpoint is in "
                f"{self.folder}"
            )
        figures: dict[str, Any] = {name: value.item() for name, value in losses.items()}
        if gradients:
            figures["map_gradients"] = _map_gradients(losses, output)
        self.optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        if self.config.optimizer.clip_norm:
            torch.nn.utils.clip_grad_norm_(
                self.network.parameters(), self.config.optimizer.clip_norm
            )
        self.optimizer.step()
        return figures

    def _save(self, position: checkpoints.Progress) -> None:
        checkpoints.save_checkpoint(
            self.folder / "last.safetensors",
            self.network,
            position,
            as_dict(self.config),
            len(self.loader.sampler.classes),
            self.optimizer.state_dict(),
        )

    def _evaluate(self) -> dict[str, Any]:
        """Return mAP, rank-1, ... of the test split, and the fit of the attention maps."""
        from mmga.retrieval.evaluate import evaluate

        sides = (("query", self.data.query), ("gallery", self.data.gallery))
        query, gallery = (
            extract(self.network, images, self.config, phase=name, progress=self.progress)
            for name, images in sides
        )
        report = evaluate(query, gallery, progress=self.progress).as_dict()
        names = ("mAP", "mINP", "rank1", "rank5", "rank10", "num_valid_query")
        fits = guidance.measure(
            self.network, self.data.train, self.data.query, self.config, self.progress
        )
        figures: dict[str, Any] = {name: report[name] for name in names}
        return figures | {"attention": {name: asdict(fit) for name, fit in fits.items()}}


def _map_gradients(losses: dict[str, torch.Tensor], output: Output) -> dict[str, float]:
    """Return the norm of each loss' gradient with respect to each attention map, `id/whole`.

    With max pooling the identity loss reaches a map only where a channel has its maximum.
    """
    names = list(output.attention_logits)
    norms = {}
    for loss in ("triplet", "id", "mask"):
        if not names or not losses[loss].requires_grad:
            continue
        gradients = torch.autograd.grad(
            losses[loss],
            [output.attention_logits[name] for name in names],
            retain_graph=True,
            allow_unused=True,
        )
        for name, gradient in zip(names, gradients, strict=True):
            norms[f"{loss}/{name}"] = 0.0 if gradient is None else gradient.norm().item()
    return norms


def _check_masks(config: Config, images: ImageSet) -> None:
    """Count the masks of the training set; refuse a folder that covers less than half of it.

    Raises:
        UserError: masks were named, fewer than half of the images have one, and nothing allows it.
    """
    wanted = config.loss.mask_weight and config.model.attention != "none"
    if config.data.data == "synthetic" or not wanted:
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
