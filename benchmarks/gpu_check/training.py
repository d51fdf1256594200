"""A training step of the network with attention, without, and with eager attention."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch

from benchmarks.gpu_check.report import Figure
from benchmarks.gpu_check.timing import median_seconds
from mmga import ops
from mmga.models import MMGA
from mmga.models import network as network_module
from mmga.ops import reference

BATCH = 64
IMAGE = (384, 128)
CLASSES = 751


def figures(
    device: torch.device,
    deadline: float,
    batch: int = BATCH,
    image: tuple[int, int] = IMAGE,
    backbone: str = "resnet50",
) -> Iterator[Figure]:
    """Yield the time of a step in bfloat16 autocast, channels_last."""
    seconds = {}
    for attention in ("none", "both"):
        if time.monotonic() > deadline:
            return
        network = made(attention, backbone, device)
        step = steps_of(network, network, device, batch, image)
        seconds[attention] = median_seconds([step], device, repeats=20, warmup=8)
        more = {"images_per_second": batch / seconds[attention]}
        if attention == "both":
            more["times_without_attention"] = seconds["both"] / seconds["none"]
        yield Figure(
            f"training step, batch {batch}, {backbone}, attention {attention}",
            seconds[attention],
            more=more,
        )


def compiled(
    device: torch.device,
    deadline: float,
    batch: int = BATCH,
    image: tuple[int, int] = IMAGE,
    backbone: str = "resnet50",
    backend: str | None = "inductor",
) -> Iterator[Figure]:
    """Yield that of the network compiled as one graph, by the ops and by plain PyTorch.

    Args:
        device: where to measure.
        deadline: of `time.monotonic()`, after which no network is begun.
        batch: images.
        image: height and width.
        backbone: of the network.
        backend: of torch.compile; None: nothing is compiled, to try the code out.
    """
    for provider, functions in (("mmga", ops), ("plain PyTorch", reference)):
        if time.monotonic() > deadline:
            return
        torch._dynamo.reset()
        with mock.patch.multiple(
            network_module,
            attention_multiply=functions.attention_multiply,
            attention_pool=functions.attention_pool,
        ):
            network = made("both", backbone, device)
            forward = network
            if backend is not None:
                forward = torch.compile(network, fullgraph=True, backend=backend)
            step = steps_of(network, forward, device, batch, image)
            seconds = median_seconds([step], device, repeats=20, warmup=5)
        yield Figure(
            f"training step, compiled, batch {batch}, {backbone}, attention by {provider}",
            seconds,
            more={"images_per_second": batch / seconds},
        )


def made(attention: str, backbone: str, device: torch.device) -> MMGA:
    """Return a network as it is trained: the same weights each time, channels_last."""
    torch.manual_seed(0)
    network = MMGA(CLASSES, backbone, attention=attention).to(device).train()
    return network.to(memory_format=torch.channels_last)


def steps_of(
    network: MMGA, forward: Any, device: torch.device, batch: int, image: tuple[int, int]
) -> Callable[[], None]:
    """Return a function that takes a step of `network` by its compiled or plain `forward`."""
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)
    images = torch.randn(batch, 3, *image, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    classes = torch.arange(batch, device=device) % CLASSES

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            output = forward(images)
            losses = [
                torch.nn.functional.cross_entropy(logits, classes)
                for logits in output.logits.values()
            ]
        # Maps take part as they do under a mask.
        maps = [found.float().square().mean() for found in output.attention.values()]
        optimizer.zero_grad(set_to_none=True)
        sum([*losses, *maps]).backward()
        optimizer.step()

    return step
