import socket

import pytest
import torch
from torch import nn

from mmga.common.errors import UserError
from mmga.config import LossConfig
from mmga.models import MMGA, PARTS
from mmga.training.losses import Masks, total_loss

SWITCHES = {
    "attention": ("both", "first", "none", "auxiliary"),
    "combine": ("product", "residual"),
    "branches": ("copies", "shared", "single"),
    "heads": (3, 8),
    "neck": ("none", "bnneck"),
    "pool": ("max", "avg", "gem"),
    "spatial_kernel": (1, 3),
    "read0": ("layer1", "layer2"),
    "reduction": ("head", "shared"),
    "classifier": ("kaiming", "normal"),
    "embed_dim": (256, None),
}
SINGLE = [{name: value} for name, values in SWITCHES.items() for value in values[1:]]
MIXED = [
    {"branches": "shared", "heads": 8, "neck": "bnneck", "pool": "gem", "combine": "residual"},
    {"branches": "shared", "heads": 8, "attention": "none", "pool": "avg"},
    {"branches": "single", "attention": "none", "embed_dim": None, "neck": "bnneck"},
    {"branches": "shared", "attention": "auxiliary", "pool": "gem", "read0": "layer2"},
    {"heads": 8, "attention": "first", "reduction": "shared", "spatial_kernel": 3},
]


def _name(options):
    return "-".join(f"{k}={v}" for k, v in options.items()) or "default"


def _parameters(network, *exclude):
    return sum(p.numel() for n, p in network.named_parameters() if not n.startswith(exclude))


def _batch(count=6, height=96, width=48):
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(count, 3, height, width, generator=generator)
    labels = torch.randint(0, 3, (count, height, width), generator=generator, dtype=torch.uint8)
    yes = torch.ones(count, dtype=torch.bool)
    return images, torch.arange(count) // 2, labels, yes


def _loosen(network):
    """Give the zero weights that open module 1 random values, so that gradient passes them."""
    for name, parameter in network.named_parameters():
        if not parameter.any() and name.endswith("weight"):
            nn.init.normal_(parameter, std=0.1)


@pytest.fixture(scope="module")
def resnet50():
    return MMGA(0)


def test_tensors_of_the_table(resnet50):
    """Every tensor at 3 x 384 x 128, caught where it leaves its module."""
    caught = {}

    def catch(name):
        def hook(module, inputs, output):
            value = output[0] if isinstance(output, tuple) else output
            caught[name] = tuple(value.shape[1:])

        return hook

    names = (
        "stem",
        "layer1",
        "layer2",
        "layer3",
        "attention1.spatial.conv1",
        "attention1.spatial.conv2",
        "attention1.spatial",
        "attention1.channel.fc1",
        "attention1.channel",
        "attention2.upper.spatial.conv1",
        "attention2.upper.spatial.conv2",
        "attention2.upper.spatial",
        "attention2.upper.channel.fc1",
        "attention2.upper.channel",
        "branches.bottom",
        "reductions.whole",
    )
    hooks = [resnet50.get_submodule(n).register_forward_hook(catch(n)) for n in names]
    resnet50.eval()
    with torch.no_grad():
        vector = resnet50(torch.zeros(1, 3, 384, 128))
    for hook in hooks:
        hook.remove()
    assert caught == {
        "stem": (64, 96, 32),
        "layer1": (256, 96, 32),
        "layer2": (512, 48, 16),
        "layer3": (1024, 24, 8),
        "attention1.spatial.conv1": (32, 96, 32),
        "attention1.spatial.conv2": (4, 48, 16),
        "attention1.spatial": (1, 48, 16),
        "attention1.channel.fc1": (32,),
        "attention1.channel": (512,),
        "attention2.upper.spatial.conv1": (128, 24, 8),
        "attention2.upper.spatial.conv2": (16, 24, 8),
        "attention2.upper.spatial": (1, 24, 8),
        "attention2.upper.channel.fc1": (128,),
        "attention2.upper.channel": (2048,),
        "branches.bottom": (2048, 24, 8),
        "reductions.whole": (256,),
    }
    assert vector.shape == (1, 768)


def test_parameter_counts(resnet50):
    assert _parameters(resnet50) == 67_803_712
    assert _parameters(MMGA(0, branches="shared")) == 26_702_400
    # The plain ResNet-50 without its classifier.
    plain = MMGA(0, branches="single", attention="none", embed_dim=None)
    assert _parameters(plain) == 23_508_032


