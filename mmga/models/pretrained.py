"""Fit files of weights that others wrote to a backbone.

Names are compared below any prefix (`module.`, `backbone.`, `base.`, `encoder_q.`). Where they are
not the backbone's, they are mapped: from fast-reid's MGN, by timm's own conversion, or, between
libraries that name the same layers differently, by their order, if all shapes and kinds agree.
"""

import logging
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmga.common.errors import UserError
from mmga.common.weights import read_weights, unwrapped

logger = logging.getLogger(__name__)

LEAST = 0.9
"""Share of a backbone's parameters below which weights are those of another network."""

_SHOWN = 3
_NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)
_KINDS = ("weight", "bias", "running_mean", "running_var")
_COUNTER = "num_batches_tracked"  # absent before PyTorch 0.4.1; the average does not use it
# Layers after a backbone, in the words of torchvision, timm, torchreid, fast-reid and others.
_AFTER = re.compile(
    r"(^|\.)(_?fc|classifier|head(_dist|_drop)?|heads|b\d+_head|bottleneck|bnneck|last_linear|"
    r"AuxLogits|aux\d|aux_logits|pixel_(mean|std)|fc_norm|queue(_ptr)?)(\.|$)"
)
# fast-reid's MGN: the stem and a branch of a ResNet by their places in two sequences.
_MGN = (
    (r"backbone\.0\.", "conv1."),
    (r"backbone\.1\.", "bn1."),
    (r"backbone\.4\.", "layer1."),
    (r"backbone\.5\.", "layer2."),
    (r"backbone\.6\.", "layer3.0."),
    (r"b1\.1\.", "layer4."),
)


