"""Files of weights of torchvision, timm, torchreid, fast-reid and others, with their real names.

Each file is made here: the names and shapes are those of its author's code, the values drawn.
"""

import importlib.util
import logging
import re

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from small_training import command, data, small, table

from mmga.common.errors import UserError
from mmga.models import MMGA
from mmga.models.backbone import build_backbone
from mmga.training.trainer import train

NEEDS_TIMM = pytest.mark.skipif(
    importlib.util.find_spec("timm") is None, reason="timm is not installed"
)
IF_TIMM = [pytest.param("timm:mobilenetv2_100", marks=NEEDS_TIMM)]
CLASSIFIER = {"fc.weight": (5, 512), "fc.bias": (5,)}


def drawn(shapes):
    """Return tensors of those shapes, each with values of its own."""
    random = torch.Generator().manual_seed(0)
    return {
        name: torch.tensor(7)
        if name.endswith("num_batches_tracked")
        else torch.rand(shape, generator=random) + 0.1
        for name, shape in shapes.items()
    }


def norm(name, channels):
    names = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{one}": (channels,) for one in names} | {f"{name}.num_batches_tracked": ()}


def resnet18(ibn=False):
    """The names of torchvision's ResNet-18, which timm, torchreid and fast-reid share."""
    shapes = {"conv1.weight": (64, 3, 7, 7), **norm("bn1", 64)}
    before = 64
    for stage, width in enumerate((64, 128, 256, 512), start=1):
        for block in (0, 1):
            at = f"layer{stage}.{block}"
            shapes[f"{at}.conv1.weight"] = (width, before, 3, 3)
            if ibn and stage < 4:
                half = width // 2
                shapes |= {f"{at}.bn1.IN.weight": (half,), f"{at}.bn1.IN.bias": (half,)}
                shapes |= norm(f"{at}.bn1.BN", half)
            else:
                shapes |= norm(f"{at}.bn1", width)
            shapes[f"{at}.conv2.weight"] = (width, width, 3, 3)
            shapes |= norm(f"{at}.bn2", width)
            if before != width:
                shapes[f"{at}.downsample.0.weight"] = (width, before, 1, 1)
                shapes |= norm(f"{at}.downsample.1", width)
            before = width
    return shapes


def torchreid_osnet():
    """OSNet of a quarter's width, from torchreid/models/osnet.py."""

    def layer(name, before, width, kernel=1):
        conv = {f"{name}.conv.weight": (width, before, kernel, kernel)}
        return conv | norm(f"{name}.bn", width)

    def light(name, width):
        shapes = {f"{name}.conv1.weight": (width, width, 1, 1)}
        return shapes | {f"{name}.conv2.weight": (width, 1, 3, 3)} | norm(f"{name}.bn", width)

    def block(name, before, width):
        middle, shapes = width // 4, layer(f"{name}.conv1", before, width // 4)
        shapes |= light(f"{name}.conv2a", middle)
        for letter, count in zip("bcd", (2, 3, 4), strict=True):
            for index in range(count):
                shapes |= light(f"{name}.conv2{letter}.{index}", middle)
        few = middle // 16
        shapes |= {f"{name}.gate.fc1.weight": (few, middle, 1, 1), f"{name}.gate.fc1.bias": (few,)}
        shapes |= {f"{name}.gate.fc2.weight": (middle, few, 1, 1)}
        shapes |= {f"{name}.gate.fc2.bias": (middle,)} | layer(f"{name}.conv3", middle, width)
        return shapes | (layer(f"{name}.downsample", before, width) if before != width else {})

    shapes = layer("conv1", 3, 16, 7)
    before = 16
    for stage, width in ((2, 64), (3, 96), (4, 128)):
        shapes |= block(f"conv{stage}.0", before, width) | block(f"conv{stage}.1", width, width)
        if stage < 4:
            shapes |= layer(f"conv{stage}.2.0", width, width)
        before = width
    shapes |= layer("conv5", 128, 128) | {"fc.0.weight": (512, 128), "fc.0.bias": (512,)}
    return shapes | norm("fc.1", 512) | {"classifier.weight": (751, 512), "classifier.bias": (751,)}


def mgn_of_fastreid():
    """ResNet-18's wiring in the two sequences of fastreid/modeling/meta_arch/mgn.py."""
    places = {"conv1": "backbone.0", "bn1": "backbone.1"}
    places |= {"layer1": "backbone.4", "layer2": "backbone.5"}
    shapes = {}
    for name, shape in resnet18().items():
        stage, _, rest = name.partition(".")
        if stage in places:
            shapes[f"{places[stage]}.{rest}"] = shape
        elif name.startswith("layer3.0."):
            shapes[f"backbone.6.{name.removeprefix('layer3.0.')}"] = shape
        else:
            for branch in ("b1", "b2", "b3"):
                place = name.replace("layer3.1", f"{branch}.0.0").replace("layer4", f"{branch}.1")
                shapes[place] = shape
    return shapes | {"b1_head.weight": (751, 256), "b1_head.bottleneck.0.weight": (256, 512, 1, 1)}