def test_branches_start_from_the_same_weights_and_do_not_share_them():
    network = MMGA(3, "tiny")
    one, two = (dict(network.branches[part].named_parameters()) for part in ("whole", "bottom"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not {p.data_ptr() for p in one.values()} & {p.data_ptr() for p in two.values()}


def test_wiring_by_hand():
    """The default network's test vector, stage by stage as the table has it."""
    network = MMGA(0, "tiny").eval()
    _loosen(network)
    images = _batch(2)[0]
    with torch.no_grad():
        x1 = network.layer1(network.stem(images))
        a = network.attention1
        s = torch.relu(a.spatial.bn1(a.spatial.conv1(x1)))
        s = nn.functional.adaptive_avg_pool2d(s, (12, 6))
        s0 = a.spatial.conv3(torch.relu(a.spatial.bn2(a.spatial.conv2(s)))).sigmoid()
        c0 = a.channel.fc2(torch.relu(a.channel.fc1(x1.mean((2, 3))))).sigmoid()
        x2 = network.layer2(x1) * s0 * c0[:, :, None, None]
        x3 = network.layer3(x2)
        vectors = []
        for part in PARTS:
            a = network.attention2[part]
            s = torch.relu(a.spatial.bn1(a.spatial.conv1(x3)))
            s = a.spatial.conv3(torch.relu(a.spatial.bn2(a.spatial.conv2(s)))).sigmoid()
            c = a.channel.fc2(torch.relu(a.channel.fc1(x3.mean((2, 3))))).sigmoid()
            g = network.branches[part](x3) * s * c[:, :, None, None]
            vectors.append(network.reductions[part](g.amax((2, 3))))
        expected = torch.cat(vectors, 1)
        torch.testing.assert_close(network.embed(images), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            network(images), expected / expected.norm(dim=1, keepdim=True), rtol=1e-4, atol=1e-5
        )
        torch.testing.assert_close(network.attention(images)["whole0"], s0)


@pytest.mark.parametrize("options", [{}, *SINGLE, *MIXED], ids=_name)
def test_every_switch_trains_and_tests(options):
    torch.manual_seed(0)
    network = MMGA(3, "tiny", **options)
    _loosen(network)
    images, classes, labels, yes = _batch()
    output = network(images)
    heads = {"single": 1}.get(options.get("branches"), options.get("heads", 3))
    assert len(output.embeddings) == len(output.logits) == heads
    assert all(value.shape == (6, 3) for value in output.logits.values())
    maps = {"none": 0, "first": 1}.get(
        options.get("attention"), 2 if options.get("branches") == "single" else 4
    )
    assert len(output.attention) == maps
    assert all(m.min() >= 0 and m.max() <= 1 for m in output.attention.values())

    # The one maximum of a map passes little gradient: several batches reach every parameter.
    for seed in range(3):
        images = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
        masks = Masks(labels, yes, yes)
        total_loss(network(images), classes, masks, LossConfig(margin=5.0))["loss"].backward()
    frozen = [n for n, p in network.named_parameters() if not p.requires_grad]
    assert all(name.endswith("neck.bias") for name in frozen)
    assert bool(frozen) == (options.get("neck") == "bnneck")
    silent = [
        n
        for n, p in network.named_parameters()
        if p.requires_grad and (p.grad is None or not p.grad.any())
    ]
    assert silent == []
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)

    network.eval()
    with torch.no_grad():
        vector = network(images)
        assert vector.shape == (6, network.dim)
        torch.testing.assert_close(vector.norm(dim=1), torch.ones(6))
        assert sorted(network.attention(images)) == sorted(output.attention)


def test_bnneck_gives_its_input_to_the_triplet_and_its_output_to_the_test():
    network = MMGA(3, "tiny", neck="bnneck", classifier="normal")
    output = network(_batch()[0])
    assert output.embeddings["upper"].min() < 0  # no ReLU
    feature = network.heads["upper"].neck(output.embeddings["upper"])
    torch.testing.assert_close(feature.mean(0), torch.zeros(256), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        output.logits["upper"], network.heads["upper"].classifier(feature), atol=1e-5, rtol=1e-4
    )
    assert network.heads["upper"].classifier.bias is None
    assert torch.equal(
        network.embed(_batch()[0])[:, :256], network.outputs(_batch()[0])[4]["whole"]
    )


def test_initialisation():
    torch.manual_seed(0)
    network = MMGA(500, "tiny")
    images = _batch()[0]
    output = network(images)
    opened = torch.sigmoid(torch.tensor(2.0)).expand_as(output.attention["whole0"])
    torch.testing.assert_close(output.attention["whole0"], opened)
    assert output.attention["upper"].std() > 0
    linear, norm, _ = network.reductions["whole"]
    assert linear.weight.std().item() == pytest.approx((2 / 128) ** 0.5, rel=0.05)
    assert norm.weight.mean().item() == pytest.approx(1, abs=0.01)
    assert norm.weight.std().item() == pytest.approx(0.02, rel=0.3)
    classifier = network.heads["whole"].classifier
    assert classifier.weight.std().item() == pytest.approx((2 / 500) ** 0.5, rel=0.05)
    assert not classifier.bias.any()
    normal = MMGA(500, "tiny", classifier="normal").heads["whole"].classifier
    assert normal.weight.std().item() == pytest.approx(0.001, rel=0.05)


def test_auxiliary_maps_do_not_touch_the_features():
    network = MMGA(3, "tiny", attention="auxiliary").eval()
    images = _batch()[0]
    with torch.no_grad():
        before = network(images)
        for module in (network.attention1, *network.attention2.values()):
            nn.init.constant_(module.spatial.conv3.bias, -9)
        assert torch.equal(network(images), before)


def test_given_maps_replace_the_predicted_ones():
    network = MMGA(0, "tiny").eval()
    images = _batch(2)[0]
    with torch.no_grad():
        own = network.attention(images)
        torch.testing.assert_close(network(images, own), network(images), rtol=1e-4, atol=1e-5)
        given = {"upper": torch.zeros_like(own["upper"])}
        output = network.outputs(images, given)
        assert output.attention["upper"].max() < 1e-3
        torch.testing.assert_close(
            output.features["bottom"], network.outputs(images).features["bottom"]
        )
        assert not torch.allclose(
            output.features["upper"], network.outputs(images).features["upper"]
        )


@pytest.mark.parametrize("heads", [3, 8])
def test_stripes_see_their_own_rows(heads):
    network = MMGA(0, "tiny", heads=heads, branches="shared", attention="none")
    names = list(network.outputs(_batch()[0]).embeddings)
    if heads == 3:
        assert names == list(PARTS)
        return
    assert names == [
        "whole",
        *("upper", "upper_0", "upper_1"),
        *("bottom", "bottom_0", "bottom_1", "bottom_2"),
    ]
    x = torch.arange(12.0).reshape(1, 1, 6, 2).expand(1, 4, 6, 2)
    pooled = network._pool(x, ["bottom"], {}, {}, 3)
    assert pooled[0, 0, :, 0].tolist() == [3, 7, 11]


@pytest.mark.parametrize("backbone", ["resnet18", "resnext50_32x4d"])
def test_other_backbones(backbone):
    network = MMGA(0, backbone, branches="shared").eval()
    with torch.no_grad():
        output = network.outputs(torch.zeros(1, 3, 128, 64))
    assert output.attention["whole0"].shape == (1, 1, 16, 8)
    assert output.attention["whole"].shape == (1, 1, 8, 4)
    conv = network.branches["shared"][1][0].downsample[0]
    assert conv.stride == (1, 1)


@pytest.mark.parametrize("training", [True, False])
def test_compiles_as_one_graph(training):
    torch.manual_seed(0)
    network = MMGA(3, "tiny", branches="shared").train(training)
    compiled = torch.compile(network, backend="aot_eager" if training else "eager", fullgraph=True)
    images, classes, labels, yes = _batch()
    if not training:
        with torch.no_grad():
            torch.testing.assert_close(compiled(images), network(images), rtol=1e-4, atol=1e-5)
        return
    total_loss(compiled(images), classes, Masks(labels, yes, yes), LossConfig())["loss"].backward()
    assert network.attention1.spatial.conv3.bias.grad.any()


@pytest.mark.parametrize("options", [{}, {"pool": "gem"}, {"attention": "none"}], ids=_name)
def test_autocast_and_channels_last(options):
    torch.manual_seed(0)
    network = MMGA(3, "tiny", **options).to(memory_format=torch.channels_last)
    images, classes, labels, yes = _batch()
    with torch.no_grad():
        expected = network(images).embeddings["whole"]
    images = images.contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        output = network(images)
        loss = total_loss(output, classes, Masks(labels, yes, yes), LossConfig())["loss"]
    assert loss.dtype == torch.float32
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())
    # bfloat16 has 8 bits: a per cent or so after twenty layers.
    error = (output.embeddings["whole"].float() - expected).norm() / expected.norm()
    assert error < 0.1


