"""Configuration of a training run: typed, from a recipe, a YAML file and flags, in that order.

Imports no torch, so that `--help` and the checks of a configuration are instant. Sources of the
defaults: PAPER = the paper or notes on it; AUTHOR = the first author's public code of the same
weeks; TRICKS = "Bag of Tricks" (Luo et al., CVPRW 2019); OURS = this project's choice.
"""

import dataclasses
import difflib
import math
import os
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from mmga.common.errors import UserError
from mmga.common.files import atomic_path
from mmga.common.options import Device, Flag, Size

DataName = Literal[
    "synthetic",
    "market1501",
    "dukemtmc",
    "msmt17",
    "cuhk03",
    "cuhk03-classic",
    "occluded-duke",
    "viper",
    "csv",
]
RecipeName = Literal["synthetic", "mgn", "bot", "strong"]

OWN_PROTOCOLS: dict[str, str] = {"cuhk03-classic": "cuhk03-single-shot"}
"""Protocols of the data sets whose published figures are not of Market-1501's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Data sets, their splits, masks and loading."""

    data: DataName = "synthetic"
    """Data set."""
    also: tuple[DataName, ...] = ()
    """Further data sets, trained on together with the first."""
    test: tuple[DataName, ...] = ()
    """Data sets tested on, each a row of one table; those trained on if none is named."""
    root: Path | None = None
    """Folder of the data set, or of its parent; by default $MMGA_DATA; for csv the table itself."""
    masks: Path | None = None
    """Folder of mask PNGs (for viper also the .mat of silhouettes); none for synthetic. With --also
    a folder that has one of each set's name."""
    label_set: Annotated[str, Flag(value="NAME")] = "parts"
    """Label set of the mask files: parts, lip, atr, pascal, densepose or silhouette."""
    halved_at: float | None = None
    """Height at which silhouettes are halved into upper and bottom body, as a share of the image's,
    0 (top) to 1; by default they stay whole."""
    split: int = 0
    """Number of the split, where a data set has several."""
    splits_file: Path | None = None
    """File of fixed splits (viper); without it splits are drawn from their number."""
    direction: Literal["ab", "ba"] = "ab"
    """Cameras of queries and gallery (viper): ab takes the queries from camera a."""
    boxes: Literal["detected", "labeled"] = "detected"
    """Bounding boxes (cuhk03, cuhk03-classic)."""
    with_val: bool = True
    """Train on train and val, or on train alone (msmt17)."""
    distractors: Path | None = None
    """Folder of images added to the gallery under identity 0 (market1501's 500,000)."""
    height: int = 384
    """Image height in pixels."""
    width: int = 128
    """Image width in pixels."""
    persons: int = 64
    """Training identities (synthetic)."""
    test_persons: int = 48
    """Test identities (synthetic)."""
    challenge: Annotated[str, Flag(value="NAME")] = "mixed"
    """Difficulty of the images (synthetic): mixed, clean, pose, misalignment, occlusion or
    clutter."""
    severity: int = 1
    """Severity of the difficulty, 1 to 3 (synthetic)."""
    schemes: int = 0
    """Colour schemes of the clothes (synthetic); fewer is harder, 0 for as many as persons ask."""
    population: Annotated[str, Flag(value="NAME")] = "varied"
    """Distribution of persons (synthetic): varied, or uniform, whose colours tell little."""
    data_seed: int = 0
    """Seed of the generated images (synthetic)."""
    val_ids: int = 0
    """Training identities held out to validate on, 0 for none; best.safetensors is then the best by
    their mAP. Which they are depends on the data set alone, so that runs compare."""
    allow_missing_masks: bool = False
    """Train although fewer than half of the images have a mask."""
    skip_broken: bool = False
    """Leave out and count images that cannot be decoded, instead of stopping."""
    workers: int = 0
    """Processes that load images; 0 loads in the process itself."""
    cache: Size = None
    """Bytes for resized training images that are kept from epoch to epoch, such as 512M or 2G; by
    default none is kept."""

    def root_of(self, name: str) -> Path | None:
        """Return the folder of one of the sets; a table given as --root is the csv set's alone."""
        table = self.data == "csv" or (self.root is not None and self.root.suffix == ".csv")
        return self.root if table == (name == "csv") else None

    def masks_of(self, name: str) -> Path | None:
        """Return the masks' folder of one of the sets, None where there is none."""
        if self.masks is None or not self.also:
            return self.masks if name == self.data else None
        folder = self.masks / name
        return folder if folder.exists() else None


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """The network (mmga.models.MMGA)."""

    backbone: Annotated[str, Flag(value="NAME")] = "resnet50"
    """Any torchvision ResNet, tiny, resnet50_ibn_a, osnet_x1_0, timm:NAME or torchvision:NAME."""
    weights: Annotated[str, Flag(value="NAME")] = "IMAGENET1K_V1"
    """torchvision's or timm's weights of the backbone, none for random ones, or a file of weights
    (.pth, .pt, .safetensors) of torchvision, timm, torchreid, fast-reid or plain ImageNet
    training."""
    backbone_weights: Annotated[Path | None, Flag(value="FILE")] = None
    """File of backbone weights, with --weights none."""
    allow_partial_weights: bool = False
    """Start from a file of weights although it fits less than 90% of the backbone's parameters."""
    frozen_stages: int = 0
    """Stages of the backbone that stay as loaded: 0 none, 1 the stem, 2 layer1 as well, 3 layer2 as
    well [OURS]; small data sets train faster so."""
    attention: Literal["both", "first", "none", "auxiliary"] = "both"
    """Modules that are there; auxiliary computes the maps without multiplying them in."""
    combine: Literal["product", "residual"] = "product"
    """How spatial attention S and channel attention C are combined: S*C [PAPER] or C*(1+S)
    [AUTHOR]."""
    branches: Literal["copies", "shared", "single"] = "copies"
    """Each branch its own copy of the late stages [AUTHOR], one for all, or one branch only."""
    heads: Literal[3, 8] = 3
    """One head a branch, or MGN's stripes as well [AUTHOR]."""
    neck: Literal["none", "bnneck"] = "none"
    """Between triplet and classifier: none, or bnneck, batch normalisation [TRICKS]."""
    pool: Literal["max", "avg", "gem"] = "max"
    """Global pooling [AUTHOR]."""
    spatial_kernel: Literal[1, 3] = 1
    """Kernel of the spatial attention's convolutions, in pixels: 1 [PAPER] or 3 [AUTHOR]."""
    read0: Literal["layer1", "layer2"] = "layer1"
    """Stage of the backbone that the first attention module reads."""
    reduction: Literal["head", "shared"] = "head"
    """The 1x1 convolution to the embedding: one per head [OURS] or shared [AUTHOR]."""
    classifier: Literal["kaiming", "normal"] = "kaiming"
    """Start of classifiers: kaiming fan_out [AUTHOR], or normal with a standard deviation of 0.001
    and no bias [TRICKS]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LossConfig:
    """The losses; L = triplet + id_weight * id + mask_weight * mask."""

    id_weight: float = 2.0
    """Weight of the cross-entropy [AUTHOR]."""
    mask_weight: float = 1.0
    """Weight of the mask-guided attention loss, lambda in the paper [OURS]."""
    guide: Literal["own", "whole", "mean", "other"] = "own"
    """Guide of the attention maps: the image's own masks [PAPER], its whole body on every map,
    or, as controls that show no image its own mask, the mean mask of the training set or the masks
    of another identity's image in the batch [OURS]."""
    mask_blur: float = 0.0
    """Reach, 0 to 0.1 of the image's height, to which the borders of masks as guides are blurred
    (as labels are smoothed in space: Islam and Glocker, IPMI 2021)."""
    mask_fade: float = 0.0
    """Share, 0 to 1, of mask_weight that is taken back during the run, evenly from epoch to epoch
    (as deeply-supervised nets do: Lee et al., AISTATS 2015)."""
    margin: float = 1.2
    """Margin of the batch-hard triplet, in Euclidean distance [AUTHOR]."""
    smoothing: float = 0.0
    """Label smoothing of the cross-entropy, 0 to 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    """Adam with coupled L2, and the schedule of its learning rate."""

    lr: float = 2e-4
    """Learning rate, for the whole batch of P*K images."""
    attention_lr: float = 1.0
    """Factor on the attention modules' rate [OURS]; short runs need more than 1, because the last
    layer of a spatial attention has a handful of weights and Adam moves each by the rate."""
    weight_decay: float = 5e-4
    """Weight of the coupled L2 term."""
    amsgrad: bool = True
    """Adam's amsgrad."""
    beta2: float = 0.999
    """Adam's decay of squared gradients; lower forgets the large first ones sooner."""
    schedule: Literal["step", "cosine"] = "step"
    """step: times gamma at each milestone; cosine: down to zero at the end."""
    milestones: tuple[int, ...] = (100, 200, 250, 300, 350, 400, 450)
    """Epochs at which a step schedule drops."""
    gamma: float = 0.5
    """Factor of a drop."""
    warmup_epochs: int = 0
    """Epochs of linear warm-up from 1% of the rate."""
    clip_norm: float = 0.0
    """Largest gradient norm; 0 clips nothing."""
    ema: float = 0.0
    """Decay of a moving average of the weights, which is then evaluated; 0 keeps none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchConfig:
    """Sampling of batches and augmentation of images."""

    sampler: Literal["mgn", "bot"] = "mgn"
    """mgn: every identity once an epoch; bot: every image, in chunks of K."""
    p: int = 16
    """Identities in a batch."""
    k: int = 4
    """Images of each identity in a batch."""
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    """Resizing of images."""
    flip: float = 0.5
    """Probability of a mirror image, 0 to 1."""
    pad: int = 0
    """Pixels padded on each side before a random crop."""
    erasing: float = 0.5
    """Probability of random erasing, 0 to 1."""
    erasing_fill: Literal["zero", "mean"] = "zero"
    """zero after normalisation (the mean colour) [AUTHOR], or the mean colour's value [TRICKS]."""
    erase_mask: bool = True
    """Erase the mask in the same rectangle."""
    part_drop: float = 0.0
    """Probability, 0 to 1, of covering the upper or the bottom body, as its mask shows it, with the
    mean colour (occluded samples: Huang et al., CVPR 2018)."""
    new_background: float = 0.0
    """Probability, 0 to 1, with which other images' scenes replace all that an image's mask does
    not cover [OURS]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """Length, device, precision and logging of a run."""

    epochs: int = 500
    """Epochs to train."""
    seed: int = 0
    """Seed of initialisation, sampling and augmentation."""
    device: Device = "auto"
    """auto, cpu, cuda or cuda:N."""
    threads: int = 0
    """CPU threads of torch; 0 leaves torch's own number."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic; bfloat16 is autocast in forward and loss."""
    channels_last: bool = False
    """Store images and convolutions with the channels last, which some CPUs and GPUs prefer."""
    compile: bool = False
    """Compile the network by torch.compile."""
    norm: Literal["auto", "synced", "local", "frozen"] = "auto"
    """Batch normalisation: synced over processes or local to each; auto syncs where a process
    holds fewer than 32 images of a batch, on CUDA. frozen keeps the statistics as loaded."""
    deterministic: bool = False
    """Refuse algorithms whose results change from run to run."""
    eval_every: int = 0
    """Epochs between evaluations; 0 evaluates after the last epoch alone."""
    checkpoint_every: int = 1
    """Epochs between checkpoints."""
    log_every: int = 10
    """Steps between lines in metrics.jsonl."""
    flip_test: bool = True
    """Sum the features of an image and of its mirror image when evaluating."""
    protocol: Annotated[str | None, Flag(value="NAME")] = None
    """Which items count for a query in validations and tests, as eval's --protocol names it; the
    data set's own where none is named."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Configuration of a training run."""

    recipe: RecipeName = "mgn"
    """Source of the defaults; unless named, synthetic for synthetic data and mgn for real data."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    run: RunConfig = field(default_factory=RunConfig)


def default_root() -> Path | None:
    """Return the folder that holds data sets, from the environment variable MMGA_DATA."""
    folder = os.environ.get("MMGA_DATA")
    return Path(folder).expanduser() if folder else None


# Least and greatest value of each number; None: _MANY, which float32 and counters can hold.
_MANY = 10**9
_SEEDS = (0, 2**63 - 1)
_PROBABILITY = (0, 1)
_RANGES: dict[str, tuple[int, float | None]] = {
    **dict.fromkeys(("height", "width", "p", "epochs", "checkpoint_every", "log_every"), (1, None)),
    "batch_size": (1, None),
    **dict.fromkeys(("val_ids", "warmup_epochs", "eval_every", "split"), (0, None)),
    **dict.fromkeys(("schemes", "pad", "id_weight", "mask_weight"), (0, None)),
    **dict.fromkeys(("margin", "attention_lr", "weight_decay", "clip_norm", "gamma"), (0, None)),
    **dict.fromkeys(("flip", "erasing", "new_background", "smoothing", "halved_at"), _PROBABILITY),
    **dict.fromkeys(("part_drop", "mask_fade"), _PROBABILITY),
    "mask_blur": (0, 0.1),
    **dict.fromkeys(("seed", "data_seed"), _SEEDS),
    **dict.fromkeys(("threads", "workers"), (0, 1024)),
    **dict.fromkeys(("persons", "test_persons"), (2, None)),
    "severity": (1, 3),
    "frozen_stages": (0, 3),
    "lr": (0, None),
    "milestones": (1, None),
}


def check_ranges(section: object) -> None:
    """Raise a UserError if a number of a section, or of a command's options, is out of its range.

    Args:
        section: a dataclass; a field has the range of the configuration's field of that name.
    """
    for field_ in dataclasses.fields(typing.cast(Any, section)):
        given = getattr(section, field_.name)
        least, most = _RANGES.get(field_.name, (None, None))
        for value in given if isinstance(given, tuple) else (given,):
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            bound = _MANY if most is None else most
            if least is not None and value < least:
                wanted = f"be at least {least}" if least else "not be negative"
            elif value > bound:
                wanted = f"be at most {bound}"
            else:
                continue
            raise UserError(f"--{field_.name.replace('_', '-')} must {wanted}, got {value}")


def check(config: Config) -> None:
    """Raise a UserError if the values of a configuration do not fit together."""
    data, optimizer = config.data, config.optimizer
    for section in (data, config.model, config.loss, optimizer, config.batch, config.run):
        check_ranges(section)
    if config.batch.k < 2:
        raise UserError(
            f"--k must be at least 2, because a triplet needs two images of an identity, "
            f"got {config.batch.k}"
        )
    rows = -(-data.height // 16)  # of the last feature map: four halvings, rounded up
    if config.model.heads == 8 and rows < 3:
        raise UserError(
            f"--height must be at least 33 for --heads 8, whose branches have up to 3 stripes, "
            f"got {data.height}"
        )
    if config.loss.guide == "other" and config.batch.p < 2:
        raise UserError(
            f"--p must be at least 2 for --guide other, which takes another identity's masks, "
            f"got {config.batch.p}"
        )
    if config.batch.p < 2:
        raise UserError(
            f"--p must be at least 2, because a triplet needs another identity, "
            f"got {config.batch.p}"
        )
    if not 0 <= optimizer.ema < 1:
        raise UserError(f"--ema must be from 0 to below 1, got {optimizer.ema}")
    if not 0 < optimizer.beta2 < 1:
        raise UserError(f"--beta2 must be between 0 and 1, got {optimizer.beta2}")
    if not optimizer.lr > 0:
        raise UserError(f"--lr must be above 0, got {optimizer.lr}")
    _check_sets(data)


def _check_sets(data: DataConfig) -> None:
    """Raise a UserError if a data set is named twice, or its folder cannot be known."""
    for flag, names in (("--also", (data.data, *data.also)), ("--test", data.test)):
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise UserError(f"{flag} names {twice[0]} a second time; name each data set once")
    sets = dict.fromkeys((data.data, *data.also, *data.test))
    for flag in ("masks", "distractors", "splits_file"):
        if getattr(data, flag) is not None and set(sets) == {"synthetic"}:
            raise UserError(
                f"--{flag.replace('_', '-')} is for data sets of files, and synthetic draws its "
                "own images and masks; name the data set with --data, or leave it out"
            )
    for name in sets:
        root = data.root_of(name)
        if name == "csv" and root is None:
            raise UserError("--root is missing: name the table of csv with --root TABLE.csv")
        if name != "synthetic" and root is None and default_root() is None:
            raise UserError(
                f"--root is missing: name the folder of {name} with --root DIR, or set MMGA_DATA"
            )


def _bot(**run: Any) -> dict[str, dict[str, Any]]:
    return {
        "model": {"neck": "bnneck", "classifier": "normal"},
        "loss": {"id_weight": 1.0, "margin": 0.3, "smoothing": 0.1},
        "optimizer": {
            "lr": 3.5e-4,
            "amsgrad": False,
            "milestones": (40, 70),
            "gamma": 0.1,
            "warmup_epochs": 10,
        },
        "batch": {
            "sampler": "bot",
            "interpolation": "bilinear",
            "pad": 10,
            "erasing_fill": "mean",
        },
        "run": {"epochs": 120, "flip_test": False, **run},
    }


def recipe_values(recipe: str) -> dict[str, Any]:
    """Return the values that a recipe changes, as nested mappings.

    Raises:
        UserError: there is no such recipe.
    """
    names = typing.get_args(RecipeName)
    if recipe == "mgn":
        return {"recipe": recipe}
    if recipe == "bot":
        return {"recipe": recipe, **_bot()}
    if recipe == "strong":
        values = _bot(flip_test=True)
        values["model"] |= {"pool": "gem", "heads": 8}
        values["optimizer"] |= {"schedule": "cosine"}
        return {"recipe": recipe, **values}
    if recipe == "synthetic":
        return {
            "recipe": recipe,
            "data": {"height": 128, "width": 64, "persons": 192, "schemes": 10},
            # Trained from nothing in a thousand steps: average pooling lets every pixel teach, and
            # module 1 needs to see more than 35 pixels to tell a person from clutter.
            "model": {
                "backbone": "tiny",
                "weights": "none",
                "neck": "bnneck",
                "classifier": "normal",
                "pool": "avg",
                "spatial_kernel": 3,
                "read0": "layer2",
            },
            # From random weights the triplet's gradient on the maps is some hundred times that of
            # the mask loss (map_gradients in metrics.jsonl): with lambda 1 they learn no mask.
            "loss": {"id_weight": 1.0, "margin": 0.3, "mask_weight": 20.0},
            "optimizer": {
                "lr": 2e-3,
                "attention_lr": 3.0,
                "schedule": "cosine",
                "warmup_epochs": 1,
            },
            "batch": {"sampler": "bot", "interpolation": "bilinear", "pad": 4, "erasing": 0.3},
            "run": {"epochs": 21, "channels_last": True},
        }
    raise UserError(f"recipe must be one of {', '.join(names)}, got {recipe!r}")


def load_config(path: Path | str, base: Config | None = None) -> Config:
    """Read a YAML configuration; keys that it leaves out come from its recipe, or from `base`.

    Raises:
        UserError: the file cannot be read, or holds a key or a value that does not exist.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"configuration {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"configuration {path} is not UTF-8 text: {error}") from error
    import yaml

    try:
        values = yaml.safe_load(text)
        values = {} if values is None else values
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # dates, depth
        reason = " ".join(str(error).split())
        raise UserError(f"configuration {path} is not YAML: {reason}") from error
    if not isinstance(values, dict):
        raise UserError(f"configuration {path} must hold sections such as `data:` and `model:`")
    recipe = values.get("recipe", base.recipe if base is not None else "mgn")
    start = recipe_config(recipe) if base is None else base
    return merged(start, values, where=str(path))