def prefixed(prefix, shapes):
    return {f"{prefix}{name}": shape for name, shape in shapes.items()}


TORCHREID = {"epoch": 60, "rank1": 0.9, "optimizer": {"state": {}, "param_groups": []}}
KINDS = {
    "torchvision": ("resnet18", {**resnet18(), **CLASSIFIER}, "", {}),
    "timm": ("resnet18", {**resnet18(), **CLASSIFIER}, "state_dict", {"arch": "resnet18"}),
    "timm's average": ("resnet18", {**resnet18(), **CLASSIFIER}, "state_dict_ema", {}),
    "torchreid": (
        "osnet_x0_25",
        prefixed("module.", torchreid_osnet()),
        "state_dict",
        TORCHREID,
    ),
    "fast-reid": (
        "resnet18_ibn_a",
        {
            **prefixed("backbone.", resnet18(ibn=True)),
            "heads.weight": (751, 512),
            **prefixed("heads.", norm("bottleneck.0", 512)),
        },
        "model",
        {"iteration": 9, "scheduler": {"last_epoch": 3}},
    ),
    "fast-reid's MGN": ("resnet18", mgn_of_fastreid(), "model", {"iteration": 9}),
    "IBN-Net": ("resnet18_ibn_a", prefixed("module.", resnet18(ibn=True)), "state_dict", {}),
    "bag of tricks": ("resnet18", {**prefixed("base.", resnet18()), **CLASSIFIER}, "", {}),
    "an encoder": ("resnet18", prefixed("encoder.", resnet18()), "net", {}),
}


def written(path, tensors, key="", more=None):
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save({key: tensors, **(more or {})} if key else tensors, path)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_files_of_others_fit_whole(kind, tmp_path, caplog):
    name, shapes, key, more = KINDS[kind]
    tensors = drawn(shapes)
    path = written(tmp_path / "weights.pth", tensors, key, more)
    with caplog.at_level(logging.WARNING):
        network = build_backbone(name, str(path))
    left = [record.getMessage() for record in caplog.records]
    assert not left or "MGN" in kind  # its second and third branch are left out, and said to be
    held = {tuple(value.shape): [] for value in tensors.values()}
    for value in tensors.values():
        held[tuple(value.shape)].append(value)
    for own, value in network.state_dict().items():
        if not own.startswith(("fc.", "classifier.")):
            assert any(torch.equal(value, one) for one in held[tuple(value.shape)]), own
    first = next(iter(tensors))
    assert torch.equal(next(iter(network.state_dict().values())), tensors[first])


def test_the_branch_that_is_taken_of_an_mgn(tmp_path, caplog):
    tensors = drawn(mgn_of_fastreid())
    path = written(tmp_path / "mgn.pth", tensors, "model")
    network = build_backbone("resnet18", str(path))
    assert torch.equal(network.layer3[1].conv2.weight, tensors["b1.0.0.conv2.weight"])
    assert torch.equal(network.layer4[0].conv1.weight, tensors["b1.1.0.conv1.weight"])
    assert torch.equal(network.layer3[0].bn1.bias, tensors["backbone.6.bn1.bias"])
    said = caplog.records[0].getMessage()
    assert "fits 100.0%" in said and "of the file alone (b2.0.0.conv1.weight" in said


def test_arrays_and_blocks_that_the_backbone_lacks(tmp_path, caplog):
    """fast-reid's SBS has non-local blocks; detectron's files hold arrays."""
    shapes = prefixed("backbone.", resnet18()) | {"backbone.NL_2.0.g.weight": (64, 128, 1, 1)}
    tensors = drawn(shapes | {"pixel_mean": (1, 3, 1, 1)})
    arrays = {name: value.numpy() for name, value in tensors.items()}
    assert all(isinstance(one, np.ndarray) for one in arrays.values())
    path = written(tmp_path / "sbs.pth", arrays, "model")
    network = build_backbone("resnet18", str(path))
    assert torch.equal(network.conv1.weight, tensors["backbone.conv1.weight"])
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1 and said[0].endswith("1 of the file alone (backbone.NL_2.0.g.weight)")


