"""Feature extractors with one interface.

Legend: `B` images, `N` images of a set, `P` parts, `D` features.
"""

import importlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmga.common.device import resolve_device
from mmga.common.errors import UserError, first_line
from mmga.common.weights import WRAPPERS, read_weights, unwrapped
from mmga.data.dataset import ImageSet
from mmga.data.loader import Loading, eval_batches
from mmga.data.pictures import Notes
from mmga.data.transforms import EvalTransform
from mmga.models import MMGA

logger = logging.getLogger(__name__)

Embeddings = tuple[Tensor, Tensor | None]
"""Features [B, D] and None, or part features [B, P, D] and their visibility [B, P]."""


@dataclass(frozen=True, slots=True)
class Embedder:
    """A network that extracts features.

    Attributes:
        name: of the network; an interrupted extraction goes on with an extractor of its name only.
        transform: the resizing of its images.
        embed: from normalised images [B, 3, H, W] to embeddings, not normalised, of one view.
        device: where images are put.
        flip: sum the features of an image and of its mirror image.
        network: the network, by whose weights features are kept; None keeps none.
        settings: what features depend on besides weights and images.
    """

    name: str
    transform: EvalTransform
    embed: Callable[[Tensor], Embeddings]
    device: torch.device
    flip: bool = True
    network: nn.Module | None = None
    settings: str = ""

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Embeddings:
        """Return L2-normalised float32 embeddings; visibilities are the mean of both views'."""
        rows, visible = self.embed(images)
        rows = rows.float()
        if self.flip:
            mirrored, seen = self.embed(images.flip(-1))
            rows = rows + mirrored.float()
            if visible is not None and seen is not None:
                visible = (visible + seen) / 2
        return _normalised(rows), visible


def _normalised(rows: Tensor) -> Tensor:
    """Return rows [..., D] of length 1, also those whose squares are beyond float32; zeros stay."""
    highest = rows.abs().amax(-1, keepdim=True)
    beyond = (highest > 1e15) | ((highest < 1e-10) & (highest > 0))
    if bool(beyond.any()):
        rows = torch.where(beyond, rows / highest, rows)
    return nn.functional.normalize(rows, dim=-1)


def embed_images(
    embedder: Embedder,
    images: ImageSet,
    *,
    batch_size: int,
    workers: int = 0,
    broken: dict[str, str] | None = None,
    progress: Callable[[int], None] = lambda done: None,
    notes: Notes | None = None,
) -> tuple[Embeddings, Tensor]:
    """Embed all images of a set, in their order.

    Args:
        embedder: the network.
        images: the set.
        batch_size: images embedded at once.
        workers: processes that load images.
        broken: filled with the message by path of each image that cannot be decoded; None raises.
        progress: called with the number of images done.
        notes: filled with what was done to images; by default it is said in the end.

    Returns:
        The embeddings on the CPU, empty where there is no image, and the places int64 [N] of their
        images in the set.

    Raises:
        UserError: an image cannot be decoded and `broken` is None, or features are not finite.
    """
    loading = Loading(workers, embedder.device, skip_broken=broken is not None)
    batches = eval_batches(
        images,
        embedder.transform,
        loading,
        batch_size=batch_size,
        broken=broken,
        masks=False,
        notes=notes,
    )
    rows, visible, places = (
        [torch.empty(0, dtype=torch.float32, device="cpu")],
        [],
        [torch.empty(0, dtype=torch.int64, device="cpu")],
    )
    done = 0
    for batch in batches:
        features, seen = embedder(batch.images)
        rows.append(features.cpu())
        wrong = (~rows[-1].isfinite()).flatten(1).any(1)
        if bool(wrong.any()):
            path = images.paths[int(batch.indices[wrong.to(batch.indices.device)][0])]
            raise UserError(
                f"network {embedder.name.split()[0]} makes features that are not finite, of {path} "
                "first; check its weights"
            )
        if seen is not None:
            visible.append(seen.cpu())
        places.append(batch.indices.cpu())
        done += len(batch)
        progress(done)
    embeddings = torch.cat(rows[1:] or rows), torch.cat(visible) if visible else None
    return embeddings, torch.cat(places)


def visibility(attention: Tensor) -> Tensor:
    """Return the visibility of a part, [B]: the mean of the highest tenth of its sigmoid map."""
    values = attention.float().flatten(1)  # [B, h w]
    return values.topk(max(1, round(values.shape[1] / 10)), dim=1).values.mean(1)


