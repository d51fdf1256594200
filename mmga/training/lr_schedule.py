"""Schedules of a run: its learning rate, and the weight of its mask loss."""

import math

from mmga.config import LossConfig, OptimizerConfig

WARMUP_START = 0.01
"""Share of the learning rate at which a warm-up starts [Bag of Tricks]."""


def learning_rate(config: OptimizerConfig, epoch: int, epochs: int) -> float:
    """Return the learning rate of an epoch, counted from 0, of a run of `epochs`."""
    rate = config.lr
    if epoch < config.warmup_epochs:
        share = epoch / config.warmup_epochs
        rate *= WARMUP_START * (1 - share) + share
    if config.schedule == "cosine":
        return rate * 0.5 * (1 + math.cos(math.pi * epoch / epochs))
    return rate * config.gamma ** sum(epoch >= milestone for milestone in config.milestones)


def mask_weight(config: LossConfig, epoch: int, epochs: int) -> float:
    """Return the weight of the mask loss in an epoch, counted from 0, of a run of `epochs`."""
    return config.mask_weight * (1 - config.mask_fade * epoch / epochs)
