"""The folder of a run that was never trained."""

import torch

from mmga.config import as_dict, merged, recipe_config
from mmga.models.checkpoint import Checkpoint, Position, save_checkpoint
from mmga.models.loading import build_network

SIZE = (48, 16)


def write_run(folder, loss=None, run=None, data=None, **model):
    """A run that was never trained, as far as its weights go."""
    values = {"model": model, "data": {"height": SIZE[0], "width": SIZE[1], **(data or {})}}
    values |= {"loss": loss or {}, "run": run or {}}
    config = merged(recipe_config("synthetic"), values, where="test")
    torch.manual_seed(0)
    network = build_network(config.model, 5)
    checkpoint = Checkpoint(network.state_dict(), Position(1, 0, 9), 5, as_dict(config))
    save_checkpoint(folder / "last.safetensors", checkpoint)
    return folder