def part_embeddings(network: MMGA) -> Callable[[Tensor], Embeddings]:
    """Return a function from images to the features f_k of every head and their visibility.

    The order is that of `network.head_names`; a head has the visibility of its part.

    Raises:
        UserError: the network has no attention maps of parts.
    """
    if network.attention2 is None:
        raise UserError(
            "--parts needs attention maps of the parts, which this run was trained without "
            "(--attention both has them)"
        )

    def embed(images: Tensor) -> Embeddings:
        output = network.outputs(images)
        rows = torch.stack([output.features[name] for name in network.head_names], dim=1)
        seen = {part: visibility(output.attention[part]) for part in network.parts}
        visible = torch.stack([seen[name.split("_")[0]] for name in network.head_names], dim=1)
        return rows, visible  # [B, P, D], [B, P]

    return embed


def whole_embeddings(network: nn.Module, name: str) -> Callable[[Tensor], Embeddings]:
    """Return a function from images to the features of a network.

    Args:
        network: an MMGA, or any module that returns [B, D].
        name: of the network, for messages.
    """
    looked = isinstance(network, MMGA)

    def embed(images: Tensor) -> Embeddings:
        nonlocal looked
        rows = network.embed(images) if isinstance(network, MMGA) else network(images)
        if not isinstance(rows, Tensor) or rows.ndim != 2 or len(rows) != len(images):
            found = list(rows.shape) if isinstance(rows, Tensor) else type(rows).__name__
            raise UserError(
                f"--model {name} must return features [{len(images)}, D] for {len(images)} images, "
                f"found {found}; wrap it in a function that pools"
            )
        if not looked:
            looked = True
            scores = _class_scores(network, rows)
            if scores is not None:
                logger.warning(
                    "warning: --model %s returns %s, not features: name a function that returns "
                    "the network without its classifier",
                    name,
                    scores,
                )
        return rows, None

    return embed


_CLASSES = {1000, 11221, 21841, 21843, 751, 702, 1041, 767, 1367, 1160}
"""Classes of ImageNet, and training identities of Market-1501, DukeMTMC, MSMT17 and CUHK03."""


def _class_scores(network: nn.Module, rows: Tensor) -> str | None:
    """Return a phrase on the class scores that rows [B, D] seem to be, None for features."""
    width = rows.shape[1]
    values = rows.float()
    if width > 1 and bool((values >= 0).all()) and bool(((values.sum(1) - 1).abs() < 1e-3).all()):
        return f"the probabilities of {width} classes"
    layers = [
        one for one in network.modules() if next(one.parameters(recurse=False), None) is not None
    ]
    last = layers[-1] if layers else None
    if not isinstance(last, nn.Linear) or last.out_features != width:
        return None
    if width in _CLASSES or getattr(network, "num_classes", None) == width:
        return f"the scores of {width} classes"
    return None


def _random_weights(make: Any, given: dict[str, Any], network: nn.Module) -> list[str]:
    """Return the names of weights that differ when a network is built anew with another seed."""
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch.initial_seed() + 1)
            other = dict(make(**given).named_parameters())
    except Exception:  # foreign code: what it builds once is all that is known
        return []
    names = [name for name, _ in network.named_parameters() if name in other]
    own = dict(network.named_parameters())
    return [name for name in names if not torch.equal(own[name].cpu(), other[name].cpu())]


def embedder_of_model(
    name: str, arguments: str, weights: Path | None, size: tuple[int, int], device: str, flip: bool
) -> Embedder:
    """Return any network, built by `foreign_network`, as an extractor of images of a size.

    Raises:
        UserError: the network cannot be built or takes no such images, or there is no such device.
    """
    target = resolve_device(device)
    network = foreign_network(name, arguments, weights).to(target)
    check_foreign_size(network, name, size, target)
    title = f"{name} {arguments} {weights}"
    if weights is not None:
        title += f", written {weights.stat().st_mtime_ns}"
    transform = EvalTransform(size=size)
    embed = whole_embeddings(network, name)
    return Embedder(title, transform, embed, target, flip, network, f"{name} {arguments}")


