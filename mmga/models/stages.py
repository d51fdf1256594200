"""Cut any network into the four stages that MMGA needs, by the strides of its feature maps.

MMGA reads its first attention at stride 4 and multiplies at stride 8, reads the second one after
the first block of stride 16, and gives each branch all later blocks, whose last stride is set to 1.
A network is followed through one forward pass of tensors without data. Where each module takes
exactly what the one before returned, their chain computes the same features as the network, and may
be cut anywhere; no name of a layer is assumed. A module of the chain that is a chain of blocks
itself is cut further, down to blocks of two or more convolutions.

A vision transformer has one stride. Its blocks are cut by depth: a quarter of them in place of
strides up to 4, half in place of 8, one block in place of the first of stride 16. The class token
stays among the tokens; attention multiplies the others.

Legend: `B` images, `C` channels, `h w` feature map, `N` tokens.
"""

import copy
import sys
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from mmga.common.errors import UserError, first_line

PROBE = (288, 160)
"""Height and width of the probe: multiples of 32 whose ratio no number of channels imitates."""


Kind = Literal["maps", "channels_last", "tokens"]


@dataclass(frozen=True, slots=True)
class Layout:
    """How a network stores a feature map [B, C, h, w].

    Attributes:
        kind: `maps` as it is, `channels_last` as [B, h, w, C], `tokens` as [B, N, C].
        patch: pixels of a token's side.
        prefix: tokens before those of the map, such as the class token.
    """

    kind: Kind = "maps"
    patch: int = 1
    prefix: int = 0

    def to_map(self, x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
        """Return the map [B, C, h, w] inside a stage's output; `size` is the images' (H, W)."""
        if self.kind == "maps":
            return x
        if self.kind == "tokens":
            grid = (size[0] // self.patch, size[1] // self.patch)
            x = x[:, self.prefix :].unflatten(1, grid)
        return x.permute(0, 3, 1, 2)

    def with_map(self, x: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """Return a stage's output `x` with a map [B, C, h, w] in place of its own."""
        if self.kind == "maps":
            return features
        features = features.permute(0, 2, 3, 1)
        if self.kind == "tokens":
            return torch.cat((x[:, : self.prefix], features.flatten(1, 2)), dim=1)
        return features


@dataclass(frozen=True, slots=True)
class Stages:
    """A backbone in the pieces that MMGA wires.

    Attributes:
        stem: from images [B, 3, H, W] to the first features.
        layer1: to the features that module 1 reads; stride 4.
        layer2: to the features that it multiplies; stride 8.
        layer3: the first block of stride 16, whose output module 2 reads.
        tail: the later blocks, which each branch copies.
        widths: channels after layer1, layer2, layer3 and tail.
        layout: of all features.
        last: stride that is left inside the tail, 1 or more.
    """

    stem: nn.Module
    layer1: nn.Module
    layer2: nn.Module
    layer3: nn.Module
    tail: nn.Module
    widths: tuple[int, int, int, int]
    layout: Layout = Layout()
    last: int = 1


@dataclass(slots=True)
class _Call:
    """One call of a module in the probe; versions tell whether a tensor was changed in place."""

    name: str
    module: nn.Module
    given: torch.Tensor | None
    version: int
    returned: torch.Tensor | None = None
    version_after: int = 0
    calls: list["_Call"] = field(default_factory=list)

    @property
    def convolutions(self) -> int:
        """Convolutions and linear layers inside."""
        return sum(isinstance(m, nn.Conv2d | nn.Linear) for m in self.module.modules())

    def chain(self) -> list["_Call"]:
        """Return the calls inside if together they compute what this call does, or nothing."""
        found = _prefix(self)
        whole = found and len(found) == len(self.calls) and found[-1].returned is self.returned
        return found if whole and found[-1].version_after == self.version_after else []

    def blocks(self) -> int:
        """Return how many blocks of two or more convolutions follow one another inside."""
        inside = sum(call.blocks() for call in self.chain() if call.calls)
        return max(inside, int(self.convolutions >= 2))


def split(network: nn.Module, name: str) -> Stages:
    """Cut a network into stages, by strides or, with a single stride, by depth.

    Its modules are used, not copied. Activations in place are switched off, because a stage's
    output has two readers.

    Args:
        network: takes images [B, 3, H, W].
        name: for messages.

    Raises:
        UserError: the network cannot be followed, or has no maps of stride 4, 8 and 16.
    """
    units, layout = _tokens(network) or _units(network, name)
    for module in network.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]
    if layout.kind == "tokens":
        depth = len(units) - 2  # the embedding before the blocks and the normalisation after them
        cuts = [1, 1 + depth // 4, 1 + depth // 2, 2 + depth // 2]
    else:
        cuts = _cuts(units, name)
    parts = [_sequence(units[a:b]) for a, b in zip([0, *cuts], [*cuts, len(units)], strict=True)]
    for part in parts:
        part.train(network.training)
    widths = [units[cut - 1].channels for cut in (*cuts[1:], len(units))]
    last = 1
    if layout.kind != "tokens" and units[-1].stride > units[cuts[3] - 1].stride:
        last = _remove_stride(parts[4], units[cuts[3] - 1], units[-1])
    stem, layer1, layer2, layer3, tail = parts
    four = (widths[0], widths[1], widths[2], widths[3])
    return Stages(stem, layer1, layer2, layer3, tail, four, layout, last)


def tensors_of(network: nn.Module, name: str) -> dict[str, torch.Tensor]:
    """Return the tensors of a network's state dict that are used in its stages.

    Raises:
        UserError: as `split`.
    """
    units, _ = _tokens(network) or _units(network, name)
    used = {id(t) for unit in units for t in unit.module.state_dict(keep_vars=True).values()}
    state = network.state_dict(keep_vars=True)
    return {key: tensor for key, tensor in state.items() if id(tensor) in used}


@dataclass(frozen=True, slots=True)
class _Unit:
    """A module of the chain, and the stride and the channels of the features after it."""

    name: str
    module: nn.Module
    stride: int
    channels: int
    convolutions: int = 0
    shape: tuple[int, ...] = ()


def _units(network: nn.Module, name: str) -> tuple[list[_Unit], Layout]:
    """Return the chain of a network's blocks that give feature maps, and their layout."""
    calls = [one for call in _prefix(_probe(network, name)) for one in _expanded(call)]
    kinds: tuple[Kind, ...] = ("maps", "channels_last")
    units: list[_Unit] = []
    for call in calls:
        shape = () if call.returned is None else tuple(call.returned.shape)
        found = next((one for one in kinds if _stride(shape, one)), None)
        if found is None:
            break
        channels = shape[1] if found == "maps" else shape[3]
        stride = _stride(shape, found)
        units.append(_Unit(call.name, call.module, stride, channels, call.convolutions, shape))
    # Convolutions may come before, and a permutation after, stages of another layout.
    inner = [one.shape for one in units if one.stride == 8]
    kind = kinds[1] if inner and not _stride(inner[0], kinds[0]) else kinds[0]
    while units and not _stride(units[-1].shape, kind):
        units.pop()
    return units, Layout(kind)


def _stride(shape: tuple[int, ...], kind: Kind) -> int:
    """Return the stride of features of that shape and layout, 0 where they are no such map."""
    if len(shape) != 4:
        return 0
    h, w = shape[2:] if kind == "maps" else shape[1:3]
    fits = h > 1 and w > 1 and PROBE[0] % h == 0 and PROBE[1] * h == PROBE[0] * w
    return PROBE[0] // h if fits else 0


def _cuts(units: list[_Unit], name: str) -> list[int]:
    """Return where stem, layer1, layer2 and layer3 end among the units of a chain."""
    strides = [unit.stride for unit in units]
    missing = [stride for stride in (4, 8, 16) if stride not in strides]
    if missing or strides != sorted(strides):
        seen = ", ".join(map(str, dict.fromkeys(strides))) or "none"
        raise UserError(
            f"backbone {name} gives no chain of feature maps of strides 4, 8 and 16 that can be "
            f"cut (found strides {seen}); choose a convolutional network with stages, such as "
            "timm:resnet50, or a vision transformer of timm"
        )
    first = {stride: strides.index(stride) for stride in (4, 8, 16)}
    third, convolutions = first[16], 0
    while third < len(units) and units[third].stride == 16 and convolutions < 2:
        convolutions += units[third].convolutions
        third += 1
    if third == len(units):
        raise UserError(
            f"backbone {name} has one block of stride 16 and none after it, which leaves the "
            "branches empty; choose a deeper network"
        )
    return [first[4] + 1, first[8], first[16], third]


def _sequence(units: list[_Unit]) -> nn.Sequential:
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    for unit in units:
        name = unit.name.replace(".", "_")
        parts[name if name not in parts else f"{name}_{len(parts)}"] = unit.module
    return nn.Sequential(parts)


def _hollow(network: nn.Module) -> Any:
    """Return a copy of a network on the meta device, whose tensors have shapes and no data."""
    state = [*network.parameters(), *network.buffers()]
    memo: dict[int, Any] = {}
    for tensor in state:
        empty = torch.empty_like(tensor, device="meta")
        if isinstance(tensor, nn.Parameter):
            empty = nn.Parameter(empty, requires_grad=tensor.requires_grad)
        memo[id(tensor)] = empty
    return copy.deepcopy(network, memo).eval()


@torch.inference_mode(False)  # whose tensors count no versions
def _probe(network: nn.Module, name: str) -> _Call:
    """Return the call of a network on an image without data, with all calls inside."""
    hollow = _hollow(network)
    images = torch.empty(1, 3, *PROBE, dtype=torch.float32, device="meta")
    modules = dict(network.named_modules())
    top = _Call("", network, images, 0)
    stack = [top]

    def enter(path: str) -> Any:
        def hook(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            one = given[0] if len(given) == 1 and not named else None
            tensor = one if isinstance(one, torch.Tensor) else None
            call = _Call(path, modules[path], tensor, 0 if tensor is None else tensor._version)
            stack[-1].calls.append(call)
            stack.append(call)

        return hook

    def leave(_: nn.Module, given: tuple[Any, ...], returned: Any) -> None:
        call = stack.pop()
        if isinstance(returned, torch.Tensor):
            call.returned, call.version_after = returned, returned._version

    for path, module in hollow.named_modules():
        if path:
            module.register_forward_pre_hook(enter(path), with_kwargs=True)
            module.register_forward_hook(leave)
    try:
        with torch.no_grad():
            hollow(images)
    except Exception as error:  # foreign code may raise anything
        raise UserError(
            f"backbone {name} cannot take images of {PROBE[0]}x{PROBE[1]} pixels "
            f"({first_line(error)}); choose one that takes images of any size"
        ) from error
    return top


def _prefix(call: _Call) -> list[_Call]:
    """Return the first calls inside, each of which takes what the one before returned."""
    found: list[_Call] = []
    tensor, version = call.given, call.version
    for inner in call.calls:
        if inner.given is None or inner.given is not tensor or inner.version != version:
            break
        found.append(inner)
        tensor, version = inner.returned, inner.version_after
    return found


def _expanded(call: _Call) -> list[_Call]:
    """Return a call, or the calls of its chain where that is one of several blocks."""
    inside = call.chain()
    blocks = sum(one.blocks() for one in inside if one.calls)
    if inside and (blocks >= 2 or _growth(call) > 2):
        return [one for part in inside for one in _expanded(part)]
    return [call]


def _growth(call: _Call) -> float:
    """Return by what factor a call lessens the height of maps."""
    if call.given is None or call.returned is None or call.given.ndim != 4:
        return 1
    return call.given.shape[2] / call.returned.shape[2] if call.returned.ndim == 4 else 1


class EvenConv2d(nn.Conv2d):
    """Convolution of stride 1 and an even kernel, which keeps the map's size.

    As the strided one it sees a pixel and those to its right and below.
    """

    @classmethod
    def of(cls, strided: nn.Conv2d) -> "EvenConv2d":
        """Return a convolution with the very parameters of a strided one without padding."""
        channels, width, kernel = strided.in_channels, strided.out_channels, strided.kernel_size
        bias = strided.bias is not None
        height = (kernel[0], kernel[1])
        made = cls(channels, width, height, groups=strided.groups, bias=bias, device="meta")
        made.weight, made.bias = strided.weight, strided.bias
        return made

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return features [B, width, h, w] of features [B, channels, h, w]."""
        return super().forward(
            nn.functional.pad(x, (0, self.kernel_size[1] - 1, 0, self.kernel_size[0] - 1))
        )


def _remove_stride(tail: nn.Sequential, before: _Unit, after: _Unit) -> int:
    """Set the strides inside the branches to 1 where that can be; return the stride that is left.

    Kernels stay as they are, not dilated, as published re-ID baselines do. Poolings of an even size
    become the identity.
    """
    trial = copy.deepcopy(tail, {id(p): p for p in (*tail.parameters(), *tail.buffers())})
    _set_strides(trial)
    if not _keeps_size(trial, before):
        return after.stride // before.stride
    _set_strides(tail)
    return 1


def _set_strides(tail: nn.Sequential) -> None:
    for path, module in list(tail.named_modules()):
        stride = getattr(module, "stride", 1)
        if len(list(module.children())) or stride in (1, (1, 1), [1, 1]):
            continue
        kernel: Any = getattr(module, "kernel_size", 1)
        even = (kernel if isinstance(kernel, int) else kernel[0]) % 2 == 0
        if even and type(module) is nn.Conv2d and module.padding == (0, 0):
            parent, _, child = path.rpartition(".")
            setattr(tail.get_submodule(parent), child, EvenConv2d.of(module))
            continue
        one: Any = 1 if isinstance(stride, int) else (1, 1)
        module.stride = one
        if even and not isinstance(module, nn.Conv2d):
            module.kernel_size = 1 if isinstance(kernel, int) else (1, 1)
            module.padding = 0


def _keeps_size(tail: nn.Sequential, before: _Unit) -> bool:
    hollow = _hollow(tail)
    shape = list(before.shape)
    axis = 2 if _stride(before.shape, "maps") else 1
    for size in ((18, 10), (17, 9)):
        shape[axis : axis + 2] = size
        try:
            with torch.no_grad():
                found = hollow(torch.empty(shape, dtype=torch.float32, device="meta"))
        except RuntimeError:  # parts of it were not changed
            return False
        if tuple(found.shape[axis : axis + 2]) != size:
            return False
    return True


class TokenEmbedding(nn.Module):
    """Patches, position embeddings and class token of a vision transformer of timm.

    Args:
        transformer: its blocks, last normalisation and head are not used.
    """

    OWN = ("patch_embed", "pos_drop", "patch_drop", "norm_pre", "cls_token", "reg_token")

    def __init__(self, transformer: Any) -> None:
        super().__init__()
        hull = copy.copy(transformer)  # shares every tensor
        hull._modules = {
            name: module
            for name, module in transformer._modules.items()
            if name in (*self.OWN, "pos_embed")
        }
        self.transformer = hull

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return tokens [B, N, C] of images [B, 3, H, W]."""
        patch, size = self.transformer.patch_embed.patch_size, images.shape[2:]
        fits = [max(1, round(side / one)) * one for side, one in zip(size, patch, strict=True)]
        if fits != list(size):
            raise UserError(
                f"a vision transformer of patches of {patch[0]}x{patch[1]} pixels needs images of "
                f"multiples of them, got {size[0]}x{size[1]}; change --height and --width, to "
                f"{fits[0]}x{fits[1]} for example"
            )
        x = self.transformer.patch_embed(images)
        x = self.transformer.patch_drop(self.transformer._pos_embed(x))
        tokens: torch.Tensor = self.transformer.norm_pre(x)
        return tokens


def _tokens(network: Any) -> tuple[list[_Unit], Layout] | None:
    """Return embedding, blocks and normalisation of a vision transformer of timm, or None."""
    module = sys.modules.get("timm.models.vision_transformer")
    if module is None or not isinstance(network, module.VisionTransformer):
        return None
    patch = network.patch_embed.patch_size[0]
    modules = {"embedding": TokenEmbedding(network)}
    modules |= {f"blocks.{i}": block for i, block in enumerate(network.blocks)}
    modules["norm"] = network.norm
    units = [_Unit(name, module, patch, network.embed_dim) for name, module in modules.items()]
    return units, Layout("tokens", patch, network.num_prefix_tokens)
