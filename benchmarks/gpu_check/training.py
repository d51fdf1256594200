"""A training step of the network with attention, without, and with eager attention."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch

from benchmarks.gpu_check.report import Figure
from benchmarks.gpu_check.timing import median_seconds
from mmga.models import MMGA

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
        torch.manual_seed(0)
        network = MMGA(CLASSES, backbone, attention=attention).to(device).train()
        network = network.to(memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)
        images = torch.randn(batch, 3, *image, device=device)
        images = images.contiguous(memory_format=torch.channels_last)
        classes = torch.arange(batch, device=device) % CLASSES

        def step(network=network, optimizer=optimizer, images=images, classes=classes) -> None:
            with torch.autocast(device.type, torch.bfloat16):
                output = network(images)
                losses = [
                    torch.nn.functional.cross_entropy(logits, classes)
                    for logits in output.logits.values()
                ]
            # Maps take part as they do under a mask.
            maps = [found.float().square().mean() for found in output.attention.values()]
            optimizer.zero_grad(set_to_none=True)
            sum([*losses, *maps]).backward()
            optimizer.step()

        seconds[attention] = median_seconds([step], device, repeats=20, warmup=8)
        more = {}
        if attention == "both":
            more = {"times_without_attention": seconds["both"] / seconds["none"]}
        yield Figure(
            f"training step, batch {batch}, {backbone}, attention {attention}",
            seconds[attention],
            more=more,
        )
