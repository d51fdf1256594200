"""Checkpoints of a run: weights as safetensors, optimizer state beside them, written atomically.

`last.safetensors` holds the network's weights and, in its metadata, the run's position and the name
of the file with the optimizer's state; where a moving average of the weights is kept, its tensors
are stored beside theirs, named `ema.<name>`. The optimizer's file is written first and the older
one removed last, so a run killed between any two system calls finds a pair that belongs together.
"""

import contextlib
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from mmga.common.errors import UserError, first_line
from mmga.common.files import atomic_path, steady_file

FORMAT = 1
"""Version of the layout; a newer one is refused."""

_AVERAGE = "ema."
"""Prefix of the names of a moving average's tensors."""


@dataclasses.dataclass(frozen=True, slots=True)
class Position:
    """Position of a run.

    Attributes:
        epoch: epochs that are finished.
        step_in_epoch: steps taken in the epoch after those.
        step: steps taken in all.
    """

    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Checkpoint:
    """Contents of a checkpoint file.

    Attributes:
        weights: the network's state dict.
        position: of the run.
        num_classes: identities of the classifiers.
        config: the run's configuration as nested values.
        optimizer_file: name of the file with the optimizer's state, None if there is none.
        average: moving average of the weights, None where none was kept.
        metrics: of a validation of these weights, empty where there was none.
        training_set: description and digest of the training images; empty in older files.
    """

    weights: Mapping[str, torch.Tensor]
    position: Position
    num_classes: int
    config: dict[str, Any]
    optimizer_file: str | None = None
    average: Mapping[str, torch.Tensor] | None = None
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    training_set: str = ""


def save_checkpoint(
    path: Path, checkpoint: Checkpoint, optimizer_state: dict[str, Any] | None = None
) -> None:
    """Write a checkpoint; an earlier one at `path` stays whole until the new one is.

    Args:
        path: the file.
        checkpoint: its contents; the name of the optimizer's file is chosen here.
        optimizer_state: needed to resume; without it the file serves inference alone.

    Raises:
        UserError: the folder cannot be written or the disk is full.
    """
    optimizer_file = None
    if optimizer_state is not None:
        optimizer_file = f"{path.stem}.optimizer-{checkpoint.position.step}.pt"
        with (
            atomic_path(path.with_name(optimizer_file)) as temporary,
            steady_file(temporary) as file,
        ):
            torch.save(optimizer_state, file)
    metadata = {
        "format": str(FORMAT),
        "progress": json.dumps(dataclasses.asdict(checkpoint.position)),
        "num_classes": str(checkpoint.num_classes),
        "config": json.dumps(checkpoint.config),
        "optimizer_file": optimizer_file or "",
        "figures": json.dumps(dict(checkpoint.metrics)),
        "training_set": checkpoint.training_set,
    }
    state = dict(checkpoint.weights)
    state |= {f"{_AVERAGE}{name}": tensor for name, tensor in (checkpoint.average or {}).items()}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)
        temporary.chmod(0o644)  # safetensors leaves it readable by its owner alone
    for old in path.parent.glob(f"{path.stem}.optimizer-*.pt"):
        if old.name != optimizer_file:
            with contextlib.suppress(OSError):  # the new pair is whole without it
                old.unlink()


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        UserError: the file is missing, truncated, or not a checkpoint of this project.
    """
    if not path.is_file():
        raise UserError(f"no checkpoint {path}; train first, or name another run")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if "progress" not in metadata or "config" not in metadata:
                raise UserError(
                    f"{path} is a safetensors file, but not a checkpoint of mmga: "
                    "its metadata names no run"
                )
            if not (version := int(metadata["format"])) > 0:
                raise ValueError(f"format: there is no version {version}")
            if version > FORMAT:
                raise UserError(
                    f"{path} was written by a newer mmga (format {metadata['format']}, this one "
                    f"reads {FORMAT}); update mmga"
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            weights = {n: t for n, t in tensors.items() if not n.startswith(_AVERAGE)}
            average = {
                n.removeprefix(_AVERAGE): t for n, t in tensors.items() if n.startswith(_AVERAGE)
            }
            return Checkpoint(
                weights=weights,
                position=_position(metadata["progress"]),
                num_classes=_classes(metadata["num_classes"], weights),
                config=_mapping("config", metadata["config"]),
                optimizer_file=metadata["optimizer_file"] or None,
                average=average or None,
                metrics=_figures(metadata.get("figures", "{}")),
                training_set=metadata.get("training_set", ""),
            )
    except UserError:
        raise
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else first_line(error)
        raise UserError(
            f"checkpoint {path} cannot be read: truncated or not safetensors ({reason}); "
            "use another checkpoint or train anew"
        ) from error


def _mapping(name: str, text: str) -> dict[str, Any]:
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError(f"{name}: expected names with values, found {text[:40]!r}")
    return found


def _position(text: str) -> Position:
    found = _mapping("progress", text)
    for name in (field.name for field in dataclasses.fields(Position)):
        value = found[name]
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ValueError(f"progress: {name} must be a number of 0 or more, found {value!r}")
    return Position(**found)


def _figures(text: str) -> dict[str, float]:
    found = _mapping("figures", text)
    for name, value in found.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"figures: {name} must be a number, found {str(value)[:40]!r}")
    return found


def _classes(text: str, weights: Mapping[str, torch.Tensor]) -> int:
    """Return the number of identities, of which a classifier must have a row each."""
    count = int(text)
    if not any(tensor.dim() and len(tensor) == count for tensor in weights.values()):
        raise ValueError(f"num_classes: no tensor has the {text[:20]} rows of a classifier")
    return count


def load_optimizer_state(path: Path, checkpoint: Checkpoint) -> dict[str, Any]:
    """Read the optimizer's state that belongs to the checkpoint at `path`.

    Raises:
        UserError: it is missing or cannot be read.
    """
    if checkpoint.optimizer_file is None:
        raise UserError(f"checkpoint {path} holds no optimizer state; it cannot be resumed")
    file = path.parent / Path(checkpoint.optimizer_file).name
    try:
        state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or not {"state", "param_groups"} <= state.keys():
            raise ValueError("no state of an optimizer")
    except Exception as error:  # torch.load raises many kinds for a broken file
        raise UserError(
            f"optimizer state {file} cannot be read ({type(error).__name__}); "
            "train anew, or restore the file"
        ) from error
    return state


def load_weights(
    network: torch.nn.Module, checkpoint: Checkpoint, path: Path, *, average: bool = False
) -> None:
    """Put a checkpoint's weights, or the moving average that it holds, into `network`.

    Raises:
        UserError: names or shapes differ, that is, the file belongs to another network.
    """
    try:
        network.load_state_dict(checkpoint.average or {} if average else checkpoint.weights)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise UserError(f"checkpoint {path} belongs to another network: {first}") from error
