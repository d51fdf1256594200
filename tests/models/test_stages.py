"""Backbones of timm and torchvision: where they are cut, and that what is cut computes the same."""

import importlib.util
import sys

import pytest
import torch
from small_run import write_run
from small_training import data, small

from mmga.common.errors import UserError
from mmga.models import MMGA, Pooled, load, stages
from mmga.models.backbone import build_backbone, stages_of, with_synced_norms
from mmga.models.export import write_program
from mmga.training.trainer import train

HAS_TIMM = importlib.util.find_spec("timm") is not None
NEEDS_TIMM = pytest.mark.skipif(not HAS_TIMM, reason="timm is not installed")


def timm(name: str, *values):
    return pytest.param(f"timm:{name}", *values, marks=NEEDS_TIMM)


def spread(network):
    """Give normalisations and gates of a new network values that show in its features."""
    torch.manual_seed(1)
    for parameter in network.parameters():
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, 1, 0.2)
    return network.eval()


@pytest.mark.parametrize(
    ("name", "widths", "first_block", "layout", "last"),
    [
        ("torchvision:mobilenet_v2", (24, 32, 64, 1280), ["features_7"], "maps", 1),
        ("torchvision:efficientnet_b0", (24, 40, 80, 1280), ["features_4_0"], "maps", 1),
        ("torchvision:shufflenet_v2_x0_5", (24, 48, 96, 1024), ["stage3_0"], "maps", 1),
        (
            "torchvision:convnext_tiny",
            (96, 192, 384, 768),
            ["features_4", "features_5_0"],  # the down-sampling, and the first block after it
            "maps",
            1,
        ),
        (
            "torchvision:swin_t",
            (96, 192, 384, 768),
            ["features_4", "features_5_0"],
            "channels_last",
            2,  # merging patches has no stride that could be removed
        ),
        ("osnet_x0_25", (64, 96, 128, 128), ["conv3_2", "conv4_0"], "maps", 1),
        timm("resnet18", (64, 128, 256, 512), ["layer3_0"], "maps", 1),
        timm("tf_efficientnet_lite0", (24, 40, 80, 1280), ["blocks_3_0"], "maps", 1),
        timm("test_resnet", (32, 48, 192, 96), ["layer3"], "maps", 1),
        timm("test_convnext", (24, 32, 48, 64), ["stages_2_downsample", "stages_2_blocks_0"],
             "maps", 1),
        timm("test_mambaout", (16, 32, 48, 64), ["stages_2_downsample", "stages_2_blocks_0"],
             "channels_last", 1),
        timm("test_vit", (64, 64, 64, 64), ["blocks_3"], "tokens", 1),
    ],
)  # fmt: skip
def test_where_a_backbone_is_cut(name, widths, first_block, layout, last):
    with torch.device("meta"):
        cut = stages_of(build_backbone(name), name)
    assert (cut.widths, cut.layout.kind, cut.last) == (widths, layout, last)
    assert list(dict(cut.layer3.named_children())) == first_block


@pytest.mark.parametrize(
    "name",
    [
        "torchvision:mobilenet_v3_small",
        "torchvision:densenet121",
        timm("test_resnet"),
        timm("test_efficientnet"),
        timm("test_convnext"),
        timm("test_mambaout"),
        timm("test_vit"),
        timm("test_nfnet"),
    ],
)
def test_stages_compute_what_the_network_computes(name, monkeypatch):
    monkeypatch.setattr(stages, "_remove_stride", lambda tail, before, after: 2)
    network = spread(build_backbone(name))
    images = torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        features = network.forward_features if name.startswith("timm:") else network.features
        expected = features(images)
        cut = stages.split(network, name)
        found = images
        for part in (cut.stem, cut.layer1, cut.layer2, cut.layer3, cut.tail):
            found = part(found)
    assert torch.equal(found, expected)


def test_a_resnet_is_cut_by_strides_where_it_is_cut_by_names():
    """Two ways to one wiring: torchvision's ResNet by its attributes, and as any network."""
    network = spread(build_backbone("resnet18"))
    images = torch.randn(2, 3, 64, 32)
    by_strides = stages.split(network, "resnet18")  # first: names then set the same strides
    by_names = stages_of(network, "resnet18")
    assert by_strides.widths == by_names.widths
    one = other = images
    with torch.no_grad():
        for part in ("stem", "layer1", "layer2", "layer3", "tail"):
            one, other = getattr(by_strides, part)(one), getattr(by_names, part)(other)
            if part != "stem":  # the pooling belongs to either
                assert torch.equal(one, other), part


SMALL_ONES = [
    "osnet_x0_25",
    "torchvision:shufflenet_v2_x0_5",
    timm("test_efficientnet"),
    timm("test_convnext"),
    timm("test_mambaout"),
    timm("test_vit"),
]


@pytest.mark.parametrize("name", SMALL_ONES)
def test_maps_are_multiplied_into_every_layout(name):
    """Features must change with the maps: with another upper map those of the upper part alone."""
    torch.manual_seed(0)
    network = MMGA(0, name, pool="avg", embed_dim=None).eval()
    images = torch.randn(2, 3, 64, 32)
    with torch.no_grad():
        before = network.outputs(images)
        shape = before.attention["upper"].shape
        half = torch.cat((torch.ones(shape)[:, :, :2], torch.zeros(shape)[:, :, 2:]), dim=2)
        after = network.outputs(images, {"upper": half})
        other = network.outputs(images, {"whole0": before.attention["whole0"] * 0.5})
    for part in ("whole", "bottom"):
        torch.testing.assert_close(after.features[part], before.features[part])
    assert (after.features["upper"] - before.features["upper"]).abs().max() > 1e-6
    for part in before.features:
        assert (other.features[part] - before.features[part]).abs().max() > 1e-7


