"""One of two processes on one machine; test_distributed.py starts both and reads what they write.

python group_of_two.py FOLDER RANK PORT
"""

import contextlib
import io
import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import torch

from mmga import train
from mmga.common.distributed import Group, gather, join
from mmga.common.errors import PeerError, UserError
from mmga.config import Config, merged, recipe_config
from mmga.data import build
from mmga.data.dataset import DataSet, ImageTensors, Subset
from mmga.data.masks import PartMask
from mmga.extraction import extract as extraction
from mmga.models.loading import build_network
from mmga.training import step, trainer

SETTINGS = {
    "data": {"height": 32, "width": 16},
    "batch": {"p": 4, "k": 2},
    "optimizer": {"lr": 1e-4},
    "run": {"epochs": 2, "log_every": 1, "norm": "frozen", "threads": 1},
}


def config(**sections) -> Config:
    base = merged(recipe_config("synthetic"), SETTINGS, where="test")
    return merged(base, sections, where="test")


class Images(ImageTensors):
    """Images of which some have no mask, some a silhouette, and some cannot be read."""

    broken: tuple[int, ...] = ()

    def image(self, index):
        if index in self.broken:
            raise UserError(f"image {self.paths[index]} cannot be decoded")
        return super().image(index)


def images(persons: int = 8, count: int = 4) -> Images:
    random = np.random.default_rng(0)
    total = persons * count
    pictures = [
        torch.from_numpy(random.integers(0, 256, (3, 32, 16), dtype=np.uint8)) for _ in range(total)
    ]
    masks = []
    for index in range(total):
        labels = torch.from_numpy(random.integers(0, 3, (32, 16), dtype=np.uint8))
        masks.append(None if index % 3 == 0 else PartMask(labels, parts=index % 5 > 0))
    pids, camids = np.arange(total) // count, np.arange(total) % 2
    return Images(pictures, pids, camids, masks=masks)


def data() -> DataSet:
    whole = images()
    sides = (np.flatnonzero(whole.camids == camera) for camera in (0, 1))
    return DataSet("test", whole, *(Subset(whole, side) for side in sides))


def gradients(group: Group, broken: tuple[int, ...] = ()) -> dict[str, object]:
    """Return losses and gradients of the first batch."""
    settings = config(data={"skip_broken": True})
    source = images()
    source.broken = broken
    loader = build.train_loader(settings, source, torch.device("cpu"), group)
    torch.manual_seed(3)
    network = build_network(settings.model, len(loader.sampler.classes)).train()
    step.freeze_statistics(network)
    forward = step.wrap(network, settings, torch.device("cpu"), group)
    taken = step.Step(forward, torch.optim.SGD(network.parameters(), 0.0), settings, group, [])
    batch = next(loader.epoch(0))
    metrics = taken.take(batch, 1, gradients=True)
    return {
        "metrics": metrics,
        "images": taken.images,
        "gradients": {name: p.grad for name, p in network.named_parameters()},
    }


def features(group: Group) -> torch.Tensor:
    """Return features extracted in batches of 5 images, 32 in all."""
    extraction.BATCH = 5
    settings = config()
    torch.manual_seed(3)
    network = build_network(settings.model, 4).eval()
    source = images()
    source.broken = (7,)
    skipping = merged(settings, {"data": {"skip_broken": True}}, where="test")
    found = extraction.extract(network, source, skipping, group=group)
    assert 7 not in [source.paths.index(path) for path in found.paths]
    return torch.as_tensor(found.features)


def message(call) -> list[str]:
    """Return the kind of an error and its sentence."""
    try:
        call()
    except (UserError, RuntimeError) as error:
        return [type(error).__name__, str(error)]
    return []


def errors(group: Group) -> dict[str, list[str]]:
    def one(kind: type[Exception]) -> None:
        with group.together():
            if group.rank == 1:
                raise kind("only here")

    def all_of_them() -> None:
        with group.together():
            raise UserError("everywhere")

    def loading() -> None:
        source = data()
        if group.rank == 1:
            source.train.broken = tuple(range(32))
        trainer.train(config(), folder / "loading", data=source)

    def not_finite() -> None:
        real = step.total_loss
        if group.rank == 1:
            step.total_loss = lambda *a, **n: {k: v * torch.nan for k, v in real(*a, **n).items()}
        try:
            trainer.train(config(), folder / "nan", data=data())
        finally:
            step.total_loss = real

    def whole_share() -> None:
        source = data()
        if group.rank == 1:
            source.train.broken = tuple(range(32))
        trainer.train(config(data={"skip_broken": True}), folder / "share", data=source)

    return {
        "one": message(lambda: one(UserError)),
        "bug": message(lambda: one(RuntimeError)),
        "all": message(all_of_them),
        "loading": message(loading),
        "not finite": message(not_finite),
        "whole share": message(whole_share),
        "dealing": message(
            lambda: trainer.train(config(batch={"p": 3}), folder / "3", data=data())
        ),
    }


def command() -> list[object]:
    """Return exit code and stderr of a command whose data set does not exist."""
    words = ["--data", "market1501", "--root", str(folder / "nowhere"), "--out", str(folder / "x")]
    with contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            train.main(words)
        except SystemExit as leave:
            return [leave.code, said.getvalue()]
    return [0, said.getvalue()]


def stopped(group: Group) -> None:
    """SIGTERM reaches one process alone; both stop at one step, and go on."""
    settings = config(optimizer={"ema": 0.9}, run={"norm": "local"}, data={"val_ids": 2})
    trainer.train(settings, folder / "through-local", data=data())

    def stop(phase: str, done: int, total: int) -> None:
        if phase == "train" and done == 1 and group.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with contextlib.suppress(trainer.Stopped):
        trainer.train(settings, folder / "stopped", data=data(), progress=stop)
        raise AssertionError("it was not stopped")
    trainer.train(settings, folder / "stopped", data=data(), resume=True)


def main(group: Group) -> None:
    for name, broken in (("even", ()), ("uneven", tuple(range(0, 32, 5)))):
        torch.save(gradients(group, broken), folder / f"{name}-{group.rank}.pt")
    torch.save(features(group), folder / f"features-{group.rank}.pt")
    rows = torch.full((group.rank + 1, 2), float(group.rank))
    assert gather(rows, [1, 2], group)[:, 0].tolist() == [0, 1, 1]
    assert group.texts("é" * group.rank) == ["", "é"]
    trainer.train(config(), folder / "two", data=data())
    stopped(group)
    found = errors(group) | {"command": command()}
    (folder / f"errors-{group.rank}.json").write_text(json.dumps(found))
    assert issubclass(PeerError, UserError)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    os.environ |= {
        "RANK": sys.argv[2],
        "LOCAL_RANK": sys.argv[2],
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": sys.argv[3],
    }
    torch.set_num_threads(1)
    with join(torch.device("cpu")) as joined:
        main(joined)
    threads = [file.read_text().strip() for file in Path("/proc/self/task").glob("*/comm")]
    (folder / f"threads-{joined.rank}.json").write_text(json.dumps(threads))