def read_state(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read the tensors of a file (.pth, .pt, .safetensors); never unpickles.

    Raises:
        UserError: the file does not exist, cannot be read or holds no state dict.
    """
    hint = "save model.state_dict() alone, as .pth or .safetensors"
    state = unwrapped(read_weights(path, "backbone weights file", hint))
    if not isinstance(state, dict):
        raise UserError(
            f"backbone weights file {path} holds a {type(state).__name__}, a state dict is expected"
        )
    arrays = {
        str(name): torch.from_numpy(value) if isinstance(value, np.ndarray) else value
        for name, value in state.items()
    }
    return {name: value for name, value in arrays.items() if isinstance(value, Tensor)}


@dataclass(frozen=True, slots=True)
class Fit:
    """How weights fit a backbone.

    Attributes:
        loaded: tensors by the backbone's names.
        share: of the backbone's parameters that they are, 0 to 1.
        absent: the backbone's names that have none.
        other: those that have one of another shape.
        left: the file's names that are used for nothing, without classifiers.
    """

    loaded: Mapping[str, Tensor]
    share: float
    absent: list[str]
    other: list[str]
    left: list[str]

    def __str__(self) -> str:
        """Say what did not fit: how many names, and the first of them."""
        parts = (
            ("not in the file", self.absent),
            ("of another shape", self.other),
            ("of the file alone", self.left),
        )
        return "; ".join(
            f"{len(names)} {what} ({', '.join(names[:_SHOWN])}{', ...' * (len(names) > _SHOWN)})"
            for what, names in parts
            if names
        )


def load_pretrained(
    network: nn.Module,
    own: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    name: str,
    source: str,
    allow_partial: bool = False,
) -> Fit:
    """Load weights into a backbone, and say what did not fit.

    Args:
        network: the backbone.
        own: its tensors without its classifier, by their names in its state dict.
        state: tensors of a file, by its own names.
        name: of the backbone, for messages.
        source: of the weights, for messages.
        allow_partial: take what fits, if it is less than `LEAST` of the parameters.

    Raises:
        UserError: less than that fits and it is not allowed, or nothing does.
    """
    parameters = {key for key, _ in network.named_parameters()} & own.keys()
    ways = _mappings(network, own, state, source)
    fits = [_fit(own, parameters, mapped, of) for mapped, of in ways]
    fit = max(fits, key=lambda one: one.share)
    share = f"{source} fits {fit.share:.1%} of the parameters of backbone {name}"
    if fit.share == 0 or (fit.share < LEAST and not allow_partial):
        raise UserError(
            f"{share}, at least {LEAST:.0%} is expected: {fit}; name the backbone that it was "
            "trained with" + (", or add --allow-partial-weights" if fit.share else "")
        )
    network.load_state_dict(dict(fit.loaded), strict=False)
    if fit.absent or fit.other or fit.left:
        logger.warning("warning: %s: %s", share, fit)
    else:
        logger.info("%s", share)
    if fit is fits[-1]:
        kept = sorted({one.eps for one in network.modules() if isinstance(one, _NORMS)})
        logger.warning(
            "note: %s names layers otherwise and is mapped by their order; weights hold neither "
            "epsilons nor paddings, so that backbone %s keeps its own (epsilon %s); if another "
            "library trained them, see Weights in docs/training.md for pairs that differ",
            source,
            name,
            ", ".join(f"{epsilon:g}" for epsilon in kept),
        )
    return fit


def _mappings(
    network: nn.Module, own: Mapping[str, Tensor], state: Mapping[str, Tensor], source: str
) -> list[tuple[dict[str, str], Mapping[str, Tensor]]]:
    """Return the ways, the plainest first, to name tensors: file's name -> own, and the tensors."""
    ways = [(_by_name(own, state, source), state)]
    if any(key.startswith("b1.1.") for key in state):
        renamed = {key: _of_mgn(key) for key in state}
        ways.append(({key: new for key, new in renamed.items() if new in own}, state))
    named = next(iter(ways[0][0].items()), ("", ""))
    prefix = named[0].removesuffix(named[1])
    converted = _by_timm(network, {key.removeprefix(prefix): state[key] for key in state})
    if converted:
        ways.append((_by_name(own, converted, source), converted))
    ways.append((_by_order(own, state), state))
    return ways


def _by_timm(network: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors as timm converts other authors' for its network, or nothing."""
    convert = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    if convert is None or not type(network).__module__.startswith("timm."):
        return {}
    try:
        found = convert(dict(state), network)
    except Exception:  # foreign code, of files that are none of those it knows
        return {}
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}


def _by_name(own: Mapping[str, Tensor], state: Mapping[str, Tensor], source: str) -> dict[str, str]:
    """Return names that are the backbone's below the prefix that fits most of its parameters.

    Raises:
        UserError: two networks in the file fit as well.
    """
    found: dict[str, dict[str, str]] = {}
    for key in state:
        parts = key.split(".")
        for start in range(len(parts)):
            name = ".".join(parts[start:])
            if name in own:
                found.setdefault(key[: len(key) - len(name)], {})[key] = name

    def size(prefix: str) -> int:
        names = found[prefix].items()
        return sum(own[n].numel() for key, n in names if _shaped(state[key], own[n]) is not None)

    best = max(map(size, found), default=0)
    prefixes = [prefix for prefix in found if size(prefix) == best]
    # Momentum contrast files hold two networks: the query encoder is the trained one.
    prefixes = [prefix for prefix in prefixes if "encoder_q" in prefix] or prefixes
    whole = sum(tensor.numel() for tensor in own.values())
    if best > LEAST * whole and len(prefixes) > 1:
        raise UserError(
            f"{source} holds {len(prefixes)} networks that fit the backbone, below "
            f"{' and '.join(repr(prefix) for prefix in prefixes[:3])}; save one of them alone"
        )
    return found[prefixes[0]] if best else {}


def _of_mgn(key: str) -> str:
    for pattern, own in _MGN:
        if re.match(pattern, key):
            return re.sub(pattern, own, key, count=1)
    later = re.match(r"b1\.0\.(\d+)\.", key)
    return f"layer3.{int(later[1]) + 1}.{key[later.end() :]}" if later else key


def _by_order(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, str]:
    """Return names by order, if all of the backbone's layers follow one another in the file.

    The order is the file's or, since .safetensors files keep none, that of its names and numbers.
    """
    wanted, given = _layers(own), _layers(state)
    for layers in (given, sorted(given, key=lambda layer: _natural(layer[0]))):
        for start in range(len(layers) - len(wanted) + 1):
            pairs = list(zip(layers[start:], wanted, strict=False))
            if all(_alike(one, other, state, own) for (_, one), (_, other) in pairs):
                return {one[kind]: other[kind] for (_, one), (_, other) in pairs for kind in one}
    return {}


def _layers(tensors: Mapping[str, Tensor]) -> list[tuple[str, dict[str, str]]]:
    """Return the layers that hold tensors, and their tensors' names by kind."""
    found: dict[str, dict[str, str]] = {}
    for name in tensors:
        layer, _, kind = name.rpartition(".")
        if kind != _COUNTER:
            kinds = found.setdefault(layer, {})
            kinds[kind if kind in _KINDS else f"further {len(kinds)}"] = name
    return list(found.items())


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]


def _alike(
    one: Mapping[str, str], other: Mapping[str, str], state: Mapping[str, Tensor], own: Any
) -> bool:
    """Return whether a layer of the file has the kinds and shapes of one of the backbone's."""
    return one.keys() == other.keys() and all(
        _shaped(state[one[kind]], own[other[kind]]) is not None for kind in one
    )


def _shaped(tensor: Tensor, like: Tensor) -> Tensor | None:
    """Return a tensor in the shape of another if they differ by axes of length 1 alone."""
    if [n for n in tensor.shape if n > 1] != [n for n in like.shape if n > 1]:
        return None
    return tensor.reshape(like.shape)


def _fit(
    own: Mapping[str, Tensor],
    parameters: set[str],
    mapped: Mapping[str, str],
    state: Mapping[str, Tensor],
) -> Fit:
    loaded: dict[str, Any] = {name: _shaped(state[key], own[name]) for key, name in mapped.items()}
    other = [name for name, tensor in loaded.items() if tensor is None]
    fitting = {name: tensor for name, tensor in loaded.items() if tensor is not None}
    total = sum(own[name].numel() for name in parameters)
    share = sum(own[name].numel() for name in parameters & fitting.keys()) / max(total, 1)
    absent = [name for name in own if name not in loaded and not name.endswith(_COUNTER)]
    left = [
        key
        for key in state
        if key not in mapped and not key.endswith(_COUNTER) and not _AFTER.search(key)
    ]
    return Fit(fitting, share, absent, other, left)