@pytest.mark.parametrize("name", SMALL_ONES)
def test_train_save_load_resume(name, tmp_path):
    model = {"backbone": name, "branches": "shared"}
    first = train(small(model=model, run={"epochs": 1}), tmp_path / "run", data=data())
    assert first.steps >= 2
    network = load(tmp_path / "run")
    assert network.options["backbone"] == name
    images = torch.randn(2, 3, 32, 16)
    with torch.no_grad():
        features = network(images)
    longer = small(model=model, run={"epochs": 2})
    assert train(longer, tmp_path / "run", data=data(), resume=True).steps > first.steps
    with torch.no_grad():
        assert not torch.equal(load(tmp_path / "run")(images), features)


@pytest.mark.parametrize("name", [timm("test_vit"), timm("test_convnext")])
def test_an_exported_graph_gives_equal_features(name, tmp_path):
    run = write_run(tmp_path, backbone=name, branches="single")
    network = spread(load(run))
    assert write_program(tmp_path / "network.pt2", network, (48, 16)) < 1e-5


@NEEDS_TIMM
def test_images_are_rescaled_to_timms_statistics():
    network = build_backbone("timm:test_vit")
    network.pretrained_cfg = {**network.pretrained_cfg, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    rescale = stages_of(network, "timm:test_vit").stem[0]
    grey = torch.full((1, 3, 2, 2), 0.5) - torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    black = -torch.tensor([0.485, 0.456, 0.406])[:, None, None].expand(1, 3, 2, 2)
    deviation = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    torch.testing.assert_close(rescale(grey / deviation), torch.zeros(1, 3, 2, 2))
    torch.testing.assert_close(rescale(black / deviation), torch.full((1, 3, 2, 2), -1.0))
    assert "stem.0.scale" in MMGA(0, "timm:test_vit").state_dict()


@pytest.mark.parametrize("name", ["torchvision:mobilenet_v3_small", timm("test_efficientnet")])
def test_synchronised_norms_keep_their_activations(name):
    network = spread(MMGA(0, name, branches="shared"))
    images = torch.randn(2, 3, 64, 32)
    with torch.no_grad():
        expected = network(images)
        synced = with_synced_norms(network)
        assert [one for one in synced.modules() if isinstance(one, torch.nn.SyncBatchNorm)]
        torch.testing.assert_close(synced(images), expected)


def test_pooled_features_of_stripes():
    torch.manual_seed(0)
    network = Pooled("osnet_x0_25", stripes=3).eval()
    images = torch.randn(2, 3, 96, 32)
    with torch.no_grad():
        rows, maps = network(images), network.features(images)
    assert rows.shape == (2, 3 * 128)
    middle = torch.nn.functional.normalize(maps[:, :, 2:4].mean((2, 3)))
    torch.testing.assert_close(rows[:, 128:256] * 3**0.5, middle)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torchvision:mobilenet_v4", "did you mean 'torchvision:mobilenet_v2'"),
        ("torchvision:squeezenet1_1", r"no chain of feature maps of strides 4, 8 and 16"),
        ("torchvision:vit_b_16", r"cannot take images of 288x160 pixels \(Wrong image height"),
        ("keras:resnet50", "is of no known library; write torchvision or timm"),
        ("osnet_x1_1", "did you mean 'osnet_x1_0'"),
        timm("resnet5", r"is not known to timm .*; did you mean timm:resnet"),
    ],
)
def test_backbones_that_cannot_be_had(name, message):
    with pytest.raises(UserError, match=message):
        MMGA(0, name)


@NEEDS_TIMM
def test_a_transformer_says_what_sizes_it_takes():
    sentence = r"patches of 16x16 pixels .* got 40x7; change .* to 32x16 for example"
    with pytest.raises(UserError, match=sentence):
        MMGA(0, "timm:test_vit").eval()(torch.zeros(1, 3, 40, 7))


def test_a_backbone_is_cut_in_inference_mode_too():
    with torch.inference_mode():
        network = MMGA(0, "torchvision:shufflenet_v2_x0_5").eval()
        assert network(torch.zeros(1, 3, 64, 32)).shape == (1, 768)


def test_stripes_need_rows():
    with pytest.raises(UserError, match=r"images of 32 pixels .* 2 rows .* raise --height"):
        MMGA(0, "osnet_x0_25", heads=8).eval()(torch.zeros(1, 3, 32, 16))


@NEEDS_TIMM
@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("IMAGENET1K_V1", r"of timm:resnet18 are not known; choose none, a file, or .* a1_in1k"),
        ("a1_in1k", r"a1_in1k of timm:resnet18 could not be downloaded .* --weights FILE"),
    ],
)
def test_weights_of_timm_that_cannot_be_had(weights, message, monkeypatch):
    import timm

    real = timm.create_model

    def refuse(*given, **options):
        if options["pretrained"]:
            raise OSError("no route to host")
        return real(*given, **options)

    monkeypatch.setattr(timm, "create_model", refuse)
    with pytest.raises(UserError, match=message):
        MMGA(0, "timm:resnet18", weights)


def test_a_missing_timm_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"timm:resnet18 needs timm .*pip install 'mmga\[timm\]'"):
        MMGA(0, "timm:resnet18")