def test_frozen_stages_stay_as_loaded():
    network = MMGA(4, "tiny", frozen_stages=2, embed_dim=8).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    output = network(_batch()[0])
    sum(scores.square().mean() for scores in output.logits.values()).backward()
    optimizer.step()
    changed = {
        name.split(".")[0]
        for name, value in network.state_dict().items()
        if not torch.equal(value, before[name])
    }
    assert not changed & {"stem", "layer1"} and {"layer2", "layer3", "branches"} <= changed
    with pytest.raises(UserError, match="frozen_stages must be 0 to 3, got 4"):
        MMGA(4, "tiny", frozen_stages=4)


def test_options_build_the_same_network_again():
    network = MMGA(3, "tiny", heads=8, branches="shared", neck="bnneck").eval()
    again = MMGA(**network.options).eval()
    again.load_state_dict(network.state_dict())
    images = _batch()[0]
    with torch.no_grad():
        assert torch.equal(network(images), again(images))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "resnet5"}, "did you mean 'resnet50'"),
        ({"backbone": "vgg"}, "choose tiny or one of resnet101"),
        ({"weights": "IMAGENET1K_V1"}, "use --weights none"),
        ({"backbone": "resnet50", "weights": "V1"}, "choose none, IMAGENET1K_V1, IMAGENET1K_V2"),
        ({"heads": 4}, "heads must be one of 3, 8, got 4"),
        ({"heads": 8, "branches": "single"}, "heads must be left at 3"),
        ({"pool": "mean"}, "pool must be one of max, avg, gem"),
    ],
    ids=lambda value: _name(value) if isinstance(value, dict) else None,
)
def test_bad_arguments(options, message):
    with pytest.raises(UserError, match=message):
        MMGA(3, **{"backbone": "tiny", **options})