def check_foreign_size(
    network: Callable[[Tensor], Any], name: str, size: tuple[int, int], device: torch.device
) -> None:
    """Call a network with one blank image, so that a size that it cannot take is told at once.

    Raises:
        UserError: it cannot take images of that size.
    """
    try:
        with torch.inference_mode():
            network(torch.zeros(1, 3, *size, dtype=torch.float32, device=device))
    except UserError:
        raise
    except Exception as error:  # foreign code may raise anything
        own = (getattr(network, "pretrained_cfg", None) or {}).get("input_size", ())[-2:]
        hint = f", to timm's {own[0]}x{own[1]} for example" if own else ""
        raise UserError(
            f"--model {name} cannot take images of {size[0]}x{size[1]} pixels "
            f"({first_line(error)}); change --height and --width{hint}"
        ) from error


def foreign_network(name: str, arguments: str = "{}", weights: Path | None = None) -> nn.Module:
    """Build any network from `package:callable`.

    A network with a method `reset_classifier` (timm's) loses its classifier, unless `num_classes`
    is among the arguments, so that it returns pooled features.

    Args:
        name: module and callable, `package.module:callable`.
        arguments: keyword arguments of the call, as JSON.
        weights: a plain state dict (.pth, .pt, .safetensors).

    Raises:
        UserError: nothing of that name can be imported or called, or the weights do not fit.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise UserError(
            f"--model must be package:callable, such as timm.models:resnet50, got {name}"
        )
    try:
        given = json.loads(arguments)
        if not isinstance(given, dict):
            raise ValueError("it is no object")
    except ValueError as error:
        raise UserError(
            f'--model-arguments must be a JSON object such as {{"pretrained": true}} ({error})'
        ) from error
    try:
        make: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            make = getattr(make, part)
    except (ImportError, AttributeError) as error:
        package = module_name.partition(".")[0]
        absent = getattr(error, "name", None) == package
        hint = f"install {package}, or check the name" if absent else "check the name"
        raise UserError(f"--model {name} cannot be imported ({error}); {hint}") from error
    try:
        network = make if isinstance(make, nn.Module) else make(**given)
    except Exception as error:  # foreign code may raise anything
        raise UserError(
            f"--model {name} could not be called with {arguments} ({type(error).__name__}: {error})"
        ) from error
    if not isinstance(network, nn.Module):
        raise UserError(
            f"--model {name} must return a torch.nn.Module, got {type(network).__name__}"
        )
    drawn: list[str] = []
    if weights is not None:
        _load(network, weights)
    elif network is not make:
        drawn = _random_weights(make, given, network)
    reset: Any = getattr(network, "reset_classifier", None)
    if reset is not None and "num_classes" not in given:
        reset(0)
    left = [parameter for parameter, _ in network.named_parameters() if parameter in drawn]
    if left:
        trained = (
            {"weights": "DEFAULT"} if name.startswith("torchvision.") else {"pretrained": True}
        )
        logger.warning(
            "warning: --model %s has random weights (%s, %d in all): give --model-weights FILE, or "
            "arguments such as --model-arguments '%s'",
            name,
            left[0],
            len(left),
            json.dumps(trained),
        )
    return network.eval()


def _load(network: nn.Module, file: Path) -> None:
    found = read_weights(file, "--model-weights", "give another file")
    state = unwrapped(found, tuple(network.state_dict()))
    if isinstance(state, dict):
        # Scores and settings may stand beside the weights, which may be NumPy's.
        state = {
            name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
            for name, value in state.items()
            if not isinstance(value, int | float | str | np.generic | None)
        }
    if (
        not isinstance(state, dict)
        or not state
        or not all(isinstance(one, Tensor) for one in state.values())
    ):
        names = sorted(map(str, found))[:6] if isinstance(found, dict) else []
        raise UserError(
            f"--model-weights {file}: expected tensors by name, perhaps below one of "
            f"{', '.join(WRAPPERS)}; found {', '.join(names) or 'no names'}"
        )
    try:
        fit = network.load_state_dict(state, strict=False)
    except RuntimeError as error:  # shapes
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise UserError(f"--model-weights {file} is of another network: {first}") from error
    for what, names in (("lacks", fit.missing_keys), ("has unknown", fit.unexpected_keys)):
        if names:
            raise UserError(
                f"--model-weights {file} is of another network: it {what} {names[0]} and "
                f"{len(names) - 1} more of {len(network.state_dict())} names"
            )