def old_torchvision(name):
    """Name MobileNetV2's layers as torchvision did before its blocks were sequences."""
    found = re.fullmatch(r"features\.(\d+)\.conv\.(\d)\.(.*)", name)
    if not found:
        return name
    block, at, rest = int(found[1]), int(found[2]), found[3]
    sequences = 1 if block == 1 else 2  # of convolution, normalisation and activation
    if at < sequences:
        inner, _, rest = rest.partition(".")
        return f"features.{block}.conv.{3 * at + int(inner)}.{rest}"
    return f"features.{block}.conv.{2 * sequences + at}.{rest}"


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])  # the latter keeps no order
@pytest.mark.parametrize("name", ["torchvision:mobilenet_v2", *IF_TIMM])
def test_names_of_an_older_torchvision(name, suffix, tmp_path):
    state = build_backbone("torchvision:mobilenet_v2").state_dict()
    tensors = drawn({old_torchvision(name): tuple(one.shape) for name, one in state.items()})
    assert "features.1.conv.3.weight" in tensors and "features.2.conv.7.bias" in tensors
    path = written(tmp_path / f"mobilenet.{suffix}", tensors)
    loaded = build_backbone(name, str(path)).state_dict()
    for own, theirs in zip(loaded, state, strict=True):
        if not own.startswith("classifier") and not own.endswith("tracked"):
            assert torch.equal(loaded[own], tensors[old_torchvision(theirs)]), own


@pytest.mark.parametrize("older", [True, False])
def test_what_weights_by_order_do_not_hold(older, tmp_path, caplog):
    """Epsilons and paddings are in no file: who maps by order is told which ones count."""
    state = build_backbone("torchvision:mobilenet_v2").state_dict()
    names = {name: old_torchvision(name) if older else name for name in state}
    tensors = drawn({names[name]: tuple(one.shape) for name, one in state.items()})
    path = written(tmp_path / "mobilenet.pth", tensors)
    build_backbone("torchvision:mobilenet_v2", str(path))
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == older
    if older:
        assert "mapped by their order" in said[0] and "keeps its own (epsilon 1e-05)" in said[0]


def of_efficientnet_pytorch(name, places):
    """Name a layer of timm's EfficientNet as lukemelas/EfficientNet-PyTorch does."""
    name = name.replace("conv_head", "_conv_head").replace("classifier", "_fc")
    if not name.startswith("blocks"):
        return {"conv_stem": "_conv_stem", "bn1": "_bn0", "bn2": "_bn1"}.get(
            name.split(".")[0], name.split(".")[0]
        ) + name[name.index(".") :]
    stage, block, layer, rest = re.fullmatch(r"blocks\.(\d+)\.(\d+)\.(\w+)\.(.*)", name).groups()
    first = {"conv_dw": "_depthwise_conv", "conv_pw": "_project_conv", "bn1": "_bn1", "bn2": "_bn2"}
    later = {"conv_pw": "_expand_conv", "bn1": "_bn0", "conv_dw": "_depthwise_conv", "bn2": "_bn1"}
    later |= {"conv_pwl": "_project_conv", "bn3": "_bn2"}
    return f"_blocks.{places[stage, block]}.{(first if stage == '0' else later)[layer]}.{rest}"


@NEEDS_TIMM
def test_names_of_efficientnet_pytorch(tmp_path):
    state = build_backbone("timm:tf_efficientnet_lite0").state_dict()
    blocks = [tuple(name.split(".")[1:3]) for name in state if name.startswith("blocks")]
    places = {block: index for index, block in enumerate(dict.fromkeys(blocks))}
    names = {name: of_efficientnet_pytorch(name, places) for name in state}
    assert names["blocks.0.0.conv_pw.weight"] == "_blocks.0._project_conv.weight"
    tensors = drawn({names[name]: tuple(value.shape) for name, value in state.items()})
    path = written(tmp_path / "lite0.pth", tensors)
    loaded = build_backbone("timm:tf_efficientnet_lite0", str(path)).state_dict()
    for name, value in loaded.items():
        if not name.startswith("classifier") and not name.endswith("tracked"):
            assert torch.equal(value, tensors[names[name]]), name


@NEEDS_TIMM
@pytest.mark.parametrize("prefix", ["", "base."])
def test_position_embeddings_are_resampled(prefix, tmp_path, caplog):
    """A pre-training at 384 pixels has 24 x 24 places; TransReID's names begin with `base.`."""
    shapes = {k: tuple(v.shape) for k, v in build_backbone("timm:test_vit").state_dict().items()}
    side = 24 if not prefix else 14
    shapes["pos_embed"] = (1, side * side + 1, 64)
    tensors = drawn(prefixed(prefix, shapes))
    path = written(tmp_path / "vit.pth", tensors)
    network = build_backbone("timm:test_vit", str(path))
    assert torch.equal(network.blocks[5].norm1.weight, tensors[f"{prefix}blocks.5.norm1.weight"])
    assert torch.equal(network.pos_embed[:, 0], tensors[f"{prefix}pos_embed"][:, 0])
    assert 0.5 < network.pos_embed[:, 1:].mean() < 0.7 and not caplog.records