def protocol_of(config: Config, data: DataName | None = None) -> str:
    """Return the protocol by which a run is tested, on its own first test set or on another."""
    name = data or (*config.data.test, config.data.data)[0]
    return config.run.protocol or OWN_PROTOCOLS.get(name, "market1501")


def recipe_config(recipe: str) -> Config:
    """Return the configuration of a recipe."""
    return merged(Config(), recipe_values(recipe), where=f"recipe {recipe}")


def merged(config: Config, values: dict[str, Any], *, where: str) -> Config:
    """Return `config` with nested `values` in place of its own.

    Raises:
        UserError: a key does not exist (the nearest one is named) or a value has the wrong type.
    """
    whole: Config = _merge(config, values, where, "")
    return whole


def _merge(instance: Any, values: dict[str, Any], where: str, prefix: str) -> Any:
    hints = typing.get_type_hints(type(instance))
    changes = {}
    for key, value in values.items():
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, 1)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"there are {', '.join(hints)}"
            raise UserError(f"{where}: no key {prefix}{key}; {hint}")
        old = getattr(instance, key)
        if dataclasses.is_dataclass(old):
            if not isinstance(value, dict):
                raise UserError(f"{where}: {prefix}{key} must be a section, found {value!r}")
            changes[key] = _merge(old, value, where, f"{prefix}{key}.")
        else:
            changes[key] = _converted(value, hints[key], f"{where}: {prefix}{key}")
    return dataclasses.replace(instance, **changes)