def test_weights_that_cannot_be_downloaded(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    with pytest.raises(UserError, match=r"could not be downloaded .* --weights none") as said:
        MMGA(3, "resnet18", "IMAGENET1K_V1")
    assert "https://download.pytorch.org/models/resnet18-" in str(said.value)
    assert "--backbone-weights FILE" in str(said.value)


def test_a_download_does_not_wait_forever(monkeypatch):
    waits = []

    def refuse(*args, **kwargs):
        waits.append(socket.getdefaulttimeout())
        raise TimeoutError("timed out")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    with pytest.raises(UserError, match=r"could not be downloaded \(timed out\)"):
        MMGA(3, "resnet18", "IMAGENET1K_V1")
    assert waits == [30]
    assert socket.getdefaulttimeout() is None


def _tiny_state():
    from mmga.models.backbone import TinyResNet

    state = TinyResNet().state_dict()
    return {**state, "fc.weight": torch.zeros(5, 128)}


@pytest.mark.parametrize(
    ("suffix", "prefix", "key"),
    [
        ("pth", "", None),
        ("safetensors", "", None),
        ("pth", "module.", "state_dict"),
        ("pth", "module.encoder_q.", "state_dict"),
    ],
)
def test_backbone_weights_from_a_file(tmp_path, suffix, prefix, key):
    state = {prefix + name: value for name, value in _tiny_state().items()}
    if "encoder_q" in prefix:
        momentum = {f"module.encoder_k.{n}": v + 1 for n, v in _tiny_state().items()}
        state |= momentum
    path = tmp_path / f"weights.{suffix}"
    if suffix == "safetensors":
        from safetensors.torch import save_file

        save_file(state, path)
    else:
        torch.save({key: state, "epoch": 3} if key else state, path)
    network = MMGA(0, "tiny", backbone_weights=path)
    assert torch.equal(network.stem[0].weight, state[prefix + "conv1.weight"])
    for part in PARTS:
        last = network.branches[part][1][1].conv2.weight
        assert torch.equal(last, state[prefix + "layer4.1.conv2.weight"])


def test_bad_backbone_weights_are_named(tmp_path):
    path = tmp_path / "w.pth"
    with pytest.raises(UserError, match=r"w\.pth does not exist"):
        MMGA(0, "tiny", backbone_weights=path)
    path.write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"w\.pth cannot be read"):
        MMGA(0, "tiny", backbone_weights=path)
    state = _tiny_state()
    torch.save({n: v for n, v in state.items() if not n.startswith("layer4")}, path)
    with pytest.raises(UserError, match=r"w\.pth fits 25\.1% of .*file \(layer4\.0\.conv1"):
        MMGA(0, "tiny", backbone_weights=path)
    torch.save(state, path)
    with pytest.raises(UserError, match=r"w\.pth fits 0\.0% .* shape \(conv1\.weight"):
        MMGA(0, "resnet18", backbone_weights=path)
    torch.save({"fc.weight": torch.zeros(2)}, path)
    with pytest.raises(UserError, match=r"fits 0\.0% of the parameters of backbone tiny"):
        MMGA(0, "tiny", backbone_weights=path)
    with pytest.raises(UserError, match="both given"):
        MMGA(0, "tiny", "IMAGENET1K_V1", backbone_weights=path)


def test_switches_are_listed_completely():
    network = MMGA(0, "tiny")
    for name, values in SWITCHES.items():
        assert network.options[name] == values[0]
    assert set(network.options) == {*SWITCHES, "num_classes", "backbone"}
