"""Build networks from configurations and load them from trained runs."""

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from mmga.common.errors import UserError, first_line
from mmga.config import Config, ModelConfig, merged, recipe_config
from mmga.models.checkpoint import Checkpoint, load_checkpoint, load_weights
from mmga.models.network import MMGA


@dataclass(frozen=True, slots=True)
class Run:
    """A trained run.

    Attributes:
        file: the checkpoint.
        network: in evaluation mode.
        config: the run's configuration.
        step: steps that it was trained for.
        averaged: whether its weights are the moving average (`--ema`) of training.
    """

    file: Path
    network: MMGA
    config: Config
    step: int
    averaged: bool

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.file.parent


def build_network(config: ModelConfig, num_classes: int) -> MMGA:
    """Build the network that a configuration describes, with `num_classes` identities."""
    return MMGA(num_classes, **dataclasses.asdict(config))


def check_size(config: Config) -> None:
    """Refuse images of a size that the network of a configuration cannot take.

    The network is built without weights and called without data, in no memory.

    Raises:
        UserError: it cannot take images of that height and width, or cannot be built.
    """
    model = dataclasses.replace(config.model, weights="none", backbone_weights=None)
    with torch.device("meta"):
        _check_call(build_network(model, 0), config)


def _check_call(network: MMGA, config: Config) -> None:
    """Call a network on the meta device with an image of the size of a configuration."""
    height, width = config.data.height, config.data.width
    try:
        with torch.no_grad():
            network.eval().outputs(torch.empty(1, 3, height, width, device="meta"))
    except UserError:
        raise
    except NotImplementedError:  # an operation that needs data: the first images will tell
        return
    except Exception as error:  # layers refuse sizes in many ways
        raise UserError(
            f"backbone {config.model.backbone} cannot take images of {height}x{width} pixels "
            f"({first_line(error)}); change --height and --width"
        ) from error


def load_run(path: str | os.PathLike[str], device: torch.device | str = "cpu") -> Run:
    """Load a run from its folder (its last checkpoint) or from one of its checkpoints.

    Where training kept a moving average of the weights, that average is loaded.

    Raises:
        UserError: there is no checkpoint, or it is truncated or foreign.
    """
    file, checkpoint, config = _configured(path)
    # The checkpoint holds every weight: nothing is to be downloaded.
    bare = merged(config, {"model": {"weights": "none", "backbone_weights": None}}, where=str(file))
    _check_shapes(bare, checkpoint, file)
    network = build_network(bare.model, checkpoint.num_classes)
    load_weights(network, checkpoint, file, average=checkpoint.average is not None)
    step = checkpoint.position.step
    return Run(file, network.to(device).eval(), config, step, config.optimizer.ema > 0)


def configuration_of(path: str | os.PathLike[str]) -> Config:
    """Return the configuration of a run, by its folder or one of its checkpoints.

    Raises:
        UserError: there is no checkpoint, or it is truncated or foreign.
    """
    return _configured(path)[2]


def _configured(path: str | os.PathLike[str]) -> tuple[Path, Checkpoint, Config]:
    file = Path(path)
    if file.is_dir():
        file = file / "last.safetensors"
    checkpoint = load_checkpoint(file)
    base = recipe_config(checkpoint.config.get("recipe", "mgn"))
    return file, checkpoint, merged(base, checkpoint.config, where=str(file))


def _check_shapes(config: Config, checkpoint: Checkpoint, file: Path) -> None:
    """Compare the network that a configuration describes with the weights, without its memory.

    Raises:
        UserError: it describes none, one of other weights, or one that cannot take its images.
    """
    try:
        with torch.device("meta"):
            network = build_network(config.model, checkpoint.num_classes)
    except UserError:
        raise
    except Exception as error:  # layers of impossible sizes fail in many ways
        raise UserError(
            f"checkpoint {file} describes no network that can be built ({first_line(error)}); "
            "use another checkpoint or train anew"
        ) from error
    held, wanted = checkpoint.weights, network.state_dict()
    for name in sorted(wanted.keys() | held.keys()):
        sizes = [list(one[name].shape) if name in one else "absent" for one in (held, wanted)]
        if sizes[0] != sizes[1]:
            raise UserError(
                f"checkpoint {file} belongs to another network: {name} is {sizes[0]} there and "
                f"{sizes[1]} in the network of its configuration; use another checkpoint"
            )
    try:
        _check_call(network, config)
    except UserError as error:
        raise UserError(f"checkpoint {file}: {error}") from error


def load(path: str | os.PathLike[str], device: torch.device | str = "cpu") -> MMGA:
    """Return the network of a run's folder or of a checkpoint file, in evaluation mode.

    Normalised images [B, 3, H, W] give L2-normalised features [B, D];
    `network.attention(images)` gives the attention maps.

    Raises:
        UserError: there is no checkpoint, or it is truncated or foreign.
    """
    return load_run(path, device).network