@NEEDS_TIMM
def test_names_of_convnexts_authors(tmp_path):
    """facebookresearch/ConvNeXt, which timm converts."""
    new = [
        (r"^stem\.", "downsample_layers.0."),
        (r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1."),
        (r"\.blocks\.", "."),
        (r"\.conv_dw\.", ".dwconv."),
        (r"\.mlp\.fc(\d)", r".pwconv\1"),
        (r"^head\.norm", "norm"),
        (r"^head\.fc", "head"),
    ]
    state = build_backbone("timm:convnext_atto").state_dict()
    names = {}
    for name in state:
        names[name] = name
        for pattern, to in new:
            names[name] = re.sub(pattern, to, names[name])
    shapes = {  # a convolution of one pixel is a linear layer there, and stems come first
        names[name]: tuple(state[name].shape)[: 2 if "pwconv" in names[name] else 4]
        for name in sorted(state, key=lambda name: names[name].startswith("stages"))
    }
    assert "downsample_layers.3.1.weight" in shapes and "stages.2.5.pwconv1.bias" in shapes
    tensors = drawn(shapes)
    path = written(tmp_path / "convnext.pth", tensors, "model")
    loaded = build_backbone("timm:convnext_atto", str(path)).state_dict()
    for name, value in loaded.items():
        if not name.startswith("head"):
            assert torch.equal(value.flatten(), tensors[names[name]].flatten()), name


def test_another_architecture_is_refused(tmp_path):
    path = written(tmp_path / "w.pth", drawn(prefixed("module.", torchreid_osnet())), "state_dict")
    with pytest.raises(UserError) as said:
        MMGA(0, "resnet18", str(path))
    words = str(said.value)
    assert "w.pth fits 0.0% of the parameters of backbone resnet18, at least 90%" in words
    assert " 100 not in the file (conv1.weight, bn1.weight, bn1.bias, ...)" in words
    assert re.search(r" \d{3} of the file alone \(conv1\.conv\.weight, ", words)
    with pytest.raises(UserError, match=r"fits 0\.0% .* trained with$"):
        MMGA(0, "resnet18", str(path), allow_partial_weights=True)


def test_a_part_is_taken_where_it_is_allowed(tmp_path, caplog):
    tensors = drawn({k: v for k, v in resnet18().items() if not k.startswith("layer4")})
    path = written(tmp_path / "w.safetensors", tensors)
    with pytest.raises(UserError, match=r"fits 24\.9% .* or add --allow-partial-weights"):
        MMGA(0, "resnet18", str(path))
    network = MMGA(0, "resnet18", str(path), allow_partial_weights=True)
    assert torch.equal(network.stem[0].weight, tensors["conv1.weight"])
    said = caplog.records[-1].getMessage()
    assert said.startswith("warning: ") and "fits 24.9%" in said
    assert "25 not in the file (layer4.0.conv1.weight, layer4.0.bn1.weight, " in said


def test_nearly_whole_weights_are_taken_with_a_warning(tmp_path, caplog):
    shapes = resnet18()
    shapes["layer1.0.conv1.weight"] = (64, 64, 5, 5)
    network = build_backbone("resnet18", str(written(tmp_path / "w.pth", drawn(shapes))))
    assert isinstance(network, torch.nn.Module)
    said = caplog.records[-1].getMessage()
    assert "fits 99.7%" in said and "1 of another shape (layer1.0.conv1.weight)" in said


def test_two_networks_in_a_file(tmp_path):
    both = prefixed("student.", resnet18()) | prefixed("mentor.", resnet18())
    path = written(tmp_path / "w.pth", drawn(both))
    with pytest.raises(UserError, match=r"w\.pth holds 2 networks .* 'student\.' and 'mentor\.'"):
        MMGA(0, "resnet18", str(path))


def test_a_run_starts_from_a_file_and_goes_on_without_it(tmp_path):
    path = written(tmp_path / "osnet.pth.tar-60", drawn(torchreid_osnet()), "state_dict", TORCHREID)
    model = {"backbone": "osnet_x0_25", "branches": "shared", "weights": str(path)}
    first = train(small(model=model, run={"epochs": 1}), tmp_path / "run", data=data())
    assert first.metrics["setting"]["pretrained"] == "osnet.pth.tar-60"
    path.unlink()
    longer = small(model=model, run={"epochs": 2})
    assert train(longer, tmp_path / "run", data=data(), resume=True).steps > first.steps


def test_the_command_names_the_share(tmp_path, capsys):
    from mmga.train import main

    path = written(tmp_path / "w.pth", drawn(resnet18()))
    words = command(table(tmp_path), tmp_path / "run", "--backbone", "tiny", "--weights", str(path))
    with pytest.raises(SystemExit) as left:
        main(words[3:])
    assert left.value.code == 2
    assert "w.pth fits 0.0% of the parameters of backbone tiny" in capsys.readouterr().err