def _converted(value: Any, hint: Any, name: str) -> Any:
    """Return `value` as the annotated type; refuse values of similar types."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if not any(value == one and type(value) is type(one) for one in arguments):
            raise UserError(f"{name} must be one of {', '.join(map(str, arguments))}, got {value}")
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        hint = next(argument for argument in arguments if argument is not type(None))
        return _converted(value, hint, name)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise UserError(f"{name} must be a list, got {value!r}")
        return tuple(_converted(item, arguments[0], name) for item in value)
    if hint is Path and isinstance(value, str | Path):
        return Path(value)
    if hint is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        # YAML reads 2e-4, which has no dot, as a string.
        try:
            number = float(value)
        except (ValueError, OverflowError):
            number = math.nan
        if math.isfinite(number):
            return number
        raise UserError(f"{name} must be a finite number, got {value!r}")
    if isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    raise UserError(f"{name} must be of type {hint.__name__}, got {value!r}")


def as_dict(config: Config) -> dict[str, Any]:
    """Return a configuration as plain nested values, fit for YAML and JSON."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, Path):
            return str(value)
        return list(value) if isinstance(value, tuple) else value

    values: dict[str, Any] = plain(dataclasses.asdict(config))
    return values


def save_config(config: Config, path: Path | str) -> None:
    """Write the whole configuration as YAML."""
    with atomic_path(path) as temporary:
        temporary.write_text(to_yaml(config), encoding="utf-8")


def to_yaml(config: Config) -> str:
    """Return the whole configuration as YAML text."""
    import yaml

    return yaml.safe_dump(as_dict(config), sort_keys=False)
