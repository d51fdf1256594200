"""Exponential moving average of a network's weights and running statistics."""

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn


class WeightAverage:
    """The moving average of everything in a network's state dict.

    After step t the average moves by 1 - min(decay, (1 + t) / (10 + t)) towards the network, so
    that the random weights of the start are forgotten however slow the decay. Integers (counters)
    are copied.

    Args:
        network: the average starts at its present weights.
        decay: share of the old average that a step keeps, in [0, 1).
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.values = {name: value.detach().clone() for name, value in _state(network).items()}

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Update the average with the weights after a step, counted from 1."""
        keep = min(self.decay, (1 + step) / (10 + step))
        for name, value in _state(network).items():
            if value.is_floating_point():
                self.values[name].lerp_(value, 1 - keep)
            else:
                self.values[name].copy_(value)

    def load(self, values: Mapping[str, Tensor]) -> None:
        """Load an average that was saved."""
        for name, value in self.values.items():
            value.copy_(values[name])

    @contextlib.contextmanager
    def inside(self, network: nn.Module) -> Iterator[None]:
        """Put the average into the network within a block."""
        state = _state(network)
        kept = {name: value.detach().clone() for name, value in state.items()}
        with torch.no_grad():
            for name, value in state.items():
                value.copy_(self.values[name])
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in state.items():
                    value.copy_(kept[name])


def _state(network: nn.Module) -> dict[str, Tensor]:
    return dict(network.state_dict())
